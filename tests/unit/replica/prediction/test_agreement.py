"""What counts as the same answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cortex.replica.prediction.agreement import (
    TIES_APART,
    Comparison,
    Judge,
    compare,
    explained,
    failed_together,
    rows_lost,
)
from cortex.replica.prediction.batching import NotRowwise
from cortex.wire.batching import TOLERANCES, Disagreement, Rounding
from cortex.wire.signature import Kind, Signature, TensorSpec

ROUNDINGS: tuple[Rounding, ...] = ("exact", "rounding", "labels", "steps")


def signature(*dtypes: str, kind: Kind = "tensor") -> Signature:
    return Signature((), tuple(TensorSpec(f"y{number}", dtype, None, kind=kind) for number, dtype in enumerate(dtypes)))


def floats(*rows: Any, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.array(rows, dtype)


def text(*values: Any) -> np.ndarray[Any, Any]:
    return np.array(values, object)


def compared(alone: Any, together: Any, dtype: str = "float32", rounding: Rounding = "rounding") -> Comparison:
    return compare([alone], [together], signature(dtype), rounding)


# ---- floats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_rows_largest_value_says_what_all_of_it_may_differ_by(dtype: str) -> None:
    absolute, relative = TOLERANCES[dtype]
    numpy_dtype = np.float32 if dtype == "bfloat16" else np.dtype(dtype)
    # Powers of two: the sums below are exact in float64, and near enough in the others.
    allowed = absolute + relative * 4
    alone = np.array([[4, 0]], numpy_dtype)
    within, beyond = np.array([[4, allowed * 0.9]], numpy_dtype), np.array([[4, allowed * 1.1]], numpy_dtype)
    found = compared(alone, within, dtype)
    assert found.disagreement is None
    assert found.worst == pytest.approx(0.9, rel=0.01)
    disagreement = compared(alone, beyond, dtype).disagreement
    assert disagreement is not None
    assert disagreement.tolerance == pytest.approx(allowed)
    assert disagreement.difference == pytest.approx(allowed * 1.1, rel=0.01)


def test_another_rows_values_say_nothing() -> None:
    alone = floats([1, 1], [1000, 1000])
    assert compared(alone, alone + floats([0, 0], [0.05, 0])).disagreement is None
    found = compared(alone, alone + floats([0.05, 0], [0, 0])).disagreement
    assert found is not None
    assert (found.alone, found.together) == ("1.0", "1.05")


def test_the_worst_place_is_told() -> None:
    found = compared(floats([0, 0, 0, 1]), floats([0.1, 0.5, 0.2, 1]))
    assert found.disagreement == Disagreement(
        output="y0", alone="0.0", together="0.5", difference=0.5, tolerance=1e-6 + 1e-4
    )


@pytest.mark.parametrize(
    ("alone", "together", "same"),
    [
        ([np.nan, 1], [np.nan, 1], True),
        ([np.inf, -np.inf], [np.inf, -np.inf], True),
        ([np.inf, 1], [-np.inf, 1], False),
        ([np.nan, 1], [1, np.nan], False),
        ([np.inf, 1], [3e38, 1], False),
        ([1, 1], [np.nan, 1], False),
        ([np.nan, 1], [np.nan, 1.1], False),
    ],
)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_infinities_and_nan_are_equal_in_place(
    alone: list[float], together: list[float], same: bool, rounding: Rounding
) -> None:
    found = compared(floats(alone), floats(together), rounding=rounding)
    assert (found.disagreement is None) is same


def test_an_infinity_allows_no_difference_beside_it() -> None:
    assert compared(floats([np.inf, 1]), floats([np.inf, 1.01])).disagreement is not None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_exact_means_every_bit(dtype: Any) -> None:
    alone = np.array([[1, 0]], dtype)
    assert compared(alone, alone.copy(), np.dtype(dtype).name, "exact").disagreement is None
    for together in (np.nextafter(alone, np.array(2, dtype)), np.array([[1, -0.0]], dtype)):
        found = compared(alone, together, np.dtype(dtype).name, "exact")
        assert found.disagreement is not None
        assert not found.may_be_tie
        assert compared(alone, together, np.dtype(dtype).name, "rounding").disagreement is None


def test_of_all_bits_those_are_told_that_make_the_largest_difference() -> None:
    found = compared(floats([9, 2, 1, 7]), floats([8, 5, 1, 7]), rounding="exact").disagreement
    assert found == Disagreement(output="y0", alone="2.0", together="5.0", difference=3.0)


def test_without_rows_the_value_is_its_own_measure() -> None:
    assert compared(np.float32(1000) * np.ones((), np.float32), np.array(1000.05, np.float32)).disagreement is None


# ---- everything else ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alone", "together", "dtype", "shown"),
    [
        (np.array([[1, 2]]), np.array([[1, 5]]), "int64", ("2", "5", 3.0)),
        (np.array([[9, 2, 1, 7]]), np.array([[8, 5, 1, 7]]), "int64", ("2", "5", 3.0)),
        (np.array([2**63], np.uint64), np.array([0], np.uint64), "uint64", ("9223372036854775808", "0", 2.0**63)),
        (np.array([True]), np.array([False]), "bool", ("True", "False", None)),
        (text("a"), text("b"), "string", ("'a'", "'b'", None)),
        (text(b"\xff"), text("b"), "string", (r"b'\xff'", "'b'", None)),
        (text("x" * 200), text("b"), "string", ("'" + "x" * 78 + "…", "'b'", None)),
    ],
)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_what_is_no_float_has_to_be_equal(
    alone: Any, together: Any, dtype: str, shown: Any, rounding: Rounding
) -> None:
    assert compared(alone, alone.copy(), dtype, rounding) == Comparison()
    found = compared(alone, together, dtype, rounding).disagreement
    assert found is not None
    assert (found.alone, found.together, found.difference) == shown


@pytest.mark.parametrize(
    ("alone", "together", "shown"),
    [
        (floats([1, 2]), floats([1, 2, 3]), ("float32[1, 2]", "float32[1, 3]")),
        (np.float32(1) * np.ones(()), floats(1), ("float64[]", "float32[1]")),
        (text("a"), text("a", "a"), ("[1]", "[2]")),
    ],
)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_another_shape_is_no_tie(alone: Any, together: Any, shown: Any, rounding: Rounding) -> None:
    found = compared(alone, together, rounding=rounding)
    assert found.disagreement is not None
    assert not found.may_be_tie
    assert (found.disagreement.alone, found.disagreement.together) == shown
    assert found.disagreement.difference is None


def test_values_without_elements_are_equal() -> None:
    empty = np.zeros((1, 0), np.float32)
    assert compared(empty, empty.copy()) == Comparison()


def test_of_maps_keys_are_equal_and_values_are_floats() -> None:
    def maps(alone: Any, together: Any, rounding: Rounding = "rounding") -> Comparison:
        return compare([alone], [together], signature("float32", kind="sequence_of_maps"), rounding)

    def outline(item: Any) -> str:
        return "[]" if isinstance(item, dict) else "float64[1]"

    row = [{"a": 1.0, "b": 0.0}]
    assert maps(row, [{"b": 0.0, "a": 1.0}], "exact") == Comparison()
    assert maps(row, [{"a": 1.0, "b": 9e-5}]).disagreement is None
    found = maps(row, [{"a": 1.0, "b": 2e-4}]).disagreement
    assert found is not None
    assert (found.alone, found.together) == ("0.0", "0.0002")
    assert maps(row, [{"a": 1.0, "b": 1e-30}], "exact").disagreement is not None
    assert maps(row, [{"a": 1.0, "c": 0.0}]).disagreement == Disagreement(
        output="y0", alone="\"'a', 'b'\"", together="\"'a', 'c'\""
    )
    assert maps(row, row * 2).disagreement is not None
    for alone, together in (([{"a": 1.0}], [[1.0]]), ([[1.0]], [{"a": 1.0}])):
        assert maps(alone, together).disagreement == Disagreement(
            output="y0", alone=outline(alone[0]), together=outline(together[0])
        )
    assert maps([{1: "a"}], [{1: "long"}]).disagreement == Disagreement(output="y0", alone="'a'", together="'long'")


def test_of_sequences_each_item_is_a_row() -> None:
    def sequences(alone: Any, together: Any) -> Comparison:
        return compare([alone], [together], signature("float32", kind="sequence"), "rounding")

    assert sequences([floats(1000), floats(0)], [floats(1000.05), floats(0)]).disagreement is None
    assert sequences([floats(1000), floats(0)], [floats(1000), floats(0.05)]).disagreement is not None
    assert sequences([floats(), floats(0)], [floats(), floats(0.05)]).disagreement is not None


# ---- ties -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "score", "ties"),
    [
        (2, 1.0, {"labels", "steps"}),
        (1, 1.5, {"steps"}),
        (2, 1.5, {"steps"}),
    ],
)
def test_what_may_be_a_tie_goes_by_what_rounding_may_do(label: int, score: float, ties: set[str]) -> None:
    one = [np.array([1]), floats([1.0])]
    other = [np.array([label]), floats([score])]
    found = {rounding: compare(one, other, signature("int64", "float32"), rounding) for rounding in ROUNDINGS}
    assert all(comparison.disagreement is not None for comparison in found.values())
    assert {rounding for rounding, comparison in found.items() if comparison.may_be_tie} == ties


def differs(*, may_be_tie: bool) -> Comparison:
    return Comparison(0.5, Disagreement(output="y", alone="1", together="2"), may_be_tie)


def test_a_second_tie_so_soon_is_none() -> None:
    judge = Judge()
    assert judge.weigh(differs(may_be_tie=True)) is None
    for _ in range(TIES_APART - 1):
        assert judge.weigh(Comparison(0.25)) is None
    assert judge.weigh(differs(may_be_tie=True)) is None, "so rare a tie may be"
    assert judge.weigh(Comparison()) is None
    assert judge.weigh(differs(may_be_tie=True)) == differs(may_be_tie=True).disagreement
    assert (judge.rows, judge.worst) == (TIES_APART + 3, 0.5)


def test_what_is_no_tie_counts_at_once() -> None:
    assert Judge().weigh(differs(may_be_tie=False)) == differs(may_be_tie=False).disagreement


# ---- in words -------------------------------------------------------------------------------------------------------


def test_a_disagreement_is_told_in_words() -> None:
    spec = signature("float32")
    found = compared(floats([0, 1]), floats([0.5, 1])).disagreement
    assert found is not None
    assert explained(found) == 'output "y0": alone 0.0, together 0.5, 0.5 apart where 0.000101 is allowed'
    assert explained(rows_lost(NotRowwise(3, 0, "a list of 2"), spec)) == (
        'output "y0": alone 3 rows, together a list of 2'
    )
    assert explained(failed_together("no")) == "alone an answer, together no"


# ---- whatever comes -------------------------------------------------------------------------------------------------

_DTYPES = st.sampled_from(["float16", "float32", "float64", "int32", "int64", "uint8", "bool"])


@st.composite
def _outputs(draw: st.DrawFn) -> tuple[str, np.ndarray[Any, Any]]:
    dtype = draw(_DTYPES)
    return dtype, draw(arrays.arrays(np.dtype(dtype), arrays.array_shapes(min_dims=1, max_dims=3, max_side=4)))


@given(output=_outputs(), rounding=st.sampled_from(ROUNDINGS))
def test_everything_agrees_with_itself(output: tuple[str, np.ndarray[Any, Any]], rounding: Rounding) -> None:
    dtype, value = output
    assert compared(value, value.copy(), dtype, rounding) == Comparison()


@given(
    rows=arrays.arrays(np.float64, (2, 3), elements=st.floats(-1e6, 1e6)),
    apart=arrays.arrays(np.float64, (2, 3), elements=st.floats(-3, 3)),
)
def test_an_answer_within_the_tolerance_agrees_and_one_beyond_does_not(
    rows: np.ndarray[Any, Any], apart: np.ndarray[Any, Any]
) -> None:
    """`apart` in shares of what is allowed. In float64, declared as float32: what is added is exact enough."""
    allowed = 1e-6 + 1e-4 * np.abs(rows).max(axis=1, keepdims=True)
    found = compared(rows, rows + apart * allowed)
    worst = float(np.abs(apart).max())
    if worst < 0.999:
        assert found.disagreement is None
        assert found.worst == pytest.approx(worst, abs=1e-3)
    elif worst > 1.001:
        assert found.disagreement is not None
        assert found.disagreement.difference is not None
        assert found.disagreement.difference > found.disagreement.tolerance


@given(
    output=_outputs(),
    rounding=st.sampled_from(ROUNDINGS),
    place=st.integers(0, 1000),
)
def test_one_element_that_is_far_off_is_always_found(
    output: tuple[str, np.ndarray[Any, Any]], rounding: Rounding, place: int
) -> None:
    dtype, value = output
    value = np.where(np.isfinite(value), value, np.zeros_like(value)) if value.dtype.kind == "f" else value
    value = np.clip(value, -100, 100) if value.dtype.kind == "f" else value
    changed = value.copy()
    position = place % value.size
    changed.flat[position] = not value.flat[position] if dtype == "bool" else value.flat[position] // 2 + 111
    found = compared(value, changed, dtype, rounding).disagreement
    if changed.flat[position] == value.flat[position]:
        assert found is None
        return
    assert found is not None
    assert (found.alone, found.together) == (str(value.flat[position]), str(changed.flat[position]))


@given(output=_outputs(), rounding=st.sampled_from(ROUNDINGS), seed=st.integers(0, 2**32 - 1))
def test_where_rows_stand_does_not_matter(
    output: tuple[str, np.ndarray[Any, Any]], rounding: Rounding, seed: int
) -> None:
    dtype, value = output
    other = np.random.default_rng(seed).permuted(value, axis=-1)
    order = np.random.default_rng(seed).permutation(len(value))
    one, moved = compared(value, other, dtype, rounding), compared(value[order], other[order], dtype, rounding)
    assert (one.worst, one.may_be_tie) == (moved.worst, moved.may_be_tie)
    assert (one.disagreement is None) is (moved.disagreement is None)
