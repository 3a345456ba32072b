"""Tests of `cortex.clock`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.clock import SettledWall, until_beat_s
from cortex.testing.clock import FakeClock


@pytest.mark.parametrize(
    ("now_s", "wait_s"),
    [(10.0, 2.0), (10.5, 1.5), (11.0, 1.0), (11.25, 2.75), (0.0, 2.0)],
    ids=["on a beat", "soon after one", "between two", "soon before one", "at the beginning"],
)
def test_the_wait_is_for_the_next_beat_unless_that_is_almost_there(now_s, wait_s):
    assert until_beat_s(now_s, 2.0) == wait_s


@given(
    st.floats(0.0, 1e7),
    st.sampled_from([0.5, 1.0, 2.0, 4.0, 10.0, 300.0]),
)
def test_whoever_wakes_up_a_little_early_or_late_waits_for_another_beat(now_s, interval_s):
    wait_s = until_beat_s(now_s, interval_s)
    assert 0.499 * interval_s <= wait_s <= 1.501 * interval_s
    beats = (now_s + wait_s) / interval_s
    assert beats == pytest.approx(round(beats), abs=1e-6)


DAY_S = 86400.0


def test_a_wall_clock_that_is_set_forward_makes_nothing_older_until_it_has_stayed_so():
    clock = FakeClock()
    settled, before_s = SettledWall(clock), clock.wall_s()
    clock.jump_wall(DAY_S)
    assert settled.wall_s() == before_s
    clock.advance(SettledWall.SETTLES_AFTER_S - 1.0)
    assert settled.wall_s() == before_s + SettledWall.SETTLES_AFTER_S - 1.0
    clock.advance(1.0)
    assert settled.wall_s() == clock.wall_s()


def test_a_wall_clock_that_is_set_back_or_kept_right_by_small_steps_is_believed():
    clock = FakeClock()
    settled = SettledWall(clock)
    for jump_s in (-DAY_S, SettledWall.TOLERANCE_S, -clock.wall_s() / 2):
        clock.jump_wall(jump_s)
        assert settled.wall_s() == clock.wall_s()


def test_a_wall_clock_that_was_set_forward_and_back_again_was_never_ahead():
    clock = FakeClock()
    settled = SettledWall(clock)
    clock.jump_wall(DAY_S)
    settled.wall_s()
    clock.jump_wall(-DAY_S)
    assert settled.wall_s() == clock.wall_s()
    clock.advance(SettledWall.SETTLES_AFTER_S)
    clock.jump_wall(DAY_S)
    assert settled.wall_s() == clock.wall_s() - DAY_S, "its time begins anew"


@given(st.lists(st.tuples(st.floats(0.0, 2e4), st.floats(-1e8, 1e8)), max_size=20))
def test_nobody_is_told_more_than_the_wall_clock_says_nor_that_more_has_passed_than_has(steps):
    clock = FakeClock()
    settled = SettledWall(clock)
    told_s = settled.wall_s()
    for passed_s, jump_s in steps:
        clock.advance(passed_s)
        clock.jump_wall(jump_s)
        now_s = settled.wall_s()
        assert now_s <= clock.wall_s() + 1e-3
        if passed_s < SettledWall.SETTLES_AFTER_S and now_s < clock.wall_s():
            assert now_s <= told_s + passed_s + SettledWall.TOLERANCE_S
        told_s = now_s
