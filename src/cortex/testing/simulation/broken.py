"""Rules of scaling that are wrong: each is the one in use but for one mistake, which the promises have to find out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise

import msgspec

from cortex.ids import ApiKey
from cortex.planning.autoscale import Bound, Machine, Scalable, ScalingDecision, ScalingMemory, decide
from cortex.planning.load import ApiLoad

Decisions = Mapping[ApiKey, ScalingDecision]


class BrokenRule:
    """Changes what the rule is told, or what it says. This one changes nothing."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.numbers: dict[ApiKey, list[tuple[float, int]]] = defaultdict(list)

    def __call__(
        self,
        apis: Iterable[Scalable],
        loads: Mapping[ApiKey, ApiLoad],
        memories: Mapping[ApiKey, ScalingMemory],
        machine: Machine | None,
        *,
        now_s: float,
    ) -> Decisions:
        self.now_s = now_s
        apis = list(apis)
        for api in apis:
            self.numbers[api.api].append((now_s, api.replicas))
        told = {api.api: self.told(api, loads[api.api]) for api in apis if api.api in loads}
        decisions = decide(apis, told, memories, self.machine(machine), now_s=now_s)
        return {api: self.said(decision, decisions, machine) for api, decision in decisions.items()}

    def told(self, api: Scalable, load: ApiLoad) -> ApiLoad:
        return load

    def machine(self, machine: Machine | None) -> Machine | None:
        return machine

    def said(self, decision: ScalingDecision, every: Decisions, machine: Machine | None) -> ScalingDecision:
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

    def said(self, decision: ScalingDecision, every: Decisions, machine: Machine | None) -> ScalingDecision:
        past = self.wanted[decision.api]
        past.append((self.now_s, decision.wanted))
        since_s = self.now_s - decision.asked.downscale_window_s
        return self.bounded(decision, max(decision.replicas, *(n for at_s, n in past if at_s > since_s)))


class CountsBeforeReady(BrokenRule):
    """Two seconds of processor that a start takes are counted as if requests had taken them."""

    def told(self, api: Scalable, load: ApiLoad) -> ApiLoad:
        past = [number for at_s, number in self.numbers[api.api] if at_s > self.now_s - 30.0]
        started = sum(max(0, after - before) for before, after in pairwise(past))
        if load.costs is None or not load.long_ended:
            return load
        costs = msgspec.structs.replace(load.costs, cpu_s=load.costs.cpu_s + 2.0 * started / load.long_ended)
        return msgspec.structs.replace(load, costs=costs)

    def machine(self, machine: Machine | None) -> Machine | None:
        return None


class PresentInsteadOfMean(BrokenRule):
    """How full replicas were on average is taken for how full those are that there are now."""

    def said(self, decision: ScalingDecision, every: Decisions, machine: Machine | None) -> ScalingDecision:
        load, asked = decision.load, decision.asked
        if load is None or decision.costs is None or not load.ready_s:
            return decision
        full = load.begun * decision.costs.replica_s / load.ready_s
        need = asked.replicas * full / (asked.target_cpu_utilization / 100)
        return self.bounded(decision, max(decision.replicas, math.ceil(need)))


class IdleProcessorsStepByStep(BrokenRule):
    """One is added whenever anything is idle."""

    def said(self, decision: ScalingDecision, every: Decisions, machine: Machine | None) -> ScalingDecision:
        idle = machine is not None and machine.cores - machine.busy_cores > 0.25
        more = decision.asked.replicas + (idle and decision.wanted > decision.asked.replicas)
        return self.bounded(decision, max(decision.replicas, more))


class RawInFlight(BrokenRule):
    """Whatever is there now counts as a seat, and a queue is there to be had at once."""

    def said(self, decision: ScalingDecision, every: Decisions, machine: Machine | None) -> ScalingDecision:
        load = decision.load
        if load is None or not load.seats:
            return decision
        return self.bounded(decision, max(decision.replicas, math.ceil((load.queued + load.in_flight) / load.seats)))


class RequestsOfIdleApis(BrokenRule):
    """Requests are added up whoever uses them."""

    def said(self, decision: ScalingDecision, every: Decisions, machine: Machine | None) -> ScalingDecision:
        if machine is None:
            return decision
        others = sum(one.asked.replicas * one.asked.cpu_millis for one in every.values() if one.api != decision.api)
        room = math.floor((machine.cores * 1000 - others) / decision.asked.cpu_millis)
        return self.bounded(decision, min(decision.replicas, max(room, decision.asked.replicas)))


class ForgetsItsWindow(BrokenRule):
    """What is not needed goes at once."""

    def said(self, decision: ScalingDecision, every: Decisions, machine: Machine | None) -> ScalingDecision:
        return self.bounded(decision, min(decision.replicas, decision.wanted))


class NeverAdds(BrokenRule):
    """Nobody gets more than there is."""

    def said(self, decision: ScalingDecision, every: Decisions, machine: Machine | None) -> ScalingDecision:
        return self.bounded(decision, min(decision.replicas, decision.asked.replicas))


class KnowsNoBounds(BrokenRule):
    """As many as the load asks for, whatever the api may have."""

    def said(self, decision: ScalingDecision, every: Decisions, machine: Machine | None) -> ScalingDecision:
        return msgspec.structs.replace(decision, replicas=max(decision.replicas, decision.wanted))


class KeepsWhatOthersLack(BrokenRule):
    """What is not needed stays for the whole window, also when another has no room."""

    def said(self, decision: ScalingDecision, every: Decisions, machine: Machine | None) -> ScalingDecision:
        if decision.bound is not Bound.YIELDED:
            return decision
        return msgspec.structs.replace(decision, replicas=decision.asked.replicas)


class WaitsForWhatIsBurnt(BrokenRule):
    """One within its request, too, gets no more than others leave."""

    def said(self, decision: ScalingDecision, every: Decisions, machine: Machine | None) -> ScalingDecision:
        if machine is None or machine.busy_cores < 0.95 * machine.cores:
            return decision
        held = self.bounded(decision, min(decision.replicas, decision.asked.replicas))
        return msgspec.structs.replace(held, bound=Bound.PROCESSOR) if held != decision else decision


BROKEN_RULES = tuple(BrokenRule.__subclasses__())
"""All of them."""
