"""
The node's launchers: started when needed, found again after our own restart, started again when they die.

One launcher for each Python environment, backend, and set of variables that libraries read at import.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cortex import processes
from cortex.agent import channel
from cortex.clock import Clock
from cortex.errors import CortexError
from cortex.ids import ReplicaId
from cortex.processes import ProcessIdentity
from cortex.settings import HomeLayout, Settings
from cortex.version import __version__
from cortex.wire.framing import close_all
from cortex.wire.launch import (
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

log = logging.getLogger(__name__)

IMPORT_TIME_VARIABLES = ("TF_", "ORT_", "OMP_", "OPENBLAS_", "MKL_", "LD_", "MALLOC_", "PYTHON")
"""Prefixes of variables that libraries read when imported, so they must be set before the launcher imports them."""
START_DEADLINE_S = 60.0
"""A cold `import tensorflow` takes 4 s on an idle machine; on a crowded one many times that."""
IDLE_STOP_S = 60.0


class LauncherLost(CortexError):
    """The launcher died while it had our request; the same request may succeed with the next one."""

    reference = "launcher-lost"


class ForkRefused(CortexError):
    """The launcher is well but could not fork; says why."""

    reference = "fork-refused"


class LauncherRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down to find a launcher again."""

    key: str
    backend: str
    variables: dict[str, str]
    identity: ProcessIdentity


def import_time_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Those variables of a handler's environment that only take effect before the launcher's imports."""
    return {name: value for name, value in sorted(env.items()) if name.startswith(IMPORT_TIME_VARIABLES)}


def launcher_key(backend: str, variables: Mapping[str, str]) -> str:
    """Two replicas share a launcher exactly when their keys are equal. 64 hex digits."""
    parts = (sys.executable, __version__, backend, *(f"{k}={v}" for k, v in sorted(variables.items())))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class Launcher:
    """
    One launcher process and our connection to it.

    A dead one is started again by the next request, or by `Launchers.keep` while replicas need it.
    """

    def __init__(
        self,
        key: str,
        backend: str,
        variables: dict[str, str],
        *,
        settings: Settings,
        layout: HomeLayout,
        clock: Clock,
        on_child_exited: Callable[[ChildExited], None],
    ) -> None:
        self.key = key
        self.backend = backend
        self.variables = variables
        self._settings = settings
        self._layout = layout
        self._clock = clock
        self._on_child_exited = on_child_exited
        self._channel: channel.Channel | None = None
        self._connecting = asyncio.Lock()
        self._identity: ProcessIdentity | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._forks: dict[tuple[ReplicaId, int], asyncio.Future[int]] = {}
        self._inspections: dict[str, asyncio.Future[InspectReport]] = {}
        self._inspection_numbers = itertools.count()
        self._closing = False
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

    async def fork(self, spec: ReplicaSpec, slot: socket.socket, control: socket.socket) -> int:
        """
        Fork a replica; returns its pid.

        Raises:
            LauncherLost: the launcher died before it answered; the replica may or may not run.
            ForkRefused: it answered that it could not.
        """
        conn = await self.connection()
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._forks[(spec.replica, spec.attempt)] = future
        try:
            conn.send(msgspec.json.encode(Fork(spec=spec)), (slot.fileno(), control.fileno()))
            return await future
        finally:
            self._forks.pop((spec.replica, spec.attempt), None)

    async def inspect(self, spec: ReplicaSpec, *, model: bool, handler: bool, run_sample: bool) -> InspectReport:
        """Have a short-lived child look at model and handler. Raises LauncherLost."""
        conn = await self.connection()
        request = f"{os.getpid()}-{next(self._inspection_numbers)}"
        future: asyncio.Future[InspectReport] = asyncio.get_running_loop().create_future()
        self._inspections[request] = future
        try:
            message = Inspect(request=request, spec=spec, model=model, handler=handler, run_sample=run_sample)
            conn.send(msgspec.json.encode(message))
            return await future
        finally:
            self._inspections.pop(request, None)

    async def connection(self) -> channel.Channel:
        """
        Our connection, made first if need be, with the process started first if need be.

        Raises:
            LauncherLost: it could not be started; says what it wrote last.
        """
        async with self._connecting:
            self.last_used_s = self._clock.monotonic_s()
            if self._channel is not None and not self._channel.closed:
                return self._channel
            deadline_s = self._clock.monotonic_s() + START_DEADLINE_S
            while True:
                try:
                    self._channel = await channel.connect(
                        self.socket_path, on_frame=self._received, on_close=self._lost, timeout_s=5.0
                    )
                    break
                except OSError:
                    self._ensure_process()
                    if self._clock.monotonic_s() > deadline_s:
                        raise LauncherLost(
                            f"the {self.backend} launcher did not start in {START_DEADLINE_S:.0f} s; "
                            f"see {self.log_file}"
                        ) from None
                    await asyncio.sleep(0.02)
            return self._channel

    @property
    def log_file(self) -> Path:
        return self._layout.logs / f"launcher-{self.backend}-{self.key[:6]}.log"

    def adopt(self, identity: ProcessIdentity) -> None:
        """Take an already running process for ours."""
        self._identity = identity

    async def stop(self) -> None:
        """End the process; its replicas live on."""
        self._closing = True
        if self._channel is not None:
            self._channel.close()
        if self._identity is not None:
            processes.send_signal(self._identity, signal.SIGTERM)
            if not await _gone(self._identity, timeout_s=2.0):
                processes.send_signal(self._identity, signal.SIGKILL)
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)
        self.record_file.unlink(missing_ok=True)
        self.socket_path.unlink(missing_ok=True)

    def _ensure_process(self) -> None:
        if self._closing:
            raise LauncherLost(f"the {self.backend} launcher is stopping")
        if self._process is not None and self._process.poll() is not None:
            self._process = None
        if self._identity is not None and processes.is_alive(self._identity):
            return
        self.socket_path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "cortex.replica.launcher"]
        command += ["--socket", str(self.socket_path), "--home", str(self._settings.home)]
        command += ["--backend", self.backend, "--key", self.key]
        with self.log_file.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={**os.environ, **self.variables},
                start_new_session=True,
            )
        self._identity = processes.identify(self._process.pid)
        if self._identity is not None:
            self.record_file.parent.mkdir(mode=0o700, exist_ok=True)
            record = LauncherRecord(
                key=self.key, backend=self.backend, variables=self.variables, identity=self._identity
            )
            processes.write_identity(self.record_file, record)
        log.info("started the %s launcher, pid %s", self.backend, self._process.pid)

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
        lost = LauncherLost(f"the {self.backend} launcher ended")
        for fork in self._forks.values():
            _settle(fork, lost)
        for inspection in self._inspections.values():
            _settle(inspection, lost)


class Launchers:
    """Every launcher of the node, by key."""

    def __init__(
        self,
        *,
        settings: Settings,
        layout: HomeLayout,
        clock: Clock,
        on_child_exited: Callable[[ChildExited], None],
    ) -> None:
        self._settings = settings
        self._layout = layout
        self._clock = clock
        self._on_child_exited = on_child_exited
        self._launchers: dict[str, Launcher] = {}

    def get(self, backend: str, env: Mapping[str, str]) -> Launcher:
        """The launcher for a backend and a handler's environment; not started yet if it is new."""
        variables = import_time_variables(env)
        return self._by_key(launcher_key(backend, variables), backend, variables)

    async def adopt(self) -> None:
        """Find the launchers that a former agent left running."""
        for file in sorted((self._layout.node / "launchers").glob("*.json")):
            try:
                record = msgspec.json.decode(file.read_bytes(), type=LauncherRecord)
            except (OSError, msgspec.MsgspecError) as error:
                log.warning("a launcher's record cannot be read: %s: %s", file, error)
                continue
            if not processes.is_alive(record.identity):
                file.unlink(missing_ok=True)
            elif record.key != launcher_key(record.backend, record.variables):
                # Of another version of Cortex: its replicas live on, new ones come from a new launcher.
                processes.send_signal(record.identity, signal.SIGTERM)
                file.unlink(missing_ok=True)
            else:
                self._by_key(record.key, record.backend, record.variables).adopt(record.identity)

    def __iter__(self) -> itertools.chain[Launcher]:
        return itertools.chain(tuple(self._launchers.values()))

    async def keep(self, wanted_keys: set[str]) -> None:
        """Start again those that are wanted and died; stop those that nobody has needed for a while."""
        for key, launcher in tuple(self._launchers.items()):
            if key in wanted_keys:
                if not launcher.connected:
                    try:
                        await launcher.connection()
                    except LauncherLost as error:
                        log.error("%s", error)
            elif self._clock.monotonic_s() - launcher.last_used_s > IDLE_STOP_S:
                del self._launchers[key]
                await launcher.stop()

    async def stop(self) -> None:
        await asyncio.gather(*(launcher.stop() for launcher in self._launchers.values()))

    def _by_key(self, key: str, backend: str, variables: dict[str, str]) -> Launcher:
        if key not in self._launchers:
            self._launchers[key] = Launcher(
                key,
                backend,
                variables,
                settings=self._settings,
                layout=self._layout,
                clock=self._clock,
                on_child_exited=self._on_child_exited,
            )
        return self._launchers[key]


_REPLIES: msgspec.json.Decoder[LauncherReply] = msgspec.json.Decoder(LauncherReply)


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
