"""One schedule, from its first deploy to rest."""

from __future__ import annotations

from collections import Counter

import msgspec

from cortex.controlplane.world import Planner
from cortex.planning.plan import plan as real_plan
from cortex.testing.simulation.happenings import Happenings
from cortex.testing.simulation.invariants import Invariants
from cortex.testing.simulation.world import LONGEST_WAIT_S, Mood, PretendedWorld

PATIENCE_S = 900.0
"""Time in which everything must have come to rest after the last fault; back-off alone takes up to a minute."""


class ScheduleOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a schedule amounted to."""

    seed: int
    mood: Mood
    ticks: int
    answers: Counter[str]
    events: Counter[str]


class Simulation:
    """
    One schedule.

    Args:
        seed: same seed, same schedule.
        planner: planning under test; a broken one must be noticed.
        mood: instead of the one the seed would choose. Another schedule then.
    """

    def __init__(self, seed: int, *, planner: Planner = real_plan, steps: int = 25, mood: Mood | None = None) -> None:
        self._steps = steps
        self._world = PretendedWorld(seed, planner=planner, mood=mood)
        self._invariants = Invariants(self._world)
        self._happenings = Happenings(self._world, ask=self._invariants.ask_clients, let_pass=self._let_pass)

    def run(self) -> ScheduleOutcome:
        """Run the schedule. Raises Violation when a promise is broken."""
        world = self._world
        world.start_control_plane()
        self._happenings.begin()
        self._let_pass(1.0)
        for _ in range(self._steps):
            self._happenings.one()
            world.settle()
            self._let_pass(world.random.choice([0.0, 0.01, 0.05, 0.3, 1.0, 4.0]))
        world.heal()
        self._come_to_rest()
        self._invariants.check_rest()
        return ScheduleOutcome(
            seed=world.seed, mood=world.mood, ticks=world.ticks, answers=self._invariants.answers, events=world.events
        )

    def _let_pass(self, seconds: float) -> None:
        """Let time pass, from one thing that happens to the next."""
        world = self._world
        end_s = world.now_s() + seconds
        while True:
            if world.control is None and world.back_s is not None and world.now_s() >= world.back_s:
                world.start_control_plane()
            self._happenings.visit()
            world.watch()
            world.settle()
            if world.mood is not Mood.ROUGH:
                self._invariants.check_batching()
                self._invariants.check_parked()
            self._invariants.ask_clients()
            now_s = world.now_s()
            if now_s >= end_s:
                return
            changes_s = (world.agents.next_change_s(), world.wake_s, world.back_s, *world.watches_until_s())
            later_s = [at_s for at_s in changes_s if at_s is not None and at_s > now_s]
            world.clock.advance(min(end_s, now_s + LONGEST_WAIT_S, *later_s) - now_s)

    def _come_to_rest(self) -> None:
        world = self._world
        deadline_s = world.now_s() + PATIENCE_S
        while world.now_s() < deadline_s:
            self._let_pass(LONGEST_WAIT_S)
            if world.at_rest():
                return
        world.violated(f"not at rest {PATIENCE_S:g} s after the last fault")
