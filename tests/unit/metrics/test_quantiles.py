"""Tests of `cortex.metrics.quantiles`."""

import math
from collections import Counter

import ddsketch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.metrics.quantiles import Bin, Numbers, bucket_middle, histogram, quantiles
from cortex.wire.stats import BUCKETS_PER_E, RELATIVE_ERROR, bucket_of

WANTED = (0.0, 0.25, 0.5, 0.9, 0.99, 1.0)
magnitudes = st.floats(1e-9, 1e12)
numbers = st.lists(magnitudes | magnitudes.map(lambda x: -x) | st.just(0.0), min_size=1, max_size=200)


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
        exact = ordered[math.floor(q * (len(values) - 1))]
        assert found == pytest.approx(exact, rel=RELATIVE_ERROR * (1 + 1e-9))


@given(st.lists(st.floats(0.002, 6e5), min_size=1, max_size=100))
def test_latencies_sorted_by_replicas_are_within_the_bound(durations_ms):
    ordered = sorted(durations_ms)
    counted = Numbers(positive=Counter(map(bucket_of, durations_ms)))
    for q, found in zip(WANTED, quantiles(counted, WANTED), strict=True):
        assert found == pytest.approx(ordered[math.floor(q * (len(ordered) - 1))], rel=RELATIVE_ERROR * (1 + 1e-9))


@given(numbers)
def test_the_ddsketch_package_answers_the_same(values):
    sketch = ddsketch.DDSketch(RELATIVE_ERROR)
    for value in values:
        sketch.add(value)
    expected = [sketch.get_quantile_value(q) for q in WANTED]
    # Its own logarithm may put a value that lies on a bound into the next bucket.
    assert quantiles(sorted_into_buckets(values), WANTED) == pytest.approx(expected, rel=2.1 * RELATIVE_ERROR)


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
