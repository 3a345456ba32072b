"""
Time in slices: which slice an instant falls into, and how old slices become longer ones. Pure.

Slices are minutes for about the last day, hours before that, and nothing before the window. All begin at whole
minutes, hours and days of UTC, so that a slice is never cut.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cortex.metrics.counts import Counts, Tally

MINUTE_S = 60
HOUR_S = 3600
DAY_S = 86_400
WINDOW_DAYS = 14
"""Statistics are shown over this many days, the current one included."""


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted from `start_s` on (seconds since the Unix epoch), for `length_s` seconds."""

    start_s: int
    length_s: int
    counts: Counts


def day_of(instant_s: float) -> int:
    """When this instant's day began."""
    return int(instant_s // DAY_S) * DAY_S


def window_start(now_s: float) -> int:
    """From when on statistics count: the begin of the day 13 days ago."""
    return day_of(now_s) - (WINDOW_DAYS - 1) * DAY_S


def minutes_start(now_s: float) -> int:
    """From when on slices are minutes: the begin of the hour a day ago."""
    return int((now_s - DAY_S) // HOUR_S) * HOUR_S


def slice_of(instant_s: float, now_s: float) -> tuple[int, int] | None:
    """Start and length of the slice that an instant belongs to; None when it is before the window."""
    if instant_s < window_start(now_s):
        return None
    length_s = MINUTE_S if instant_s >= minutes_start(now_s) else HOUR_S
    return int(instant_s // length_s) * length_s, length_s


def rollup(slices: Iterable[Slice], now_s: float) -> tuple[Slice, ...]:
    """
    Return the same counts in the slices they belong into now, oldest first.

    What began before the window is left out; everything else is kept to the last count. Applying it again changes
    nothing.
    """
    tallies: dict[tuple[int, int], Tally] = {}
    for old in slices:
        place = slice_of(old.start_s, now_s)
        if place is None:
            continue
        start_s, length_s = place
        if length_s < old.length_s:  # an hour cannot be taken apart again after the clock went back
            start_s, length_s = old.start_s, old.length_s
        tallies.setdefault((start_s, length_s), Tally()).add(old.counts)
    return tuple(
        Slice(start_s=start_s, length_s=length_s, counts=tallies[start_s, length_s].counts())
        for start_s, length_s in sorted(tallies)
    )
