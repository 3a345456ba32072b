"""
For which apis a door holds requests while there is nobody who can be reached. Pure.

Whoever had replicas a moment ago ought to have some again: they were on a node that is lost, and are being replaced. An
api that never had any is not waited for, nor one for which nobody will be started.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from cortex.ids import ApiKey
from cortex.ingress.routes import IngressRoute
from cortex.wire.orders import SetRoute

HOLD_S = 30.0
"""After so long without anybody callers are told 503 at once. As long as one of them waits (`IngressLimits.hold_s`)."""


def reached(
    before: Mapping[ApiKey, float], told: Iterable[IngressRoute], wanted: Iterable[IngressRoute], now_s: float
) -> dict[ApiKey, float]:
    """
    When each wanted api last had a replica, here or elsewhere, as far as that is known.

    Args:
        before: what was returned last.
        told: routes as they were until now.

    Returns:
        Monotonic seconds; nothing of who never had any.
    """
    wanted = tuple(wanted)
    had = dict.fromkeys((route.api for route in (*told, *wanted) if _has_somebody(route)), now_s)
    known = {**before, **had}
    return {route.api: known[route.api] for route in wanted if route.api in known}


def with_holds(
    routes: Iterable[IngressRoute], ordered: Iterable[SetRoute], reached: Mapping[ApiKey, float], now_s: float
) -> tuple[IngressRoute, ...]:
    """
    The routes, each with whether requests are held.

    Args:
        ordered: routes as ordered, which say for whom nobody will be started.
        reached: see there.
    """
    given_up = {route.api for route in ordered if not route.hold}
    return tuple(
        msgspec.structs.replace(
            route,
            holds=_has_somebody(route)
            or (route.api in reached and route.api not in given_up and now_s - reached[route.api] < HOLD_S),
        )
        for route in routes
    )


def _has_somebody(route: IngressRoute) -> bool:
    return bool(route.servers or route.peers)
