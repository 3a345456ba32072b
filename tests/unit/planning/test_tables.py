"""Which table of routes is the newest, and which nodes have another one."""

from __future__ import annotations

import pytest

from cortex.ids import ApiKey, NodeId
from cortex.planning.tables import SeenRoutes, seen_routes
from cortex.testing.builders import API, a_build, a_replica, a_route, a_wanted_api, an_agent_report
from cortex.wire.orders import UNNUMBERED, RoutesRevision, SetRoute
from cortex.wire.reports import AgentReport

V1 = a_build("v1")
R0, R1 = a_replica(V1, 0).replica, a_replica(V1, 1).replica
OTHER = ApiKey("iris/other")
OLD, NEW = a_route(a_wanted_api(V1), R0), a_route(a_wanted_api(V1), R1)
BESIDE = a_route(a_wanted_api(a_build("v1", api=OTHER)))


def a_table(name: str, revision: RoutesRevision | None, *routes: SetRoute) -> AgentReport:
    return an_agent_report(NodeId(name), routes=routes, routes_revision=revision)


def test_where_nobody_reports_there_is_no_table() -> None:
    assert seen_routes(()) == SeenRoutes()


@pytest.mark.parametrize("later", [RoutesRevision(1, 2), RoutesRevision(2, 1)])
def test_the_greatest_revision_counts_and_whoever_is_named_by_any_node_is_routed(later: RoutesRevision) -> None:
    nodes = [
        a_table("a", RoutesRevision(1, 1), OLD, BESIDE),
        a_table("b", later, NEW, BESIDE),
        a_table("c", UNNUMBERED),
    ]
    found = seen_routes(nodes)
    assert found == seen_routes(reversed(nodes))
    assert (found.revision, found.routes, found.routed) == (later, {API: NEW, OTHER: BESIDE}, {R0, R1})
    assert (found.uneven, found.left) == ({API, OTHER}, {R0})
    assert seen_routes(nodes[:2]).uneven == {API}


def test_tables_of_one_revision_are_one_table() -> None:
    revision = RoutesRevision(1, 1)
    found = seen_routes([a_table("a", revision, OLD), a_table("b", revision, OLD)])
    assert (found.routes, found.uneven) == ({API: OLD}, frozenset())


@pytest.mark.parametrize("number", [None, UNNUMBERED])
def test_tables_without_a_number_are_compared_by_what_they_hold(number: RoutesRevision | None) -> None:
    same = [a_table("a", number, OLD), a_table("b", number, OLD)]
    assert seen_routes(same).uneven == frozenset()
    assert seen_routes([*same, a_table("c", number)]).uneven == {API}
