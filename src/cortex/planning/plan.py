"""
From what is wanted and what is seen to what is done. The head of the system; everything else is hands.

An api's actions come in a sequence that is safe to break off anywhere: what happened is recorded, marks are set, room
is asked for, replicas are started, routes are set, and only then does anything go. A replica goes in two steps: out of
the route, and once every node has a route without it, in its ingress too, drained. So a request never meets a draining
replica, and an order that got lost, came late or came twice never takes out a second one: the route remembers who was
chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import msgspec

from cortex.ids import ApiKey, NodeId, ReplicaId
from cortex.planning import guarding
from cortex.planning.actions import (
    AcquireLease,
    Action,
    GoBack,
    MarkAwake,
    MarkFailed,
    MarkLive,
    MarkServing,
    Note,
    OrderNode,
    Plan,
    RecordReady,
    RecoverLease,
    ReleaseLease,
)
from cortex.planning.assessment import Assessment, Case
from cortex.planning.model import Lease, LeaseState, Rules, SlotRecord, Snapshot, WantedApi
from cortex.planning.rollout import Decision
from cortex.planning.routes import remove_route, set_route, wanted_route
from cortex.planning.slots import SeenApi, Slot, SlotState
from cortex.wire.build import BuildSpec
from cortex.wire.orders import DrainReplica, ForgetReplica, HoldSlot, StartReplica
from cortex.wire.reports import AgentReport


def plan(assessment: Assessment) -> Plan:
    """
    Return the actions that bring what runs to what is wanted.

    Same assessment, same plan; an empty plan means settled, or that the next step is an event to wait for.
    """
    desired, seen = assessment.desired, assessment.seen
    # Before anything else, also while some node is silent: answers may be wrong for as long as nobody is told.
    actions: list[Action] = [*assessment.stops, *guarding.batching_orders(desired, seen, assessment.known)]
    if not seen.settled:
        text = "not every node has reported since the control plane started"
        return Plan(
            actions=tuple(actions), notes=tuple(Note(api=case.wanted.api, text=text) for case in assessment.cases)
        )
    notes: list[Note] = []
    wakes: list[float] = []
    for case in assessment.cases:
        planned = _plan_case(case, assessment)
        actions += planned.actions
        notes += planned.notes
        if planned.wake_after_s is not None:
            wakes.append(planned.wake_after_s)
    for api, of_api in assessment.unwanted:
        actions += _remove_api(api, of_api, seen, assessment.rules)
    return Plan(actions=tuple(actions), notes=tuple(notes), wake_after_s=min(wakes, default=None))


def _plan_case(case: Case, assessment: Assessment) -> Plan:
    """The actions for one wanted api."""
    wanted, decision, runs = case.wanted, case.decision, case.runs
    if case.given_up is not None and case.goes_back_to is not None:
        back = GoBack(api=wanted.api, revision=wanted.build.revision, to=case.goes_back_to, problem=case.given_up)
        return Plan(actions=(*case.exits, back))
    if case.given_up is not None:
        mark = MarkFailed(api=wanted.api, revision=wanted.build.revision, problem=case.given_up)
        return Plan(actions=(*case.exits, mark))
    nodes, rules = assessment.seen.nodes, assessment.rules
    route, route_changes_after_s = wanted_route(wanted, decision, runs.wait_left_s, rules, says_where=len(nodes) > 1)
    starts = _starts(case, assessment)
    actions: tuple[Action, ...] = (
        *case.exits,
        *_readies_to_record(case),
        *_marks(wanted, decision),
        *_room(decision),
        *starts.orders,
        *_sleep(wanted, decision, nodes, assessment.desired.leaving),
        *(set_route(case.seen, route, anyway=_drains(decision.leave, case.seen)) if nodes else ()),
        *_farewell(decision.leave, case.seen, rules),
        *_spared_room(wanted, decision),
    )
    wakes = [*starts.waits_s, *(() if route_changes_after_s is None else (route_changes_after_s,))]
    notes = tuple(Note(api=wanted.api, text=text) for text in (*decision.notes, *starts.notes))
    return Plan(actions=actions, notes=notes, wake_after_s=min(wakes, default=None))


def _remove_api(api: ApiKey, of_api: SeenApi, seen: Snapshot, rules: Rules) -> Iterator[Action]:
    """An api that nobody wants: its route goes, then its replicas."""
    leave = tuple(slot for slot in of_api.slots if slot.state is not SlotState.DRAINING or slot.lost)
    if seen.nodes:
        yield from remove_route(api, of_api, anyway=_drains(leave, of_api))
    yield from _farewell(leave, of_api, rules)


# ---- what follows ----------------------------------------------------------------------------------------------------


def _readies_to_record(case: Case) -> Iterator[RecordReady]:
    """Replicas that are ready after failed starts of theirs."""
    for slot in case.seen.slots if case.runs.records else ():
        report = slot.report
        if not slot.ready or report is None or report.revision not in case.runs.records:
            continue
        known = case.runs.records[report.revision].slots.get(slot.replica)
        if known is not None and known.failed_starts and known.attempt < report.attempt:
            yield RecordReady(api=case.wanted.api, revision=report.revision, replica=slot.replica)


def _marks(wanted: WantedApi, decision: Decision) -> Iterator[Action]:
    goal = decision.goal
    if goal is None or goal.revision != wanted.build.revision:
        return
    serves = wanted.serving is not None and wanted.serving.revision == goal.revision
    if serves and wanted.live_wall_s is not None:
        return
    ready = sum(slot.ready and not slot.lost for slot in decision.stay if decision.is_new(slot))
    alone = all(decision.is_new(slot) for slot in decision.stay)
    as_full_as_can_be = (
        alone and ready >= max(1, decision.floor, wanted.min_replicas) and not decision.leave and not decision.add
    )
    # Not the number of this moment, which may move on for as long as the rollout takes; unless there are to be fewer.
    enough = min(wanted.rollout_replicas, wanted.replicas)
    if wanted.live_wall_s is None and (ready >= enough or as_full_as_can_be):
        yield MarkLive(api=wanted.api, revision=goal.revision)
    elif ready and alone and not serves:
        yield MarkServing(api=wanted.api, revision=goal.revision)


def _room(decision: Decision) -> Iterator[Action]:
    """Leases to ask for, and those to put right."""
    for slot in decision.stay:
        report = slot.report
        if slot.lease is not None and slot.lease.state is not LeaseState.PENDING:
            continue
        if report is not None and slot.node is not None and not slot.asleep and not slot.stranger:
            yield RecoverLease(lease=Lease.of_running(report, slot.node))
    for request in (*decision.renew, *decision.add):
        yield AcquireLease(request=request)


class _Starts(msgspec.Struct, frozen=True, kw_only=True):
    """Start orders of an api, and what those that must wait wait for."""

    orders: tuple[OrderNode, ...]
    waits_s: tuple[float, ...]
    notes: tuple[str, ...]


def _starts(case: Case, assessment: Assessment) -> _Starts:
    decision, runs = case.decision, case.runs
    orders: list[OrderNode] = []
    waits_s: list[float] = []
    notes: list[str] = []
    for slot in decision.stay:
        if not decision.starts(slot):
            continue
        build = decision.build_of(slot)
        if build is None or slot.lease is None or slot.lease.state is not LeaseState.GRANTED or slot.node is None:
            continue
        if slot.surge and decision.crowded and not slot.has_been_ready:
            notes.append(f"{slot.replica} starts once others have left")
            continue
        record = runs.of_slot(slot)
        left_s = runs.wait_left_s(slot)
        if slot.node not in assessment.reachable:
            notes.append(f"the agent of node {slot.node} has not reported yet")
        elif left_s:
            waits_s.append(left_s)
            notes.append(_waiting_text(slot.replica, record, left_s))
        else:
            attempt = 1 + max(record.attempt if record else 0, slot.report.attempt if slot.report else 0)
            order = StartReplica(
                replica=slot.replica,
                attempt=attempt,
                build=_unguarded(build) if _has_served(case, build) else build,
                devices=slot.lease.devices,
                batches=assessment.known.decision(build).order,
            )
            orders.append(OrderNode(node=slot.node, api=build.api, order=order))
    return _Starts(orders=tuple(orders), waits_s=tuple(waits_s), notes=tuple(notes))


def _sleep(
    wanted: WantedApi, decision: Decision, nodes: tuple[AgentReport, ...], leaving: Collection[NodeId]
) -> Iterator[Action]:
    """A slot to be held by an api that falls asleep, and its waking once somebody has knocked there."""
    if not wanted.scale.asleep:
        return
    waits_s = [slot.report.knocked_age_s or 0.0 for slot in decision.stay if slot.knocked and slot.report is not None]
    if waits_s:
        yield MarkAwake(api=wanted.api, waited_s=max(waits_s))
    can = [node.name for node in nodes if node.name not in leaving]
    if decision.sleeper is not None and decision.goal is not None and can:
        there = next((slot.node for slot in decision.stay if slot.node in can), can[0])
        order = HoldSlot(replica=decision.sleeper, build=decision.goal)
        yield OrderNode(node=there, api=wanted.api, order=order)


def _spared_room(wanted: WantedApi, decision: Decision) -> Iterator[ReleaseLease]:
    """What sleeps needs no room."""
    if wanted.scale.asleep:
        for slot in decision.stay:
            if slot.asleep and slot.lease is not None:
                yield ReleaseLease(replica=slot.replica, api=wanted.api)


def _has_served(case: Case, build: BuildSpec) -> bool:
    """Whether a build has been live at full size: its sample guards nothing any more."""
    wanted = case.wanted
    if build.revision == wanted.build.revision and case.was_live:
        return True
    return wanted.serving_was_live and wanted.serving is not None and wanted.serving.revision == build.revision


def _unguarded(build: BuildSpec) -> BuildSpec:
    """
    A build whose sample only warns.

    The gate keeps what is new from replacing what serves. Here nothing else serves: a sample that was changed since, or
    that needs what is away just now, would keep a replica that died from coming back.
    """
    if build.sample is None or not build.sample.gate:
        return build
    return msgspec.structs.replace(build, sample=msgspec.structs.replace(build.sample, gate=False))


def _waiting_text(replica: ReplicaId, record: SlotRecord | None, left_s: float) -> str:
    fails = record is not None and record.failed_starts
    what = f"failed {fails} starts in a row" if fails else "keeps crashing"
    return f"{replica} {what}, tried again in {left_s:.1f} s"


# ---- farewell --------------------------------------------------------------------------------------------------------


def _farewell(leave: tuple[Slot, ...], seen: SeenApi, rules: Rules) -> Iterator[Action]:
    """Take each slot that leaves one step further; those still in a route only wait to be out of it."""
    orders: list[Action] = []
    releases: list[Action] = []
    for slot in leave:
        if slot.routed and not slot.stranger:  # of a stranger's name, the route means the one with the lease
            continue
        if slot.report is not None and slot.node is not None:
            api = slot.report.api
            if slot.ready:
                if not is_out(slot, seen):
                    continue
                drain = DrainReplica(replica=slot.replica, timeout_s=rules.drain_timeout_s)
                orders.append(OrderNode(node=slot.node, api=api, order=drain))
                continue
            orders.append(OrderNode(node=slot.node, api=api, order=ForgetReplica(replica=slot.replica)))
        if slot.lease is not None:
            releases.append(ReleaseLease(replica=slot.replica, api=slot.lease.request.api))
    yield from orders
    yield from releases


def _drains(leave: tuple[Slot, ...], seen: SeenApi) -> bool:
    """
    Whether something is drained now.

    Then the route is ordered in the same plan even where it looks right: what is seen may be out of date.
    """
    return any(slot.ready and not slot.routed and is_out(slot, seen) for slot in leave)


def is_out(slot: Slot, seen: SeenApi) -> bool:
    """Whether no other node's ingress has an earlier route; its own agent waits for its own ingress."""
    return not seen.lagging - {slot.node}
