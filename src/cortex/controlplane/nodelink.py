"""The link to the agent of one node: its last report, orders in their sequence, questions."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future

from cortex import processes
from cortex.clock import Clock, until_beat_s
from cortex.controlplane.knowntables import KnownTables
from cortex.controlplane.lines import LINE_WAIT_S, AgentRefused, AgentUnreachable, Lines
from cortex.controlplane.supervision import LONGEST_SILENCE_S, AgentSupervisor
from cortex.ids import NodeId
from cortex.processes import ProcessIdentity
from cortex.wire.agent import (
    CountNow,
    FollowedLoads,
    FollowLoads,
    GiveOrders,
    InspectBuild,
    InspectedBuild,
    InstalledPackages,
    InstallPackages,
    LogLines,
    Observe,
    Observed,
    ReadLogs,
    ResolvedPackages,
    ResolvePackages,
    StopAgent,
    Stopping,
    SweepPackages,
    SweptPackages,
)
from cortex.wire.batching import Mode
from cortex.wire.build import BuildSpec
from cortex.wire.launch import InspectReport
from cortex.wire.loads import NodeLoads
from cortex.wire.orders import Orders
from cortex.wire.packages import PackageLock
from cortex.wire.reports import AgentReport

log = logging.getLogger(__name__)

OBSERVE_TIMEOUT_S = 4.0
"""A long poll this long keeps usage figures fresh without costing anything."""
LOOK_WAIT_S = 0.05
"""How soon an agent without a line is looked after."""
QUESTION_WAIT_S = 5.0
"""How long what is asked once waits for a line: on a busy machine an agent takes its time to dial another."""
ORDERS_SILENCE_S = 30.0
LOADS_SILENCE_S = OBSERVE_TIMEOUT_S + 10.0
"""An agent that has not answered for so long is asked again; whether it hangs is seen by `Observe`."""
LOADS_RETRY_S = 0.5
PACKAGES_SILENCE_S = 300.0
"""An agent that works on packages says something every few seconds, but a slow disk may keep it longer."""
COUNT_PATIENCE_S = 0.5
LEFT_EVERY_S = 0.1
"""How soon it is noticed that nobody waits for an inspection any more."""
FAULT_PAUSE_S = 1.0
REMEMBERED_AGENTS = 16


class NodeLink:
    """
    What the control plane knows and wants of one node.

    Args:
        tables: what is known of tables of routes, of all nodes.
        supervisor: who starts its agent, if it is one of this machine.
        on_look: called each time that it was looked whether the agent can be reached.
        on_report: called from a thread of ours after each new report.
        on_loads: called from another thread of ours with how much there is to do, each half second while anything
            happens. None: nobody wants to know, and nothing is read for it.
        beat_s: how often it is to be heard, also where nothing happens.
    """

    def __init__(
        self,
        node: NodeId,
        *,
        lines: Lines,
        clock: Clock,
        tables: KnownTables,
        on_report: Callable[[], None],
        on_loads: Callable[[NodeLoads], None] | None,
        on_look: Callable[[], None] = lambda: None,
        supervisor: AgentSupervisor | None = None,
        beat_s: Callable[[], float] = lambda: OBSERVE_TIMEOUT_S,
    ) -> None:
        self.node = node
        self._beat_s = beat_s
        self._lines = lines
        self._clock = clock
        self._tables = tables
        self._supervisor = supervisor
        self._on_look = on_look
        self._on_report = on_report
        self._lock = threading.Lock()
        self._report: AgentReport | None = None
        self._heard_s = clock.monotonic_s()
        self._former: deque[str] = deque(maxlen=REMEMBERED_AGENTS)
        """Agents that another one has followed: what they said before they died may still arrive."""
        self._turn = 0
        self._given: Future[None] | None = None
        """The orders that were given last."""
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._watch, name="watch-agent", daemon=True)]
        if on_loads is not None:
            self._threads.append(
                threading.Thread(target=self._follow, args=(on_loads,), name="follow-loads", daemon=True)
            )

    def start(self) -> None:
        """Begin to watch; has the agent started if there is none, and it is one of this machine."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop watching. The agent goes on."""
        self._stopping.set()

    @property
    def report(self) -> AgentReport | None:
        """The last one; None: the node has never been heard."""
        with self._lock:
            return self._report

    @property
    def silent_s(self) -> float:
        """Seconds since it was last heard; since we know of it, if it never was."""
        with self._lock:
            return self._clock.monotonic_s() - self._heard_s

    # ---- orders -------------------------------------------------------------------------------------------------

    def give(self, orders: Orders) -> Future[None]:
        """
        Have orders carried out; what becomes of them is told by the Future, as `Agents.order` says.

        Raises:
            AgentUnreachable: the ones before have not been answered. These are not on their way.
        """
        with self._lock:
            if self._given is not None and not self._given.done():
                raise AgentUnreachable("it has not answered the orders before these")
            given = self._given = Future[None]()
            self._turn += 1
            self._tables.note_ordered(orders)
            request = GiveOrders(orders=orders, turn=self._turn, known=self._tables.known(self._report))
        try:
            threading.Thread(target=self._carry, args=(request, given), name="orders", daemon=True).start()
        except RuntimeError as error:
            given.set_exception(AgentUnreachable(f"nobody can be sent there: {error}"))
        return given

    def _carry(self, request: GiveOrders, given: Future[None]) -> None:
        try:
            self._take(self._lines.ask(self.node, request, Observed, silence_s=ORDERS_SILENCE_S))
        except BaseException as error:
            given.set_exception(error)
        else:
            given.set_result(None)

    # ---- questions ----------------------------------------------------------------------------------------------

    def inspect(
        self,
        build: BuildSpec,
        timeout_s: float,
        *,
        rows: Mode = "off",
        keep: bool = False,
        look: Callable[[], None] | None = None,
    ) -> InspectReport:
        """
        Have model and handler looked at in a child of the node, and the model's rows if it is said how.

        Args:
            keep: a replica of it is about to be started.
            look: called meanwhile; what it raises ends the question, and the child.

        Raises:
            AgentUnreachable
        """
        request = InspectBuild(build=build, timeout_s=timeout_s, rows=rows, keep=keep)
        return self._lines.ask(
            self.node,
            request,
            InspectedBuild,
            silence_s=timeout_s + 30.0,
            look=look,
            look_every_s=LEFT_EVERY_S,
        ).report

    def resolve_packages(
        self, request: ResolvePackages, tell: Callable[[str], None], look: Callable[[], None] | None = None
    ) -> PackageLock:
        """
        Have versions of packages found for the Python of the node.

        Args:
            tell: told what is being done.
            look: as of `inspect`.

        Raises:
            GiveUp: they cannot be found; says why.
            AgentUnreachable
        """
        return self._lines.ask(
            self.node, request, ResolvedPackages, tell=tell, silence_s=PACKAGES_SILENCE_S, look=look
        ).lock

    def install_packages(
        self, request: InstallPackages, tell: Callable[[str], None], look: Callable[[], None] | None = None
    ) -> None:
        """
        Have users' packages ready on the node; installs them there if need be. Arguments as of `resolve_packages`.

        Raises:
            GiveUp: it cannot be built; says why.
            AgentUnreachable
        """
        self._lines.ask(self.node, request, InstalledPackages, tell=tell, silence_s=PACKAGES_SILENCE_S, look=look)

    def sweep_packages(self, in_use: Collection[str]) -> tuple[str, ...]:
        """Have installations removed that are neither among these nor used there. Raises AgentUnreachable."""
        request = SweepPackages(in_use=tuple(sorted(in_use)))
        return self._lines.ask(
            self.node, request, SweptPackages, silence_s=PACKAGES_SILENCE_S, wait_s=QUESTION_WAIT_S
        ).removed

    def read_logs(self, request: ReadLogs) -> LogLines:
        """Raises AgentUnreachable."""
        silence_s = request.wait_s + 30.0
        return self._lines.ask(self.node, request, LogLines, silence_s=silence_s, wait_s=QUESTION_WAIT_S)

    def count_now(self) -> None:
        """
        Have everything that was answered so far counted, in the replicas' files and in `report`. An agent that does
        not answer in a moment is not waited for.
        """
        try:
            request = CountNow(known=self._tables.known(self.report))
            self._take(
                self._lines.ask(self.node, request, Observed, silence_s=COUNT_PATIENCE_S, wait_s=COUNT_PATIENCE_S)
            )
        except AgentUnreachable as error:
            log.info("counts may be a second old: %s", error)

    # ---- stopping -----------------------------------------------------------------------------------------------

    def stop_agent(self, drain_timeout_s: float) -> None:
        """
        Have everything on the node drained and ended, the agent itself last. Returns when it is gone, if it is one of
        this machine; another is only told.
        """
        self._stopping.set()
        deadline_s = self._clock.monotonic_s() + drain_timeout_s + 15.0
        if self._supervisor is None:
            try:
                self._tell_to_stop(drain_timeout_s)
            except AgentUnreachable as error:
                log.error("node %s cannot be told to end: %s", self.node, error)
            return
        self._supervisor.end()
        self._supervisor.await_end(self._told_to_stop(self._supervisor, drain_timeout_s, deadline_s), deadline_s)

    def _tell_to_stop(self, drain_timeout_s: float, wait_s: float = LINE_WAIT_S) -> None:
        try:
            request = StopAgent(drain_timeout_s=drain_timeout_s)
            self._lines.ask(self.node, request, Stopping, silence_s=10.0, wait_s=wait_s)
        except AgentRefused as error:
            log.info("the agent of node %s: %s", self.node, error)

    def _told_to_stop(
        self, supervisor: AgentSupervisor, drain_timeout_s: float, deadline_s: float
    ) -> ProcessIdentity | None:
        """The agent that was told to end; None when there is none. One that just starts is told once it is there."""
        while True:
            identity = supervisor.identity
            alive = identity is not None and processes.is_alive(identity)
            starting = supervisor.is_starting
            try:
                self._tell_to_stop(drain_timeout_s, LOOK_WAIT_S)
                return supervisor.identity or identity
            except AgentUnreachable as error:
                if not alive and not starting and not supervisor.is_starting:
                    return None
                if alive and supervisor.tell_to_stop(drain_timeout_s):
                    return identity
                if self._clock.monotonic_s() > deadline_s:
                    log.error("the agent cannot be told to end: %s", error)
                    return identity
            time.sleep(0.05)

    # ---- watching -----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        supervisor = self._supervisor
        silent_since_s: float | None = None
        look: Callable[[], None] | None = None
        if supervisor is not None:
            self._look_after(supervisor, 0.0)
        while not self._stopping.is_set():
            last = self.report
            observe = Observe(
                agent=last.agent if last else "",
                serial=last.serial if last else -1,
                timeout_s=until_beat_s(self._clock.monotonic_s(), self._beat_s()),
                known=self._tables.known(last),
            )
            if supervisor is not None and silent_since_s is None:
                look = supervisor.looks()
            try:
                reply = self._lines.ask(
                    self.node, observe, Observed, silence_s=LONGEST_SILENCE_S, wait_s=LOOK_WAIT_S, look=look
                )
                self._take(reply)
                silent_since_s = None
                self._on_look()
                if supervisor is not None:
                    supervisor.note_answer()
            except AgentRefused:
                silent_since_s = None
                self._stopping.wait(0.5)
            except AgentUnreachable:
                now_s = self._clock.monotonic_s()
                silent_since_s = now_s if silent_since_s is None else silent_since_s
                self._on_look()
                if look is not None:
                    look()
                if supervisor is not None and self._look_after(supervisor, now_s - silent_since_s):
                    silent_since_s = None
            except Exception:
                log.exception("a fault of ours")
                self._stopping.wait(FAULT_PAUSE_S)

    def _look_after(self, supervisor: AgentSupervisor, silent_s: float) -> bool:
        """Have the agent started if need be; whether it was."""
        try:
            return not self._stopping.is_set() and supervisor.ensure_running(silent_s=silent_s)
        except Exception:
            log.exception("the agent could not be started, will be tried again")
            self._stopping.wait(FAULT_PAUSE_S)
            return False

    def _follow(self, on_loads: Callable[[NodeLoads], None]) -> None:
        agent = ""
        while not self._stopping.is_set():
            timeout_s = until_beat_s(self._clock.monotonic_s(), OBSERVE_TIMEOUT_S)
            try:
                request = FollowLoads(agent=agent, timeout_s=timeout_s)
                loads = self._lines.ask(self.node, request, FollowedLoads, silence_s=LOADS_SILENCE_S).loads
                agent = loads.agent
                on_loads(loads)
            except AgentUnreachable:  # whoever watches it starts it again
                self._stopping.wait(LOADS_RETRY_S)
            except Exception:
                log.exception("a fault of ours")
                self._stopping.wait(FAULT_PAUSE_S)

    def _take(self, reply: Observed) -> None:
        """Raises AgentUnreachable: the table of its routes is not known any more, and it does not say it."""
        report = self._tables.completed(reply.report)
        if report is None:
            report = self._tables.completed(
                self._lines.ask(self.node, Observe(), Observed, silence_s=LONGEST_SILENCE_S).report
            )
        if report is None:
            raise AgentUnreachable("it leaves out routes that nobody knows")
        with self._lock:
            last = self._report
            if report.agent in self._former:
                return
            self._heard_s = self._clock.monotonic_s()
            if last is not None and last.agent == report.agent and last.serial > report.serial:
                return
            if last is not None and last.agent != report.agent:
                self._former.append(last.agent)
            changed = last is None or (last.agent, last.serial) != (report.agent, report.serial)
            self._report = report
        if changed:
            self._on_report()
