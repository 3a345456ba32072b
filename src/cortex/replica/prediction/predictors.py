"""
Where handler code and the model run for a call:

* `InlinePredictor`: in the main thread, one call after the other. For sync handlers with concurrency 1, which is the
  default, and for apis without a handler. No thread hop: with a small model the whole prediction is one callback.
* `PooledPredictor`: sync handlers with a higher concurrency, on so many threads.
* `AsyncPredictor`: async handlers, as tasks on the event loop.

`concurrency` bounds handler code only: a seat is held in pre and in post, and released while waiting for the model.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from asyncio.events import _set_running_loop
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from time import perf_counter
from typing import ClassVar, NamedTuple

from cortex.replica.calls import Call, Desk
from cortex.replica.observation.logs import REQUEST_ID, Streams, work_ended, work_for
from cortex.replica.prediction.batching import Outputs
from cortex.replica.prediction.inference import Inference
from cortex.replica.prediction.pipeline import Pipeline
from cortex.replica.prediction.seats import LoneSeat, SeatRow, Seats, Workload
from cortex.replica.tensors.conversion import Feeds

DEFAULT_ASYNC_CONCURRENCY = 64
"""Async handlers mostly wait for others; so many at once keeps one replica busy without hiding an overload."""


class Around(NamedTuple):
    """What every predictor stands among."""

    pipeline: Pipeline
    inference: Inference
    desk: Desk
    loop: asyncio.AbstractEventLoop
    streams: Streams


class Predictor(ABC):
    """Where and when the steps of a prediction run."""

    hides_loop: ClassVar[bool] = False
    """`hide_loop` must be called each time the event loop has begun to run, before `start`."""
    one_at_a_time: ClassVar[bool] = False
    """Whether handler code is only ever run for one call at once."""

    def __init__(self, around: Around, row: Seats) -> None:
        self._pipeline, self._inference, self._desk, self._loop, self._streams = around
        self.workload = Workload(row, self._inference.seat)

    @abstractmethod
    def start(self, call: Call) -> None:
        """Begin, on the event loop. Never raises; the desk is told what comes of it."""


class InlinePredictor(Predictor):
    """
    Handler code in the main thread, between two turns of the event loop.

    The running loop is hidden while we serve (`Predictor.hides_loop`), so that a handler may call `asyncio.run`:
    asyncio refuses only when it finds a running loop, and uvloop does not mind a second loop on top of it. A thread
    for the handler would cost every call two hops.
    """

    hides_loop = True
    one_at_a_time = True

    def __init__(self, around: Around) -> None:
        self._seat = LoneSeat()
        """The loop's. It is left before an answer is handed in: the next request may come along with that."""
        super().__init__(around, self._seat)
        self._has_hooks = around.pipeline.has_hooks

    def start(self, call: Call) -> None:
        desk, pipeline, seat = self._desk, self._pipeline, self._seat
        has_hooks = self._has_hooks
        seat.use_s -= call.started_s  # `take`, and below `leave`: calling them would cost more than what they do
        if has_hooks:
            work_for(call.id)
        try:
            feeds = pipeline.feeds(call)
            outputs = self._inference.run(feeds, call.is_large)
            if outputs is None:
                call.handler_s += seat.leave(call.started_s)
                call.cancel = self._inference.submit(feeds, partial(self._modelled, call, feeds), call).cancel
                desk.expect(call)
                return
            answer = pipeline.answer(call, outputs, feeds)
            now_s = perf_counter()
            seat.use_s += now_s
            call.handler_s = now_s - call.started_s
            desk.finish(call, answer)
        except BaseException as error:
            call.handler_s += seat.leave(call.started_s)
            desk.fail(call, error)
        finally:
            if has_hooks:
                self._streams.finish_lines(call.id)
                work_ended()
        desk.release(call)

    def _modelled(self, call: Call, feeds: Feeds, outputs: Outputs, failure: BaseException | None) -> None:
        desk, seat = self._desk, self._seat
        call.cancel = None
        since_s = perf_counter()
        seat.take(since_s)
        work_for(call.id)
        try:
            if failure is not None:
                raise failure
            answer = self._pipeline.answer(call, outputs, feeds)
            call.handler_s += seat.leave(since_s)
            desk.finish(call, answer)
        except BaseException as error:
            call.handler_s += seat.leave(since_s)
            desk.fail(call, error)
        finally:
            self._streams.finish_lines(call.id)
            work_ended()
        desk.release(call)


class PooledPredictor(Predictor):
    """Handler code of up to `concurrency` calls at once, each on a thread of a pool."""

    def __init__(self, around: Around, concurrency: int) -> None:
        self._row = SeatRow(concurrency)
        super().__init__(around, self._row)
        self._work: SimpleQueue[_Turn] = SimpleQueue()
        for number in range(concurrency):
            threading.Thread(target=self._serve, name=f"cortex-handler-{number}", daemon=True).start()

    def start(self, call: Call) -> None:
        turn = _Turn(call, self._before)
        call.cancel = turn.take
        self._desk.expect(call)
        self._work.put(turn)

    def _serve(self) -> None:
        while True:
            turn = self._work.get()
            if not turn.claim():
                continue
            call = turn.call
            since_s = self._row.take()
            REQUEST_ID.set(call.id)
            try:
                outcome = turn.step(call)
            except BaseException as error:
                outcome = partial(self._ended, call, partial(self._desk.fail, call, error))
            self._streams.finish_lines(call.id)
            REQUEST_ID.set("")
            call.handler_s += self._row.leave(since_s)
            try:
                self._loop.call_soon_threadsafe(outcome)
            except RuntimeError:  # the loop is closed: the process is about to end
                return
            del turn, call, outcome  # while this thread waits it keeps nobody's body in memory

    def _before(self, call: Call) -> Callable[[], None]:
        """On a pool thread: everything before the model, and with a small model the rest too."""
        feeds = self._pipeline.feeds(call)
        outputs = self._inference.run(feeds, call.is_large)
        return partial(self._submit, call, feeds) if outputs is None else self._after(outputs, feeds, call)

    def _submit(self, call: Call, feeds: Feeds) -> None:
        if call.answered:
            self._desk.release(call)
            return
        call.cancel = self._inference.submit(feeds, partial(self._modelled, call, feeds), call).cancel

    def _modelled(self, call: Call, feeds: Feeds, outputs: Outputs, failure: BaseException | None) -> None:
        if failure is not None:
            self._ended(call, partial(self._desk.fail, call, failure))
            return
        turn = _Turn(call, partial(self._after, outputs, feeds))
        call.cancel = turn.take
        self._work.put(turn)

    def _after(self, outputs: Outputs, feeds: Feeds, call: Call) -> Callable[[], None]:
        """On a pool thread: everything after the model."""
        answer = self._pipeline.answer(call, outputs, feeds)
        return partial(self._ended, call, partial(self._desk.finish, call, answer))

    def _ended(self, call: Call, tell: Callable[[], None]) -> None:
        call.cancel = None
        tell()
        self._desk.release(call)


class AsyncPredictor(Predictor):
    """Handler code as tasks on the event loop, up to `concurrency` of them inside it at once."""

    def __init__(self, around: Around, concurrency: int) -> None:
        self._row = SeatRow(concurrency)
        super().__init__(around, self._row)
        self._seats = asyncio.Semaphore(concurrency)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, call: Call) -> None:
        task = asyncio.Task(self._predict(call), loop=self._loop)  # none of those that are watched for the handler
        self._tasks.add(task)
        call.cancel = call.stop = task.cancel
        task.add_done_callback(partial(self._ended, call))
        self._desk.expect(call)

    async def _predict(self, call: Call) -> None:
        REQUEST_ID.set(call.id)
        desk = self._desk
        try:
            async with _Seated(call, self._seats, self._row):
                feeds = await self._pipeline.feeds_async(call)
            outputs = self._inference.run(feeds, call.is_large)
            if outputs is None:
                outputs = await self._modelled(call, feeds)
            call.cancel = call.stop
            async with _Seated(call, self._seats, self._row):
                answer = await self._pipeline.answer_async(call, outputs, feeds)
            desk.finish(call, answer)
        except BaseException as error:  # CancelledError, too: out of time, or nobody waits. Users' own are HookFailed.
            desk.fail(call, error)
        finally:
            self._streams.finish_lines(call.id)

    async def _modelled(self, call: Call, feeds: Feeds) -> Outputs:
        """The model's turn on its own thread. Raises as `Inference.run` does."""
        future: asyncio.Future[Outputs] = self._loop.create_future()

        def deliver(outputs: Outputs, failure: BaseException | None) -> None:
            if future.done():
                return
            if failure is None:
                future.set_result(outputs)
            else:
                future.set_exception(failure)

        job = self._inference.submit(feeds, deliver, call)
        stop = call.stop

        def give_up() -> None:
            job.cancel()  # at once: the task only hears of it when it is next awake
            if stop is not None:
                stop()

        call.cancel = give_up
        try:
            return await future
        finally:
            job.cancel()

    def _ended(self, call: Call, task: asyncio.Task[None]) -> None:
        """Also called for a task that was cancelled before its first step."""
        self._tasks.discard(task)
        self._desk.release(call)


class _Seated:
    """In a seat, once there is one. Until then the call can be given up."""

    __slots__ = ("_call", "_row", "_seats", "_since_s")

    def __init__(self, call: Call, seats: asyncio.Semaphore, row: SeatRow) -> None:
        self._call, self._seats, self._row = call, seats, row
        self._since_s = 0.0

    async def __aenter__(self) -> None:
        await self._seats.acquire()
        self._call.cancel = None
        self._since_s = self._row.take()

    async def __aexit__(self, *_: object) -> None:
        self._call.handler_s += self._row.leave(self._since_s)
        self._seats.release()


class _Turn:
    """A step that waits for a thread of the pool: either a thread claims it, or the loop cancels it."""

    __slots__ = ("_token", "call", "step")

    def __init__(self, call: Call, step: Callable[[Call], Callable[[], None]]) -> None:
        self.call = call
        self.step = step
        self._token = [True]

    def claim(self) -> bool:
        """For the thread: whether the step is to be done."""
        if not self.take():
            return False
        self.call.cancel = None
        return True

    def take(self) -> bool:
        """For the loop: the step is not done, unless it has begun."""
        try:
            self._token.pop()  # atomic: exactly one taker
        except IndexError:
            return False
        return True


def hide_loop() -> None:
    """Make asyncio in this thread believe that no loop runs, until the loop ends."""
    _set_running_loop(None)


def build_predictor(around: Around, *, is_async: bool, concurrency: int | None) -> Predictor:
    """The predictor that fits a handler; `concurrency` None means the default for its kind."""
    if is_async:
        return AsyncPredictor(around, concurrency or DEFAULT_ASYNC_CONCURRENCY)
    if concurrency is not None and concurrency > 1 and around.pipeline.has_hooks:
        return PooledPredictor(around, concurrency)
    return InlinePredictor(around)
