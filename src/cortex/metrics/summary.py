"""
From sums to what people read: request counts, latencies, rates, tracker statistics. Pure.

Quantiles come from merged buckets and are within 1 % of a value that was really seen (`quantiles`).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from cortex.metrics.counts import Counts
from cortex.metrics.quantiles import Numbers, histogram, nearest_rank, quantiles
from cortex.metrics.slices import MINUTE_S, Slice
from cortex.wire.operator import Latency, RequestCounts
from cortex.wire.stats import GAMMA

SHOWN_CLASSES = 20
"""The most frequent classes are shown by name, the rest as one number: a list that fits a screen."""
HISTOGRAM_BINS = 10
_P50_P90_P99 = (0.5, 0.9, 0.99)
_BUCKET_WIDTH = 1 - 1 / GAMMA
"""Of the numbers in it."""
_MS_DIGITS = 3
"""Microseconds: finer is not measured."""
_RATE_DIGITS = 3


def request_counts(counts: Counts) -> RequestCounts:
    """
    Return what `cortex get` shows of requests.

    4xx and 5xx include what the ingress answered itself; latencies are those of replicas, which alone measure them.
    """
    return RequestCounts(
        ok=counts.ok,
        client_error=counts.client_error + counts.refused_client_error,
        server_error=counts.server_error + counts.refused_server_error,
        latency_ms=latency(counts),
    )


def latency(counts: Counts) -> Latency:
    """Mean, exact, and quantiles in milliseconds; all None before the first answer of a replica."""
    answers = sum(counts.latency.values())
    if not answers:
        return Latency()
    p50, p90, p99 = (
        None if value is None else round(value, _MS_DIGITS)
        for value in quantiles(Numbers(positive=counts.latency), _P50_P90_P99)
    )
    return Latency(mean=round(counts.latency_sum_ms / answers, _MS_DIGITS), p50=p50, p90=p90, p99=p99)


def requests_per_second(recent: Iterable[Slice], now_s: float) -> float:
    """
    Return the rate over the last 60 seconds.

    Of the minute before the current one, the part that lies within these 60 seconds is taken in proportion.

    Args:
        recent: minutes, of which only the last two matter.
    """
    current_s = int(now_s // MINUTE_S) * MINUTE_S
    weights = {current_s: 1.0, current_s - MINUTE_S: 1.0 - (now_s - current_s) / MINUTE_S}
    answered = sum(s.counts.answered * weights.get(s.start_s, 0.0) for s in recent)
    return round(answered / MINUTE_S, _RATE_DIGITS)


def sparkline(recent: Iterable[Slice], now_s: float, *, minutes: int = 60) -> tuple[int, ...]:
    """Requests in each of the last minutes, oldest first; the last one is the current minute, not over yet."""
    first_s = int(now_s // MINUTE_S) * MINUTE_S - (minutes - 1) * MINUTE_S
    line = [0] * minutes
    for found in recent:
        place = (found.start_s - first_s) // MINUTE_S
        if 0 <= place < minutes:
            line[place] += found.counts.answered
    return tuple(line)


def tracker(
    model_type: Literal["classification", "regression"], counts: Counts, classes: Mapping[str, int]
) -> dict[str, Any]:
    """
    Return what was predicted, as `cortex get` shows it.

    Returns:
        For classification `model_type`, `count`, `missed`, `classes` (the 20 most frequent, in that order), `other`
        (predictions of all further classes), `approximate`. When that is true there is also `bound`: each count may
        be too low by up to this many, never too high.
        For regression `model_type`, `count`, `missed`, `min`, `max`, `mean` (None when there are none), `quantiles`
        (p50, p90, p99) and `histogram` (bars with `low`, `high`, `count`; empty when replicas sent no buckets).
    """
    if model_type == "classification":
        return _classification(counts, classes)
    return _regression(counts)


def _classification(counts: Counts, classes: Mapping[str, int]) -> dict[str, Any]:
    count = sum(classes.values()) + counts.other
    shown = heapq.nsmallest(SHOWN_CLASSES, classes.items(), key=lambda found: (-found[1], found[0]))
    statistics: dict[str, Any] = {
        "model_type": "classification",
        "count": count,
        "missed": counts.misses,
        "classes": dict(shown),
        "other": count - sum(n for _, n in shown),
        "approximate": counts.undercount > 0,
    }
    if counts.undercount:
        statistics["bound"] = counts.undercount
    return statistics


def _regression(counts: Counts) -> dict[str, Any]:
    numbers = Numbers(positive=counts.positive, negative=counts.negative, zeros=counts.zeros)
    least, greatest = _bounds(counts, numbers)
    p50, p90, p99 = (
        _within(value, least, greatest, is_last=nearest_rank(q, numbers.count) == numbers.count)
        for q, value in zip(_P50_P90_P99, quantiles(numbers, _P50_P90_P99), strict=True)
    )
    bars = (
        histogram(numbers, least=least, greatest=greatest, bins=HISTOGRAM_BINS)
        if least is not None and greatest is not None
        else ()
    )
    return {
        "model_type": "regression",
        "count": counts.numbers,
        "missed": counts.misses,
        "min": least,
        "max": greatest,
        "mean": counts.number_sum / counts.numbers if counts.numbers else None,
        "quantiles": {"p50": p50, "p90": p90, "p99": p99},
        "histogram": [msgspec.to_builtins(bar) for bar in bars],
    }


def _within(value: float | None, least: float | None, greatest: float | None, *, is_last: bool) -> float | None:
    """A quantile by what is known exactly: the greatest number where it is the last of all."""
    if value is None or least is None or greatest is None:
        return None
    return greatest if is_last else max(least, min(greatest, value))


def _bounds(counts: Counts, numbers: Numbers) -> tuple[float | None, float | None]:
    """
    The least and greatest number, exact where it is known.

    A replica says only once that a number is the least so far. When it said so before the window, its numbers in the
    window are known by their buckets, to 1 %.
    """
    least, greatest = counts.least, counts.greatest
    middles = [value for value, _ in numbers.ascending()]
    if middles:
        least = middles[0] if least is None or _below(middles[0], least) else least
        greatest = middles[-1] if greatest is None or _below(greatest, middles[-1]) else greatest
    return least, greatest


def _below(one: float, other: float) -> bool:
    """Whether `one` is less than `other` by more than a bucket is wide."""
    return one < other - _BUCKET_WIDTH * max(abs(one), abs(other))
