"""
Run many generated schedules of faults and say how fast and whether every promise was kept.

    python bench/simulate.py --runs 100000 --processes 2

Exit code 1 and the seed of each violation if there is one; `CORTEX_SIM_SEED=<seed> pytest -k repeated
tests/unit/controlplane/test_simulation.py` repeats it with the whole story (with `CORTEX_SIM_MOOD`, if `--mood` was
given).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from multiprocessing import Pool

from cortex.testing.simulation import Mood, Simulation, Violation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000, help="how many schedules (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="how many at once (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="events in a schedule (default: %(default)s)")
    parser.add_argument("--mood", choices=[mood.value for mood in Mood], help="only schedules of this mood")
    asked = parser.parse_args()
    seeds = range(asked.first, asked.first + asked.runs)
    jobs = [(seed, asked.steps, asked.mood) for seed in seeds]
    began_s = time.perf_counter()
    answers: Counter[str] = Counter()
    ticks = violations = 0
    with Pool(asked.processes, initializer=_quiet) as pool:
        results = pool.imap_unordered(_run, jobs, chunksize=50)
        for done, (seed, found, ticked, said) in enumerate(results, start=1):
            answers += found
            ticks += ticked
            if said:
                violations += 1
                print(f"seed {seed}: {said}", flush=True)
            if done % 5000 == 0:
                print(f"{done} schedules, {done / (time.perf_counter() - began_s):.0f}/s", flush=True)
    took_s = time.perf_counter() - began_s
    print(
        f"{asked.runs} schedules in {took_s:.0f} s ({asked.runs / took_s:.0f}/s), "
        f"{ticks} ticks, {violations} violations"
    )
    print(", ".join(f"{outcome} {count}" for outcome, count in answers.most_common()))
    return 1 if violations else 0


def _quiet() -> None:
    logging.disable(logging.CRITICAL)


def _run(job: tuple[int, int, str | None]) -> tuple[int, Counter[str], int, str]:
    seed, steps, mood = job
    try:
        outcome = Simulation(seed, steps=steps, mood=Mood(mood) if mood else None).run()
    except Violation as violation:
        return seed, Counter(), 0, str(violation).partition("\n")[0]
    return seed, outcome.answers, outcome.ticks, ""


if __name__ == "__main__":
    sys.exit(main())
