"""Whether a new version fails more than the one before it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cortex.planning.watching import Answers, Base, base_of, chance, dispersion, goes_on, reason_to_go_back
from cortex.testing.rollouts import goes_back_after_s

SOUND = Base(answers=Answers(1000, 10))


def in_intervals(*failed: int, served: int = 25) -> list[Answers]:
    return [Answers(served, one) for one in failed]


# ---- the conditions --------------------------------------------------------------------------------------------------


def test_what_fails_by_much_goes_back_with_both_figures() -> None:
    words = "36 of 75 requests failed in its first 15 s, of the version before 10 of 1000"
    assert reason_to_go_back(SOUND, in_intervals(12, 13, 11)) == words


@pytest.mark.parametrize(
    "intervals",
    [
        in_intervals(0, 0, 0, 0),
        in_intervals(6, 6, 7, served=6),  # 19 answers
        in_intervals(1, 1, 2, served=7),  # 4 failures
        in_intervals(2, 2, 3, served=250),  # 1 % as before
        in_intervals(4, 0, 4, served=12),  # failures in two intervals
        in_intervals(49, served=49),  # all fail, of too few for a single interval
    ],
)
def test_too_little_or_too_few_or_just_once_is_no_reason(intervals: list[Answers]) -> None:
    assert reason_to_go_back(SOUND, intervals) == ""


def test_when_half_of_many_fail_one_interval_is_enough() -> None:
    assert reason_to_go_back(SOUND, in_intervals(25, served=50))
    assert not reason_to_go_back(SOUND, in_intervals(24, served=50))


@pytest.mark.parametrize(("failed", "goes"), [(399, False), (401, True)])
def test_it_has_to_fail_twice_as_often(failed: int, goes: bool) -> None:
    base = Base(answers=Answers(10_000, 2_000))
    third = failed // 3
    intervals = [Answers(334, third), Answers(333, third), Answers(333, failed - 2 * third)]
    assert bool(reason_to_go_back(base, intervals)) is goes


@pytest.mark.parametrize(("failed", "goes"), [(219, False), (221, True)])
def test_it_has_to_fail_in_two_points_more(failed: int, goes: bool) -> None:
    base = Base(answers=Answers(100_000, 200))
    third = failed // 3
    intervals = [Answers(3334, third), Answers(3333, third), Answers(3333, failed - 2 * third)]
    assert bool(reason_to_go_back(base, intervals)) is goes


def test_failures_that_came_in_bursts_before_count_for_less() -> None:
    intervals = in_intervals(4, 4, 4)
    assert reason_to_go_back(SOUND, intervals)
    assert not reason_to_go_back(Base(answers=SOUND.answers, dispersion=8.0), intervals)


# ---- the base --------------------------------------------------------------------------------------------------------


def test_the_base_is_the_last_ten_minutes() -> None:
    minutes = [*[Answers(60, 60)] * 50, *[Answers(30, 3)] * 10]
    base = base_of(minutes)
    assert base is not None
    assert base.answers == Answers(300, 30)


def test_where_they_are_too_few_older_answers_are_taken_in() -> None:
    minutes = [*[Answers(400, 4)] * 5, *[Answers(1, 0)] * 10]
    base = base_of(minutes)
    assert base is not None
    assert base.answers == Answers(1210, 12)


@pytest.mark.parametrize("minutes", [[], [Answers(19, 0)], [Answers(1, 0)] * 19])
def test_of_too_few_answers_there_is_none(minutes: list[Answers]) -> None:
    assert base_of(minutes) is None


def test_dispersion_is_that_of_the_failures_by_minute() -> None:
    assert dispersion([]) == dispersion([7]) == dispersion([0, 0]) == dispersion([3] * 60) == 1.0
    of_bursts = [0, 0, 0, 0, 0, 10] * 10
    assert 8.4 < dispersion(of_bursts) < 11.0
    assert dispersion(of_bursts[:6]) > dispersion(of_bursts)  # less is known of it


# ---- the test --------------------------------------------------------------------------------------------------------


def exactly(new: Answers, old: Answers) -> float:
    """Fisher's test, by counting."""
    failed, served = new.failed + old.failed, new.served + old.served
    ways = sum(
        math.comb(new.served, count) * math.comb(old.served, failed - count)
        for count in range(new.failed, min(new.served, failed) + 1)
    )
    return ways / math.comb(served, failed)


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (Answers(20, 5), Answers(300, 3)),
        (Answers(25, 25), Answers(25, 0)),
        (Answers(100, 3), Answers(50, 2)),
        (Answers(40, 1), Answers(40, 39)),
        (Answers(10, 0), Answers(10, 0)),
    ],
)
def test_the_chance_is_that_of_fishers_test(new: Answers, old: Answers) -> None:
    assert chance(new, old, 1.0) == pytest.approx(exactly(new, old), rel=1e-9)


def test_the_chance_is_one_of_large_counts_too() -> None:
    assert chance(Answers(60_000, 12_000), Answers(300_000, 60_000), 1.0) == pytest.approx(0.5, abs=0.02)


# ---- afterwards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "outage"), [(Answers(20, 5), True), (Answers(20, 4), False), (Answers(1000, 10), False)]
)
def test_failures_that_go_on_with_the_old_version_are_an_outage(after: Answers, outage: bool) -> None:
    assert goes_on(Answers(100, 50), after) is outage


# ---- pretended rollouts; `bench/watching.py` makes 1,000 a line ------------------------------------------------------


@pytest.mark.parametrize("in_bursts", [False, True])
@pytest.mark.parametrize("failing", [0.001, 0.01, 0.05, 0.2])
def test_good_versions_stay(failing: float, in_bursts: bool) -> None:
    roll = np.random.default_rng(round(failing * 1000) + in_bursts)
    gone = [
        goes_back_after_s(roll, per_second=5, before=failing, after=failing, in_bursts=in_bursts) for _ in range(200)
    ]
    assert sum(after_s is not None for after_s in gone) <= 3


def test_a_version_of_which_half_fails_goes_back_within_half_a_minute() -> None:
    roll = np.random.default_rng(7)
    for minutes in (60, 10):
        for _ in range(40):
            gone_s = goes_back_after_s(
                roll, per_second=5, before=0.01, after=0.5, in_bursts=False, served_minutes=minutes
            )
            assert gone_s is not None
            assert gone_s <= 30.0
