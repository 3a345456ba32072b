"""Tests of `cortex.agent.counting`: when it looks and sends, on a loop whose time jumps."""

import asyncio
import itertools
import selectors
from pathlib import Path

import msgspec
import pytest

from cortex.agent.countfiles import CountFiles
from cortex.agent.counting import GOES_ON_S, Counting
from cortex.agent.upstream import ControlPlaneAway
from cortex.ids import ApiKey, ReplicaId, Version
from cortex.processes import write_whole
from cortex.testing.clock import FakeClock
from cortex.wire.needs import CountsTaken
from cortex.wire.stats import StatsFile

REPLICA = ReplicaId("iris.sklearn.aaaaaaaa.0")


class Jumping(selectors.DefaultSelector):
    """Whoever would wait finds that the time has passed."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("everybody waits for ever")
        if not ready:
            self.clock.advance(timeout)
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock):
        super().__init__(Jumping(clock))
        self.clock = clock

    def time(self):
        return self.clock.monotonic_s()


class CountedLooks(CountFiles):
    looks = 0

    def look(self, live):
        self.looks += 1
        super().look(live)


class Node:
    """An agent that delivers, and a control plane that takes what comes unless it is away or stands still."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.loop = JumpingLoop(self.clock)
        self.away = False
        self.standing: asyncio.Event | None = None
        self.asked = 0
        self.taken: list[tuple[float, list[int]]] = []
        """When, and how many answers the files of a message tell of."""
        self.files = CountedLooks(folder, self.clock)
        self.counting = Counting(
            agent="a", files=self.files, upstream=self, clock=self.clock, live=lambda: {(REPLICA, 1)}
        )

    async def ask(self, need, kind):
        self.asked += 1
        if self.standing is not None:
            await self.standing.wait()
        if self.away:
            raise ControlPlaneAway("gone")
        self.taken.append((self.clock.monotonic_s(), [msgspec.json.decode(file)["2xx"] for file in need.files]))
        return CountsTaken(by="c", durable=need.durably)

    def wrote(self, ok: int) -> None:
        file = StatsFile(replica=REPLICA, attempt=1, api=ApiKey("iris/sklearn"), version=Version("a" * 64), ok=ok)
        write_whole(self.folder / f"{REPLICA}.1.json", msgspec.json.encode(file))

    def runs(self, *steps) -> None:
        """Deliver while steps are taken, each after a number of seconds."""

        async def go() -> None:
            running = asyncio.ensure_future(self.counting.run())
            for after_s, step in steps:
                await asyncio.sleep(after_s)
                step()
            running.cancel()
            await asyncio.wait([running])
            await self.counting.close()

        self.loop.run_until_complete(go())


@pytest.fixture
def node(tmp_path, monkeypatch):
    async def at_once(do, *given, **named):
        return do(*given, **named)

    monkeypatch.setattr(asyncio, "to_thread", at_once)
    node = Node(tmp_path)
    yield node
    node.loop.close()


def nothing() -> None:
    pass


def test_a_quiet_node_says_once_what_it_has_and_looks_seldom(node):
    node.runs((120.0, nothing))
    assert node.taken == [(node.taken[0][0], [])]
    assert node.files.looks <= 120 / 2.5


def test_while_replicas_count_it_is_sent_within_a_second_and_a_half(node):
    began: list[float] = []

    def count() -> None:
        began.append(node.clock.monotonic_s())
        node.wrote(len(began))
        node.counting.stir()

    node.runs((30.0, count), *itertools.repeat((1.7, count), 20), (3.0, nothing))
    counted = [(at_s, n) for at_s, ns in node.taken for n in ns]
    assert [n for _, n in counted] == list(range(1, 22))
    assert all(at_s - began[n - 1] <= 1.5 for at_s, n in counted)


def test_the_last_file_of_one_that_counts_no_more_is_sent_too(node):
    node.runs((30.0, node.counting.stir), (GOES_ON_S - 1.5, lambda: node.wrote(3)), (2.0, nothing))
    assert node.taken[-1][1] == [3]


def test_what_nobody_heard_of_is_sent_within_ten_seconds(node):
    node.runs((33.3, lambda: node.wrote(3)), (10.0, nothing))
    assert node.taken[-1][1] == [3]


def test_while_the_control_plane_is_away_the_last_contents_wait_in_files(node):
    def leave() -> None:
        node.away = True

    def come() -> None:
        node.away = False

    steps = [(1.0, lambda n=n: (node.wrote(n), node.counting.stir())) for n in range(1, 200)]
    node.runs((1.0, leave), *steps, (1.0, come), (12.0, nothing))
    assert [ns for _, ns in node.taken if ns] == [[199]]
    assert node.asked < 40, "it is asked less and less often"


def test_a_reader_is_not_held_up_by_a_delivery_that_takes_longer_and_that_goes_on(node):
    async def go() -> None:
        node.standing = asyncio.Event()
        node.wrote(1)
        began_s = node.clock.monotonic_s()
        await asyncio.gather(*(node.counting.deliver_within(0.25) for _ in range(100)))
        assert node.clock.monotonic_s() == began_s + 0.25
        node.wrote(2)
        late = [asyncio.ensure_future(node.counting.deliver_within(60.0)) for _ in range(100)]
        await asyncio.sleep(0)
        node.standing.set()
        await asyncio.gather(*late)

    node.loop.run_until_complete(go())
    assert [ns for _, ns in node.taken] == [[1], [2]], "who asks while one is under way shares the next"


def test_an_agent_that_ends_leaves_what_was_not_taken(node):
    async def go() -> None:
        node.standing = asyncio.Event()
        node.wrote(1)
        await node.counting.deliver_within(1.0)
        await node.counting.close()

    node.loop.run_until_complete(go())
    assert node.taken == []
    assert [path.name for path in node.folder.iterdir()] == [f"{REPLICA}.1.json"]
