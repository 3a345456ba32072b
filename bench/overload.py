"""
Offer one replica more than it can do: what is answered, what is refused, and how long takes what is accepted.

    .venv/bin/python bench/overload.py [--seconds 12] [--plot build/overload.svg]

The handler waits 5 ms, since clients and replica share the machine's cores. Clients come at random, at 0.5 to 4 times
what the replica does for clients that ask one after the other, each with one request, whether or not others were
answered. The patient ones wait for as long as it takes; the others give up after 2 s. Exits 0 only when goodput stays
above 90 % of the best from 1 times on, and p99 of what is accepted by patient clients under four times that at 0.5
plus what the queue and the replica's connections take.

The first seconds of each run are left out: until the ingress has seen how fast the replica is.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from client import Connection
from drawing import page
from world import IRIS_MODEL, World, a_world

OFFERED = (0.5, 0.9, 1.0, 1.5, 2.0, 3.0, 4.0)
GIVES_UP_S = 2.0
LEFT_OUT_S = 2.0
CALM_S = 3.0
"""Between two runs: who still waits is answered."""
CONNECTIONS = 40
"""What the ingress gives one replica with `concurrency: 1` at once."""
SHORTEST_QUEUE, LONGEST_QUEUE = 100, 2048

CORTEX_YAML = """\
- {kind: deployment, name: bench}
- kind: api
  name: waits
  model: model.onnx
  request_handler: handler.py
  compute: {cpu: 100m, concurrency: 1, max_replicas: 1}
"""
HANDLER = """\
import time


def pre_inference(sample, metadata):
    time.sleep(0.005)
    return [[5.2, 3.6, 1.4, 0.3]]


def post_inference(prediction, metadata):
    return prediction["label"][0]
"""
REQUEST = (
    b"POST /bench/waits HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1\r\n\r\n1"
)


class Clients:
    """Who asks, over connections that are used again."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []

    async def ask(self, patience_s: float | None) -> tuple[int, float]:
        """Status (0: none, for whatever reason) and seconds until it came."""
        began_s = time.perf_counter()
        connection = self._idle.pop() if self._idle else None
        if connection is None or connection.transport is None:
            _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self._port)
        try:
            async with asyncio.timeout(patience_s):
                status = (await connection.ask(REQUEST)).status
        except ConnectionResetError:
            status = 0
        except TimeoutError:
            if connection.transport is not None:
                connection.transport.abort()
            return 0, time.perf_counter() - began_s
        if connection.transport is not None:
            self._idle.append(connection)
        return status, time.perf_counter() - began_s


@dataclass
class Run:
    """What came of one rate, in its steady part."""

    offered: float
    """In multiples of what the replica does."""
    seconds: float
    answers: list[tuple[int, float]] = field(default_factory=list)

    @property
    def accepted_s(self) -> list[float]:
        return [took_s for status, took_s in self.answers if status == 200]

    @property
    def goodput(self) -> float:
        return len(self.accepted_s) / self.seconds

    @property
    def p99_s(self) -> float:
        return quantile(self.accepted_s, 0.99)

    def count(self, status: int) -> int:
        return sum(found == status for found, _ in self.answers)

    def row(self) -> str:
        others = len(self.answers) - self.count(200) - self.count(503) - self.count(0)
        return (
            f"{self.offered:5.1f} x  {self.goodput:8.1f}/s  {self.count(503):6}  {self.count(0):7}  {others:6}"
            f"  {quantile(self.accepted_s, 0.5) * 1e3:8.0f} ms  {self.p99_s * 1e3:8.0f} ms"
        )


HEAD = "offered     goodput     503  no answer  other       p50          p99"


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


async def sustained(clients: Clients, seconds: float) -> float:
    """Requests a second for 20 clients that ask one after the other."""
    ends_s = time.perf_counter() + seconds
    done = 0

    async def one() -> None:
        nonlocal done
        while time.perf_counter() < ends_s:
            status, _ = await clients.ask(None)
            done += status == 200

    await asyncio.gather(*(one() for _ in range(20)))
    return done / seconds


async def offer(clients: Clients, offered: float, rate: float, seconds: float, patience_s: float | None) -> Run:
    """Requests at random instants, so many a second; those of the steady part are told."""
    chance = random.Random(1)
    run = Run(offered, seconds - LEFT_OUT_S)
    began_s = due_s = time.perf_counter()
    steady: list[asyncio.Task[tuple[int, float]]] = []
    asked: set[asyncio.Task[tuple[int, float]]] = set()
    while due_s - began_s < seconds:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        task = asyncio.ensure_future(clients.ask(patience_s))
        asked.add(task)
        task.add_done_callback(asked.discard)
        if due_s - began_s >= LEFT_OUT_S:
            steady.append(task)
        due_s += chance.expovariate(rate * offered)
    run.answers = await asyncio.gather(*steady)
    await asyncio.gather(*asked)
    return run


def complaints(patient: Sequence[Run], impatient: Sequence[Run], rate: float) -> list[str]:
    """What is not as it should be."""
    found = []
    for kind, runs in (("patient", patient), ("impatient", impatient)):
        best = max(run.goodput for run in runs)
        found += [
            f"{kind}, {run.offered:g} times: goodput {run.goodput:.0f}/s is under 90 % of {best:.0f}/s"
            for run in runs
            if run.offered >= 1.0 and run.goodput < 0.9 * best
        ]
    queue = min(LONGEST_QUEUE, max(SHORTEST_QUEUE, rate))
    bound_s = 4.0 * patient[0].p99_s + (queue + CONNECTIONS) / rate
    found += [
        f"patient, {run.offered:g} times: p99 {run.p99_s:.2f} s is over {bound_s:.2f} s"
        for run in patient
        if run.p99_s > bound_s
    ]
    return found


async def measure(world: World, seconds: float, plot: Path) -> int:
    clients = Clients(world.port)
    rate = statistics.median([await sustained(clients, 3.0) for _ in range(3)])
    print(f"one replica sustains {rate:.0f}/s for 20 clients that ask one after the other")
    runs: dict[str, list[Run]] = {}
    for kind, patience_s in (("patient", None), (f"give up after {GIVES_UP_S:g} s", GIVES_UP_S)):
        print(f"\nclients: {kind}\n{HEAD}")
        runs[kind] = []
        for offered in OFFERED:
            runs[kind].append(await offer(clients, offered, rate, seconds, patience_s))
            print(runs[kind][-1].row(), flush=True)
            await asyncio.sleep(CALM_S)
    patient, impatient = runs.values()
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_text(drawn(runs, rate))
    print(f"\nplot: {plot}")
    found = complaints(patient, impatient, rate)
    print(*(found or ["as it should be"]), sep="\n")
    return 1 if found else 0


def drawn(runs: dict[str, list[Run]], rate: float) -> str:
    """Goodput and p99 over what is offered, as SVG."""
    goodput = {kind: [(run.offered, run.goodput) for run in found] for kind, found in runs.items()}
    p99 = {kind: [(run.offered, run.p99_s) for run in found] for kind, found in runs.items()}
    return page(
        {"goodput, requests/s": goodput, "p99 of what was accepted, s": p99},
        f"offered, in multiples of the {rate:.0f}/s that one replica sustains",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=12.0, help="of each run (default 12)")
    parser.add_argument("--plot", type=Path, default=Path("build/overload.svg"))
    arguments = parser.parse_args()
    with a_world("overload") as world:
        (world.project / "cortex.yaml").write_text(CORTEX_YAML)
        (world.project / "handler.py").write_text(HANDLER)
        (world.project / "model.onnx").write_bytes(IRIS_MODEL.read_bytes())
        world.must("deploy")
        return uvloop.run(measure(world, arguments.seconds, arguments.plot.resolve()))


if __name__ == "__main__":
    sys.exit(main())
