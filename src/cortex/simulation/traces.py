"""Rates of requests over time. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

Rate = Callable[[float], float]


def constant(rate: float) -> Rate:
    return lambda _at_s: rate


def step(before: float, after: float, *, at_s: float, until_s: float = math.inf) -> Rate:
    return lambda now_s: after if at_s <= now_s < until_s else before


def ramp(first: float, last: float, *, over_s: float) -> Rate:
    return lambda at_s: first + (last - first) * min(1.0, at_s / over_s)


def saw(top: float, *, period_s: float) -> Rate:
    """From 0 to the top, and at once back to 0."""
    return lambda at_s: top * (at_s % period_s) / period_s


def on_off(rate: float, *, each_s: float, first_on: bool = True) -> Rate:
    return lambda at_s: rate if (at_s % (2 * each_s) < each_s) is first_on else 0.0


def noise(rate: float, *, part: float, each_s: float = 1.0, seed: int = 1) -> Rate:
    """Anew every few seconds, evenly between a part less and a part more."""

    def at(now_s: float) -> float:
        return rate * (1 + part * random.Random(seed * 1_000_003 + int(now_s / each_s)).uniform(-1, 1))

    return at


def wave(least: float, most: float, *, period_s: float) -> Rate:
    """From the least up to the most and down again."""
    return lambda at_s: least + (most - least) * (1 - math.cos(2 * math.pi * at_s / period_s)) / 2


def pulse(rate: float, *, at_s: float, for_s: float, otherwise: float = 0.0) -> Rate:
    return step(otherwise, rate, at_s=at_s, until_s=at_s + for_s)
