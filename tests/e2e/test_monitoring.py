"""What `cortex get` and `/metrics` show of answers of every kind, and that it outlives everything that runs."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_harness import Connection, Home, eventually, rows_model, running_home, write_project
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_strictly

LONG = "é" * 10_000
CORTEX_YAML = """
- kind: deployment
  name: watched
- kind: api
  name: classes
  model: m.onnx
  request_handler: h.py
  sample: warm-up
  tracker: {key: label, model_type: classification}
  max_body: 32Ki
  compute: {cpu: 50m}
- kind: api
  name: numbers
  model: m.onnx
  sample: [1, 2, 3, 4]
  tracker: {model_type: regression}
  compute: {cpu: 50m}
"""
HANDLER = """
import numpy as np

def pre_inference(sample, metadata, request):
    request.state["sample"] = sample
    return [[1, 2, 3, 4]]

def post_inference(prediction, metadata, request):
    sample = request.state["sample"]
    if sample == "unserialisable":
        return {"label": object()}
    if sample == "no object":
        return "label"
    if sample == "numpy":
        return {"label": np.array([7])}
    return sample if isinstance(sample, dict) else {"label": sample}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    project = write_project(
        tmp_path_factory.mktemp("p"), {"cortex.yaml": CORTEX_YAML, "m.onnx": rows_model(), "h.py": HANDLER}
    )
    with running_home() as home:
        home.deploy(project)
        yield home


def ask(home: Home, api: str, *samples: Any) -> list[int]:
    """Status of the answer to each sample."""
    with Connection(home.port) as connection:
        return [
            connection.ask("POST", f"/watched/{api}", json.dumps(sample, ensure_ascii=False).encode()).status
            for sample in samples
        ]


def shown(home: Home, api: str) -> Any:
    return home.cortex("get", f"watched/{api}", "-o", "json").json


def once_answered(home: Home, api: str, count: int, *, tracked: int) -> Any:
    """The api's figures once so many of its requests are counted, and so many predictions, found or missed."""

    def look() -> Any:
        found = shown(home, api)
        counted = sum(found["requests"][name] for name in ("2xx", "4xx", "5xx"))
        seen = found["tracker"]["count"] + found["tracker"]["missed"]
        return found if (counted, seen) == (count, tracked) else None

    return eventually(look, f"{count} requests of {api}, {tracked} predictions")


def metrics(home: Home, token: str) -> tuple[int, str]:
    with Connection(home.operator_port) as connection:
        answer = connection.ask("GET", "/metrics", headers={"authorization": f"Bearer {token}"})
        return answer.status, answer.body.decode()


@pytest.mark.timeout(300)
def test_everything_that_is_answered_is_counted_as_what_it_is_and_stays(home: Home) -> None:
    classes = ["日本", "日本", LONG, "a\nb\x1b[2J", 3, True, "numpy", ["only"]]
    misses = [
        {"lable": "a"},
        {"label": None},
        {"label": 1.5},
        {"label": [["a", "b"], ["c", "d"]]},
        {"label": {}},
        "no object",
    ]
    assert ask(home, "classes", *classes, *misses) == [200] * len(classes + misses)
    assert ask(home, "classes", "unserialisable") == [500]
    with Connection(home.port) as connection:
        assert connection.ask("GET", "/watched/classes").status == 200
        refused = connection.ask("POST", "/watched/classes", b"[" + b" " * 32 * 1024 + b"]")
        assert refused.status == 413
    # A header that breaks off is answered by the ingress alone, and belongs to no api.
    with socket.create_connection(("127.0.0.1", home.port)) as broken:
        broken.sendall(b"POST /watched/classes HTTP/1.1\r\nhost\r\n\r\n")
        assert b" 400 " in broken.recv(4096)

    found = once_answered(home, "classes", len(classes + misses) + 2, tracked=len(classes + misses))
    assert found["requests"].items() >= {"2xx": len(classes + misses), "4xx": 1, "5xx": 1}.items()
    tracker = found["tracker"]
    (shortened,) = [name for name in tracker["classes"] if name.startswith("éé")]
    assert len(shortened) < 256
    assert tracker == {
        "model_type": "classification",
        "count": len(classes),
        "missed": len(misses),
        "classes": {"日本": 2, shortened: 1, "a\nb\x1b[2J": 1, "3": 1, "true": 1, "7": 1, "only": 1},
        "other": 0,
        "approximate": False,
    }
    warnings = [text for text in home.logs("watched/classes") if text.startswith("tracker:")]
    assert len(warnings) == 1
    assert 'no key "label"; its keys: "lable"' in warnings[0]
    out = home.cortex("get", "watched/classes").out
    assert "日本" in out
    assert "\x1b" not in out
    assert f"{len(misses)} responses without a value to track" in out

    assert ask(home, "numbers", [1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0], [None, 0, 0, 0]) == [200] * 4
    assert ask(home, "numbers", [[-4.5, 0, 0, 0], [3e38, 3e38, 0, 0]]) == [200]  # two rows; their sum is infinite
    found = once_answered(home, "numbers", 5, tracked=6)
    regression = found["tracker"]
    assert {name: regression[name] for name in ("count", "missed", "min", "max", "mean")} == {
        "count": 4,
        "missed": 2,
        "min": -4.5,
        "max": 3.0,
        "mean": 0.375,
    }
    assert regression["quantiles"] == pytest.approx({"p50": 1.0, "p90": 3.0, "p99": 3.0}, rel=0.01)
    assert sum(bar["count"] for bar in regression["histogram"]) == 4
    assert sum(found["traffic"]["minutes"]) == 5

    before = [shown(home, api) for api in ("classes", "numbers")]
    home.cortex("down", "--drain", "5s")
    home.cortex("up")
    for api, was in zip(("classes", "numbers"), before, strict=True):
        now = shown(home, api)
        for part in ("requests", "tracker", "all_versions"):
            assert now[part] == was[part]
    # The replicas have the names and numbers of those before them, and count anew.
    eventually(lambda: shown(home, "numbers")["status"] == "live", "it is back")
    assert ask(home, "numbers", [1, 0, 0, 0]) == [200]
    assert once_answered(home, "numbers", 6, tracked=7)["tracker"]["count"] == 5


def test_the_page_for_prometheus_needs_the_token_and_reads_strictly(home: Home) -> None:
    status, body = metrics(home, "guessed")
    assert (status, json.loads(body)["error"]) == (401, "wrong-token")
    file = home.path / "metrics-token"
    assert file.stat().st_mode & 0o777 == 0o600
    eventually(lambda: home.operator().info().ingress_up, "the agent has told of the ingress")
    status, page = metrics(home, file.read_text().strip())
    assert status == 200
    families = list(parse_strictly(re.sub(r"(?m)^(# (?:HELP|TYPE) \w+)_total ", r"\1 ", page) + "# EOF\n"))
    names = {family.name for family in families}
    assert {
        "cortex_requests",
        "cortex_request_duration_seconds",
        "cortex_replicas",
        "cortex_ingress_up",
        "cortex_agent_start_time_seconds",
        "cortex_planner_tick_duration_seconds",
    } <= names
    ups = [sample.value for family in families if family.name == "cortex_ingress_up" for sample in family.samples]
    assert ups == [1] * len(home.nodes)


@pytest.mark.timeout(200)
def test_a_tracker_that_can_never_match_fails_the_deploy_and_changes_nothing(home: Home, tmp_path: Path) -> None:
    before = shown(home, "numbers")["version"]
    wrong = CORTEX_YAML.replace("tracker: {model_type: regression}", "tracker: {model_type: classification}")
    project = write_project(tmp_path / "p", {"cortex.yaml": wrong, "m.onnx": rows_model(), "h.py": HANDLER})
    ran = home.deploy(project, code=1)
    assert "error: tracker-never-matches" in ran.err
    assert "cortex.yaml:16" in ran.err
    assert shown(home, "numbers")["version"] == before
