"""Tests of `cortex.metrics.summary`."""

import random
from collections import Counter

import msgspec
import pytest

from cortex.metrics.counts import NOTHING, Counts, Tally
from cortex.metrics.slices import MINUTE_S, Slice
from cortex.metrics.summary import latency, request_counts, requests_per_second, sparkline, tracker
from cortex.testing.clock import START_WALL_S
from cortex.wire.operator import Latency, RequestCounts
from cortex.wire.stats import RELATIVE_ERROR, bucket_middle_ms, bucket_of


def minute(ago: int, ok: int, *, now_s: float = START_WALL_S) -> Slice:
    start_s = int(now_s // MINUTE_S) * MINUTE_S - ago * MINUTE_S
    return Slice(start_s=start_s, length_s=MINUTE_S, counts=Counts(ok=ok))


# ---- requests -------------------------------------------------------------------------------------------------------


def test_requests_are_shown_with_what_the_ingress_refused():
    counts = Counts(
        ok=14,
        client_error=1,
        server_error=2,
        refused_client_error=3,
        refused_server_error=4,
        latency_sum_ms=34.0,
        latency={bucket_of(2.0): 17},
    )
    middle = round(bucket_middle_ms(bucket_of(2.0)), 3)
    assert request_counts(counts) == RequestCounts(
        ok=14, client_error=4, server_error=6, latency_ms=Latency(mean=2.0, p50=middle, p90=middle, p99=middle)
    )


def test_before_the_first_request_there_is_no_latency():
    assert msgspec.to_builtins(request_counts(NOTHING)) == {
        "2xx": 0,
        "4xx": 0,
        "5xx": 0,
        "latency_ms": {"mean": None, "p50": None, "p90": None, "p99": None},
    }


def test_latencies_of_replicas_are_merged_and_not_averaged():
    rng = random.Random(1)
    fast = [rng.uniform(1.0, 2.0) for _ in range(9_000)]
    slow = [rng.uniform(100.0, 200.0) for _ in range(1_000)]
    tally = Tally()
    for part in (fast, slow):
        tally.add(Counts(latency=Counter(map(bucket_of, part)), latency_sum_ms=sum(part)))
    durations = sorted(fast + slow)
    shown = latency(tally.counts())
    assert shown.mean == pytest.approx(sum(durations) / 10_000, abs=0.001)
    for found, q in ((shown.p50, 0.5), (shown.p90, 0.9), (shown.p99, 0.99)):
        assert found == pytest.approx(durations[int(q * 10_000) - 1], rel=RELATIVE_ERROR * 1.001)


# ---- rates ----------------------------------------------------------------------------------------------------------


def test_a_steady_rate_is_the_same_at_any_second_of_a_minute():
    for second in (0, 20, 59):
        now_s = START_WALL_S + second
        recent = [minute(2, 999), minute(1, 120), minute(0, 2 * second)]
        assert requests_per_second(recent, now_s) == pytest.approx(2.0)


def test_no_requests_are_a_rate_of_zero():
    assert requests_per_second([], START_WALL_S) == 0.0


def test_the_sparkline_has_one_number_a_minute_and_ends_with_the_current_one():
    line = sparkline([minute(60, 9), minute(59, 1), minute(1, 2), minute(0, 3)], START_WALL_S + 30.0)
    assert line == (1, *[0] * 57, 2, 3)


# ---- trackers -------------------------------------------------------------------------------------------------------


def test_classification_has_exactly_the_documented_keys():
    classes = {"iris-versicolor": 5, "iris-setosa": 9}
    shown = tracker("classification", NOTHING, classes)
    assert msgspec.json.encode(shown) == msgspec.json.encode(
        {
            "model_type": "classification",
            "count": 14,
            "missed": 0,
            "classes": {"iris-setosa": 9, "iris-versicolor": 5},
            "other": 0,
            "approximate": False,
        }
    )


def test_beyond_twenty_classes_the_rest_is_one_number():
    classes = {f"class {n:02}": n for n in range(1, 31)}
    shown = tracker("classification", Counts(misses=3), classes)
    assert list(shown["classes"].items()) == [(f"class {n:02}", n) for n in range(30, 10, -1)]
    assert shown["other"] == sum(range(1, 11))
    assert shown["count"] == sum(classes.values())
    assert shown["missed"] == 3


def test_equally_frequent_classes_come_in_order_of_their_names():
    assert list(tracker("classification", NOTHING, {"b": 1, "c": 2, "a": 1})["classes"]) == ["c", "a", "b"]


def test_counts_beyond_the_exact_classes_are_called_approximate_with_their_bound():
    shown = tracker("classification", Counts(other=7, undercount=2), {"a": 3})
    assert (shown["count"], shown["other"], shown["approximate"], shown["bound"]) == (10, 7, True, 2)


def numbers(values: list[float], **changes: float | None) -> Counts:
    facts = {
        "numbers": len(values),
        "number_sum": sum(values),
        "least": min(values),
        "greatest": max(values),
        "positive": Counter(bucket_of(x) for x in values if x > 0),
        "negative": Counter(bucket_of(-x) for x in values if x < 0),
        "zeros": sum(x == 0 for x in values),
    }
    return Counts(**(facts | changes))


def test_regression_shows_exact_bounds_and_mean_and_quantiles_within_the_bound():
    values = [-50.0, -1.0, 0.0, 0.0, 2.0, 3.0, 100.0]
    shown = tracker("regression", numbers(values, least=-50.0), {})
    assert (shown["count"], shown["min"], shown["max"]) == (7, -50.0, 100.0)
    assert shown["mean"] == pytest.approx(sum(values) / 7)
    assert shown["quantiles"] == {
        "p50": 0.0,
        "p90": 100.0,
        "p99": 100.0,
    }
    assert [bar["count"] for bar in shown["histogram"]] == [1, 0, 0, 5, 0, 0, 0, 0, 0, 1]
    assert list(shown) == ["model_type", "count", "missed", "min", "max", "mean", "quantiles", "histogram"]


def test_of_two_numbers_the_99th_percentile_is_the_larger_one():
    shown = tracker("regression", numbers([1.0, 2.0]), {})
    assert shown["quantiles"] == {"p50": 1.0, "p90": 2.0, "p99": 2.0}
    assert shown["quantiles"]["p99"] >= shown["mean"]


def test_regression_without_buckets_shows_what_is_known():
    shown = tracker("regression", Counts(numbers=2, number_sum=3.0, least=1.0, greatest=2.0, misses=1), {})
    assert shown == {
        "model_type": "regression",
        "count": 2,
        "missed": 1,
        "min": 1.0,
        "max": 2.0,
        "mean": 1.5,
        "quantiles": {"p50": None, "p90": None, "p99": None},
        "histogram": [],
    }


def test_regression_before_the_first_number_shows_none():
    shown = tracker("regression", NOTHING, {})
    assert (shown["count"], shown["min"], shown["max"], shown["mean"]) == (0, None, None, None)


def test_a_bound_that_was_reported_before_the_window_comes_from_the_buckets():
    values = [-5.0, 1.0, 80.0]
    shown = tracker("regression", numbers(values, least=None, greatest=1.0), {})
    assert shown["min"] == pytest.approx(-5.0, rel=RELATIVE_ERROR)
    assert shown["max"] == pytest.approx(80.0, rel=RELATIVE_ERROR)


def test_quantiles_never_lie_outside_the_bounds():
    for value in (7.0, 7.1, 7.2, 7.3):
        shown = tracker("regression", numbers([value]), {})
        assert shown["quantiles"] == {"p50": value, "p90": value, "p99": value}
        assert shown["histogram"] == [{"low": value, "high": value, "count": 1}]
