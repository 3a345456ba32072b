"""Replicas that follow the load, sleep when nobody asks, and wake for the first who does, as a user sees it."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from contract_harness import Connection, Home, calling, eventually, rows_model, running_home, write_project

HANDLER = """
import os, time

NUMBER = %d

def pre_inference(sample, metadata):
    time.sleep(%g)
    return [[1, 2, 3, 4]]

def post_inference(prediction, metadata):
    return NUMBER
"""
SLEEPS = 8


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


def a_project(home: Home, compute: str, *, number: int = 1, waits_s: float = 0.0, further: str = "") -> Path:
    api = f"{{kind: api, name: x, model: m.onnx, request_handler: h.py, sample: [1]{further}, compute: {{{compute}}}}}"
    return write_project(
        home.path.parent / "p",
        {
            "cortex.yaml": f"- {{kind: deployment, name: d}}\n- {api}\n",
            "m.onnx": rows_model(),
            "h.py": HANDLER % (number, waits_s),
        },
    )


def shown(home: Home) -> dict[str, Any]:
    found: dict[str, Any] = home.cortex("get", "d/x", "-o", "json").json
    return found


def has_status(home: Home, status: str) -> bool:
    return bool(shown(home)["status"] == status)


@dataclass
class Callers:
    """Each with a connection of its own that it keeps, and one request at a time."""

    port: int
    pause_s: float
    """The most that one waits between an answer and the next request."""
    answers: Counter[tuple[int, str]] = field(default_factory=Counter)

    def call(self, seed: int, enough: threading.Event) -> None:
        chance = random.Random(seed)
        with Connection(self.port) as connection:
            while not enough.is_set():
                answer = connection.ask("POST", "/d/x", b"[1]")
                self.answers[answer.status, answer.body.decode()] += 1
                enough.wait(chance.uniform(0.0, self.pause_s))


def test_replicas_follow_the_load_up_to_what_is_allowed_and_go_when_it_has_gone(home: Home) -> None:
    home.deploy(a_project(home, "max_replicas: 3, downscale_window: 1s", waits_s=0.05))
    assert shown(home)["replicas"]["requested"] == 1
    callers = Callers(home.port, pause_s=0.0)
    with calling(callers.call, 8):
        eventually(lambda: shown(home)["replicas"]["ready"] == 3, "three replicas")
        scaling = eventually(
            lambda: (told := shown(home)["scaling"]) and told["wanted"] > 3 and told, "more are asked for than allowed"
        )
        verbose = home.cortex("get", "d/x", "-v").out
    assert callers.answers.keys() == {(200, "1")}
    assert scaling["bound"] == "maximum"
    assert scaling["reason"].endswith("; capped by max_replicas 3")
    assert "`concurrency: " in scaling["advice"]
    assert "\nscaling\n  wanted " in verbose
    eventually(lambda: shown(home)["replicas"]["requested"] == 1, "one replica again", 120.0)
    eventually(lambda: len(home.settled_replicas("d/x")) == 1, "one process")


def test_an_api_sleeps_without_a_process_and_the_first_who_asks_waits_for_one(home: Home) -> None:
    home.deploy(a_project(home, "min_replicas: 0, idle_timeout: 1s"))
    eventually(lambda: has_status(home, "asleep"), "it sleeps")
    assert home.replica_pids("d/x") == []
    assert shown(home)["replicas"]["requested"] == 0
    with Connection(home.port) as connection:
        health = connection.ask("GET", "/d/x/v2/health/ready")
        assert (health.status, health.headers["cortex-status"]) == (200, "asleep")
        assert home.replica_pids("d/x") == []
        assert connection.ask("POST", "/d/x", b"[1]").json == 1
    eventually(lambda: has_status(home, "asleep"), "it sleeps again")
    with Connection(home.port) as connection:
        assert connection.ask("GET", "/d/x").status == 200
    eventually(lambda: has_status(home, "asleep"), "it sleeps again")
    home.cortex("down")
    home.cortex("up")
    eventually(lambda: has_status(home, "asleep"), "it still sleeps")
    assert home.replica_pids("d/x") == []
    assert home.once_ready("/d/x", b"[1]").json == 1


def test_no_request_is_lost_while_an_api_falls_asleep_again_and_again_though_none_may_be_repeated(home: Home) -> None:
    home.deploy(a_project(home, "min_replicas: 0, idle_timeout: 50ms", further=", retry: off"))
    log = home.path / "logs" / "controlplane.log"
    callers = Callers(home.port, pause_s=2.0)
    with calling(callers.call, 3):
        eventually(lambda: log.read_text().count("falls asleep") >= SLEEPS, f"{SLEEPS} sleeps", 180.0)
    assert callers.answers.keys() == {(200, "1")}


def test_a_deploy_of_an_api_that_sleeps_shows_that_it_works_and_then_it_sleeps_again(home: Home) -> None:
    home.deploy(a_project(home, "min_replicas: 0, idle_timeout: 1s"))
    eventually(lambda: has_status(home, "asleep"), "it sleeps")
    assert home.deploy(a_project(home, "min_replicas: 0, idle_timeout: 1s")).code == 0
    assert home.replica_pids("d/x") == []
    home.deploy(a_project(home, "min_replicas: 0, idle_timeout: 1s", number=2))
    eventually(lambda: has_status(home, "asleep"), "it sleeps again")
    with Connection(home.port) as connection:
        assert connection.ask("POST", "/d/x", b"[1]").json == 2
    eventually(lambda: has_status(home, "asleep"), "it sleeps again")
    project = a_project(home, "min_replicas: 0, idle_timeout: 1s", number=3)
    write_project(project, {"h.py": "def pre_inference(sample, metadata):\n    raise ValueError\n"})
    home.deploy(project, code=1)
    with Connection(home.port) as connection:
        assert connection.ask("POST", "/d/x", b"[1]").json == 2
    home.deploy(a_project(home, "min_replicas: 1", number=2))
    eventually(lambda: has_status(home, "live"), "it does not sleep any more")


def test_a_timeout_of_an_api_holds_while_it_wakes(home: Home) -> None:
    home.deploy(a_project(home, "min_replicas: 0, idle_timeout: 500ms", further=", timeout: 300ms"))
    project = home.path.parent / "p"
    write_project(project, {"h.py": "import time\ntime.sleep(2)\n" + HANDLER % (1, 0.0)})
    home.deploy(project)
    eventually(lambda: has_status(home, "asleep"), "it sleeps")
    begun_s = time.monotonic()
    with Connection(home.port) as connection:
        answer = connection.ask("POST", "/d/x", b"[1]")
    assert answer.status == 504
    assert time.monotonic() - begun_s < 20.0
