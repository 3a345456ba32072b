"""How an api falls asleep and wakes: one situation a test, whole plans and statuses compared."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from cortex.ids import ReplicaId, replica_id
from cortex.planning.actions import AcquireLease, Action, MarkAwake, MarkLive, OrderNode, ReleaseLease, RouteApi
from cortex.planning.assessment import assess
from cortex.planning.load import ApiLoad
from cortex.planning.model import Desired, LeaseRequest, LeaseState, Scale, Snapshot, WantedApi
from cortex.planning.plan import plan
from cortex.planning.scale import deployed
from cortex.planning.sleep import Idleness, idled, sleeps_in_s
from cortex.planning.status import statuses
from cortex.testing.builders import (
    API,
    NODE,
    a_build,
    a_lease,
    a_load,
    a_replica,
    a_route,
    a_snapshot,
    a_wanted_api,
    an_exit,
)
from cortex.wire.build import BuildSpec
from cortex.wire.operator import Status
from cortex.wire.orders import DrainReplica, ForgetReplica, HoldSlot, Order, SetRoute, StartReplica
from cortex.wire.reports import Phase, ReplicaReport

V1, V2 = a_build("v1"), a_build("v2")


def name(build: BuildSpec, ordinal: int = 0) -> ReplicaId:
    return replica_id(build.api, build.revision, ordinal)


def an_api(build: BuildSpec = V1, *, asleep: bool = False, serving: BuildSpec | None = None) -> WantedApi:
    """One that may sleep."""
    wanted = a_wanted_api(build, serving=serving or build, live=serving is None, min_replicas=0)
    scale = Scale(asleep=asleep, reason="nobody asked for 300 s" if asleep else "")
    return msgspec.structs.replace(wanted, scale=scale, serving_was_live=True)


def a_sleeper(build: BuildSpec = V1, ordinal: int = 1, *, knocked_s: float | None = None) -> ReplicaReport:
    report = a_replica(build, ordinal, Phase.ASLEEP, attempt=0, was_ready=False)
    return msgspec.structs.replace(report, knocked_age_s=knocked_s)


def order(the_order: Order) -> Action:
    return OrderNode(node=NODE, api=API, order=the_order)


def decided(wanted: WantedApi, seen: Snapshot) -> list[Action]:
    return list(plan(assess(Desired(apis=(wanted,)), seen)).actions)


def seen_as(wanted: WantedApi, seen: Snapshot) -> tuple[Status, str | None, int]:
    shown = statuses(assess(Desired(apis=(wanted,)), seen))[API]
    return shown.status, shown.reason, shown.replicas.requested


# ---- falling asleep --------------------------------------------------------------------------------------------------


def test_a_new_slot_is_held_while_the_last_replica_goes_on_answering() -> None:
    wanted, ready = an_api(asleep=True), a_replica(V1)
    seen = a_snapshot(ready, routes=(a_route(wanted, ready),))
    assert decided(wanted, seen) == [order(HoldSlot(replica=name(V1, 1), build=V1))]
    assert seen_as(wanted, seen)[0] is Status.LIVE


def test_the_slot_takes_the_place_of_all_replicas_in_the_route_before_any_of_them_goes() -> None:
    wanted, ready, sleeper = an_api(asleep=True), a_replica(V1), a_sleeper()
    seen = a_snapshot(ready, sleeper, leases=(a_lease(V1),), routes=(a_route(wanted, ready),))
    assert decided(wanted, seen) == [RouteApi(route=a_route(wanted, sleeper))]


def test_what_is_out_of_the_route_finishes_and_gives_its_room_back() -> None:
    wanted, ready, sleeper = an_api(asleep=True), a_replica(V1), a_sleeper()
    routed = a_route(wanted, sleeper)
    seen = a_snapshot(ready, sleeper, leases=(a_lease(V1),), routes=(routed,))
    drain = order(DrainReplica(replica=ready.replica, timeout_s=60.0))
    assert decided(wanted, seen) == [RouteApi(route=routed), drain]
    ended = a_replica(V1, phase=Phase.EXITED, exit=an_exit(drained=True))
    seen = a_snapshot(ended, sleeper, leases=(a_lease(V1),), routes=(routed,))
    forget = order(ForgetReplica(replica=ended.replica))
    assert decided(wanted, seen) == [forget, ReleaseLease(replica=ended.replica, api=API)]


def test_what_sleeps_holds_no_room_and_is_left_alone() -> None:
    wanted, sleeper = an_api(asleep=True), a_sleeper()
    seen = a_snapshot(sleeper, leases=(), routes=(a_route(wanted, sleeper),))
    assert decided(wanted, seen) == []
    assert seen_as(wanted, seen) == (Status.ASLEEP, "nobody asked for 300 s", 0)


def test_room_that_was_asked_for_and_is_not_needed_any_more_is_given_back() -> None:
    wanted, sleeper = an_api(asleep=True), a_sleeper()
    seen = a_snapshot(sleeper, leases=(a_lease(V1, 1),), routes=(a_route(wanted, sleeper),))
    assert decided(wanted, seen) == [ReleaseLease(replica=sleeper.replica, api=API)]


def test_after_a_reboot_a_slot_is_held_and_nothing_is_started() -> None:
    wanted = an_api(asleep=True)
    hold = order(HoldSlot(replica=name(V1, 0), build=V1))
    assert decided(wanted, a_snapshot(routes=(a_route(wanted),))) == [hold]
    assert seen_as(wanted, a_snapshot(routes=(a_route(wanted),)))[0] is Status.ASLEEP


def test_replicas_that_are_not_ready_go_at_once() -> None:
    wanted, loading, sleeper = an_api(asleep=True), a_replica(V1, 2, Phase.LOADING), a_sleeper()
    seen = a_snapshot(loading, sleeper, leases=(a_lease(V1, 2),), routes=(a_route(wanted, sleeper),))
    forget = order(ForgetReplica(replica=loading.replica))
    assert decided(wanted, seen) == [forget, ReleaseLease(replica=loading.replica, api=API)]


# ---- waking ----------------------------------------------------------------------------------------------------------


def test_a_knock_wakes_it() -> None:
    wanted, sleeper = an_api(asleep=True), a_sleeper(knocked_s=0.1)
    seen = a_snapshot(sleeper, leases=(), routes=(a_route(wanted, sleeper),))
    assert decided(wanted, seen) == [MarkAwake(api=API, waited_s=0.1)]
    assert seen_as(wanted, seen)[0] is Status.WAKING


def test_what_wakes_asks_for_room_as_a_minimum_and_starts_on_the_slot_where_requests_wait() -> None:
    wanted, sleeper = an_api(), a_sleeper(knocked_s=0.1)
    routed = a_route(wanted, sleeper)
    room = LeaseRequest(replica=sleeper.replica, api=API, resources=V1.resources, minimum=True, node=NODE)
    seen = a_snapshot(sleeper, leases=(), routes=(routed,))
    assert decided(wanted, seen) == [AcquireLease(request=room)]
    seen = a_snapshot(sleeper, leases=(a_lease(V1, 1, minimum=True),), routes=(routed,))
    assert decided(wanted, seen) == [order(StartReplica(replica=sleeper.replica, attempt=1, build=V1))]
    assert seen_as(wanted, seen) == (Status.WAKING, None, 1)
    loading = a_replica(V1, 1, Phase.LOADING, was_ready=False)
    seen = a_snapshot(loading, leases=(a_lease(V1, 1, minimum=True),), routes=(routed,))
    assert decided(wanted, seen) == []
    assert seen_as(wanted, seen)[0] is Status.WAKING


def test_what_finds_no_room_goes_on_waiting_and_says_for_what() -> None:
    wanted, sleeper = an_api(), a_sleeper(knocked_s=0.1)
    lease = a_lease(V1, 1, LeaseState.PENDING, minimum=True, reason="node local: mem 3Gi of 3Gi requested, 1Gi asked")
    seen = a_snapshot(sleeper, leases=(lease,), routes=(a_route(wanted, sleeper),))
    assert decided(wanted, seen) == []
    assert seen_as(wanted, seen)[:2] == (Status.WAKING, f"waiting for room: {lease.reason}")
    found = plan(assess(Desired(apis=(wanted,)), seen))
    assert [note.text for note in found.notes] == [f"no room for 1 of 1 replicas ({lease.reason})"]
    granted = a_snapshot(sleeper, leases=(a_lease(V1, 1, minimum=True),), routes=(a_route(wanted, sleeper),))
    assert plan(assess(Desired(apis=(wanted,)), granted)).notes == ()


def test_a_knock_while_it_falls_asleep_is_answered_by_the_slot_and_the_old_replica_leaves_all_the_same() -> None:
    wanted, ready, sleeper = an_api(), a_replica(V1), a_sleeper(knocked_s=0.1)
    seen = a_snapshot(ready, sleeper, leases=(a_lease(V1),), routes=(a_route(wanted, sleeper),))
    room = LeaseRequest(replica=sleeper.replica, api=API, resources=V1.resources, minimum=False, node=NODE)
    assert AcquireLease(request=room) in decided(wanted, seen)


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.LOADING, Phase.WARMING])
def test_one_where_requests_wait_leaves_only_once_it_has_answered_although_another_is_ready(phase: Phase) -> None:
    """Falling asleep was cut short: the old replica was never told to leave."""
    wanted, ready, waking = an_api(), a_replica(V1), a_replica(V1, 1, phase, was_ready=False)
    leases = (a_lease(V1), a_lease(V1, 1))
    assert leaving(decided(wanted, a_snapshot(ready, waking, leases=leases, routes=(a_route(wanted, waking),)))) == []
    routed = a_route(wanted, ready, waking)
    assert leaving(decided(wanted, a_snapshot(ready, waking, leases=leases, routes=(routed,)))) == []
    new = an_api(V2, serving=V1)
    seen = a_snapshot(
        a_replica(V2), waking, leases=(a_lease(V1, 1), a_lease(V2)), routes=(a_route(new, a_replica(V2), waking),)
    )
    assert leaving(decided(new, seen)) == []


def leaving(actions: Sequence[Action]) -> list[Action]:
    """What has somebody leave, were it the route."""
    orders = [one for one in actions if isinstance(one, OrderNode)]
    woken = name(V1, 1)
    return [
        one
        for one in orders
        if isinstance(one.order, DrainReplica | ForgetReplica)
        or (isinstance(one.order, SetRoute) and woken not in one.order.targets)
    ]


# ---- new versions ----------------------------------------------------------------------------------------------------


def test_a_new_version_comes_up_beside_a_sleeper_that_nobody_asks_for() -> None:
    wanted, sleeper = an_api(V2, serving=V1), a_sleeper(V1)
    routed = a_route(wanted, sleeper, build=V1)
    seen = a_snapshot(sleeper, leases=(), routes=(routed,))
    room = LeaseRequest(replica=name(V2), api=API, resources=V2.resources, surge=True, minimum=True)
    assert decided(wanted, seen) == [AcquireLease(request=room)]


def test_one_that_is_asked_for_meanwhile_is_started_and_leaves_once_it_has_answered() -> None:
    wanted, sleeper = an_api(V2, serving=V1), a_sleeper(V1, knocked_s=0.1)
    ready = a_replica(V2)
    seen = a_snapshot(
        sleeper, ready, leases=(a_lease(V1, 1), a_lease(V2, surge=True)), routes=(a_route(wanted, sleeper, ready),)
    )
    start = order(StartReplica(replica=sleeper.replica, attempt=1, build=V1))
    found = decided(wanted, seen)
    assert start in found
    assert not any(isinstance(one, OrderNode) and isinstance(one.order, ForgetReplica) for one in found)


def test_a_sleeper_of_an_old_version_is_forgotten_once_the_new_one_answers() -> None:
    wanted, sleeper, ready = an_api(V2, serving=V1), a_sleeper(V1), a_replica(V2)
    seen = a_snapshot(sleeper, ready, leases=(a_lease(V2),), routes=(a_route(wanted, ready),))
    found = decided(wanted, seen)
    assert MarkLive(api=API, revision=V2.revision) in found
    assert order(ForgetReplica(replica=sleeper.replica)) in found


@pytest.mark.parametrize(
    ("proves", "minimum", "asleep"), [(False, 0, True), (True, 0, False), (False, 1, False), (True, 1, False)]
)
def test_a_deploy_wakes_what_has_to_show_that_it_works_or_may_not_sleep(
    proves: bool, minimum: int, asleep: bool
) -> None:
    before = an_api(asleep=True)
    now = msgspec.structs.replace(before, min_replicas=minimum)
    after = deployed(before.scale, before, now, first=1, wall_s=5.0, proves=proves)
    assert (after.asleep, after.replicas) == (asleep, 1)


# ---- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ready", "load", "ended", "rests"),
    [
        (True, a_load(), 7.0, True),
        (True, a_load(in_flight=1), 7.0, False),
        (True, a_load(queued=1), 7.0, False),
        (True, a_load(), 8.0, False),
        (True, None, 7.0, False),
        (False, a_load(), 7.0, False),
    ],
    ids=["at rest", "in a replica", "at the ingress", "answered meanwhile", "not read", "not ready"],
)
def test_it_is_idle_only_while_nothing_is_asked_and_something_could_be(
    ready: bool, load: ApiLoad | None, ended: float, rests: bool
) -> None:
    wanted = an_api()
    replica = a_replica(V1, phase=Phase.READY if ready else Phase.LOADING)
    assessment = assess(Desired(apis=(wanted,)), a_snapshot(replica, routes=(a_route(wanted, replica),)))
    (case,) = assessment.cases
    before = Idleness(ended=7.0, since_s=100.0)
    found = idled(before, case, load, ended=ended, now_s=130.0)
    assert found == (before if rests else Idleness(ended=ended, since_s=130.0))
    assert sleeps_in_s(case, found, now_s=130.0) == (270.0 if rests else 300.0)


def test_during_a_rollout_nothing_falls_asleep() -> None:
    wanted, replica = an_api(V2, serving=V1), a_replica(V1)
    assessment = assess(Desired(apis=(wanted,)), a_snapshot(replica, routes=(a_route(wanted, replica),)))
    (case,) = assessment.cases
    found = idled(Idleness(ended=7.0, since_s=100.0), case, a_load(), ended=7.0, now_s=130.0)
    assert found.since_s == 130.0
