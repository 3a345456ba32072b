"""
An engine for tests whose misfortunes are settings. It passes the same contract suite as the real ones.

| to see what happens when … | use |
|---|---|
| room takes a while to be granted | `grant_delay_s` |
| room is refused, for all or for some | `deny` |
| a lease or a machine is lost | `lose_lease`, `lose_node` |
| a lease is forgotten | `forget_lease` |
| a machine comes (back) | `add_node` |
| demand adds machines, up to a maximum | `new_node`, `max_nodes`, `node_delay_s` |
| the engine has forgotten everything after a restart of the control plane | `restart` |
| calls to the engine fail | `unreachable` |
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from cortex.clock import Clock
from cortex.engines.ledger import Ledger, impossible_text
from cortex.errors import RetryLater
from cortex.ids import NodeId, ReplicaId
from cortex.planning.model import Lease, LeaseRequest, LeaseState
from cortex.wire.build import Resources
from cortex.wire.reports import Node

RETRY_AFTER_S = 0.2


class FakeEngine:
    """
    Grants leases on pretended machines.

    Args:
        nodes: the machines there are at first.
        clock: for the delays.
        new_node: what each machine looks like that demand adds; None: none is added.
        max_nodes: no machine is added beyond this many.
        shares_cpu: as on one machine.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        *,
        clock: Clock,
        new_node: Node | None = None,
        max_nodes: int = 0,
        shares_cpu: bool = False,
    ) -> None:
        self.grant_delay_s = 0.0
        """A lease is granted at the earliest this long after it was asked for."""
        self.node_delay_s = 0.0
        """A machine that demand adds comes this long after the demand."""
        self.deny: Callable[[LeaseRequest], str | None] = lambda _request: None
        """Says why a request is not granted although there may be room; None: grant it."""
        self.unreachable = False
        """While true every call that asks for something raises RetryLater."""
        self.forgets = False
        """Whether `restart` loses all leases, as for the local engine."""
        self.added: list[NodeId] = []
        """Machines that demand has added, in order."""
        self._clock = clock
        self._new_node = new_node
        self._max_nodes = max_nodes
        self.shares_cpu = shares_cpu
        self._largest = tuple(nodes)
        self._ledger = Ledger(self._largest, refuse=self._refuse, shares_cpu=shares_cpu)
        self._asked_s: dict[ReplicaId, float] = {}
        self._node_due_s: float | None = None
        self._advanced: object = None

    @property
    def revision(self) -> int:
        self._advance()
        return self._ledger.revision

    def follow(self, changed: Callable[[], None]) -> None:
        self._ledger.follow(changed)

    # ---- Engine -------------------------------------------------------------------------------------------------

    def recover(self, running: Iterable[Lease]) -> None:
        self._reach()
        known = {node.node for node in self._ledger.nodes()}
        self._ledger.recover(lease for lease in running if lease.node in known)

    def nodes(self) -> tuple[Node, ...]:
        self._advance()
        return self._ledger.nodes()

    def requested(self) -> dict[NodeId, Resources]:
        self._advance()
        return self._ledger.requested()

    def leases(self) -> tuple[Lease, ...]:
        self._advance()
        return self._ledger.leases()

    def acquire(self, request: LeaseRequest) -> None:
        self._reach()
        self._asked_s.setdefault(request.replica, self._clock.monotonic_s())
        self._ledger.acquire(request)

    def avoid(self, lost: Collection[NodeId], leaving: Collection[NodeId] = ()) -> None:
        self._ledger.avoid(lost, leaving)

    def release(self, replica: ReplicaId) -> None:
        self._reach()
        self._asked_s.pop(replica, None)
        self._ledger.release(replica)

    def note_usage(self, peak_bytes: Mapping[ReplicaId, int]) -> None:
        self._ledger.note_usage(peak_bytes)

    def impossible(self, resources: Resources, replicas: int = 1) -> str | None:
        if self._new_node is not None:
            return impossible_text((*self._largest, self._new_node), resources, 1)
        return impossible_text(self._largest, resources, replicas, shares_cpu=self.shares_cpu)

    # ---- misfortunes --------------------------------------------------------------------------------------------

    def lose_lease(self, replica: ReplicaId, reason: str = "the lease was taken away") -> None:
        self._ledger.lose(replica, reason)

    def forget_lease(self, replica: ReplicaId) -> None:
        """The engine knows nothing of a lease any more; whatever has it goes on running."""
        self._ledger.release(replica)

    def lose_node(self, node: NodeId) -> None:
        self._ledger.remove_node(node, f"node {node} is gone")

    def add_node(self, node: Node) -> None:
        self._ledger.add_node(node)

    def restart(self) -> None:
        """What happens to the engine when the control plane ends and starts again."""
        if self.forgets:
            self._ledger.clear()
            self._asked_s.clear()

    # ---- time ---------------------------------------------------------------------------------------------------

    def _reach(self) -> None:
        if self.unreachable:
            raise RetryLater("the engine does not answer", after_s=RETRY_AFTER_S)

    def _refuse(self, request: LeaseRequest) -> str | None:
        waited_s = self._clock.monotonic_s() - self._asked_s.get(request.replica, 0.0)
        if waited_s < self.grant_delay_s:
            return f"asked for {waited_s:.1f} s ago, granted after {self.grant_delay_s:.1f} s"
        return self.deny(request)

    def _advance(self) -> None:
        """Let everything happen that time, or a changed `deny`, brings about."""
        moment = (self._clock.monotonic_s(), self.deny, self._ledger.revision)
        if moment == self._advanced:
            return
        if any(lease.state is LeaseState.PENDING for lease in self._ledger.leases()):
            self._ledger.place_pending()
            self._add_node_on_demand()
        self._advanced = (moment[0], self.deny, self._ledger.revision)

    def _add_node_on_demand(self) -> None:
        template = self._new_node
        nodes = self._ledger.nodes()
        waits = any(lease.state is LeaseState.PENDING for lease in self._ledger.leases())
        if template is None or not waits or len(nodes) >= self._max_nodes:
            self._node_due_s = None
            return
        now_s = self._clock.monotonic_s()
        if self._node_due_s is None:
            self._node_due_s = now_s + self.node_delay_s
        if now_s >= self._node_due_s:
            self._node_due_s = None
            name = NodeId(f"{template.node}-{len(self.added) + 1}")
            self.added.append(name)
            self._ledger.add_node(msgspec.structs.replace(template, node=name))
