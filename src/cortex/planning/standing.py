"""
Which status an api has, and why: one rule for each line of the table in `planning.status`, in its order. Pure.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from cortex.errors import Problem
from cortex.planning import backoff, crashes, wording
from cortex.planning.actions import room_text
from cortex.planning.assessment import Case
from cortex.planning.backoff import MAX_FAILED_STARTS
from cortex.planning.model import LeaseState, Rules, RunRecord, SlotRecord, WantedApi
from cortex.planning.rollout import goal_and_fallback
from cortex.planning.slots import Slot, SlotState, of_revision
from cortex.wire.operator import Status
from cortex.wire.reports import ExitReport


class Standing(msgspec.Struct, frozen=True):
    """A status, and what is behind it."""

    status: Status
    reason: str | None = None
    problem: Problem | None = None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the status of an api depends on, counted once."""

    case: Case
    record: RunRecord | None
    """Of the wanted build."""
    of_build: tuple[Slot, ...]
    """Of the wanted build."""
    own: tuple[Slot, ...]
    """Of these, without the lost."""
    failed: tuple[Slot, ...]
    """Of the latter: ended, and not because we asked."""
    placing: tuple[Slot, ...]
    """Of the latter: waiting for room."""
    ready: int
    """Of any build, without one that is parked."""
    up_to_date: int
    """Of the wanted build."""
    returning: int
    """Ended, and answering again before a request that waits gives up."""
    answering: int
    """In the route: ready or returning. Until a moment ago nobody could reach others."""
    older: int
    """Of other builds, ready and in the route."""
    ends: str | None
    """How replicas end that do not come up."""
    persists: bool
    """One of these has done so as often as a new version is given up for, or waits since it keeps crashing."""

    @property
    def wanted(self) -> WantedApi:
        return self.case.wanted

    @property
    def has_minimum(self) -> bool:
        return self.answering >= self.minimum

    @property
    def minimum(self) -> int:
        """Fewest replicas with which it counts as live while it is awake."""
        return max(1, self.wanted.min_replicas)

    @property
    def is_another_serving(self) -> bool:
        """Another build than the wanted one is what served last."""
        serving = self.wanted.serving
        return serving is not None and serving.revision != self.wanted.build.revision

    @property
    def comes_back(self) -> bool:
        """What is wanted is what was live before: the api went back to it, and is on its way there."""
        return self.case.was_live and self.wanted.live_wall_s is None

    @property
    def last_exit(self) -> ExitReport | None:
        return self.record.last_exit if self.record is not None else None

    @property
    def last_problem(self) -> Problem | None:
        """What a replica that is down said itself, or else the last one that ended; None while none is down."""
        if not self.failed:
            return None
        exits = [slot.report.exit for slot in self.failed if slot.report is not None]
        return next((e.problem for e in (*exits, self.last_exit) if e is not None and e.problem is not None), None)


def facts_of(case: Case, rules: Rules) -> Facts:
    """Count what there is of an api."""
    slots, wait_left_s = case.seen.slots, case.runs.wait_left_s
    revision = case.wanted.build.revision
    of_build = tuple(slot for slot in slots if of_revision(slot, revision))
    own = tuple(slot for slot in of_build if not slot.lost)
    failed = tuple(slot for slot in own if slot.state is SlotState.EXITED and not slot.drained)
    returning = sum(_returns(slot, wait_left_s, rules) for slot in own)
    record = case.runs.of(case.wanted.build)
    return Facts(
        case=case,
        record=record,
        of_build=of_build,
        own=own,
        failed=failed,
        placing=tuple(slot for slot in own if slot.placing),
        ready=sum(slot.ready for slot in slots) - (case.decision.parked is not None),
        up_to_date=sum(slot.ready for slot in own),
        returning=returning,
        answering=sum(slot.ready and slot.routed for slot in own) + returning,
        older=sum(slot.ready and slot.routed for slot in slots) - sum(slot.ready and slot.routed for slot in of_build),
        ends=wording.ends(failed, record, wait_left_s) if record is not None else None,
        persists=record is not None and any(_persists(record.slots.get(slot.replica)) for slot in failed),
    )


def standing_of(facts: Facts) -> Standing:
    """The first rule that holds."""
    return next(found for rule in _RULES if (found := rule(facts)) is not None)


def _sleeps(facts: Facts) -> Standing | None:
    """It has no process any more, and may have been asked for again."""
    scale, slots = facts.wanted.scale, facts.case.seen.slots
    if not scale.asleep or not all(slot.asleep for slot in slots):
        return None
    if any(slot.knocked for slot in slots):
        return Standing(Status.WAKING, "somebody has asked")
    return Standing(Status.ASLEEP, scale.reason)


def _wakes(facts: Facts) -> Standing | None:
    """Requests wait for the first replica of one that slept."""
    wanted = facts.wanted
    if wanted.scale.asleep or wanted.min_replicas or wanted.live_wall_s is None or facts.ready or facts.failed:
        return None
    waking = [slot for slot in facts.own if slot.routed and (slot.asleep or slot.state is SlotState.STARTING)]
    if not waking:
        return None
    pending = [slot for slot in waking if slot.lease is not None and slot.lease.state is LeaseState.PENDING]
    return Standing(Status.WAKING, f"waiting for room: {wording.room(pending)}" if pending else None)


def _crashes(facts: Facts) -> Standing | None:
    record, last = facts.record, facts.last_exit
    if record is None or last is None or facts.wanted.live_wall_s is None or not crashes.is_crashing(record.row):
        return None
    if last.oom:
        return _killed_for_memory(facts, record)
    return Standing(Status.CRASHING, wording.crashing(record.row.count, last), last.problem)


def _takes_over(facts: Facts) -> Standing | None:
    """Enough replicas answer, but an older one does too, or some door does not know of them yet."""
    if not facts.has_minimum or facts.wanted.failed is not None:
        return None
    if not (facts.older or facts.case.seen.routes_pending):
        return None
    is_first = facts.wanted.serving is None or not (facts.is_another_serving or facts.older or facts.comes_back)
    return Standing(Status.CREATING if is_first else Status.UPDATING)


def _is_live(facts: Facts) -> Standing | None:
    if not facts.has_minimum:
        return None
    if facts.returning:
        return Standing(Status.LIVE, wording.returning(facts.returning, facts.wanted.replicas))
    failed = facts.wanted.failed
    if failed is not None:
        return Standing(Status.LIVE, failed.message, failed)
    return Standing(Status.LIVE, facts.ends)


def _is_given_up(facts: Facts) -> Standing | None:
    failed = facts.wanted.failed
    if failed is None:
        return None
    if facts.is_another_serving and facts.ready:
        return Standing(Status.UPDATE_FAILED, failed.message, failed)
    status = Status.OUT_OF_MEMORY if failed.reference == "out-of-memory" else Status.ERROR
    return Standing(status, failed.message, failed)


def _is_updating(facts: Facts) -> Standing | None:
    if goal_and_fallback(facts.wanted)[1] is None:
        return None
    if facts.ready:
        stuck = next(iter(facts.case.decision.notes), None)
        return Standing(Status.UPDATING, facts.ends or stuck, facts.last_problem)
    # Not an error: what was never live is tried again, and given up after a few starts. Only then has it failed.
    how = facts.ends or "both versions are on their way"
    return Standing(Status.UPDATING, f"nothing serves now; {how}", facts.last_problem)


def _lacks_room(facts: Facts) -> Standing | None:
    placed, minimum = len(facts.own) - len(facts.placing), facts.minimum
    if placed >= minimum or not facts.placing:
        return None
    asked = room_text(facts.wanted.build.resources)
    return Standing(
        Status.COMPUTE_UNAVAILABLE,
        f"{placed} of at least {minimum} replicas have room; each asks for {asked}: {wording.room(facts.placing)}",
    )


def _is_new(facts: Facts) -> Standing | None:
    if facts.wanted.live_wall_s is not None:
        return None
    return Standing(Status.UPDATING if facts.comes_back else Status.CREATING, facts.ends, facts.last_problem)


def _ends_again(facts: Facts) -> Standing | None:
    if facts.ends is None or not facts.persists:
        return None
    if facts.record is not None and facts.last_exit is not None and facts.last_exit.oom:
        return _killed_for_memory(facts, facts.record)
    return Standing(Status.ERROR, facts.ends, facts.last_problem)


def _is_short(facts: Facts) -> Standing:
    """It was live, and has fewer replicas than it needs just now."""
    status = Status.UPDATING if facts.answering else Status.CREATING
    short = f"{facts.up_to_date} of at least {facts.minimum} replicas are ready"
    return Standing(status, f"{short}; {facts.ends}" if facts.ends else short, facts.last_problem)


_RULES: tuple[Callable[[Facts], Standing | None], ...] = (
    _sleeps,
    _crashes,
    _wakes,
    _takes_over,
    _is_live,
    _is_given_up,
    _is_updating,
    _lacks_room,
    _is_new,
    _ends_again,
    _is_short,
)


def _killed_for_memory(facts: Facts, record: RunRecord) -> Standing:
    text = wording.killed_for_memory(facts.own, record, facts.wanted.build.resources.mem_bytes)
    return Standing(Status.OUT_OF_MEMORY, text, facts.last_problem)


def _persists(known: SlotRecord | None) -> bool:
    return known is not None and (known.failed_starts >= MAX_FAILED_STARTS or backoff.loops(known))


def _returns(slot: Slot, wait_left_s: Callable[[Slot], float], rules: Rules) -> bool:
    """It ended, and will answer again before a request that waits for it gives up."""
    if slot.ready or slot.asleep or slot.drained or not slot.routed or slot.report is None or wait_left_s(slot):
        return False
    if slot.state is SlotState.DRAINING:
        return False
    return slot.report.phase_age_s <= rules.hold_timeout_s
