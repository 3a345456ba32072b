"""Where the model runs, and what its thread hands back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from cortex.replica.calls import Call
from cortex.replica.prediction.batching import MAX_BATCH_ROWS
from cortex.replica.prediction.guard import FIRST_BATCHES, WITHIN_S
from cortex.replica.prediction.inference import INLINE_BELOW_S, BatchingCondition, Inference
from cortex.replica.tensors.conversion import Feeds
from cortex.wire.batching import BatchingOrder, BatchingState, Disagreement, SizeCondition
from cortex.wire.signature import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", "float32", (None, 1)), TensorSpec("shift", "float32", (None, 1), optional=True)),
    (TensorSpec("y", "float32", (None, 1)),),
)


class Model:
    """Doubles its input; can be held up, and remembers how many rows each run had."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        self.rows.append(len(feeds["x"]))
        self.entered.set()
        assert self.gate.wait(60)
        if (feeds["x"] < 0).any():
            raise ValueError("negative")
        return [feeds["x"] * 2]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def model() -> Model:
    return Model()


class Explained(Exception):
    """What a failure means."""


class Room:
    """What there is around an inference."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.batching = BatchingCondition(BatchingOrder(batches=True))
        self.said: list[tuple[str, str]] = []
        self.announced: list[BatchingState] = []

    def inference(self, run: Any, signature: Signature = SIGNATURE) -> Inference:
        return Inference(
            run,
            explain=lambda feeds, error: Explained(f"{len(feeds['x'])} row: {error}"),
            signature=signature,
            batching=self.batching,
            loop=self.loop,
            say=lambda level, text: self.said.append((level, text)),
            announce=lambda: self.announced.append(self.batching.state()),
        )


@pytest.fixture
def room(loop: asyncio.AbstractEventLoop) -> Room:
    return Room(loop)


@pytest.fixture
def inference(room: Room, model: Model) -> Inference:
    return room.inference(model.run)


def row(value: float) -> dict[str, Any]:
    return {"x": np.array([[value]], dtype=np.float32)}


class Answers:
    def __init__(self, loop: asyncio.AbstractEventLoop, expected: int) -> None:
        self.by_name: dict[Any, Any] = {}
        self._given: list[Any] = []
        self._loop = loop
        self._expected = expected

    def taker(self, name: Any) -> Callable[[Any, BaseException | None], None]:
        def take(outputs: Any, error: BaseException | None) -> None:
            self._given.append(name)
            self.by_name[name] = error if error is not None else float(outputs[0][0, 0])
            if len(self.by_name) == self._expected:
                self._loop.stop()

        return take

    def wait(self) -> dict[Any, Any]:
        timeout = self._loop.call_later(60, self._loop.stop)
        self._loop.run_forever()
        timeout.cancel()
        assert len(self._given) == len(self.by_name), "each is answered once"
        return self.by_name


def test_run_is_at_once_and_says_what_a_failure_means(inference: Inference) -> None:
    outputs = inference.run(row(2), False)
    assert outputs is not None
    assert outputs[0] == 4
    with pytest.raises(Explained, match="1 row: negative") as caught:
        inference.run(row(-1), False)
    assert isinstance(caught.value.__cause__, ValueError)


def test_what_is_large_never_runs_at_once(inference: Inference, model: Model) -> None:
    assert inference.run(row(2), True) is None
    inference.seed(2 * INLINE_BELOW_S)
    assert inference.run(row(2), False) is None
    assert model.rows == []


def together(inference: Inference, model: Model, loop: asyncio.AbstractEventLoop, *values: float) -> dict[Any, Any]:
    """Have requests answered that came while the model was busy with one of 0; their answers by value."""
    answers = Answers(loop, 1 + len(values))
    model.gate.clear()
    model.entered.clear()
    inference.submit(row(0), answers.taker("first"))
    assert model.entered.wait(60)
    for value in values:
        inference.submit(row(value), answers.taker(value))
    model.gate.set()
    found = answers.wait()
    assert found.pop("first") == 0
    return found


def until(look: Callable[[], Any], what: str) -> None:
    deadline_s = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline_s, f"not within a minute: {what}"
        time.sleep(0.001)


def test_what_queues_up_while_the_model_is_busy_is_run_together(
    inference: Inference, model: Model, loop: asyncio.AbstractEventLoop
) -> None:
    assert together(inference, model, loop, 1, 2, 3, 4) == {1: 2, 2: 4, 3: 6, 4: 8}
    assert model.rows[:2] == [1, 4], "the first waited for nobody, the others were one batch"


def test_a_lone_request_never_waits(inference: Inference, model: Model, loop: asyncio.AbstractEventLoop) -> None:
    for number in range(3):
        answers = Answers(loop, 1)
        inference.submit(row(number), answers.taker(number))
        assert answers.wait() == {number: number * 2}
    assert model.rows == [1, 1, 1]


def test_without_batches_each_runs_alone_and_a_new_order_holds_from_the_next_on(
    room: Room, inference: Inference, model: Model, loop: asyncio.AbstractEventLoop
) -> None:
    room.batching.order = BatchingOrder()
    together(inference, model, loop, 1, 2, 3)
    assert model.rows == [1, 1, 1, 1]
    room.batching.order = BatchingOrder(batches=True)
    together(inference, model, loop, 1, 2, 3)
    assert model.rows[:6] == [1, 1, 1, 1, 1, 3]


def test_a_model_whose_signature_forbids_it_is_never_batched(
    room: Room, model: Model, loop: asyncio.AbstractEventLoop
) -> None:
    inference = room.inference(model.run, Signature((TensorSpec("x", "float32", (1, 1)),), SIGNATURE.outputs))
    together(inference, model, loop, 1, 2)
    assert model.rows == [1, 1, 1]
    assert room.batching.most_rows == 1


def test_requests_that_a_proof_does_not_hold_for_run_alone(
    room: Room, inference: Inference, model: Model, loop: asyncio.AbstractEventLoop
) -> None:
    room.batching.order = BatchingOrder(batches=True, sizes=(SizeCondition("x", 1, 2),))
    together(inference, model, loop, 1, 2)
    assert model.rows == [1, 1, 1]


def test_a_request_that_sets_an_optional_input_runs_alone(
    inference: Inference, model: Model, loop: asyncio.AbstractEventLoop
) -> None:
    answers = Answers(loop, 4)
    model.gate.clear()
    inference.submit(row(0), answers.taker(0))
    assert model.entered.wait(60)
    for number in range(1, 4):
        inference.submit({**row(number), "shift": row(1)["x"]}, answers.taker(number))
    model.gate.set()
    answers.wait()
    assert model.rows == [1, 1, 1, 1]


def held_up(inference: Inference, model: Model, loop: asyncio.AbstractEventLoop, *requests: Feeds) -> list[Call]:
    """Have these run: the first alone, since it comes first, and the others wait meanwhile."""
    calls = [Call() for _ in requests]
    answers = Answers(loop, len(requests))
    model.gate.clear()
    for number, (request, call) in enumerate(zip(requests, calls, strict=True)):
        inference.submit(request, answers.taker(number), call)
        assert model.entered.wait(60)
    model.gate.set()
    answers.wait()
    return calls


def test_the_models_seat_is_taken_while_a_run_has_room_for_nobody_else(
    room: Room, inference: Inference, model: Model, loop: asyncio.AbstractEventLoop
) -> None:
    room.batching.order = BatchingOrder()
    calls = held_up(inference, model, loop, row(1), row(2))
    assert all(call.model_s > 0 for call in calls)
    assert inference.seat.read() == pytest.approx((sum(call.model_s for call in calls),) * 2)


def test_a_run_in_which_there_is_room_leaves_the_models_seat_free(
    inference: Inference, model: Model, loop: asyncio.AbstractEventLoop
) -> None:
    calls = held_up(inference, model, loop, row(1), row(2), row(3))
    assert [call.model_s for call in calls] == [0.0, 0.0, 0.0]
    assert inference.seat.read() == (0.0, 0.0)


def test_a_full_run_is_shared_by_its_requests_and_who_runs_behind_it_has_room(
    inference: Inference, model: Model, loop: asyncio.AbstractEventLoop
) -> None:
    calls = held_up(inference, model, loop, row(0), *(row(number) for number in range(MAX_BATCH_ROWS + 1)))
    assert model.rows[:3] == [1, MAX_BATCH_ROWS, 1]
    first, *shared, last = (call.model_s for call in calls)
    assert (first, last) == (0.0, 0.0)
    assert shared == pytest.approx([inference.seat.read().busy_s / MAX_BATCH_ROWS] * MAX_BATCH_ROWS)
    assert shared[0] > 0


def test_failures_and_departures_reach_only_their_owner(
    inference: Inference, model: Model, loop: asyncio.AbstractEventLoop
) -> None:
    answers = Answers(loop, 4)
    model.gate.clear()
    inference.submit(row(1), answers.taker("first"))
    assert model.entered.wait(60)
    inference.submit(row(2), answers.taker("second"))
    gone = inference.submit(row(3), answers.taker("gone"))
    inference.submit(row(-1), answers.taker("poison"))
    inference.submit(row(4), answers.taker("fourth"))
    gone.cancel()
    model.gate.set()
    found = answers.wait()
    assert repr(found.pop("poison")) == "Explained('1 row: negative')"
    assert found == {"first": 2, "second": 4, "fourth": 8}


def test_batching_ends_for_good_when_rows_get_lost(room: Room, model: Model, loop: asyncio.AbstractEventLoop) -> None:
    inference = room.inference(lambda feeds: [model.run(feeds)[0].sum(axis=0, keepdims=True)])
    for _ in range(2):
        assert together(inference, model, loop, 2, 3) == {2: 4, 3: 6}
    assert model.rows == [1, 2, 1, 1, 1, 1, 1]
    lost = Disagreement(output="y", alone="2 rows", together="an array of shape [1, 1]")
    assert room.batching.state().disagreement == lost
    assert [state.disagreement for state in room.announced] == [lost]
    assert len(room.said) == 1


# ---- the guard ------------------------------------------------------------------------------------------------------


def mixing(model: Model) -> Callable[[Mapping[str, Any]], list[Any]]:
    """A model that adds up all rows of a batch."""
    return lambda feeds: [model.run(feeds)[0] + (feeds["x"].sum() if len(feeds["x"]) > 1 else 0)]


def test_a_row_that_disagrees_ends_batching_whatever_is_ordered(
    room: Room, model: Model, loop: asyncio.AbstractEventLoop
) -> None:
    inference = room.inference(mixing(model))
    assert together(inference, model, loop, 1, 2) == {1: 5, 2: 7}, "that is how wrong it is"
    until(lambda: room.said, "the guard has looked")
    found = room.batching.disagreement
    assert found is not None
    assert found.output == "y"
    assert (found.alone, found.together) in {("2.0", "5.0"), ("4.0", "7.0")}
    assert [state.disagreement for state in room.announced] == [found]
    ((level, text),) = room.said
    assert level == "ERROR"
    assert all(part in text for part in ('"y"', found.alone, found.together, "cannot be taken back"))
    room.batching.order = BatchingOrder(batches=True, rounding="steps")
    assert together(inference, model, loop, 1, 2) == {1: 2, 2: 4}
    assert model.rows == [1, 2, 1, 1, 1, 1], "the row that was looked at, and then each alone"
    assert room.batching.state() == BatchingState(
        order=BatchingOrder(batches=True, rounding="steps"), guarded_rows=1, disagreement=found
    )


def test_a_row_of_the_first_batches_is_computed_again_and_no_lone_request_is(
    room: Room, inference: Inference, model: Model, loop: asyncio.AbstractEventLoop
) -> None:
    together(inference, model, loop)
    for number in range(1, FIRST_BATCHES + 2):
        together(inference, model, loop, 1, 2, 3)
        until(lambda n=number: room.batching.guarded_rows == n, "the guard has looked")  # type: ignore[misc]
    together(inference, model, loop, 1, 2, 3)  # the fifth
    together(inference, model, loop)
    assert model.rows == [1, *[1, 3, 1] * (FIRST_BATCHES + 1), 1, 3, 1]
    assert room.batching.state().disagreement is None
    assert room.said == []


def test_nobody_waits_for_the_guard_until_a_second_is_over(
    room: Room, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests come as fast as they are answered: there is always one that waits."""
    clock = Clock()
    monkeypatch.setattr("cortex.replica.prediction.inference.perf_counter", lambda: clock.now_s)
    to_come = [row(number) for number in range(14)]
    seen: list[tuple[int, int]] = []

    def run(feeds: Mapping[str, Any]) -> list[Any]:
        seen.append((len(feeds["x"]), inference.waiting))
        for _ in range(2):
            if to_come:
                inference.submit(to_come.pop(), lambda outputs, error: None)
        clock.now_s += 0.4 * WITHIN_S
        return [feeds["x"] * 2]

    inference = room.inference(run)
    inference.submit(row(0), lambda outputs, error: None)
    until(lambda: room.batching.guarded_rows, "the guard has looked")
    assert seen[:6] == [(1, 0), (2, 0), (2, 0), (2, 0), (2, 0), (1, 2)], "a row of the first batch, while two wait"


def test_a_row_that_fails_alone_is_no_answer_to_compare(
    room: Room, model: Model, loop: asyncio.AbstractEventLoop
) -> None:
    broken = threading.Event()

    def run(feeds: Mapping[str, Any]) -> list[Any]:
        if len(feeds["x"]) == 1 and broken.is_set():
            broken.clear()
            raise ValueError("not alone")
        if len(feeds["x"]) > 1:
            broken.set()
        return model.run(feeds)

    inference = room.inference(run)
    assert together(inference, model, loop, 1, 2) == {1: 2, 2: 4}
    until(lambda: not broken.is_set(), "the guard has looked")
    assert together(inference, model, loop, 1, 2) == {1: 2, 2: 4}
    assert room.batching.state().disagreement is None
    assert room.said == []


def test_an_error_of_the_guards_own_is_told_and_stops_nothing(
    room: Room, inference: Inference, model: Model, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("cortex.replica.prediction.guard.Guard.judge", broken)
    assert together(inference, model, loop, 1, 2) == {1: 2, 2: 4}
    until(lambda: room.said, "the guard has looked")
    assert "ZeroDivisionError" in room.said[0][1]
    assert together(inference, model, loop, 1, 2) == {1: 2, 2: 4}
    assert room.batching.most_rows > 1


# ---- where it runs --------------------------------------------------------------------------------------------------


class Clock:
    now_s = 0.0


class TimedModel:
    """A model whose runs take as long as it is told, by a watch of its own."""

    def __init__(self) -> None:
        self.run_s = 0.0
        self.now_s = 0.0

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        self.now_s += self.run_s
        return [feeds["x"]]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> TimedModel:
    made = TimedModel()
    monkeypatch.setattr("cortex.replica.prediction.inference.perf_counter", lambda: made.now_s)
    return made


def test_a_slow_model_leaves_the_loop_and_a_fast_one_comes_back(
    room: Room, timed: TimedModel, loop: asyncio.AbstractEventLoop
) -> None:
    inference = room.inference(timed.run)
    inference.seed(0.0)
    assert inference.inline
    timed.run_s = 2 * INLINE_BELOW_S
    for _ in range(50):
        inference.run(row(1), False)
    assert not inference.inline
    timed.run_s = 0.0
    for number in range(200):
        if inference.inline:
            break
        answers = Answers(loop, 1)
        inference.submit(row(1), answers.taker(number))
        answers.wait()
    assert inference.inline


def test_one_run_that_lost_the_processor_moves_nothing(room: Room, timed: TimedModel) -> None:
    inference = room.inference(timed.run)
    inference.seed(0.0)
    timed.run_s = 50 * INLINE_BELOW_S
    inference.run(row(1), False)
    assert inference.inline


def test_a_slow_first_measurement_counts_at_once(inference: Inference) -> None:
    inference.seed(2 * INLINE_BELOW_S)
    assert not inference.inline


def test_watching_sees_every_run(inference: Inference) -> None:
    with inference.watched() as seen:
        inference.run(row(1), False)
        inference.run(row(2), False)
    inference.run(row(3), False)
    assert [float(feeds["x"][0, 0]) for feeds in seen] == [1, 2]
