"""The seam between planning and whatever owns the machines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from cortex.ids import NodeId, ReplicaId
from cortex.planning.model import Lease, LeaseRequest
from cortex.wire.build import Resources
from cortex.wire.reports import Node


class Engine(Protocol):
    """
    Grants leases. Every method is quick, may be repeated, and never blocks on a node.

    What is asked for may be granted at some later time. What was granted may be lost; room that comes back elsewhere
    under the same name is another lease for us, so the engine shows the first as lost until it is released.

    Calls that reach for something outside this process may raise RetryLater. The contract suite
    `tests/contract/test_engines.py` holds every implementation to this.
    """

    @property
    def revision(self) -> int:
        """Another number whenever `nodes()` or `leases()` may answer differently than before; saves asking."""
        ...

    def follow(self, changed: Callable[[], None]) -> None:
        """Have this called, from any thread, whenever `revision` may have become another one. It is quick."""
        ...

    @property
    def shares_cpu(self) -> bool:
        """
        Whether there is one machine, in one node or several, where requests of cpu are shares and bound nothing: how
        many replicas are worth having there follows from what is used.
        """
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

    def requested(self) -> dict[NodeId, Resources]:
        """What leases hold of each of them; of cpu it may be more than there is, where that is shared."""
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

    def avoid(self, lost: Collection[NodeId], leaving: Collection[NodeId] = ()) -> None:
        """
        Place nothing on these nodes for now; on all others again. What is granted there stays, and who asks decides
        what becomes of it.

        Args:
            leaving: nodes that are to be given back. What is asked for there by name is still placed: somebody waits.
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
