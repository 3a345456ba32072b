"""What planning is told: the wanted state, and everything observed."""

from __future__ import annotations

import msgspec

from cortex.errors import Problem
from cortex.ids import ApiKey, NodeId, ReplicaId, Revision
from cortex.wire.build import BuildSpec, Resources
from cortex.wire.orders import SetRoute
from cortex.wire.reports import ExitReport, IngressReport, ReplicaReport


class WantedApi(msgspec.Struct, frozen=True, kw_only=True):
    """An api as the user wants it. One stored row."""

    api: ApiKey
    build: BuildSpec
    """What should serve."""
    serving: BuildSpec | None = None
    """The last build that was live: kept at full size until `build` is, or for good when `build` fails."""
    replicas: int = 1
    """How many replicas now; between `min_replicas` and `max_replicas`."""
    min_replicas: int = 1
    max_replicas: int = 100
    path: str = ""
    timeout_s: float = 600.0
    max_body_bytes: int = 100 * 2**20
    retry: bool = True
    force: bool = False
    """The user accepts a gap when there is no room for a surge replica."""
    failed: Problem | None = None
    """Why `build` was given up; it is not tried again until the next deploy."""
    deployed_wall_s: float = 0.0
    live_wall_s: float | None = None
    """When `build` became live; None while it has not."""


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is remembered of the runs of one revision, so that back-off survives our own restart.

    Stored with wall-clock instants; loading turns them into ages, never below 0.
    """

    api: ApiKey
    revision: Revision
    failed_starts: int = 0
    """Exits in a row before any replica of it was ready."""
    crash_ages_s: tuple[float, ...] = ()
    """Exits after having been ready that nobody asked for, newest first, at most the last 20."""
    crashes: int = 0
    """All such exits so far; shown to users."""
    attempts: dict[ReplicaId, int] = {}
    """The highest attempt of each replica whose exit has been recorded."""
    last_exit: ExitReport | None = None
    last_exit_age_s: float = 0.0


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """The whole wanted state."""

    apis: tuple[WantedApi, ...] = ()
    records: tuple[RunRecord, ...] = ()


class SeenNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node as its agent last reported it."""

    node: NodeId
    replicas: tuple[ReplicaReport, ...] = ()
    routes: tuple[SetRoute, ...] = ()
    ingress: IngressReport | None = None


class SeenLease(msgspec.Struct, frozen=True, kw_only=True):
    replica: ReplicaId
    api: ApiKey
    resources: Resources
    state: str
    """`pending`, `granted` or `lost`, as in `engines.base.LeaseState`."""
    node: NodeId | None = None
    surge: bool = False
    reason: str = ""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything observed at one moment."""

    now_s: float
    """Monotonic seconds; only differences mean anything."""
    nodes: tuple[SeenNode, ...] = ()
    """Nodes whose agent has reported. A node that has not reported yet is absent, and so is what runs there."""
    leases: tuple[SeenLease, ...] = ()
    settled: bool = True
    """False right after our own start, until every known agent has reported: nothing may be started or released."""
