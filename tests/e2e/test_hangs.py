"""Replicas that hang in every way: they are noticed and replaced, others go on, nothing is lost but what they held."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_harness import DEADLINE_S, Connection, Home, Traffic, eventually, rows_model, running_home, write_project

pytestmark = pytest.mark.slow

CORTEX_YAML = """
    - {kind: deployment, name: h}
    - kind: api
      name: sync
      model: m.onnx
      request_handler: sync.py
      env: {FOLDER: %(folder)s}
      timeout: 30s
      compute: {cpu: 20m, min_replicas: 2, max_replicas: 2}
    - kind: api
      name: stuck
      model: m.onnx
      request_handler: sync.py
      env: {FOLDER: %(folder)s}
      timeout: 2s
      compute: {cpu: 20m, min_replicas: 2, max_replicas: 2}
    - kind: api
      name: async
      model: m.onnx
      request_handler: async.py
      env: {FOLDER: %(folder)s}
      timeout: 2s
      compute: {cpu: 20m, min_replicas: 2, max_replicas: 2}
"""
HOW = """
    import ctypes, os, threading, time

    def hold_the_interpreter():
        ctypes.PyDLL(None).sleep(100000)  # unlike CDLL it keeps Python's lock meanwhile

    def deadlock():
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()

    def block():
        time.sleep(100000)

    def hang_once(how):
        \"\"\"The first who is asked to; whoever is asked again after its end answers.\"\"\"
        try:
            os.close(os.open(os.path.join(os.environ["FOLDER"], how), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        globals()[how]()
"""
SYNC = """
    from how import hang_once

    def pre_inference(sample, metadata):
        if isinstance(sample, str):
            hang_once(sample)
        return [1, 2, 3, 4]
"""
ASYNC = SYNC.replace("def pre", "async def pre")
ROW = b"[1, 2, 3, 4]"
MOST_HELD = 72
"""What the ingress gives one replica at once: `agent.rotation.max_connections`."""


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        files = {"how.py": HOW, "sync.py": SYNC, "async.py": ASYNC, "m.onnx": rows_model()}
        yaml = CORTEX_YAML % {"folder": home.path.parent}
        home.deploy(write_project(home.path.parent / "p", {"cortex.yaml": yaml, **files}))
        yield home


def is_another(home: Home, api: str, before: list[int]) -> bool:
    """Whether exactly one of the replicas was replaced."""
    now = home.replica_pids(api)
    return len(now) == len(before) and len(set(now) & set(before)) == len(before) - 1


def asked_to(home: Home, api: str, how: str) -> int:
    """The status that a request hears which has its replica hang, once."""
    with Connection(home.port) as connection:
        return connection.ask("POST", f"/h/{api}", f'"{how}"'.encode(), {"content-type": "application/json"}).status


def test_code_that_holds_the_interpreter_is_noticed_from_outside_and_what_its_replica_held_is_asked_again(home):
    before = home.settled_replicas("h/sync", 2)
    with Traffic(home.port, "/h/sync", ROW) as traffic:
        traffic.answered(100)
        assert asked_to(home, "sync", "hold_the_interpreter") == 200
        eventually(lambda: is_another(home, "h/sync", before), "it is replaced")
        traffic.answered(100)
    assert traffic.outcomes.keys() == {"200"}, traffic.outcomes
    assert any("it did not answer its health check for 5 s" in line for line in agent_log(home))


@pytest.mark.parametrize(("api", "how"), [("stuck", "deadlock"), ("async", "block"), ("async", "deadlock")])
def test_code_that_never_returns_costs_its_replica_once_the_time_of_its_request_is_up(home, api, how):
    before = home.settled_replicas(f"h/{api}", 2)
    with Traffic(home.port, f"/h/{api}", ROW) as traffic:
        traffic.answered(100)
        assert asked_to(home, api, how) == 504
        eventually(lambda: is_another(home, f"h/{api}", before), "it is replaced")
        traffic.answered(100)
    assert traffic.outcomes.keys() <= {"200", "504"}, traffic.outcomes
    assert traffic.outcomes["504"] <= MOST_HELD
    assert any("outlived its timeout" in line for line in agent_log(home))


def test_a_replica_that_somebody_has_stopped_goes_on_and_answers_what_waited(home):
    before = home.settled_replicas("h/sync", 2)
    with Traffic(home.port, "/h/sync", ROW) as traffic:
        traffic.answered(100)
        os.kill(before[0], signal.SIGSTOP)
        eventually(lambda: state(before[0]) != "T", "it goes on")
        traffic.answered(100)
    assert traffic.outcomes.keys() == {"200"}, traffic.outcomes
    assert home.settled_replicas("h/sync", 2) == before
    assert home.cortex("get", "h/sync", "-o", "json").json["crashes"] == 0


SLOW_TO_COME = """\
import os, sys, time

if "cortex.agent" in " ".join(sys.orig_argv):
    from cortex.agent import dialing

    introduce = dialing.introduce

    async def hesitating(*args, **kwargs):
        while not os.path.exists(os.environ["GO"]):
            time.sleep(0.05)
        return await introduce(*args, **kwargs)

    dialing.introduce = hesitating
if "cortex.controlplane" in " ".join(sys.orig_argv):
    from cortex.controlplane import supervision

    supervision.UNHEARD_AFTER_S = 0.0
"""


def test_an_agent_that_takes_its_time_to_come_is_left_to_it(tmp_path: Path) -> None:
    """Only one that somebody else has started may be of a version that never comes."""
    first = write_project(tmp_path / "first", {"sitecustomize.py": SLOW_TO_COME})
    go = tmp_path / "go"
    path = os.pathsep.join(filter(None, [str(first), os.environ.get("PYTHONPATH", "")]))
    with running_home(PYTHONPATH=path, GO=str(go)) as home:
        with home.start("up") as up:
            eventually(lambda: all(node.agent_file.exists() for node in home.nodes), "the agents have started")
            until_s = time.monotonic() + 2
            eventually(lambda: time.monotonic() > until_s, "they have been looked for")
            go.touch()
            up.communicate(timeout=DEADLINE_S)
        eventually(lambda: home.operator().info().ingress_up, "they have come")
        assert "takes its place" not in home.written("controlplane.log")


def agent_log(home: Home) -> list[str]:
    return home.written("agent.log").splitlines()


def state(pid: int) -> str:
    """Source: proc(5), field 3 of /proc/pid/stat."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""
