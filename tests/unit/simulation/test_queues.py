"""Tests of `cortex.simulation.queues`: the model does what queues do."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.ids import ApiKey
from cortex.simulation.queues import QUEUE_LIMIT, NodeModel, Queue, Work, even_share

API = ApiKey("t/a")
WAITS = Work(seat_s=0.05, cpu_s=0.001)
COMPUTES = Work(seat_s=0.005, cpu_s=0.005)


def queue(work: Work, rate: float | Callable[[float], float], replicas: int = 1, seed: int = 1) -> Queue:
    one = Queue(API, work, rate if callable(rate) else lambda _at_s: rate, random.Random(seed))
    for _ in range(replicas):
        one.add(-work.start_s)
    return one


def run(*queues: Queue, seconds: float = 60.0, cores: float = 2.0, step_s: float = 0.05) -> NodeModel:
    node = NodeModel(list(queues), cores=cores)
    for step in range(round(seconds / step_s)):
        node.step(step * step_s, step_s)
    return node


@pytest.mark.parametrize("step_s", [0.05, 0.1])
@pytest.mark.parametrize(
    ("work", "replicas", "cores", "sustained"),
    [
        (WAITS, 3, 2.0, 60.0),
        (COMPUTES, 1, 2.0, 200.0),
        (COMPUTES, 5, 2.0, 400.0),
        (Work(seat_s=0.2, cpu_s=0.002, seats=64), 1, 2.0, 320.0),
        (Work(seat_s=0.01, cpu_s=0.01, seats=8), 1, 4.0, 100.0),
        (Work(seat_s=0.07, cpu_s=0.0), 2, 2.0, 2 / 0.07),
        (Work(seat_s=0.1, cpu_s=0.1), 4, 1.0, 10.0),
    ],
)
def test_an_overloaded_api_serves_what_its_seats_and_processors_allow(work, replicas, cores, sustained, step_s):
    one = queue(work, sustained * 3, replicas)
    run(one, cores=cores, step_s=step_s)
    assert one.ended / 60 == pytest.approx(sustained, rel=0.06)


@pytest.mark.parametrize("work", [WAITS, COMPUTES, Work(seat_s=2.0, cpu_s=0.02, seats=4)])
def test_every_request_is_ended_under_way_waiting_or_refused(work):
    one = queue(work, work.sustained * 4, 2)
    run(one, seconds=120)
    assert one.begun == one.ended + one.in_service + one.waiting + one.refused
    assert one.refused > 0 or one.waiting < QUEUE_LIMIT


def test_about_as_many_come_as_are_expected():
    few, many = queue(WAITS, 7.0), queue(WAITS, 2000.0)
    run(few, many, seconds=400)
    assert abs(few.begun - 2800) < 5 * math.sqrt(2800)
    assert abs(many.begun - 800_000) < 5 * math.sqrt(800_000)


def test_the_same_seed_gives_the_same_run():
    first, second, third = queue(WAITS, 30, seed=1), queue(WAITS, 30, seed=1), queue(WAITS, 30, seed=2)
    assert run(first).read(60.0) == run(second).read(60.0) != run(third).read(60.0)


def test_a_replica_serves_once_it_has_started():
    one = queue(Work(seat_s=0.05, cpu_s=0.0, start_s=10.0), 10, replicas=0)
    one.add(0.0)
    run(one, seconds=9.9)
    assert (one.ready, one.ended, one.waiting) == (0, 0, one.begun)


def test_what_a_leaving_replica_holds_is_finished():
    one = queue(Work(seat_s=5.0, cpu_s=0.0), lambda at_s: 20.0 if at_s < 1 else 0.0, replicas=4)
    node = run(one, seconds=2.0)
    held = one.in_service
    for _ in range(3):
        one.remove()
    node.step(2.0, 4.5)
    assert (held, one.ended) == (4, 4)


@pytest.mark.parametrize("work", [WAITS, COMPUTES])
def test_counters_say_what_happened(work):
    one = queue(work, work.sustained / 2, 2)
    node = run(one, seconds=60)
    replicas = node.read(60.0).replicas
    ended = sum(replica.ended for replica in replicas)
    busy_s = sum(replica.rows[0].busy_s for replica in replicas)
    assert (ended, node.read(60.0).doors[0].begun) == (one.ended, one.begun)
    assert sum(replica.cpu_s for replica in replicas) == pytest.approx(ended * work.cpu_s, rel=0.01)
    assert busy_s == pytest.approx(ended * work.seat_s, rel=0.01)
    assert sum(replica.rows[0].ended_busy_s for replica in replicas) == pytest.approx(busy_s, rel=0.01)


def test_what_is_under_way_is_in_the_seat_seconds_and_not_in_those_of_ended_requests():
    one = queue(Work(seat_s=100.0, cpu_s=0.0), 1.0)
    row = run(one, seconds=30).read(30.0).replicas[0].rows[0]
    assert (row.busy_s > 20.0, row.ended_busy_s) == (True, 0.0)
    assert row.full_s == pytest.approx(row.busy_s)


def test_waiting_for_a_processor_is_read_as_that():
    one = queue(COMPUTES, 1000.0, 4)
    replicas = run(one, cores=1.0).read(60.0).replicas
    assert sum(replica.runnable_s for replica in replicas) == pytest.approx(4 * 60 - 60, rel=0.05)


def test_what_others_use_is_shared_evenly_too():
    one = queue(COMPUTES, 1000.0, 1)
    node = NodeModel([one], cores=1.0, busy_cores=lambda _at_s: 1.0)
    for step in range(1200):
        node.step(step * 0.05, 0.05)
    assert one.ended / 60 == pytest.approx(100.0, rel=0.05)
    assert node.read(60.0).busy_cpu_s == pytest.approx(60.0, rel=0.01)


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.integers(1, 9)), max_size=8), st.floats(0.1, 16.0))
def test_nobody_gets_more_than_is_wanted_and_no_more_is_given_than_there_is(wants, cores):
    share = even_share(wants, cores)
    given_cores = sum(min(want, share) * number for want, number in wants)
    wanted = sum(want * number for want, number in wants)
    assert given_cores == pytest.approx(min(wanted, cores), abs=1e-6)
