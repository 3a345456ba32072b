"""Who holds which room on which node: the accounting that the local and the fake engine share. No I/O, no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from cortex.engines.base import Lease, LeaseRequest, Node
from cortex.ids import DeviceId, NodeId, ReplicaId
from cortex.planning.actions import mem_text
from cortex.planning.model import LeaseState
from cortex.wire.build import Resources
from cortex.wire.reports import NodeReport

NODES_NAMED = 3
"""How many nodes a reason tells about; more would not be read."""


class Ledger:
    """
    Leases in the order of asking. Not thread-safe.

    Args:
        nodes: the machines.
        refuse: says why a request is not to be placed for now, whatever room there is; None: place it.
    """

    def __init__(
        self, nodes: Iterable[NodeReport], *, refuse: Callable[[LeaseRequest], str | None] = lambda _request: None
    ) -> None:
        self.revision = 0
        self._refuse = refuse
        self._nodes = {node.node: node for node in nodes}
        self._leases: dict[ReplicaId, Lease] = {}
        self._peak_bytes: dict[ReplicaId, int] = {}

    # ---- asking -------------------------------------------------------------------------------------------------

    def acquire(self, request: LeaseRequest) -> None:
        known = self._leases.get(request.replica)
        if known is None:
            self._put(Lease(request=request, state=LeaseState.PENDING))
        elif known.request.surge != request.surge:
            renewed = msgspec.structs.replace(known.request, surge=request.surge)
            self._put(msgspec.structs.replace(known, request=renewed))
        self.place_pending()

    def release(self, replica: ReplicaId) -> None:
        if self._leases.pop(replica, None) is not None:
            self.revision += 1
            self._peak_bytes.pop(replica, None)
            self.place_pending()

    def recover(self, running: Iterable[Lease]) -> None:
        for lease in running:
            known = self._leases.get(lease.request.replica)
            if known is None or known.state is not LeaseState.GRANTED or known.node != lease.node:
                granted = msgspec.structs.replace(lease, state=LeaseState.GRANTED, reason="")
                if not self._has_devices_of(granted):  # after a reboot a machine may have others
                    granted = msgspec.structs.replace(granted, devices=self._free_devices(granted))
                self._put(granted)
        self.place_pending()

    def note_usage(self, peak_bytes: Mapping[ReplicaId, int]) -> None:
        for replica, peak in peak_bytes.items():
            lease = self._leases.get(replica)
            if lease is None or lease.request.resources.mem_bytes is not None:
                continue
            if peak > self._peak_bytes.get(replica, 0):
                self._peak_bytes[replica] = peak
                self.revision += 1

    # ---- machines -----------------------------------------------------------------------------------------------

    def add_node(self, node: NodeReport) -> None:
        self._nodes[node.node] = node
        self.revision += 1
        self.place_pending()

    def remove_node(self, node: NodeId, reason: str) -> None:
        """The machine is gone, and what was leased there is lost."""
        if self._nodes.pop(node, None) is not None:
            self.revision += 1
        for lease in self.leases():
            if lease.node == node and lease.state is LeaseState.GRANTED:
                self.lose(lease.request.replica, reason)

    def lose(self, replica: ReplicaId, reason: str) -> None:
        lease = self._leases.get(replica)
        if lease is not None:
            self._put(msgspec.structs.replace(lease, state=LeaseState.LOST, reason=reason))
            self.place_pending()

    def clear(self) -> None:
        """Forget every lease."""
        self._leases.clear()
        self._peak_bytes.clear()
        self.revision += 1

    # ---- answers ------------------------------------------------------------------------------------------------

    def leases(self) -> tuple[Lease, ...]:
        return tuple(self._leases.values())

    def nodes(self) -> tuple[Node, ...]:
        used = {node: [0, 0, 0] for node in self._nodes}
        for lease in self._leases.values():
            if lease.state is LeaseState.GRANTED and lease.node in used:
                sums = used[lease.node]
                resources = lease.request.resources
                sums[0] += resources.cpu_millis
                sums[1] += self._mem_bytes(lease.request)
                sums[2] += resources.gpus
        return tuple(
            Node(
                node=node.node,
                cpu_millis=node.cpu_millis,
                mem_bytes=node.mem_bytes,
                gpus=node.gpus,
                used_cpu_millis=used[node.node][0],
                used_mem_bytes=used[node.node][1],
                used_gpus=used[node.node][2],
            )
            for node in self._nodes.values()
        )

    def place_pending(self) -> None:
        """
        Grant what fits now, rollouts first, then oldest first; say of the rest why it does not fit.

        A surge goes first since it gives as much room back as it takes. And what a forced rollout has made room for
        must not fall to somebody else.
        """
        pending = [lease for lease in self._leases.values() if lease.state is LeaseState.PENDING]
        if not pending:
            return
        nodes = self.nodes()
        for lease in sorted(pending, key=lambda lease: not lease.request.surge):
            refusal = self._refuse(lease.request)
            refused = msgspec.structs.replace(lease, reason=refusal or "")
            placed = _placed(lease, nodes) if refusal is None else refused
            if placed != lease:
                if placed.state is LeaseState.GRANTED:
                    placed = msgspec.structs.replace(placed, devices=self._free_devices(placed))
                self._put(placed)
                if placed.state is LeaseState.GRANTED:
                    nodes = self.nodes()

    def _has_devices_of(self, lease: Lease) -> bool:
        node = self._nodes.get(lease.node) if lease.node is not None else None
        return node is None or set(lease.devices) <= set(_devices(node))

    def _free_devices(self, lease: Lease) -> tuple[DeviceId, ...]:
        """As many GPUs of its node as a lease asks for, the first that nobody holds."""
        asked = lease.request.resources.gpus
        node = self._nodes.get(lease.node) if lease.node is not None else None
        if not asked or node is None:
            return ()
        held = {
            device
            for other in self._leases.values()
            if other.state is LeaseState.GRANTED and other.node == node.node
            for device in other.devices
        }
        return tuple(device for device in _devices(node) if device not in held)[:asked]

    def _mem_bytes(self, request: LeaseRequest) -> int:
        stated = request.resources.mem_bytes
        return self._peak_bytes.get(request.replica, 0) if stated is None else stated

    def _put(self, lease: Lease) -> None:
        self._leases[lease.request.replica] = lease
        self.revision += 1


def _devices(node: NodeReport) -> tuple[DeviceId, ...]:
    """Names of a node's GPUs; where only their number is known, CUDA's own numbers."""
    return node.devices or tuple(DeviceId(str(number)) for number in range(node.gpus))


def _placed(lease: Lease, nodes: Iterable[Node]) -> Lease:
    """The lease granted on the first node with room, or with the reason why there is none."""
    shortages = []
    for node in nodes:
        shortage = shortage_text(node, lease.request)
        if shortage is None:
            return msgspec.structs.replace(lease, state=LeaseState.GRANTED, node=node.node, reason="")
        shortages.append(shortage)
    if len(shortages) > NODES_NAMED:
        more = len(shortages) - NODES_NAMED
        shortages = [*shortages[:NODES_NAMED], f"and {more} more nodes without room"]
    return msgspec.structs.replace(lease, reason="; ".join(shortages) or "there is no node")


def shortage_text(node: Node, request: LeaseRequest) -> str | None:
    """What a node lacks for a request, e.g. `node local: cpu 1900m of 2000m in use, 200m asked`; None: it fits."""
    asked = request.resources
    lacks = []
    if not request.surge and node.used_cpu_millis + asked.cpu_millis > node.cpu_millis:
        lacks.append(f"cpu {node.used_cpu_millis}m of {node.cpu_millis}m in use, {asked.cpu_millis}m asked")
    mem_bytes = asked.mem_bytes or 0
    if mem_bytes and node.used_mem_bytes + mem_bytes > node.mem_bytes:
        lacks.append(
            f"mem {mem_text(node.used_mem_bytes)} of {mem_text(node.mem_bytes)} in use, {mem_text(mem_bytes)} asked"
        )
    if asked.gpus and node.used_gpus + asked.gpus > node.gpus:
        lacks.append(f"gpu {node.used_gpus} of {node.gpus} in use, {asked.gpus} asked")
    return f"node {node.node}: {', '.join(lacks)}" if lacks else None


def impossible_text(largest: Iterable[NodeReport], resources: Resources) -> str | None:
    """Why none of these machines could hold a replica even if it were empty; None when one could."""
    nodes = tuple(largest)
    if not nodes:
        return None
    if any(_holds(node, resources) for node in nodes):
        return None
    lacks = []
    cpu_millis = max(node.cpu_millis for node in nodes)
    mem_bytes = max(node.mem_bytes for node in nodes)
    gpus = max(node.gpus for node in nodes)
    if resources.cpu_millis > cpu_millis:
        lacks.append(f"{resources.cpu_millis}m cpu, but the largest node has {cpu_millis}m")
    if resources.mem_bytes is not None and resources.mem_bytes > mem_bytes:
        lacks.append(f"{mem_text(resources.mem_bytes)} mem, but the largest node has {mem_text(mem_bytes)}")
    if resources.gpus > gpus:
        lacks.append(f"{resources.gpus} gpu, but no node has {f'more than {gpus}' if gpus else 'any'}")
    return "a replica asks for " + ("; ".join(lacks) or "a combination of cpu, mem and gpu that no one node has")


def _holds(node: NodeReport, resources: Resources) -> bool:
    return (
        resources.cpu_millis <= node.cpu_millis
        and (resources.mem_bytes or 0) <= node.mem_bytes
        and resources.gpus <= node.gpus
    )
