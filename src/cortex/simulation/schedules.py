"""Runs of the model made up by chance: the same seed, the same run."""

from __future__ import annotations

import random
from collections.abc import Mapping

from cortex.ids import ApiKey
from cortex.planning import autoscale
from cortex.planning.autoscale import Rule, Scalable
from cortex.simulation import traces
from cortex.simulation.promises import Promises, Truth
from cortex.simulation.queues import Work
from cortex.simulation.scaling import Moment, Rate, ScalingRun, Served

LASTS_S = 40.0
STEP_S = 0.1

WORKS = (
    Work(seat_s=0.05, cpu_s=0.001),
    Work(seat_s=0.2, cpu_s=0.02),
    Work(seat_s=0.005, cpu_s=0.005),
    Work(seat_s=0.03, cpu_s=0.03),
    Work(seat_s=0.2, cpu_s=0.002, seats=64),
    Work(seat_s=2.0, cpu_s=0.02),
    Work(seat_s=0.1, cpu_s=0.01, seats=4, start_s=1.0),
)


def scheduled(seed: int, rule: Rule = autoscale.decide) -> ScalingRun:
    """A run that has not begun yet."""
    chance = random.Random(seed)
    apis = [_served(f"t/a{number}", chance) for number in range(chance.choice((1, 1, 2, 3)))]
    minimums = sum(served.scalable.replicas for served in apis)
    busy_cores = traces.step(0.0, chance.choice((0.0, 0.0, 0.5, 1.0)), at_s=chance.uniform(0, LASTS_S))
    return ScalingRun(
        apis,
        cores=chance.choice((1.0, 2.0, 2.0, 4.0, 16.0)),
        places=chance.choice((None, None, minimums + chance.randint(0, 20))),
        busy_cores=busy_cores,
        seed=seed,
        step_s=STEP_S,
        rule=rule,
    )


def kept(run: ScalingRun, lasts_s: float = LASTS_S) -> list[Mapping[ApiKey, Moment]]:
    """
    Run it, looking at each moment.

    Raises:
        BrokenPromise: the first that was not kept.
    """
    promises = Promises({served.scalable.api: served.work for served in run.apis}, cores=run.node.cores)
    moments: list[Mapping[ApiKey, Moment]] = []
    while run.now_s < lasts_s:
        moments.append(run.turn())
        _look(promises, moments[-1], run.now_s)
    return moments


def _look(promises: Promises, moments: Mapping[ApiKey, Moment], at_s: float) -> None:
    for api, moment in moments.items():
        truth = Truth(
            at_s=at_s,
            begun=moment.begun,
            ended=moment.ended,
            in_service=moment.in_service,
            waiting=moment.waiting,
        )
        promises.note(api, truth)
    changes = [decision for moment in moments.values() for _, decision in moment.changed]
    before = {api: moment.decision.asked.replicas for api, moment in moments.items()}
    for decision in reversed(changes):
        before[decision.api] = decision.asked.replicas
    knows = all(decision.costs is not None for decision in changes)
    promises.judge({api: moment.decision for api, moment in moments.items()}, before, at_s=at_s, knows=knows)


def _served(name: str, chance: random.Random) -> Served:
    work = chance.choice(WORKS)
    low = chance.choice((1, 1, 1, 2))
    scalable = Scalable(
        api=ApiKey(name),
        replicas=chance.choice((low, low, low + 3)),
        min_replicas=low,
        max_replicas=chance.choice((low + 3, 20, 100)),
        cpu_millis=chance.choice((200, 200, 1000)),
        downscale_window_s=chance.choice((5.0, 12.0, 300.0)),
        target_cpu_utilization=chance.choice((50, 80, 80)),
    )
    return Served(scalable=scalable, work=work, rate=_rate(work.sustained, chance))


def _rate(sustained: float, chance: random.Random) -> Rate:
    most = sustained * chance.choice((0.5, 1.0, 3.0, 10.0, 20.0))
    begins_s, each_s = chance.uniform(0, LASTS_S / 2), chance.uniform(4, 15)
    return chance.choice(
        (
            traces.constant(most / 2),
            traces.step(most / 10, most, at_s=begins_s),
            traces.pulse(most, at_s=begins_s, for_s=each_s, otherwise=most / 20),
            traces.on_off(most, each_s=each_s),
            traces.saw(most, period_s=each_s),
            traces.noise(most / 2, part=0.8, seed=chance.randint(0, 1000)),
            traces.wave(0.0, most, period_s=3 * each_s),
        )
    )
