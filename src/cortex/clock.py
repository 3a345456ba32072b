"""Time, passed in. Nothing else in the package reads a clock for a decision."""

from __future__ import annotations

import math
import time
from typing import Protocol

CLOCKS_AGREE_S = 2.0
"""What clocks of two machines that are kept right may differ by, the way of a message included."""


class Clock(Protocol):
    """Where time comes from."""

    def monotonic_s(self) -> float:
        """Seconds that never go back; durations are compared on this."""
        ...

    def wall_s(self) -> float:
        """Seconds since the Unix epoch; instants that are stored or shown use this. May jump."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()


class SettledWall:
    """
    The wall clock as it is right for whoever removes what is old: one that was just set forward has made nothing older.

    Set forward, it counts on from where it was, and is believed after `SETTLES_AFTER_S`: by then whatever was in the
    making is done. Set back, it is believed at once, which makes everything younger.
    """

    SETTLES_AFTER_S = 3600.0
    """As long as what is unfinished or was just replaced is kept (`artifacts.garbage`, `state.secrets`)."""
    TOLERANCE_S = 60.0
    """A clock that is kept right by small steps is believed."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known_s, self._known_wall_s = clock.monotonic_s(), clock.wall_s()
        self._ahead_since_s: float | None = None

    def wall_s(self) -> float:
        """Seconds since the Unix epoch, at most what the wall clock says."""
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        expected_s = self._known_wall_s + now_s - self._known_s
        if wall_s > expected_s + self.TOLERANCE_S:
            if self._ahead_since_s is None:
                self._ahead_since_s = now_s
            if now_s - self._ahead_since_s < self.SETTLES_AFTER_S:
                return expected_s
        self._known_s, self._known_wall_s, self._ahead_since_s = now_s, wall_s, None
        return wall_s


def until_beat_s(now_s: float, interval_s: float) -> float:
    """
    How long to wait for the next whole multiple of an interval; never less than half of it, as that may be a repeat.

    Loops that wait for these wake up at the same moments: waking up is most of what a process costs that has nothing
    to do, and where its code has left the caches meanwhile, ten times as much.
    """
    return math.ceil(now_s / interval_s + 0.5) * interval_s - now_s
