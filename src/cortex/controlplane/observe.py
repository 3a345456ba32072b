"""From reports, leases and stored state to what planning is told. Asks nobody: everything is at hand already."""

from __future__ import annotations

from operator import is_

import msgspec

from cortex.controlplane.world import World
from cortex.planning.model import Desired, Lease, Snapshot
from cortex.wire.reports import AgentReport, Phase

SETTLE_LIMIT_S = 30.0
"""After our start, how long a silent node may keep us from acting on the others. Leases on it stay untouched."""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted and what is there, at one moment."""

    desired: Desired
    seen: Snapshot


def observe(world: World) -> Observation:
    """Everything planning needs, with what has not changed since the last call taken from memory."""
    memory = world.memory
    now_s = world.clock.monotonic_s()
    state_revision = world.state.revision
    if memory.desired_revision != state_revision:
        desired = world.state.desired(now_wall_s=world.steady_wall_s())
        memory.desired = msgspec.structs.replace(desired, as_of_s=now_s)
        memory.desired_revision = state_revision
    reports = world.agents.reports()
    _pass_on_usage(world, reports)
    engine_revision = world.engine.revision
    if memory.leases_revision != engine_revision:
        memory.leases = world.engine.leases()
        memory.leases_revision = engine_revision
    settled = world.agents.settled or now_s - memory.started_s >= SETTLE_LIMIT_S
    seen = Snapshot(now_s=now_s, nodes=reports, leases=memory.leases, settled=settled)
    return Observation(desired=memory.desired, seen=seen)


def running_leases(world: World) -> tuple[Lease, ...]:
    """The room that everything reported holds, for an engine that has to be told again after our restart."""
    return tuple(
        Lease.of_running(replica, report.name)
        for report in world.agents.reports()
        for replica in report.replicas
        if replica.phase is not Phase.ASLEEP
    )


def _pass_on_usage(world: World, reports: tuple[AgentReport, ...]) -> None:
    """Tell the engine what replicas without a memory request use, once for each report."""
    memory = world.memory
    memory.reports_seen = tuple((report.name, report.agent, report.serial) for report in reports)
    if len(reports) == len(memory.reports) and all(map(is_, reports, memory.reports)):
        return
    memory.reports = reports
    peaks = {
        replica.replica: replica.peak_rss_bytes
        for report in reports
        for replica in report.replicas
        if replica.resources.mem_bytes is None and replica.peak_rss_bytes
    }
    if peaks:
        world.engine.note_usage(peaks)
