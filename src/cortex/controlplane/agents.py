"""The control plane's line to the agents: last reports, orders, and questions, over unix sockets."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import msgspec

from cortex import processes
from cortex.clock import Clock
from cortex.controlplane.world import StaleEpoch
from cortex.errors import RetryLater
from cortex.ids import NodeId
from cortex.processes import ProcessIdentity
from cortex.settings import HomeLayout, Settings, environment_of
from cortex.wire.agent import (
    AgentReply,
    AgentRequest,
    GiveOrders,
    InspectBuild,
    InspectedBuild,
    LogLines,
    Observe,
    Observed,
    ReadLogs,
    Refused,
    StopAgent,
)
from cortex.wire.build import BuildSpec
from cortex.wire.framing import receive_frame, send_frame
from cortex.wire.launch import InspectReport
from cortex.wire.orders import Orders
from cortex.wire.reports import AgentReport

log = logging.getLogger(__name__)

OBSERVE_TIMEOUT_S = 5.0
"""A long poll this long keeps usage figures fresh without costing anything."""
AGENT_PATIENCE_S = 20.0
"""How long a deploy waits for an agent that does not answer; starting one takes under a second."""


class AgentUnreachable(RetryLater):
    """The node's agent does not answer now."""

    reference = "agent-unreachable"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the agent of this node does not answer: {reason}", after_s=0.2)


class LocalAgent:
    """
    The agent of this machine: watched, ordered, and started again when it dies.

    Implements `tick.Agents` for the one node of the local environment.

    Args:
        on_report: called from our own thread after each new report.
    """

    def __init__(self, *, settings: Settings, layout: HomeLayout, clock: Clock, on_report: Callable[[], None]) -> None:
        self._settings = settings
        self._layout = layout
        self._clock = clock
        self._on_report = on_report
        self._report: AgentReport | None = None
        self._lock = threading.Lock()
        self._orders_line = _Line(layout)
        self._stopping = threading.Event()
        self._restarts = processes.RestartBudget()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, name="watch-agent", daemon=True)

    def start(self) -> None:
        """Begin to watch; starts the agent if there is none."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching. The agent goes on."""
        self._stopping.set()
        self._orders_line.close()

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
        reply = self._orders_line.ask(GiveOrders(orders=orders), timeout_s=30.0)
        if isinstance(reply, Refused):
            if reply.stale_epoch:
                raise StaleEpoch(reply.reason)
            raise AgentUnreachable(reply.reason)
        if isinstance(reply, Observed):
            self._take(reply.report)

    # ---- questions ----------------------------------------------------------------------------------------------

    def inspect(self, build: BuildSpec, timeout_s: float) -> InspectReport:
        """
        Have model and handler looked at in a child of the node.

        An agent that is just being started, or started again, is waited for. Raises AgentUnreachable.
        """
        patient_until_s = self._clock.monotonic_s() + AGENT_PATIENCE_S
        while True:
            try:
                with contextlib.closing(_Line(self._layout)) as line:
                    reply = line.ask(InspectBuild(build=build, timeout_s=timeout_s), timeout_s=timeout_s + 30.0)
                break
            except AgentUnreachable:
                if self._clock.monotonic_s() > patient_until_s or self._stopping.wait(0.05):
                    raise
        if isinstance(reply, InspectedBuild):
            return reply.report
        raise AgentUnreachable(getattr(reply, "reason", "an unexpected answer"))

    def read_logs(self, request: ReadLogs) -> LogLines:
        """Raises AgentUnreachable."""
        with contextlib.closing(_Line(self._layout)) as line:
            reply = line.ask(request, timeout_s=request.wait_s + 30.0)
        if isinstance(reply, LogLines):
            return reply
        raise AgentUnreachable(getattr(reply, "reason", "an unexpected answer"))

    def stop_agent(self, drain_timeout_s: float) -> None:
        """Have everything on the node drained and ended, the agent itself last. Returns when it is gone."""
        self._stopping.set()
        identity = self._identity()
        with contextlib.suppress(AgentUnreachable), contextlib.closing(_Line(self._layout)) as line:
            line.ask(StopAgent(drain_timeout_s=drain_timeout_s), timeout_s=10.0)
        if identity is None:
            return
        deadline_s = self._clock.monotonic_s() + drain_timeout_s + 15.0
        pidfd = processes.open_pidfd(identity)
        if pidfd is None:
            return
        try:
            _wait_readable(pidfd, max(0.0, deadline_s - self._clock.monotonic_s()))
        finally:
            os.close(pidfd)
        processes.send_signal(identity, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    # ---- watching -----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        line = _Line(self._layout)
        while not self._stopping.is_set():
            with self._lock:
                last = self._report
            observe = Observe(
                agent=last.agent if last else "",
                serial=last.serial if last else -1,
                timeout_s=OBSERVE_TIMEOUT_S,
            )
            try:
                reply = line.ask(observe, timeout_s=OBSERVE_TIMEOUT_S + 10.0)
            except AgentUnreachable:
                self._ensure_running()
                self._stopping.wait(0.05)
                continue
            if isinstance(reply, Observed):
                self._take(reply.report)
            else:
                self._stopping.wait(0.5)
        line.close()

    def _take(self, report: AgentReport) -> None:
        with self._lock:
            last = self._report
            if last is not None and last.agent == report.agent and last.serial > report.serial:
                return
            changed = last is None or (last.agent, last.serial) != (report.agent, report.serial)
            self._report = report
        if changed:
            self._on_report()

    def _identity(self) -> ProcessIdentity | None:
        try:
            return msgspec.json.decode(self._layout.agent_file.read_bytes(), type=ProcessIdentity)
        except (OSError, msgspec.MsgspecError):
            return None

    def _ensure_running(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return  # started, not answering yet
        self._process = None
        identity = self._identity()
        if identity is not None and processes.is_alive(identity):
            return
        if self._layout.down_mark.exists() or self._stopping.is_set():
            return
        now_s = self._clock.monotonic_s()
        if not self._restarts.may_start(now_s):
            return
        self._restarts.note_start(now_s)
        with (self._layout.logs / "agent.out").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cortex.agent"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={**os.environ, **environment_of(self._settings)},
                start_new_session=True,
            )
        log.info("started the agent, pid %s", self._process.pid)


class _Line:
    """One connection to the agent's socket; made when needed, one question at a time."""

    def __init__(self, layout: HomeLayout) -> None:
        self._path = str(layout.agent_socket)
        self._sock: socket.socket | None = None
        self._lock = threading.Lock()

    def ask(self, request: AgentRequest, *, timeout_s: float) -> AgentReply:
        with self._lock:
            try:
                if self._sock is None:
                    self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                    self._sock.settimeout(5.0)
                    self._sock.connect(self._path)
                self._sock.settimeout(timeout_s)
                send_frame(self._sock, msgspec.json.encode(request))
                payload, _fds = receive_frame(self._sock)
            except OSError as error:
                self._drop()
                raise AgentUnreachable(str(error) or type(error).__name__) from error
            return _REPLIES.decode(payload)

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


def _wait_readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
