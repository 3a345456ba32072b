"""Tests of `cortex.oom`."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex import oom
from cortex.oom import HIGHEST, Rung


@pytest.fixture
def begun() -> Iterator[int]:
    """A process that was just begun."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process.pid


def adjustment(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@pytest.fixture(autouse=True)
def _raises(begun: int) -> None:
    try:
        Path(f"/proc/{begun}/oom_score_adj").write_text(str(adjustment(begun)))
    except OSError:
        pytest.skip("no process may stand back for others here")


def test_a_process_stands_as_far_above_who_began_it_as_their_rungs_are_apart(begun):
    oom.step_up(begun, by=Rung.NODE, to=Rung.LAUNCHER)
    assert adjustment(begun) == min(HIGHEST, adjustment("self") + 200)


def test_who_is_begun_from_further_up_steps_down_to_where_everything_began(begun):
    oom.step_up(begun, by=Rung.CONTROL_PLANE, to=Rung.NODE)
    oom.step_up(begun, by=Rung.NODE, to=Rung.CONTROL_PLANE)
    assert adjustment(begun) == adjustment("self")


def test_nobody_stands_higher_than_the_kernel_knows(begun):
    for _ in range(3):
        oom.step_up(begun, by=Rung.CONTROL_PLANE, to=Rung.USERS)
    assert adjustment(begun) == HIGHEST


def test_a_process_that_has_ended_is_no_obstacle():
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
        oom.step_up(ended.pid, by=Rung.CONTROL_PLANE, to=Rung.USERS)
