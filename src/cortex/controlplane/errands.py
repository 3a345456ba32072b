"""
What deploys have done on nodes and needs no lease: builds are looked at, packages are found and installed.

`planning.errands` says where. An errand whose node goes away, or is not able to do it, is run on another one.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from cortex.clock import Clock
from cortex.controlplane.agents import LinkedAgents
from cortex.controlplane.lines import AgentRefused, AgentUnreachable, CalledOff, NoLine
from cortex.controlplane.nodelink import NodeLink
from cortex.engines.base import Engine
from cortex.errors import CortexError, GiveUp, RetryLater
from cortex.ids import ApiKey, NodeId, revision_of, short
from cortex.planning.actions import room_text
from cortex.planning.errands import NOTHING, ErrandPlace, best_place
from cortex.planning.model import Lease
from cortex.state.records import StateStore
from cortex.wire.agent import InstallPackages, ResolvePackages
from cortex.wire.batching import Mode
from cortex.wire.build import BuildSpec, Resources
from cortex.wire.launch import InspectReport
from cortex.wire.packages import PackageLock

log = logging.getLogger(__name__)

R = TypeVar("R")

PATIENCE_S = 20.0
"""How long an errand waits for agents that do not answer; starting one takes under a second."""
TRIES = 5
"""How many agents may die over one errand."""
AGAIN_S = 0.05
DIED_AFTER_S = 1.0
"""An agent that was asked for longer, and is gone, may have died over it."""
MOST_LOCKS = 100
"""Of how many it is remembered where they were installed."""
OF_THE_NODE = frozenset(
    {
        "control-plane-away",
        "node-disk-full",
        "node-fault",
        "packages-disk-full",
        "packages-elsewhere",
        "store-unavailable",
    }
)
"""Problems that say something about a node, and nothing about what was asked for."""

Look = Callable[[], None]
"""Called while a node is asked; what it raises ends the question."""
Tell = Callable[[str], None]


class NoNodeFits(RetryLater):
    """
    No node that is there now has the memory or the GPUs that a replica asks for, so that nothing of it can be checked.
    """

    reference = "no-node-fits"
    hint = "deploy again once there is a node that has them; `cortex info` shows what each has"

    def __init__(self, asked: Resources) -> None:
        self.asked = asked
        super().__init__(f"no node that is there now has room for a replica: {room_text(asked)} asked", after_s=10.0)


class _NodeUnable(CortexError):
    """A node says of itself that it cannot look at a build."""

    def __init__(self, report: InspectReport) -> None:
        self.report = report
        super().__init__("; ".join(problem.message for problem in report.problems))


class _Errand(NamedTuple):
    """
    What has to be known of an errand to say where it is run.

    Attributes:
        asked: what there has to be for it.
        api: whose it is; None: nobody's.
        packages: digest of the lock that it takes; empty: a lock is about to be made.
    """

    asked: Resources = NOTHING
    api: ApiKey | None = None
    packages: str | None = None

    @classmethod
    def over(cls, build: BuildSpec) -> _Errand:
        return cls(build.resources, build.api, build.packages)


class Errands:
    """
    Runs errands. Any thread may ask, and waits.

    Args:
        state: knows which builds there are.
        out: the nodes on which nothing is to begin: they are lost, or about to leave.
    """

    def __init__(
        self,
        *,
        agents: LinkedAgents,
        engine: Engine,
        state: StateStore,
        clock: Clock,
        out: Callable[[], Collection[NodeId]],
    ) -> None:
        self._agents = agents
        self._engine = engine
        self._state = state
        self._clock = clock
        self._out = out
        self._guard = threading.Lock()
        self._under_way: Counter[NodeId] = Counter()
        self._installed: dict[str, set[NodeId]] = {}
        """By digest of a lock, where it was installed; by the empty one, where a lock was made last."""

    def inspect(
        self,
        build: BuildSpec,
        timeout_s: float,
        *,
        rows: Mode = "off",
        keep: bool = False,
        left: threading.Event | None = None,
    ) -> InspectReport:
        """
        Have model and handler looked at in a child of a node, and the model's rows if it is said how.

        Args:
            keep: a replica of it is about to be started.
            left: set when nobody waits for the report any more; then its child is ended.

        Raises:
            AgentUnreachable, NoNodeFits
            CalledOff: `left` was set.
        """

        def ask(link: NodeLink, look: Look) -> InspectReport:
            def look_at_both() -> None:
                if left is not None and left.is_set():
                    raise CalledOff
                look()

            report = link.inspect(build, timeout_s, rows=rows, keep=keep, look=look_at_both)
            if report.problems and OF_THE_NODE.issuperset(problem.reference for problem in report.problems):
                raise _NodeUnable(report)
            return report

        try:
            return self._run(_Errand.over(build), ask)
        except _NodeUnable as error:
            return error.report

    def resolve_packages(self, request: ResolvePackages, tell: Tell) -> PackageLock:
        """
        Have versions of packages found for the Python of the nodes.

        Args:
            tell: told what is being done.

        Raises:
            GiveUp: they cannot be found; says why.
            AgentUnreachable
        """

        def ask(link: NodeLink, look: Look) -> PackageLock:
            lock = link.resolve_packages(request, tell, look)
            with self._guard:
                self._installed[""] = {link.node}
            return lock

        return self._run(_Errand(packages=""), ask)

    def install_packages(self, build: BuildSpec, tell: Tell) -> None:
        """
        Have the packages of a build ready on a node that may look at it; installs them there if need be.

        Raises:
            GiveUp: they cannot be built; says why.
            AgentUnreachable, NoNodeFits
        """
        lock = build.packages
        if lock is None:
            return
        request = InstallPackages(packages=lock, runtime=build.runtime, project=build.project)

        def ask(link: NodeLink, look: Look) -> None:
            link.install_packages(request, tell, look)
            with self._guard:
                self._installed.setdefault(lock, set()).add(link.node)
                while len(self._installed) > MOST_LOCKS:
                    self._installed.pop(next(iter(self._installed)))

        self._run(_Errand.over(build), ask)

    # ---- where --------------------------------------------------------------------------------------------------

    def _run(self, errand: _Errand, ask: Callable[[NodeLink, Look], R]) -> R:
        """
        The answer of the first node that is able to give one. Agents that start, or start again, are waited for.

        Raises:
            CortexError: as `ask` does on the node that was asked last, once every one that there is has been.
        """
        failures: Counter[NodeId] = Counter()
        unable: CortexError | None = None
        tries_left = TRIES
        patient_until_s = self._clock.monotonic_s() + PATIENCE_S
        while True:
            place = best_place(self._places(errand, failures), errand.asked)
            if place is None:
                raise NoNodeFits(errand.asked)
            if unable is not None and (place.failures or place.is_out):
                raise unable
            node = place.node.node
            look = self._look(node)
            asked_s = self._clock.monotonic_s()
            try:
                look()
                with self._counted(node):
                    return ask(self._agents.link(node), look)
            except (AgentRefused, GiveUp, _NodeUnable) as error:
                if isinstance(error, GiveUp) and error.problem().reference not in OF_THE_NODE:
                    raise
                log.warning("node %s is not able to do what a deploy needs: %s", node, error)
                unable = error
            except AgentUnreachable as error:
                now_s = self._clock.monotonic_s()
                if not isinstance(error, NoLine) and now_s - asked_s > DIED_AFTER_S:
                    tries_left -= 1
                    patient_until_s = now_s + PATIENCE_S
                if not tries_left or now_s > patient_until_s or self._agents.closing.wait(AGAIN_S):
                    raise
            failures[node] += 1

    @contextmanager
    def _counted(self, node: NodeId) -> Iterator[None]:
        with self._guard:
            self._under_way[node] += 1
        try:
            yield
        finally:
            with self._guard:
                self._under_way[node] -= 1

    def _look(self, node: NodeId) -> Look:
        def look() -> None:
            if node in self._out():
                raise AgentUnreachable(f"node {node} is lost")

        return look

    def _places(self, errand: _Errand, failures: Mapping[NodeId, int]) -> list[ErrandPlace]:
        reports = {report.name: report for report in self._agents.reports()}
        leases, requested, out = self._engine.leases(), self._engine.requested(), self._out()
        replicas = Counter(lease.node for lease in leases)
        of_api = Counter(lease.node for lease in leases if lease.request.api == errand.api)
        installed = self._where_installed(errand.packages, leases)
        return [
            ErrandPlace(
                node=node,
                requested=requested.get(node.node, NOTHING),
                is_out=node.node in out,
                failures=failures.get(node.node, 0),
                is_heard=node.node in reports,
                is_short=node.node in reports and reports[node.node].memory_short,
                has_packages=node.node in installed,
                errands=self._under_way[node.node],
                of_api=of_api[node.node],
                replicas=replicas[node.node],
            )
            for node in self._engine.nodes()
        ]

    def _where_installed(self, lock: str | None, leases: Iterable[Lease]) -> Collection[NodeId | None]:
        """Where packages are, as far as that is known; those of a new lock, where it was made: in its cache."""
        if lock is None:
            return ()
        with self._guard:
            noted, made = set(self._installed.get(lock, ())), set(self._installed.get("", ()))
        revisions = {
            (one.build.api, short(one.build.revision)) for one in self._state.versions() if one.build.packages == lock
        }
        used = {lease.node for lease in leases if (lease.request.api, revision_of(lease.request.replica)) in revisions}
        return noted | used or made
