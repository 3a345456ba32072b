"""The engine of machines that are there: of one, which is one node or several shares, or of some that dial in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from cortex.engines.ledger import Ledger, impossible_text
from cortex.ids import NodeId
from cortex.wire.build import Resources
from cortex.wire.reports import Node


class LocalEngine(Ledger):
    """
    Accounts for cpu, memory and gpus of machines that nobody adds to.

    There is nowhere else to go, so what can never be placed is refused. On one machine cpu is shared, and a minimum is
    refused for memory and gpus alone.

    Leases live in this process alone: after a restart `recover` takes them back from what runs.

    Args:
        nodes: the machine, its `shares`, or machines.
        shares_cpu: whether all of them have the same processors.
    """

    def __init__(self, *nodes: Node, shares_cpu: bool = True) -> None:
        super().__init__(nodes, shares_cpu=shares_cpu)

    def impossible(self, resources: Resources, replicas: int = 1) -> str | None:
        return impossible_text(self.nodes(), resources, replicas, shares_cpu=self.shares_cpu)

    def meet(self, nodes: Iterable[Node]) -> None:
        """Machines are there, as they say themselves: new ones, or with other room than was known."""
        known = {node.node: node for node in self.nodes()}
        for node in nodes:
            if known.get(node.node) != node:
                self.add_node(node)


def shares(machine: Node, names: Sequence[NodeId]) -> tuple[Node, ...]:
    """The machine as several nodes: each has all of its cpu, an equal part of its memory, and every nth GPU."""
    count = len(names)
    found = []
    for number, name in enumerate(names):
        devices = machine.devices[number::count]
        gpus = len(range(number, machine.gpus, count))
        mem_bytes = machine.mem_bytes // count
        found.append(msgspec.structs.replace(machine, node=name, mem_bytes=mem_bytes, gpus=gpus, devices=devices))
    return tuple(found)
