"""Clients that send too much, too slowly or only half: memory stays flat, and who behaves is answered meanwhile."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contract_harness import (
    Connection,
    Home,
    Traffic,
    chunked,
    eventually,
    request,
    rows_model,
    running_home,
    write_project,
)

pytestmark = pytest.mark.slow

MIB = 2**20
JSON = {"content-type": "application/json"}
ROW = b"[1, 2, 3, 4]"
FLAT_MIB = 24
"""What all processes of an environment may grow by together: buffers of connections, and what malloc keeps."""

CORTEX_YAML = """
    - {kind: deployment, name: t}
    - {kind: api, name: rows, model: m.onnx, compute: {cpu: 50m, max_replicas: 1}}
    - {kind: api, name: once, model: m.onnx, retry: off, compute: {cpu: 50m, max_replicas: 1}}
    - {kind: api, name: handled, model: m.onnx, request_handler: h.py, compute: {cpu: 50m, max_replicas: 1}}
"""
HANDLER = """
    def pre_inference(sample, metadata):
        return [1, 2, 3, 4]
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with running_home() as home:
        files = {"cortex.yaml": CORTEX_YAML, "m.onnx": rows_model(), "h.py": HANDLER}
        home.deploy(write_project(home.path.parent / "p", files))
        with behaving(home):  # everything has been used once
            pass
        yield home


@contextlib.contextmanager
def behaving(home: Home) -> Iterator[None]:
    """Of each api one client that keeps its connection and one that does not, who are answered as they should be."""
    with contextlib.ExitStack() as clients:
        targets = ("/t/rows", "/t/once", "/t/handled")
        traffic = [clients.enter_context(Traffic(home.port, target, ROW, clients=2)) for target in targets]
        yield
        for one in traffic:
            one.answered(2, beyond=0)
    assert [one.outcomes.keys() for one in traffic] == [{"200"}] * len(traffic), [one.outcomes for one in traffic]


class Memory:
    """Holds everything of an environment to the memory that it has at the beginning."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._before = pss_bytes(home)

    @property
    def grown_mib(self) -> float:
        return (pss_bytes(self._home) - self._before) / MIB

    def check(self) -> None:
        assert self.grown_mib < FLAT_MIB


@pytest.fixture
def connect(home: Home) -> Iterator[Callable[[], Connection]]:
    """Open a connection that is closed at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(Connection(home.port))


def pss_bytes(home: Home) -> int:
    """
    Proportional memory of all processes of the home together: pages that they share count once. Pages of files are left
    out: they are shared with whatever else runs on this machine, so that our part of them grows as that ends.
    """
    total = 0
    for pid, _title in home.processes():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    total += int(line.split()[1]) * 1024
    assert total
    return total


@pytest.fixture
def flat(home: Home) -> Iterator[Memory]:
    """Whatever the test does: others are answered meanwhile, and memory is as it was soon after."""
    memory = Memory(home)
    with behaving(home):
        yield memory
    eventually(lambda: memory.grown_mib < FLAT_MIB, "memory is as it was")


# ---- too much ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/t/rows", "/t/once", "/t/handled"])
@pytest.mark.parametrize("how", ["announced", "in chunks"])
def test_bodies_of_200_mib_are_refused_and_cost_no_memory(home, flat, target, how):
    block = b" " * MIB
    for _ in range(2):
        with Connection(home.port) as connection:
            sent = {"content-length": str(200 * MIB)} if how == "announced" else {"transfer-encoding": "chunked"}
            connection.send(request("POST", target, None, {**JSON, **sent}))
            with contextlib.suppress(ConnectionError):
                for _ in range(200):
                    connection.send(block if how == "announced" else b"%x\r\n%s\r\n" % (MIB, block))
                if how == "in chunks":
                    connection.send(chunked())
            with contextlib.suppress(ConnectionError):  # who does not read early may only see the end
                answer = connection.receive()
                assert (answer.status, answer.json["error"]) == (413, "body-too-large")


@pytest.mark.parametrize("headers", [10_000, 90])
def test_10_000_headers_are_refused_and_90_are_none_too_many(home, flat, headers):
    many = b"".join(b"x-header-%d: value\r\n" % number for number in range(headers))
    head = request("POST", "/t/rows", None, {**JSON, "content-length": str(len(ROW))})
    for _ in range(50):
        with Connection(home.port) as connection:
            with contextlib.suppress(ConnectionError):
                connection.send(head[:-2] + many + b"\r\n" + ROW)
            if headers == 90:
                assert connection.receive().json == [[[10.0]]]
            else:
                assert connection.rest()[:13] in (b"HTTP/1.1 400 ", b"")


# ---- too slow ---------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_200_clients_that_send_their_headers_byte_by_byte_are_cut_off(flat, connect):
    """The ingress gives a request's headers 15 s to arrive, however steadily they do."""
    waiting = [connect() for _ in range(200)]
    left_at_s = time.monotonic() + 100
    head = request("POST", "/t/rows", None, {"x-long": "a" * 1000})
    position = 0
    while waiting:
        assert time.monotonic() < left_at_s, "those that trickle are cut off"
        readable, _, _ = select.select([connection.sock for connection in waiting], [], [], 0.3)
        for connection in [connection for connection in waiting if connection.sock in readable]:
            waiting.remove(connection)
            with contextlib.suppress(ConnectionError):
                assert connection.receive().status == 408
            connection.sock.close()
        for connection in waiting:
            with contextlib.suppress(ConnectionError):
                connection.send(head[position : position + 1])
        position += 1
        flat.check()


@pytest.mark.parametrize("target", ["/t/rows", "/t/once", "/t/handled"])
def test_clients_that_stop_in_the_middle_of_their_bodies_keep_nobody_waiting(home, flat, connect, target):
    """They hold a connection each; the wait for them is the ingress's, not a replica's."""
    slow = [connect() for _ in range(100)]
    for number, connection in enumerate(slow):
        length = (100, 100_000, 1_000_000)[number % 3]
        connection.send(request("POST", target, None, {**JSON, "content-length": str(length)}) + b"[1, 2")
    with Connection(home.port) as quick:
        for _ in range(50):
            assert quick.ask("POST", target, ROW, JSON).status == 200
    flat.check()


@pytest.mark.timeout(300)
def test_bodies_that_stall_are_408_and_occupy_nobody_meanwhile(home, flat, connect):
    """
    The ingress waits for small bodies and those in chunks, for 60 s; large ones a replica reads as they come, and gives
    up after 30 s of silence.
    """
    stalled = [connect() for _ in range(90)]
    for number, connection in enumerate(stalled):
        target = ("/t/rows", "/t/once", "/t/handled")[number % 3]
        length = {"content-length": ("5000000", "5000", "50000")[number // 3 % 3]}
        sent = b" " * (400_000 if number // 3 % 3 == 0 else 1000)
        if number % 10 == 9:
            length, sent = {"transfer-encoding": "chunked"}, b"5\r\n[1, 2\r\n"
        connection.send(request("POST", target, None, {**JSON, **length}) + sent)
        connection.sock.settimeout(100)
    answers = [connection.receive() for connection in stalled]
    # 503: more large bodies at once than a replica has connections for.
    assert {(answer.status, answer.json["error"]) for answer in answers} <= {
        (408, "request-timeout"),
        (503, "overloaded"),
    }
    assert {answer.json["message"] for answer in answers if answer.status == 408} == {
        "the request broke off: nothing more came for 30 s",
        "the request did not arrive in time",
    }


def test_clients_that_never_read_their_answers_keep_nobody_waiting(home, flat, connect):
    deaf = [connect() for _ in range(20)]
    for connection in deaf:
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sock.settimeout(0.2)
        with contextlib.suppress(OSError):  # nobody reads on, so the pipe is full some time
            for _ in range(2000):
                connection.send(request("POST", "/t/rows", ROW, JSON) * 20)
    with Connection(home.port) as quick:
        assert quick.ask("POST", "/t/rows", ROW, JSON).status == 200
    flat.check()


# ---- only half --------------------------------------------------------------------------------------------------


def test_connections_closed_by_half_are_answered_or_ended_and_none_stays(flat, connect):
    whole, half, silent = [], [], []
    for _ in range(70):
        for kind, data in ((whole, request("POST", "/t/rows", ROW, JSON)), (half, b"POST /t/rows HT"), (silent, b"")):
            connection = connect()
            connection.send(data)
            connection.sock.shutdown(socket.SHUT_WR)
            kind.append(connection)
    for connection in whole:
        assert connection.rest()[:13] in (b"HTTP/1.1 200 ", b"HTTP/1.1 400 ", b"")
    for connection in half:
        assert connection.rest()[:13] in (b"HTTP/1.1 400 ", b"")
    for connection in silent:
        assert connection.rest() == b""


def test_connections_reset_in_the_middle_of_everything_leave_nothing_behind(home, flat):
    def open_files() -> int:
        pids = [pid for pid, title in home.processes() if "haproxy" in title or title.startswith("cortex-replica")]
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)

    before = open_files()
    for number in range(300):
        connection = Connection(home.port)
        sent = request("POST", "/t/handled", b"[" + b"1," * 50_000, JSON)
        connection.send(sent[: (10, 100, 60_000, len(sent))[number % 4]])
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # RST, not FIN
        connection.sock.close()
    eventually(lambda: open_files() < before + 30, "their sockets are closed")


# ---- all at once ------------------------------------------------------------------------------------------------


def test_500_of_every_kind_at_once_cost_nobody_who_behaves_an_answer_and_leave_no_descriptor(home):
    def open_files() -> int:
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid, _ in home.processes())

    before = open_files()
    length = {"content-length": "5000"}
    with Traffic(home.port, "/t/rows", ROW, clients=8, per_s=200) as traffic, contextlib.ExitStack() as opened:
        traffic.answered(200)
        for number in range(500):
            client = opened.enter_context(Connection(home.port))
            match number % 5:
                case 0:
                    client.send(b"POST /t/rows HTTP/1.1\r\nx-long: a")
                case 1:
                    client.send(request("POST", "/t/rows", None, {**JSON, **length}) + b"[1")
                case 2:
                    client.send(
                        request("POST", "/t/rows", None, {**JSON, "content-length": "5000000"}) + b" " * 300_000
                    )
                case 3:
                    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    client.send(request("POST", "/t/rows", b"[" + b"[1, 2, 3, 4]," * 20_000 + ROW + b"]", JSON))
                case 4:
                    client.send(request("POST", "/t/rows", ROW, JSON))
                    client.sock.shutdown(socket.SHUT_WR)
        traffic.answered(1000)
    assert traffic.outcomes.keys() == {"200"}, traffic.outcomes
    eventually(lambda: open_files() < before + 30, "their sockets are closed")
