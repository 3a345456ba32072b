"""
How many replicas each api shall have: what it has to do in, numbers with their reasons out. Pure.

The number follows from what is *offered*, requests that come times what one of them costs, and never from how many
replicas there happen to be: so none that start, and none that end, have to be corrected for. Why this rule and not
another: docs/decisions/0040-the-scaling-rule.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import StrEnum

import msgspec

from cortex.ids import ApiKey
from cortex.planning.load import ENOUGH_BEGUN, LONGEST_S, ApiLoad, Costs
from cortex.planning.model import Lack

ENOUGH_ENDED = 5
"""Requests that have to have ended within the longest window for their costs to be remembered."""
TOLERANCE = 0.1
"""A number that is wrong by no more than this part of it is left alone."""
QUEUE_S = 10.0
"""What waits is to be worked off within so long, or within the time that one request takes."""
LEAP = 4
"""In one step a number may double, and grow by this."""
DOWN_EVERY_S = LONGEST_S
"""What was needed falls as slowly as a burst leaves the longest window: it is followed in few steps and not in many."""
WHOLE_S = LONGEST_S - 1.0
"""Less than the longest window has not seen what is needed: what there is, is kept."""
USABLE = 0.95
"""The part of a machine's processors that replicas are made for."""
MARGIN = 0.25
"""A replica more has to find at least so much of what it could burn."""


class Bound(StrEnum):
    """Why a number is not what the load alone asks for."""

    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    LEAP = "leap"
    """No more than double it and `LEAP` at once."""
    PROCESSOR = "processor"
    """One more would live on processors that nothing else needs, and there are none left."""
    REQUESTS = "requests"
    """The used requests of all apis take the machine's processors up."""
    STARTS = "starts"
    """As many start on the machine as may at one time."""
    ROOM = "room"
    """There is no room yet for what was already wanted."""
    WINDOW = "window"
    """What was needed within the downscale window is kept."""
    ROLLOUT = "rollout"
    """Nothing is taken away before the new version is live."""
    YIELDED = "yielded"
    """What is not needed now went without waiting for the window, since another api has no room."""
    UNKNOWN = "unknown"
    """Nothing has been read yet that a number could follow from."""


class Ruling(StrEnum):
    """What a number follows from."""

    SEATS = "seats"
    """Requests that come, times the seconds that each takes up a seat, over seats."""
    CPU = "cpu"
    """Requests that come, times the processor time of each, over the cpu request."""
    TIME_IN_REPLICA = "time-in-replica"
    """Requests that come, times the seconds that each is in a replica, over `target_in_flight`."""
    IN_FLIGHT = "in-flight"
    """Requests in flight, since too few have ended to know what they cost."""


class Scalable(msgspec.Struct, frozen=True, kw_only=True):
    """An api whose number of replicas is to be decided."""

    api: ApiKey
    replicas: int
    """As many as are wanted now."""
    min_replicas: int = 1
    max_replicas: int = 100
    cpu_millis: int = 200
    """Request of one replica."""
    gpus: int = 0
    target_cpu_utilization: int = 80
    """Per cent of the cpu request, and of seats."""
    target_in_flight: float | None = None
    """Requests in one replica; instead of the utilization."""
    downscale_window_s: float = 300.0
    starting: int = 0
    """Of its replicas, those whose process is on its way to ready; none that waits for room or for another try."""
    lacks: Lack | None = None
    """What a replica of it waits for that has no room."""
    room_is_coming: bool = False
    """Somebody who is parked makes room just now: nobody else has to."""
    in_rollout: bool = False


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What replicas share."""

    cores: float
    busy_cores: float = 0.0
    """In use by anything on it, ours or not: `Loads.busy_cores`."""


class ScalingMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of an api from one decision to the next."""

    costs: Costs | None = None
    kept: int = 0
    """What the last decision found necessary."""
    more: tuple[tuple[int, float], ...] = ()
    """Larger numbers that were necessary before, falling, each with the instant (s) at which fewer were found to do."""
    last_up_s: float = float("-inf")
    last_down_s: float = float("-inf")


class ScalingDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided of an api, and from what."""

    asked: Scalable
    replicas: int
    """As many as there shall be."""
    wanted: int
    """As many as the load alone asks for."""
    kept: int
    """As many as are needed whatever comes in bursts: more go when another api has no room."""
    bound: Bound | None
    """Why `replicas` is not `wanted`."""
    ruling: Ruling | None
    """What `wanted` follows from; None: there is nothing to do."""
    need: float
    """Replicas that would be used to the target, before rounding."""
    rate: float
    """Requests a second that `need` was computed with."""
    load: ApiLoad | None
    costs: Costs | None
    """What one request takes, as it was last seen."""
    memory: ScalingMemory
    """For the next decision."""
    machine: Machine | None = None

    @property
    def api(self) -> ApiKey:
        """Which one it is about."""
        return self.asked.api


Rule = Callable[..., Mapping[ApiKey, ScalingDecision]]
"""`decide`, or what is to be compared with it."""


def first_memory(replicas: int, *, now_s: float, last_up_s: float = float("-inf")) -> ScalingMemory:
    """Of an api about which nothing is remembered: what there is was needed until now."""
    return ScalingMemory(more=((replicas, now_s),), last_up_s=last_up_s)


def most_starts(machine: Machine) -> int:
    """How many replicas may be on their way at one time beyond what apis have to have."""
    return int(machine.cores) + 1


def decide(
    apis: Iterable[Scalable],
    loads: Mapping[ApiKey, ApiLoad],
    memories: Mapping[ApiKey, ScalingMemory],
    machine: Machine | None,
    *,
    now_s: float,
) -> dict[ApiKey, ScalingDecision]:
    """
    Return how many replicas each api shall have.

    Same inputs, same decisions. Time is compared with what `memories` hold and with nothing else.

    Args:
        loads: an api that is missing has not been read yet.
        memories: what the last decisions returned; of an api that is missing nothing is remembered.
        machine: None where nodes are added as they are needed.
    """
    apis = list(apis)
    lacking = {
        (api.lacks, api.api)
        for api in apis
        if api.lacks is not None
        and not api.room_is_coming
        and _is_short(api, loads.get(api.api), memories.get(api.api))
    }
    decisions: dict[ApiKey, ScalingDecision] = {}
    growing: list[_Growing] = []
    for api in apis:
        memory = memories.get(api.api) or first_memory(api.replicas, now_s=now_s)
        decision = decisions[api.api] = _alone(api, loads.get(api.api), memory, machine, lacking, now_s)
        if decision.replicas > api.replicas:
            growing.append(_Growing(api, decision))
    if machine is not None and growing:
        _shared(apis, decisions, [one for one in growing if one.reached < one.wanted], machine)
    for one in growing:
        if machine is None:
            one.reached = one.wanted
        decisions[one.api.api] = one.decided(now_s)
    return decisions


# ---- one api, as if it were alone -----------------------------------------------------------------------------------


def _alone(
    api: Scalable,
    load: ApiLoad | None,
    memory: ScalingMemory,
    machine: Machine | None,
    lacking: Collection[tuple[Lack, ApiKey]],
    now_s: float,
) -> ScalingDecision:
    now = api.replicas
    costs, ruling, need, rate = memory.costs, None, 0.0, 0.0
    wanted = kept = now
    replicas: int
    bound: Bound | None
    known = load is not None and _says_something(load, costs)
    if load is not None and known:
        seen = _seen(load, costs)
        rate = _up_rate(load, seen)
        need, ruling = _need(api, load, seen, rate)
        wanted = _rounded(need, now)
        if wanted == now < need and (load.always_full or load.waiting > load.ready * load.seats):
            wanted = math.ceil(need)
        if load.long_seconds >= WHOLE_S:
            kept = _rounded(_need(api, load, seen, load.long_begun / load.long_seconds)[0], now)
        costs = seen
    kept = min(max(kept, min(wanted, now), api.min_replicas), api.max_replicas)
    believed = costs if load is not None and load.long_ended >= ENOUGH_ENDED else memory.costs
    memory = _remember(memory, believed, kept, now_s - api.downscale_window_s, now_s)
    if wanted > now:
        replicas, bound = _up(api, wanted)
    else:
        replicas, bound = _down(api, wanted, kept, memory, lacking, now_s)
        if replicas < now:
            memory = msgspec.structs.replace(memory, last_down_s=now_s)
    if not known and bound is None:
        bound = Bound.UNKNOWN
    return ScalingDecision(
        asked=api,
        replicas=replicas,
        wanted=wanted,
        kept=kept,
        bound=bound,
        ruling=ruling,
        need=need,
        rate=rate,
        load=load,
        costs=costs,
        memory=memory,
        machine=machine,
    )


def _says_something(load: ApiLoad, remembered: Costs | None) -> bool:
    """
    Whether a number can follow from what was read.

    Of replicas that were read once, on a node that is read for the first time, what they hold is known, and not what
    they have done: many may have ended. The next reading tells.
    """
    only_held = load.in_flight > 0 and load.seats > 0 and load.ready_s <= 0
    return load.seconds > 0 and not (only_held and load.costs is None and remembered is None)


def _seen(load: ApiLoad, remembered: Costs | None) -> Costs | None:
    """What a request takes now. Of few that have ended it is believed that they took longer than what is remembered."""
    seen = load.costs
    if load.long_ended >= ENOUGH_ENDED:
        return seen or remembered
    if seen is not None and remembered is not None and seen.replica_s > remembered.replica_s:
        return seen
    return remembered


def _up_rate(load: ApiLoad, costs: Costs | None) -> float:
    """
    Requests a second that are there beyond doubt.

    Source:
        The number of requests in a window is at best Poisson's, off by its root: that is taken off, and of what came
        all of a sudden twice as much. But callers that wait for an answer before they ask again come no faster than
        they are served, or they would wait for ever: while every seat is busy nothing is taken off, or once.
    """
    surely = load.begun if load.always_full else load.begun - math.sqrt(load.begun)
    rate = surely / load.seconds
    if load.sudden_begun >= ENOUGH_BEGUN:
        suddenly = load.sudden_begun - (1 if load.sudden_full else 2) * math.sqrt(load.sudden_begun)
        rate = max(rate, suddenly / load.sudden_seconds)
    waiting = load.waiting
    if waiting > 0:
        rate += waiting / max(QUEUE_S, costs.in_replica_s if costs else 0.0)
    return rate


def _need(api: Scalable, load: ApiLoad, costs: Costs | None, rate: float) -> tuple[float, Ruling | None]:
    """Replicas that such a rate would use to the target, and what decides it."""
    need, ruling = 0.0, None
    if costs is None:
        if load.in_flight and load.seats:
            need, ruling = load.in_flight / (api.target_in_flight or load.seats), Ruling.IN_FLIGHT
    elif rate > 0:
        if api.target_in_flight is not None:
            need, ruling = rate * costs.in_replica_s / api.target_in_flight, Ruling.TIME_IN_REPLICA
        else:
            target = api.target_cpu_utilization / 100
            by_seats, by_cpu = rate * costs.replica_s / target, rate * costs.cpu_s * 1000 / api.cpu_millis / target
            need, ruling = (by_seats, Ruling.SEATS) if by_seats >= by_cpu else (by_cpu, Ruling.CPU)
    return need, ruling


def _rounded(need: float, now: int) -> int:
    return now if abs(need - now) <= TOLERANCE * now else math.ceil(need)


def _remember(memory: ScalingMemory, costs: Costs | None, kept: int, past_s: float, now_s: float) -> ScalingMemory:
    more = memory.more
    if kept < memory.kept:
        more = (*more, (memory.kept, now_s))
    if more and (more[-1][0] <= kept or more[0][1] <= past_s):
        more = tuple([(number, at_s) for number, at_s in more if number > kept and at_s > past_s])
    if costs is memory.costs and kept == memory.kept and more is memory.more:
        return memory
    return msgspec.structs.replace(memory, costs=costs, kept=kept, more=more)


def _up(api: Scalable, wanted: int) -> tuple[int, Bound | None]:
    now = api.replicas
    replicas, bound = wanted, None
    if api.lacks is not None and now >= api.min_replicas:
        replicas, bound = now, Bound.ROOM
    elif wanted > 2 * now + LEAP:
        replicas, bound = 2 * now + LEAP, Bound.LEAP
    if wanted > api.max_replicas and replicas >= api.max_replicas:
        replicas, bound = api.max_replicas, Bound.MAXIMUM
    if replicas < api.min_replicas:
        replicas, bound = api.min_replicas, bound if wanted > api.min_replicas else Bound.MINIMUM
    return replicas, bound if replicas != wanted else None


def _down(
    api: Scalable,
    wanted: int,
    kept: int,
    memory: ScalingMemory,
    lacking: Collection[tuple[Lack, ApiKey]],
    now_s: float,
) -> tuple[int, Bound | None]:
    now = api.replicas
    replicas: int
    bound: Bound | None
    low = min(now, max(wanted, kept))
    window_s = api.downscale_window_s
    in_window = max(kept, memory.more[0][0]) if memory.more else kept
    if low < now and api.in_rollout:
        replicas, bound = now, Bound.ROLLOUT
    elif low < now and _yields(api, lacking):
        replicas, bound = low, Bound.YIELDED
    elif low < now and now_s < max(memory.last_up_s + window_s, memory.last_down_s + min(window_s, DOWN_EVERY_S)):
        replicas, bound = now, Bound.WINDOW
    else:
        replicas = min(now, in_window)
        bound = Bound.WINDOW if replicas > wanted else None
    if replicas < api.min_replicas:
        replicas, bound = api.min_replicas, Bound.MINIMUM
    elif replicas == api.min_replicas and wanted < replicas and bound is not Bound.YIELDED:
        bound = Bound.MINIMUM
    if max(replicas, wanted) > api.max_replicas:
        replicas, bound = min(replicas, api.max_replicas), Bound.MAXIMUM
    return replicas, bound


def _is_short(api: Scalable, load: ApiLoad | None, memory: ScalingMemory | None) -> bool:
    """Whether an api still needs what it has no room for."""
    return load is None or memory is None or memory.kept > load.ready + api.starting


def _yields(api: Scalable, lacking: Collection[tuple[Lack, ApiKey]]) -> bool:
    """Whether another api could use the room."""
    return any(other != api.api and (lack is not Lack.GPU or api.gpus > 0) for lack, other in lacking)


# ---- all apis, on one machine ---------------------------------------------------------------------------------------


def _shared(
    apis: list[Scalable], decisions: Mapping[ApiKey, ScalingDecision], growing: list[_Growing], machine: Machine
) -> None:
    """
    See how far each of `growing` gets on this machine, one replica at a time and by turns.

    One whose replica burns no more than it requests is within its right, also on a machine that is full, and comes
    before those that live on what is idle. Of requests only what is used counts: an api that idles takes up nothing.
    Where others fill the starts, with models that take long to load, one that has none starting gets one all the same.
    """
    used = {api.api: _used(api, decisions[api.api]) for api in apis}
    used_cores = sum(used.values())
    grown_cores = sum([api.starting * _burn(decisions[api.api]) for api in apis if api.starting])
    starts = most_starts(machine) - sum([api.starting for api in apis])
    growing.sort(key=lambda one: (not one.by_right, one.reached, one.api.api))
    for by_right in (True, False):
        waiting = [one for one in growing if one.by_right is by_right]
        while waiting:
            for one in waiting:
                others_used = used_cores - used[one.api.api]
                own_cores = one.decision.load.cores if one.decision.load else 0.0
                others_burn = max(0.0, machine.busy_cores - own_cores) + grown_cores - one.grown_cores
                fed = math.ceil((USABLE * machine.cores - others_burn) / one.burn - MARGIN) if one.burn else one.wanted
                if by_right and others_used + (one.reached + 1) * one.burn > machine.cores:
                    one.bound = Bound.REQUESTS
                elif not by_right and one.reached + 1 > fed:
                    one.bound = Bound.PROCESSOR
                elif starts <= (0 if one.starting else -most_starts(machine)):
                    one.bound = Bound.STARTS
                else:
                    one.reached += 1
                    one.starting += 1
                    one.grown_cores += one.burn
                    grown_cores += one.burn
                    starts -= 1
                    if by_right:
                        used[one.api.api] = one.reached * one.burn
                        used_cores = others_used + used[one.api.api]
            waiting = [one for one in waiting if one.bound is None and one.reached < one.wanted]


class _Growing:
    """An api that is to have more replicas."""

    __slots__ = ("api", "bound", "burn", "by_right", "decision", "grown_cores", "reached", "starting", "wanted")

    def __init__(self, api: Scalable, decision: ScalingDecision) -> None:
        request = api.cpu_millis / 1000
        self.api = api
        self.decision = decision
        self.wanted = decision.replicas
        self.reached = max(api.replicas, api.min_replicas)
        self.starting = api.starting
        self.burn = _burn(decision)
        self.by_right = self.burn <= request
        self.grown_cores = self.starting * self.burn
        self.bound: Bound | None = None

    def decided(self, now_s: float) -> ScalingDecision:
        bound = self.decision.bound if self.bound is None else self.bound
        memory = self.decision.memory
        if self.reached > self.api.replicas:
            memory = msgspec.structs.replace(memory, last_up_s=now_s)
        return msgspec.structs.replace(self.decision, replicas=self.reached, bound=bound, memory=memory)


def _burn(decision: ScalingDecision) -> float:
    """Processors that one fully used replica takes: as long as that is not known, what each takes now."""
    load = decision.load
    if decision.costs is not None or load is None:
        return decision.costs.burn if decision.costs is not None else 0.0
    return max(load.cores, load.sudden_cores) / max(1, load.ready)


def _used(api: Scalable, decision: ScalingDecision) -> float:
    """Processors that replicas have a right to, as far as they use it."""
    load, costs = decision.load, decision.costs
    if load is None or costs is None or not load.long_seconds:
        return 0.0
    needed = load.long_begun / load.long_seconds * costs.cpu_s
    if api.target_in_flight is None:
        needed /= api.target_cpu_utilization / 100
    return min(needed, api.replicas * min(costs.burn, api.cpu_millis / 1000))
