"""
Listening sockets: bound here, whoever they are for.

Whoever looks for a free port binds it, and hands the socket on to the process that serves there: between a look and a
bind, somebody else may take it.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import resource
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)

BACKLOG = 4096
"""Requests that may wait where nobody accepts; the kernel caps it at net.core.somaxconn."""
CONTROL_BACKLOG = 16
"""Among our processes."""
SAY_AGAIN_S = 60.0
_NOT_ACCEPTED = "socket.accept() out of system resource"
"""Source: CPython, asyncio/selector_events.py."""


def bind_unix(path: Path, backlog: int = BACKLOG, *, at_once: bool = False) -> socket.socket:
    """
    A listening unix socket at a path, mode 0600, in place of whatever was there.

    Args:
        at_once: whoever finds it there finds somebody who listens. The kernel then knows it by another name.

    Raises:
        OSError: it cannot be bound.
    """
    place = path.with_name(f"{path.name}.tmp") if at_once else path
    place.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(place))
        place.chmod(0o600)
        listener.listen(backlog)
        if at_once:
            place.rename(path)
    except OSError:
        listener.close()
        raise
    return listener


def leads_somewhere(path: Path) -> bool:
    """
    Whether somebody has a stream socket that is bound to a path.

    A datagram socket cannot be connected to one, so that nobody who listens there takes us for a caller: Linux says
    EPROTOTYPE where there is somebody, ECONNREFUSED where there was.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            return error.errno == errno.EPROTOTYPE
        return False


def bind_tcp(host: str, port: int) -> socket.socket:
    """
    A TCP socket that listens; closed connections that had its port do not count.

    Args:
        host: an IP address or a name; `0.0.0.0` or `::` for every interface of that family.
        port: 0: the system chooses.

    Raises:
        OSError: it cannot be bound.
    """
    family, kind, protocol, _, name = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # so that 0.0.0.0 can be listened on beside it
        sock.bind(name)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def handed_over(arguments: Sequence[str]) -> dict[int, socket.socket]:
    """
    By port, what whoever started us has bound.

    Args:
        arguments: of our command line; numbers among them are descriptors (`processes.spawn`).
    """
    found = {}
    for number in filter(str.isdecimal, arguments):
        sock = socket.socket(fileno=int(number))
        sock.set_inheritable(False)
        found[sock.getsockname()[1]] = sock
    return found


def say_when_out_of_descriptors(loop: asyncio.AbstractEventLoop) -> None:
    """
    Have a loop say once in a while that it cannot take connections, which wait meanwhile; it tries again each second.

    By itself asyncio (3.11 to 3.13) writes a traceback for each connection that might wait, thousands each second.
    """
    said_s = -math.inf

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said_s
        if context.get("message") != _NOT_ACCEPTED:
            loop.default_exception_handler(context)
        elif loop.time() - said_s >= SAY_AGAIN_S:
            said_s = loop.time()
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            log.error("out of descriptors, of which there may be %d: who connects waits until there are some", limit)

    loop.set_exception_handler(handle)
