"""How long to wait before what failed is tried again: twice as long each time, up to a bound. Pure."""

from __future__ import annotations

from dataclasses import dataclass


def doubling_s(times: int, *, first_s: float, longest_s: float) -> float:
    """The pause after so many failures in a row; none after none."""
    return min(longest_s, first_s * 2.0 ** min(times - 1, 64)) if times > 0 else 0.0


@dataclass
class Backoff:
    """
    What is remembered of something that fails now and then.

    Args:
        first_s, longest_s: pauses; each is twice the one before.
        free: so many failures in a row are tried again at once.
    """

    first_s: float
    longest_s: float
    free: int = 0
    failures: int = 0
    """In a row."""
    not_before_s: float = float("-inf")
    """When it may be tried again, on the clock of whoever notes failures."""

    def note_failure(self, now_s: float) -> float:
        """It failed. Returns the pause."""
        self.failures += 1
        pause_s = doubling_s(self.failures - self.free, first_s=self.first_s, longest_s=self.longest_s)
        self.not_before_s = now_s + pause_s
        return pause_s

    def note_success(self) -> None:
        """It worked: the next failure is the first one again."""
        self.failures = 0

    def wait_s(self, now_s: float) -> float:
        """Seconds until it may be tried again; 0: now."""
        return max(0.0, self.not_before_s - now_s)
