"""
What an agent tells a launcher, and what a replica's control socket answers.

Launchers keep no sockets: copies of the slots' are with the keeper (`wire.keeper`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from cortex.errors import Problem
from cortex.ids import ApiKey, DeviceId, ReplicaId, Revision, Version
from cortex.wire.batching import BatchingOrder, BatchingState, BatchingVerdict, Mode
from cortex.wire.build import Resources, Runtime, Sample, TrackerConfig
from cortex.wire.reports import Phase
from cortex.wire.signature import Signature

EDITION = 2
"""Of what an agent says to a launcher. One that speaks another is not asked any more; its replicas live on."""


class ReplicaSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A build with its digests resolved to paths on this node: all that a replica process needs to know."""

    replica: ReplicaId
    attempt: int
    api: ApiKey
    version: Version
    revision: Revision
    home: str
    """Only for the process title."""
    runtime: Runtime
    model_path: str | None = None
    signature_key: str | None = None
    project_dir: str | None = None
    handler: str | None = None
    tracker: TrackerConfig | None = None
    env: dict[str, str] = {}
    batches: BatchingOrder = BatchingOrder()
    concurrency: int | None = None
    resources: Resources = Resources()
    devices: tuple[DeviceId, ...] = ()
    """The only GPUs that it sees."""
    threads: int = 1
    """Threads for the backend and for numeric libraries, from the cpu request."""
    sample: Sample | None = None
    sample_path: str | None = None
    """The file with its body; None where there is no sample, or where its body cannot be had."""
    log_path: str = ""
    stats_path: str = ""
    scratch: str = ""
    """A folder of this attempt's own: it makes it, the agent removes it afterwards. Empty: it has none."""
    read_only: tuple[str, ...] = ()
    """Folders that users' code must not change: those of the artifact store and of installed packages."""
    view_bytes: int = 64 * 2**20
    """How much it may write into its view of the project."""
    start_timeout_s: float = 300.0


PROCESS_VARIABLE = "CORTEX_PROCESS"
"""The replica's own mark (`processes.own_mark`), by which programs that it started are found once it is gone."""
CHILD_TITLE = "cortex-child"
"""How the title of a forked child begins. Last in it is the same mark."""
VIEW_SOURCE = "cortex-view:"
"""How the source of the mount begins that is a handler's view of its project; what follows is the same mark."""

IMPORT_TIME_VARIABLES = ("TF_", "ORT_", "OMP_", "OPENBLAS_", "MKL_", "LD_", "MALLOC_", "PYTHON")
"""Prefixes of variables that libraries read when imported, so they must be set before the launcher imports them."""


class Fork(msgspec.Struct, frozen=True, kw_only=True, tag="fork"):
    """
    Fork a replica. Sent with two descriptors: the slot's listening socket and the control listening socket; and a third
    if it gets secrets (see `wire.secrecy`).
    """

    spec: ReplicaSpec
    kept: str = ""
    """The child of this inspection, if it is still there, is to become the replica instead: it has all loaded."""


class Inspect(msgspec.Struct, frozen=True, kw_only=True, tag="inspect"):
    """
    Fork a short-lived child that loads model and handler and reports what they are. No descriptors, or one if it gets
    secrets (see `wire.secrecy`).
    """

    request: str
    """Answered with the same mark."""
    spec: ReplicaSpec
    keep: bool = False
    """
    Leave the child as it is once it has reported, if it can become a replica (`InspectReport.kept`), until a `Fork` or
    a `CallOff` names it. It then does nothing that would stay in a replica's memory.
    """
    model: bool = True
    """Load and describe the model."""
    handler: bool = True
    """Import and check the handler."""
    make_up_sample: bool = False
    """Also make up a sample from the model's signature, and try it."""
    rows: Mode = "off"
    """
    Also find out whether requests may share a run. `auto`: prove it from the graph, and where it is proved run rows
    alone and together. `on`: do both in any case.
    """


class CallOff(msgspec.Struct, frozen=True, kw_only=True, tag="call_off"):
    """Nobody waits for an inspection any more, or for what was kept of it: end its child, or never begin."""

    request: str


LauncherRequest = Fork | Inspect | CallOff


class Forked(msgspec.Struct, frozen=True, kw_only=True, tag="forked"):
    replica: ReplicaId
    attempt: int
    pid: int


class ForkFailed(msgspec.Struct, frozen=True, kw_only=True, tag="fork_failed"):
    replica: ReplicaId
    attempt: int
    reason: str


class ChildExited(msgspec.Struct, frozen=True, kw_only=True, tag="child_exited"):
    """A replica the launcher forked has ended. Kept and repeated to a new agent until it disconnects."""

    pid: int
    replica: ReplicaId
    attempt: int
    code: int | None
    signal: int | None
    peak_bytes: int = 0
    """The most memory that it, or a child that it had collected, ever held at once."""


class Inspected(msgspec.Struct, frozen=True, kw_only=True, tag="inspected"):
    request: str
    report: InspectReport


class MadeUpSample(msgspec.Struct, frozen=True, kw_only=True):
    """A request body, as JSON, that was made up from a model's signature."""

    body: bytes
    accepted: bool
    """The model ran on it, read from this body. False: its types and shapes fit, and no more is known."""
    reason: str = ""
    """What the model said when it did not."""


class InspectReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a model and a handler turned out to be; `problems` is empty when both are usable."""

    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    signature: Signature | None = None
    signature_keys: tuple[str, ...] = ()
    has_pre: bool = False
    is_async: bool = False
    batching: BatchingVerdict | None = None
    """Only if it was asked for."""
    notes: tuple[str, ...] = ()
    made_up: MadeUpSample | None = None
    """Only if it was asked for; None also where a sample would be too large to read or write as JSON."""
    kept: str = ""
    """The mark of the inspection, if its child was kept."""
    rows_left: bool = False
    """Rows are yet to be run alone and together, by another inspection: a child that is kept could not do it aside."""


LauncherReply = Forked | ForkFailed | ChildExited | Inspected


class Ask(msgspec.Struct, frozen=True, kw_only=True, tag="ask"):
    """To a replica's control socket: answer with your status now."""

    counts: int = 0
    """Not 0: write your counters first, and say this number in `ReplicaStatus.counts`."""


class AskListener(msgspec.Struct, frozen=True, kw_only=True, tag="ask_listener"):
    """To a replica's control socket: answer with your status and a copy of your listening socket."""


ENDING_S = 3.0
"""After its last request a replica has what is left of a drain, and at least this long, to end its handler's code."""
MOST_ENDING_S = 10.0
"""
And at most this long, however much is left: a drain's time is for requests. What was written for containers fits, as
they are stopped in 10 s unless somebody says otherwise.
"""


class Drain(msgspec.Struct, frozen=True, kw_only=True, tag="drain"):
    """
    To a replica's control socket: finish what you hold for at most `timeout_s`, end the handler's code in what is left
    of it, in no less than `ENDING_S` and no more than `MOST_ENDING_S`, then exit 0.
    """

    timeout_s: float


class SetBatching(msgspec.Struct, frozen=True, kw_only=True, tag="set_batching"):
    """To a replica's control socket: do this about batches from now on. Safe to repeat."""

    order: BatchingOrder


ReplicaRequest = Ask | AskListener | Drain | SetBatching


class ReplicaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """
    Sent by a replica on its control socket: on connect, on each change of phase, and as the answer to `Ask`.

    Answered by the health thread, so that it tells of a hung event loop instead of hanging with it.
    """

    replica: ReplicaId
    attempt: int
    pid: int
    start_ticks: int
    """Field 22 of /proc/<pid>/stat: with the boot id it makes the pid unmistakable."""
    phase: Phase
    phase_wall_s: float
    started_wall_s: float
    was_ready: bool = False
    heartbeat_age_s: float = 0.0
    """Since the event loop last came round."""
    oldest_request_age_s: float = 0.0
    """Age of the oldest request in flight; 0 when there is none."""
    overdue: bool = False
    """A request has outlived its timeout inside code that cannot be stopped: replace me."""
    starved_s: float = 0.0
    """For how long it has had no descriptors for new connections."""
    stuck: bool = False
    """The event loop sits in a handler that is over its time: send me nothing until it comes round."""
    ending: bool = False
    """No request is in hand any more, and the handler's code is being ended: in `MOST_ENDING_S` I am gone."""
    in_flight: int = 0
    progress: str = ""
    """What it is doing while it loads, e.g. `importing handler.py`."""
    progress_wall_s: float = 0.0
    problem: Problem | None = None
    """Why it is about to exit."""
    warnings: tuple[Problem, ...] = ()
    batching: BatchingState = BatchingState()
    counts: int = 0
    """Of the last `Ask` whose counters are in the file."""
    active: bool = False
    """Something is done there, or was a moment ago: its page (`wire.loadpage`) has news."""
    facts: dict[str, Any] = {}
