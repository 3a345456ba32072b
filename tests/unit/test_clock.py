"""Tests of `cortex.clock`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.clock import until_beat_s


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
