"""Leases and reports joined: which slots there are, and what each says of itself."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cortex.ids import ApiKey, NodeId, ReplicaId
from cortex.planning.model import LeaseState, Snapshot
from cortex.planning.slots import NOTHING_SEEN, SeenApi, Slot, SlotState, join, of_revision
from cortex.testing.builders import (
    API,
    NODE,
    a_build,
    a_lease,
    a_replica,
    a_route,
    a_snapshot,
    a_wanted_api,
    an_agent_report,
    an_exit,
)
from cortex.wire.reports import IngressReport, Phase

V1, V2 = a_build("v1"), a_build("v2")
OTHER = NodeId("other")


def a_slot(**facts: Any) -> Slot:
    """A replica that is ready on its node."""
    report = a_replica(V1)
    defaults: dict[str, Any] = {
        "replica": report.replica,
        "digits": V1.revision[:8],
        "ordinal": 0,
        "state": SlotState.READY,
        "node": NODE,
        "report": report,
        "lease": a_lease(V1),
        "routed": False,
    }
    return Slot(**(defaults | facts))


def slots(seen: Snapshot) -> list[Slot]:
    return list(join(seen).get(API, NOTHING_SEEN).slots)


@pytest.mark.parametrize(
    ("phase", "state"),
    [
        (Phase.STARTING, SlotState.STARTING),
        (Phase.LOADING, SlotState.STARTING),
        (Phase.WARMING, SlotState.STARTING),
        (Phase.READY, SlotState.READY),
        (Phase.DRAINING, SlotState.DRAINING),
        (Phase.EXITED, SlotState.EXITED),
    ],
)
@pytest.mark.parametrize("lease", [LeaseState.PENDING, LeaseState.GRANTED, LeaseState.LOST, None])
def test_what_runs_is_where_its_report_says_whatever_became_of_its_lease(
    phase: Phase, state: SlotState, lease: LeaseState | None
) -> None:
    report = a_replica(V1, phase=phase)
    leases = () if lease is None else (a_lease(V1, state=lease),)
    assert slots(a_snapshot(report, leases=leases)) == [
        a_slot(state=state, report=report, lease=leases[0] if leases else None)
    ]


@pytest.mark.parametrize(
    ("lease", "state"),
    [
        (LeaseState.PENDING, SlotState.PLACING),
        (LeaseState.GRANTED, SlotState.WAITING),
        (LeaseState.LOST, SlotState.WAITING),
    ],
)
def test_room_of_which_nobody_reports_waits_for_a_start_or_for_the_room_itself(
    lease: LeaseState, state: SlotState
) -> None:
    held = a_lease(V1, state=lease)
    assert slots(a_snapshot(leases=(held,))) == [a_slot(state=state, node=held.node, report=None, lease=held)]


def test_what_runs_where_its_lease_is_not_is_a_stranger_beside_the_slot_of_the_lease() -> None:
    report, lease = a_replica(V1), a_lease(V1, node=OTHER)
    assert slots(a_snapshot(report, leases=(lease,))) == [
        a_slot(lease=None, stranger=True),
        a_slot(state=SlotState.WAITING, node=OTHER, report=None, lease=lease),
    ]


@pytest.mark.parametrize(("here", "there"), [(Phase.READY, Phase.ASLEEP), (Phase.ASLEEP, Phase.READY)])
def test_of_two_of_one_name_without_a_lease_the_one_that_runs_is_a_stranger_beside_the_one_that_sleeps(
    here: Phase, there: Phase
) -> None:
    nodes = (an_agent_report(NODE, replicas=(a_replica(V1, phase=here),)),)
    nodes += (an_agent_report(OTHER, replicas=(a_replica(V1, phase=there),)),)
    found = slots(msgspec.structs.replace(a_snapshot(leases=()), nodes=nodes))
    assert {(slot.asleep, slot.stranger) for slot in found} == {(True, False), (False, True)}


def test_slots_come_by_revision_then_by_number_then_by_node() -> None:
    first, second = sorted((V1, V2), key=lambda build: build.revision)
    replicas = tuple(a_replica(build, ordinal) for build in (second, first) for ordinal in (10, 9))
    seen = a_snapshot(*replicas, leases=())
    twice = an_agent_report(NodeId("a"), replicas=(a_replica(first, 9),))
    found = slots(msgspec.structs.replace(seen, nodes=(*seen.nodes, twice)))
    assert [(slot.digits, slot.ordinal, slot.node) for slot in found] == [
        (first.revision[:8], 9, "a"),
        (first.revision[:8], 9, NODE),
        (first.revision[:8], 10, NODE),
        (second.revision[:8], 9, NODE),
        (second.revision[:8], 10, NODE),
    ]


def test_a_route_is_seen_by_those_it_names_and_with_the_nodes_whose_ingress_lacks_it() -> None:
    wanted = a_wanted_api(V1)
    named, unnamed = a_replica(V1, 0), a_replica(V1, 1)
    route = a_route(wanted, named)
    seen = a_snapshot(named, unnamed, routes=(route,))
    of_api = join(seen)[API]
    assert [slot.routed for slot in of_api.slots] == [True, False]
    assert (of_api.route, of_api.uneven, of_api.routes_pending, of_api.lagging) == (route, False, False, frozenset())
    node = msgspec.structs.replace(seen.nodes[0], pending_routes=(API, ApiKey("iris/other")))
    of_api = join(msgspec.structs.replace(seen, nodes=(node,)))[API]
    assert (of_api.routes_pending, of_api.lagging) == (True, {NODE})
    node = msgspec.structs.replace(node, ingress=IngressReport(up=False, host="", port=0))
    of_api = join(msgspec.structs.replace(seen, nodes=(node,)))[API]
    assert (of_api.routes_pending, of_api.lagging) == (True, frozenset())


def test_a_route_alone_makes_an_api_seen_and_a_lease_may_be_routed_before_anybody_reports() -> None:
    wanted, lease = a_wanted_api(V1), a_lease(V1)
    route = a_route(wanted, lease.request.replica)
    assert join(a_snapshot(routes=(route,))) == {API: SeenApi(route=route)}
    assert [slot.routed for slot in slots(a_snapshot(routes=(route,), leases=(lease,)))] == [True]
    assert join(a_snapshot()) == {}


def test_a_slot_is_ready_or_placing_in_that_state_alone() -> None:
    assert [state for state in SlotState if a_slot(state=state).ready] == [SlotState.READY]
    assert [state for state in SlotState if a_slot(state=state).placing] == [SlotState.PLACING]


def test_a_slot_has_drained_only_once_it_ended_because_it_was_asked_to() -> None:
    asked, by_itself = (a_replica(V1, phase=Phase.EXITED, exit=an_exit(drained=drained)) for drained in (True, False))
    assert a_slot(state=SlotState.EXITED, report=asked).drained
    assert not a_slot(state=SlotState.EXITED, report=by_itself).drained
    assert not a_slot(state=SlotState.EXITED, report=None).drained
    assert not a_slot(state=SlotState.EXITED, report=msgspec.structs.replace(asked, exit=None)).drained
    assert not a_slot(state=SlotState.DRAINING, report=asked).drained


def test_a_slot_is_lost_or_a_surge_as_its_lease_says() -> None:
    assert a_slot(lease=a_lease(V1, state=LeaseState.LOST)).lost
    assert not a_slot(lease=a_lease(V1)).lost
    assert not a_slot(lease=None).lost
    assert a_slot(lease=a_lease(V1, surge=True)).surge
    assert not a_slot(lease=a_lease(V1)).surge
    assert not a_slot(lease=None).surge


def test_a_slot_has_been_ready_if_its_attempt_has_or_a_route_names_it() -> None:
    was, was_not = a_replica(V1, phase=Phase.EXITED, was_ready=True), a_replica(V1, phase=Phase.LOADING)
    assert a_slot(report=was).has_been_ready
    assert not a_slot(report=was_not).has_been_ready
    assert a_slot(report=was_not, routed=True).has_been_ready
    assert a_slot(report=None, routed=True).has_been_ready
    assert not a_slot(report=None).has_been_ready


def test_a_slot_is_of_the_revision_whose_digits_its_name_has() -> None:
    assert of_revision(a_slot(), V1.revision)
    assert not of_revision(a_slot(), V2.revision)


def test_the_name_of_a_replica_is_read_from_its_end_as_names_of_apis_may_have_dots() -> None:
    lease = a_lease(V1)
    named = msgspec.structs.replace(lease.request, replica=ReplicaId("iris.v1.0.sklearn.0a1b2c3d.12"))
    lease = msgspec.structs.replace(lease, request=named)
    (slot,) = slots(a_snapshot(leases=(lease,)))
    assert (slot.digits, slot.ordinal) == ("0a1b2c3d", 12)
