"""Which ports the nodes of one machine get."""

from __future__ import annotations

from collections.abc import Collection

from cortex.client.nodeports import chosen
from cortex.ids import NodeId
from cortex.wire.localnodes import LocalNode


class Machine:
    """Ports are given from a first one on."""

    def __init__(self, first: int = 40_000, taken: Collection[int] = ()) -> None:
        self.first = first
        self.taken = set(taken)
        self.claimed: list[tuple[str, int]] = []

    def claim(self, host: str, port: int) -> int:
        if not port or port in self.taken:
            port = self.first + len(self.claimed)
        self.claimed.append((host, port))
        return port


def test_the_first_node_has_the_port_of_predictions_and_the_others_free_ones() -> None:
    machine = Machine()
    nodes = chosen(3, (), host="0.0.0.0", port=8880, claim=machine.claim)
    assert [(node.name, node.port) for node in nodes] == [("node-1", 8880), ("node-2", 40_001), ("node-3", 40_003)]
    assert [node.peer_port for node in nodes] == [40_000, 40_002, 40_004]
    assert [host for host, _port in machine.claimed] == ["127.0.0.1", *("0.0.0.0", "127.0.0.1") * 2]


def test_nodes_keep_the_ports_that_they_had() -> None:
    before = chosen(2, (), host="127.0.0.1", port=8880, claim=Machine().claim)
    machine = Machine(50_000, taken={before[1].port})
    after = chosen(3, before, host="127.0.0.1", port=8880, claim=machine.claim)
    assert (after[0], after[1].peer_port) == (before[0], before[1].peer_port)
    assert after[1].port != before[1].port, "somebody else has that now"
    assert len({port for node in after for port in (node.port, node.peer_port)}) == 6


def test_fewer_nodes_are_the_first_of_them() -> None:
    before = tuple(LocalNode(name=NodeId(f"node-{n}"), port=n, peer_port=10 + n) for n in (1, 2, 3))
    assert chosen(2, before, host="h", port=1, claim=Machine().claim) == before[:2]
