"""The engine of one machine: this machine is the one node."""

from __future__ import annotations

from cortex.engines.ledger import Ledger, impossible_text
from cortex.wire.build import Resources
from cortex.wire.reports import Node


class LocalEngine(Ledger):
    """
    Accounts for cpu, memory and gpus of one machine.

    There is nowhere else to go, so an api's minimum is refused for memory and gpus alone; cpu is shared.

    Leases live in this process alone: after a restart `recover` takes them back from what runs.
    """

    def __init__(self, machine: Node) -> None:
        super().__init__([machine], shares_cpu=True)

    def impossible(self, resources: Resources, replicas: int = 1) -> str | None:
        return impossible_text(self.nodes(), resources, replicas, shares_cpu=True)
