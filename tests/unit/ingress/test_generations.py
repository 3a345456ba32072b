from __future__ import annotations

from dataclasses import dataclass

import pytest

from cortex.ingress import generations
from cortex.ingress.configuration import Tier
from cortex.ingress.convergence import Holdings, ServerAddress, ServerState
from cortex.ingress.files import WorkerName
from cortex.ingress.generations import IngressTimes, Replace, Retire, Start

BOTH = (Tier.BULK, Tier.DOOR)
NOTHING = Holdings(entries={}, servers={})
TIMES = IngressTimes()
DOOR, BULK = WorkerName(Tier.DOOR, 1), WorkerName(Tier.BULK, 2)


@dataclass
class Seen:
    name: WorkerName
    digest: str = "d"
    pool_size: int = 8
    answered_s: float = 0.0
    holdings: Holdings | None = NOTHING
    leaving_until_s: float | None = None
    cut_off: bool = False


def changes(*workers, tiers=BOTH, digest="d", pool_size=8):
    return generations.changes(workers, tiers, digest, pool_size)


def test_tiers_without_a_worker_get_one_and_whoever_passes_requests_on_comes_last():
    assert changes() == (Start(Tier.BULK), Start(Tier.DOOR))


def test_workers_as_wanted_are_left_alone():
    assert changes(Seen(DOOR), Seen(BULK)) == ()


@pytest.mark.parametrize("wanted", [{"digest": "e"}, {"pool_size": 16}])
def test_what_commands_cannot_change_replaces_both(wanted):
    assert changes(Seen(DOOR), Seen(BULK), **wanted) == (Replace(BULK), Replace(DOOR))


def test_a_worker_that_nobody_can_reach_any_more_is_replaced():
    assert changes(Seen(DOOR), Seen(BULK, cut_off=True)) == (Replace(BULK),)


def test_a_worker_that_leaves_is_none_of_its_tier():
    assert changes(Seen(DOOR, leaving_until_s=9.0), Seen(BULK)) == (Start(Tier.DOOR),)


def test_of_two_that_listen_the_younger_counts():
    old, young = Seen(DOOR), Seen(WorkerName(Tier.DOOR, 3), digest="e")
    assert generations.current([young, old], Tier.DOOR) is young
    assert generations.current([old], Tier.BULK) is None


def test_a_tier_that_is_no_longer_wanted_goes_after_the_door_that_used_it():
    door, bulk = Seen(DOOR), Seen(BULK)
    assert changes(door, bulk, tiers=(Tier.DOOR,), digest="e") == (Replace(DOOR),)
    door.leaving_until_s = 9.0
    young = Seen(WorkerName(Tier.DOOR, 3), digest="e")
    assert changes(door, bulk, young, tiers=(Tier.DOOR,), digest="e") == ()
    assert changes(bulk, young, tiers=(Tier.DOOR,), digest="e") == (Retire(BULK),)
    bulk.leaving_until_s = 9.0
    assert changes(bulk, young, tiers=(Tier.DOOR,), digest="e") == ()


def pause(*workers, due_s=None, is_vacating=False, now_s=100.0):
    return generations.pause_s(workers, due_s or {}, is_vacating=is_vacating, now_s=now_s, times=TIMES)


def test_what_is_quiet_is_looked_at_now_and_then():
    assert pause(Seen(DOOR)) == 10.0


@pytest.mark.parametrize(
    "worker",
    [
        Seen(DOOR, leaving_until_s=500.0),
        Seen(DOOR, holdings=None),
        Seen(DOOR, holdings=Holdings(entries={}, servers={ServerAddress(1, "a"): ServerState(8, False)})),
    ],
)
def test_what_is_about_to_be_free_is_looked_at_soon(worker):
    assert pause(worker) == 0.25


def test_slots_about_to_be_free_are_looked_at_soon():
    assert pause(Seen(DOOR), is_vacating=True) == 0.25


def test_a_tier_is_started_as_soon_as_it_may_be():
    assert pause(due_s={Tier.DOOR: 103.0, Tier.BULK: 104.0}) == 3.0
    assert pause(due_s={Tier.DOOR: 90.0}) == 0.01
    assert pause(due_s={Tier.DOOR: 103.0}, is_vacating=True) == 0.25


def test_a_worker_that_was_retired_ends_after_its_last_client_or_when_its_time_is_up():
    until_s = generations.leaving_until_s([30.0, 600.0], 1000.0, TIMES)
    assert until_s == 1720.0
    assert generations.leaving_until_s([], 1000.0, TIMES) == 1120.0
    worker = Seen(DOOR, leaving_until_s=until_s)
    assert generations.has_left(worker, 0, 1001.0)
    assert not generations.has_left(worker, 1, 1719.0)
    assert generations.has_left(worker, 1, 1720.0)


def test_who_was_heard_of_is_not_asked():
    worker = Seen(DOOR, answered_s=50.0)
    assert not generations.is_to_be_asked(worker, 59.0, TIMES)
    assert generations.is_to_be_asked(worker, 60.0, TIMES)
    worker.holdings = None
    assert generations.is_to_be_asked(worker, 51.0, TIMES)


def test_who_has_not_answered_for_long_is_deaf():
    worker = Seen(DOOR, answered_s=50.0)
    assert not generations.is_deaf(worker, 59.0, TIMES)
    assert generations.is_deaf(worker, 60.0, TIMES)
