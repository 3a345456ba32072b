"""
What is said of a change-over that was proved: pure, from the answers to its probes.

A request counts by when it was answered: what was under way as the change began may have suffered from it. Whoever
answered, a failure is held against the change, unless the old version failed like that before it began.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from cortex.planning import watching
from cortex.planning.watching import SIGNIFICANT, Answers
from cortex.wire.operator import Receipt, Verdict
from cortex.wire.probing import NO_ANSWER, ProbeAnswer

MOST_EXAMPLES = 3
TURNED_AWAY = "overloaded"
"""The `error` of a 503 that tells of load."""
ASLEEP = "asleep"
_OF_INGRESS = frozenset(("replica-lost", "no-ready-replica", "timeout", "ingress-fault", "request-timeout", "stopping"))
"""Errors that say nothing of what was sent."""


class ChangeOver(msgspec.Struct, frozen=True, kw_only=True):
    """What is proved."""

    old: str
    """8 digits of the version that served before; empty: there was none."""
    new: str
    own_sample: dict[str, int] = {}
    """Which sample belongs to a version, if they have different ones."""

    @property
    def is_same_version(self) -> bool:
        """Its replicas are replaced, and answers do not tell which is which."""
        return self.old == self.new


class SoFar(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of it so far."""

    answers: Sequence[ProbeAnswer]
    begun_s: float
    """Monotonic, as all instants: when the change-over began."""
    live_s: float | None = None
    """When the new version was seen to serve alone; None: not yet."""

    @property
    def before(self) -> list[ProbeAnswer]:
        return [one for one in self.answers if one.ended_s < self.begun_s]

    @property
    def since(self) -> list[ProbeAnswer]:
        return [one for one in self.answers if one.ended_s >= self.begun_s]


def is_good(answer: ProbeAnswer) -> bool:
    return 200 <= answer.status <= 299


def is_turned_away(answer: ProbeAnswer) -> bool:
    """Told that there is too much to do: nothing that a change does."""
    return answer.status == 503 and answer.code == TURNED_AWAY


def is_asleep(answer: ProbeAnswer) -> bool:
    """Nobody was there to ask, and nobody was to be woken."""
    return answer.status == 503 and answer.code == ASLEEP


def is_failed(change: ChangeOver, answer: ProbeAnswer) -> bool:
    if is_good(answer) or is_turned_away(answer) or is_asleep(answer):
        return False
    return not _is_of_another(change, answer)


def _is_of_another(change: ChangeOver, answer: ProbeAnswer) -> bool:
    """Whether a replica found fault with the sample of the other version, as it may."""
    if answer.status == NO_ANSWER or answer.code in _OF_INGRESS or not change.own_sample:
        return False
    return change.own_sample.get(answer.version) != answer.sample


def wrong_versions(change: ChangeOver, seen: SoFar) -> list[ProbeAnswer]:
    """Answers of another version to what was asked after the new one was live."""
    return [one for one in _late(seen) if one.version != change.new]


def _late(seen: SoFar) -> list[ProbeAnswer]:
    """What was asked after the new version was live."""
    live_s = seen.live_s
    return [one for one in seen.answers if is_good(one) and one.begun_s >= live_s] if live_s is not None else []


def fault(change: ChangeOver, seen: SoFar) -> str:
    """What the change did wrong, in words; empty: nothing, as far as is known by now."""
    before, since = _counted(change, seen.before), _counted(change, seen.since)
    wrong = len(wrong_versions(change, seen))
    if wrong:
        return f"{wrong} of {len(_late(seen))} requests got another version after it was live"
    if not since.failed:
        return ""
    if before.failed and watching.chance(since, before, 1.0) >= SIGNIFICANT:
        return ""
    told = f"{since.text} during the change-over"
    return f"{told}, before it {before.failed} of {before.served}" if before.served else told


def unanswered(seen: SoFar) -> str:
    """Why nothing can be said of a change-over that is over; empty: it can."""
    if any(is_good(one) for one in seen.since):
        return ""
    return f"none of {len(seen.since)} requests was answered" if seen.since else "nothing was asked"


def receipt(change: ChangeOver, seen: SoFar, verdict: Verdict, reason: str = "") -> Receipt:
    """All that is to be said of it."""
    before, since = _counted(change, seen.before), _counted(change, seen.since)
    bad = [one for one in seen.since if is_failed(change, one)] + wrong_versions(change, seen)
    return Receipt(
        verdict=verdict,
        reason=reason,
        previous=change.old,
        requests=sum(not is_asleep(one) for one in seen.answers),
        failed=since.failed,
        failed_before=before.failed,
        wrong_version=len(wrong_versions(change, seen)) if seen.live_s is not None else None,
        turned_away=sum(map(is_turned_away, seen.answers)),
        p99_before_ms=_p99_ms(seen.before),
        p99_ms=_p99_ms(seen.since),
        overlap_s=overlap_s(change, seen),
        examples=tuple(_example(one) for one in bad[:MOST_EXAMPLES]),
    )


def unseen(verdict: Verdict, reason: str, *, previous: str = "") -> Receipt:
    """Of a change-over of which nothing was seen, or is known any more."""
    return Receipt(verdict=verdict, reason=reason, previous=previous)


def overlap_s(change: ChangeOver, seen: SoFar) -> float | None:
    """For how long both versions answered; None where that cannot be told."""
    good = [one for one in seen.answers if is_good(one)]
    first = min((one.ended_s for one in good if one.version == change.new), default=None)
    last = max((one.ended_s for one in good if one.version == change.old), default=None)
    if change.is_same_version or first is None or last is None:
        return None
    return max(0.0, last - first)


def _counted(change: ChangeOver, answers: Iterable[ProbeAnswer]) -> Answers:
    """Those that say something of whoever was asked."""
    failed = good = 0
    for one in answers:
        if is_failed(change, one):
            failed += 1
        elif is_good(one):
            good += 1
    return Answers(good + failed, failed)


def _p99_ms(answers: Iterable[ProbeAnswer]) -> float | None:
    """The duration that 99 of 100 good answers took at most; nearest rank."""
    took = sorted(one.ended_s - one.begun_s for one in answers if is_good(one))
    return round(took[math.ceil(0.99 * len(took)) - 1] * 1000, 3) if took else None


def _example(answer: ProbeAnswer) -> str:
    if is_good(answer):
        return f"answered by version {answer.version} (request {answer.request})"
    told = f"{answer.status} {answer.code}".strip() if answer.status else answer.code
    by = f" of version {answer.version}" if answer.version else ""
    return f"{told}{by} (request {answer.request})"
