"""What planning decides, one behaviour a test, whole plans compared."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cortex.errors import Problem
from cortex.ids import ApiKey, DeviceId, NodeId, ReplicaId, replica_id
from cortex.planning.actions import (
    AcquireLease,
    Action,
    GoBack,
    MarkFailed,
    MarkLive,
    MarkServing,
    OrderNode,
    Plan,
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
from cortex.testing.builders import (
    API,
    NODE,
    a_build,
    a_lease,
    a_replica,
    a_route,
    a_sample,
    a_snapshot,
    a_wanted_api,
    an_agent_report,
    an_exit,
)
from cortex.wire.build import BuildSpec, Resources
from cortex.wire.orders import DrainReplica, ForgetReplica, RoutesRevision, SetRoute, StartReplica
from cortex.wire.reports import ExitReport, IngressReport, Phase, ReplicaReport

V1, V2, V3 = a_build("v1"), a_build("v2"), a_build("v3")


# ---- what is expected, in few words ----------------------------------------------------------------------------------


def name(build: BuildSpec, ordinal: int = 0) -> ReplicaId:
    return replica_id(build.api, build.revision, ordinal)


def acquire(
    build: BuildSpec,
    ordinal: int = 0,
    *,
    surge: bool = False,
    minimum: bool | None = None,
    resources: Resources | None = None,
) -> Action:
    """By default the first of a build is of its minimum, and a surge takes over from one of its own size."""
    return AcquireLease(
        request=LeaseRequest(
            replica=name(build, ordinal),
            api=API,
            resources=resources or build.resources,
            surge=surge,
            minimum=ordinal == 0 if minimum is None else minimum,
        )
    )


def release(build: BuildSpec, ordinal: int = 0) -> Action:
    return ReleaseLease(replica=name(build, ordinal), api=API)


def start(build: BuildSpec, ordinal: int = 0, *, attempt: int = 1, node: NodeId = NODE) -> Action:
    order = StartReplica(replica=name(build, ordinal), attempt=attempt, build=build)
    return OrderNode(node=node, api=API, order=order)


def drain(build: BuildSpec, ordinal: int = 0) -> Action:
    return OrderNode(node=NODE, api=API, order=DrainReplica(replica=name(build, ordinal), timeout_s=60.0))


def forget(build: BuildSpec, ordinal: int = 0, *, node: NodeId = NODE) -> Action:
    return OrderNode(node=node, api=API, order=ForgetReplica(replica=name(build, ordinal)))


def route(the_route: SetRoute) -> Action:
    return RouteApi(route=the_route)


def record_exit(report: ReplicaReport) -> Action:
    assert report.exit is not None
    return RecordExit(
        api=API,
        revision=report.revision,
        replica=report.replica,
        attempt=report.attempt,
        was_ready=report.was_ready,
        exit=report.exit,
    )


def a_record(build: BuildSpec, **slots: SlotRecord) -> RunRecord:
    """Slots by ordinal: `_0=SlotRecord(...)`."""
    return RunRecord(
        api=API, revision=build.revision, slots={name(build, int(key[1:])): slot for key, slot in slots.items()}
    )


def failed_start(
    times: int = 1, *, attempt: int | None = None, age_s: float = 0.0, exit: ExitReport | None = None
) -> SlotRecord:
    return SlotRecord(
        attempt=times if attempt is None else attempt,
        failed_starts=times,
        last_exit=exit or an_exit(),
        last_exit_age_s=age_s,
    )


def crash_loop(pressure: float = 6.0, *, age_s: float = 0.0) -> SlotRecord:
    return SlotRecord(attempt=6, crash_pressure=pressure, last_exit=an_exit(), last_exit_age_s=age_s)


def decided(wanted: WantedApi | None, seen: Snapshot, *records: RunRecord) -> list[Action]:
    return list(the_plan(wanted, seen, *records).actions)


def the_plan(wanted: WantedApi | None, seen: Snapshot, *records: RunRecord) -> Plan:
    return plan(assess(Desired(apis=() if wanted is None else (wanted,), records=records), seen))


# ---- first deploy ----------------------------------------------------------------------------------------------------


def test_a_first_deploy_asks_for_room_and_routes_to_nobody_so_that_callers_get_503_and_not_404() -> None:
    wanted = a_wanted_api(V1, replicas=2)
    assert decided(wanted, a_snapshot()) == [acquire(V1, 0), acquire(V1, 1), route(a_route(wanted))]


def test_a_granted_lease_is_started_on_its_node() -> None:
    wanted = a_wanted_api(V1)
    seen = a_snapshot(leases=(a_lease(V1),), routes=(a_route(wanted),))
    assert decided(wanted, seen) == [start(V1)]


def test_a_start_that_is_under_way_is_waited_for() -> None:
    wanted = a_wanted_api(V1)
    for phase in (Phase.STARTING, Phase.LOADING, Phase.WARMING):
        assert decided(wanted, a_snapshot(a_replica(V1, phase=phase), routes=(a_route(wanted),))) == []


def test_a_ready_replica_takes_traffic_and_makes_the_version_live() -> None:
    wanted = a_wanted_api(V1)
    ready = a_replica(V1)
    assert decided(wanted, a_snapshot(ready, routes=(a_route(wanted),))) == [
        MarkLive(api=API, revision=V1.revision),
        route(a_route(wanted, ready)),
    ]


def test_the_first_ready_replica_of_several_already_carries_the_api() -> None:
    wanted = a_wanted_api(V1, replicas=2)
    ready, loading = a_replica(V1, 0), a_replica(V1, 1, Phase.LOADING)
    assert decided(wanted, a_snapshot(ready, loading, routes=(a_route(wanted),))) == [
        MarkServing(api=API, revision=V1.revision),
        route(a_route(wanted, ready)),
    ]


def test_a_version_is_live_at_the_size_there_is_room_for_if_that_is_min_replicas() -> None:
    wanted = a_wanted_api(V1, serving=V1, live=False, replicas=3, min_replicas=2)
    ready = (a_replica(V1, 0), a_replica(V1, 1))
    leases = (a_lease(V1, 0), a_lease(V1, 1), a_lease(V1, 2, LeaseState.PENDING, reason="node local: no room"))
    found = the_plan(wanted, a_snapshot(*ready, leases=leases, routes=(a_route(wanted, *ready),)))
    assert list(found.actions) == [MarkLive(api=API, revision=V1.revision)]
    assert [note.text for note in found.notes] == ["no room for 1 of 3 replicas (node local: no room)"]


def test_one_replica_makes_a_version_live_where_there_is_room_for_one_and_one_is_enough() -> None:
    wanted = a_wanted_api(V1, serving=V1, live=False, replicas=2)
    ready = a_replica(V1)
    leases = (a_lease(V1, 0), a_lease(V1, 1, LeaseState.PENDING))
    seen = a_snapshot(ready, leases=leases, routes=(a_route(wanted, ready),))
    assert decided(wanted, seen) == [MarkLive(api=API, revision=V1.revision)]
    # With none ready, as after a crash, it is not.
    ended = a_replica(V1, phase=Phase.LOADING)
    assert decided(wanted, a_snapshot(ended, leases=leases, routes=(a_route(wanted),))) == []


def test_an_api_at_rest_needs_nothing() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2)
    ready = (a_replica(V1, 0), a_replica(V1, 1))
    found = the_plan(wanted, a_snapshot(*ready, routes=(a_route(wanted, *ready),)))
    assert not found
    assert found == Plan()
    assert found.describe() == "settled"


def test_a_changed_setting_only_changes_the_route() -> None:
    wanted = a_wanted_api(V1, live=True)
    ready = a_replica(V1)
    changed = msgspec.structs.replace(wanted, timeout_s=30.0, retry=False)
    assert decided(changed, a_snapshot(ready, routes=(a_route(wanted, ready),))) == [route(a_route(changed, ready))]


# ---- rollout ---------------------------------------------------------------------------------------------------------


def rolling(replicas: int = 1, *, force: bool = False, failed: Problem | None = None) -> WantedApi:
    """V2 is to replace V1."""
    wanted = a_wanted_api(V2, serving=V1, replicas=replicas, force=force)
    return msgspec.structs.replace(wanted, failed=failed)


def test_a_rollout_asks_for_one_replica_more_than_wanted() -> None:
    old = a_replica(V1)
    assert decided(rolling(), a_snapshot(old, routes=(a_route(rolling(), old, build=V1),))) == [acquire(V2, surge=True)]


def test_the_old_version_stays_until_the_new_one_is_ready() -> None:
    old, new = a_replica(V1), a_replica(V2, phase=Phase.WARMING)
    leases = (a_lease(V1), a_lease(V2, surge=True))
    assert decided(rolling(), a_snapshot(old, new, leases=leases, routes=(a_route(rolling(), old, build=V1),))) == []


def test_once_the_new_replica_is_ready_the_route_moves_to_it_and_the_old_one_is_not_drained_yet() -> None:
    old, new = a_replica(V1), a_replica(V2)
    leases = (a_lease(V1), a_lease(V2, surge=True))
    seen = a_snapshot(old, new, leases=leases, routes=(a_route(rolling(), old, build=V1),))
    assert decided(rolling(), seen) == [
        MarkLive(api=API, revision=V2.revision),
        acquire(V2),
        route(a_route(rolling(), new)),
    ]


def test_an_old_replica_is_drained_once_the_route_is_seen_without_it_and_the_route_is_ordered_once_more() -> None:
    live = a_wanted_api(V2, serving=V2)
    old, new = a_replica(V1), a_replica(V2)
    seen = a_snapshot(old, new, routes=(a_route(live, new),))
    assert decided(live, seen) == [route(a_route(live, new)), drain(V1)]


def test_a_draining_replica_is_left_alone() -> None:
    live = a_wanted_api(V2, serving=V2)
    old, new = a_replica(V1, phase=Phase.DRAINING), a_replica(V2)
    assert decided(live, a_snapshot(old, new, routes=(a_route(live, new),))) == []


def test_a_drained_replica_is_forgotten_and_only_then_its_room_released() -> None:
    live = a_wanted_api(V2, serving=V2)
    old, new = a_replica(V1, phase=Phase.EXITED, exit=an_exit(drained=True)), a_replica(V2)
    assert decided(live, a_snapshot(old, new, routes=(a_route(live, new),))) == [forget(V1), release(V1)]


def test_the_next_new_replica_is_asked_for_only_when_the_drained_one_is_gone() -> None:
    olds = [a_replica(V1, 0), a_replica(V1, 1)]
    new = a_replica(V2)
    routes = (a_route(rolling(3), *olds, new),)
    leaving = a_replica(V1, 2, Phase.DRAINING)
    assert decided(rolling(3), a_snapshot(*olds, leaving, new, routes=routes)) == []
    assert decided(rolling(3), a_snapshot(*olds, new, routes=routes)) == [acquire(V2, 1, surge=True)]


def test_an_old_replica_that_is_down_goes_before_those_that_serve() -> None:
    olds = [a_replica(V1, 0), a_replica(V1, 1)]
    down = a_replica(V1, 2, Phase.EXITED)
    new = a_replica(V2)
    leases = (a_lease(V1, 0), a_lease(V1, 1), a_lease(V1, 2), a_lease(V2, surge=True))
    seen = a_snapshot(*olds, down, new, leases=leases, routes=(a_route(rolling(3), *olds, build=V1),))
    assert decided(rolling(3), seen, a_record(V1, _2=crash_loop())) == [
        acquire(V2),
        route(a_route(rolling(3), *olds, new)),
        forget(V1, 2),
        release(V1, 2),
    ]


def test_without_room_for_the_surge_nothing_changes_and_the_plan_says_why() -> None:
    old = a_replica(V1)
    pending = a_lease(V2, 0, LeaseState.PENDING, surge=True, reason="node local: mem 7Gi of 8Gi requested, 2Gi asked")
    seen = a_snapshot(old, leases=(a_lease(V1), pending), routes=(a_route(rolling(), old, build=V1),))
    found = the_plan(rolling(), seen)
    assert not found.actions
    assert [note.text for note in found.notes] == [
        "no room for one more replica beside the 1 that serve (node local: mem 7Gi of 8Gi requested, 2Gi asked); "
        "nothing changes until there is, or until a deploy with --force, which stops one first"
    ]


def test_with_force_one_old_replica_makes_room() -> None:
    olds = [a_replica(V1, 0), a_replica(V1, 1)]
    leases = (a_lease(V1, 0), a_lease(V1, 1), a_lease(V2, 0, LeaseState.PENDING, surge=True))
    forced = rolling(2, force=True)
    seen = a_snapshot(*olds, leases=leases, routes=(a_route(forced, *olds, build=V1),))
    assert decided(forced, seen) == [route(a_route(forced, olds[0], build=V1))]
    seen = a_snapshot(*olds, leases=leases, routes=(a_route(forced, olds[0], build=V1),))
    assert decided(forced, seen) == [route(a_route(forced, olds[0], build=V1)), drain(V1, 1)]


def test_with_force_nobody_is_told_to_use_it() -> None:
    old, forced = a_replica(V1), rolling(force=True)
    leases = (a_lease(V1), a_lease(V2, 0, LeaseState.PENDING, surge=True))
    assert the_plan(forced, a_snapshot(old, leases=leases, routes=(a_route(forced, old, build=V1),))).notes == ()


def test_a_surge_without_room_keeps_its_turn_until_the_old_replica_that_it_takes_over_from_is_gone() -> None:
    leases = (a_lease(V1), a_lease(V2, 0, LeaseState.PENDING, surge=True, minimum=True))
    drains, drained = a_replica(V1, phase=Phase.DRAINING), a_replica(V1, phase=Phase.EXITED, exit=an_exit(drained=True))
    forced, gone = rolling(force=True), [forget(V1), release(V1)]
    for old, found in ((drains, []), (drained, gone)):
        assert decided(forced, a_snapshot(old, leases=leases, routes=(a_route(forced, build=V1),))) == found
    seen = a_snapshot(leases=leases[1:], routes=(a_route(forced, build=V1),))
    assert decided(forced, seen) == [acquire(V2)]


def test_a_surge_without_room_keeps_its_turn_for_as_long_as_an_old_replica_can_make_more() -> None:
    old, forced = a_replica(V1), rolling(2, force=True)
    leases = (a_lease(V1), a_lease(V2, 0, LeaseState.PENDING, surge=True, minimum=True))
    found = decided(forced, a_snapshot(old, leases=leases, routes=(a_route(forced, old, build=V1),)))
    assert found == [route(a_route(forced, build=V1))]


@pytest.mark.parametrize("waits", ["for room", "to be ready"])
def test_no_old_replica_makes_room_while_another_new_one_is_on_its_way(waits: str) -> None:
    olds, forced = [a_replica(V1, 0), a_replica(V1, 1)], rolling(3, force=True)
    coming = [] if waits == "for room" else [a_replica(V2, phase=Phase.LOADING)]
    state = LeaseState.PENDING if waits == "for room" else LeaseState.GRANTED
    leases = (a_lease(V1, 0), a_lease(V1, 1), a_lease(V2, 0, state), a_lease(V2, 1, LeaseState.PENDING, surge=True))
    the_route = a_route(forced, *olds, build=V1)
    found = decided(forced, a_snapshot(*olds, *coming, leases=leases, routes=(the_route,)))
    assert not any(isinstance(action, OrderNode) for action in found)


def test_a_surge_is_started_at_once_but_not_before_those_that_leave_are_gone() -> None:
    old, leaving = a_replica(V1, 0), a_replica(V1, 1, Phase.DRAINING)
    the_route = a_route(rolling(), old, build=V1)
    leases = (a_lease(V1, 0), a_lease(V2, surge=True))
    assert decided(rolling(), a_snapshot(old, leases=leases, routes=(the_route,))) == [start(V2)]
    found = the_plan(rolling(), a_snapshot(old, leaving, leases=(*leases, a_lease(V1, 1)), routes=(the_route,)))
    assert not found.actions
    assert [note.text for note in found.notes] == [f"{name(V2)} starts once others have left"]


def test_a_surge_takes_over_from_an_old_replica_whose_room_nobody_knows_of_by_what_it_says_of_itself() -> None:
    old = a_replica(V1)
    found = decided(rolling(), a_snapshot(old, leases=(), routes=(a_route(rolling(), old, build=V1),)))
    assert found == [RecoverLease(lease=Lease.of_running(old, NODE)), acquire(V2, surge=True)]


def test_what_fills_up_an_unproven_rollout_is_of_the_minimum_only_beside_fewer_that_are_placed() -> None:
    old, new = a_replica(V1), a_replica(V2, phase=Phase.LOADING)
    leases = (a_lease(V1), a_lease(V2, surge=True))
    for min_replicas, of_minimum in ((2, [False, False]), (3, [True, False]), (4, [True, True])):
        wanted = msgspec.structs.replace(rolling(3), min_replicas=min_replicas)
        seen = a_snapshot(old, new, leases=leases, routes=(a_route(wanted, old, build=V1),))
        assert decided(wanted, seen) == [
            acquire(V1, ordinal, minimum=minimum) for ordinal, minimum in enumerate(of_minimum, start=1)
        ]


def test_no_more_old_replicas_go_for_new_ones_that_come_back_than_the_rest_may_do_without() -> None:
    olds = [a_replica(V1, ordinal) for ordinal in range(3)]
    back = a_replica(V2, phase=Phase.EXITED, was_ready=True)
    seen = a_snapshot(*olds, back, routes=(a_route(rolling(2), *olds, back, build=V1),))
    routes = [a.route for a in decided(rolling(2), seen) if isinstance(a, RouteApi)]
    assert routes == [a_route(rolling(2), *olds[:2], back, build=V1)]


def test_force_takes_one_old_replica_at_a_time() -> None:
    old, leaving = a_replica(V1, 0), a_replica(V1, 1, Phase.DRAINING)
    leases = (a_lease(V1, 0), a_lease(V1, 1), a_lease(V2, 0, LeaseState.PENDING, surge=True))
    forced = rolling(2, force=True)
    assert decided(forced, a_snapshot(old, leaving, leases=leases, routes=(a_route(forced, old, build=V1),))) == []


def test_what_cannot_come_up_by_itself_makes_room_for_its_repair_without_force() -> None:
    down = a_replica(V1, phase=Phase.EXITED, attempt=6, was_ready=True)
    leases = (a_lease(V1), a_lease(V2, 0, LeaseState.PENDING, surge=True))
    seen = a_snapshot(down, leases=leases, routes=(a_route(rolling(), build=V1),))
    for pressure in (5.5, 9.0):
        assert decided(rolling(), seen, a_record(V1, _0=crash_loop(pressure))) == [forget(V1), release(V1)]


def test_what_comes_up_by_itself_is_not_stopped_for_the_repair_of_another_that_does_not() -> None:
    downs = [a_replica(V1, ordinal, Phase.EXITED, attempt=6, was_ready=True) for ordinal in range(2)]
    leases = (a_lease(V1, 0), a_lease(V1, 1), a_lease(V2, 0, LeaseState.PENDING, surge=True))
    seen = a_snapshot(*downs, leases=leases, routes=(a_route(rolling(2), *downs, build=V1),))
    known = SlotRecord(attempt=6, crash_pressure=1.0, last_exit=an_exit())
    assert decided(rolling(2), seen, a_record(V1, _0=crash_loop(9.0), _1=known)) == [start(V1, 1, attempt=7)]


def test_a_replica_lost_during_an_unproven_rollout_is_replaced_by_the_old_version() -> None:
    old, new = a_replica(V1, 0), a_replica(V2, phase=Phase.LOADING)
    leases = (a_lease(V1, 0), a_lease(V2, surge=True))
    seen = a_snapshot(old, new, leases=leases, routes=(a_route(rolling(2), old, build=V1),))
    assert decided(rolling(2), seen) == [acquire(V1, 1)]


def test_with_force_a_replica_on_its_way_takes_the_place_of_the_old_one_that_made_room() -> None:
    old, new = a_replica(V1, 0), a_replica(V2, phase=Phase.LOADING)
    leases = (a_lease(V1, 0), a_lease(V2, surge=True, minimum=True))
    forced = rolling(2, force=True)
    seen = a_snapshot(old, new, leases=leases, routes=(a_route(forced, old, build=V1),))
    assert decided(forced, seen) == [acquire(V2, 0)]


def test_the_repair_of_what_cannot_come_up_takes_the_place_of_what_is_missing() -> None:
    down, new = a_replica(V1, phase=Phase.EXITED, attempt=6, was_ready=True), a_replica(V2, phase=Phase.LOADING)
    leases = (a_lease(V1), a_lease(V2, surge=True, minimum=True))
    seen = a_snapshot(down, new, leases=leases, routes=(a_route(rolling(2), build=V1),))
    asked = [a for a in decided(rolling(2), seen, a_record(V1, _0=crash_loop(9.0))) if isinstance(a, AcquireLease)]
    assert asked == [acquire(V2, 0)]


def test_a_replica_lost_during_a_proven_rollout_is_replaced_by_the_new_version() -> None:
    old, new = a_replica(V1, 0), a_replica(V2, 0)
    seen = a_snapshot(old, new, routes=(a_route(rolling(3), old, new),))
    assert decided(rolling(3), seen) == [acquire(V2, 1), acquire(V2, 2, surge=True)]


def test_where_only_part_of_the_size_has_room_a_rollout_still_goes_on() -> None:
    olds = [a_replica(V1, 0), a_replica(V1, 1)]
    new = a_replica(V2)
    leases = (
        *(a_lease(V1, 0), a_lease(V1, 1), a_lease(V1, 2, LeaseState.PENDING)),
        a_lease(V2, surge=True),
    )
    seen = a_snapshot(*olds, new, leases=leases, routes=(a_route(rolling(3), *olds, build=V1),))
    # The place nobody has becomes one of the new version; the surge stays one.
    assert decided(rolling(3), seen) == [
        acquire(V2, 1),
        route(a_route(rolling(3), *olds, new)),
        release(V1, 2),
    ]
    leases = (a_lease(V1, 0), a_lease(V1, 1), a_lease(V2, surge=True), a_lease(V2, 1, LeaseState.PENDING))
    seen = a_snapshot(*olds, new, leases=leases, routes=(a_route(rolling(3), *olds, new),))
    assert decided(rolling(3), seen) == [acquire(V2), route(a_route(rolling(3), olds[0], new))]


def test_no_more_of_the_new_version_wait_for_room_in_the_place_of_old_ones_than_are_missing() -> None:
    new = a_replica(V2)
    nowhere = (a_lease(V1, 0, LeaseState.PENDING), a_lease(V1, 1, LeaseState.PENDING))
    seen = a_snapshot(new, leases=(*nowhere, a_lease(V2, surge=True)), routes=(a_route(rolling(2), new),))
    assert decided(rolling(2), seen) == [
        MarkServing(api=API, revision=V2.revision),
        acquire(V2, 0),
        acquire(V2, 1),
        release(V1, 0),
        release(V1, 1),
    ]


def test_a_third_version_takes_over_from_two_and_the_abandoned_one_goes_first() -> None:
    wanted = a_wanted_api(V3, serving=V1, replicas=2)
    old, abandoned, new = a_replica(V1), a_replica(V2, in_flight=5), a_replica(V3)
    leases = (a_lease(V1), a_lease(V2), a_lease(V3, surge=True))
    seen = a_snapshot(old, abandoned, new, leases=leases, routes=(a_route(wanted, old, abandoned, build=V1),))
    assert decided(wanted, seen) == [acquire(V3), route(a_route(wanted, old, new))]


def test_a_replica_that_was_chosen_to_leave_does_not_come_back_for_one_that_is_routed() -> None:
    """An order to drain it may be on its way: a new deploy must not count on it."""
    wanted = a_wanted_api(V3, serving=V1, replicas=2)
    old, chosen, abandoned = a_replica(V1, 0), a_replica(V1, 1), a_replica(V2)
    the_route = a_route(wanted, old, abandoned, build=V1)
    seen = a_snapshot(old, chosen, abandoned, routes=(the_route,))
    assert decided(wanted, seen) == [route(the_route), drain(V1, 1)]


def test_of_what_nobody_wants_only_what_answers_and_is_in_the_route_serves_meanwhile() -> None:
    wanted = a_wanted_api(V3, serving=V1, replicas=2)
    old, unknown = a_replica(V1), a_replica(V2)
    the_route = a_route(wanted, old, build=V1)
    seen = a_snapshot(old, unknown, leases=(a_lease(V1, 0), a_lease(V2)), routes=(the_route,))
    assert decided(wanted, seen) == [acquire(V1, 1), route(the_route), drain(V2)]
    ended = a_replica(V2, phase=Phase.EXITED, was_ready=True)
    seen = a_snapshot(old, ended, routes=(a_route(wanted, old, ended, build=V1),))
    assert decided(wanted, seen) == [acquire(V1, 1), route(the_route)]


@pytest.mark.parametrize(("placed", "pending", "waiting"), [(2, 1, 0), (1, 2, 1), (0, 2, 2)])
def test_no_more_old_replicas_wait_for_room_than_are_missing(placed: int, pending: int, waiting: int) -> None:
    olds = [a_replica(V1, ordinal) for ordinal in range(placed)]
    nowhere = [a_lease(V1, placed + more, LeaseState.PENDING) for more in range(pending)]
    leases = (*(a_lease(V1, ordinal) for ordinal in range(placed)), *nowhere)
    seen = a_snapshot(*olds, leases=leases, routes=(a_route(rolling(2), *olds, build=V1),))
    released = [action for action in decided(rolling(2), seen) if isinstance(action, ReleaseLease)]
    assert released == [release(V1, placed + more) for more in range(waiting, pending)]


def test_a_replaced_version_that_never_served_goes_at_once() -> None:
    wanted = a_wanted_api(V3, serving=V1)
    old, loading, just_ready = a_replica(V1), a_replica(V2, 0, Phase.LOADING), a_replica(V2, 1)
    the_route = a_route(wanted, old, build=V1)
    assert decided(wanted, a_snapshot(old, loading, just_ready, routes=(the_route,))) == [
        route(the_route),
        forget(V2, 0),
        drain(V2, 1),
        release(V2, 0),
    ]


# ---- failing versions ------------------------------------------------------------------------------------------------


def test_a_failure_that_is_for_good_fails_the_version_at_once() -> None:
    problem = Problem(reference="handler-import", message="no module named 'PIL'", traceback="Traceback …")
    down = a_replica(V2, phase=Phase.EXITED, exit=msgspec.structs.replace(an_exit(permanent=True), problem=problem))
    old = a_replica(V1)
    leases = (a_lease(V1), a_lease(V2, surge=True))
    seen = a_snapshot(old, down, leases=leases, routes=(a_route(rolling(), old, build=V1),))
    assert decided(rolling(), seen) == [
        record_exit(down),
        MarkFailed(api=API, revision=V2.revision, problem=problem),
    ]


def test_three_failed_starts_in_a_row_fail_the_version_with_the_last_reason() -> None:
    down = a_replica(V2, phase=Phase.EXITED, attempt=3)
    old = a_replica(V1)
    leases = (a_lease(V1), a_lease(V2, surge=True))
    seen = a_snapshot(old, down, leases=leases, routes=(a_route(rolling(), old, build=V1),))
    found = decided(rolling(), seen, a_record(V2, _0=failed_start(2)))
    assert found[0] == record_exit(down)
    assert isinstance(found[1], MarkFailed)
    assert found[1].problem.message == f"{name(V2)} failed 3 starts in a row; the last time: exit code 1"


def test_a_new_version_that_crashes_again_and_again_after_it_was_ready_fails() -> None:
    down = a_replica(V2, phase=Phase.EXITED, attempt=7, was_ready=True)
    old = a_replica(V1)
    seen = a_snapshot(old, down, routes=(a_route(rolling(2), old, down, build=V1),))
    found = decided(rolling(2), seen, a_record(V2, _0=SlotRecord(attempt=6, crash_pressure=5.0, last_exit=an_exit())))
    assert [type(action) for action in found] == [RecordExit, MarkFailed]


def test_a_failed_version_goes_and_the_old_one_stays() -> None:
    old, down = a_replica(V1), a_replica(V2, phase=Phase.EXITED)
    wanted = rolling(failed=Problem(reference="x", message="boom"))
    leases = (a_lease(V1), a_lease(V2, surge=True))
    seen = a_snapshot(old, down, leases=leases, routes=(a_route(wanted, old, build=V1),))
    assert decided(wanted, seen, a_record(V2, _0=failed_start(3))) == [forget(V2), release(V2)]


def test_a_version_that_fails_half_way_is_replaced_by_the_old_one_at_full_size() -> None:
    wanted = rolling(2, failed=Problem(reference="x", message="boom"))
    old, new = a_replica(V1), a_replica(V2)
    seen = a_snapshot(old, new, routes=(a_route(wanted, old, new),))
    # First one more of the old version …
    assert decided(wanted, seen) == [acquire(V1, 1, surge=True), route(a_route(wanted, old, new, build=V1))]
    back = a_replica(V1, 1)
    leases = (a_lease(V1), a_lease(V2), a_lease(V1, 1, surge=True))
    # … and once it is ready the failed version leaves the route.
    assert decided(
        wanted, a_snapshot(old, new, back, leases=leases, routes=(a_route(wanted, old, new, build=V1),))
    ) == [
        acquire(V1, 1),
        route(a_route(wanted, old, back, build=V1)),
    ]


def test_a_first_version_that_failed_leaves_nothing_but_a_route_that_answers_503() -> None:
    wanted = msgspec.structs.replace(a_wanted_api(V1), failed=Problem(reference="x", message="boom"))
    down = a_replica(V1, phase=Phase.EXITED)
    seen = a_snapshot(down, routes=(a_route(wanted),))
    assert decided(wanted, seen, a_record(V1, _0=failed_start(3))) == [
        route(a_route(wanted, hold=False)),
        forget(V1),
        release(V1),
    ]


def test_what_drains_is_left_alone_when_its_first_version_fails() -> None:
    wanted = msgspec.structs.replace(a_wanted_api(V1), failed=Problem(reference="x", message="boom"))
    draining = a_replica(V1, phase=Phase.DRAINING)
    assert decided(wanted, a_snapshot(draining, routes=(a_route(wanted, hold=False),))) == []


def test_a_first_version_that_failed_in_part_goes_on_serving_with_the_rest() -> None:
    wanted = msgspec.structs.replace(
        a_wanted_api(V1, serving=V1, live=False, replicas=2),
        serving_was_live=False,
        failed=Problem(reference="x", message="boom"),
    )
    ready, down = a_replica(V1, 0), a_replica(V1, 1, Phase.EXITED, attempt=3)
    seen = a_snapshot(ready, down, routes=(a_route(wanted, ready),))
    found = the_plan(wanted, seen, a_record(V1, _1=failed_start(3)))
    assert (found.actions, found.wake_after_s) == ((), 1.0)


def test_a_version_that_fails_once_it_has_taken_over_goes_back_and_nothing_else_is_done() -> None:
    wanted = msgspec.structs.replace(a_wanted_api(V2, serving=V2), previous=V1.revision, watched_until_wall_s=50.0)
    problem = Problem(reference="handler-import", message="no module named 'PIL'")
    down = a_replica(V2, phase=Phase.EXITED, exit=msgspec.structs.replace(an_exit(permanent=True), problem=problem))
    assert decided(wanted, a_snapshot(down, routes=(a_route(wanted, down),))) == [
        record_exit(down),
        GoBack(api=API, revision=V2.revision, to=V1.revision, problem=problem),
    ]


def test_a_version_that_was_live_is_never_given_up() -> None:
    wanted = a_wanted_api(V1, live=True)
    down = a_replica(V1, phase=Phase.EXITED, attempt=12)
    seen = a_snapshot(down, routes=(a_route(wanted),))
    found = the_plan(wanted, seen, a_record(V1, _0=failed_start(12, age_s=20.0)))
    assert (found.actions, found.wake_after_s) == ((), 40.0)


def test_going_back_to_the_version_that_serves_keeps_its_replicas() -> None:
    wanted = a_wanted_api(V1, serving=V1, live=False, replicas=2)
    old, old_too, new = a_replica(V1, 0), a_replica(V1, 1), a_replica(V2, phase=Phase.LOADING)
    seen = a_snapshot(old, old_too, new, routes=(a_route(wanted, old, old_too),))
    assert decided(wanted, seen) == [
        MarkLive(api=API, revision=V1.revision),
        forget(V2),
        release(V2),
    ]


# ---- crashes ---------------------------------------------------------------------------------------------------------


def test_a_killed_replica_is_recorded_and_started_again_at_once_on_its_slot() -> None:
    wanted = a_wanted_api(V1, live=True)
    down = a_replica(V1, phase=Phase.EXITED, was_ready=True, exit=an_exit(signal=9))
    seen = a_snapshot(down, routes=(a_route(wanted, down),))
    assert decided(wanted, seen) == [record_exit(down), start(V1, attempt=2)]


def test_an_exit_is_recorded_once() -> None:
    wanted = a_wanted_api(V1, live=True)
    down = a_replica(V1, phase=Phase.EXITED, was_ready=True)
    seen = a_snapshot(down, routes=(a_route(wanted, down),))
    known = SlotRecord(attempt=1, crash_pressure=1.0, last_exit=an_exit())
    assert decided(wanted, seen, a_record(V1, _0=known)) == [start(V1, attempt=2)]


def test_the_next_attempt_is_above_every_recorded_one() -> None:
    wanted = a_wanted_api(V1, live=True)
    seen = a_snapshot(leases=(a_lease(V1),), routes=(a_route(wanted),))
    known = SlotRecord(attempt=7, last_exit=an_exit(), last_exit_age_s=1e6)
    assert decided(wanted, seen, a_record(V1, _0=known)) == [start(V1, attempt=8)]


def test_a_route_keeps_a_replica_that_is_being_replaced_so_that_requests_are_held() -> None:
    wanted = a_wanted_api(V1, live=True)
    starting = a_replica(V1, phase=Phase.LOADING, attempt=2)
    assert decided(wanted, a_snapshot(starting, routes=(a_route(wanted, starting),))) == []


def test_nothing_is_held_for_a_replacement_that_is_too_far_away() -> None:
    wanted = a_wanted_api(V1, live=True)
    down = a_replica(V1, phase=Phase.EXITED, attempt=6, was_ready=True)
    seen = a_snapshot(down, routes=(a_route(wanted, down),))
    found = the_plan(wanted, seen, a_record(V1, _0=crash_loop(9.5)))  # 8 s
    assert list(found.actions) == [route(a_route(wanted, down, hold=False))]
    assert found.wake_after_s == pytest.approx(3.0)


def test_a_crash_loop_waits_and_says_so() -> None:
    wanted = a_wanted_api(V1, live=True)
    down = a_replica(V1, phase=Phase.EXITED, attempt=6, was_ready=True)
    seen = a_snapshot(down, routes=(a_route(wanted, down),))
    found = the_plan(wanted, seen, a_record(V1, _0=crash_loop(6.5, age_s=0.25)))  # 1 s
    assert (found.actions, found.wake_after_s) == ((), 0.75)
    assert [note.text for note in found.notes] == [f"{name(V1)} keeps crashing, tried again in 0.8 s"]


def test_ages_go_on_after_they_were_loaded() -> None:
    wanted = a_wanted_api(V1, live=True)
    down = a_replica(V1, phase=Phase.EXITED, attempt=6, was_ready=True)
    seen = a_snapshot(down, routes=(a_route(wanted, down),), now_s=1000.0)
    records = (a_record(V1, _0=crash_loop(6.5)),)
    found = plan(assess(Desired(apis=(wanted,), records=records, as_of_s=999.5), seen))
    assert (found.actions, found.wake_after_s) == ((), 0.5)
    assert plan(assess(Desired(apis=(wanted,), records=records, as_of_s=999.0), seen)).actions == (
        start(V1, attempt=7),
    )


def test_failed_starts_are_over_once_their_replica_is_ready() -> None:
    wanted = a_wanted_api(V1, live=True)
    ready = a_replica(V1, attempt=3)
    seen = a_snapshot(ready, routes=(a_route(wanted, ready),))
    assert decided(wanted, seen, a_record(V1, _0=failed_start(2))) == [
        RecordReady(api=API, revision=V1.revision, replica=name(V1))
    ]


def test_one_ready_replica_does_not_excuse_another_that_fails() -> None:
    wanted = a_wanted_api(V1, serving=V1, live=False, replicas=2)
    ready, down = a_replica(V1, 0), a_replica(V1, 1, Phase.EXITED, attempt=2)
    wanted = msgspec.structs.replace(wanted, serving_was_live=False)
    seen = a_snapshot(ready, down, routes=(a_route(wanted, ready),))
    found = the_plan(wanted, seen, a_record(V1, _1=failed_start(2)))
    assert (found.actions, found.wake_after_s) == ((), 0.5)


# ---- scaling ---------------------------------------------------------------------------------------------------------


def test_a_larger_count_adds_replicas_with_the_lowest_unused_names() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=4)
    ready = (a_replica(V1, 0), a_replica(V1, 2))
    seen = a_snapshot(*ready, routes=(a_route(wanted, *ready),))
    assert decided(wanted, seen) == [acquire(V1, 1), acquire(V1, 3)]


@pytest.mark.parametrize(
    ("slots", "victim"),
    [
        ([(Phase.READY, 0), (Phase.EXITED, 0), (Phase.READY, 0)], 1),
        ([(Phase.READY, 0), (Phase.READY, 0), (Phase.STARTING, 0)], 2),
        ([(Phase.LOADING, 0), (Phase.STARTING, 0), (Phase.WARMING, 0)], 1),
        ([(Phase.READY, 2), (Phase.READY, 0), (Phase.READY, 1)], 1),
        ([(Phase.READY, 2), (Phase.READY, 1), (Phase.READY, 1)], 2),
    ],
    ids=["failed first", "then starting", "the youngest", "then idle", "then the least loaded, last name first"],
)
def test_a_smaller_count_takes_the_replica_that_is_missed_least(slots: list[tuple[Phase, int]], victim: int) -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2)
    replicas = [a_replica(V1, ordinal, phase, in_flight=in_flight) for ordinal, (phase, in_flight) in enumerate(slots)]
    ready = [replica for replica in replicas if replica.phase is Phase.READY]
    seen = a_snapshot(*replicas, routes=(a_route(wanted, *ready),))
    left = [r for r in ready if r.replica != name(V1, victim)]
    found = decided(wanted, seen, a_record(V1, _1=failed_start(4)))
    gone = [a.order.replica for a in found if isinstance(a, OrderNode) and isinstance(a.order, ForgetReplica)]
    if replicas[victim].phase is Phase.READY:
        assert found[0] == route(a_route(wanted, *left))
        assert gone == []
    else:
        assert gone == [name(V1, victim)]


def test_a_victim_that_is_out_of_the_route_stays_the_victim() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2)
    replicas = [a_replica(V1, 0, in_flight=5), a_replica(V1, 1, in_flight=9), a_replica(V1, 2, in_flight=0)]
    the_route = a_route(wanted, replicas[0], replicas[2])
    assert decided(wanted, a_snapshot(*replicas, routes=(the_route,))) == [route(the_route), drain(V1, 1)]


def test_scaling_up_again_brings_a_victim_that_is_not_drained_yet_back() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2)
    replicas = (a_replica(V1, 0), a_replica(V1, 1))
    seen = a_snapshot(*replicas, routes=(a_route(wanted, replicas[0]),))
    assert decided(wanted, seen) == [route(a_route(wanted, *replicas))]


def test_a_new_replica_does_not_wait_for_one_that_drains() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2)
    ready, leaving = a_replica(V1, 0), a_replica(V1, 1, Phase.DRAINING)
    seen = a_snapshot(ready, leaving, routes=(a_route(wanted, ready),))
    assert decided(wanted, seen) == [acquire(V1, 2)]


def test_a_smaller_count_during_a_rollout_drops_new_replicas_that_are_not_up_yet() -> None:
    olds = [a_replica(V1, ordinal) for ordinal in range(2)]
    starting = a_replica(V2, 0, Phase.STARTING)
    leases = (a_lease(V1, 0), a_lease(V1, 1), a_lease(V2, 0), a_lease(V2, 1, surge=True))
    seen = a_snapshot(*olds, starting, leases=leases, routes=(a_route(rolling(2), *olds, build=V1),))
    assert decided(rolling(2), seen) == [release(V2, 1)]


def test_memory_that_nobody_stated_counts_as_the_most_the_version_was_seen_to_use() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2)
    ready = msgspec.structs.replace(a_replica(V1), peak_rss_bytes=300 * 2**20)
    seen = a_snapshot(ready, routes=(a_route(wanted, ready),))
    assert decided(wanted, seen) == [
        acquire(V1, 1, resources=Resources(cpu_millis=200, mem_bytes=300 * 2**20)),
    ]


# ---- what is not wanted ----------------------------------------------------------------------------------------------


def test_an_api_nobody_wants_loses_its_route_then_its_replicas_then_their_room() -> None:
    wanted = a_wanted_api(V1, live=True)
    ready, loading = a_replica(V1, 0), a_replica(V1, 1, Phase.LOADING)
    remove = UnrouteApi(api=API)
    assert decided(None, a_snapshot(ready, loading, routes=(a_route(wanted, ready),))) == [
        remove,
        forget(V1, 1),
        release(V1, 1),
    ]
    assert decided(None, a_snapshot(ready)) == [remove, drain(V1)]
    assert decided(None, a_snapshot(a_replica(V1, phase=Phase.DRAINING))) == []
    drained = a_replica(V1, phase=Phase.EXITED, exit=an_exit(drained=True))
    assert decided(None, a_snapshot(drained)) == [forget(V1), release(V1)]
    assert decided(None, a_snapshot()) == []


def test_a_lease_left_over_from_a_crash_between_two_steps_is_released() -> None:
    live = a_wanted_api(V2, serving=V2)
    new = a_replica(V2)
    seen = a_snapshot(new, leases=(a_lease(V1), a_lease(V2)), routes=(a_route(live, new),))
    assert decided(live, seen) == [release(V1)]


def test_a_surge_lease_left_over_from_a_crash_between_two_steps_becomes_an_ordinary_one() -> None:
    live = a_wanted_api(V2, serving=V2)
    new = a_replica(V2)
    seen = a_snapshot(new, leases=(a_lease(V2, surge=True),), routes=(a_route(live, new),))
    assert decided(live, seen) == [acquire(V2)]


def test_a_wanted_replica_that_runs_without_a_lease_is_adopted_and_not_killed() -> None:
    wanted = a_wanted_api(V1, live=True)
    ready = a_replica(V1)
    seen = a_snapshot(ready, leases=(), routes=(a_route(wanted, ready),))
    assert decided(wanted, seen) == [RecoverLease(lease=Lease.of_running(a_replica(V1), NODE))]


def test_a_replica_is_started_on_the_gpus_of_its_lease_and_adopted_with_those_it_has() -> None:
    wanted = a_wanted_api(V1, live=True)
    devices = (DeviceId("GPU-1"), DeviceId("GPU-3"))
    leased = msgspec.structs.replace(a_lease(V1), devices=devices)
    (order,) = decided(wanted, a_snapshot(leases=(leased,), routes=(a_route(wanted),)))
    assert isinstance(order, OrderNode)
    assert isinstance(order.order, StartReplica)
    assert order.order.devices == devices
    ready = msgspec.structs.replace(a_replica(V1), devices=devices)
    seen = a_snapshot(ready, leases=(), routes=(a_route(wanted, ready),))
    (recovered,) = decided(wanted, seen)
    assert isinstance(recovered, RecoverLease)
    assert recovered.lease.devices == devices


def test_a_sample_guards_a_build_until_it_has_been_live_and_only_warns_after_that() -> None:
    def gates(wanted: WantedApi, build: BuildSpec) -> bool:
        orders = decided(wanted, a_snapshot(leases=(a_lease(build),)))
        (start,) = [a.order for a in orders if isinstance(a, OrderNode) and isinstance(a.order, StartReplica)]
        assert start.build.sample is not None
        return start.build.sample.gate

    guarded = msgspec.structs.replace(V1, sample=a_sample(b"1", gate=True))
    newer = msgspec.structs.replace(V2, sample=a_sample(b"2", gate=True))
    assert gates(a_wanted_api(guarded), guarded), "the first version"
    assert gates(a_wanted_api(newer, serving=guarded), newer), "a new version"
    assert not gates(a_wanted_api(guarded, live=True), guarded), "one that died and comes back"
    assert not gates(a_wanted_api(newer, serving=guarded), guarded), "one that serves until the new version does"
    another = msgspec.structs.replace(guarded, sample=a_sample(b"3", gate=True))
    assert not gates(a_wanted_api(another, serving=guarded), another), "the same to run, with another sample"


# ---- nodes -----------------------------------------------------------------------------------------------------------

OTHER = NodeId("node-2")


def test_what_was_on_a_lost_node_is_released_and_started_elsewhere() -> None:
    wanted = a_wanted_api(V1, live=True)
    request = LeaseRequest(replica=name(V1), api=API, resources=V1.resources)
    lost = Lease(request=request, state=LeaseState.LOST, node=OTHER, reason="gone")
    seen = a_snapshot(leases=(lost,), routes=(a_route(wanted),))
    assert decided(wanted, seen) == [acquire(V1, 1, minimum=True), release(V1)]


def test_a_replica_whose_lease_is_lost_serves_until_its_replacement_does() -> None:
    wanted = a_wanted_api(V1, live=True)
    doomed = a_replica(V1, 0)
    lost = a_lease(V1, 0, LeaseState.LOST)
    the_route = a_route(wanted, doomed)
    seen = a_snapshot(doomed, leases=(lost, a_lease(V1, 1)), routes=(the_route,))
    assert decided(wanted, seen) == [start(V1, 1)]
    fresh = a_replica(V1, 1)
    seen = a_snapshot(doomed, fresh, leases=(lost, a_lease(V1, 1)), routes=(the_route,))
    assert decided(wanted, seen) == [route(a_route(wanted, fresh))]


@pytest.mark.parametrize("wanted", [a_wanted_api(V1, live=True), rolling()], ids=["at rest", "in a rollout"])
def test_a_replica_whose_lease_is_lost_serves_where_there_is_no_room_for_another(wanted: WantedApi) -> None:
    doomed = a_replica(V1, 0)
    leases = (a_lease(V1, 0, LeaseState.LOST), a_lease(V1, 1, LeaseState.PENDING, minimum=True))
    the_route = a_route(wanted, doomed, build=V1)
    found = decided(wanted, a_snapshot(doomed, leases=leases, routes=(the_route,)))
    assert not any(isinstance(action, OrderNode | ReleaseLease) for action in found)


def test_of_two_that_have_one_name_the_one_without_the_lease_goes_first() -> None:
    at_home, stranger, new = a_replica(V1), a_replica(V1, in_flight=9), a_replica(V2)
    the_route = a_route(rolling(2), at_home, new)
    here = an_agent_report(NODE, replicas=(at_home, new), routes=(the_route,))
    there = an_agent_report(OTHER, replicas=(stranger,), routes=(the_route,))
    seen = Snapshot(now_s=0.0, nodes=(here, there), leases=(a_lease(V1), a_lease(V2)))
    order = DrainReplica(replica=name(V1), timeout_s=60.0)
    assert OrderNode(node=OTHER, api=API, order=order) in decided(rolling(2), seen)


def test_a_replica_that_comes_back_on_a_node_thought_lost_serves_until_its_replacement_does() -> None:
    wanted = a_wanted_api(V1, live=True)
    back = a_replica(V1)

    def seen(phase: Phase) -> Snapshot:
        where = [NODE] if phase is Phase.READY else [NODE, OTHER]
        the_route = a_route(wanted, back, nodes=where)
        here = an_agent_report(NODE, replicas=(a_replica(V1, phase=phase),), routes=(the_route,))
        there = an_agent_report(OTHER, replicas=(back,), routes=(the_route,))
        return Snapshot(now_s=0.0, nodes=(here, there), leases=(a_lease(V1, node=NODE),))

    assert decided(wanted, seen(Phase.LOADING)) == []
    order = DrainReplica(replica=name(V1), timeout_s=60.0)
    assert decided(wanted, seen(Phase.READY)) == [OrderNode(node=OTHER, api=API, order=order)]


def test_a_start_waits_for_the_agent_of_a_node_that_has_not_reported() -> None:
    wanted = a_wanted_api(V1)
    seen = a_snapshot(leases=(a_lease(V1, node=OTHER),), routes=(a_route(wanted),))
    found = the_plan(wanted, seen)
    assert not found.actions
    assert [note.text for note in found.notes] == ["the agent of node node-2 has not reported yet"]


def test_every_node_gets_the_route_to_all_replicas_which_says_where_they_are() -> None:
    wanted = a_wanted_api(V1, live=True)
    ready = a_replica(V1)
    seen = Snapshot(
        now_s=0.0,
        nodes=(an_agent_report(NODE, replicas=(ready,)), an_agent_report(OTHER)),
        leases=(a_lease(V1),),
    )
    assert decided(wanted, seen) == [route(a_route(wanted, ready, nodes=[NODE]))]


def test_a_replica_is_drained_only_once_every_node_routes_without_it() -> None:
    live = a_wanted_api(V2, serving=V2)
    old, new = a_replica(V1), a_replica(V2)
    after, before = a_route(live, new, nodes=[NODE]), a_route(live, old, new, nodes=[NODE, NODE])

    def seen(other: SetRoute, number: int, **fields: Any) -> Snapshot:
        revisions = RoutesRevision(1, 2), RoutesRevision(1, number)
        here = an_agent_report(NODE, replicas=(old, new), routes=(after,), routes_revision=revisions[0])
        there = an_agent_report(OTHER, routes=(other,), routes_revision=revisions[1], **fields)
        return Snapshot(now_s=0.0, nodes=(here, there), leases=(a_lease(V1), a_lease(V2)))

    assert decided(live, seen(before, 1)) == [route(after)]
    assert decided(live, seen(after, 2, pending_routes=(API,))) == []
    gone = [route(after), drain(V1)]
    assert decided(live, seen(after, 2)) == gone
    assert decided(live, seen(after, 2, pending_routes=(ApiKey("iris/other"),))) == gone
    shut = IngressReport(up=False, host="", port=0)
    assert decided(live, seen(after, 2, pending_routes=(API,), ingress=shut)) == gone


def test_until_every_node_has_reported_after_our_start_nothing_is_done() -> None:
    wanted = a_wanted_api(V1, replicas=2)
    stray = a_replica(V3, 0)
    found = the_plan(wanted, a_snapshot(stray, settled=False))
    assert not found.actions
    assert [note.text for note in found.notes] == ["not every node has reported since the control plane started"]


# ---- telling ---------------------------------------------------------------------------------------------------------


def test_a_plan_can_be_read() -> None:
    wanted = a_wanted_api(V1, live=True)
    down = a_replica(V1, phase=Phase.EXITED, was_ready=True, exit=an_exit(signal=9))
    found = the_plan(wanted, a_snapshot(down, routes=(a_route(wanted, down),)))
    assert found.describe().splitlines() == [
        f"iris/sklearn: {name(V1)} (attempt 1) ended: killed by signal 9 (SIGKILL)",
        f"iris/sklearn: on local: start {name(V1)} (attempt 2)",
    ]
