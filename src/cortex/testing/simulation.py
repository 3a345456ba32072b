"""
Schedules of faults, generated from a seed, against the real control plane on pretended nodes.

One run deploys, scales, deletes and breaks things at random for a while, then lets everything heal. State, engine and
agents are in memory and time is pretended, so a schedule of minutes takes milliseconds. What is promised (the table
"Faults" and the invariants in the architecture) is checked at every step:

* no order of ours takes the ready replicas in rotation below what the rollout allows, or takes one that is routed;
* never more replicas of an api are started than are wanted, plus one;
* where cpu is shared, every api has its minimum, and as many more as fit; a new size takes none that fits;
* a client of a live api is answered; when its replicas were just killed it is held, and answered in time;
* only versions that were deployed answer, and under their own name;
* once rows have disagreed in a replica, no other one of that model is told to batch, whatever api it is of;
* the control plane may end between any two actions, and orders may be lost, late, doubled or unanswered;
* once the faults stop, everything comes to rest with exactly what is wanted: each deploy live, or failed with a
  reason while what served before serves at full size; no replica, lease or route is left over.

A violation carries the seed and what happened last. `CORTEX_SIM_SEED` (with `CORTEX_SIM_MOOD`, if the violation names
one) repeats a run, `CORTEX_SIM_RUNS` sets how many the tests make; `bench/simulate.py` runs a hundred thousand.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn, cast

import msgspec

from cortex.controlplane.tick import World, tick
from cortex.controlplane.world import Planner
from cortex.engines.fake import FakeEngine
from cortex.errors import Problem, RetryLater
from cortex.ids import ApiKey, DeploymentName, NodeId, ReplicaId, Version, split_api_key
from cortex.planning import backoff
from cortex.planning.actions import Plan
from cortex.planning.assessment import Assessment
from cortex.planning.batching import place_of
from cortex.planning.model import LeaseState, Rules, Snapshot, WantedApi
from cortex.planning.plan import plan as real_plan
from cortex.state.base import RollbackChange
from cortex.state.records import StateStore
from cortex.testing.builders import a_build, a_deploy, a_node, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.testing.fake_agent import RUNTIME, FakeAgents, FakeLife, Fate, IngressAnswer
from cortex.wire.batching import RULES, BatchingOrder, BatchingVerdict, Proof, Trial
from cortex.wire.build import BuildSpec, ModelKey, Resources
from cortex.wire.orders import DrainReplica, ForgetReplica, Order, Orders, SetReplicaBatching, SetRoute, StartReplica
from cortex.wire.reports import Node, Phase, ReplicaReport

LONGEST_WAIT_S = 5.0
"""The loop around `tick` looks at the world this often even if nothing wakes it."""
START_TIMEOUT_S = 20.0
SLOWEST_START_S = 3.0
PATIENCE_S = 900.0
"""Time in which everything must have come to rest after the last fault; back-off alone takes up to a minute."""
TICKS_IN_A_ROW = 100
"""More ticks than this without time passing, and the control plane chases its own tail."""
REPLICA_MEM_BYTES = 2**30
MODELS = 3
"""That builds share; others have one of their own."""
TRACE_LINES = 80


class BuildKind(StrEnum):
    """How the replicas of a build fare."""

    GOOD = "good"
    SLOW = "slow"
    """Takes seconds to start."""
    STUBBORN = "stubborn"
    """Does not end when drained, only when killed."""
    BROKEN = "broken"
    """Cannot start, and says that trying again is useless."""
    FAILING = "failing"
    """Ends while starting, every time."""
    HANGING = "hanging"
    """Never becomes ready."""
    FLAKY = "flaky"
    """Fails its first start in each slot."""
    HALF_BAD = "half bad"
    """Starts in the first slot only."""
    CRASHING = "crashing"
    """Becomes ready, and ends by itself soon after."""


SOUND = frozenset({BuildKind.GOOD, BuildKind.SLOW, BuildKind.STUBBORN})


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


class ScheduleOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a schedule amounted to."""

    seed: int
    mood: Mood
    ticks: int
    answers: Counter[str]
    events: Counter[str]


@dataclass(eq=False)
class _Api:
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


@dataclass(frozen=True)
class _Issue:
    """What was true when a batch of orders was decided on."""

    fault: int
    true_until_s: float | None
    """Until when what the orders were decided on was true; None: it still was."""
    unready: frozenset[ReplicaId]
    """Replicas that were seen, and seen not to be ready."""
    wanted: dict[ApiKey, WantedApi]
    unplaced: Counter[ApiKey]
    stopped: frozenset[ModelKey]
    """Models whose rows were known to have disagreed."""
    punctual: bool
    """The orders are carried out at once, and on fresh reports."""


class Simulation:
    """
    One schedule.

    Args:
        seed: same seed, same schedule.
        planner: planning under test; a broken one must be noticed.
        mood: instead of the one the seed would choose. Another schedule then.
    """

    def __init__(self, seed: int, *, planner: Planner = real_plan, steps: int = 25, mood: Mood | None = None) -> None:
        self.seed = seed
        self._planner = planner
        self._steps = steps
        self._random = random.Random(seed)
        roll = self._random
        self._repeat = f"CORTEX_SIM_SEED={seed}" + (f" CORTEX_SIM_MOOD={mood}" if mood else "")
        self.mood = mood or roll.choice([Mood.CALM, Mood.KILLS, Mood.TIGHT, Mood.ROUGH, Mood.ROUGH])
        self._clock = FakeClock()
        self._state = StateStore()
        self._rules = Rules(drain_timeout_s=2.0)
        count = 1 if self.mood is Mood.TIGHT or roll.random() < 0.6 else roll.randint(2, 3)
        self._machines = [self._machine(index, count) for index in range(count)]
        self._engine = FakeEngine(self._machines, clock=self._clock, shares_cpu=count == 1)
        self._engine.forgets = count == 1 or roll.random() < 0.3
        self._agents = FakeAgents(self._clock, self._machines, start_timeout_s=START_TIMEOUT_S)
        self._agents.lives = self._life
        self._agents.before_order = self._check_order
        self._agents.on_exit = self._note_exit
        self._agents.fate = self._fate
        self._agents.late_by_s = roll.uniform(0.1, 3.0)
        self._apis: dict[ApiKey, _Api] = {}
        self._builds = 0
        self._faults = 0
        self._issues: dict[int, tuple[Orders, _Issue]] = {}
        self._world: World | None = None
        self._back_s: float | None = None
        """When a control plane that is down is started again."""
        self._wake_s: float | None = None
        self._crash_in: int | None = None
        """After so many more actions the control plane ends."""
        self._order_trouble = 0.0
        """Chance that orders do not simply arrive."""
        self._trouble_until_s = float("-inf")
        """Until then nobody is promised an answer."""
        self._healed = False
        self._stopped: set[ModelKey] = set()
        """Models whose rows have disagreed."""
        self._ticks = 0
        self._answers: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._trace: deque[tuple[float, Any]] = deque(maxlen=TRACE_LINES)
        self._issue = self._issue_now(Snapshot(now_s=0.0))
        self._start_control_plane()

    def run(self) -> ScheduleOutcome:
        """Run the schedule. Raises Violation when a promise is broken."""
        self._deploy()
        self._let_pass(1.0)
        for _ in range(self._steps):
            name, event = self._pick_event()
            self._events[name] += 1
            self._note(f"--- {name}")
            event()
            self._settle()
            self._let_pass(self._random.choice([0.0, 0.01, 0.05, 0.3, 1.0, 4.0]))
        self._heal()
        self._come_to_rest()
        self._check_rest()
        return ScheduleOutcome(
            seed=self.seed, mood=self.mood, ticks=self._ticks, answers=self._answers, events=self._events
        )

    # ---- what happens -------------------------------------------------------------------------------------------

    def _pick_event(self) -> tuple[str, Callable[[], None]]:
        users: list[tuple[float, str, Callable[[], None]]] = [
            (5, "deploy", self._deploy),
            (2, "scale", self._scale),
            (2, "roll back", self._roll_back),
            (1, "deploy while the number moves", self._deploy_while_the_number_moves),
            (1, "delete", self._delete),
            (1, "wall clock jumps", self._jump_wall),
            (1, "rows disagree", self._disagree),
            (1, "models are proved", self._prove),
            (1, "control plane restarts", self._restart_between_ticks),
            (2, "sleep", self._sleep),
        ]
        kills: list[tuple[float, str, Callable[[], None]]] = [(6, "kill", self._kill)]
        rough: list[tuple[float, str, Callable[[], None]]] = [
            (3, "control plane ends midway", self._crash_soon),
            (1, "control plane is away", self._control_plane_away),
            (2, "agent restarts", self._restart_agent),
            (2, "orders get lost", self._trouble_orders),
            (1, "reports are late", self._delay_reports),
            (1, "leases are refused", self._refuse_leases),
            (1, "the engine is away", self._engine_away),
            (1, "a lease is lost", self._lose_lease),
            (1, "a lease is forgotten", self._forget_lease),
            (1, "a node is lost", self._lose_node),
            (1, "a node is cut off", self._cut_off),
            (3, "better times", self._mend),
        ]
        table = {
            Mood.CALM: users,
            Mood.TIGHT: users,
            Mood.KILLS: users + kills,
            Mood.ROUGH: users + kills + rough,
        }[self.mood]
        (chosen,) = self._random.choices(table, weights=[weight for weight, _name, _event in table])
        return chosen[1], chosen[2]

    def _deploy(self) -> None:
        """One deployment gets new content: versions, sizes, settings; now and then an old version again."""
        roll = self._random
        deployment = roll.choice(["iris", "default"])
        known = {record.wanted.api: record.wanted for record in self._state.apis(DeploymentName(deployment))}
        keys = [ApiKey(f"{deployment}/{name}") for name in ("a", "b")]
        for one in known.values():
            if one.scale.asleep:
                self._apis[one.api].fault_s = self._now()  # it may have to wake for it
        wanted: list[WantedApi] = []
        for key in keys:
            was = known.get(key)
            if was is None and roll.random() < 0.4:
                continue
            if was is not None and roll.random() < 0.1 and len(keys) > 1:
                continue  # left out of the file: removed
            if was is not None and roll.random() < 0.3:
                wanted.append(self._as_deployed(was, was.build))
                continue
            if was is not None and was.serving is not None and roll.random() < 0.2:
                wanted.append(self._as_deployed(was, was.serving))  # the files of before
                continue
            wanted.append(self._as_deployed(was, self._new_build(key)))
        for key in known.keys() - {one.api for one in wanted}:
            self._forget(key)
        if not wanted and not known:
            return
        for one in wanted:
            self._apis.setdefault(one.api, _Api()).versions.add(one.build.version)
            self._note(
                f"{one.api}: build {one.build.revision[:8]} ({self._kind(one.build)}), {one.replicas} replicas"
                f"{', force' if one.force else ''}"
            )
        self._state.commit_deploy(a_deploy(*wanted, deployment=deployment, wall_s=self._clock.wall_s()))

    def _as_deployed(self, was: WantedApi | None, build: BuildSpec) -> WantedApi:
        roll = self._random
        replicas = was.replicas if was is not None else roll.choice([1, 1, 2, 3])
        force = self.mood is Mood.TIGHT and roll.random() < 0.3
        minimum = roll.randint(1, replicas)
        wanted = a_wanted_api(build, replicas=replicas, min_replicas=minimum, live=False, force=force)
        return msgspec.structs.replace(
            wanted,
            serving=None,
            serving_was_live=False,
            timeout_s=roll.choice([600.0, 30.0]),
            max_replicas=5,
            rolled_back=was.rolled_back if was is not None else None,
        )

    def _new_build(self, key: ApiKey) -> BuildSpec:
        roll = self._random
        self._builds += 1
        kind = BuildKind.GOOD if roll.random() < 0.4 else roll.choice(list(BuildKind))
        if self.mood in (Mood.CALM, Mood.KILLS) and kind is BuildKind.CRASHING:
            kind = BuildKind.GOOD  # nobody can promise answers from a build that crashes by itself
        resources = Resources(cpu_millis=200)
        if self.mood is Mood.TIGHT:
            resources = Resources(cpu_millis=200, mem_bytes=REPLICA_MEM_BYTES, gpus=1)
        model = roll.choice(["", *(f"m{number}" for number in range(MODELS))])
        build = a_build(f"v{self._builds}", api=key, resources=resources, model=model)
        if roll.random() < 0.5:
            self._record_proof(build)
        self._apis.setdefault(key, _Api()).kinds[build.version] = kind
        return build

    def _record_proof(self, build: BuildSpec) -> None:
        verdict = BatchingVerdict(proof=Proof(rules=RULES, proved=True), trial=Trial(runtime=RUNTIME, rows=2))
        assert build.model_key is not None
        self._state.record_verdict(build.model_key, verdict, place=place_of(build))

    def _prove(self) -> None:
        """What the deploys have not looked at is looked at now."""
        for record in self._state.apis():
            self._record_proof(record.wanted.build)

    def _disagree(self) -> None:
        batching = [
            report
            for _node, report in self._agents.replicas()
            if report.phase in (Phase.READY, Phase.DRAINING) and report.batches is not None and report.batches.batches
        ]
        if batching:
            chosen = self._random.choice(batching)
            self._note(f"rows disagree in {chosen.replica}")
            self._agents.disagree(chosen.replica)
            assert chosen.model is not None
            self._stopped.add(chosen.model)

    def _scale(self) -> None:
        records = self._state.apis()
        if records:
            wanted = self._random.choice(records).wanted
            replicas = max(wanted.min_replicas, self._random.randint(1, 4))
            self._note(f"{wanted.api}: {replicas} replicas")
            if wanted.scale.asleep:
                self._apis[wanted.api].fault_s = self._now()
            self._state.set_scale(wanted.api, replicas, reason="the schedule says so", wall_s=self._clock.wall_s())

    def _sleep(self) -> None:
        """Nobody has asked an api for a while."""
        for record in self._state.apis():
            wanted = record.wanted
            if wanted.live_wall_s is not None and self._random.random() < 0.5:
                self._note(f"{wanted.api} falls asleep")
                self._state.set_scale(wanted.api, 1, reason="nobody asked", wall_s=self._clock.wall_s(), asleep=True)

    def _roll_back(self) -> None:
        """An api goes back to any version that was live, or to the one that serves."""
        records = self._state.apis()
        if not records:
            return
        wanted = self._random.choice(records).wanted
        kept = [
            one
            for one in self._state.versions()
            if one.build.api == wanted.api
            and one.build.revision != wanted.build.revision
            and (one.turn or one.build == wanted.serving)
        ]
        if kept:
            version = self._random.choice(kept)
            self._note(f"{wanted.api}: back to {version.build.revision[:8]} ({self._kind(version.build)})")
            if any(r.phase is Phase.ASLEEP and r.api == wanted.api for _node, r in self._agents.replicas()):
                self._apis[wanted.api].fault_s = self._now()  # it may have to wake for it
            self._state.roll_back(
                RollbackChange(
                    version=version,
                    instead_of=wanted.build.revision,
                    cause="rolled back",
                    force=self.mood is Mood.TIGHT and self._random.random() < 0.3,
                    wall_s=self._clock.wall_s(),
                )
            )

    def _deploy_while_the_number_moves(self) -> None:
        self._deploy()
        for _ in range(self._random.randint(1, 4)):
            self._settle()
            self._let_pass(self._random.choice([0.05, 0.3, 1.0]))
            self._scale()

    def _delete(self) -> None:
        records = self._state.apis()
        if records and self._random.random() < 0.5:
            key = self._random.choice(records).wanted.api
            self._forget(key)
            self._state.delete(split_api_key(key)[0], key, wall_s=self._clock.wall_s())

    def _forget(self, key: ApiKey) -> None:
        self._apis[key].deleted = True
        self._apis[key].down_since_s = None

    def _jump_wall(self) -> None:
        self._clock.jump_wall(self._random.choice([-86400.0, -3600.0, -1.0, 1.0, 3600.0, 86400.0]))

    def _kill(self) -> None:
        running = [
            report for _node, report in self._agents.replicas() if report.phase not in (Phase.EXITED, Phase.DRAINING)
        ]
        if not running:
            return
        victims = running if self._random.random() < 0.1 else [self._random.choice(running)]
        for victim in victims:
            self._note(f"kill {victim.replica}")
            self._apis[victim.api].killed = True
            self._agents.kill(victim.replica)
        if self.mood is Mood.KILLS:
            self._ask_clients()  # before the control plane has even noticed

    # ---- faults of ours, of nodes and of lines between them -----------------------------------------------------

    def _restart_between_ticks(self) -> None:
        self._stop_control_plane()
        self._start_control_plane()

    def _crash_soon(self) -> None:
        self._crash_in = self._random.randint(1, 6)
        self._deploy()

    def _control_plane_away(self) -> None:
        self._stop_control_plane()
        self._back_s = self._clock.monotonic_s() + self._random.uniform(0.1, 10.0)

    def _restart_agent(self) -> None:
        if self._agents.nodes:
            down_s = self._random.choice([0.0, 0.1, 2.0])
            self._agents.restart_agent(self._random.choice(self._agents.nodes), down_s=down_s)
            self._trouble(down_s)

    def _trouble_orders(self) -> None:
        self._order_trouble = self._random.choice([0.2, 0.5, 0.9])

    def _delay_reports(self) -> None:
        self._agents.report_delay_s = self._random.choice([0.05, 0.5, 2.0])

    def _refuse_leases(self) -> None:
        share = self._random.random()
        self._engine.deny = lambda request: "nobody gets room today" if hash_share(request.replica) < share else None
        self._engine.grant_delay_s = self._random.choice([0.0, 0.5, 5.0])

    def _engine_away(self) -> None:
        self._engine.unreachable = True

    def _lose_lease(self) -> None:
        leases = self._engine.leases()
        if leases:
            lease = self._random.choice(leases)
            self._note(f"lease of {lease.request.replica} is lost")
            self._fault(lease.request.api)
            self._engine.lose_lease(lease.request.replica)
            self._agents.kill(lease.request.replica)

    def _forget_lease(self) -> None:
        leases = self._engine.leases()
        if leases:
            replica = self._random.choice(leases).request.replica
            self._note(f"lease of {replica} is forgotten")
            self._engine.forget_lease(replica)

    def _lose_node(self) -> None:
        if len(self._agents.nodes) > 1:
            node = self._random.choice(self._agents.nodes)
            self._note(f"node {node} is lost")
            for api in self._apis:
                self._fault(api)
            self._engine.lose_node(node)
            self._agents.lose_node(node)

    def _cut_off(self) -> None:
        if self._agents.nodes:
            self._agents.cut_off(self._random.choice(self._agents.nodes))

    def _mend(self) -> None:
        """All standing faults are over; lost nodes come back empty."""
        self._trouble(0.0)
        self._order_trouble = 0.0
        self._agents.report_delay_s = 0.0
        self._engine.deny = lambda _request: None
        self._engine.grant_delay_s = 0.0
        self._engine.unreachable = False
        for node in self._agents.nodes:
            self._agents.reconnect(node)
        for machine in self._machines:
            if machine.node not in self._agents.nodes:
                self._engine.add_node(machine)
                self._agents.add_node(machine)
        if self._world is None:
            self._start_control_plane()

    def _heal(self) -> None:
        self._note("--- the faults stop")
        self._mend()
        self._crash_in = None
        self._healed = True
        for machine in self._machines:
            node = a_node(machine.node, mem_bytes=64 * REPLICA_MEM_BYTES, gpus=64, cpu_millis=64_000)
            self._engine.add_node(node)

    def _standing_faults(self) -> bool:
        return (
            self._world is None
            or self._order_trouble > 0
            or self._agents.report_delay_s > 0
            or self._engine.unreachable
            or self._engine.grant_delay_s > 0
            or not self._agents.settled
            or any(self._engine.deny(lease.request) for lease in self._engine.leases())
        )

    def _trouble(self, lasts_s: float) -> None:
        """Nobody is promised an answer while it lasts, nor until a restart after it has had its time."""
        until_s = self._clock.monotonic_s() + lasts_s + SLOWEST_START_S + 2 * LONGEST_WAIT_S
        self._trouble_until_s = max(self._trouble_until_s, until_s)

    # ---- the control plane --------------------------------------------------------------------------------------

    def _start_control_plane(self) -> None:
        self._back_s = None
        self._engine.restart()
        self._agents.forget_reports()
        self._world = World(
            state=cast(StateStore, _Breakable(self._state, self, STATE_ACTIONS)),
            engine=_Breakable(self._engine, self, ENGINE_ACTIONS),
            agents=_Breakable(self._agents, self, AGENT_ACTIONS),
            clock=self._clock,
            epoch=self._state.take_epoch(),
            rules=self._rules,
            planner=self._plan,
        )

    def _stop_control_plane(self) -> None:
        self._world = None
        self._crash_in = None

    def before_action(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Called before each action of the control plane; may end it."""
        if name == "order":
            orders = arguments[1]
            self._issues[id(orders)] = (orders, self._issue)
        if self._crash_in is not None and self._crash_in <= 0:
            raise Crashed
        if self._crash_in is not None:
            self._crash_in -= 1

    def _plan(self, assessment: Assessment) -> Plan:
        plan = self._planner(assessment)
        if plan.actions:
            self._issue = self._issue_now(assessment.seen)
        return plan

    def _settle(self) -> None:
        """Call tick as the loop does, until it has nothing to do at once."""
        for _ in range(TICKS_IN_A_ROW):
            world = self._world
            if world is None:
                return
            try:
                plan = tick(world)
            except Crashed:
                self._note("the control plane ends between two actions")
                self._events["crash"] += 1
                self._stop_control_plane()
                self._start_control_plane()
                continue
            self._ticks += 1
            if plan.actions:
                self._trace.append((self._clock.monotonic_s(), plan))
            if self.mood is not Mood.ROUGH:
                self._issues.clear()  # no orders are late
            wake_s = plan.wake_after_s
            if not plan.actions or wake_s is None or wake_s > 0:
                now_s = self._clock.monotonic_s()
                self._wake_s = now_s + min(LONGEST_WAIT_S, LONGEST_WAIT_S if wake_s is None else wake_s)
                return
        self._violated(f"{TICKS_IN_A_ROW} ticks in a row had something to do, and no time has passed")

    def _let_pass(self, seconds: float) -> None:
        """Let time pass, from one thing that happens to the next."""
        end_s = self._clock.monotonic_s() + seconds
        while True:
            if self._world is None and self._back_s is not None and self._clock.monotonic_s() >= self._back_s:
                self._start_control_plane()
            self._visit()
            self._settle()
            if self.mood is not Mood.ROUGH:
                self._check_batching()
            self._ask_clients()
            now_s = self._clock.monotonic_s()
            if now_s >= end_s:
                return
            next_s = min(
                end_s,
                *(
                    at_s
                    for at_s in (self._agents.next_change_s(), self._wake_s, self._back_s)
                    if at_s is not None and at_s > now_s
                ),
                now_s + LONGEST_WAIT_S,
            )
            self._clock.advance(next_s - now_s)

    def _come_to_rest(self) -> None:
        deadline_s = self._clock.monotonic_s() + PATIENCE_S
        while self._clock.monotonic_s() < deadline_s:
            self._let_pass(LONGEST_WAIT_S)
            if self._at_rest():
                return
        self._violated(f"not at rest {PATIENCE_S:g} s after the last fault")

    def _at_rest(self) -> bool:
        memory = self._world.memory if self._world is not None else None
        return (
            memory is not None
            and not memory.plan.actions
            and memory.plan.wake_after_s is None
            and self._agents.next_change_s() is None
        )

    # ---- what replicas and orders do ----------------------------------------------------------------------------

    def _machine(self, index: int, count: int) -> Node:
        name = NodeId("local" if count == 1 else f"node-{index}")
        if self.mood is Mood.TIGHT:
            room = self._random.randint(2, 6)
            return a_node(name, mem_bytes=REPLICA_MEM_BYTES * room, gpus=room, cpu_millis=64_000)
        return a_node(name, cpu_millis=self._random.choice([1000, 3000, 64_000]))

    def _kind(self, build: BuildSpec) -> BuildKind:
        return self._apis[build.api].kinds[build.version]

    def _life(self, order: StartReplica) -> FakeLife:
        kind = self._kind(order.build)
        roll = self._random
        boom = Problem(reference="model-broken", message="the model cannot be read", traceback="ValueError: bad")
        good = FakeLife(ready_after_s=roll.uniform(0.01, 0.2), drain_s=roll.choice([0.0, 0.1, 1.0]))
        match kind:
            case BuildKind.BROKEN:
                return FakeLife(start_error=boom, permanent=True)
            case BuildKind.FAILING:
                return FakeLife(start_error=boom, ready_after_s=roll.uniform(0.01, 0.5))
            case BuildKind.HANGING:
                return FakeLife(never_ready=True)
            case BuildKind.SLOW:
                return FakeLife(ready_after_s=roll.uniform(0.5, SLOWEST_START_S))
            case BuildKind.STUBBORN:
                return FakeLife(ready_after_s=0.05, ignores_sigterm=True)
            case BuildKind.FLAKY if order.attempt == 1 and not self._healed:
                return FakeLife(start_error=boom)
            case BuildKind.HALF_BAD if not order.replica.endswith(".0") and not self._healed:
                return FakeLife(start_error=boom)
            case BuildKind.CRASHING if not self._healed:
                return FakeLife(ready_after_s=0.05, crash_after_s=roll.uniform(0.05, 2.0))
        return good

    def _fate(self, _node: NodeId, _orders: Orders) -> Fate:
        if self._random.random() >= self._order_trouble:
            return Fate.DONE
        fate = self._random.choice([Fate.LOST, Fate.UNANSWERED, Fate.LATE, Fate.TWICE])
        self._note(f"orders are {fate}")
        return fate

    def _note_exit(self, node: NodeId, report: ReplicaReport) -> None:
        self._note(f"{report.replica} on {node} ends while {report.phase}")
        self._fault(report.api)

    def _fault(self, api: ApiKey) -> None:
        self._faults += 1
        known = self._apis.setdefault(api, _Api())
        known.fault = self._faults
        known.fault_s = self._clock.monotonic_s()
        if self.mood is Mood.ROUGH:
            self._trouble(0.0)

    # ---- promises -----------------------------------------------------------------------------------------------

    def _issue_now(self, seen: Snapshot) -> _Issue:
        unplaced = Counter(
            lease.request.api
            for lease in self._engine.leases()
            if lease.state is LeaseState.PENDING and not lease.request.surge
        )
        wanted = {record.wanted.api: record.wanted for record in self._state.apis()}
        true_until_s = self._agents.true_until_s()
        return _Issue(
            fault=self._faults,
            true_until_s=true_until_s,
            unready=frozenset(
                report.replica for node in seen.nodes for report in node.replicas if report.phase is not Phase.READY
            ),
            wanted=wanted,
            unplaced=unplaced,
            stopped=self._known_stops() | _disagreed(report for node in seen.nodes for report in node.replicas),
            punctual=true_until_s is None and self._order_trouble == 0,
        )

    def _check_order(self, node: NodeId, order: Order, orders: Orders) -> None:
        issue = self._issues[id(orders)][1]
        match order:
            case SetRoute(api=api, targets=targets):
                self._check_route(node, api, targets, issue)
            case DrainReplica(replica=replica) | ForgetReplica(replica=replica):
                self._check_taken(node, replica, issue)
            case StartReplica():
                self._check_devices(node, order)
                self._check_started(order, issue)
                if order.build.model_key is not None:
                    self._check_may_batch(order.replica, order.build.model_key, order.batches, issue)
            case SetReplicaBatching(replica=replica, batches=batches):
                for _node, report in self._agents.replicas():
                    if report.replica == replica and report.model is not None:
                        self._check_may_batch(replica, report.model, batches, issue)

    def _check_route(self, node: NodeId, api: ApiKey, targets: tuple[ReplicaId, ...], issue: _Issue) -> None:
        before = next((r.targets for n, r in self._agents.routes() if n == node and r.api == api), ())
        ready = {r.replica: r for _node, r in self._agents.replicas() if r.phase is Phase.READY}
        left = len(ready.keys() & set(targets))
        had = len(ready.keys() & set(before))
        wanted = issue.wanted.get(api)
        if left >= had or wanted is None or wanted.force:
            return
        asleep = {r.replica for _node, r in self._agents.replicas() if r.phase is Phase.ASLEEP}
        if wanted.scale.asleep and asleep & set(targets):
            return  # whoever comes waits there
        if left >= wanted.replicas - issue.unplaced[api] or self._excused(api, issue):
            return
        if wanted.failed is not None and wanted.serving is None and self._apis[api].deleted:
            return  # left over from before it was deleted and made anew
        ours = {build.revision for build in (wanted.build, wanted.serving) if build is not None}
        gone = (ready.keys() & set(before)) - set(targets) - issue.unready
        if not gone:
            return  # it became ready later than what the orders were decided on
        if not issue.punctual and not any(ready[replica].revision in ours for replica in gone):
            return  # of a version that was replaced before the control plane knew that it was routed
        self._violated(f"{api}: a route on {node} leaves {left} of {had} ready replicas, {wanted.replicas} are wanted")

    def _check_taken(self, node: NodeId, replica: ReplicaId, issue: _Issue) -> None:
        report = next((r for n, r in self._agents.replicas() if n == node and r.replica == replica), None)
        if report is None or report.phase is not Phase.READY:
            return
        # Another node may have taken over the name of a replica that comes back from a node thought lost.
        alone = sum(r.replica == replica for _n, r in self._agents.replicas()) == 1
        # Orders that come late cannot know of routes that other nodes have been given since.
        routed = [n for n, r in self._agents.routes() if replica in r.targets and (issue.punctual or n == node)]
        if routed and alone and not self._excused(report.api, issue):
            self._violated(f"{replica} is taken away while {', '.join(routed)} still routes to it")

    def _check_devices(self, node: NodeId, order: StartReplica) -> None:
        """It gets as many GPUs as it asked for, and none that another one sees."""
        held = set(order.devices)
        if len(held) != order.build.resources.gpus:
            self._violated(f"{order.replica} gets {order.devices}")
        if self.mood is Mood.ROUGH:
            return  # leases are forgotten there
        for where, report in self._agents.replicas():
            other = where == node and report.replica != order.replica and report.phase is not Phase.EXITED
            if other and held & set(report.devices):
                self._violated(f"{order.replica} gets {order.devices}, and {report.replica} has {report.devices}")

    def _check_started(self, order: StartReplica, issue: _Issue) -> None:
        api = order.build.api
        wanted = issue.wanted.get(api)
        known = {report.replica for _node, report in self._agents.replicas()}
        if wanted is None or order.replica in known or not issue.punctual or self._trouble_until_s > self._now():
            return
        leased = {
            lease.request.replica
            for lease in self._engine.leases()
            if lease.state is LeaseState.GRANTED and lease.request.api == api
        }
        # What never served and is of no use any more is forgotten in the same plan: its room is still held.
        ours = {build.revision for build in (wanted.build, wanted.serving) if build is not None}
        running = {
            report.replica
            for _node, report in self._agents.replicas()
            if report.api == api
            and report.phase not in (Phase.EXITED, Phase.DRAINING)
            and (report.revision in ours or report.phase is Phase.READY)
        }
        count = len(leased & running) + 1
        if count > wanted.replicas + 1:
            self._violated(f"{api}: {order.replica} makes {count} replicas, {wanted.replicas} are wanted")

    def _check_may_batch(self, replica: ReplicaId, model: ModelKey, batches: BatchingOrder, issue: _Issue) -> None:
        if batches.batches and model in issue.stopped:
            self._violated(f"{replica} is to batch, and rows of its model are known to have disagreed")

    def _check_batching(self) -> None:
        """No replica is left to batch a model whose rows have disagreed."""
        for _node, report in self._agents.replicas():
            told = report.phase is not Phase.EXITED and report.batches is not None and report.batches.batches
            if told and report.model in self._stopped:
                self._violated(f"{report.replica} still batches, and rows of its model have disagreed")

    def _known_stops(self) -> frozenset[ModelKey]:
        return frozenset(record.model for record in self._state.batching() if record.stops)

    def _excused(self, api: ApiKey, issue: _Issue) -> bool:
        """A replica ended by itself after what the orders were decided on: nobody could know."""
        known = self._apis[api]
        unseen = issue.true_until_s is not None and known.fault_s >= issue.true_until_s
        return unseen or known.fault > issue.fault

    def _ask_clients(self) -> None:
        for record in self._state.apis():
            wanted = record.wanted
            for node in self._agents.nodes:
                if self._asleep(wanted.api):
                    continue
                answer = self._agents.ask(wanted.api, node)
                self._answers[answer.outcome] += 1
                self._check_answer(wanted, node, answer)

    def _visit(self) -> None:
        """Now and then somebody comes to an api that sleeps, and waits as for one that has ended."""
        for record in self._state.apis():
            api = record.wanted.api
            asleep = self._asleep(api)
            if asleep and self._random.random() < 0.2:
                self._note(f"somebody knocks at {api}")
                self._apis[api].fault_s = self._now()
                for report in asleep:
                    self._agents.knock(report.replica)

    def _asleep(self, api: ApiKey) -> list[ReplicaReport]:
        """Who sleeps in its routes, if nobody has come."""
        routed = {replica for _node, route in self._agents.routes() if route.api == api for replica in route.targets}
        reports = [report for _node, report in self._agents.replicas() if report.replica in routed]
        asleep = [report for report in reports if report.phase is Phase.ASLEEP]
        return asleep if all(report.knocked_age_s is None for report in asleep) else []

    def _check_answer(self, wanted: WantedApi, node: NodeId, answer: IngressAnswer) -> None:
        known = self._apis[wanted.api]
        now_s = self._now()
        forced = wanted.force and wanted.live_wall_s is None
        known.gap = forced or (known.gap and answer.outcome != "answered")
        if answer.outcome == "answered":
            known.down_since_s = None
            if answer.version not in known.versions:
                self._violated(f"{wanted.api}: version {answer.version} answers and was never deployed")
            return
        if not self._promised(wanted):
            known.down_since_s = None
            return
        if known.down_since_s is None:
            known.down_since_s = now_s
        if self.mood is Mood.ROUGH:
            # Many faults at once: only that it does not last.
            limit_s = SLOWEST_START_S + LONGEST_WAIT_S
        elif known.fault_s == float("-inf"):
            limit_s = 0.0
        else:
            limit_s = SLOWEST_START_S
            if answer.outcome != "held" and known.fault_s <= known.down_since_s:
                self._violated(f"{wanted.api} on {node}: a request is not held but {answer.outcome}")
        waited_s = now_s - max(known.down_since_s, known.fault_s)
        if waited_s > limit_s or limit_s == 0.0:
            self._violated(f"{wanted.api} on {node}: a request is {answer.outcome}, for {waited_s:.2f} s")

    def _promised(self, wanted: WantedApi) -> bool:
        """Whether a request to this api is to be answered now."""
        serving = wanted.serving
        if serving is None or not wanted.serving_was_live:
            return False
        if self._kind(serving) not in SOUND or self._apis[wanted.api].gap:
            return False
        asleep = {report.replica for _node, report in self._agents.replicas() if report.phase is Phase.ASLEEP}
        if any(
            lease.request.replica in asleep and lease.state is LeaseState.PENDING for lease in self._engine.leases()
        ):
            return False  # it slept, and others have its room
        if self.mood is Mood.ROUGH:
            if self._standing_faults():
                self._trouble(0.0)
            if self._now() < self._trouble_until_s:
                return False
            unplaced = any(
                lease.state is not LeaseState.GRANTED and lease.request.api == wanted.api
                for lease in self._engine.leases()
            )
            if unplaced:
                return False
        desired = self._state.desired(now_wall_s=self._clock.wall_s())
        slots = [slot for record in desired.records if record.api == wanted.api for slot in record.slots.values()]
        return not any(backoff.restart_delay_s(slot) > 0 for slot in slots)

    def _check_rest(self) -> None:
        """Exactly what is wanted is there, and every deploy has come to an end."""
        apis = {record.wanted.api: record.wanted for record in self._state.apis()}
        running: dict[ApiKey, list[ReplicaReport]] = {}
        for _node, report in self._agents.replicas():
            running.setdefault(report.api, []).append(report)
        for api in running.keys() - apis.keys():
            self._violated(f"{api} is not wanted, and {[r.replica for r in running[api]]} are left")
        for api, wanted in apis.items():
            goal: BuildSpec | None = wanted.build
            if wanted.failed is not None:
                if not wanted.failed.message:
                    self._violated(f"{api}: failed without a reason")
                if self._kind(wanted.build) in SOUND and not self._apis[api].killed and self.mood is not Mood.ROUGH:
                    self._violated(f"{api}: a sound version failed: {wanted.failed.message}")
                goal = wanted.serving
            elif wanted.live_wall_s is None:
                self._violated(f"{api}: neither live nor failed")
            found = [(r.phase, r.revision) for r in running.get(api, [])]
            expected = [(Phase.READY, goal.revision)] * wanted.replicas if goal is not None else []
            if goal is not None and wanted.scale.asleep:
                expected = [(Phase.ASLEEP, goal.revision)]
            if found != expected:
                self._violated(f"{api}: {found} is there, {expected} is wanted")
            for node in self._agents.nodes:
                route = next((r for n, r in self._agents.routes() if n == node and r.api == api), None)
                names = tuple(sorted(r.replica for r in running.get(api, [])))
                if route is None or route.targets != names or route.timeout_s != wanted.timeout_s:
                    self._violated(f"{api}: the route on {node} is {route}, replicas are {names}")
        # What a replica saw is lost if it ends before anybody has heard of it.
        if self.mood is not Mood.ROUGH and self._stopped != self._known_stops():
            self._violated(f"rows of {self._stopped} have disagreed, {self._known_stops()} are remembered")
        self._stopped = set(self._known_stops())
        self._check_batching()
        awake = [report for reports in running.values() for report in reports if report.phase is not Phase.ASLEEP]
        replicas = sorted(report.replica for report in awake)
        leases = sorted(
            lease.request.replica for lease in self._engine.leases() if lease.state is not LeaseState.PENDING
        )
        if leases != replicas:
            self._violated(f"leases {leases}, replicas {replicas}")
        held = [(lease.node, device) for lease in self._engine.leases() for device in lease.devices]
        seen = [(node, device) for node, report in self._agents.replicas() for device in report.devices]
        if sorted(held) != sorted(seen) or len(set(held)) != len(held):
            self._violated(f"leases hold the GPUs {held}, replicas {seen}")
        surges = [lease.request.replica for lease in self._engine.leases() if lease.request.surge]
        if surges:
            self._violated(f"{surges} still have a surge lease")
        strays = {route.api for _node, route in self._agents.routes()} - apis.keys()
        if strays:
            self._violated(f"routes of {strays} are left")

    # ---- telling ------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return self._clock.monotonic_s()

    def _note(self, text: str) -> None:
        self._trace.append((self._clock.monotonic_s(), text))

    def _violated(self, what: str) -> NoReturn:
        lines = []
        for at_s, entry in self._trace:
            text = entry.describe() if isinstance(entry, Plan) else str(entry)
            lines += [f"  {at_s - 1000.0:9.3f}  {line}" for line in text.splitlines()]
        story = "\n".join(lines)
        when = f"{self.mood} schedule, at {self._now() - 1000.0:.3f} s"
        raise Violation(f"{what}\n{when}; repeat it with {self._repeat}\n{story}")


STATE_ACTIONS = frozenset({"record_exit", "record_stop", "record_ready", "mark_serving", "mark_live", "mark_failed"})
ENGINE_ACTIONS = frozenset({"acquire", "release", "recover"})
AGENT_ACTIONS = frozenset({"order"})


class _Breakable:
    """Passes everything on, and asks before each action whether the control plane still lives."""

    def __init__(self, target: object, simulation: Simulation, actions: frozenset[str]) -> None:
        self._target = target
        for name in actions:
            setattr(self, name, self._watched(name, getattr(target, name), simulation))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    @staticmethod
    def _watched(name: str, action: Callable[..., Any], simulation: Simulation) -> Callable[..., Any]:
        def act(*arguments: Any, **named: Any) -> Any:
            simulation.before_action(name, arguments)
            return action(*arguments, **named)

        return act


def _disagreed(reports: Iterable[ReplicaReport]) -> frozenset[ModelKey]:
    """Models whose rows have disagreed, by what replicas say."""
    return frozenset(
        report.model
        for report in reports
        if report.model is not None and report.batching is not None and report.batching.disagreement is not None
    )


def hash_share(name: str) -> float:
    """A number from 0 to 1 that is always the same for a name."""
    return random.Random(name).random()


__all__ = ["BuildKind", "Crashed", "Mood", "RetryLater", "ScheduleOutcome", "Simulation", "Violation"]
