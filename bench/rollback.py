"""
Roll an api back again and again while requests come from outside: none may fail, and all soon get the version.

    .venv/bin/python bench/rollback.py [--rounds 20] [--rate 500]

Half of the requests share connections, half have one each. With a parked replica: before each rollback the newer
version is deployed again, so that it is watched. Without: there and back in turn, each of which has to start a replica.
The time is from the call of the control plane's API to the last request that began and still got the other version.
Exits 0 only when no request failed and both medians are under a second.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import sys
import time
from dataclasses import dataclass, field

import uvloop
from client import Connection
from world import IRIS_MODEL, World, a_world

from cortex.client.local import LocalEnvironment
from cortex.client.operator import OperatorClient
from cortex.settings import Settings
from cortex.wire.operator import RollbackRequest

CALM_S = 1.0
"""After each change; what comes then counts as well."""
DEADLINE_S = 60.0
CORTEX_YAML = """\
- {kind: deployment, name: bench}
- kind: api
  name: api
  model: model.onnx
  request_handler: handler.py
  compute: {cpu: 100m, max_replicas: 1}
"""
HANDLER = """\
NUMBER = %d


def pre_inference(sample, metadata):
    return [[5.2, 3.6, 1.4, 0.3]]


def post_inference(prediction, metadata):
    return prediction["label"][0]
"""
REQUEST = (
    b"POST /bench/api HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n%scontent-length: 1\r\n\r\n1"
)
KEPT, CLOSED = REQUEST % b"", REQUEST % b"connection: close\r\n"


@dataclass
class Clients:
    """Who asks, all the while."""

    port: int
    rate: float
    sent: list[tuple[float, int, str]] = field(default_factory=list)
    """Of each request when it began, and the status and version of its answer."""
    _idle: list[Connection] = field(default_factory=list)

    async def run(self) -> None:
        """Until cancelled: one after the other at even distances, whether or not those before were answered."""
        begun_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                await asyncio.sleep(max(0.0, begun_s + number / self.rate - time.monotonic()))
                group.create_task(self._ask(kept=number % 2 == 0))

    async def _ask(self, *, kept: bool) -> None:
        began_s = time.monotonic()
        try:
            connection = self._idle.pop() if kept and self._idle else None
            if connection is None or connection.transport is None:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
            answer = await connection.ask(KEPT if kept else CLOSED)
            status, version = answer.status, answer.version
            if kept and connection.transport is not None:
                self._idle.append(connection)
            elif connection.transport is not None:
                connection.transport.close()
        except OSError:
            status, version = 0, ""
        self.sent.append((began_s, status, version))

    async def all_get(self, version: str, since_s: float, known: int) -> float:
        """
        Seconds from an instant until all that began got this version, once that has been so for `CALM_S`.

        Args:
            known: how many had been answered by then.
        """
        while time.monotonic() < since_s + DEADLINE_S:
            await asyncio.sleep(0.05)
            lately = [one for one in self.sent[known:] if one[0] >= since_s and one[1] == 200]
            last_s = max([at_s for at_s, _status, got in lately if got != version], default=since_s)
            if any(at_s > last_s + CALM_S for at_s, _status, _got in lately):
                return last_s - since_s
        raise SystemExit(f"version {version} does not come")


@dataclass
class Bench:
    world: World
    operator: OperatorClient
    clients: Clients

    async def deploy(self, number: int, *arguments: str) -> str:
        """Version number so and so, live."""
        (self.world.project / "handler.py").write_text(HANDLER % number)
        await asyncio.to_thread(self.world.must, "deploy", *arguments)
        return self.operator.api("bench", "api").version

    async def roll_back(self, version: str) -> tuple[float, bool]:
        """How long it took, and whether a replica of that version was parked."""
        parked = (await asyncio.to_thread(self.operator.api, "bench", "api")).parked
        known, since_s = len(self.clients.sent), time.monotonic()
        await asyncio.to_thread(self.operator.roll_back, "bench", "api", RollbackRequest(version=version))
        return await self.clients.all_get(version, since_s, known), parked is not None

    async def measure(self, rounds: int) -> dict[bool, list[float]]:
        """Times, by whether a replica was parked."""
        found: dict[bool, list[float]] = {True: [], False: []}
        first = await self.deploy(1)
        second = await self.deploy(2)
        asking = asyncio.create_task(self.clients.run())
        for number in range(rounds):
            if number:
                await self.deploy(2, "--force")
            took_s, parked = await self.roll_back(first)
            found[parked].append(took_s)
        for number in range(rounds):
            took_s, parked = await self.roll_back((second, first)[number % 2])
            found[parked].append(took_s)
        await asyncio.sleep(CALM_S)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return found


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    arguments.add_argument("--rounds", type=int, default=20)
    arguments.add_argument("--rate", type=float, default=500.0)
    chosen = arguments.parse_args()
    with a_world("cx-rollback") as world:
        (world.project / "cortex.yaml").write_text(CORTEX_YAML)
        (world.project / "model.onnx").write_bytes(IRIS_MODEL.read_bytes())
        world.must("up")
        operator = LocalEnvironment(Settings(home=world.home), environ={}).connect()
        bench = Bench(world, operator, Clients(world.port, chosen.rate))
        times = uvloop.run(bench.measure(chosen.rounds))
    sent = bench.clients.sent
    failed = [(status, version) for _at_s, status, version in sent if status != 200]
    seconds = sent[-1][0] - sent[0][0]
    print(f"{len(sent)} requests, {len(sent) / seconds:.0f} a second, {len(failed)} failed {failed[:5] or ''}")
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    print("| | rollbacks | median | longest |")
    print("|---|---|---|---|")
    for parked, took_s in times.items():
        if took_s:
            name = "one was parked" if parked else "none was parked"
            print(f"| {name} | {len(took_s)} | {statistics.median(took_s):.3f} s | {max(took_s):.3f} s |")
    is_soon = all(statistics.median(took_s) < 1.0 for took_s in times.values() if took_s)
    return 0 if is_soon and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
