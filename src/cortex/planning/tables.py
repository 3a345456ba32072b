"""
The tables of routes that nodes have: which is the newest, and who has another one. Pure.

A table is the same on every node. Between two plans it is nowhere but there: the newest that any node reports is what
was ordered last, as far as any node has taken it. Two tables of one revision are the same one, so that only those few
have to be read that are of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from cortex.ids import ApiKey, ReplicaId
from cortex.wire.orders import UNNUMBERED, RoutesRevision, SetRoute
from cortex.wire.reports import AgentReport


class SeenRoutes(msgspec.Struct, frozen=True, kw_only=True):
    """What nodes send where, by what was ordered."""

    revision: RoutesRevision = UNNUMBERED
    """Of the newest table."""
    routes: Mapping[ApiKey, SetRoute] = {}
    """The newest table."""
    uneven: frozenset[ApiKey] = frozenset()
    """Apis for which some node has another route than that table, or for which just one of them has none."""
    routed: frozenset[ReplicaId] = frozenset()
    """Whoever is named by any node."""
    left: frozenset[ReplicaId] = frozenset()
    """Of these, those that the newest table does not name any more."""


def seen_routes(nodes: Iterable[AgentReport]) -> SeenRoutes:
    """What nodes were ordered to send where."""
    nodes = tuple(nodes)
    newest = max(nodes, key=_newer, default=None)
    if newest is None:
        return SeenRoutes()
    routes = by_api(newest)
    named = {target for route in newest.routes for target in route.targets}
    routed = set(named)
    uneven: set[ApiKey] = set()
    for other in _others(nodes, newest):
        found = by_api(other)
        uneven.update(api for api in routes.keys() | found.keys() if routes.get(api) != found.get(api))
        routed.update(target for route in other.routes for target in route.targets)
    return SeenRoutes(
        revision=newest.routes_revision or UNNUMBERED,
        routes=routes,
        uneven=frozenset(uneven),
        routed=frozenset(routed),
        left=frozenset(routed - named),
    )


def by_api(node: AgentReport) -> dict[ApiKey, SetRoute]:
    """A node's table."""
    return {route.api: route for route in node.routes}


def _newer(node: AgentReport) -> tuple[RoutesRevision, int, str]:
    return node.routes_revision or UNNUMBERED, len(node.routes), node.name


def _others(nodes: Iterable[AgentReport], newest: AgentReport) -> Iterator[AgentReport]:
    """One node for each table that is not the newest."""
    revisions = {newest.routes_revision}
    for node in nodes:
        if node.routes_revision is None or node.routes_revision == UNNUMBERED:
            if node.routes != newest.routes:
                yield node
        elif node.routes_revision not in revisions:
            revisions.add(node.routes_revision)
            yield node
