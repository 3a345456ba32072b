"""Counts of two nodes on their way, over real connections; answers get lost, and the control plane is another one."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from cortex.agent.countfiles import CountFiles
from cortex.agent.counting import Counting
from cortex.agent.dialing import dial_unix, introduce
from cortex.agent.upstream import LinkedUpstream
from cortex.clock import SystemClock
from cortex.controlplane.links import Incarnations, Links
from cortex.controlplane.needs import Needs
from cortex.controlplane.statistics import Statistics
from cortex.errors import CortexError
from cortex.ids import ApiKey, NodeId, ReplicaId, Version
from cortex.processes import write_whole
from cortex.wire.link import NEEDS, Hello
from cortex.wire.needs import CountsTaken, DeliverCounts
from cortex.wire.stats import StatsFile

API, VERSION = ApiKey("iris/x"), Version("a" * 64)
NODES = (NodeId("n1"), NodeId("n2"))
DEADLINE_S = 60.0


class ControlPlane:
    """What counts, and what listens for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lost: set[NodeId] = set()
        """Nodes whose next answer gets lost."""
        self.start()

    def start(self) -> None:
        self.statistics = Statistics(
            file=self.folder / "stats.db", clock=SystemClock(), reports=lambda: (), wanted=lambda: [API]
        )
        needs = Needs({DeliverCounts: self.take})
        self.links = Links(
            path=self.folder / "links.sock", epoch=lambda: 1, incarnations=Incarnations(), ways={NEEDS: needs.serve}
        )
        self.links.start()

    def take(self, delivery: DeliverCounts, node: NodeId) -> CountsTaken:
        taken = self.statistics.take(delivery, node)
        if node in self.lost:
            self.lost.remove(node)
            raise CortexError("it was counted, and that is not heard")
        return taken

    def close(self) -> None:
        self.links.close()
        self.statistics.close()

    @property
    def counted(self) -> int:
        found = self.statistics.answers(API, VERSION)
        return found.served if found is not None else 0


class Node:
    """An agent's delivery, and the folder of its replicas."""

    def __init__(self, name: NodeId, folder: Path, socket: Path) -> None:
        self.name = name
        self.folder = folder
        folder.mkdir()
        clock = SystemClock()
        hello = Hello(node=name, agent=f"agent of {name}", way=NEEDS)
        self.upstream = LinkedUpstream(
            introduce=partial(introduce, dial_unix(socket)), hello=hello, clock=clock, patience_s=DEADLINE_S
        )
        self.live: set[tuple[ReplicaId, int]] = set()
        self.counting = Counting(
            agent=hello.agent,
            files=CountFiles(folder, clock),
            upstream=self.upstream,
            clock=clock,
            live=lambda: self.live,
        )

    def answered(self, ok: int, attempt: int = 1) -> None:
        replica = ReplicaId(f"iris.x.aaaaaaaa.{NODES.index(self.name)}")
        file = StatsFile(replica=replica, attempt=attempt, api=API, version=VERSION, run=f"{attempt}", ok=ok)
        write_whole(self.folder / f"{replica}.{attempt}.json", msgspec.json.encode(file))
        self.live.add((replica, attempt))
        self.counting.stir()

    def files(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()]


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.01)


def test_what_two_nodes_count_arrives_once_although_answers_get_lost_and_the_control_plane_is_another_one(
    folder: Path,
) -> None:
    plane = ControlPlane(folder)

    async def story() -> None:
        nodes = [Node(name, folder / name, folder / "links.sock") for name in NODES]
        running = [asyncio.ensure_future(node.counting.run()) for node in nodes]
        for node in nodes:
            node.answered(10)
        await until(lambda: plane.counted == 20)
        plane.lost = set(NODES)
        for node in nodes:
            node.answered(15)
        await until(lambda: not plane.lost)
        assert plane.counted <= 30
        plane.close()
        for node in nodes:
            node.answered(17)
            node.answered(3, attempt=2)
            node.live = {one for one in node.live if one[1] == 2}
        plane.start()
        await until(lambda: plane.counted == 40)
        for node in nodes:
            node.live.clear()
            node.counting.stir()
        await until(lambda: not any(node.files() for node in nodes))
        assert plane.counted == 40
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        for node in nodes:
            await node.counting.close()
            await node.upstream.close()

    try:
        asyncio.run(story())
    finally:
        plane.close()
