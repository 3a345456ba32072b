"""The control plane's line to the agents: last reports, orders, and questions, over unix sockets."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

import msgspec

from cortex import polling, processes
from cortex.clock import Clock, until_beat_s
from cortex.controlplane.world import StaleEpoch
from cortex.errors import GiveUp, RetryLater
from cortex.ids import NodeId
from cortex.oom import Rung
from cortex.planning import happenings
from cortex.processes import ProcessIdentity
from cortex.settings import ControlLayout, NodeLayout, Settings, variables_of
from cortex.wire.agent import (
    NEVER_MIND,
    AgentReply,
    AgentRequest,
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
    PackageProgress,
    PackagesRefused,
    ReadLogs,
    Refused,
    ResolvedPackages,
    ResolvePackages,
    StopAgent,
    Stopping,
    SweepPackages,
    SweptPackages,
)
from cortex.wire.batching import Mode
from cortex.wire.build import BuildSpec
from cortex.wire.events import TellEvent, told_to_nobody
from cortex.wire.framing import UNREADABLE, receive_frame, send_frame
from cortex.wire.launch import InspectReport
from cortex.wire.loads import NodeLoads
from cortex.wire.orders import Orders
from cortex.wire.packages import PackageLock
from cortex.wire.reports import AgentReport

log = logging.getLogger(__name__)

R = TypeVar("R", bound=AgentReply)

OBSERVE_TIMEOUT_S = 4.0
"""A long poll this long keeps usage figures fresh without costing anything."""
AGENT_PATIENCE_S = 20.0
"""How long a deploy waits for an agent that does not answer; starting one takes under a second."""
INSPECT_TRIES = 5
"""How many agents may die over one inspection."""
LOADS_SILENCE_S = OBSERVE_TIMEOUT_S + 10.0
"""An agent that has not answered for so long is asked again; whether it hangs is seen by `Observe`."""
LOADS_RETRY_S = 0.5
PACKAGES_SILENCE_S = 300.0
"""An agent that works on packages says something every few seconds, but a slow disk may keep it longer."""
COUNT_PATIENCE_S = 0.5
LOOK_EVERY_S = 0.1
"""How soon it is noticed that nobody waits for an answer any more."""
HUNG_AFTER_S = 60.0
"""An agent whose process runs but that has not answered for this long is killed and started again."""
AGENT_LOOK_S = 1.0
"""How often an agent that is being asked is looked at: one that was stopped is told to go on."""
ANSWER_DUE_S = 6.0
"""After `OBSERVE_TIMEOUT_S` an agent answers even if there is nothing new; the rest is for its way."""
HANGS_AFTER_S = 10.0
"""One that owes an answer and sleeps for so long hangs, and is killed: its loop never waits but for messages."""
FAULT_PAUSE_S = 1.0
REMEMBERED_AGENTS = 16


class AgentUnreachable(RetryLater):
    """The node's agent does not answer now."""

    reference = "agent-unreachable"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the agent of this node does not answer: {reason}", after_s=0.2)


class AgentRefused(AgentUnreachable):
    """The node's agent answers, and does not do what it was asked."""


class CalledOff(Exception):
    """Nobody waits for an answer any more, and the agent knows."""


class LocalAgent:
    """
    The agent of this machine: watched, ordered, and started again when it dies.

    Implements `tick.Agents` for the one node of the local environment.

    Args:
        bound: sockets for the ingress, which the agent gets when it is started.
        on_report: called from our own thread after each new report.
        on_loads: called from another thread of ours with how much there is to do, each half second while anything
            happens. None: nobody wants to know, and nothing is read for it.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        layout: NodeLayout,
        clock: Clock,
        bound: Sequence[socket.socket],
        on_report: Callable[[], None],
        on_loads: Callable[[NodeLoads], None] | None = None,
        tell: TellEvent = told_to_nobody,
    ) -> None:
        self._tell = tell
        self._settings = settings
        self._layout = layout
        self._down_mark = ControlLayout(settings.home).down_mark
        self._clock = clock
        self._bound = tuple(bound)
        self._on_report = on_report
        self._report: AgentReport | None = None
        self._former: deque[str] = deque(maxlen=REMEMBERED_AGENTS)
        """Agent processes that another one has followed: what they said before they died may still arrive."""
        self._lock = threading.Lock()
        self._orders_line, self._loads_line = _Line(layout), _Line(layout)
        self._stopping = threading.Event()
        self._restarts = processes.RestartBudget()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, name="watch-agent", daemon=True)
        self._follower: threading.Thread | None = None
        if on_loads is not None:
            self._follower = threading.Thread(target=self._follow, args=(on_loads,), name="follow-loads", daemon=True)

    def start(self) -> None:
        """Begin to watch; starts the agent if there is none."""
        self._thread.start()
        if self._follower is not None:
            self._follower.start()

    def close(self) -> None:
        """Stop watching. The agent goes on."""
        self._stopping.set()
        self._orders_line.close()
        self._loads_line.close()

    # ---- tick.Agents --------------------------------------------------------------------------------------------

    def reports(self) -> tuple[AgentReport, ...]:
        with self._lock:
            return () if self._report is None else (self._report,)

    @property
    def settled(self) -> bool:
        """Whether every node has reported since we started."""
        with self._lock:
            return self._report is not None

    def order(self, node: NodeId, orders: Orders) -> None:
        """Give orders. Raises AgentUnreachable, or StaleEpoch when someone newer is in charge."""
        with self._lock:
            known = self._report
        if known is not None and known.node.node != node:
            raise AgentUnreachable(f"this is {known.node.node}, and not {node}")
        self._take(self._orders_line.ask(GiveOrders(orders=orders), Observed, silence_s=30.0).report)

    # ---- questions ----------------------------------------------------------------------------------------------

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
        Have model and handler looked at in a child of the node, and the model's rows if it is said how.

        An agent that is just being started, or started again, is waited for.

        Args:
            keep: a replica of it is about to be started.
            left: set when nobody waits for the report any more; then its child is ended.

        Raises:
            AgentUnreachable
            CalledOff: `left` was set.
        """
        request = InspectBuild(build=build, timeout_s=timeout_s, rows=rows, keep=keep)

        def look() -> None:
            if left is not None and left.is_set():
                raise CalledOff

        return self._asked_patiently(
            lambda line: line.ask(
                request, InspectedBuild, silence_s=timeout_s + 30.0, look=look, look_every_s=LOOK_EVERY_S
            )
        ).report

    def resolve_packages(self, request: ResolvePackages, tell: Callable[[str], None]) -> PackageLock:
        """
        Have versions of packages found for the Python of the node.

        Args:
            tell: told what is being done.

        Raises:
            GiveUp: they cannot be found; says why.
            AgentUnreachable
        """
        return self._asked_patiently(
            lambda line: line.ask(request, ResolvedPackages, tell=tell, silence_s=PACKAGES_SILENCE_S)
        ).lock

    def install_packages(self, request: InstallPackages, tell: Callable[[str], None]) -> None:
        """
        Have users' packages ready on the node; installs them there if need be.

        Raises:
            GiveUp: it cannot be built; says why.
            AgentUnreachable
        """
        self._asked_patiently(
            lambda line: line.ask(request, InstalledPackages, tell=tell, silence_s=PACKAGES_SILENCE_S)
        )

    def sweep_packages(self, in_use: Collection[str]) -> tuple[str, ...]:
        """Have installations removed that are neither among these nor used there. Raises AgentUnreachable."""
        with contextlib.closing(_Line(self._layout)) as line:
            request = SweepPackages(in_use=tuple(sorted(in_use)))
            return line.ask(request, SweptPackages, silence_s=PACKAGES_SILENCE_S).removed

    def _asked_patiently(self, ask: Callable[[_Line], R]) -> R:
        """
        The answer to what may take long, and may be asked again: an agent that starts, or starts again, is waited for.

        Raises AgentUnreachable.
        """
        tries_left = INSPECT_TRIES
        patient_until_s = self._clock.monotonic_s() + AGENT_PATIENCE_S
        while True:
            asked_s = self._clock.monotonic_s()
            try:
                with contextlib.closing(_Line(self._layout)) as line:
                    return ask(line)
            except AgentRefused:
                raise
            except AgentUnreachable:
                now_s = self._clock.monotonic_s()
                if now_s - asked_s > FAULT_PAUSE_S:  # it was there, and died over this or of something else
                    tries_left -= 1
                    patient_until_s = now_s + AGENT_PATIENCE_S
                if not tries_left or now_s > patient_until_s or self._stopping.wait(0.05):
                    raise

    def read_logs(self, request: ReadLogs) -> LogLines:
        """Raises AgentUnreachable."""
        with contextlib.closing(_Line(self._layout)) as line:
            return line.ask(request, LogLines, silence_s=request.wait_s + 30.0)

    def count_now(self) -> None:
        """
        Have everything that was answered so far counted, in the replicas' files and in `reports`. An agent that does
        not answer in a moment is not waited for.
        """
        try:
            with contextlib.closing(_Line(self._layout)) as line:
                self._take(line.ask(CountNow(), Observed, silence_s=COUNT_PATIENCE_S).report)
        except AgentUnreachable as error:
            log.info("counts may be a second old: %s", error)

    def stop_agent(self, drain_timeout_s: float) -> None:
        """Have everything on the node drained and ended, the agent itself last. Returns when it is gone."""
        self._stopping.set()
        deadline_s = self._clock.monotonic_s() + drain_timeout_s + 15.0
        identity = self._told_to_stop(drain_timeout_s, deadline_s)
        if identity is not None:
            in_time = processes.ends_within(identity, deadline_s - self._clock.monotonic_s())
            if not in_time and processes.send_signal(identity, signal.SIGKILL):
                log.error("the agent did not end and was killed, pid %s", identity.pid)
        process = self._process
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5.0)

    def _told_to_stop(self, drain_timeout_s: float, deadline_s: float) -> ProcessIdentity | None:
        """The agent that was told to end; None when there is none. One that just starts is told once it listens."""
        while True:
            identity = self._identity()
            alive = identity is not None and processes.is_alive(identity)
            try:
                with contextlib.closing(_Line(self._layout)) as line, contextlib.suppress(AgentRefused):
                    line.ask(StopAgent(drain_timeout_s=drain_timeout_s), Stopping, silence_s=10.0)
                return self._identity() or identity
            except AgentUnreachable as error:
                process = self._process
                starting = process is not None and process.poll() is None
                if not alive and not starting:
                    return None
                if self._clock.monotonic_s() > deadline_s:
                    log.error("the agent cannot be told to end: %s", error)
                    return identity
            time.sleep(0.05)

    # ---- watching -----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        line = _Line(self._layout)
        silent_since_s: float | None = None
        while not self._stopping.is_set():
            with self._lock:
                last = self._report
            observe = Observe(
                agent=last.agent if last else "",
                serial=last.serial if last else -1,
                timeout_s=until_beat_s(self._clock.monotonic_s(), OBSERVE_TIMEOUT_S),
            )
            try:
                timeout_s = ANSWER_DUE_S + 2 * HANGS_AFTER_S
                self._take(line.ask(observe, Observed, silence_s=timeout_s, look=self._looks()).report)
                silent_since_s = None
                self._close_bound()
            except AgentRefused:
                silent_since_s = None
                self._stopping.wait(0.5)
            except AgentUnreachable:
                now_s = self._clock.monotonic_s()
                silent_since_s = now_s if silent_since_s is None else silent_since_s
                try:
                    if self._ensure_running(silent_s=now_s - silent_since_s):
                        silent_since_s = None
                    self._stopping.wait(0.05)
                except Exception:
                    log.exception("the agent could not be started, will be tried again")
                    self._stopping.wait(FAULT_PAUSE_S)
            except Exception:
                log.exception("a fault of ours")
                self._stopping.wait(FAULT_PAUSE_S)
        line.close()

    def _follow(self, on_loads: Callable[[NodeLoads], None]) -> None:
        agent = ""
        while not self._stopping.is_set():
            timeout_s = until_beat_s(self._clock.monotonic_s(), OBSERVE_TIMEOUT_S)
            try:
                request = FollowLoads(agent=agent, timeout_s=timeout_s)
                loads = self._loads_line.ask(request, FollowedLoads, silence_s=LOADS_SILENCE_S).loads
                agent = loads.agent
                on_loads(loads)
            except AgentUnreachable:  # whoever watches it starts it again
                self._stopping.wait(LOADS_RETRY_S)
            except Exception:
                log.exception("a fault of ours")
                self._stopping.wait(FAULT_PAUSE_S)
        self._loads_line.close()

    def _looks(self) -> Callable[[], None]:
        """What to call while an answer of the agent's is awaited: a stopped one goes on, one that hangs is killed."""
        asked_s = self._clock.monotonic_s()
        pulse: processes.Pulse | None = None

        def look() -> None:
            nonlocal pulse
            now_s = self._clock.monotonic_s()
            if pulse is None:
                identity = self._identity()
                if identity is None:
                    return
                pulse = processes.Pulse(identity, "the agent", hangs_after_s=HANGS_AFTER_S)
            if pulse.hangs(now_s, owes=now_s - asked_s > ANSWER_DUE_S):
                log.error("the agent (pid %s) sleeps over a question and is killed", pulse.identity.pid)
                processes.send_signal(pulse.identity, signal.SIGKILL)
                self._tell(happenings.hung("the agent", pulse.identity.pid, "slept over a question"))

        return look

    def _take(self, report: AgentReport) -> None:
        with self._lock:
            last = self._report
            if report.agent in self._former:
                return
            if last is not None and last.agent == report.agent and last.serial > report.serial:
                return
            if last is not None and last.agent != report.agent:
                self._former.append(last.agent)
            changed = last is None or (last.agent, last.serial) != (report.agent, report.serial)
            self._report = report
        if changed:
            self._on_report()

    def _identity(self) -> ProcessIdentity | None:
        return processes.read_record(self._layout.agent_file, ProcessIdentity)

    def _ensure_running(self, *, silent_s: float) -> bool:
        """
        Start the agent if it does not run; whether it was started.

        Args:
            silent_s: for how long it has not answered. One that runs and is silent for too long is killed.
        """
        identity = self._identity()
        if identity is not None and processes.is_alive(identity):
            if silent_s > HUNG_AFTER_S:
                log.error("the agent (pid %s) has not answered for %.0f s and is killed", identity.pid, silent_s)
                processes.send_signal(identity, signal.SIGKILL)
                self._tell(happenings.hung("the agent", identity.pid, f"had not answered for {silent_s:.0f} s"))
            return False
        if self._process is not None and self._process.poll() is None:
            return False  # started, not there yet
        self._process = None
        if self._down_mark.exists() or self._stopping.is_set():
            return False
        now_s = self._clock.monotonic_s()
        if not self._restarts.may_start(now_s):
            return False
        self._restarts.note_start(now_s)
        command = processes.module_command("cortex.agent", self._layout.home)  # the home for `down`
        environ = {**os.environ, **variables_of(self._settings)}
        output = self._layout.logs / "agent.out"
        self._process = processes.spawn(
            command, output=output, environ=environ, sockets=self._bound, by=Rung.CONTROL_PLANE, to=Rung.NODE
        )
        self._close_bound()
        log.info("started the agent, pid %s", self._process.pid)
        return True

    def _close_bound(self) -> None:
        """An agent has them, or has bound others."""
        for sock in self._bound:
            sock.close()
        self._bound = ()


class _Line:
    """One connection to the agent's socket; made when needed, one question at a time."""

    def __init__(self, layout: NodeLayout) -> None:
        self._path = str(layout.agent_socket)
        self._sock: socket.socket | None = None
        self._lock = threading.Lock()

    def ask(
        self,
        request: AgentRequest,
        kind: type[R],
        *,
        silence_s: float,
        tell: Callable[[str], None] = lambda _: None,
        look: Callable[[], None] | None = None,
        look_every_s: float = AGENT_LOOK_S,
    ) -> R:
        """
        Ask and wait for the last answer.

        Args:
            kind: what answers this request, unless it is refused.
            tell: gets what is said on the way to it.
            look: called meanwhile. What it raises ends the question: the agent is told that nobody waits any more.

        Raises:
            AgentUnreachable: nobody knows what became of the request; also when nothing is said for `silence_s`.
            AgentRefused, StaleEpoch, GiveUp: it was not carried out.
        """
        reply = self._last_reply(request, silence_s, tell, look, look_every_s)
        if isinstance(reply, kind):
            return reply
        match reply:
            case Refused(stale_epoch=True, reason=reason):
                raise StaleEpoch(reason)
            case Refused(reason=reason):
                raise AgentRefused(reason)
            case PackagesRefused(problem=problem):
                raise GiveUp(problem)
        raise AgentRefused("an unexpected answer")

    def _last_reply(
        self,
        request: AgentRequest,
        silence_s: float,
        tell: Callable[[str], None],
        look: Callable[[], None] | None,
        look_every_s: float,
    ) -> AgentReply:
        with self._lock:
            try:
                if self._sock is None:
                    self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    self._sock.settimeout(5.0)
                    self._sock.connect(self._path)
                self._sock.settimeout(silence_s)
                send_frame(self._sock, msgspec.json.encode(request))
                while True:
                    if look is not None:
                        _look_until_word(self._sock, silence_s, look, look_every_s)
                    payload, _fds = receive_frame(self._sock)
                    reply = _REPLIES.decode(payload)
                    if not isinstance(reply, PackageProgress):
                        return reply
                    tell(reply.message)
            except (OSError, *UNREADABLE) as error:
                self._drop()
                raise AgentUnreachable(str(error) or type(error).__name__) from error
            except BaseException:
                if self._sock is not None:
                    with contextlib.suppress(OSError):
                        self._sock.send(NEVER_MIND, socket.MSG_DONTWAIT)
                self._drop()  # half a question or answer would be taken for part of the next
                raise

    def close(self) -> None:
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None


_REPLIES: msgspec.json.Decoder[AgentReply] = msgspec.json.Decoder(AgentReply)


def _look_until_word(sock: socket.socket, silence_s: float, look: Callable[[], None], every_s: float) -> None:
    """Return when there is something to read, or after `silence_s`; call `look` meanwhile."""
    deadline_s = time.monotonic() + silence_s
    while not polling.wait({sock.fileno(): select.POLLIN}, until_beat_s(time.monotonic(), every_s)):
        if time.monotonic() > deadline_s:
            return
        look()
