"""A real HAProxy, real little backends on unix sockets that this process owns, and clients that count failures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex.clock import SystemClock
from cortex.ids import ApiKey, api_key, route_path
from cortex.ingress.configuration import IngressLimits
from cortex.ingress.handover import ListenAddress
from cortex.ingress.routes import IngressRoute, IngressServer
from cortex.ingress.runtime import AdminSocket
from cortex.ingress.supervisor import Ingress
from cortex.processes import ProcessIdentity, send_signal

BACKEND = Path(__file__).with_name("backend_process.py")
DEADLINE_S = 40.0
"""For anything to happen; generous, since the machine may be busy."""


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Backend:
    """One replica: a listening socket of ours, and at most one process that accepts on it."""

    def __init__(self, name: str, folder: Path, journal: Path) -> None:
        self.name = name
        self.path = folder / f"{name}.sock"
        self._journal = journal
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(1024)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        fd = self._listener.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(BACKEND), str(fd), self.name, str(self._journal)], pass_fds=[fd]
        )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def replace(self) -> None:
        """kill -9, and a new process on the same socket."""
        self.kill()
        self.start()

    def close(self) -> None:
        self.kill()
        self._listener.close()

    def server(self, *, max_connections: int = 64) -> IngressServer:
        return IngressServer(self.name, str(self.path), max_connections)


class Connection:
    """A keep-alive client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.closed = False

    async def send(self, *parts: bytes) -> None:
        """Write the parts as packets of their own."""
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()
            await asyncio.sleep(0)

    async def receive(self, method: str = "POST") -> Answer:
        while True:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.rstrip().split("\r\n")
            status = int(first.split(" ")[1])
            if status >= 200:
                break
        headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines)}
        length = 0 if method == "HEAD" else int(headers.get("content-length", 0))
        body = await self._reader.readexactly(length)
        if headers.get("connection") == "close":
            self.close()
        return Answer(status, headers, body)

    async def ask(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None, *, split: bool = False
    ) -> Answer:
        await self.begin(method, target, body, headers, split=split)
        return await self.receive(method)

    async def begin(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None, *, split: bool = False
    ) -> None:
        """Send a request without waiting for its answer."""
        head = request_head(method, target, {"content-length": str(len(body)), **(headers or {})})
        await self.send(*((head, body) if split else (head + body,)))

    def close(self) -> None:
        self.closed = True
        self._writer.close()

    async def close_own_end(self) -> None:
        """Say that nothing more will be sent; the answer may still come."""
        self._writer.write_eof()
        await self._writer.drain()

    def abort(self) -> None:
        """Close it without sending what is left to send."""
        self.closed = True
        self._writer.transport.abort()


def request_head(method: str, target: str, headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {target} HTTP/1.1\r\nhost: test\r\n{lines}\r\n".encode()


@dataclass
class Load:
    """Keep-alive clients that post as fast as they are answered."""

    succeeded: int = 0
    answered: dict[int, int] = field(default_factory=dict)
    """How many answers each client has had."""
    failures: list[str] = field(default_factory=list)
    servers: set[str] = field(default_factory=set)
    versions: set[str] = field(default_factory=set)
    stopping: bool = False

    async def progress(self, requests: int) -> None:
        """
        Wait until that many more requests were answered, and at least one of each client.

        So whatever was under way before has its answer: a request may lose one replica, but not a second one.
        """
        goal, before = self.succeeded + requests, dict(self.answered)

        def enough() -> bool:
            return self.succeeded >= goal and all(self.answered[client] > count for client, count in before.items())

        await until(lambda: enough() or bool(self.failures))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.005)


class World:
    """Everything one test started, and ended by id when the test is over."""

    def __init__(self, directory: Path, sockets: Path) -> None:
        self.directory = directory
        self.sockets = sockets
        self.journal = directory / "journal"
        self.journal.touch()
        self.backends: list[Backend] = []
        self.ingresses: list[Ingress] = []
        self.admins: dict[Path, AdminSocket] = {}
        """How the ingress talks to each worker, by the path of its admin socket."""
        self.port = 0
        self._connections: list[Connection] = []
        self._reserved: list[socket.socket] = []

    def ingress(self, **options: Any) -> Ingress:
        """A not yet started ingress; each further one is what a restarted agent would build."""
        port = options.pop("port", 0)
        options.setdefault("fd_limit", min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        options.setdefault("pool_size", 16)
        options.setdefault("clock", SystemClock())
        talk_to = options.pop("admin", AdminSocket)

        def admin(path: Path) -> AdminSocket:
            self.admins[path] = talk_to(path)
            return self.admins[path]

        ingress = Ingress(
            directory=self.directory / "ingress",
            sockets=self.sockets,
            listen=(ListenAddress("127.0.0.1", port),),
            admin=admin,
            **options,
        )
        self.ingresses.append(ingress)
        return ingress

    def reserved_port(self) -> int:
        """
        A port that nobody else is given as long as this world lives, whether or not somebody listens on it.

        Linux lets others that set SO_REUSEADDR, as the ingress does, listen on a port that is only bound.
        """
        holder = socket.socket()
        self._reserved.append(holder)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        return int(holder.getsockname()[1])

    def kill(self, pid: int) -> None:
        """kill -9; returns when it is dead, so that nothing it might still do falls into what comes next."""
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            assert select.select([pidfd], [], [], DEADLINE_S)[0], f"pid {pid} does not end"
        finally:
            os.close(pidfd)

    def halt(self, pid: int) -> None:
        """SIGSTOP; returns when it stands still."""
        os.kill(pid, signal.SIGSTOP)
        deadline_s = time.monotonic() + DEADLINE_S
        while Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[0] != b"T":
            assert time.monotonic() < deadline_s, f"pid {pid} does not stop"
            time.sleep(0.001)

    def let_go(self) -> None:
        """Let the backends answer the requests that they hold (`?hold`)."""
        (self.directory / "go").touch()

    async def started(self, *routes: IngressRoute, **options: Any) -> Ingress:
        ingress = self.ingress(**options)
        await ingress.start()
        self.port = ingress.status().addresses[0][1]
        await ingress.apply(routes)
        return ingress

    def backend(self, name: str = "") -> Backend:
        backend = Backend(name or f"b{len(self.backends)}", self.sockets, self.journal)
        self.backends.append(backend)
        return backend

    def route(self, api: str, *servers: Backend | IngressServer, **options: Any) -> IngressRoute:
        key: ApiKey = api_key(*api.split("/"))
        values: dict[str, Any] = {
            "timeout_s": 30.0,
            "max_body_bytes": 1 << 22,
            "retry": True,
            "version": "of-route",
            **options,
        }
        found = tuple(s.server() if isinstance(s, Backend) else s for s in servers)
        return IngressRoute(api=key, path=route_path(key), servers=found, **values)

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 21))
        self._connections.append(connection)
        return connection

    async def ask(
        self, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None, *, split: bool = False
    ) -> Answer:
        """One request on a connection of its own."""
        async with asyncio.timeout(DEADLINE_S):
            connection = await self.connect()
            try:
                return await connection.ask(method, target, body, headers, split=split)
            finally:
                connection.close()

    async def raw(self, *parts: bytes) -> bytes:
        """
        Send bytes, return everything that comes back until the other side closes.

        It may close before it has read everything: then the kernel still has its answer, where a stream has an error.
        """
        loop = asyncio.get_running_loop()
        received = b""
        async with asyncio.timeout(DEADLINE_S):
            with socket.socket() as connection:
                connection.setblocking(False)
                await loop.sock_connect(connection, ("127.0.0.1", self.port))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with contextlib.suppress(ConnectionError):
                    for part in parts:
                        await loop.sock_sendall(connection, part)
                        await asyncio.sleep(0)
                with contextlib.suppress(ConnectionError):
                    while chunk := await loop.sock_recv(connection, 1 << 18):
                        received += chunk
        return received

    @contextlib.asynccontextmanager
    async def load(self, target: str, *, clients: int = 8, body: bytes = b"[1]") -> AsyncIterator[Load]:
        """
        Load while the block runs. Every other client sends headers and body in packets of their own, as many
        HTTP libraries do.
        """
        load = Load(answered=dict.fromkeys(range(clients), 0))

        async def client(number: int) -> None:
            connection: Connection | None = None
            while not load.stopping:
                try:
                    connection = connection if connection and not connection.closed else await self.connect()
                    answer = await connection.ask("POST", target, body, split=bool(number % 2))
                except (OSError, EOFError) as error:
                    load.failures.append(repr(error))
                    connection = None
                    continue
                load.answered[number] += 1
                if answer.status == 200:
                    load.succeeded += 1
                    load.servers.add(answer.json()["server"])
                else:
                    load.failures.append(f"{answer.status} {answer.body.decode()}")
            if connection:
                connection.close()

        tasks = [asyncio.create_task(client(number)) for number in range(clients)]
        try:
            await load.progress(clients)
            yield load
        finally:
            load.stopping = True
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*tasks)

    async def until(self, condition: Callable[[], bool]) -> None:
        await until(condition)

    async def eventually(self, look: Callable[[], Awaitable[Any]]) -> None:
        """Ask until the answer is yes."""
        async with asyncio.timeout(DEADLINE_S):
            while not await look():
                await asyncio.sleep(0.005)

    async def until_requests(self, count: int) -> None:
        """Wait until that many requests are at servers."""

        async def there() -> bool:
            return sum(row.requests for row in await self.admin().servers()) >= count

        await self.eventually(there)

    def deliveries(self, request_id: str) -> list[str]:
        """Names of the backends that have read a request, in order."""
        lines = [line.split(" ") for line in self.journal.read_text().splitlines()]
        return [name for name, found in lines if found == request_id]

    async def read(self, ingress: Ingress, *apis: str) -> list[tuple[int, int] | None]:
        """Begun and queued for each api, read after now; None: it is not routed."""
        asked_s = time.monotonic()
        found = await ingress.traffic()
        async with asyncio.timeout(DEADLINE_S):
            while found.at_s < asked_s:
                await asyncio.sleep(0.01)
                found = await ingress.traffic()
        known = {str(row.api): (row.begun, row.queued) for row in found.apis}
        return [known.get(api) for api in apis]

    def workers(self) -> list[dict[str, Any]]:
        """The workers in `ingress.json`."""
        return list(json.loads((self.directory / "ingress" / "ingress.json").read_bytes())["workers"])

    def admin(self, tier: str = "door") -> AdminSocket:
        """Admin socket of the youngest worker of a tier."""
        youngest = max(w["name"]["generation"] for w in self.workers() if w["name"]["tier"] == tier)
        return AdminSocket(self.sockets / f"h-{tier}-{youngest}.sock")

    async def backends_in_use(self) -> set[str]:
        """`show stat` names of the pool backends that have servers."""
        return {str(row.address.backend) for row in await self.admin().servers()}

    async def pid_of(self, tier: str) -> int:
        """Of the youngest worker of a tier."""
        return (await self.admin(tier).info()).pid

    async def close(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for backend in self.backends:
                stack.callback(backend.close)
            stack.callback(self._kill_workers)
            for ingress in self.ingresses:
                stack.push_async_callback(ingress.stop, 0.0)
            for connection in self._connections:
                stack.callback(connection.abort)
            for holder in self._reserved:
                stack.callback(holder.close)

    def _kill_workers(self) -> None:
        with contextlib.suppress(OSError, KeyError, ValueError):
            for worker in self.workers():
                send_signal(msgspec.convert(worker["identity"], ProcessIdentity), signal.SIGKILL)


Scenario = Callable[[World], Awaitable[None]]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[Scenario], None]]:
    """Run a scenario in a world of its own, and end everything that it started."""
    # Sockets need a path of at most 97 bytes, which tmp_path may exceed.
    sockets = Path(tempfile.mkdtemp(prefix="cortex-", dir="/tmp"))

    def run_(scenario: Scenario) -> None:
        async def whole() -> None:
            world = World(tmp_path, sockets)
            try:
                await scenario(world)
            finally:
                await world.close()

        asyncio.run(whole())

    yield run_
    shutil.rmtree(sockets)


@pytest.fixture
def limits() -> Callable[..., IngressLimits]:
    return IngressLimits
