"""
What the end-to-end tests stand on: an environment in a home of its own, projects with small models, and a client that
sends exactly the bytes it is told to.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import engines
import numpy as np
import onnx
from onnx import TensorProto, helper

from cortex.client.operator import OperatorClient
from cortex.processes import ControlPlaneRecord
from cortex.settings import ControlLayout, NodeLayout
from cortex.wire import localnodes
from cortex.wire.localnodes import LocalNode, node_names

DEADLINE_S = 60.0
"""For anything to happen; generous, since the machine may be busy."""
COMMAND_DEADLINE_S = 100.0
"""For a command. A deploy may wait for TensorFlow to be imported, which took over a minute on a crowded machine."""
CORTEX = Path(sys.executable).with_name("cortex")
T = TypeVar("T")


def eventually(look: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Look until there is something to see."""
    until = time.monotonic() + deadline_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > until:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.02)


_GIVEN_PORTS: set[int] = set()


def free_port() -> int:
    """
    A port that is still free when it is used: no two calls get the same one, and it is none of those that the kernel
    hands to whoever asks for any or connects somewhere.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    below = [port for port in range(max(10_000, first - 20_000), first) if port not in _GIVEN_PORTS]
    for port in (*random.SystemRandom().sample(below, len(below)), 0):  # tests seed the other generator all alike
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found = int(probe.getsockname()[1])
            _GIVEN_PORTS.add(found)
            return found
    raise AssertionError("no port is free")


# ---- the environment --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Home:
    """Cortex in a temporary home: commands are run as a shell runs them, on the engine that was chosen."""

    path: Path
    port: int = field(default_factory=free_port)
    operator_port: int = field(default_factory=free_port)
    variables: dict[str, str] = field(default_factory=dict)
    """Further environment variables of every command."""
    node_count: int = field(default_factory=lambda: engines.NODES[engines.chosen()])
    """How many nodes it is where nobody has said so."""

    @property
    def layout(self) -> ControlLayout:
        """Where the control plane has its files."""
        return ControlLayout(self.path)

    @property
    def nodes(self) -> tuple[NodeLayout, ...]:
        """Where each node has its files. The first one's door is at `port`."""
        names = [node.name for node in localnodes.read(self.layout.nodes_file)]
        return tuple(NodeLayout(self.layout.nodes / name) for name in names) or (NodeLayout(self.path),)

    @property
    def folders(self) -> tuple[Path, ...]:
        """The control plane's home first, then the nodes'; where the two are one, once."""
        return tuple(dict.fromkeys((self.path, *(node.home for node in self.nodes))))

    def node_of(self, api: str) -> NodeLayout:
        """A node where `deployment/name` has a replica; of several the first."""
        titles = [title for _, title in self.processes()]
        has = [n for n in self.nodes if any(title.startswith(f"cortex-replica {n.home} {api} ") for title in titles)]
        return has[0]

    def pid_of(self, title: str, api: str) -> int | None:
        """The process of that title on the node of an api, or the control plane; None: there is none just now."""
        home = self.path if title == "cortex-controlplane" else self.node_of(api).home
        found = [pid for pid, whole in self.processes() if f"{whole} ".startswith(f"{title} {home} ")]
        return min(found, default=None)

    def written(self, log: str) -> str:
        """What is in a log, `agent.log` for example, of all who write one of that name."""
        files = [folder / "logs" / log for folder in self.folders]
        return "".join(file.read_text() for file in files if file.exists())

    def stored(self, pattern: str) -> list[Path]:
        """Files of stored trees, `*/m.onnx` for example: in the store, then in what nodes have fetched of it."""
        return [file for folder in self.folders for file in (folder / "artifacts" / "trees").glob(pattern)]

    def environment(self) -> dict[str, str]:
        """Variables of a command, before which the home is made what the engine has it be."""
        self._begin_as_several()
        own = {name: value for name, value in os.environ.items() if not name.startswith(("CORTEX_", "PYTEST"))}
        return {
            **own,
            "CORTEX_HOME": str(self.path),
            "CORTEX_PORT": str(self.port),
            "CORTEX_OPERATOR_PORT": str(self.operator_port),
            "COLUMNS": "120",
            **self.variables,
        }

    def _begin_as_several(self) -> None:
        """As if `cortex up --nodes` had been the first command: the number is remembered in a file."""
        file = self.layout.nodes_file
        if self.node_count == 1 or file.exists():
            return
        with contextlib.suppress(OSError):  # somebody tests what becomes of a home that cannot be used
            self.path.mkdir(mode=0o700, exist_ok=True)
            if self.path.stat().st_uid == os.getuid():
                localnodes.remember(file, [LocalNode(name=n, port=0, peer_port=0) for n in node_names(self.node_count)])

    def start(self, *argv: str | Path, cwd: Path | None = None, **variables: str) -> subprocess.Popen[bytes]:
        """A command that runs on by itself. An empty value takes a variable away."""
        environment = {name: value for name, value in {**self.environment(), **variables}.items() if value}
        return subprocess.Popen(
            [CORTEX, *map(str, argv)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd or self.path.parent,
            env=environment,
        )

    def cortex(
        self, *argv: str | Path, stdin: bytes = b"", cwd: Path | None = None, code: int | None = 0, **variables: str
    ) -> Ran:
        """
        Run a command to its end.

        Args:
            code: the exit code it must have; None for any.
        """
        process = self.start(*argv, cwd=cwd, **variables)
        try:
            out, err = process.communicate(stdin, timeout=COMMAND_DEADLINE_S)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        ran = Ran(process.returncode, out.decode(), err.decode())
        assert code is None or ran.code == code, f"{argv} ended with {ran.code}:\n{ran.out}\n{ran.err}"
        return ran

    def deploy(self, project: Path, *argv: str, code: int | None = 0, **variables: str) -> Ran:
        return self.cortex("deploy", project, *argv, code=code, **variables)

    def control_plane(self) -> ControlPlaneRecord | None:
        from cortex.client.local import LocalEnvironment
        from cortex.settings import Settings

        return LocalEnvironment(Settings(home=self.path), environ={}).control_plane()

    def operator(self) -> OperatorClient:
        """The running control plane; starts nothing."""
        from cortex.client.local import LocalEnvironment
        from cortex.settings import Settings

        return LocalEnvironment(Settings(home=self.path), environ={}).connect()

    def replica_pids(self, api: str) -> list[int]:
        """Processes that serve `deployment/name`."""
        return [pid for pid, _title in self._replicas(api)]

    def _replicas(self, api: str) -> list[tuple[int, str]]:
        starts = tuple(f"cortex-replica {node.home} {api} " for node in self.nodes)
        return [(pid, title) for pid, title in self.processes() if title.startswith(starts)]

    def settled_replicas(self, api: str, count: int = 1) -> list[int]:
        """The same, once those of a former version have left, without one of them that is parked."""
        return eventually(lambda: len(pids := self._serving_pids(api)) == count and pids, f"{count} replicas of {api}")

    def _serving_pids(self, api: str) -> list[int]:
        deployment, _, name = api.partition("/")
        parked = self.operator().api(deployment, name).parked
        mine = self._replicas(api)
        return [pid for pid, title in mine if parked is None or not title.endswith(f" {parked.replica}")]

    def processes(self) -> list[tuple[int, str]]:
        """Pid and title of every process of this home."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
                    if f" {self.path} " in f"{title} " or f"{self.path}/" in title:
                        found.append((int(entry.name), title))
        return found

    def files_with(self, *secrets: bytes) -> list[Path]:
        """Files of the home that hold one of these; others may come and go meanwhile."""
        found = []
        for folder, _, names in os.walk(self.path):
            for file in (Path(folder, name) for name in names):
                with contextlib.suppress(FileNotFoundError):
                    if file.is_file() and not file.is_symlink():
                        content = file.read_bytes()
                        found += [file] if any(secret in content for secret in secrets) else []
        return sorted(found)

    def once_ready(self, path: str, body: bytes, *, deadline_s: float = DEADLINE_S) -> Answer:
        """What an api answers while a replica is replaced, which may take longer than requests are held for it."""

        def ask() -> Answer | None:
            with Connection(self.port) as connection:
                answer = connection.ask("POST", path, body, {"content-type": "application/json"})
            return answer if answer.status != 503 else None

        return eventually(ask, f"{path} is ready", deadline_s)

    def logs(self, api: str, *argv: str) -> list[str]:
        """Texts of what an api's replicas have written."""
        lines = self.cortex("logs", api, "--no-follow", "--since", "1h", "-o", "json", *argv).out.splitlines()
        return [json.loads(line)["text"] for line in lines]

    def close(self) -> None:
        """End everything of this home, by id, and remove it."""
        if self.path.exists():
            self.cortex("down", "--purge", "--yes", "--drain", "1s", code=None)
        self.kill_all()
        shutil.rmtree(self.path, ignore_errors=True)

    def kill_all(self) -> None:
        """End what is left, with what it may start before it is hit."""

        def have_ended() -> bool:
            left = self.processes()
            for pid, _title in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        eventually(have_ended, "every process of the home has ended")


@contextlib.contextmanager
def running_home(**variables: str) -> Iterator[Home]:
    """A home, not yet started, that is ended and removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    home = Home(folder / "h", variables=variables)
    try:
        yield home
    finally:
        try:
            home.close()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_project(folder: Path, files: Mapping[str, str | bytes | onnx.ModelProto]) -> Path:
    """A project's folder. Texts are dedented."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(textwrap.dedent(content))
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_bytes(content.SerializeToString())
    return folder


# ---- models -----------------------------------------------------------------------------------------------------


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    *,
    constants: Mapping[str, np.ndarray[Any, Any]] | None = None,
    opset: int = 17,
    domain: str = "",
) -> onnx.ModelProto:
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def rows_model(weight: float = 1.0, columns: int = 4, *, output: str = "score") -> onnx.ModelProto:
    """`features` float32[n, columns] → their sum times `weight`, float32[n, 1]."""
    return model_of(
        [helper.make_node("MatMul", ["features", "weights"], [output])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", columns])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 1])],
        constants={"weights": np.full((columns, 1), weight, np.float32)},
    )


def identity_model(**inputs: tuple[int, list[int | str]]) -> onnx.ModelProto:
    """Each input, given as (element type, shape), comes out as `<name>_out`."""
    return model_of(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(f"{name}_out", kind, shape) for name, (kind, shape) in inputs.items()],
    )


def scaled_model() -> onnx.ModelProto:
    """`x` float32[n, 2] times `factor` float32[1], which is 2 unless it is given."""
    return model_of(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2]),
            helper.make_tensor_value_info("factor", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        constants={"factor": np.array([2], np.float32)},
    )


def words_model() -> onnx.ModelProto:
    """Numbers of words by `ids` int64[batch, seq] below 10, times `mask` int64[batch, seq]."""
    return model_of(
        [
            helper.make_node("Gather", ["numbers", "ids"], ["found"]),
            helper.make_node("Mul", ["found", "mask"], ["y"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"]) for name in ("ids", "mask")],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["batch", "seq"])],
        constants={"numbers": np.arange(10)},
    )


def constant_model() -> onnx.ModelProto:
    """1.0 of no input."""
    return model_of(
        [helper.make_node("Identity", ["one"], ["y"])],
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        constants={"one": np.ones(1, np.float32)},
    )


# ---- the client -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes
    version: str = "HTTP/1.1"

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextlib.contextmanager
def calling(call: Callable[[int, threading.Event], None], number: int) -> Iterator[None]:
    """So many threads, each with a seed of its own, until the end of the block, of which the event tells them."""
    enough = threading.Event()
    threads = [threading.Thread(target=call, args=(seed, enough), daemon=True) for seed in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join(60.0)
    assert not any(thread.is_alive() for thread in threads)


class Traffic:
    """
    Clients that ask an api steadily, until the end of the block; every other one each time on a new connection.

    Args:
        per_s: requests that all of them begin in a second, as long as they are answered.
    """

    def __init__(
        self,
        port: int,
        target: str,
        body: bytes,
        *,
        clients: int = 8,
        per_s: float = 200.0,
        patience_s: float = DEADLINE_S,
        host: str = "127.0.0.1",
    ) -> None:
        self._port, self._target, self._body, self._patience_s = port, target, body, patience_s
        self._host = host
        self._pause_s = clients / per_s
        self._stop = threading.Event()
        self._counting = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number % 2 == 0,)) for number in range(clients)]
        self.outcomes: Counter[str] = Counter()
        """By status, or `dropped`: the connection was closed, or could not be made."""
        self.ended_s: list[float] = []
        """When each answer of 200 was there."""
        self.longest_wait_s = 0.0
        """Of any request, whatever became of it."""

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def answered(self, more: int, beyond: int | None = None) -> None:
        """Wait until so many more have been answered with 200."""
        goal = (self.outcomes["200"] if beyond is None else beyond) + more
        eventually(lambda: self.outcomes["200"] >= goal, f"{more} more are answered: {self.outcomes}")

    @property
    def longest_gap_s(self) -> float:
        """Between one answer of 200 and the next."""
        ended = sorted(self.ended_s)
        return max((later - earlier for earlier, later in itertools.pairwise(ended)), default=0.0)

    def _ask(self, keeps: bool) -> None:
        connection: Connection | None = None
        while not self._stop.wait(self._pause_s):
            begun_s = time.monotonic()
            try:
                connection = connection or Connection(self._port, self._patience_s, self._host)
                answer = connection.ask("POST", self._target, self._body, _JSON)
                self._note(str(answer.status), begun_s)
                if keeps and answer.headers.get("connection") != "close":
                    continue
            except (OSError, AssertionError):
                self._note("dropped", begun_s)
            if connection is not None:
                connection.sock.close()
                connection = None
        if connection is not None:
            connection.sock.close()

    def _note(self, outcome: str, begun_s: float) -> None:
        now_s = time.monotonic()
        with self._counting:
            self.outcomes[outcome] += 1
            self.longest_wait_s = max(self.longest_wait_s, now_s - begun_s)
            if outcome == "200":
                self.ended_s.append(now_s)


_JSON = {"content-type": "application/json"}


class Connection:
    """One connection to the ingress, nothing but the bytes one asks for."""

    def __init__(self, port: int, timeout_s: float = DEADLINE_S, host: str = "127.0.0.1") -> None:
        self.sock = socket.create_connection((host, port), timeout_s)
        self._buffer = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def ask(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        self.send(request(method, target, body, headers))
        return self.receive(has_body=method != "HEAD")

    def receive(self, *, has_body: bool = True, final: bool = True) -> Answer:
        """The next answer; with `final`, interim ones (1xx) are passed over."""
        while True:
            answer = self._receive(has_body)
            if answer.status >= 200 or not final:
                return answer

    def _receive(self, has_body: bool) -> Answer:
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, status = status_line.split()[:2]
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            assert name.lower() not in headers, f"{name} twice: {head!r}"
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", 0)) if has_body and int(status) >= 200 else 0
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Answer(int(status), headers, body, version)

    def at_end(self) -> bool:
        """Whether the other side has closed the connection; waits for it."""
        try:
            return not self._buffer and self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def rest(self) -> bytes:
        """Everything until the other side closes."""
        with contextlib.suppress(ConnectionResetError):
            while data := self.sock.recv(1 << 16):
                self._buffer += data
        rest, self._buffer = self._buffer, b""
        return rest

    def _more(self) -> None:
        data = self.sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError(f"closed after {self._buffer!r}")
        self._buffer += data


def request(method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole request; `content-length` follows from the body, unless a header says how the body is sent."""
    given = {"host": "localhost", **(headers or {})}
    if body is not None and not {"content-length", "transfer-encoding"} & given.keys():
        given["content-length"] = str(len(body))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def chunked(*chunks: bytes) -> bytes:
    """A body in chunks, with the one that ends it."""
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
