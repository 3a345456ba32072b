"""
Fuzz a running environment: the control plane's API by its OpenAPI document, and an api's endpoint with random requests.

    python bench/fuzz.py --seconds 180

Starts an environment in a temporary home, and ends it. Nothing that is sent may be answered with 5xx (but for 507 of a
full disk). The control plane is fuzzed by schemathesis, which is fetched into a place of its own with `uv tool run`,
because it would bring twenty packages into the developers' environment. tests/e2e/test_fuzz.py is the short form.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))

from contract_harness import Home, running_home  # noqa: E402
from fuzzing import Fuzzed, fuzz_endpoint  # noqa: E402

SCHEMATHESIS = "schemathesis>=4,<5"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=180.0, help="for the control plane, and again for the api")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument(
        "--schemathesis", default="", metavar="BINARY", help="instead of the one that `uv tool run` fetches"
    )
    options = parser.parse_args()
    with running_home() as home:
        home.deploy(ROOT / "examples" / "iris")
        bad_plane = fuzz_control_plane(home, options.seconds, options.seed, options.schemathesis)
        home.deploy(ROOT / "examples" / "iris")  # it may have been deleted, as was asked for
        fuzzed = fuzz_endpoint(home, "/iris/raw", seconds=options.seconds, seed=options.seed)
        bad_plane += [line for line in log_lines(home) if "fault of ours" in line]
        alive = home.cortex("get", "-a", "-o", "json").json
        print(receipt(bad_plane, fuzzed))
        healthy = all(shown["status"] == "live" for shown in alive)
        print("all apis are live" if healthy else f"not live any more: {alive}")
    return 0 if not bad_plane and not fuzzed.bad and healthy else 1


def fuzz_control_plane(home: Home, seconds: float, seed: int | None, binary: str) -> list[str]:
    """Returns what was answered with 5xx, one line each."""
    command = [binary] if binary else [*uv(), "tool", "run", "--from", SCHEMATHESIS, "schemathesis"]
    token = (home.path / "token").read_text().strip()
    with tempfile.TemporaryDirectory(prefix="cortex-fuzz-") as folder:
        report = Path(folder) / "events.ndjson"
        subprocess.run(
            [
                *command,
                *("run", f"http://127.0.0.1:{home.operator_port}/openapi.json"),
                *("--header", f"Authorization: Bearer {token}"),
                *("--checks", "not_a_server_error"),
                *("--exclude-path", "/v1/stop"),  # it does what it says
                *("--max-time", str(int(seconds)), "--request-timeout", "90", "--workers", "2"),
                *("--phases", "examples,coverage,fuzzing", "--continue-on-failure", "--no-shrink"),
                *("--report-ndjson-path", str(report), "--suppress-health-check", "all"),
                *(("--seed", str(seed)) if seed is not None else ()),
            ],
            env={**os.environ, "SCHEMATHESIS_HOOKS": ""},
            cwd=folder,
            check=False,
        )
        return server_errors(report)


def log_lines(home: Home) -> list[str]:
    """What the control plane and the agent wrote: a deploy that fails through a fault of ours is a 200."""
    names = ("controlplane.log", "agent.log")
    return [line for name in names for line in (home.path / "logs" / name).read_text("utf-8", "replace").splitlines()]


def server_errors(report: Path) -> list[str]:
    if not report.exists():
        return ["schemathesis wrote no report: did it run?"]
    found = [pair for line in report.read_text().splitlines() for pair in answers(json.loads(line))]
    if not found:
        return ["schemathesis reported no answers: did its form of report change?"]
    counts = Counter(status for status, _ in found)
    print(f"control plane: {', '.join(f'{count} × {status}' for status, count in sorted(counts.items()))}")
    return list(dict.fromkeys(f"{status} {request}" for status, request in found if status >= 500 and status != 507))


def answers(value: object) -> list[tuple[int, str]]:
    """Every (status, request) in an event, wherever it stands: the events' form changes between releases."""
    found: list[tuple[int, str]] = []
    if isinstance(value, dict):
        response = value.get("response")
        if isinstance(response, dict) and isinstance(response.get("status_code"), int):
            asked = response.get("request") or value.get("request") or value.get("case") or {}
            shown = {name: asked.get(name) for name in ("method", "uri", "url", "path") if isinstance(asked, dict)}
            found.append((response["status_code"], json.dumps({k: v for k, v in shown.items() if v})))
        for item in value.values():
            found += answers(item)
    elif isinstance(value, list):
        for item in value:
            found += answers(item)
    return found


def uv() -> list[str]:
    binary = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    return [binary]


def receipt(bad_plane: list[str], fuzzed: Fuzzed) -> str:
    lines = [f"control plane: {len(bad_plane)} faults", *bad_plane[:20]]
    counts = ", ".join(f"{count} × {status}" for status, count in sorted(fuzzed.statuses.items()))
    lines += [f"endpoint: {sum(fuzzed.statuses.values())} requests: {counts}; {fuzzed.closed} connections closed"]
    return "\n".join([*lines, *(f"5xx: {bad!r}" for bad in fuzzed.bad[:20])])


if __name__ == "__main__":
    begun_s = time.monotonic()
    code = main()
    print(f"{time.monotonic() - begun_s:.0f} s")
    sys.exit(code)
