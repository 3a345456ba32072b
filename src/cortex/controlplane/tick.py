"""One turn of the control plane: observe, assess, show, plan, apply. The loop around it only waits and calls it."""

from __future__ import annotations

import logging

import msgspec

from cortex.controlplane.apply import Failures, apply
from cortex.controlplane.observe import observe, running_leases
from cortex.controlplane.world import Agents, StaleEpoch, World
from cortex.errors import CortexError
from cortex.planning.actions import Plan
from cortex.planning.assessment import assess

__all__ = ["Agents", "StaleEpoch", "World", "tick"]

log = logging.getLogger(__name__)

REPEAT_PAUSE_S = 0.2
"""Before the same actions are tried again: whatever keeps them from having an effect needs a moment."""


def tick(world: World) -> Plan:
    """
    Bring the world one step nearer to what is wanted.

    Returns:
        The plan that was applied. Call again when a report, the wanted state or the engine changes, and at the latest
        after its `wake_after_s`: 0 after a step that makes the next one possible.

    Raises:
        StaleEpoch: another control plane is in charge.
    """
    plan = _taken_further(world)
    loss_s, wake_s = world.memory.next_loss_s, plan.wake_after_s
    if loss_s is None or (wake_s is not None and wake_s <= loss_s):
        return plan
    return msgspec.structs.replace(plan, wake_after_s=loss_s)


def _taken_further(world: World) -> Plan:
    """The plan that was applied, and when to look again if every node is heard meanwhile."""
    memory = world.memory
    if not memory.recovered:
        _recover(world)
    observation = observe(world)
    seen = observation.seen
    situation = (memory.desired_revision, memory.leases_revision, memory.reports_seen, seen.settled, memory.lost)
    left_s = memory.plan.wake_after_s
    if left_s is not None:
        left_s = max(0.0, left_s - (seen.now_s - memory.planned_s))
    is_planned = not memory.plan.actions and memory.planned_for == situation and (left_s is None or left_s > 0)
    if is_planned and world.show is None:
        return msgspec.structs.replace(memory.plan, wake_after_s=left_s)
    assessment = assess(observation.desired, seen, world.rules)
    if world.show is not None:
        world.show(assessment)
    if is_planned:
        return msgspec.structs.replace(memory.plan, wake_after_s=left_s)
    plan = world.planner(assessment)
    memory.plan, memory.planned_for, memory.planned_s = plan, situation, seen.now_s
    if not plan.actions:
        return plan
    if log.isEnabledFor(logging.INFO):
        log.info("%s", plan.describe())
    failures = apply(plan, world)
    again_after_s = _again_after_s(plan, failures, repeated=plan.actions == memory.applied)
    memory.applied = plan.actions
    if plan.wake_after_s is not None:
        again_after_s = min(again_after_s, plan.wake_after_s)
    return msgspec.structs.replace(plan, wake_after_s=again_after_s)


def _again_after_s(plan: Plan, failures: Failures, *, repeated: bool) -> float:
    """When to look again after a plan was applied: at once if some api got on, else when what failed may work."""
    pause_s = failures.retry_after_s or 0.0
    if repeated:
        return max(REPEAT_PAUSE_S, pause_s)
    got_on = any(action.api not in failures.apis for action in plan.actions)
    return 0.0 if got_on else pause_s


def _recover(world: World) -> None:
    """Once all nodes have reported after our start: tell the engine what runs, before anything is planned."""
    if not observe(world).seen.settled:
        return
    try:
        world.state.rebase(now_wall_s=world.steady_wall_s())
        world.engine.recover(running_leases(world))
    except CortexError as error:
        log.warning("will be tried again: %s", error)
        return
    world.memory.recovered = True
