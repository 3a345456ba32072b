"""The seam between planning and whatever owns the machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from cortex.ids import ApiKey, DeviceId, NodeId, ReplicaId
from cortex.planning.model import LeaseState
from cortex.wire.build import Resources

__all__ = ["Engine", "Lease", "LeaseRequest", "LeaseState", "Node"]


class LeaseRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Room for one replica; named after the replica, so that asking twice is asking once."""

    replica: ReplicaId
    api: ApiKey
    resources: Resources
    surge: bool = False
    """For a rollout: cpu may be overcommitted for it, memory and gpus may not."""
    minimum: bool = False
    """Among the first `min_replicas` of its api: where cpu is shared, it is placed however much is requested."""
    successor_of_cpu_millis: int = 0
    """Of a surge: the cpu of the replica that it takes over from. Where cpu is shared, only the growth must fit."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request."""

    request: LeaseRequest
    state: LeaseState
    node: NodeId | None = None
    devices: tuple[DeviceId, ...] = ()
    """Once it is granted: which GPUs of the node, as many as were asked for. No two leases hold the same one."""
    reason: str = ""
    """Why it is pending or lost, in words with numbers."""
    lacks_only_cpu: bool = False
    """It is pending, and memory and gpus would do."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A machine with its capacity and what leases ask for of it."""

    node: NodeId
    cpu_millis: int
    mem_bytes: int
    gpus: int = 0
    requested_cpu_millis: int = 0
    """May be more than there is, where cpu is shared."""
    requested_mem_bytes: int = 0
    requested_gpus: int = 0


class Engine(Protocol):
    """
    Grants leases. Every method is quick, may be repeated, and never blocks on a node.

    Calls that reach for something outside this process may raise RetryLater. The contract suite
    `tests/contract/test_engines.py` holds every implementation to this.
    """

    @property
    def revision(self) -> int:
        """Another number whenever `nodes()` or `leases()` may answer differently than before; saves asking."""
        ...

    def recover(self, running: Iterable[Lease]) -> None:
        """
        Take back the room of replicas that run, even over capacity; after our own restart, all of them.

        Args:
            running: granted, each with the node it runs on. A lease that is held there already stays as it is.
        """
        ...

    def nodes(self) -> tuple[Node, ...]:
        """The machines there are now."""
        ...

    def leases(self) -> tuple[Lease, ...]:
        """Every lease asked for and not released, as it stands now, in the order of asking."""
        ...

    def acquire(self, request: LeaseRequest) -> None:
        """
        Ask for room. The answer shows up in `leases()`. A second request of a name updates all but the resources.

        A surge is served before the rest, what is of a minimum before what is not, and who asked first before who asked
        later; one that fits may pass one that does not.
        """
        ...

    def release(self, replica: ReplicaId) -> None:
        """Give room back; unknown names are ignored."""
        ...

    def note_usage(self, peak_bytes: Mapping[ReplicaId, int]) -> None:
        """Tell what replicas were seen to use at most: it counts where a lease states no memory."""
        ...

    def impossible(self, resources: Resources, replicas: int = 1) -> str | None:
        """
        Why so many such replicas can never be placed, in words with numbers; None when they can, or may come to be.

        Each has to fit into an empty node; all together into all nodes, where none can be added.
        """
        ...
