"""A clock that moves when told to."""

from __future__ import annotations

START_WALL_S = 1_767_225_600.0
"""2026-01-01T00:00:00Z."""


class FakeClock:
    """Monotonic and wall time that only `advance` moves; `jump_wall` sets the wall clock as an operator would."""

    def __init__(self, *, wall_s: float = START_WALL_S) -> None:
        self._monotonic_s = 1000.0
        self._wall_s = wall_s

    def monotonic_s(self) -> float:
        return self._monotonic_s

    def wall_s(self) -> float:
        return self._wall_s

    def advance(self, seconds: float) -> None:
        """Let time pass. Raises ValueError for negative seconds: use `jump_wall` to set a clock back."""
        if seconds < 0:
            raise ValueError(f"time does not run backwards: {seconds} s")
        self._monotonic_s += seconds
        self._wall_s += seconds

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back; monotonic time does not notice."""
        self._wall_s += seconds
