"""What planning is told: the wanted state, and everything observed."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from cortex.errors import Problem
from cortex.ids import ApiKey, DeviceId, NodeId, ReplicaId, Revision
from cortex.planning.batching import BatchingRecord
from cortex.planning.crashes import Row
from cortex.wire.build import BuildSpec, Resources
from cortex.wire.orders import SetRoute
from cortex.wire.reports import ExitReport, IngressReport, ReplicaReport


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas an api has: decided while it serves, bounded by its deploys. One stored row."""

    replicas: int = 1
    """Between `min_replicas` and `max_replicas`."""
    asleep: bool = False
    last_up_wall_s: float | None = None
    """When the number last grew; None: it never did."""
    reason: str = ""
    """Why it is this number, in words."""
    since_wall_s: float = 0.0


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a deploy says of an api that is no part of a version: it holds for whichever version serves."""

    api: ApiKey
    min_replicas: int = 1
    """Where cpu is shared, these are placed however much of it is requested."""
    max_replicas: int = 100
    path: str = ""
    timeout_s: float = 600.0
    max_body_bytes: int = 100 * 2**20
    retry: bool = True
    force: bool = False
    """The user accepts a gap when there is no room for a surge replica."""
    deployed_wall_s: float = 0.0


class ApiProgress(ApiSettings, frozen=True, kw_only=True):
    """The same, and how far the wanted version has come."""

    serving_was_live: bool = False
    """What serves has been live at full size: it is never given up, only tried again for ever."""
    rollout_replicas: int = 1
    """How many were wanted when the rollout of the wanted version began: with as many ready it is live."""
    failed: Problem | None = None
    """Why the wanted version was given up; it is not tried again until the next deploy."""
    live_wall_s: float | None = None
    """When the wanted version became live; None while it has not."""


class WantedApi(ApiProgress, frozen=True, kw_only=True):
    """An api as it shall be."""

    build: BuildSpec
    """What should serve."""
    serving: BuildSpec | None = None
    """
    What a failing `build` goes back to: the last build that was live, kept at full size until `build` is, or for
    good when `build` fails. Of a first version it is the build itself from its first ready replica on.
    """
    scale: Scale = Scale()

    @property
    def replicas(self) -> int:
        """How many there shall be now."""
        return self.scale.replicas

    @property
    def builds(self) -> tuple[BuildSpec, ...]:
        """What may run of it."""
        if self.serving is None or self.serving.revision == self.build.revision:
            return (self.build,)
        return (self.build, self.serving)


class SlotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is remembered of the runs of one replica id; see `planning.backoff` for what it is used for.

    Kept for each slot, not for the revision: a storm of kills over ten replicas is one crash each, not ten.
    """

    attempt: int = 0
    """The highest attempt whose exit has been recorded."""
    failed_starts: int = 0
    """Exits in a row before it was ready."""
    crash_pressure: float = 0.0
    """How much it has crashed lately, after having been ready, as of the last exit."""
    last_exit: ExitReport | None = None
    last_exit_age_s: float = 0.0


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """
    What is remembered of the runs of one revision, so that back-off survives our own restart.

    Stored with wall-clock instants; loading turns them into ages, never below 0.
    """

    api: ApiKey
    revision: Revision
    slots: dict[ReplicaId, SlotRecord] = {}
    crashes: int = 0
    """All ends so far that nobody asked for, whether or not it had been ready; shown to users."""
    last_exit: ExitReport | None = None
    """The newest of all slots."""
    last_exit_age_s: float = 0.0
    row: Row = Row()
    """Ends that nobody asked for, of all slots, one after another."""


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """The whole wanted state."""

    apis: tuple[WantedApi, ...] = ()
    records: tuple[RunRecord, ...] = ()
    batching: tuple[BatchingRecord, ...] = ()
    """What is known of models' rows, by any rules."""
    as_of_s: float | None = None
    """
    Monotonic seconds, as `Snapshot.now_s`, at which the ages in `records` were true, so that a wanted state that has
    not changed need not be loaded again. None: they are true now.
    """


class LeaseState(StrEnum):
    """What became of a lease that was asked for."""

    PENDING = "pending"
    """No room now; the engine keeps trying, and on a cluster this is the demand that adds nodes."""
    GRANTED = "granted"
    """Room is held on `node`."""
    LOST = "lost"
    """The node or its lease is gone; whatever ran there has ended or soon will."""


class SeenNode(msgspec.Struct, frozen=True, kw_only=True):
    """One node as its agent last reported it."""

    node: NodeId
    cpu_millis: int | None = None
    """What there is for replicas; None where nobody says."""
    replicas: tuple[ReplicaReport, ...] = ()
    routes: tuple[SetRoute, ...] = ()
    """As ordered."""
    pending_routes: tuple[ApiKey, ...] = ()
    """Apis whose route is not in the ingress yet."""
    ingress: IngressReport | None = None


class SeenLease(msgspec.Struct, frozen=True, kw_only=True):
    """One lease as the engine has it."""

    replica: ReplicaId
    api: ApiKey
    resources: Resources
    state: LeaseState
    node: NodeId | None = None
    devices: tuple[DeviceId, ...] = ()
    """The GPUs that it holds there."""
    surge: bool = False
    minimum: bool = False
    """It was asked for as one of the first `min_replicas` of its api."""
    successor_of_cpu_millis: int = 0
    """Of a surge: the cpu of the replica that it takes over from."""
    reason: str = ""
    """Why it is pending or lost, in words with numbers."""
    lacks_only_cpu: bool = False
    """It is pending, and memory and gpus would do."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything observed at one moment."""

    now_s: float
    """Monotonic seconds; only differences mean anything."""
    nodes: tuple[SeenNode, ...] = ()
    """Nodes whose agent has reported. A node that has not reported yet is absent, and so is what runs there."""
    leases: tuple[SeenLease, ...] = ()
    settled: bool = True
    """False right after our own start, until every known agent has reported: nothing may be started or released."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Figures that planning obeys; a process builds them from its settings."""

    drain_timeout_s: float = 60.0
    """How long a replica that leaves may finish what it holds."""
    hold_timeout_s: float = 5.0
    """How long requests are held for a replacement; one that is further away is not worth holding for."""
