"""Batches, with a model that is plain arithmetic: every row of the answer can be told from every other."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.replica.prediction.batching import (
    MAX_BATCH_ROWS,
    Job,
    NotRowwise,
    count_rows,
    has_room,
    may_be_batched,
    merge,
    run_batch,
    split,
    take_batch,
)
from cortex.replica.tensors.conversion import Feeds
from cortex.wire.batching import MOST_ELEMENTS, MOST_ROWS, SizeCondition
from cortex.wire.signature import Signature, TensorSpec

POISON = -1.0


def feeds(*tags: float, width: int = 2) -> Feeds:
    return {"x": np.array([[tag] * width for tag in tags], dtype=np.float32)}


def model(given: Mapping[str, Any]) -> list[Any]:
    """Twice the tag, as an array and as a list with an item a row. Refuses poison."""
    x = given["x"]
    if (x == POISON).any():
        raise ValueError("poison")
    return [x * 2, [{"tag": float(row[0]) * 2} for row in x]]


class Caller:
    """Waits for the outcome of one job."""

    def __init__(self, *tags: float, width: int = 2) -> None:
        self.tags = tags
        self.outcomes: list[tuple[Any, BaseException | None]] = []
        self.job = Job(feeds(*tags, width=width), lambda outputs, error: self.outcomes.append((outputs, error)))

    def check(self) -> None:
        """Got exactly its own answer."""
        ((outputs, error),) = self.outcomes
        if POISON in self.tags:
            assert isinstance(error, ValueError)
            return
        assert error is None
        assert [row[0] for row in outputs[0]] == [tag * 2 for tag in self.tags]
        assert [row["tag"] for row in outputs[1]] == [tag * 2 for tag in self.tags]


def deliver(jobs: Sequence[Job], run: Any = model, watch: Any = lambda feeds, outputs: None) -> list[NotRowwise]:
    """Run a batch and deliver; says why batching was given up, each time it was."""
    given_up: list[NotRowwise] = []
    for job, outputs, error in run_batch(jobs, run, watch=watch, on_not_rowwise=given_up.append):
        if not job.cancelled:
            job.deliver(outputs, error)
    return given_up


def test_a_batch_holds_what_fits_together_in_arrival_order() -> None:
    first, other, second, third = Caller(1), Caller(2, width=3), Caller(3), Caller(4, 5)
    queue = deque([first.job, other.job, second.job, third.job])
    assert take_batch(queue, 8) == [first.job, second.job, third.job]
    assert take_batch(queue, 8) == [other.job]
    assert take_batch(queue, 8) == []


def test_a_batch_never_has_more_rows_than_the_limit() -> None:
    callers = [Caller(1, 2), Caller(3, 4), Caller(5)]
    queue = deque(caller.job for caller in callers)
    assert take_batch(queue, 3) == [callers[0].job, callers[2].job]
    assert list(queue) == [callers[1].job]


def test_a_job_over_the_limit_runs_alone() -> None:
    large, small = Caller(*range(10)), Caller(1)
    queue = deque([large.job, small.job])
    assert take_batch(queue, 4) == [large.job]
    assert take_batch(queue, 4) == [small.job]


def test_a_limit_of_one_means_no_batches() -> None:
    queue = deque([Caller(1).job, Caller(2).job])
    assert len(take_batch(queue, 1)) == 1


def test_cancelled_jobs_are_not_taken() -> None:
    callers = [Caller(n) for n in range(4)]
    callers[0].job.cancel()
    callers[2].job.cancel()
    queue = deque(caller.job for caller in callers)
    assert take_batch(queue, 8) == [callers[1].job, callers[3].job]


@pytest.mark.parametrize(
    "value",
    [
        {"x": np.float32(1)},
        {"x": np.array(1.0)},
        {"x": [np.zeros(2)]},
        {"x": np.zeros((2, 2)), "y": np.zeros((3, 2))},
        {"x": np.zeros((0, 2))},
        {"x": np.zeros((2, 0))},
        {"x": np.zeros((2, 2)), "y": np.zeros((2, 3, 0))},
        {},
    ],
)
def test_what_has_no_rows_runs_alone(value: Feeds) -> None:
    job = Job(value, lambda *_: None)
    assert job.key is None
    assert take_batch(deque([job, Job(value, lambda *_: None)]), 8) == [job]


def test_other_types_and_other_inputs_do_not_mix() -> None:
    keys = {Job({"x": np.zeros((1, 2), dtype)}, lambda *_: None).key for dtype in (np.float32, np.float64)} | {
        Job({"y": np.zeros((1, 2), np.float32)}, lambda *_: None).key
    }
    assert len(keys) == 3


@pytest.mark.parametrize("value", [{"x": np.zeros((1, 2)), "extra": np.zeros((1, 2))}, {"extra": np.zeros((1, 2))}])
def test_a_request_that_sets_an_input_with_a_default_runs_alone(value: Feeds) -> None:
    job = Job(value, lambda *_: None, ["extra"])
    assert job.key is None
    assert take_batch(deque([job, Job(value, lambda *_: None, ["extra"])]), 8) == [job]
    assert Job({"x": np.zeros((1, 2))}, lambda *_: None, ["extra"]).key is not None


@pytest.mark.parametrize(
    ("condition", "together"),
    [
        (SizeCondition("x", 1, 4), True),
        (SizeCondition("x", 1, 5), False),
        (SizeCondition("x", 1, at_most=4), True),
        (SizeCondition("x", 1, at_most=5), True),
        (SizeCondition("x", 1, at_most=3), False),
        (SizeCondition("x", 1, other_input="mask", other_axis=1), True),
        (SizeCondition("x", 1, other_input="x", other_axis=2), False),
        (SizeCondition("x", 3, 4), False),
        (SizeCondition("x", 3, at_most=4), False),
        (SizeCondition("x", 1, other_input="mask", other_axis=2), False),
        (SizeCondition("x", 3, other_input="mask", other_axis=2), False),
        (SizeCondition("absent", 1, 4), False),
    ],
)
def test_a_request_that_does_not_keep_to_what_is_proved_runs_alone(condition: SizeCondition, together: bool) -> None:
    jobs = [Job({"x": np.zeros((1, 4, 3)), "mask": np.zeros((1, 4))}, lambda *_: None) for _ in range(2)]
    kept = SizeCondition("x", 2, 3)
    assert take_batch(deque(jobs), 8, [kept, condition]) == (jobs if together else jobs[:1])


def jobs_of(*rows: int, width: int = 2) -> list[Job]:
    return [Job(feeds(*range(count), width=width), lambda *_: None) for count in rows]


def test_a_run_has_room_until_it_is_full_or_somebody_has_to_wait() -> None:
    assert has_room(jobs_of(3, 4), [], 8)
    assert not has_room(jobs_of(4, 4), [], 8)
    assert not has_room(jobs_of(9), [], 8)
    assert not has_room(jobs_of(1), [], 1), "without batches each run is full"
    assert not has_room(jobs_of(3), jobs_of(1, width=3), 8), "nothing else fits, and another waits"
    (gone,) = jobs_of(6)
    gone.cancel()
    assert has_room(jobs_of(3), [gone], 8)


def test_a_run_of_one_that_has_to_be_alone_has_room_for_nobody() -> None:
    alone = Job({"x": np.zeros((1, 2)), "extra": np.zeros((1, 2))}, lambda *_: None, ["extra"])
    assert not has_room([alone], [], 8)
    assert not has_room(jobs_of(1), [], 8, [SizeCondition("x", 1, 5)])
    assert has_room(jobs_of(1), [], 8, [SizeCondition("x", 1, 2)])


_SHAPES = st.sampled_from([(1, 2), (2, 2), (1, 3), (0, 2), (2, 0), (1,), (), (3, 2, 2), (1, 2, 2), (40, 2)])
_VALUES = st.dictionaries(
    st.sampled_from(["x", "y", "extra"]), st.tuples(_SHAPES, st.sampled_from([np.float32, np.float64])), max_size=3
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(requests=st.lists(_VALUES, max_size=12))
def test_whatever_is_batched_has_like_rows_and_not_too_many(
    requests: list[dict[str, tuple[tuple[int, ...], Any]]],
) -> None:
    """What a proof and a trial hold for is what `take_batch` makes, and nothing else."""
    given = [{name: np.zeros(shape, dtype) for name, (shape, dtype) in request.items()} for request in requests]
    queue = deque(Job(value, lambda *_: None, ["extra"]) for value in given)
    taken = 0
    while queue:
        batch = take_batch(queue, MAX_BATCH_ROWS)
        taken += len(batch)
        if len(batch) == 1:
            continue
        assert sum(job.rows for job in batch) <= MAX_BATCH_ROWS
        for job in batch:
            assert "extra" not in job.feeds
            assert all(value.size > 0 and value.shape[0] == job.rows for value in job.feeds.values())
            assert {name: (value.dtype, value.shape[1:]) for name, value in job.feeds.items()} == {
                name: (value.dtype, value.shape[1:]) for name, value in batch[0].feeds.items()
            }
    assert taken == len(requests)


def test_what_proofs_rest_on_holds_for_batches() -> None:
    assert MAX_BATCH_ROWS <= MOST_ROWS
    rows = {count: np.broadcast_to(np.int8(0), (2, count)) for count in (MOST_ELEMENTS, MOST_ELEMENTS + 1)}

    def taken(value: Any) -> int:
        return len(take_batch(deque(Job({"x": value}, lambda *_: None) for _ in range(2)), MAX_BATCH_ROWS))

    assert taken(rows[MOST_ELEMENTS]) == 2
    assert taken(rows[MOST_ELEMENTS + 1]) == 1


def spec(shape: Any, **fields: Any) -> TensorSpec:
    return TensorSpec("x", "float32", shape, **fields)


@pytest.mark.parametrize(
    ("inputs", "possible"),
    [
        ([spec(("N", 3))], True),
        ([spec((None,)), spec((None, "h", "w"))], True),
        ([spec(None)], True),
        ([spec((None, 3)), spec((1, 3), optional=True)], True),
        ([], False),
        ([spec((None, 3), optional=True)], False),
        ([spec((1, 3))], False),
        ([spec((None, 3)), spec(())], False),
        ([spec((None, 3)), spec((3,))], False),
        ([spec((None, 3), kind="sequence")], False),
        ([spec((), kind="map", key_dtype="string")], False),
    ],
)
def test_whether_requests_can_be_stacked_at_all_is_in_the_signature(inputs: list[TensorSpec], possible: bool) -> None:
    assert may_be_batched(Signature(tuple(inputs), ())) is possible


def test_what_is_run_together_is_shown_before_it_is_delivered() -> None:
    callers = [Caller(1), Caller(2), Caller(POISON)]
    seen: list[tuple[list[float], list[float], int]] = []

    def watch(feeds: Feeds, outputs: Sequence[Any]) -> None:
        answered = sum(len(caller.outcomes) for caller in callers)
        seen.append((feeds["x"][:, 0].tolist(), outputs[0][:, 0].tolist(), answered))

    deliver([caller.job for caller in callers[:2]], watch=watch)
    assert seen == [([1, 2], [2, 4], 0)]
    deliver([callers[2].job], watch=watch)
    assert len(seen) == 1, "what runs alone is no batch"


def test_one_poisoned_request_fails_alone() -> None:
    callers = [Caller(1), Caller(2), Caller(POISON), Caller(4), Caller(5)]
    deliver([caller.job for caller in callers])
    for caller in callers:
        caller.check()


def test_a_cancelled_request_disturbs_nobody_and_is_not_run() -> None:
    callers = [Caller(1), Caller(2), Caller(3)]
    callers[1].job.cancel()
    seen: list[Any] = []
    deliver([caller.job for caller in callers], lambda given: (seen.append(given["x"][:, 0].tolist()), model(given))[1])
    assert seen == [[1.0, 3.0]]
    assert callers[1].outcomes == []
    callers[0].check()
    callers[2].check()


@pytest.mark.parametrize(
    "mixes",
    [
        lambda x: [x.sum(axis=0, keepdims=True)],
        lambda x: [x[:1]],
        lambda x: [np.float32(3)],
        lambda x: [x, [{"a": 1}]],
        lambda x: [x, {"a": 1}],
    ],
)
def test_a_model_that_mixes_rows_is_not_batched_again(mixes: Any) -> None:
    callers = [Caller(1), Caller(2)]
    runs: list[int] = []

    def mixing(given: Mapping[str, Any]) -> list[Any]:
        runs.append(len(given["x"]))
        return mixes(given["x"]) if len(given["x"]) > 1 else model(given)

    assert [error.rows for error in deliver([caller.job for caller in callers], mixing)] == [2]
    assert runs == [2, 1, 1], "each again on its own"
    for caller in callers:
        caller.check()


def test_merge_and_split_undo_each_other() -> None:
    merged = merge([feeds(1), feeds(2, 3), feeds(4)])
    assert merged["x"].shape == (4, 2)
    parts = split([merged["x"], [10, 20, 30, 40], merged["x"][:, 0]], [1, 2, 1])
    assert [part[0][:, 0].tolist() for part in parts] == [[1], [2, 3], [4]]
    assert [part[1] for part in parts] == [[10], [20, 30], [40]]
    assert [part[2].tolist() for part in parts] == [[1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (np.zeros((2, 2)), "an array of shape [2, 2]"),
        (np.float32(1) * np.ones(()), "a float64"),
        (np.array(1.0), "an array of shape []"),
        ([1, 2], "a list of 2"),
        ({"a": 1}, "a dict"),
    ],
)
def test_split_refuses_another_number_of_rows(output: Any, found: str) -> None:
    with pytest.raises(NotRowwise) as caught:
        split([np.zeros((3, 1)), output], [1, 2])
    assert (caught.value.rows, caught.value.index, caught.value.found) == (3, 1, found)


def test_rows_are_counted() -> None:
    assert count_rows(feeds(1, 2, 3)) == 3
    assert count_rows({"x": np.zeros((2, 0))}) == 2
    assert count_rows({"x": np.float32(1)}) == 1
    assert count_rows({}) == 1


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_whatever_the_schedule_everyone_gets_their_own_answer(data: st.DataObject) -> None:
    """Callers come in any order, in several shapes; some are poison, some leave at any moment."""
    count = data.draw(st.integers(1, 24))
    max_rows = data.draw(st.integers(1, 8))
    callers: list[Caller] = []
    for number in range(count):
        rows = data.draw(st.integers(1, 3))
        tags = [POISON if data.draw(st.integers(0, 9)) == 0 else float(number * 10 + row) for row in range(rows)]
        callers.append(Caller(*tags, width=data.draw(st.sampled_from((2, 2, 2, 3)))))
    arriving = deque(callers)
    queue: deque[Job] = deque()
    largest = 0

    def run(given: Mapping[str, Any]) -> list[Any]:
        nonlocal largest
        largest = max(largest, len(given["x"])) if len(given["x"]) > 3 else largest
        # Somebody may leave while the model runs.
        if data.draw(st.integers(0, 5)) == 0:
            callers[data.draw(st.integers(0, count - 1))].job.cancel()
        return model(given)

    while arriving or queue:
        for _ in range(data.draw(st.integers(0, 4)) if queue else 1):
            if arriving:
                queue.append(arriving.popleft().job)
        if data.draw(st.integers(0, 4)) == 0:
            callers[data.draw(st.integers(0, count - 1))].job.cancel()
        deliver(take_batch(queue, max_rows), run)

    assert largest <= max(max_rows, 3)
    for caller in callers:
        if caller.job.cancelled:
            assert len(caller.outcomes) <= 1
            if caller.outcomes:  # it left after it had been answered
                caller.check()
        else:
            caller.check()
