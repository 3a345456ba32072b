"""
How many good versions are taken for bad ones, and how soon a bad one goes back: 1,000 pretended rollouts a line.

    python bench/watching.py [ROLLOUTS]
"""

from __future__ import annotations

import math
import statistics
import sys

import numpy as np

from cortex.testing.rollouts import goes_back_after_s

LINES = [
    (per_second, failing, failing, in_bursts, minutes)
    for minutes in (60, 10)
    for in_bursts in (False, True)
    for per_second in (5, 50)
    for failing in (0.001, 0.01, 0.05, 0.2)
]
BAD = [
    (5, 0.01, 0.5, False, 60),
    (5, 0.01, 0.5, False, 10),
    (5, 0.01, 0.5, True, 60),
    (50, 0.01, 0.5, True, 60),
    (5, 0.01, 0.05, False, 60),
    (5, 0.0, 1.0, False, 60),
    (0.5, 0.01, 0.5, False, 60),
]


def main() -> None:
    rollouts = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    print("| requests/s | fail before | after | bursts of ten | old for | go back | median | 95 % | last |")
    print("|---|---|---|---|---|---|---|---|---|")
    for number, (per_second, before, after, in_bursts, minutes) in enumerate([*LINES, *BAD]):
        roll = np.random.default_rng(number)
        found = [
            goes_back_after_s(
                roll,
                per_second=per_second,
                before=before,
                after=after,
                in_bursts=in_bursts,
                served_minutes=minutes,
            )
            for _ in range(rollouts)
        ]
        went = sorted(after_s for after_s in found if after_s is not None)
        median = f"{statistics.median(went):g} s" if went else ""
        most = f"{went[math.ceil(0.95 * len(went)) - 1]:g} s" if went else ""
        last = f"{went[-1]:g} s" if went else ""
        print(
            f"| {per_second:g} | {before:.1%} | {after:.1%} | {'yes' if in_bursts else 'no'} | {minutes} min "
            f"| {len(went)} of {rollouts} | {median} | {most} | {last} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
