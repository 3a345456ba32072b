"""When ends in a row are a crash loop that users are told of."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.planning.crashes import MANY, WINDOW_S, Row, after_end, aged, is_crashing


def after(*pauses_s: float) -> Row:
    """The row after ends with these pauses before each."""
    row = Row()
    wall_s = 0.0
    for pause_s in pauses_s:
        wall_s += pause_s
        row = after_end(aged(row, pause_s), wall_s=wall_s)
    return row


@pytest.mark.parametrize(
    ("pauses_s", "crashing"),
    [
        ((), False),
        ((0, 1), False),
        ((0, 1, 1), True),
        ((0, 30, 30), True),
        ((0, 31, 30), False),
        ((0, 40, 40, 40), False),
        ((0, 0, 0, 59), True),
        ((0, 0, 0, 60), False),
        ((0, 60, 1, 1), True),
    ],
)
def test_three_ends_within_a_minute_are_a_crash_loop_until_a_minute_without_one(
    pauses_s: tuple[float, ...], crashing: bool
) -> None:
    row = after(*pauses_s)
    assert is_crashing(row) is crashing
    assert not is_crashing(aged(row, 60.0))
    assert is_crashing(aged(row, 59.0)) is crashing


def test_a_row_begins_anew_after_a_minute_without_an_end() -> None:
    row = after(100.0, 10.0, 10.0, 60.0, 5.0)
    assert (row.count, row.since_wall_s) == (2, 180.0)


@given(st.lists(st.floats(0.0, 120.0), max_size=12), st.floats(0.0, 120.0))
def test_it_agrees_with_looking_at_all_ends_at_once(pauses_s: list[float], since_s: float) -> None:
    at_s, now_s = [], 0.0
    for pause_s in pauses_s:
        now_s += pause_s
        at_s.append(now_s)
    crashing = False
    for number, end_s in enumerate(at_s):
        if number and end_s - at_s[number - 1] >= WINDOW_S:
            crashing = False
        first = number - MANY + 1
        if first >= 0 and end_s - at_s[first] <= WINDOW_S:
            in_a_row = all(later - earlier < WINDOW_S for earlier, later in pairwise(at_s[first : number + 1]))
            crashing = crashing or in_a_row
    expected = crashing and since_s < WINDOW_S
    near = any(abs(a - b - WINDOW_S) < 1e-6 for a in (*at_s, now_s + since_s) for b in at_s)
    assert near or is_crashing(aged(after(*pauses_s), since_s)) is expected
