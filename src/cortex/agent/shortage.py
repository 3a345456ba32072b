"""Whether the memory of the node is nearly used up, by us or by anybody else."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

SHORT_BELOW = 0.05
"""Of the memory that is there, so much left is too little: the kernel soon ends somebody."""
ENOUGH_FROM = 0.10
"""It is no longer short once so much is left: what was given up for it must not be taken again in the next moment."""


def is_short(before: bool, *, free_bytes: int, there_bytes: int) -> bool:
    """Whether memory is short now, if it was or was not before."""
    return free_bytes < (ENOUGH_FROM if before else SHORT_BELOW) * there_bytes


class MemoryShortage:
    """
    Looks, and says when it has changed.

    Args:
        there_bytes: what the node has.
        free_bytes: tells what of that anybody could still have; may raise OSError.
    """

    def __init__(self, there_bytes: int, free_bytes: Callable[[], int]) -> None:
        self.holds = False
        self._there_bytes = there_bytes
        self._free_bytes = free_bytes

    def look(self) -> bool:
        """Whether that is news. A kernel that does not say changes nothing."""
        try:
            free_bytes = self._free_bytes()
        except (OSError, ValueError):
            return False
        before = self.holds
        self.holds = is_short(before, free_bytes=free_bytes, there_bytes=self._there_bytes)
        if self.holds != before:
            log.warning("memory is %s: %s MiB left", "short" if self.holds else "not short any more", free_bytes >> 20)
        return self.holds != before
