"""
Who answers for an api: the route that every node shall have.

A route names the replicas of the whole api, wherever they run. It holds those that are ready, and those that have
served and will again, and those that sleep: the agents keep only ready ones in rotation, and hold requests while there
is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cortex.ids import ApiKey, route_path
from cortex.planning.actions import OrderNode
from cortex.planning.model import Rules, WantedApi
from cortex.planning.rollout import Decision
from cortex.planning.slots import SeenApi, Slot
from cortex.wire.orders import RemoveRoute, SetRoute
from cortex.wire.reports import AgentReport


def wanted_route(
    wanted: WantedApi, decision: Decision, wait_left_s: Callable[[Slot], float], rules: Rules
) -> tuple[SetRoute, float | None]:
    """
    The route of an api, and the seconds until time alone changes it.

    An api none of whose replicas was ready yet has a route to nobody, so that callers are told 503 rather than 404.
    """
    ready: list[Slot] = []
    back_after_s: list[float] = []
    targets = []
    for slot in decision.stay:
        if slot.ready:
            ready.append(slot)
        elif slot.asleep:
            back_after_s.append(0.0)
        elif slot.has_been_ready and not slot.lost and not slot.placing and decision.build_of(slot) is not None:
            back_after_s.append(wait_left_s(slot))
        else:
            continue
        targets.append(slot.replica)
    hold = decision.goal is not None
    changes_after_s = None
    if back_after_s and not ready:
        soonest_s = min(back_after_s)
        hold = soonest_s <= rules.hold_timeout_s
        changes_after_s = None if hold else soonest_s - rules.hold_timeout_s
    answering = decision.goal
    if decision.fallback is not None and not any(decision.build_of(slot) is decision.goal for slot in ready):
        answering = decision.fallback
    route = SetRoute(
        api=wanted.api,
        path=wanted.path or route_path(wanted.api),
        targets=tuple(sorted(set(targets))),
        version=(answering or wanted.build).version,
        timeout_s=wanted.timeout_s,
        max_body_bytes=wanted.max_body_bytes,
        retry=wanted.retry,
        hold=hold,
    )
    return route, changes_after_s


def set_route(
    nodes: tuple[AgentReport, ...], seen: SeenApi, route: SetRoute, *, anyway: bool = False
) -> Iterator[OrderNode]:
    """
    Orders for the nodes whose route is another one, or that have none.

    Args:
        anyway: for all nodes, also where the route seems to be right.
    """
    have = dict(seen.routes)
    for node in nodes:
        if anyway or have.get(node.name) != route:
            yield OrderNode(node=node.name, api=route.api, order=route)


def remove_route(nodes: tuple[AgentReport, ...], api: ApiKey, seen: SeenApi, *, anyway: bool) -> Iterator[OrderNode]:
    """Orders for the nodes that still have a route; with `anyway`, for all."""
    have = {node for node, _route in seen.routes}
    for node in nodes:
        if anyway or node.name in have:
            yield OrderNode(node=node.name, api=api, order=RemoveRoute(api=api))
