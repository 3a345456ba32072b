"""When an api that may sleep does. Pure."""

from __future__ import annotations

import msgspec

from cortex.planning.assessment import Case
from cortex.planning.load import ApiLoad
from cortex.planning.rollout import goal_and_fallback


class Idleness(msgspec.Struct, frozen=True, kw_only=True):
    """Since when nobody has asked an api."""

    ended: float
    """Predictions that had ended when it was looked at last."""
    since_s: float


def idled(before: Idleness | None, case: Case, load: ApiLoad | None, *, ended: float, now_s: float) -> Idleness:
    """
    How idle an api is.

    Only predictions keep it awake, those that wait at the ingress or in a replica included. Nor does it fall asleep
    before it is at rest: the version that is wanted serves, and something is ready that could be asked.

    Args:
        load: None: it was not read yet.
        ended: predictions that have ended, ever growing.
    """
    is_at_rest = load is not None and not load.in_flight and not load.queued and _rests(case)
    if before is None or not is_at_rest or ended != before.ended:
        return Idleness(ended=ended, since_s=now_s)
    return before


def sleeps_in_s(case: Case, idleness: Idleness, *, now_s: float) -> float:
    """Seconds until an api falls asleep if nobody asks; 0 or less: now."""
    return idleness.since_s + case.wanted.idle_timeout_s - now_s


def _rests(case: Case) -> bool:
    wanted = case.wanted
    goal, fallback = goal_and_fallback(wanted)
    is_live = wanted.live_wall_s is not None or wanted.failed is not None
    return goal is not None and fallback is None and is_live and any(slot.ready for slot in case.decision.stay)
