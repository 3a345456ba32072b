"""
Several requests in one run of the model, so that each gets what it would have got alone. Pure: no threads, no clock.

A request that fails, is cancelled or fits nobody else reaches only itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cortex.replica.calls import Call
from cortex.replica.tensors.conversion import Feeds
from cortex.wire.batching import MOST_ELEMENTS, SizeCondition
from cortex.wire.signature import Signature

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
Watch = Callable[[Feeds, Outputs], None]
"""Is shown what went into a run of several requests and what came out, before any of them gets its part."""


class NotRowwise(Exception):
    """
    A batch came back with another number of rows than went in: this model must not be batched.

    Args:
        rows: that went in.
        index: of the output.
        found: what came out, as text.
    """

    def __init__(self, rows: int, index: int, found: str) -> None:
        self.rows, self.index, self.found = rows, index, found
        super().__init__(f"{rows} rows went in, {found} came out")


class Job:
    """
    One request's turn at the model.

    Args:
        feeds: what `Converter.convert` returned.
        deliver: called once with outputs or an exception, unless the job was cancelled.
        optional: names of the inputs that may be absent. A job that sets one runs alone: that rows are independent
            was looked at with the model's own default, which others may go by.
        call: whose turn it is, to be noted what of the model's time it took.
    """

    __slots__ = ("call", "cancelled", "deliver", "feeds", "key", "rows")

    def __init__(
        self, feeds: Feeds, deliver: Deliver, optional: Collection[str] = (), call: Call | None = None
    ) -> None:
        self.feeds = feeds
        self.deliver = deliver
        self.call = call
        self.cancelled = False
        """Nobody waits for it: it is not run if it has not begun."""
        self.rows, self.key = _rows_and_key(feeds)
        """Rows, and what must be equal to be run together; key None: it is run alone."""
        if optional and any(name in feeds for name in optional):
            self.key = None

    def cancel(self) -> None:
        self.cancelled = True


Outcome = tuple[Job, Any, BaseException | None]
"""A job with its outputs, or with what went wrong."""


def take_batch(queue: deque[Job], max_rows: int, sizes: Sequence[SizeCondition] = ()) -> list[Job]:
    """
    Remove from the queue what is run next: the oldest job, and those behind it that can be run together with it.

    Args:
        queue: oldest first; cancelled jobs are removed on the way. The others keep their order.
        max_rows: the batch has at most this many rows, unless its only job has more.
        sizes: a job that does not keep to these runs alone.

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
    if first.key is None or not keeps_to(sizes, first.feeds):
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


def has_room(batch: Sequence[Job], waiting: Iterable[Job], max_rows: int, sizes: Sequence[SizeCondition] = ()) -> bool:
    """
    Whether one request more could have shared a run.

    Args:
        batch: what `take_batch` returned, not empty.
        waiting: what it left. Who had to stay behind found no room, whatever the reason.
    """
    first = batch[0]
    if first.key is None or sum(job.rows for job in batch) >= max_rows or not keeps_to(sizes, first.feeds):
        return False
    return all(job.cancelled for job in waiting)


def run_batch(
    jobs: Sequence[Job], run: Run, *, watch: Watch, on_not_rowwise: Callable[[NotRowwise], None]
) -> Iterator[Outcome]:
    """
    Run jobs together and give each its own rows.

    A batch that fails is halved until the jobs that fail on their own are found; only they get the error. A batch
    that comes back with a wrong number of rows is run one by one, and `on_not_rowwise` is told.

    Args:
        watch: sees each run of several jobs that went well.

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
        feeds = merge([job.feeds for job in live])
        outputs = run(feeds)
        parts = split(outputs, [job.rows for job in live])
    except NotRowwise as error:
        on_not_rowwise(error)
        for job in live:
            if not job.cancelled:
                yield _run_alone(job, run)
        return
    except BaseException:
        half = len(live) // 2
        yield from run_batch(live[:half], run, watch=watch, on_not_rowwise=on_not_rowwise)
        yield from run_batch(live[half:], run, watch=watch, on_not_rowwise=on_not_rowwise)
        return
    watch(feeds, outputs)
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
    for index, output in enumerate(outputs):
        if isinstance(output, np.ndarray):
            if output.ndim == 0 or output.shape[0] != total:
                raise NotRowwise(total, index, f"an array of shape {list(output.shape)}")
        elif not isinstance(output, list):
            raise NotRowwise(total, index, f"a {type(output).__name__}")
        elif len(output) != total:
            raise NotRowwise(total, index, f"a list of {len(output)}")
    parts: list[Outputs] = []
    start = 0
    for count in rows:
        parts.append([output[start : start + count] for output in outputs])
        start += count
    return parts


def count_rows(feeds: Feeds) -> int:
    """How many rows a request has; 1 when that cannot be told."""
    return _rows_and_key(feeds)[0]


def may_be_batched(signature: Signature) -> bool:
    """
    Whether requests for a model can be stacked at all, as far as its signature tells.

    Every input that may not be absent must be a tensor whose first dimension is free. One of a fixed size belongs to
    no row, and the values of two requests for it are not one value.
    """
    required = [spec for spec in signature.inputs if not spec.optional]
    return bool(required) and all(
        spec.kind == "tensor" and (spec.shape is None or (spec.shape != () and not isinstance(spec.shape[0], int)))
        for spec in required
    )


def keeps_to(sizes: Sequence[SizeCondition], feeds: Mapping[str, Any]) -> bool:
    """Whether a request is one of those that a proof holds for. All with its `Job.key` are, or none."""
    return all(_keeps_to(one, feeds) for one in sizes)


def _keeps_to(condition: SizeCondition, feeds: Mapping[str, Any]) -> bool:
    size = _size(feeds, condition.input, condition.axis)
    if size is None:
        return False
    if condition.size is None and condition.at_most is None:
        return size == _size(feeds, condition.other_input, condition.other_axis)
    return condition.size in (None, size) and (condition.at_most is None or size <= condition.at_most)


def _size(feeds: Mapping[str, Any], name: str, axis: int) -> int | None:
    """None where there is no such size."""
    shape = np.shape(feeds[name]) if name in feeds else ()
    return shape[axis] if axis < len(shape) else None


def _run_alone(job: Job, run: Run) -> Outcome:
    try:
        return job, run(job.feeds), None
    except BaseException as error:
        return job, None, error


def _rows_and_key(feeds: Feeds) -> tuple[int, tuple[Any, ...] | None]:
    """
    Number of rows, and what must be equal to be run together; key None: can only be run alone.

    Alone is also what has a size of 0 anywhere: onnxruntime lets such a value pass where its other sizes do not fit,
    and leaves part of the result unfilled. And what is larger than proofs suppose.
    """
    rows = 0
    is_apart = False
    key = []
    for name, value in feeds.items():
        if not isinstance(value, np.ndarray) or value.ndim == 0:
            return 1, None
        shape = value.shape
        if rows == 0:
            rows = shape[0]
        elif shape[0] != rows:
            return 1, None
        is_apart = is_apart or not 0 < value.size <= MOST_ELEMENTS * rows
        key.append((name, value.dtype.str, shape[1:]))
    if rows == 0:
        return 1, None
    return rows, None if is_apart else tuple(key)
