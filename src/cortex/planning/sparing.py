"""
Which node is given back, because the others have room for what runs there. Pure.

A node is spare while its replicas would fit on the other nodes, and it leaves once it has been spare for ten minutes:
from then on nothing is placed there, what runs there is replaced elsewhere (`planning.rollout`), and when nothing is
left it is empty and may be given back. One node at a time, so that each is judged by what the one before has left
behind. Where there are more nodes than there may be, nobody waits ten minutes.

A node that leaves stays again while that costs nothing: when somebody waits for room, or when there are to be more
nodes. Once it was given back there is no way back, so whoever does that acts on `empty` alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from cortex.ids import ApiKey, NodeId
from cortex.planning.model import Lease, LeaseState
from cortex.wire.build import Resources
from cortex.wire.reports import Node

SPARE_FOR_S = 600.0
"""How long a node's replicas have to fit elsewhere: load that comes and goes within minutes moves nobody."""


class NodeBounds(msgspec.Struct, frozen=True, kw_only=True):
    """How many nodes there may be; the head counts."""

    minimum: int
    maximum: int


class Sparing(msgspec.Struct, frozen=True, kw_only=True):
    """What is to become of each node."""

    leaving: frozenset[NodeId] = frozenset()
    """To be given back."""
    empty: frozenset[NodeId] = frozenset()
    """Of these, the ones on which nothing is left."""
    spare_since_s: Mapping[NodeId, float] = {}
    """Since when each spare node has been one, for the next look."""
    why: Mapping[NodeId, str] = {}
    """Of each node: why it is kept, or goes. For people."""


def spare(
    nodes: Sequence[Node],
    leases: Sequence[Lease],
    *,
    bounds: NodeBounds,
    kept: Mapping[NodeId, str],
    before: Sparing,
    now_s: float,
) -> Sparing:
    """
    Judge every node once more.

    Args:
        nodes: those that are there, with what each has when it is empty.
        leases: all there are. Cpu that they ask for is held for each alone.
        kept: nodes that are not ours to give back, with the reason, such as the head.
        before: what was decided the last time; empty after our own start, but for who leaves.
        now_s: monotonic seconds.
    """
    granted = [lease for lease in leases if lease.state is LeaseState.GRANTED]
    held: dict[NodeId, list[Lease]] = {node.node: [] for node in nodes}
    for lease in granted:
        if lease.node in held:
            held[lease.node].append(lease)
    waits = any(lease.state is LeaseState.PENDING and not lease.request.surge for lease in leases)
    leaving = {node for node in before.leaving if node in held and node not in kept}
    if waits and len(nodes) <= bounds.maximum:
        leaving.clear()
    while leaving and len(nodes) - len(leaving) < bounds.minimum:
        leaving.remove(max(leaving, key=lambda node: (len(held[node]), node)))
    why: dict[NodeId, str] = dict.fromkeys(leaving, "its replicas move to other nodes")
    spare_since_s: dict[NodeId, float] = {}
    surplus = len(nodes) - len(leaving) - bounds.maximum
    for node in sorted(nodes, key=lambda node: (_share(node, held[node.node]), node.node)):
        name = node.node
        if name in leaving:
            continue
        others = [other for other in nodes if other.node != name and other.node not in leaving]
        reason = kept.get(name) or _reason_to_stay(node, held, others, bounds, waits=waits, surplus=surplus)
        if reason is not None:
            why[name] = reason
            continue
        since_s = spare_since_s[name] = before.spare_since_s.get(name, now_s)
        if leaving or (surplus <= 0 and now_s - since_s < SPARE_FOR_S):
            left_s = max(0.0, SPARE_FOR_S - (now_s - since_s))
            why[name] = f"spare: its replicas fit on other nodes; given back in {left_s:.0f} s if that stays so"
            continue
        leaving.add(name)
        del spare_since_s[name]
        why[name] = (
            f"there are more nodes than {bounds.maximum}"
            if surplus > 0
            else f"its replicas fit on other nodes, for {SPARE_FOR_S / 60:.0f} min by now"
        )
    return Sparing(
        leaving=frozenset(leaving),
        empty=frozenset(node for node in leaving if not held[node]),
        spare_since_s=spare_since_s,
        why=why,
    )


def _reason_to_stay(
    node: Node,
    held: Mapping[NodeId, Sequence[Lease]],
    others: Sequence[Node],
    bounds: NodeBounds,
    *,
    waits: bool,
    surplus: int,
) -> str | None:
    if len(others) < bounds.minimum:
        return f"at least {bounds.minimum} nodes are wanted"
    if waits and surplus <= 0:
        return "somebody waits for room"
    return _homeless(held[node.node], others, held)


def _homeless(leases: Sequence[Lease], others: Sequence[Node], held: Mapping[NodeId, Sequence[Lease]]) -> str | None:
    """
    Why these leases do not all fit on the other nodes, beside what is held there; None: they do.

    The largest first, each where most is held; two replicas of an api stay on two nodes.
    """
    free = {node.node: _left(node, held[node.node]) for node in others}
    of_api: dict[ApiKey, Counter[NodeId]] = {}
    for node in others:
        for lease in held[node.node]:
            of_api.setdefault(lease.request.api, Counter())[node.node] += 1
    for lease in sorted(leases, key=_size, reverse=True):
        asked = lease.request.resources
        there = of_api.setdefault(lease.request.api, Counter())
        alone = next(iter(there)) if len(there) == 1 and len(others) > 1 else None
        can = [name for name, left in free.items() if name != alone and _fits(asked, left)]
        if not can:
            beside = " beside those of its api" if alone is not None and _fits(asked, free[alone]) else ""
            return f"{lease.request.replica} fits on no other node{beside}"
        chosen = min(can, key=lambda name: (free[name][0], name))
        cpu_millis, mem_bytes, gpus = free[chosen]
        free[chosen] = cpu_millis - asked.cpu_millis, mem_bytes - (asked.mem_bytes or 0), gpus - asked.gpus
        there[chosen] += 1
    return None


def _left(node: Node, leases: Iterable[Lease]) -> tuple[int, int, int]:
    """Cpu in millis, memory in bytes and GPUs that nobody holds."""
    asked = [lease.request.resources for lease in leases]
    return (
        node.cpu_millis - sum(one.cpu_millis for one in asked),
        node.mem_bytes - sum(one.mem_bytes or 0 for one in asked),
        node.gpus - sum(one.gpus for one in asked),
    )


def _fits(asked: Resources, left: tuple[int, int, int]) -> bool:
    return asked.cpu_millis <= left[0] and (asked.mem_bytes or 0) <= left[1] and asked.gpus <= left[2]


def _size(lease: Lease) -> tuple[int, int, int, str]:
    asked = lease.request.resources
    return asked.gpus, asked.cpu_millis, asked.mem_bytes or 0, lease.request.replica


def _share(node: Node, leases: Sequence[Lease]) -> float:
    """How much of a node is held, from 0 to 1: of what most is held."""
    asked = [lease.request.resources for lease in leases]
    cpu = sum(one.cpu_millis for one in asked) / max(1, node.cpu_millis)
    memory = sum(one.mem_bytes or 0 for one in asked) / max(1, node.mem_bytes)
    return max(cpu, memory)
