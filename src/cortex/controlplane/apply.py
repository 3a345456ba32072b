"""
Carrying out a plan.

What adds (records, marks, room, starts, routes) is tried for every api, whatever else went wrong. What takes away
(drains, forgetting, releases) is done only for an api all of whose other actions of this plan worked: so a full disk,
an unreachable node or a broken engine never costs a replica. What was left out is planned again at the next tick.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from cortex.controlplane.rollback import take_back
from cortex.controlplane.tables import table_change
from cortex.controlplane.world import World
from cortex.engines.base import Engine
from cortex.errors import CortexError, RetryLater
from cortex.ids import ApiKey, NodeId
from cortex.planning import happenings
from cortex.planning.actions import (
    AcquireLease,
    Action,
    GoBack,
    MarkAwake,
    MarkFailed,
    MarkLive,
    MarkServing,
    OrderNode,
    Plan,
    RecordExit,
    RecordReady,
    RecordStop,
    RecoverLease,
    ReleaseLease,
    RouteApi,
    UnrouteApi,
    describe,
)
from cortex.planning.model import WantedApi
from cortex.wire.batching import RULES
from cortex.wire.events import Event, TellEvent
from cortex.wire.orders import DrainReplica, ForgetReplica, Orders

log = logging.getLogger(__name__)

Kept = RecordExit | RecordReady | RecordStop | MarkServing | MarkLive | MarkFailed | MarkAwake | GoBack
"""What changes nothing but the state."""

RETRY_AFTER_S = 0.5
"""When an error does not say itself when to try again."""


class Failures:
    """
    Apis with an action that failed, and when to try again.

    Args:
        told: what was logged for the plan before; the same again is not worth a second line.
    """

    def __init__(self, told: frozenset[str] = frozenset()) -> None:
        self.apis: set[ApiKey] = set()
        self.retry_after_s: float | None = None
        self.lines: set[str] = set()
        self._told = told

    def note(self, actions: Iterable[Action], error: CortexError) -> None:
        after_s = error.after_s if isinstance(error, RetryLater) else RETRY_AFTER_S
        self.retry_after_s = after_s if self.retry_after_s is None else min(self.retry_after_s, after_s)
        for action in actions:
            self.apis.add(action.api)
            line = f"{describe(action)}: {error}"
            self.lines.add(line)
            if line not in self._told:
                log.warning("failed, will be tried again: %s", line)


def apply(plan: Plan, world: World) -> Failures:
    """
    Carry out a plan, each action in its turn.

    Raises:
        CortexError: an agent refuses us for good, as with `StaleEpoch`; nothing more was done.
    """
    failures = Failures(world.memory.complaints)
    _keep([action for action in plan.actions if isinstance(action, Kept)], world, failures)
    # Each is placed as it is asked for: what lies above the minimum of one api must not take the room of another's.
    for action in sorted(plan.actions, key=_is_above_the_minimum):
        if isinstance(action, AcquireLease | RecoverLease):
            try:
                _make_room(action, world.engine)
            except CortexError as error:
                failures.note([action], error)
    table = table_change([action for action in plan.actions if isinstance(action, RouteApi | UnrouteApi)], world)
    orders = [action for action in plan.actions if isinstance(action, OrderNode)]
    adds = [*(action for action in orders if not _takes_away(action)), *table.orders]
    takes = [action for action in orders if _takes_away(action)]
    # One message is taken as a whole, so what takes away may ride along behind what it depends on.
    ride_along = len({action.node for action in (*adds, *takes)}) <= 1
    give_orders([*adds, *(a for a in takes if ride_along and a.api not in failures.apis)], world, failures)
    for node, problem in table.refusals(world.agents.reports()) if table.orders else ():
        failures.note((*table.causes, *(action for action in takes if action.node == node)), problem)
    if not ride_along:
        give_orders([a for a in takes if a.api not in failures.apis], world, failures)
    for action in plan.actions:
        if isinstance(action, ReleaseLease) and action.api not in failures.apis:
            try:
                world.engine.release(action.replica)
            except CortexError as error:
                failures.note([action], error)
    world.memory.complaints = frozenset(failures.lines)
    return failures


def _keep(actions: Sequence[Kept], world: World, failures: Failures) -> None:
    """Have all that the state is to know in one transaction, and then tell of it."""
    if not actions:
        return
    told: list[Event] = []
    try:
        with world.state.together():
            for action in actions:
                _record(action, world, told.append)
    except CortexError as error:
        failures.note(actions, error)
    else:
        for event in told:
            world.tell(event)


def _record(action: Kept, world: World, tell: TellEvent) -> None:
    state, wall_s = world.state, world.clock.wall_s()
    before = state.api(action.api)
    wanted = before.wanted if before is not None else None
    # As it was before: what is wanted and not live yet can become so, or be given up.
    is_wanted = (
        isinstance(action, MarkLive | MarkFailed)
        and wanted is not None
        and wanted.build.revision == action.revision
        and wanted.live_wall_s is None
    )
    match action:
        case RecordExit():
            state.record_exit(action, wall_s=world.steady_wall_s())
            if wanted is not None:
                tell(happenings.crashed(action, wanted))
        case RecordStop():
            stop = msgspec.structs.replace(action.stop, wall_s=wall_s)
            state.record_stop(action.model, stop, rules=RULES)
            tell(happenings.batching_stopped(action))
            log.warning("%s, on %s", describe(action), stop.runtime or "a runtime that it did not name")
        case RecordReady():
            state.record_ready(action.api, action.revision, action.replica)
        case MarkServing():
            state.mark_serving(action.api, action.revision)
        case MarkLive():
            state.mark_live(action.api, action.revision, wall_s=wall_s)
            if is_wanted and wanted is not None:
                tell(happenings.live(wanted, _starts_s(wanted, world), wall_s=wall_s))
        case MarkFailed():
            state.mark_failed(action.api, action.revision, action.problem, wall_s=wall_s)
            if is_wanted and wanted is not None and wanted.failed is None:
                tell(happenings.failed(wanted, action.problem))
        case MarkAwake():
            state.wake(action.api, wall_s=wall_s - action.waited_s)
        case GoBack():
            reason = action.problem.message.partition("\n")[0]
            take_back(state, tell, action.api, action.revision, action.to, reason=reason, wall_s=wall_s)
            log.warning("%s", describe(action))


def _make_room(action: AcquireLease | RecoverLease, engine: Engine) -> None:
    match action:
        case AcquireLease():
            engine.acquire(action.request)
        case RecoverLease():
            engine.recover([action.lease])


def _starts_s(wanted: WantedApi, world: World) -> Iterator[float | None]:
    for report in world.agents.reports():
        for replica in report.replicas:
            if replica.api == wanted.api and replica.revision == wanted.build.revision:
                yield replica.start_s


def _is_above_the_minimum(action: Action) -> bool:
    return isinstance(action, AcquireLease) and not action.request.minimum and not action.request.surge


def _takes_away(action: OrderNode) -> bool:
    return isinstance(action.order, DrainReplica | ForgetReplica)


def give_orders(actions: Sequence[OrderNode], world: World, failures: Failures) -> None:
    """One message a node, in the plan's sequence. A node that cannot be reached holds up no other."""
    by_node: dict[NodeId, list[OrderNode]] = {}
    for action in actions:
        by_node.setdefault(action.node, []).append(action)
    if not by_node:
        return
    problems = world.agents.order(
        {
            node: Orders(epoch=world.epoch, orders=tuple(action.order for action in of_node))
            for node, of_node in by_node.items()
        }
    )
    world.memory.certain = (world.memory.certain | by_node.keys()) - problems.keys()
    for node, error in problems.items():
        failures.note(by_node[node], error)
