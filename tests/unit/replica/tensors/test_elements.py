"""What every tensor has in common, whatever its elements are: how deep it may be nested, and what to do about it."""

from __future__ import annotations

import decimal
import fractions
from typing import Any

import numpy as np
import pytest

from cortex.replica.tensors.conversion import plan
from cortex.replica.tensors.elements import as_plain
from cortex.replica.tensors.mismatch import InputMismatch
from cortex.wire.signature import Dim, TensorSpec


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "string"])
@pytest.mark.parametrize(
    ("shape", "value", "reason", "hint"),
    [
        ((3,), [[1, 2, 3]], "nested more than 1 level deep", "take away the outermost brackets"),
        ((3,), [[[1, 2, 3]]], "nested more than 1 level deep", "the model takes [3]"),
        ((2,), [[1, 2], [3, 4]], "nested more than 1 level deep", "the model takes [2]"),
        ((None, 2), [[[1, 2], [3, 4]]], "nested more than 2 levels deep", "take away the outermost brackets"),
        ((None, 2), [[[1, 2]], [[3, 4]]], "nested more than 2 levels deep", "the model takes [?, 2]"),
        ((None, 2), [[[1, 2, 3]]], "nested more than 2 levels deep", "the model takes [?, 2]"),
    ],
)
def test_what_is_nested_too_deep_is_told_which_brackets_are_too_many(
    dtype: str, shape: tuple[Dim, ...], value: Any, reason: str, hint: str
) -> None:
    with pytest.raises(InputMismatch) as caught:
        plan(TensorSpec("x", dtype, shape), takes_bytes=False)(value)
    assert (caught.value.reason, caught.value.hint) == (reason, hint)


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        (None, "make all rows equally long, or pad them"),
        ((None, None), "make all rows equally long, or pad them"),
        ((None, 4), "make all rows equally long, or pad them"),
        ((None, 2), "the model takes [?, 2]: give every one 2"),
        ((None, 3), "the model takes [?, 3]: give every one 3"),
    ],
)
def test_rows_of_two_lengths_are_told_the_one_that_the_model_takes(shape: tuple[Dim, ...] | None, hint: str) -> None:
    with pytest.raises(InputMismatch) as caught:
        plan(TensorSpec("x", "float32", shape), takes_bytes=False)([[1, 2], [3, 4], [5, 6, 7]])
    assert (caught.value.reason, caught.value.hint) == ("[2] has 3 values while [0] has 2", hint)


def test_of_rows_that_are_not_equally_deep_the_first_that_is_none_is_named() -> None:
    with pytest.raises(InputMismatch) as caught:
        plan(TensorSpec("x", "float32", (None, None, None)), takes_bytes=False)([[[1], [2]], [[3], 4]])
    assert (caught.value.reason, caught.value.hint) == (
        "[1][1] is no list while [0][0] is one",
        "make all rows equally deep",
    )


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array(3), 3),
        (np.array("a"), "a"),
        (decimal.Decimal("1.5"), 1.5),
        (fractions.Fraction(1, 4), 0.25),
    ],
)
def test_a_scalar_is_the_plain_value_that_it_stands_for(value: object, plain: object) -> None:
    assert (type(as_plain(value)), as_plain(value)) == (type(plain), plain)


class Unsure:
    """Has a number that it does not tell."""

    def __float__(self) -> float:
        raise ValueError("not now")

    def __repr__(self) -> str:
        return "unsure"


@pytest.mark.parametrize(
    "value",
    [None, True, 5, 2.5, "1.5", b"1", [1], (1,), {"a": 1}, np.array([1]), fractions.Fraction(10**400), Unsure(), set()],
    ids=str,
)
def test_whatever_else_stays_what_it_is(value: object) -> None:
    assert as_plain(value) is value


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_scalars_of_numpys_among_others_are_elements_and_longer_arrays_are_not(dtype: str) -> None:
    convert = plan(TensorSpec("x", dtype, (3,)), takes_bytes=False)
    assert convert([np.array(1), np.float64(0), 1]).tolist() == [1, 0, 1]
    with pytest.raises(InputMismatch, match="is of type ndarray, which is no"):
        convert([1, np.array([1, 0]), 1])


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "bfloat16"])
@pytest.mark.parametrize(
    "rows", [[np.array([1, 0, 1])], [np.array([1, 0, 1]), [0, 1, 1]], [np.array([1, 0, 1]), np.array([0, 1, 1])]]
)
def test_rows_may_be_arrays(dtype: str, rows: list[Any]) -> None:
    found = plan(TensorSpec("x", dtype, (None, 3)), takes_bytes=False)(rows)
    assert found.tolist() == [list(row) for row in rows]


def test_rows_of_text_may_be_arrays() -> None:
    convert = plan(TensorSpec("x", "string", (None, 2)), takes_bytes=False)
    assert convert([np.array(["a", "b"])]).tolist() == [["a", "b"]]
    assert convert([np.array(["a", "b"]), ["c", "d"]]).tolist() == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "bfloat16"])
@pytest.mark.parametrize("value", [np.timedelta64(5, "s"), np.datetime64("2020-01-01"), np.complex64(1), np.str_("1")])
def test_scalars_that_are_no_numbers_are_refused_alone_and_in_a_list(dtype: str, value: object) -> None:
    convert = plan(TensorSpec("x", dtype, (None,)), takes_bytes=False)
    for sample in (value, [value], [value, 1.0], [1.0, value]):
        with pytest.raises(InputMismatch):
            convert(sample)
