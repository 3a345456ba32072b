"""
Where the model runs: on the event loop while that takes no time, else on a thread of its own, in batches.

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

from cortex.replica.batching import MAX_BATCH_ROWS, Deliver, Job, Outcome, Outputs, Run, run_batch, take_batch
from cortex.replica.tensors import Feeds

INLINE_BELOW_S = 0.001
"""Slower models get a thread: a millisecond is what a neighbour's request may have to wait for the loop."""
INLINE_AGAIN_BELOW_S = 0.0005
LARGE_BODY_BYTES = 256 * 1024
"""A request this large says nothing like the mean: it never runs on the loop."""
_WEIGHT = 0.1
"""Of the latest run in the mean: about ten runs to forget a slow one."""
_LONGEST_S = 3 * INLINE_BELOW_S
"""A longer run counts as this long: one that merely lost the processor for a while must not move the model."""


class Inference:
    """
    The model of this replica.

    Args:
        run: thread-safe; feeds to outputs.
        batchable: whether the rows of different requests may be run together.
        loop: outcomes of `submit` are delivered on it.
        warn: takes the text of a warning.
    """

    def __init__(
        self, run: Run, *, batchable: bool, loop: asyncio.AbstractEventLoop, warn: Callable[[str], None]
    ) -> None:
        self._run = run
        self._loop = loop
        self._warn = warn
        self.batching = batchable
        self.inline = True
        """Whether `run` may be called on the loop."""
        self._mean_s = 0.0
        self._waiting: SimpleQueue[Job] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def mean_s(self) -> float:
        """Exponentially weighted mean of how long one request's run takes."""
        return self._mean_s

    @property
    def waiting(self) -> int:
        """Requests that the thread has not taken up yet."""
        return self._waiting.qsize()

    def run(self, feeds: Feeds) -> Outputs:
        """Run the model now, in the caller's thread. Raises whatever the model raises."""
        started_s = perf_counter()
        outputs = self._run(feeds)
        self._learn(perf_counter() - started_s)
        return outputs

    def submit(self, feeds: Feeds, deliver: Deliver) -> Job:
        """
        Have the model run on its own thread, together with what else is waiting by then.

        Args:
            deliver: called on the loop with outputs or an exception; not at all once the job was cancelled.
        """
        job = Job(feeds, deliver)
        self._waiting.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="cortex-inference", daemon=True)
            self._thread.start()
        return job

    def seed(self, duration_s: float) -> None:
        """Start the mean with a first measurement, of warm-up."""
        self._mean_s = duration_s
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
        mean_s = self._mean_s = self._mean_s + _WEIGHT * (duration_s - self._mean_s)
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
                queue.append(self._waiting.get())
            try:
                while True:
                    queue.append(self._waiting.get_nowait())
            except Empty:
                pass
            batch = take_batch(queue, MAX_BATCH_ROWS if self.batching else 1)
            if not batch:
                continue
            started_s = perf_counter()
            outcomes = list(run_batch(batch, self._run, self._stop_batching))
            if len(batch) == 1:
                # Only lone runs: a row of a batch is cheaper than what the loop would have to bear.
                self._learn(perf_counter() - started_s)
            try:
                self._loop.call_soon_threadsafe(_deliver, outcomes)
            except RuntimeError:  # the loop is closed: the process is about to end
                return
            del batch, outcomes  # while this thread waits it keeps nobody's tensors in memory

    def _stop_batching(self) -> None:
        if self.batching:
            self.batching = False
            self._warn(
                "batching is off from now on: a batch came back with another number of rows than went in. "
                "Every answer was computed again on its own. `batching: off` in cortex.yaml says so from the start"
            )


def _deliver(outcomes: list[Outcome]) -> None:
    for job, outputs, error in outcomes:
        if not job.cancelled:
            job.deliver(outputs, error)
