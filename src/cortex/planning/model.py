"""What planning is told: the wanted state, and everything observed."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from cortex.errors import Problem
from cortex.ids import ApiKey, DeviceId, NodeId, ReplicaId, Revision
from cortex.planning.batching import BatchingRecord
from cortex.planning.crashes import Row
from cortex.wire.build import BuildSpec, Resources
from cortex.wire.reports import AgentReport, ExitReport, ReplicaReport


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How many replicas an api has: decided while it serves, bounded by its deploys. One stored row."""

    replicas: int = 1
    """Between `min_replicas` and `max_replicas`, and at least 1."""
    asleep: bool = False
    """It has none of them now, but a slot where the first request waits for one."""
    last_up_wall_s: float | None = None
    """When the number last grew; None: it never did."""
    reason: str = ""
    """Why it is this number, in words."""
    since_wall_s: float = 0.0


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a deploy says of an api that is no part of a version: it holds for whichever version serves."""

    api: ApiKey
    min_replicas: int = 1
    """Of all apis these are placed before any gets more. 0: it sleeps when nobody asks."""
    idle_timeout_s: float = 300.0
    """With a minimum of 0: how long nobody has to ask until it sleeps."""
    max_replicas: int = 100
    target_cpu_utilization: int = 80
    """Per cent of the cpu request, and of the seats, that shall be used."""
    target_in_flight: float | None = None
    """Instead of that: mean requests in flight that a replica shall have."""
    downscale_window_s: float | None = None
    """How long replicas stay that the load has just needed; None: as the installation has it."""
    path: str = ""
    timeout_s: float = 600.0
    max_body_bytes: int = 100 * 2**20
    retry: bool = True
    watch_s: float = 120.0
    """For how long a new version is compared with the one before once it is live; 0: not at all."""
    force: bool = False
    """The user accepts a gap when there is no room for a surge replica."""
    deployed_wall_s: float = 0.0


class RolledBack(msgspec.Struct, frozen=True, kw_only=True):
    """That an api went back to an older version, and stays there until other files are deployed."""

    wall_s: float
    passed: tuple[Revision, ...]
    """What it went back from, the latest last: a deploy that comes to one of these leaves the api alone."""
    reason: str = ""
    """Why, where nobody asked for it."""
    excuse: str = ""
    """Why that was no fault of what it went back from; then no deploy is held back."""


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
    previous: Revision | None = None
    """What was live when the rollout of the wanted version began, until that is neither on its way nor watched."""
    watched_until_wall_s: float | None = None
    """Until then the wanted version is compared with `previous`; None: it is not, or not yet."""
    rolled_back: RolledBack | None = None
    """The wanted version is one that it went back to."""
    in_proof: Revision | None = None
    """The revision whose change-over is being proved, wanted or not any more."""


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
    leaving: frozenset[NodeId] = frozenset()
    """Nodes that are to be given back: what runs there is replaced elsewhere, and goes once that answers."""
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


class Lack(StrEnum):
    """What there is no room for."""

    MEMORY = "memory"
    GPU = "gpu"
    CPU = "cpu"
    """Requests of cpu: what leases ask for, not what is used."""


class LeaseRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Room for one replica; named after the replica, so that asking twice is asking once."""

    replica: ReplicaId
    api: ApiKey
    resources: Resources
    surge: bool = False
    """For a rollout: cpu may be overcommitted for it, memory and gpus may not."""
    minimum: bool = False
    """Among the first `min_replicas` of its api: it is placed before those that are not."""
    node: NodeId | None = None
    """Only there: its slot is there already, with requests that wait in it. None: anywhere."""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a request."""

    request: LeaseRequest
    state: LeaseState
    node: NodeId | None = None
    devices: tuple[DeviceId, ...] = ()
    """Once it is granted: which GPUs of the node, as many as were asked for. No two leases hold the same one."""
    reason: str = ""
    """Why it is pending or lost, in words with numbers."""
    lacks: Lack | None = None
    """While it is pending for want of room: of what there is too little on the node that was looked at first."""

    @classmethod
    def of_running(cls, report: ReplicaReport, node: NodeId) -> Lease:
        """What a replica holds that runs on a node."""
        request = LeaseRequest(replica=report.replica, api=report.api, resources=report.resources)
        return cls(request=request, state=LeaseState.GRANTED, node=node, devices=report.devices)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything observed at one moment."""

    now_s: float
    """Monotonic seconds; only differences mean anything."""
    nodes: tuple[AgentReport, ...] = ()
    """As their agents last reported them. One that has not reported yet is absent, and so is what runs there."""
    silent_s: dict[NodeId, float] = {}
    """For how long each known node has not been heard; one that has just been heard need not be there."""
    beyond: frozenset[ReplicaId] = frozenset()
    """Replicas that may run on nodes out of reach: their names are not given to others (`planning.reach`)."""
    leases: tuple[Lease, ...] = ()
    settled: bool = True
    """False right after our own start, until every known agent has reported: nothing may be started or released."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Figures that planning obeys; a process builds them from its settings."""

    drain_timeout_s: float = 60.0
    """How long a replica that leaves may finish what it holds."""
    hold_timeout_s: float = 5.0
    """How long requests are held for a replacement; one that is further away is not worth holding for."""
