"""Frames both ways over a unix socket, never blocking: for loops of our own on `select.poll`, and for event loops."""

from __future__ import annotations

import select
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress

from cortex.wire.framing import Frame, FrameReader, close_all, framed, send_some

MAX_UNSENT_BYTES = 64 * 2**20
"""A peer that reads nothing for this long a queue is taken for dead."""


class Channel:
    """
    A connected unix socket that carries frames both ways.

    Args:
        max_unsent_bytes: how much may wait for a peer that does not read; None: anything.
    """

    def __init__(self, sock: socket.socket, *, max_unsent_bytes: int | None = MAX_UNSENT_BYTES) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader = FrameReader()
        self._max_unsent_bytes = max_unsent_bytes
        self._unsent: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._unsent_bytes = 0
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
        if self.closed:
            return
        data = memoryview(framed(payload))
        self._unsent.append((data, tuple(socket.dup(fd) for fd in fds)))
        self._unsent_bytes += len(data)
        if self._max_unsent_bytes is not None and self._unsent_bytes > self._max_unsent_bytes:
            self.close()
        else:
            self.flush()

    def flush(self) -> None:
        """Write what the kernel takes."""
        try:
            while self._unsent:
                data, fds = self._unsent[0]
                sent = send_some(self._sock, data, fds)
                close_all(fds)
                self._unsent_bytes -= sent
                if sent == len(data):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = (data[sent:], ())
        except BlockingIOError:
            pass
        except OSError:
            # Nobody hears us any more, but what was said before that is still to be read: `receive` finds the end.
            self._drop_unsent()
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def receive(self) -> Iterator[Frame]:
        """
        Every frame that is complete by now.

        Closes the channel when the peer is gone or sent what is no frame; frames before that are still returned.
        """
        try:
            while not self.closed:
                frame = self._reader.receive(self._sock)
                if frame is not None:
                    yield frame
        except BlockingIOError:
            pass
        except OSError:
            self.close()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._sock.close()
        self._reader.close()
        self._drop_unsent()

    def _drop_unsent(self) -> None:
        for _data, fds in self._unsent:
            close_all(fds)
        self._unsent.clear()
        self._unsent_bytes = 0
