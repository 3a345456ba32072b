"""Memory runs out: users' code goes first, the control plane last, and who was killed for it is told so."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_harness import Home, eventually, rows_model, running_home, write_project

pytestmark = pytest.mark.slow

HANDLER = """
    import os, subprocess

    def note(folder):
        with open(folder + "/" + str(os.getpid()), "w") as file:
            file.write(open("/proc/self/oom_score_adj").read())

    note(os.environ["FOLDER"])
    CHILD = subprocess.Popen(["sleep", "1000"])

    def pre_inference(sample, metadata):
        return [1, 2, 3, 4]

    def post_inference(prediction, metadata):
        return CHILD.pid
"""
ROW = b"[1, 2, 3, 4]"
STEPS = {"cortex-controlplane": 0, "cortex-agent": 100, "cortex-keeper": 100, "haproxy": 100, "cortex-launcher": 300}
USERS = 800


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


def deployed(home: Home) -> Path:
    """Where handlers leave the adjustment that they were imported with."""
    noted = home.path.parent / "noted"
    noted.mkdir()
    yaml = f"""
        - {{kind: deployment, name: f}}
        - {{kind: api, name: x, model: m.onnx, request_handler: h.py, env: {{FOLDER: {noted}}}, compute: {{cpu: 20m}}}}
    """
    home.deploy(write_project(home.path.parent / "p", {"cortex.yaml": yaml, "h.py": HANDLER, "m.onnx": rows_model()}))
    return noted


def adjustment(pid: int | str) -> int:
    """Source: proc(5), oom_score_adj."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def above(step: int) -> int:
    """That far above where everything begins, which is where we stand."""
    return min(1000, adjustment("self") + step)


def standing(home: Home) -> dict[str, set[int]]:
    """Adjustments of the processes that run Cortex, by what they are."""
    found: dict[str, set[int]] = {}
    for pid, title in home.processes():
        kind = "haproxy" if "haproxy -db" in title else title.split()[0]
        if kind in STEPS:
            found.setdefault(kind, set()).add(adjustment(pid))
    return found


@pytest.fixture
def _raises() -> None:
    """Some containers let nobody raise it."""
    own = adjustment("self")
    try:
        Path("/proc/self/oom_score_adj").write_text(str(min(1000, own + 1)))
        Path("/proc/self/oom_score_adj").write_text(str(own))
    except OSError:
        pytest.skip("no process may stand back for others here")


@pytest.mark.usefixtures("_raises")
def test_users_code_stands_first_in_line_and_the_control_plane_last_whoever_started_it(home):
    noted = deployed(home)
    expected = {kind: {above(step)} for kind, step in STEPS.items()}
    assert standing(home) == expected
    (replica,) = home.settled_replicas("f/x")
    child = home.once_ready("/f/x", ROW).json
    assert {adjustment(replica), adjustment(child)} == {above(USERS)}
    assert {int(file.read_text()) for file in noted.iterdir()} == {above(USERS)}, "when it is looked at, too"
    for title in ("cortex-controlplane", "cortex-agent"):  # each is started again by the other
        (pid,) = [pid for pid, found in home.processes() if found.startswith(title)]
        os.kill(pid, signal.SIGKILL)
        eventually(
            lambda gone=pid: not Path(f"/proc/{gone}").exists() and standing(home) == expected,
            f"everybody stands where they should once the {title} is another one",
        )
