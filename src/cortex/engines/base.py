"""The seam between planning and whatever owns the machines."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Protocol

import msgspec

from cortex.ids import ApiKey, NodeId, ReplicaId
from cortex.wire.build import Resources


class LeaseState(StrEnum):
    """What became of a lease that was asked for."""

    PENDING = "pending"
    """No room now; the engine keeps trying, and on a cluster this is the demand that adds nodes."""
    GRANTED = "granted"
    """Room is held on `node`."""
    LOST = "lost"
    """The node or its lease is gone; whatever ran there has ended or soon will."""


class LeaseRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Room for one replica; named after the replica, so that asking twice is asking once."""

    replica: ReplicaId
    api: ApiKey
    resources: Resources
    surge: bool = False
    """For a rollout: cpu may be overcommitted for it, memory and gpus may not."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    request: LeaseRequest
    state: LeaseState
    node: NodeId | None = None
    reason: str = ""
    """Why it is pending or lost, in words with numbers."""


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A machine with its capacity and what leases hold of it."""

    node: NodeId
    cpu_millis: int
    mem_bytes: int
    gpus: int = 0
    used_cpu_millis: int = 0
    used_mem_bytes: int = 0
    used_gpus: int = 0


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What callers may rely on, as data rather than by asking which engine it is."""

    adds_nodes: bool = False
    survives_control_plane: bool = True


class Engine(Protocol):
    """
    Grants leases. Every method is quick, may be repeated, and never blocks on a node.

    The contract suite `tests/contract/test_engines.py` holds every implementation to this.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    def recover(self, running: Iterable[LeaseRequest]) -> None:
        """After our own restart: take back the leases of replicas that still run, even over capacity."""
        ...

    def nodes(self) -> tuple[Node, ...]:
        """The machines there are now."""
        ...

    def leases(self) -> tuple[Lease, ...]:
        """Every lease asked for and not released, as it stands now."""
        ...

    def acquire(self, request: LeaseRequest) -> None:
        """Ask for room. The answer shows up in `leases()`. A second request of the same name updates `surge`."""
        ...

    def release(self, replica: ReplicaId) -> None:
        """Give room back; unknown names are ignored."""
        ...
