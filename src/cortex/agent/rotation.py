"""From routes as ordered and lives as they are to what the ingress shall have. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from cortex.agent.life.state import Intent, Life
from cortex.agent.pace import QueueBound
from cortex.ids import ApiKey, NodeId, ReplicaId, short, socket_stem
from cortex.ingress.peers import IngressPeer, PeerShare, chosen
from cortex.ingress.routes import IngressRoute, IngressServer, Readiness, Sleep, servers_in_rotation
from cortex.settings import NodeLayout
from cortex.wire.build import BuildSpec
from cortex.wire.orders import SetRoute
from cortex.wire.reports import Phase

HELD_CONNECTIONS = 40
"""
Requests that may wait in a slot that nobody serves, the others in the queue of the route: what does not fit its backlog
counts as a failure for HAProxy, and the kernel may allow no more than 128 (net.core.somaxconn).
"""
LARGEST_BATCH = 32
"""Requests that a replica may be sent beyond its handler's concurrency, so that a batch can form."""
ASYNC_CONCURRENCY = 64
SPARE = 8
"""So that the next request is there when one is answered."""


class Neighbours(msgspec.Struct, frozen=True):
    """A node among others."""

    node: NodeId
    """It."""
    peers: tuple[IngressPeer, ...]
    """The doors of the others, as far as their addresses are known."""


def ingress_routes(
    routes: Iterable[SetRoute],
    lives: Mapping[ReplicaId, Life],
    layout: NodeLayout,
    bound: Callable[[ApiKey, int], QueueBound],
    neighbours: Neighbours | None = None,
) -> tuple[IngressRoute, ...]:
    """
    What the ingress shall have.

    Targets that run on other nodes are reached through the doors there.

    Args:
        bound: how many requests may wait for an api that has so many ready replicas here.
        neighbours: None where there is one node.
    """
    return tuple(
        _ingress_route(route, lives, layout, bound(route.api, ready(route, lives)), neighbours) for route in routes
    )


def peer_shares(route: SetRoute, neighbours: Neighbours) -> tuple[PeerShare, ...]:
    """Whom this node's door asks for an api that has replicas elsewhere, with how many each has; by name."""
    known = {peer.name for peer in neighbours.peers} - {neighbours.node}
    shares = [PeerShare(peer=node, ready=count) for node, count in route.nodes.items() if node in known and count > 0]
    return chosen(route.api, neighbours.node, shares)


def ready(route: SetRoute, lives: Mapping[ReplicaId, Life]) -> int:
    """How many of its replicas get requests because they are ready."""
    states = (readiness(lives[target], hold=route.hold) for target in route.targets if target in lives)
    return sum(state is Readiness.READY for state in states)


def start_s(route: SetRoute, lives: Mapping[ReplicaId, Life]) -> float | None:
    """What the longest start of its replicas here took; None: not known."""
    starts = (lives[target].start_s for target in route.targets if target in lives)
    return max((start_s for start_s in starts if start_s is not None), default=None)


def readiness(life: Life, *, hold: bool) -> Readiness:
    """
    Whether a replica may get requests.

    Args:
        hold: whether its route still expects a replacement for a dead one.
    """
    if life.intent >= Intent.DRAIN:
        return Readiness.DRAINING
    if life.phase is Phase.ASLEEP:
        return Readiness.UNREADY if life.hold is not None and life.hold.is_over else Readiness.HELD
    if life.runs and (life.intent > Intent.SERVE or life.is_stuck):
        # Somebody else told it to end: it takes requests until then, and its successor those that come after. Or it
        # sits in a handler that is over its time: it goes on when that is through, or is replaced. Or it is killed.
        return Readiness.HELD if hold else Readiness.UNREADY
    if life.runs and life.phase is Phase.READY:
        return Readiness.READY
    if hold and life.hold is not None and not life.hold.is_over:
        return Readiness.HELD
    return Readiness.UNREADY


def max_connections(build: BuildSpec) -> int:
    """Requests that the ingress sends one replica at once."""
    concurrency = build.concurrency or ASYNC_CONCURRENCY
    return max(concurrency, LARGEST_BATCH) + SPARE


def _ingress_route(
    route: SetRoute,
    lives: Mapping[ReplicaId, Life],
    layout: NodeLayout,
    bound: QueueBound,
    neighbours: Neighbours | None,
) -> IngressRoute:
    here = [(target, lives[target]) for target in route.targets if target in lives]
    states = {socket_stem(target): readiness(life, hold=route.hold) for target, life in here}
    # What comes from peers has connections of its own, and what is held has others, and there is one backlog.
    held = HELD_CONNECTIONS if neighbours is None else HELD_CONNECTIONS // 2
    servers = [
        IngressServer(
            name=socket_stem(target),
            socket=str(layout.slot_socket(socket_stem(target))),
            max_connections=_most_at_once(life, states[socket_stem(target)], held=held),
        )
        for target, life in here
    ]
    rotation = servers_in_rotation(servers, states)
    return IngressRoute(
        api=route.api,
        path=route.path,
        servers=rotation,
        timeout_s=route.timeout_s,
        max_body_bytes=route.max_body_bytes,
        retry=route.retry,
        version=short(route.version),
        max_queued=bound.requests,
        retry_after_s=bound.retry_after_s,
        sleep=_sleep([life for target, life in here if states[socket_stem(target)] is Readiness.HELD], states.values()),
        peers=() if neighbours is None else peer_shares(route, neighbours),
        held=bool(rotation) and states[rotation[0].name] is Readiness.HELD,
    )


def _most_at_once(life: Life, state: Readiness, *, held: int) -> int:
    served = max_connections(life.order.build)
    return min(held, served) if state is Readiness.HELD else served


def _sleep(held: Iterable[Life], states: Iterable[Readiness]) -> Sleep:
    """Of a route, with those of its replicas that nobody serves."""
    if Readiness.READY in states:
        return Sleep.AWAKE
    holds = [life.hold for life in held if life.hold is not None and life.hold.is_knock]
    if holds:
        return Sleep.WAKING
    return Sleep.ASLEEP if any(life.phase is Phase.ASLEEP for life in held) else Sleep.AWAKE
