"""The rule of scaling on the model: what was measured of it, each row with the figures it has to keep."""

from __future__ import annotations

import math
from functools import partial

import pytest

from cortex.ids import ApiKey
from cortex.planning import autoscale
from cortex.planning.autoscale import Bound, Scalable
from cortex.simulation import traces
from cortex.simulation.queues import Work
from cortex.simulation.scaling import Moment, Rate, ScalingRun, Served, changes, reversals

COMPUTES = Work(seat_s=0.005, cpu_s=0.005)
FAST = Work(seat_s=0.0003, cpu_s=0.0003)
WAITS = Work(seat_s=0.05, cpu_s=0.001)
ASYNC = Work(seat_s=0.2, cpu_s=0.002, seats=64)
LONG = Work(seat_s=10.0, cpu_s=0.01)
A, B = ApiKey("t/a"), ApiKey("t/b")


def served(work: Work, rate: Rate, api: ApiKey = A, **fields) -> Served:
    return Served(scalable=Scalable(api=api, **{"replicas": 1, **fields}), work=work, rate=rate)


def times(work: Work, number: float) -> float:
    """So many times what one replica sustains."""
    return work.sustained * number


def tenfold(work: Work, factor: float = 10, at_s: float = 60.0) -> Rate:
    return traces.step(times(work, 0.3), times(work, factor), at_s=at_s)


def ran(*apis: Served, until_s: float = 600.0, cores: float = 2.0, **fields) -> tuple[ScalingRun, dict]:
    run = ScalingRun(apis, cores=cores, **fields)
    moments = run.until(until_s)
    return run, {one.scalable.api: [moment[one.scalable.api] for moment in moments] for one in apis}


def most(moments: list[Moment]) -> int:
    return max(moment.replicas for moment in moments)


@pytest.mark.parametrize(
    ("work", "rate", "cores", "until_s", "largest", "last", "reversed_at_most"),
    [
        pytest.param(COMPUTES, tenfold(COMPUTES), 2, 300, 2, 2, 0, id="computing, step to ten times"),
        pytest.param(COMPUTES, traces.constant(100), 2, 300, 2, 2, 0, id="computing, half of one replica"),
        pytest.param(COMPUTES, traces.noise(140, part=0.5), 2, 600, 2, 2, 0, id="computing, noise"),
        pytest.param(COMPUTES, traces.on_off(400, each_s=30), 2, 600, 2, 2, 0, id="computing, on and off"),
        pytest.param(FAST, traces.saw(times(FAST, 3), period_s=60), 2, 200, 2, 2, 0, id="fast, saw"),
        pytest.param(FAST, traces.ramp(0, times(FAST, 5), over_s=200), 2, 200, 2, 2, 0, id="fast, ramp"),
        pytest.param(WAITS, tenfold(WAITS), 2, 600, 14, 13, 1, id="waiting, step to ten times, 13 needed"),
        pytest.param(WAITS, traces.constant(10), 2, 900, 1, 1, 0, id="waiting, half of one replica"),
        pytest.param(WAITS, traces.saw(60, period_s=60), 2, 900, 4, 4, 4, id="waiting, saw"),
        pytest.param(ASYNC, traces.step(30, 300, at_s=60), 4, 300, 4, 4, 0, id="64 seats, 30 to 300 a second"),
        pytest.param(LONG, traces.step(0, 0.5, at_s=10), 2, 900, 9, 9, 4, id="ten seconds each, 7 needed"),
    ],
)
def test_one_api_gets_what_it_needs_and_the_machine_can_give(
    work, rate, cores, until_s, largest, last, reversed_at_most
):
    run, moments = ran(served(work, rate), until_s=until_s, cores=cores)
    assert abs(most(moments[A]) - largest) <= 1
    assert abs(moments[A][-1].replicas - last) <= 1
    assert reversals(moments[A]) <= reversed_at_most
    assert run.queues[A].refused == 0 or work in (COMPUTES, FAST)


def test_what_computes_serves_all_that_the_machine_can():
    run, _ = ran(served(COMPUTES, tenfold(COMPUTES)))
    assert run.queues[A].ended == pytest.approx(400 * 540 + 60 * 60, rel=0.03)


def test_what_idles_for_long_comes_and_goes_once():
    _, moments = ran(served(COMPUTES, traces.constant(100)))
    assert len(changes(moments[A])) == 1


@pytest.mark.parametrize("cores", [2.0, 16.0])
def test_ten_times_what_one_sustains_has_what_it_needs_within_three_seconds(cores):
    def seconds(seed: int) -> float:
        _, moments = ran(served(WAITS, tenfold(WAITS, at_s=40.0)), until_s=46.0, cores=cores, seed=seed)
        return next((moment.at_s - 40.0 for moment in moments[A] if moment.ready >= 13), math.inf)

    assert sum(seconds(seed) <= 3.0 for seed in range(20)) >= 19


def test_a_flash_crowd_is_bounded_by_memory_alone():
    crowd = traces.pulse(times(WAITS, 50), at_s=60, for_s=10, otherwise=times(WAITS, 0.3))
    run, moments = ran(served(WAITS, crowd), until_s=120)
    assert (63 <= most(moments[A]) <= 78, run.queues[A].refused) == (True, 0)
    run, moments = ran(served(WAITS, crowd), until_s=120, places=20)
    assert max(moment.ready for moment in moments[A]) == 20
    assert any(moment.decision.bound is Bound.ROOM for moment in moments[A])


def test_what_waits_is_not_held_by_what_computes():
    apis = served(COMPUTES, tenfold(COMPUTES)), served(WAITS, tenfold(WAITS, 6, at_s=90), B)
    run, moments = ran(*apis)
    assert (most(moments[A]), abs(most(moments[B]) - 9) <= 1, run.queues[B].refused) == (2, True, 0)


def test_two_in_turn_have_room_although_the_other_keeps_its_own():
    first = traces.on_off(times(WAITS, 8), each_s=60)
    second = traces.on_off(times(WAITS, 8), each_s=60, first_on=False)
    run, moments = ran(served(WAITS, first), served(WAITS, second, B))
    assert all(abs(most(moments[api]) - 11) <= 1 for api in (A, B))
    assert run.queues[A].refused + run.queues[B].refused == 0


def test_apis_that_idle_take_nothing_from_one_that_is_busy():
    idle = [served(WAITS, traces.constant(0), ApiKey(f"t/idle{number}")) for number in range(12)]
    run, moments = ran(served(WAITS, tenfold(WAITS, 5)), *idle, until_s=200)
    assert (abs(most(moments[A]) - 7) <= 1, run.queues[A].refused) == (True, 0)


def test_a_spike_while_others_saturate_the_machine_leaves_nothing_behind():
    spike = traces.pulse(times(COMPUTES, 10), at_s=60, for_s=60, otherwise=1)
    _, moments = ran(served(COMPUTES, spike), served(COMPUTES, spike, B), until_s=500)
    assert (most(moments[A]), most(moments[B])) == (2, 2)
    assert (moments[A][-1].replicas, moments[B][-1].replicas) == (1, 1)


@pytest.mark.parametrize("callers", [3, 8])
def test_callers_that_wait_for_their_answers_are_not_left_at_one_replica(callers):
    ended = {"before": 0}

    def closed(_at_s: float) -> float:
        queue = run.queues[A]
        come, ended["before"] = queue.ended - ended["before"], queue.ended
        return come / 0.05 if queue.begun else callers / 0.05

    run = ScalingRun([served(WAITS, closed)], cores=2.0, seed=3)
    numbers = [moment[A].replicas for moment in run.until(120.0)]
    assert numbers[-1] >= min(callers, 3)


def test_room_that_another_api_lacks_is_given_at_once():
    first = served(WAITS, traces.pulse(times(WAITS, 8), at_s=5, for_s=20))
    second = served(WAITS, traces.step(0, times(WAITS, 8), at_s=90), B)
    _, moments = ran(first, second, places=14, until_s=130)
    at_s = next(at_s for at_s, decision in changes(moments[A]) if decision.bound is Bound.YIELDED)
    assert 90 < at_s < 96
    assert moments[B][-1].ready >= 11


def test_the_same_seed_and_rule_give_the_same_decisions():
    def decisions(seed: int) -> list[tuple[int, Bound | None]]:
        _, moments = ran(served(WAITS, tenfold(WAITS, at_s=5)), until_s=30, seed=seed)
        return [(moment.replicas, moment.decision.bound) for moment in moments[A]]

    assert decisions(1) == decisions(1)


def test_a_rule_that_knows_no_machine_makes_copies_that_gain_nothing():
    def alone(*given: object, now_s: float) -> object:
        apis, loads, memories, _ = given
        return autoscale.decide(apis, loads, memories, None, now_s=now_s)

    _, moments = ran(served(COMPUTES, tenfold(COMPUTES)), until_s=100, rule=partial(alone))
    assert most(moments[A]) > 20
