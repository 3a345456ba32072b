"""The asyncio side of `wire.framing`: frames with descriptors over a unix socket, never blocking the loop."""

from __future__ import annotations

import array
import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from cortex.wire.framing import LENGTH, MAX_DESCRIPTORS, MAX_FRAME_BYTES, UNREADABLE, close_all

_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
_CHUNK_BYTES = 2**20
_CREDENTIALS = struct.Struct("3i")
"""Pid, user, group. Source: unix(7), SO_PEERCRED."""


class Channel:
    """
    A connected unix socket that carries frames.

    Reads a frame's head and body separately: descriptors ride on the head's first byte, and a read that went on
    into the next frame could not tell whose they are.

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
        sock.setblocking(False)
        self._sock = sock
        self._on_frame = on_frame
        self._on_close = on_close
        self._head = b""
        self._body: bytearray | None = None
        self._missing = 0
        self._fds: list[int] = []
        self._outgoing: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def listener_pid(self) -> int:
        """The process that called `listen` on the socket we connected to."""
        credentials = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, _user, _group = _CREDENTIALS.unpack(credentials)
        return int(pid)

    def send(self, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Queue a frame. Descriptors are duplicated, so the caller may close its own at once. Lost when closed."""
        if self._closed:
            return
        copies = tuple(socket.dup(fd) for fd in fds)
        self._outgoing.append((memoryview(LENGTH.pack(len(payload)) + payload), copies))
        if len(self._outgoing) == 1:
            self._writable()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        close_all(self._fds)
        for _data, fds in self._outgoing:
            close_all(fds)
        self._outgoing.clear()
        self._on_close()

    def _writable(self) -> None:
        try:
            while self._outgoing:
                data, fds = self._outgoing[0]
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                sent = self._sock.sendmsg([data], ancillary)
                close_all(fds)
                if sent == len(data):
                    self._outgoing.popleft()
                else:
                    self._outgoing[0] = (data[sent:], ())
        except BlockingIOError:
            self._loop.add_writer(self._sock.fileno(), self._writable)
            return
        except OSError:
            self.close()
            return
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            while not self._closed:
                if self._body is None:
                    self._read_head()
                else:
                    self._read_body()
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def _read_head(self) -> None:
        data, ancillary, _flags, _address = self._sock.recvmsg(
            LENGTH.size - len(self._head), _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
                self._fds.extend(received)
        if not data:
            raise ConnectionResetError("the peer closed the connection")
        self._head += data
        if len(self._head) == LENGTH.size:
            (self._missing,) = LENGTH.unpack(self._head)
            if self._missing > MAX_FRAME_BYTES:
                raise ConnectionResetError("a frame over the limit")
            self._body = bytearray()
            if self._missing == 0:
                self._deliver()

    def _read_body(self) -> None:
        assert self._body is not None
        data = self._sock.recv(min(self._missing, _CHUNK_BYTES))
        if not data:
            raise ConnectionResetError("the peer closed the connection in the middle of a frame")
        self._body += data
        self._missing -= len(data)
        if self._missing == 0:
            self._deliver()

    def _deliver(self) -> None:
        assert self._body is not None
        payload, fds = bytes(self._body), self._fds
        self._head, self._body, self._fds = b"", None, []
        try:
            self._on_frame(payload, fds)
        except UNREADABLE as error:
            close_all(fds)
            raise ConnectionResetError("the peer sent what is no message") from error


async def connect(
    path: Path,
    *,
    on_frame: Callable[[bytes, list[int]], None],
    on_close: Callable[[], None],
    timeout_s: float,
) -> Channel:
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
    return Channel(sock, on_frame=on_frame, on_close=on_close)
