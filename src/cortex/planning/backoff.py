"""
When a replica that ended is started again, and when its revision is given up.

Two counts a slot, both as of its last exit and kept in a `SlotRecord`:

* **Failed starts**: exits in a row before it was ready. The first retry is immediate, then 0.5 s, 1 s, 2 s … 60 s.
* **Crash pressure**: exits after it was ready that nobody asked for. Each crash adds 1, each 12 s of running takes 1
  away, so up to 5 crashes a minute cost nothing. Above 5 the delay is 0.5 s and doubles with each further crash, up to
  60 s. Time spent waiting does not relieve the pressure: else a crash loop would be free again after each wait.

A SIGKILL that did not come from the kernel for memory, and for which neither the replica nor its agent gave a reason,
comes from outside: it says nothing about the build, so it weighs a twelfth. Kills every second are relieved as fast as
they weigh and are answered by an immediate restart for ever; kills every 0.7 s for two minutes, before the first delay
of 0.5 s. They do count in the end: something on the machine may be at work that more restarts only feed.
"""

from __future__ import annotations

import math
import signal

import msgspec

from cortex.backoff import doubling_s
from cortex.errors import Problem
from cortex.ids import ReplicaId
from cortex.planning import crashes
from cortex.planning.actions import RecordExit
from cortex.planning.model import RunRecord, SlotRecord
from cortex.wire.reports import ExitReport

MAX_DELAY_S = 60.0
FIRST_DELAY_S = 0.5
MAX_FAILED_STARTS = 3
"""
A revision that was never live is given up after this many failed starts in a row of one slot. One that was live never
is; its status is an error from then on.
"""
FREE_CRASHES = 5
RELIEF_S = 12.0
"""Seconds of running that take one crash away: 5 in a minute."""
OUTSIDE_KILL_WEIGHT = 1 / 12
_EPSILON = 1e-6
"""Below the resolution of any clock; keeps sums of floats from leaving a wait of a femtosecond."""


def after_exit(slot: SlotRecord, attempt: int, exit_report: ExitReport, *, was_ready: bool) -> SlotRecord:
    """
    The record after one more exit; the same record when the exit is known already or was asked for.

    Args:
        slot: as of now, i.e. `last_exit_age_s` counts up to this exit.
    """
    if attempt <= slot.attempt:
        return slot
    if exit_report.drained:
        return msgspec.structs.replace(slot, attempt=attempt)
    pressure = slot.crash_pressure
    if pressure:
        ran_s = max(0.0, slot.last_exit_age_s - restart_delay_s(slot))
        pressure = max(0.0, pressure - ran_s / RELIEF_S)
    if was_ready:
        pressure += OUTSIDE_KILL_WEIGHT if killed_from_outside(exit_report) else 1.0
    return SlotRecord(
        attempt=attempt,
        failed_starts=0 if was_ready else slot.failed_starts + 1,
        crash_pressure=pressure,
        last_exit=exit_report,
        last_exit_age_s=0.0,
    )


def run_after_exit(run: RunRecord, ended: RecordExit) -> RunRecord:
    """
    The record of a revision after one more exit; the same record when the exit is known already.

    Args:
        run: as of now.
    """
    before = run.slots.get(ended.replica, SlotRecord())
    after = after_exit(before, ended.attempt, ended.exit, was_ready=ended.was_ready)
    if after is before:
        return run
    run = msgspec.structs.replace(run, slots={**run.slots, ended.replica: after})
    if ended.exit.drained:
        return run
    return msgspec.structs.replace(
        run,
        crashes=run.crashes + 1,
        last_exit=ended.exit,
        last_exit_age_s=0.0,
        row=crashes.after_end(run.row, wall_s=ended.exit.wall_s),
    )


def aged(slot: SlotRecord, older_s: float) -> SlotRecord:
    """The same record `older_s` seconds later."""
    if slot.last_exit is None:
        return slot
    return msgspec.structs.replace(slot, last_exit_age_s=slot.last_exit_age_s + older_s)


def run_aged(run: RunRecord, older_s: float) -> RunRecord:
    """The same record `older_s` seconds later."""
    if not older_s:
        return run
    return msgspec.structs.replace(
        run,
        slots={replica: aged(slot, older_s) for replica, slot in run.slots.items()},
        last_exit_age_s=run.last_exit_age_s + older_s,
        row=crashes.aged(run.row, older_s),
    )


def restart_delay_s(slot: SlotRecord) -> float:
    """Seconds between the last exit and the next start."""
    delay_s = 0.0
    if slot.failed_starts > 1:
        delay_s = doubling_s(slot.failed_starts - 1, first_s=FIRST_DELAY_S, longest_s=MAX_DELAY_S)
    if slot.crash_pressure > FREE_CRASHES:
        over = math.ceil(slot.crash_pressure - FREE_CRASHES - _EPSILON)
        delay_s = max(delay_s, doubling_s(over, first_s=FIRST_DELAY_S, longest_s=MAX_DELAY_S))
    return delay_s


def wait_left_s(slot: SlotRecord | None) -> float:
    """Seconds until the slot may be started again; 0: now."""
    if slot is None:
        return 0.0
    left_s = restart_delay_s(slot) - slot.last_exit_age_s
    return left_s if left_s > _EPSILON else 0.0


def loops(slot: SlotRecord) -> bool:
    """Whether the slot crashes so often that restarts are delayed."""
    return slot.crash_pressure > FREE_CRASHES


def reason_to_give_up(record: RunRecord | None) -> Problem | None:
    """
    Why a revision that was never live has failed; None while it deserves another try.

    One slot is enough: the others run the same build. The exit's own problem comes along with its traceback.
    """
    if record is None:
        return None
    for replica in sorted(record.slots):
        slot = record.slots[replica]
        if slot.last_exit is None:
            continue
        if slot.failed_starts and slot.last_exit.permanent:
            return _given_up(replica, slot.last_exit, "could not start")
        if slot.failed_starts >= MAX_FAILED_STARTS:
            return _given_up(replica, slot.last_exit, f"failed {slot.failed_starts} starts in a row")
        if loops(slot):
            return _given_up(replica, slot.last_exit, f"crashed more than {FREE_CRASHES} times within a minute")
    return None


def killed_from_outside(exit_report: ExitReport) -> bool:
    """Somebody killed it, and neither memory nor the replica nor its agent was the reason."""
    return exit_report.signal == signal.SIGKILL and not exit_report.oom and exit_report.problem is None


def _given_up(replica: ReplicaId, exit_report: ExitReport, what: str) -> Problem:
    last = exit_report.problem
    if exit_report.permanent and last is not None:
        return last
    message = f"{replica} {what}; the last time: {exit_report.text}"
    if last is not None:
        return msgspec.structs.replace(last, message=message)
    if exit_report.oom:
        return Problem(
            reference="out-of-memory",
            message=message,
            hint="raise compute: mem, or use a smaller model",
        )
    return Problem(
        reference="replica-failed", message=message, hint="see cortex logs for what it wrote before it ended"
    )
