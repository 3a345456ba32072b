"""What is said of decisions for a number of replicas, in words with figures. Pure."""

from __future__ import annotations

from cortex.planning.autoscale import Bound, Ruling, ScalingDecision, most_starts
from cortex.planning.model import Lack
from cortex.wire.loads import HANDLER

WAITS = 0.75
"""Handlers that compute for no more than the rest of their time are told that one replica could serve more."""
MOST_ADVISED = 64

_LACKS = {Lack.MEMORY: "memory", Lack.GPU: "GPU", Lack.CPU: "unrequested cpu"}


def reason(decision: ScalingDecision) -> str:
    """
    Why a number is what it is.

    `wanted 5: cpu 412 % of request, target 80 %; capped by max_replicas 3`, or where it does not move because of
    something else than the load, `held at 2: one more would only share the 2 cores; wanted 5: …`.
    """
    bound = decision.bound
    if bound is Bound.UNKNOWN:
        return f"held at {decision.replicas}: nothing is known of its load yet"
    wanted = f"wanted {decision.wanted}: {figures(decision)}"
    if bound is None:
        return wanted
    if decision.replicas == decision.asked.replicas and bound not in (Bound.MINIMUM, Bound.MAXIMUM):
        return held(decision)
    return f"{wanted}; {_bound(decision, bound)}"


def held(decision: ScalingDecision) -> str:
    """Of one with a bound: `held at 3: capped by max_replicas 3; wanted 5: cpu 412 % of request, target 80 %`."""
    bound = decision.bound
    assert bound is not None
    return f"held at {decision.replicas}: {_bound(decision, bound)}; wanted {decision.wanted}: {figures(decision)}"


def figures(decision: ScalingDecision) -> str:
    """What a number was computed from: `cpu 412 % of request, target 80 %`."""
    asked, load, costs, rate = decision.asked, decision.load, decision.costs, decision.rate
    target = f"target {asked.target_cpu_utilization} %"
    match decision.ruling:
        case Ruling.CPU if costs is not None:
            return f"cpu {rate * costs.cpu_s * 1000 / asked.cpu_millis:.0%} of request, {target}".replace("%", " %", 1)
        case Ruling.SEATS if costs is not None:
            row = next((row for row in costs.rows if row.row == costs.fullest), None)
            seats, each_s = (row.seats, row.busy_s) if row else (1, costs.replica_s)
            return f"{_come(rate, each_s)} fill {rate * each_s:.1f} seats, {seats} in a replica, {target}"
        case Ruling.TIME_IN_REPLICA if costs is not None:
            each_s = costs.in_replica_s
            in_flight = f"{rate * each_s:.1f} in flight"
            return f"{_come(rate, each_s)} are {in_flight}, target {_plain(asked.target_in_flight or 0)} in a replica"
        case Ruling.IN_FLIGHT if load is not None:
            return f"{load.in_flight} requests in flight, of which too few have ended to know what one takes"
    return "there is nothing to do"


def advice(decision: ScalingDecision) -> str | None:
    """
    How one replica could serve more, where waiting and not computing fills it; None where that is not so.

    `a request waits 480 of 500 ms in the handler: concurrency: 8 or async would let one replica serve more`
    """
    costs = decision.costs
    if costs is None or costs.fullest != HANDLER or max(decision.wanted, decision.replicas) < 2:
        return None
    row = next(row for row in costs.rows if row.row == HANDLER)
    waits_s = row.busy_s - costs.cpu_s
    if waits_s < WAITS * row.busy_s:
        return None
    more = _power_of_two(row.busy_s / costs.cpu_s / 2 if costs.cpu_s > 0 else MOST_ADVISED)
    if more <= row.seats:
        return None
    waits = f"a request waits {waits_s * 1000:.0f} of {row.busy_s * 1000:.0f} ms in the handler"
    return f"{waits}: `concurrency: {more}` or async would let one replica serve more"


def _bound(decision: ScalingDecision, bound: Bound) -> str:
    asked, machine = decision.asked, decision.machine
    cores = f"{_plain(machine.cores)} cores" if machine else "cores"
    match bound:
        case Bound.MINIMUM:
            return f"kept at min_replicas {asked.min_replicas}"
        case Bound.MAXIMUM:
            return f"capped by max_replicas {asked.max_replicas}"
        case Bound.LEAP:
            return f"from {asked.replicas} to at most {decision.replicas} at once"
        case Bound.PROCESSOR:
            return f"one more would only share the {cores}"
        case Bound.REQUESTS:
            return f"what is used of cpu requests takes up the {cores}"
        case Bound.STARTS:
            return f"at most {most_starts(machine) if machine else 0} replicas start at one time"
        case Bound.ROOM:
            return f"there is no {_LACKS[asked.lacks] if asked.lacks else 'room'} yet for one of these"
        case Bound.WINDOW:
            return f"more were needed within the last {_duration(asked.downscale_window_s)}"
        case Bound.ROLLOUT:
            return "none goes before the new version is live"
        case Bound.YIELDED:
            return "what is not needed goes at once, since another api has no room"
        case Bound.UNKNOWN:
            return "nothing is known of its load yet"


def _come(rate: float, each_s: float) -> str:
    each = f"{_plain(each_s)} s" if each_s >= 1 else f"{_plain(each_s * 1000)} ms"
    return f"{_plain(rate)} requests/s of {each} each"


def _duration(seconds: float) -> str:
    return f"{_plain(seconds / 60)} min" if seconds >= 60 else f"{_plain(seconds)} s"


def _plain(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _power_of_two(number: float) -> int:
    """The largest that is no more, up to `MOST_ADVISED`; 1 for less."""
    power = 1
    while power * 2 <= min(number, MOST_ADVISED):
        power *= 2
    return power
