"""
Tells whoever follows how much there is to do on this node: every half second while anything happens.

Nothing is done while nobody follows. While nothing happens an answer takes as long as the question allows; that
something does is then noticed when a replica says a word, or at the next look.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from cortex.agent.loads import ReplicaLoads
from cortex.clock import Clock, until_beat_s
from cortex.ids import NodeId
from cortex.wire.loadpage import INTERVAL_S
from cortex.wire.loads import DoorReading, NodeLoads

LAG_S = 0.05
"""So long after replicas wrote is read: each at its own beat would be half a beat late on average."""
GOES_ON_S = 3.0
"""For so long after the last thing that happened something is likely to happen again."""
LOOK_S = 2.0
"""How often is looked whether anything happens: as often as the agent is awake in any case."""


class Metering:
    """
    Answers those who follow.

    Args:
        doors: asks the ingress what has come so far; monotonic seconds, and what had come by then.
        used_cpu_s: what anything on the node has used of the processor.
    """

    def __init__(
        self,
        *,
        node: NodeId,
        agent: str,
        clock: Clock,
        loads: ReplicaLoads,
        doors: Callable[[], Awaitable[tuple[float, tuple[DoorReading, ...]]]],
        used_cpu_s: Callable[[], float],
    ) -> None:
        self._node = node
        self._agent = agent
        self._clock = clock
        self._loads = loads
        self._doors = doors
        self._used_cpu_s = used_cpu_s
        self._last: NodeLoads | None = None
        self._moved_s = float("-inf")
        """When something was last seen to have happened."""
        self._stirred = asyncio.Event()

    def stir(self) -> None:
        """A replica has said a word: something may have happened there."""
        self._stirred.set()

    async def follow(self, agent: str, timeout_s: float) -> NodeLoads:
        """
        The next reading, at the next beat while something happens; else as soon as it does, or when the time is up.

        Args:
            agent: who gave the last reading that is known; another one than this answers at once.
        """
        until_s = self._clock.monotonic_s() + timeout_s
        if agent == self._agent and self._last is not None:
            if self._clock.monotonic_s() - self._moved_s <= GOES_ON_S:
                await asyncio.sleep(until_beat_s(self._clock.monotonic_s(), INTERVAL_S) + LAG_S)
            else:
                await self._quiet_until(until_s)
        return await self._read()

    async def _quiet_until(self, until_s: float) -> None:
        """Wait while nothing happens."""
        while (left_s := until_s - self._clock.monotonic_s()) > 0:
            self._stirred.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, until_beat_s(self._clock.monotonic_s(), LOOK_S))):
                    await self._stirred.wait()
            if self._loads.have_moved():
                return

    async def _read(self) -> NodeLoads:
        at_s, doors = await self._doors()
        last, read = self._last, self._loads.read()
        self._last = NodeLoads(
            node=self._node,
            agent=self._agent,
            at_s=at_s,
            replicas=read,
            doors=doors,
            busy_cpu_s=self._used_cpu_s(),
        )
        if last is not None and _has_moved(last, self._last):
            self._moved_s = self._clock.monotonic_s()
        return self._last


def _has_moved(last: NodeLoads, now: NodeLoads) -> bool:
    """Whether anything was done or asked for in between."""
    ended = {(one.replica, one.attempt, one.ready_s): one.ended for one in last.replicas}
    return (
        any(one.in_flight or ended.get((one.replica, one.attempt, one.ready_s)) != one.ended for one in now.replicas)
        or any(one.queued for one in now.doors)
        or {one.api: one.begun for one in last.doors} != {one.api: one.begun for one in now.doors}
    )
