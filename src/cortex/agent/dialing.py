"""How the agent gets a connection to the control plane: it dials, and says who it is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from cortex.errors import CortexError
from cortex.tls import TlsIdentity, notice_silence
from cortex.wire.framing import UNREADABLE, ConnectionLost, FrameReader, framed
from cortex.wire.link import Greeting, Hello, TurnedAway, Welcome

GREETING_S = 10.0
"""A control plane that takes a connection and says nothing is left again. It may be busy, or stopped for a moment."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Dial = Callable[[], Awaitable[Streams]]
"""Connects to where the control plane listens. Raises OSError."""


class RefusedByControlPlane(CortexError):
    """The control plane does not talk to this agent."""

    reference = "turned-away"


def dial_unix(path: Path) -> Dial:
    """The control plane of this machine."""
    return lambda: asyncio.open_unix_connection(path)


def dial_tls(host: str, port: int, identity: TlsIdentity) -> Dial:
    """
    The control plane of another machine.

    Args:
        host: a name or an address that its certificate has.

    Raises:
        OSError: the files of our identity cannot be used.
    """
    context = identity.client_context()

    async def dial() -> Streams:
        streams = await asyncio.open_connection(host, port, ssl=context)
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
