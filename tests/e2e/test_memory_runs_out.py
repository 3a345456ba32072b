"""Memory runs out: users' code goes first, the control plane last, and who was killed for it is told so."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_harness import (
    CORTEX,
    Answer,
    Connection,
    Home,
    eventually,
    rows_model,
    running_home,
    write_project,
)
from engines import NODES, chosen

from cortex.agent.memorykills import LATELY_S
from cortex.settings import Settings

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
        pid = home.pid_of(title, "f/x")
        os.kill(pid, signal.SIGKILL)
        eventually(
            lambda gone=pid: not Path(f"/proc/{gone}").exists() and standing(home) == expected,
            f"everybody stands where they should once the {title} is another one",
        )


# ---- killed for memory -------------------------------------------------------------------------------------------

MIB = 2**20
LIMIT_BYTES = (500 + 200 * NODES[chosen()]) * MIB
"""Of everything that the home runs: some 250 MiB on one node are in use when nothing is asked for."""
GREEDY = """
    import os

    KEPT = []

    def pre_inference(sample, metadata):
        if sample:
            KEPT.append(b"x" * (sample * 2**20))
        return [1, 2, 3, 4]

    def post_inference(prediction, metadata):
        return os.getpid()
"""
TOO_MUCH = b"2000"


def a_cgroup(limit_bytes: int) -> Path:
    """The folder of a cgroup whose processes may hold no more together. Raises OSError: none can be made here."""
    version_1 = Path("/sys/fs/cgroup/memory")
    group = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / f"cortex-test-{os.getpid()}"
    group.mkdir()
    try:
        for name in ("memory.limit_in_bytes", "memory.max"):
            with contextlib.suppress(FileNotFoundError):
                (group / name).write_text(str(limit_bytes))
                return group
        raise FileNotFoundError("nothing limits memory here")
    except OSError:
        group.rmdir()
        raise


@pytest.fixture
def small_machine(home: Home) -> Iterator[Home]:
    """A home with two apis, all of whose processes together may hold no more than `LIMIT_BYTES`."""
    try:
        group = a_cgroup(LIMIT_BYTES)
    except OSError:
        pytest.skip("memory cannot be limited here")
    yaml = """
        - {kind: deployment, name: f}
        - {kind: api, name: x, model: m.onnx, request_handler: h.py, retry: off, compute: {cpu: 20m, mem: 100Mi}}
        - {kind: api, name: other, model: m.onnx, request_handler: h.py, compute: {cpu: 20m}}
    """
    try:
        command = f"echo $$ > {group}/cgroup.procs && exec {CORTEX} up"
        subprocess.run(["sh", "-c", command], env=home.environment(), check=True, capture_output=True)
        home.deploy(
            write_project(home.path.parent / "p", {"cortex.yaml": yaml, "h.py": GREEDY, "m.onnx": rows_model()})
        )
        yield home
    finally:
        home.close()
        eventually(lambda: not (group / "cgroup.procs").read_text(), "nobody is left in the cgroup")
        group.rmdir()


def asked(home: Home, api: str, body: bytes) -> Answer:
    with Connection(home.port) as connection:
        return connection.ask("POST", f"/f/{api}", body, {"content-type": "application/json"})


def killed_for_memory(home: Home) -> None:
    """Ask for more than there is."""
    home.once_ready("/f/x", b"0")
    answer = asked(home, "x", TOO_MUCH)
    assert (answer.status, answer.json["error"]) == (502, "replica-lost")


def ends(home: Home, api: str) -> list[str]:
    """What the log says of ends that nobody asked for."""
    return [text for text in home.logs(api) if text.startswith("this replica ended")]


def test_who_asks_for_more_than_there_is_is_killed_before_us_and_the_log_says_how_much_it_held(small_machine):
    home = small_machine
    ours = {(pid, title) for pid, title in home.processes() if not title.startswith("cortex-replica")}
    killed_for_memory(home)
    assert isinstance(home.once_ready("/f/x", b"0").json, int)
    shown = home.cortex("get", "f/x", "-o", "json").json
    assert shown["status"] == "live", "what is true now"
    assert shown["crashes"] >= 1, "what was"
    line = ends(home, "f/x")[0]
    found = re.fullmatch(
        r"this replica ended with the request in hand: killed by the kernel for memory at (\d+)Mi, "
        r"with a memory request of 100Mi",
        line,
    )
    assert found is not None, line
    assert 200 < int(found[1]) < LIMIT_BYTES / MIB
    assert ours <= set(home.processes()), "whoever runs no users' code stays"


def test_one_that_is_killed_for_memory_again_and_again_is_out_of_memory_with_peak_and_request(small_machine):
    home = small_machine
    for _ in range(3):
        killed_for_memory(home)

    def is_shown() -> bool:
        shown = home.cortex("get", "f/x", "-o", "json").json
        reason = r"(1 replica )?killed by the kernel for memory, peak \d+Mi, request 100Mi, \d+ crashes so far"
        return shown["status"] == "error (out of memory)" and re.fullmatch(reason, shown["reason"]) is not None

    eventually(is_shown, "the status says so")
    words = home.cortex("get", "f/x").out
    assert "error (out of memory)" in words
    assert "request 100Mi" in words


def test_somebody_elses_kill_is_not_called_the_kernels_although_memory_ran_out_before(small_machine):
    home = small_machine
    killed_for_memory(home)
    long_ago_s = time.monotonic() + LATELY_S + 2 * Settings(home=home.path).health_interval_s + 1
    eventually(lambda: time.monotonic() > long_ago_s, "that is no longer lately")
    before = ends(home, "f/other")  # the kernel may have taken it as well
    (pid,) = home.settled_replicas("f/other")
    os.kill(pid, signal.SIGKILL)
    home.once_ready("/f/other", b"0")
    (line,) = eventually(lambda: ends(home, "f/other")[len(before) :], "its end is logged")
    assert line.endswith(": killed by signal 9 (SIGKILL)")
