"""The lines on which the control plane asks: the agent dials them, and keeps some open on which nobody asks yet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable

from cortex.agent import server
from cortex.agent.dialing import Introduce, RefusedByControlPlane, Streams, hang_up
from cortex.agent.server import AgentService
from cortex.backoff import Backoff
from cortex.clock import Clock
from cortex.wire.link import Hello

log = logging.getLogger(__name__)

SPARE = 3
"""
Lines on which nobody asks. Reports and loads are waited for on one each, and orders, deploys, logs and counts come
beside them. A question that finds none waits for the next, which takes a millisecond.
"""
RETRY_FIRST_S, RETRY_LONGEST_S = 0.02, 0.05
"""Another control plane is there in 0.3 s, and acts only once it has heard of its nodes: who sleeps waits for that."""
FAR_RETRY_LONGEST_S = 1.0
"""The same for one of another machine, on which all nodes dial in when it is back."""
TURNED_AWAY_S = 2.0
UNASKED_S = 15.0
"""A control plane asks its nodes every few seconds. One that does not is stopped, and another may be in charge."""


class SpareLines:
    """
    Dials the control plane whenever there are not enough.

    Args:
        introduce: how a line comes about.
        hello: who we are; of the way `ORDERS`.
        service: answers.
        longest_pause_s: between two tries, where nobody answers.
        leave: have another control plane dialed than the one that has stopped asking; None: there is never another.
    """

    def __init__(
        self,
        *,
        introduce: Introduce,
        hello: Hello,
        service: AgentService,
        clock: Clock,
        longest_pause_s: float = RETRY_LONGEST_S,
        leave: Callable[[], None] | None = None,
    ) -> None:
        self._introduce = introduce
        self._longest_pause_s = longest_pause_s
        self._leave = leave
        self._hello = hello
        self._service = service
        self._clock = clock
        self._spare = 0
        self._wanting = asyncio.Event()
        self._lines: set[asyncio.Task[None]] = set()

    async def keep(self) -> None:
        """Do so until cancelled; then all of them are ended."""
        backoff = Backoff(first_s=RETRY_FIRST_S, longest_s=self._longest_pause_s)
        told = ""
        try:
            while True:
                while self._spare >= SPARE:
                    await self._wanted()
                try:
                    streams = await self._introduce(self._hello)
                except OSError as error:
                    if isinstance(error, ssl.SSLError) and str(error) != told:
                        told = str(error)
                        log.error("the control plane and we do not trust each other: %s", error)
                    await asyncio.sleep(backoff.note_failure(self._clock.monotonic_s()))
                    continue
                except RefusedByControlPlane as error:
                    if str(error) != told:
                        log.error("the control plane turned us away: %s", error)
                    told = str(error)
                    await asyncio.sleep(TURNED_AWAY_S)
                    continue
                told = ""
                backoff.note_success()
                self._spare += 1
                line = asyncio.ensure_future(self._answer(streams))
                self._lines.add(line)
                line.add_done_callback(self._lines.discard)
        finally:
            for line in self._lines:
                line.cancel()

    async def _wanted(self) -> None:
        """Until something happens to a line. One on which nobody asks for too long, as on no other, is left."""
        self._wanting.clear()
        nobody_asks = self._spare == len(self._lines)
        try:
            async with asyncio.timeout(UNASKED_S if self._leave is not None and nobody_asks else None):
                await self._wanting.wait()
        except TimeoutError:
            assert self._leave is not None
            log.warning("the control plane has not asked for %g s: it is left for another", UNASKED_S)
            self._leave()
            lines = tuple(self._lines)
            for line in lines:
                line.cancel()
            await asyncio.gather(*lines, return_exceptions=True)

    async def _answer(self, streams: Streams) -> None:
        """Answer on a line until it ends."""
        asked = False

        def note(is_asked: bool) -> None:
            nonlocal asked
            asked = is_asked
            self._spare += -1 if is_asked else 1
            self._wanting.set()

        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await server.talk(*streams, self._service, note)
        finally:
            if not asked:
                note(True)
            await hang_up(streams[1])
