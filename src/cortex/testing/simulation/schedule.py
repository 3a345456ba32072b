"""One schedule, from its first deploy to rest."""

from __future__ import annotations

import math
from collections import Counter

import msgspec

from cortex.controlplane.world import Planner
from cortex.planning.autoscale import Rule, decide
from cortex.planning.plan import plan as real_plan
from cortex.testing.simulation.happenings import Happenings
from cortex.testing.simulation.invariants import Invariants
from cortex.testing.simulation.load import MovingLoad
from cortex.testing.simulation.world import LONGEST_WAIT_S, Mood, PretendedWorld

STEPS = 8
PAUSES_S = (0.0, 0.05, 0.5, 2.0, 4.0, 8.0)
"""Between two happenings."""
REST_LOOK_S = 1.0
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
        rule: of scaling, likewise.
        mood: instead of the one the seed would choose. Another schedule then.
    """

    def __init__(
        self,
        seed: int,
        *,
        planner: Planner = real_plan,
        rule: Rule = decide,
        steps: int = STEPS,
        mood: Mood | None = None,
    ) -> None:
        self._steps = steps
        self._world = PretendedWorld(seed, planner=planner, rule=rule, mood=mood)
        self._invariants = Invariants(self._world)
        self._traffic = MovingLoad(self._world)
        self._happenings = Happenings(self._world, self._traffic, ask=self._invariants.ask_clients)

    def run(self) -> ScheduleOutcome:
        """Run the schedule. Raises Violation when a promise is broken."""
        world = self._world
        world.start_control_plane()
        self._happenings.begin()
        self._react()
        self._let_pass(1.0)
        for _ in range(self._steps):
            self._happenings.one()
            self._react()
            self._let_pass(world.random.choice(PAUSES_S))
        world.heal()
        self._traffic.calm()
        self._react()
        self._come_to_rest()
        self._invariants.check_rest()
        return ScheduleOutcome(
            seed=world.seed, mood=world.mood, ticks=world.ticks, answers=self._invariants.answers, events=world.events
        )

    def _let_pass(self, seconds: float) -> None:
        """Let time pass, from one thing that happens to the next."""
        world, traffic = self._world, self._traffic
        end_s = world.now_s() + seconds
        while world.now_s() < end_s:
            now_s = world.now_s()
            changes_s = (world.agents.next_change_s(), world.wake_s, world.back_s, *world.watches_until_s())
            change_s = min((at_s for at_s in changes_s if at_s is not None and at_s > now_s), default=math.inf)
            world.clock.advance(min(end_s, now_s + LONGEST_WAIT_S, change_s, max(now_s, traffic.next_s)) - now_s)
            if traffic.advance():
                self._invariants.check_rows()
                self._react()
            elif world.now_s() >= change_s:
                self._react()

    def _react(self) -> None:
        """The control plane sees what there is, and does what it thinks fit."""
        world = self._world
        if world.control is None and world.back_s is not None and world.now_s() >= world.back_s:
            world.start_control_plane()
        world.watch()
        world.settle()
        self._invariants.check_rows()
        if world.mood is not Mood.ROUGH:
            self._invariants.check_batching()
            self._invariants.check_parked()
        self._invariants.check_routes()
        self._invariants.check_lost()
        self._invariants.ask_clients()

    def _come_to_rest(self) -> None:
        world = self._world
        deadline_s = world.now_s() + PATIENCE_S
        while world.now_s() < deadline_s:
            self._let_pass(REST_LOOK_S)
            if world.at_rest():
                return
        world.violated(f"not at rest {PATIENCE_S:g} s after the last fault")
