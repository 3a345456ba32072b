"""
Leases and reports joined: one `Slot` for each replica id of an api, in one of seven states.

| state | lease | reported |
|---|---|---|
| placing | pending | nothing |
| waiting | granted (or lost) | nothing: not started yet, or its node has not reported |
| asleep | any | asleep |
| starting | any | starting, loading, warming |
| ready | any | ready |
| draining | any | draining |
| exited | any | exited |
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from enum import StrEnum

import msgspec

from cortex.ids import ApiKey, NodeId, ReplicaId, Revision
from cortex.planning.model import Lease, LeaseState, Snapshot
from cortex.planning.tables import seen_routes
from cortex.wire.orders import SetRoute
from cortex.wire.reports import Phase, ReplicaReport


class SlotState(StrEnum):
    """Where a slot is; the table above says what each follows from."""

    PLACING = "placing"
    """Room was asked for and is not there yet."""
    WAITING = "waiting"
    """There is room, and nothing is known to run."""
    ASLEEP = "asleep"
    """It is held without a process: whoever comes waits there, and wakes it."""
    STARTING = "starting"
    """Its process is on its way to ready."""
    READY = "ready"
    """It answers requests."""
    DRAINING = "draining"
    """It finishes what it holds and goes."""
    EXITED = "exited"
    """Its process is gone, the slot is still open."""


FIRST_ATTEMPT = 1


class Slot(msgspec.Struct, frozen=True, gc=False):
    """One replica of an api, as far as it is known: its room, and what its agent says."""

    replica: ReplicaId
    digits: str
    """The revision's first 8 digits, from the replica id: a lease alone tells no more."""
    ordinal: int
    state: SlotState
    node: NodeId | None
    """Where it runs, else where its lease is."""
    report: ReplicaReport | None
    lease: Lease | None
    routed: bool
    """Some node's route names it."""
    stranger: bool = False
    """It runs on a node while the lease of the same name is on another one."""
    left: bool = False
    """The newest route does not name it any more, only an older one that some node still has."""
    leaving: bool = False
    """Its node is to be given back."""

    @property
    def ready(self) -> bool:
        return self.state is SlotState.READY

    @property
    def placing(self) -> bool:
        return self.state is SlotState.PLACING

    @property
    def asleep(self) -> bool:
        return self.state is SlotState.ASLEEP

    @property
    def knocked(self) -> bool:
        """It sleeps, and somebody waits for it."""
        return self.asleep and self.report is not None and self.report.knocked_age_s is not None

    @property
    def waking(self) -> bool:
        """It slept, and who has knocked waits there until it is ready: nobody else is routed to before that."""
        return (
            self.routed
            and self.state is SlotState.STARTING
            and self.report is not None
            and self.report.attempt == FIRST_ATTEMPT
        )

    @property
    def lost(self) -> bool:
        """Its lease is lost: it has ended or soon will."""
        return self.lease is not None and self.lease.state is LeaseState.LOST

    @property
    def surge(self) -> bool:
        """Its room is one more than wanted, for a rollout."""
        return self.lease is not None and self.lease.request.surge

    @property
    def drained(self) -> bool:
        """It ended because we asked it to."""
        report = self.report
        return self.state is SlotState.EXITED and report is not None and report.exit is not None and report.exit.drained

    @property
    def has_been_ready(self) -> bool:
        """This slot has answered requests: the attempt that is reported has, or an earlier one got it routed."""
        return self.routed or (self.report is not None and self.report.was_ready)


class SeenApi(msgspec.Struct, frozen=True):
    """Everything seen of one api."""

    slots: tuple[Slot, ...] = ()
    """Sorted by replica id and node."""
    route: SetRoute | None = None
    """What was ordered last, as far as any node has taken it."""
    uneven: bool = False
    """Some node has another route, or one of them none."""
    routes_pending: bool = False
    """Some node's ingress does not have its route yet."""
    lagging: frozenset[NodeId] = frozenset()
    """Those of these nodes whose ingress is up: requests that come there may still go where they went before."""


NOTHING_SEEN = SeenApi()

_STATES: Mapping[Phase, SlotState] = {
    Phase.ASLEEP: SlotState.ASLEEP,
    Phase.STARTING: SlotState.STARTING,
    Phase.LOADING: SlotState.STARTING,
    Phase.WARMING: SlotState.STARTING,
    Phase.READY: SlotState.READY,
    Phase.DRAINING: SlotState.DRAINING,
    Phase.EXITED: SlotState.EXITED,
}


def join(seen: Snapshot, leaving: Collection[NodeId] = ()) -> dict[ApiKey, SeenApi]:
    """
    Everything seen, by api.

    Args:
        leaving: nodes that are to be given back.
    """
    tables = seen_routes(seen.nodes)
    routed, left = tables.routed, tables.left
    slots: dict[ApiKey, list[Slot]] = {}
    leases = {lease.request.replica: lease for lease in seen.leases}
    joined: set[ReplicaId] = set()
    spare = _namesakes(seen, leases) if len(seen.nodes) > 1 else frozenset()
    for node in seen.nodes:
        is_leaving = node.name in leaving
        for report in node.replicas:
            replica = report.replica
            lease = leases.get(replica)
            stranger = bool(spare) and (node.name, replica) in spare
            if lease is not None:
                if lease.node is None or lease.node == node.name:
                    joined.add(replica)
                else:
                    lease, stranger = None, True
            digits, ordinal = _parts(replica)
            state = _STATES[report.phase]
            is_routed, was_left = replica in routed, replica in left
            slot = Slot(
                replica, digits, ordinal, state, node.name, report, lease, is_routed, stranger, was_left, is_leaving
            )
            slots.setdefault(report.api, []).append(slot)
    for lease in seen.leases:
        replica = lease.request.replica
        if replica in joined:
            continue
        digits, ordinal = _parts(replica)
        state = SlotState.PLACING if lease.state is LeaseState.PENDING else SlotState.WAITING
        is_routed, was_left, is_leaving = replica in routed, replica in left, lease.node in leaving
        slot = Slot(
            replica, digits, ordinal, state, lease.node, None, lease, is_routed, left=was_left, leaving=is_leaving
        )
        slots.setdefault(lease.request.api, []).append(slot)
    for of_api in slots.values():
        if len(of_api) > 1:
            of_api.sort(key=_by_name)
    pending: set[ApiKey] = set()
    lagging: dict[ApiKey, set[NodeId]] = {}
    for node in seen.nodes:
        # A door that is down serves nobody; the one of the only node is waited for.
        if node.ingress is None or node.ingress.up or len(seen.nodes) == 1:
            pending.update(node.pending_routes)
        if node.ingress is None or node.ingress.up:
            for api in node.pending_routes:
                lagging.setdefault(api, set()).add(node.name)
    return {
        api: SeenApi(
            tuple(slots.get(api, ())),
            tables.routes.get(api),
            api in tables.uneven,
            api in pending,
            frozenset(lagging[api]) if api in lagging else frozenset(),
        )
        for api in {**slots, **tables.routes, **dict.fromkeys(tables.uneven)}
    }


def _namesakes(seen: Snapshot, leases: Mapping[ReplicaId, Lease]) -> frozenset[tuple[NodeId, ReplicaId]]:
    """
    Those to spare of replicas that are on several nodes under one name, and that no lease tells apart.

    So it is when a name was given to a slot that sleeps, which needs no lease, while a node was away that nobody had
    heard of its replicas. The one that sleeps is meant, as it was ordered last.
    """
    found: dict[ReplicaId, list[tuple[bool, NodeId]]] = {}
    for node in seen.nodes:
        for report in node.replicas:
            if report.replica not in leases:
                found.setdefault(report.replica, []).append((report.phase is not Phase.ASLEEP, node.name))
    return frozenset(
        (node, replica) for replica, there in found.items() if len(there) > 1 for _, node in sorted(there)[1:]
    )


def of_revision(slot: Slot, revision: Revision) -> bool:
    """Whether a slot belongs to a revision."""
    return revision.startswith(slot.digits)


def _by_name(slot: Slot) -> tuple[str, int, str, str]:
    return slot.digits, slot.ordinal, slot.replica, slot.node or ""


@functools.lru_cache(maxsize=2**16)
def _parts(replica: ReplicaId) -> tuple[str, int]:
    """Digits and ordinal of `<deployment>.<api>.<revision, 8 digits>.<ordinal>`."""
    _name, digits, ordinal = replica.rsplit(".", 2)
    return digits, int(ordinal)
