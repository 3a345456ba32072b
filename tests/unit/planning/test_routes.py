"""Who answers for an api, how long requests are held for nobody, and which nodes are told."""

from __future__ import annotations

import msgspec
import pytest

from cortex.errors import Problem
from cortex.ids import NodeId, replica_id
from cortex.planning.actions import RouteApi, UnrouteApi
from cortex.planning.assessment import assess
from cortex.planning.model import Desired, Lease, LeaseState, Rules, Snapshot, WantedApi
from cortex.planning.routes import remove_route, set_route, wanted_route
from cortex.planning.slots import SeenApi
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
)
from cortex.wire.orders import SetRoute
from cortex.wire.reports import Phase, ReplicaReport

V1, V2 = a_build("v1"), a_build("v2")
RULES = Rules(hold_timeout_s=5.0)


def routed(wanted: WantedApi, seen: Snapshot, waits_s: dict[str, float] | None = None) -> tuple[SetRoute, float | None]:
    (case,) = assess(Desired(apis=(wanted,)), seen).cases
    return wanted_route(wanted, case.decision, lambda slot: (waits_s or {}).get(slot.replica, 0.0), RULES)


def ended(ordinal: int) -> ReplicaReport:
    """It has served, and will again."""
    return a_replica(V1, ordinal, Phase.EXITED, was_ready=True)


def test_the_ready_ones_and_those_that_come_back_are_named_once_each_in_order() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=4)
    replicas = (a_replica(V1, 2), ended(1), a_replica(V1, 0, Phase.LOADING), a_replica(V1, 3))
    assert routed(wanted, a_snapshot(*replicas)) == (a_route(wanted, replicas[0], replicas[1], replicas[3]), None)


@pytest.mark.parametrize(
    ("lease", "named"),
    [
        (a_lease(V1), True),
        (a_lease(V1, state=LeaseState.PENDING), False),
        (a_lease(V1, state=LeaseState.LOST), False),
    ],
)
def test_one_that_served_is_named_as_long_as_there_is_room_for_it(lease: Lease, named: bool) -> None:
    wanted = a_wanted_api(V1, live=True)
    seen = a_snapshot(leases=(lease,), routes=(a_route(wanted, lease.request.replica),))
    assert routed(wanted, seen)[0].targets == ((lease.request.replica,) if named else ())


@pytest.mark.parametrize(
    ("waits_s", "hold", "changes_after_s"),
    [((0.0, 9.0), True, None), ((9.0, 5.0), True, None), ((9.0, 5.5), False, 0.5), ((60.0, 70.0), False, 55.0)],
)
def test_requests_are_held_for_the_first_that_is_back_in_time(
    waits_s: tuple[float, float], hold: bool, changes_after_s: float | None
) -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2)
    down = (ended(0), ended(1))
    waits = {report.replica: wait_s for report, wait_s in zip(down, waits_s, strict=True)}
    assert routed(wanted, a_snapshot(*down), waits) == (a_route(wanted, *down, hold=hold), changes_after_s)


def test_while_one_is_ready_nothing_waits_for_the_others() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=2)
    replicas = (a_replica(V1, 0), ended(1))
    assert routed(wanted, a_snapshot(*replicas), {replicas[1].replica: 60.0}) == (a_route(wanted, *replicas), None)


def test_a_version_that_serves_is_named_until_one_of_the_new_is_ready() -> None:
    wanted = a_wanted_api(V2, serving=V1)
    old, new = a_replica(V1), a_replica(V2)
    leases = (a_lease(V1), a_lease(V2, surge=True))
    loading = msgspec.structs.replace(new, phase=Phase.LOADING, was_ready=False)
    assert routed(wanted, a_snapshot(old, loading, leases=leases))[0].version == V1.version
    assert routed(wanted, a_snapshot(old, new, leases=leases))[0].version == V2.version
    assert routed(wanted, a_snapshot())[0].version == V1.version


def test_a_first_version_that_failed_is_routed_to_nobody_and_held_for_nobody() -> None:
    failed = Problem(reference="handler-error", message="it failed")
    wanted = msgspec.structs.replace(a_wanted_api(V1), failed=failed)
    assert routed(wanted, a_snapshot()) == (a_route(wanted, hold=False), None)


def test_a_path_that_nobody_chose_is_that_of_the_name() -> None:
    wanted = msgspec.structs.replace(a_wanted_api(V1), path="")
    assert routed(wanted, a_snapshot())[0].path == a_wanted_api(V1).path
    chosen = msgspec.structs.replace(wanted, path="/flowers")
    assert routed(chosen, a_snapshot())[0].path == "/flowers"


def test_what_some_node_has_otherwise_is_set_on_all_and_what_is_right_only_if_need_be() -> None:
    wanted = a_wanted_api(V1)
    right, wrong = a_route(wanted, replica_id(API, V1.revision, 0)), a_route(wanted)
    orders = [RouteApi(route=right)]
    assert list(set_route(SeenApi(), right)) == orders
    assert list(set_route(SeenApi(route=wrong), right)) == orders
    assert list(set_route(SeenApi(route=right, uneven=True), right)) == orders
    assert list(set_route(SeenApi(route=right), right)) == []
    assert list(set_route(SeenApi(route=right), right, anyway=True)) == orders


def test_a_route_that_some_node_has_is_removed_and_any_if_need_be() -> None:
    orders = [UnrouteApi(api=API)]
    assert list(remove_route(API, SeenApi(route=a_route(a_wanted_api(V1))), anyway=False)) == orders
    assert list(remove_route(API, SeenApi(uneven=True), anyway=False)) == orders
    assert list(remove_route(API, SeenApi(), anyway=False)) == []
    assert list(remove_route(API, SeenApi(), anyway=True)) == orders


def test_a_route_says_on_which_nodes_how_many_are_where_there_are_several() -> None:
    wanted = a_wanted_api(V1, live=True, replicas=3)
    seen = a_snapshot(a_replica(V1, 0), a_replica(V1, 1))
    there = an_agent_report(NodeId("a"), replicas=(a_replica(V1, 2),))
    (case,) = assess(Desired(apis=(wanted,)), msgspec.structs.replace(seen, nodes=(*seen.nodes, there))).cases
    found, _ = wanted_route(wanted, case.decision, lambda _slot: 0.0, RULES, says_where=True)
    assert found.nodes == {"a": 1, NODE: 2}
