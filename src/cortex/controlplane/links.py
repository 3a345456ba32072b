"""Where agents dial in: who comes says who it is and what the connection is for, and goes on to whoever that is."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from cortex import polling
from cortex.binding import bind_unix
from cortex.wire.framing import UNREADABLE, FrameReader, framed
from cortex.wire.link import Hello, TurnedAway, Welcome, misfit

log = logging.getLogger(__name__)

BACKLOG = 128
GREETING_S = 5.0
"""Who has connected and does not say who it is in this time is left."""


class AgentConnection:
    """A stream of whole frames to an agent that has dialed in. For one thread at a time, but for `close`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, payload: bytes, timeout_s: float | None = None) -> None:
        """Send one frame. Raises OSError: the agent is gone, or reads nothing for `timeout_s`."""
        self._sock.settimeout(timeout_s)
        self._sock.sendall(framed(payload))

    def receive(self, timeout_s: float | None = None) -> bytes:
        """The next frame. Raises OSError: the agent is gone, or says nothing for `timeout_s`."""
        self._sock.settimeout(timeout_s)
        reader = FrameReader()
        while (frame := reader.take(self._sock.recv(reader.wanted))) is None:
            pass
        return frame[0]

    def close(self) -> None:
        """Hang up; whoever waits for a frame in another thread hears of it."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


Way = Callable[[AgentConnection, Hello], None]
"""Takes a connection over, and closes it some time. Called in a thread of the connection's own."""


class Links:
    """
    Listens for agents, and greets them.

    Args:
        path: of the socket.
        epoch: what is said to be in charge.
        ways: by the name of a way, who takes its connections over.
    """

    def __init__(self, *, path: Path, epoch: Callable[[], int], ways: Mapping[str, Way]) -> None:
        self._path = path
        self._epoch = epoch
        self._ways = ways
        self._listener: socket.socket | None = None
        self._thread = threading.Thread(target=self._accept, name="links", daemon=True)
        self._ended, self._end = socket.socketpair()

    def start(self) -> None:
        """Listen from now on. Raises OSError: the socket cannot be bound."""
        self._listener = bind_unix(self._path, BACKLOG, at_once=True)
        self._listener.setblocking(False)
        self._thread.start()

    def close(self) -> None:
        """Take nobody in any more. What was taken over goes on."""
        self._end.close()
        if self._thread.is_alive():
            self._thread.join()
        else:
            self._ended.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        assert self._listener is not None
        with self._listener as listener, self._ended as ended:
            while True:
                ready = polling.wait({listener.fileno(): select.POLLIN, ended.fileno(): select.POLLIN}, None)
                if ended.fileno() in ready:
                    return
                sock = polling.accept(listener)
                if sock is not None:
                    threading.Thread(
                        target=self._greet, args=(AgentConnection(sock),), name="link", daemon=True
                    ).start()

    def _greet(self, connection: AgentConnection) -> None:
        try:
            hello = _HELLOS.decode(connection.receive(GREETING_S))
            way = self._ways.get(hello.way)
            reason = misfit(hello) or (None if way is not None else f"there is no way {hello.way!r} here")
            if reason is not None or way is None:
                log.warning("an agent of node %s was turned away: %s", hello.node, reason)
                connection.send(msgspec.json.encode(TurnedAway(reason=reason or "")), GREETING_S)
                connection.close()
                return
            connection.send(msgspec.json.encode(Welcome(epoch=self._epoch())), GREETING_S)
        except OSError:
            connection.close()  # it left before it had said who it is, or died
            return
        except UNREADABLE as error:
            log.warning("somebody connected and did not say who it is: %s", error)
            connection.close()
            return
        except BaseException:
            connection.close()
            raise
        way(connection, hello)


_HELLOS: msgspec.json.Decoder[Hello] = msgspec.json.Decoder(Hello)
