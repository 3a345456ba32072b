"""
From what is wanted and what is seen to what is done. The head of the system; everything else is hands.

An api's actions come in a sequence that is safe to break off anywhere: what happened is recorded, marks are set, room
is asked for, replicas are started, routes are set, and only then does anything go. A replica goes in two steps: out of
the route, and once every node reports a route without it, drained. So a request never meets a draining replica, and
an order that got lost, came late or came twice never takes out a second one: the route remembers who was chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from cortex.ids import ApiKey, ReplicaId, Revision, route_path
from cortex.planning import backoff, guarding
from cortex.planning.actions import (
    AcquireLease,
    Action,
    MarkFailed,
    MarkLive,
    MarkServing,
    Note,
    OrderNode,
    Plan,
    RecordExit,
    RecordReady,
    RecoverLease,
    ReleaseLease,
)
from cortex.planning.batching import Known
from cortex.planning.model import Desired, LeaseState, Rules, RunRecord, SlotRecord, Snapshot, WantedApi
from cortex.planning.rollout import Decision, decide, goal_and_fallback
from cortex.planning.routes import remove_route, set_route, wanted_route
from cortex.planning.slots import NOTHING_SEEN, SeenApi, Slot, SlotState, join, of_revision
from cortex.wire.build import BuildSpec, Resources
from cortex.wire.orders import DrainReplica, ForgetReplica, StartReplica

DEFAULT_RULES = Rules()
_Records = Mapping[tuple[ApiKey, Revision], RunRecord]


def plan(desired: Desired, seen: Snapshot, rules: Rules = DEFAULT_RULES) -> Plan:
    """
    Return the actions that bring what runs to what is wanted.

    Same inputs, same plan; an empty plan means settled, or that the next step is an event to wait for. Reads no
    clock and starts nothing: time is `seen.now_s`.
    """
    # Before anything else, also while some node is silent: answers may be wrong for as long as nobody is told.
    stops = guarding.stops_to_record(desired, seen)
    known = guarding.known_with(desired, stops)
    first: tuple[Action, ...] = (*stops, *guarding.batching_orders(desired, seen, known))
    if not seen.settled:
        text = "not every node has reported since the control plane started"
        return Plan(actions=first, notes=tuple(Note(api=wanted.api, text=text) for wanted in desired.apis))
    by_api = join(seen)
    records = {(record.api, record.revision): record for record in desired.records}
    older_s = 0.0 if desired.as_of_s is None else max(0.0, seen.now_s - desired.as_of_s)
    actions: list[Action] = [*first]
    notes: list[Note] = []
    wakes: list[float] = []
    wanted_keys = set()
    for wanted in sorted(desired.apis, key=lambda wanted: wanted.api):
        wanted_keys.add(wanted.api)
        of_api = by_api.get(wanted.api, NOTHING_SEEN)
        if _is_settled(wanted, of_api, records, seen):
            continue
        planned = _plan_api(wanted, of_api, records, known, older_s, seen, rules)
        actions += planned.actions
        notes += planned.notes
        if planned.wake_after_s is not None:
            wakes.append(planned.wake_after_s)
    for api in sorted(by_api.keys() - wanted_keys):
        actions += _remove_api(api, by_api[api], seen, rules)
    return Plan(actions=tuple(actions), notes=tuple(notes), wake_after_s=min(wakes, default=None))


def _is_settled(wanted: WantedApi, of_api: SeenApi, records: _Records, seen: Snapshot) -> bool:
    """
    Whether it is plain at a glance that nothing is to be done; False may still lead to an empty plan.

    Only to save time: of hundreds of apis all but a few are at rest at any moment.
    """
    build = wanted.build
    if (
        wanted.failed is not None
        or wanted.live_wall_s is None
        or len(of_api.slots) != wanted.replicas
        or len(of_api.routes) != len(seen.nodes)
    ):
        return False
    for slot in of_api.slots:
        lease = slot.lease
        if (
            not slot.ready
            or lease is None
            or lease.surge
            or lease.state is not LeaseState.GRANTED
            or not of_revision(slot, build.revision)
        ):
            return False
    record = records.get((wanted.api, build.revision))
    if record is not None and any(slot.failed_starts for slot in record.slots.values()):
        return False
    targets = tuple(sorted(slot.replica for slot in of_api.slots))
    for _node, route in of_api.routes:
        if (
            route.targets != targets
            or route.version != build.version
            or not route.hold
            or route.path != (wanted.path or route_path(wanted.api))
            or route.timeout_s != wanted.timeout_s
            or route.max_body_bytes != wanted.max_body_bytes
            or route.retry != wanted.retry
        ):
            return False
    return True


def _plan_api(
    wanted: WantedApi,
    of_api: SeenApi,
    stored: _Records,
    known: Known,
    older_s: float,
    seen: Snapshot,
    rules: Rules,
) -> Plan:
    """The actions for one wanted api."""
    exits = tuple(_exits_to_record(wanted, of_api, stored))
    records = _with_exits(wanted, stored, exits, older_s)
    readies = tuple(_readies_to_record(wanted, of_api, records))

    if wanted.failed is None and not _was_live(wanted):
        problem = backoff.reason_to_give_up(records.get(wanted.build.revision))
        if problem is not None:
            mark = MarkFailed(api=wanted.api, revision=wanted.build.revision, problem=problem)
            return Plan(actions=(*exits, mark))

    def record_of(slot: Slot) -> SlotRecord | None:
        for record in records.values():
            if of_revision(slot, record.revision):
                return record.slots.get(slot.replica)
        return None

    fresh = {exit_.replica for exit_ in exits}

    def wait_left_s(slot: Slot) -> float:
        # Exits recorded in this very plan are of now; stored ages have grown since they were loaded.
        return backoff.wait_left_s(record_of(slot), older_s=0.0 if slot.replica in fresh else older_s)

    fallback = goal_and_fallback(wanted)[1]
    decision = decide(
        wanted,
        of_api.slots,
        wait_left_s,
        fallback_fails=fallback is not None and _fails(records.get(fallback.revision)),
    )
    route, route_changes_after_s = wanted_route(wanted, decision, wait_left_s, rules)
    starts = _starts(wanted, decision, record_of, wait_left_s, known, seen)
    actions: tuple[Action, ...] = (
        *exits,
        *readies,
        *_marks(wanted, decision),
        *_room(decision, of_api),
        *starts.orders,
        *set_route(seen.nodes, of_api, route, anyway=_drains(decision.leave)),
        *_farewell(decision.leave, rules),
    )
    wakes = [*starts.waits_s, *(() if route_changes_after_s is None else (route_changes_after_s,))]
    notes = tuple(Note(api=wanted.api, text=text) for text in (*decision.notes, *starts.notes))
    return Plan(actions=actions, notes=notes, wake_after_s=min(wakes, default=None))


def _remove_api(api: ApiKey, of_api: SeenApi, seen: Snapshot, rules: Rules) -> Iterator[Action]:
    """An api that nobody wants: its route goes, then its replicas."""
    leave = tuple(slot for slot in of_api.slots if slot.state is not SlotState.DRAINING or slot.lost)
    yield from remove_route(seen.nodes, api, of_api, anyway=_drains(leave))
    yield from _farewell(leave, rules)


# ---- what happened ---------------------------------------------------------------------------------------------------


def _exits_to_record(wanted: WantedApi, of_api: SeenApi, stored: _Records) -> Iterator[RecordExit]:
    """Exits that nobody asked for and that are not recorded yet, of the builds whose runs are remembered."""
    for slot in of_api.slots:
        report = slot.report
        if slot.state is not SlotState.EXITED or report is None or report.exit is None or slot.drained:
            continue
        if not any(report.revision == build.revision for build in _builds(wanted)):
            continue
        record = stored.get((wanted.api, report.revision))
        known = record.slots.get(slot.replica) if record is not None else None
        if known is None or known.attempt < report.attempt:
            yield RecordExit(
                api=wanted.api,
                revision=report.revision,
                replica=slot.replica,
                attempt=report.attempt,
                was_ready=report.was_ready,
                exit=report.exit,
            )


def _with_exits(
    wanted: WantedApi, stored: _Records, exits: tuple[RecordExit, ...], older_s: float
) -> dict[Revision, RunRecord]:
    """The run records of an api as they will be once the exits are recorded."""
    records = {}
    for build in _builds(wanted):
        record = stored.get((wanted.api, build.revision))
        of_build = [exit_ for exit_ in exits if exit_.revision == build.revision]
        if of_build:
            slots = dict(record.slots) if record is not None else {}
            for exit_ in of_build:
                known = backoff.aged(slots.get(exit_.replica, SlotRecord()), older_s)
                slots[exit_.replica] = backoff.after_exit(known, exit_.attempt, exit_.exit, was_ready=exit_.was_ready)
            record = RunRecord(api=wanted.api, revision=build.revision, slots=slots)
        if record is not None:
            records[build.revision] = record
    return records


def _readies_to_record(
    wanted: WantedApi, of_api: SeenApi, records: Mapping[Revision, RunRecord]
) -> Iterator[RecordReady]:
    """Replicas that are ready after failed starts of theirs."""
    for slot in of_api.slots:
        report = slot.report
        if not slot.ready or report is None or report.revision not in records:
            continue
        known = records[report.revision].slots.get(slot.replica)
        if known is not None and known.failed_starts and known.attempt < report.attempt:
            yield RecordReady(api=wanted.api, revision=report.revision, replica=slot.replica)


def _builds(wanted: WantedApi) -> tuple[BuildSpec, ...]:
    """The builds whose runs are remembered."""
    if wanted.serving is None or wanted.serving.revision == wanted.build.revision:
        return (wanted.build,)
    return (wanted.build, wanted.serving)


def _was_live(wanted: WantedApi) -> bool:
    """Whether the wanted build has been live at full size: then it is never given up."""
    if wanted.live_wall_s is not None:
        return True
    return wanted.serving_was_live and wanted.serving is not None and wanted.serving.revision == wanted.build.revision


def _fails(record: RunRecord | None) -> bool:
    """Whether a build's replicas end by themselves again and again."""
    return record is not None and any(backoff.restart_delay_s(slot) > 0 for slot in record.slots.values())


# ---- what follows ----------------------------------------------------------------------------------------------------


def _marks(wanted: WantedApi, decision: Decision) -> Iterator[Action]:
    goal = decision.goal
    if goal is None or goal.revision != wanted.build.revision:
        return
    ready = sum(slot.ready and not slot.lost for slot in decision.stay if decision.is_new(slot))
    alone = all(decision.is_new(slot) for slot in decision.stay)
    as_full_as_can_be = (
        alone and ready >= max(1, decision.floor, wanted.min_replicas) and not decision.leave and not decision.add
    )
    if wanted.live_wall_s is None and (ready >= wanted.replicas or as_full_as_can_be):
        yield MarkLive(api=wanted.api, revision=goal.revision)
    elif ready and alone and (wanted.serving is None or wanted.serving.revision != goal.revision):
        yield MarkServing(api=wanted.api, revision=goal.revision)


def _room(decision: Decision, of_api: SeenApi) -> Iterator[Action]:
    """Leases to ask for, and those to put right."""
    for slot in decision.stay:
        build, report = decision.build_of(slot), slot.report
        unleased = slot.lease is None or slot.lease.state is LeaseState.PENDING
        if unleased and report is not None and slot.node is not None and not slot.stranger:
            resources = report.resources if build is None else build.resources
            yield RecoverLease(
                replica=slot.replica, api=report.api, resources=resources, node=slot.node, devices=report.devices
            )
    for renewal in decision.renew:
        slot = renewal.slot
        assert slot.lease is not None
        yield AcquireLease(
            replica=slot.replica,
            api=slot.lease.api,
            resources=slot.lease.resources,
            surge=renewal.surge,
            minimum=renewal.minimum,
            successor_of_cpu_millis=renewal.successor_of_cpu_millis,
        )
    for new in decision.add:
        yield AcquireLease(
            replica=new.replica,
            api=new.build.api,
            resources=_resources(new.build, of_api),
            surge=new.surge,
            minimum=new.minimum,
            successor_of_cpu_millis=new.successor_of_cpu_millis,
        )


def _resources(build: BuildSpec, of_api: SeenApi) -> Resources:
    """What a replica asks for; memory that nobody stated counts as the most that the version was seen to use."""
    if build.resources.mem_bytes is not None:
        return build.resources
    peak = max(
        (
            slot.report.peak_rss_bytes
            for slot in of_api.slots
            if slot.report is not None and slot.report.version == build.version
        ),
        default=0,
    )
    if not peak:
        return build.resources
    return Resources(cpu_millis=build.resources.cpu_millis, mem_bytes=peak, gpus=build.resources.gpus)


class _Starts(msgspec.Struct, frozen=True, kw_only=True):
    """Start orders of an api, and what those that must wait wait for."""

    orders: tuple[OrderNode, ...]
    waits_s: tuple[float, ...]
    notes: tuple[str, ...]


def _starts(
    wanted: WantedApi,
    decision: Decision,
    record_of: Callable[[Slot], SlotRecord | None],
    wait_left_s: Callable[[Slot], float],
    known: Known,
    seen: Snapshot,
) -> _Starts:
    orders: list[OrderNode] = []
    waits_s: list[float] = []
    notes: list[str] = []
    nodes = {node.node for node in seen.nodes}
    for slot in decision.stay:
        build = decision.build_of(slot)
        if slot.state not in (SlotState.WAITING, SlotState.EXITED) or build is None:
            continue
        if slot.lease is None or slot.lease.state is not LeaseState.GRANTED or slot.node is None:
            continue
        if slot.surge and decision.crowded and not slot.has_been_ready:
            notes.append(f"{slot.replica} starts once others have left")
            continue
        record = record_of(slot)
        left_s = wait_left_s(slot)
        if slot.node not in nodes:
            notes.append(f"the agent of node {slot.node} has not reported yet")
        elif left_s:
            waits_s.append(left_s)
            notes.append(_waiting_text(slot.replica, record, left_s))
        else:
            attempt = 1 + max(record.attempt if record else 0, slot.report.attempt if slot.report else 0)
            order = StartReplica(
                replica=slot.replica,
                attempt=attempt,
                build=_unguarded(build) if _has_served(wanted, build) else build,
                devices=slot.lease.devices,
                batches=known.decision(build).order,
            )
            orders.append(OrderNode(node=slot.node, api=build.api, order=order))
    return _Starts(orders=tuple(orders), waits_s=tuple(waits_s), notes=tuple(notes))


def _has_served(wanted: WantedApi, build: BuildSpec) -> bool:
    """Whether a build has been live at full size: its sample guards nothing any more."""
    if build.revision == wanted.build.revision and _was_live(wanted):
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
    failed = record.failed_starts if record is not None else 0
    what = f"failed {failed} starts in a row" if failed else "keeps crashing"
    return f"{replica} {what}, tried again in {left_s:.1f} s"


# ---- farewell --------------------------------------------------------------------------------------------------------


def _farewell(leave: tuple[Slot, ...], rules: Rules) -> Iterator[Action]:
    """Take each slot that leaves one step further; those still in a route only wait to be out of it."""
    orders: list[Action] = []
    releases: list[Action] = []
    for slot in leave:
        if slot.routed and not slot.stranger:  # of a stranger's name, the route means the one with the lease
            continue
        if slot.report is not None and slot.node is not None:
            api = slot.report.api
            if slot.ready:
                drain = DrainReplica(replica=slot.replica, timeout_s=rules.drain_timeout_s)
                orders.append(OrderNode(node=slot.node, api=api, order=drain))
                continue
            orders.append(OrderNode(node=slot.node, api=api, order=ForgetReplica(replica=slot.replica)))
        if slot.lease is not None:
            releases.append(ReleaseLease(replica=slot.replica, api=slot.lease.api))
    yield from orders
    yield from releases


def _drains(leave: tuple[Slot, ...]) -> bool:
    """
    Whether something is drained now.

    Then the route is ordered in the same plan even where it looks right: what is seen may be out of date.
    """
    return any(slot.ready and not slot.routed for slot in leave)
