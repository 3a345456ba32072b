"""The nodes of this machine: where each has its files, and what has to lie there before its agent starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from cortex.controlplane.bundles import keep_at_home
from cortex.engines.local import shares
from cortex.errors import CortexError
from cortex.ids import NodeId
from cortex.settings import ControlLayout, NodeLayout, Settings
from cortex.wire import localnodes
from cortex.wire.localnodes import LOCAL_NODE, PEERS_HOST
from cortex.wire.membership import Capacity, Membership, unix_address
from cortex.wire.reports import Node

log = logging.getLogger(__name__)

RENEW_EVERY_S = 86400.0
"""How often is looked whether a certificate is due; each is good for weeks after that."""


class NodePlace(msgspec.Struct, frozen=True, kw_only=True):
    """A node of this machine."""

    room: Node
    """What it has."""
    layout: NodeLayout
    settings: Settings
    """As its agent has them."""
    ports: tuple[int, ...]
    """Those that it listens on."""
    membership: Membership | None = None
    """None: it is the one that there is."""

    @property
    def node(self) -> NodeId:
        return self.room.node


def local_nodes(settings: Settings, layout: ControlLayout, machine: Node) -> tuple[NodePlace, ...]:
    """
    The nodes of this machine that a home has, the head's first.

    Args:
        machine: what it has.
    """
    nodes = localnodes.read(layout.nodes_file)
    if not nodes:
        room = msgspec.structs.replace(machine, node=LOCAL_NODE)
        home = NodeLayout(settings.home)
        return (NodePlace(room=room, layout=home, settings=settings, ports=(settings.port,)),)
    rooms = shares(machine, [node.name for node in nodes])
    found = []
    for number, (node, room) in enumerate(zip(nodes, rooms, strict=True)):
        home = NodeLayout(layout.nodes / node.name)
        port = node.port if number else settings.port
        found.append(
            NodePlace(
                room=room,
                layout=home,
                settings=msgspec.structs.replace(settings, home=home.home, port=port),
                ports=(port, node.peer_port),
                membership=Membership(
                    node=node.name,
                    host=PEERS_HOST,
                    port=port,
                    bind=settings.host,
                    peer_port=node.peer_port,
                    capacity=Capacity.of(room),
                    shares_cpu=True,
                    control_planes=(unix_address(layout.links_socket),),
                    control_home=str(layout.home),
                ),
            )
        )
    return tuple(found)


def prepare_nodes(layout: ControlLayout, places: Sequence[NodePlace], *, now_wall_s: float) -> None:
    """
    Give each of several nodes what it cannot make itself.

    A node whose home cannot be written, since its disk is full, goes on with what it has.

    Raises:
        OSError: the control plane's home cannot be written.
    """
    for place in places:
        if place.membership is None:
            continue
        try:
            keep_at_home(layout, place.membership, place.layout.home, now_wall_s=now_wall_s)
        except (CortexError, OSError) as error:
            log.error("node %s is not given its certificate, will be tried again: %s", place.node, error)
