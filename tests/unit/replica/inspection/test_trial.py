"""What running rows alone and together shows, on models whose every answer is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from cortex.replica.backends.base import InferenceFailed
from cortex.replica.inspection.trial import MAX_FEEDS_BYTES, MAX_ROWS, MAX_S, try_rows
from cortex.wire.batching import Disagreement, Rounding, SizeCondition, Trial
from cortex.wire.signature import Signature, TensorSpec

Function = Callable[..., Sequence[Any]]
FLOATS = TensorSpec("x", "float32", ("N", 3))


class Model:
    """A backend that is a function of its inputs. Remembers what it was given."""

    runtime = "fake 1.0, cpu, 1 thread"

    def __init__(self, function: Function, *inputs: TensorSpec, outputs: Sequence[TensorSpec] = ()) -> None:
        self.function = function
        self.signature = Signature(inputs or (FLOATS,), tuple(outputs) or (TensorSpec("y", "float32", None),))
        self.seen: list[dict[str, Any]] = []
        self.now_s = 0.0
        self.run_s = 0.0

    def run(self, feeds: Mapping[str, Any]) -> Sequence[Any]:
        self.seen.append(dict(feeds))
        self.now_s += self.run_s
        return self.function(**feeds)

    def tried(self, rounding: Rounding = "rounding", sample: Any = None, sizes: Sequence[SizeCondition] = ()) -> Trial:
        return try_rows(self, rounding, sample=sample, clock_s=lambda: self.now_s, sizes=sizes)  # type: ignore[arg-type]

    @property
    def batches(self) -> list[dict[str, Any]]:
        return [feeds for feeds in self.seen if all(len(value) > 1 for value in feeds.values())]


def refuse(reason: str) -> Any:
    raise InferenceFailed(reason)


# ---- what it tries --------------------------------------------------------------------------------------------------


def test_rows_are_run_in_several_orders_and_sizes_of_at_most_eight() -> None:
    model = Model(lambda x: [x * 2])
    found = model.tried("exact")
    assert found == Trial(runtime=model.runtime, rows=sum(len(feeds["x"]) for feeds in model.batches))
    assert {len(feeds["x"]) for feeds in model.batches} == {2, 3, MAX_ROWS}
    largest = [feeds["x"].tolist() for feeds in model.batches if len(feeds["x"]) == MAX_ROWS]
    assert sorted(largest[0]) == sorted(largest[1]) != largest[0] != largest[1]


def test_rows_of_a_batch_differ_also_in_magnitude() -> None:
    model = Model(lambda x: [x])
    model.tried()
    (rows,) = (feeds["x"] for feeds in model.batches[2:3])
    sizes = np.abs(rows).max(axis=1)
    assert len(np.unique(rows, axis=0)) == MAX_ROWS
    assert sizes.max() / sizes.min() > 100


def test_several_lengths_are_tried_where_they_are_free() -> None:
    model = Model(lambda x: [x], TensorSpec("x", "float32", ("N", "length", 2)))
    model.tried()
    assert {feeds["x"].shape[1:] for feeds in model.batches} == {(1, 2), (2, 2), (3, 2), (7, 2)}
    picky = Model(
        lambda x: [x] if x.shape[2] % 32 == 0 else refuse("a multiple of 32"),
        TensorSpec("x", "float32", ("N", 3, "height", "width")),
    )
    assert picky.tried().rows > 0
    assert {feeds["x"].shape[2:] for feeds in picky.batches} == {(32, 32), (64, 64), (96, 96), (224, 224)}


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("int64", "i"), ("uint8", "u"), ("bool", "b"), ("string", "O"), ("float16", "f"), ("bfloat16", "f")],
)
def test_rows_of_every_type_are_made_up(dtype: str, kind: str) -> None:
    model = Model(lambda x: [x], TensorSpec("x", dtype, (None, 4)), outputs=[TensorSpec("y", dtype, (None, 4))])
    assert model.tried("exact").disagreement is None
    largest = max((feeds["x"] for feeds in model.batches), key=len)
    assert largest.dtype.kind == kind
    assert len({str(row) for row in largest.tolist()}) > MAX_ROWS // 2


def test_what_a_model_does_not_take_is_left_out() -> None:
    """A vocabulary of three tokens: most that is made up is none of them."""
    model = Model(
        lambda x: [x] if (x < 3).all() else refuse("not in the vocabulary"),
        TensorSpec("x", "int64", (None, "length")),
        outputs=[TensorSpec("y", "int64", None)],
    )
    found = model.tried()
    assert found.disagreement is None
    assert found.rows > 10
    assert all((feeds["x"] < 3).all() for feeds in model.batches)


def test_the_rows_of_a_sample_come_first() -> None:
    sample = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    model = Model(lambda x: [x])
    model.tried(sample={"x": sample})
    assert model.batches[0]["x"].tolist() == sample.tolist()
    assert len(model.batches) == len(model.seen) - 2 * MAX_ROWS - 1, "each alone once, and one that looks what is taken"


def test_of_text_that_nobody_could_make_up_there_is_the_sample() -> None:
    known = {"red", "green"}
    model = Model(
        lambda x: [x] if known.issuperset(x.ravel().tolist()) else refuse("unknown"),
        TensorSpec("x", "string", (None, 1)),
        outputs=[TensorSpec("y", "string", None)],
    )
    assert model.tried().rows == 0
    found = model.tried(sample={"x": np.array([["red"], ["green"]], object)})
    assert found.disagreement is None
    assert found.rows > 0


@pytest.mark.parametrize(
    "sample",
    [
        {"x": np.ones((1, 3), np.float32), "y": np.ones((2, 3), np.float32)},
        {"x": np.ones((1, 3), np.float32), "y": np.ones((1, 3), np.float32), "scale": np.ones((1, 1), np.float32)},
        {"x": np.ones((0, 3), np.float32), "y": np.ones((0, 3), np.float32)},
    ],
)
def test_a_sample_that_a_replica_would_run_alone_is_not_used(sample: Any) -> None:
    optional = TensorSpec("scale", "float32", (None, 1), optional=True)
    model = Model(lambda x, y, scale=1: [x + y], FLOATS, TensorSpec("y", "float32", ("N", 3)), optional)
    assert model.tried(sample=sample).rows > 0
    assert not any("scale" in feeds or (feeds["x"] == 1).all() for feeds in model.seen)


def test_only_sizes_that_the_proof_holds_for_are_tried() -> None:
    model = Model(
        lambda x, mask, fixed: [
            x[:, 0] if x.shape[1:] == (5, 5) == mask.shape[1:] * 2 else x.sum(axis=0, keepdims=True)
        ],
        TensorSpec("x", "float32", ("N", "height", "width")),
        TensorSpec("mask", "float32", ("N", "length")),
        TensorSpec("fixed", "float32", ("N", 5)),
    )
    alike = SizeCondition("x", 1, other_input="mask", other_axis=1)
    found = model.tried(
        sizes=[alike, SizeCondition("mask", 1, other_input="fixed", other_axis=1), SizeCondition("x", 2, 5)]
    )
    assert found.disagreement is None
    assert found.rows > 0
    model = Model(lambda x: [x], TensorSpec("x", "float32", ("N", "length")))
    model.tried(sizes=[SizeCondition("x", 1, at_most=2)])
    assert {feeds["x"].shape[1] for feeds in model.batches} == {1, 2}


def test_a_sample_that_the_proof_does_not_hold_for_is_left_out() -> None:
    model = Model(lambda x: [x], TensorSpec("x", "float32", ("N", "length")))
    model.tried(sizes=[SizeCondition("x", 1, 5)], sample={"x": np.ones((2, 4), np.float32)})
    assert {feeds["x"].shape[1] for feeds in model.seen} == {5}


# ---- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs",
    [[TensorSpec("x", "float32", (1, 3))], [FLOATS, TensorSpec("k", "int64", ())], [TensorSpec("x", "float32", ())]],
)
def test_a_model_whose_requests_cannot_be_stacked_is_not_run(inputs: list[TensorSpec]) -> None:
    model = Model(lambda **_: refuse("not run"), *inputs)
    assert model.tried() == Trial(runtime=model.runtime)
    assert model.seen == []


def test_a_model_that_takes_nothing_is_not_tried() -> None:
    assert Model(lambda x: refuse("no")).tried() == Trial(runtime=Model.runtime)


def test_no_run_begins_when_the_time_is_up() -> None:
    model = Model(lambda x: [x])
    model.run_s = MAX_S / 5
    found = model.tried()
    assert len(model.seen) == 5
    assert found.rows == 2, "one row to look what is taken, two alone, the two together, a third alone"
    model = Model(lambda x: [x])
    model.run_s = 2 * MAX_S
    assert model.tried().rows == 0


def test_no_more_is_held_at_once_than_may_be() -> None:
    width = MAX_FEEDS_BYTES // 4 // 2 // 3
    model = Model(lambda x: [x[:, :1]], TensorSpec("x", "float32", (None, width)))
    assert model.tried().rows > 0
    assert max(len(feeds["x"]) for feeds in model.seen) == 3
    assert all(2 * feeds["x"].nbytes <= MAX_FEEDS_BYTES for feeds in model.seen)
    wide = Model(lambda x: [x[:, :1]], TensorSpec("x", "float32", (None, 3 * width)))
    assert wide.tried().rows == 0


# ---- what it finds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mixing",
    [
        pytest.param(lambda x: [x - x.max(axis=0)], id="the largest of all rows"),
        pytest.param(lambda x: [x / len(x)], id="the number of rows"),
        pytest.param(lambda x: [x - x[:1]], id="the first row"),
        pytest.param(lambda x: [np.cumsum(x, axis=0)], id="the rows before"),
        pytest.param(lambda x: [x[::-1]], id="another order"),
        pytest.param(lambda x: [np.round(x / np.abs(x).max() * 127) * np.abs(x).max()], id="one scale for all"),
        pytest.param(lambda x: [x + (0.01 if (x > 5).any() else 0)], id="a branch on any row"),
    ],
)
def test_rows_that_depend_on_each_other_are_found(mixing: Function) -> None:
    found = Model(mixing).tried().disagreement
    assert found is not None
    assert found.output == "y"
    assert found.difference is not None
    assert found.difference > found.tolerance > 0


def test_padding_to_the_longest_is_found() -> None:
    def padded(x: Any) -> Any:
        longest = max(len(text.split()) for text in x)
        return [np.array([text.split() + [""] * (longest - len(text.split())) for text in x], object)]

    model = Model(padded, TensorSpec("x", "string", (None,)), outputs=[TensorSpec("y", "string", (None, None))])
    found = model.tried("exact").disagreement
    assert found is not None
    assert found.difference is None


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (lambda x: x.sum(axis=0, keepdims=True), "an array of shape [1, 3]"),
        (lambda x: x.sum(), "a float32"),
        (lambda x: [{"a": 1.0}], "a list of 1"),
    ],
)
def test_another_number_of_rows_is_a_disagreement(output: Callable[[Any], Any], found: str) -> None:
    disagreement = (
        Model(lambda x: [x, output(x)], outputs=[TensorSpec("y", "float32", None), TensorSpec("z", "float32", None)])
        .tried()
        .disagreement
    )
    assert disagreement == Disagreement(output="z", alone="2 rows", together=found)


def test_failing_together_what_works_alone_is_a_disagreement() -> None:
    model = Model(lambda x: [x] if len(x) == 1 else refuse("one row only"))
    assert model.tried().disagreement == Disagreement(
        output="", alone="an answer", together="the model failed: one row only"
    )


def test_what_rounding_may_do_is_no_disagreement() -> None:
    """Rows in a batch come out a little larger."""
    model = Model(lambda x: [x * (1 if len(x) == 1 else np.float32(1 + 1e-5))])
    found = model.tried("rounding")
    assert found.disagreement is None
    assert 0.01 < found.worst < 0.11
    assert model.tried("exact").disagreement is not None


def test_one_label_that_falls_the_other_way_may_be_a_tie() -> None:
    class Flipping:
        """The third run of several rows gives one other label, or all do."""

        def __init__(self, *, once: bool) -> None:
            self.once = once
            self.batches = 0

        def __call__(self, x: Any) -> Any:
            labels = np.zeros(len(x), np.int64)
            self.batches += len(x) > 1
            if self.batches == 3 if self.once else self.batches >= 3:
                labels[0] = 1
            return [labels]

    def tried(rounding: Rounding, *, once: bool) -> Disagreement | None:
        outputs = [TensorSpec("label", "int64", (None,))]
        return (
            Model(Flipping(once=once), TensorSpec("x", "float32", (None, "length")), outputs=outputs)
            .tried(rounding)
            .disagreement
        )

    flipped = Disagreement(output="label", alone="0", together="1", difference=1.0)
    assert tried("labels", once=True) is None
    assert tried("labels", once=False) == flipped
    assert tried("rounding", once=True) == flipped
