"""
Schedules of faults and of load that moves, generated from a seed, against the real control plane on pretended nodes.

One run deploys, rolls back, deletes and breaks things at random while requests come, now more and now fewer; then it
lets everything heal. The real planner and the real rule of scaling decide; state, engine, agents and queues are in
memory and time is pretended, so half a minute takes milliseconds. What is promised (the table "Faults" and the
invariants in the architecture) is checked at every step: `invariants.py` and `cortex/simulation/promises.py` say what.

A schedule has up to four apis on one to five nodes, eight happenings with 0 to 8 s between them, and a reading of
loads each half second; some 70 ticks of the control plane, half of which do something.

A violation carries the seed and what happened last. `CORTEX_SIM_SEED` (with `CORTEX_SIM_MOOD`, if the violation names
one) repeats a run, `CORTEX_SIM_RUNS` sets how many the tests make; `bench/simulate.py` runs a hundred thousand.

| module | holds |
|---|---|
| `schedule.py` | one run from its first deploy to rest: what the tests and the bench call |
| `happenings.py` | what users do, and what goes wrong |
| `world.py` | the pretended nodes, the real control plane on them, its ends and starts |
| `builds.py` | how the replicas of a build fare |
| `load.py` | what comes for each api, what its replicas make of it, and what scaling is told of that |
| `invariants.py` | what has to hold at every step |
| `broken.py` | rules of scaling with one mistake each, which have to be noticed |
"""

from __future__ import annotations

from cortex.testing.simulation.builds import BuildKind
from cortex.testing.simulation.schedule import ScheduleOutcome, Simulation
from cortex.testing.simulation.world import Mood, Violation

__all__ = ["BuildKind", "Mood", "ScheduleOutcome", "Simulation", "Violation"]
