"""
Every measurement of this folder but chaos, one after the other: `make bench`. Read the ratios; machines differ.

`python bench/run.py [NAME …]` runs only those named: throughput, codec, replica, monitoring, footprint,
saved_model, simulate, batches. What lacks something (`wrk`, TensorFlow) says so and is passed over.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SKIPPED = 2
"""Exit code of a script that lacks something it needs, and has said what."""
SCRIPTS = {
    "throughput": ["throughput.py"],
    "codec": ["codec.py"],
    "replica": ["replica.py"],
    "monitoring": ["monitoring.py"],
    "footprint": ["footprint.py"],
    "saved_model": ["saved_model.py"],
    "simulate": ["simulate.py", "--runs", "5000"],
    "batches": ["batches.py"],
}


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in SCRIPTS]
    if unknown:
        print(f"no such measurement: {', '.join(unknown)}; there are {', '.join(SCRIPTS)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or list(SCRIPTS):
        script, *options = SCRIPTS[name]
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, str(HERE / script), *options], check=False).returncode not in (0, SKIPPED):
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
