"""What the agent asks the control plane, which may be away for a while: then it is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Protocol, TypeVar

import msgspec

from cortex.agent.dialing import Introduce, Streams, hang_up, receive
from cortex.clock import Clock
from cortex.errors import GiveUp, RetryLater
from cortex.wire.framing import UNREADABLE, framed
from cortex.wire.link import Hello
from cortex.wire.needs import PART, Need, NeedRefused, NeedReply, PartsEnd

PATIENCE_S = 30.0
"""How long a control plane that is away is waited for; another one is there within a second."""
SILENCE_S = 60.0
"""One that has been asked and says nothing for so long is left, and asked again."""
RETRY_S = 0.1
MOST_KEPT = 2
"""Connections that nobody uses just now."""

R = TypeVar("R", bound=NeedReply)


class ControlPlaneAway(RetryLater):
    """The control plane cannot be reached, or left in the middle of an answer."""

    reference = "control-plane-away"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the control plane does not answer: {reason}", after_s=RETRY_S)


class Upstream(Protocol):
    """Where the agent asks for what it lacks."""

    async def ask(self, need: Need, kind: type[R]) -> R:
        """
        The answer; a control plane that is away is waited for. May be asked more than once on the way.

        Raises:
            ControlPlaneAway: for too long.
            CortexError: it was refused; carries the problem.
        """
        ...

    def stream(self, need: Need) -> AsyncGenerator[bytes, None]:
        """
        What is answered in parts, as they come. A control plane that is away is waited for before the first.

        Raises:
            ControlPlaneAway: for too long, or between two parts: what came is right, and the rest may be asked for.
            CortexError: it was refused; carries the problem.
        """
        ...


class LinkedUpstream:
    """
    Implements `Upstream` over connections that are dialed as they are needed, one for each question under way.

    Args:
        introduce: how a connection comes about.
        hello: who we are; of the way `NEEDS`.
    """

    def __init__(self, *, introduce: Introduce, hello: Hello, clock: Clock, patience_s: float = PATIENCE_S) -> None:
        self._introduce = introduce
        self._hello = hello
        self._clock = clock
        self._patience_s = patience_s
        self._kept: list[Streams] = []
        self._closed = False

    async def ask(self, need: Need, kind: type[R]) -> R:
        line, first = await self._begun(need)
        try:
            reply = _reply(first, kind)
        except BaseException:
            await hang_up(line[1])
            raise
        await self._put_back(line)
        if isinstance(reply, NeedRefused):
            raise GiveUp(reply.problem)
        return reply

    async def stream(self, need: Need) -> AsyncGenerator[bytes, None]:
        line, frame = await self._begun(need)
        try:
            while frame.startswith(PART):
                yield frame[len(PART) :]
                try:
                    async with asyncio.timeout(SILENCE_S):
                        frame = await receive(line[0])
                except OSError as error:
                    raise ControlPlaneAway(str(error) or "it says nothing") from error
            end = _reply(frame, PartsEnd)
        except BaseException:
            await hang_up(line[1])
            raise
        await self._put_back(line)
        if isinstance(end, NeedRefused):
            raise GiveUp(end.problem)

    async def close(self) -> None:
        """Hang up. Questions that are under way end as they will."""
        self._closed = True
        while self._kept:
            await hang_up(self._kept.pop()[1])

    async def _begun(self, need: Need) -> tuple[Streams, bytes]:
        """The connection on which it was asked, and the first frame of the answer."""
        payload = framed(msgspec.json.encode(need))
        patient_until_s = self._clock.monotonic_s() + self._patience_s
        while True:
            kept = bool(self._kept)
            try:
                line = self._kept.pop() if kept else await self._introduce(self._hello)
                try:
                    async with asyncio.timeout(SILENCE_S):
                        line[1].write(payload)
                        return line, await receive(line[0])
                except BaseException:
                    await hang_up(line[1])
                    raise
            except OSError as error:
                if kept:
                    continue  # of a control plane that is gone: the next may be there
                if self._clock.monotonic_s() >= patient_until_s:
                    raise ControlPlaneAway(str(error) or "it says nothing") from error
            await asyncio.sleep(RETRY_S)

    async def _put_back(self, line: Streams) -> None:
        if self._closed or len(self._kept) >= MOST_KEPT:
            await hang_up(line[1])
        else:
            self._kept.append(line)


def _reply(frame: bytes, kind: type[R]) -> R | NeedRefused:
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind | NeedRefused)
    try:
        reply: R | NeedRefused = decoder.decode(frame)
    except UNREADABLE as error:
        raise ControlPlaneAway(f"it answers what is no {kind.__name__}: {error}") from error
    return reply
