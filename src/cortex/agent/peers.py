"""Whom the agent talks to over a unix socket: launchers, replicas, the keeper. Never blocks the event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

from cortex import processes
from cortex.wire.channel import Channel
from cortex.wire.framing import UNREADABLE, close_all


class Peer(Channel):
    """
    Somebody at the other end of a socket. What they say is read by the event loop, and what they do not read yet kept.

    Args:
        on_frame: called with payload and descriptors of each frame; owns the descriptors. What it cannot decode
            counts as nonsense of the peer.
        on_close: called once, when the peer is gone or sent nonsense, or after `close`.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        on_frame: Callable[[bytes, list[int]], None],
        on_close: Callable[[], None],
    ) -> None:
        super().__init__(sock, max_unsent_bytes=None)  # they get no more than what was ordered
        self.listener_pid = processes.listener_pid(sock)
        self._on_frame = on_frame
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.fileno(), self._readable)

    def flush(self) -> None:
        super().flush()
        if self.flushed:
            self._loop.remove_writer(self.fileno())
        else:
            self._loop.add_writer(self.fileno(), self.flush)

    def close(self) -> None:
        if self.closed:
            return
        self._loop.remove_reader(self.fileno())
        self._loop.remove_writer(self.fileno())
        super().close()
        self._on_close()

    def _readable(self) -> None:
        for payload, fds in self.receive():
            try:
                self._on_frame(payload, fds)
            except UNREADABLE:
                close_all(fds)
                self.close()


async def connect(
    path: Path,
    *,
    on_frame: Callable[[bytes, list[int]], None],
    on_close: Callable[[], None],
    timeout_s: float,
) -> Peer:
    """
    Connect to a unix socket.

    Raises:
        OSError: nobody listens there, or nobody accepted in time (TimeoutError is one).
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().sock_connect(sock, str(path))
        sock.getpeername()  # asyncio takes a full backlog for a connection: then this raises
    except BaseException:
        sock.close()
        raise
    return Peer(sock, on_frame=on_frame, on_close=on_close)
