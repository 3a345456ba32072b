"""The engine of one machine: this machine is the one node."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

from cortex.engines.base import Lease, LeaseRequest, Node
from cortex.engines.ledger import Ledger, impossible_text
from cortex.ids import ReplicaId
from cortex.wire.build import Resources
from cortex.wire.reports import NodeReport


class LocalEngine:
    """
    Accounts for cpu, memory and gpus of one machine. Thread-safe.

    There is nowhere else to go, so an api's minimum is refused for memory and gpus alone; cpu is shared.

    Leases live in this process alone: after a restart `recover` takes them back from what runs.

    Args:
        capacity: what a process may really use of this machine.
    """

    def __init__(self, capacity: NodeReport) -> None:
        self._capacity = capacity
        self._ledger = Ledger([capacity], shares_cpu=True)
        self._lock = threading.Lock()

    @property
    def revision(self) -> int:
        with self._lock:
            return self._ledger.revision

    def recover(self, running: Iterable[Lease]) -> None:
        with self._lock:
            self._ledger.recover(running)

    def nodes(self) -> tuple[Node, ...]:
        with self._lock:
            return self._ledger.nodes()

    def leases(self) -> tuple[Lease, ...]:
        with self._lock:
            return self._ledger.leases()

    def acquire(self, request: LeaseRequest) -> None:
        with self._lock:
            self._ledger.acquire(request)

    def release(self, replica: ReplicaId) -> None:
        with self._lock:
            self._ledger.release(replica)

    def note_usage(self, peak_bytes: Mapping[ReplicaId, int]) -> None:
        with self._lock:
            self._ledger.note_usage(peak_bytes)

    def impossible(self, resources: Resources, replicas: int = 1) -> str | None:
        return impossible_text([self._capacity], resources, replicas, shares_cpu=True)
