"""Tests of `cortex.metrics.counts`."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.metrics.counts import (
    LARGEST_COUNT,
    LARGEST_SUM,
    LONGEST_CLASS,
    NOTHING,
    Counts,
    ImplausibleStats,
    Reading,
    Tally,
    class_label,
    growth,
    read,
    total,
)
from cortex.wire.stats import TrackerStats

small = st.integers(0, 50)
buckets = st.dictionaries(st.integers(-5, 5), st.integers(1, 50), max_size=5)
# Whole numbers: sums of floats are the same in any order only up to rounding.
whole = st.integers(0, 10**6).map(float)
bound = st.none() | st.integers(-100, 100).map(float)
counts = st.builds(
    Counts,
    ok=small,
    client_error=small,
    server_error=small,
    refused_client_error=small,
    refused_server_error=small,
    abandoned=small,
    dropped=small,
    latency_sum_ms=whole,
    latency=buckets,
    misses=small,
    other=small,
    numbers=small,
    number_sum=whole,
    least=bound,
    greatest=bound,
    positive=buckets,
    negative=buckets,
    zeros=small,
)
classes = st.dictionaries(st.text(max_size=3), st.integers(1, 50), max_size=4)


@given(counts, counts, counts)
def test_counts_add_up_in_any_order_and_grouping(one, two, three):
    assert total([one, two, three]) == total([total([three, one]), two])


@given(counts)
def test_nothing_added_changes_nothing(one):
    assert total([one, NOTHING]) == one == total([one])


def test_a_sum_does_not_change_with_what_is_added_later():
    tally = Tally([Counts(latency={1: 1})])
    before = tally.counts()
    tally.add(Counts(latency={1: 1}))
    assert before == Counts(latency={1: 1})
    assert tally.counts() == Counts(latency={1: 2})


@given(counts, counts, classes, classes)
def test_growth_is_what_was_added(before, more, classes_before, classes_more):
    after = total([before, more])
    classes_after = {
        name: classes_before.get(name, 0) + classes_more.get(name, 0) for name in classes_before | classes_more
    }
    grown = growth(Reading(before, classes_before), Reading(after, classes_after))
    assert grown is not None
    assert grown.classes == classes_more
    assert total([before, grown.counts]) == after


def test_bounds_are_reported_once_when_they_are_new():
    before = Reading(Counts(numbers=1, least=2.0, greatest=2.0), {})
    after = Reading(Counts(numbers=2, least=2.0, greatest=5.0), {})
    assert growth(before, after) == Reading(Counts(numbers=1, least=None, greatest=5.0), {})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Counts(ok=2), Counts(ok=1)),
        (Counts(latency_sum_ms=2.0), Counts(latency_sum_ms=1.0)),
        (Counts(latency={1: 2}), Counts(latency={1: 1})),
        (Counts(latency={1: 2}), Counts(latency={2: 2})),
        (Counts(least=1.0), Counts(least=2.0)),
        (Counts(least=1.0), Counts()),
        (Counts(greatest=2.0), Counts(greatest=1.0)),
    ],
)
def test_any_counter_that_went_backwards_makes_the_growth_unknown(before, after):
    assert growth(Reading(before, {}), Reading(after, {})) is None


def test_a_class_that_went_backwards_makes_the_growth_unknown():
    assert growth(Reading(NOTHING, {"a": 2}), Reading(NOTHING, {"a": 1})) is None


def test_a_file_without_number_buckets_reads_like_one_whose_buckets_are_empty(build):
    facts = {"count": 2, "total": 3.0, "least": 1.0, "greatest": 2.0}
    plain = read(build.file(tracker=TrackerStats(**facts)))
    assert plain == Reading(Counts(numbers=2, number_sum=3.0, least=1.0, greatest=2.0), {})
    assert read(build.numbers(**facts)) == plain


def test_number_buckets_are_read_where_a_replica_writes_them(build):
    reading = read(build.numbers(count=3, positive_buckets={4: 1}, negative_buckets={5: 1}, zeros=1))
    assert reading.counts == Counts(numbers=3, positive={4: 1}, negative={5: 1}, zeros=1)


def test_everything_in_a_file_is_read(build):
    file = build.classes(
        {"a": 1},
        other=2,
        misses=3,
        ok=4,
        client_error=5,
        server_error=6,
        abandoned=7,
        dropped=1,
        latency_sum_ms=8.5,
        latency={-3: 15},
    )
    assert read(file) == Reading(
        Counts(
            ok=4,
            client_error=5,
            server_error=6,
            abandoned=7,
            dropped=1,
            latency_sum_ms=8.5,
            latency={-3: 15},
            misses=3,
            other=2,
        ),
        {"a": 1},
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"ok": -1},
        {"ok": LARGEST_COUNT + 1},
        {"latency": {0: -1}},
        {"latency": {10**6: 1}},
        {"latency_sum_ms": -1.0},
        {"latency_sum_ms": math.nan},
        {"tracker": TrackerStats(classes={"a": -1})},
        {"tracker": TrackerStats(total=math.inf)},
        {"tracker": TrackerStats(count=1, least=math.nan)},
    ],
)
def test_what_no_replica_counts_is_refused(build, changes):
    with pytest.raises(ImplausibleStats, match="attempt 1"):
        read(build.file(**changes))


def test_sums_stay_finite_whatever_is_added(build):
    huge = Counts(numbers=1, number_sum=1.7e308)
    assert total([huge, huge]).number_sum == LARGEST_SUM
    grown = growth(Reading(Counts(number_sum=-1.7e308), {}), Reading(Counts(number_sum=1.7e308), {}))
    assert grown is not None
    assert grown.counts.number_sum == LARGEST_SUM


def test_long_class_names_are_shortened_and_stay_apart(build):
    one, two = "x" * 1000 + "1", "x" * 1000 + "2"
    reading = read(build.classes({one: 1, two: 2, "short": 3}))
    assert reading.classes == {class_label(one): 1, class_label(two): 2, "short": 3}
    assert max(map(len, reading.classes)) <= LONGEST_CLASS


def test_requests_answered_by_replicas_and_by_the_ingress_are_all_answered():
    counted = Counts(ok=1, client_error=2, server_error=3, refused_client_error=4, refused_server_error=5, abandoned=9)
    assert counted.answered == 15


def test_what_failed_is_what_serves_to_blame_for() -> None:
    counted = Counts(
        ok=80, client_error=7, server_error=9, unavailable=4, refused_server_error=6, refused_failed=2, abandoned=5
    )
    assert (counted.served, counted.failed) == (87, 7)
    assert Counts(ok=1, unavailable=3).failed == 0, "two readings of one moment may be apart"
