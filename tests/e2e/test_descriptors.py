"""Processes that are out of descriptors: it is said, nobody dies of it, and all go on when there are some again."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Iterator

import pytest
from contract_harness import DEADLINE_S, Connection, Home, Traffic, eventually, rows_model, running_home, write_project

pytestmark = pytest.mark.slow

CORTEX_YAML = """
    - {kind: deployment, name: f}
    - {kind: api, name: x, model: m.onnx, request_handler: h.py, compute: {cpu: 20m}}
"""
HANDLER = """
    import os, resource

    LEAKED = []

    def pre_inference(sample, metadata):
        if sample == "leak":
            resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            while len(os.listdir("/proc/self/fd")) < 190:
                LEAKED.append(open("/dev/null"))
        if sample == "close":
            while LEAKED:
                LEAKED.pop().close()
        return [1, 2, 3, 4]

    def post_inference(prediction, metadata):
        return os.getpid()
"""
ROW = b"[1, 2, 3, 4]"
JSON = {"content-type": "application/json"}
IDLE = 500


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        files = {"cortex.yaml": CORTEX_YAML, "h.py": HANDLER, "m.onnx": rows_model()}
        home.deploy(write_project(home.path.parent / "p", files))
        yield home


def test_a_replica_out_of_descriptors_has_new_connections_wait_and_answers_on_those_that_it_has(home):
    with Connection(home.port) as kept:
        assert kept.ask("POST", "/f/x", b'"leak"', JSON).status == 200
        eventually(lambda: any("descriptors are left" in line for line in home.logs("f/x")), "it says so")
        for _ in range(20):
            assert kept.ask("POST", "/f/x", ROW, JSON).status == 200
        with Connection(home.port) as waiting:
            waiting.send(
                b"POST /f/x HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n" + ROW
            )
            assert kept.ask("POST", "/f/x", b'"close"', JSON).status == 200
            assert waiting.receive().status == 200
    eventually(lambda: any("descriptors again" in line for line in home.logs("f/x")), "it says that as well")


def test_a_replica_whose_descriptors_do_not_come_back_is_replaced_and_who_waits_is_answered_by_the_next(home):
    (before,) = home.settled_replicas("f/x")
    with Connection(home.port) as connection:
        assert connection.ask("POST", "/f/x", b'"leak"', JSON).status == 200
    eventually(lambda: any("descriptors are left" in line for line in home.logs("f/x")), "it says so")
    with Connection(home.port) as waiting:
        answer = waiting.ask("POST", "/f/x", ROW, JSON)
    assert (answer.status, answer.json != before) == (200, True)
    assert "no descriptors left for new connections" in home.written("agent.log")


@contextlib.contextmanager
def no_descriptor_more(pid: int) -> Iterator[None]:
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("title", ["cortex-agent", "cortex-controlplane", "cortex-keeper", "cortex-launcher"])
def test_whoever_else_is_out_of_descriptors_lives_on_and_predictions_too(home, title):
    pid = home.pid_of(title, "f/x")
    with (
        contextlib.ExitStack() as idle,
        Traffic(home.port, "/f/x", ROW, clients=8, per_s=100) as traffic,
    ):
        for _ in range(IDLE):
            idle.enter_context(Connection(home.port))
        with no_descriptor_more(pid):
            project = write_project(home.path.parent / "p", {"m.onnx": rows_model(2)})
            deploy = home.start("deploy", project)
            traffic.answered(300)
        out, err = deploy.communicate(timeout=100)
        if deploy.returncode:  # it may have been told so, or have waited
            assert b"Too many open files" in err or b"does not answer" in err, (out, err)
        home.deploy(project)
        traffic.answered(100)
    assert traffic.outcomes.keys() == {"200"}
    assert pid in {pid for pid, _ in home.processes()}
    for log in ("agent.log", "controlplane.log"):
        assert home.written(log).count("Traceback") < 50, "it is said, and not without end"


def test_an_agent_that_cannot_take_connections_says_so_once_and_takes_them_later(home):
    pid, node = home.pid_of("cortex-agent", "f/x"), home.node_of("f/x")
    with contextlib.ExitStack() as connections:

        def is_said() -> bool:
            line = connections.enter_context(socket.socket(socket.AF_UNIX))
            line.settimeout(DEADLINE_S)
            line.connect(str(node.agent_socket))
            return "who connects waits until there are some" in home.written("agent.log")

        with no_descriptor_more(pid):
            eventually(is_said, "it says so")
            until_s = time.monotonic() + 3
            eventually(lambda: time.monotonic() > until_s, "it has tried again")
    written = home.written("agent.log")
    assert (written.count("who connects waits"), written.count("Traceback")) == (1, 0)
    assert home.cortex("info").code == 0
    home.deploy(write_project(home.path.parent / "p", {"m.onnx": rows_model(2)}))
