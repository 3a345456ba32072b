"""The pretended nodes of a schedule, and the real control plane on them."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn, cast

from cortex.controlplane.scaling import Scaling
from cortex.controlplane.tick import World, tick
from cortex.controlplane.world import Planner
from cortex.engines.fake import FakeEngine
from cortex.errors import RetryLater
from cortex.ids import ApiKey, NodeId, ReplicaId, Revision, Version
from cortex.planning.actions import Plan
from cortex.planning.assessment import Assessment
from cortex.planning.autoscale import Rule
from cortex.planning.model import Rules, Snapshot, WantedApi
from cortex.state.base import ApiRecord
from cortex.state.records import StateStore
from cortex.testing.builders import a_node
from cortex.testing.clock import FakeClock
from cortex.testing.fake_agent import FakeAgents, Fate
from cortex.testing.simulation.builds import SLOWEST_START_S, BuildKind, life_of
from cortex.wire.build import BuildSpec, ModelKey
from cortex.wire.loads import NodeLoads
from cortex.wire.orders import Orders
from cortex.wire.reports import Node, Phase, ReplicaReport

LONGEST_WAIT_S = 5.0
"""The loop around `tick` looks at the world this often even if nothing wakes it."""
SHORTEST_WAIT_S = 0.001
"""No wait is shorter than that, or the clock would not notice."""
START_TIMEOUT_S = 6.0
TICKS_IN_A_ROW = 100
"""More ticks than this without time passing, and the control plane chases its own tail."""
REPLICA_MEM_BYTES = 2**30
LONGEST_LAG_S = 0.4
"""An ingress that gets routes later than this is a fault."""
DOWNSCALE_WINDOW_S = 12.0
TRACE_LINES = 80


class Mood(StrEnum):
    """Which faults a schedule has."""

    CALM = "calm"
    """Only what users do: not one request may fail."""
    KILLS = "kills"
    """Replicas are killed as well: requests are held, and answered as soon as the replacement is ready."""
    TIGHT = "tight"
    """Calm, but without room for a surge."""
    ROUGH = "rough"
    """Everything at once."""


class Violation(AssertionError):
    """A promise was broken. The message says which, with the seed and what happened before."""


class Crashed(BaseException):
    """The control plane's process ends here. Not an Exception: nothing may catch it."""


@dataclass(eq=False)
class KnownApi:
    """What the simulation remembers of an api."""

    versions: set[Version] = field(default_factory=set)
    kinds: dict[Version, BuildKind] = field(default_factory=dict)
    fault: int = 0
    """Number of the last fault that took one of its replicas."""
    fault_s: float = float("-inf")
    down_since_s: float | None = None
    killed: bool = False
    deleted: bool = False
    gap: bool = False
    """The user accepted one, and it may not be over."""
    comes_back: ReplicaId | None = None
    """Who was parked as its version was gone back to: the next route names it."""
    watch: tuple[Revision, float] | None = None
    """Which version is watched, and until when."""


class PretendedWorld:
    """
    Nodes with agents and replicas, an engine, a state, and a control plane that may end at any time.

    Args:
        seed: chooses the nodes and, unless it is given, the mood.
        planner: planning under test.
        rule: of scaling, under test.
    """

    def __init__(self, seed: int, *, planner: Planner, rule: Rule, mood: Mood | None = None) -> None:
        self.seed = seed
        self._planner = planner
        self._rule = rule
        self.random = random.Random(seed)
        roll = self.random
        self._repeat = f"CORTEX_SIM_SEED={seed}" + (f" CORTEX_SIM_MOOD={mood}" if mood else "")
        self.mood = mood or roll.choice([Mood.CALM, Mood.KILLS, Mood.TIGHT, Mood.ROUGH, Mood.ROUGH])
        self.clock = FakeClock()
        self.state = StateStore()
        self.rules = Rules(drain_timeout_s=2.0)
        count = 1 if self.mood is Mood.TIGHT or roll.random() < 0.6 else roll.randint(2, 5)
        self.machines = [self._machine(index, count) for index in range(count)]
        self.engine = FakeEngine(self.machines, clock=self.clock, shares_cpu=count == 1)
        self.engine.forgets = count == 1 or roll.random() < 0.3
        self.agents = FakeAgents(self.clock, self.machines, start_timeout_s=START_TIMEOUT_S)
        self.agents.lives = lambda order: life_of(self.kind(order.build), order, self.random, healed=self.healed)
        self.agents.on_exit = self._note_exit
        self.agents.fate = self._fate
        self.agents.late_by_s = roll.uniform(0.1, 3.0)
        self.door_lags_s = {machine.node: roll.choice([0.0, 0.0, 0.05, 0.4]) for machine in self.machines if count > 1}
        """How long it takes the ingress of each of several nodes to get other routes."""
        self.agents.route_delay_s = lambda node: self.door_lags_s.get(node, 0.0)
        self.link_lags_s: dict[NodeId, float] = {}
        """How late is what goes over a link, of those that lag."""
        self.agents.link_delay_s = lambda node: self.link_lags_s.get(node, 0.0)
        self.apis: dict[ApiKey, KnownApi] = {}
        self.faults = 0
        self.decided: Callable[[Snapshot], None] = lambda _seen: None
        """Called when a plan has actions, with what it was made of."""
        self.ordering: Callable[[Orders], None] = lambda _orders: None
        """Called before orders go to a node."""
        self.ticked: Callable[[], None] = lambda: None
        """Called after each tick of the control plane."""
        self.refused: Callable[[ApiKey, float], None] = lambda _api, _since_s: None
        """Called when somebody who knocked, and since when, is told that nobody comes."""
        self.control: World | None = None
        self.scaling: Scaling | None = None
        self.began_s = self.now_s()
        """When the control plane was started last."""
        self._latest: Assessment | None = None
        self._wanted: tuple[int, tuple[ApiRecord, ...]] = (-1, ())
        self.back_s: float | None = None
        """When a control plane that is down is started again."""
        self.wake_s: float | None = None
        self.crash_in: int | None = None
        """After so many more actions the control plane ends."""
        self.order_trouble = 0.0
        """Chance that orders do not simply arrive."""
        self.trouble_until_s = float("-inf")
        """Until then nobody is promised an answer."""
        self.healed = False
        self.stopped: set[ModelKey] = set()
        """Models whose rows have disagreed."""
        self.ticks = 0
        self.events: Counter[str] = Counter()
        self.trace: deque[tuple[float, Any]] = deque(maxlen=TRACE_LINES)

    # ---- faults ---------------------------------------------------------------------------------------------------

    def standing_faults(self) -> bool:
        """Whether something keeps orders, reports or leases from coming through."""
        return (
            self.control is None
            or self.order_trouble > 0
            or self.agents.report_delay_s > 0
            or self.engine.unreachable
            or self.engine.grant_delay_s > 0
            or any(lag_s > LONGEST_LAG_S for lag_s in self.door_lags_s.values())
            or bool(self.link_lags_s)
            or not self.agents.settled
            or len(self.agents.reachable()) < len(self.agents.nodes)
            or any(self.engine.deny(lease.request) for lease in self.engine.leases())
        )

    def mend(self) -> None:
        """All standing faults are over; lost nodes come back empty."""
        self.trouble(0.0)
        self.order_trouble = 0.0
        self.agents.report_delay_s = 0.0
        self.engine.deny = lambda _request: None
        self.engine.grant_delay_s = 0.0
        self.engine.unreachable = False
        self.door_lags_s = {node: min(lag_s, LONGEST_LAG_S) for node, lag_s in self.door_lags_s.items()}
        self.link_lags_s.clear()
        self.agents.hurry()
        for node in self.agents.nodes:
            self.agents.reconnect(node)
        for machine in self.machines:
            if machine.node not in self.agents.nodes:
                self.engine.add_node(machine)
                self.agents.add_node(machine)
        if self.control is None:
            self.start_control_plane()

    def heal(self) -> None:
        self.note("--- the faults stop")
        self.mend()
        self.crash_in = None
        self.healed = True
        for machine in self.machines:
            node = a_node(machine.node, mem_bytes=64 * REPLICA_MEM_BYTES, gpus=64, cpu_millis=64_000)
            self.engine.add_node(node)

    def trouble(self, lasts_s: float) -> None:
        """Nobody is promised an answer while it lasts, nor until a restart after it has had its time."""
        until_s = self.clock.monotonic_s() + lasts_s + SLOWEST_START_S + 2 * LONGEST_WAIT_S
        self.trouble_until_s = max(self.trouble_until_s, until_s)

    # ---- the control plane ----------------------------------------------------------------------------------------

    def start_control_plane(self) -> None:
        self.back_s = None
        self.engine.restart()
        self.agents.forget_reports()
        self.began_s = self.now_s()
        self._latest = None
        state = cast(StateStore, _Breakable(self.state, self, STATE_ACTIONS))
        self.scaling = Scaling(
            state=state,
            clock=self.clock,
            latest=lambda: self._latest,
            engine=self.engine,
            downscale_window_s=DOWNSCALE_WINDOW_S,
            changed=lambda: None,
            rule=self._rule,
        )
        self.control = World(
            state=state,
            engine=_Breakable(self.engine, self, ENGINE_ACTIONS),
            agents=_BreakableAgents(self.agents, self),
            clock=self.clock,
            epoch=self.state.take_epoch(),
            rules=self.rules,
            planner=self._plan,
        )

    def stop_control_plane(self) -> None:
        self.control = self.scaling = None
        self.crash_in = None

    def before_action(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Called before each action of the control plane; may end it."""
        if name == "order":
            orders = arguments[1]
            self.ordering(orders)
        if self.crash_in is not None and self.crash_in <= 0:
            raise Crashed
        if self.crash_in is not None:
            self.crash_in -= 1

    def _plan(self, assessment: Assessment) -> Plan:
        self._latest = assessment
        plan = self._planner(assessment)
        if plan.actions:
            self.decided(assessment.seen)
        return plan

    def scale(self, loads: Iterable[NodeLoads]) -> bool:
        """Have the numbers of replicas follow what was read. Returns whether something has changed."""
        if self.scaling is None:
            return False
        for reading in loads:
            self.scaling.take(reading)
        before = self.state.revision
        try:
            self.scaling.step()
        except Crashed:
            self._crash()
        return self.state.revision != before

    def _crash(self) -> None:
        self.note("the control plane ends between two actions")
        self.events["crash"] += 1
        self.stop_control_plane()
        self.start_control_plane()

    def settle(self) -> None:
        """Call tick as the loop does, until it has nothing to do at once."""
        for _ in range(TICKS_IN_A_ROW):
            world = self.control
            if world is None:
                return
            try:
                plan = tick(world)
            except Crashed:
                self._crash()
                continue
            self.ticks += 1
            if plan.actions:
                self.trace.append((self.clock.monotonic_s(), plan))
            self.ticked()
            wake_s = plan.wake_after_s
            if not plan.actions or wake_s is None or wake_s > 0:
                now_s = self.clock.monotonic_s()
                wake_s = LONGEST_WAIT_S if wake_s is None else min(LONGEST_WAIT_S, wake_s)
                self.wake_s = now_s + max(wake_s, SHORTEST_WAIT_S)
                return
        self.violated(f"{TICKS_IN_A_ROW} ticks in a row had something to do, and no time has passed")

    def at_rest(self) -> bool:
        memory = self.control.memory if self.control is not None else None
        return (
            memory is not None
            and not memory.plan.actions
            and memory.plan.wake_after_s is None
            and self.agents.next_change_s() is None
            and not self.state.watched()
        )

    # ---- watches --------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """As `controlplane.watching` does: a watch has its time, whatever becomes of the wall clock."""
        now_s, now_wall_s = self.now_s(), self.clock.wall_s()
        for record in self.state.watched():
            wanted, known = record.wanted, self.apis[record.wanted.api]
            if known.watch is None or known.watch[0] != wanted.build.revision:
                left_s = (wanted.watched_until_wall_s or now_wall_s) - now_wall_s
                known.watch = (wanted.build.revision, now_s + max(0.0, min(left_s, wanted.watch_s)))
            elif now_s >= known.watch[1]:
                self.state.end_watch(wanted.api, wanted.build.revision)
                known.watch = None

    def watches_until_s(self) -> list[float]:
        return [known.watch[1] for known in self.apis.values() if known.watch is not None]

    def parked(self, wanted: WantedApi) -> list[ReplicaReport]:
        """Replicas that are ready, out of rotation, and run neither what is wanted nor what served."""
        routed = {replica for _node, route in self.agents.routes() for replica in route.targets}
        ours = {build.revision for build in wanted.builds}
        return [
            report
            for _node, report in self.agents.replicas()
            if report.api == wanted.api
            and report.phase is Phase.READY
            and report.replica not in routed
            and report.revision not in ours
        ]

    # ---- nodes and replicas ---------------------------------------------------------------------------------------

    def _machine(self, index: int, count: int) -> Node:
        name = NodeId("local" if count == 1 else f"node-{index}")
        if self.mood is Mood.TIGHT:
            room = self.random.randint(2, 6)
            return a_node(name, mem_bytes=REPLICA_MEM_BYTES * room, gpus=room, cpu_millis=64_000)
        return a_node(name, cpu_millis=self.random.choice([1000, 3000, 64_000]))

    def kind(self, build: BuildSpec) -> BuildKind:
        return self.apis[build.api].kinds[build.version]

    def _fate(self, _node: NodeId, _orders: Orders) -> Fate:
        if self.random.random() >= self.order_trouble:
            return Fate.DONE
        fate = self.random.choice([Fate.LOST, Fate.UNANSWERED, Fate.LATE, Fate.TWICE])
        self.note(f"orders are {fate}")
        return fate

    def _note_exit(self, node: NodeId, report: ReplicaReport) -> None:
        self.note(f"{report.replica} on {node} ends while {report.phase}")
        self.fault(report.api)

    def fault(self, api: ApiKey) -> None:
        self.faults += 1
        known = self.apis.setdefault(api, KnownApi())
        known.fault = self.faults
        known.fault_s = self.clock.monotonic_s()
        if self.mood is Mood.ROUGH:
            self.trouble(0.0)

    def asleep(self, api: ApiKey) -> list[ReplicaReport]:
        """Who sleeps in its routes, if nobody has come."""
        asleep = [
            report for _node, report in self.agents.replicas() if report.phase is Phase.ASLEEP and report.api == api
        ]
        if not asleep:
            return []
        routed = {replica for _node, route in self.agents.routes() if route.api == api for replica in route.targets}
        asleep = [report for report in asleep if report.replica in routed]
        return asleep if all(report.knocked_age_s is None for report in asleep) else []

    def knock(self, api: ApiKey, asleep: Iterable[ReplicaReport]) -> None:
        """Somebody comes to an api that sleeps, and waits as for one that has ended."""
        self.events["a knock"] += 1
        self.note(f"somebody knocks at {api}")
        self.apis[api].fault_s = self.now_s()
        for report in asleep:
            self.agents.knock(report.replica)

    def wanted(self) -> tuple[ApiRecord, ...]:
        """What is wanted now."""
        revision = self.state.revision
        if self._wanted[0] != revision:
            self._wanted = (revision, self.state.apis())
        return self._wanted[1]

    # ---- telling ----------------------------------------------------------------------------------------------------

    def now_s(self) -> float:
        return self.clock.monotonic_s()

    def note(self, text: str) -> None:
        self.trace.append((self.clock.monotonic_s(), text))

    def violated(self, what: str) -> NoReturn:
        lines = []
        for at_s, entry in self.trace:
            text = entry.describe() if isinstance(entry, Plan) else str(entry)
            lines += [f"  {at_s - 1000.0:9.3f}  {line}" for line in text.splitlines()]
        story = "\n".join(lines)
        when = f"{self.mood} schedule, at {self.now_s() - 1000.0:.3f} s"
        raise Violation(f"{what}\n{when}; repeat it with {self._repeat}\n{story}")


STATE_ACTIONS = frozenset(
    {
        "record_exit",
        "record_stop",
        "record_ready",
        "mark_serving",
        "mark_live",
        "mark_failed",
        "autoscale",
        "set_scale",
        "wake",
    }
)
ENGINE_ACTIONS = frozenset({"acquire", "release", "recover"})


class _Breakable:
    """Passes everything on, and asks before each action whether the control plane still lives."""

    def __init__(self, target: object, world: PretendedWorld, actions: frozenset[str]) -> None:
        self._target = target
        for name in dir(type(target)):
            if not name.startswith("_") and callable(getattr(type(target), name)):
                setattr(self, name, getattr(target, name))
        for name in actions:
            setattr(self, name, self._watched(name, getattr(target, name), world))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    @staticmethod
    def _watched(name: str, action: Callable[..., Any], world: PretendedWorld) -> Callable[..., Any]:
        def act(*arguments: Any, **named: Any) -> Any:
            world.before_action(name, arguments)
            return action(*arguments, **named)

        return act


class _BreakableAgents(_Breakable):
    """The same for agents, whose nodes are asked about one at a time: some have their orders when it ends."""

    def __init__(self, agents: FakeAgents, world: PretendedWorld) -> None:
        super().__init__(agents, world, frozenset())
        self._agents = agents
        self._world = world
        self.order = self._order

    def _order(self, batches: Mapping[NodeId, Orders]) -> Mapping[NodeId, RetryLater]:
        problems: dict[NodeId, RetryLater] = {}
        for node, orders in batches.items():
            self._world.before_action("order", (node, orders))
            problems.update(self._agents.order({node: orders}))
        return problems
