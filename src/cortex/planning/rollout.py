"""
Which replicas of an api stay, which go, and which are added.

One rule set for first deploys, rollouts, rollbacks, scale changes and lost nodes; there is no stage to remember. The
words:

* **goal**: the build that shall serve at full size: the wanted one, or, once that has failed, the one that served.
* **old**: replicas of the build that serves while the goal is on its way, and ready ones of any other build that are
  still in the route. Of other builds everything else goes at once.
* **floor**: how many ready replicas we never go below: as many as are wanted, less those there is no room for.
* **surge**: one replica more than wanted. It may overcommit cpu, so there is one at a time, and once an old replica
  goes it takes over that one's room ("settles").

An old replica goes only when the ready ones that stay are at least `floor`. A goal that was never ready adds nothing
but the surge, so whatever else is missing meanwhile is filled up with the old build.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from cortex.ids import ReplicaId, replica_id
from cortex.planning.model import WantedApi
from cortex.planning.slots import Slot, SlotState, of_revision
from cortex.wire.build import BuildSpec
from cortex.wire.reports import Phase

SURGE = 1
"""One, whatever the size: the promise is that room for one more replica is enough."""


class Addition(msgspec.Struct, frozen=True, kw_only=True):
    """A replica to be added: first of all, room for it."""

    replica: ReplicaId
    build: BuildSpec
    surge: bool = False


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What shall become of each slot."""

    goal: BuildSpec | None
    """None: the first version failed, and nothing shall run."""
    fallback: BuildSpec | None = None
    """The build that serves meanwhile, when that is another one."""
    stay: tuple[Slot, ...] = ()
    leave: tuple[Slot, ...] = ()
    """To be taken out of the route, drained, forgotten, released, as far as each has come."""
    draining: tuple[Slot, ...] = ()
    """On their way out, nothing to do."""
    settle: tuple[Slot, ...] = ()
    """Surge replicas whose room becomes an ordinary one."""
    add: tuple[Addition, ...] = ()
    floor: int = 0
    notes: tuple[str, ...] = ()

    def build_of(self, slot: Slot) -> BuildSpec | None:
        """What a slot runs, if it may be started."""
        for build in (self.goal, self.fallback):
            if build is not None and of_revision(slot, build.revision) and not slot.stranger:
                return build
        return None

    @property
    def news(self) -> tuple[Slot, ...]:
        """Replicas of the goal that stay."""
        return tuple(slot for slot in self.stay if self.build_of(slot) is self.goal)

    @property
    def olds(self) -> tuple[Slot, ...]:
        """All others that stay."""
        return tuple(slot for slot in self.stay if self.build_of(slot) is not self.goal)


def decide(
    wanted: WantedApi,
    slots: Sequence[Slot],
    wait_left_s: Callable[[Slot], float],
    *,
    fallback_fails: bool = False,
) -> Decision:
    """
    Decide what stays, goes and is added.

    Args:
        wait_left_s: seconds until back-off lets a slot be started again.
        fallback_fails: the build that served crashes or does not start by itself.
    """
    goal, fallback = goal_and_fallback(wanted)
    if goal is None:
        draining = tuple(slot for slot in slots if slot.state is SlotState.DRAINING)
        return Decision(goal=None, draining=draining, leave=tuple(slot for slot in slots if slot not in draining))
    n = wanted.replicas

    # Sort the slots. Strangers and other builds matter only while they answer requests.
    news: list[Slot] = []
    olds: list[Slot] = []
    lost: list[Slot] = []
    draining_slots: list[Slot] = []
    leave: list[Slot] = []
    for slot in slots:
        if slot.state is SlotState.DRAINING:
            draining_slots.append(slot)
        elif slot.drained:
            leave.append(slot)
        elif slot.lost:
            lost.append(slot)
        elif of_revision(slot, goal.revision) and not slot.stranger:
            news.append(slot)
        elif (fallback is not None and of_revision(slot, fallback.revision) and not slot.stranger) or (
            slot.ready and slot.routed
        ):
            olds.append(slot)
        else:
            leave.append(slot)

    def returns(slot: Slot) -> bool:
        """It has served, and will again in a moment."""
        return not slot.ready and not slot.placing and slot.has_been_ready and not wait_left_s(slot)

    def worth(slot: Slot) -> tuple[int, bool, bool, int, int]:
        """Best first: ready (routed, busiest), then how far it has come, then ordinal."""
        in_flight = slot.report.in_flight if slot.report else 0
        foreign = slot.stranger or not (
            of_revision(slot, goal.revision) or (fallback is not None and of_revision(slot, fallback.revision))
        )
        return _rank(slot, wait_left_s), foreign, not slot.routed, -in_flight, slot.ordinal

    news.sort(key=worth)
    olds.sort(key=worth)
    stay, spare_news = news[:n], news[n:]
    proven = any(slot.ready for slot in news)

    # Old replicas: as many stay as the goal does not make up for yet.
    placed_olds = [slot for slot in olds if not slot.placing]
    pending_olds = [slot for slot in olds if slot.placing]
    swaps = 0
    if proven:
        # What could not be placed may as well wait for room as a replica of the goal.
        swaps = min(len(pending_olds), n - len(stay))
        leave += pending_olds
        pending_olds = []
    else:
        room = max(0, n - len(placed_olds))
        leave += pending_olds[room:]
        pending_olds = pending_olds[:room]
    unplaced = sum(slot.placing and not slot.surge for slot in stay) + len(pending_olds)
    floor = max(0, n - unplaced)
    ready = sum(slot.ready for slot in (*news, *placed_olds))
    steady = sum(slot.ready or returns(slot) for slot in stay)
    keep_olds = max(0, floor - steady)
    spare_olds = placed_olds[keep_olds:]
    stay += placed_olds[:keep_olds]
    stay += pending_olds

    # Those to spare go, worst first; a ready one only while the ready ones left are more than the floor.
    for slot in (*reversed(spare_olds), *reversed(spare_news)):
        if slot.ready and ready > floor:
            ready -= 1
            leave.append(slot)
        elif not slot.ready and not (slot in spare_olds and returns(slot) and ready < floor):
            leave.append(slot)
        else:
            stay.append(slot)
    for slot in lost:
        if slot.ready and ready < floor:
            stay.append(slot)  # it answers as long as it lives, and its place is filled up all the same
        else:
            leave.append(slot)

    # Room: settle the surge, fill up what is missing, and ask for the next surge.
    usable = [slot for slot in stay if not slot.lost]
    own = [slot for slot in usable if slot in news]
    others = [slot for slot in usable if slot not in news]
    surges = [slot for slot in own if slot.surge]
    hopeless = fallback_fails and not ready and all(_fails(slot, wait_left_s) for slot in others)
    missing = n - (len(usable) - len(surges)) - swaps
    settle: list[Slot] = []
    for slot in surges:
        if missing > 0 and (slot.ready or not others or wanted.force or hopeless):
            missing -= 1
            if not slot.placing:
                settle.append(slot)
    used = {slot.replica for slot in slots}
    add: list[Addition] = []

    def addition(build: BuildSpec, *, surge: bool = False) -> Addition:
        replica = _unused(wanted, build, used)
        used.add(replica)
        return Addition(replica=replica, build=build, surge=surge)

    if proven or fallback is None:
        missing = min(missing + swaps, n - len(own))
        add += [addition(goal) for _ in range(missing)]
    else:
        add += [addition(fallback) for _ in range(missing)]
    total = len(usable) + len(add) + len(leave) + len(draining_slots)
    in_progress = len(own) + sum(new.build is goal for new in add)
    if others and not surges and in_progress < n and total < n + SURGE:
        add.append(addition(goal, surge=True))

    # No room for the surge: nothing changes, unless a gap is accepted or there is nothing to lose.
    notes: list[str] = []
    stuck = [slot for slot in surges if slot.placing]
    if stuck and others:
        reason = stuck[0].lease.reason if stuck[0].lease else ""
        quiet = not leave and not draining_slots and all(slot.ready for slot in own if slot not in stuck)
        if wanted.force or hopeless:
            victims = [slot for slot in others if not slot.placing]
            if quiet and victims:
                victim = max(victims, key=worth)
                stay.remove(victim)
                leave.append(victim)
        else:
            notes.append(
                f"no room for one more replica beside the {len(others)} that serve ({reason}); nothing changes until "
                "there is, or until a deploy with --force, which stops one first"
            )
    plainly_pending = [slot for slot in stay if slot.placing and not slot.surge]
    if plainly_pending:
        reason = plainly_pending[0].lease.reason if plainly_pending[0].lease else ""
        notes.append(f"no room for {len(plainly_pending)} of {n} replicas ({reason})")

    return Decision(
        goal=goal,
        fallback=fallback,
        stay=tuple(stay),
        leave=tuple(leave),
        draining=tuple(draining_slots),
        settle=tuple(settle),
        add=tuple(add),
        floor=floor,
        notes=tuple(notes),
    )


def goal_and_fallback(wanted: WantedApi) -> tuple[BuildSpec | None, BuildSpec | None]:
    """The build that shall serve, and the one that serves until it does."""
    if wanted.failed is not None:
        return wanted.serving, None
    if wanted.serving is None or wanted.serving.revision == wanted.build.revision:
        return wanted.build, None
    return wanted.build, wanted.serving


def _rank(slot: Slot, wait_left_s: Callable[[Slot], float]) -> int:
    """How far a slot has come; 0 is best. Those that failed go before those that start."""
    match slot.state:
        case SlotState.READY:
            return 0
        case SlotState.STARTING:
            phase = slot.report.phase if slot.report else Phase.STARTING
            return {Phase.WARMING: 1, Phase.LOADING: 2}.get(phase, 3)
        case SlotState.WAITING:
            return 4
        case SlotState.EXITED:
            return 6 if wait_left_s(slot) else 5
        case _:
            return 7


def _fails(slot: Slot, wait_left_s: Callable[[Slot], float]) -> bool:
    return slot.placing or (slot.state is SlotState.EXITED and wait_left_s(slot) > 0)


def _unused(wanted: WantedApi, build: BuildSpec, used: Iterable[ReplicaId]) -> ReplicaId:
    """The replica id with the lowest ordinal that no slot has."""
    ordinal = 0
    while (name := replica_id(wanted.api, build.revision, ordinal)) in used:
        ordinal += 1
    return name
