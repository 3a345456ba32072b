"""Whoever looks after an agent of this machine: started, told to go on when it was stopped, killed when it hangs."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from cortex import processes
from cortex.clock import Clock
from cortex.oom import Rung
from cortex.planning import happenings
from cortex.processes import ProcessIdentity
from cortex.settings import NodeLayout, Settings, variables_of
from cortex.wire import membership
from cortex.wire.events import TellEvent, told_to_nobody
from cortex.wire.stopping import tell_to_stop

log = logging.getLogger(__name__)

HUNG_AFTER_S = 60.0
"""An agent whose process runs but that has not answered for this long is killed and started again."""
LOOK_EVERY_S = 1.0
"""How often an agent that is being asked is looked at: one that was stopped is told to go on."""
ANSWER_DUE_S = 6.0
"""After `nodelink.OBSERVE_TIMEOUT_S` an agent answers even if there is nothing new; the rest is for its way."""
HANGS_AFTER_S = 10.0
"""One that owes an answer and sleeps for so long hangs, and is killed: its loop never waits but for messages."""
LONGEST_SILENCE_S = ANSWER_DUE_S + 2 * HANGS_AFTER_S
UNHEARD_AFTER_S = 10.0
"""An agent dials a control plane that has just come within a tenth of a second, or a few if it has much to do."""
TOLD_WITHIN_S = 5.0


class AgentSupervisor:
    """
    Looks after the agent of a home on this machine, while whoever asks it says how that goes.

    Args:
        down_mark: while it is there, nothing is started.
        bound: sockets for the ingress, which the agent gets when it is started.
        is_member: whether the node is one among others, as its home says.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        layout: NodeLayout,
        down_mark: Path,
        clock: Clock,
        bound: Sequence[socket.socket],
        is_member: bool = False,
        tell: TellEvent = told_to_nobody,
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._down_mark = down_mark
        self._clock = clock
        self._bound = tuple(bound)
        self._is_member = is_member
        self._tell = tell
        self._restarts = processes.RestartBudget()
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._heard = False
        """Any agent has answered us."""
        self._replaced: ProcessIdentity | None = None
        """Who was told to make room."""

    @property
    def identity(self) -> ProcessIdentity | None:
        """Of the agent that has come up last."""
        return processes.read_record(self._layout.agent_file, ProcessIdentity)

    @property
    def is_starting(self) -> bool:
        """Whether one that we started runs; it may not have come up yet."""
        return self._process is not None and self._process.poll() is None

    def note_answer(self) -> None:
        """It answers: it has its sockets, or has bound others."""
        self._heard = True
        self._close_bound()

    def _close_bound(self) -> None:
        for sock in self._bound:
            sock.close()
        self._bound = ()

    def looks(self) -> Callable[[], None]:
        """What to call while an answer of the agent's is awaited: a stopped one goes on, one that hangs is killed."""
        asked_s, looked_s = self._clock.monotonic_s(), -math.inf
        pulse: processes.Pulse | None = None

        def look() -> None:
            nonlocal looked_s, pulse
            now_s = self._clock.monotonic_s()
            if now_s - looked_s < LOOK_EVERY_S / 2:
                return
            looked_s = now_s
            identity = self.identity if pulse is None else pulse.identity
            if identity is None:
                return
            pulse = pulse or processes.Pulse(identity, "the agent", hangs_after_s=HANGS_AFTER_S)
            if pulse.hangs(now_s, owes=now_s - asked_s > ANSWER_DUE_S):
                log.error("the agent (pid %s) sleeps over a question and is killed", pulse.identity.pid)
                processes.send_signal(pulse.identity, signal.SIGKILL)
                self._tell(happenings.hung("the agent", pulse.identity.pid, "slept over a question"))

        return look

    def ensure_running(self, *, silent_s: float) -> bool:
        """
        Start the agent if it does not run; whether it was started.

        Args:
            silent_s: for how long it has not answered. One that runs and is silent for too long is killed.

        Raises:
            OSError: it cannot be started.
        """
        identity = self.identity
        if identity is not None and processes.is_alive(identity):
            will_come = self._heard or self.is_starting
            if silent_s > UNHEARD_AFTER_S and not will_come and identity != self._replaced:
                # One of a version before does not dial. What it looks after goes on.
                log.warning("the agent (pid %s) does not come to us: another one takes its place", identity.pid)
                processes.send_signal(identity, signal.SIGTERM)
                self._replaced = identity
            if silent_s > HUNG_AFTER_S:
                log.error("the agent (pid %s) has not answered for %.0f s and is killed", identity.pid, silent_s)
                processes.send_signal(identity, signal.SIGKILL)
                self._tell(happenings.hung("the agent", identity.pid, f"had not answered for {silent_s:.0f} s"))
            return False
        if self.is_starting:
            return False
        self._process = None
        if self._down_mark.exists() or self._ending:
            return False
        now_s = self._clock.monotonic_s()
        if not self._restarts.may_start(now_s):
            return False
        self._restarts.note_start(now_s)
        self._layout.prepare()
        told = [membership.argument(self._layout.membership_file)] if self._is_member else []
        command = processes.module_command("cortex.agent", self._layout.home, *told)  # the home for `down`
        environ = {**os.environ, **variables_of(self._settings)}
        output = self._layout.logs / "agent.out"
        self._process = processes.spawn(
            command, output=output, environ=environ, sockets=self._bound, by=Rung.CONTROL_PLANE, to=Rung.NODE
        )
        self._close_bound()
        log.info("started the agent, pid %s", self._process.pid)
        return True

    def tell_to_stop(self, drain_timeout_s: float) -> bool:
        """Tell the agent at its own socket to end everything of its node, as it has no line to us; whether it was."""
        return tell_to_stop(self._layout.agent_socket, drain_timeout_s, patience_s=TOLD_WITHIN_S)

    def end(self) -> None:
        """Start none any more."""
        self._ending = True

    def await_end(self, identity: ProcessIdentity | None, deadline_s: float) -> None:
        """Wait for the end of an agent that was told to; one that does not end by then, on our clock, is killed."""
        if identity is not None:
            in_time = processes.ends_within(identity, deadline_s - self._clock.monotonic_s())
            if not in_time and processes.send_signal(identity, signal.SIGKILL):
                log.error("the agent did not end and was killed, pid %s", identity.pid)
        if self._process is not None:
            try:
                self._process.wait(timeout=5.0)
            except subprocess.TimeoutExpired:
                pass
