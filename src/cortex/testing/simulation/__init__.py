"""
Schedules of faults, generated from a seed, against the real control plane on pretended nodes.

One run deploys, scales, deletes and breaks things at random for a while, then lets everything heal. State, engine and
agents are in memory and time is pretended, so a schedule of minutes takes milliseconds. What is promised (the table
"Faults" and the invariants in the architecture) is checked at every step; `invariants.py` says what.

A violation carries the seed and what happened last. `CORTEX_SIM_SEED` (with `CORTEX_SIM_MOOD`, if the violation names
one) repeats a run, `CORTEX_SIM_RUNS` sets how many the tests make; `bench/simulate.py` runs a hundred thousand.

| module | holds |
|---|---|
| `schedule.py` | one run from its first deploy to rest: what the tests and the bench call |
| `happenings.py` | what users do, and what goes wrong |
| `world.py` | the pretended nodes, the real control plane on them, its ends and starts |
| `builds.py` | how the replicas of a build fare |
| `invariants.py` | what has to hold at every step |
"""

from __future__ import annotations

from cortex.testing.simulation.builds import BuildKind
from cortex.testing.simulation.schedule import ScheduleOutcome, Simulation
from cortex.testing.simulation.world import Mood, Violation

__all__ = ["BuildKind", "Mood", "ScheduleOutcome", "Simulation", "Violation"]
