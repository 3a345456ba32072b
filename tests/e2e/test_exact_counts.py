"""What is shown as counted equals what clients received, to the unit, whatever ends and begins meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from contract_harness import Connection, Home, eventually, rows_model, running_home, write_project
from prometheus_client.parser import text_string_to_metric_families

from cortex.errors import CortexError

REQUESTS = 20_000
CLIENTS = 16
DISTRIBUTION = {"setosa": 50, "versicolor": 30, "日本語": 12, "no label": 4, "refused": 3, "broken": 1}
"""What a sample asks its handler for, in percent."""
STATUS = {"refused": 409, "broken": 500}

CORTEX_YAML = """
- kind: deployment
  name: counted
- kind: api
  name: x
  model: m.onnx
  request_handler: h.py
  sample: setosa
  tracker: {key: label, model_type: classification}
  compute: {cpu: 50m, min_replicas: 2}
"""
HANDLER = """
from cortex import RequestError

NUMBER = %d

def pre_inference(sample, metadata, request):
    if sample == "refused":
        raise RequestError(409, "as asked for")
    if sample == "broken":
        raise ValueError("as asked for")
    request.state["label"] = sample
    return [[1, 2, 3, 4]]

def post_inference(prediction, metadata, request):
    label = request.state["label"]
    return {"number": NUMBER} if label == "no label" else {"number": NUMBER, "label": label}
"""


@dataclass
class Received:
    """By version: what answers said."""

    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Received) -> None:
        for version, kinds in other.kinds.items():
            self.kinds.setdefault(version, Counter()).update(kinds)
        self.wrong += other.wrong

    def sum(self) -> Counter[str]:
        return sum(self.kinds.values(), Counter())


class Clients:
    """Sixteen of them, each with one connection and one request at a time."""

    def __init__(self, port: int, seed: int, *, hold_back: int) -> None:
        self.go_on = threading.Event()
        """Until it is set, only all but `hold_back` of the requests are sent."""
        self._sent = [0] * CLIENTS
        self._received = [Received() for _ in range(CLIENTS)]
        self._threads = [
            threading.Thread(target=self._ask, args=(number, port, random.Random(seed * CLIENTS + number), hold_back))
            for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def sent(self) -> int:
        return sum(self._sent)

    def join(self) -> Received:
        self.go_on.set()
        together = Received()
        for thread, received in zip(self._threads, self._received, strict=True):
            thread.join()
            together.add(received)
        return together

    def _ask(self, number: int, port: int, rng: random.Random, hold_back: int) -> None:
        received, mine = self._received[number], REQUESTS // CLIENTS
        connection = Connection(port)
        for turn in range(mine):
            if turn == mine - hold_back // CLIENTS:
                self.go_on.wait()
            (kind,) = rng.choices(list(DISTRIBUTION), list(DISTRIBUTION.values()))
            answer = connection.ask("POST", "/counted/x", json.dumps(kind).encode())
            self._sent[number] += 1
            received.kinds.setdefault(answer.headers.get("x-cortex-version", ""), Counter())[kind] += 1
            if answer.status != STATUS.get(kind, 200) or (
                kind in "setosa versicolor 日本語" and kind != _label(answer)
            ):
                received.wrong.append(f"{kind}: {answer}")
            if answer.headers.get("connection") == "close":
                connection.sock.close()
                connection = Connection(port)
        connection.sock.close()


def _label(answer: Any) -> Any:
    return answer.json.get("label")


@pytest.mark.timeout(600)
def test_counts_equal_what_was_received_through_an_update_and_killed_control_plane_and_agent(tmp_path: Path) -> None:
    seed = int(os.environ.get("CORTEX_SEED", "0")) or time.time_ns() % 2**32
    print(f"seed {seed}: CORTEX_SEED={seed} repeats the requests")
    project = write_project(tmp_path / "p", {"cortex.yaml": CORTEX_YAML, "m.onnx": rows_model(), "h.py": HANDLER % 1})
    with running_home() as home:
        home.deploy(project)
        first = shown(home)["version"]
        clients = Clients(home.port, seed, hold_back=REQUESTS // 5)
        try:
            until_sent(clients, REQUESTS // 10)
            kill(home.control_plane().pid)  # type: ignore[union-attr]
            until_sent(clients, REQUESTS // 4)
            (project / "h.py").write_text(HANDLER % 2)
            update = home.start("deploy", project)
            kill(eventually(lambda: agent_that_updates(home, first), "the update has begun"))
            out, err = update.communicate(timeout=300)
            assert update.returncode == 0, (out, err)
        finally:
            received = clients.join()
        assert received.wrong == []
        assert received.sum().total() == REQUESTS
        second = shown(home)["version"]
        assert set(received.kinds) == {first, second}
        assert min(kinds.total() for kinds in received.kinds.values()) > REQUESTS // 10

        api = eventually(lambda: is_counted((found := shown(home))["all_versions"]) and found, "all is counted")
        assert figures(api) == expected(received.kinds[second])
        assert figures(api["all_versions"]) == expected(received.sum())
        assert api["all_versions"]["versions"] == 2
        assert scraped(home) == expected(received.sum())


def expected(kinds: Counter[str]) -> dict[str, Any]:
    classes = {name: n for name, n in kinds.items() if name in ("setosa", "versicolor", "日本語")}
    return {
        "2xx": sum(classes.values()) + kinds["no label"],
        "4xx": kinds["refused"],
        "5xx": kinds["broken"],
        "classes": classes,
        "missed": kinds["no label"],
    }


def is_counted(part: dict[str, Any]) -> bool:
    """Whether all requests are there, and with each what was to be tracked of it."""
    counts = figures(part)
    tracked = sum(counts["classes"].values()) + counts["missed"]
    return sum(counts[name] for name in ("2xx", "4xx", "5xx")) >= REQUESTS and tracked >= counts["2xx"]


def figures(part: dict[str, Any]) -> dict[str, Any]:
    counts = {name: part["requests"][name] for name in ("2xx", "4xx", "5xx")}
    return {**counts, "classes": part["tracker"]["classes"], "missed": part["tracker"]["missed"]}


def scraped(home: Home) -> dict[str, Any]:
    """The same from the page for Prometheus."""
    found: dict[str, Any] = {"classes": {}}
    with Connection(home.operator_port) as connection:
        token = (home.path / "token").read_text().strip()
        page = connection.ask("GET", "/metrics", headers={"authorization": f"Bearer {token}"}).body.decode()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "cortex_requests_total":
                found[sample.labels["code"]] = sample.value
            elif sample.name == "cortex_predictions_total" and sample.labels["class"] != "(other)":
                found["classes"][sample.labels["class"]] = sample.value
            elif sample.name == "cortex_predictions_missed_total":
                found["missed"] = sample.value
    return found


def shown(home: Home) -> dict[str, Any]:
    found: dict[str, Any] = home.cortex("get", "counted/x", "-o", "json").json
    return found


def agent_that_updates(home: Home, before: str) -> int | None:
    """Pid of the agent, once another version than this is wanted."""
    try:
        operator = home.operator()
        return operator.info().agent_pid if operator.api("counted", "x").version != before else None
    except CortexError:  # the control plane is not back yet
        return None


def until_sent(clients: Clients, count: int) -> None:
    eventually(lambda: clients.sent >= count, f"{count} requests", deadline_s=300.0)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


LATE = """
import time

def pre_inference(sample, metadata):
    time.sleep(sample)
    return [[1, 2, 3, 4]]
"""
LATE_YAML = """
- {kind: deployment, name: late}
- {kind: api, name: x, model: m.onnx, request_handler: h.py, timeout: 1s, compute: {cpu: 50m}}
"""


def counts_of(home: Home, api: str) -> dict[str, int]:
    requests = home.cortex("get", api, "-o", "json").json["requests"]
    return {kind: requests[kind] for kind in ("2xx", "4xx", "5xx")}


def test_readers_see_what_was_answered_before_they_asked_and_a_removed_api_leaves_nothing(
    tmp_path: Path,
) -> None:
    project = write_project(tmp_path / "late", {"cortex.yaml": LATE_YAML, "h.py": LATE, "m.onnx": rows_model()})
    with running_home() as home:
        home.deploy(project)

        def post(sample: object) -> int:
            connection = Connection(home.port)
            try:
                return connection.ask("POST", "/late/x", json.dumps(sample).encode()).status
            finally:
                connection.sock.close()

        expected = {"2xx": 0, "4xx": 0, "5xx": 0}
        for sample, kind in ((0, "2xx"), ("text", "5xx"), (0, "2xx")):
            post(sample)
            expected[kind] += 1
            assert counts_of(home, "late/x") == expected
        # Within what the ingress waits on top of the timeout, and beyond it: once each, whoever answers.
        for seconds in (1.2, 1.9):
            assert post(seconds) == 504
            expected["5xx"] += 1
        assert post(0) == 200
        expected["2xx"] += 1
        assert counts_of(home, "late/x") == expected
        assert counts_of(home, "late/x") == expected, "and once only"
        home.cortex("delete", "late", "-y")
        home.deploy(project)
        shown = home.cortex("get", "late/x", "-o", "json").json
        assert counts_of(home, "late/x") == {"2xx": 0, "4xx": 0, "5xx": 0}
        assert shown["all_versions"]["requests"]["2xx"] == 0
        assert shown["requests"]["latency_ms"]["mean"] is None
