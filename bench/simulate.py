"""
Run many generated schedules of faults and of load that moves, and say how fast and whether every promise was kept.

    python bench/simulate.py --schedules 100000 --jobs 2

The same seeds give the same schedules, whatever the number of jobs. Exit code 1 and the seed of each violation if there
is one; `CORTEX_SIM_SEED=<seed> pytest -k repeated tests/unit/controlplane/test_simulation.py` repeats it with the whole
story (with `CORTEX_SIM_MOOD`, if `--mood` was given). Speed is told by processor time, so that others who use the
machine count little.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from collections import Counter
from multiprocessing import Pool

from cortex.testing.simulation import Mood, Simulation, Violation
from cortex.testing.simulation.schedule import STEPS

CHUNK = 50
"""Schedules that a process runs in a row, between two collections of garbage."""
BAR = 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=100_000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="how many at once (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="happenings in a schedule (default: %(default)s)")
    parser.add_argument("--mood", choices=[mood.value for mood in Mood], help="only schedules of this mood")
    asked = parser.parse_args()
    seeds = range(asked.first, asked.first + asked.schedules)
    chunks = [(tuple(seeds[at : at + CHUNK]), asked.steps, asked.mood) for at in range(0, len(seeds), CHUNK)]
    began_s = time.perf_counter()
    events: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    done = ticks = violations = 0
    used_s = 0.0
    with Pool(asked.jobs, initializer=_quiet) as pool:
        for found in pool.imap_unordered(_run, chunks):
            number, chunk_events, chunk_answers, chunk_ticks, chunk_s, said = found
            done, ticks, used_s = done + number, ticks + chunk_ticks, used_s + chunk_s
            events.update(chunk_events)
            answers.update(chunk_answers)
            violations += len(said)
            for line in said:
                print(f"\r{line}", flush=True)
            _show(done, asked.schedules, violations, done / used_s, time.perf_counter() - began_s)
    print(
        f"\n{done} schedules in {time.perf_counter() - began_s:.0f} s, {used_s:.0f} s of processor time "
        f"({done / used_s:.0f} a second and core), {violations} violations"
    )
    each = 1000 / done
    print(f"in 1,000 schedules: {ticks * each:,.0f} ticks; " + _told(events, each))
    print(f"clients were: {_told(answers, each)}")
    return 1 if violations else 0


def _quiet() -> None:
    logging.disable(logging.CRITICAL)
    gc.disable()


def _run(
    chunk: tuple[tuple[int, ...], int, str | None],
) -> tuple[int, dict[str, int], dict[str, int], int, float, list[str]]:
    seeds, steps, mood = chunk
    events: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    ticks, said = 0, []
    began_s = time.process_time()
    for seed in seeds:
        try:
            outcome = Simulation(seed, steps=steps, mood=Mood(mood) if mood else None).run()
        except Violation as violation:
            said.append(f"seed {seed}: " + str(violation).partition("\n")[0])
        else:
            events.update(outcome.events)
            answers.update(outcome.answers)
            ticks += outcome.ticks
    gc.collect()
    return len(seeds), dict(events), dict(answers), ticks, time.process_time() - began_s, said


def _show(done: int, of: int, violations: int, speed: float, took_s: float) -> None:
    filled = BAR * done // of
    left_s = took_s / done * (of - done)
    sys.stderr.write(
        f"\r[{'#' * filled}{'.' * (BAR - filled)}] {done}/{of}, {speed:.0f} a second and core, "
        f"{violations} violations, {left_s:.0f} s left "
    )
    sys.stderr.flush()


def _told(counts: Counter[str], each: float) -> str:
    return ", ".join(f"{name} {count * each:,.0f}" for name, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
