"""One process of a replica, as long as it is ours to look after: its end, its signals, its use, its control socket."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from cortex import processes
from cortex.agent import peers
from cortex.agent.usage import Usage, UsageMeter
from cortex.ids import ReplicaId
from cortex.processes import ProcessIdentity
from cortex.wire.framing import close_all
from cortex.wire.launch import ChildExited, ReplicaRequest, ReplicaStatus

CONNECT_TIMEOUT_S = 5.0


class Attended:
    """
    A process, from the moment that it is known.

    Args:
        label: for the log.
        on_gone: called once, when a process that is watched has ended.
    """

    def __init__(self, label: str, on_gone: Callable[[], None]) -> None:
        self._label = label
        self._on_gone = on_gone
        self._process: processes.WatchedProcess | None = None
        self._meter: UsageMeter | None = None
        self._line: peers.Peer | None = None
        self.usage = Usage(cpu_s=0.0, rss_bytes=0)
        self.peak_rss_bytes = 0

    def watch(self, identity: ProcessIdentity) -> bool:
        """
        Notice its end. False: it has ended already.

        Raises:
            OSError: we are out of descriptors.
        """
        if self._process is None or not self._process.is_watched:
            self._process = processes.WatchedProcess(identity, self._label, self._gone)
        return self._process.watch()

    def _gone(self) -> None:
        self.let_go()
        self._on_gone()

    def let_go(self) -> None:
        """Its end is no affair of ours any more."""
        self.hang_up()
        if self._process is not None:
            self._process.close()
        if self._meter is not None:
            self._meter.close()
            self._meter = None

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.signal(number)

    def have_go_on(self, now_s: float) -> None:
        """If somebody has stopped it."""
        if self._process is not None:
            self._process.have_go_on(now_s)

    def measure(self) -> None:
        """What it uses now."""
        if self._process is None or not self._process.is_watched:
            return  # it has ended, and nobody would close what is opened now
        if self._meter is None:
            try:
                self._meter = UsageMeter(self._process.identity)
            except OSError:
                return  # it ends just now, or we are out of descriptors
        used = self._meter.read()
        if used is not None:
            self.usage = used
            self.peak_rss_bytes = max(self.peak_rss_bytes, used.rss_bytes)

    # ---- its control socket -------------------------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        return self._line is not None and not self._line.closed

    async def connect(self, path: Path, told: Callable[[ReplicaStatus], None], hung_up: Callable[[], None]) -> None:
        """
        Connect to its control socket.

        Raises:
            OSError: nobody answers there, or we are out of descriptors.
        """

        def received(payload: bytes, fds: list[int]) -> None:
            close_all(fds)
            fds.clear()
            told(_STATUS.decode(payload))

        self.hang_up()
        line = await peers.connect(path, on_frame=received, on_close=hung_up, timeout_s=CONNECT_TIMEOUT_S)
        self._line = line

    def hang_up(self) -> None:
        if self._line is not None:
            line, self._line = self._line, None
            line.close()

    def send(self, request: ReplicaRequest) -> None:
        """Lost where there is no connection."""
        if self._line is not None:
            self._line.send(msgspec.json.encode(request))


def newborn(pid: int) -> ProcessIdentity:
    """Who a child is that its launcher has just told of. One that nobody can look at, and so watch, is ended."""
    identity = processes.identify(pid)
    if identity is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return identity or ProcessIdentity(pid=pid, start_ticks=-1, boot_id=processes.boot_id())


def identity_of(status: ReplicaStatus) -> ProcessIdentity:
    return ProcessIdentity(pid=status.pid, start_ticks=status.start_ticks, boot_id=processes.boot_id())


def end(identity: ProcessIdentity) -> None:
    """One that is nobody's, or somebody else's than it should be. Short of descriptors, it is found again later."""
    with contextlib.suppress(OSError):
        processes.send_signal(identity, signal.SIGKILL)


def others(home: Path, known: set[int]) -> list[tuple[ProcessIdentity, str]]:
    """Processes of replicas of this home beside those that are known by pid, with the ids of their replicas."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) in known:
            continue
        words = processes.command_line(int(name)).split(" ")
        if words[:2] == ["cortex-replica", str(home)] and _leads_session(int(name)):
            identity = processes.identify(int(name))
            found += [(identity, words[-1])] if identity is not None else []
    return found


def _leads_session(pid: int) -> bool:
    """A replica does; what its handler forks bears its name for a moment, and does not."""
    try:
        return os.getsid(pid) == pid
    except OSError:
        return False


def reap(pid: int) -> ChildExited | None:
    """The status of an orphan that became our child when its launcher died."""
    try:
        found, status, used = os.wait4(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    if found == 0:
        return None
    code = os.waitstatus_to_exitcode(status)
    by_signal = -code if code < 0 else None
    return ChildExited(
        pid=pid,
        replica=ReplicaId(""),
        attempt=0,
        code=None if by_signal is not None else code,
        signal=by_signal,
        peak_bytes=processes.peak_bytes(used),
    )


_STATUS = msgspec.json.Decoder(ReplicaStatus)
