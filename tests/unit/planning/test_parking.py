"""Where a replica of the version before stays ready, and when none does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cortex.ids import DeviceId
from cortex.planning.actions import RouteApi
from cortex.planning.assessment import Case, assess
from cortex.planning.model import Desired, Lease, LeaseState, Snapshot, WantedApi
from cortex.planning.parking import Parking, parking_of
from cortex.planning.plan import plan
from cortex.planning.status import statuses
from cortex.testing.builders import (
    API,
    a_build,
    a_lease,
    a_node,
    a_replica,
    a_route,
    a_snapshot,
    a_wanted_api,
    an_agent_report,
    an_exit,
)
from cortex.wire.build import Resources
from cortex.wire.operator import Parked, Status
from cortex.wire.orders import DrainReplica
from cortex.wire.reports import Phase, ReplicaReport

V1, V2 = a_build("v1"), a_build("v2")
OLD, NEW = a_replica(V1), a_replica(V2)
NODE = a_node().node


def watched(**fields: Any) -> WantedApi:
    wanted = a_wanted_api(V2, live=True)
    return msgspec.structs.replace(wanted, **{"previous": V1.revision, "watched_until_wall_s": 45_240.0, **fields})


def case_of(
    wanted: WantedApi,
    *replicas: ReplicaReport,
    routed: tuple[ReplicaReport, ...] = (NEW,),
    leases: tuple[Lease, ...] = (a_lease(V1), a_lease(V2)),
) -> Case:
    seen = a_snapshot(*replicas, leases=leases, routes=(a_route(wanted, *routed),))
    (case,) = assess(Desired(apis=(wanted,)), seen).cases
    return case


def parked(wanted: WantedApi, *replicas: ReplicaReport, **fields: Any) -> list[str]:
    slot = case_of(wanted, *(replicas or (OLD, NEW)), **fields).decision.parked
    return [] if slot is None else [slot.replica]


def test_while_a_version_is_watched_one_replica_of_the_one_before_is_neither_kept_in_the_route_nor_drained() -> None:
    decision = case_of(watched(), OLD, NEW).decision
    assert decision.parked is not None
    assert decision.parked.replica == OLD.replica
    assert [slot.replica for slot in decision.stay] == [NEW.replica]
    assert decision.leave == ()


def test_it_leaves_the_route_first() -> None:
    wanted = watched()
    seen = a_snapshot(OLD, NEW, leases=(a_lease(V1), a_lease(V2)), routes=(a_route(wanted, OLD, NEW),))
    assert plan(assess(Desired(apis=(wanted,)), seen)).actions == (RouteApi(route=a_route(wanted, NEW)),)


@pytest.mark.parametrize(
    "wanted",
    [
        watched(watched_until_wall_s=None),
        watched(previous=None, watched_until_wall_s=None),
        watched(live_wall_s=None, watched_until_wall_s=None),
        watched(previous=a_build("v0").revision),
        watched(scale=msgspec.structs.replace(a_wanted_api().scale, asleep=True)),
    ],
    ids=["the watch is over", "nothing is watched", "not live yet", "it was another one", "it sleeps"],
)
def test_otherwise_nobody_is_parked(wanted: WantedApi) -> None:
    assert parked(wanted) == []


def test_while_older_ones_serve_nobody_is() -> None:
    other, third = a_replica(V1, 1), a_replica(V1, 2)
    leases = (a_lease(V1), a_lease(V1, 1), a_lease(V1, 2), a_lease(V2))
    wanted = watched(scale=msgspec.structs.replace(watched().scale, replicas=3))
    assert parked(wanted, OLD, other, third, NEW, routed=(other, third, NEW), leases=leases) == []


def test_it_is_one_and_who_has_left_already_rather_than_who_leaves_now() -> None:
    other = a_replica(V1, 1)
    leases = (a_lease(V1), a_lease(V1, 1), a_lease(V2))
    case = case_of(watched(), OLD, other, NEW, routed=(OLD, NEW), leases=leases)
    assert case.decision.parked is not None
    assert case.decision.parked.replica == other.replica
    assert [slot.replica for slot in case.decision.leave] == [OLD.replica]


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.DRAINING, Phase.EXITED])
def test_only_one_that_is_ready_is_parked(phase: Phase) -> None:
    assert parked(watched(), a_replica(V1, 0, phase), NEW) == []


def test_the_end_of_one_is_no_crash_of_its_version_and_nothing_takes_its_place() -> None:
    case = case_of(watched(), a_replica(V1, 0, Phase.EXITED, was_ready=True, exit=an_exit()), NEW)
    assert case.exits == ()
    assert [slot.replica for slot in case.decision.leave] == [OLD.replica]
    assert case.decision.add == ()


@pytest.mark.parametrize("state", [None, LeaseState.LOST, LeaseState.PENDING])
def test_only_one_that_has_room_is(state: LeaseState | None) -> None:
    leases = (a_lease(V2),) if state is None else (a_lease(V1, 0, state), a_lease(V2))
    assert parked(watched(), leases=leases) == []


def test_it_goes_at_once_when_anybody_waits_for_room_and_nobody_else_has_to_give_way() -> None:
    waiting = a_lease(a_build("v1", api="iris/other"), 0, LeaseState.PENDING)
    wanted = watched()
    seen = a_snapshot(OLD, NEW, leases=(a_lease(V1), a_lease(V2), waiting), routes=(a_route(wanted, NEW),))
    assessment = assess(Desired(apis=(wanted,)), seen)
    assert assessment.cases[0].decision.parked is None
    assert assessment.cases[0].decision.gives_way
    orders = [getattr(action, "order", None) for action in plan(assessment).actions]
    assert DrainReplica(replica=OLD.replica, timeout_s=60.0) in orders


def test_its_room_is_on_its_way_until_it_has_ended() -> None:
    assert not case_of(watched(), OLD, NEW).decision.gives_way
    assert case_of(watched(), a_replica(V1, 0, Phase.DRAINING), NEW).decision.gives_way


def test_going_back_it_is_in_the_route_at_once_and_the_other_leaves() -> None:
    back = msgspec.structs.replace(
        watched(), build=V1, serving=V2, live_wall_s=None, previous=None, watched_until_wall_s=None
    )
    decision = case_of(back, OLD, NEW).decision
    assert [slot.replica for slot in decision.stay] == [OLD.replica]
    assert [slot.replica for slot in decision.leave] == [NEW.replica]
    assert decision.add == ()


def test_a_version_with_another_compute_has_no_use_for_it() -> None:
    other = a_build("v1", resources=Resources(cpu_millis=900))
    assert other.revision != V1.revision
    back = msgspec.structs.replace(
        watched(), build=other, serving=V2, live_wall_s=None, previous=None, watched_until_wall_s=None
    )
    decision = case_of(back, OLD, NEW).decision
    assert decision.parked is None
    assert [slot.replica for slot in decision.leave] == [OLD.replica]
    assert [slot.replica for slot in decision.stay] == [NEW.replica]


def test_it_is_shown_and_counts_for_nothing() -> None:
    wanted = watched()
    seen = a_snapshot(OLD, NEW, leases=(a_lease(V1), a_lease(V2)), routes=(a_route(wanted, NEW),))
    status = statuses(assess(Desired(apis=(wanted,)), seen))[API]
    assert status.status is Status.LIVE
    assert status.parked == Parked(replica=OLD.replica, version=V1.version[:8], until="1970-01-01T12:34:00Z")
    assert (status.replicas.requested, status.replicas.ready, status.replicas.stale) == (1, 1, 0)


# ---- memory ----------------------------------------------------------------------------------------------------------


GIBI = 2**30


@pytest.mark.parametrize(
    ("stated", "used", "fits"),
    [(GIBI, 5 * GIBI, True), (3 * GIBI, 0, False), (None, 3 * GIBI, False), (None, 2 * GIBI, True)],
)
def test_nobody_is_parked_where_replicas_state_or_use_more_memory_than_there_is(
    stated: int | None, used: int, fits: bool
) -> None:
    resources = Resources(cpu_millis=200, mem_bytes=stated)
    builds = [a_build(label, resources=resources) for label in ("v1", "v2")]
    replicas = tuple(msgspec.structs.replace(a_replica(build), peak_rss_bytes=used) for build in builds)
    report = an_agent_report(a_node(mem_bytes=5 * GIBI), replicas=replicas)
    assert parking_of(Snapshot(now_s=0.0, nodes=(report,))).nodes == frozenset({NODE} if fits else ())


def test_nobody_is_parked_where_one_was_just_killed_for_memory() -> None:
    killed = a_replica(V2, 0, Phase.EXITED, exit=an_exit(oom=True))
    assert parking_of(a_snapshot(killed, OLD)) == Parking()


def test_nobody_is_parked_where_hardly_any_memory_is_left() -> None:
    report = msgspec.structs.replace(an_agent_report(replicas=(OLD, NEW)), memory_short=True)
    assert parking_of(Snapshot(now_s=0.0, nodes=(report,))) == Parking()


@pytest.mark.parametrize(("gpus", "stays"), [(2, False), (3, True)])
def test_one_with_a_gpu_is_parked_only_where_the_next_version_finds_another(gpus: int, stays: bool) -> None:
    builds = [a_build(label, resources=Resources(cpu_millis=200, gpus=1)) for label in ("v1", "v2")]
    leases = [
        msgspec.structs.replace(a_lease(build), devices=(DeviceId(f"GPU-{number}"),))
        for number, build in enumerate(builds)
    ]
    found = parking_of(Snapshot(now_s=0.0, nodes=(an_agent_report(a_node(gpus=gpus)),), leases=tuple(leases)))
    assert found.allows(leases[0]) is stays
    assert found.allows(a_lease(V1))
