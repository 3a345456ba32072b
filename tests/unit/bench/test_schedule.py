"""`bench/faults/schedule.py`: what happens in a chaos run, from its seed."""

from __future__ import annotations

from collections import Counter

from faults.schedule import APART_S, COMMANDS, FULL_S, KILLS, NODE, NODES_KILLED, STOPS, Command, make_schedule
from hypothesis import given
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**32 - 1)
SECONDS = st.floats(20.0, 600.0)


@given(SEEDS, SECONDS)
def test_the_same_seed_makes_the_same_schedule(seed: int, seconds: float) -> None:
    assert make_schedule(seed, seconds) == make_schedule(seed, seconds)


@given(SEEDS)
def test_a_full_run_has_as_many_of_each_kind_as_are_wanted(seed: int) -> None:
    schedule = make_schedule(seed, FULL_S)
    assert Counter(step.command for step in schedule.steps) == COMMANDS
    assert Counter(fault.kind for fault in schedule.faults if not fault.stops) == KILLS
    assert Counter(fault.kind for fault in schedule.faults if fault.stops) == STOPS


@given(SEEDS, SECONDS)
def test_whatever_its_length_everything_happens_in_order_and_at_least_once(seed: int, seconds: float) -> None:
    schedule = make_schedule(seed, seconds)
    for what in (schedule.steps, schedule.faults):
        instants = [one.at_s for one in what]
        assert instants == sorted(instants)
    assert {step.command for step in schedule.steps} == set(Command)
    assert {fault.kind for fault in schedule.faults} == set(KILLS)


@given(SEEDS, SECONDS)
def test_nobody_goes_back_before_there_is_a_version_to_go_back_to(seed: int, seconds: float) -> None:
    first, second, *_ = make_schedule(seed, seconds).steps
    assert (first.command, second.command) == (Command.HANDLER, Command.MODEL)


@given(SEEDS, SECONDS)
def test_nothing_is_killed_right_after_a_keeper(seed: int, seconds: float) -> None:
    faults = make_schedule(seed, seconds, 3).faults
    for index, fault in enumerate(faults):
        if fault.kind == "keeper":
            assert all(other.at_s >= fault.at_s + APART_S for other in faults[index + 1 :])
            assert all(fault.at_s >= other.at_s + APART_S for other in faults[:index])


@given(SEEDS, st.integers(2, 5))
def test_on_several_nodes_the_same_happens_and_nodes_are_killed_whose_door_nobody_asks(seed: int, nodes: int) -> None:
    one, several = make_schedule(seed, FULL_S), make_schedule(seed, FULL_S, nodes)
    assert (several.steps, several.bursts) == (one.steps, one.bursts)
    rest = [fault for fault in several.faults if fault.kind != NODE]
    assert [(fault.kind, fault.stops, fault.chance) for fault in rest] == [
        (fault.kind, fault.stops, fault.chance) for fault in one.faults
    ]
    killed = [fault.node for fault in several.faults if fault.kind == NODE]
    assert len(killed) == NODES_KILLED
    assert several.door not in killed
    assert {several.door, *killed} <= set(range(nodes))


@given(SEEDS)
def test_each_way_of_being_bad_comes_up_in_a_full_run(seed: int) -> None:
    bad = [step.what for step in make_schedule(seed, FULL_S).steps if step.command is Command.BAD]
    assert len(set(bad)) == len(bad) == COMMANDS[Command.BAD]
