"""The slot's listening socket, the event loop around it, and how both stop."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import resource
import select
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from time import perf_counter

from cortex.binding import BACKLOG
from cortex.replica.process.condition import Condition
from cortex.replica.transport.http import Connection
from cortex.replica.transport.service import Service

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
SPARE_DESCRIPTORS = 32
"""Looked for in each beat, for what comes between two of them."""
ACCEPTED_A_TURN = 8
"""
Connections that the loop accepts in one of its turns: libuv (uvloop 0.23) takes one for each listening socket. A turn
lasts for as long as all requests that are there, one after the other: with one socket, 5 ms a request and 40 new
connections at once the last one was answered after 4 s, with eight after 0.8 s.
"""
SETTLE_S = 0.05
"""How long nothing may have happened before a drain believes that nothing more comes."""
DRAIN_POLL_S = 0.01


class Server:
    """
    The slot's listening socket, and the loop around it.

    Stopping is this, in order: answers say `connection: close`; connections that wait in the socket's backlog are
    still taken; when nothing has arrived or is being worked on for a moment, or the time is up, what is left is
    cancelled and counted; nothing is accepted any more and connections close; then `stopped` is called.
    """

    def __init__(
        self,
        service: Service,
        *,
        condition: Condition,
        slot: socket.socket,
        loop: asyncio.AbstractEventLoop,
        stopped: Callable[[], None],
    ) -> None:
        self._service = service
        self._condition = condition
        self._slot = slot
        self._loop = loop
        self._stopped = stopped
        self._deadline_s: float | None = None
        self._quiet_since_s = 0.0
        self._beat_due_s = perf_counter()

    def open(self) -> None:
        """Accept from the loop's next turn on: what waited in the backlog comes first."""
        self._slot.setblocking(False)
        # Copies: a server of the loop owns its socket, and ours is handed out on the control socket. Each listens anew,
        # with a backlog of its own. Held for life: the loop does not hold them, and the collector would close a socket
        # once nobody is connected.
        self._listening = [self._loop.run_until_complete(self._listener()) for _ in range(ACCEPTED_A_TURN)]
        self._starting = [self._loop.create_task(listening.start_serving()) for listening in self._listening]
        self._beat_due_s = perf_counter()
        self._loop.call_soon(self._beat)

    def _listener(self) -> Coroutine[None, None, asyncio.Server]:
        return self._loop.create_unix_server(
            partial(Connection, self._service, self._loop),
            sock=self._slot.dup(),
            backlog=BACKLOG,
            start_serving=False,
        )

    async def _listen_again(self) -> None:
        self._listening = [await self._listener() for _ in range(ACCEPTED_A_TURN)]
        for listening in self._listening:
            await listening.start_serving()
        self._condition.starved_since_s = None
        log.info("there are descriptors again: connections are taken again")

    def _mind_descriptors(self) -> None:
        """
        Take no connection that there may be no descriptor for: it waits in the slot, and those that are there go on.

        libuv closes what it cannot take, so that the request is lost or done by somebody else.
        """
        if self._deadline_s is not None or not all(task.done() for task in self._starting):
            return
        if self._listening and not has_descriptors(SPARE_DESCRIPTORS):
            for listening in self._listening:
                listening.close()
            self._listening = []
            self._condition.starved_since_s = perf_counter()
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            log.error(
                "fewer than %d of %d descriptors are left: new connections wait until there are more. "
                "Does the handler close its files and sockets?",
                *(SPARE_DESCRIPTORS, limit),
            )
        elif not self._listening and has_descriptors(SPARE_DESCRIPTORS + 2 * ACCEPTED_A_TURN):
            self._starting = [self._loop.create_task(self._listen_again())]

    def drain_soon(self, timeout_s: float) -> None:
        """`drain`, from any thread. Answers close their connections from now on, even while the loop is busy."""
        self._service.draining = True
        self._loop.call_soon_threadsafe(self.drain, timeout_s)

    def drain(self, timeout_s: float) -> None:
        """Stop as described above. On the loop; later calls may only shorten the time."""
        deadline_s = perf_counter() + timeout_s
        if self._deadline_s is not None:
            self._deadline_s = min(self._deadline_s, deadline_s)
            return
        self._deadline_s = deadline_s
        self._quiet_since_s = perf_counter()
        self._drain_on()

    def _drain_on(self) -> None:
        now_s = perf_counter()
        assert self._deadline_s is not None
        if self._condition.in_flight or any(c.busy for c in self._service.connections) or self._someone_knocks():
            self._quiet_since_s = now_s
        if now_s - self._quiet_since_s >= SETTLE_S:
            # Not one more turn of the loop before that: it could accept a connection that nobody would serve.
            self._close()
        elif now_s >= self._deadline_s:
            self._service.cancel_rest()
            self._loop.call_later(DRAIN_POLL_S, self._close)  # uvloop writes answers at the end of a turn
        else:
            # Behind what the loop owes by then: a connection is accepted first, and made known to us after timers.
            self._loop.call_later(DRAIN_POLL_S, self._loop.call_soon, self._drain_on)

    def _close(self) -> None:
        for listening in self._listening:
            listening.close()
        for connection in tuple(self._service.connections):
            connection.close()
        self._stopped()

    def _someone_knocks(self) -> bool:
        """Whether a connection waits to be accepted, or an accepted one has sent what we have not read."""
        poll = select.poll()
        poll.register(self._slot.fileno(), select.POLLIN)
        for connection in self._service.connections:
            if connection.fileno() >= 0:
                poll.register(connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _beat(self) -> None:
        service = self._service
        now_s = self._condition.heartbeat_s = perf_counter()
        late_s = max(0.0, now_s - self._beat_due_s)
        self._beat_due_s = now_s + HEARTBEAT_S
        service.heads.tick()
        self._mind_descriptors()
        for connection in tuple(service.connections):
            connection.check_pace(now_s, late_s)
        if service.huge and not self._condition.in_flight:
            service.huge = False
            trim_memory()
        self._loop.call_later(HEARTBEAT_S, self._beat)


def has_descriptors(number: int) -> bool:
    """Whether this process may open so many more."""
    opened: list[int] = []
    try:
        for _ in range(number):
            opened.append(os.dup(0))
    except OSError:
        return False
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return True


def trim_memory() -> None:
    """
    Give memory that is free back to the system.

    Pieces of a body are small enough for malloc to keep them once they are free: after one body of 100 MiB a replica
    would stay 70 MiB larger, and its memory is what placement goes by. Only glibc has this; it takes milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
