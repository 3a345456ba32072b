"""The rule keeps its promises in runs made up by chance, and rules that are broken do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.simulation.promises import BrokenPromise
from cortex.simulation.schedules import kept, scheduled
from cortex.testing.simulation.broken import BROKEN_RULES, BrokenRule

SEEDS = 60


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**9))
def test_no_schedule_makes_the_rule_break_a_promise(seed):
    assert kept(scheduled(seed))


@pytest.mark.parametrize("rule", BROKEN_RULES, ids=lambda rule: rule.__name__)
def test_a_broken_rule_is_found_out(rule: Callable[[], BrokenRule]):
    def breaks(seed: int) -> bool:
        try:
            kept(scheduled(seed, rule=rule()))
        except BrokenPromise:
            return True
        return False

    assert any(breaks(seed) for seed in range(SEEDS))


def test_the_rule_itself_with_nothing_changed_is_not():
    for seed in range(10):
        kept(scheduled(seed, rule=BrokenRule()))
