"""Time, passed in. Nothing else in the package reads a clock for a decision."""

from __future__ import annotations

import math
import time
from typing import Protocol


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


def until_beat_s(now_s: float, interval_s: float) -> float:
    """
    How long to wait for the next whole multiple of an interval; never less than half of it, as that may be a repeat.

    Loops that wait for these wake up at the same moments: waking up is most of what a process costs that has nothing
    to do, and where its code has left the caches meanwhile, ten times as much.
    """
    return math.ceil(now_s / interval_s + 0.5) * interval_s - now_s
