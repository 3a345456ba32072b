"""
The nodes of one machine, if there are several: what `cortex up --nodes` has chosen.

One machine is one node, whose home is the control plane's, and nothing of this is there.
"""

from __future__ import annotations

from collections.abc import Sequence
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
