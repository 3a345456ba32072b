"""Tests of `cortex.controlplane.chores`: real threads, and what they wait for is an event or an hour."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from cortex.controlplane.chores import Chore
from cortex.errors import CortexError

DEADLINE_S = 30.0
HOUR_S = 3600.0


class Steps:
    """Steps that say when they were taken."""

    def __init__(self, *answers: float | Exception | None) -> None:
        self.answers = list(answers)
        self.taken = threading.Semaphore(0)

    def step(self) -> float | None:
        answer = self.answers.pop(0)
        self.taken.release()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wait(self) -> None:
        assert self.taken.acquire(timeout=DEADLINE_S)


@pytest.fixture
def chore() -> Callable[..., Chore]:
    chores: list[Chore] = []

    def make(steps: Steps, **options: object) -> Chore:
        chores.append(Chore("washing up", steps.step, **options))
        chores[-1].start()
        return chores[-1]

    yield make
    for one in chores:
        one.close()
    for thread in threading.enumerate():
        if thread.name == "washing up":
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


def test_a_step_is_taken_when_time_is_up_and_when_it_is_woken(chore) -> None:
    steps = Steps(0.0, HOUR_S, None, None)
    woken = chore(steps)
    steps.wait()
    steps.wait()
    woken.wake()
    steps.wait()
    woken.wake()
    steps.wait()
    assert steps.answers == []


def test_one_that_waits_to_be_woken_takes_no_step_before(chore) -> None:
    steps = Steps(None)
    chore(steps, first_after_s=None).close()
    assert steps.answers == [None]


@pytest.mark.parametrize("error", [CortexError("the disk is full"), KeyError("a fault of ours")])
def test_a_step_that_failed_is_said_and_taken_again_later(chore, caplog, error) -> None:
    steps = Steps(error, HOUR_S)
    chore(steps, fault_pause_s=0.0)
    steps.wait()
    steps.wait()
    (record,) = caplog.records
    assert "washing up is put off" in record.getMessage()


def test_a_step_under_way_learns_that_the_end_has_come_and_none_follows(chore) -> None:
    stopping = threading.Event()
    steps = Steps(0.0)
    closed = chore(steps, settle_s=HOUR_S, stopping=stopping)
    closed.close()
    assert stopping.is_set()
    assert steps.answers == [0.0]
