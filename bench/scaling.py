"""
Run many loads made up by chance past the rule of scaling, and say how fast and whether it kept every promise.

    python bench/scaling.py --runs 100000 --processes 2

Exit code 1 and the seed of each promise that was broken if there is one; `--first SEED --runs 1` repeats it. What is
promised: `cortex.simulation.promises`.
"""

from __future__ import annotations

import argparse
import sys
import time
from multiprocessing import Pool

from cortex.simulation.promises import BrokenPromise
from cortex.simulation.schedules import kept, scheduled


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, help="how many loads (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="how many at once (default: %(default)s)")
    asked = parser.parse_args()
    began_s, broken = time.perf_counter(), 0
    with Pool(asked.processes) as pool:
        seeds = range(asked.first, asked.first + asked.runs)
        for done, (seed, said) in enumerate(pool.imap_unordered(_run, seeds, chunksize=20), start=1):
            if said:
                broken += 1
                print(f"seed {seed}: {said}", flush=True)
            if done % 1000 == 0:
                print(f"{done} loads, {done / (time.perf_counter() - began_s):.0f}/s", flush=True)
    took_s = time.perf_counter() - began_s
    print(f"{asked.runs} loads in {took_s:.0f} s ({asked.runs / took_s:.0f}/s), {broken} broken promises")
    return 1 if broken else 0


def _run(seed: int) -> tuple[int, str]:
    try:
        kept(scheduled(seed))
    except BrokenPromise as broken:
        return seed, str(broken)
    return seed, ""


if __name__ == "__main__":
    sys.exit(main())
