"""
How an agent introduces itself where it dials in: one frame says who it is and what the connection is for, one answers.

After `Welcome` the connection belongs to its way. `orders`: the control plane asks (`wire.agent`), the agent answers.
`needs`: the agent asks (`wire.needs`), the control plane answers. A connection ends with either of the two processes.
"""

from __future__ import annotations

import msgspec

from cortex.ids import NodeId
from cortex.version import __version__

PROTOCOL = 1
"""Raised when what goes over a link changes so that the version before would misunderstand it."""
ORDERS = "orders"
NEEDS = "needs"


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """The first frame of a connection."""

    node: NodeId
    agent: str
    """Which agent of the node: another one has another name."""
    way: str
    """`ORDERS` or `NEEDS`; whatever else a later version may have."""
    version: str = __version__
    protocol: int = PROTOCOL


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag="welcome"):
    """The connection is taken."""

    epoch: int
    """Of the control plane; each order carries its own, too."""
    version: str = __version__


class TurnedAway(msgspec.Struct, frozen=True, kw_only=True, tag="turned_away"):
    """The connection is not taken, and will not be if nothing changes."""

    reason: str


Greeting = Welcome | TurnedAway


def misfit(hello: Hello, *, protocol: int = PROTOCOL, version: str = __version__) -> str | None:
    """Why a control plane cannot talk to this agent; None: it can. It takes its own protocol and the one before."""
    if hello.protocol in (protocol, protocol - 1):
        return None
    return (
        f"node {hello.node} has Cortex {hello.version} (protocol {hello.protocol}), and its control plane Cortex "
        f"{version}, which takes protocol {protocol - 1} or {protocol}: install the same version on both"
    )
