"""Whether memory ran out: the kernel says how many it has killed for that, not whom."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from cortex.clock import Clock
from cortex.engines import machine

LATELY_S = 10.0
"""A process that is killed is seen to end once its memory is free, which takes some tenths of a second for each GB."""


class MemoryKills:
    """
    Remembers how many were killed until lately, so that a kill of long ago explains nothing that ends now.

    Args:
        kills: how many the kernel has killed for memory since boot.
    """

    def __init__(self, clock: Clock, kills: Callable[[], int] = machine.oom_kills) -> None:
        self._clock = clock
        self._kills = kills
        self._looks = deque([(clock.monotonic_s(), kills())])
        """When it was looked, and what was seen; the first is the last of those that are older than lately."""

    def look(self) -> None:
        """To be called every now and then: what has happened between two looks is told as long as if it were later."""
        self._looks.append((self._clock.monotonic_s(), self._kills()))
        self._forget()

    def is_recent(self) -> bool:
        """Whether somebody was killed for memory lately."""
        self._forget()
        return self._kills() > self._looks[0][1]

    def _forget(self) -> None:
        lately_s = self._clock.monotonic_s() - LATELY_S
        while len(self._looks) > 1 and self._looks[1][0] <= lately_s:
            self._looks.popleft()
