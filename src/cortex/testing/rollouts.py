"""Pretended rollouts: answers of an old and of a new version with errors of some rate, alone or in bursts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cortex.planning.watching import LOOK_EVERY_S, Answers, base_of, reason_to_go_back, together

WATCH_S = 120.0
BURST = 10
"""So many requests in a row fail together."""
IN_A_MINUTE = round(60 / LOOK_EVERY_S)


def answers(
    roll: np.random.Generator, intervals: int, *, per_second: float, failing: float, in_bursts: bool
) -> Iterator[Answers]:
    """Answers in intervals of `LOOK_EVERY_S`; a burst that does not fit goes on in the next one."""
    served = roll.poisson(per_second * LOOK_EVERY_S, intervals)
    if not in_bursts:
        yield from map(Answers, served.tolist(), roll.binomial(served, failing).tolist())
        return
    carried = 0
    bursts = roll.poisson(per_second * LOOK_EVERY_S * failing / BURST, intervals)
    for count, begun in zip(served.tolist(), bursts.tolist(), strict=True):
        carried += BURST * begun
        failed = min(count, carried)
        carried -= failed
        yield Answers(count, failed)


def goes_back_after_s(
    roll: np.random.Generator,
    *,
    per_second: float,
    before: float,
    after: float,
    in_bursts: bool,
    served_minutes: int = 60,
) -> float | None:
    """
    When a new version goes back in its watch; None: it does not.

    Args:
        before: the part of requests that fail in the old version; `after`: in the new one.
        served_minutes: how long the old version has served.
    """
    count = served_minutes * IN_A_MINUTE
    old = list(answers(roll, count, per_second=per_second, failing=before, in_bursts=in_bursts))
    base = base_of([together(old[first : first + IN_A_MINUTE]) for first in range(0, count, IN_A_MINUTE)])
    if base is None:
        return None
    new: list[Answers] = []
    looks = round(WATCH_S / LOOK_EVERY_S)
    for one in answers(roll, looks, per_second=per_second, failing=after, in_bursts=in_bursts):
        new.append(one)
        if reason_to_go_back(base, new):
            return len(new) * LOOK_EVERY_S
    return None
