"""
Fuzz a running environment: the control plane and the apis by their OpenAPI documents, and an api's endpoint with
random requests that no document would have.

    python bench/fuzz.py --seconds 180

Starts an environment in a temporary home, and ends it. Nothing that is sent may be answered with 5xx (but for 507 of a
full disk), and an api without a handler must answer in every detail as its document says. tests/e2e/test_fuzz.py is the
short form.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from contract_harness import Home, running_home  # noqa: E402
from fuzzing import fuzz_endpoint  # noqa: E402
from schema_fuzzing import for_seconds, fuzz_api, fuzz_control_plane  # noqa: E402

APIS = ("iris/raw", "iris/sklearn")
"""Without and with a handler."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=180.0, help="for each: control plane, apis, endpoint")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    faults: list[str] = []
    with running_home() as home:
        project = ROOT / "examples" / "iris"
        home.deploy(project)
        plane = fuzz_control_plane(home, for_seconds(options.seconds), seed=options.seed)
        faults += shown("control plane", plane.statuses, plane.bad)
        faults += [] if plane.passed else [plane.talk]
        home.deploy(project)  # it may have been deleted, as was asked for
        for api in APIS:
            fuzzed = fuzz_api(home, api, for_seconds(options.seconds / len(APIS)), seed=options.seed)
            faults += shown(api, fuzzed.statuses, fuzzed.bad)
            faults += [] if fuzzed.passed else [fuzzed.talk]
        random = fuzz_endpoint(home, "/iris/raw", seconds=options.seconds, seed=options.seed)
        faults += shown(f"random requests ({random.closed} closed)", random.statuses, [repr(b) for b in random.bad])
        faults += [line for line in log_lines(home) if "fault of ours" in line]
        faults += [
            f"not live: {a['name']}" for a in home.cortex("get", "-a", "-o", "json").json if a["status"] != "live"
        ]
    print(f"{len(faults)} faults", *faults[:50], sep="\n")
    return 1 if faults else 0


def shown(what: str, statuses: Mapping[int, int], bad: list[str]) -> list[str]:
    counts = ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
    print(f"{what}: {sum(statuses.values())} requests: {counts}", flush=True)
    return bad if statuses else [f"{what}: nothing was sent"]


def log_lines(home: Home) -> list[str]:
    """What the control plane and the agent wrote: a deploy that fails through a fault of ours is a 200."""
    names = ("controlplane.log", "agent.log")
    return [line for name in names for line in (home.path / "logs" / name).read_text("utf-8", "replace").splitlines()]


if __name__ == "__main__":
    begun_s = time.monotonic()
    code = main()
    print(f"{time.monotonic() - begun_s:.0f} s")
    sys.exit(code)
