"""Where the model runs, and what its thread hands back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from cortex.replica.inference import INLINE_BELOW_S, Inference


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


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def inference(loop: asyncio.AbstractEventLoop, model: Model, warnings: list[str]) -> Inference:
    return Inference(model.run, batchable=True, loop=loop, warn=warnings.append)


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


def test_run_is_at_once_and_raises_what_the_model_raises(inference: Inference) -> None:
    assert inference.run(row(2))[0] == 4
    with pytest.raises(ValueError, match="negative"):
        inference.run(row(-1))


def test_what_queues_up_while_the_model_is_busy_is_run_together(
    inference: Inference, model: Model, loop: asyncio.AbstractEventLoop
) -> None:
    answers = Answers(loop, 5)
    model.gate.clear()
    inference.submit(row(0), answers.taker(0))
    assert model.entered.wait(60)
    for number in range(1, 5):
        inference.submit(row(number), answers.taker(number))
    model.gate.set()
    assert answers.wait() == {0: 0, 1: 2, 2: 4, 3: 6, 4: 8}
    assert model.rows == [1, 4], "the first waited for nobody, the others were one batch"


def test_a_lone_request_never_waits(inference: Inference, model: Model, loop: asyncio.AbstractEventLoop) -> None:
    for number in range(3):
        answers = Answers(loop, 1)
        inference.submit(row(number), answers.taker(number))
        assert answers.wait() == {number: number * 2}
    assert model.rows == [1, 1, 1]


def test_without_batching_each_runs_alone(inference: Inference, model: Model, loop: asyncio.AbstractEventLoop) -> None:
    inference.batching = False
    answers = Answers(loop, 4)
    model.gate.clear()
    for number in range(4):
        inference.submit(row(number), answers.taker(number))
    model.gate.set()
    answers.wait()
    assert model.rows == [1, 1, 1, 1]


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
    assert isinstance(found.pop("poison"), ValueError)
    assert found == {"first": 2, "second": 4, "fourth": 8}


def test_batching_ends_for_good_when_rows_get_lost(loop: asyncio.AbstractEventLoop, warnings: list[str]) -> None:
    model = Model()

    def summing(feeds: Mapping[str, Any]) -> list[Any]:
        return [model.run(feeds)[0].sum(axis=0, keepdims=True)]

    inference = Inference(summing, batchable=True, loop=loop, warn=warnings.append)
    for _ in range(2):
        answers = Answers(loop, 3)
        model.gate.clear()
        model.entered.clear()
        inference.submit(row(1), answers.taker(1))
        assert model.entered.wait(60)
        inference.submit(row(2), answers.taker(2))
        inference.submit(row(3), answers.taker(3))
        model.gate.set()
        assert answers.wait() == {1: 2, 2: 4, 3: 6}
    assert model.rows == [1, 2, 1, 1, 1, 1, 1]
    assert not inference.batching
    assert len(warnings) == 1


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
    monkeypatch.setattr("cortex.replica.inference.perf_counter", lambda: made.now_s)
    return made


def test_a_slow_model_leaves_the_loop_and_a_fast_one_comes_back(
    loop: asyncio.AbstractEventLoop, timed: TimedModel
) -> None:
    inference = Inference(timed.run, batchable=False, loop=loop, warn=lambda text: None)
    inference.seed(0.0)
    assert inference.inline
    timed.run_s = 2 * INLINE_BELOW_S
    for _ in range(50):
        inference.run(row(1))
    assert not inference.inline
    timed.run_s = 0.0
    for _ in range(200):
        inference.run(row(1))
    assert inference.inline


def test_one_run_that_lost_the_processor_moves_nothing(loop: asyncio.AbstractEventLoop, timed: TimedModel) -> None:
    inference = Inference(timed.run, batchable=False, loop=loop, warn=lambda text: None)
    inference.seed(0.0)
    timed.run_s = 50 * INLINE_BELOW_S
    inference.run(row(1))
    assert inference.inline


def test_a_slow_first_measurement_counts_at_once(inference: Inference) -> None:
    inference.seed(2 * INLINE_BELOW_S)
    assert not inference.inline


def test_watching_sees_every_run(inference: Inference) -> None:
    with inference.watched() as seen:
        inference.run(row(1))
        inference.run(row(2))
    inference.run(row(3))
    assert [float(feeds["x"][0, 0]) for feeds in seen] == [1, 2]
