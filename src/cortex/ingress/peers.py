"""
The doors of other nodes: which there are, who of them is asked for an api, how HAProxy knows them. Pure: no I/O here.

A door is asked by clients at one address and by other doors, its *peers*, at another, over TLS with certificates of
both ends. What a peer asks goes to replicas of this node and no further: a request passes two doors at most.

HAProxy watches each peer once, as a server of the backend `peers` that never gets a request: one *place* for each. The
servers by which an api reaches a peer follow that one, and go down with it.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from cortex.ids import ApiKey, NodeId
from cortex.wire.membership import is_node_name

WATCHED = "peers"
"""The backend whose servers are watched."""
PLACES = 16
"""At first. It is doubled as there are more peers, which replaces the workers."""
MOST_PEERS = 16
"""Of one api, at one door: each costs HAProxy a server with a TLS context of its own."""
DRAWS = 16
"""Out of so many tickets one is drawn for who is asked when all replicas here are busy."""
AWAY_PER_REPLICA = 40
"""Requests that a door has at its peers for each ready replica there while its own are busy; more wait here."""


class IngressPeer(msgspec.Struct, frozen=True):
    """Another node's door, as this one reaches it."""

    name: NodeId
    """What its certificate says it is."""
    host: str
    """An IP address."""
    port: int
    """Of its listener for peers, not for clients."""

    def __post_init__(self) -> None:
        if not is_node_name(self.name):
            raise ValueError(f"peer name {self.name!r} is not the name of a node")
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            raise ValueError(f"peer {self.name}: {self.host!r} is not an IP address") from None
        if not 0 < self.port < 65536:
            raise ValueError(f"peer {self.name}: port {self.port} is not 1 to 65535")

    @property
    def address(self) -> str:
        """Host and port in one word."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class PeerShare(msgspec.Struct, frozen=True):
    """What a peer has of an api."""

    peer: NodeId
    ready: int
    """Replicas there that may get requests; at least 1."""

    def __post_init__(self) -> None:
        if self.ready < 1:
            raise ValueError(f"peer {self.peer}: it has at least one replica")


class Peering(msgspec.Struct, frozen=True):
    """What it takes for a door to have peers, apart from who they are."""

    host: str
    """Where peers are listened for."""
    port: int
    """Never 0: other nodes are told it."""
    certificate: Path
    """PEM, with the key: what this node shows, whoever begins."""
    authority: Path
    """PEM: who has signed the certificates of all."""
    reached_at: str = ""
    """The IP address that other nodes are told; empty: `host`."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ValueError(f"port {self.port} for peers is not 1 to 65535")

    @property
    def told_host(self) -> str:
        """Where the door is for those of other nodes."""
        return self.reached_at or self.host


class PeerServer(msgspec.Struct, frozen=True):
    """A peer as a server of one api."""

    peer: IngressPeer
    place: int
    weight: int
    first: bool = False
    """It is asked as replicas of this node are, of which there are none, and before a request is held."""

    @property
    def ticket(self) -> str:
        """
        What is drawn for it. It names the address too, which HAProxy is not asked for: a peer that got another one is
        another server.
        """
        facts = f"{self.peer.name} {self.peer.address}"
        return f"{self.place}.{hashlib.sha256(facts.encode()).hexdigest()[:8]}"

    @property
    def key(self) -> str:
        """Its name in HAProxy, where a backup server stays one. No replica's has a colon."""
        return f"{PEER_KEY}{'first.' if self.first else ''}{self.ticket}"


PEER_KEY = "peer:"
HOLD_KEY, NOBODY_KEY = f"{PEER_KEY}hold", f"{PEER_KEY}nobody"
"""Servers that every backend has: the tier that holds requests, and there who turns everybody away."""


class PeerPlaces(msgspec.Struct, frozen=True):
    """Which peer is watched where."""

    size: int = PLACES
    """Places 1 to `size` exist."""
    owners: Mapping[NodeId, int] = {}

    def placed(self, peers: Iterable[NodeId]) -> PeerPlaces:
        """The places once these peers and no others have one: that which they had, else the lowest that is free."""
        wanted = tuple(dict.fromkeys(peers))
        owners = {peer: self.owners[peer] for peer in wanted if peer in self.owners}
        size = self.size
        while size < max(len(wanted), *owners.values(), 0):
            size *= 2
        taken = set(owners.values())
        free = (place for place in range(1, size + 1) if place not in taken)
        owners |= {peer: next(free) for peer in wanted if peer not in owners}
        return PeerPlaces(size=size, owners=owners)


def place_name(place: int) -> str:
    return f"p{place}"


def place_number(name: str) -> int | None:
    """The reverse of `place_name`; None for a server that is no place."""
    return int(name[1:]) if name[:1] == "p" and name[1:].isdigit() else None


def chosen(api: ApiKey, door: NodeId, shares: Iterable[PeerShare]) -> tuple[PeerShare, ...]:
    """
    Of all peers that have replicas of an api, the at most `MOST_PEERS` that one door asks, by name.

    Each door has others (rendezvous hashing of api and door), so that together they reach all replicas alike, and a
    peer that comes or goes changes one of them at most.
    """

    def rank(share: PeerShare) -> bytes:
        return hashlib.sha256(f"{api} {door} {share.peer}".encode()).digest()

    found = sorted(shares, key=rank)[:MOST_PEERS]
    return tuple(sorted(found, key=lambda share: share.peer))


def tickets(servers: Sequence[PeerServer]) -> str:
    """`DRAWS` tickets, each server's as often as its weight asks for, and each at least once; empty for nobody."""
    if not servers:
        return ""
    counts = dict.fromkeys((server.ticket for server in servers), 1)
    weights = {server.ticket: server.weight for server in servers}
    while sum(counts.values()) < DRAWS:
        behind = max(counts, key=lambda ticket: weights[ticket] / counts[ticket])
        counts[behind] += 1
    return ":".join(ticket for ticket, count in counts.items() for _ in range(count))


def check_peers(shares: Mapping[ApiKey, Sequence[PeerShare]], peers: Iterable[IngressPeer]) -> None:
    """
    Raises:
        ValueError: a peer is named twice, an api has one that is not known, or too many; names it.
    """
    names: set[NodeId] = set()
    for peer in peers:
        if peer.name in names:
            raise ValueError(f"there are two peers {peer.name}")
        names.add(peer.name)
    for api, has in shares.items():
        if len(has) > MOST_PEERS:
            raise ValueError(f"api {api} has {len(has)} peers, at most {MOST_PEERS} are asked")
        if len({share.peer for share in has}) != len(has):
            raise ValueError(f"api {api} has one peer twice")
        if unknown := [share.peer for share in has if share.peer not in names]:
            raise ValueError(f"api {api}: {unknown[0]} is no peer that is known")
