"""What may happen to one of several nodes while the others are well."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_harness import Connection, Home, Traffic, eventually, rows_model, running_home, write_project
from prometheus_client.parser import text_string_to_metric_families
from test_nodes import ROW, door, nodes_of, pids_of, up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


# ---- a node that is gone -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def dead(node: dict[str, Any]) -> Iterator[None]:
    """Nothing of it runs, and nothing of it can be started."""
    place = Path(node["home"])
    aside = place.with_name(f"{place.name}-aside")
    place.rename(aside)
    place.touch()
    for pid in pids_of(node):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        yield
    finally:
        place.unlink()
        aside.rename(place)


HANDLER = """
import os, threading
from pathlib import Path

NOTE = Path({note!r})
try:
    with NOTE.open("x") as stream:
        stream.write(str(os.getpid()))
except FileExistsError:
    pass
else:
    threading.Event().wait()  # the first to be here stays until it is killed


def pre_inference(sample, metadata):
    return [sample]
"""


def test_a_deploy_needs_neither_the_first_node_nor_the_one_that_dies_while_it_looks_at_the_handler(
    home: Home, tmp_path: Path
) -> None:
    nodes = up(home, 3)
    note = tmp_path / "note"
    files = {
        "cortex.yaml": """
            - {kind: deployment, name: d}
            - {kind: api, name: one, model: m.onnx, request_handler: h.py, compute: {cpu: 20m}}
        """,
        "m.onnx": rows_model(),
        "h.py": HANDLER.format(note=str(note)),
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(dead(nodes[0]))
        deploy = home.start("deploy", cwd=write_project(home.path.parent / "p", files))
        pid = int(eventually(lambda: note.exists() and note.read_text(), "a handler is looked at"))
        (looking,) = [node for node in nodes[1:] if pid in pids_of(node)]
        stack.enter_context(dead(looking))
        out, err = deploy.communicate(timeout=240)
        assert deploy.returncode == 0, (out, err)
        (left,) = [node for node in nodes[1:] if node is not looking]
        with Traffic(door(left), "/d/one", ROW) as traffic:
            traffic.answered(10)
        assert set(traffic.outcomes) == {"200"}


# ---- a disk that is full -----------------------------------------------------------------------------------------
@pytest.fixture
def small_disk(home: Home) -> Iterator[Path]:
    """The home of the second node, on a file system of 80 MiB: with little left, as 64 MiB are for what serves."""
    place = home.path / "nodes" / "node-2"
    for folder in (home.path, place.parent, place):
        folder.mkdir(mode=0o700)
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=80m,mode=700", "tmpfs", str(place)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield place
    finally:
        home.cortex("down", "--drain", "1s", code=None)
        home.kill_all()
        subprocess.run(["umount", str(place)], check=True)


def fill(place: Path) -> None:
    """Leave no byte on a disk."""
    for size in (2**16, 100):
        with (place / "not-ours").open("ab", buffering=0) as stream, contextlib.suppress(OSError):
            while True:
                stream.write(b"x" * size)


def two_replicas(home: Home, weight: float) -> Path:
    compute = "compute: {cpu: 20m, min_replicas: 2, max_replicas: 2}"
    yaml = f"""
        - {{kind: deployment, name: d}}
        - {{kind: api, name: two, model: m.onnx, rollout: {{watch: 0}}, {compute}}}
    """
    return write_project(home.path.parent / "p", {"cortex.yaml": yaml, "m.onnx": rows_model(weight)})


def counted(home: Home) -> float:
    """Requests that were answered with 200, by any version."""
    with Connection(home.operator_port) as connection:
        token = (home.path / "token").read_text().strip()
        page = connection.ask("GET", "/metrics", headers={"authorization": f"Bearer {token}"}).body.decode()
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    found = [sample for sample in samples if sample.name == "cortex_requests_total"]
    return sum(sample.value for sample in found if sample.labels["code"] == "2xx")


def test_a_full_disk_on_one_node_is_named_fails_nobody_and_is_got_over(home: Home, small_disk: Path) -> None:
    nodes = up(home, 2)
    home.deploy(two_replicas(home, 1))
    assert [node["replicas"] for node in nodes_of(home)] == [1, 1]
    with Traffic(door(nodes[0]), "/d/two", ROW) as first, Traffic(door(nodes[1]), "/d/two", ROW) as second:
        fill(small_disk)
        first.answered(100)
        second.answered(100)
        refused = home.deploy(two_replicas(home, 2), code=1)
        assert "error: node-disk-full\n" in refused.err
        assert f"free space on the disk that holds {small_disk}/artifacts" in refused.err
        fill(small_disk)
        former = home.control_plane()
        assert former is not None
        os.kill(former.pid, signal.SIGKILL)
        eventually(lambda: (now := home.control_plane()) and now.pid != former.pid, "another one is there by itself")
        first.answered(100)
        second.answered(100)
        (small_disk / "not-ours").unlink()
        home.deploy(two_replicas(home, 3))
        assert [node["replicas"] for node in nodes_of(home)] == [1, 1]
        first.answered(100)
        second.answered(100)
    outcomes = first.outcomes + second.outcomes
    assert set(outcomes) == {"200"}
    eventually(lambda: counted(home) >= outcomes["200"], "all that was answered is counted")
    assert counted(home) == outcomes["200"], "nothing is counted twice"
