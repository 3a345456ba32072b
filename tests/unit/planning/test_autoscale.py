"""Tests of `cortex.planning.autoscale`."""

from __future__ import annotations

import math
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.ids import ApiKey
from cortex.planning.autoscale import (
    Bound,
    Machine,
    Ruling,
    Scalable,
    ScalingDecision,
    ScalingMemory,
    decide,
    first_memory,
)
from cortex.planning.load import ApiLoad, Costs, RowCost
from cortex.planning.model import Lack
from cortex.testing.builders import a_load
from cortex.wire.loads import HANDLER

API = ApiKey("iris/a")
OTHER = ApiKey("iris/b")
MANY_CORES = Machine(cores=1000.0)
NOW_S = 10_000.0


def asked(replicas: int = 1, api: ApiKey = API, **fields) -> Scalable:
    return Scalable(api=api, replicas=replicas, **{"cpu_millis": 200, "target_cpu_utilization": 80, **fields})


def cost(seat_s: float = 0.05, cpu_s: float = 0.001, seats: int = 1) -> Costs:
    row = RowCost(row=HANDLER, seats=seats, busy_s=seat_s)
    return Costs(rows=(row,), cpu_s=cpu_s, in_replica_s=seat_s, replica_s=seat_s / seats, fullest=HANDLER)


WAITS = cost()
COMPUTES = cost(0.005, 0.005)


def load(rate: float = 0.0, costs: Costs | None = WAITS, *, api: ApiKey = API, **fields) -> ApiLoad:
    """So many requests a second for long; the root of their number is added again, which the rule takes off."""
    seconds = fields.pop("seconds", 1e6)
    told = {"ready_s": seconds, "long_begun": round(rate * 30), "long_ended": 100, **fields}
    return a_load(api, seconds=seconds, begun=round(rate * seconds), costs=costs, **told)


def settled(replicas: int = 1) -> ScalingMemory:
    """As many were needed all the time, and it never grew."""
    return ScalingMemory(kept=replicas)


def decided(
    api: Scalable,
    found: ApiLoad | None = None,
    *,
    memory: ScalingMemory | None = None,
    machine: Machine | None = MANY_CORES,
    now_s: float = NOW_S,
) -> ScalingDecision:
    loads = {} if found is None else {api.api: found}
    return decide([api], loads, {api.api: memory or settled(api.replicas)}, machine, now_s=now_s)[api.api]


def said(decision: ScalingDecision) -> tuple[int, int, Bound | None]:
    return decision.replicas, decision.wanted, decision.bound


# ---- what is offered ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "replicas"), [(10, 1), (17, 1), (18, 2), (40, 3), (100, 7), (200, 13)])
def test_seats_that_requests_fill_are_wanted_at_the_target(rate, replicas):
    decision = decided(asked(max_replicas=100, replicas=1), load(rate), machine=None)
    assert (decision.wanted, decision.ruling) == (replicas, Ruling.SEATS)


def test_processor_time_rules_where_it_asks_for_more():
    decision = decided(asked(), load(100, cost(0.01, 0.005)))
    assert (decision.wanted, decision.ruling, decision.need) == (4, Ruling.CPU, pytest.approx(3.125, rel=0.01))


def test_many_seats_make_few_replicas():
    assert decided(asked(), load(300, cost(0.2, 0.0001, seats=64))).wanted == 2


@pytest.mark.parametrize(("target", "wanted"), [(50, 2), (80, 2), (100, 1)])
def test_a_higher_target_fills_replicas_more(target, wanted):
    assert decided(asked(target_cpu_utilization=target), load(20)).wanted == wanted


@pytest.mark.parametrize(("now", "need", "wanted"), [(10, 9.1, 10), (10, 10.9, 10), (10, 11.1, 12), (10, 8.9, 9)])
def test_a_number_that_is_off_by_a_tenth_is_left_alone(now, need, wanted):
    assert decided(asked(now), load(need / 0.05 * 0.8)).wanted == wanted


def test_requests_in_a_replica_are_what_a_target_in_flight_counts():
    decision = decided(asked(target_in_flight=4.0, target_cpu_utilization=1), load(100, cost(0.2)))
    assert (decision.wanted, decision.ruling) == (5, Ruling.TIME_IN_REPLICA)


@pytest.mark.parametrize("queued", [100, 2000])
def test_a_queue_is_to_be_worked_off_in_ten_seconds(queued):
    decision = decided(asked(40), load(200, queued=queued, ready=0))
    assert decision.rate == pytest.approx(200 + queued / 10, rel=0.001)


def test_requests_that_wait_in_replicas_are_of_the_queue_but_for_what_chance_makes():
    assert decided(asked(9), load(100, in_flight=72, ready=9)).rate == pytest.approx(100 + (72 - 9 - 3) / 10, rel=0.001)
    assert decided(asked(9), load(100, in_flight=12, ready=9)).rate == pytest.approx(100, rel=0.001)


def test_a_tenth_too_few_are_not_enough_while_many_wait_or_every_seat_is_busy():
    waits, none, full = load(200, ready=12, queued=60), load(200, ready=12), load(200, ready=12, always_full=True)
    assert [decided(asked(12), found).wanted for found in (waits, none, full)] == [13, 12, 13]


def test_a_queue_of_long_requests_has_as_long_as_one_of_them_takes():
    assert decided(asked(), load(0, cost(40.0), queued=80, ready=0)).rate == pytest.approx(2.0)


def test_the_root_of_a_number_may_be_chance():
    assert decided(asked(), load(10, seconds=2.0)).rate == pytest.approx((20 - math.sqrt(20)) / 2)


def test_what_comes_all_of_a_sudden_is_believed_less_and_seen_sooner():
    def rate(begun: int, full: bool = False) -> float:
        return decided(asked(), load(1, seconds=2.0, sudden_begun=begun, sudden_full=full)).rate

    assert (rate(100), rate(100, full=True)) == (pytest.approx(80.0), pytest.approx(90.0))
    assert rate(19) < 1.0


def test_while_every_seat_is_busy_all_that_came_counts():
    decision = decided(asked(), load(20, seconds=2.0, always_full=True))
    assert (decision.rate, decision.wanted) == (20.0, 2)


def test_until_costs_are_known_requests_in_flight_count_as_a_seat_each():
    decision = decided(asked(), load(1, None, in_flight=3))
    assert (decision.wanted, decision.ruling) == (3, Ruling.IN_FLIGHT)
    assert decided(asked(), load(1, None, in_flight=1)).wanted == 1


def test_what_a_replica_holds_says_nothing_before_it_is_known_what_it_has_done():
    first = load(10, None, in_flight=14, ready_s=0.0)
    assert said(decided(asked(), first)) == (1, 1, Bound.UNKNOWN)
    assert said(decided(asked(), first, memory=ScalingMemory(costs=WAITS, kept=1)))[2] is not Bound.UNKNOWN
    assert decided(asked(), load(10, None, in_flight=14, ready_s=0.5)).ruling is Ruling.IN_FLIGHT
    assert decided(asked(), load(10, WAITS, in_flight=14, ready_s=0.0)).ruling is Ruling.SEATS
    assert said(decided(asked(), load(10, None, in_flight=0, ready_s=0.0))) == (1, 0, Bound.MINIMUM)
    assert said(decided(asked(), load(10, None, in_flight=14, ready_s=0.0, seats=0))) == (1, 0, Bound.MINIMUM)


def test_of_few_that_have_ended_it_is_believed_that_they_took_longer():
    memory = ScalingMemory(kept=1, costs=WAITS)
    slow, fast = load(10, cost(1.0), long_ended=4), load(10, cost(0.001), long_ended=4)
    assert (decided(asked(), slow, memory=memory).wanted, decided(asked(), fast, memory=memory).costs) == (13, WAITS)
    assert decided(asked(), slow, memory=memory).memory.costs == WAITS
    assert decided(asked(), fast, memory=settled()).costs is None


def test_what_burns_an_unknown_part_of_a_processor_is_taken_to_burn_what_it_does_now():
    idle, busy = load(1, None, in_flight=9, cores=0.1), load(1, None, in_flight=9, cores=0.1, sudden_cores=1.0)
    machine = Machine(cores=2.0, busy_cores=0.1)
    assert said(decided(asked(), idle, machine=machine)) == (4, 9, Bound.STARTS)
    assert said(decided(asked(), busy, machine=machine)) == (2, 9, Bound.PROCESSOR)


def test_what_a_request_costs_is_remembered_while_none_comes():
    first = decided(asked(), load(10))
    later = decided(asked(), load(200, None), memory=first.memory)
    assert (first.memory.costs, later.wanted, later.costs) == (WAITS, 13, WAITS)


def test_how_many_are_ready_does_not_matter():
    numbers = {decided(asked(13), load(200, ready=ready, ready_s=ready * 1e6)).wanted for ready in (0, 1, 13, 40)}
    assert numbers == {13}


# ---- bounds ---------------------------------------------------------------------------------------------------------


def test_nothing_changes_before_anything_is_read():
    assert said(decided(asked(7))) == (7, 7, Bound.UNKNOWN)
    assert said(decided(asked(7), load(0, seconds=0.0))) == (7, 7, Bound.UNKNOWN)


@pytest.mark.parametrize(("now", "replicas"), [(1, 6), (6, 16), (20, 44)])
def test_a_number_doubles_at_most_and_grows_by_four(now, replicas):
    assert said(decided(asked(now), load(1600))) == (replicas, 100, Bound.LEAP)


def test_no_more_than_the_maximum():
    assert said(decided(asked(max_replicas=3), load(200))) == (3, 13, Bound.MAXIMUM)
    assert said(decided(asked(3, max_replicas=3), load(200))) == (3, 13, Bound.MAXIMUM)
    assert said(decided(asked(5, max_replicas=3), load(200))) == (3, 13, Bound.MAXIMUM)
    assert said(decided(asked(2, max_replicas=8), load(200))) == (8, 13, Bound.MAXIMUM)


def test_no_fewer_than_the_minimum():
    assert said(decided(asked(4, min_replicas=2), load(0), memory=settled(0))) == (2, 0, Bound.MINIMUM)
    assert said(decided(asked(1, min_replicas=3), load(0))) == (3, 0, Bound.MINIMUM)


def test_the_minimum_is_reached_in_one_step_whatever_else_is_full():
    full = Machine(cores=1.0, busy_cores=1.0)
    decision = decided(asked(1, min_replicas=9, starting=5), load(200), machine=full)
    assert decision.replicas == 9


def test_no_more_are_asked_for_while_what_was_asked_for_has_no_room():
    assert said(decided(asked(2, lacks=Lack.MEMORY), load(200))) == (2, 13, Bound.ROOM)


# ---- the window -----------------------------------------------------------------------------------------------------


def after(seconds_ago: dict[float, float], *, now: int, window_s: float = 300.0, end_s: float = NOW_S, **fields):
    """What is decided at the end, where so long before the rates were these."""
    memory = first_memory(now, now_s=NOW_S - 1e6)
    decision = None
    for ago_s, rate in sorted(seconds_ago.items(), reverse=True):
        api = asked(now, downscale_window_s=window_s, **fields)
        decision = decided(api, load(rate), memory=memory, now_s=end_s - ago_s)
        memory = decision.memory
    return decision


def test_what_was_needed_within_the_window_is_kept():
    assert said(after({299: 100.0, 0: 0.0}, now=10)) == (7, 0, Bound.WINDOW)


def test_the_window_keeps_the_most_that_was_needed_in_it_and_adds_nothing():
    rates = {400: 140.0, 399: 60.0, 200: 100.0, 100: 20.0, 0: 0.0}
    assert said(after(rates, now=10)) == (7, 0, Bound.WINDOW)
    assert after({299: 200.0, 298: 0.0, 0: 0.0}, now=5).replicas == 5


def test_what_was_needed_before_the_window_is_forgotten():
    assert said(after({301: 100.0, 300.5: 30.0, 0: 0.0}, now=10)) == (2, 0, Bound.WINDOW)


@pytest.mark.parametrize(("ago_s", "replicas"), [(299.0, 13), (300.0, 1)])
def test_nothing_goes_within_one_window_of_an_up(ago_s, replicas):
    memory = ScalingMemory(kept=1, last_up_s=NOW_S - ago_s)
    assert decided(asked(13), load(0), memory=memory).replicas == replicas


def test_what_was_needed_is_followed_down_in_few_steps():
    first = decided(asked(9), load(100), memory=settled(7))
    assert (first.replicas, first.memory.last_down_s) == (7, NOW_S)
    soon = decided(asked(7), load(50), memory=first.memory, now_s=NOW_S + 0.5)
    assert said(soon) == (7, 4, Bound.WINDOW)
    later = decided(asked(7, downscale_window_s=20.0), load(50), memory=soon.memory, now_s=NOW_S + 30)
    assert said(later) == (4, 4, None)


def test_an_up_is_remembered():
    assert decided(asked(1), load(200)).memory.last_up_s == NOW_S
    assert decided(asked(13), load(200)).memory.last_up_s == -math.inf


def test_of_an_api_of_which_nothing_is_remembered_what_there_is_was_needed():
    first = decide([asked(9)], {API: load(0)}, {}, None, now_s=NOW_S)[API]
    assert said(first) == (9, 0, Bound.WINDOW)
    later = decided(asked(9), load(0), memory=first.memory, now_s=NOW_S + 300)
    assert said(later) == (1, 0, Bound.MINIMUM)


def test_what_is_needed_is_not_known_before_a_whole_window_was_read():
    early = decided(asked(9, lacks=None), load(0, long_seconds=10.0), memory=settled(9))
    assert (early.kept, early.replicas) == (9, 9)


def test_what_a_queue_asks_for_now_is_kept():
    assert decided(asked(13), load(100, queued=1000), memory=settled(13)).kept == 13


def test_during_a_rollout_more_are_added_and_none_taken_away():
    assert decided(asked(2, in_rollout=True), load(100)).replicas == 7
    assert said(decided(asked(9, in_rollout=True), load(0), memory=settled(0))) == (9, 0, Bound.ROLLOUT)


# ---- room -----------------------------------------------------------------------------------------------------------


def beside(lack: Lack, needs: int = 4, *, room_is_coming: bool = False, **fields) -> ScalingDecision:
    """Ten replicas of which two are needed, right after an up, and another api that waits for room for three more."""
    apis = [asked(10, **fields), asked(4, OTHER, lacks=lack, room_is_coming=room_is_coming)]
    memories = {API: ScalingMemory(kept=10, last_up_s=NOW_S - 1), OTHER: settled(needs)}
    return decide(apis, {API: load(20), OTHER: load(100, api=OTHER)}, memories, MANY_CORES, now_s=NOW_S)[API]


@pytest.mark.parametrize("lack", [Lack.MEMORY, Lack.CPU])
def test_what_is_not_needed_goes_at_once_where_another_api_has_no_room(lack):
    assert said(beside(lack)) == (2, 2, Bound.YIELDED)


def test_a_gpu_is_given_up_by_whoever_has_one():
    assert said(beside(Lack.GPU)) == (10, 2, Bound.WINDOW)
    assert said(beside(Lack.GPU, gpus=1)) == (2, 2, Bound.YIELDED)


def test_nobody_makes_room_for_an_api_that_gets_it_from_one_that_was_parked():
    assert said(beside(Lack.MEMORY, room_is_coming=True)) == (10, 2, Bound.WINDOW)


def test_nothing_is_given_up_for_room_that_is_not_needed_any_more():
    assert said(beside(Lack.MEMORY, needs=1)) == (10, 2, Bound.WINDOW)


def test_nothing_is_given_up_for_oneself_or_during_a_rollout():
    own = decided(asked(10, lacks=Lack.MEMORY), load(20), memory=ScalingMemory(kept=10))
    assert (own.replicas, beside(Lack.MEMORY, in_rollout=True).replicas) == (10, 10)


# ---- one machine ----------------------------------------------------------------------------------------------------


def together(*parts: tuple[Scalable, ApiLoad], machine: Machine) -> dict[ApiKey, ScalingDecision]:
    memories = {api.api: settled(api.replicas) for api, _ in parts}
    return decide([api for api, _ in parts], {found.api: found for _, found in parts}, memories, machine, now_s=NOW_S)


@pytest.mark.parametrize(
    ("cores", "busy", "own", "replicas"),
    [(2, 0.0, 0.0, 2), (2, 1.0, 1.0, 2), (2, 1.9, 1.0, 1), (4, 1.0, 1.0, 4), (4, 2.5, 1.0, 3), (1, 1.0, 1.0, 1)],
)
def test_what_lives_on_idle_processors_gets_as_many_as_they_feed(cores, busy, own, replicas):
    machine = Machine(cores=cores, busy_cores=busy)
    decision = decided(asked(), load(2000, COMPUTES, cores=own), machine=machine)
    assert decision.replicas == replicas
    assert decision.bound is Bound.PROCESSOR


@pytest.mark.parametrize(("starting", "replicas"), [(0, 4), (1, 3), (2, 2), (9, 1)])
def test_what_others_will_burn_that_start_is_not_idle(starting, replicas):
    others = asked(9, OTHER, starting=starting, cpu_millis=2000)
    machine = Machine(cores=4.0)
    decisions = together((others, load(0, COMPUTES, api=OTHER)), (asked(), load(2000, COMPUTES)), machine=machine)
    assert (decisions[API].replicas, decisions[API].bound) == (replicas, Bound.PROCESSOR)


def test_a_full_machine_does_not_stop_what_is_within_its_request():
    full = Machine(cores=2.0, busy_cores=2.0)
    assert decided(asked(2), load(100), machine=full).replicas == 5
    assert decided(asked(2), load(100), machine=full).bound is Bound.STARTS


def test_used_requests_have_to_fit_the_machine():
    heavy = cost(0.05, 0.01)
    apis = [(asked(8, OTHER), load(160, heavy, api=OTHER)), (asked(1), load(20, heavy))]
    decisions = together(*apis, machine=Machine(cores=2.0, busy_cores=1.6))
    assert said(decisions[API]) == (2, 2, None)
    more = [(asked(8, OTHER), load(160, heavy, api=OTHER)), (asked(2), load(60, heavy))]
    assert said(together(*more, machine=Machine(cores=2.0))[API]) == (2, 4, Bound.REQUESTS)


def test_requests_of_idle_apis_take_no_room():
    idle = [(asked(1, ApiKey(f"iris/idle{n}")), load(0, None, api=ApiKey(f"iris/idle{n}"))) for n in range(50)]
    quiet = [
        (asked(4, ApiKey(f"iris/quiet{n}")), load(0.01, cost(0.05, 0.05), api=ApiKey(f"iris/quiet{n}")))
        for n in range(50)
    ]
    assert together(*idle, *quiet, (asked(2), load(80)), machine=Machine(cores=2.0))[API].replicas == 5


def test_at_most_one_more_than_there_are_processors_start_at_one_time():
    assert said(decided(asked(), load(200), machine=Machine(cores=2.0))) == (4, 13, Bound.STARTS)
    assert said(decided(asked(4, starting=3), load(200), machine=Machine(cores=2.0))) == (4, 13, Bound.STARTS)
    assert said(decided(asked(4, starting=1), load(200), machine=Machine(cores=2.0))) == (6, 13, Bound.STARTS)


def test_starts_that_take_long_hold_nobody_who_has_none():
    loading = asked(6, OTHER, starting=3)
    decisions = together((loading, load(200, api=OTHER)), (asked(1), load(200)), machine=Machine(cores=2.0))
    assert said(decisions[OTHER]) == (6, 13, Bound.STARTS)
    assert said(decisions[API]) == (2, 13, Bound.STARTS)
    full = asked(6, OTHER, starting=6)
    decisions = together((full, load(200, api=OTHER)), (asked(1), load(200)), machine=Machine(cores=2.0))
    assert said(decisions[API]) == (1, 13, Bound.STARTS)


def test_several_that_grow_take_turns_the_smallest_first():
    machine = Machine(cores=4.0)
    decisions = together((asked(4), load(200)), (asked(1, OTHER), load(200, api=OTHER)), machine=machine)
    assert (decisions[API].replicas, decisions[OTHER].replicas) == (6, 4)


def test_what_is_within_its_request_comes_before_what_lives_on_idle_processors():
    parts = (asked(1), load(2000, COMPUTES, cores=0.5)), (asked(2, OTHER), load(200, api=OTHER))
    decisions = together(*parts, machine=Machine(cores=2.0, busy_cores=0.6))
    assert (said(decisions[API]), decisions[OTHER].replicas) == ((2, 63, Bound.PROCESSOR), 5)


def test_two_that_live_on_idle_processors_do_not_both_take_the_last_one():
    parts = (asked(1), load(2000, COMPUTES)), (asked(1, OTHER), load(2000, COMPUTES, api=OTHER))
    decisions = together(*parts, machine=Machine(cores=2.0, busy_cores=0.0))
    assert (decisions[API].replicas, decisions[OTHER].replicas) == (2, 1)


def test_where_nodes_are_added_no_machine_bounds_anything():
    assert decided(asked(40), load(20_000, COMPUTES), machine=None).bound is Bound.LEAP


# ---- whatever is asked ----------------------------------------------------------------------------------------------

numbers = st.integers(1, 30)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Scalable, ApiLoad, ScalingMemory]:
    low = draw(st.integers(1, 10))
    api = asked(
        draw(numbers),
        min_replicas=low,
        max_replicas=draw(st.integers(low, 30)),
        in_rollout=draw(st.booleans()),
        lacks=draw(st.sampled_from([None, *Lack])),
        starting=draw(st.integers(0, 3)),
        target_in_flight=draw(st.sampled_from([None, 1.0, 8.0])),
    )
    costs = draw(st.sampled_from([None, WAITS, COMPUTES, cost(10.0, 0.1), cost(0.2, 0.002, seats=64)]))
    found = load(
        draw(st.floats(0, 500)),
        costs,
        queued=draw(st.integers(0, 3000)),
        in_flight=draw(st.integers(0, 500)),
        seconds=draw(st.sampled_from([0.0, 2.0, 30.0])),
        long_seconds=draw(st.sampled_from([2.0, 30.0])),
        always_full=draw(st.booleans()),
    )
    memory = ScalingMemory(
        kept=draw(numbers), costs=draw(st.sampled_from([None, WAITS])), last_up_s=NOW_S - draw(st.floats(0, 600))
    )
    return api, found, memory


@given(situations(), st.floats(0.5, 64))
def test_a_number_is_within_its_bounds_and_never_leaps(situation, cores):
    api, found, memory = situation
    decision = decided(api, found, memory=memory, machine=Machine(cores=cores, busy_cores=cores / 2))
    assert api.min_replicas <= decision.replicas <= api.max_replicas
    assert decision.replicas <= max(2 * api.replicas + 4, api.min_replicas)


@given(situations())
def test_a_number_that_is_not_what_the_load_asks_for_says_why(situation):
    decision = decided(situation[0], situation[1], memory=situation[2])
    assert (decision.bound is None) <= (decision.replicas == decision.wanted)


@given(situations())
def test_within_a_window_of_an_up_only_bounds_take_anything_away(situation):
    api, found, memory = situation
    decision = decided(api, found, memory=memory)
    if NOW_S - memory.last_up_s < api.downscale_window_s and decision.replicas < api.replicas:
        assert decision.replicas == api.max_replicas


@given(situations())
def test_the_same_is_decided_of_the_same_and_nothing_is_taken_back_at_once(situation):
    api, found, memory = situation
    first = decided(api, found, memory=memory, machine=None)
    assert decided(api, found, memory=memory, machine=None) == first
    went = msgspec.structs.replace(api, replicas=first.replicas)
    again = decided(went, found, memory=first.memory, machine=None)
    assert (again.replicas - first.replicas) * (first.replicas - api.replicas) >= 0


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 40)), max_size=60), st.floats(10, 200))
def test_the_window_is_what_keeping_each_number_for_so_long_would_be(steps, window_s):
    memory, history, now_s, now = settled(1), [], 0.0, 40
    for gap_s, need in steps:
        now_s += gap_s
        api = asked(now, downscale_window_s=window_s, max_replicas=40)
        decision = decided(api, load(need * 0.8 / 0.05), memory=memory, now_s=now_s)
        history.append((now_s, decision.kept))
        memory, now = decision.memory, decision.replicas
        within = [kept for at_s, kept in history if at_s > now_s - window_s]
        assert max(memory.kept, *(number for number, _ in memory.more), 0) >= max(within)
        assert all(number > memory.kept for number, _ in memory.more)
        assert list(memory.more) == sorted(memory.more, reverse=True)


def busy_apis(number: int) -> tuple[list[Scalable], dict[ApiKey, ApiLoad], dict[ApiKey, ScalingMemory]]:
    names = [ApiKey(f"iris/a{n}") for n in range(number)]
    apis = [asked(10, name) for name in names]
    loads = {name: load(150 + n % 9, api=name, seconds=2.0) for n, name in enumerate(names)}
    return apis, loads, {name: settled(10) for name in names}


def test_what_is_done_grows_with_the_number_of_apis_and_no_faster():
    def calls(number: int) -> int:
        apis, loads, memories = busy_apis(number)
        counted = [0]

        def count(_frame: object, event: str, _argument: object) -> None:
            counted[0] += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            decide(apis, loads, memories, Machine(cores=1e4), now_s=NOW_S)
        finally:
            sys.setprofile(None)
        return counted[0]

    assert calls(2000) < 11 * calls(200) < 2000 * 60
