"""
What tracker and statistics cost: one replica with them and one without, asked in turns, in one run.

    .venv/bin/python bench/monitoring.py [--rounds 30] [--seconds 0.5] [--connections 16]

Both replicas are asked directly, without the ingress, so that everything else is as little as it gets: the iris model
with a `post_inference`. The one without has counters that count nothing and writes no file. Shown are medians of
requests a second and of processor time a request, and of the ratios of both, round by round: rounds are short, so that
what else the machine does falls on both alike.
Exits 1 when requests a second are lower by 5 % or more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from replica import MODEL, SAMPLE, load
from replica_harness import LauncherProcess, Replica, spec_for

from cortex.wire.build import TrackerConfig

LIMIT = 0.05
HANDLER = """
def post_inference(prediction, metadata):
    return prediction["label"][0]
"""
WITHOUT = """
from cortex.replica.observation.stats import Counters, StatsWriter

Counters.answered = lambda *_: None
StatsWriter.write = lambda *_, **__: None
"""


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory(prefix="cxb", dir="/tmp") as name:
        launcher = LauncherProcess(Path(name))
        try:
            return _compare(launcher, Path(name), options)
        finally:
            launcher.stop()


def _compare(launcher: LauncherProcess, folder: Path, options: argparse.Namespace) -> int:
    tracker = TrackerConfig(model_type="classification")
    replicas = {
        "with": _replica(launcher, folder / "with", 0, HANDLER, tracker=tracker),
        "without": _replica(launcher, folder / "without", 1, HANDLER + WITHOUT, stats_path=""),
    }
    rates: dict[str, list[float]] = {name: [] for name in replicas}
    cpu_us: dict[str, list[float]] = {name: [] for name in replicas}
    try:
        for replica in replicas.values():
            load(replica, 0.5, options.connections)
        for number in range(options.rounds):
            # Turns change places: what comes first in a round is not always the same.
            for name in sorted(replicas, reverse=number % 2 == 1):
                rate, _, _, cpu = load(replicas[name], options.seconds, options.connections)
                rates[name].append(rate)
                cpu_us[name].append(cpu)
        counted = replicas["with"].stats(lambda found: found.tracker is not None and found.ok > 0)
        assert counted.tracker is not None
        assert sum(counted.tracker.classes.values()) > 0
    finally:
        for replica in replicas.values():
            replica.kill()
    for name in replicas:
        print(
            f"{name:8} {statistics.median(rates[name]):8,.0f} req/s"
            f"   replica's cpu {statistics.median(cpu_us[name]):5.2f} µs a request"
        )
    rate_lost = 1 - statistics.median(_ratios(rates["with"], rates["without"]))
    cpu_added = statistics.median(_ratios(cpu_us["with"], cpu_us["without"])) - 1
    print(f"cost     {rate_lost:8.1%} of requests/s    {cpu_added:+.1%} of cpu   ({options.rounds} rounds)")
    return int(rate_lost >= LIMIT)


def _replica(launcher: LauncherProcess, folder: Path, number: int, source: str, **fields: object) -> Replica:
    folder.mkdir()
    spec = spec_for(folder, MODEL, replica=f"t.m.00000000.{number}", handler_source=source, **fields)
    replica = launcher.fork(spec).ready()
    answer = replica.post(SAMPLE)
    assert answer.status == 200, answer
    return replica


def _ratios(ones: list[float], others: list[float]) -> list[float]:
    return [one / other for one, other in zip(ones, others, strict=True)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="how often each is asked (default 30)")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each time (default 0.5)")
    parser.add_argument("--connections", type=int, default=16, help="keep-alive connections (default 16)")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.exit(main())
