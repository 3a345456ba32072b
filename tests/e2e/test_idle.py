"""Idle means idle: what is left running after many deploys, good and bad, takes next to nothing of a processor."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from contract_harness import Home, eventually, rows_model, running_home, write_project

pytestmark = pytest.mark.slow

DEPLOYS = 50
MOST_OF_A_CORE = 0.02
YARDSTICK = "import os, time\nwhile True:\n    time.sleep(0.1)\n    for _ in range(20):\n        os.stat('/')\n"
MOST_OF_YARDSTICKS = 10
"""
What a wake-up costs depends on the machine: where everything has left the caches meanwhile, ten times more. There, a
process may use as much as so many that do next to nothing ten times a second; one that spins uses far more.
"""
WINDOW_S = 10.0
SETTLES_WITHIN_S = 60.0
YAML = """
    - {kind: deployment, name: idle}
    - {kind: api, name: x, model: m.onnx, request_handler: h.py, compute: {cpu: 20m}}
"""
HANDLER = "def post_inference(prediction, metadata):\n    return prediction[0]\n"
BAD: Mapping[str, str | bytes] = {
    "m.onnx": b"this is no model\n",
    "h.py": "import os\n\nprint('bye', flush=True)\nos._exit(2)\n",
}
"""Both are found out in a child of the launcher's, which the second takes down at once."""


@pytest.fixture
def yardstick() -> Iterator[int]:
    """Pid of a process that does next to nothing."""
    with subprocess.Popen([sys.executable, "-c", YARDSTICK]) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


def used_s(home: Home, yardstick: int) -> dict[tuple[int, str], float]:
    """Seconds of processor time that each process of a home, and the yardstick, has used so far; by pid and title."""
    used = {}
    for pid, title in [*home.processes(), (yardstick, "yardstick")]:
        with contextlib.suppress(OSError):
            tasks = Path(f"/proc/{pid}/task").iterdir()
            used[pid, title] = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    return used


@pytest.mark.timeout(900)
def test_no_process_uses_over_2_percent_of_a_core_after_50_deploys_good_and_bad(home: Home, yardstick: int) -> None:
    project = home.path.parent / "p"
    for number in range(DEPLOYS):
        good = {"cortex.yaml": YAML, "m.onnx": rows_model(number), "h.py": f"{HANDLER}# {number}\n"}
        spoilt = ([*BAD][number // 2 % 2],) if number % 2 else ()
        write_project(project, {**good, **{name: BAD[name] for name in spoilt}})
        home.deploy(project, code=1 if spoilt else 0)
    measured: list[dict[tuple[int, str], float]] = []

    def is_idle() -> bool:
        before, began_s = used_s(home, yardstick), time.monotonic()
        eventually(lambda: time.monotonic() - began_s >= WINDOW_S, "time has passed", 2 * WINDOW_S)
        after, took_s = used_s(home, yardstick), time.monotonic() - began_s
        shares = {process: (used - before.get(process, 0.0)) / took_s for process, used in after.items()}
        measured.append(shares)
        most = max(MOST_OF_A_CORE, MOST_OF_YARDSTICKS * shares[yardstick, "yardstick"])
        return all(share <= most for share in shares.values())

    try:
        eventually(is_idle, "nothing is busy", SETTLES_WITHIN_S)
    finally:
        print(*measured, sep="\n")
    kinds = {title.partition(" ")[0] for _, title in measured[-1]}
    assert kinds >= {"cortex-controlplane", "cortex-agent", "cortex-keeper", "cortex-launcher", "cortex-replica"}
