"""When an ended replica is started again, in figures."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.errors import Problem
from cortex.ids import replica_id
from cortex.planning import backoff
from cortex.planning.model import RunRecord, SlotRecord
from cortex.testing.builders import API, a_build, an_exit
from cortex.wire.reports import ExitReport

BUILD = a_build()
SEGFAULT = an_exit(signal=11)
OUTSIDE_KILL = an_exit(signal=9)


def after(slot: SlotRecord, exit_report: ExitReport, *, ran_s: float = 0.0, was_ready: bool = True) -> SlotRecord:
    """The slot waits as long as it has to, runs for a while, and ends again."""
    older = backoff.aged(slot, backoff.restart_delay_s(slot) + ran_s)
    return backoff.after_exit(older, slot.attempt + 1, exit_report, was_ready=was_ready)


def delays_of(exit_report: ExitReport, times: int, *, ran_s: float = 0.0, was_ready: bool = True) -> list[float]:
    slot = SlotRecord()
    found = []
    for _ in range(times):
        slot = after(slot, exit_report, ran_s=ran_s, was_ready=was_ready)
        found.append(backoff.restart_delay_s(slot))
    return found


def test_failed_starts_are_retried_at_once_then_after_half_a_second_and_twice_as_long_up_to_a_minute() -> None:
    assert delays_of(an_exit(), 11, was_ready=False) == [0, 0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_five_crashes_in_a_row_cost_nothing_then_the_delay_doubles_up_to_a_minute() -> None:
    assert delays_of(SEGFAULT, 15) == [0, 0, 0, 0, 0, 0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_crash_every_twelve_seconds_is_never_delayed() -> None:
    assert set(delays_of(SEGFAULT, 100, ran_s=12.0)) == {0.0}


def test_a_replica_that_takes_seconds_to_crash_is_still_slowed_down() -> None:
    assert delays_of(SEGFAULT, 10, ran_s=3.0)[-3:] == [1.0, 1.0, 2.0]


def test_kills_from_outside_every_second_are_never_delayed() -> None:
    assert set(delays_of(OUTSIDE_KILL, 1000, ran_s=1.0)) == {0.0}


def test_kills_every_700_ms_are_not_delayed_for_two_minutes() -> None:
    delays = delays_of(OUTSIDE_KILL, 300, ran_s=0.7)
    free = delays.index(0.5)
    assert free * 0.7 > 120.0


@pytest.mark.parametrize(
    "exit_report",
    [
        an_exit(signal=9, oom=True),
        msgspec.structs.replace(an_exit(signal=9), problem=Problem(reference="hung", message="it did not answer")),
        an_exit(signal=11),
        an_exit(code=1),
        ExitReport(wall_s=0.0),
    ],
    ids=["memory", "ended by its agent", "segfault", "exit code", "unknown"],
)
def test_other_ends_weigh_in_full(exit_report: ExitReport) -> None:
    assert after(SlotRecord(), exit_report).crash_pressure == 1.0


def test_waiting_does_not_relieve_but_running_does() -> None:
    slot = SlotRecord(attempt=8, crash_pressure=8.0, last_exit=SEGFAULT)
    assert after(slot, SEGFAULT).crash_pressure == 9.0
    assert after(slot, SEGFAULT, ran_s=60.0).crash_pressure == pytest.approx(4.0)


def test_an_end_after_it_was_ready_clears_its_failed_starts() -> None:
    slot = SlotRecord(attempt=2, failed_starts=2, last_exit=an_exit())
    assert after(slot, SEGFAULT).failed_starts == 0


def test_a_known_attempt_changes_nothing() -> None:
    slot = SlotRecord(attempt=2, failed_starts=1, last_exit=an_exit())
    assert backoff.after_exit(slot, 2, SEGFAULT, was_ready=True) is slot


def test_an_end_that_was_asked_for_only_counts_the_attempt() -> None:
    slot = SlotRecord(attempt=1, failed_starts=1, last_exit=an_exit())
    assert backoff.after_exit(slot, 2, an_exit(drained=True), was_ready=True) == msgspec.structs.replace(
        slot, attempt=2
    )


def test_what_is_left_to_wait_never_goes_below_zero_and_a_femtosecond_is_nothing() -> None:
    slot = SlotRecord(attempt=2, failed_starts=2, last_exit=an_exit(), last_exit_age_s=0.1)
    assert backoff.wait_left_s(slot) == pytest.approx(0.4)
    assert backoff.wait_left_s(backoff.aged(slot, 0.3)) == pytest.approx(0.1)
    assert backoff.wait_left_s(backoff.aged(slot, 0.4 - 1e-12)) == 0.0
    assert backoff.wait_left_s(backoff.aged(slot, 1e9)) == 0.0
    assert backoff.wait_left_s(None) == 0.0


# ---- giving up -------------------------------------------------------------------------------------------------------


def given_up(*slots: SlotRecord) -> Problem | None:
    names = {replica_id(API, BUILD.revision, ordinal): slot for ordinal, slot in enumerate(slots)}
    return backoff.reason_to_give_up(RunRecord(api=API, revision=BUILD.revision, slots=names))


def test_two_failed_starts_are_no_reason_to_give_up() -> None:
    assert given_up(SlotRecord(attempt=2, failed_starts=2, last_exit=an_exit())) is None
    assert given_up() is None
    assert backoff.reason_to_give_up(None) is None


def test_failed_starts_of_different_slots_do_not_add_up() -> None:
    once = SlotRecord(attempt=1, failed_starts=1, last_exit=an_exit())
    assert given_up(once, once, once, once) is None


def test_the_reason_keeps_the_users_traceback_and_says_how_often() -> None:
    boom = Problem(reference="handler-error", message="ZeroDivisionError: division by zero", traceback="Traceback …")
    exit_report = msgspec.structs.replace(an_exit(), problem=boom)
    found = given_up(SlotRecord(), SlotRecord(attempt=3, failed_starts=3, last_exit=exit_report))
    assert found == Problem(
        reference="handler-error",
        message=f"{replica_id(API, BUILD.revision, 1)} failed 3 starts in a row; the last time: "
        "ZeroDivisionError: division by zero",
        traceback="Traceback …",
    )


def test_a_permanent_failure_is_told_in_its_own_words() -> None:
    boom = Problem(reference="model-broken", message="the model cannot be read")
    exit_report = msgspec.structs.replace(an_exit(permanent=True), problem=boom)
    assert given_up(SlotRecord(attempt=1, failed_starts=1, last_exit=exit_report)) == boom


def test_a_permanent_failure_that_was_followed_by_a_ready_replica_is_over() -> None:
    assert given_up(SlotRecord(attempt=1, failed_starts=0, last_exit=an_exit(permanent=True))) is None


def test_death_for_memory_is_named_so() -> None:
    found = given_up(SlotRecord(attempt=3, failed_starts=3, last_exit=an_exit(signal=9, oom=True)))
    assert found is not None
    assert found.reference == "out-of-memory"


def test_a_crash_loop_is_a_reason_too() -> None:
    found = given_up(SlotRecord(attempt=6, crash_pressure=5.5, last_exit=SEGFAULT))
    assert found is not None
    assert "crashed more than 5 times within a minute" in found.message
    assert "killed by signal 11" in found.message


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([SEGFAULT, OUTSIDE_KILL, an_exit()]), st.floats(0, 100)),
        max_size=60,
    )
)
def test_delays_are_always_between_nothing_and_a_minute(story: list[tuple[bool, ExitReport, float]]) -> None:
    slot = SlotRecord()
    for was_ready, exit_report, ran_s in story:
        slot = after(slot, exit_report, ran_s=ran_s, was_ready=was_ready)
        assert 0.0 <= backoff.restart_delay_s(slot) <= backoff.MAX_DELAY_S
        assert 0.0 <= backoff.wait_left_s(slot) <= backoff.MAX_DELAY_S
