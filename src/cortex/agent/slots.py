"""
Slots: the listening socket of one replica id each.

We bind it once and hand it to each attempt, so that requests wait in its backlog while an attempt is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from cortex.binding import CONTROL_BACKLOG, bind_unix, leads_somewhere


class SlotSocket:
    """A listening socket, and the path that leads to it until somebody removes the file or binds another one there."""

    def __init__(self, path: Path, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.path = path
        self.socket = sock
        self._awaiting: asyncio.AbstractEventLoop | None = None
        self._inode = path.stat().st_ino

    def is_reachable(self) -> bool:
        """Whether its path leads to it."""
        try:
            return self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def await_knock(self, on_knock: Callable[[], None]) -> None:
        """
        Call once when a connection waits in its backlog, also one that has come before.

        It is watched no more from then on: it stays readable until somebody accepts what waits, whoever that is.
        """

        def knocked() -> None:
            self.stop_awaiting()
            on_knock()

        self._awaiting = asyncio.get_running_loop()
        self._awaiting.add_reader(self.socket.fileno(), knocked)

    def stop_awaiting(self) -> None:
        """Also before the socket is closed: others hold it as well, so that it would go on being watched."""
        if self._awaiting is not None:
            self._awaiting.remove_reader(self.socket.fileno())
            self._awaiting = None

    def turn_away(self) -> None:
        """Close every connection that waits in its backlog."""
        turn_away(self.socket)

    def close(self) -> None:
        """For good; another slot on its path stays."""
        if self.socket.fileno() < 0:
            return
        self.stop_awaiting()
        if self.is_reachable():
            self.path.unlink(missing_ok=True)
        self.socket.close()


def bind(path: Path) -> SlotSocket:
    """A new slot. Raises OSError: it cannot be bound."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    sock = bind_unix(path)
    try:
        return SlotSocket(path, sock)
    except OSError:
        sock.close()
        raise


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A control socket for a process that is about to be forked: we keep none. Raises OSError: it cannot be bound."""
    with bind_unix(path, CONTROL_BACKLOG) as control:
        yield control


def found_again(path: Path, sock: socket.socket | None) -> SlotSocket | None:
    """A slot that a former agent has bound; None, and its connections closed, if nobody would ever reach it."""
    if sock is None:
        return None
    if leads_somewhere(path):
        with contextlib.suppress(OSError):
            return SlotSocket(path, sock)
    sock.setblocking(False)
    turn_away(sock)
    sock.close()
    return None


def turn_away(listening: socket.socket) -> None:
    try:
        while True:
            waiting, _ = listening.accept()
            waiting.close()
    except OSError:
        return
