"""
Listening sockets: bound here, lent to HAProxy, and got back from it.

HAProxy fetches its listening sockets from whoever answers at the unix socket named by `-x`, and gives them away
itself to whoever asks at its admin socket. So they outlive HAProxy, because we keep them, and us, because HAProxy
does. (With `bind fd@N` they would outlive HAProxy too, but HAProxy does not give away descriptors it inherited, and a
restarted agent could neither keep the port nor replace HAProxy without a gap.)

Source: HAProxy 2.8, management guide 3 "-x <unix_socket>", and the exchange as its `_getsocks` command was seen to do
it: the number of sockets as a native int; messages with up to 252 descriptors, for each of them a byte for the length
of a namespace, one for that of an interface, and an int; after every message the receiver sends an int.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cortex.binding import bind_tcp, bind_unix
from cortex.ingress.errors import AdminUnreachable, IngressPortTaken
from cortex.wire.framing import receive_some

BIND_TRIES = 20
BIND_PAUSE_S = 0.05
_COMMAND = b"_getsocks\n"
_NUMBER = struct.Struct("i")
_NO_NAMESPACE = b"\0\0" + _NUMBER.pack(0)
_BATCH = 252
"""Descriptors in one message: SCM_MAX_FD is 253."""


class ListenAddress(msgspec.Struct, frozen=True):
    """Where the public side listens."""

    host: str
    """An IP address or a name; `0.0.0.0` or `::` for every interface of that family."""
    port: int
    """0: the system chooses, and the choice is kept as long as an ingress runs."""


def bind_public(address: ListenAddress) -> socket.socket:
    """
    Return a listening TCP socket.

    Raises:
        PortTaken: it cannot be bound; names host, port and the system's reason.
    """
    try:
        return bind_tcp(address.host, address.port)
    except OSError as error:
        raise IngressPortTaken(address.host, address.port, error.strerror or str(error)) from error


async def bind_patiently(address: ListenAddress, *, tries: int = BIND_TRIES) -> socket.socket:
    """
    As `bind_public`, tried again for a moment: whoever has the port may be about to let it go.

    Raises:
        PortTaken: of the last try.
    """
    for _ in range(tries - 1):
        with contextlib.suppress(IngressPortTaken):
            return bind_public(address)
        await asyncio.sleep(BIND_PAUSE_S)
    return bind_public(address)


def matches(listener: socket.socket, address: ListenAddress) -> bool:
    """Whether a listening socket is the one that `address` asks for."""
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    bound_host, bound_port = listener.getsockname()[:2]
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    family, _, _, _, name = found[0]
    return listener.family == family and bound_host == name[0] and address.port in (0, bound_port)


def bind_argument(listener: socket.socket) -> str:
    """The argument of HAProxy's `bind` that finds this socket among those handed over."""
    if listener.family == socket.AF_UNIX:
        return "unix@" + str(listener.getsockname())
    host, port = listener.getsockname()[:2]
    if listener.family == socket.AF_INET6:
        v6only = listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        return f"ipv6@[{host}]:{port} {'v6only' if v6only else 'v4v6'}"
    return f"ipv4@{host}:{port}"


class Lender:
    """
    Lends listening sockets to one HAProxy while it starts. A context manager.

    Answers in a thread of its own: HAProxy waits one second at most, and must not fail to start because the event
    loop is busy.
    """

    def __init__(self, path: Path, listeners: Sequence[socket.socket]) -> None:
        self.path = path
        self._listeners = tuple(listeners)
        self._door = bind_unix(path)
        self._thread = threading.Thread(target=self._lend, name="ingress-lender", daemon=True)

    def __enter__(self) -> Lender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes a thread in accept(), should HAProxy never have asked.
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._door.close()
        self.path.unlink(missing_ok=True)

    def _lend(self) -> None:
        while True:
            try:
                borrower, _ = self._door.accept()
            except OSError:
                return
            with borrower, contextlib.suppress(OSError):
                borrower.settimeout(2.0)
                self._answer(borrower)

    def _answer(self, borrower: socket.socket) -> None:
        command = b""
        while not command.endswith(b"\n"):
            received = borrower.recv(64)
            if not received:
                return
            command += received
        borrower.sendall(_NUMBER.pack(len(self._listeners)))
        for start in range(0, len(self._listeners), _BATCH):
            batch = self._listeners[start : start + _BATCH]
            socket.send_fds(borrower, [_NO_NAMESPACE * len(batch)], [listener.fileno() for listener in batch])
            borrower.recv(_NUMBER.size)


def borrowed(admin_socket: Path, *, timeout_s: float = 2.0) -> list[socket.socket]:
    """
    Return copies of the listening sockets of the HAProxy behind an admin socket. Blocks; call it in a thread.

    Raises:
        AdminUnreachable: it did not answer, or not like HAProxy 2.8.
    """
    listeners: list[socket.socket] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(admin_socket))
            connection.sendall(_COMMAND)
            (expected,) = _NUMBER.unpack(connection.recv(_NUMBER.size, socket.MSG_WAITALL))
            while len(listeners) < expected:
                data, descriptors = receive_some(connection, 1 << 20, _BATCH)
                if not data:
                    raise ConnectionError(errno.EPIPE, os.strerror(errno.EPIPE))
                listeners += [socket.socket(fileno=descriptor) for descriptor in descriptors]
                connection.sendall(_NUMBER.pack(len(listeners)))
    except (OSError, struct.error) as error:
        for listener in listeners:
            listener.close()
        raise AdminUnreachable(admin_socket, f"it gave no listening sockets: {error}") from error
    return listeners
