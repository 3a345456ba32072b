"""What tells right from wrong must itself be right: of models whose answers are known, and of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from cases import Case, text_case
from numpy.typing import NDArray
from truth import DoesNotLoad, Truth, compare, difference, examine

from cortex.replica.backends.base import InferenceFailed
from cortex.wire.batching import Rounding
from cortex.wire.signature import Signature, TensorSpec


def seen(text: str, rounding: Rounding = "rounding", **more: Any) -> Truth:
    case: Case = text_case("", text, **more)
    rng = np.random.default_rng(0)
    return examine(case.model, lambda: case.draw(rng), rounding=rounding)


def test_a_row_by_row_model_is_right() -> None:
    truth = seen("g (float[N,4] x) => (float[N,4] y) { y = Tanh(x) }")

    assert truth.is_right
    assert truth.rows > 20


def test_rows_that_depend_on_the_batch_are_seen() -> None:
    truth = seen("g (float[N,4] x) => (float[N,4] y) { y = Softmax<axis=0>(x) }")

    assert truth.wrong is not None
    assert truth.wrong.problem == "values"
    assert 'output "y"' in truth.wrong.text


def test_another_number_of_rows_is_seen() -> None:
    truth = seen("g (float[N,4] x) => (float[M] y) { d = Constant<value = int64[1] {-1}>() y = Reshape(x, d) }")

    assert truth.wrong is not None
    assert truth.wrong.problem == "rows"


def test_a_batch_that_fails_while_each_request_passes_is_seen() -> None:
    one_row = "g (float[N,4] x) => (float[N,4] y) { d = Constant<value = int64[2] {1, 4}>() y = Reshape(x, d) }"
    case = text_case("", one_row)
    feeds = {"x": np.ones((1, 4), np.float32)}

    truth = examine(case.model, lambda: [feeds, feeds])

    assert truth.wrong is not None
    assert truth.wrong.problem == "failure"


def test_a_model_that_takes_no_input_is_neither_right_nor_wrong() -> None:
    truth = seen("g (float[N,3] x) => (float[N,4] y) { d = Constant<value = int64[2] {-1, 7}>() y = Reshape(x, d) }")

    assert truth == Truth()
    assert not truth.is_right


def test_a_model_that_does_not_load_is_told() -> None:
    with pytest.raises(DoesNotLoad, match="Nonsense"):
        seen("g (float[N] x) => (float[N] y) { y = Nonsense(x) }")


def test_a_row_that_is_no_number_may_change_itself_but_not_its_neighbours() -> None:
    rows = [{"x": np.array([[value, 1.0]], np.float32)} for value in (np.nan, 1.0, 2.0)]
    apart = text_case(
        "",
        """g (float[N,2] x) => (float[N] y) {
            a = Constant<value = int64[1] {1}>() y = ReduceMax<keepdims=0>(x, a) }""",
    )
    mixing = text_case(
        "",
        """g (float[N,2] x) => (float[N,2] y) {
            a = Constant<value = int64[1] {0}>() z = Constant<value = float {0}>()
            s = ReduceSum(x, a) n = Mul(s, z) y = Add(x, n) }""",
    )

    assert examine(apart.model, lambda: rows).is_right
    assert not examine(mixing.model, lambda: rows).is_right


class Scripted:
    """A model that answers as a test says, which is told the rows of its one input."""

    def __init__(self, dtype: str, *answers: NDArray[Any] | Exception) -> None:
        self.signature = Signature(
            inputs=(TensorSpec("x", "float32", (None, 1)),), outputs=(TensorSpec("y", dtype, (None, 1)),)
        )
        self._answers = iter(answers)

    def run(self, feeds: Mapping[str, Any]) -> Sequence[Any]:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return [answer]


def scripted(rounding: Rounding, alone: Sequence[Any], together: Any, dtype: str = "int64", times: int = 1) -> Truth:
    """Compare one row each of as many requests as there are answers alone, so many times the same."""
    answers = [np.array([one], dtype) for one in alone] + [np.array(together, dtype)]
    batch = [{"x": np.ones((1, 1), np.float32)} for _ in alone]
    return compare(Scripted(dtype, *answers * times), lambda: batch, rounding, batches=1)


def test_a_label_may_fall_the_other_way_now_and_then_where_labels_may() -> None:
    flips = [np.array([1], "int64")] * 2 + [np.array([1, 0], "int64")]
    agrees = [np.array([1], "int64")] * 2 + [np.array([1, 1], "int64")]
    batch = [{"x": np.ones((1, 1), np.float32)}] * 2

    truth = compare(Scripted("int64", *flips, *agrees * 100), lambda: batch, "labels", batches=1)

    assert truth.flipped == 1
    assert truth.is_right


@pytest.mark.parametrize("rounding", ["labels", "steps"])
def test_labels_that_keep_falling_the_other_way_are_wrong(rounding: Rounding) -> None:
    assert scripted(rounding, [1, 1], [1, 0], times=100).wrong is not None


def noise_of(*answers: Any) -> Any:
    """Whatever it is asked for: one row, which by itself is answered like that."""
    return lambda feeds: [[np.array([answer], "int64")] for answer in answers]


def test_labels_may_keep_falling_the_other_way_where_they_do_so_by_themselves() -> None:
    answers = [np.array([1], "int64")] * 2 + [np.array([1, 0], "int64")]
    batch = [{"x": np.ones((1, 1), np.float32)}] * 2

    def seen(noise: Any) -> Truth:
        return compare(Scripted("int64", *answers * 100), lambda: batch, "labels", batches=50, noise=noise)

    assert seen(noise_of(1, 0)) == Truth(rows=100, moved=50, flipped=50)
    assert seen(noise_of(1, 1)).wrong is not None


SUM_IN_FLOATS = "g (float[N,2,33,33] x) => (double[N,2,33] y) { s = ReduceSum<keepdims=0>(x, last) y = Cast<to=11>(s) }"
ROUNDED = "g (float[N,33,33] x) => (float[N,33] y) { s = ReduceSum<keepdims=0>(x, v1) t = Mul(s, four) y = Round(t) }"
"""Models that round what was summed, and are right as `steps` alone."""
ROUNDED_OVER_ROWS = "g (float[N,4] x) => (float[N,4] y) { s = ReduceMean(x, v0) t = Sub(x, s) y = Round(t) }"
INTEGERS = "g (int64[N,5,37] x) => (int64[N,37] y) { y = ReduceSum<keepdims=0>(x, v1) }"
MORE = {"last": np.array([-1]), "v0": np.array([0]), "v1": np.array([1]), "four": np.float32(4000)}


def seen_with(text: str, rounding: Rounding, batches: int = 20, **draws: Any) -> Truth:
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    case = text_case("", text, constants={name: value for name, value in MORE.items() if name in words}, draws=draws)
    rng = np.random.default_rng(0)
    return examine(case.model, lambda: case.draw(rng), rounding=rounding, batches=batches)


def test_a_sum_that_is_rounded_again_may_move_by_a_step_and_no_further() -> None:
    found = seen_with(SUM_IN_FLOATS, "steps")
    assert found.is_right
    assert found.flipped > found.unexplained == 0
    assert not seen_with(SUM_IN_FLOATS, "rounding").is_right

    assert seen_with(ROUNDED, "steps").is_right


def test_sums_of_large_whole_numbers_may_move_by_what_floats_of_64_bits_do() -> None:
    large = {"x": lambda rng, shape: rng.integers(0, 2**57, shape)}
    found = seen_with(INTEGERS, "steps", **large)
    assert found.is_right
    assert found.flipped > found.unexplained == 0
    assert not seen_with(INTEGERS, "exact", **large).is_right
    assert seen_with(INTEGERS, "exact", x=lambda rng, shape: rng.integers(0, 2**40, shape)).is_right


def test_what_mixes_rows_is_wrong_also_where_a_step_stands_behind_it() -> None:
    assert not seen_with(ROUNDED_OVER_ROWS, "steps").is_right
    assert not seen_with(ROUNDED_OVER_ROWS.replace("Round(t)", "Sign(t)"), "labels").is_right
    assert not seen_with(SUM_IN_FLOATS.replace("last", "v0").replace("N,2,33]", "M,33,33]"), "steps").is_right


@pytest.mark.parametrize("rounding", ["exact", "rounding"])
def test_no_label_may_differ_elsewhere(rounding: Rounding) -> None:
    assert scripted(rounding, [1, 1], [1, 0]).wrong is not None


def test_what_is_exact_may_differ_by_no_bit() -> None:
    next_to_1 = np.nextafter(np.float32(1), np.float32(2))

    assert scripted("exact", [1.0, 1.0], [1.0, next_to_1], "float32").wrong is not None
    assert scripted("rounding", [1.0, 1.0], [1.0, next_to_1], "float32").is_right
    assert scripted("exact", [0.0, 1.0], [-0.0, 1.0], "float32").wrong is not None


def test_one_request_is_no_batch() -> None:
    assert scripted("exact", [1], [1]) == Truth()


def test_a_request_that_is_refused_alone_is_left_out_of_its_batch() -> None:
    one = np.array([1.0], "float32")
    batch = [{"x": np.ones((1, 1), np.float32)}] * 3

    truth = compare(
        Scripted("float32", one, InferenceFailed("no"), one, np.ones(2, "float32")), lambda: batch, "exact", batches=1
    )

    assert truth == Truth(rows=2)


@pytest.mark.parametrize(
    ("dtype", "a", "b", "share"),
    [
        ("float32", [1.0], [1.0], 0.0),
        ("float32", [1.0], [1.0 + 1.01e-4], 1.0),
        ("float64", [1.0], [1.0 + 1.001e-9], 1.0),
        ("float16", [1.0], [1.0107421875], 10.7421875 / 11),
        ("float32", [100.0, 0.0], [100.0, 5e-3], 0.5),
        ("float32", [np.nan, 1.0], [np.nan, 1.0], 0.0),
        ("float32", [np.inf, 1.0], [np.inf, 1.0], 0.0),
        ("float32", [np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ("float32", [np.nan], [1.0], np.inf),
        ("int64", [3], [3], 0.0),
        ("int64", [3], [4], np.inf),
        ("bool", [True], [False], np.inf),
    ],
)
def test_a_difference_is_a_share_of_the_tolerance_of_its_row(dtype: str, a: Any, b: Any, share: float) -> None:
    found = difference([np.array([a], dtype)], np.array([b], "float64" if dtype == "float32" else dtype), dtype)

    assert found is not None
    assert found.shape == (1,)
    assert found[0] == pytest.approx(share, rel=0.02)


def test_text_differs_or_does_not() -> None:
    found = difference(
        [np.array(["a", "b"], object), np.array(["c"], object)], np.array(["a", "x", "c"], object), "string"
    )

    assert found is not None
    assert found.tolist() == [0.0, np.inf, 0.0]


def test_maps_are_compared_by_key() -> None:
    alone = [[{"no": 0.25, "yes": 0.75}], [{"no": 1.0, "yes": 0.0}]]

    found = difference(alone, [{"no": 0.25, "yes": 0.75}, {"no": 0.0, "yes": 1.0}], "float32")

    assert found is not None
    assert found[0] == 0
    assert found[1] > 1
    assert difference(alone, [{"no": 0.25}, {"no": 1.0}], "float32") is None


def test_rows_of_different_shapes_cannot_be_compared() -> None:
    assert difference([np.zeros((1, 2)), np.zeros((1, 3))], np.zeros((2, 3)), "float64") is None
