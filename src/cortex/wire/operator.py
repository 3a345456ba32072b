"""
The control plane's HTTP API, as data: what `client` sends and `controlplane/api/` answers, JSON both ways.

| call | body | answer |
|---|---|---|
| GET /v1/info | | `Info` |
| POST /v1/blobs/missing | `Digests` | `Digests` |
| PUT /v1/blobs/{sha256} | the bytes | 204 |
| POST /v1/deployments/{name} | `DeployRequest` | lines of JSON, each a `DeployEvent`; the last is a `DeployResult` |
| GET /v1/deployments | | list of `DeploymentStatus` |
| DELETE /v1/deployments/{name}[/apis/{api}] | | `Removed` |
| POST /v1/deployments/{name}/apis/{api}/rollback | `RollbackRequest` | `RollbackResult` |
| GET /v1/apis[?deployment=] | | list of `ApiStatus` |
| GET /v1/apis/{deployment}/{api} | | `ApiStatus` with `spec` and `signature` |
| GET /v1/apis/{deployment}/{api}/openapi.json | | OpenAPI document of the api's endpoint |
| GET /v1/watch?token=&timeout_s=[&deployment=] | | `Watched`, as soon as it differs from `token` |
| GET /v1/apis/{deployment}/{api}/logs?… | parameters of `ReadLogs`, and `version` | `LogLines` |
| GET /v1/apis/{deployment}/{api}/history | | list of `HistoryLine` |
| GET /v1/events[?deployment=&api=&limit=&after=&wait_s=] | | `EventPage`, later if there is nothing yet |
| GET /v1/secrets | | list of `SecretStatus` |
| PUT /v1/secrets/{name} | `SecretValue` | `SecretStatus` |
| DELETE /v1/secrets/{name}[?force=true] | | 204 |
| GET /v1/tokens | | list of `TokenStatus` |
| POST /v1/tokens/{name} | `TokenRequest` | `CreatedToken` |
| DELETE /v1/tokens/{name} | | 204 |
| GET /v1/audit[?limit=] | | list of `AuditLine`, oldest first |
| POST /v1/stop | `StopRequest` | `Info` |

Errors: status 4xx or 5xx with `Failure`. Each request carries `authorization: Bearer <token>`, and each
token has a `Role`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec

from cortex.errors import Problem
from cortex.wire.batching import Disagreement, Mode, Proof, Trial
from cortex.wire.build import ModelFormat
from cortex.wire.events import Detail
from cortex.wire.reports import StartStep
from cortex.wire.signature import Signature

MOST_EVENTS = 1000
"""In one answer."""
CURRENT = "current"
"""As `version` of logs: what is wanted of an api, and what serves until that is live."""


def rfc3339(wall_s: float) -> str:
    """`2026-01-31T12:00:00Z`."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_ms(wall_s: float) -> str:
    """`2026-01-31T12:00:00.250Z`."""
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def date_and_time(wall_s: float) -> str:
    """`2026-01-31 12:00 UTC`: the same, within a sentence."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


class Status(StrEnum):
    """What is true of an api now."""

    LIVE = "live"
    """At least `min_replicas` of the current version are ready."""
    ASLEEP = "asleep"
    """Nobody asked for a while: it has no replicas, and the first request starts one."""
    WAKING = "waking"
    """Somebody asked while it slept: a replica is on its way."""
    CREATING = "creating"
    """The first version is on its way."""
    UPDATING = "updating"
    """A new version is replacing the old one, which goes on serving."""
    UPDATE_FAILED = "update failed"
    """The new version could not start; the old one serves at full size."""
    CRASHING = "crashing"
    """Its replicas end again and again, unasked: three times within a minute, until one has passed without."""
    ERROR = "error"
    """Nothing serves."""
    OUT_OF_MEMORY = "error (out of memory)"
    """Replicas were killed for memory."""
    COMPUTE_UNAVAILABLE = "compute unavailable"
    """Fewer than `min_replicas` can be placed."""
    STOPPING = "stopping"
    """Removed from the configuration, draining."""

    @property
    def is_well(self) -> bool:
        """Whoever asks is answered, sooner or later."""
        return self in (Status.LIVE, Status.ASLEEP, Status.WAKING)


class ReplicaCounts(msgspec.Struct, frozen=True, kw_only=True):
    requested: int = 0
    ready: int = 0
    """All that are ready, of any revision."""
    up_to_date: int = 0
    """Ready and of the wanted revision."""
    stale: int = 0
    """Ready, but of an older revision."""
    failed: int = 0
    """Of the wanted revision, exited and not up again."""


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """A replica of the version before that is ready and out of rotation: going back to that version is at once."""

    replica: str
    version: str
    """8 hex digits."""
    until: str
    """RFC 3339, UTC: when the watch of the new version ends. It goes before that if anybody needs its room."""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds; None before the first request."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    ok: int = msgspec.field(name="2xx", default=0)
    client_error: int = msgspec.field(name="4xx", default=0)
    server_error: int = msgspec.field(name="5xx", default=0)
    latency_ms: Latency = Latency()


class Ends(msgspec.Struct, frozen=True, kw_only=True):
    """How the replicas of an api that crashes, or does not start, end: the last time, and since when."""

    count: int
    """One after another, each within a minute of the one before."""
    since: str
    """RFC 3339, UTC: when the first of them was."""
    exit_code: int | None = None
    signal: int | None = None
    """One of these two is None; both where nobody could tell."""
    last_lines: tuple[str, ...] = ()
    """What it wrote last, oldest first."""
    request: str = ""
    """Id of the request whose code ran, where that is known."""


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """What an api waits for: the replica of the wanted version that has been at the same step for longest."""

    replica: str
    doing: str
    since: str
    """RFC 3339, UTC, as is the next."""
    until: str
    """When it is ended unless it gets on before; `CORTEX_START_TIMEOUT` after `since`, or what a sample may take."""


class StartStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The start of the replica that is on its way, else of the one that was started last: phase by phase."""

    replica: str
    steps: tuple[StartStep, ...] = ()
    """What is over of it."""
    doing: str = ""
    """The phase that it is in; empty: it is ready."""
    since: str | None = None
    """RFC 3339, UTC: when that began."""


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that were answered, of all versions."""

    per_second: float = 0.0
    """Over the last 60 seconds."""
    minutes: tuple[int, ...] = ()
    """In each of the last 60 minutes, oldest first; the last is the current one, not over yet."""


class AllVersions(msgspec.Struct, frozen=True, kw_only=True):
    """The statistics of every version of an api of the last 14 days together."""

    versions: int
    requests: RequestCounts = RequestCounts()
    tracker: dict[str, Any] | None = None


class Batching(msgspec.Struct, frozen=True, kw_only=True):
    """Whether requests that queued up go through the model together, and what that rests on."""

    batches: bool
    text: str
    """All of it in one line."""
    mode: Mode
    """As cortex.yaml has it."""
    runtime: str = ""
    """What it was decided for; empty while replicas have not said what they run on."""
    proof: Proof | None = None
    """What the model's graph says; None while nobody has looked."""
    trial: Trial | None = None
    """What running rows alone and together on that runtime has shown; None if that was not done."""
    disagreement: Disagreement | None = None
    """Why it is off, if it is that rows were answered differently alone and together."""
    disagreed: str | None = None
    """RFC 3339, UTC: when a replica saw that; None if it was the trial."""
    disagreed_in: str = ""
    """That replica."""


class ScalingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Why an api has as many replicas as it has."""

    wanted: int
    """As many as its load asks for, whatever bounds them."""
    reason: str
    """In words with figures: from what, and what bounded it."""
    bound: str = ""
    """What keeps the number from that, such as `maximum` or `window`: a name of `planning.autoscale.Bound`."""
    advice: str = ""
    """How one replica could serve more, where that is so."""
    changed: str | None = None
    """RFC 3339, UTC: when the number changed last."""
    change: str = ""
    """Why it did; empty if it never has."""


class ApiStatus(msgspec.Struct, frozen=True, kw_only=True):
    """
    An api as `cortex get API -o json` shows it.

    In lists without `tracker`, `traffic`, `all_versions`, `scaling`, `start`, `events`, `spec`, `signature`.
    """

    deployment: str
    name: str
    status: Status
    endpoint: str
    version: str
    """8 hex digits of the wanted version."""
    last_updated: str | None
    """RFC 3339, UTC: when it was last deployed with a change."""
    replicas: ReplicaCounts = ReplicaCounts()
    parked: Parked | None = None
    """Not among `replicas`. None: no replica of the version before is kept."""
    requests: RequestCounts = RequestCounts()
    tracker: dict[str, Any] | None = None
    traffic: Traffic | None = None
    all_versions: AllVersions | None = None
    reason: str | None = None
    """Why the status is what it is, when that is not obvious; one or a few lines."""
    problem: Problem | None = None
    """The failure behind the reason, with the user's traceback."""
    ends: Ends | None = None
    """While it is crashing, or its replicas do not start: how."""
    waits: Waits | None = None
    """While a replica is on its way."""
    start: StartStatus | None = None
    """None while nothing is known of any."""
    crashes: int = 0
    """Replicas of the current version that ended on their own since it was deployed."""
    progress: str = ""
    """While starting: what the replicas are doing."""
    serving: str = ""
    """8 digits of the version that answers now, when another is wanted."""
    rolled_back: str = ""
    """When and why it went back to the version that is wanted; empty if it did not."""
    in_proof: bool = False
    """The change-over to the wanted version is being proved: whoever asked for that waits for the receipt."""
    notes: tuple[str, ...] = ()
    batching: Batching | None = None
    """None once it is not wanted any more."""
    sample_problem: Problem | None = None
    """What replicas found wrong with a sample that guards nothing: it is no example of a request that works."""
    scaling: ScalingStatus | None = None
    """None while nothing is known of its load."""
    events: tuple[EventLine, ...] = ()
    """The last three that were told of it, oldest first."""
    spec: dict[str, Any] = {}
    signature: Signature | None = None


class DeploymentStatus(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    status: str
    """`live`, `updating`, `error`, or `empty`."""
    apis: int
    last_updated: str | None
    source: str = ""


class NodeState(StrEnum):
    """How a node is."""

    STARTING = "starting"
    """There is room, and nobody has reported from there yet."""
    READY = "ready"
    GONE = "gone"
    """It is not heard any more: what ran there is replaced elsewhere."""


class NodeShare(msgspec.Struct, frozen=True, kw_only=True):
    """Of what a node has. None: not known."""

    cpu: float | None = None
    """Cores."""
    mem: int | None = None
    """Bytes."""
    gpu: int | None = None


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One node as `cortex info` describes it."""

    name: str
    state: NodeState
    door: str
    """URL of its ingress."""
    home: str | None = None
    """Of a node of the machine that this was asked on."""
    cpu: float
    """Cores that it has."""
    mem: int
    """Bytes."""
    gpu: int = 0
    requested: NodeShare
    """What its replicas ask for."""
    used: NodeShare
    """What its replicas were last seen to use, GPUs apart."""
    replicas: int = 0
    """Processes; an api that sleeps has none."""
    why: str = ""
    """Why it is there, or why it is kept, where anybody could ask."""


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """The environment as `cortex info` describes it."""

    version: str
    environment: str
    home: str
    operator: str
    """URL of this API."""
    ingress: str
    """URL of the prediction APIs."""
    pid: int
    started: str
    agent_pid: int | None = None
    ingress_pid: int | None = None
    ingress_up: bool = False
    cpu_millis: int = 0
    mem_bytes: int = 0
    gpus: int = 0
    requested_cpu_millis: int = 0
    requested_mem_bytes: int = 0
    requested_gpus: int = 0
    apis: int = 0
    replicas: int = 0
    nodes: tuple[NodeInfo, ...] = ()
    """That of the control plane first, then by name. One machine is one node."""
    notes: tuple[str, ...] = ()


class Digests(msgspec.Struct, frozen=True, kw_only=True):
    """SHA-256 digests, 64 hex digits each."""

    digests: tuple[str, ...]


class Verdict(StrEnum):
    """What came of proving a change-over."""

    PASSED = "passed"
    FAILED = "failed"
    """The change made requests fail, or serve another version once it was live."""
    CUT_SHORT = "cut short"
    """It was not seen to its end."""
    NOT_PROVED = "not proved"
    """Nobody was asked: there was nobody to ask."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of a change-over by asking for the sample throughout. None: it was not seen, or cannot be."""

    verdict: Verdict
    reason: str = ""
    """Why it is not `passed`."""
    previous: str = ""
    """8 digits of the version that served before; empty: none did."""
    requests: int = 0
    """All of them, those before the change-over included."""
    failed: int = 0
    """Since it began; 503 for load is none of these."""
    failed_before: int = 0
    wrong_version: int | None = None
    """Answered by another version although they were sent after the new one was live."""
    turned_away: int = 0
    """503 for load."""
    p99_before_ms: float | None = None
    p99_ms: float | None = None
    """Since the change-over began."""
    overlap_s: float | None = None
    """From the first answer of the new version to the last one of the old."""
    examples: tuple[str, ...] = ()
    """A few of what went wrong, each with the id of its request."""

    @property
    def text(self) -> str:
        """`12,480 requests · 0 failed · 0 wrong version after live · p99 9.1 → 9.8 ms · overlap 1.4 s`."""
        parts = []
        if self.requests:
            parts += [f"{self.requests:,} requests", f"{self.failed:,} failed"]
            if self.failed_before:
                parts.append(f"{self.failed_before:,} failed before")
            if self.wrong_version is not None:
                parts.append(f"{self.wrong_version:,} wrong version after live")
            if self.turned_away:
                parts.append(f"{self.turned_away:,} turned away for load")
            if self.p99_ms is not None:
                was = f"{self.p99_before_ms:.1f} → " if self.p99_before_ms is not None else ""
                parts.append(f"p99 {was}{self.p99_ms:.1f} ms")
            if self.overlap_s is not None:
                is_short = self.overlap_s < 0.1
                parts.append(
                    f"overlap {self.overlap_s * 1000:.0f} ms" if is_short else f"overlap {self.overlap_s:.1f} s"
                )
        if self.verdict is not Verdict.PASSED:
            parts.insert(0, f"{self.verdict}: {self.reason}")
        return " · ".join(parts)


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a project or a model: its bytes are uploaded as a blob."""

    path: str
    """Relative, with forward slashes, no `..`."""
    sha256: str
    executable: bool = False


class ModelUpload(msgspec.Struct, frozen=True, kw_only=True):
    """A local model whose files the CLI uploaded."""

    files: tuple[StoredFile, ...]
    entry: str
    format: ModelFormat
    note: str = ""
    """E.g. which version folder was taken."""


class SampleUpload(msgspec.Struct, frozen=True, kw_only=True):
    """A sample whose body the CLI uploaded."""

    sha256: str
    content_type: str
    gate: bool


class ApiUpload(msgspec.Struct, frozen=True, kw_only=True):
    """One api of a deploy."""

    spec: dict[str, Any]
    """`spec.models.ApiSpec` as JSON, of its fields those that the user wrote; validated again on arrival."""
    model: ModelUpload | None = None
    """None: the control plane's side fetches it from `spec["model"]`."""
    sample: SampleUpload | None = None


class CloudVariables(msgspec.Struct, frozen=True, kw_only=True):
    """How the deploying shell reaches its clouds: variables, and with them the places of profiles. Only inward."""

    variables: dict[str, str]

    def __repr__(self) -> str:
        return f"CloudVariables({', '.join(sorted(self.variables))})"


class DeployRequest(msgspec.Struct, frozen=True, kw_only=True):
    deployment: str
    source: str
    """Folder of the cortex.yaml: another one removes no apis of this deployment unasked."""
    apis: tuple[ApiUpload, ...] = ()
    project: tuple[StoredFile, ...] = ()
    """Empty when no api has a handler."""
    dry_run: bool = False
    force: bool = False
    prune: bool = False
    prove: bool = False
    """Ask each api that changes for its sample, from before the change-over until after it; go back if one fails."""
    prove_unrepeatable: bool = False
    """Also where requests are not to be repeated (`retry: off`)."""
    refresh: bool = False
    """Make new versions even when nothing changed."""
    refresh_only: str = ""
    """Of this api alone; empty: of all."""
    cloud: CloudVariables | None = None
    """With what remote models are fetched, and what handlers get; None: what the last deploy handed over."""
    indexes: dict[str, str] | None = None
    """Variables that say where packages come from (`wire.indexes`); None: those of the last deploy stay."""

    def refreshes(self, api: str) -> bool:
        """Whether it makes a new version of an api even when nothing changed."""
        return self.refresh and self.refresh_only in ("", api)


class ChangeKind(StrEnum):
    ADDED = "added"
    NEW_VERSION = "new version"
    ROLLED = "rolled"
    """Same version, new replicas: resources or concurrency changed."""
    SETTINGS = "settings"
    """Changed in place: replicas, timeout, max_body, retry, sample."""
    REMOVED = "removed"
    UNCHANGED = "unchanged"
    ROLLED_BACK = "rolled back"
    """An older version, as it ran."""
    LEFT = "left"
    """It was rolled back, and stays so: what was deployed is what it went back from."""


class ApiChange(msgspec.Struct, frozen=True, kw_only=True):
    """What a deploy does to one api, and why."""

    api: str
    kind: ChangeKind
    causes: tuple[str, ...] = ()
    """In words: `model changed (sklearn.onnx)`, `handlers/sklearn_iris.py changed`, `cpu 200m -> 500m`."""
    version: str = ""
    previous: str = ""
    endpoint: str = ""
    breaking: tuple[str, ...] = ()
    """Signature changes that break callers, in words."""
    notes: tuple[str, ...] = ()
    """E.g. which signature or version folder was chosen; fields not in effect yet."""
    sample_untried: bool = False
    """No replica has answered the new sample, since none was started for it."""
    proved: bool = False
    """Its change-over is being proved, and history will have the receipt."""
    unproved: str = ""
    """Why it is not, where that was asked for."""


class DeployProgress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    message: str
    api: str = ""
    done: int = 0
    total: int = 0
    in_bytes: bool = False
    """`done` and `total` count bytes of a model that is fetched. Whoever leaves meanwhile ends the deploy."""


class DeployResult(msgspec.Struct, frozen=True, kw_only=True, tag="result"):
    """`problems` not empty: nothing was changed."""

    changes: tuple[ApiChange, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    committed: bool = False


DeployEvent = DeployProgress | DeployResult


class RollbackRequest(msgspec.Struct, frozen=True, kw_only=True):
    version: str = ""
    """Its first digits; empty: the version that served before, or the one that serves while another is on its way."""
    force: bool = False
    """Accept a gap when there is no room for a replica of it beside those that serve."""


class RollbackResult(msgspec.Struct, frozen=True, kw_only=True):
    change: ApiChange
    already: bool = False
    """It is the version that is wanted: nothing was changed."""


class Watched(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    apis: tuple[ApiStatus, ...]


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    apis: tuple[str, ...]
    """`deployment/api` of each that is on its way out."""


class HistoryLine(msgspec.Struct, frozen=True, kw_only=True):
    """One time that a version was deployed. What is true of the version now is told with its newest line."""

    version: str
    deployed: str
    cause: str
    outcome: str
    serving: bool = False
    """Requests get it."""
    wanted: bool = False
    """It is to serve: since it was deployed last, or went back to last."""
    rolled_back: bool = False
    """Its api went back from it."""
    obstacle: str = ""
    """Why it cannot come back; empty: `cortex rollback` takes it."""
    receipt: Receipt | None = None
    """Of its change-over, if that was proved."""


class EventLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of what was decided or happened."""

    serial: int
    """Larger than that of every line that changed before."""
    time: str
    """RFC 3339, UTC: the last time, if it was several."""
    kind: str
    """A value of `wire.events.EventKind`; a newer Cortex may know more."""
    text: str
    severity: str
    """`info`, `warning` or `error`."""
    deployment: str | None = None
    """None, as is `api`: of the machine."""
    api: str | None = None
    version: str = ""
    replica: str | None = None
    count: int = 1
    """How often the same has happened since `first`, never an hour apart."""
    first: str
    details: dict[str, Detail] = {}


class EventPage(msgspec.Struct, frozen=True, kw_only=True):
    """Lines in the sequence in which they changed last."""

    events: tuple[EventLine, ...]
    cursor: str
    """Pass back as `after` for what comes later; opaque."""
    more: bool = False
    """There are more already; one answer does not hold them all."""


class SecretValue(msgspec.Struct, frozen=True, kw_only=True):
    """The only message that carries a secret's value, and only inward."""

    value: str

    def __repr__(self) -> str:
        return "SecretValue(…)"


class SecretStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A secret as `cortex secret list` shows it: never its value."""

    name: str
    updated: str
    """RFC 3339, UTC: when it was last set."""
    used_by: tuple[str, ...] = ()
    """`deployment/api` of each that gets it."""
    outdated_in: tuple[str, ...] = ()
    """Of these, those whose version was made with an older value."""


class Role(StrEnum):
    """What a token may do; each may what those before it may."""

    READ = "read"
    """Look: apis, logs, events, history, metrics."""
    DEPLOY = "deploy"
    """Change what is deployed, and secrets."""
    ADMIN = "admin"
    """Make and delete tokens, read the audit log, stop the control plane."""


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True):
    role: Role


class TokenStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A token as `cortex token list` shows it: never itself."""

    name: str
    role: Role
    created: str
    """RFC 3339, UTC."""


class CreatedToken(msgspec.Struct, frozen=True, kw_only=True):
    status: TokenStatus
    token: str
    """Told this once; only its digest is kept."""


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """Who changed what, or was not let."""

    time: str
    """RFC 3339, UTC, when it was answered."""
    who: str
    """Name of the token; `home` is the home's own, and empty one that is not known."""
    role: str
    origin: str
    """Address of the caller."""
    what: str
    """The call in words, e.g. `deploy iris`."""
    status: int
    """HTTP status of the answer."""
    detail: str = ""
    """What came of it, where the status does not tell."""


class StopRequest(msgspec.Struct, frozen=True, kw_only=True):
    drain_timeout_s: float = 30.0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every error of this API."""

    error: str
    """Kebab-case code."""
    message: str
    problems: tuple[Problem, ...] = ()
