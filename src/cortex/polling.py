"""
Waiting for descriptors, for loops of our own: launcher, control thread, keeper, inspector.

A `select.poll` that is kept has a set of its own, which somebody has to keep equal to what is open. Where that failed
once, in the turn in which a child ended and its pipe with it, `poll` returned at once, for ever. So nothing is kept:
each turn names what it waits for, derived from what there is.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Mapping

NO_DESCRIPTOR_PAUSE_S = 0.01
"""A listener stays readable while a connection waits that cannot be taken, for want of descriptors: look again then."""


def wait(watched: Mapping[int, int], timeout_s: float | None) -> set[int]:
    """
    Wait until one of these descriptors has something, and return which have.

    Args:
        watched: descriptors with the events to wait for (`select.POLLIN`, `select.POLLOUT`); errors and hang-ups count
            always.
        timeout_s: how long at most, and a millisecond more, so that what is due then is due; None for ever.

    Raises:
        OSError: EBADF, one of them is not open. The caller's mistake, which would otherwise make its loop spin.
    """
    poll = select.poll()
    for fd, events in watched.items():
        poll.register(fd, events)
    ready = poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000 + 1)
    for fd, events in ready:
        if events & select.POLLNVAL:
            raise OSError(errno.EBADF, f"{os.strerror(errno.EBADF)}: {fd}")
    return {fd for fd, _events in ready}


def accept(listener: socket.socket) -> socket.socket | None:
    """Take a connection of a listener that has one. None: it has left again, or there is no room for it yet."""
    try:
        return listener.accept()[0]
    except BlockingIOError:
        return None
    except OSError:
        time.sleep(NO_DESCRIPTOR_PAUSE_S)
        return None
