"""
What a lease is in Ray: a detached placement group of one bundle, named after replica and attempt. Pure.

Where it is, is our choice: a lease that our ledger has placed asks for one raylet, by the label that Ray gives each.
One for which there is no room asks for any raylet but those that there are; so it waits, and is the demand for which
Ray's autoscaler adds a node. A group that Ray has moved, after the loss of a node, is no lease of ours any more: what
ran there did not move with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from cortex.engines.ray.messages import Bundle, Group, NewGroup, RayNode, Selector
from cortex.ids import NodeId, ReplicaId
from cortex.planning.model import Lease, LeaseState
from cortex.wire.build import Resources
from cortex.wire.reports import Node

PREFIX: Final = "cx:"
MOST_DEMAND_BYTES: Final = 2**22
"""Of names of raylets in groups that wait, 56 in each for each raylet: all are read at every look, by us and Ray."""
LEAST_BYTES: Final = 1.0
"""Ray takes no bundle of nothing, and to be there is what makes a node busy."""
CREATED: Final = "CREATED"
WAITING: Final = frozenset({"PENDING", "PREPARED"})
"""Ray's words for a group that it has yet to place. RESCHEDULING is none of them: that one has lost its node."""

Machines = Mapping[NodeId, RayNode]
"""The raylet of each node."""


class AskedGroup(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of Ray for a lease that our ledger has placed."""

    raylet: str
    """Where."""
    since_s: float
    """When, in monotonic seconds."""
    placed: bool = False
    """Ray has had it there: from then on its absence is a loss."""


class GroupFinding(StrEnum):
    """What a look at Ray says of a lease."""

    WAITS = "waits"
    """Ray has not placed it yet."""
    HELD = "held"
    """Ray holds its room where we want it."""
    LOST = "lost"
    """Ray held it there, and does so no more."""


# ---- names ----------------------------------------------------------------------------------------------------------


def group_name(replica: ReplicaId, attempt: int) -> str:
    """A group that takes the place of another has another name: both may be there at once."""
    return f"{PREFIX}{replica}:{attempt}"


def replica_and_attempt(name: str) -> tuple[ReplicaId, int] | None:
    """What a name says; None: it is no group of ours."""
    replica, _, attempt = name.removeprefix(PREFIX).rpartition(":")
    if not name.startswith(PREFIX) or not replica or not (attempt.isascii() and attempt.isdecimal()):
        return None
    return ReplicaId(replica), int(attempt)


def attempt_of(name: str) -> int:
    """0: it is no group of ours."""
    read = replica_and_attempt(name)
    return read[1] if read is not None else 0


def by_replica(groups: Iterable[Group]) -> dict[ReplicaId, list[Group]]:
    """Groups of ours, of each replica the latest attempt first."""
    found: dict[ReplicaId, list[tuple[int, Group]]] = {}
    for group in groups:
        read = replica_and_attempt(group.name)
        if read is not None:
            found.setdefault(read[0], []).append((read[1], group))
    return {
        replica: [group for _attempt, group in sorted(of_replica, key=lambda one: -one[0])]
        for replica, of_replica in found.items()
    }


def selector_text(selector: Selector) -> str:
    """As Ray writes it: `in(a,b)`, or `!in(a,b)`."""
    return f"{'!' if selector.others else ''}in({','.join(selector.raylets)})"


def read_selector(text: str) -> Selector | None:
    """None: it is no list of raylets."""
    others, rest = text.startswith("!"), text.removeprefix("!")
    if not rest.startswith("in(") or not rest.endswith(")"):
        return None
    raylets = tuple(raylet.strip() for raylet in rest[3:-1].split(","))
    return Selector(raylets=raylets, others=others)


# ---- machines -------------------------------------------------------------------------------------------------------


def machines(nodes: Iterable[RayNode]) -> dict[NodeId, RayNode]:
    """
    The nodes that there are, by our name, in the order of their names.

    A raylet that is started again is there twice until Ray notices the end of the first: the younger one counts.
    """
    found: dict[NodeId, RayNode] = {}
    for node in sorted(nodes, key=lambda node: (node.name, node.started_ms)):
        found[NodeId(node.name)] = node
    return found


def node_of(machine: RayNode) -> Node:
    """Its capacity as Ray has it."""
    return Node(
        node=NodeId(machine.name),
        cpu_millis=round(machine.cpus * 1000),
        mem_bytes=int(machine.memory),
        gpus=int(machine.gpus),
    )


# ---- groups ---------------------------------------------------------------------------------------------------------


def bundle_of(resources: Resources, *, cpu_millis: int | None = None) -> Bundle:
    """
    What a group has to hold.

    Args:
        cpu_millis: as much of the processor, in place of what is asked for; where it is overcommitted Ray has less.
    """
    cpus = (resources.cpu_millis if cpu_millis is None else cpu_millis) / 1000
    memory = float(resources.mem_bytes or 0)
    return Bundle(cpus=cpus, memory=memory or LEAST_BYTES, gpus=float(resources.gpus))


def target(lease: Lease, there: Machines, raylets: Iterable[str]) -> Selector | None:
    """
    Where the group of a lease is to be; None: there is to be none.

    One that is wanted on a node that has no room is no demand for another node.

    Args:
        there: the nodes that are ours.
        raylets: all that there are.
    """
    if lease.state is LeaseState.GRANTED:
        machine = there.get(lease.node) if lease.node is not None else None
        return Selector(raylets=(machine.raylet,)) if machine is not None else None
    if lease.state is LeaseState.PENDING and lease.request.node is None:
        return Selector(raylets=tuple(sorted(raylets)), others=True)
    return None


def finding(lease: Lease, asked: AskedGroup | None, groups: Sequence[Group], there: Machines) -> GroupFinding:
    """
    What a look says of a lease that our ledger has placed.

    Args:
        asked: None: nothing was asked of Ray yet.
        groups: all of its replica.
    """
    machine = there.get(lease.node) if lease.node is not None else None
    if machine is None:
        return GroupFinding.LOST
    if any(group.state == CREATED and group.raylet == machine.raylet for group in groups):
        return GroupFinding.HELD
    if asked is not None and asked.placed and asked.raylet == machine.raylet:
        return GroupFinding.LOST
    return GroupFinding.WAITS  # a raylet that was started again has to be asked anew; what we run there has outlived it


def placed_on(groups: Sequence[Group], there: Machines) -> NodeId | None:
    """Where Ray has placed a lease for which there was no room: on a node that has come meanwhile."""
    for group in groups:
        for name, machine in there.items():
            if group.state == CREATED and group.raylet == machine.raylet and _is_elsewhere(group, machine):
                return name
    return None


def _is_elsewhere(group: Group, machine: RayNode) -> bool:
    """Whether it was to be on any raylet but some, of which this is none."""
    selector = group.selector
    return selector is not None and selector.others and machine.raylet not in selector.raylets


def most_demand(raylets: int) -> int:
    """How many groups may wait for a node to be added, where there are so many. The others follow as these have one."""
    return max(1, MOST_DEMAND_BYTES // (56 * max(1, raylets)))


def is_right(group: Group, resources: Resources, wanted: Selector) -> bool:
    """Whether a group is, or waits to be, what is wanted. What Ray may hold too little of is the processor."""
    held, asked = group.bundle, bundle_of(resources)
    if (held.memory, held.gpus) != (asked.memory, asked.gpus) or held.cpus > asked.cpus:
        return False
    if group.state == CREATED:
        return not wanted.others and group.raylet in wanted.raylets
    if group.state not in WAITING or group.selector is None or group.selector.others != wanted.others:
        return False
    if wanted.others:
        return set(wanted.raylets) <= set(group.selector.raylets)
    return group.selector.raylets == wanted.raylets


class WantedGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A group that is to be there."""

    resources: Resources
    cpu_millis: int
    """Of the processor as much as that, if it has to be made: where it is overcommitted, less than is asked for."""
    selector: Selector


def changes(
    wanted: Mapping[ReplicaId, WantedGroup],
    groups: Mapping[ReplicaId, Sequence[Group]],
    *,
    spare: Collection[ReplicaId],
) -> tuple[list[str], dict[ReplicaId, NewGroup]]:
    """
    What has to be done so that Ray has the groups that are wanted.

    Args:
        groups: those that there are, of each replica the latest attempt first.
        spare: replicas whose groups stay although nobody wants them.

    Returns:
        Ids of groups to remove, and groups to make, in the order of `wanted`.
    """
    remove: list[str] = []
    make: dict[ReplicaId, NewGroup] = {}
    for replica, want in wanted.items():
        of_replica = groups.get(replica, ())
        right = next((group for group in of_replica if is_right(group, want.resources, want.selector)), None)
        remove += [group.id for group in of_replica if group is not right]
        if right is None:
            name = group_name(replica, attempt_of(of_replica[0].name) + 1 if of_replica else 1)
            bundle = bundle_of(want.resources, cpu_millis=want.cpu_millis)
            make[replica] = NewGroup(name=name, bundle=bundle, selector=want.selector)
    kept = {*wanted, *spare}
    remove += [group.id for replica, of_replica in groups.items() if replica not in kept for group in of_replica]
    return remove, make
