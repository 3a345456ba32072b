"""
Delivers to the control plane what replicas of this node have counted: each second while any of them counts.

While nothing happens nothing is looked at but every five seconds, and nothing is sent. What is not taken, as the
control plane is away, is in files, and delivered with a later look. That something is sent twice is harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from cortex.agent.beats import tell
from cortex.agent.countfiles import CountFiles
from cortex.agent.upstream import Upstream
from cortex.backoff import Backoff
from cortex.clock import Clock, until_beat_s
from cortex.wire.needs import CountsTaken, DeliverCounts
from cortex.wire.stats import Attempt

BEAT_S = 1.0
"""As often as replicas write."""
GOES_ON_S = 5.0
"""
For so long after the last word is looked at each beat: that a replica is active is heard with its health, every 2 s,
and the last file of one that no longer is comes a second later.
"""
LOOK_S = 5.0
"""How often is looked although nothing was heard; never later than half of it more."""
LONGEST_RETRY_S = 10.0


class Counting:
    """
    Delivers counts, one message after the other.

    Args:
        agent: which agent of the node we are.
        live: attempts whose process may still run.
    """

    def __init__(
        self,
        *,
        agent: str,
        files: CountFiles,
        upstream: Upstream,
        clock: Clock,
        live: Callable[[], AbstractSet[Attempt]],
    ) -> None:
        self._agent = agent
        self._files = files
        self._upstream = upstream
        self._clock = clock
        self._live = live
        self._number = 0
        self._by = ""
        """Who counted what was delivered last."""
        self._told: AbstractSet[Attempt] | None = None
        """What they were told that we keep."""
        self._stirred = asyncio.Event()
        self._stirred_s = float("-inf")
        self._backoff = Backoff(first_s=BEAT_S, longest_s=LONGEST_RETRY_S)
        self._one_at_a_time = asyncio.Lock()
        self._waiting: asyncio.Task[None] | None = None
        """What will look at everything that there is by now; None: such a pass has not been asked for."""
        self._passes: set[asyncio.Task[None]] = set()

    def stir(self) -> None:
        """A replica has said a word, or begun, or ended: something may have been counted."""
        self._stirred_s = self._clock.monotonic_s()
        self._stirred.set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        while True:
            await asyncio.wait([self._pass()])
            await self._until_due()

    async def deliver_within(self, patience_s: float) -> None:
        """Deliver what there is by now. What takes longer goes on."""
        await asyncio.wait([self._pass()], timeout=patience_s)

    async def close(self) -> None:
        """Leave what was not delivered to the next agent."""
        for task in self._passes:
            task.cancel()
        await asyncio.gather(*self._passes, return_exceptions=True)

    async def _until_due(self) -> None:
        """Wait for the next beat while anything happens; else until it does, or it is time to look."""
        now_s = self._clock.monotonic_s()
        pause_s = self._backoff.wait_s(now_s)
        if pause_s:
            await asyncio.sleep(pause_s)
            return
        if now_s - self._stirred_s > GOES_ON_S:
            self._stirred.clear()
            try:
                async with asyncio.timeout(until_beat_s(now_s, LOOK_S)):
                    await self._stirred.wait()
            except TimeoutError:
                return
        await asyncio.sleep(until_beat_s(self._clock.monotonic_s(), BEAT_S))

    def _pass(self) -> asyncio.Task[None]:
        """What delivers everything that there is by now; who asks while it waits for its turn shares it."""
        if self._waiting is None:
            self._waiting = task = asyncio.ensure_future(self._turn())
            self._passes.add(task)
            task.add_done_callback(self._passes.discard)
        return self._waiting

    async def _turn(self) -> None:
        async with self._one_at_a_time:
            self._waiting = None
            try:
                await self.deliver()
                self._backoff.note_success()
            except Exception as error:
                if not self._backoff.failures:
                    tell(error)
                self._backoff.note_failure(self._clock.monotonic_s())

    async def deliver(self) -> None:
        """
        Deliver what there is now; not while another pass does.

        Raises:
            CortexError: the control plane is away, or does not take it.
            OSError: the folder cannot be read.
        """
        await asyncio.to_thread(self._files.look, self._live())
        while True:
            batch = await asyncio.to_thread(self._files.batch)
            kept = self._files.kept
            if batch is None and kept == self._told:
                return
            self._number += 1
            delivery = DeliverCounts(
                agent=self._agent,
                number=self._number,
                files=batch.contents if batch is not None else (),
                kept=None if kept == self._told else tuple(sorted(kept)),
                durably=batch is not None and batch.durably,
                sent_wall_s=self._clock.wall_s(),
            )
            taken = await self._upstream.ask(delivery, CountsTaken)
            if taken.by != self._by:
                self._by, self._told = taken.by, None
                self._files.forget_taken()
            if delivery.kept is not None:
                self._told = kept
            if batch is not None:
                await asyncio.to_thread(self._files.taken, batch, durable=taken.durable)
                if batch.durably and not taken.durable:
                    self.stir()
