"""What is written of the nodes of one machine."""

from __future__ import annotations

from pathlib import Path

from cortex.wire import localnodes
from cortex.wire.localnodes import LocalNode, node_names

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
