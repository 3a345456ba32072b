"""The rule keeps its promises in runs made up by chance, and rules that are broken do not."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.ids import ApiKey
from cortex.planning.autoscale import Scalable, decide
from cortex.simulation.promises import READ_S, BrokenPromise, Promises, Truth
from cortex.simulation.queues import Work
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


@pytest.mark.parametrize(("silent_for_s", "excused"), [(None, False), (2.0, True), (6.0, False)])
def test_what_a_silent_node_said_last_may_be_counted_beside_what_others_take_until_it_is_lost(silent_for_s, excused):
    api, work, now_s = ApiKey("iris/a"), Work(seat_s=0.05, cpu_s=0.001), 20.0
    promises = Promises({api: work}, cores=None)
    for number in range(round(now_s / READ_S) + 1):
        done = number * 100
        promises.note(api, Truth(at_s=number * READ_S, begun=done, ended=done, in_service=0, waiting=0))
    if silent_for_s is not None:
        promises.fall_silent(now_s - silent_for_s)
    twice = msgspec.structs.replace(
        decide([Scalable(api=api, replicas=20)], {}, {}, None, now_s=now_s)[api], replicas=30
    )

    def judged() -> bool:
        try:
            promises.judge({api: twice}, {api: 20}, at_s=now_s, knows=True)
        except BrokenPromise:
            return False
        return True

    assert judged() is excused
