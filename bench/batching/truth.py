"""
Whether a model is row by row in truth: requests of callers with mixed lengths and numbers of rows, alone and together.

Looks at nothing but answers, and shares no code with what proves or guards.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from feeds import Feeds, Maker
from numpy.typing import NDArray

from cortex.replica.backends.base import Backend, InferenceFailed
from cortex.wire.batching import TOLERANCES

CALLERS: Final = 16
MAX_ROWS: Final = 32
"""Of a batch, as a replica makes them."""
POOL: Final = 64
"""Requests that are made up for a model; each is asked many times, in other company."""

ENOUGH: Final = 6
"""Requests of a model that takes seconds for each."""

Seen = Literal["row by row", "steps", "mixes", "other rows", "fails together", "one row only", "not run"]
"""
`steps`: a few rows are off beyond the tolerance. `other rows`: other rows come out than went in. `fails together`: the
model refuses batches. `one row only`: an input has no free first dimension. `not run`: no made-up request was accepted.
"""
SMALL: Final = 0.1
FEW: Final = 0.05
"""Share of rows below which what is off may be steps: where rows mix nearly all are off."""


@dataclasses.dataclass
class Truth:
    """What was seen of a model."""

    seen: Seen = "not run"
    detail: str = ""
    answers: int = 0
    """How many were compared: of requests, in batches of several."""
    rows: int = 0
    beyond: int = 0
    """Rows that were off by more than the tolerance."""
    moved: int = 0
    """Rows that were not equal in each bit."""
    worst: float = 0.0
    """The largest difference, as a share of the tolerance."""
    relative: float = 0.0
    """The largest difference of a float row, as a share of its largest magnitude, of rows with values above `SMALL`."""
    absolute: float = 0.0
    """The largest difference of a float row of smaller values."""
    lengths: int = 0
    """Kinds of trailing shapes among requests."""


def added(one: Truth, other: Truth) -> Truth:
    """What two rounds of questions to one model have shown together; the worse of what was seen."""
    if _WORSE.index(one.seen) < _WORSE.index(other.seen):
        one, other = other, one
    found = dataclasses.replace(one)
    for name in ("answers", "rows", "beyond", "moved"):
        setattr(found, name, getattr(one, name) + getattr(other, name))
    for name in ("worst", "relative", "absolute", "lengths"):
        setattr(found, name, max(getattr(one, name), getattr(other, name)))
    return found


_WORSE: Final[tuple[Seen, ...]] = (
    "not run",
    "one row only",
    "row by row",
    "steps",
    "fails together",
    "other rows",
    "mixes",
)


@dataclasses.dataclass(frozen=True)
class _Request:
    feeds: Feeds
    rows: int
    alone: Sequence[Any]


def examine(
    model: str,
    backend: Backend,
    *,
    answers: int,
    seconds: float,
    may_share: Callable[[Mapping[str, NDArray[Any]]], bool] = lambda feeds: True,
    seed: int = 0,
) -> Truth:
    """
    Ask a model alone and in batches.

    Args:
        model: its name.
        backend: the model, loaded as a replica loads it.
        answers: how many to compare.
        seconds: after this no further batch is made.
        may_share: whether a request may be run with others at all, as far as a proof supposes sizes.
        seed: of what is made up.
    """
    truth = Truth()
    if any(
        spec.shape is not None and (not spec.shape or isinstance(spec.shape[0], int))
        for spec in backend.signature.inputs
    ):
        truth.seen = "one row only"
        return truth
    random = np.random.default_rng(seed)
    deadline = time.monotonic() + seconds
    pool = _pool(model, backend, random, time.monotonic() + seconds / 4, may_share, truth)
    if truth.seen == "other rows" or not pool:
        return truth
    groups: dict[Any, list[_Request]] = defaultdict(list)
    for request in pool:
        groups[tuple((name, value.dtype.str, value.shape[1:]) for name, value in request.feeds.items())].append(request)
    truth.lengths = len(groups)
    rounds = 0
    while truth.answers < answers and (time.monotonic() < deadline or not rounds):
        rounds += 1
        asked = [pool[index] for index in random.integers(0, len(pool), CALLERS)]
        for batch in _batches(asked, groups):
            if len(batch) > 1 and not _compare(backend, batch, truth):
                return truth
    if not truth.answers:
        truth.detail = "no two requests can be together"
        return truth
    share = truth.beyond / truth.rows
    truth.seen = "row by row" if not truth.beyond else "steps" if share < FEW else "mixes"
    return truth


def _pool(
    model: str,
    backend: Backend,
    random: np.random.Generator,
    deadline: float,
    may_share: Callable[[Mapping[str, NDArray[Any]]], bool],
    truth: Truth,
) -> list[_Request]:
    """Requests that the model accepts, with its answers to each alone."""
    maker = Maker(model, backend.signature)
    pool: list[_Request] = []
    attempt = 0
    for tried in range(4 * POOL):
        if len(pool) == POOL or (len(pool) >= ENOUGH and time.monotonic() > deadline) or (not pool and tried > POOL):
            break
        rows = int(random.choice(maker.rows))
        feeds = maker.make(random, rows, attempt=attempt)
        try:
            alone = backend.run(feeds)
        except InferenceFailed as error:
            truth.detail = str(error)[:200]
            attempt += not pool
            continue
        if not may_share(feeds):
            continue
        problem = _misshapen(alone, rows, backend)
        if problem:
            truth.seen, truth.detail = "other rows", f"alone: {problem}"
            return []
        pool.append(_Request(feeds, rows, alone))
    if pool:
        truth.detail = ""
    return pool


def _batches(asked: Sequence[_Request], groups: Mapping[Any, list[_Request]]) -> list[list[_Request]]:
    """
    What a replica would run together of what 16 callers ask: equal trailing shapes, 32 rows at most.

    Two requests of more rows are together all the same: a time that comes first is longer than that.
    """
    members = {id(request): key for key, requests in groups.items() for request in requests}
    open_batches: dict[Any, list[_Request]] = {}
    batches = []
    for request in asked:
        key = members[id(request)]
        batch = open_batches.get(key)
        if batch is None or (len(batch) > 1 and sum(one.rows for one in batch) + request.rows > MAX_ROWS):
            batch = open_batches[key] = []
            batches.append(batch)
        batch.append(request)
    return batches


def _compare(backend: Backend, batch: Sequence[_Request], truth: Truth) -> bool:
    """Run a batch and add to the truth what was seen. Returns False where nothing more can come of it."""
    feeds = {name: np.concatenate([request.feeds[name] for request in batch]) for name in batch[0].feeds}
    total = sum(request.rows for request in batch)
    try:
        together = backend.run(feeds)
    except InferenceFailed as error:
        truth.seen, truth.detail = "fails together", str(error)[:200]
        return False
    problem = _misshapen(together, total, backend)
    if problem:
        truth.seen, truth.detail = "other rows", f"together: {problem}"
        return False
    beyond = np.zeros(total, bool)
    moved = np.zeros(total, bool)
    for index, spec in enumerate(backend.signature.outputs):
        found = differences([request.alone[index] for request in batch], together[index], spec.dtype)
        if found is None:
            truth.seen, truth.detail = "mixes", f"{spec.name}: rows have another shape together"
            return False
        beyond |= found.shares > 1
        moved |= found.moved
        worst = float(found.shares.max(initial=0.0))
        if worst > truth.worst:
            truth.worst = worst
            truth.detail = spec.name if worst > 1 else truth.detail
        is_small = found.largest < SMALL
        truth.relative = max(
            truth.relative, float((found.off / np.where(is_small, np.inf, found.largest)).max(initial=0.0))
        )
        truth.absolute = max(truth.absolute, float(found.off[is_small].max(initial=0.0)))
    truth.answers += len(batch)
    truth.rows += total
    truth.beyond += int(beyond.sum())
    truth.moved += int(moved.sum())
    return True


class Differences(NamedTuple):
    """How far rows are off, one element a row."""

    shares: NDArray[np.float64]
    """Of the tolerance; infinite where what has no tolerance is not equal."""
    moved: NDArray[np.bool_]
    """Whether any bit is another."""
    off: NDArray[np.float64]
    """The largest difference of floats."""
    largest: NDArray[np.float64]
    """The largest magnitude of floats."""


def differences(alone: Sequence[Any], together: Any, dtype: str) -> Differences | None:
    """Compare an output of several requests with the same of their batch; None if shapes of rows differ."""
    if isinstance(together, list):
        return _differences_of_items([item for output in alone for item in output], together, dtype)
    if len({output.shape[1:] for output in (*alone, together)}) > 1:
        return None
    rows = len(together)
    left = np.concatenate(alone).reshape(rows, -1)
    right = together.reshape(rows, -1)
    if dtype not in TOLERANCES:
        moved = (left != right).any(axis=1)
        return Differences(np.where(moved, np.inf, 0.0), moved, np.zeros(rows), np.ones(rows))
    absolute, relative = TOLERANCES[dtype]
    a, b = left.astype(np.float64), right.astype(np.float64)
    both_nan = np.isnan(a) & np.isnan(b)
    moved = (((a != b) | (np.signbit(a) != np.signbit(b))) & ~both_nan).any(axis=1)
    with np.errstate(invalid="ignore"):
        off = np.where((a == b) | both_nan, 0.0, np.abs(a - b))
    off = np.where(np.isnan(off), np.inf, off).max(axis=1, initial=0.0)
    largest = np.where(np.isfinite(a), np.abs(a), 0.0).max(axis=1, initial=0.0)
    return Differences(off / (absolute + relative * largest), moved, off, largest)


def _differences_of_items(alone: Sequence[Any], together: Sequence[Any], dtype: str) -> Differences | None:
    """Of lists with an item a row: maps or tensors."""
    found = []
    for one, other in zip(alone, together, strict=True):
        if isinstance(other, Mapping):
            if list(one) != list(other):
                return None
            one, other = list(one.values()), list(other.values())
        item = differences([np.asarray(one)[None]], np.asarray(other)[None], dtype)
        if item is None:
            return None
        found.append(item)
    return Differences(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _misshapen(outputs: Sequence[Any], rows: int, backend: Backend) -> str:
    for spec, output in zip(backend.signature.outputs, outputs, strict=True):
        if isinstance(output, np.ndarray):
            if output.ndim == 0 or len(output) != rows:
                return f"{spec.name}: {list(output.shape)} for {rows} row{'s' * (rows > 1)}"
        elif not isinstance(output, list) or len(output) != rows:
            return f"{spec.name}: no list of {rows}"
    return ""
