"""
Redeploys and requests for a long time, with scaling on: do memory, descriptors, processes or files grow?

    .venv/bin/python bench/soak.py [--redeploys 1000] [--requests 5000000] [--rate 1000] [--plot build/soak.svg]

An outside client asks at a rate that swings, so that replicas come and go between deploys, and checks each answer. Each
redeploy makes new versions of all apis; every tenth is of a model as well, and after every tenth one api goes back.
What each process takes, and what lies in the home, is looked at in between. A line is put through what was found after
the first third, which is left out. It is *flat* if it rises by no more than a tenth of its mean, or by no more than
what is told in `FLOORS`, over the rest. Exits 0 only when everything is flat and no request failed, but for those
refused since the machine had too much to do.

Stored models and projects are kept up to a number of bytes (`CORTEX_ARTIFACTS_GB`) and one of trees, logs up to others,
statistics for as long as their versions: these are shown and not judged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from client import Counts, Plan
from drawing import page
from faults.project import HANDLER, numbered_iris
from world import World, a_world, end_in_order

SHARES = {"quick": 0.8, "waits": 0.2}
"""Of all requests. A handler that waits has more replicas than one."""
SWING_S = 40.0
LEFT_OUT = 1 / 3
"""Of all samples, the first: pools fill, and caches."""
RISE = 0.1
FLOORS = {"MB": 3.0, "descriptors": 3.0, "threads": 1.0, "processes": 1.0, "files": 10.0}
"""By unit: a rise by less says nothing."""
ACCOUNTED = ("artifacts", "logs", "stats", "stats.db")
"""What grows in the home by intent, up to a bound that no soak reaches."""
PROCESSES = ("controlplane", "agent", "keeper", "launcher", "replica", "ingress")

YAML = """\
- {kind: deployment, name: soak}
- kind: api
  name: quick
  model: model.onnx
  request_handler: handler.py
  sample: {"tag": "sample", "features": [5.2, 3.6, 1.4, 0.3]}
  compute: {cpu: 100m, max_replicas: 4, downscale_window: 5s}
- kind: api
  name: waits
  model: model.onnx
  request_handler: handler.py
  sample: {"tag": "sample", "features": [5.2, 3.6, 1.4, 0.3]}
  env: {WAITS: "0.01"}
  compute: {cpu: 100m, max_replicas: 8, downscale_window: 5s}
"""
WAITS = """\


import time

_before = pre_inference


def pre_inference(sample, metadata, request):
    time.sleep(float(os.environ.get("WAITS", "0")))
    return _before(sample, metadata, request)
"""


@dataclass(frozen=True)
class Look:
    """What was there at one moment."""

    redeploys: int
    requests: int
    found: Mapping[str, float]
    """By name with its unit: `agent, MB`."""


@dataclass(frozen=True)
class Line:
    """How one figure went, over what was not left out."""

    name: str
    first: float
    last: float
    """Both on the line through all values."""
    per_thousand: float
    """Rise in a thousand redeploys."""
    is_judged: bool

    @property
    def is_flat(self) -> bool:
        rise = self.last - self.first
        return rise <= max(RISE * (self.first + self.last) / 2, FLOORS[self.name.rpartition(", ")[2]])


def line_through(name: str, points: Sequence[tuple[float, float]]) -> Line:
    """
    The line of least squares.

    Args:
        points: redeploys, and the value then; at least two that differ in the first.
    """
    slope, offset = statistics.linear_regression([x for x, _ in points], [y for _, y in points])
    return Line(
        name=name,
        first=offset + slope * points[0][0],
        last=offset + slope * points[-1][0],
        per_thousand=slope * 1000,
        is_judged=not name.startswith(tuple(f"home/{what}," for what in ACCOUNTED)),
    )


def lines_of(looks: Sequence[Look]) -> list[Line]:
    rest = looks[int(len(looks) * LEFT_OUT) :]
    names = sorted({name for look in rest for name in look.found})
    return [
        line_through(name, [(look.redeploys, look.found[name]) for look in rest if name in look.found])
        for name in names
        if len({look.redeploys for look in rest if name in look.found}) > 1
    ]


# ---- looking ----------------------------------------------------------------------------------------------------


def look(world: World) -> dict[str, float]:
    """Of each kind of process: how many, and of one, on average, memory, descriptors, threads; files of the home."""
    found: dict[str, float] = {}
    of_kind: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
    for pid, title in world.processes().items():
        with contextlib.suppress(OSError):
            of_kind[_kind(title)].append((_resident_mb(pid), len(os.listdir(f"/proc/{pid}/fd")), _threads(pid)))
    for kind, of_each in of_kind.items():
        if kind in PROCESSES:
            for unit, values in zip(("MB", "descriptors", "threads"), zip(*of_each, strict=True), strict=True):
                found[f"{kind}, {unit}"] = statistics.fmean(values)
            found[f"{kind}, processes"] = len(of_each)
    for what, (number, mb) in _stored(world.home).items():
        found[f"home/{what}, files"] = number
        found[f"home/{what}, MB"] = mb
    return found


def _kind(title: str) -> str:
    first = title.split(" ", 1)[0]
    return first.removeprefix("cortex-") if first.startswith("cortex-") else "ingress" if "haproxy" in first else title


def _resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def _stored(home: Path) -> dict[str, tuple[int, float]]:
    """Number and MB of files, by what is at the top of the home; of a database its log counts with it."""
    found: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for folder, _, names in os.walk(home):
        for name in names:
            path = Path(folder, name)
            with contextlib.suppress(OSError):
                top = path.relative_to(home).parts[0].removesuffix("-wal").removesuffix("-shm")
                number, mb = found[top]
                found[top] = number + 1, mb + path.lstat().st_size / 1e6
    return {top: value for top, value in found.items() if (home / top).is_dir() or top.endswith(".db")}


# ---- doing ------------------------------------------------------------------------------------------------------


class Deployer:
    """Writes new versions and deploys them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._number = 0

    def deploy(self) -> None:
        """Another handler; every tenth time another model as well, and then back again for one api."""
        self._number += 1
        project = self._world.project
        (project / "cortex.yaml").write_text(YAML)
        (project / "handler.py").write_text(HANDLER.format(number=self._number) + WAITS)
        if self._number % 10 == 1:
            (project / "model.onnx").write_bytes(numbered_iris(self._number))
        self._world.must("deploy", timeout_s=300)
        if self._number % 10 == 5:
            self._world.must("rollback", "quick", timeout_s=300)


class Traffic:
    """The client, and what it says of itself."""

    def __init__(self, world: World, rate: float) -> None:
        plan = Plan(port=world.port, deployment="soak", rate=rate, shares=SHARES, swing_s=SWING_S)
        path = world.folder / "plan.json"
        path.write_bytes(msgspec.json.encode(plan))
        self._said = (world.folder / "client.txt").open("w+")
        command = [sys.executable, str(Path(__file__).with_name("client.py")), str(path)]
        self._process = subprocess.Popen(command, stdout=self._said)

    @property
    def counts(self) -> Counts:
        self._said.seek(0)
        whole = self._said.read().rpartition("\n")[0].splitlines()
        return msgspec.json.decode(whole[-1], type=Counts) if whole else Counts()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=120)


@contextlib.contextmanager
def traffic(world: World, rate: float) -> Iterator[Traffic]:
    found = Traffic(world, rate)
    try:
        yield found
    finally:
        found.stop()


def soak(
    world: World, redeploys: int, requests: int, rate: float, *, stopped: Callable[[], bool]
) -> tuple[list[Look], Counts]:
    """Spread the redeploys over the requests, until all are done or it is stopped."""
    deployer = Deployer(world)
    deployer.deploy()
    looks: list[Look] = []
    with traffic(world, rate) as client:
        done = 0
        while not stopped() and (done < redeploys or client.counts.sent < requests):
            if done < redeploys and client.counts.sent >= done * requests / redeploys:
                deployer.deploy()
                done += 1
            else:
                time.sleep(0.5)
            if len(looks) < 200 * max(done / redeploys, client.counts.sent / requests):
                looks.append(Look(done, client.counts.sent, look(world)))
                _say(looks[-1], client.counts)
    return looks, client.counts


def _say(found: Look, counts: Counts) -> None:
    memory = "  ".join(f"{kind} {found.found.get(f'{kind}, MB', 0.0):.1f}" for kind in PROCESSES)
    processes = sum(number for name, number in found.found.items() if name.endswith(", processes"))
    bad = f"  {counts.failed} failed, {counts.refused} of them for load" if counts.failed else ""
    print(
        f"{found.redeploys:5} redeploys {found.requests:9,}  {processes:3.0f} processes  MB: {memory}{bad}", flush=True
    )


# ---- telling ----------------------------------------------------------------------------------------------------


def drawn(looks: Sequence[Look]) -> str:
    """Memory, descriptors, processes and files over redeploys, as SVG."""

    def points(name: str) -> list[tuple[float, float]]:
        return [(one.redeploys, one.found[name]) for one in looks if name in one.found]

    panels = {
        f"{unit} of a process": {kind: points(f"{kind}, {unit}") for kind in PROCESSES}
        for unit in ("MB", "descriptors", "threads")
    }
    panels["processes"] = {kind: points(f"{kind}, processes") for kind in PROCESSES}
    tops = sorted({name.partition(", ")[0] for one in looks for name in one.found if name.startswith("home/")})
    for unit in ("MB", "files"):
        panels[f"{unit} in the home"] = {top: points(f"{top}, {unit}") for top in tops}
    return page(panels, f"redeploys, with {looks[-1].requests:,} requests meanwhile")


def table(lines: Sequence[Line]) -> str:
    rows = ["| what | after a third | at the end | in 1,000 redeploys | |", "|---|--:|--:|--:|---|"]
    rows += [
        f"| {line.name} | {line.first:.1f} | {line.last:.1f} | {line.per_thousand:+.1f} | "
        f"{('flat' if line.is_flat else '**grows**') if line.is_judged else 'kept by intent'} |"
        for line in lines
    ]
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().partition("\n\n")[0])
    parser.add_argument("--redeploys", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=5_000_000)
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second, on average (default 1000)")
    parser.add_argument("--plot", type=Path, default=Path("build/soak.svg"))
    parser.add_argument("--seconds", type=float, default=math.inf, help="end after so long, wherever it is")
    given = parser.parse_args()
    plot = given.plot.resolve()
    ends_s = time.monotonic() + given.seconds
    end_in_order()
    with a_world("soak") as world:
        looks, counts = soak(
            world, given.redeploys, given.requests, given.rate, stopped=lambda: time.monotonic() > ends_s
        )
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_text(drawn(looks))
    plot.with_suffix(".json").write_text(json.dumps(msgspec.to_builtins(looks)) + "\n")
    lines = lines_of(looks)
    print(f"\n{table(lines)}\n\nplot: {plot}")
    print(
        f"{counts.sent:,} requests: {counts.refused} refused for load, {counts.failed - counts.refused} failed, "
        f"{counts.wrong} wrong {counts.first_failure}"
    )
    grown = [line.name for line in lines if line.is_judged and not line.is_flat]
    print(f"grows: {', '.join(grown)}" if grown else "flat")
    return 1 if grown or counts.failed > counts.refused or counts.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
