"""Time, passed in. Nothing else in the package reads a clock for a decision."""

from __future__ import annotations

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
