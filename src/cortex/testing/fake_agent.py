"""
Agents for tests: pretended nodes with replicas that live on a clock you move, and whose misfortunes are settings.

How a replica of a build behaves is its `FakeLife`; what becomes of orders on their way is a `Fate`.

| to see what happens when … | use |
|---|---|
| a build starts late, never or fails | `FakeLife.ready_after_s`, `never_ready`, `start_error`, `permanent` |
| a replica dies by itself some time after it was ready | `FakeLife.crash_after_s`, `exit_code`, `exit_signal`, `oom` |
| a replica takes long to drain, or ignores being asked to end | `FakeLife.drain_s`, `ignores_sigterm` |
| somebody kills a replica | `FakeAgents.kill` |
| somebody comes to a replica that sleeps | `FakeAgents.knock` |
| a replica sees that rows disagree | `FakeAgents.disagree` |
| an agent is restarted: it adopts what runs, orders on their way are lost | `restart_agent` |
| a node is lost, or comes (back), as another agent | `lose_node`, `add_node` |
| a node cannot be reached for a while; its replicas go on serving | `cut_off`, `reconnect` |
| a node hears no orders, or is not heard itself | `cut_off` with a `Way` |
| orders are lost, late, carried out twice, or carried out without an answer | `FakeAgents.fate` |
| reports arrive late | `report_delay_s` |
| a link lags: what goes over it arrives late in both directions | `FakeAgents.link_delay_s` |
| an ingress gets the routes late | `FakeAgents.route_delay_s` |

Orders to one node never overtake each other, as on the real thing's one connection.
"""

from __future__ import annotations

import signal as signals
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from cortex.clock import Clock
from cortex.controlplane.world import StaleEpoch
from cortex.errors import Problem, RetryLater
from cortex.ids import ApiKey, NodeId, ReplicaId, Version
from cortex.testing.builders import a_node
from cortex.wire.batching import BatchingState, Disagreement
from cortex.wire.orders import (
    UNNUMBERED,
    DrainReplica,
    ForgetReplica,
    HoldSlot,
    Order,
    Orders,
    RemoveRoute,
    RoutesRevision,
    SetReplicaBatching,
    SetRoute,
    SetRoutes,
    StartReplica,
)
from cortex.wire.reports import AgentReport, ExitReport, IngressReport, Node, Phase, ReplicaReport

RETRY_AFTER_S = 0.2
KILL_AFTER_S = 2.0
"""What an agent adds to a drain's time before it kills. As in `agent/life/ending.py`."""
KNOCK_HELD_S = 30.0
"""For how long whoever knocks waits for a replica to be started. As in `agent/life/sleeping.py`."""
RUNTIME = "pretended 1.0, cpu, 1 thread"
_NEVER_S = float("inf")


class FakeLife(msgspec.Struct, frozen=True, kw_only=True):
    """How the replicas of a build fare."""

    ready_after_s: float = 0.05
    """From the order to ready, or to the failure if there is one."""
    never_ready: bool = False
    """It hangs while it loads, until the agent gives it up after `start_timeout_s`."""
    start_error: Problem | None = None
    """Why it ends instead of becoming ready."""
    permanent: bool = False
    """It says so itself that it would fail again."""
    crash_after_s: float | None = None
    """How long after it was ready it ends by itself."""
    exit_code: int | None = 1
    exit_signal: int | None = None
    oom: bool = False
    drain_s: float = 0.0
    """How long it takes to finish what it holds."""
    ignores_sigterm: bool = False
    """It does not end when it is drained; the agent kills it when the drain's time is up."""
    peak_rss_bytes: int = 0


class Fate(StrEnum):
    """What becomes of a batch of orders on its way to a node."""

    DONE = "done"
    """Carried out and answered."""
    LOST = "lost"
    """Never arrives; the caller is told that the node cannot be reached."""
    UNANSWERED = "unanswered"
    """Carried out, but the caller is told that the node cannot be reached."""
    LATE = "late"
    """The caller is told that the node cannot be reached; carried out `late_by_s` later, or before the next orders."""
    TWICE = "twice"
    """Carried out twice, and answered."""


class Way(StrEnum):
    """What does not come through to and from a node."""

    BOTH = "both ways"
    ORDERS = "orders"
    """It is heard as ever."""
    REPORTS = "reports and answers"
    """It hears orders, and carries them out."""


class IngressAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a client gets from a node's ingress now."""

    outcome: str
    """`answered`, `held` (a replacement is on its way), `unavailable` (503) or `unknown` (404)."""
    replica: ReplicaId | None = None
    version: Version | None = None


@dataclass(eq=False)
class _Replica:
    order: StartReplica
    life: FakeLife
    phase: Phase
    since_s: float
    due_s: float = _NEVER_S
    """When it changes by itself."""
    was_ready: bool = False
    knocked_s: float | None = None
    """Since when somebody waits for it while it sleeps."""
    in_flight: int = 0
    exit: ExitReport | None = None
    stopping: bool = False
    started_wall_s: float = 0.0
    disagreement: Disagreement | None = None
    seen: ReplicaReport | None = None
    """The last report made of it; reports are compared by identity, so an unchanged one is reused."""


@dataclass(eq=False)
class _Made:
    """A report, when it was made, and until when it was true; None: it still is, or nobody has looked since."""

    report: AgentReport
    made_s: float
    true_until_s: float | None = None


@dataclass(eq=False)
class _Node:
    node: Node
    agent: str
    serial: int = 1
    epoch: int = 0
    replicas: dict[ReplicaId, _Replica] = field(default_factory=dict)
    routes: dict[ApiKey, SetRoute] = field(default_factory=dict)
    """As ordered."""
    routes_revision: RoutesRevision = UNNUMBERED
    ingress: dict[ApiKey, SetRoute] = field(default_factory=dict)
    """The routes that requests take."""
    ingress_due_s: float = _NEVER_S
    """When the ingress gets those that are ordered."""
    inbox: deque[tuple[float, Orders]] = field(default_factory=deque)
    """Late orders, oldest first, with the time they arrive."""
    down_until_s: float = -_NEVER_S
    cut_off: Way | None = None
    heard_s: float = 0.0
    changed_s: float | None = 0.0
    """When something changed that is in no report yet; None: nothing has."""
    made: deque[_Made] = field(default_factory=deque)
    """Reports, newest last; the first one is what the control plane sees."""


class FakeAgents:
    """
    Implements `controlplane.world.Agents` on pretended nodes.

    Args:
        nodes: the machines there are at first.
        start_timeout_s: after which a replica that hangs while it loads is given up.
    """

    def __init__(self, clock: Clock, nodes: Iterable[Node] = (a_node(),), *, start_timeout_s: float = 300.0) -> None:
        self.lives: Callable[[StartReplica], FakeLife] = lambda _order: FakeLife()
        """How the replica of a start order will fare."""
        self.runtimes: Callable[[StartReplica], str] = lambda _order: RUNTIME
        """What the replica of a start order runs on."""
        self.fate: Callable[[NodeId, Orders], Fate] = lambda _node, _orders: Fate.DONE
        """What becomes of a batch of orders."""
        self.late_by_s = 1.0
        self.report_delay_s = 0.0
        """How old the reports are that the control plane sees, unless an order was just answered."""
        self.link_delay_s: Callable[[NodeId], float] = lambda _node: 0.0
        """
        How late orders are carried out, and reports are seen, of a node whose link lags: too late for an answer. As on
        the real thing, no others are on their way meanwhile.
        """
        self.route_delay_s: Callable[[NodeId], float] = lambda _node: 0.0
        """How long it takes until a node's ingress has the routes that were ordered."""
        self.before_order: Callable[[NodeId, Order, Orders], None] = lambda _node, _order, _orders: None
        """Called before each order is carried out, with the batch it is part of."""
        self.on_exit: Callable[[NodeId, ReplicaReport], None] = lambda _node, _report: None
        """Called when a replica has ended that was not asked to."""
        self._clock = clock
        self._start_timeout_s = start_timeout_s
        self._agents = 0
        self._changes = 0
        self._replicas: tuple[int, tuple[tuple[NodeId, ReplicaReport], ...]] = (-1, ())
        self._routes: tuple[int, tuple[tuple[NodeId, SetRoute], ...]] = (-1, ())
        """What is true now, and as of which change."""
        self._nodes: dict[NodeId, _Node] = {}
        self._gone: dict[NodeId, _Node] = {}
        """Those that were lost: what they said last is known until they are back, or until all is forgotten."""
        self._next_due_s = _NEVER_S
        """Nothing happens by itself before."""
        for node in nodes:
            self.add_node(node)

    # ---- Agents -------------------------------------------------------------------------------------------------

    def reports(self) -> tuple[AgentReport, ...]:
        self._advance()
        seen = []
        for node in self._nodes.values():
            if self._reachable(node):
                node.heard_s = self._clock.monotonic_s()
                self._note_report(node)
                arrived_s = node.heard_s - self._delay_s(node)
                while len(node.made) > 1 and node.made[1].made_s <= arrived_s:
                    node.made.popleft()
            if node.made:
                seen.append(node.made[0].report)
        return (*seen, *(node.made[0].report for node in self._gone.values() if node.made))

    @property
    def settled(self) -> bool:
        return all(node.made or self._reachable(node) for node in self._nodes.values())

    def order(self, batches: Mapping[NodeId, Orders]) -> Mapping[NodeId, RetryLater]:
        self._advance()
        problems: dict[NodeId, RetryLater] = {}
        stale: StaleEpoch | None = None
        for node, orders in batches.items():
            try:
                self._order(node, orders)
            except RetryLater as error:
                problems[node] = error
            except StaleEpoch as error:
                stale = error
        if stale is not None:
            raise stale
        return problems

    def silent_s(self) -> Mapping[NodeId, float]:
        now_s = self._clock.monotonic_s()
        for node in self._nodes.values():
            if self._reachable(node):
                node.heard_s = now_s
        return {name: now_s - node.heard_s for name, node in {**self._gone, **self._nodes}.items()}

    def _order(self, node: NodeId, orders: Orders) -> None:
        found = self._nodes.get(node)
        if found is None or not self._hears(found):
            raise RetryLater(f"the agent of node {node} does not answer", after_s=RETRY_AFTER_S)
        link_delay_s = self.link_delay_s(node)
        if link_delay_s:
            if not found.inbox:
                self._send_late(found, orders, link_delay_s)
            raise RetryLater(f"node {node} did not answer in time", after_s=RETRY_AFTER_S)
        fate = self.fate(node, orders)
        if fate is Fate.LOST:
            raise RetryLater(f"orders to node {node} were lost", after_s=RETRY_AFTER_S)
        if fate is Fate.LATE:
            self._send_late(found, orders, self.late_by_s)
            raise RetryLater(f"node {node} did not answer in time", after_s=RETRY_AFTER_S)
        while found.inbox:
            self._carry_out(found, found.inbox.popleft()[1])
        if not self._carry_out(found, orders):
            raise StaleEpoch(f"orders of epoch {orders.epoch}, but epoch {found.epoch} is in charge")
        if fate is Fate.TWICE:
            self._carry_out(found, orders)
        if fate is Fate.UNANSWERED or not self._reachable(found):
            raise RetryLater(f"node {node} did not answer in time", after_s=RETRY_AFTER_S)
        self._note_report(found)
        while len(found.made) > 1:
            found.made.popleft()

    def _send_late(self, node: _Node, orders: Orders, by_s: float) -> None:
        node.inbox.append((self._clock.monotonic_s() + by_s, orders))
        self._next_due_s = min(self._next_due_s, node.inbox[0][0])

    # ---- misfortunes --------------------------------------------------------------------------------------------

    def kill(self, replica: ReplicaId, *, signal: int = signals.SIGKILL) -> bool:
        """Somebody kills a replica's process. False when there is none."""
        self._advance()
        for node in self._nodes.values():
            found = node.replicas.get(replica)
            if found is not None and found.phase not in (Phase.ASLEEP, Phase.EXITED):
                self._end(node, found, ExitReport(wall_s=self._clock.wall_s(), signal=signal, drained=found.stopping))
                return True
        return False

    def knock(self, replica: ReplicaId) -> bool:
        """Somebody comes to a replica that sleeps, and waits as long as is waited for one. False when none does."""
        self._advance()
        for node in self._nodes.values():
            found = node.replicas.get(replica)
            if found is not None and found.phase is Phase.ASLEEP:
                if found.knocked_s is None:
                    found.knocked_s = self._clock.monotonic_s()
                    found.due_s = found.knocked_s + KNOCK_HELD_S
                    self._next_due_s = min(self._next_due_s, found.due_s)
                    self._touch(node, found)
                return True
        return False

    def disagree(self, replica: ReplicaId) -> None:
        """A replica finds a row answered differently alone and together, and batches no more."""
        self._advance()
        for node in self._nodes.values():
            found = node.replicas.get(replica)
            if found is not None and found.phase is not Phase.EXITED:
                found.disagreement = Disagreement(output="y", alone="0.5", together="0.7")
                self._touch(node, found)

    def restart_agent(self, node: NodeId, *, down_s: float = 0.0) -> None:
        """The agent dies and is back after `down_s`; replicas and routes go on, orders on their way are lost."""
        self._advance()
        found = self._nodes[node]
        self._note_heard(found)
        found.agent = self._new_agent()
        found.serial = 1
        found.inbox.clear()
        found.down_until_s = self._clock.monotonic_s() + down_s
        self._note_change(found)

    def forget_reports(self) -> None:
        """What happens to all that was heard of the nodes when the control plane ends and starts again."""
        for node in self._nodes.values():
            node.made.clear()
            self._note_change(node)
        self._gone.clear()

    def cut_off(self, node: NodeId, way: Way = Way.BOTH) -> None:
        """The node can neither be ordered nor heard, or one of both; its replicas and its ingress go on."""
        self._note_heard(self._nodes[node])
        self._nodes[node].cut_off = way

    def reconnect(self, node: NodeId) -> None:
        self._nodes[node].cut_off = None

    def hurry(self) -> None:
        """Routes that are on their way to an ingress take no longer from now on than `route_delay_s` says now."""
        now_s = self._clock.monotonic_s()
        for node in self._nodes.values():
            if node.ingress_due_s < _NEVER_S:
                node.ingress_due_s = min(node.ingress_due_s, now_s + self.route_delay_s(node.node.node))
                self._next_due_s = min(self._next_due_s, node.ingress_due_s)

    def lose_node(self, node: NodeId) -> None:
        """The machine is gone with everything on it. Nobody says so: it is not heard any more."""
        self._advance()
        found = self._nodes[node]
        self._note_heard(found)
        self._gone[node] = self._nodes.pop(node)
        self._changes += 1
        self._note_change(found)
        for replica in found.replicas.values():
            if replica.phase not in (Phase.ASLEEP, Phase.EXITED):
                self.on_exit(node, self._report(replica))

    def add_node(self, node: Node, *, keeps_routes: bool = False) -> None:
        """
        A machine with a new agent, on which nothing runs. One that was lost before may be back.

        Args:
            keeps_routes: it has found on its disk the routes that it had before.
        """
        now_s = self._clock.monotonic_s()
        before = self._gone.pop(node.node, None)
        self._changes += 1
        added = self._nodes[node.node] = _Node(node=node, agent=self._new_agent(), heard_s=now_s, changed_s=now_s)
        if before is not None:
            added.made, added.changed_s = before.made, before.changed_s
            if keeps_routes:
                added.routes, added.routes_revision, added.ingress = (
                    before.routes,
                    before.routes_revision,
                    before.routes,
                )

    # ---- what is true now ---------------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """Another number whenever replicas or routes are others."""
        self._advance()
        return self._changes

    def reachable(self) -> tuple[tuple[NodeId, str], ...]:
        """The nodes whose agents answer, each with the process that this is."""
        return tuple(
            (node.node.node, node.agent) for node in self._nodes.values() if self._reachable(node) and self._hears(node)
        )

    @property
    def nodes(self) -> tuple[NodeId, ...]:
        return tuple(self._nodes)

    def replicas(self) -> tuple[tuple[NodeId, ReplicaReport], ...]:
        """Every replica as it is now, whatever the control plane has been told."""
        if self._replicas[0] != self.revision:
            found = [
                (node.node.node, self._report(replica))
                for node in self._nodes.values()
                for replica in node.replicas.values()
            ]
            self._replicas = (self._changes, tuple(found))
        return self._replicas[1]

    def ready(self) -> tuple[tuple[ReplicaReport, float], ...]:
        """Every replica that is ready, and the monotonic time since when."""
        self._advance()
        return tuple(
            (self._report(replica), replica.since_s)
            for node in self._nodes.values()
            for replica in node.replicas.values()
            if replica.phase is Phase.READY
        )

    def routes(self) -> tuple[tuple[NodeId, SetRoute], ...]:
        """Every route that requests take now."""
        if self._routes[0] != self.revision:
            found = [(node.node.node, route) for node in self._nodes.values() for route in node.ingress.values()]
            self._routes = (self._changes, tuple(found))
        return self._routes[1]

    def agent(self, node: NodeId) -> str:
        """The process that is a node's agent now."""
        return self._nodes[node].agent

    def heard(self) -> tuple[tuple[NodeId, str], ...]:
        """The nodes whose agents are heard, whether they hear orders or not."""
        return tuple((node.node.node, node.agent) for node in self._nodes.values() if self._reachable(node))

    def tables(self) -> tuple[tuple[NodeId, dict[ApiKey, SetRoute]], ...]:
        """The routes that requests take now on each node."""
        self._advance()
        return tuple((node.node.node, node.ingress) for node in self._nodes.values())

    def ordered_routes(self, node: NodeId) -> tuple[SetRoute, ...]:
        """The routes that a node was ordered to have, whether its ingress has them or not."""
        self._advance()
        return tuple(self._nodes[node].routes.values())

    def true_until_s(self, *, but: Collection[NodeId] = ()) -> float | None:
        """Monotonic time until which all that `reports` shows now was true, but for some nodes; None: it still is."""
        untils = []
        for node in (*self._nodes.values(), *self._gone.values()):
            if node.node.node in but:
                continue
            shown = node.made[0] if node.made else None
            until_s = node.changed_s if shown is None or shown.true_until_s is None else shown.true_until_s
            if until_s is not None:
                untils.append(until_s)
        return min(untils, default=None)

    def set_in_flight(self, replica: ReplicaId, in_flight: int) -> None:
        """Pretend that a replica holds so many requests."""
        for node in self._nodes.values():
            if replica in node.replicas:
                node.replicas[replica].in_flight = in_flight
                self._touch(node, node.replicas[replica])

    def ask(self, api: ApiKey, node: NodeId | None = None) -> IngressAnswer:
        """What a client's request gets now, at the door of a node (by default the first)."""
        self._advance()
        if node is None:
            node = next(iter(self._nodes), None)
        route = self._nodes[node].ingress.get(api) if node in self._nodes else None
        if route is None:
            return IngressAnswer(outcome="unknown")
        held = False
        for target in route.targets:
            for of_node in self._nodes.values():
                replica = of_node.replicas.get(target)
                if replica is None or replica.stopping:
                    continue
                if replica.phase is Phase.READY:
                    return IngressAnswer(outcome="answered", replica=target, version=replica.order.build.version)
                held = held or route.hold or replica.phase is Phase.ASLEEP
        return IngressAnswer(outcome="held" if held else "unavailable")

    def next_change_s(self) -> float | None:
        """Monotonic time of the next thing that happens by itself; None: nothing will."""
        due = [replica.due_s for node in self._nodes.values() for replica in node.replicas.values()]
        due += [node.inbox[0][0] for node in self._nodes.values() if node.inbox]
        due += [node.ingress_due_s for node in self._nodes.values()]
        now_s = self._clock.monotonic_s()
        due += [node.down_until_s for node in self._nodes.values() if node.down_until_s > now_s]
        due += [node.made[1].made_s + self._delay_s(node) for node in self._nodes.values() if len(node.made) > 1]
        soonest_s = min(due, default=_NEVER_S)
        return None if soonest_s == _NEVER_S else soonest_s

    # ---- orders -------------------------------------------------------------------------------------------------

    def _carry_out(self, node: _Node, orders: Orders) -> bool:
        """False when the orders are stale and were refused."""
        if orders.epoch < node.epoch:
            return False
        node.epoch = orders.epoch
        for order in orders.orders:
            if isinstance(order, SetRoutes) and not _fits(order, node.routes_revision):
                return True
            self.before_order(node.node.node, order, orders)
            match order:
                case StartReplica():
                    self._start(node, order)
                case HoldSlot():
                    self._hold(node, order)
                case SetReplicaBatching(replica=replica, batches=batches):
                    found = node.replicas.get(replica)
                    if found is not None and found.phase is not Phase.EXITED and found.order.batches != batches:
                        found.order = msgspec.structs.replace(found.order, batches=batches)
                        self._touch(node, found)
                case DrainReplica(replica=replica, timeout_s=timeout_s):
                    self._drain(node, replica, timeout_s)
                case ForgetReplica(replica=replica):
                    if node.replicas.pop(replica, None) is not None:
                        self._touch(node)
                case SetRoutes():
                    self._set_routes(node, order)
                case SetRoute(api=api):
                    self._route(node, {**node.routes, api: order}, UNNUMBERED)
                case RemoveRoute(api=api):
                    left = {key: route for key, route in node.routes.items() if key != api}
                    self._route(node, left, UNNUMBERED)
        return True

    def _set_routes(self, node: _Node, order: SetRoutes) -> None:
        if node.routes_revision != order.revision:
            kept = {} if order.base is None else node.routes
            routes = {api: route for api, route in kept.items() if api not in order.removed}
            self._route(node, {**routes, **{route.api: route for route in order.routes}}, order.revision)

    def _route(self, node: _Node, routes: dict[ApiKey, SetRoute], revision: RoutesRevision) -> None:
        node.routes, node.routes_revision = routes, revision
        due_s = self._clock.monotonic_s() + self.route_delay_s(node.node.node)
        node.ingress_due_s = min(node.ingress_due_s, due_s)
        self._next_due_s = min(self._next_due_s, node.ingress_due_s)
        self._touch(node)
        if node.ingress_due_s <= self._clock.monotonic_s():
            self._reach_ingress(node)

    def _reach_ingress(self, node: _Node) -> None:
        node.ingress, node.ingress_due_s = node.routes, _NEVER_S
        self._touch(node)

    def _start(self, node: _Node, order: StartReplica) -> None:
        known = node.replicas.get(order.replica)
        if known is not None and (
            known.order.attempt >= order.attempt or known.phase not in (Phase.ASLEEP, Phase.EXITED)
        ):
            return
        life = self.lives(order)
        now_s = self._clock.monotonic_s()
        wall_s = self._clock.wall_s()
        replica = _Replica(order=order, life=life, phase=Phase.STARTING, since_s=now_s, started_wall_s=wall_s)
        replica.due_s = now_s + (self._start_timeout_s if life.never_ready else life.ready_after_s)
        self._next_due_s = min(self._next_due_s, replica.due_s)
        node.replicas[order.replica] = replica
        self._touch(node)

    def _hold(self, node: _Node, order: HoldSlot) -> None:
        if order.replica in node.replicas:
            return
        asleep = StartReplica(replica=order.replica, attempt=0, build=order.build)
        now_s, wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        node.replicas[order.replica] = _Replica(
            order=asleep, life=FakeLife(), phase=Phase.ASLEEP, since_s=now_s, started_wall_s=wall_s
        )
        self._touch(node)

    def _drain(self, node: _Node, replica_id: ReplicaId, timeout_s: float) -> None:
        replica = node.replicas.get(replica_id)
        if replica is None or replica.stopping or replica.phase is Phase.EXITED:
            return
        if node.ingress_due_s < _NEVER_S:
            self._reach_ingress(node)  # a replica ends once its own node's ingress has let go of it
        now_s = self._clock.monotonic_s()
        replica.stopping = True
        if replica.phase is Phase.ASLEEP:
            self._end(node, replica, ExitReport(wall_s=self._clock.wall_s(), drained=True))
            return
        replica.phase, replica.since_s = Phase.DRAINING, now_s
        takes_s = timeout_s + KILL_AFTER_S if replica.life.ignores_sigterm else min(timeout_s, replica.life.drain_s)
        replica.due_s = now_s + takes_s
        self._next_due_s = min(self._next_due_s, replica.due_s)
        self._touch(node, replica)

    # ---- lives --------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Let everything happen whose time has come, in the order of time."""
        now_s = self._clock.monotonic_s()
        if now_s < self._next_due_s:
            return
        while now_s >= self._next_due_s:
            self._next_due_s = _NEVER_S
            for node in tuple(self._nodes.values()):
                while node.inbox and node.inbox[0][0] <= now_s:
                    self._carry_out(node, node.inbox.popleft()[1])
                if node.ingress_due_s <= now_s:
                    self._reach_ingress(node)
                self._next_due_s = min(self._next_due_s, node.ingress_due_s)
                for replica in tuple(node.replicas.values()):
                    while replica.due_s <= now_s:
                        self._live_on(node, replica)
                    self._next_due_s = min(self._next_due_s, replica.due_s)
                if node.inbox:
                    self._next_due_s = min(self._next_due_s, node.inbox[0][0])

    def _live_on(self, node: _Node, replica: _Replica) -> None:
        life, due_s = replica.life, replica.due_s
        wall_s = self._clock.wall_s()
        if replica.phase is Phase.ASLEEP:
            replica.knocked_s, replica.due_s = None, _NEVER_S
            self._touch(node, replica)
        elif replica.phase is Phase.DRAINING:
            signal = signals.SIGKILL if life.ignores_sigterm else None
            code = None if life.ignores_sigterm else 0
            self._end(node, replica, ExitReport(wall_s=wall_s, code=code, signal=signal, drained=True))
        elif replica.phase is Phase.READY:
            self._end(node, replica, self._own_end(life, None))
        elif life.never_ready:
            problem = Problem(reference="start-timeout", message="no progress for 300 s while loading")
            self._end(
                node,
                replica,
                ExitReport(wall_s=wall_s, signal=signals.SIGKILL, problem=problem, permanent=True),
            )
        elif life.start_error is not None:
            self._end(node, replica, self._own_end(life, life.start_error))
        else:
            replica.phase, replica.since_s, replica.was_ready = Phase.READY, due_s, True
            replica.due_s = _NEVER_S if life.crash_after_s is None else due_s + life.crash_after_s
            self._touch(node, replica)

    def _own_end(self, life: FakeLife, problem: Problem | None) -> ExitReport:
        return ExitReport(
            wall_s=self._clock.wall_s(),
            code=None if life.exit_signal else life.exit_code,
            signal=life.exit_signal,
            oom=life.oom,
            peak_bytes=life.peak_rss_bytes,
            problem=problem,
            permanent=life.permanent and problem is not None,
        )

    def _end(self, node: _Node, replica: _Replica, exit_report: ExitReport) -> None:
        if not exit_report.drained:
            self.on_exit(node.node.node, self._report(replica))
        replica.phase, replica.since_s = Phase.EXITED, self._clock.monotonic_s()
        replica.due_s = _NEVER_S
        replica.exit = exit_report
        self._touch(node, replica)

    # ---- reports ------------------------------------------------------------------------------------------------

    def _touch(self, node: _Node, replica: _Replica | None = None) -> None:
        node.serial += 1
        self._changes += 1
        self._note_change(node)
        if replica is not None:
            replica.seen = None

    def _note_change(self, node: _Node) -> None:
        if node.changed_s is None:
            node.changed_s = self._clock.monotonic_s()

    def _reachable(self, node: _Node) -> bool:
        """Whether it is heard."""
        return node.cut_off in (None, Way.ORDERS) and self._clock.monotonic_s() >= node.down_until_s

    def _hears(self, node: _Node) -> bool:
        """Whether orders get there."""
        return node.cut_off in (None, Way.REPORTS) and self._clock.monotonic_s() >= node.down_until_s

    def _note_heard(self, node: _Node) -> None:
        """Of one that will not be heard in a moment: a real one is heard every second, whoever looks."""
        if self._reachable(node):
            node.heard_s = self._clock.monotonic_s()

    def _delay_s(self, node: _Node) -> float:
        """How old reports of a node are when they are seen."""
        return max(self.report_delay_s, self.link_delay_s(node.node.node))

    def _note_report(self, node: _Node) -> None:
        if node.changed_s is None:
            return
        if node.made:
            node.made[-1].true_until_s = node.changed_s
        node.changed_s = None
        report = AgentReport(
            node=node.node,
            serial=node.serial,
            agent=node.agent,
            epoch=node.epoch,
            pid=1,
            started_wall_s=0.0,
            replicas=tuple(self._report(replica) for replica in node.replicas.values()),
            routes=tuple(node.routes.values()),
            routes_revision=node.routes_revision,
            pending_routes=_pending(node),
            ingress=IngressReport(up=True, host="127.0.0.1", port=8880),
        )
        node.made.append(_Made(report, self._clock.monotonic_s()))

    def _report(self, replica: _Replica) -> ReplicaReport:
        if replica.seen is None:
            build = replica.order.build
            replica.seen = ReplicaReport(
                replica=replica.order.replica,
                api=build.api,
                version=build.version,
                revision=build.revision,
                attempt=replica.order.attempt,
                phase=replica.phase,
                resources=build.resources,
                devices=replica.order.devices,
                was_ready=replica.was_ready,
                knocked_age_s=None if replica.knocked_s is None else self._clock.monotonic_s() - replica.knocked_s,
                started_wall_s=replica.started_wall_s,
                in_flight=replica.in_flight,
                peak_rss_bytes=replica.life.peak_rss_bytes,
                model=build.model_key,
                batches=replica.order.batches,
                batching=None if replica.phase in (Phase.ASLEEP, Phase.STARTING) else self._batching(replica),
                exit=replica.exit,
            )
        return replica.seen

    def _batching(self, replica: _Replica) -> BatchingState:
        runtime = self.runtimes(replica.order)
        return BatchingState(order=replica.order.batches, runtime=runtime, disagreement=replica.disagreement)

    def _new_agent(self) -> str:
        self._agents += 1
        return f"agent-{self._agents}"


def _fits(order: SetRoutes, revision: RoutesRevision) -> bool:
    """False when an order says what changes in a table that a node does not have. As in `agent/memory.py`."""
    return order.base is None or revision in (order.base, order.revision)


def _pending(node: _Node) -> tuple[ApiKey, ...]:
    if node.routes is node.ingress:
        return ()
    apis = node.routes.keys() | node.ingress.keys()
    return tuple(sorted(api for api in apis if node.routes.get(api) != node.ingress.get(api)))
