"""Who holds which room on which node: the accounting that all engines share. No I/O, no clock."""

from __future__ import annotations

import functools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Concatenate, ParamSpec, TypeVar

import msgspec

from cortex.ids import ApiKey, DeviceId, NodeId, ReplicaId
from cortex.planning.actions import room_text
from cortex.planning.model import Lack, Lease, LeaseRequest, LeaseState
from cortex.wire.build import Resources, mem_text
from cortex.wire.reports import Node

LEAVING = "leaving"
"""Why nothing is placed on a node that is to be given back."""
NODES_NAMED = 3
"""How many nodes a reason tells about; more would not be read."""
HOLDERS_NAMED = 3
"""Likewise, how many apis that hold what is lacking."""


P = ParamSpec("P")
R = TypeVar("R")


def _one_at_a_time(method: Callable[Concatenate[Ledger, P], R]) -> Callable[Concatenate[Ledger, P], R]:
    @functools.wraps(method)
    def alone(self: Ledger, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            return method(self, *args, **kwargs)

    return alone


class Ledger:
    """
    Leases in the order of asking. Thread-safe.

    Args:
        nodes: the machines.
        refuse: says why a request is not to be placed for now, whatever room there is; None: place it.
        apart: whether the second replica of an api waits for a second node rather than share the first one's.
        shares_cpu: whether requests of cpu are shares, which bound nothing: whoever decides how many replicas there are
            looks at what is really used (`planning.autoscale`).
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        *,
        refuse: Callable[[LeaseRequest], str | None] = lambda _request: None,
        apart: Callable[[LeaseRequest], bool] = lambda _request: False,
        shares_cpu: bool = False,
    ) -> None:
        self.revision = 0
        self.shares_cpu = shares_cpu
        self._refuse = refuse
        self._apart = apart
        self._nodes = {node.node: node for node in nodes}
        self._avoided: Mapping[NodeId, str] = {}
        """Where nothing is placed, and why."""
        self._leases: dict[ReplicaId, Lease] = {}
        self._peak_bytes: dict[ReplicaId, int] = {}
        self._changed: Callable[[], None] = lambda: None
        self._lock = threading.RLock()

    def follow(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    # ---- asking -------------------------------------------------------------------------------------------------

    @_one_at_a_time
    def acquire(self, request: LeaseRequest) -> None:
        known = self._leases.get(request.replica)
        if known is None:
            self._put(Lease(request=request, state=LeaseState.PENDING))
        else:
            renewed = msgspec.structs.replace(request, resources=known.request.resources)
            if renewed != known.request:
                self._put(msgspec.structs.replace(known, request=renewed))
        self.place_pending()

    @_one_at_a_time
    def release(self, replica: ReplicaId) -> None:
        if self._leases.pop(replica, None) is not None:
            self._note_change()
            self._peak_bytes.pop(replica, None)
            self.place_pending()

    @_one_at_a_time
    def recover(self, running: Iterable[Lease]) -> None:
        for lease in running:
            known = self._leases.get(lease.request.replica)
            if known is None or known.state is not LeaseState.GRANTED or known.node != lease.node:
                granted = msgspec.structs.replace(lease, state=LeaseState.GRANTED, reason="", lacks=None)
                if not self._has_devices_of(granted):  # after a reboot a machine may have others
                    granted = msgspec.structs.replace(granted, devices=self._free_devices(granted))
                self._put(granted)
        self.place_pending()

    @_one_at_a_time
    def note_usage(self, peak_bytes: Mapping[ReplicaId, int]) -> None:
        for replica, peak in peak_bytes.items():
            lease = self._leases.get(replica)
            if lease is None or lease.request.resources.mem_bytes is not None:
                continue
            if peak > self._peak_bytes.get(replica, 0):
                self._peak_bytes[replica] = peak
                self._note_change()

    # ---- machines -----------------------------------------------------------------------------------------------

    @_one_at_a_time
    def add_node(self, node: Node) -> None:
        self._nodes[node.node] = node
        self._note_change()
        self.place_pending()

    @_one_at_a_time
    def remove_node(self, node: NodeId, reason: str) -> None:
        """The machine is gone, and what was leased there is lost."""
        if self._nodes.pop(node, None) is not None:
            self._note_change()
        for lease in self.leases():
            if lease.node == node and lease.state is LeaseState.GRANTED:
                self.lose(lease.request.replica, reason)

    def avoid(self, lost: Collection[NodeId], leaving: Collection[NodeId] = ()) -> None:
        """Place nothing on these; on all others again."""
        self.shut({**dict.fromkeys(leaving, LEAVING), **dict.fromkeys(lost, "lost")})

    @_one_at_a_time
    def shut(self, nodes: Mapping[NodeId, str]) -> None:
        """As `avoid`, with the reason for each. Where that is `LEAVING`, what is asked for there by name is placed."""
        if nodes != self._avoided:
            self._avoided = dict(nodes)
            self.place_pending()

    @_one_at_a_time
    def lose(self, replica: ReplicaId, reason: str) -> None:
        if self._lost(replica, reason):
            self.place_pending()

    @_one_at_a_time
    def withdraw(self, replica: ReplicaId) -> None:
        """Take back what was granted and not used: it waits for room again."""
        lease = self._leases.get(replica)
        if lease is not None and lease.state is LeaseState.GRANTED:
            self._put(msgspec.structs.replace(lease, state=LeaseState.PENDING, node=None, devices=()))
            self.place_pending()

    @_one_at_a_time
    def take_in(
        self,
        nodes: Iterable[Node],
        *,
        placed: Mapping[ReplicaId, NodeId],
        lost: Mapping[ReplicaId, str],
    ) -> None:
        """
        Have everything be as somebody else has found it, before anything is placed.

        Args:
            nodes: the machines that there are; what is leased on others is lost.
            placed: leases that were given room there by whoever owns the machines.
            lost: why these are.
        """
        there = {node.node: node for node in nodes}
        gone = self._nodes.keys() - there.keys()
        if there != self._nodes:
            self._nodes = there
            self._note_change()
        for lease in self.leases():
            name = lease.request.replica
            if name in placed:
                granted = msgspec.structs.replace(
                    lease, state=LeaseState.GRANTED, node=placed[name], reason="", lacks=None
                )
                self._put(msgspec.structs.replace(granted, devices=self._free_devices(granted)))
            elif lease.state is LeaseState.GRANTED and (name in lost or lease.node in gone):
                self._lost(name, lost.get(name) or f"node {lease.node} is gone")
        self.place_pending()

    @_one_at_a_time
    def clear(self) -> None:
        """Forget every lease."""
        self._leases.clear()
        self._peak_bytes.clear()
        self._note_change()

    # ---- answers ------------------------------------------------------------------------------------------------

    @_one_at_a_time
    def leases(self) -> tuple[Lease, ...]:
        return tuple(self._leases.values())

    def nodes(self) -> tuple[Node, ...]:
        return tuple(self._nodes.values())

    @_one_at_a_time
    def requested(self) -> dict[NodeId, Resources]:
        sums = {node: [0, 0, 0] for node in self._nodes}
        for lease in self._leases.values():
            if lease.state is LeaseState.GRANTED and lease.node in sums:
                of_node, resources = sums[lease.node], lease.request.resources
                of_node[0] += resources.cpu_millis
                of_node[1] += self._mem_bytes(lease.request)
                of_node[2] += resources.gpus
        return {node: Resources(cpu_millis=cpu, mem_bytes=mem, gpus=gpus) for node, (cpu, mem, gpus) in sums.items()}

    @_one_at_a_time
    def place_pending(self) -> None:
        """
        Grant what fits now: rollouts, minimums, the rest, each oldest first; say of the others why they do not fit.

        A surge goes first since it gives as much room back as it takes. And what a forced rollout has made room for
        must not fall to somebody else.
        """
        pending = [lease for lease in self._leases.values() if lease.state is LeaseState.PENDING]
        if not pending:
            return
        requested = self.requested()
        for lease in sorted(pending, key=lambda lease: (not lease.request.surge, not lease.request.minimum)):
            refusal = self._refuse(lease.request)
            refused = msgspec.structs.replace(lease, reason=refusal or "", lacks=None)
            placed = self._placed(lease, requested) if refusal is None else refused
            if placed != lease:
                self._put(placed)
                if placed.state is LeaseState.GRANTED:
                    requested = self.requested()

    def _placed(self, lease: Lease, requested: Mapping[NodeId, Resources]) -> Lease:
        """The lease granted on the first node with room, or with the reason why there is none."""
        texts: list[str] = []
        lacks: Lack | None = None
        apart = lease.request.node is None and self._apart(lease.request)
        kept_from = self._only_node_of(lease.request.api) if apart else None
        for node in self._candidates(lease.request):
            shut = self._avoided.get(node.node)
            if shut is not None and (shut != LEAVING or lease.request.node is None):
                texts.append(f"node {node.node}: {shut}")
                continue
            if node.node == kept_from:
                texts.append(f"node {node.node}: has all other replicas of the api, which is to be on two nodes")
                continue
            shortage = self._shortage(node, requested[node.node], lease.request)
            if not shortage:
                placed = msgspec.structs.replace(lease, state=LeaseState.GRANTED, node=node.node, reason="", lacks=None)
                return msgspec.structs.replace(placed, devices=self._free_devices(placed))
            texts.append(f"node {node.node}: {', '.join(shortage.values())}")
            lacks = lacks or next(iter(shortage))
        if len(texts) > NODES_NAMED:
            texts = [*texts[:NODES_NAMED], f"and {len(texts) - NODES_NAMED} more nodes without room"]
        return msgspec.structs.replace(lease, reason="; ".join(texts) or "there is no node", lacks=lacks)

    def _only_node_of(self, api: ApiKey) -> NodeId | None:
        """The node that has all replicas of an api; None: it has none, or they are on several."""
        nodes = {
            lease.node
            for lease in self._leases.values()
            if lease.state is LeaseState.GRANTED and lease.request.api == api and lease.node not in self._avoided
        }
        return nodes.pop() if len(nodes) == 1 else None

    def _candidates(self, request: LeaseRequest) -> list[Node]:
        """
        The nodes that a lease may be placed on, the best one first.

        A second replica of an api goes to another node than the first, so that one outlives a node. Any other goes
        where its api is already and most is held, so that whole nodes stay free; where cpu is shared, nodes are parts
        of one machine, and it goes where fewest of its api are and least is held.
        """
        nodes = sorted(self._nodes.values(), key=lambda node: node.node)
        if request.node is not None:
            return [node for node in nodes if node.node == request.node]
        if len(nodes) < 2:
            return nodes
        of_api: Counter[NodeId] = Counter()
        held: Counter[NodeId] = Counter()
        for lease in self._leases.values():
            if lease.state is LeaseState.GRANTED and lease.node is not None and lease.node not in self._avoided:
                held[lease.node] += 1
                of_api[lease.node] += lease.request.api == request.api
        if self.shares_cpu:
            return sorted(nodes, key=lambda node: (of_api[node.node], held[node.node]))
        is_second = sum(count > 0 for count in of_api.values()) == 1
        return sorted(nodes, key=lambda node: ((of_api[node.node] > 0) != (not is_second), -held[node.node]))

    def _shortage(self, node: Node, requested: Resources, request: LeaseRequest) -> dict[Lack, str]:
        """What a node lacks for a request, with what is requested of it already; nothing: it fits."""
        asked = request.resources
        lacks: dict[Lack, str] = {}
        bound_by_cpu = not (self.shares_cpu or request.surge)
        if bound_by_cpu and requested.cpu_millis + asked.cpu_millis > node.cpu_millis:
            lacks[Lack.CPU] = f"cpu {requested.cpu_millis}m of {node.cpu_millis}m requested, {asked.cpu_millis}m asked"
        mem_bytes, requested_mem_bytes = asked.mem_bytes or 0, requested.mem_bytes or 0
        if mem_bytes and requested_mem_bytes + mem_bytes > node.mem_bytes:
            lacks[Lack.MEMORY] = (
                f"mem {mem_text(requested_mem_bytes)} of {mem_text(node.mem_bytes)} requested"
                f"{self._held_by(node.node, self._mem_bytes, mem_text)}, {mem_text(mem_bytes)} asked"
            )
        if asked.gpus and requested.gpus + asked.gpus > node.gpus:
            held = self._held_by(node.node, lambda one: one.resources.gpus, str)
            lacks[Lack.GPU] = f"gpu {requested.gpus} of {node.gpus} requested{held}, {asked.gpus} asked"
        return lacks

    def _held_by(self, node: NodeId, share: Callable[[LeaseRequest], int], written: Callable[[int], str]) -> str:
        """Which apis ask for most of what a node lacks, ` (iris/a 600Mi, iris/b 300Mi)`."""
        held: Counter[ApiKey] = Counter()
        for lease in self._granted(node):
            held[lease.request.api] += share(lease.request)
        named = [f"{api} {written(amount)}" for api, amount in held.most_common(HOLDERS_NAMED) if amount]
        return f" ({', '.join(named)})" if named else ""

    def _granted(self, node: NodeId) -> Iterator[Lease]:
        return (one for one in self._leases.values() if one.state is LeaseState.GRANTED and one.node == node)

    def _has_devices_of(self, lease: Lease) -> bool:
        node = self._nodes.get(lease.node) if lease.node is not None else None
        return node is None or set(lease.devices) <= set(_devices(node))

    def _free_devices(self, lease: Lease) -> tuple[DeviceId, ...]:
        """As many GPUs of its node as a lease asks for, the first that nobody holds."""
        asked = lease.request.resources.gpus
        node = self._nodes.get(lease.node) if lease.node is not None else None
        if not asked or node is None:
            return ()
        held = {device for other in self._granted(node.node) for device in other.devices}
        return tuple(device for device in _devices(node) if device not in held)[:asked]

    def _lost(self, replica: ReplicaId, reason: str) -> bool:
        lease = self._leases.get(replica)
        if lease is not None:
            self._put(msgspec.structs.replace(lease, state=LeaseState.LOST, reason=reason, lacks=None))
        return lease is not None

    def _mem_bytes(self, request: LeaseRequest) -> int:
        stated = request.resources.mem_bytes
        return self._peak_bytes.get(request.replica, 0) if stated is None else stated

    def _note_change(self) -> None:
        self.revision += 1
        self._changed()

    def _put(self, lease: Lease) -> None:
        self._leases[lease.request.replica] = lease
        self._note_change()


def _devices(node: Node) -> tuple[DeviceId, ...]:
    """Names of a node's GPUs; where only their number is known, CUDA's own numbers."""
    return node.devices or tuple(DeviceId(str(number)) for number in range(node.gpus))


def impossible_text(
    largest: Iterable[Node], resources: Resources, replicas: int, *, shares_cpu: bool = False
) -> str | None:
    """Why these machines could not hold so many replicas even if they were empty; None when they could."""
    nodes = tuple(largest)
    if not nodes:
        return None
    if any(holds(node, resources) for node in nodes):
        if sum(_how_many(node, resources, shares_cpu=shares_cpu) for node in nodes) >= replicas:
            return None
        machine = "this machine has" if len(nodes) == 1 else f"the {len(nodes)} nodes have"
        have = [] if shares_cpu else [f"{sum(node.cpu_millis for node in nodes)}m cpu"]
        have += [f"{mem_text(sum(node.mem_bytes for node in nodes))} mem"] if resources.mem_bytes else []
        have += [f"{sum(node.gpus for node in nodes)} gpu"] if resources.gpus else []
        asked = room_text(resources)
        return f"at least {replicas} replicas are wanted, each asks for {asked}, and {machine} {', '.join(have)}"
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


def holds(node: Node, resources: Resources) -> bool:
    """Whether a node has room for such a replica when it is empty."""
    return (
        resources.cpu_millis <= node.cpu_millis
        and (resources.mem_bytes or 0) <= node.mem_bytes
        and resources.gpus <= node.gpus
    )


def _how_many(node: Node, resources: Resources, *, shares_cpu: bool) -> int:
    """How many such replicas a node holds when it is empty."""
    shares = [(node.mem_bytes, resources.mem_bytes or 0), (node.gpus, resources.gpus)]
    shares += [] if shares_cpu else [(node.cpu_millis, resources.cpu_millis)]
    return min((there // asked for there, asked in shares if asked), default=sys.maxsize)
