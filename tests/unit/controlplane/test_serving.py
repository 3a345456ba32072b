"""Tests of `cortex.controlplane.serving`: a real server on a port of its own, in a thread or a process."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from email.utils import parsedate_to_datetime

import pytest

from cortex.controlplane import serving
from cortex.controlplane.serving import SleepingServer

DEADLINE_S = 60.0
SERVES_UNTIL_TOLD = """\
import socket, sys
from cortex.controlplane.serving import SleepingServer

async def app(scope, receive, send): ...

class Telling(SleepingServer):
    async def main_loop(self):
        print("ready", flush=True)
        await super().main_loop()

with socket.create_server(("127.0.0.1", 0)) as listener:
    Telling(app, timeout_graceful_shutdown_s=5).run(sockets=[listener])
"""


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def server(listener):
    """One that runs in a thread, and its thread."""
    server = SleepingServer(hello, timeout_graceful_shutdown_s=5)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield server, thread
    server.end()
    thread.join(DEADLINE_S)


def ask(listener):
    connection = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=DEADLINE_S)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_every_response_says_when_it_was_made(server, listener, monkeypatch):
    response, body = ask(listener)
    assert (body, response.headers["x-own"], len(response.headers.get_all("date"))) == (b"hello", "1", 1)
    assert abs(parsedate_to_datetime(response.headers["date"]).timestamp() - time.time()) < DEADLINE_S
    monkeypatch.setattr(serving, "formatdate", lambda usegmt: "Thu, 01 Jan 1970 00:00:00 GMT")
    assert ask(listener)[0].headers["date"].startswith("Thu, 01 Jan 1970")


def test_a_server_that_is_told_to_end_by_another_thread_ends(server, listener):
    running, thread = server
    assert ask(listener)[1] == b"hello"
    running.end()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    running.end()  # once more changes nothing


def test_a_server_that_was_told_to_end_before_it_runs_does_not_stay(listener):
    server = SleepingServer(hello, timeout_graceful_shutdown_s=5)
    server.end()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_a_server_that_sleeps(number):
    with subprocess.Popen([sys.executable, "-c", SERVES_UNTIL_TOLD], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            os.kill(process.pid, number)
            assert process.wait(DEADLINE_S) in (-signal.SIGTERM, -signal.SIGINT, 1)
        finally:
            process.kill()
