"""
From what becomes of routes to one table for all nodes, and to the orders that bring each node there.

A node is told what differs from the table that it reports. If that is not the one it has, because an answer got lost or
an order is still on its way, it refuses, and nothing is taken away that depends on it: the next report tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from cortex.controlplane.world import World
from cortex.errors import RetryLater
from cortex.ids import ApiKey, NodeId
from cortex.planning.actions import OrderNode, RouteApi, UnrouteApi
from cortex.planning.tables import by_api, seen_routes
from cortex.wire.orders import UNNUMBERED, RemoveRoute, RoutesRevision, SetRoute, SetRoutes
from cortex.wire.reports import AgentReport

RETRY_AFTER_S = 0.2

Routing = RouteApi | UnrouteApi


class TableChange(msgspec.Struct, frozen=True, kw_only=True):
    """A table that all nodes shall have, and what those are ordered that may not have it."""

    revision: RoutesRevision = UNNUMBERED
    routes: Mapping[ApiKey, SetRoute] = {}
    causes: tuple[Routing, ...] = ()
    orders: tuple[OrderNode, ...] = ()

    def refusals(self, reports: Iterable[AgentReport]) -> Iterator[tuple[NodeId, RetryLater]]:
        """Nodes that were ordered and have not got there."""
        told = {action.node for action in self.orders}
        for report in reports:
            if report.name in told and not has_table(report, self.revision, self.routes):
                text = f"node {report.name} has not got the routes"
                yield report.name, RetryLater(text, after_s=RETRY_AFTER_S)


def table_change(causes: Sequence[Routing], world: World) -> TableChange:
    """The table that what is planned comes to. One that nobody has been told of yet gets a number of its own."""
    if not causes:
        return TableChange()
    lost = world.memory.lost
    reports = [report for report in world.agents.reports() if report.name not in lost]
    seen = seen_routes(reports)
    routes = dict(seen.routes)
    for cause in causes:
        match cause:
            case RouteApi(route=route):
                routes[route.api] = route
            case UnrouteApi(api=api):
                routes.pop(api, None)
    revision = seen.revision
    if routes != seen.routes or revision == UNNUMBERED:
        world.memory.tables += 1
        revision = RoutesRevision(world.epoch, world.memory.tables)
    return TableChange(
        revision=revision,
        routes=routes,
        causes=tuple(causes),
        orders=tuple(_orders(causes, revision, routes, reports, certain=world.memory.certain)),
    )


def _orders(
    causes: Sequence[Routing],
    revision: RoutesRevision,
    routes: Mapping[ApiKey, SetRoute],
    reports: Iterable[AgentReport],
    *,
    certain: set[NodeId],
) -> Iterator[OrderNode]:
    made: dict[RoutesRevision, SetRoutes] = {}
    for report in reports:
        if report.name in certain and has_table(report, revision, routes):
            continue
        base = report.routes_revision
        if base is None:
            for order in _one_by_one(causes, report, routes):
                yield OrderNode(node=report.name, api=order.api, order=order)
            continue
        if base not in made:
            made[base] = _difference(report, revision, routes)
        yield OrderNode(node=report.name, api=causes[0].api, order=made[base])


def _difference(report: AgentReport, revision: RoutesRevision, routes: Mapping[ApiKey, SetRoute]) -> SetRoutes:
    """From what a node has to a table; as a whole where what it has bears no number."""
    if report.routes_revision == UNNUMBERED:
        return SetRoutes(revision=revision, routes=tuple(routes.values()))
    had = by_api(report)
    return SetRoutes(
        revision=revision,
        base=report.routes_revision,
        routes=tuple(route for api, route in routes.items() if had.get(api) != route),
        removed=tuple(sorted(had.keys() - routes.keys())),
    )


def _one_by_one(
    causes: Sequence[Routing], report: AgentReport, routes: Mapping[ApiKey, SetRoute]
) -> Iterator[SetRoute | RemoveRoute]:
    """For an agent that knows of no tables: what it lacks, and what is to be so in any case."""
    had = by_api(report)
    anyway = {cause.api for cause in causes}
    for api in sorted(had.keys() | routes.keys()):
        if api not in anyway and had.get(api) == routes.get(api):
            continue
        yield routes[api] if api in routes else RemoveRoute(api=api)


def has_table(report: AgentReport, revision: RoutesRevision, routes: Mapping[ApiKey, SetRoute]) -> bool:
    if report.routes_revision is None:
        return by_api(report) == routes
    return report.routes_revision == revision
