"""A large sample goes to the artifact store, and from there to replicas: never whole through our messages."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_harness import Connection, Home, eventually, rows_model, running_home, write_project

pytestmark = pytest.mark.slow

REPLICAS = 20
SAMPLE_BYTES = 10 * 2**20
LARGEST_MESSAGE_BYTES = 2 * 2**20
"""Files are fetched in parts of half of that."""
YAML = f"""
    - {{kind: deployment, name: d}}
    - kind: api
      name: x
      model: m.onnx
      sample: large.json
      compute: {{cpu: 20m, min_replicas: {REPLICAS}, max_replicas: {REPLICAS}}}
"""
NO_LARGER_MESSAGE = f"""\
from cortex.wire import framing
framing.MAX_FRAME_BYTES = {LARGEST_MESSAGE_BYTES}
"""
"""Python runs it first of all in every process: a larger frame then ends its connection."""


def a_sample(size_bytes: int) -> str:
    return "[1, 2, 3, 4" + " " * size_bytes + "]"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "sitecustomize.py").write_text(NO_LARGER_MESSAGE)
    with running_home() as home:
        home.variables["PYTHONPATH"] = str(tmp_path / "first")
        yield home


def test_many_replicas_answer_a_large_sample_without_a_large_message(home: Home) -> None:
    project = write_project(home.path.parent / "p", {"cortex.yaml": YAML, "m.onnx": rows_model()})
    (project / "large.json").write_text(a_sample(SAMPLE_BYTES))
    home.deploy(project)
    (shown,) = home.cortex("get", "-o", "json").json
    assert (shown["status"], shown["replicas"]["ready"]) == ("live", REPLICAS)
    (project / "large.json").write_text(a_sample(SAMPLE_BYTES + 1))
    assert "sample changed" in home.deploy(project).out
    assert home.cortex("predict", "d/x", cwd=project).json == [[[10.0]]]


def test_a_replica_comes_back_whatever_became_of_its_samples_stored_body(home: Home) -> None:
    yaml = YAML.replace(f"replicas: {REPLICAS}", "replicas: 1")
    project = write_project(home.path.parent / "p", {"cortex.yaml": yaml, "m.onnx": rows_model()})
    (project / "large.json").write_text(a_sample(1))
    home.deploy(project)
    bodies = home.stored("*/body")
    for body in bodies:
        os.chmod(body, 0o644)
        body.write_text("[1, 2]")
    (pid,) = home.settled_replicas("d/x")
    os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        (shown,) = home.cortex("get", "-o", "json").json
        return shown["crashes"] == 1 and shown["replicas"]["ready"] == 1

    eventually(is_back, "the replica is back")
    with Connection(home.port) as connection:
        assert connection.ask("POST", "/d/x", b"[1, 2, 3, 4]").json == [[[10.0]]]
    (shown,) = home.cortex("get", "-o", "json").json
    assert shown["sample_problem"]["reference"] == "sample-lost"
    home.deploy(project)
    assert bodies[0].read_text() == a_sample(1)
