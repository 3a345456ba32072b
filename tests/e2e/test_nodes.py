"""One machine that is several nodes: `cortex up --nodes`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_harness import Connection, Home, Traffic, eventually, rows_model, running_home, write_project

pytestmark = pytest.mark.slow

ROW = b"[1, 2, 3, 4]"
YAML = """
    - {kind: deployment, name: d}
    - {kind: api, name: one, model: m.onnx, compute: {cpu: 20m, max_replicas: 1}}
    - {kind: api, name: two, model: m.onnx, compute: {cpu: 20m, min_replicas: 2, max_replicas: 2}}
"""


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


def nodes_of(home: Home) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(home.cortex("info", "-o", "json").out)["nodes"]
    return found


def door(node: dict[str, Any]) -> int:
    return int(node["door"].rpartition(":")[2])


def up(home: Home, count: int) -> list[dict[str, Any]]:
    """The nodes, once all of them are there."""
    home.cortex("up", "--nodes", str(count))

    def there() -> list[dict[str, Any]] | None:
        nodes = nodes_of(home)
        return nodes if all(node["state"] == "ready" and node["door"] for node in nodes) else None

    return eventually(there, f"{count} nodes are ready")


def deployed(home: Home) -> None:
    home.deploy(write_project(home.path.parent / "p", {"cortex.yaml": YAML, "m.onnx": rows_model()}))


def pids_of(node: dict[str, Any]) -> list[int]:
    """All processes that name a node's home."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") + " "
            if entry.name.isdigit() and (f"{node['home']} " in title or f"{node['home']}/" in title):
                found.append(int(entry.name))
    return found


def killed(node: dict[str, Any]) -> list[int]:
    """kill -9 of everything of a node; the pids."""
    found = pids_of(node)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


def test_every_door_serves_every_api_and_counts_are_those_of_one_machine(home: Home) -> None:
    nodes = up(home, 3)
    assert [node["name"] for node in nodes] == ["node-1", "node-2", "node-3"]
    assert door(nodes[0]) == home.port
    assert [node["home"] for node in nodes] == [str(home.path / "nodes" / node["name"]) for node in nodes]
    deployed(home)
    assert sum(node["replicas"] for node in nodes_of(home)) == 3
    assert sum(node["replicas"] > 0 for node in nodes_of(home)) >= 2, "an api with two replicas is on two nodes"
    for node in nodes:
        for api in ("one", "two"):
            with Connection(door(node)) as connection:
                answer = eventually(lambda: answered(connection, api), f"{node['name']} serves {api}")  # noqa: B023
                assert answer == [[[10.0]]]
    shown = {api["name"]: api["requests"] for api in home.cortex("get", "-o", "json").json}
    assert {name: requests["2xx"] for name, requests in shown.items()} == {"one": 3, "two": 3}


def answered(connection: Connection, api: str) -> Any:
    answer = connection.ask("POST", f"/d/{api}", ROW)
    return answer.json if answer.status == 200 else None


def test_a_node_that_is_killed_fails_nothing_at_the_other_doors_and_is_used_again(home: Home) -> None:
    nodes = up(home, 3)
    deployed(home)
    with_two = [node for node in nodes_of(home) if node["replicas"]]
    victim = next(node for node in reversed(with_two) if node["name"] != "node-1")
    others = [node for node in nodes if node["name"] != victim["name"]]
    with Traffic(door(others[0]), "/d/two", ROW) as first, Traffic(door(others[1]), "/d/two", ROW) as second:
        first.answered(100)
        second.answered(100)
        before = killed(victim)
        first.answered(200)
        second.answered(200)
        eventually(lambda: set(pids_of(victim)) - set(before), "its agent is started again")
    assert {*first.outcomes, *second.outcomes} == {"200"}, (first.outcomes, second.outcomes)

    def whole() -> bool:
        shown = home.cortex("get", "-o", "json").json
        ready = [api["replicas"]["ready"] for api in shown]
        return ready == [1, 2] and all(node["state"] == "ready" for node in nodes_of(home))

    eventually(whole, "everything is as it shall be")
    with Connection(door(victim)) as connection:
        eventually(lambda: answered(connection, "two"), "its door serves again")


@pytest.mark.parametrize("returns", [True, False])
def test_a_node_with_the_only_replica_of_an_api_is_lost_and_no_request_fails_at_the_other_doors(
    home: Home, returns: bool
) -> None:
    up(home, 3)
    yaml = """
        - {kind: deployment, name: d}
        - {kind: api, name: one, model: m.onnx, compute: {cpu: 20m, max_replicas: 1}}
    """
    home.deploy(write_project(home.path.parent / "p", {"cortex.yaml": yaml, "m.onnx": rows_model()}))
    nodes = nodes_of(home)
    (victim,) = (node for node in nodes if node["replicas"])
    others = [node for node in nodes if node["name"] != victim["name"]]
    large = ROW.ljust(100_000)
    with Traffic(door(others[0]), "/d/one", ROW) as first, Traffic(door(others[1]), "/d/one", large) as second:
        first.answered(100)
        second.answered(100)
        before = killed(victim)
        asked = first.outcomes["200"], second.outcomes["200"]
        if not returns:
            eventually(lambda: killed(victim) and moved(home, victim), "it is replaced on another node")
        first.answered(100, asked[0])
        second.answered(100, asked[1])
        eventually(lambda: set(pids_of(victim)) - set(before), "its agent is started again")
    assert {*first.outcomes, *second.outcomes} == {"200"}, (first.outcomes, second.outcomes)


def moved(home: Home, victim: dict[str, Any]) -> bool:
    return any(node["replicas"] for node in nodes_of(home) if node["name"] != victim["name"])


def test_apis_that_sleep_on_different_nodes_are_woken_where_they_sleep_from_every_door(home: Home) -> None:
    nodes = up(home, 2)
    yaml = "- {kind: deployment, name: d}\n" + "".join(
        f"- {{kind: api, name: {name}, model: m.onnx, retry: off, compute: {{cpu: 20m, min_replicas: 0, "
        "max_replicas: 1, idle_timeout: 1s}}\n"
        for name in ("x", "y")
    )
    home.deploy(write_project(home.path.parent / "p", {"cortex.yaml": yaml, "m.onnx": rows_model()}))
    for node in nodes * 2:
        eventually(lambda: asleep(home) == {"x", "y"}, "both sleep")
        for api in ("x", "y"):
            with Connection(door(node)) as connection:
                assert connection.ask("POST", f"/d/{api}", ROW).status == 200, (node["name"], api)


def asleep(home: Home) -> set[str]:
    return {api["name"] for api in home.cortex("get", "-o", "json").json if api["status"] == "asleep"}


def test_the_number_of_nodes_is_remembered_and_changes_once_everything_is_down(home: Home) -> None:
    up(home, 2)
    deployed(home)
    refused = home.cortex("up", "--nodes", "3", code=1)
    assert refused.err.splitlines()[:2] == ["error: nodes-running", "  cortex runs as 2 nodes here, not as 3"]
    home.cortex("down")
    assert home.processes() == []
    home.cortex("up")
    assert [node["name"] for node in nodes_of(home)] == ["node-1", "node-2"]
    home.cortex("down")
    (alone,) = up(home, 1)
    assert (alone["name"], alone["home"]) == ("local", str(home.path))
    assert home.once_ready("/d/one", ROW).json == [[[10.0]]], "what was deployed is kept"
    home.cortex("down", "--purge", "-y")
    assert not home.path.exists()
