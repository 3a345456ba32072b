"""Tests of `cortex.agent.metering` and `loads`: real pages and a real process, on a loop whose time jumps."""

import asyncio
import contextlib
import itertools
import os
import selectors
import subprocess

import pytest

from cortex.agent.families import Families
from cortex.agent.loads import IDLE_LAG_S, IDLE_LOOK_S, Metered, ReplicaLoads
from cortex.agent.metering import GOES_ON_S, LAG_S, Metering
from cortex.ids import NodeId, replica_id
from cortex.processes import identify
from cortex.testing.builders import a_build
from cortex.testing.clock import FakeClock
from cortex.wire.loadpage import INTERVAL_S, SUFFIX, Load, LoadPage
from cortex.wire.loads import HANDLER, DoorReading, LoadReading, NodeLoads, SeatReading
from cortex.wire.orders import StartReplica

AGENT = "agent-1"
TIMEOUT_S = 4.0
BUILD = a_build()


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


class Replica:
    """A process that does nothing, and the page that it would write."""

    def __init__(self, folder, clock, ordinal):
        self.process = subprocess.Popen(["sleep", "600"])
        self.clock = clock
        path = folder / f"{ordinal}{SUFFIX}"
        self.page = LoadPage(str(path))
        order = StartReplica(replica=replica_id(BUILD.api, BUILD.revision, ordinal), attempt=1, build=BUILD)
        self.metered = Metered(order, identify(self.process.pid), path)
        self.ready_s = clock.monotonic_s()
        self.ended = 0

    def write(self, *, ended=0, in_flight=0, cpu_before_s=0.0):
        """So many have ended since."""
        self.ended += ended
        row = SeatReading(row=HANDLER, seats=1, busy_s=float(self.ended), ended_busy_s=float(self.ended), full_s=0.0)
        now_s = self.clock.monotonic_s()
        self.page.write(Load(now_s, self.ready_s, self.ended, float(self.ended), in_flight, cpu_before_s, 0.0, (row,)))

    def end(self):
        self.process.kill()
        self.process.wait()


class Node:
    def __init__(self, folder):
        self.clock = FakeClock()
        self.folder = folder
        self.replicas = []
        self.doors = ()
        self.asked = 0
        self.loads = ReplicaLoads(lambda: [replica.metered for replica in self.replicas], self.clock, Families())
        self.metering = Metering(
            node=NodeId("local"),
            agent=AGENT,
            clock=self.clock,
            loads=self.loads,
            doors=self._traffic,
            used_cpu_s=lambda: 12.5,
        )

    async def _traffic(self):
        self.asked += 1
        return self.clock.monotonic_s(), self.doors

    def replica(self):
        self.replicas.append(Replica(self.folder, self.clock, len(self.replicas)))
        return self.replicas[-1]

    def door(self, *, begun, queued=0):
        self.doors = (DoorReading(api=BUILD.api, begun=begun, queued=queued),)

    async def follow(self, agent=AGENT, timeout_s=TIMEOUT_S):
        return await self.metering.follow(agent, timeout_s)

    async def answer_s(self):
        """How long the next answer takes."""
        asked_s = self.clock.monotonic_s()
        await self.follow()
        return self.clock.monotonic_s() - asked_s

    def play(self, story):
        with asyncio.Runner(loop_factory=lambda: JumpingLoop(self.clock)) as runner:
            return runner.run(story())


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path)
    yield node
    for replica in node.replicas:
        replica.end()


def test_who_follows_for_the_first_time_is_told_at_once(node):
    replica = node.replica()
    replica.write(ended=3, in_flight=1)
    node.door(begun=7)

    async def story():
        began_s = node.clock.monotonic_s()
        return began_s, await node.follow(agent="another")

    began_s, loads = node.play(story)
    (reading,) = loads.replicas
    assert node.clock.monotonic_s() == began_s
    assert reading == LoadReading(
        replica=replica.metered.order.replica,
        api=BUILD.api,
        revision=BUILD.revision,
        attempt=1,
        at_s=began_s,
        ready_s=replica.ready_s,
        rows=(SeatReading(row=HANDLER, seats=1, busy_s=3.0, ended_busy_s=3.0, full_s=0.0),),
        ended=3,
        ended_s=3.0,
        in_flight=1,
        cpu_s=reading.cpu_s,
        runnable_s=reading.runnable_s,
    )
    assert loads == NodeLoads(
        node=NodeId("local"), agent=AGENT, at_s=began_s, replicas=(reading,), doors=node.doors, busy_cpu_s=12.5
    )


def test_while_requests_end_each_half_second_is_told_a_moment_after_replicas_wrote(node):
    replica = node.replica()

    async def story():
        await node.follow(agent="")
        node.clock.advance(0.123)
        told = []
        for _ in range(6):
            replica.write(ended=1)
            await node.follow()
            told.append(node.clock.monotonic_s())
        return told

    told = node.play(story)[1:]
    assert [later - earlier for earlier, later in itertools.pairwise(told)] == pytest.approx([INTERVAL_S] * 4)
    assert [(at_s - LAG_S) % INTERVAL_S for at_s in told] == pytest.approx([0.0] * 5, abs=1e-6)


@pytest.mark.parametrize("kind", ["in flight", "queued", "begun"])
def test_what_has_not_ended_yet_is_something_that_happens(node, kind):
    replica = node.replica()

    async def story():
        replica.write()
        node.door(begun=0)
        await node.follow(agent="")
        if kind == "in flight":
            replica.write(in_flight=1)
        else:
            node.door(begun=int(kind == "begun"), queued=int(kind == "queued"))
        await node.follow()
        return await node.answer_s()

    assert node.play(story) <= 1.5 * INTERVAL_S + LAG_S


def test_when_nothing_has_happened_for_a_while_an_answer_takes_as_long_as_it_may(node):
    replica = node.replica()

    async def story():
        replica.write(ended=1)
        await node.follow(agent="")
        replica.write(ended=1)
        took_s = [await node.answer_s() for _ in range(20)]
        return took_s, node.asked

    took_s, _ = node.play(story)
    quick = [one for one in took_s[1:] if one < TIMEOUT_S - 1]
    assert len(quick) == pytest.approx(GOES_ON_S / INTERVAL_S, abs=1)
    assert took_s[-5:] == pytest.approx([TIMEOUT_S] * 5, abs=0.01)


def quiet(node, story):
    """Play it at a node at which nothing has happened for long."""

    async def play():
        await node.follow(agent="")
        for _ in range(10):
            await node.follow()
        return await story()

    return node.play(play)


def test_a_word_of_a_replica_in_which_something_happens_ends_the_wait(node):
    replica = node.replica()
    replica.write()

    async def story():
        following = asyncio.ensure_future(node.answer_s())
        await asyncio.sleep(0.25)
        node.metering.stir()  # nothing has happened all the same
        await asyncio.sleep(0.25)
        assert not following.done()
        replica.write(in_flight=1)
        node.metering.stir()
        return await following

    assert quiet(node, story) == pytest.approx(0.5)


def test_what_is_written_without_a_word_ends_the_wait_at_the_next_look(node):
    replica = node.replica()
    replica.write()

    async def story():
        replica.write(ended=1)
        return await node.answer_s()

    assert quiet(node, story) < TIMEOUT_S - 0.5


def test_the_ingress_is_not_asked_while_nothing_happens_but_for_the_answer(node):
    node.replica().write()

    async def story():
        before = node.asked
        await node.follow()
        return node.asked - before

    assert quiet(node, story) == 1


def test_nothing_is_read_while_nobody_follows(node):
    node.replica().write(ended=1)
    node.metering.stir()
    assert node.asked == 0


# ---- readings --------------------------------------------------------------------------------------------------------


def test_of_an_idle_replica_is_said_that_nothing_has_happened_until_a_moment_ago(node):
    replica = node.replica()
    replica.write(ended=5)
    wrote_s = node.clock.monotonic_s()
    at_s = [node.loads.read()[0].at_s]
    for _ in range(3):
        node.clock.advance(IDLE_LAG_S)
        at_s.append(node.loads.read()[0].at_s)
    assert at_s == pytest.approx([wrote_s, wrote_s, wrote_s + IDLE_LAG_S, wrote_s + 2 * IDLE_LAG_S])


def test_a_replica_that_holds_a_request_and_writes_nothing_is_told_as_it_was(node):
    replica = node.replica()
    replica.write(in_flight=1)
    wrote_s = node.clock.monotonic_s()
    node.clock.advance(60.0)
    assert node.loads.read()[0].at_s == wrote_s


def test_a_replica_without_a_page_is_left_out_until_it_has_one(node):
    replica = node.replica()
    os.rename(replica.metered.page, f"{replica.metered.page}.away")
    assert node.loads.read() == ()
    os.rename(f"{replica.metered.page}.away", replica.metered.page)
    assert node.loads.read() == (), "nothing is written yet"
    replica.write()
    assert [reading.replica for reading in node.loads.read()] == [replica.metered.order.replica]


def test_a_torn_page_is_told_as_it_was_before(node):
    replica = node.replica()
    replica.write(ended=2)
    before = node.loads.read()[0]
    content = bytearray(replica.metered.page.read_bytes())
    content[20] ^= 0xFF
    replica.metered.page.write_bytes(content)
    assert node.loads.read()[0].rows == before.rows
    assert not node.loads.have_moved()


def test_a_replica_that_was_killed_is_told_no_more(node):
    killed, other = node.replica(), node.replica()
    killed.write()
    other.write()
    assert len(node.loads.read()) == 2
    killed.end()
    node.clock.advance(IDLE_LOOK_S)
    assert [reading.replica for reading in node.loads.read()] == [other.metered.order.replica]


def test_what_a_replica_had_used_before_it_was_ready_is_left_out(node):
    replica = node.replica()
    replica.write(cpu_before_s=60.0)
    assert node.loads.read()[0].cpu_s == 0.0


def schedules_open() -> int:
    """Descriptors of ours that lead to what the kernel says of a process's turns; others come and go meanwhile."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{number}").endswith("/schedstat")
    return count


def test_no_descriptor_is_kept_of_a_replica_that_has_left(node):
    node.replica().write()
    node.replica().write()
    replicas, before = [*node.replicas], schedules_open()
    assert len(node.loads.read()) == 2
    assert schedules_open() == before + 2
    node.replicas.clear()
    assert node.loads.read() == ()
    assert schedules_open() == before
    node.replicas += replicas
