"""What is written of the nodes of one machine."""

from __future__ import annotations

from pathlib import Path

from cortex.ids import NodeId
from cortex.wire import localnodes
from cortex.wire.localnodes import LocalNode, NodePosition, node_names, place_in

NODES = tuple(LocalNode(name=name, port=8000 + n, peer_port=9000 + n) for n, name in enumerate(node_names(2)))


def test_nodes_are_remembered_until_there_is_one_again(tmp_path: Path) -> None:
    file = tmp_path / "nodes.json"
    assert localnodes.read(file) == ()
    localnodes.remember(file, NODES)
    assert localnodes.read(file) == NODES
    localnodes.remember(file, ())
    localnodes.remember(file, ())
    assert (localnodes.read(file), file.exists()) == ((), False)


def test_what_cannot_be_read_is_one_node(tmp_path: Path) -> None:
    file = tmp_path / "nodes.json"
    file.write_text("[")
    assert localnodes.read(file) == ()


def test_a_place_goes_through_a_command_line_beside_descriptors() -> None:
    place = NodePosition(names=node_names(3), number=1, peer_port=9001, control_home="/home/ann/a b/größe")
    assert place.name == NodeId("node-2")
    assert place_in(["agent", "/h/nodes/node-2", place.argument, "7", "8"]) == place
    assert not place.argument.isdecimal(), "those are descriptors"


def test_without_a_place_the_machine_is_the_node() -> None:
    assert place_in(["agent", "/h", "7"]) is None
