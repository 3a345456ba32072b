"""Idle means idle: what is left running after many deploys, good and bad, takes next to nothing of a processor."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from contract_harness import Home, eventually, rows_model, running_home, write_project

pytestmark = pytest.mark.slow

DEPLOYS = 50
MOST_OF_A_CORE = 0.02
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
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


def used_s(home: Home) -> dict[tuple[int, str], float]:
    """Seconds of processor time that each process of a home has used so far; by pid and title."""
    used = {}
    for pid, title in home.processes():
        with contextlib.suppress(OSError):
            tasks = Path(f"/proc/{pid}/task").iterdir()
            used[pid, title] = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    return used


@pytest.mark.timeout(900)
def test_no_process_uses_over_2_percent_of_a_core_after_50_deploys_good_and_bad(home: Home) -> None:
    project = home.path.parent / "p"
    for number in range(DEPLOYS):
        good = {"cortex.yaml": YAML, "m.onnx": rows_model(number), "h.py": f"{HANDLER}# {number}\n"}
        spoilt = ([*BAD][number // 2 % 2],) if number % 2 else ()
        write_project(project, {**good, **{name: BAD[name] for name in spoilt}})
        home.deploy(project, code=1 if spoilt else 0)
    measured: list[dict[tuple[int, str], float]] = []

    def is_idle() -> bool:
        before, began_s = used_s(home), time.monotonic()
        eventually(lambda: time.monotonic() - began_s >= WINDOW_S, "time has passed", 2 * WINDOW_S)
        after, took_s = used_s(home), time.monotonic() - began_s
        shares = {process: (used - before.get(process, 0.0)) / took_s for process, used in after.items()}
        measured.append(shares)
        return all(share <= MOST_OF_A_CORE for share in shares.values())

    try:
        eventually(is_idle, "nothing is busy", SETTLES_WITHIN_S)
    finally:
        print(*measured, sep="\n")
    kinds = {title.partition(" ")[0] for _, title in measured[-1]}
    assert kinds >= {"cortex-controlplane", "cortex-agent", "cortex-keeper", "cortex-launcher", "cortex-replica"}
