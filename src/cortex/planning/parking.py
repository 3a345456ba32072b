"""
Whether one replica of the version before stays ready, out of rotation, while a new version is watched. Pure.

As long as it does, going back is a change of the route. It holds room that nobody else asks for: whoever waits for any
gets it before somebody who serves gives up some.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from cortex.ids import NodeId, Revision
from cortex.planning.model import Lease, LeaseState, Snapshot, WantedApi
from cortex.wire.reports import AgentReport, Phase


class Parking(msgspec.Struct, frozen=True):
    """Where replicas may be parked at one moment."""

    nodes: frozenset[NodeId] = frozenset()
    with_spare_gpu: frozenset[NodeId] = frozenset()
    """Where a GPU is left that nobody holds: the next version is looked at there."""

    def allows(self, lease: Lease) -> bool:
        """Whether the replica with this room may keep it."""
        return lease.node in self.nodes and (not lease.devices or lease.node in self.with_spare_gpu)


def parked_revision(wanted: WantedApi) -> Revision | None:
    """Of which revision a replica stays ready, if of any: of what was live before, while that may come back unasked."""
    if wanted.watched_until_wall_s is None or wanted.live_wall_s is None or wanted.failed is not None:
        return None
    return None if wanted.scale.asleep else wanted.previous


def parking_of(seen: Snapshot) -> Parking:
    """
    Nowhere while anybody waits for room, whatever it is that lacks; else where memory is not short.

    Who waits may fit on any node, and a replica that nobody asks is the first to make room.
    """
    if any(lease.state is LeaseState.PENDING for lease in seen.leases):
        return Parking()
    held = Counter(lease.node for lease in seen.leases for _device in lease.devices)
    return Parking(
        nodes=frozenset(report.name for report in seen.nodes if not _is_short_of_memory(report)),
        with_spare_gpu=frozenset(report.name for report in seen.nodes if held[report.name] < report.node.gpus),
    )


def _is_short_of_memory(report: AgentReport) -> bool:
    """Hardly any is left, or replicas state or have used more than there is, or the kernel has just ended one."""
    if report.memory_short:
        return True
    running = [one for one in report.replicas if one.phase not in (Phase.ASLEEP, Phase.EXITED)]
    used = sum(one.peak_rss_bytes if one.resources.mem_bytes is None else one.resources.mem_bytes for one in running)
    return used > report.node.mem_bytes or any(one.exit is not None and one.exit.oom for one in report.replicas)
