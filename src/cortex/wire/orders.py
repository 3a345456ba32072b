"""What the control plane tells an agent to do. Each order is safe to repeat."""

from __future__ import annotations

import msgspec

from cortex.ids import ApiKey, DeviceId, NodeId, ReplicaId, Version
from cortex.wire.batching import BatchingOrder
from cortex.wire.build import BuildSpec


class StartReplica(msgspec.Struct, frozen=True, kw_only=True, tag="start_replica"):
    """
    Run this build as this replica, on this replica's own slot.

    A replica that already runs an attempt as high or higher is left alone. A higher attempt than the one that
    exited starts a new process on the same listening socket, so that waiting requests reach it.
    """

    replica: ReplicaId
    attempt: int
    build: BuildSpec
    devices: tuple[DeviceId, ...] = ()
    """The GPUs that its lease holds, and the only ones that it sees."""
    batches: BatchingOrder = BatchingOrder()
    """What it does about batches until it is told otherwise."""


class HoldSlot(msgspec.Struct, frozen=True, kw_only=True, tag="hold_slot"):
    """
    Open this replica's slot and hold it without a process: it sleeps until somebody knocks, which is reported.

    A replica of that name that is known already is left alone. `StartReplica` wakes it, on the same slot.
    """

    replica: ReplicaId
    build: BuildSpec


class SetReplicaBatching(msgspec.Struct, frozen=True, kw_only=True, tag="set_replica_batching"):
    """Have the replica do this about batches from now on, also one that is still starting; later attempts not."""

    replica: ReplicaId
    batches: BatchingOrder


class DrainReplica(msgspec.Struct, frozen=True, kw_only=True, tag="drain_replica"):
    """Take the replica out of rotation, let it finish what it holds for at most `timeout_s`, then end it."""

    replica: ReplicaId
    timeout_s: float


class ForgetReplica(msgspec.Struct, frozen=True, kw_only=True, tag="forget_replica"):
    """End the replica now if it still runs, close its slot and stop reporting it."""

    replica: ReplicaId


class SetRoute(msgspec.Struct, frozen=True, kw_only=True, tag="set_route"):
    """
    Send requests for `path` to these replicas.

    `targets` are all replicas that may serve: the agent keeps those in rotation that are ready, and while none
    is, holds requests for those whose replacement is on its way. An order by itself only for an agent that knows of no
    tables; others get it as a part of `SetRoutes`.
    """

    api: ApiKey
    path: str
    targets: tuple[ReplicaId, ...]
    version: Version
    """The version that answers for the ingress's own errors."""
    timeout_s: float = 600.0
    max_body_bytes: int = 100 * 2**20
    retry: bool = True
    hold: bool = True
    """False once nobody will replace the targets that are down: answer 503 at once."""
    nodes: dict[NodeId, int] = {}
    """How many of the targets are on which node; empty while there is one node."""


class RemoveRoute(msgspec.Struct, frozen=True, kw_only=True, tag="remove_route"):
    """Answer 404 for this api from now on."""

    api: ApiKey


class RoutesRevision(msgspec.Struct, frozen=True, order=True, array_like=True):
    """
    Which table of routes: two that say the same have the same content. Later ones are greater, across restarts too.

    `UNNUMBERED` says nothing about the content.
    """

    epoch: int
    """Of the control plane that made it."""
    number: int
    """Its tables are counted from 1, and no number is used twice: what became of an order may not be known."""


UNNUMBERED = RoutesRevision(0, 0)


class SetRoutes(msgspec.Struct, frozen=True, kw_only=True, tag="set_routes"):
    """
    Have this table of routes, the same on all nodes, from now on.

    A node that has neither `base` nor `revision` leaves its table as it is, and so everything that follows in the
    batch; its report says what it has.
    """

    revision: RoutesRevision
    base: RoutesRevision | None = None
    """What changes; None: whatever there is is replaced as a whole."""
    routes: tuple[SetRoute, ...] = ()
    """Of apis that have another one than in `base`."""
    removed: tuple[ApiKey, ...] = ()
    """Apis that have none any more: 404."""


Order = StartReplica | HoldSlot | SetReplicaBatching | DrainReplica | ForgetReplica | SetRoutes | SetRoute | RemoveRoute


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """A batch of orders, carried out in this sequence."""

    epoch: int
    """Who is in charge; an agent refuses a batch with a lower epoch than it has seen."""
    orders: tuple[Order, ...]
