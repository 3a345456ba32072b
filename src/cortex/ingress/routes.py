"""What the agent wants routed, and which replicas of a route get requests. No I/O here."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence

import msgspec

from cortex.ids import ApiKey
from cortex.ingress.peers import PeerShare

SOCKET_PATH_LIMIT_BYTES = 97
"""Source: HAProxy 2.8 refuses longer ones ("socket path … too long (max 97)"): 107 less a suffix of its own."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PATH = re.compile(r"(/[A-Za-z0-9._~-]{1,128}){1,8}")
_KEY = re.compile(r"[A-Za-z0-9._~-]{1,63}/[A-Za-z0-9._~-]{1,63}")
_VERSION = re.compile(r"[A-Za-z0-9._-]{0,64}")


class IngressServer(msgspec.Struct, frozen=True):
    """One replica as the ingress sees it: a unix socket that answers HTTP."""

    name: str
    """`socket_stem` of the replica; unique on the node."""
    socket: str
    """Absolute path, at most 97 bytes."""
    max_connections: int
    """Requests it is sent at once; more wait in the queue of the route."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"server name {self.name!r} is not 1 to 64 of A-Z a-z 0-9 _ -")
        if not self.socket.startswith("/") or not self.socket.isprintable():
            raise ValueError(f"server {self.name}: socket {self.socket!r} is not an absolute path")
        if len(self.socket.encode()) > SOCKET_PATH_LIMIT_BYTES:
            raise ValueError(
                f"server {self.name}: socket path has {len(self.socket.encode())} bytes, "
                f"HAProxy takes at most {SOCKET_PATH_LIMIT_BYTES}: {self.socket}"
            )
        if self.max_connections < 1:
            raise ValueError(f"server {self.name}: max_connections is at least 1")


class Sleep(enum.Enum):
    """Whether there is anybody who could say how an api is; the value is its `cortex-status`."""

    AWAKE = "awake"
    ASLEEP = "asleep"
    """Nobody is, and nobody comes until somebody asks."""
    WAKING = "waking"
    """Somebody has asked: requests wait for who is being started."""


class IngressRoute(msgspec.Struct, frozen=True):
    """One api at one URL path. Without servers it answers 503 `no-ready-replica`; an unknown path answers 404."""

    api: ApiKey
    path: str
    """Exact URL path without a trailing slash (`cortex.ids.route_path`)."""
    servers: tuple[IngressServer, ...]
    """Those in rotation; see `servers_in_rotation`."""
    timeout_s: float
    max_body_bytes: int
    retry: bool
    """Whether a request that a dying replica swallowed may be delivered a second time."""
    version: str
    """`x-cortex-version` of answers that the ingress gives itself; replicas set their own."""
    max_queued: int = 2048
    """Requests that may wait for a server, in each worker; one more is refused (503)."""
    retry_after_s: int = 1
    """When who is refused so may come again."""
    sleep: Sleep = Sleep.AWAKE
    """Of one that sleeps or wakes the ingress answers health itself."""
    peers: tuple[PeerShare, ...] = ()
    """Other nodes that have replicas of it: asked when none is in rotation here, or all are busy."""
    held: bool = False
    """Nobody is behind `servers` at the moment, they hold what comes: peers come first."""
    holds: bool = False
    """Whether requests wait while nobody can be reached, neither here nor at a peer. Only where there are peers."""

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.api):
            raise ValueError(f"api key {self.api!r} is not <deployment>/<api>")
        if not _PATH.fullmatch(self.path):
            raise ValueError(f"api {self.api}: path {self.path!r} is not a plain URL path without trailing slash")
        if not _VERSION.fullmatch(self.version):
            raise ValueError(f"api {self.api}: version {self.version!r} is not at most 64 of A-Z a-z 0-9 . _ -")
        if not self.timeout_s > 0 or self.max_body_bytes < 0:
            raise ValueError(f"api {self.api}: timeout_s is above 0 and max_body_bytes at least 0")
        if self.max_queued < 1 or self.retry_after_s < 1:
            raise ValueError(f"api {self.api}: max_queued and retry_after_s are at least 1")
        if len({server.name for server in self.servers}) != len(self.servers):
            raise ValueError(f"api {self.api}: two servers have one name")


class Readiness(enum.Enum):
    """Whether a replica may get requests, as the agent knows it."""

    READY = "ready"
    """It answered its readiness check: gets requests."""
    HELD = "held"
    """Its process died and is being replaced behind the same socket: requests may wait in the socket's backlog."""
    UNREADY = "unready"
    """It loads for the first time, or its hold ran out: gets none."""
    DRAINING = "draining"
    """It finishes what it has: gets none, whatever else is there."""


def servers_in_rotation(
    targets: Sequence[IngressServer], readiness: Mapping[str, Readiness]
) -> tuple[IngressServer, ...]:
    """
    Return the servers that get requests: the ready ones, or else the held ones, so that requests wait, not fail.

    Args:
        targets: the wanted replicas of one route.
        readiness: by server name; an absent one counts as UNREADY.

    Returns:
        In the order of `targets`; empty when every request is to be refused.
    """

    def those(state: Readiness) -> tuple[IngressServer, ...]:
        return tuple(s for s in targets if readiness.get(s.name, Readiness.UNREADY) is state)

    return those(Readiness.READY) or those(Readiness.HELD)


def check_unique(routes: Sequence[IngressRoute]) -> None:
    """
    Raises:
        ValueError: two routes share an api or a path, or one server is in two routes; names them.
    """
    apis: set[str] = set()
    paths: dict[str, str] = {}
    servers: dict[str, str] = {}
    for route in routes:
        if route.api in apis:
            raise ValueError(f"api {route.api} is routed twice")
        apis.add(route.api)
        if other := paths.get(route.path):
            raise ValueError(f"apis {other} and {route.api} both want the path {route.path}")
        paths[route.path] = route.api
        for server in route.servers:
            if other := servers.get(server.name):
                raise ValueError(f"apis {other} and {route.api} both have the server {server.name}")
            servers[server.name] = route.api
