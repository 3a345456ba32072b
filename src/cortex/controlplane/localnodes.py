"""The nodes of this machine: where each has its files, and what has to lie there before its agent starts."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cortex import processes
from cortex.ids import NodeId
from cortex.settings import ControlLayout, NodeLayout, Settings
from cortex.wire import localnodes
from cortex.wire.localnodes import LOCAL_NODE, NodePosition

RENEW_EVERY_S = 86400.0
"""How often is looked whether a certificate is due; each is good for weeks after that."""


class NodePlace(msgspec.Struct, frozen=True, kw_only=True):
    """A node of this machine."""

    node: NodeId
    layout: NodeLayout
    settings: Settings
    """As its agent has them."""
    ports: tuple[int, ...]
    """Those that it listens on."""
    place: NodePosition | None = None
    """Which of several it is."""


def local_nodes(settings: Settings, layout: ControlLayout) -> tuple[NodePlace, ...]:
    """The nodes that a home has, the head's first."""
    nodes = localnodes.read(layout.nodes_file)
    if not nodes:
        home = NodeLayout(settings.home)
        return (NodePlace(node=LOCAL_NODE, layout=home, settings=settings, ports=(settings.port,)),)
    names = tuple(node.name for node in nodes)
    found = []
    for number, node in enumerate(nodes):
        home = NodeLayout(layout.nodes / node.name)
        port = node.port if number else settings.port
        found.append(
            NodePlace(
                node=node.name,
                layout=home,
                settings=msgspec.structs.replace(settings, home=home.home, port=port),
                ports=(port, node.peer_port),
                place=NodePosition(names=names, number=number, peer_port=node.peer_port, control_home=str(layout.home)),
            )
        )
    return tuple(found)


def prepare_nodes(layout: ControlLayout, places: Sequence[NodePlace], *, now_wall_s: float) -> None:
    """
    Give each of several nodes what it cannot make itself: its certificate, and what probes are known by.

    Raises:
        UnusableHome, OSError: a home cannot be written.
    """
    from cortex.certificates import kept_authority, kept_certificate  # 50 ms, for who has several nodes

    authority = kept_authority(layout.authority_certificate, layout.authority_key, now_wall_s)
    token = layout.probe_token_file.read_bytes()
    for place in places:
        place.layout.prepare()
        kept_certificate(place.layout.certificate, authority, place.node, now_wall_s)
        processes.write_whole(place.layout.authority, authority.certificate)
        processes.write_whole(place.layout.probe_token_file, token)
