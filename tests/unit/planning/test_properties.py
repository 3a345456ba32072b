"""What holds of every plan, on generated worlds."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.errors import Problem
from cortex.ids import replica_id
from cortex.planning import backoff, rollout
from cortex.planning.actions import (
    AcquireLease,
    Action,
    MarkFailed,
    MarkLive,
    MarkServing,
    OrderNode,
    RecordExit,
    RecordReady,
    RecoverLease,
    ReleaseLease,
    RouteApi,
    UnrouteApi,
)
from cortex.planning.assessment import assess
from cortex.planning.model import (
    Desired,
    Lease,
    LeaseRequest,
    LeaseState,
    RunRecord,
    SlotRecord,
    Snapshot,
    WantedApi,
)
from cortex.planning.plan import plan
from cortex.planning.rollout import SURGE
from cortex.planning.status import statuses
from cortex.testing.builders import (
    API,
    NODE,
    a_build,
    a_replica,
    a_route,
    a_snapshot,
    a_wanted_api,
    an_agent_report,
    an_exit,
)
from cortex.wire.orders import DrainReplica, ForgetReplica, SetRoute, StartReplica
from cortex.wire.reports import Phase, ReplicaReport

BUILDS = tuple(a_build(label) for label in ("v1", "v2", "v3"))
EXITS = (an_exit(), an_exit(signal=9), an_exit(drained=True), an_exit(permanent=True))


@st.composite
def wanted_apis(draw: st.DrawFn) -> WantedApi:
    build = draw(st.sampled_from(BUILDS[:2]))
    serving = draw(st.sampled_from((None, *BUILDS[:2])))
    wanted = a_wanted_api(
        build,
        serving=serving,
        replicas=draw(st.integers(1, 4)),
        live=draw(st.booleans()) if serving == build else False,
        force=draw(st.booleans()),
    )
    if wanted.live_wall_s is None and draw(st.booleans()):
        wanted = msgspec.structs.replace(wanted, failed=Problem(reference="x", message="boom"))
    return wanted


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Desired, Snapshot]:
    """Any state of one api on one node, however it may have come about."""
    wanted = draw(wanted_apis())
    replicas: list[ReplicaReport] = []
    leases: list[Lease] = []
    slots: dict[tuple[int, int], SlotRecord] = {}
    for which, ordinal in draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=6, unique=True)):
        build = BUILDS[which]
        phase = draw(st.sampled_from((None, *Phase)))
        if phase is not None:
            report = a_replica(
                build,
                ordinal,
                phase,
                attempt=draw(st.integers(1, 4)),
                was_ready=draw(st.booleans()) if phase is not Phase.READY else True,
                in_flight=draw(st.integers(0, 2)),
                exit=draw(st.sampled_from(EXITS)) if phase is Phase.EXITED else None,
            )
            replicas.append(report)
        state = draw(st.sampled_from((None, *LeaseState)))
        if state is not None or phase is None:
            state = state or LeaseState.GRANTED
            leases.append(
                Lease(
                    request=LeaseRequest(
                        replica=replica_id(API, build.revision, ordinal),
                        api=API,
                        resources=build.resources,
                        surge=draw(st.booleans()),
                    ),
                    state=state,
                    node=None if state is LeaseState.PENDING else NODE,
                )
            )
        if draw(st.booleans()):
            slots[which, ordinal] = SlotRecord(
                attempt=draw(st.integers(1, 4)),
                failed_starts=draw(st.integers(0, 4)),
                crash_pressure=draw(st.sampled_from((0.0, 5.0, 6.5))),
                last_exit=an_exit(),
                last_exit_age_s=draw(st.sampled_from((0.0, 0.3, 100.0))),
            )
    targets = draw(st.lists(st.sampled_from(replicas), unique_by=lambda r: r.replica)) if replicas else []
    routes = (a_route(wanted, *targets),) if draw(st.booleans()) else ()
    records = tuple(
        RunRecord(
            api=API,
            revision=build.revision,
            slots={replica_id(API, build.revision, o): slot for (w, o), slot in slots.items() if w == which},
        )
        for which, build in enumerate(BUILDS)
    )
    seen = Snapshot(
        now_s=draw(st.sampled_from((0.0, 1000.0))),
        nodes=(an_agent_report(NODE, replicas=tuple(replicas), routes=routes),),
        leases=tuple(leases),
    )
    return Desired(apis=(wanted,), records=records), seen


# ---- safety: something bad never happens -----------------------------------------------------------------------------


@given(worlds())
def test_the_same_world_gives_the_same_plan(world: tuple[Desired, Snapshot]) -> None:
    desired, seen = world
    assert plan(assess(desired, seen)) == plan(assess(desired, seen))
    copy = msgspec.json.decode(msgspec.json.encode(seen), type=Snapshot)
    assert plan(assess(desired, copy)) == plan(assess(desired, seen))


@given(worlds())
def test_the_order_in_which_things_are_reported_does_not_matter(world: tuple[Desired, Snapshot]) -> None:
    desired, seen = world
    (node,) = seen.nodes
    shuffled = msgspec.structs.replace(
        seen,
        nodes=(msgspec.structs.replace(node, replicas=tuple(reversed(node.replicas))),),
        leases=tuple(reversed(seen.leases)),
    )
    assert plan(assess(desired, shuffled)) == plan(assess(desired, seen))


@given(worlds())
def test_nothing_is_done_before_every_node_has_reported(world: tuple[Desired, Snapshot]) -> None:
    desired, seen = world
    assert not plan(assess(desired, msgspec.structs.replace(seen, settled=False))).actions


@given(worlds())
def test_a_drain_comes_after_a_route_without_it_in_the_same_plan(world: tuple[Desired, Snapshot]) -> None:
    route: SetRoute | None = None
    for action in plan(assess(*world)).actions:
        if isinstance(action, RouteApi):
            route = action.route
        if isinstance(action, OrderNode) and isinstance(action.order, DrainReplica):
            assert route is not None
            assert action.order.replica not in route.targets


@given(worlds())
def test_what_leaves_is_seen_out_of_every_route_before_it_is_touched(world: tuple[Desired, Snapshot]) -> None:
    desired, seen = world
    routed = {target for node in seen.nodes for route in node.routes for target in route.targets}
    for action in plan(assess(desired, seen)).actions:
        if isinstance(action, OrderNode) and isinstance(action.order, DrainReplica | ForgetReplica):
            assert action.order.replica not in routed


@given(worlds())
def test_the_route_never_has_fewer_ready_replicas_than_before_and_than_are_wanted(
    world: tuple[Desired, Snapshot],
) -> None:
    desired, seen = world
    (wanted,) = desired.apis
    if wanted.force or (wanted.failed is not None and wanted.serving is None):
        return
    lost = {lease.request.replica for lease in seen.leases if lease.state is LeaseState.LOST}
    pending = sum(lease.state is LeaseState.PENDING and not lease.request.surge for lease in seen.leases)
    (node,) = seen.nodes
    ready = {r.replica for r in node.replicas if r.phase is Phase.READY} - lost
    before = ready & {target for route in node.routes for target in route.targets}
    for action in plan(assess(desired, seen)).actions:
        if isinstance(action, RouteApi):
            after = ready & set(action.route.targets)
            assert len(after) >= min(len(before), wanted.replicas - pending)


@given(worlds())
def test_no_name_is_started_twice_and_none_that_runs(world: tuple[Desired, Snapshot]) -> None:
    desired, seen = world
    (node,) = seen.nodes
    running = {r.replica for r in node.replicas if r.phase not in (Phase.EXITED, Phase.ASLEEP)}
    actions = plan(assess(desired, seen)).actions
    starts = [a.order for a in actions if isinstance(a, OrderNode) and isinstance(a.order, StartReplica)]
    assert len({order.replica for order in starts}) == len(starts)
    assert not running & {order.replica for order in starts}
    attempts = {r.replica: r.attempt for r in node.replicas}
    assert all(order.attempt > attempts.get(order.replica, 0) for order in starts)


@given(worlds())
def test_at_most_one_surge_is_asked_for_and_never_more_than_wanted_plus_one(world: tuple[Desired, Snapshot]) -> None:
    desired, seen = world
    (wanted,) = desired.apis
    asked = [a for a in plan(assess(desired, seen)).actions if isinstance(a, AcquireLease)]
    known = {lease.request.replica for lease in seen.leases} | {r.replica for n in seen.nodes for r in n.replicas}
    new = [a for a in asked if a.request.replica not in known]
    assert sum(a.request.surge for a in new) <= SURGE
    assert len(new) <= wanted.replicas + SURGE


@given(worlds())
def test_what_is_undisturbed_would_be_decided_so_by_the_rules_as_well(world: tuple[Desired, Snapshot]) -> None:
    assert_shortened_rightly(*world)


@given(st.integers(1, 5), st.integers(0, 7), st.integers(0, 5), st.data())
def test_a_number_that_changes_is_followed_as_by_the_rules(
    n: int, there: int, minimum: int, data: st.DataObject
) -> None:
    build = BUILDS[0]
    wanted = a_wanted_api(build, replicas=n, min_replicas=minimum, live=True)
    ordinals = data.draw(st.lists(st.integers(0, 9), min_size=there, max_size=there, unique=True))
    reports = [a_replica(build, ordinal, in_flight=data.draw(st.integers(0, 2))) for ordinal in ordinals]
    beyond = a_replica(build, data.draw(st.integers(0, 9)))
    seen = a_snapshot(*reports, routes=(a_route(wanted, *reports),))
    seen = msgspec.structs.replace(seen, beyond=frozenset({beyond.replica}))
    assert_shortened_rightly(Desired(apis=(wanted,)), seen)
    assert bool(plan(assess(Desired(apis=(wanted,)), seen)).actions) is (n != there)


def assert_shortened_rightly(desired: Desired, seen: Snapshot) -> None:
    shortened = assess(desired, seen).cases
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "is_undisturbed", lambda *_: False)
        assert assess(desired, seen).cases == shortened


@given(worlds())
def test_plans_and_statuses_of_any_world_can_be_told(world: tuple[Desired, Snapshot]) -> None:
    desired, seen = world
    assert plan(assess(desired, seen)).describe()
    assert statuses(assess(desired, seen))[API].status


# ---- liveness: something good happens --------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=200)
@given(worlds())
def test_applied_again_and_again_plans_come_to_rest(world: tuple[Desired, Snapshot]) -> None:
    """Each plan is carried out at once by a perfect engine and a perfect node; in the end nothing is left to do."""
    desired, seen = world
    desired = msgspec.structs.replace(desired, as_of_s=seen.now_s)
    for _ in range(60):
        found = plan(assess(desired, seen))
        before = (desired, seen)
        desired, seen = carried_out(desired, seen, found.actions)
        if not found.actions and found.wake_after_s is None and (desired, seen) == before:
            break
        seen = msgspec.structs.replace(seen, now_s=seen.now_s + 100.0)
    else:
        raise AssertionError(plan(assess(desired, seen)).describe())
    (wanted,) = desired.apis
    (node,) = seen.nodes
    goal = wanted.serving if wanted.failed is not None else wanted.build
    expected = [(goal.revision, Phase.READY)] * wanted.replicas if goal is not None else []
    assert [(replica.revision, replica.phase) for replica in node.replicas] == expected
    assert {lease.request.replica for lease in seen.leases} == {replica.replica for replica in node.replicas}


def carried_out(desired: Desired, seen: Snapshot, actions: tuple[Action, ...]) -> tuple[Desired, Snapshot]:
    """The world some time after a plan, where room is plenty and replicas are ready or gone at once."""
    (wanted,), (node,) = desired.apis, seen.nodes
    records = {record.revision: record for record in desired.records}
    leases = {lease.request.replica: lease for lease in seen.leases}
    replicas = {replica.replica: replica for replica in node.replicas}
    routes = {route.api: route for route in node.routes}
    for action in actions:
        match action:
            case RecordExit(revision=revision, replica=name):
                record = records.get(revision, RunRecord(api=API, revision=revision))
                slot = backoff.after_exit(
                    record.slots.get(name, SlotRecord()), action.attempt, action.exit, was_ready=action.was_ready
                )
                records[revision] = msgspec.structs.replace(record, slots={**record.slots, name: slot})
            case RecordReady(revision=revision, replica=name):
                slot = msgspec.structs.replace(records[revision].slots[name], failed_starts=0)
                slots = {**records[revision].slots, name: slot}
                records[revision] = msgspec.structs.replace(records[revision], slots=slots)
            case MarkServing():
                wanted = msgspec.structs.replace(wanted, serving=wanted.build, serving_was_live=False)
            case MarkLive():
                wanted = msgspec.structs.replace(
                    wanted, serving=wanted.build, serving_was_live=True, live_wall_s=1.0, failed=None
                )
            case MarkFailed(problem=problem):
                wanted = msgspec.structs.replace(wanted, failed=problem)
            case AcquireLease() | RecoverLease():
                request = action.request if isinstance(action, AcquireLease) else action.lease.request
                leases[request.replica] = Lease(request=request, state=LeaseState.GRANTED, node=NODE)
            case ReleaseLease(replica=name):
                leases.pop(name, None)
            case OrderNode(order=StartReplica() as order):
                replicas[order.replica] = a_replica(
                    order.build, int(order.replica.rpartition(".")[2]), attempt=order.attempt
                )
            case OrderNode(order=DrainReplica(replica=name)):
                replicas[name] = drained(replicas[name])
            case OrderNode(order=ForgetReplica(replica=name)):
                replicas.pop(name, None)
            case RouteApi(route=route):
                routes[route.api] = route
            case UnrouteApi(api=api):
                routes.pop(api, None)
    node = msgspec.structs.replace(
        node, replicas=tuple(moved_on(replica) for replica in replicas.values()), routes=tuple(routes.values())
    )
    return (
        msgspec.structs.replace(desired, apis=(wanted,), records=tuple(records.values())),
        msgspec.structs.replace(seen, nodes=(node,), leases=tuple(granted(lease) for lease in leases.values())),
    )


def drained(replica: ReplicaReport) -> ReplicaReport:
    return msgspec.structs.replace(replica, phase=Phase.EXITED, exit=an_exit(drained=True))


def moved_on(replica: ReplicaReport) -> ReplicaReport:
    match replica.phase:
        case Phase.STARTING | Phase.LOADING | Phase.WARMING:
            return msgspec.structs.replace(replica, phase=Phase.READY, was_ready=True)
        case Phase.DRAINING:
            return drained(replica)
    return replica


def granted(lease: Lease) -> Lease:
    if lease.state is LeaseState.PENDING:
        return msgspec.structs.replace(lease, state=LeaseState.GRANTED, node=NODE)
    return lease
