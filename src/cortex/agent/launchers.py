"""
The node's launchers: started when needed, found again after our own restart, started again when they die.

One launcher for each lock of users' packages, runtime, and set of variables that libraries read at import.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import math
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cortex import processes
from cortex.agent import peers
from cortex.backoff import Backoff
from cortex.clock import Clock
from cortex.errors import CortexError
from cortex.ids import ReplicaId
from cortex.oom import Rung
from cortex.processes import ProcessIdentity
from cortex.settings import NodeLayout, Settings
from cortex.version import __version__
from cortex.wire.batching import Mode
from cortex.wire.framing import UNREADABLE, close_all
from cortex.wire.launch import (
    EDITION,
    IMPORT_TIME_VARIABLES,
    CallOff,
    ChildExited,
    Fork,
    Forked,
    ForkFailed,
    Inspect,
    Inspected,
    InspectReport,
    LauncherReply,
    ReplicaSpec,
)
from cortex.wire.secrecy import packed as packed_secrets

log = logging.getLogger(__name__)

START_DEADLINE_S = 180.0
"""A cold `import tensorflow` takes 4 s on an idle machine; on a crowded one it took more than a minute."""
IDLE_STOP_S = 60.0
FORK_TIMEOUT_S = 30.0
"""A fork takes milliseconds; a launcher that owes an answer for this long hangs, whatever it seems to do."""
FORK_LOOK_S = 0.25
"""How often a launcher that owes an answer is looked at: one that was stopped is told to go on."""
HANGS_AFTER_S = 3.0
"""One that sleeps for so long over a fork hangs: what a fork waits for is the processor, memory or a disk."""
MAX_STARTS = 3
"""How often a launcher that ends by itself while it starts is started again for one request."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Between two rounds of starts that all failed."""
OUTPUT_LINES = 10
"""How much of what it wrote is shown when it does not start."""


class LauncherLost(CortexError):
    """The launcher died while it had our request; the same request may succeed with the next one."""

    reference = "launcher-lost"


class ForkRefused(CortexError):
    """The launcher is well but could not fork; says why."""

    reference = "fork-refused"


class LauncherRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down to find a launcher again."""

    key: str
    runtime: str = msgspec.field(name="backend")
    variables: dict[str, str]
    identity: ProcessIdentity
    packages: str | None = msgspec.field(default=None, name="environment")


def import_time_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Those of a handler's variables that only take effect before the launcher's imports."""
    return {name: value for name, value in sorted(env.items()) if name.startswith(IMPORT_TIME_VARIABLES)}


def launcher_key(python: Path, runtime: str, variables: Mapping[str, str]) -> str:
    """
    Two replicas share a launcher exactly when their keys are equal. 64 hex digits.

    Args:
        python: the interpreter; of users' packages, its path has the digest of their lock.
    """
    parts = (str(python), __version__, str(EDITION), runtime, *(f"{k}={v}" for k, v in sorted(variables.items())))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Launcher:
    """
    One launcher process and our connection to it.

    A dead one is started again by the next request, or by `Launchers.keep` while replicas need it.
    """

    def __init__(
        self,
        key: str,
        runtime: str,
        variables: dict[str, str],
        *,
        packages: str | None,
        python: Path,
        settings: Settings,
        layout: NodeLayout,
        clock: Clock,
        on_child_exited: Callable[[ChildExited], None],
    ) -> None:
        self.key = key
        self.runtime = runtime
        self.variables = variables
        self.packages = packages
        """Digest of the users' packages that it imports; None: what is installed with us."""
        self._python = python
        self._settings = settings
        self._layout = layout
        self._clock = clock
        self._on_child_exited = on_child_exited
        self._channel: peers.Peer | None = None
        self._connecting = asyncio.Lock()
        self._identity: ProcessIdentity | None = None
        self._pulse: processes.Pulse | None = None
        self._has_listened = False
        """Whether that process is known to have begun to listen."""
        self._process: subprocess.Popen[bytes] | None = None
        self._forks: dict[tuple[ReplicaId, int], asyncio.Future[int]] = {}
        self._inspections: dict[str, asyncio.Future[InspectReport]] = {}
        self._inspection_numbers = itertools.count()
        self._closing = False
        self._backoff = Backoff(first_s=FIRST_PAUSE_S, longest_s=LONGEST_PAUSE_S)
        self._last_failure = ""
        self.last_used_s = clock.monotonic_s()

    @property
    def socket_path(self) -> Path:
        return self._layout.launcher_socket(self.key)

    @property
    def record_file(self) -> Path:
        return self._layout.node / "launchers" / f"{self.key[:12]}.json"

    @property
    def pid(self) -> int | None:
        return self._identity.pid if self._identity else None

    @property
    def connected(self) -> bool:
        return self._channel is not None and not self._channel.closed

    @property
    def can_start(self) -> bool:
        """False while its packages are not installed."""
        return self._python.exists()

    @property
    def in_use(self) -> bool:
        """Somebody waits for an answer, or for the launcher itself."""
        return bool(self._forks or self._inspections or self._connecting.locked())

    async def fork(
        self,
        spec: ReplicaSpec,
        slot: socket.socket,
        control: socket.socket,
        secrets: Mapping[str, str],
        *,
        kept: str = "",
    ) -> int:
        """
        Fork a replica; returns its pid.

        Args:
            secrets: values by variable. The launcher hands them on unread.
            kept: of an inspection: its child is to become the replica, if it is still there.

        Raises:
            LauncherLost: the launcher ended before it answered. The replica may run or not, but no launcher will fork
                it any more.
            ForkRefused: it answered that it could not.
        """
        conn = await self.connection()
        identity = self._identity
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._forks[(spec.replica, spec.attempt)] = future
        try:
            with _packed(secrets) as packed:
                conn.send(msgspec.json.encode(Fork(spec=spec, kept=kept)), (slot.fileno(), control.fileno(), *packed))
            return await self._answer(future, identity)
        except LauncherLost:
            await self._see_ended(identity, conn)
            raise
        finally:
            self._forks.pop((spec.replica, spec.attempt), None)
            self.last_used_s = self._clock.monotonic_s()

    async def _answer(self, future: asyncio.Future[int], identity: ProcessIdentity | None) -> int:
        """The launcher's answer to a fork. Raises LauncherLost: there will be none."""
        asked_s = self._clock.monotonic_s()
        pulse = None if identity is None else self._new_pulse(identity, HANGS_AFTER_S)
        while not (await asyncio.wait([future], timeout=FORK_LOOK_S))[0]:
            silent_s = self._clock.monotonic_s() - asked_s
            if silent_s > FORK_TIMEOUT_S or (pulse is not None and pulse.hangs(self._clock.monotonic_s())):
                future.cancel()
                raise LauncherLost(f"the {self.runtime} launcher did not answer for {silent_s:.1f} s")
        return future.result()

    def look(self) -> None:
        """Have it go on if somebody has stopped it. To be called every now and then while it owes something."""
        identity = self._identity
        if identity is None:
            return
        if self._pulse is None or self._pulse.identity != identity:
            self._pulse = self._new_pulse(identity, math.inf)
        self._pulse.hangs(self._clock.monotonic_s())

    def _new_pulse(self, identity: ProcessIdentity, hangs_after_s: float) -> processes.Pulse:
        return processes.Pulse(identity, f"the {self.runtime} launcher", hangs_after_s=hangs_after_s)

    async def inspect(
        self,
        spec: ReplicaSpec,
        secrets: Mapping[str, str],
        *,
        model: bool,
        handler: bool,
        rows: Mode = "off",
        keep: bool = False,
    ) -> InspectReport:
        """Have a short-lived child look at model and handler, and keep it if that is asked for. Raises LauncherLost."""
        conn = await self.connection()
        identity = self._identity
        request = f"{os.getpid()}-{next(self._inspection_numbers)}"
        future: asyncio.Future[InspectReport] = asyncio.get_running_loop().create_future()
        self._inspections[request] = future
        try:
            message = Inspect(request=request, spec=spec, keep=keep, model=model, handler=handler, rows=rows)
            with _packed(secrets) as packed:
                conn.send(msgspec.json.encode(message), packed)
            return await future
        except asyncio.CancelledError:
            self.call_off(request)
            raise
        except LauncherLost:
            await self._see_ended(identity, conn)  # only then are its children ours, and can be ended
            raise
        finally:
            self._inspections.pop(request, None)
            self.last_used_s = self._clock.monotonic_s()

    def call_off(self, request: str) -> None:
        """Nobody waits for this inspection, or for what was kept of it. Of a lost launcher there is none."""
        if self._channel is not None and not self._channel.closed:
            self._channel.send(msgspec.json.encode(CallOff(request=request)))

    async def connection(self) -> peers.Peer:
        """
        Our connection, made first if need be, with the process started first if need be.

        Raises:
            LauncherLost: it could not be started; says what it wrote last.
            OSError: this machine has no room for another process or file.
        """
        async with self._connecting:
            self.last_used_s = self._clock.monotonic_s()
            if self._channel is not None and not self._channel.closed:
                return self._channel
            if self._backoff.wait_s(self._clock.monotonic_s()):
                raise LauncherLost(self._last_failure)
            try:
                self._channel = await self._connected()
            except LauncherLost as error:
                self._backoff.note_failure(self._clock.monotonic_s())
                self._last_failure = str(error)
                raise
            self._backoff.note_success()
            self._learn_identity(self._channel.listener_pid)
            self._has_listened = True
            return self._channel

    async def _connected(self) -> peers.Peer:
        deadline_s = self._clock.monotonic_s() + START_DEADLINE_S
        starts = 0
        while True:
            try:
                return await peers.connect(
                    self.socket_path, on_frame=self._received, on_close=self._lost, timeout_s=5.0
                )
            except (ConnectionRefusedError, FileNotFoundError):
                if self._has_listened:  # somebody has told it to end: it lives for its children, and forks no more
                    self._identity = self._process = None
            except OSError:
                pass
            if self._closing:
                raise LauncherLost(f"the {self.runtime} launcher is stopping")
            if not self._runs():
                if starts == MAX_STARTS:
                    raise LauncherLost(f"the {self.runtime} launcher ends as soon as it is started; {self._output()}")
                self._start_process()
                starts += 1
            if self._clock.monotonic_s() > deadline_s:
                raise LauncherLost(
                    f"the {self.runtime} launcher did not start in {START_DEADLINE_S:.0f} s; {self._output()}"
                )
            await asyncio.sleep(0.02)

    async def meet(self) -> None:
        """
        Connect to the process that was adopted, if it answers; starts none.

        It then tells at once how replicas ended while there was no agent.
        """
        async with self._connecting:
            with contextlib.suppress(OSError):
                self._channel = await peers.connect(
                    self.socket_path, on_frame=self._received, on_close=self._lost, timeout_s=2.0
                )
                self._learn_identity(self._channel.listener_pid)
                self._has_listened = True

    @property
    def log_file(self) -> Path:
        return self._layout.logs / f"launcher-{self.runtime}-{self.key[:6]}.log"

    def adopt(self, identity: ProcessIdentity) -> None:
        """Take an already running process for ours."""
        self._identity, self._has_listened = identity, True

    async def stop(self, *, for_good: bool) -> None:
        """
        End the process. Its replicas live on, and it lives until the last of them has ended, unless it is killed.

        Args:
            for_good: it is not to be started again, not even for who waits for it already.
        """
        self._closing = self._closing or for_good
        async with self._connecting:
            if self._channel is not None:
                self._channel.close()
            if self._identity is not None:
                processes.send_signal(self._identity, signal.SIGTERM)
                if not await _gone(self._identity, timeout_s=2.0) and for_good:
                    processes.send_signal(self._identity, signal.SIGKILL)
                self._identity = None
            if self._process is not None and for_good:
                await asyncio.to_thread(self._process.wait)
            self.collect()
            self._process = None
            self.record_file.unlink(missing_ok=True)
            self.socket_path.unlink(missing_ok=True)

    def collect(self) -> None:
        """Collect the end of a process that was our child."""
        if self._process is not None and self._process.poll() is not None:
            self._process = None

    def _runs(self) -> bool:
        """Whether our process is there, be it still starting."""
        runs = self._identity is not None and processes.is_alive(self._identity)
        self.collect()  # after that look: who was found dead is collected before another one takes its place
        return runs

    async def _see_ended(self, identity: ProcessIdentity | None, conn: peers.Peer) -> None:
        """A launcher that we lost must not go on: it might fork what we then have forked by another one."""
        conn.close()
        if identity is not None and not await _gone(identity, timeout_s=0.1):
            processes.send_signal(identity, signal.SIGKILL)
            await _gone(identity, timeout_s=5.0)

    def _learn_identity(self, pid: int) -> None:
        """Who answers may be another process than the one that we started: one that a former agent did."""
        if self._identity is None or self._identity.pid != pid:
            self._identity = processes.identify(pid)
            self._write_record()

    def _start_process(self) -> None:
        self.socket_path.unlink(missing_ok=True)
        options = ["--socket", str(self.socket_path), "--home", str(self._settings.home)]
        options += ["--backend", self.runtime, "--key", self.key]
        command = processes.module_command("cortex.replica.launcher", *options, python=str(self._python))
        environ = {**self._inherited(), **self.variables}
        self._process = processes.spawn(command, output=self.log_file, environ=environ, by=Rung.NODE, to=Rung.LAUNCHER)
        self._identity, self._has_listened = processes.identify(self._process.pid), False
        self._write_record()
        log.info("started the %s launcher, pid %s", self.runtime, self._process.pid)

    def _inherited(self) -> dict[str, str]:
        """Our variables; for users' packages without what would put other packages in their way."""
        if self.packages is None:
            return dict(os.environ)
        return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}

    def _write_record(self) -> None:
        """Only so that a launcher that nobody needs any more is found and ended; its socket's path says the rest."""
        if self._identity is None:
            return
        record = LauncherRecord(
            key=self.key,
            runtime=self.runtime,
            variables=self.variables,
            identity=self._identity,
            packages=self.packages,
        )
        try:
            self.record_file.parent.mkdir(mode=0o700, exist_ok=True)
            processes.write_identity(self.record_file, record)
        except OSError as error:
            log.warning("%s cannot be written: %s", self.record_file, error)

    def _output(self) -> str:
        """What it wrote last, and where the rest is."""
        try:
            with self.log_file.open("rb") as stream:
                stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4096))
                lines = stream.read().decode("utf-8", "backslashreplace").rstrip().splitlines()[-OUTPUT_LINES:]
        except OSError:
            lines = []
        said = "\n".join(lines)
        return f"it wrote to {self.log_file}:\n{said}" if said else f"see {self.log_file}"

    def _received(self, payload: bytes, fds: list[int]) -> None:
        message = _REPLIES.decode(payload)
        match message:
            case Forked(replica=replica, attempt=attempt, pid=pid):
                _settle(self._forks.get((replica, attempt)), pid)
            case ForkFailed(replica=replica, attempt=attempt, reason=reason):
                _settle(self._forks.get((replica, attempt)), ForkRefused(reason))
            case ChildExited():
                self._on_child_exited(message)
            case Inspected(request=request, report=report):
                _settle(self._inspections.get(request), report)
        close_all(fds)

    def _lost(self) -> None:
        self._channel = None
        lost = LauncherLost(f"the {self.runtime} launcher ended")
        for fork in self._forks.values():
            _settle(fork, lost)
        for inspection in self._inspections.values():
            _settle(inspection, lost)


class Launchers:
    """
    Every launcher of the node, by key.

    Args:
        python: the interpreter for users' packages, by the digest of their lock; for None, the one that runs us.
    """

    def __init__(
        self,
        *,
        python: Callable[[str | None], Path],
        settings: Settings,
        layout: NodeLayout,
        clock: Clock,
        on_child_exited: Callable[[ChildExited], None],
    ) -> None:
        self._python = python
        self._settings = settings
        self._layout = layout
        self._clock = clock
        self._on_child_exited = on_child_exited
        self._launchers: dict[tuple[str, tuple[tuple[str, str], ...], str | None], Launcher] = {}
        """By runtime, variables and packages: their keys are digests of these, too dear to be made for each look."""

    def get(self, runtime: str, env: Mapping[str, str], packages: str | None = None) -> Launcher:
        """
        The launcher for a runtime and a handler's variables and packages; not started yet if it is new.

        Args:
            packages: digest of the lock of users' packages, which must be there before the launcher is used.
        """
        return self._by_key(runtime, import_time_variables(env), packages)

    async def adopt(self) -> None:
        """Find the launchers that a former agent left running."""
        for file in sorted((self._layout.node / "launchers").glob("*.json")):
            try:
                record = msgspec.json.decode(file.read_bytes(), type=LauncherRecord)
            except (OSError, *UNREADABLE) as error:
                log.warning("a launcher's record cannot be read and is dropped: %s: %s", file, error)
                file.unlink(missing_ok=True)
                continue
            if not processes.is_alive(record.identity):
                file.unlink(missing_ok=True)
                self._layout.launcher_socket(record.key).unlink(missing_ok=True)
            elif record.key != launcher_key(self._python(record.packages), record.runtime, record.variables):
                # Of another version of Cortex: its replicas live on, new ones come from a new launcher.
                processes.send_signal(record.identity, signal.SIGTERM)
                file.unlink(missing_ok=True)
            else:
                self._by_key(record.runtime, record.variables, record.packages).adopt(record.identity)
        await asyncio.gather(*(launcher.meet() for launcher in self))

    def __iter__(self) -> Iterator[Launcher]:
        return iter(tuple(self._launchers.values()))

    async def keep(self, wanted_keys: set[str]) -> None:
        """Start again those that are wanted and died; stop those that nobody has needed for a while."""
        works = []
        for launcher in self:
            launcher.collect()
            if launcher.in_use:
                launcher.look()
            if launcher.key in wanted_keys:
                if not launcher.connected and launcher.can_start:
                    works.append(_reconnect(launcher))
            elif (
                launcher.pid is not None
                and not launcher.in_use
                and self._clock.monotonic_s() - launcher.last_used_s > IDLE_STOP_S
            ):
                works.append(launcher.stop(for_good=False))
        await asyncio.gather(*works)

    async def stop(self) -> None:
        await asyncio.gather(*(launcher.stop(for_good=True) for launcher in self))

    def _by_key(self, runtime: str, variables: dict[str, str], packages: str | None) -> Launcher:
        asked = (runtime, tuple(sorted(variables.items())), packages)
        if asked not in self._launchers:
            python = self._python(packages)
            self._launchers[asked] = Launcher(
                launcher_key(python, runtime, variables),
                runtime,
                variables,
                packages=packages,
                python=python,
                settings=self._settings,
                layout=self._layout,
                clock=self._clock,
                on_child_exited=self._on_child_exited,
            )
        return self._launchers[asked]


_REPLIES: msgspec.json.Decoder[LauncherReply] = msgspec.json.Decoder(LauncherReply)


@contextlib.contextmanager
def _packed(secrets: Mapping[str, str]) -> Iterator[tuple[int, ...]]:
    """A descriptor that holds secrets, if there are any."""
    if not secrets:
        yield ()
        return
    descriptor = packed_secrets(secrets)
    try:
        yield (descriptor,)
    finally:
        os.close(descriptor)


async def _reconnect(launcher: Launcher) -> None:
    try:
        await launcher.connection()
    except (LauncherLost, OSError) as error:
        log.error("%s", error)


def _settle(future: asyncio.Future[Any] | None, outcome: Any) -> None:
    if future is None or future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


async def _gone(identity: ProcessIdentity, *, timeout_s: float) -> bool:
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while processes.is_alive(identity):
        if asyncio.get_running_loop().time() > deadline_s:
            return False
        await asyncio.sleep(0.02)
    return True
