"""A real launcher, real sockets, and a small HTTP client: what the tests and bench/replica.py drive replicas with."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import orjson
import pytest

from cortex.ids import ApiKey, ReplicaId, Revision, Version
from cortex.processes import ProcessIdentity, identify, is_alive, send_signal
from cortex.testing.builders import a_sample_at_hand
from cortex.wire.framing import receive_frame, send_frame
from cortex.wire.launch import (
    Ask,
    Drain,
    Fork,
    Forked,
    ForkFailed,
    Inspect,
    Inspected,
    InspectReport,
    LauncherReply,
    LauncherRequest,
    ReplicaRequest,
    ReplicaSpec,
    ReplicaStatus,
)
from cortex.wire.logline import LoggedLine, parse_line
from cortex.wire.reports import Phase
from cortex.wire.secrecy import packed
from cortex.wire.stats import EXIT_FILE_SUFFIX, LastWords, StatsFile

DEADLINE_S = 60.0
"""For anything to happen; generous, since the machine may be busy."""
LAUNCHER_DEADLINE_S = 100.0
"""Importing tensorflow takes 4 s on an idle machine, three times that while its modules are not compiled yet, and more
than a minute where a dozen processes share two cores."""
T = TypeVar("T")

either_birth = pytest.mark.parametrize("birth", ["forked", "kept"], indirect=True)
"""For tests of what holds of a replica however it began."""


def eventually(look: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Look until there is something to see."""
    until = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.005)


def connected(path: Path, timeout_s: float) -> socket.socket:
    """A connection to a unix socket. Raises OSError, and leaves nothing open then."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock


def can_connect(path: Path) -> bool:
    """Whether somebody listens at a unix socket."""
    try:
        connected(path, DEADLINE_S).close()
    except OSError:
        return False
    return True


@dataclass
class Answer:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Client:
    """One HTTP connection over a unix socket, nothing but the bytes one asks for."""

    def __init__(self, path: Path, timeout_s: float = DEADLINE_S) -> None:
        self.sock = connected(path, timeout_s)
        self._buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def post(self, body: bytes, headers: dict[str, str] | None = None, target: str = "/t/a") -> Answer:
        self.send(request(body, headers, target))
        return self.receive()

    def get(self, method: str = "GET", target: str = "/t/a") -> Answer:
        self.send(f"{method} {target} HTTP/1.1\r\nhost: localhost:8880\r\n\r\n".encode())
        return self.receive(has_body=method != "HEAD")

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self, *, has_body: bool = True) -> Answer:
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines:
            name, _, value = line.partition(": ")
            assert name not in headers, f"{name} twice"
            headers[name] = value
        length = int(headers.get("content-length", 0)) if has_body else 0
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Answer(int(status_line.split()[1]), headers, body)

    def at_end(self) -> bool:
        """Whether the server has closed the connection; waits for it."""
        try:
            return not self._buffer and self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def _more(self) -> None:
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError(f"closed after {self._buffer!r}")
        self._buffer += data


def request(body: bytes, headers: dict[str, str] | None = None, target: str = "/t/a") -> bytes:
    lines = [f"POST {target} HTTP/1.1", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Control:
    """A connection to a replica's control socket."""

    def __init__(self, path: Path, timeout_s: float = DEADLINE_S) -> None:
        self.sock = connected(path, timeout_s)

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, message: ReplicaRequest) -> None:
        send_frame(self.sock, msgspec.json.encode(message))

    def status(self) -> ReplicaStatus:
        """The next status that is pushed."""
        payload, fds = receive_frame(self.sock)
        assert not fds
        return msgspec.json.decode(payload, type=ReplicaStatus)

    def ask(self) -> ReplicaStatus:
        self.send(Ask())
        return self.status()

    def until(self, accept: Callable[[ReplicaStatus], bool]) -> ReplicaStatus:
        while True:
            status = self.status()
            if accept(status):
                return status


class LauncherLink:
    """A connection to a launcher, as an agent has one."""

    def __init__(self, path: Path) -> None:
        self.sock = connected(path, LAUNCHER_DEADLINE_S)  # it may import what was missing before it answers
        self.received: list[LauncherReply] = []

    def send(self, message: LauncherRequest, fds: Sequence[int] = ()) -> None:
        send_frame(self.sock, msgspec.json.encode(message), fds)

    def next(self) -> tuple[LauncherReply, list[int]]:
        payload, fds = receive_frame(self.sock)
        return msgspec.json.decode(payload, type=LauncherReply), fds

    def wait_for(self, kind: type[T], accept: Callable[[T], bool] = lambda _: True) -> T:
        """The first message of a kind, now or earlier, that was not taken yet."""
        for message in self.received:
            if isinstance(message, kind) and accept(message):
                self.received.remove(message)
                return message
        while True:
            message, _ = self.next()
            if isinstance(message, kind) and accept(message):
                return message
            self.received.append(message)

    def inspect(self, spec: ReplicaSpec, *, secrets: dict[str, str] | None = None, **options: Any) -> InspectReport:
        mark = os.urandom(4).hex()
        with packed_secrets(secrets) as packed:
            self.send(Inspect(request=mark, spec=spec, **options), packed)
        return self.wait_for(Inspected, lambda reply: reply.request == mark).report

    def close(self) -> None:
        self.sock.close()


@dataclass
class Replica:
    """A replica that was forked, with its sockets, which we hold as an agent does."""

    spec: ReplicaSpec
    slot: socket.socket
    pid: int = 0
    identity: ProcessIdentity | None = None
    """None: it had ended before anybody could look."""

    @property
    def slot_path(self) -> Path:
        return Path(self.slot.getsockname())

    @property
    def control_path(self) -> Path:
        return Path(f"{self.slot_path}.c{self.spec.attempt}")

    def client(self) -> Client:
        return Client(self.slot_path)

    def post(self, body: Any, headers: dict[str, str] | None = None, target: str = "/t/a") -> Answer:
        with self.client() as client:
            return client.post(body if isinstance(body, bytes) else orjson.dumps(body), headers, target)

    def control(self) -> Control:
        return Control(self.control_path)

    def status(self) -> ReplicaStatus:
        """How it is now: what it says to whoever connects."""
        with self.control() as control:
            return control.status()

    def ready(self) -> Replica:
        """Wait until it serves; fails with the problem it reports."""

        def settled(status: ReplicaStatus) -> bool:
            assert status.problem is None, status.problem
            return status.phase is Phase.READY

        with self.control() as control:
            control.until(settled)
        return self

    def drain(self, timeout_s: float = 10.0) -> None:
        with self.control() as control:
            control.send(Drain(timeout_s=timeout_s))

    def lines(self) -> list[LoggedLine]:
        path = Path(self.spec.log_path)
        return [parse_line(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    def stats(self, accept: Callable[[StatsFile], bool] = lambda _: True) -> StatsFile:
        """The counters' file, once it is there and acceptable."""
        path = Path(self.spec.stats_path)

        def look() -> StatsFile | None:
            found = msgspec.json.decode(path.read_bytes(), type=StatsFile) if path.exists() else None
            return found if found is not None and accept(found) else None

        return eventually(look, "the counters are written")

    def last_words(self) -> LastWords:
        return msgspec.json.decode(Path(self.spec.stats_path + EXIT_FILE_SUFFIX).read_bytes(), type=LastWords)

    def rss_kib(self) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def alive(self) -> bool:
        return self.identity is not None and is_alive(self.identity)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal it, if it still runs; nobody else, should its pid be another's by now."""
        if self.identity is not None:
            send_signal(self.identity, number)


@dataclass
class LauncherProcess:
    """A launcher that was started as the agent starts it."""

    folder: Path
    backend: str = "onnx"
    environment: dict[str, str] = field(default_factory=dict)
    wrapper: tuple[str, ...] = ()
    """A command that executes the launcher in other circumstances."""
    replicas: list[Replica] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.socket_path = self.folder / "l"
        self.log_path = self.folder / "launcher.log"
        with self.log_path.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    *(*self.wrapper, sys.executable, "-m", "cortex.replica.launcher"),
                    *("--socket", str(self.socket_path), "--home", str(self.folder)),
                    *("--backend", self.backend, "--key", "test"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={**_without_telemetry(os.environ), **self.environment},
                start_new_session=True,
            )
        try:
            eventually(self._listening, "the launcher listens", LAUNCHER_DEADLINE_S)
            self.link = LauncherLink(self.socket_path)
        except BaseException:
            self._end()
            raise

    def _listening(self) -> bool:
        assert self.process.poll() is None, self.log_path.read_text()
        return self.socket_path.exists()

    @property
    def pid(self) -> int:
        return self.process.pid

    def fork(
        self,
        spec: ReplicaSpec,
        slot: socket.socket | None = None,
        link: LauncherLink | None = None,
        secrets: dict[str, str] | None = None,
        kept: str = "",
    ) -> Replica:
        """Fork a replica on its own slot, or on one that an earlier attempt had; or make one of a kept inspection."""
        link = link or self.link
        if slot is None:
            slot = listen(self.folder / f"s{spec.replica}")
        replica = Replica(spec, slot)
        replica.control_path.unlink(missing_ok=True)
        with listen(replica.control_path) as control, packed_secrets(secrets) as packed:
            link.send(Fork(spec=spec, kept=kept), [slot.fileno(), control.fileno(), *packed])
            reply = link.wait_for(Forked | ForkFailed)  # type: ignore[arg-type]
        assert isinstance(reply, Forked), reply
        replica.pid, replica.identity = reply.pid, identify(reply.pid)
        self.replicas.append(replica)
        return replica

    def keep(self, spec: ReplicaSpec, *, secrets: dict[str, str] | None = None, **options: Any) -> InspectReport:
        """Inspect what a replica of this spec would load, as an agent does, and have the child kept if it can be."""
        before = msgspec.structs.replace(spec, attempt=0, log_path="", stats_path="", scratch=f"{spec.scratch}.before")
        report = self.link.inspect(before, secrets=secrets, keep=True, **{"rows": "auto", **options})
        if report.kept and Path(before.scratch).exists():
            Path(before.scratch).rename(spec.scratch)
        return report

    def stop(self) -> None:
        for replica in self.replicas:
            replica.kill()
            replica.slot.close()
        self.link.close()
        self._end()

    def _end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _without_telemetry(environ: Mapping[str, str]) -> dict[str, str]:
    """What a developer's shell says of traces is not for replicas of tests."""
    return {name: value for name, value in environ.items() if not name.startswith("OTEL_")}


@contextlib.contextmanager
def packed_secrets(secrets: dict[str, str] | None) -> Iterator[list[int]]:
    """What carries secrets to a launcher's child, if there are any."""
    if not secrets:
        yield []
        return
    descriptor = packed(secrets)
    try:
        yield [descriptor]
    finally:
        os.close(descriptor)


def listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen(4096)
    return sock


def spec_for(
    folder: Path, model: Path, *, replica: str = "t.a.00000000.0", attempt: int = 1, **fields: Any
) -> ReplicaSpec:
    """
    A spec with sane defaults whose files lie in `folder`, which the handler finds as `FOLDER` in its environment.

    `handler_source` makes a project with that handler. What a handler writes into that nobody else sees. `sample` is
    its body, `gate` whether it gates.
    """
    if "sample" in fields:
        fields |= a_sample_at_hand(folder, fields.pop("sample"), gate=fields.pop("gate", False))
    source = fields.pop("handler_source", None)
    if source is not None:
        project = folder / "project"
        project.mkdir(exist_ok=True)
        (project / "handler.py").write_text(source)
        fields |= {"project_dir": str(project), "handler": "handler.py"}
    return ReplicaSpec(
        **{
            "replica": ReplicaId(replica),
            "attempt": attempt,
            "api": ApiKey("t/a"),
            "version": Version("0123456789abcdef" * 4),
            "revision": Revision("f" * 64),
            "home": str(folder),
            "runtime": "onnx",
            "model_path": str(model),
            "log_path": str(folder / f"{replica}.log"),
            "stats_path": str(folder / f"{replica}.{attempt}.json"),
            "scratch": str(folder / f"{replica}.{attempt}"),
            **fields,
            "env": {"FOLDER": str(folder), **fields.get("env", {})},
        }
    )


def running(folder: Path, **options: Any) -> Iterator[LauncherProcess]:
    """For fixtures: a launcher, ended with its replicas."""
    launcher = LauncherProcess(folder, **options)
    try:
        yield launcher
    finally:
        launcher.stop()
