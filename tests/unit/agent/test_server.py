"""Tests of `cortex.agent.server`, with a service that only notes what it was asked."""

import asyncio
import stat

import msgspec
import pytest

from cortex.agent import server
from cortex.agent.server import AgentEnding, OutdatedOrders
from cortex.ids import ApiKey
from cortex.testing.builders import a_build, a_node
from cortex.wire.agent import (
    NEVER_MIND,
    AgentReply,
    FollowedLoads,
    FollowLoads,
    GiveOrders,
    InspectBuild,
    InspectedBuild,
    LogLines,
    Observe,
    Observed,
    ReadLogs,
    Refused,
    StopAgent,
    Stopping,
)
from cortex.wire.framing import LENGTH, MAX_FRAME_BYTES, framed
from cortex.wire.launch import InspectReport
from cortex.wire.loads import DoorReading, NodeLoads
from cortex.wire.orders import Orders
from cortex.wire.reports import AgentReport

REPORT = AgentReport(node=a_node(), serial=3, agent="a", epoch=1, pid=1, started_wall_s=0.0)
LOADS = NodeLoads(
    node=REPORT.node.node, agent="a", at_s=1.5, doors=(DoorReading(api=ApiKey("t/a"), begun=3, queued=1),)
)
ORDERS = GiveOrders(orders=Orders(epoch=1, orders=()))
_REPLIES = msgspec.json.Decoder(AgentReply)


class Service:
    """Answers everything, or raises what it is told to."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.asked: list[object] = []
        self.observing = asyncio.Event()
        self.held = asyncio.Event()
        self.held.set()

    def take_orders(self, orders, turn):
        return self.note(orders, REPORT)

    async def observe(self, agent, serial, timeout_s):
        self.observing.set()
        await self.held.wait()
        return self.note((agent, serial, timeout_s), REPORT)

    async def follow_loads(self, agent, timeout_s):
        return self.note((agent, timeout_s), LOADS)

    async def inspect(self, request):
        return self.note(request, InspectReport(notes=("fine",)))

    async def read_logs(self, request):
        return self.note(request, LogLines(lines=(), cursor="c"))

    def stop(self, drain_timeout_s):
        self.note(drain_timeout_s, None)

    def note(self, asked, answer):
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        return answer


class Line:
    def __init__(self, reader, writer) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request) -> AgentReply:
        self.send(msgspec.json.encode(request))
        return await self.receive()

    def send(self, payload: bytes) -> None:
        self.writer.write(framed(payload))

    async def receive(self) -> AgentReply:
        (length,) = LENGTH.unpack(await self.reader.readexactly(LENGTH.size))
        return _REPLIES.decode(await self.reader.readexactly(length))


def play(layout, story):
    """Run a story with a service, a way to connect, and deadlines."""

    async def run():
        service, lines = Service(), []
        listening = await server.serve(layout.agent_socket, service)

        async def connect():
            lines.append(Line(*await asyncio.open_unix_connection(layout.agent_socket)))
            return lines[-1]

        try:
            async with asyncio.timeout(60):
                return await story(service, connect)
        finally:
            for line in lines:
                line.writer.close()
            listening.close()
            await asyncio.sleep(0)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "asked", "reply"),
    [
        (Observe(agent="a", serial=2, timeout_s=0.0), ("a", 2, 0.0), Observed(report=REPORT)),
        (FollowLoads(agent="a", timeout_s=4.0), ("a", 4.0), FollowedLoads(loads=LOADS)),
        (ORDERS, ORDERS.orders, Observed(report=REPORT)),
        (
            InspectBuild(build=a_build(), timeout_s=1.0),
            InspectBuild(build=a_build(), timeout_s=1.0),
            InspectedBuild(report=InspectReport(notes=("fine",))),
        ),
        (ReadLogs(api=ApiKey("t/a")), ReadLogs(api=ApiKey("t/a")), LogLines(lines=(), cursor="c")),
        (StopAgent(drain_timeout_s=2.0), 2.0, Stopping()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_request_is_passed_on_and_its_answer_given_back(layout, request_, asked, reply):
    async def story(service, connect):
        return await (await connect()).ask(request_), service.asked

    assert play(layout, story) == (reply, [asked])


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (OutdatedOrders("epoch 2 is in charge"), Refused(reason="epoch 2 is in charge", stale_epoch=True)),
        (AgentEnding(), Refused(reason="the agent is ending")),
        (OSError(28, "No space left"), Refused(reason="the agent failed: [Errno 28] No space left")),
        (AssertionError("odd"), Refused(reason="the agent failed: odd")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_done_is_refused_and_the_connection_goes_on(layout, error, refused):
    async def story(service, connect):
        line = await connect()
        service.error = error
        first = await line.ask(ORDERS)
        service.error = None
        return first, await line.ask(ORDERS)

    assert play(layout, story) == (refused, Observed(report=REPORT))


@pytest.mark.parametrize("garbage", [b"no json", b'{"type":"other"}', b'{"type":"\xff"}', b"[" * 100_000], ids=len)
def test_what_is_no_request_is_refused_and_the_connection_goes_on(layout, garbage):
    async def story(service, connect):
        line = await connect()
        line.send(garbage)
        return await line.receive(), await line.ask(ORDERS), service.asked

    refused, reply, asked = play(layout, story)
    assert isinstance(refused, Refused)
    assert "does not understand" in refused.reason
    assert (reply, asked) == (Observed(report=REPORT), [ORDERS.orders])


def test_a_frame_over_the_limit_ends_its_connection_before_it_is_read(layout):
    async def story(_service, connect):
        line = await connect()
        line.writer.write(LENGTH.pack(MAX_FRAME_BYTES + 1))
        return await line.reader.read()

    assert play(layout, story) == b""


def test_a_peer_that_leaves_in_the_middle_harms_nobody(layout):
    async def story(_service, connect):
        line = await connect()
        line.writer.write(LENGTH.pack(1000) + b"half")
        line.writer.close()
        return await (await connect()).ask(ORDERS)

    assert play(layout, story) == Observed(report=REPORT)


def test_a_long_question_keeps_no_other_connection_waiting(layout):
    async def story(service, connect):
        service.held.clear()
        patient = asyncio.create_task((await connect()).ask(Observe()))
        await service.observing.wait()
        reply = await (await connect()).ask(ORDERS)
        assert not patient.done()
        service.held.set()
        return reply, await patient

    assert play(layout, story) == (Observed(report=REPORT), Observed(report=REPORT))


def test_the_socket_is_private_and_takes_the_place_of_a_dead_agents(layout):
    layout.agent_socket.touch()

    async def story(_service, connect):
        mode = stat.S_IMODE(layout.agent_socket.stat().st_mode)
        return mode, await (await connect()).ask(ORDERS)

    assert play(layout, story) == (0o600, Observed(report=REPORT))
    assert not layout.agent_socket.with_name("agent.sock.tmp").exists()


@pytest.mark.parametrize(("sent", "ends"), [(NEVER_MIND, True), (b"", False)], ids=["called off", "only gone"])
def test_what_is_done_for_a_request_ends_when_it_is_called_off_and_not_when_its_sender_dies(layout, sent, ends):
    async def story(service, connect):
        begun, ended = asyncio.Event(), asyncio.Event()

        async def observe(agent, serial, timeout_s):
            begun.set()
            try:
                await service.held.wait()
            except asyncio.CancelledError:
                ended.set()
                raise
            return service.note(agent, REPORT)

        service.observe = observe
        service.held.clear()
        line = await connect()
        line.send(msgspec.json.encode(Observe(agent="a", serial=0, timeout_s=1.0)))
        await begun.wait()
        line.writer.write(sent)
        line.writer.write_eof()
        if ends:
            await ended.wait()
        else:
            other = await connect()  # what comes later is answered later: the end was noticed by then
            await other.ask(ORDERS)
            service.held.set()
            await line.receive()
        return ended.is_set(), "a" in service.asked

    assert play(layout, story) == (ends, not ends)
