"""Where agents dial in: who comes says who it is and what the connection is for, and goes on to whoever that is."""

from __future__ import annotations

import contextlib
import itertools
import logging
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from cortex import polling
from cortex.binding import bind_unix
from cortex.ids import NodeId
from cortex.tls import notice_silence, peer_names
from cortex.wire.agent import NEVER_MIND
from cortex.wire.framing import UNREADABLE, ConnectionLost, FrameReader, framed
from cortex.wire.link import Hello, TurnedAway, Welcome, misfit

log = logging.getLogger(__name__)

BACKLOG = 128
GREETING_S = 5.0
"""Who has connected and does not say who it is in this time is left."""
REMEMBERED_AGENTS = 16
SAY_AGAIN_S = 60.0
MOST_SAID = 100
"""In that time."""


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

    def has_word(self, timeout_s: float = 0.0) -> bool:
        """Whether there is something to read, or nothing more to come, by then. Raises OSError: it is closed."""
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return True
        fd = self._sock.fileno()
        if fd < 0:
            raise ConnectionLost("the connection was closed")
        return bool(polling.wait({fd: select.POLLIN}, timeout_s))

    def never_mind(self) -> None:
        """Say that nobody waits for the answer, if that can be said at once."""
        with contextlib.suppress(OSError):
            self._sock.settimeout(0.0)
            self._sock.send(NEVER_MIND)

    def close(self) -> None:
        """Hang up; whoever waits for a frame in another thread hears of it."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class Incarnations:
    """Which agent of a node is the present one: who has come last, and never one that another has followed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._present: dict[NodeId, tuple[int, str]] = {}
        """With the number of the first connection of each."""
        self._former: dict[NodeId, deque[str]] = {}

    def admit(self, hello: Hello, number: int) -> bool:
        """
        Whether it is the present one; if it is new, it is from now on.

        Args:
            number: of its connection. They grow as connections come, and are looked at in any order.
        """
        with self._lock:
            came, present = self._present.get(hello.node, (number, hello.agent))
            former = self._former.setdefault(hello.node, deque(maxlen=REMEMBERED_AGENTS))
            if hello.agent == present:
                self._present[hello.node] = min(came, number), present
                return True
            if hello.agent in former or number < came:
                return False
            former.append(present)
            self._present[hello.node] = number, hello.agent
            return True

    def is_present(self, node: NodeId, agent: str) -> bool:
        with self._lock:
            return self._present.get(node, (0, ""))[1] == agent


Way = Callable[[AgentConnection, Hello], None]
"""Takes a connection over, and closes it some time. Called in a thread of the connection's own."""


class Links:
    """
    Listens for agents, and greets them. Who comes from another machine is the node that its certificate is of.

    Args:
        path: of the socket.
        wide: a TCP socket that listens for agents of other machines, and what they are to trust and to show. Ours
            from now on.
        epoch: what is said to be in charge.
        ways: by the name of a way, who takes its connections over.
    """

    def __init__(
        self,
        *,
        path: Path,
        epoch: Callable[[], int],
        incarnations: Incarnations,
        ways: Mapping[str, Way],
        wide: tuple[socket.socket, ssl.SSLContext] | None = None,
    ) -> None:
        self._path = path
        self._wide = wide
        self._epoch = epoch
        self._incarnations = incarnations
        self._ways = ways
        self._numbers = itertools.count()
        self._listener: socket.socket | None = None
        self._inode = 0
        self._thread = threading.Thread(target=self._accept, name="links", daemon=True)
        self._saying = threading.Lock()
        self._said: dict[str, float] = {}
        """When each was, of late."""
        self._words, self._word = socket.socketpair()
        self._word.setblocking(False)

    def start(self) -> None:
        """Listen from now on. Raises OSError: the socket cannot be bound."""
        self._listener = self._bound()
        self._thread.start()

    def close(self) -> None:
        """Take nobody in any more. What was taken over goes on."""
        self._word.close()
        if self._thread.is_alive():
            self._thread.join()
        self._words.close()
        self._path.unlink(missing_ok=True)

    def look(self) -> None:
        """Nobody comes: without the file of our socket nobody would ever find us, and it is made again."""
        with contextlib.suppress(OSError):
            self._word.send(b"?")

    def _bound(self) -> socket.socket:
        listener = bind_unix(self._path, BACKLOG, at_once=True)
        listener.setblocking(False)
        self._inode = self._path.stat().st_ino
        return listener

    def _accept(self) -> None:
        listener = self._listener
        assert listener is not None
        wide, context = self._wide or (None, None)
        if wide is not None:
            wide.setblocking(False)
        while True:
            watched = (listener, self._words) if wide is None else (listener, self._words, wide)
            ready = polling.wait({sock.fileno(): select.POLLIN for sock in watched}, None)
            if self._words.fileno() in ready:
                if not self._words.recv(16):
                    break
                listener = self._kept(listener)
            if listener.fileno() in ready:
                self._take_in(listener, None)
            if wide is not None and wide.fileno() in ready:
                self._take_in(wide, context)
        listener.close()
        if wide is not None:
            wide.close()

    def _take_in(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        sock = polling.accept(listener)
        if sock is not None:
            arguments = (sock, context, next(self._numbers))
            try:
                threading.Thread(target=self._meet, args=arguments, name="link", daemon=True).start()
            except RuntimeError as error:  # the agent dials again
                log.warning("an agent cannot be taken in: %s", error)
                sock.close()

    def _kept(self, listener: socket.socket) -> socket.socket:
        try:
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_ino == self._inode:
                    return listener
            log.error("the file of the agents' socket was removed: made again")
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            another = self._bound()
        except OSError as error:
            log.warning("agents cannot find us: %s", error)
            return listener
        listener.close()
        return another

    def _meet(self, sock: socket.socket, context: ssl.SSLContext | None, number: int) -> None:
        if context is not None:
            where = "another machine"
            try:
                where = sock.getpeername()[0]
                notice_silence(sock)
                sock.settimeout(GREETING_S)
                secured = context.wrap_socket(sock, server_side=True)
            except OSError as error:
                self._say(f"somebody who dialed in from {where} is not taken: {error}")
                sock.close()
                return
            self._greet(AgentConnection(secured), number, peer_names(secured))
            return
        self._greet(AgentConnection(sock), number, None)

    def _greet(self, connection: AgentConnection, number: int, names: tuple[str, ...] | None) -> None:
        try:
            hello = _HELLOS.decode(connection.receive(GREETING_S))
            reason = self._refusal(hello, number, names)
            if reason is not None:
                self._say(f"an agent of node {hello.node} is turned away: {reason}")
                connection.send(msgspec.json.encode(TurnedAway(reason=reason)), GREETING_S)
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
        self._ways[hello.way](connection, hello)

    def _say(self, what: str) -> None:
        """Whoever is not taken comes again and again: the same is said once in a while."""
        now_s = time.monotonic()
        with self._saying:
            self._said = {said: at_s for said, at_s in self._said.items() if now_s - at_s < SAY_AGAIN_S}
            if what in self._said or len(self._said) >= MOST_SAID:
                return
            self._said[what] = now_s
        log.warning("%s", what)

    def _refusal(self, hello: Hello, number: int, names: tuple[str, ...] | None) -> str | None:
        if names is not None and hello.node not in names:
            return (
                f"it says that it is of node {hello.node}, and its certificate is of {' and '.join(names) or 'nobody'}"
            )
        unfit = misfit(hello)
        if unfit is not None:
            return unfit
        if hello.way not in self._ways:
            return f"there is no way {hello.way!r} here"
        if not self._incarnations.admit(hello, number):
            return f"another agent of node {hello.node} has followed this one"
        return None


_HELLOS: msgspec.json.Decoder[Hello] = msgspec.json.Decoder(Hello)
