"""A real HAProxy, real little backends on unix sockets that this process owns, and clients that count failures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
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
DEADLINE_S = 10.0


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

    def server(self, *, max_connections: int = 64, max_queued: int = 64) -> IngressServer:
        return IngressServer(self.name, str(self.path), max_connections, max_queued)


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
        head = request_head(method, target, {"content-length": str(len(body)), **(headers or {})})
        await self.send(*((head, body) if split else (head + body,)))
        return await self.receive(method)

    def close(self) -> None:
        self.closed = True
        self._writer.close()


def request_head(method: str, target: str, headers: dict[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {target} HTTP/1.1\r\nhost: test\r\n{lines}\r\n".encode()


@dataclass
class Load:
    """Keep-alive clients that post as fast as they are answered."""

    succeeded: int = 0
    failures: list[str] = field(default_factory=list)
    servers: set[str] = field(default_factory=set)
    versions: set[str] = field(default_factory=set)
    longest_s: float = 0.0
    stopping: bool = False

    async def progress(self, requests: int) -> None:
        """Wait until that many more requests were answered."""
        goal = self.succeeded + requests
        await until(lambda: self.succeeded >= goal or bool(self.failures))


async def until(condition: Callable[[], bool], timeout_s: float = DEADLINE_S) -> None:
    async with asyncio.timeout(timeout_s):
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
        self.port = 0
        self._connections: list[Connection] = []

    def ingress(self, **options: Any) -> Ingress:
        """A not yet started ingress; each further one is what a restarted agent would build."""
        port = options.pop("port", 0)
        options.setdefault("fd_limit", min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        options.setdefault("pool_size", 16)
        ingress = Ingress(
            directory=self.directory / "ingress",
            sockets=self.sockets,
            listen=(ListenAddress("127.0.0.1", port),),
            clock=SystemClock(),
            **options,
        )
        self.ingresses.append(ingress)
        return ingress

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
        """Send bytes, return everything that comes back until the other side closes."""
        async with asyncio.timeout(DEADLINE_S):
            connection = await self.connect()
            try:
                await connection.send(*parts)
                return await connection._reader.read()
            finally:
                connection.close()

    @contextlib.asynccontextmanager
    async def load(self, target: str, *, clients: int = 8, body: bytes = b"[1]") -> AsyncIterator[Load]:
        """
        Load while the block runs. Every other client sends headers and body in packets of their own, as many
        HTTP libraries do.
        """
        load = Load()

        async def client(number: int) -> None:
            connection: Connection | None = None
            while not load.stopping:
                begun_s = asyncio.get_running_loop().time()
                try:
                    connection = connection if connection and not connection.closed else await self.connect()
                    answer = await connection.ask("POST", target, body, split=bool(number % 2))
                except (OSError, EOFError) as error:
                    load.failures.append(repr(error))
                    connection = None
                    continue
                load.longest_s = max(load.longest_s, asyncio.get_running_loop().time() - begun_s)
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

    async def until(self, condition: Callable[[], bool], timeout_s: float = DEADLINE_S) -> None:
        await until(condition, timeout_s)

    def deliveries(self, request_id: str) -> list[str]:
        """Names of the backends that have read a request, in order."""
        lines = [line.split(" ") for line in self.journal.read_text().splitlines()]
        return [name for name, found in lines if found == request_id]

    def workers(self) -> list[dict[str, Any]]:
        """The workers in `ingress.json`."""
        return list(json.loads((self.directory / "ingress" / "ingress.json").read_bytes())["workers"])

    def admin(self, tier: str = "door") -> AdminSocket:
        """Admin socket of the youngest worker of a tier."""
        youngest = max(w["name"]["generation"] for w in self.workers() if w["name"]["tier"] == tier)
        return AdminSocket(self.sockets / f"h-{tier}-{youngest}.sock")

    async def slots_in_use(self) -> set[str]:
        """`show stat` names of the pool backends that have servers."""
        return {str(row.address.slot) for row in await self.admin().servers()}

    async def close(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for backend in self.backends:
                stack.callback(backend.close)
            stack.callback(self._kill_workers)
            for ingress in self.ingresses:
                stack.push_async_callback(ingress.stop, 0.0)
            for connection in self._connections:
                stack.callback(connection.close)

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
