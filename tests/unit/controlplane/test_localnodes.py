"""The nodes of this machine, and what lies in their homes before their agents start."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortex.controlplane.localnodes import local_nodes, prepare_nodes
from cortex.ids import NodeId
from cortex.settings import ControlLayout, Settings
from cortex.wire import localnodes
from cortex.wire.localnodes import LocalNode, node_names
from cortex.wire.membership import UnixAddress, membership_in
from cortex.wire.reports import Node

NOW_S = 1_800_000_000.0
MACHINE = Node(node=NodeId("local"), cpu_millis=4000, mem_bytes=9 * 2**30, gpus=4)


@pytest.fixture
def layout(tmp_path: Path) -> ControlLayout:
    layout = ControlLayout(tmp_path / "h")
    layout.prepare()
    return layout


def test_the_one_node_of_a_machine_has_the_machine_and_is_told_nothing(layout: ControlLayout) -> None:
    settings = Settings(home=layout.home)
    (place,) = local_nodes(settings, layout, MACHINE)
    assert (place.room, place.layout.home, place.settings) == (MACHINE, layout.home, settings)
    prepare_nodes(layout, [place], now_wall_s=NOW_S)
    assert place.membership is None
    assert not place.layout.membership_file.exists()
    assert not layout.authority_key.exists(), "no certificate where nobody asks for one"


def test_each_of_several_nodes_finds_in_its_home_which_one_it_is(layout: ControlLayout) -> None:
    nodes = [LocalNode(name=name, port=8000 + n, peer_port=9000 + n) for n, name in enumerate(node_names(3))]
    localnodes.remember(layout.nodes_file, nodes)
    places = local_nodes(Settings(home=layout.home, host="0.0.0.0", port=8880), layout, MACHINE)
    prepare_nodes(layout, places, now_wall_s=NOW_S)
    told = [membership_in(place.layout.membership_file) for place in places]
    assert [place.layout.home for place in places] == [layout.nodes / node.name for node in nodes]
    assert [(one.node, one.host, one.bind, one.port, one.peer_port) for one in told] == [
        ("node-1", "127.0.0.1", "0.0.0.0", 8880, 9000),
        ("node-2", "127.0.0.1", "0.0.0.0", 8001, 9001),
        ("node-3", "127.0.0.1", "0.0.0.0", 8002, 9002),
    ]
    assert {one.addresses for one in told} == {(UnixAddress(layout.links_socket),)}
    assert {one.control_home for one in told} == {str(layout.home)}
    rooms = [one.report(MACHINE) for one in told]
    assert rooms == [place.room for place in places], "an agent reports what its engine counts on"
    assert [(room.cpu_millis, room.mem_bytes, room.gpus) for room in rooms] == [
        (4000, 3 * 2**30, 2),
        (4000, 3 * 2**30, 1),
        (4000, 3 * 2**30, 1),
    ]
