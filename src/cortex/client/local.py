"""
The environment on this machine: find it, start what is missing, stop it, remove its files.

A control plane is known by what it wrote about itself in the home: pid, start time and boot. A recycled pid is never
taken for ours. Starting and stopping hold a lock, so that two commands at once make one control plane.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from cortex.client import nodeports, ports
from cortex.client.errors import (
    ControlPlaneNotUp,
    NeverUp,
    NodesRunning,
    OperatorDown,
    OperatorFailed,
    OperatorUnreachable,
    StopFailed,
)
from cortex.client.operator import OperatorClient
from cortex.clock import Clock, SystemClock
from cortex.errors import CortexError
from cortex.processes import ControlPlaneRecord, ProcessIdentity, ends_within, identify, is_alive, send_signal, spawn
from cortex.settings import OPERATOR_HOST, ControlLayout, NodeLayout, Settings, variables_of
from cortex.wire import localnodes
from cortex.wire.cloud import without_clouds
from cortex.wire.localnodes import LocalNode

if TYPE_CHECKING:
    import subprocess

START_TIMEOUT_S = 60.0
"""Usually a second; twenty were seen on a machine with too much to do. A process that ends is told at once."""
STOP_GRACE_S = 15.0
"""On top of the drain timeout: for processes to end after their replicas have."""
KILL_GRACE_S = 5.0
"""Between SIGTERM and SIGKILL."""
PROBE_TIMEOUT_S = 5.0
"""A control plane that does not say who it is within this time is taken for hung."""
POLL_S = 0.02
"""How often a starting control plane is looked for."""
OUTPUT_LINES = 15
"""How much of a failed start's output is shown."""

ROOM_TO_START_BYTES = 2**20
"""Less than this free, and a start that failed failed for that."""

ALSO_OURS = frozenset({"agent.lock", "controlplane.lock", "hashes.json"})
"""Files in the home that the layout does not name."""
DATABASE_ENDINGS = ("-wal", "-shm", "-journal")

CONTROLPLANE_COMMAND = (sys.executable, "-P", "-m", "cortex.controlplane")
"""`-P`: the working directory is `/`, and nothing there is ours to import."""
SWEEPS = 5
"""What dies last may have started something before: so often `stop` looks for what runs and ends it."""


Record = TypeVar("Record", bound=ProcessIdentity)


@dataclass(frozen=True)
class Stopped:
    """What `stop` found and did."""

    was_running: bool
    killed: tuple[int, ...] = ()
    """Pids of processes that did not end by themselves."""


class NotOursAlone(CortexError):
    """Removing our files would be a risk: the home is a folder that holds other things by its nature."""

    reference = "not-ours-alone"

    def __init__(self, home: Path) -> None:
        self.home = home
        self.hint = "remove what you do not need by hand"
        super().__init__(f"{home} is not a folder of Cortex alone: nothing in it was removed")


class LocalEnvironment:
    """
    Cortex in one home on this machine.

    Args:
        environ: what a started control plane inherits.
        say: told in a sentence whatever a user may want to know, e.g. that a port had to move.
        command: starts a control plane.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environ: Mapping[str, str],
        say: Callable[[str], None] = lambda _sentence: None,
        clock: Clock | None = None,
        command: Sequence[str] = CONTROLPLANE_COMMAND,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self.layout = ControlLayout(settings.home)
        self._environ = environ
        self._say = say
        self._clock = clock or SystemClock()
        self._command = tuple(command)
        self._sleep = sleep

    def control_plane(self) -> ControlPlaneRecord | None:
        """The control plane that runs; None when none does."""
        return _running(self.layout.controlplane_file, ControlPlaneRecord)

    def nodes(self) -> tuple[NodeLayout, ...]:
        """Homes of this machine's nodes: the home itself, and those that it has for nodes of their own."""
        try:
            names = sorted(os.listdir(self.layout.nodes))
        except (FileNotFoundError, NotADirectoryError):
            names = []
        return (NodeLayout(self.settings.home), *(NodeLayout(self.layout.nodes / name) for name in names))

    def agents(self) -> dict[NodeLayout, ProcessIdentity]:
        """Those that run."""
        found = {node: _running(node.agent_file, ProcessIdentity) for node in self.nodes()}
        return {node: agent for node, agent in found.items() if agent is not None}

    @property
    def is_marked_down(self) -> bool:
        """Whether `cortex down` was the last word."""
        return self.layout.down_mark.exists()

    @property
    def was_ever_up(self) -> bool:
        """False in a home that nothing was ever started in."""
        return self.layout.state_file.exists() or self.layout.controlplane_file.exists()

    def connect(self) -> OperatorClient:
        """
        A client of the control plane that runs; starts nothing.

        Raises:
            OperatorDown: after `cortex down`.
            OperatorUnreachable: it does not run, or its token cannot be read.
        """
        record = self.control_plane()
        if record is not None:
            return self._client(record)
        if self.is_marked_down:
            raise OperatorDown(self.settings.home)
        raise OperatorUnreachable("", f"it does not run (home {self.settings.home})")

    def look(self) -> OperatorClient:
        """As `ensure`, for whoever only looks: in a home that was never used nothing is begun. Raises also NeverUp."""
        if not self.was_ever_up and not self.is_marked_down:
            raise NeverUp(self.settings.home)
        return self.ensure()

    @property
    def node_count(self) -> int:
        """How many nodes this machine is, or was when it last ran."""
        return max(1, len(localnodes.read(self.layout.nodes_file)))

    def ensure(self, *, even_if_down: bool = False, nodes: int | None = None) -> OperatorClient:
        """
        A client of the control plane, which is started when it does not run.

        Args:
            even_if_down: start also after `cortex down`, and take its mark away.
            nodes: how many nodes this machine is to be; None: as many as it was.

        Raises:
            NodesRunning: it runs as another number of them.
            OperatorDown: after `cortex down`.
            PortTaken: a port that was set is in use.
            StartFailed: it ended, or did not answer in time; carries its last words.
            UnusableHome: the home cannot be used.
        """
        marked = self.is_marked_down
        record = self.control_plane()
        if record is not None and not marked:
            self._check_nodes(nodes)
            return self._client(record)
        if marked and not even_if_down:
            if record is not None:  # it is on its way down, or `down` was interrupted: it can still be asked
                return self._client(record)
            raise OperatorDown(self.settings.home)
        self.layout.prepare()
        with self._locked():
            record = self.control_plane()
            if record is not None and self.is_marked_down:
                record = self._still_up(record)
            if record is not None or self.agents():
                self._check_nodes(nodes)
            if record is None:
                record = self._start(nodes or self.node_count)
            self.layout.down_mark.unlink(missing_ok=True)
        return self._client(record)

    def stop(self, *, drain_timeout_s: float = 30.0) -> Stopped:
        """
        End everything of this home: replicas finish what they hold, then all processes end.

        The mark comes first: an interrupted stop is not undone by the next command, and nothing restarts what ends.

        Raises:
            StopFailed: something runs on even though it was killed.
        """
        if not self.settings.home.is_dir():
            return Stopped(was_running=False)
        with self._locked():
            self._mark_down()
            running = self._processes()
            if running and self._asked_to_stop(drain_timeout_s):
                self._wait_for_end(running, drain_timeout_s + STOP_GRACE_S)
            killed = self._end(drain_timeout_s) if self._processes() else []
            for _ in range(SWEEPS):
                left = (*self._processes(), *self._left_behind())
                if not left:
                    break
                killed += self._kill(left)
            else:
                raise StopFailed(tuple(process.pid for process in left))
            return Stopped(was_running=bool(running or killed), killed=tuple(killed))

    def purge(self) -> tuple[str, ...]:
        """
        Remove our own files from the home, and the home if nothing else is in it.

        Returns:
            Names in the home that are not ours and were left alone.

        Raises:
            NotOursAlone: the home is `/`, the user's home folder or one above it.
        """
        home = self.settings.home
        if home == Path("/") or Path(os.path.expanduser("~")).is_relative_to(home):
            raise NotOursAlone(home)
        if not home.is_dir():
            return ()
        folders = {layout.sockets for layout in (self.layout, *self.nodes())}
        sockets_elsewhere = [folder for folder in folders if not folder.is_relative_to(home)]
        for entry in sorted(home.iterdir()):
            if self._is_ours(entry.name):
                _remove(entry)
        for sockets in sockets_elsewhere:
            _remove(sockets)
        left = tuple(sorted(entry.name for entry in home.iterdir()))
        if not left:
            home.rmdir()
        return left

    def _client(self, record: ControlPlaneRecord) -> OperatorClient:
        url = f"http://{OPERATOR_HOST}:{record.operator_port}"
        try:
            token = self.layout.token_file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise OperatorUnreachable(url, f"its token cannot be read ({error})") from error
        return OperatorClient(host=OPERATOR_HOST, port=record.operator_port, token=token)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        file = self.layout.lock_file
        while True:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._say("another command is starting or stopping cortex: waiting for it")
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
                try:
                    same = os.path.samestat(os.fstat(descriptor), os.stat(file))
                except FileNotFoundError:  # it was purged while we waited: lock the new one
                    same = False
                if same:
                    yield
                    return
            finally:
                os.close(descriptor)

    def _still_up(self, record: ControlPlaneRecord) -> ControlPlaneRecord | None:
        """A control plane that runs in spite of the mark: is it on its way down? None once it is."""
        try:
            self._client(record).info(timeout_s=PROBE_TIMEOUT_S)
        except (OperatorUnreachable, OperatorFailed):
            self._say("the last `cortex down` is still at work: waiting for it")
            left = self._wait_for_end([record], self.settings.drain_timeout_s + STOP_GRACE_S)
            if left:
                self._end(0.0)
            return None
        return record

    def _check_nodes(self, wanted: int | None) -> None:
        if wanted is not None and wanted != self.node_count:
            raise NodesRunning(self.node_count, wanted)

    def _start(self, nodes: int) -> ControlPlaneRecord:
        log = self.layout.logs / "controlplane.out"
        with ExitStack() as handed_on:  # bound until those who serve there have them
            sockets: list[socket.socket] = []

            def take(host: str, port: int) -> bool:
                sock = ports.bound(host, port)
                if sock is not None:
                    sockets.append(handed_on.enter_context(sock))
                return sock is not None

            chosen = ports.choose(
                self.settings,
                ports.read_remembered(self.layout.ports_file),
                take=take,
                holder=ports.holder,
                is_ours=lambda holder: ports.belongs_to(self.settings.home, holder),
                say=self._say,
            )
            ports.remember(self.layout.ports_file, self.settings, chosen)
            settings = msgspec.structs.replace(self.settings, port=chosen.port, operator_port=chosen.operator_port)

            def claim(host: str, port: int) -> int:
                if port and not take(host, port):
                    holder = ports.holder(port)
                    if holder is not None and ports.belongs_to(self.settings.home, holder):
                        return port
                    port = 0
                if not port and not take(host, 0):
                    raise ports.NoFreePort(1, 65535)
                return port or int(sockets[-1].getsockname()[1])

            several: tuple[LocalNode, ...] = ()
            if nodes > 1:
                before = localnodes.read(self.layout.nodes_file)
                several = nodeports.chosen(nodes, before, host=settings.host, port=settings.port, claim=claim)
            localnodes.remember(self.layout.nodes_file, several)
            environ = _inherited(self._environ) | variables_of(settings)

            self._say(f"starting cortex in {self.settings.home}")
            begin = log.stat().st_size if log.exists() else 0
            process = spawn(self._command, output=log, environ=environ, sockets=sockets)
        try:
            return self._await_answer(process, log, begin)
        finally:
            if process.returncode is None:
                process.returncode = 0  # it outlives us: keeps Popen from warning about it

    def _await_answer(self, process: subprocess.Popen[bytes], log: Path, begin: int) -> ControlPlaneRecord:
        import subprocess

        deadline_s = self._clock.monotonic_s() + START_TIMEOUT_S
        while True:
            record = self.control_plane()
            if record is not None:
                try:
                    self._client(record).info(timeout_s=PROBE_TIMEOUT_S)
                    return record
                except OperatorUnreachable:
                    pass
            if self._clock.monotonic_s() > deadline_s:
                reason = f"no answer within {START_TIMEOUT_S:.0f} s (pid {process.pid})"
                raise self._start_failed(reason, log, begin)
            if process.returncode is not None:
                self._sleep(POLL_S)
                continue
            try:
                code = process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                continue
            if code:  # 0: the agent was faster and started one, which is about to say where it is
                raise self._start_failed(_how_it_ended(code), log, begin)

    def _start_failed(self, reason: str, log: Path, begin: int) -> ControlPlaneNotUp:
        """Why it did not start: what it wrote, or that there was no room to write anything."""
        output, hint = _last_lines(log, begin), ""
        if is_full(self.settings.home):
            reason += f", and the disk of {self.settings.home} is full"
            hint = "free space there, or set CORTEX_HOME to a folder on another disk"
        return ControlPlaneNotUp(reason, output=output, log=log, hint=hint)

    def _mark_down(self) -> None:
        descriptor = os.open(self.layout.down_mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(descriptor)

    def _processes(self) -> list[ProcessIdentity]:
        control_plane = self.control_plane()
        return [*([control_plane] if control_plane is not None else ()), *self.agents().values()]

    def _asked_to_stop(self, drain_timeout_s: float) -> bool:
        """Ask the control plane to end everything. False when it cannot be asked."""
        record = self.control_plane()
        if record is None:
            return False
        try:
            operator = self._client(record)
            operator.info(timeout_s=PROBE_TIMEOUT_S)
        except CortexError:
            return False
        try:
            operator.stop(drain_timeout_s=drain_timeout_s)
        except OperatorUnreachable:
            pass  # it may end faster than it answers; whether it ends is what counts
        except CortexError:
            return False
        return True

    def _end(self, drain_timeout_s: float) -> list[int]:
        """End what does not end when asked nicely, each by the identity that it wrote down. Returns what was hit."""
        hit: list[int] = []
        record = self.control_plane()
        if record is not None:
            self._say(f"the control plane does not answer: ending it (pid {record.pid})")
            hit += self._kill([record])
        from cortex.wire.stopping import tell_to_stop  # seldom needed, and not quickly imported

        asked = [
            agent
            for node, agent in self.agents().items()
            if tell_to_stop(node.agent_socket, drain_timeout_s, patience_s=PROBE_TIMEOUT_S)
        ]
        self._wait_for_end(asked, drain_timeout_s + KILL_GRACE_S)
        return hit + self._kill(self._processes())

    def _kill(self, processes: Iterable[ProcessIdentity]) -> list[int]:
        processes = [process for process in processes if send_signal(process, signal.SIGTERM)]
        for process in self._wait_for_end(processes, KILL_GRACE_S):
            send_signal(process, signal.SIGKILL)
        self._wait_for_end(processes, KILL_GRACE_S)
        return [process.pid for process in processes]

    def _left_behind(self) -> list[ProcessIdentity]:
        """Processes of this home that lost whoever would have ended them: ours by user, title and home."""
        import psutil

        found = []
        for process in psutil.process_iter(["pid", "cmdline", "uids"]):
            facts: dict[str, Any] = process.info
            command = " ".join(facts["cmdline"] or ())
            if facts["uids"] is None or facts["uids"].real != os.getuid():
                continue
            # The last is one that was just started and has yet to take its title.
            named = command.startswith("cortex-") or "haproxy" in command.partition(" ")[0] or " -m cortex." in command
            holder = ports.Holder(pid=facts["pid"], name="", command=command)
            identity = identify(facts["pid"])
            if named and identity is not None and ports.belongs_to(self.settings.home, holder):
                found.append(identity)
        return found

    def _wait_for_end(self, processes: Sequence[ProcessIdentity], timeout_s: float) -> list[ProcessIdentity]:
        """Wait until all have ended or the time is up; returns those that still run."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        left = []
        for process in processes:
            if not ends_within(process, deadline_s - self._clock.monotonic_s()):
                left.append(process)
        return left

    def _is_ours(self, name: str) -> bool:
        ours = {path.name for path in layout_entries(self.settings.home)}
        database = self.layout.state_file.name
        if name in ours or name in ALSO_OURS or name in {f"{database}{end}" for end in DATABASE_ENDINGS}:
            return True
        return name.startswith(".") and name.endswith(".tmp") and any(name.startswith(f".{own}.") for own in ours)


def is_full(folder: Path) -> bool:
    """Whether next to nothing can be written there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize < ROOM_TO_START_BYTES


def layout_entries(home: Path) -> tuple[Path, ...]:
    """Every file and folder that control plane and node have directly in a home that both share."""
    layouts: tuple[ControlLayout | NodeLayout, ...] = (ControlLayout(home), NodeLayout(home))
    paths = {
        getattr(layout, name)
        for layout in layouts
        for name in dir(layout)
        if isinstance(getattr(type(layout), name, None), property)
    }
    return tuple(sorted(path for path in paths if path.parent == home))


def _running(file: Path, kind: type[Record]) -> Record | None:
    """What a process wrote about itself, if exactly that process still runs."""
    try:
        record = msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None
    return record if is_alive(record) else None


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    """
    The user's environment for a process of ours that runs in `/`: relative entries of PYTHONPATH would be lost, and
    handlers are not to get the cloud credentials of whoever happened to start Cortex.
    """
    inherited = without_clouds(environ)  # a deploy hands over what its models and handlers need
    if inherited.get("PYTHONPATH"):
        entries = inherited["PYTHONPATH"].split(os.pathsep)
        inherited["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in entries if entry)
    return inherited


def _last_lines(log: Path, begin: int) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(begin)
            text = stream.read().decode("utf-8", "backslashreplace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-OUTPUT_LINES:])


def _how_it_ended(code: int) -> str:
    return f"it ended with exit code {code}" if code >= 0 else f"it was ended by signal {-code}"


def _remove(path: Path) -> None:
    """Remove a file or a folder of ours, read-only ones too; of a link only the link."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    import shutil

    for folder, _folders, _files in os.walk(path):  # the artifact store's folders are read-only
        mode = os.stat(folder).st_mode
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            os.chmod(folder, mode | stat.S_IRWXU)
    shutil.rmtree(path)
