"""
What the control plane asks an agent, over a connection that the agent has dialed (`wire.link`): one request frame, one
reply frame. `cortex down` asks so too, over the agent's own unix socket, where there is no control plane.

A connection carries any number of requests, one after the other. Where several frames answer, the last one is said
below.
"""

from __future__ import annotations

import msgspec

from cortex.errors import Problem
from cortex.ids import ApiKey, NodeId, ReplicaId
from cortex.wire.batching import Mode
from cortex.wire.build import BuildSpec, Runtime
from cortex.wire.launch import InspectReport
from cortex.wire.loads import NodeLoads
from cortex.wire.orders import UNNUMBERED, Orders, RoutesRevision
from cortex.wire.packages import PackageLock
from cortex.wire.reports import AgentReport


class KnownRoutes(msgspec.Struct, frozen=True, kw_only=True):
    """Tables of routes that whoever asks for a report knows: it need not say them once more."""

    epoch: int = 0
    """All that the control plane of this epoch has made; 0: none."""
    revision: RoutesRevision | None = None
    """And this one."""

    def covers(self, revision: RoutesRevision | None) -> bool:
        if revision is None or revision == UNNUMBERED:
            return False
        return revision == self.revision or revision.epoch == self.epoch


class Observe(msgspec.Struct, frozen=True, kw_only=True, tag="observe"):
    """Answer with the report as soon as it differs from (`agent`, `serial`), or when the time is up."""

    agent: str = ""
    serial: int = -1
    timeout_s: float = 0.0
    known: KnownRoutes | None = None


class FollowLoads(msgspec.Struct, frozen=True, kw_only=True, tag="follow_loads"):
    """
    Answer with how much there is to do: at the next half second while anything happens, else as soon as it does, or
    when the time is up. What is answered says what was read by then, so whoever asks again at once misses nothing.
    """

    agent: str = ""
    """Who gave the last answer; another agent answers at once."""
    timeout_s: float = 0.0


class GiveOrders(msgspec.Struct, frozen=True, kw_only=True, tag="give_orders"):
    """Carry these out; answered with the report after they were accepted, not after they were finished."""

    orders: Orders
    turn: int = 0
    """
    Of these among all that this control plane gives this node. Once orders of a later turn were taken, these are
    refused: they were on their way for too long, and others were given in their place. 0: nobody gives any beside them.
    """
    known: KnownRoutes | None = None


class InspectBuild(msgspec.Struct, frozen=True, kw_only=True, tag="inspect_build"):
    """Load model and handler in a short-lived child and say what they are."""

    build: BuildSpec
    timeout_s: float
    rows: Mode = "off"
    """As `wire.launch.Inspect.rows`."""
    keep: bool = False
    """A replica of it is about to be started, which is to go on with what was loaded."""


class ResolvePackages(msgspec.Struct, frozen=True, kw_only=True, tag="resolve_packages"):
    """
    Find versions and files of packages for the Python of this node. Takes long: answered with any number of
    `PackageProgress`, then `ResolvedPackages` or `PackagesRefused`.
    """

    requirements: tuple[str, ...]
    """Lines of a requirements.txt."""
    needed: tuple[str, ...]
    """Likewise: what replicas need themselves."""
    constraints: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """Where packages are looked for; see `PackageLock.options`."""
    prerelease: bool = False
    preferred: dict[str, str] = {}
    """Version by name: taken where nothing speaks against it."""
    project: str | None = None
    """Digest of the project, when folders of it are among the options."""


class InstallPackages(msgspec.Struct, frozen=True, kw_only=True, tag="install_packages"):
    """
    Have users' packages ready, installed first if need be. Takes long: answered with any number of `PackageProgress`,
    then `InstalledPackages` or `PackagesRefused`.
    """

    packages: str
    """Digest of their lock."""
    runtime: Runtime
    """What has to run with it."""
    project: str | None = None


class SweepPackages(msgspec.Struct, frozen=True, kw_only=True, tag="sweep_packages"):
    """Remove installations of packages that are neither among these locks' nor used here, nor were lately."""

    in_use: tuple[str, ...]


class ReadLogs(msgspec.Struct, frozen=True, kw_only=True, tag="read_logs"):
    """Log lines of an api's replicas on this node, in time order."""

    api: ApiKey
    since_wall_s: float | None = None
    replica: ReplicaId | None = None
    revisions: tuple[str, ...] | None = None
    """Only replicas of these, 8 digits each; None: of all. Without a cursor, what the others wrote counts as read."""
    request: str | None = None
    """Only lines of this request id; with `…` at its end, of ids that begin so."""
    tail: int | None = 100
    """At most this many of the last lines; None, or more than one answer holds: all that are kept."""
    cursor: str = ""
    """From an earlier answer: only lines after it."""
    wait_s: float = 0.0
    """With a cursor: how long to wait for a first new line."""
    until_wall_s: float | None = None
    """With a cursor, or for all that are kept: only lines up to this instant. Later ones are left for later."""
    asked_wall_s: float | None = None
    """
    What the clock of who asks says. A node whose clock is far off understands all instants by that one, and answers by
    it. None: it goes by its own.
    """


class CountNow(msgspec.Struct, frozen=True, kw_only=True, tag="count_now"):
    """Have everything that was answered so far counted: delivered, and in the report that answers."""

    known: KnownRoutes | None = None


class StopAgent(msgspec.Struct, frozen=True, kw_only=True, tag="stop_agent"):
    """Drain and end every replica, the ingress and the launchers, then exit."""

    drain_timeout_s: float


AgentRequest = (
    Observe
    | FollowLoads
    | GiveOrders
    | InspectBuild
    | ResolvePackages
    | InstallPackages
    | SweepPackages
    | ReadLogs
    | CountNow
    | StopAgent
)


NEVER_MIND = b"\0"
"""Sent while a request is being answered: nobody waits for the answer, and what is done for it alone may end."""


class LogLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line that a replica wrote."""

    wall_s: float
    replica: ReplicaId
    text: str
    stream: str = "out"
    """`out`, `err`, or `log` for lines of ours and of Python's logging."""
    level: str = ""
    request: str = ""
    """Id of the request that caused it, if one did."""


class LogLines(msgspec.Struct, frozen=True, kw_only=True, tag="log_lines"):
    lines: tuple[LogLine, ...]
    cursor: str
    """Pass back to read on; opaque."""
    more: bool = False
    """There are more already; one answer does not hold them all."""
    held: bool = False
    """There are some already after the instant up to which was asked for."""
    missing: tuple[NodeId, ...] = ()
    """Nodes that do not answer: what replicas wrote there is not among the lines, and comes once they do."""


class Observed(msgspec.Struct, frozen=True, kw_only=True, tag="observed"):
    report: AgentReport


class FollowedLoads(msgspec.Struct, frozen=True, kw_only=True, tag="followed_loads"):
    loads: NodeLoads


class InspectedBuild(msgspec.Struct, frozen=True, kw_only=True, tag="inspected_build"):
    report: InspectReport


class PackageProgress(msgspec.Struct, frozen=True, kw_only=True, tag="package_progress"):
    """What is being done with packages; the same again means that it still is."""

    message: str


class ResolvedPackages(msgspec.Struct, frozen=True, kw_only=True, tag="resolved_packages"):
    lock: PackageLock


class InstalledPackages(msgspec.Struct, frozen=True, kw_only=True, tag="installed_packages"):
    pass


class PackagesRefused(msgspec.Struct, frozen=True, kw_only=True, tag="packages_refused"):
    """They cannot be resolved or installed, and the user has to know why."""

    problem: Problem


class SweptPackages(msgspec.Struct, frozen=True, kw_only=True, tag="swept_packages"):
    removed: tuple[str, ...]


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The request was not carried out: a stale epoch, an unknown request, or a fault of ours."""

    reason: str
    stale_epoch: bool = False


class Stopping(msgspec.Struct, frozen=True, kw_only=True, tag="stopping"):
    pass


AgentReply = (
    Observed
    | FollowedLoads
    | InspectedBuild
    | PackageProgress
    | ResolvedPackages
    | InstalledPackages
    | PackagesRefused
    | SweptPackages
    | LogLines
    | Refused
    | Stopping
)
