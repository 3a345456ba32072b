"""
Counters as values: how a replica's file becomes counts, how counts add up, how much they grew. Pure.

Everything here can be added in any order with the same result, up to the rounding of the two sums of floats.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from cortex.errors import CortexError
from cortex.wire.stats import StatsFile

Key = TypeVar("Key")

LARGEST_COUNT = 2**48
"""More than any process answers (a century at 80,000 a second); sums of thousands still fit 64 bits."""
LARGEST_BUCKET = 35_000
"""Beyond lies only what no float can be: GAMMA**35_000 is 1e304."""
LARGEST_SUM = 1e300
LONGEST_CLASS = 256
"""Characters of a class's name that are kept, so that names of any length cannot fill the disk."""


class Counts(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """
    What happened in a span of time, or since a beginning; classes are kept beside it.

    Stored in this order: fields are only ever appended.
    """

    ok: int = 0
    client_error: int = 0
    """4xx answered by replicas; likewise `server_error`."""
    server_error: int = 0
    refused_client_error: int = 0
    """4xx that the ingress answered itself; likewise `refused_server_error`."""
    refused_server_error: int = 0
    abandoned: int = 0
    dropped: int = 0
    latency_sum_ms: float = 0.0
    latency: dict[int, int] = {}
    """`wire.stats.bucket_of(milliseconds)` to how many answers of replicas."""
    misses: int = 0
    """Responses in which the tracker found nothing to count."""
    other: int = 0
    """Predictions that are in no class's count, as there was no room for all classes."""
    numbers: int = 0
    number_sum: float = 0.0
    least: float | None = None
    """The least number, if it was first seen in this span; None when a number as small had been seen before."""
    greatest: float | None = None
    positive: dict[int, int] = {}
    """Bucket of the number to how many; `negative` holds buckets of the numbers' magnitudes."""
    negative: dict[int, int] = {}
    zeros: int = 0
    undercount: int = 0
    """By how much the count of any class may be too low. 0 as long as there was room for all classes."""
    unavailable: int = 0
    """Of `server_error`, 503."""
    refused_failed: int = 0
    """Of `refused_server_error`, what replicas are to blame for: see `IngressRefusals.failed`."""

    @property
    def answered(self) -> int:
        """Requests that got an answer, from whomever."""
        return self.ok + self.client_error + self.server_error + self.refused_client_error + self.refused_server_error

    @property
    def failed(self) -> int:
        """Requests that whatever serves did not answer as it should: a 503 tells of load, a 4xx of the caller."""
        return max(0, self.server_error - self.unavailable) + self.refused_failed

    @property
    def served(self) -> int:
        """Requests that it did, or of which it is to blame that it did not."""
        return self.ok + self.failed


NOTHING = Counts()
_SUMS = (
    "ok",
    "client_error",
    "server_error",
    "refused_client_error",
    "refused_server_error",
    "abandoned",
    "dropped",
    "misses",
    "other",
    "numbers",
    "zeros",
    "undercount",
    "unavailable",
    "refused_failed",
)
_MAPS = ("latency", "positive", "negative")


class Reading(msgspec.Struct, frozen=True, array_like=True):
    """Cumulative counters of one attempt as they stood at some moment."""

    counts: Counts
    classes: dict[str, int]
    admitted: dict[str, int] = {}
    """As in `wire.stats.TrackerStats`."""


class Lifetime(msgspec.Struct, frozen=True, kw_only=True):
    """
    Everything counted of an api since its counting began, all versions: only grows, as scrapers of counters expect.
    """

    counts: Counts = NOTHING
    """Without the numbers' buckets and bounds."""
    classes: dict[str, int] = {}
    """A few frequent classes: how often each was predicted since it was given its own count."""
    rest: int = 0
    """All other predictions of classes, `counts.other` among them."""


class ImplausibleStats(CortexError):
    """A stats file holds what no replica of ours counts: users' code runs beside the code that writes it."""

    reference = "implausible-stats"

    def __init__(self, replica: str, attempt: int, reason: str) -> None:
        self.replica = replica
        self.attempt = attempt
        super().__init__(f"counters of {replica} (attempt {attempt}): {reason}")


def read(file: StatsFile) -> Reading:
    """
    Return a file's counters.

    Raises:
        ImplausibleStats: a counter is negative or absurdly large, or a sum is no finite number.
    """
    tracker = file.tracker
    counts = Counts(
        ok=file.ok,
        client_error=file.client_error,
        server_error=file.server_error,
        unavailable=file.unavailable,
        abandoned=file.abandoned,
        dropped=file.dropped,
        latency_sum_ms=file.latency_sum_ms,
        latency=file.latency_buckets,
    )
    classes: dict[str, int] = {}
    admitted: dict[str, int] = {}
    if tracker is not None:
        classes, admitted = tracker.classes, tracker.admitted
        counts = msgspec.structs.replace(
            counts,
            misses=tracker.misses,
            other=tracker.other,
            numbers=tracker.count,
            number_sum=tracker.total,
            least=tracker.least,
            greatest=tracker.greatest,
            positive=tracker.positive_buckets,
            negative=tracker.negative_buckets,
            zeros=tracker.zeros,
            undercount=tracker.rounds,
        )
    reason = _implausible(counts, classes)
    if reason is not None:
        raise ImplausibleStats(file.replica, file.attempt, reason)
    if classes and max(map(len, classes)) > LONGEST_CLASS:
        classes = {class_label(name): n for name, n in classes.items()}
        admitted = {class_label(name): n for name, n in admitted.items()}
    return Reading(counts, classes, admitted)


def class_label(name: str) -> str:
    """A class's name; of a long one the beginning and a digest, so that different names stay different."""
    if len(name) <= LONGEST_CLASS:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{name[: LONGEST_CLASS - 13]}…{digest}"


def growth(before: Reading, after: Reading) -> Reading | None:
    """What was counted between two readings of the same attempt; None when any counter went backwards."""
    old, new = before.counts, after.counts
    changed: dict[str, Any] = {}
    for name in _SUMS:
        difference = getattr(new, name) - getattr(old, name)
        if difference < 0:
            return None
        changed[name] = difference
    some_may_have_left = new.undercount > 0
    for name in _MAPS:
        grown = _map_growth(getattr(old, name), getattr(new, name))
        if grown is None:
            return None
        changed[name] = grown
    classes = _class_growth(before, after) if some_may_have_left else _map_growth(before.classes, after.classes)
    if classes is None or new.latency_sum_ms < old.latency_sum_ms:
        return None
    if old.least is not None and (new.least is None or new.least > old.least):
        return None
    if old.greatest is not None and (new.greatest is None or new.greatest < old.greatest):
        return None
    if some_may_have_left:
        # Classes that left took what they had to `other`, but what is stored of them stays theirs.
        predictions = _predictions(after) - _predictions(before)
        changed["other"] = predictions - sum(classes.values())
        if changed["other"] < 0:
            return None
    changed["latency_sum_ms"] = new.latency_sum_ms - old.latency_sum_ms
    changed["number_sum"] = _bounded(new.number_sum - old.number_sum)
    changed["least"] = new.least if new.least != old.least else None
    changed["greatest"] = new.greatest if new.greatest != old.greatest else None
    return Reading(Counts(**changed), classes)


class Tally:
    """A running sum of counts."""

    __slots__ = ("_bounds", "_floats", "_maps", "_sums")

    def __init__(self, parts: Iterable[Counts] = ()) -> None:
        self._sums = [0] * len(_SUMS)
        self._maps: tuple[dict[int, int], ...] = tuple({} for _ in _MAPS)
        self._floats = [0.0, 0.0]
        self._bounds: list[float | None] = [None, None]
        for part in parts:
            self.add(part)

    def add(self, counts: Counts) -> None:
        for place, name in enumerate(_SUMS):
            self._sums[place] += getattr(counts, name)
        for into, name in zip(self._maps, _MAPS, strict=True):
            add_all(into, getattr(counts, name))
        self._floats[0] += counts.latency_sum_ms
        self._floats[1] += counts.number_sum
        least, greatest = self._bounds
        if counts.least is not None and (least is None or counts.least < least):
            self._bounds[0] = counts.least
        if counts.greatest is not None and (greatest is None or counts.greatest > greatest):
            self._bounds[1] = counts.greatest

    def counts(self) -> Counts:
        """The sum so far; later additions do not change what was returned."""
        sums: dict[str, Any] = dict(zip(_SUMS, self._sums, strict=True))
        maps: dict[str, Any] = {name: found.copy() for name, found in zip(_MAPS, self._maps, strict=True)}
        return Counts(
            **sums,
            **maps,
            latency_sum_ms=_bounded(self._floats[0]),
            number_sum=_bounded(self._floats[1]),
            least=self._bounds[0],
            greatest=self._bounds[1],
        )


def total(parts: Iterable[Counts]) -> Counts:
    """The sum of counts."""
    return Tally(parts).counts()


def add_all(into: dict[Key, int], more: Mapping[Key, int]) -> None:
    """Add to each key's count in place."""
    if not into:
        into.update(more)
        return
    for key, n in more.items():
        into[key] = into.get(key, 0) + n


def _predictions(reading: Reading) -> int:
    return sum(reading.classes.values()) + reading.counts.other


def _class_growth(before: Reading, after: Reading) -> dict[str, int] | None:
    """As `_map_growth`, where classes may have left, or left and come back and begun anew."""
    grown: dict[str, int] = {}
    for name, n in after.classes.items():
        stayed = before.admitted.get(name, 0) == after.admitted.get(name, 0)
        difference = n - before.classes.get(name, 0) if stayed else n
        if difference < 0:
            return None
        if difference:
            grown[name] = difference
    return grown


def _map_growth(old: Mapping[Key, int], new: Mapping[Key, int]) -> dict[Key, int] | None:
    if old == new:
        return {}
    if not old.keys() <= new.keys():
        return None
    grown: dict[Key, int] = {}
    for key, n in new.items():
        difference = n - old.get(key, 0)
        if difference < 0:
            return None
        if difference:
            grown[key] = difference
    return grown


def _bounded(number: float) -> float:
    """JSON knows no infinity, and a sum of numbers that each fit a float may not fit one."""
    return max(-LARGEST_SUM, min(LARGEST_SUM, number))


def _implausible(counts: Counts, classes: Mapping[str, int]) -> str | None:
    """What is wrong with a file's counters, in words; None when they can be what a replica counted."""
    maps = [getattr(counts, name) for name in _MAPS]
    numbers = [getattr(counts, name) for name in _SUMS]
    for counted in (*maps, classes):
        if counted:
            numbers.append(min(counted.values()))
            numbers.append(max(counted.values()))
    if min(numbers) < 0:
        return f"a counter is {min(numbers)}"
    if max(numbers) > LARGEST_COUNT:
        return f"a counter is {max(numbers)}, more than the limit of {LARGEST_COUNT}"
    for buckets in maps:
        if buckets and (min(buckets) < -LARGEST_BUCKET or max(buckets) > LARGEST_BUCKET):
            return f"a bucket is not between {-LARGEST_BUCKET} and {LARGEST_BUCKET}"
    sums = (counts.latency_sum_ms, counts.number_sum, counts.least or 0.0, counts.greatest or 0.0)
    if not all(map(math.isfinite, sums)) or counts.latency_sum_ms < 0:
        return "a sum or bound is no finite number"
    return None
