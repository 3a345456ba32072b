"""The control plane is started again when it has died, as it starts the agent."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable

import msgspec

from cortex import processes
from cortex.agent import beats
from cortex.clock import Clock
from cortex.oom import Rung
from cortex.processes import ControlPlaneRecord, ProcessIdentity
from cortex.settings import ControlLayout, Settings, variables_of

log = logging.getLogger(__name__)


class Overseer:
    """
    Looks after the control plane of this home.

    Args:
        is_ending: whether nothing is started any more.
    """

    def __init__(
        self, *, settings: Settings, layout: ControlLayout, clock: Clock, is_ending: Callable[[], bool]
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._clock = clock
        self._is_ending = is_ending
        self._restarts = processes.RestartBudget()
        self._process: subprocess.Popen[bytes] | None = None
        """The one that we started last."""
        self._running: processes.WatchedProcess | None = None
        """While one runs that we know of."""

    @property
    def pid(self) -> int | None:
        """Of the one that is a child of ours."""
        return self._process.pid if self._process is not None else None

    def keep(self) -> None:
        """Start the control plane again when it has died, unless the environment is meant to be down."""
        if self._running is not None:
            self._running.have_go_on(self._clock.monotonic_s())
            return
        if self._process is not None and self._process.poll() is None:
            return
        self._process = None
        if self._layout.down_mark.exists() or self._is_ending():
            return
        record = processes.read_record(self._layout.controlplane_file, ControlPlaneRecord)
        if record is None:
            return  # it ended in order, or never ran: whoever wants it starts it
        if self._watch(record):
            return
        now_s = self._clock.monotonic_s()
        if not self._restarts.may_start(now_s):
            return
        self._restarts.note_start(now_s)
        as_it_was = msgspec.structs.replace(
            self._settings,
            home=self._layout.home,
            host=record.host,
            port=record.port,
            operator_port=record.operator_port,
        )
        env = {**os.environ, **variables_of(as_it_was)}
        command = processes.module_command("cortex.controlplane", self._layout.home)  # the home for `down`
        self._process = processes.spawn(
            command,
            output=self._layout.logs / "controlplane.out",
            environ=env,
            by=Rung.NODE,
            to=Rung.CONTROL_PLANE,
        )
        log.warning("the control plane had died; started it again, pid %s", self._process.pid)
        started = processes.identify(self._process.pid)
        if started is not None:
            self._watch(started)

    def _watch(self, identity: ProcessIdentity) -> bool:
        """Replace it as soon as it ends: until then nothing else that dies is replaced. False: it has ended already."""
        running = processes.WatchedProcess(identity, "the control plane", self._ended)
        self._running = running if running.watch() else None
        return self._running is not None

    def _ended(self) -> None:
        self._running = None
        try:
            self.keep()
        except Exception as error:
            beats.tell(error)
