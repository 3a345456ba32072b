"""Tests of `cortex.agent.memorykills`."""

import pytest

from cortex.agent.memorykills import LATELY_S, MemoryKills
from cortex.testing.clock import FakeClock


class Kernel:
    def __init__(self) -> None:
        self.kills = 3
        """Of long before we began."""
        self.clock = FakeClock()
        self.found = MemoryKills(self.clock, lambda: self.kills)

    def pass_s(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.clock.advance(1.0)
            self.found.look()


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.mark.parametrize("after_s", [0, 1, 100])
def test_a_kill_for_memory_is_known_at_once(kernel, after_s):
    kernel.pass_s(after_s)
    assert not kernel.found.is_recent()
    kernel.kills += 1
    assert kernel.found.is_recent()


@pytest.mark.parametrize(("later_s", "is_recent"), [(0, True), (LATELY_S - 1, True), (LATELY_S + 1, False)])
def test_one_explains_only_what_ends_soon_after(kernel, later_s, is_recent):
    kernel.pass_s(100)
    kernel.kills += 1
    kernel.pass_s(later_s)
    assert kernel.found.is_recent() is is_recent


def test_what_happened_while_nobody_looked_is_recent(kernel):
    kernel.pass_s(5)
    kernel.clock.advance(1000.0)
    kernel.kills += 1
    kernel.found.look()
    assert kernel.found.is_recent()
