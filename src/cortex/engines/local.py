"""The engine of one machine: it is the one node, or each node is a share of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cortex.engines.ledger import Ledger, impossible_text
from cortex.ids import NodeId
from cortex.wire.build import Resources
from cortex.wire.reports import Node


class LocalEngine(Ledger):
    """
    Accounts for cpu, memory and gpus of one machine.

    There is nowhere else to go, so an api's minimum is refused for memory and gpus alone; cpu is shared.

    Leases live in this process alone: after a restart `recover` takes them back from what runs.

    Args:
        nodes: the machine, or its `shares`.
    """

    def __init__(self, *nodes: Node) -> None:
        super().__init__(nodes, shares_cpu=True)

    def impossible(self, resources: Resources, replicas: int = 1) -> str | None:
        return impossible_text(self.nodes(), resources, replicas, shares_cpu=True)


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
