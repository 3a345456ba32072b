"""
Whether a new version fails more than the one before it: pure, from counts of answers.

Failures come in bursts, and a test that takes each for itself would send every second good version back. So counts are
divided by how much more the old version's failures vary than independent ones would, and a version goes back only when
it fails by much, not once, and surely.

Source:
    One-sided Fisher's exact test of the counts divided by the index of dispersion, as quasi-likelihood has it
    (McCullagh and Nelder, Generalized Linear Models, 2nd edition, 4.5.2). That of the old version is taken from
    minutes, since bursts last; of few of them its upper bound at one standard deviation, by the approximation of Wilson
    and Hilferty to the distribution of a variance. What that makes of counts is no whole number; between these the test
    is continued by the gamma function, as rounding would cost every other burst. `bench/watching.py` measures what goes
    back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

LOOK_EVERY_S = 5.0
"""How long the intervals are in which a new version's answers are counted."""
BASE_MINUTES = 10
"""Of the old version, whose answers in the last minutes before are what the new one is compared with."""
DISPERSION_MINUTES = 60
"""Over so many its failures are looked at for bursts."""
FEWEST = 20
"""Answers of each version, below which nothing is decided."""
ENOUGH = 1000
"""Where the last `BASE_MINUTES` have fewer than `FEWEST`, older answers are taken in up to this number."""
FEWEST_FAILED = 5
LEAST_MORE = 0.02
"""A new version has to fail in so much more of its answers, of all, ..."""
LEAST_TIMES = 2.0
"""... and so many times as often."""
FEWEST_INTERVALS = 3
"""In so many intervals there are failures, ..."""
MANY, MOST = 50, 0.5
"""... or there are so many answers, of which at least this part failed."""
SIGNIFICANT = 1e-4
"""Below this probability it is no chance. There are 24 looks in two minutes, and as many apis as there are."""
FAR_TIMES, FAR_PART = 10.0, 0.2
"""Where it fails so many times as often, and in so much of all, ..."""
FAR_SIGNIFICANT = 1e-3
"""... this is enough: bursts of a good version that look so bad are rarer than the test knows."""
_ONE_DEVIATION = -1.0


class Answers(msgspec.Struct, frozen=True):
    """Requests that a version answered in some span of time, without those that say nothing of it: 4xx and 503."""

    served: int = 0
    failed: int = 0
    """Of these."""

    @property
    def part(self) -> float:
        return self.failed / self.served if self.served else 0.0

    @property
    def text(self) -> str:
        """`12 of 40 requests failed`."""
        return f"{self.failed} of {self.served} requests failed"


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """What a new version is compared with."""

    answers: Answers
    dispersion: float = 1.0
    """How much more the old version's failures vary than independent ones; at least 1."""


def base_of(minutes: Sequence[Answers]) -> Base | None:
    """
    The base of comparison.

    Args:
        minutes: of the old version, in which it answered anything, oldest first, until the new one went live.

    Returns:
        None where it has answered too little to be compared with.
    """
    taken = list(minutes[-BASE_MINUTES:])
    if together(taken).served < FEWEST:
        for older in reversed(minutes[:-BASE_MINUTES]):
            if together(taken).served >= ENOUGH:
                break
            taken.append(older)
    answers = together(taken)
    if answers.served < FEWEST:
        return None
    return Base(answers=answers, dispersion=dispersion([one.failed for one in minutes[-DISPERSION_MINUTES:]]))


def reason_to_go_back(base: Base, intervals: Sequence[Answers]) -> str:
    """
    Why a new version goes back, in words; empty: it does not, as far as is known by now.

    Args:
        intervals: of the new version, each of `LOOK_EVERY_S`, from when it went live.
    """
    new, old = together(intervals), base.answers
    if new.served < FEWEST or old.served < FEWEST or new.failed < FEWEST_FAILED:
        return ""
    if new.part < old.part + LEAST_MORE or new.part < LEAST_TIMES * old.part:
        return ""
    is_gross = new.served >= MANY and new.part >= MOST
    if sum(one.failed > 0 for one in intervals) < FEWEST_INTERVALS and not is_gross:
        return ""
    is_far = new.part >= FAR_PART and new.part >= FAR_TIMES * old.part
    if chance(new, old, base.dispersion) >= (FAR_SIGNIFICANT if is_far else SIGNIFICANT):
        return ""
    seconds = round(len(intervals) * LOOK_EVERY_S)
    return f"{new.text} in its first {seconds} s, of the version before {old.failed} of {old.served}"


def goes_on(new: Answers, after: Answers) -> bool:
    """
    Whether the old version fails about as much as the new one did, now that it is back: no fault of the new one's.

    Args:
        after: answers of the old version since it is back, at least `FEWEST`.
    """
    return after.part >= max(new.part / LEAST_TIMES, LEAST_MORE)


def together(parts: Sequence[Answers]) -> Answers:
    return Answers(sum(one.served for one in parts), sum(one.failed for one in parts))


def chance(new: Answers, old: Answers, dispersion: float) -> float:
    """
    The probability that of the failures of both versions at least so many fall on the new one if it is no worse.

    Counts are divided by `dispersion`.
    """
    failed_new, failed_old = new.failed / dispersion, old.failed / dispersion
    return _at_least(failed_new, new.served / dispersion, failed_old, old.served / dispersion)


def dispersion(counts: Sequence[int]) -> float:
    """How much more counts vary than independent events: variance over mean, its upper bound, at least 1."""
    if len(counts) < 2:
        return 1.0
    mean = sum(counts) / len(counts)
    if not mean:
        return 1.0
    degrees = len(counts) - 1
    variance = sum((count - mean) ** 2 for count in counts) / degrees
    part = 2 / (9 * degrees)
    lowest = (1 - part + _ONE_DEVIATION * math.sqrt(part)) ** 3
    return max(1.0, variance / mean / max(lowest, part))


def _at_least(failed_new: float, served_new: float, failed_old: float, served_old: float) -> float:
    """The upper tail of the hypergeometric distribution, from `failed_new` on in steps of 1."""
    failed = failed_new + failed_old
    term = math.exp(
        _log_choices(served_new, failed_new)
        + _log_choices(served_old, failed_old)
        - _log_choices(served_new + served_old, failed)
    )
    tail, count = 0.0, failed_new
    while term > tail * 1e-12:
        tail += term
        if count + 1 > min(served_new, failed):
            break
        term *= (served_new - count) * (failed - count) / ((count + 1) * (served_old - failed + count + 1))
        count += 1
    return min(1.0, tail)


def _log_choices(of: float, taken: float) -> float:
    return math.lgamma(of + 1) - math.lgamma(taken + 1) - math.lgamma(of - taken + 1)
