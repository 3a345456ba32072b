"""
How the agent gets a connection to the control plane: it dials, and says who it is.

Where several control planes may be in charge, they are dialed in turn until one takes us.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from cortex.errors import CortexError
from cortex.tls import TlsIdentity, notice_silence
from cortex.wire.framing import UNREADABLE, ConnectionLost, FrameReader, framed
from cortex.wire.link import Greeting, Hello, TurnedAway, Welcome
from cortex.wire.membership import CONTROL_PLANE, Address, TcpAddress, UnixAddress

GREETING_S = 10.0
"""A control plane that takes a connection and says nothing is left again. It may be busy, or stopped for a moment."""

CONNECT_S = 3.0
"""A machine that is gone answers nothing, and there may be another control plane."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Dial = Callable[[], Awaitable[Streams]]
"""Connects to where the control plane listens. Raises OSError."""
Introduce = Callable[[Hello], Awaitable[Streams]]
"""As `introduce` to a control plane."""


class RefusedByControlPlane(CortexError):
    """The control plane does not talk to this agent."""

    reference = "turned-away"


def dial_unix(path: Path) -> Dial:
    """The control plane of this machine."""
    return lambda: asyncio.open_unix_connection(path)


def dial_tls(host: str, port: int, identity: TlsIdentity) -> Dial:
    """
    A control plane of another machine. Whatever its address, its certificate has the name of control planes.

    Args:
        identity: files of it are read anew for each connection: certificates are renewed.
    """

    async def dial() -> Streams:
        context = identity.client_context()
        async with asyncio.timeout(CONNECT_S):
            streams = await asyncio.open_connection(host, port, ssl=context, server_hostname=CONTROL_PLANE)
        notice_silence(streams[1].get_extra_info("socket"))
        return streams

    return dial


async def introduce(dial: Dial, hello: Hello) -> Streams:
    """
    A connection that the control plane has taken.

    Raises:
        OSError: there is no control plane now, or it left.
        RefusedByControlPlane: it says that it will not talk to us.
    """
    reader, writer = await dial()
    try:
        async with asyncio.timeout(GREETING_S):
            writer.write(framed(msgspec.json.encode(hello)))
            greeting = _GREETINGS.decode(await receive(reader))
    except UNREADABLE as error:
        await hang_up(writer)
        raise ConnectionLost(f"the control plane answers what is no greeting: {error}") from error
    except BaseException:
        await hang_up(writer)
        raise
    match greeting:
        case Welcome():
            return reader, writer
        case TurnedAway(reason=reason):
            await hang_up(writer)
            raise RefusedByControlPlane(reason)


class ControlPlanes:
    """
    Those that may be in charge. Who took us last is asked first.

    Args:
        introductions: says how each of them is talked to, at least one; asked each time.
    """

    def __init__(self, introductions: Callable[[], Sequence[Introduce]]) -> None:
        self._introductions = introductions
        self._first = 0

    async def introduce(self, hello: Hello) -> Streams:
        """
        A connection that one of them has taken.

        Raises:
            OSError: there is none now.
            RefusedByControlPlane: one says that it will not talk to us, and no other takes us.
        """
        them = self._introductions()
        begin, count = self._first, len(them)
        problems: list[OSError | RefusedByControlPlane] = []
        for number in (at % count for at in range(begin, begin + count)):
            try:
                streams = await them[number](hello)
            except (OSError, RefusedByControlPlane) as error:
                problems.append(error)
            else:
                self._first = number
                return streams
        raise next((one for one in problems if isinstance(one, RefusedByControlPlane)), problems[0])

    def leave(self) -> None:
        """Ask the next one first, whoever took us last."""
        self._first += 1


def introductions(addresses: Sequence[Address], identity: TlsIdentity) -> tuple[Introduce, ...]:
    """To the control planes that listen there."""

    def dial(address: Address) -> Dial:
        match address:
            case UnixAddress(path=path):
                return dial_unix(path)
            case TcpAddress(host=host, port=port):
                return dial_tls(host, port, identity)

    return tuple(partial(introduce, dial(address)) for address in addresses)


async def receive(reader: asyncio.StreamReader) -> bytes:
    """The next frame. Raises ConnectionLost and other OSErrors."""
    frames = FrameReader()
    while (frame := frames.take(await reader.read(frames.wanted))) is None:
        pass
    return frame[0]


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a connection."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


_GREETINGS: msgspec.json.Decoder[Greeting] = msgspec.json.Decoder(Greeting)
