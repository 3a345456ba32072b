"""
What is true of an api now, in words a user can read. Pure, from the same facts that planning sees.

| status | when (the first that holds) |
|---|---|
| stopping | nobody wants it any more |
| error | its replicas are ready, but no ingress could be started |
| error (out of memory), crashing | it was live, and replicas end again and again, even if one is ready just now |
| live | at least `min_replicas` of the wanted build answer, or will again in a moment, and nothing older does |
| update failed | the wanted build was given up, and another one answers |
| error (out of memory) | nothing of the above, and its replicas were killed for memory |
| error | the wanted build was given up, or its replicas end again and again |
| updating | another build serves while the wanted one is on its way, or fewer replicas of it than wanted do |
| compute unavailable | there is no room for `min_replicas` |
| creating | it is on its way |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from cortex.errors import Problem
from cortex.ids import ApiKey, Revision, short
from cortex.planning import backoff, crashes
from cortex.planning.actions import mem_text, room_text
from cortex.planning.batching import Decision, Known
from cortex.planning.model import Desired, LeaseState, Rules, RunRecord, SlotRecord, Snapshot, WantedApi
from cortex.planning.rollout import decide, goal_and_fallback
from cortex.planning.slots import NOTHING_SEEN, SeenApi, Slot, SlotState, join, of_revision
from cortex.wire.operator import ReplicaCounts, Status
from cortex.wire.reports import ExitReport, ReplicaReport

_PROGRESS_WORDS = {
    SlotState.READY: "ready",
    SlotState.STARTING: "starting",
    SlotState.WAITING: "about to start",
    SlotState.PLACING: "waiting for room",
    SlotState.EXITED: "ended",
}
_DEFAULT_RULES = Rules()


class StatusView(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about an api that follows from what is wanted and seen."""

    status: Status
    counts: ReplicaCounts = ReplicaCounts()
    reason: str | None = None
    """Why the status is what it is, when that is not obvious; one or a few lines."""
    problem: Problem | None = None
    """The failure behind the reason, with the user's traceback."""
    progress: str = ""
    """While starting: what the replicas are doing."""
    notes: tuple[str, ...] = ()
    crashes: int = 0
    ends: RunRecord | None = None
    """While it is crashing, or its replicas do not start: how they end."""
    waits: ReplicaReport | None = None
    """While a replica of the wanted build is on its way: the one that has not got on for longest."""
    serving: str = ""
    """8 digits of the version that answers now, when another is wanted."""
    batching: Decision | None = None
    """What replicas of the wanted build do about batches."""
    sample_problem: Problem | None = None
    """What is wrong with the api's own sample, which serves all the same."""


def statuses(desired: Desired, seen: Snapshot, rules: Rules = _DEFAULT_RULES) -> dict[ApiKey, StatusView]:
    """The status of every api that is wanted or still there."""
    by_api = join(seen)
    older_s = 0.0 if desired.as_of_s is None else max(0.0, seen.now_s - desired.as_of_s)
    records: dict[ApiKey, dict[Revision, RunRecord]] = {}
    for record in desired.records:
        records.setdefault(record.api, {})[record.revision] = record
    views = {
        wanted.api: api_status(
            wanted,
            by_api.get(wanted.api, NOTHING_SEEN),
            records.get(wanted.api, {}),
            older_s=older_s,
            rules=rules,
        )
        for wanted in desired.apis
    }
    known = Known(desired.batching)
    for wanted in desired.apis:
        of_api = by_api.get(wanted.api, NOTHING_SEEN)
        views[wanted.api] = _with_batching(_with_sample(views[wanted.api], wanted, of_api), wanted, of_api, known)
    for wanted in desired.apis:
        shared = _shared_cpu(seen, by_api.get(wanted.api, NOTHING_SEEN))
        if shared:
            views[wanted.api] = msgspec.structs.replace(views[wanted.api], notes=(*views[wanted.api].notes, *shared))
    closed = _closed_door(seen)
    if closed is not None:
        for api, view in views.items():
            if view.counts.ready:
                reason = f"no request reaches it: {closed.message}"
                views[api] = msgspec.structs.replace(view, status=Status.ERROR, reason=reason, problem=closed)
    for api in by_api.keys() - views.keys():
        views[api] = stopping_status(by_api[api])
    return dict(sorted(views.items()))


def _with_sample(view: StatusView, wanted: WantedApi, of_api: SeenApi) -> StatusView:
    """With what its replicas found wrong with a sample that guards nothing."""
    reports = [slot.report for slot in of_api.slots if of_revision(slot, wanted.build.revision)]
    warnings = [warning for report in reports if report is not None for warning in report.warnings]
    found = next((warning for warning in warnings if warning.reference in _OF_SAMPLES), None)
    if found is None:
        return view
    return msgspec.structs.replace(view, sample_problem=found, notes=(*view.notes, found.message))


_OF_SAMPLES = frozenset(("sample-failed", "tracker-never-matches"))


def _with_batching(view: StatusView, wanted: WantedApi, of_api: SeenApi, known: Known) -> StatusView:
    """With what its replicas do about batches; where that differs, because their runtimes do, what ends it."""
    says = [
        slot.report.batching
        for slot in of_api.slots
        if slot.report is not None and slot.report.batching is not None and of_revision(slot, wanted.build.revision)
    ]
    runtimes = sorted({state.runtime for state in says if state.runtime}) or [""]
    decisions = [known.decision(wanted.build, runtime) for runtime in runtimes]
    found = min(decisions, key=lambda decision: (decision.disagreement is None, decision.order.batches))
    notes = view.notes if found.disagreement is None else (*view.notes, found.text)
    return msgspec.structs.replace(view, batching=found, notes=notes)


def _closed_door(seen: Snapshot) -> Problem | None:
    """Why no request reaches any node, if that is so: an ingress that could not be started says why."""
    doors = [node.ingress for node in seen.nodes if node.ingress is not None]
    if not doors or any(door.up or door.problem is None for door in doors):
        return None
    return doors[0].problem


def _shared_cpu(seen: Snapshot, of_api: SeenApi) -> tuple[str, ...]:
    """That more cpu is requested than there is, of each node where an api has a replica."""
    notes = []
    for node in seen.nodes:
        if node.cpu_millis is None or not any(slot.node == node.node for slot in of_api.slots):
            continue
        requested_millis = sum(
            lease.resources.cpu_millis
            for lease in seen.leases
            if lease.node == node.node and lease.state is LeaseState.GRANTED and not lease.surge
        )
        if requested_millis > node.cpu_millis:
            notes.append(f"cpu is shared: {requested_millis}m requested of the {node.cpu_millis}m of node {node.node}")
    return tuple(notes)


def stopping_status(of_api: SeenApi) -> StatusView:
    """The status of an api that is not wanted any more but still there."""
    draining = sum(slot.state is SlotState.DRAINING for slot in of_api.slots)
    ready = sum(slot.ready for slot in of_api.slots)
    return StatusView(
        status=Status.STOPPING,
        counts=ReplicaCounts(ready=ready, stale=ready),
        progress=f"{draining} draining" if draining else "",
    )


def api_status(
    wanted: WantedApi,
    of_api: SeenApi,
    records: Mapping[Revision, RunRecord],
    *,
    older_s: float = 0.0,
    rules: Rules = _DEFAULT_RULES,
) -> StatusView:
    """
    The status of a wanted api.

    Args:
        records: what is remembered of the runs of its revisions.
        older_s: how long ago the ages in `records` were true.
    """
    revision = wanted.build.revision
    record = records.get(revision)

    def record_of(slot: Slot) -> SlotRecord | None:
        found = next((r for r in records.values() if of_revision(slot, r.revision)), None)
        return found.slots.get(slot.replica) if found is not None else None

    def wait_left_s(slot: Slot) -> float:
        return backoff.wait_left_s(record_of(slot), older_s=older_s)

    own = [slot for slot in of_api.slots if of_revision(slot, revision) and not slot.lost]
    ready = sum(slot.ready for slot in of_api.slots)
    up_to_date = sum(slot.ready for slot in own)
    failed = [slot for slot in own if slot.state is SlotState.EXITED and not slot.drained]
    counts = ReplicaCounts(
        requested=wanted.replicas,
        ready=ready,
        up_to_date=up_to_date,
        stale=ready - up_to_date,
        failed=len(failed),
    )
    returning = sum(_returns(slot, wait_left_s, rules) for slot in own)
    # A replica answers once it is routed; until a moment ago nobody could reach it.
    answering = sum(slot.ready and slot.routed for slot in own) + returning
    placing = [slot for slot in own if slot.placing]
    serving = ""
    if wanted.serving is not None and wanted.serving.revision != revision and ready > up_to_date:
        serving = short(wanted.serving.version)
        serving = serving if serving != short(wanted.build.version) else ""
    ends = _ends(failed, record, wait_left_s)

    def view(status: Status, reason: str | None = None, problem: Problem | None = None) -> StatusView:
        notes: tuple[str, ...] = ()
        if status is not Status.LIVE:
            notes = decide(wanted, of_api.slots, wait_left_s).notes
        elif placing:
            notes = (f"capped: {len(own) - len(placing)} of {wanted.replicas} replicas, {_room_reason(placing)}",)
        return StatusView(
            status=status,
            counts=counts,
            reason=reason,
            problem=problem,
            progress="" if status is Status.LIVE and up_to_date >= wanted.replicas else _progress(own),
            notes=tuple(note for note in notes if note != reason),
            crashes=record.crashes if record is not None else 0,
            ends=record if status is not Status.LIVE and _does_not_start(record) else None,
            waits=_waits(own),
            serving=serving,
        )

    if (
        record is not None
        and record.last_exit is not None
        and wanted.live_wall_s is not None
        and crashes.is_crashing(record.row, older_s=older_s)
    ):
        last = record.last_exit
        if last.oom:
            return view(Status.OUT_OF_MEMORY, _memory_text(wanted, own, record), _problem(failed, last))
        crashing = view(Status.CRASHING, _crashing_text(record.row.count, last), last.problem)
        return msgspec.structs.replace(crashing, ends=record)
    older = sum(slot.ready and slot.routed and not of_revision(slot, revision) for slot in of_api.slots)
    alone = wanted.failed is not None or not (older or of_api.routes_pending)
    if answering >= wanted.min_replicas and not alone:
        first = wanted.serving is None or (wanted.serving.revision == revision and not older)
        return view(Status.CREATING if first else Status.UPDATING)
    if answering >= wanted.min_replicas:
        if returning:
            return view(Status.LIVE, f"{_count(returning, 'replica')} of {wanted.replicas} {_restarts(returning)}")
        if wanted.failed is not None:
            return view(Status.LIVE, wanted.failed.message, wanted.failed)
        return view(Status.LIVE, ends)
    if wanted.failed is not None:
        if wanted.serving is not None and wanted.serving.revision != revision and ready:
            return view(Status.UPDATE_FAILED, wanted.failed.message, wanted.failed)
        status = Status.OUT_OF_MEMORY if wanted.failed.reference == "out-of-memory" else Status.ERROR
        return view(status, wanted.failed.message, wanted.failed)
    last_exit = record.last_exit if record is not None else None
    fallback = goal_and_fallback(wanted)[1]
    if fallback is not None:
        if ready:
            stuck = next(iter(decide(wanted, of_api.slots, wait_left_s).notes), None)
            return view(Status.UPDATING, ends or stuck, _problem(failed, last_exit))
        if ends:
            return view(Status.ERROR, f"nothing serves now; {ends}", _problem(failed, last_exit))
        return view(Status.UPDATING, "nothing serves now, both versions are on their way")
    if len(own) - len(placing) < wanted.min_replicas and placing:
        asked = room_text(wanted.build.resources)
        return view(
            Status.COMPUTE_UNAVAILABLE,
            f"{len(own) - len(placing)} of at least {wanted.min_replicas} replicas have room; each asks for {asked}: "
            f"{_room_reason(placing)}",
        )
    if wanted.live_wall_s is None:
        return view(Status.CREATING, ends, _problem(failed, last_exit))
    if ends is not None:
        if record is not None and last_exit is not None and last_exit.oom:
            return view(Status.OUT_OF_MEMORY, _memory_text(wanted, own, record), _problem(failed, last_exit))
        return view(Status.ERROR, ends, _problem(failed, last_exit))
    status = Status.UPDATING if answering else Status.CREATING
    return view(status, f"{up_to_date} of at least {wanted.min_replicas} replicas are ready")


def _returns(slot: Slot, wait_left_s: Callable[[Slot], float], rules: Rules) -> bool:
    """It ended, and will answer again before a request that waits for it gives up."""
    if slot.ready or slot.drained or not slot.routed or slot.report is None or wait_left_s(slot):
        return False
    if slot.state is SlotState.DRAINING:
        return False
    return slot.report.phase_age_s <= rules.hold_timeout_s


def _restarts(count: int) -> str:
    return "restarts" if count == 1 else "restart"


def _ends(failed: list[Slot], record: RunRecord | None, wait_left_s: Callable[[Slot], float]) -> str | None:
    """That replicas end again and again, with the numbers; None while they do not."""
    if record is None:
        return None
    lines = []
    for slot in failed:
        known = record.slots.get(slot.replica)
        if known is None or known.last_exit is None:
            continue
        left_s = wait_left_s(slot)
        if not known.failed_starts and not left_s:
            continue
        how = known.last_exit.text
        what = f"failed {_count(known.failed_starts, 'start')} in a row" if known.failed_starts else "keeps crashing"
        again = f", tried again in {left_s:.0f} s" if left_s >= 1 else ""
        lines.append(f"{slot.replica} {what} ({how}){again}")
    return "\n".join(lines) or None


def _does_not_start(record: RunRecord | None) -> bool:
    """Whether a replica ended before it was ready, and has not been since."""
    return record is not None and record.row.count > 0 and any(slot.failed_starts for slot in record.slots.values())


def _waits(own: list[Slot]) -> ReplicaReport | None:
    """Of those that start the one that has been at the same step for longest."""
    starting = [slot.report for slot in own if slot.state is SlotState.STARTING and slot.report is not None]
    return min((report for report in starting if report.got_on_wall_s), key=lambda r: r.got_on_wall_s, default=None)


def _problem(failed: list[Slot], last_exit: ExitReport | None) -> Problem | None:
    """What a replica that is down said itself, or the last one that ended."""
    if not failed:
        return None
    exits = [slot.report.exit for slot in failed if slot.report is not None]
    return next((e.problem for e in (*exits, last_exit) if e is not None and e.problem is not None), None)


def _crashing_text(ends: int, last: ExitReport) -> str:
    served = f" while it served request {last.request}" if last.request else ""
    return f"{_crashes(ends)} in a row; the last: {last.text}{served}"


def _memory_text(wanted: WantedApi, own: list[Slot], record: RunRecord) -> str:
    peak = max((slot.report.peak_rss_bytes for slot in own if slot.report is not None), default=0)
    asked = wanted.build.resources.mem_bytes
    down = sum(slot.state is SlotState.EXITED and not slot.drained for slot in own)
    words = [f"{_count(down, 'replica')} " * bool(down) + "killed by the kernel for memory"]
    if peak:
        words.append(f"peak {mem_text(peak)}")
    words.append(f"request {mem_text(asked)}" if asked is not None else "no memory request")
    if record.crashes:
        words.append(f"{_crashes(record.crashes)} so far")
    return ", ".join(words)


def _crashes(number: int) -> str:
    """The one word for an end that nobody asked for, here and wherever they are counted."""
    return _count(number, "crash", "crashes")


def _progress(own: list[Slot]) -> str:
    """`1 ready, 2 starting (loading model.onnx)`."""
    counts = Counter(slot.state for slot in own if slot.state in _PROGRESS_WORDS and not slot.drained)
    parts = []
    for state, words in _PROGRESS_WORDS.items():
        if counts[state]:
            doing = sorted(
                {slot.report.progress for slot in own if slot.state is state and slot.report and slot.report.progress}
            )
            detail = f" ({', '.join(doing)})" if doing and state is SlotState.STARTING else ""
            parts.append(f"{counts[state]} {words}{detail}")
    return ", ".join(parts)


def _room_reason(placing: list[Slot]) -> str:
    return next((slot.lease.reason for slot in placing if slot.lease and slot.lease.reason), "waiting for room")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"
