"""
Who answers for an api: the route that every node shall have, and the tables that nodes have.

A route names the replicas of the whole api, wherever they run. It holds those that are ready, and those that have
served and will again, and those that sleep: the agents keep only ready ones in rotation, and hold requests while there
is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cortex.ids import ApiKey, NodeId, route_path
from cortex.planning.actions import RouteApi, UnrouteApi
from cortex.planning.model import Rules, WantedApi
from cortex.planning.rollout import Decision
from cortex.planning.slots import SeenApi, Slot
from cortex.wire.orders import SetRoute


def wanted_route(
    wanted: WantedApi,
    decision: Decision,
    wait_left_s: Callable[[Slot], float],
    rules: Rules,
    *,
    says_where: bool = False,
) -> tuple[SetRoute, float | None]:
    """
    The route of an api, and the seconds until time alone changes it.

    An api none of whose replicas was ready yet has a route to nobody, so that callers are told 503 rather than 404.

    Args:
        says_where: the nodes of the targets are named, since there are several.
    """
    ready: list[Slot] = []
    back_after_s: list[float] = []
    targets = []
    where: dict[NodeId, int] = {}
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
        if says_where and slot.node is not None:
            where[slot.node] = where.get(slot.node, 0) + 1
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
        nodes=dict(sorted(where.items())),
    )
    return route, changes_after_s


def set_route(seen: SeenApi, route: SetRoute, *, anyway: bool = False) -> Iterator[RouteApi]:
    """
    What is to be done where some node has another route, or none.

    Args:
        anyway: also where the route seems to be right on all of them.
    """
    if anyway or seen.route != route or seen.uneven:
        yield RouteApi(route=route)


def remove_route(api: ApiKey, seen: SeenApi, *, anyway: bool) -> Iterator[UnrouteApi]:
    """What is to be done where some node still has a route; with `anyway`, in any case."""
    if anyway or seen.route is not None or seen.uneven:
        yield UnrouteApi(api=api)
