"""From routes as ordered and replicas as they are to what the ingress shall have. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from cortex.ids import ReplicaId, short, socket_stem
from cortex.ingress.routes import IngressRoute, IngressServer, Readiness, servers_in_rotation
from cortex.settings import HomeLayout
from cortex.wire.build import BuildSpec
from cortex.wire.orders import SetRoute, StartReplica
from cortex.wire.reports import Phase

LARGEST_BATCH = 32
"""Requests that a replica may be sent beyond its handler's concurrency, so that a batch can form."""
ASYNC_CONCURRENCY = 64
SPARE = 8
"""So that the next request is there when one is answered."""
MAX_QUEUED = 2048
"""A burst waits in the ingress, for a bounded time; see `ingress.configuration`. Beyond it: 503 with Retry-After."""


class SeenReplica(Protocol):
    """What rotation needs to know of a replica; `replicas.Replica` is one."""

    order: StartReplica
    phase: Phase
    gone: bool
    unready_since_s: float | None
    hold_expired: bool
    stopping: bool
    leaving: bool
    stuck: bool


def ingress_routes(
    routes: Iterable[SetRoute], replicas: Mapping[ReplicaId, SeenReplica], layout: HomeLayout
) -> tuple[IngressRoute, ...]:
    """
    What the ingress shall have.

    Targets that run on other nodes are unknown here and left out.
    """
    return tuple(_ingress_route(route, replicas, layout) for route in routes)


def readiness(replica: SeenReplica, *, hold: bool) -> Readiness:
    """
    Whether a replica may get requests.

    Args:
        hold: whether its route still expects a replacement for a dead one.
    """
    if replica.stopping or replica.phase is Phase.DRAINING:
        return Readiness.DRAINING
    if (replica.leaving or replica.stuck) and not replica.gone:
        # Somebody else told it to end: it takes requests until then, and its successor those that come after. Or it
        # sits in a handler that is over its time: it goes on when that is through, or is replaced.
        return Readiness.HELD if hold else Readiness.UNREADY
    if replica.phase is Phase.READY and not replica.gone:
        return Readiness.READY
    if hold and replica.unready_since_s is not None and not replica.hold_expired:
        return Readiness.HELD
    return Readiness.UNREADY


def max_connections(build: BuildSpec) -> int:
    """Requests that the ingress sends one replica at once."""
    concurrency = build.concurrency or ASYNC_CONCURRENCY
    return max(concurrency, LARGEST_BATCH) + SPARE


def _ingress_route(route: SetRoute, replicas: Mapping[ReplicaId, SeenReplica], layout: HomeLayout) -> IngressRoute:
    here = [(target, replicas[target]) for target in route.targets if target in replicas]
    servers = [
        IngressServer(
            name=socket_stem(target),
            socket=str(layout.slot_socket(socket_stem(target))),
            max_connections=max_connections(replica.order.build),
            max_queued=MAX_QUEUED,
        )
        for target, replica in here
    ]
    states = {socket_stem(target): readiness(replica, hold=route.hold) for target, replica in here}
    return IngressRoute(
        api=route.api,
        path=route.path,
        servers=servers_in_rotation(servers, states),
        timeout_s=route.timeout_s,
        max_body_bytes=route.max_body_bytes,
        retry=route.retry,
        version=short(route.version),
    )
