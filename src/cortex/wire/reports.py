"""What an agent reports: everything that is true on its node now."""

from __future__ import annotations

import signal
from enum import StrEnum

import msgspec

from cortex.errors import Problem
from cortex.ids import ApiKey, DeviceId, NodeId, ReplicaId, Revision, Version
from cortex.wire.batching import BatchingOrder, BatchingState
from cortex.wire.build import ModelKey, Resources, mem_text
from cortex.wire.orders import RoutesRevision, SetRoute


class Phase(StrEnum):
    """Where a replica is in its life; it only moves down this list."""

    ASLEEP = "asleep"
    """Its slot is open and nobody is there; whoever comes waits, and is reported as a knock."""
    STARTING = "starting"
    """Ordered; its process is being forked."""
    LOADING = "loading"
    """The process imports the handler and loads the model."""
    WARMING = "warming"
    """The model is loaded; the sample or a synthetic input is on its way through."""
    READY = "ready"
    """Answers requests."""
    DRAINING = "draining"
    """Out of rotation; finishes what it holds."""
    EXITED = "exited"
    """The process is gone; `exit` says how. Its slot stays open until it is forgotten or started again."""


class StartStep(msgspec.Struct, frozen=True, kw_only=True):
    """A phase of a start that is over."""

    phase: Phase
    seconds: float


class ExitReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a replica's process ended."""

    wall_s: float
    """Seconds since the Unix epoch, for people; never compared."""
    code: int | None = None
    """Exit code; None when killed by a signal or unknown."""
    signal: int | None = None
    oom: bool = False
    """Killed by the kernel for memory."""
    peak_bytes: int = 0
    """The most memory that it was seen to hold, or that its parent was told of; 0: nobody knows."""
    drained: bool = False
    """Ended because we asked it to."""
    problem: Problem | None = None
    """What the replica itself said was wrong, with the user's traceback."""
    permanent: bool = False
    """The same build would fail again the same way: handler import, model load, sample gate."""
    request: str = ""
    """Id of the request whose code ran, where that is known."""
    last_lines: tuple[str, ...] = ()
    """What it wrote last, oldest first, shortened."""

    @property
    def text(self) -> str:
        """How the process ended, in words."""
        if self.drained:
            return "drained"
        if self.oom:
            return "killed by the kernel for memory" + (f" at {mem_text(self.peak_bytes)}" if self.peak_bytes else "")
        if self.problem is not None:
            return self.problem.message
        if self.signal is not None:
            return f"killed by signal {self.signal}{_signal_name(self.signal)}"
        if self.code is not None:
            return f"exit code {self.code}"
        return "ended while nobody watched"


def _signal_name(number: int) -> str:
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:
        return ""


class ReplicaReport(msgspec.Struct, frozen=True, kw_only=True):
    """One replica as its agent sees it."""

    replica: ReplicaId
    api: ApiKey
    version: Version
    revision: Revision
    attempt: int
    phase: Phase
    resources: Resources
    devices: tuple[DeviceId, ...] = ()
    """The GPUs that its lease holds."""
    was_ready: bool = False
    """This attempt has been ready at some time."""
    started_wall_s: float = 0.0
    """For people; never compared."""
    phase_age_s: float = 0.0
    """How long it has been in `phase`, on the node's monotonic clock, when the report was made."""
    knocked_age_s: float | None = None
    """While it sleeps: for how long somebody has waited for it when the report was made; None: nobody does."""
    pid: int | None = None
    in_flight: int = 0
    rss_bytes: int = 0
    peak_rss_bytes: int = 0
    cpu_s: float = 0.0
    """CPU time used since it started."""
    progress: str = ""
    """What it is doing while it starts."""
    got_on_wall_s: float = 0.0
    """While its process starts: when it last got on with that. For people, as is the next."""
    given_up_wall_s: float = 0.0
    """When it is ended unless it gets on before."""
    steps: tuple[StartStep, ...] = ()
    """Of this attempt's start, as far as it has come; empty where the agent has not seen it begin."""
    warnings: tuple[Problem, ...] = ()
    model: ModelKey | None = None
    """None from an agent that does not say."""
    batches: BatchingOrder | None = None
    """What it was last ordered to do about batches; its agent sees to it. None from one that takes no such orders."""
    batching: BatchingState | None = None
    """What it says of that itself; None before it has."""
    exit: ExitReport | None = None
    """Always there when `phase` is `exited`."""

    @property
    def start_s(self) -> float | None:
        """What its start took, from its order to ready; None: it is not ready, or nobody has seen all of it."""
        return sum(step.seconds for step in self.steps) if self.steps and self.was_ready else None


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A machine and what a process may really use of it."""

    node: NodeId
    cpu_millis: int
    mem_bytes: int
    gpus: int = 0
    devices: tuple[DeviceId, ...] = ()
    """Names of the GPUs; empty where only their number is known."""


class IngressRefusals(msgspec.Struct, frozen=True, kw_only=True):
    """
    What one process of the ingress answered itself for one api, since it began to count.

    `instance` names the process, and whatever else begins its counters anew: within one instance they only grow.
    """

    instance: str
    api: ApiKey
    version: Version
    """The version that is routed to now: growth since the last report is counted there."""
    client_error: int = 0
    server_error: int = 0
    failed: int = 0
    """Of the latter, those for which replicas are to blame: they ended over a request, or did not answer in time."""
    overloaded: int = 0
    """Likewise, those that were one too many: every replica was busy, and the queue full."""


class IngressReport(msgspec.Struct, frozen=True, kw_only=True):
    """The HTTP door of the node."""

    up: bool
    host: str
    port: int
    peer_host: str = ""
    """Where it listens for the doors of other nodes; empty: there are none."""
    peer_port: int = 0
    pid: int | None = None
    restarts: int = 0
    problem: Problem | None = None
    refusals: tuple[IngressRefusals, ...] = ()


class AgentReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything observed on one node."""

    node: Node
    serial: int
    """Grows with each change; starts anew with each agent process."""
    agent: str
    """Identifies the agent process, so that a serial is never compared across a restart."""
    epoch: int
    """Highest epoch this agent has taken orders from."""
    pid: int
    started_wall_s: float
    up_s: float | None = None
    """For how long it had run when the report was made, on the node's monotonic clock. None: it does not say."""
    replicas: tuple[ReplicaReport, ...] = ()
    routes: tuple[SetRoute, ...] = ()
    """The table of routes as ordered."""
    routes_revision: RoutesRevision | None = None
    """Which one it is; None from an agent that knows of no tables."""
    routes_known: bool = False
    """`routes` is left out, since whoever asked knows that table (`wire.agent.KnownRoutes`)."""
    pending_routes: tuple[ApiKey, ...] = ()
    """Apis whose route is ordered but not in the ingress yet: requests may still go where they went before."""
    ingress: IngressReport | None = None
    memory_short: bool = False
    """Hardly any memory of the node is left, whoever has it."""

    @property
    def name(self) -> NodeId:
        """Of the node."""
        return self.node.node
