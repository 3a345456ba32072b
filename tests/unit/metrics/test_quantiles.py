"""Tests of `cortex.metrics.quantiles`."""

import math
from collections import Counter

import ddsketch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.metrics.counts import Counts
from cortex.metrics.exposition import duration_buckets
from cortex.metrics.quantiles import Bin, Numbers, bucket_middle, histogram, nearest_rank, quantiles
from cortex.wire.stats import BUCKETS_PER_E, RELATIVE_ERROR, bucket_of

WANTED = (0.0, 0.25, 0.5, 0.9, 0.99, 1.0)
magnitudes = st.floats(1e-9, 1e12)
numbers = st.lists(magnitudes | magnitudes.map(lambda x: -x) | st.just(0.0), min_size=1, max_size=200)


def smallest_that_enough_do_not_exceed(values: list[float], q: float) -> float:
    return min(value for value in values if sum(other <= value for other in values) >= q * len(values) - 1e-9)


def bucket(magnitude: float) -> int:
    return math.ceil(math.log(magnitude) * BUCKETS_PER_E)


def sorted_into_buckets(values: list[float]) -> Numbers:
    return Numbers(
        positive=Counter(bucket(x) for x in values if x > 0),
        negative=Counter(bucket(-x) for x in values if x < 0),
        zeros=sum(x == 0 for x in values),
    )


@given(numbers)
def test_a_quantile_is_within_the_stated_bound_of_the_value_of_its_rank(values):
    ordered = sorted(values)
    for q, found in zip(WANTED, quantiles(sorted_into_buckets(values), WANTED), strict=True):
        exact = smallest_that_enough_do_not_exceed(ordered, q)
        assert found == pytest.approx(exact, rel=RELATIVE_ERROR * (1 + 1e-9))


@given(st.lists(st.floats(0.002, 6e5), min_size=1, max_size=100))
def test_latencies_sorted_by_replicas_are_within_the_bound(durations_ms):
    ordered = sorted(durations_ms)
    counted = Numbers(positive=Counter(map(bucket_of, durations_ms)))
    for q, found in zip(WANTED, quantiles(counted, WANTED), strict=True):
        assert found == pytest.approx(smallest_that_enough_do_not_exceed(ordered, q), rel=RELATIVE_ERROR * (1 + 1e-9))


@given(numbers)
def test_the_buckets_are_those_of_the_ddsketch_package(values):
    sketch = ddsketch.DDSketch(RELATIVE_ERROR)
    for value in values:
        sketch.add(value)
    # It rounds ranks down, so it is asked for one between ours and the next; and its own logarithm may put a value that
    # lies on a bound into the next bucket.
    ranks = [max(0, nearest_rank(q, len(values)) - 1) for q in WANTED]
    expected = [sketch.get_quantile_value(min(1.0, (rank + 0.5) / max(1, len(values) - 1))) for rank in ranks]
    assert quantiles(sorted_into_buckets(values), WANTED) == pytest.approx(expected, rel=2.1 * RELATIVE_ERROR)


@pytest.mark.parametrize(
    ("q", "count", "rank"), [(0.99, 2, 2), (0.99, 100, 99), (0.99, 101, 100), (0.07, 100, 7), (0.5, 2, 1), (0.0, 5, 0)]
)
def test_ranks_are_not_off_by_the_rounding_of_floats(q, count, rank):
    assert nearest_rank(q, count) == rank


@given(st.lists(st.floats(0.01, 4e5), min_size=1, max_size=50), st.sampled_from(WANTED))
def test_prometheus_buckets_tell_of_the_same_quantile(durations_ms, q):
    counted = Counts(latency=Counter(map(bucket_of, durations_ms)))
    (found,) = quantiles(Numbers(positive=counted.latency), (q,))
    cumulative = duration_buckets(counted)
    bounds = [0.0, *(bound for bound, n in cumulative)]
    place = next(i for i, (_, n) in enumerate(cumulative) if n >= max(1, nearest_rank(q, len(durations_ms))))
    assert bounds[place] * 1000 < found <= bounds[place + 1] * 1000


def test_without_numbers_there_is_no_quantile():
    assert quantiles(Numbers(), (0.5, 0.9)) == (None, None)


def test_quantiles_come_in_the_order_asked_for():
    counted = Numbers(positive={0: 1, 100: 1})
    assert quantiles(counted, (1.0, 0.0)) == (bucket_middle(100), bucket_middle(0))


def test_negative_numbers_come_before_zero_and_positive_ones():
    counted = Numbers(positive={0: 1}, negative={0: 1, 100: 1}, zeros=1)
    assert [value for value, _ in counted.ascending()] == [
        -bucket_middle(100),
        -bucket_middle(0),
        0.0,
        bucket_middle(0),
    ]
    assert counted.count == 4


@given(numbers, st.integers(1, 12))
def test_a_histogram_holds_every_number_from_the_least_to_the_greatest(values, bins):
    bars = histogram(sorted_into_buckets(values), least=min(values), greatest=max(values), bins=bins)
    assert sum(bar.count for bar in bars) == len(values)
    assert (bars[0].low, bars[-1].high) == (min(values), max(values))
    assert [bar.high for bar in bars[:-1]] == [bar.low for bar in bars[1:]]


def test_numbers_that_are_all_the_same_make_one_bar():
    assert histogram(Numbers(zeros=3), least=0.0, greatest=0.0, bins=10) == (Bin(low=0.0, high=0.0, count=3),)


def test_no_numbers_make_no_bars():
    assert histogram(Numbers(), least=0.0, greatest=1.0, bins=10) == ()


def test_a_histogram_spans_bounds_whose_difference_is_no_float():
    bars = histogram(Numbers(zeros=1), least=-1.7e308, greatest=1.7e308, bins=2)
    assert [bar.count for bar in bars] == [0, 1]
