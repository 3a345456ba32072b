"""
Which nodes are within reach. Pure.

A node is lost when nothing has been heard of it for some seconds. We say so ourselves: whoever lends machines notices
only after a minute. What ran there counts as lost: others take its place where there is room, and routes are without
it. The node may be well and cut off; what it still runs is taken as it is once it is heard again.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cortex.ids import NodeId
from cortex.planning.model import Lease, LeaseState, Snapshot

LOST_AFTER_S = 5.0
"""Each of several nodes is heard every second. One that has too much to do is not to be taken for lost."""


def lost_nodes(silent_s: Mapping[NodeId, float]) -> frozenset[NodeId]:
    """
    The nodes that are lost.

    Where none at all is heard it is us who hear nothing, and on one machine there is nowhere to go: then they are those
    that were lost when one was heard last.
    """
    last_heard_s = min(silent_s.values(), default=0.0)
    deaf_s = last_heard_s if last_heard_s >= LOST_AFTER_S else 0.0
    return frozenset(node for node, silent in silent_s.items() if silent - deaf_s >= LOST_AFTER_S)


def next_loss_s(silent_s: Mapping[NodeId, float]) -> float | None:
    """Seconds until one more node counts as lost if it stays silent; None: no time makes any."""
    left_s = [LOST_AFTER_S - silent for silent in silent_s.values() if silent < LOST_AFTER_S]
    return min(left_s) if len(silent_s) > 1 and left_s else None


def within_reach(seen: Snapshot) -> Snapshot:
    """What is seen, without what is told by lost nodes; leases there are lost as well."""
    lost = lost_nodes(seen.silent_s)
    if not lost:
        return seen
    return msgspec.structs.replace(
        seen,
        nodes=tuple(node for node in seen.nodes if node.name not in lost),
        leases=tuple(_lost(lease) if lease.node in lost else lease for lease in seen.leases),
        beyond=frozenset(report.replica for node in seen.nodes if node.name in lost for report in node.replicas),
    )


def _lost(lease: Lease) -> Lease:
    if lease.state is not LeaseState.GRANTED or lease.node is None:
        return lease
    reason = f"node {lease.node} has not been heard for {LOST_AFTER_S:g} s"
    return msgspec.structs.replace(lease, state=LeaseState.LOST, reason=reason, lacks=None)
