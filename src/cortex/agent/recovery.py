"""What a former agent left behind: who answers on a replica's control socket."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import NamedTuple

import msgspec

from cortex.agent import peers
from cortex.wire.framing import close_all
from cortex.wire.launch import AskListener, ReplicaStatus

CONNECT_TIMEOUT_S = 2.0


class SocketOwner(NamedTuple):
    """Who is behind a replica's control socket; nobody, unless a field says otherwise."""

    status: ReplicaStatus | None = None
    listener: socket.socket | None = None
    """A copy of the replica's slot; the caller owns it."""
    silent: bool = False
    """Somebody has the control socket, but did not answer in time."""

    def close(self) -> None:
        """Give the listener back, if there is one."""
        if self.listener is not None:
            self.listener.close()


async def ask(control: Path, *, timeout_s: float) -> SocketOwner:
    """
    Ask whoever has a control socket for status and slot.

    A control socket lives as long as a process has it. We keep no copy, so that the launcher's children alone can
    answer: a connection that is refused means that there is no process.
    """
    answer: asyncio.Future[SocketOwner] = asyncio.get_running_loop().create_future()

    def received(payload: bytes, fds: list[int]) -> None:
        if fds and not answer.done():
            status = _STATUS.decode(payload)
            answer.set_result(SocketOwner(status, socket.socket(fileno=fds.pop(0))))
        close_all(fds)

    def closed() -> None:
        if not answer.done():
            answer.set_result(SocketOwner())

    try:
        connection = await peers.connect(control, on_frame=received, on_close=closed, timeout_s=CONNECT_TIMEOUT_S)
    except (ConnectionRefusedError, FileNotFoundError):
        return SocketOwner()
    except OSError:
        return SocketOwner(silent=True)
    try:
        connection.send(msgspec.json.encode(AskListener()))
        async with asyncio.timeout(timeout_s):
            return await answer
    except TimeoutError:
        return SocketOwner(silent=True)
    finally:
        connection.close()


_STATUS = msgspec.json.Decoder(ReplicaStatus)
