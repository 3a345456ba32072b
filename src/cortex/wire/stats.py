"""
What a replica leaves in files beside its life: its counters, and its last words.

Both are replaced atomically. Counters only grow within one run of a replica, so whoever merges them stores the
last seen ones and adds the difference.
"""

from __future__ import annotations

import math

import msgspec

from cortex.errors import Problem
from cortex.ids import ApiKey, ReplicaId, Version

Attempt = tuple[ReplicaId, int]
"""A replica and which of its processes: what one stats file is about."""

RELATIVE_ERROR = 0.01
GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
"""
Ratio of the bounds of neighbouring buckets: any value is within 1 % of its bucket's middle.

Source: Masson, Rim, Lee: DDSketch, VLDB 2019, section 2.1. The same mapping as `LogarithmicMapping` of the `ddsketch`
package with relative accuracy 0.01, so buckets can be added to such a sketch's store as they are.
"""
BUCKETS_PER_E = 1 / math.log(GAMMA)
SMALLEST_MS = 0.001
"""Anything shorter counts as this long: a microsecond."""
SMALLEST_NUMBER, LARGEST_NUMBER = 1e-15, 1e18
"""Numbers of smaller magnitude count as zero, of larger as this: 33 decades are at most 3,800 buckets for a sign."""
EXIT_FILE_SUFFIX = ".exit.json"


def bucket_of(milliseconds: float) -> int:
    """The bucket of a duration: the least i with GAMMA**i ≥ milliseconds."""
    return math.ceil(math.log(max(milliseconds, SMALLEST_MS)) * BUCKETS_PER_E)


def number_bucket(magnitude: float) -> int:
    """The bucket of a predicted number's magnitude, which is at least `SMALLEST_NUMBER`."""
    return math.ceil(math.log(min(magnitude, LARGEST_NUMBER)) * BUCKETS_PER_E)


def bucket_middle_ms(bucket: int) -> float:
    """The duration that stands for a bucket; off by at most 1 % for every value in it."""
    return 2.0 * math.pow(GAMMA, bucket) / (GAMMA + 1)


class TrackerStats(msgspec.Struct, kw_only=True):
    """
    What was predicted. Classification fills the fields up to `rounds`, regression `count` and those below it.

    Every prediction of a class is in `classes` or in `other`, so their sum only grows. The count of one class grows
    while the class stays; when there is no room for all, one may leave, and what it had moves to `other`.
    """

    classes: dict[str, int] = {}
    """At most `EXACT_CLASSES`: how often each was predicted since it was taken in."""
    admitted: dict[str, int] = {}
    """What `rounds` was when a class was taken in, where it was not 0: tells a class that left and came back."""
    other: int = 0
    """Predictions of classes that are not in `classes`, and of those in it from before they were taken in."""
    rounds: int = 0
    """How often room had to be made. No count of a class is too low by more than this; none is too high."""
    count: int = 0
    total: float = 0.0
    """Sum of the predicted numbers."""
    least: float | None = None
    greatest: float | None = None
    positive_buckets: dict[int, int] = {}
    """`number_bucket(magnitude)` to how many; `negative_buckets` likewise."""
    negative_buckets: dict[int, int] = {}
    zeros: int = 0
    """Numbers whose magnitude is below `SMALLEST_NUMBER`."""
    misses: int = 0
    """Responses in which there was nothing to count."""


EXACT_CLASSES = 10_000
"""Exact up to here: enough for any label set people read, and a full file stays below a megabyte."""


class StatsFile(msgspec.Struct, kw_only=True, frozen=True):
    """
    Cumulative counters of one run of one replica.

    Counted are answered predictions: POST and wrong methods, no GET, HEAD, OPTIONS and no warm-up.
    """

    replica: ReplicaId
    attempt: int
    api: ApiKey
    version: Version
    run: str = ""
    """Tells this process from others: attempts are numbered anew after `cortex down` or when a version is back."""
    wall_s: float = 0.0
    """When it was written, for people."""
    last: bool = False
    """The process has ended in order: nothing more will come from this attempt."""
    ok: int = msgspec.field(name="2xx", default=0)
    """Also counts 1xx and 3xx, which only a handler's own `Response` can make."""
    client_error: int = msgspec.field(name="4xx", default=0)
    server_error: int = msgspec.field(name="5xx", default=0)
    unavailable: int = 0
    """Of these, 503: too much to do, or an end; no fault of what serves."""
    abandoned: int = 0
    """Requests whose caller went away before the answer; in none of the above."""
    dropped: int = 0
    """Of those, the ones that had not started and never did."""
    latency_sum_ms: float = 0.0
    latency_buckets: dict[int, int] = {}
    """`bucket_of(milliseconds)` to how many, from the request's last byte to its answer."""
    tracker: TrackerStats | None = None


class LastWords(msgspec.Struct, frozen=True, kw_only=True):
    """Why a replica ended on its own, in `<stats_path>.exit.json`: an agent may not be there to be told."""

    problem: Problem
    permanent: bool = False
    """The same build would fail again the same way."""
