"""The lines that an agent keeps to the control plane, where there may be several of those."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import msgspec
import pytest

from cortex.agent import lines
from cortex.agent.dialing import ControlPlanes, Introduce, Streams
from cortex.agent.lines import SPARE, SpareLines
from cortex.clock import SystemClock
from cortex.ids import NodeId
from cortex.wire.agent import Observe
from cortex.wire.framing import framed
from cortex.wire.link import ORDERS, Hello

DEADLINE_S = 60.0


class ControlPlane:
    """Takes every line, and asks nothing."""

    def __init__(self) -> None:
        self.lines: list[socket.socket] = []

    @property
    def introduce(self) -> Introduce:
        async def taken(_hello: Hello) -> Streams:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            self.lines.append(ours)
            return await asyncio.open_connection(sock=theirs)

        return taken

    def held(self) -> int:
        """Lines whose other end is open."""
        return sum(not _at_end(line) for line in self.lines)

    def close(self) -> None:
        for line in self.lines:
            line.close()


def _at_end(line: socket.socket) -> bool:
    try:
        return line.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False


class Silent:
    """An agent that is asked something, and has not answered yet."""

    async def observe(self, *_: Any) -> Any:
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def keeping(among: int) -> AsyncIterator[list[ControlPlane]]:
    """Lines are kept to one of so many control planes."""
    planes = [ControlPlane() for _ in range(among)]
    control_planes = ControlPlanes(lambda: [plane.introduce for plane in planes])
    kept = SpareLines(
        introduce=control_planes.introduce,
        hello=Hello(node=NodeId("n1"), agent="a", way=ORDERS),
        service=cast(Any, Silent()),
        clock=SystemClock(),
        leave=control_planes.leave if among > 1 else None,
    )
    task = asyncio.ensure_future(kept.keep())
    try:
        async with asyncio.timeout(DEADLINE_S):
            await until(lambda: planes[0].held() == SPARE)
            yield planes
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)  # lines end
        for plane in planes:
            plane.close()


async def left_for_another_and_back() -> None:
    """So long that a control plane that does not ask would have been left."""
    async with keeping(2) as planes:
        await until(lambda: planes[1].held() == SPARE)
        assert planes[0].held() == 0
        await until(lambda: planes[0].held() == SPARE)


async def until(look: Callable[[], bool]) -> None:
    while not look():
        await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "UNASKED_S", 0.05)


def test_a_control_plane_that_does_not_ask_is_left_for_another() -> None:
    asyncio.run(left_for_another_and_back())


def test_one_that_waits_for_an_answer_is_not_left() -> None:
    async def story() -> None:
        async with keeping(2) as planes:
            question = framed(msgspec.json.encode(Observe(timeout_s=DEADLINE_S)))
            await asyncio.get_running_loop().sock_sendall(planes[0].lines[0], question)
            await until(lambda: planes[0].held() == SPARE + 1)
            await left_for_another_and_back()
            assert planes[1].lines == []

    asyncio.run(story())


def test_the_only_one_is_never_left() -> None:
    async def story() -> None:
        async with keeping(1) as planes:
            await left_for_another_and_back()
            assert (len(planes[0].lines), planes[0].held()) == (SPARE, SPARE)

    asyncio.run(story())
