"""How the number of replicas of an api comes about. Pure: the row before and what happened in, the row after out."""

from __future__ import annotations

from cortex.planning import scaling_words
from cortex.planning.autoscale import ScalingDecision, ScalingMemory, first_memory
from cortex.planning.model import ApiSettings, Scale

ASKED_WHILE_ASLEEP = "somebody asked while it slept"
"""Why an api has a replica that somebody has woken."""


def deployed(
    scale: Scale | None,
    before: ApiSettings | None,
    now: ApiSettings,
    *,
    first: int,
    wall_s: float,
    proves: bool = False,
) -> Scale:
    """
    After a deploy, which says bounds and no number: what was reached stays, within them.

    A number that stood at the old minimum follows the minimum, down as well as up.

    Args:
        first: how many an api has that is new.
        proves: what is wanted is another build: an api that sleeps wakes to show that it works.
    """
    if scale is None:
        return Scale(replicas=_bounded(first, now), since_wall_s=wall_s)
    at_minimum = before is not None and scale.replicas == max(1, before.min_replicas)
    replicas = max(1, now.min_replicas) if at_minimum else scale.replicas
    if scale.asleep and (proves or now.min_replicas > 0):
        reason = "another version has to show that it works" if proves else "it may not sleep any more"
        return changed(scale, now, replicas, reason=reason, wall_s=wall_s)
    return changed(scale, now, replicas, reason="the bounds have changed", wall_s=wall_s, asleep=scale.asleep)


def autoscaled(scale: Scale, settings: ApiSettings, decision: ScalingDecision, *, wall_s: float) -> Scale:
    """After a decision that followed the load. While an api sleeps, its number stays."""
    if scale.asleep:
        return scale
    return changed(scale, settings, decision.replicas, reason=scaling_words.reason(decision), wall_s=wall_s)


def remembered(scale: Scale, *, wall_s: float, now_s: float) -> ScalingMemory:
    """
    What autoscaling knows of an api when only the row is left, as after a restart. The downscale window begins anew.

    Args:
        now_s: seconds of the clock that decisions are made by, at `wall_s`. A wall clock that was set back makes no up
            younger than now.
    """
    if scale.last_up_wall_s is None:
        return first_memory(scale.replicas, now_s=now_s)
    ago_s = max(0.0, wall_s - scale.last_up_wall_s)
    return first_memory(scale.replicas, now_s=now_s, last_up_s=now_s - ago_s)


def changed(
    scale: Scale, settings: ApiSettings, replicas: int, *, reason: str, wall_s: float, asleep: bool = False
) -> Scale:
    """After a decision for a number, which is kept within the bounds; the same row where that changes nothing."""
    replicas = _bounded(replicas, settings)
    if (replicas, asleep) == (scale.replicas, scale.asleep):
        return scale
    return Scale(
        replicas=replicas,
        asleep=asleep,
        last_up_wall_s=wall_s if replicas > scale.replicas else scale.last_up_wall_s,
        reason=reason,
        since_wall_s=wall_s,
    )


def _bounded(replicas: int, settings: ApiSettings) -> int:
    """One that may sleep has a replica while it is awake."""
    return max(1, settings.min_replicas, min(settings.max_replicas, replicas))
