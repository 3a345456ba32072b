"""
Where the model runs: on the event loop while that takes no time, else on a thread of its own, in batches.

What the guard wants computed again is run on that thread, when nothing waits for it.

A hop to a thread and back costs about 60 µs, several times what a small model takes; a large model on the loop would
keep everything else waiting. So the mean run time decides, and goes on deciding.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any

from cortex.replica.calls import Call
from cortex.replica.observation.tracebacks import one_line
from cortex.replica.prediction.agreement import explained, rows_lost
from cortex.replica.prediction.batching import (
    MAX_BATCH_ROWS,
    Deliver,
    Job,
    NotRowwise,
    Outcome,
    Outputs,
    Run,
    has_room,
    may_be_batched,
    run_batch,
    take_batch,
)
from cortex.replica.prediction.guard import Guard
from cortex.replica.prediction.seats import LoneSeat
from cortex.replica.tensors.conversion import Feeds
from cortex.wire.batching import BatchingOrder, BatchingState, Disagreement
from cortex.wire.signature import Signature

INLINE_BELOW_S = 0.001
"""Slower models get a thread: a millisecond is what a neighbour's request may have to wait for the loop."""
INLINE_AGAIN_BELOW_S = 0.0005
_WEIGHT = 0.1
"""Of the latest run in the mean: about ten runs to forget a slow one."""
_LONGEST_S = 3 * INLINE_BELOW_S
"""A longer run counts as this long: one that merely lost the processor for a while must not move the model."""


class BatchingCondition:
    """What this replica does about batches. Each fact is one attribute, and one thread writes it."""

    def __init__(self, order: BatchingOrder) -> None:
        self.order = order
        """The last one given; the control thread takes it in."""
        self.possible = False
        """Whether the model's inputs can be stacked at all; known once it is loaded."""
        self.runtime = ""
        """What executes the model; known once it is loaded."""
        self.guarded_rows = 0
        """By the thread that runs batches, as is the next."""
        self.disagreement: Disagreement | None = None
        """Ends batches for good, whatever is ordered."""

    @property
    def most_rows(self) -> int:
        """How many rows may share a run, now; 1: each request runs alone."""
        return MAX_BATCH_ROWS if self.possible and self.order.batches and self.disagreement is None else 1

    def state(self) -> BatchingState:
        return BatchingState(
            order=self.order, runtime=self.runtime, guarded_rows=self.guarded_rows, disagreement=self.disagreement
        )


class Inference:
    """
    The model of this replica.

    Args:
        run: thread-safe; feeds to outputs.
        explain: what it means for those feeds that the model raised that.
        signature: of the model.
        batching: says whether requests may share a run, which may change at any moment, and is told what the guard
            sees, and whether the model can be batched at all.
        loop: outcomes of `submit` are delivered on it.
        say: takes a level and a text for the log.
        announce: called when `batching` has news for whoever watches this replica.
    """

    def __init__(
        self,
        run: Run,
        *,
        explain: Callable[[Feeds, BaseException], BaseException],
        signature: Signature,
        batching: BatchingCondition,
        loop: asyncio.AbstractEventLoop,
        say: Callable[[str, str], None],
        announce: Callable[[], None],
    ) -> None:
        self._run = run
        self._explain = explain
        self._signature = signature
        self._optional = frozenset(spec.name for spec in signature.inputs if spec.optional)
        self._batching = batching
        batching.possible = may_be_batched(signature)
        self._guard = Guard(signature)
        self._loop = loop
        self._say = say
        self._announce = announce
        self.inline = True
        """Whether `run` may be called on the loop."""
        self.mean_s = 0.0
        """Exponentially weighted mean of how long one request's run takes."""
        self.seat = LoneSeat()
        """Taken while the thread runs the model and there is no room in the run for one request more."""
        self._waiting: SimpleQueue[Job] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """Requests that the thread has not taken up yet."""
        return self._waiting.qsize()

    def run(self, feeds: Feeds, is_large: bool) -> Outputs | None:
        """
        Run the model now, in the caller's thread, if it is small; None if it is not: then `submit`.

        Args:
            is_large: the request says nothing like the mean: it never runs on the loop.

        Raises:
            BaseException: what the model's failure means.
        """
        if is_large or not self.inline:
            return None
        started_s = perf_counter()
        try:
            outputs = self._run(feeds)
        except BaseException as error:
            raise self._explain(feeds, error) from error
        self._learn(perf_counter() - started_s)
        return outputs

    def submit(self, feeds: Feeds, deliver: Deliver, call: Call | None = None) -> Job:
        """
        Have the model run on its own thread, together with what else is waiting by then.

        Args:
            deliver: called on the loop with outputs or what the model's failure means; not at all once the job was
                cancelled.
            call: noted before that: its part of the time in which `seat` was taken.
        """
        job = Job(feeds, deliver, self._optional, call)
        self._waiting.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="cortex-inference", daemon=True)
            self._thread.start()
        return job

    def seed(self, duration_s: float) -> None:
        """Start the mean with a first measurement, of warm-up."""
        self.mean_s = duration_s
        self.inline = duration_s < INLINE_BELOW_S

    @contextmanager
    def watched(self) -> Iterator[list[Feeds]]:
        """While warming up: the feeds of every run, as they come."""
        seen: list[Feeds] = []
        run = self._run

        def watching(feeds: Mapping[str, Any]) -> Outputs:
            seen.append(dict(feeds))
            return run(feeds)

        self._run = watching
        try:
            yield seen
        finally:
            self._run = run

    def _learn(self, duration_s: float) -> None:
        if duration_s > _LONGEST_S:
            duration_s = _LONGEST_S
        mean_s = self.mean_s = self.mean_s + _WEIGHT * (duration_s - self.mean_s)
        if self.inline:
            if mean_s > INLINE_BELOW_S:
                self.inline = False
        elif mean_s < INLINE_AGAIN_BELOW_S:
            self.inline = True

    def _work(self) -> None:
        """The thread: never waits for more while there is something to run."""
        queue: deque[Job] = deque()
        while True:
            if not queue:
                if self._guard.has_check() and self._waiting.empty():
                    self._check()
                queue.append(self._waiting.get())
            try:
                while True:
                    queue.append(self._waiting.get_nowait())
            except Empty:
                pass
            most_rows, sizes = self._batching.most_rows, self._batching.order.sizes
            batch = take_batch(queue, most_rows, sizes)
            if not batch:
                continue
            started_s = perf_counter()
            if not has_room(batch, queue, most_rows, sizes):
                self.seat.take(started_s)
            outcomes = list(run_batch(batch, self._run, watch=self._saw, on_not_rowwise=self._lost_rows))
            _note_turn(batch, self.seat.leave(started_s))
            if len(batch) == 1:
                # Only lone runs: a row of a batch is cheaper than what the loop would have to bear.
                self._learn(perf_counter() - started_s)
            try:
                self._loop.call_soon_threadsafe(self._deliver, outcomes)
            except RuntimeError:  # the loop is closed: the process is about to end
                return
            del batch, outcomes  # while this thread waits it keeps nobody's tensors in memory
            if self._guard.is_due(perf_counter()):
                self._check()

    def _deliver(self, outcomes: list[Outcome]) -> None:
        for job, outputs, error in outcomes:
            if job.cancelled:
                continue
            failure = None
            if error is not None:
                failure = self._explain(job.feeds, error)
                failure.__cause__ = error
            job.deliver(outputs, failure)

    def _saw(self, feeds: Feeds, outputs: Outputs) -> None:
        self._guard.saw(feeds, outputs, perf_counter())

    def _check(self) -> None:
        """Compute a row of an earlier batch again, alone. Whatever happens, the thread goes on."""
        check = self._guard.take()
        if check is None:
            return
        try:
            alone = self._run(check.feeds)
        except BaseException:  # what failed is no answer that could be compared
            return
        try:
            found = self._guard.judge(check, alone, self._batching.order.rounding)
        except Exception as error:
            self._say("ERROR", f"a row of a batch could not be compared with what it gives alone: {one_line(error)}")
            return
        self._batching.guarded_rows = self._guard.rows
        if found is not None:
            self._stop_batching(found)

    def _lost_rows(self, error: NotRowwise) -> None:
        self._stop_batching(rows_lost(error, self._signature))

    def _stop_batching(self, found: Disagreement) -> None:
        if self._batching.disagreement is None:
            self._batching.disagreement = found
            self._announce()
            self._say(
                "ERROR",
                "this replica runs each request alone from now on: a row was answered differently alone and together "
                f"with others: {explained(found)}. Answers that batches gave before cannot be taken back. "
                "`batching: off` in cortex.yaml says so from the start",
            )


def _note_turn(batch: list[Job], taken_s: float) -> None:
    """Each has had its part of the seat."""
    for job in batch:
        if job.call is not None:
            job.call.model_s += taken_s / len(batch)
