"""
The side of `wire.framing` that never blocks, for loops of our own on `select.poll`: launcher and control thread.
"""

from __future__ import annotations

import array
import select
import socket
from collections import deque
from collections.abc import Sequence

from cortex.wire.framing import LENGTH, MAX_DESCRIPTORS, MAX_FRAME_BYTES, ConnectionLost, close_all

_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
_CHUNK_BYTES = 2**20
MAX_UNSENT_BYTES = 64 * 2**20
"""A peer that reads nothing for this long a queue is taken for dead."""


class Channel:
    """
    A connected unix socket that carries frames both ways.

    Head and body are read separately: descriptors ride on a head's first byte, and a read that went on into the next
    frame could not tell whose they are.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._head = b""
        self._body: bytearray | None = None
        self._missing = 0
        self._fds: list[int] = []
        self._unsent: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._unsent_bytes = 0
        self._unheard = False
        self.closed = False

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def events(self) -> int:
        """What to poll for."""
        return select.POLLIN | (select.POLLOUT if self._unsent else 0)

    @property
    def flushed(self) -> bool:
        return not self._unsent

    def send(self, payload: bytes, fds: Sequence[int] = ()) -> None:
        """Queue a frame and write what fits. Descriptors are copied. Silently lost when the peer is gone."""
        if self.closed or self._unheard:
            return
        data = memoryview(LENGTH.pack(len(payload)) + payload)
        self._unsent.append((data, tuple(socket.dup(fd) for fd in fds)))
        self._unsent_bytes += len(data)
        if self._unsent_bytes > MAX_UNSENT_BYTES:
            self.close()
            return
        self.flush()

    def flush(self) -> None:
        """Write what the kernel takes."""
        try:
            while self._unsent:
                data, fds = self._unsent[0]
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                sent = self._sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
                close_all(fds)
                self._unsent_bytes -= sent
                if sent == len(data):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = (data[sent:], ())
        except BlockingIOError:
            pass
        except OSError:
            # The peer has closed, but what it said before that is still to be read: `receive` finds the end.
            self._unheard = True
            self._drop_unsent()

    def receive(self) -> list[tuple[bytes, list[int]]]:
        """
        Every frame that is complete by now, with its descriptors, which the caller owns.

        Closes the channel when the peer is gone or sent what is no frame; frames before that are still returned.
        """
        frames: list[tuple[bytes, list[int]]] = []
        try:
            while not self.closed:
                frame = self._read_head() if self._body is None else self._read_body()
                if frame is not None:
                    frames.append(frame)
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        return frames

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._sock.close()
        close_all(self._fds)
        self._drop_unsent()

    def _drop_unsent(self) -> None:
        for _data, fds in self._unsent:
            close_all(fds)
        self._unsent.clear()

    def _read_head(self) -> tuple[bytes, list[int]] | None:
        data, ancillary, _flags, _address = self._sock.recvmsg(
            LENGTH.size - len(self._head), _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
                self._fds.extend(received)
        if not data:
            raise ConnectionLost("the peer closed the connection")
        self._head += data
        if len(self._head) < LENGTH.size:
            return None
        (self._missing,) = LENGTH.unpack(self._head)
        if self._missing > MAX_FRAME_BYTES:
            raise ConnectionLost(f"a frame of {self._missing} bytes is over the limit of {MAX_FRAME_BYTES}")
        self._body = bytearray()
        return self._complete() if self._missing == 0 else None

    def _read_body(self) -> tuple[bytes, list[int]] | None:
        assert self._body is not None
        data = self._sock.recv(min(self._missing, _CHUNK_BYTES))
        if not data:
            raise ConnectionLost("the peer closed the connection in the middle of a frame")
        self._body += data
        self._missing -= len(data)
        return self._complete() if self._missing == 0 else None

    def _complete(self) -> tuple[bytes, list[int]]:
        assert self._body is not None
        frame = bytes(self._body), self._fds
        self._head, self._body, self._fds = b"", None, []
        return frame
