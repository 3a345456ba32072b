"""
Several requests in one run of the model, so that each gets what it would have got alone. Pure: no threads, no clock.

A request that fails, is cancelled or fits nobody else reaches only itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cortex.replica.tensors import Feeds

MAX_BATCH_ROWS = 32
"""
Rows that are run together at most.

Most of the gain is reached by then, and nobody waits for more than 31 others. Measured on one thread, time a row
against a single row: an MLP of four 1024×1024 layers 7.1× less at 16 rows, 7.4× at 32, no better beyond; of four
256×256 layers 4.8×, 5.2×, and 5.6× at 256. The ingress sends a replica about this many requests at once.
"""


Outputs = Sequence[Any]
"""What a model gives, in its order: arrays, or lists with an item a row."""
Run = Callable[[Mapping[str, Any]], Outputs]
Deliver = Callable[[Any, BaseException | None], None]
"""Takes outputs, or None and what went wrong."""


class NotRowwise(Exception):
    """A batch came back with another number of rows than went in: this model must not be batched."""


class Job:
    """
    One request's turn at the model.

    Args:
        feeds: what `Converter.convert` returned.
        deliver: called once with outputs or an exception, unless the job was cancelled.
    """

    __slots__ = ("cancelled", "deliver", "feeds", "key", "rows")

    def __init__(self, feeds: Feeds, deliver: Deliver) -> None:
        self.feeds = feeds
        self.deliver = deliver
        self.cancelled = False
        """Nobody waits for it: it is not run if it has not begun."""
        self.rows, self.key = _rows_and_key(feeds)

    def cancel(self) -> None:
        self.cancelled = True


Outcome = tuple[Job, Any, BaseException | None]
"""A job with its outputs, or with what went wrong."""


def take_batch(queue: deque[Job], max_rows: int) -> list[Job]:
    """
    Remove from the queue what is run next: the oldest job, and those behind it that can be run together with it.

    Args:
        queue: oldest first; cancelled jobs are removed on the way. The others keep their order.
        max_rows: the batch has at most this many rows, unless its only job has more.

    Returns:
        Jobs in arrival order; empty when none is left.
    """
    while queue and queue[0].cancelled:
        queue.popleft()
    if not queue:
        return []
    first = queue.popleft()
    batch = [first]
    rows = first.rows
    if first.key is None or rows >= max_rows or not queue:
        return batch
    passed: list[Job] = []
    while queue and rows < max_rows:
        job = queue.popleft()
        if job.cancelled:
            continue
        if job.key == first.key and rows + job.rows <= max_rows:
            batch.append(job)
            rows += job.rows
        else:
            passed.append(job)
    queue.extendleft(reversed(passed))
    return batch


def run_batch(jobs: Sequence[Job], run: Run, on_not_rowwise: Callable[[], None]) -> Iterator[Outcome]:
    """
    Run jobs together and give each its own rows.

    A batch that fails is halved until the jobs that fail on their own are found; only they get the error. A batch
    that comes back with a wrong number of rows is run one by one, and `on_not_rowwise` is told.

    Yields:
        An outcome for each job that was not cancelled, as soon as it is known.
    """
    live = [job for job in jobs if not job.cancelled]
    if len(live) == 1:
        yield _run_alone(live[0], run)
        return
    if not live:
        return
    try:
        parts = split(run(merge([job.feeds for job in live])), [job.rows for job in live])
    except NotRowwise:
        on_not_rowwise()
        for job in live:
            if not job.cancelled:
                yield _run_alone(job, run)
        return
    except BaseException:
        half = len(live) // 2
        yield from run_batch(live[:half], run, on_not_rowwise)
        yield from run_batch(live[half:], run, on_not_rowwise)
        return
    for job, part in zip(live, parts, strict=True):
        yield job, part, None


def merge(feeds: Sequence[Feeds]) -> Feeds:
    """
    Stack requests along the first dimension, in the given order.

    Args:
        feeds: same names, dtypes and trailing shapes; shape (rows_i, …).

    Returns:
        Shape (Σ rows_i, …) by name. Row order lets `split` undo it.
    """
    return {name: np.concatenate([one[name] for one in feeds]) for name in feeds[0]}


def split(outputs: Outputs, rows: Sequence[int]) -> list[Outputs]:
    """
    Undo `merge` on what came out.

    Args:
        outputs: arrays of shape (Σ rows, …), or lists with an item a row.
        rows: of each request.

    Returns:
        Outputs of each request; arrays are views.

    Raises:
        NotRowwise: an output has no rows, or not as many as went in.
    """
    total = sum(rows)
    for output in outputs:
        if isinstance(output, np.ndarray):
            if output.ndim == 0 or output.shape[0] != total:
                raise NotRowwise(f"{total} rows went in, an array of shape {output.shape} came out")
        elif not isinstance(output, list) or len(output) != total:
            raise NotRowwise(f"{total} rows went in, a {type(output).__name__} came out")
    parts: list[Outputs] = []
    start = 0
    for count in rows:
        parts.append([output[start : start + count] for output in outputs])
        start += count
    return parts


def count_rows(feeds: Feeds) -> int:
    """How many rows a request has; 1 when that cannot be told."""
    return _rows_and_key(feeds)[0]


def _run_alone(job: Job, run: Run) -> Outcome:
    try:
        return job, run(job.feeds), None
    except BaseException as error:
        return job, None, error


def _rows_and_key(feeds: Feeds) -> tuple[int, tuple[Any, ...] | None]:
    """Number of rows, and what must be equal to be run together; key None: can only be run alone."""
    rows = 0
    key = []
    for name, value in feeds.items():
        if not isinstance(value, np.ndarray) or value.ndim == 0:
            return 1, None
        if rows == 0:
            rows = value.shape[0]
        elif value.shape[0] != rows:
            return 1, None
        key.append((name, value.dtype.str, value.shape[1:]))
    return (rows, tuple(key)) if rows > 0 else (1, None)
