"""From reports, leases and stored state to what planning is told. Asks nobody: everything is at hand already."""

from __future__ import annotations

import logging
from operator import is_

import msgspec

from cortex.controlplane.world import World
from cortex.ids import NodeId
from cortex.planning.model import Desired, Lease, Snapshot
from cortex.planning.reach import LOST_AFTER_S, lost_nodes, next_loss_s
from cortex.wire.reports import AgentReport, Phase

log = logging.getLogger(__name__)

SETTLE_LIMIT_S = 30.0
"""After our start, how long the one node may be silent until something is decided all the same."""
LONGEST_LOOK_AWAY_S = 8.0
"""Who has not looked for longer was stopped, or busy with itself: it cannot say who was silent meanwhile."""


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
    silent_s = _silent_s(world, reports, now_s)
    _pass_on(world, lost_nodes(silent_s), memory.desired.leaving)
    memory.next_loss_s = next_loss_s(silent_s)
    patience_s = LOST_AFTER_S if len(silent_s) > 1 else SETTLE_LIMIT_S
    settled = world.agents.settled or now_s - memory.started_s >= patience_s
    seen = Snapshot(now_s=now_s, nodes=reports, silent_s=silent_s, leases=memory.leases, settled=settled)
    return Observation(desired=memory.desired, seen=seen)


def _silent_s(world: World, reports: tuple[AgentReport, ...], now_s: float) -> dict[NodeId, float]:
    """For how long each node has been silent while we listened, also those that the engine knows and we never heard."""
    memory = world.memory
    if now_s - memory.looked_s > LONGEST_LOOK_AWAY_S:
        memory.attentive_since_s = now_s
    memory.looked_s = now_s
    heard = {report.name: 0.0 for report in reports}
    silent_s = {**heard, **world.agents.silent_s()}
    for node in world.engine.nodes():
        if node.node not in silent_s:
            silent_s[node.node] = now_s - memory.met_s.setdefault(node.node, now_s)
    listened_s = now_s - memory.attentive_since_s
    return {node: min(silent, listened_s) for node, silent in silent_s.items()}


def _pass_on(world: World, lost: frozenset[NodeId], leaving: frozenset[NodeId]) -> None:
    """Tell the engine where nothing is to be placed."""
    memory = world.memory
    if (lost, leaving) == (memory.lost, memory.leaving):
        return
    for node in sorted(lost - memory.lost):
        log.warning("node %s is lost: it has not been heard for %g s", node, LOST_AFTER_S)
    for node in sorted(memory.lost - lost):
        log.info("node %s is back", node)
    world.engine.avoid(lost, leaving)
    memory.lost, memory.leaving = lost, leaving


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
