"""
What an agent has to know before it knows anybody: one file, its *membership*, in its node's home.

It says who the node is among others, where they reach it, and where control planes listen. A machine that is the one
node, with the control plane beside it, has none.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from cortex.errors import CortexError
from cortex.ids import DeviceId, NodeId
from cortex.wire.framing import UNREADABLE
from cortex.wire.reports import Node

CONTROL_PLANE = "control-plane"
"""The name in the certificate of every control plane, whatever its address. No node is called so."""
R = TypeVar("R")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
_UNIX = "unix:"
_ARGUMENT = "--membership="


class UnusableMembership(CortexError):
    """A file that says which nodes there are cannot be used; names it and says why."""

    reference = "unusable-membership"
    hint = "whoever made the node writes it anew"

    def __init__(self, file: Path, reason: str) -> None:
        self.file = file
        super().__init__(f"{file}: {reason}")


def is_node_name(text: str) -> bool:
    """Whether a node may be called so: its certificate has it as a DNS name, and HAProxy is told it."""
    return len(text) <= 128 and _NAME.fullmatch(text) is not None


class UnixAddress(NamedTuple):
    """A control plane of this machine."""

    path: Path


class TcpAddress(NamedTuple):
    """A control plane that is reached over mutual TLS."""

    host: str
    port: int


Address = UnixAddress | TcpAddress


def address_of(text: str) -> Address:
    """
    Where a control plane listens: `unix:<absolute path>`, `<host>:<port>`, or `[<IPv6 address>]:<port>`.

    Raises:
        ValueError: it is none of these; says so.
    """
    if text.startswith(_UNIX):
        path = Path(text.removeprefix(_UNIX))
        if not path.is_absolute():
            raise ValueError(f"{text!r} is not {_UNIX} and an absolute path")
        return UnixAddress(path)
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{text!r} is neither {_UNIX}<path> nor <host>:<port>")
    if ":" in host and not bracketed:
        raise ValueError(f"{text!r}: an IPv6 address is put into brackets")
    return TcpAddress(host[1:-1] if bracketed else host, int(port))


def unix_address(path: Path) -> str:
    """The reverse of `address_of`, for a socket of this machine."""
    return f"{_UNIX}{path}"


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a node is said to have."""

    cpu_millis: int
    mem_bytes: int
    gpus: int = 0
    devices: tuple[DeviceId, ...] = ()
    """Names of the GPUs; empty where only their number is known."""

    def node(self, name: NodeId) -> Node:
        """A node that has it."""
        return Node(
            node=name, cpu_millis=self.cpu_millis, mem_bytes=self.mem_bytes, gpus=self.gpus, devices=self.devices
        )

    @classmethod
    def of(cls, node: Node) -> Capacity:
        """That of a node."""
        return cls(cpu_millis=node.cpu_millis, mem_bytes=node.mem_bytes, gpus=node.gpus, devices=node.devices)


class Membership(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """
    Content of `membership.json`: a node among others.

    Whoever makes one of nonsense is told by a ValueError.
    """

    node: NodeId
    """Its name, which is also the one in its certificate: a DNS name, kept for as long as the node is the same."""
    host: str
    """An IP address: where the others, and callers, reach it."""
    port: int
    """Of its door."""
    peer_port: int
    """Where its door listens for those of the others."""
    bind: str = ""
    """The address or name that its door binds for callers; empty: `host`."""
    peer_bind: str = ""
    """Likewise for other doors."""
    capacity: Capacity | None = None
    """None: what the machine has."""
    shares_cpu: bool = False
    """Whether other nodes have the same processors: requests of cpu are shares then, as on one machine."""
    control_planes: tuple[str, ...]
    """Where they listen, as `address_of` takes it: one of them is in charge, and which is found out by asking."""
    control_home: str = ""
    """Of a control plane of this machine: it is started again when it has died. Empty: that is not for its agent."""
    authority: str = "node/authority.pem"
    """Who has signed the certificates of all, PEM. Paths that are not absolute begin where this file lies."""
    certificate: str = "node/certificate.pem"
    """What the node shows, PEM with the key."""
    variables: dict[str, str] = {}
    """Settings of ours that hold on every node, by their environment variables. They win over those of the process."""

    def __post_init__(self) -> None:
        if not is_node_name(self.node):
            raise ValueError(f"{self.node!r} is not a name for a node: letters, digits, hyphens and dots")
        if self.node == CONTROL_PLANE:
            raise ValueError(f"no node is called {CONTROL_PLANE}")
        ipaddress.ip_address(self.host)
        for port in (self.port, self.peer_port):
            if not 0 < port < 65536:
                raise ValueError(f"port {port} of node {self.node} is not 1 to 65535")
        if not self.control_planes:
            raise ValueError(f"node {self.node} has to know where a control plane listens")
        for text in self.control_planes:
            address_of(text)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where control planes listen."""
        return tuple(address_of(text) for text in self.control_planes)

    def report(self, machine: Node) -> Node:
        """What its agent says that it has, on a machine."""
        if self.capacity is not None:
            return self.capacity.node(self.node)
        return msgspec.structs.replace(machine, node=self.node)


class Members(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Content of `members.json` in a control plane's home: nodes of other machines, and where they dial in."""

    bind: str
    """The address that is listened on."""
    port: int
    """0: any; whoever wants to be found says one."""
    nodes: tuple[Membership, ...] = ()
    """Those that are waited for. Others with a certificate of ours are taken as they come."""


def members_in(file: Path) -> Members | None:
    """
    What a control plane's home says; None: it has no nodes of other machines.

    Raises:
        UnusableMembership
    """
    return _read(file, Members) if file.exists() else None


def membership_in(file: Path) -> Membership:
    """
    What a file says, with absolute paths.

    Raises:
        UnusableMembership
    """
    found = _read(file, Membership)
    authority, certificate = file.parent / found.authority, file.parent / found.certificate
    return msgspec.structs.replace(found, authority=str(authority), certificate=str(certificate))


def _read(file: Path, kind: type[R]) -> R:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except OSError as error:
        raise UnusableMembership(file, error.strerror or str(error)) from error
    except UNREADABLE as error:
        raise UnusableMembership(file, str(error)) from error


def written(content: Membership | Members) -> bytes:
    """Content of a file."""
    return msgspec.json.encode(content)


def argument(file: Path) -> str:
    """As an agent's command line names the file."""
    return f"{_ARGUMENT}{file}"


def file_among(arguments: Iterable[str]) -> Path | None:
    """Which file a command line names; None: the machine is the one node."""
    for text in arguments:
        if text.startswith(_ARGUMENT):
            return Path(text.removeprefix(_ARGUMENT))
    return None
