"""What a worker has, what it ought to have, and the admin commands in between. Pure: no I/O here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from cortex.ids import ApiKey
from cortex.ingress.configuration import render_entry, server_key
from cortex.ingress.pool import NOWHERE, backend_name
from cortex.ingress.routes import IngressRoute, IngressServer


class ServerAddress(msgspec.Struct, frozen=True):
    """Where a server is in HAProxy."""

    backend: int
    key: str
    """`configuration.server_key`."""

    def __str__(self) -> str:
        return f"{backend_name(self.backend)}/{self.key}"


class ServerState(msgspec.Struct, frozen=True):
    """What HAProxy was told about a server."""

    max_connections: int
    in_rotation: bool


class Holdings(msgspec.Struct, frozen=True):
    """What a worker has."""

    entries: Mapping[str, str]
    """Map entries by path."""
    servers: Mapping[ServerAddress, ServerState]

    @property
    def retired(self) -> tuple[ServerAddress, ...]:
        """Servers out of rotation, to be deleted as soon as nothing is connected to them."""
        return tuple(address for address, state in self.servers.items() if not state.in_rotation)


class WantedHoldings(msgspec.Struct, frozen=True):
    """What a worker ought to have."""

    entries: Mapping[str, str]
    servers: Mapping[ServerAddress, IngressServer]

    def by_backend(self) -> dict[int, list[IngressServer]]:
        """Servers of each backend, for the configuration text."""
        backends: dict[int, list[IngressServer]] = {}
        for address, server in self.servers.items():
            backends.setdefault(address.backend, []).append(server)
        return backends

    def holdings(self) -> Holdings:
        """What a worker has that starts with all this."""
        return Holdings(
            entries=dict(self.entries),
            servers={
                address: ServerState(max_connections=server.max_connections, in_rotation=True)
                for address, server in self.servers.items()
            },
        )


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


def wanted_of(routes: Sequence[IngressRoute], backends: Mapping[ApiKey, int], pool_size: int) -> WantedHoldings:
    """
    Return what a worker with this pool ought to have.

    A route whose backend the worker lacks is pointed NOWHERE: a client that still talks to an HAProxy that is being
    replaced gets a 503 and a closed connection, not a 404, and reaches the new one with its next request.
    """
    entries: dict[str, str] = {}
    servers: dict[ServerAddress, IngressServer] = {}
    for route in routes:
        backend = backends.get(route.api, NOWHERE)
        if backend > pool_size:
            backend = NOWHERE
        entries[route.path] = render_entry(route, backend)
        if backend != NOWHERE:
            for server in route.servers:
                servers[ServerAddress(backend=backend, key=server_key(server))] = server
    return WantedHoldings(entries=entries, servers=servers)


def steps_between(holdings: Holdings, wanted: WantedHoldings, map_file: str) -> Steps:
    """
    Return the commands that bring a worker from what it has to what it ought to have.

    Nothing is deleted: a server that leaves is only taken out of rotation, because HAProxy deletes none that
    something is connected to.

    Args:
        map_file: the map's name in HAProxy.
    """
    add: list[str] = []
    retire: list[str] = []
    servers = dict(holdings.servers)
    for address, server in wanted.servers.items():
        state = servers.get(address)
        if state is None:
            add.append(f"add server {address} {escaped('unix@' + server.socket)} maxconn {server.max_connections}")
        elif state.max_connections != server.max_connections:
            add.append(f"set maxconn server {address} {server.max_connections}")
        if state is None or not state.in_rotation:
            add.append(f"set server {address} state ready")
        servers[address] = ServerState(max_connections=server.max_connections, in_rotation=True)
    for address, state in holdings.servers.items():
        if state.in_rotation and address not in wanted.servers:
            retire.append(f"set server {address} state maint")
            servers[address] = ServerState(max_connections=state.max_connections, in_rotation=False)

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
        retire=tuple(retire),
        outcome=Holdings(entries=dict(wanted.entries), servers=servers),
    )


def escaped(word: str) -> str:
    """`word` as one argument of an admin command."""
    return "".join("\\" + character if character in "\\ \t;" else character for character in word)
