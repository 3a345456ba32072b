"""Tests of `cortex.metrics.slices`."""

from hypothesis import given
from hypothesis import strategies as st

from cortex.metrics.counts import Counts, total
from cortex.metrics.slices import (
    DAY_S,
    HOUR_S,
    MINUTE_S,
    Slice,
    minutes_start,
    rollup,
    slice_of,
    window_start,
)

NOW_S = 1_767_225_600 + 13 * HOUR_S + 17 * MINUTE_S + 5.5
"""2026-01-01T13:17:05.5Z."""
instants = st.floats(NOW_S - 20 * DAY_S, NOW_S + DAY_S)


def a_slice(start_s: int, length_s: int, ok: int = 1) -> Slice:
    return Slice(start_s=start_s, length_s=length_s, counts=Counts(ok=ok))


@st.composite
def written_slices(draw):
    """Slices as they were written over time, each when its instant was now or a while ago."""
    found = []
    for instant_s in draw(st.lists(instants, max_size=30)):
        written_s = instant_s + draw(st.floats(0, 3 * DAY_S))
        start_s, length_s = slice_of(instant_s, written_s)
        found.append(a_slice(start_s, length_s, draw(st.integers(1, 9))))
    return found


def test_the_window_is_fourteen_days_of_utc_with_today():
    assert NOW_S - window_start(NOW_S) == 13 * DAY_S + 13 * HOUR_S + 17 * MINUTE_S + 5.5


def test_the_last_day_is_in_minutes_and_the_rest_of_the_window_in_hours():
    first_minute_s = minutes_start(NOW_S)
    assert first_minute_s == 1_767_225_600 - 11 * HOUR_S
    assert slice_of(NOW_S, NOW_S) == (1_767_225_600 + 13 * HOUR_S + 17 * MINUTE_S, MINUTE_S)
    assert slice_of(first_minute_s, NOW_S) == (first_minute_s, MINUTE_S)
    assert slice_of(first_minute_s - 1, NOW_S) == (first_minute_s - HOUR_S, HOUR_S)
    assert slice_of(window_start(NOW_S), NOW_S) == (window_start(NOW_S), HOUR_S)
    assert slice_of(window_start(NOW_S) - 1, NOW_S) is None


def test_minutes_of_an_old_hour_become_that_hour():
    hour_s = minutes_start(NOW_S) - HOUR_S
    old = [a_slice(hour_s, HOUR_S, 1), a_slice(hour_s, MINUTE_S, 2), a_slice(hour_s + 59 * MINUTE_S, MINUTE_S, 3)]
    new = a_slice(hour_s + HOUR_S, MINUTE_S, 4)
    assert rollup([*old, new], NOW_S) == (a_slice(hour_s, HOUR_S, 6), new)


def test_what_is_older_than_the_window_is_left_out():
    start_s = window_start(NOW_S)
    assert rollup([a_slice(start_s - HOUR_S, HOUR_S), a_slice(start_s, HOUR_S)], NOW_S) == (a_slice(start_s, HOUR_S),)


def test_an_hour_stays_one_when_the_clock_went_back():
    hour_s = minutes_start(NOW_S)
    assert rollup([a_slice(hour_s, HOUR_S)], NOW_S) == (a_slice(hour_s, HOUR_S),)


@given(written_slices())
def test_rollup_keeps_every_count_of_the_window(found):
    within = [s.counts for s in found if s.start_s >= window_start(NOW_S)]
    assert total(s.counts for s in rollup(found, NOW_S)) == total(within)


@given(written_slices(), st.floats(0, 15 * DAY_S))
def test_rollup_in_steps_ends_where_one_at_the_end_does(found, later_s):
    stepwise = rollup(rollup(found, NOW_S), NOW_S + later_s)
    assert stepwise == rollup(found, NOW_S + later_s)
    assert rollup(stepwise, NOW_S + later_s) == stepwise


@given(written_slices())
def test_rolled_up_slices_do_not_overlap_but_where_an_hour_came_first(found):
    rolled = rollup(found, NOW_S)
    assert len({(s.start_s, s.length_s) for s in rolled}) == len(rolled)
    for s in rolled:
        assert s.start_s % s.length_s == 0
