from __future__ import annotations

import sys
from pathlib import Path

import pytest
from pool import Pool

WORKER = """
import json, os, signal, sys
for line in sys.stdin:
    task = json.loads(line)
    if task["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task["do"] == "stay":
        open(task["began"], "w").close()
        signal.pause()
    answer = {"error": "ours"} if task["do"] == "fail" else {"result": task["do"]}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    return [sys.executable, str(path)]


def test_every_task_is_carried_out_once(command: list[str]) -> None:
    tasks = [{"do": str(number)} for number in range(20)]

    with Pool(2, command=command) as pool:
        found = [done.result for done in pool.carry_out(tasks)]

    assert sorted(found, key=int) == [task["do"] for task in tasks]


def test_a_process_that_dies_costs_its_own_task(command: list[str]) -> None:
    with Pool(2, command=command) as pool:
        found = list(pool.carry_out([{"do": "1"}, {"do": "die"}, {"do": "2"}, {"do": "die"}, {"do": "3"}]))

    assert sorted(done.result for done in found if not done.lost) == ["1", "2", "3"]
    assert [done.task["do"] for done in found if done.lost] == ["die", "die"]
    assert {(done.lost, done.crashed) for done in found if done.lost} == {("its process ended with -9", True)}


def test_a_process_that_does_not_come_back_is_ended(command: list[str], tmp_path: Path) -> None:
    began = tmp_path / "began"

    with Pool(1, limit_s=300, command=command, clock=lambda: 1000.0 if began.exists() else 0.0) as pool:
        found = list(pool.carry_out([{"do": "stay", "began": str(began)}, {"do": "1"}]))

    assert [(done.result, done.lost) for done in found] == [(None, "no result within 300 s"), ("1", "")]
    assert not any(done.crashed for done in found)


def test_a_mistake_of_ours_is_no_lost_task(command: list[str]) -> None:
    with Pool(1, command=command) as pool, pytest.raises(RuntimeError, match="ours"):
        list(pool.carry_out([{"do": "fail"}]))
