"""
Framing on unix stream sockets: a 4-byte big-endian length, then JSON. File descriptors ride on the first byte.

The only I/O of this package: blocking functions for the launcher, replicas and the control plane. The agent has its
own asyncio side in `agent/channel.py` with the same frames.
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


class ConnectionLost(ConnectionError):
    """The peer closed the connection or sent something that is no frame."""


def send_frame(sock: socket.socket, payload: bytes, fds: Sequence[int] = ()) -> None:
    """Send one frame. Raises OSError when the peer is gone."""
    data = LENGTH.pack(len(payload)) + payload
    if fds:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        sent = sock.sendmsg([data], ancillary)
        data = data[sent:]
    if data:
        sock.sendall(data)


def receive_frame(sock: socket.socket) -> tuple[bytes, list[int]]:
    """
    Receive one frame and the descriptors that came with it, in order.

    Raises:
        ConnectionLost: the peer closed, in the middle or between frames, or the length is absurd.
        TimeoutError: the socket's timeout ran out.
    """
    head, fds = _receive_head(sock)
    try:
        (length,) = LENGTH.unpack(head)
        if length > MAX_FRAME_BYTES:
            raise ConnectionLost(f"a frame of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
        return _receive_exactly(sock, length), fds
    except BaseException:
        close_all(fds)
        raise


def close_all(fds: Sequence[int]) -> None:
    """Close raw descriptors that nobody took over."""
    for fd in fds:
        socket.close(fd)


def _receive_head(sock: socket.socket) -> tuple[bytes, list[int]]:
    fds: list[int] = []
    head = b""
    while len(head) < LENGTH.size:
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        data, ancillary, _flags, _address = sock.recvmsg(LENGTH.size - len(head), space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
                fds.extend(received)
        if not data:
            close_all(fds)
            raise ConnectionLost("the peer closed the connection")
        head += data
    return head, fds


def _receive_exactly(sock: socket.socket, length: int) -> bytes:
    buffer = bytearray(length)
    view = memoryview(buffer)
    position = 0
    while position < length:
        count = sock.recv_into(view[position:])
        if count == 0:
            raise ConnectionLost("the peer closed the connection in the middle of a frame")
        position += count
    return bytes(buffer)
