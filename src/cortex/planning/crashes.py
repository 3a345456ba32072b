"""
Whether an api crashes: from `MANY` ends that nobody asked for within `WINDOW_S` on, until so long passed without one.

Not the same as being delayed by `planning.backoff`: a replica that comes back each time is started at once, and crashes
all the same.
"""

from __future__ import annotations

import msgspec

MANY = 3
WINDOW_S = 60.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Ends in a row, each less than `WINDOW_S` after the one before, as of some moment."""

    count: int = 0
    since_wall_s: float = 0.0
    """When the first was, for people; never compared."""
    ages_s: tuple[float, ...] = ()
    """Of the last ones, at most `MANY`, the newest last."""
    crashing: bool = False
    """There have been enough of them within the window."""


def after_end(row: Row, *, wall_s: float) -> Row:
    """
    The row with one end more.

    Args:
        row: as of now.
        wall_s: when it ended, for people.
    """
    if not is_in_a_row(row):
        row = Row(since_wall_s=wall_s)
    ages_s = (*row.ages_s, 0.0)[-MANY:]
    return Row(
        count=row.count + 1,
        since_wall_s=row.since_wall_s,
        ages_s=ages_s,
        crashing=row.crashing or (len(ages_s) == MANY and ages_s[0] <= WINDOW_S),
    )


def aged(row: Row, older_s: float) -> Row:
    """The same row `older_s` seconds later."""
    return msgspec.structs.replace(row, ages_s=tuple(age_s + older_s for age_s in row.ages_s))


def is_in_a_row(row: Row) -> bool:
    """Whether an end now would be of the same row."""
    return bool(row.ages_s) and row.ages_s[-1] < WINDOW_S


def is_crashing(row: Row) -> bool:
    """Whether the api crashes."""
    return row.crashing and is_in_a_row(row)
