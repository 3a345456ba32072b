"""
Which replicas of an api stay, which go, and which are added.

One rule set for first deploys, rollouts, rollbacks, scale changes and lost nodes; there is no stage to remember. The
words:

* **goal**: the build that shall serve at full size: the wanted one, or, once that has failed, the one that served.
* **old**: replicas of the build that serves while the goal is on its way, and ready ones of any other build that are
  still in the route. Of other builds everything else goes at once. Also those of the goal on a node that leaves: they
  serve until others do elsewhere, and only who waits in a slot there is still answered there.
* **floor**: how many ready replicas we never go below: as many as are wanted, less those there is no room for.
* **surge**: one replica more than wanted. It may overcommit cpu, so there is one at a time, and once an old replica
  goes it takes over that one's room ("settles").
* **minimum**: the first `min_replicas` of a build, at least one. Of all apis these get room before any gets more.
* **parked**: a ready replica of the version before, out of the route, while the new one is watched. It is not counted
  among any of these, takes the place of the surge, and is the first to go when anybody needs room (`planning.parking`).
* **sleeper**: the slot of an api that sleeps, which has no process and needs no room. To fall asleep, a new slot is
  held and takes the place of all replicas, which leave as ever; to wake, it gets room and a process like any other. One
  of an old build is started only if somebody has knocked, and then it leaves only once it has answered.

An old replica goes only when the ready ones that stay are at least `floor`. A goal that was never ready adds nothing
but the surge, so whatever else is missing meanwhile is filled up with the old build.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from cortex.ids import ApiKey, ReplicaId, Revision, replica_id
from cortex.planning.model import LeaseRequest, LeaseState, WantedApi
from cortex.planning.parking import Parking, parked_revision
from cortex.planning.slots import Slot, SlotState, of_revision
from cortex.wire.build import BuildSpec, Resources
from cortex.wire.reports import Phase

SURGE = 1
"""One, whatever the size: the promise is that room for one more replica is enough."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What shall become of each slot."""

    goal: BuildSpec | None
    """None: the first version failed, and nothing shall run."""
    fallback: BuildSpec | None = None
    """The build that serves meanwhile, when that is another one."""
    stay: tuple[Slot, ...] = ()
    leave: tuple[Slot, ...] = ()
    """To be taken out of the route, drained, forgotten, released, as far as each has come; not those that drain."""
    parked: Slot | None = None
    """Out of the route, and ready to come back; neither among those that stay nor among those that leave."""
    gives_way: bool = False
    """What was parked, or was no more than a candidate for it, is on its way out: its room is there in a moment."""
    renew: tuple[LeaseRequest, ...] = ()
    """Surges that settle, and what waits for room and is of the minimum by now, or is not any more."""
    add: tuple[LeaseRequest, ...] = ()
    """Replicas to be added: first of all, room for them."""
    floor: int = 0
    crowded: bool = False
    """Until some of those that leave are gone, a surge would be one too many: it is not started yet."""
    sleeps: bool = False
    """Nothing is to run."""
    sleeper: ReplicaId | None = None
    """A slot to be held, for an api that falls asleep."""
    notes: tuple[str, ...] = ()

    def build_of(self, slot: Slot) -> BuildSpec | None:
        """What a slot runs, if it may be started."""
        for build in (self.goal, self.fallback):
            if build is not None and of_revision(slot, build.revision) and not slot.stranger:
                return build
        return None

    def starts(self, slot: Slot) -> bool:
        """Whether a slot is to have a process that has none."""
        if slot.ready:
            return False
        if slot.asleep:
            return not self.sleeps and (slot.knocked or self.is_new(slot))
        return slot.state in (SlotState.WAITING, SlotState.EXITED)

    def is_new(self, slot: Slot) -> bool:
        """Whether a slot runs the goal."""
        return self.goal is not None and self.build_of(slot) is self.goal


def decide(
    wanted: WantedApi,
    slots: Sequence[Slot],
    wait_left_s: Callable[[Slot], float],
    *,
    fallback_fails: bool,
    parking: Parking,
    beyond: Collection[ReplicaId] = (),
) -> Decision:
    """
    Decide what stays, goes and is added.

    Args:
        wait_left_s: seconds until back-off lets a slot be started again.
        fallback_fails: the build that served crashes or does not start by itself.
        parking: where a replica of the version before may be kept.
        beyond: names that no other replica gets, since one of that name may run where nobody looks.
    """
    goal, fallback = goal_and_fallback(wanted)
    if goal is None:
        return Decision(goal=None, leave=tuple(slot for slot in slots if slot.state is not SlotState.DRAINING))
    if wanted.scale.asleep and fallback is None:
        return _asleep(wanted, goal, slots, beyond)
    if fallback is None and parked_revision(wanted) != goal.revision and is_undisturbed(goal, slots):
        return _resized(wanted, goal, slots, beyond)
    rollout = Rollout(wanted, goal, fallback, wait_left_s, fallback_fails)
    groups = _grouped(rollout, slots)
    staying = who_stays(rollout, groups)
    room = room_for(rollout, staying, draining=len(groups.draining))
    ousted = _ousted(rollout, staying, room, quiet=not staying.leave and not groups.draining)
    stay = (*staying.news, *staying.olds, *staying.lost)
    leave = staying.leave if ousted is None else [*staying.leave, ousted]
    before = parked_revision(wanted)
    parked = _parked(rollout, staying, before, parking)
    return Decision(
        goal=goal,
        fallback=fallback,
        stay=tuple(slot for slot in stay if slot is not ousted),
        leave=tuple(slot for slot in leave if slot is not parked),
        parked=parked,
        gives_way=any(_holds_room_of(slot, before) for slot in (*leave, *groups.draining) if slot is not parked),
        renew=tuple(_renewals(rollout, staying, room)),
        add=tuple(_additions(rollout, staying, room, slots, beyond)),
        floor=staying.floor,
        crowded=room.crowded,
        notes=tuple(_notes(rollout, staying, room)),
    )


def is_undisturbed(goal: BuildSpec, slots: Sequence[Slot]) -> bool:
    """Whether all there is serves as it shall, as nearly always: then nothing but the number may be wrong."""
    for slot in slots:
        lease = slot.lease
        if slot.state is not SlotState.READY or not slot.routed or lease is None or slot.stranger or slot.leaving:
            return False
        if lease.state is not LeaseState.GRANTED or lease.request.surge or not of_revision(slot, goal.revision):
            return False
    return True


def _resized(wanted: WantedApi, goal: BuildSpec, slots: Sequence[Slot], beyond: Collection[ReplicaId]) -> Decision:
    """What the rules below come to for slots that are undisturbed."""
    n = wanted.replicas
    best_first = sorted(slots, key=_busiest_first)
    leave = tuple(reversed(best_first[n:]))
    used = {*beyond, *(slot.replica for slot in slots)} if len(slots) < n else set()
    add = []
    for number in range(len(slots), n):
        name = _unused(wanted.api, goal, used)
        used.add(name)
        is_minimum = number < max(1, wanted.min_replicas)
        add.append(LeaseRequest(replica=name, api=goal.api, resources=_resources(goal, slots), minimum=is_minimum))
    return Decision(
        goal=goal,
        stay=tuple(best_first[:n]),
        leave=leave,
        add=tuple(add),
        floor=n,
        crowded=len(leave) > SURGE,
    )


def _busiest_first(slot: Slot) -> tuple[bool, int, int]:
    """As `Rollout.worth`."""
    return slot.left, -(slot.report.in_flight if slot.report else 0), slot.ordinal


def goal_and_fallback(wanted: WantedApi) -> tuple[BuildSpec | None, BuildSpec | None]:
    """The build that shall serve, and the one that serves until it does."""
    if wanted.failed is not None:
        return wanted.serving, None
    if wanted.serving is None or wanted.serving.revision == wanted.build.revision:
        return wanted.build, None
    return wanted.build, wanted.serving


def _asleep(wanted: WantedApi, goal: BuildSpec, slots: Sequence[Slot], beyond: Collection[ReplicaId]) -> Decision:
    """One slot stays, without a process; until there is one, nothing changes."""
    here = [slot for slot in slots if slot.state is not SlotState.DRAINING]
    sleepers = [slot for slot in here if slot.asleep and of_revision(slot, goal.revision)]
    # There are two where a node comes back that was lost: who waits is in the slot that is routed.
    sleeper = min(
        sleepers, key=lambda slot: (not slot.knocked, slot.leaving, not slot.routed, slot.ordinal), default=None
    )
    if sleeper is not None and (sleeper.knocked or not sleeper.leaving):
        leave = tuple(slot for slot in here if slot is not sleeper)
        return Decision(goal=goal, stay=(sleeper,), leave=leave, sleeps=True)
    name = _unused(wanted.api, goal, {*beyond, *(slot.replica for slot in slots)})
    stay = tuple(
        slot for slot in here if slot is sleeper or (slot.ready and (slot.routed or of_revision(slot, goal.revision)))
    )
    return Decision(
        goal=goal, stay=stay, leave=tuple(slot for slot in here if slot not in stay), sleeps=True, sleeper=name
    )


@dataclass(frozen=True)
class Rollout:
    """What is decided on, and how slots are judged."""

    wanted: WantedApi
    goal: BuildSpec
    fallback: BuildSpec | None
    wait_left_s: Callable[[Slot], float]
    fallback_fails: bool

    @property
    def minimum(self) -> int:
        return max(1, self.wanted.min_replicas)

    def returns(self, slot: Slot) -> bool:
        """It has served, and will again in a moment."""
        return not slot.ready and not slot.placing and slot.has_been_ready and not self.wait_left_s(slot)

    def fails(self, slot: Slot) -> bool:
        """It is not up and not coming up."""
        return slot.placing or (slot.state is SlotState.EXITED and self.wait_left_s(slot) > 0)

    def is_foreign(self, slot: Slot) -> bool:
        """It runs neither the goal nor what serves meanwhile: it cannot be started again."""
        if slot.stranger:
            return True
        fallback = self.fallback
        return not of_revision(slot, self.goal.revision) and (
            fallback is None or not of_revision(slot, fallback.revision)
        )

    def worth(self, slot: Slot) -> tuple[int, bool, bool, int, int]:
        """
        Sorts the best first: ready (routed, ours, busiest), then how far it has come, then by ordinal.

        One out of the route was chosen to leave before: an order to drain it may be on its way already.
        """
        in_flight = slot.report.in_flight if slot.report else 0
        return self._rank(slot), slot.left or not slot.routed, self.is_foreign(slot), -in_flight, slot.ordinal

    def _rank(self, slot: Slot) -> int:
        """How far a slot has come; 0 is best. Those that ended are worth less than those that start."""
        match slot.state:
            case SlotState.READY:
                return 0
            case SlotState.STARTING:
                phase = slot.report.phase if slot.report else Phase.STARTING
                return {Phase.WARMING: 1, Phase.LOADING: 2}.get(phase, 3)
            case SlotState.WAITING | SlotState.ASLEEP:
                return 4
            case SlotState.EXITED:
                return 6 if self.wait_left_s(slot) else 5
            case _:
                return 7


@dataclass
class Groups:
    """The slots of an api by what they are to a rollout; the best of each group first."""

    news: list[Slot] = field(default_factory=list)
    olds: list[Slot] = field(default_factory=list)
    lost: list[Slot] = field(default_factory=list)
    draining: list[Slot] = field(default_factory=list)
    useless: list[Slot] = field(default_factory=list)


def _grouped(rollout: Rollout, slots: Sequence[Slot]) -> Groups:
    groups = Groups()
    fallback = rollout.fallback
    for slot in slots:
        if slot.state is SlotState.DRAINING:
            groups.draining.append(slot)
        elif slot.drained:
            groups.useless.append(slot)
        elif slot.lost and (slot.routed or not rollout.is_foreign(slot)):
            groups.lost.append(slot)
        elif of_revision(slot, rollout.goal.revision) and not slot.stranger:
            _of_goal(groups, slot).append(slot)
        elif fallback is not None and of_revision(slot, fallback.revision) and not slot.stranger:
            groups.olds.append(slot)
        elif slot.ready and slot.routed:
            groups.olds.append(slot)  # nobody's any more, but it answers requests until others do
        else:
            groups.useless.append(slot)
    if len(groups.news) > 1:
        groups.news.sort(key=rollout.worth)
    if len(groups.olds) > 1:
        groups.olds.sort(key=rollout.worth)
    return groups


def _of_goal(groups: Groups, slot: Slot) -> list[Slot]:
    """Where a replica of the goal belongs."""
    if not slot.leaving or slot.knocked or slot.waking:
        return groups.news
    return groups.olds if slot.has_been_ready or slot.ready or slot.asleep else groups.useless


@dataclass
class Staying:
    """Who stays and who leaves, before any room is asked for."""

    news: list[Slot]
    olds: list[Slot]
    lost: list[Slot]
    """They answer as long as they live; their places are filled up all the same."""
    leave: list[Slot]
    floor: int
    ready: int
    """Ready ones that stay, without the lost."""
    proven: bool
    """A replica of the goal is or was just ready."""
    swaps: int
    """Old replicas that nowhere had room: as many of the goal may wait for it instead."""


def who_stays(rollout: Rollout, groups: Groups) -> Staying:
    n = rollout.wanted.replicas
    news, spare_news = groups.news[:n], groups.news[n:]
    proven = any(slot.ready for slot in groups.news) or any(
        slot.ready and slot.leaving and of_revision(slot, rollout.goal.revision) for slot in groups.olds
    )
    placed_olds = [slot for slot in groups.olds if not slot.placing]
    pending_olds = [slot for slot in groups.olds if slot.placing]
    keep_pending = 0 if proven else max(0, n - len(placed_olds))
    swaps = min(len(pending_olds), n - len(news)) if proven else 0
    leave = [*groups.useless, *pending_olds[keep_pending:]]
    pending_olds = pending_olds[:keep_pending]

    unplaced = sum(slot.placing and not slot.surge for slot in news) + len(pending_olds)
    floor = max(0, n - unplaced)
    ready = sum(slot.ready for slot in (*news, *placed_olds))
    # Old replicas stay as far as the goal does not make up for them yet.
    steady = sum(slot.ready or rollout.returns(slot) for slot in news)
    keep = max(0, floor - steady)
    olds = placed_olds[:keep]
    # Of the others the worst go first, a ready one only while those left are more than the floor.
    for slot in reversed(placed_olds[keep:]):
        if slot.ready:
            stays = ready <= floor
            ready -= not stays
        else:
            stays = slot.knocked or slot.waking or (ready < floor and rollout.returns(slot))
        (olds if stays else leave).append(slot)
    for slot in reversed(spare_news):
        (news if slot.knocked or slot.waking else leave).append(slot)
    # The size may have shrunk while new ones were on their way.
    for slot in reversed(tuple(news)):
        if len(news) + len(olds) + len(pending_olds) > n + SURGE and not slot.ready and not rollout.returns(slot):
            news.remove(slot)
            leave.append(slot)
    # One that answers makes up for what has no room, too.
    lost = [slot for slot in groups.lost if slot.ready and ready < n]
    leave += [slot for slot in groups.lost if slot not in lost]
    return Staying(
        news=news,
        olds=[*olds, *pending_olds],
        lost=lost,
        leave=leave,
        floor=floor,
        ready=ready,
        proven=proven,
        swaps=swaps,
    )


@dataclass
class Room:
    """What is to be asked for."""

    settle: list[Slot] = field(default_factory=list)
    add: list[BuildSpec] = field(default_factory=list)
    surge: BuildSpec | None = None
    crowded: bool = False
    stuck: Slot | None = None
    """The surge that is asked for and has no room."""
    hopeless: bool = False
    """Nothing serves, and what served does not come up by itself: there is nothing to lose."""


def room_for(rollout: Rollout, staying: Staying, *, draining: int) -> Room:
    """Settle the surge, fill up what is missing, ask for the next surge."""
    n = rollout.wanted.replicas
    news, olds = staying.news, staying.olds
    surges = [slot for slot in news if slot.surge]
    hopeless = rollout.fallback_fails and not staying.ready and all(rollout.fails(slot) for slot in olds)
    missing = n - (len(news) + len(olds) - len(surges)) - staying.swaps
    stuck = next((slot for slot in surges if slot.placing), None) if olds else None
    settle = []
    for slot in surges:
        # A surge that never served counts for nothing, unless it is all there will be.
        counts = slot.ready or rollout.returns(slot) or not olds or rollout.wanted.force or hopeless
        if missing > 0 and counts:
            missing -= 1
            # One without room keeps its turn until what it was to take over from is gone.
            if not slot.placing or not (olds or staying.leave or draining):
                settle.append(slot)
    if staying.proven or rollout.fallback is None:
        add = [rollout.goal] * min(missing + staying.swaps, n - len(news))
    else:
        add = [rollout.fallback] * missing
    total = len(news) + len(olds) + len(staying.leave) + draining
    underway = len(news) + sum(build is rollout.goal for build in add)
    wants_surge = bool(olds) and not surges and underway < n and total + len(add) < n + SURGE
    return Room(
        settle=settle,
        add=add,
        surge=rollout.goal if wants_surge else None,
        crowded=total > n + SURGE,
        stuck=stuck,
        hopeless=hopeless,
    )


def _ousted(rollout: Rollout, staying: Staying, room: Room, *, quiet: bool) -> Slot | None:
    """
    The old replica that has to make room for a surge that gets none, one after the other.

    Only if a gap is accepted, or there is nothing to lose; else nothing changes until there is room.
    """
    if room.stuck is None or not (rollout.wanted.force or room.hopeless):
        return None
    if not quiet or not all(slot.ready or slot is room.stuck for slot in staying.news):
        return None
    placed = [slot for slot in staying.olds if not slot.placing]
    return max(placed, key=rollout.worth, default=None)


def _parked(rollout: Rollout, staying: Staying, before: Revision | None, parking: Parking) -> Slot | None:
    """The old replica that is kept, once nothing old serves any more: of those that leave the one that left first."""
    if before is None or staying.olds:
        return None
    can = [
        slot
        for slot in staying.leave
        if slot.ready
        and not slot.leaving
        and _holds_room_of(slot, before)
        and slot.lease is not None
        and parking.allows(slot.lease)
    ]
    return min(can, key=lambda slot: (slot.routed, slot.ordinal), default=None)


def _holds_room_of(slot: Slot, revision: Revision | None) -> bool:
    """Whether a slot of this revision has room that somebody else could have."""
    if revision is None or slot.stranger or not of_revision(slot, revision):
        return False
    return slot.lease is not None and slot.lease.state is LeaseState.GRANTED


def _additions(
    rollout: Rollout, staying: Staying, room: Room, slots: Sequence[Slot], beyond: Collection[ReplicaId]
) -> Iterator[LeaseRequest]:
    """What is added is named by the lowest ordinals that no slot has; a sleeper that wakes has a name."""
    for number, slot in enumerate(staying.news):
        if slot.asleep and slot.lease is None:
            yield _waking(rollout.goal, slot, slots, minimum=number < rollout.minimum)
    for slot in staying.olds:
        if slot.knocked and slot.lease is None and rollout.fallback is not None:
            yield _waking(rollout.fallback, slot, slots, minimum=False)
    used = {*beyond, *(slot.replica for slot in slots)}
    wanted = [(build, False) for build in room.add]
    if room.surge is not None:
        wanted.append((room.surge, True))
    # Of the goal its own replicas count towards the minimum; what fills up meanwhile joins all that are placed.
    counts = {True: len(staying.news), False: len(_placed(staying.news)) + len(staying.olds)}
    for build, surge in wanted:
        name = _unused(rollout.wanted.api, build, used)
        used.add(name)
        is_goal = build is rollout.goal
        yield LeaseRequest(
            replica=name,
            api=build.api,
            resources=_resources(build, slots),
            surge=surge,
            minimum=counts[is_goal] < rollout.minimum,
        )
        counts[is_goal] += 1


def _waking(build: BuildSpec, slot: Slot, slots: Sequence[Slot], *, minimum: bool) -> LeaseRequest:
    resources = _resources(build, slots)
    return LeaseRequest(replica=slot.replica, api=build.api, resources=resources, minimum=minimum, node=slot.node)


def _unused(api: ApiKey, build: BuildSpec, used: Collection[ReplicaId]) -> ReplicaId:
    """The name of the lowest ordinal that no slot has."""
    ordinal = 0
    while (name := replica_id(api, build.revision, ordinal)) in used:
        ordinal += 1
    return name


def _resources(build: BuildSpec, slots: Sequence[Slot]) -> Resources:
    """What a replica asks for; memory that nobody stated counts as the most that the version was seen to use."""
    if build.resources.mem_bytes is not None:
        return build.resources
    reports = (slot.report for slot in slots if slot.report is not None and slot.report.version == build.version)
    peak = max((report.peak_rss_bytes for report in reports), default=0)
    return msgspec.structs.replace(build.resources, mem_bytes=peak or None)


def _renewals(rollout: Rollout, staying: Staying, room: Room) -> Iterator[LeaseRequest]:
    """Leases that are to be asked for once more, as what they are by now."""
    others = len(_placed(staying.news))
    numbered = [*enumerate(staying.news), *enumerate(staying.olds, start=others)]
    for number, slot in numbered:
        lease = slot.lease
        if lease is None or not (slot.placing or slot in room.settle):
            continue
        surge = lease.request.surge and slot not in room.settle
        renewed = msgspec.structs.replace(
            lease.request,
            surge=surge,
            minimum=number < rollout.minimum,
        )
        if renewed != lease.request:
            yield renewed


def _placed(slots: Sequence[Slot]) -> list[Slot]:
    return [slot for slot in slots if not slot.placing]


def _notes(rollout: Rollout, staying: Staying, room: Room) -> Iterator[str]:
    if room.stuck is not None and not (rollout.wanted.force or room.hopeless):
        yield (
            f"no room for one more replica beside the {len(staying.olds)} that serve{_because(room.stuck)}; nothing "
            "changes until there is, or until a deploy with --force, which stops one first"
        )
    pending = [slot for slot in (*staying.news, *staying.olds) if _waits_for_room(slot) and not slot.surge]
    if pending:
        yield f"no room for {len(pending)} of {rollout.wanted.replicas} replicas{_because(pending[0])}"


def _waits_for_room(slot: Slot) -> bool:
    return slot.placing or (slot.asleep and slot.lease is not None and slot.lease.state is LeaseState.PENDING)


def _because(slot: Slot) -> str:
    return f" ({slot.lease.reason})" if slot.lease is not None and slot.lease.reason else ""
