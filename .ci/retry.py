#!/usr/bin/env python3
"""
Run a command that runs our tests; what failed runs once more, each test by itself.

    .ci/retry.py make test

A test that passes then is printed as `flaky: NAME`, with what it said when it failed, and does not fail CI: it is a
bug to look into, not a reason to hold back everything else. One that fails again does. What is no test's failure (a
file that cannot be collected, a run that was cut off) is not tried again, nor are more than a few tests at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MOST_RETRIED = 10
"""With more failures than this at once it is not chance."""
TESTS_FAILED = 1
"""Source: https://docs.pytest.org/en/stable/reference/exit-codes.html"""


def main(command: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "failures"
        code = subprocess.run(command, env={**os.environ, "CORTEX_TEST_FAILURES": str(record)}, check=False).returncode
        lines = list(map(json.loads, record.read_text().splitlines())) if record.exists() else []
    sys.stdout.reconfigure(errors="backslashreplace")  # a failure may say anything
    outputs: dict[str, str] = {}
    for line in lines:
        if "test" in line:  # one that fails may fail once more while it is taken down
            outputs[line["test"]] = "\n".join(filter(None, (outputs.get(line["test"]), line["output"])))
    was_whole = (
        lines[-1:] and lines[-1].get("exit") == TESTS_FAILED and not any("uncollected" in line for line in lines)
    )
    if code == 0 or not outputs or not was_whole:
        return code
    if len(outputs) > MOST_RETRIED:
        print(f"== {len(outputs)} tests failed: too many to be chance, so none is tried again", flush=True)
        return code
    print(f"== once more, each by itself: {len(outputs)} that failed", flush=True)
    again = [lines[0]["python"], "-m", "pytest", f"--randomly-seed={lines[0]['seed']}"]
    failed_twice = [test for test in outputs if subprocess.run([*again, test], check=False).returncode != 0]
    for test, output in outputs.items():
        print(f"failed twice: {test}" if test in failed_twice else f"{output}\nflaky: {test}", flush=True)
    return code if failed_twice else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
