"""
What is true of each api, for users to read. Pure, and from the same assessment that the plan follows from.

| status | when (the first that holds) |
|---|---|
| stopping | nobody wants it any more |
| error | its replicas are ready, but no ingress could be started |
| asleep, waking | it sleeps and has no process any more; somebody has asked for it since |
| error (out of memory), crashing | it was live, and replicas end again and again, even if one is ready just now |
| waking | it slept, and requests wait for its first replica |
| live | at least `min_replicas`, and one, of the wanted build answer, or will in a moment, and nothing older does |
| update failed | the wanted build was given up, and another one answers |
| error (out of memory) | nothing of the above, and its replicas were killed for memory |
| error | the wanted build was given up, or was live and its replicas do not come up again, after several tries |
| updating | another build serves while the wanted one is on its way, or fewer replicas of it than wanted do |
| compute unavailable | there is no room for `min_replicas` |
| creating | it is on its way |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from cortex.errors import Problem
from cortex.ids import ApiKey, NodeId, ReplicaId, route_path, short, split_api_key
from cortex.planning import wording
from cortex.planning.assessment import Assessment
from cortex.planning.batching import BatchingDecision, Known
from cortex.planning.model import LeaseState, RunRecord, Snapshot, WantedApi
from cortex.planning.slots import SeenApi, Slot, SlotState
from cortex.planning.standing import Facts, Standing, facts_of, standing_of
from cortex.wire.operator import (
    ApiStatus,
    Batching,
    Ends,
    Parked,
    ReplicaCounts,
    StartStatus,
    Status,
    Waits,
    date_and_time,
    rfc3339,
    rfc3339_ms,
)
from cortex.wire.reports import ReplicaReport

_OF_SAMPLES = frozenset(("sample-failed", "sample-lost", "tracker-never-matches"))


def statuses(assessment: Assessment, ingress_url: str = "") -> dict[ApiKey, ApiStatus]:
    """The status of every api that is wanted or still there, sorted by api."""
    parked = {case.decision.parked.replica for case in assessment.cases if case.decision.parked is not None}
    closed, shared = _closed_door(assessment.seen), _shared_cpu(assessment.seen, parked)
    found = {}
    for case in assessment.cases:
        facts = facts_of(case, assessment.rules)
        remarks = [text for node, text in shared.items() if any(slot.node == node for slot in case.seen.slots)]
        found[case.wanted.api] = _wanted(facts, assessment.known, remarks, closed, ingress_url)
    found.update((api, _unwanted(api, of_api, ingress_url)) for api, of_api in assessment.unwanted)
    return dict(sorted(found.items()))


def _wanted(facts: Facts, known: Known, remarks: Sequence[str], closed: Problem | None, ingress_url: str) -> ApiStatus:
    wanted, record = facts.wanted, facts.record
    found = standing_of(facts)
    back = _rolled_back(wanted)
    is_live = found.status is Status.LIVE
    in_proof = wanted.in_proof == wanted.build.revision
    reports = [slot.report for slot in facts.of_build if slot.report is not None]
    batching = _batching_decision(wanted, reports, known)
    sample_problem = _sample_problem(reports)
    notes = (
        *_rollout_notes(facts, found),
        *((f"rolled back {back}",) if back else ()),
        *(() if sample_problem is None else (sample_problem.message,)),
        *(() if batching.disagreement is None else (batching.text,)),
        *remarks,
    )
    ends = record if found.status is Status.CRASHING or (not is_live and _does_not_start(record)) else None
    shown = _behind(closed, found, facts.ready)
    deployment, name = split_api_key(wanted.api)
    return ApiStatus(
        deployment=deployment,
        name=name,
        status=shown.status,
        endpoint=ingress_url + route_path(wanted.api),
        version=short(wanted.build.version),
        last_updated=rfc3339(wanted.deployed_wall_s) if wanted.deployed_wall_s else None,
        replicas=ReplicaCounts(
            requested=0 if wanted.scale.asleep else wanted.replicas,
            ready=facts.ready,
            up_to_date=facts.up_to_date,
            stale=facts.ready - facts.up_to_date,
            failed=len(facts.failed),
        ),
        parked=_parked(facts),
        reason=shown.reason,
        problem=shown.problem,
        ends=_ends(ends) if ends is not None else None,
        waits=_waits(facts.own),
        start=_start(facts.own),
        crashes=record.crashes if record is not None else 0,
        progress=_progress(facts, is_live=is_live, in_proof=in_proof),
        serving=_serving(facts),
        rolled_back=back,
        in_proof=in_proof,
        notes=notes,
        batching=_batching(batching),
        sample_problem=sample_problem,
    )


def _progress(facts: Facts, *, is_live: bool, in_proof: bool) -> str:
    if not is_live or facts.up_to_date < facts.wanted.replicas:
        return wording.progress(facts.own)
    return "its change-over is being proved" if in_proof else ""


def _unwanted(api: ApiKey, of_api: SeenApi, ingress_url: str) -> ApiStatus:
    """An api that is not wanted any more but still there."""
    draining = sum(slot.state is SlotState.DRAINING for slot in of_api.slots)
    ready = sum(slot.ready for slot in of_api.slots)
    deployment, name = split_api_key(api)
    return ApiStatus(
        deployment=deployment,
        name=name,
        status=Status.STOPPING,
        endpoint=ingress_url + route_path(api),
        version="",
        last_updated=None,
        replicas=ReplicaCounts(ready=ready, stale=ready),
        progress=f"{draining} draining" if draining else "",
    )


# ---- the door --------------------------------------------------------------------------------------------------------


def _closed_door(seen: Snapshot) -> Problem | None:
    """Why no request reaches any node, if that is so: an ingress that could not be started says why."""
    doors = [node.ingress for node in seen.nodes if node.ingress is not None]
    if not doors or any(door.up or door.problem is None for door in doors):
        return None
    return doors[0].problem


def _behind(closed: Problem | None, found: Standing, ready: int) -> Standing:
    """What holds once the door is looked at, too."""
    if closed is None or not ready:
        return found
    return Standing(Status.ERROR, f"no request reaches it: {closed.message}", closed)


# ---- notes -----------------------------------------------------------------------------------------------------------


def _rollout_notes(facts: Facts, found: Standing) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if found.status is not Status.LIVE:
        notes = facts.case.decision.notes
    elif facts.placing:
        placed = len(facts.own) - len(facts.placing)
        notes = (f"capped: {placed} of {facts.wanted.replicas} replicas, {wording.room(facts.placing)}",)
    return tuple(note for note in notes if note != found.reason)


def _rolled_back(wanted: WantedApi) -> str:
    """When and why the api went back to what is wanted, and what that means for the next deploy."""
    back = wanted.rolled_back
    if back is None or wanted.failed is not None:
        return ""
    why = f": {back.reason}" if back.reason else ""
    then = back.excuse or "deploys leave it until its files change, or --force"
    return f"on {date_and_time(back.wall_s)}{why}; {then}"


def _shared_cpu(seen: Snapshot, parked: Collection[ReplicaId]) -> dict[NodeId, str]:
    """Of each node where more cpu is requested than there is, that it is so. Who is parked takes none."""
    requested_millis: Counter[NodeId] = Counter()
    for lease in seen.leases:
        asked = lease.request
        if lease.node is not None and lease.state is LeaseState.GRANTED and not asked.surge:
            requested_millis[lease.node] += 0 if asked.replica in parked else asked.resources.cpu_millis
    notes = {}
    for node in seen.nodes:
        requested, there = requested_millis[node.name], node.node.cpu_millis
        if requested > there:
            notes[node.name] = f"cpu is shared: {requested}m requested of the {there}m of node {node.name}"
    return notes


# ---- what replicas say -----------------------------------------------------------------------------------------------


def _sample_problem(reports: Sequence[ReplicaReport]) -> Problem | None:
    """What replicas found wrong with a sample that guards nothing."""
    for report in reports:
        for warning in report.warnings:
            if warning.reference in _OF_SAMPLES:
                return warning
    return None


def _batching_decision(wanted: WantedApi, reports: Sequence[ReplicaReport], known: Known) -> BatchingDecision:
    """What replicas do about batches; where that differs, because their runtimes do, what ends it."""
    says = {report.batching.runtime for report in reports if report.batching is not None}
    runtimes = sorted(says - {""}) or [""]
    decisions = [known.decision(wanted.build, runtime) for runtime in runtimes]
    return min(decisions, key=lambda decision: (decision.disagreement is None, decision.order.batches))


def _batching(decision: BatchingDecision) -> Batching:
    verdict, stop = decision.verdict, decision.stop
    seen_in = stop if decision.disagreement is not None else None
    return Batching(
        batches=decision.order.batches,
        text=decision.text,
        mode=decision.mode,
        runtime=decision.runtime,
        proof=verdict.proof if verdict is not None else None,
        trial=verdict.trial if verdict is not None else None,
        disagreement=decision.disagreement,
        disagreed=rfc3339(seen_in.wall_s) if seen_in is not None else None,
        disagreed_in=seen_in.replica if seen_in is not None else "",
    )


def _waits(own: Sequence[Slot]) -> Waits | None:
    """Of those that start the one that has been at the same step for longest."""
    starting = [slot.report for slot in own if slot.state is SlotState.STARTING and slot.report is not None]
    waiting = [report for report in starting if report.got_on_wall_s]
    if not waiting:
        return None
    longest = min(waiting, key=lambda report: report.got_on_wall_s)
    return Waits(
        replica=longest.replica,
        doing=longest.progress or longest.phase,
        since=rfc3339(longest.got_on_wall_s),
        until=rfc3339(longest.given_up_wall_s),
    )


def _parked(facts: Facts) -> Parked | None:
    slot, until_wall_s = facts.case.decision.parked, facts.wanted.watched_until_wall_s
    if slot is None or slot.report is None or until_wall_s is None:
        return None
    return Parked(replica=slot.replica, version=short(slot.report.version), until=rfc3339(until_wall_s))


def _start(own: Sequence[Slot]) -> StartStatus | None:
    """Of those that start the first one, else of those that are ready the last one whose start is known."""
    reports = [(slot, slot.report) for slot in own if slot.report is not None]
    starting = [report for slot, report in reports if slot.state is SlotState.STARTING and report.started_wall_s]
    if starting:
        first = min(starting, key=lambda report: report.started_wall_s)
        since_s = first.started_wall_s + sum(step.seconds for step in first.steps)
        return StartStatus(replica=first.replica, steps=first.steps, doing=first.phase, since=rfc3339_ms(since_s))
    ready = [report for slot, report in reports if slot.ready and report.steps]
    if not ready:
        return None
    last = max(ready, key=lambda report: report.started_wall_s)
    return StartStatus(replica=last.replica, steps=last.steps)


def _ends(record: RunRecord) -> Ends:
    last = record.last_exit
    return Ends(
        count=record.row.count,
        since=rfc3339(record.row.since_wall_s),
        exit_code=last.code if last is not None else None,
        signal=last.signal if last is not None else None,
        last_lines=last.last_lines if last is not None else (),
        request=last.request if last is not None else "",
    )


def _does_not_start(record: RunRecord | None) -> bool:
    """Whether a replica ended before it was ready, and has not been since."""
    return record is not None and record.row.count > 0 and any(slot.failed_starts for slot in record.slots.values())


def _serving(facts: Facts) -> str:
    """8 digits of the version that answers now, when another is wanted."""
    serving = facts.wanted.serving
    if serving is None or not facts.is_another_serving or facts.ready <= facts.up_to_date:
        return ""
    version = short(serving.version)
    return version if version != short(facts.wanted.build.version) else ""
