"""The rule keeps its promises in runs made up by chance, and rules that are broken do not."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.ids import ApiKey
from cortex.planning.autoscale import Machine, Scalable, ScalingDecision, decide
from cortex.planning.load import ApiLoad
from cortex.simulation.promises import BrokenPromise
from cortex.simulation.schedules import kept, scheduled

SEEDS = 60


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**9))
def test_no_schedule_makes_the_rule_break_a_promise(seed):
    assert kept(scheduled(seed))


# ---- broken rules: each is the one in use but for one mistake --------------------------------------------------------


class BrokenRule:
    """Changes what the rule is told, or what it says."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.numbers: dict[ApiKey, list[tuple[float, int]]] = defaultdict(list)

    def __call__(self, apis, loads, memories, machine: Machine, *, now_s: float) -> Mapping[ApiKey, ScalingDecision]:
        self.now_s = now_s
        apis = list(apis)
        for api in apis:
            self.numbers[api.api].append((now_s, api.replicas))
        told = {api.api: self.told(api, loads[api.api]) for api in apis if api.api in loads}
        decisions = decide(apis, told, memories, self.machine(machine), now_s=now_s)
        return {api: self.said(decision, decisions, machine) for api, decision in decisions.items()}

    def told(self, api: Scalable, load: ApiLoad) -> ApiLoad:
        return load

    def machine(self, machine: Machine) -> Machine | None:
        return machine

    def said(self, decision: ScalingDecision, _all: Mapping, _machine: Machine) -> ScalingDecision:
        return decision

    def bounded(self, decision: ScalingDecision, replicas: int) -> ScalingDecision:
        asked = decision.asked
        most = min(asked.max_replicas, 2 * asked.replicas + 4)
        return msgspec.structs.replace(decision, replicas=max(asked.min_replicas, min(most, replicas)))


class AWindowThatAdds(BrokenRule):
    """What was wanted at any time within the window is had."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: dict[ApiKey, list[tuple[float, int]]] = defaultdict(list)

    def said(self, decision, _all, _machine):
        past = self.wanted[decision.api]
        past.append((self.now_s, decision.wanted))
        since_s = self.now_s - decision.asked.downscale_window_s
        return self.bounded(decision, max(decision.replicas, *(n for at_s, n in past if at_s > since_s)))


class CountsBeforeReady(BrokenRule):
    """Two seconds of processor that a start takes are counted as if requests had taken them."""

    def told(self, api, load):
        past = [number for at_s, number in self.numbers[api.api] if at_s > self.now_s - 30.0]
        started = sum(max(0, after - before) for before, after in pairwise(past))
        if load.costs is None or not load.long_ended:
            return load
        costs = msgspec.structs.replace(load.costs, cpu_s=load.costs.cpu_s + 2.0 * started / load.long_ended)
        return msgspec.structs.replace(load, costs=costs)

    def machine(self, machine):
        return None


class PresentInsteadOfMean(BrokenRule):
    """How full replicas were on average is taken for how full those are that there are now."""

    def said(self, decision, _all, _machine):
        load, asked = decision.load, decision.asked
        if load is None or decision.costs is None or not load.ready_s:
            return decision
        full = load.begun * decision.costs.replica_s / load.ready_s
        need = asked.replicas * full / (asked.target_cpu_utilization / 100)
        return self.bounded(decision, max(decision.replicas, math.ceil(need)))


class IdleProcessorsStepByStep(BrokenRule):
    """One is added whenever anything is idle."""

    def said(self, decision, _all, machine):
        idle = machine.cores - machine.busy_cores > 0.25
        more = decision.asked.replicas + (idle and decision.wanted > decision.asked.replicas)
        return self.bounded(decision, max(decision.replicas, more))


class RawInFlight(BrokenRule):
    """Whatever is there now counts as a seat, and a queue is there to be had at once."""

    def said(self, decision, _all, _machine):
        load = decision.load
        if load is None or not load.seats:
            return decision
        return self.bounded(decision, max(decision.replicas, math.ceil((load.queued + load.in_flight) / load.seats)))


class RequestsOfIdleApis(BrokenRule):
    """Requests are added up whoever uses them."""

    def said(self, decision, all_, machine):
        others = sum(one.asked.replicas * one.asked.cpu_millis for one in all_.values() if one.api != decision.api)
        room = math.floor((machine.cores * 1000 - others) / decision.asked.cpu_millis)
        return self.bounded(decision, min(decision.replicas, max(room, decision.asked.replicas)))


class ForgetsItsWindow(BrokenRule):
    """What is not needed goes at once."""

    def said(self, decision, _all, _machine):
        return self.bounded(decision, min(decision.replicas, decision.wanted))


class NeverAdds(BrokenRule):
    def said(self, decision, _all, _machine):
        return self.bounded(decision, min(decision.replicas, decision.asked.replicas))


class KnowsNoBounds(BrokenRule):
    def said(self, decision, _all, _machine):
        return msgspec.structs.replace(decision, replicas=max(decision.replicas, decision.wanted))


@pytest.mark.parametrize("rule", BrokenRule.__subclasses__(), ids=lambda rule: rule.__name__)
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
