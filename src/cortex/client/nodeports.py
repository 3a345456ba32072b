"""Which ports the nodes of this machine get, if there are several: those that they had, or else free ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cortex.ids import NodeId
from cortex.wire.localnodes import PEERS_HOST, LocalNode, node_names

Claim = Callable[[str, int], int]
"""Binds a port of a host for a node, and says which: this one where it is free or ours already, else another."""


def chosen(count: int, before: Sequence[LocalNode], *, host: str, port: int, claim: Claim) -> tuple[LocalNode, ...]:
    """
    The nodes of a machine that is several.

    Args:
        before: as they were when they last ran.
        host: where doors listen.
        port: of the first node's door, which is that of the prediction APIs.
    """
    known = {node.name: node for node in before}

    def one(number: int, name: NodeId) -> LocalNode:
        last = known.get(name)
        return LocalNode(
            name=name,
            port=port if number == 0 else claim(host, last.port if last is not None else 0),
            peer_port=claim(PEERS_HOST, last.peer_port if last is not None else 0),
        )

    return tuple(one(number, name) for number, name in enumerate(node_names(count)))
