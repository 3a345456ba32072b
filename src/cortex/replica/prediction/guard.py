"""
Watches a replica's batches: now and then one row of a batch is computed again alone and compared. Pure decisions.

A batch that is to be looked at is chosen when it has been run; its row is computed later, when nothing waits, so that
nobody does for it. Until then only that row is kept, copied, since handlers may write into what they are given.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from cortex.replica.prediction.agreement import Judge, compare, row_of
from cortex.replica.prediction.batching import Outputs, count_rows
from cortex.replica.tensors.conversion import Feeds
from cortex.wire.batching import Disagreement, Rounding
from cortex.wire.signature import Signature

FIRST_BATCHES: Final = 3
ONE_IN: Final = 1000
"""
After the first ones, one batch of so many is looked at: less than a thousandth of what the model computes. On the way
to the first of those so are the fourth, the eighth and so on: where rows are padded to the longest, the longest of each
batch is right, and three of those by chance must not mean that thousands are not looked at.
"""
WITHIN_S: Final = 1.0
"""A replica that always has something to do does it after so long anyway: at most one row a second."""


class Check(NamedTuple):
    """One row of a batch, to be computed again."""

    feeds: Feeds
    together: Outputs
    """What it gave with the others."""
    due_s: float
    """By when, even if others wait."""


class Guard:
    """
    Chooses rows, and decides what it means that they differ.

    Args:
        signature: of the model.
        choose: takes a number and returns a smaller one; which row of a batch it is.
    """

    def __init__(self, signature: Signature, *, choose: Callable[[int], int] = random.randrange) -> None:
        self._signature = signature
        self._choose = choose
        self._judge = Judge()
        self._batches = 0
        self._owed = 0
        self._check: Check | None = None

    @property
    def rows(self) -> int:
        """How many were compared."""
        return self._judge.rows

    def saw(self, feeds: Feeds, outputs: Outputs, now_s: float) -> None:
        """
        Take note of a batch of several requests, before anyone gets their part of it.

        Args:
            feeds: of all of them, stacked.
            outputs: with as many rows.
        """
        self._batches += 1
        if _is_looked_at(self._batches):
            self._owed = min(self._owed + 1, FIRST_BATCHES)
        if self._owed and self._check is None:
            row = self._choose(count_rows(feeds))
            kept = {name: value[row : row + 1].copy() for name, value in feeds.items()}
            self._check = Check(kept, [_copied(part) for part in row_of(outputs, row)], now_s + WITHIN_S)

    def has_check(self) -> bool:
        """Whether a row waits to be computed again, when there is time."""
        return self._check is not None

    def is_due(self, now_s: float) -> bool:
        """Whether it has waited for long enough."""
        return self._check is not None and now_s >= self._check.due_s

    def take(self) -> Check | None:
        """The row to compute now; it is forgotten here, whatever comes of it."""
        check, self._check = self._check, None
        if check is not None:
            self._owed -= 1
        return check

    def judge(self, check: Check, alone: Outputs, rounding: Rounding) -> Disagreement | None:
        """Decide on a row that was computed again."""
        return self._judge.weigh(compare(alone, check.together, self._signature, rounding))


def _is_looked_at(number: int) -> bool:
    """Of the batches of a replica, counted from 1. One that comes while another waits is put off to the next."""
    is_power_of_two = number & (number - 1) == 0
    return number <= FIRST_BATCHES or (number < ONE_IN and is_power_of_two) or number % ONE_IN == 0


def _copied(part: Any) -> Any:
    return part.copy() if isinstance(part, np.ndarray) else copy.deepcopy(part)
