"""
Frames on unix stream sockets: a 4-byte big-endian length, then JSON. File descriptors ride on the first byte.

One codec, `framed` and `FrameReader`, for whoever may block (`send_frame`, `receive_frame`), for what never does
(`channel`), and for streams of asyncio.
"""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Sequence

import msgspec

LENGTH = struct.Struct("!I")
MAX_FRAME_BYTES = 32 * 2**20
"""
Guards against garbage. Bodies and files are named by digest, so that messages have kilobytes. The largest that there
may be are log lines, 4 MiB that JSON can write six times as long, and starts of many replicas with a mebibyte of `env`.
"""
MAX_DESCRIPTORS = 4
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What `msgspec` raises for bytes that are no message: wrong JSON, wrong types, wrong UTF-8, too deeply nested."""
_CHUNK_BYTES = 2**20

Frame = tuple[bytes, list[int]]
"""A payload and the descriptors that came with it, in order; whoever gets it owns them."""


class ConnectionLost(ConnectionError):
    """The peer closed the connection or sent something that is no frame."""


def framed(payload: bytes) -> bytes:
    return LENGTH.pack(len(payload)) + payload


class FrameReader:
    """
    Puts frames together from what comes, in pieces of whatever size.

    Head and body are read separately: descriptors ride on a head's first byte, and a read that went on into the next
    frame could not tell whose they are.
    """

    def __init__(self) -> None:
        self._length: int | None = None
        self._data = bytearray()
        self._fds: list[int] = []

    @property
    def wanted(self) -> int:
        """How many bytes to read next, at most."""
        size = LENGTH.size if self._length is None else self._length
        return min(size - len(self._data), _CHUNK_BYTES)

    def take(self, data: bytes, fds: Sequence[int] = ()) -> Frame | None:
        """
        Take in what was read; the frame, if it is whole by now.

        Args:
            data: at most `wanted` bytes; none at the end of the stream.

        Raises:
            ConnectionLost: the stream has ended, in the middle or between frames, or the length is absurd.
        """
        self._fds += fds
        if not data:
            where = "" if self._length is None and not self._data else " in the middle of a frame"
            raise ConnectionLost(f"the peer closed the connection{where}")
        self._data += data
        if self._length is None and len(self._data) == LENGTH.size:
            (self._length,) = LENGTH.unpack(self._data)
            if self._length > MAX_FRAME_BYTES:
                raise ConnectionLost(f"a frame of {self._length} bytes is over the limit of {MAX_FRAME_BYTES}")
            self._data.clear()
        if len(self._data) != self._length:
            return None
        frame = bytes(self._data), self._fds
        self._length, self._data, self._fds = None, bytearray(), []
        return frame

    def receive(self, sock: socket.socket) -> Frame | None:
        """
        Read once from a socket; the frame, if it is whole by now.

        Raises:
            ConnectionLost: as `take`.
            BlockingIOError, TimeoutError: there is nothing to read yet; as the socket is set up.
        """
        return self.take(*receive_some(sock, self.wanted))

    def close(self) -> None:
        """Close the descriptors of a frame that will not be whole."""
        close_all(self._fds)
        self._fds = []


def send_frame(sock: socket.socket, payload: bytes, fds: Sequence[int] = ()) -> None:
    """Send one frame. Raises OSError when the peer is gone."""
    data = framed(payload)
    sent = send_some(sock, data, fds)
    if sent < len(data):
        sock.sendall(data[sent:])


def receive_frame(sock: socket.socket) -> Frame:
    """
    Receive one frame.

    Raises:
        ConnectionLost: the peer closed, in the middle or between frames, or the length is absurd.
        TimeoutError: the socket's timeout ran out.
    """
    reader = FrameReader()
    try:
        while True:
            frame = reader.receive(sock)
            if frame is not None:
                return frame
    except BaseException:
        reader.close()
        raise


def send_some(sock: socket.socket, data: bytes | memoryview, fds: Sequence[int] = ()) -> int:
    """Write once, descriptors with the first byte. Returns how many bytes were taken; raises OSError."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    return sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def receive_some(sock: socket.socket, size: int, max_fds: int = MAX_DESCRIPTORS) -> Frame:
    """Read once, at most `size` bytes, and the descriptors that came with them, which no child inherits."""
    fds = array.array("i")
    space = socket.CMSG_SPACE(max_fds * fds.itemsize)
    data, ancillary, _flags, _address = sock.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close raw descriptors that nobody took over."""
    for fd in fds:
        socket.close(fd)
