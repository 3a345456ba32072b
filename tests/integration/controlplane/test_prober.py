"""The process that asks for as long as a change-over is proved, against a server that is told how to answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cortex.controlplane.probing import Probing
from cortex.wire.probing import ProbeAnswer, ProbeRequest, ProbeSample

pytestmark = pytest.mark.slow

DEADLINE_S = 60.0


class Server(ThreadingHTTPServer):
    """Notes what it was asked: the connection, headers and body of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[int, dict[str, str], bytes]] = []
        self.status = 200
        self.hangs_up = False


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16  # head and body at once, or the peer waits for its own delayed acknowledgement
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append((self.client_address[1], headers, body))
        if self.server.hangs_up:
            self.close_connection = True
            return
        content = json.dumps({"error": "so-it-is"}).encode()
        self.send_response(self.server.status)
        self.send_header("x-cortex-version", "0a1b2c3d")
        self.send_header("content-length", str(len(content)))
        if headers.get("x-cortex-probe") == "the-token":
            self.send_header("x-cortex-probe", "1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def asked(server: Server, tmp_path: Path) -> Iterator[Callable[..., Probing]]:
    begun: list[Probing] = []

    def start(**fields: object) -> Probing:
        samples = []
        for number, body in enumerate((b"first", b"second")):
            file = tmp_path / str(number)
            file.write_bytes(body)
            samples.append(ProbeSample(file=str(file), content_type=f"text/{number}"))
        values = {"host": "127.0.0.1", "port": server.server_port, "token": "the-token", **fields}
        request = ProbeRequest(
            path="/d/a",
            samples=tuple(samples),
            name="probe-1",
            timeout_s=30.0,
            **values,  # type: ignore[arg-type]
        )
        begun.append(Probing(request))
        return begun[-1]

    yield start
    for one in begun:
        one.close()


def until(accept: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not accept():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_half_of_the_requests_come_over_a_connection_that_is_kept(
    server: Server, asked: Callable[..., Probing]
) -> None:
    before_s = time.monotonic()
    probing = asked()
    until(lambda: len(probing.answers()) >= 40)
    probing.close()
    answers = probing.answers()
    assert {(one.status, one.version, one.code, one.counted) for one in answers} == {(200, "0a1b2c3d", "", False)}
    assert all(before_s <= one.begun_s <= one.ended_s <= time.monotonic() for one in answers)
    assert len({one.request for one in answers}) == len(answers)
    ports = [port for port, _, _ in server.asked]
    kept = max(set(ports), key=ports.count)
    assert ports.count(kept) > 5
    assert all(ports.count(port) == 1 for port in ports if port != kept)
    assert len(set(ports)) > 5
    sent = {(headers["content-type"], headers["x-cortex-probe"], body) for _, headers, body in server.asked}
    assert sent == {("text/0", "the-token", b"first"), ("text/1", "the-token", b"second")}
    by_id = {headers["x-request-id"]: body for _, headers, body in server.asked}
    assert all(by_id[one.request] == (b"first", b"second")[one.sample] for one in answers)
    assert probing.has_ended


def last(probing: Probing, accept: Callable[[ProbeAnswer], bool]) -> ProbeAnswer:
    until(lambda: any(map(accept, probing.answers())))
    return next(filter(accept, probing.answers()))


def test_errors_and_answers_that_do_not_come_are_told_and_it_goes_on(
    server: Server, asked: Callable[..., Probing]
) -> None:
    probing = asked()
    last(probing, lambda one: one.status == 200)
    server.status = 503
    assert last(probing, lambda one: one.status == 503).code == "so-it-is"
    server.hangs_up = True
    found = last(probing, lambda one: one.status == 0)
    assert (found.version, found.code, found.counted) == ("", "connection broken off", False)
    server.hangs_up, server.status = False, 200
    seen = len(probing.answers())
    until(lambda: any(one.status == 200 for one in probing.answers()[seen:]))


def test_where_nobody_listens_that_is_told(asked: Callable[..., Probing]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        probing = asked(port=held.getsockname()[1])
        assert last(probing, lambda _: True).code == "connection refused"


def test_an_ingress_that_does_not_know_probes_is_noticed(asked: Callable[..., Probing]) -> None:
    assert last(asked(token="another"), lambda _: True).counted


def test_one_that_is_killed_is_noticed(asked: Callable[..., Probing]) -> None:
    probing = asked()
    last(probing, lambda _: True)
    assert not probing.has_ended
    os.kill(probing.pid, signal.SIGKILL)
    until(lambda: probing.has_ended)
