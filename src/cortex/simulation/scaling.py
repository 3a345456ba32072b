"""The rule of scaling at work on the model: who is decided about, what came of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

import msgspec

from cortex.ids import ApiKey
from cortex.planning import autoscale
from cortex.planning.autoscale import Machine, Rule, Scalable, ScalingDecision, ScalingMemory
from cortex.planning.load import ApiLoad, Loads
from cortex.planning.model import Lack
from cortex.simulation.promises import READ_S
from cortex.simulation.queues import NodeModel, Queue, Work

STEP_S = 0.05

Rate = Callable[[float], float]
"""Requests a second, at a second of the model."""


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """An api of the model: what it may have, what its requests take, and how many come."""

    scalable: Scalable
    """As it is at the beginning."""
    work: Work = Work()
    rate: Rate


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """One api right after a decision."""

    at_s: float
    decision: ScalingDecision
    changed: tuple[tuple[float, ScalingDecision], ...]
    """Decisions since the last moment that changed the number, with their instants."""
    replicas: int
    """Wanted from now on."""
    ready: int
    begun: int
    """All so far, as the next two."""
    ended: int
    refused: int
    in_service: int
    """Requests that have a seat."""
    waiting: int
    """Those that have none."""


class ScalingRun:
    """
    Runs the model, and decides every half second.

    Args:
        cores: processors of the machine.
        places: replicas that its memory has room for.
        busy_cores: what others use of it.
        rule: what decides.
    """

    def __init__(
        self,
        apis: Iterable[Served],
        *,
        cores: float = 2.0,
        places: int | None = None,
        busy_cores: Rate = lambda _at_s: 0.0,
        seed: int = 0,
        step_s: float = STEP_S,
        rule: Rule = autoscale.decide,
    ) -> None:
        chance = random.Random(seed)
        self.apis = tuple(apis)
        self.now_s = 0.0
        self.memories: dict[ApiKey, ScalingMemory] = {}
        self.loads = Loads()
        self._rule = rule
        self._places = places
        self._step_s = step_s
        self._scalables = {served.scalable.api: served.scalable for served in self.apis}
        self.queues = {
            served.scalable.api: Queue(served.scalable.api, served.work, served.rate, chance) for served in self.apis
        }
        self.node = NodeModel(list(self.queues.values()), cores=cores, busy_cores=busy_cores)
        for queue in self.queues.values():
            for _ in range(self._scalables[queue.api].replicas):
                queue.add(-queue.work.start_s)
        self.loads.take(self.node.read(0.0))

    def until(self, end_s: float) -> list[dict[ApiKey, Moment]]:
        """Go on until then. Returns all apis after each decision."""
        moments = []
        while self.now_s < end_s - 1e-9:
            moments.append(self.turn())
        return moments

    def turn(self) -> dict[ApiKey, Moment]:
        """Half a second and a reading; it is decided then, and whenever a replica has become ready meanwhile."""
        changed: dict[ApiKey, list[tuple[float, ScalingDecision]]] = {api: [] for api in self.queues}
        for _ in range(round(READ_S / self._step_s)):
            ready = self.node.ready
            self.node.step(self.now_s, self._step_s)
            if self.node.ready > ready:
                self._follow(self.decide(), changed)
            self.now_s = round(self.now_s + self._step_s, 6)
        self.loads.take(self.node.read(self.now_s))
        decisions = self.decide()
        self._follow(decisions, changed)
        return {api: self._moment(decision, changed[api]) for api, decision in decisions.items()}

    def decide(self) -> Mapping[ApiKey, ScalingDecision]:
        """What is decided now; changes nothing."""
        return self._rule(
            [self._asked(scalable) for scalable in self._scalables.values()],
            self.lately(),
            self.memories,
            Machine(cores=self.node.cores, busy_cores=self.loads.busy_cores),
            now_s=self.now_s,
        )

    def lately(self) -> dict[ApiKey, ApiLoad]:
        return self.loads.lately()

    def _asked(self, scalable: Scalable) -> Scalable:
        queue = self.queues[scalable.api]
        missing = scalable.replicas - queue.replicas
        return msgspec.structs.replace(
            scalable, starting=queue.replicas - queue.ready, lacks=Lack.MEMORY if missing > 0 else None
        )

    def _follow(
        self,
        decisions: Mapping[ApiKey, ScalingDecision],
        changed: Mapping[ApiKey, list[tuple[float, ScalingDecision]]],
    ) -> None:
        """Take away what is too much, then start what is missing as far as there is room, by turns."""
        for api, decision in decisions.items():
            self._scalables[api] = msgspec.structs.replace(self._scalables[api], replicas=decision.replicas)
            self.memories[api] = decision.memory
            if decision.replicas != decision.asked.replicas:
                changed[api].append((self.now_s, decision))
        for api, scalable in self._scalables.items():
            while self.queues[api].replicas > scalable.replicas:
                self.queues[api].remove()
        missing = True
        while missing:
            missing = False
            for api, scalable in self._scalables.items():
                full = (
                    self._places is not None and sum(queue.replicas for queue in self.queues.values()) >= self._places
                )
                if self.queues[api].replicas < scalable.replicas and not full:
                    self.queues[api].add(self.now_s)
                    missing = True

    def _moment(self, decision: ScalingDecision, changed: list[tuple[float, ScalingDecision]]) -> Moment:
        queue = self.queues[decision.api]
        return Moment(
            at_s=self.now_s,
            decision=decision,
            changed=tuple(changed),
            replicas=decision.replicas,
            ready=queue.ready,
            begun=queue.begun,
            ended=queue.ended,
            refused=queue.refused,
            in_service=queue.in_service,
            waiting=queue.waiting,
        )


def changes(moments: Iterable[Moment]) -> list[tuple[float, ScalingDecision]]:
    """Each decision that changed the number of replicas, with its instant."""
    return [change for moment in moments for change in moment.changed]


def reversals(moments: Iterable[Moment]) -> int:
    """How often a change went the other way than the one before it."""
    ways = [decision.replicas > decision.asked.replicas for _, decision in changes(moments)]
    return sum(before != after for before, after in pairwise(ways))
