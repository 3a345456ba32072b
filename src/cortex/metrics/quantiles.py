"""
Quantiles of what fell into buckets. Pure.

Each answer is within 1 % (`wire.stats.RELATIVE_ERROR`) of a value that was really counted: the nearest rank's, which is
the smallest one that at least q of all values do not exceed. So the 99th percentile of two values is the larger one.
Buckets of different replicas, minutes or versions are added first, so this holds for any of them together; averages of
quantiles mean nothing and are never made.

Source: Hyndman, Fan: Sample quantiles in statistical packages, 1996, definition 1; for the buckets Masson, Rim, Lee:
DDSketch, VLDB 2019, section 2. The `ddsketch` package is not used since its sketches take values, not buckets that are
already counted, and since it rounds ranks down.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import msgspec

from cortex.wire.stats import bucket_middle_ms


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers by bucket, with the same bounds of buckets for both signs."""

    positive: Mapping[int, int] = {}
    negative: Mapping[int, int] = {}
    """Buckets of the magnitudes."""
    zeros: int = 0

    @property
    def count(self) -> int:
        return sum(self.positive.values()) + sum(self.negative.values()) + self.zeros

    def ascending(self) -> Iterator[tuple[float, int]]:
        """Middle of each bucket that is not empty, with how many fell into it, least number first."""
        for bucket in sorted(self.negative, reverse=True):
            yield -bucket_middle(bucket), self.negative[bucket]
        if self.zeros:
            yield 0.0, self.zeros
        for bucket in sorted(self.positive):
            yield bucket_middle(bucket), self.positive[bucket]


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """One bar of a histogram: numbers from `low` to below `high`; the last bar includes `high`."""

    low: float
    high: float
    count: int


def bucket_middle(bucket: int) -> float:
    """The number that stands for a bucket; off by at most 1 % for every number in it."""
    return bucket_middle_ms(bucket)  # the same buckets, whatever is counted


def quantiles(numbers: Numbers, wanted: Sequence[float]) -> tuple[float | None, ...]:
    """
    Return the numbers at these quantiles, in the order asked for; None for each when nothing was counted.

    Args:
        wanted: each from 0 to 1; a decimal fraction means just that, not the float next to it.
    """
    count = numbers.count
    if count == 0:
        return tuple(None for _ in wanted)
    ranks = sorted((max(0, nearest_rank(q, count) - 1), place) for place, q in enumerate(wanted))
    found: list[float | None] = [None] * len(wanted)
    passed, answered = 0, 0
    for value, n in numbers.ascending():
        passed += n
        while answered < len(ranks) and ranks[answered][0] < passed:
            found[ranks[answered][1]] = value
            answered += 1
        if answered == len(ranks):
            break
    return tuple(found)


def nearest_rank(q: float, count: int) -> int:
    """How many of `count` values are at least q of them: 99 of 100 for 0.99, and 2 of 2."""
    return math.ceil(Fraction(str(q)) * count)


def histogram(numbers: Numbers, *, least: float, greatest: float, bins: int) -> tuple[Bin, ...]:
    """
    Return `bins` bars of equal width from `least` to `greatest`; one bar when these are the same.

    A number near the edge of a bar may be counted in the neighbour, as it is known to 1 % only.
    """
    if numbers.count == 0:
        return ()
    width = greatest / bins - least / bins  # the difference itself may be too large for a float
    if not width > 0:
        return (Bin(low=least, high=greatest, count=numbers.count),)
    heights = [0] * bins
    for value, n in numbers.ascending():
        place = math.floor((value / bins - least / bins) / width * bins)
        heights[max(0, min(bins - 1, place))] += n
    edges = [least + place * width for place in range(bins)] + [greatest]
    return tuple(Bin(low=edges[place], high=edges[place + 1], count=height) for place, height in enumerate(heights))
