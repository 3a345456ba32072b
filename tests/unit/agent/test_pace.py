"""Tests of `cortex.agent.pace`."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.agent.pace import (
    AFTER_HOLD_S,
    HELD,
    LONGEST_QUEUE,
    LONGEST_RETRY_AFTER_S,
    SHORTEST_QUEUE,
    Look,
    Pace,
    QueueBound,
    bound_of,
    followed,
    queue_bound,
)


def a_look(at_s: float, *, done: int = 0, queued: int = 0, ready: int = 1, start_s: float | None = None) -> Look:
    return Look(at_s=at_s, done=done, queued=queued, ready=ready, start_s=start_s)


def after(looks: Iterable[Look], pace: Pace | None = None) -> Pace:
    pace = pace or Pace()
    for look in looks:
        pace = followed(pace, look)
    return pace


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (0.5, QueueBound(100, LONGEST_RETRY_AFTER_S)),
        (4.0, QueueBound(100, 25)),
        (60.0, QueueBound(100, 2)),
        (99.4, QueueBound(100, 1)),
        (188.4, QueueBound(188, 1)),
        (2048.0, QueueBound(2048, 1)),
        (40_000.0, QueueBound(2048, 1)),
    ],
)
def test_a_queue_holds_a_second_of_work_within_bounds(rate: float, expected: QueueBound) -> None:
    assert queue_bound(rate) == expected


@pytest.mark.parametrize(("start_s", "expected"), [(0.2, 1), (7.1, 7), (7.4, 8), (300.0, LONGEST_RETRY_AFTER_S)])
def test_who_is_refused_while_nobody_is_ready_may_come_again_after_a_start(start_s: float, expected: int) -> None:
    pace = after([a_look(0.0, start_s=start_s), a_look(0.5, ready=0), a_look(900.0, ready=0)])
    assert bound_of(pace, 0, 900.0) == QueueBound(LONGEST_QUEUE, expected)
    assert bound_of(pace, 1, 990.0) == QueueBound(SHORTEST_QUEUE, 1)
    assert bound_of(after([a_look(990.0, start_s=2.0)], pace), 0, 991.0).retry_after_s == 2


def test_nothing_is_known_of_an_api_that_was_never_asked() -> None:
    assert bound_of(after([a_look(0.0), a_look(0.5)]), 1, 0.5) == QueueBound(SHORTEST_QUEUE, 1)


def test_one_that_is_not_busy_can_do_at_least_what_it_did_in_two_seconds() -> None:
    looks = [a_look(0.5 * number, done=100 * number) for number in range(5)]
    assert after(looks[:3]).replica_rate == 0.0  # too short to tell
    pace = after(looks)
    assert (pace.replica_rate, pace.bound) == (200.0, QueueBound(200, 1))
    pace = after([a_look(60.0, done=500), a_look(60.5, done=503, queued=7), a_look(62.0, done=510)], pace)
    assert pace.replica_rate == 200.0  # it had nothing to do


def test_what_is_done_while_somebody_waits_is_what_can_be_done() -> None:
    pace = after([a_look(0.0, queued=9), a_look(0.5, done=80, queued=300)])
    assert (pace.replica_rate, pace.bound) == (160.0, QueueBound(160, 1))
    pace = followed(pace, a_look(1.0, done=120, queued=300))
    assert pace.replica_rate == 120.0
    looks = [a_look(1.0 + 0.5 * number, done=120 + 100 * number, queued=300) for number in range(1, 5)]
    assert after(looks, pace).replica_rate == 200.0  # over the last two seconds alone


def test_all_ready_replicas_count_and_what_was_before_their_number_changed_does_not() -> None:
    pace = after([a_look(0.0, ready=2, queued=9), a_look(1.0, ready=2, queued=9, done=400)])
    assert (pace.replica_rate, pace.bound.requests) == (200.0, 400)
    pace = followed(pace, a_look(2.0, ready=4, queued=9, done=410))
    assert (pace.replica_rate, pace.bound.requests) == (200.0, 800)
    assert followed(pace, a_look(3.0, ready=4, queued=9, done=1410)).replica_rate == 250.0


def test_a_bound_moves_only_when_it_is_another_one() -> None:
    pace = after([a_look(0.0, queued=1), a_look(1.0, queued=1, done=400)])
    pace = followed(pace, a_look(2.0, queued=1, done=860))
    assert (pace.replica_rate, pace.bound.requests) == (430.0, 400)
    assert followed(pace, a_look(3.0, queued=1, done=1360)).bound.requests == 480


def test_while_nobody_is_ready_as_many_may_wait_as_there_is_room_for() -> None:
    pace = Pace(bound=QueueBound(300, 1))
    assert bound_of(pace, 0, 0.0) == HELD == QueueBound(LONGEST_QUEUE, 1)
    assert bound_of(pace, 1, 0.0) == QueueBound(300, 1)


def test_a_queue_that_filled_up_while_nobody_was_ready_comes_down_before_anybody_is_refused_for_it() -> None:
    held = followed(Pace(bound=QueueBound(300, 1)), a_look(0.0, ready=0, queued=900))
    back = followed(held, a_look(0.5, queued=900))
    assert bound_of(back, 1, 0.5) == HELD
    assert bound_of(back, 1, AFTER_HOLD_S) == QueueBound(300, 1)  # under overload it never comes down
    down = followed(back, a_look(1.0, queued=299))
    assert bound_of(down, 1, 1.0) == QueueBound(300, 1)
    assert bound_of(followed(down, a_look(1.5, queued=300)), 1, 1.5) == QueueBound(300, 1)
    nobody_waits = followed(Pace(bound=QueueBound(300, 1)), a_look(0.0, ready=0))
    assert bound_of(nobody_waits, 1, 0.1) == QueueBound(300, 1)


@given(
    st.lists(
        st.tuples(st.floats(0.0, 3.0), st.integers(0, 5000), st.integers(0, 3000), st.integers(0, 4)), max_size=40
    ),
)
def test_whatever_is_seen_a_bound_is_one(steps: list[tuple[float, int, int, int]]) -> None:
    pace, at_s, done = Pace(), 0.0, 0
    for passed_s, more, queued, ready in steps:
        at_s, done = at_s + passed_s, done + more
        pace = followed(pace, a_look(at_s, done=done, queued=queued, ready=ready))
        bound = bound_of(pace, ready, at_s)
        assert SHORTEST_QUEUE <= bound.requests <= LONGEST_QUEUE
        assert 1 <= bound.retry_after_s <= LONGEST_RETRY_AFTER_S
        assert pace.replica_rate >= 0.0


@pytest.mark.parametrize("offered", [0.5, 0.9, 1.5, 4.0])
@pytest.mark.parametrize("rate", [30.0, 188.0, 1500.0])
def test_under_whatever_load_who_is_taken_waits_a_second_once_it_is_known_how_fast_it_is(
    rate: float, offered: float
) -> None:
    """A replica that does one request after the other, so many a second, and callers that come at random."""
    chance = random.Random(1)
    pace, step_s = Pace(), 0.001
    queued, done, left_s, refused, longest = 0, 0, 0.0, 0, 0
    for step in range(20_000):
        now_s = step * step_s
        if step % 500 == 0:
            pace = followed(pace, a_look(now_s, done=done, queued=queued))
        coming = rate * offered * step_s
        for _ in range(int(coming) + (chance.random() < coming % 1)):
            if queued >= bound_of(pace, 1, now_s).requests:
                refused += 1
            else:
                queued += 1
        left_s = min(left_s + step_s, step_s) if not queued else left_s + step_s
        while queued and left_s >= 1.0 / rate:
            queued, done, left_s = queued - 1, done + 1, left_s - 1.0 / rate
        if step >= 3000:
            longest = max(longest, queued)
    assert longest <= max(SHORTEST_QUEUE, rate * 1.3)
    assert (refused > 0) == (offered > 1.0)
    assert done >= 0.9 * min(1.0, offered) * rate * 20.0
