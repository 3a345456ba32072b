"""
The nodes of one machine, if there are several: what `cortex up --nodes` has chosen, and what an agent is told of it.

One machine is one node, whose home is the control plane's, and nothing of this is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from cortex.ids import NodeId
from cortex.processes import read_record, write_whole

LOCAL_NODE = NodeId("local")
"""The one node of a machine that is not several."""
MOST = 64
"""Each is half a dozen processes, and shares the memory of the machine with the others."""
PEERS_HOST = "127.0.0.1"
"""Where the nodes of one machine listen for each other."""


class LocalNode(msgspec.Struct, frozen=True, kw_only=True):
    """One of the nodes."""

    name: NodeId
    port: int
    """Of its door."""
    peer_port: int
    """Where its door listens for those of the others."""


class LocalNodes(msgspec.Struct, frozen=True, kw_only=True):
    """Content of `nodes.json`: the nodes in their order, the head's first."""

    nodes: tuple[LocalNode, ...]


def node_names(count: int) -> tuple[NodeId, ...]:
    """`node-1` and so on."""
    return tuple(NodeId(f"node-{number}") for number in range(1, count + 1))


def read(file: Path) -> tuple[LocalNode, ...]:
    """The nodes that a home has; nothing where the machine is the one node."""
    found = read_record(file, LocalNodes)
    return found.nodes if found is not None else ()


def remember(file: Path, nodes: Sequence[LocalNode]) -> None:
    """Raises OSError."""
    if nodes:
        write_whole(file, msgspec.json.encode(LocalNodes(nodes=tuple(nodes))))
    else:
        file.unlink(missing_ok=True)


class NodePosition(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent of one of several nodes is told: who it is among them, and where the control plane's home is."""

    names: tuple[NodeId, ...]
    """Of all nodes, in their order: each has an equal share of the machine."""
    number: int
    """Which of them it is, from 0."""
    peer_port: int
    control_home: str

    @property
    def name(self) -> NodeId:
        return self.names[self.number]

    @property
    def argument(self) -> str:
        """It, as an argument of a command line."""
        return _PREFIX + msgspec.json.encode(self).decode()


_PREFIX = "--place="


def place_in(arguments: Iterable[str]) -> NodePosition | None:
    """What a command line says; None: the machine is the one node."""
    for argument in arguments:
        if argument.startswith(_PREFIX):
            return msgspec.json.decode(os.fsencode(argument.removeprefix(_PREFIX)), type=NodePosition)
    return None
