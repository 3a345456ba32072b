"""What a worker has, what it ought to have, and the admin commands in between. Pure: no I/O here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cortex.ids import ApiKey, NodeId
from cortex.ingress.configuration import Tier, WorkerPeering, peer_arguments, render_entry, server_key
from cortex.ingress.peers import PEER_KEY, WATCHED, IngressPeer, PeerServer, place_name
from cortex.ingress.pool import NOWHERE, backend_name, near_name
from cortex.ingress.routes import IngressRoute, IngressServer


class ServerAddress(msgspec.Struct, frozen=True):
    """Where a server is in HAProxy."""

    backend: int
    key: str
    """`configuration.server_key`."""
    near: bool = False
    """For requests of peers."""

    def __str__(self) -> str:
        return f"{near_name(self.backend) if self.near else backend_name(self.backend)}/{self.key}"


class ServerState(msgspec.Struct, frozen=True):
    """What HAProxy was told about a server."""

    max_connections: int
    """0: as many as come."""
    in_rotation: bool
    weight: int = 1


class Holdings(msgspec.Struct, frozen=True):
    """What a worker has."""

    entries: Mapping[str, str]
    """Map entries by path."""
    servers: Mapping[ServerAddress, ServerState]
    places: Mapping[int, str] = {}
    """Address of the peer that is watched at each place in use."""

    @property
    def retired(self) -> tuple[ServerAddress, ...]:
        """Servers out of rotation, to be deleted as soon as nothing is connected to them."""
        return tuple(address for address, state in self.servers.items() if not state.in_rotation)


class WantedHoldings(msgspec.Struct, frozen=True):
    """What a worker ought to have."""

    entries: Mapping[str, str]
    servers: Mapping[ServerAddress, IngressServer | PeerServer]
    places: Mapping[int, IngressPeer] = {}

    def by_backend(self, *, near: bool = False) -> dict[int, list[IngressServer | PeerServer]]:
        """Servers of each backend, for the configuration text: of those for clients, or of those for peers."""
        backends: dict[int, list[IngressServer | PeerServer]] = {}
        for address, server in self.servers.items():
            if address.near is near:
                backends.setdefault(address.backend, []).append(server)
        return backends

    def holdings(self) -> Holdings:
        """What a worker has that starts with all this."""
        return Holdings(
            entries=dict(self.entries),
            servers={address: _in_rotation(server) for address, server in self.servers.items()},
            places={place: peer.address for place, peer in self.places.items()},
        )


class WantedPeers(msgspec.Struct, frozen=True):
    """The peers, as a worker is to know them."""

    peering: WorkerPeering
    places: Mapping[NodeId, int]
    peers: tuple[IngressPeer, ...] = ()

    def watched(self, places: int) -> dict[int, IngressPeer]:
        """By place, of a worker that has so many."""
        return {self.places[peer.name]: peer for peer in self.peers if self.places.get(peer.name, places + 1) <= places}


class Steps(msgspec.Struct, frozen=True):
    """Commands in the order in which no request is lost; each batch is complete before the next begins."""

    add: tuple[str, ...]
    """Servers join their backends."""
    point: tuple[str, ...]
    """Routes come or change."""
    unpoint: tuple[str, ...]
    """Routes go."""
    retire: tuple[str, ...]
    """Servers leave rotation; what runs on them goes on."""
    outcome: Holdings
    """What the worker has afterwards."""


def wanted_of(
    routes: Sequence[IngressRoute],
    backends: Mapping[ApiKey, int],
    pool_size: int,
    peers: WantedPeers | None = None,
    places: int = 0,
) -> WantedHoldings:
    """
    Return what a worker with this pool and so many places for peers ought to have.

    A route whose backend the worker lacks is pointed NOWHERE: a client that still talks to an HAProxy that is being
    replaced gets a 503 and a closed connection, not a 404, and reaches the new one with its next request.

    Args:
        peers: None, or no places: it is told of none.
    """
    entries: dict[str, str] = {}
    servers: dict[ServerAddress, IngressServer | PeerServer] = {}
    watched = peers.watched(places) if peers is not None and places else None
    at = {peer.name: (place, peer) for place, peer in (watched or {}).items()}
    for route in routes:
        backend = backends.get(route.api, NOWHERE)
        if backend > pool_size:
            backend = NOWHERE
        shares = [share for share in route.peers if share.peer in at]
        here = () if route.held and shares else route.servers
        # One that is all there is has hold beside it: who has just lost it there is not to ask it again.
        first = len(shares) > 1 and not here
        away = [
            PeerServer(peer=at[share.peer][1], place=at[share.peer][0], weight=min(256, share.ready), first=first)
            for share in shares
        ]
        entries[route.path] = render_entry(route, backend, None if watched is None else away)
        if backend != NOWHERE:
            for server in here:
                servers[ServerAddress(backend=backend, key=server_key(server))] = server
            if watched is not None:
                for server in route.servers:
                    servers[ServerAddress(backend=backend, key=server_key(server), near=True)] = server
            for peer in away:
                servers[ServerAddress(backend=backend, key=server_key(peer))] = peer
    return WantedHoldings(entries=entries, servers=servers, places=watched or {})


def steps_between(
    holdings: Holdings,
    wanted: WantedHoldings,
    map_file: str,
    peering: WorkerPeering | None = None,
    tier: Tier = Tier.DOOR,
) -> Steps:
    """
    Return the commands that bring a worker from what it has to what it ought to have.

    Nothing is deleted: a server that leaves is only taken out of rotation, because HAProxy deletes none that
    something is connected to.

    Args:
        map_file: the map's name in HAProxy.
        peering: by which it reaches peers; needed where there are any.
        tier: the worker's; to hold, peers are what they are not to the others, equals of replicas.
    """
    # A peer is watched before it is asked, and until it is not asked any more.
    add, unwatch = _place_steps(holdings.places, wanted.places)
    retire: list[str] = []
    servers = dict(holdings.servers)
    for address, server in wanted.servers.items():
        state, now = servers.get(address), _in_rotation(server)
        if state is None:
            add.append(_addition(address, server, peering, tier))
        elif state.max_connections != now.max_connections:
            add.append(f"set maxconn server {address} {now.max_connections}")
        if state is not None and state.weight != now.weight:
            add.append(f"set server {address} weight {now.weight}")
        if state is None or not state.in_rotation:
            add.append(f"set server {address} state ready")
        servers[address] = now
    for address, state in holdings.servers.items():
        if state.in_rotation and address not in wanted.servers:
            # One that is marked down ends what runs on it, if it is watched, as peers are.
            leaves = "drain" if address.key.startswith(PEER_KEY) else "maint"
            retire.append(f"set server {address} state {leaves}")
            servers[address] = msgspec.structs.replace(state, in_rotation=False)

    name = escaped(map_file)
    point = [
        f"{'set' if path in holdings.entries else 'add'} map {name} {path} {value}"
        for path, value in wanted.entries.items()
        if holdings.entries.get(path) != value
    ]
    unpoint = [f"del map {name} {path}" for path in holdings.entries if path not in wanted.entries]
    return Steps(
        add=tuple(add),
        point=tuple(point),
        unpoint=tuple(unpoint),
        retire=(*retire, *unwatch),
        outcome=Holdings(
            entries=dict(wanted.entries),
            servers=servers,
            places={place: peer.address for place, peer in wanted.places.items()},
        ),
    )


def _place_steps(held: Mapping[int, str], wanted: Mapping[int, IngressPeer]) -> tuple[list[str], list[str]]:
    """What begins to be watched, and what ends."""
    begin: list[str] = []
    for place, peer in wanted.items():
        name = f"{WATCHED}/{place_name(place)}"
        if held.get(place) != peer.address:
            begin.append(f"set server {name} addr {peer.host} port {peer.port}")
        if place not in held:
            begin.append(f"set server {name} state ready")
    end = [f"set server {WATCHED}/{place_name(place)} state maint" for place in held if place not in wanted]
    return begin, end


def _addition(
    address: ServerAddress, server: IngressServer | PeerServer, peering: WorkerPeering | None, tier: Tier
) -> str:
    if isinstance(server, IngressServer):
        return f"add server {address} {escaped('unix@' + server.socket)} maxconn {server.max_connections}"
    assert peering is not None
    return f"add server {address} {peer_arguments(server, peering, tier, escaped)}"


def _in_rotation(server: IngressServer | PeerServer) -> ServerState:
    if isinstance(server, IngressServer):
        return ServerState(max_connections=server.max_connections, in_rotation=True)
    return ServerState(max_connections=0, in_rotation=True, weight=server.weight)


def escaped(word: str) -> str:
    """`word` as one argument of an admin command."""
    return "".join("\\" + character if character in "\\ \t;" else character for character in word)
