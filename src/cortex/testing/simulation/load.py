"""
Load that moves: what comes for each api, what its replicas make of it, and what agents read of that.

The queues are those of `cortex.simulation`; which replicas they have is what the pretended nodes say. Of several nodes
the first that can be reached has all the requests.
"""

from __future__ import annotations

from collections.abc import Iterable

from cortex.ids import ApiKey, NodeId, ReplicaId
from cortex.simulation import traces
from cortex.simulation.promises import READ_S, BrokenPromise, Promises, Truth
from cortex.simulation.queues import NodeModel, Present, Queue, Work
from cortex.simulation.scaling import Rate
from cortex.simulation.schedules import WORKS
from cortex.testing.fake_agent import KNOCK_HELD_S
from cortex.testing.simulation.world import PretendedWorld
from cortex.wire.loads import DoorReading, LoadReading, NodeLoads

QUIET_AFTER_S = 3.0
"""When nothing has come or gone for so long, an agent is asked no more each half second. As in `agent/metering.py`."""
QUIET_READ_S = 5.0


class MovingLoad:
    """
    Has requests come and be served as time passes, and the real scaling told of it every half second.

    Raises:
        Violation: from `advance`, when a promise of scaling is broken.
    """

    def __init__(self, world: PretendedWorld) -> None:
        self.knocks: dict[ApiKey, float] = {}
        """Of apis that somebody waits for since they slept: since when."""
        self._world = world
        self._random = world.random
        self._agents = world.agents
        cores = sum(node.cpu_millis for node in world.machines) / 1000
        self._node = NodeModel([], cores=cores)
        self._queues: dict[ApiKey, Queue] = {}
        self._rates: dict[ApiKey, Rate] = {}
        self._works: dict[ApiKey, Work] = {}
        self._promises = Promises(self._works, cores=cores if len(world.machines) == 1 else None)
        self._doors: dict[str, dict[ApiKey, int]] = {}
        """What each agent's door has counted."""
        self._counted: dict[ApiKey, int] = {}
        self._heard: tuple[tuple[NodeId, str], ...] = ()
        self._heard_s = world.now_s()
        """Which nodes were read last, and when."""
        self._judged: object = None
        self._seen: object = None
        self._now_s = self._read_s = self._moved_s = world.now_s()

    # ---- what comes ---------------------------------------------------------------------------------------------

    def meet(self, api: ApiKey) -> None:
        """Somebody uses an api."""
        if api not in self._queues:
            self._works[api] = self._random.choice(WORKS)
            queue = Queue(api, self._works[api], lambda at_s: self._rates[api](at_s), self._random)
            self._queues[api] = queue
            self._node.queues.append(queue)
            self.move(api)

    def move(self, api: ApiKey) -> None:
        """From now on something else comes than before."""
        rate, name = _rate(self._works[api], self._world)
        begun_s = self._world.now_s()
        self._rates[api] = lambda at_s: rate(at_s - begun_s)
        self._world.note(f"{api}: load is now {name}")

    def calm(self) -> None:
        """From now on nothing changes."""
        for api, queue in self._queues.items():
            level = self._random.choice((0.0, 0.0, 0.5, 2.0)) * queue.work.sustained
            self._rates[api] = traces.constant(level)

    # ---- time ---------------------------------------------------------------------------------------------------

    @property
    def next_s(self) -> float:
        """When something is done next."""
        return self._now_s + READ_S

    def advance(self) -> bool:
        """All until now. Returns whether that gives the control plane something to do at once."""
        now_s, stirred = self._world.now_s(), False
        while self.next_s <= now_s + 1e-9:
            self._follow()
            self._node.step(self._now_s, READ_S)
            self._now_s = round(self._now_s + READ_S, 6)
            stirred = self._knock() or stirred
            if any(queue.moved for queue in self._queues.values()):
                self._moved_s = self._now_s
            if self._now_s <= self._moved_s + QUIET_AFTER_S or self._now_s >= self._read_s + QUIET_READ_S:
                self._read_s = self._now_s
                stirred = self._read(self._now_s) or stirred
        return stirred

    def _follow(self) -> None:
        """Which replicas there are."""
        seen = (self._agents.revision, self._world.state.revision)
        if seen == self._seen:
            return
        self._seen = seen
        wanted = {record.wanted.api for record in self._world.wanted()}
        routed = {replica for _node, route in self._agents.routes() for replica in route.targets}
        present: dict[ApiKey, list[Present]] = {api: [] for api in self._queues}
        for report, ready_s in self._agents.ready():
            if report.replica in routed and report.api in present:
                present[report.api].append(
                    Present(replica=report.replica, revision=report.revision, attempt=report.attempt, ready_s=ready_s)
                )
        for api, queue in self._queues.items():
            queue.have(present[api])
            queue.closed = api not in wanted
            if queue.closed:
                self.knocks.pop(api, None)

    def _knock(self) -> bool:
        """Who comes to an api that sleeps knocks, and is told within the time that is promised."""
        now_s, knocked = self._world.now_s(), False
        for api, queue in self._queues.items():
            if queue.waiting and not queue.ready and api not in self.knocks:
                asleep = self._world.asleep(api)
                if asleep:
                    self._world.knock(api, asleep)
                    self.knocks[api], knocked = now_s, True
            elif api in self.knocks and queue.ready:
                del self.knocks[api]
                self._world.events["a knock is answered"] += 1
            elif now_s >= self.knocks.get(api, now_s) + KNOCK_HELD_S:
                queue.give_up()
                self._world.events["a knock is refused"] += 1
                self._world.refused(api, self.knocks.pop(api))
        return knocked

    # ---- what is read -------------------------------------------------------------------------------------------

    def _read(self, now_s: float) -> bool:
        for api, queue in self._queues.items():
            truth = Truth(
                at_s=now_s,
                begun=queue.begun,
                ended=queue.ended,
                in_service=queue.in_service,
                waiting=queue.waiting,
            )
            self._promises.note(api, truth)
        nodes = self._agents.heard()
        if len(nodes) < len(self._world.machines):
            self._promises.miss(now_s)
        if not set(self._heard) <= set(nodes):
            self._promises.fall_silent(self._heard_s)
        self._heard, self._heard_s = nodes, now_s
        begun = self._world.began_s
        changed = self._world.scale(self._loads(nodes, now_s))
        scaling = self._world.scaling
        if scaling is None or scaling.decisions is self._judged or self._world.began_s != begun:
            self._promises.miss(now_s)
            return changed
        self._judged = scaling.decisions
        self._promises.begin(self._world.began_s)
        before = {api: decision.asked.replicas for api, decision in scaling.decisions.items()}
        for decision in scaling.decisions.values():
            if decision.replicas != decision.asked.replicas:
                self._world.events["up" if decision.replicas > decision.asked.replicas else "down"] += 1
        knows = all(decision.costs is not None for decision in scaling.decisions.values())
        try:
            self._promises.judge(scaling.decisions, before, at_s=now_s, knows=knows)
        except BrokenPromise as broken:
            self._world.violated(str(broken))
        return changed

    def _loads(self, nodes: Iterable[tuple[NodeId, str]], now_s: float) -> list[NodeLoads]:
        where: dict[ReplicaId, NodeId] = {}
        for node, report in self._agents.replicas():
            where.setdefault(report.replica, node)
        readings: dict[NodeId, list[LoadReading]] = {node: [] for node, _agent in nodes}
        queued: list[DoorReading] = []
        for queue in self._queues.values():
            for reading in queue.readings(now_s):
                readings.get(where[reading.replica], []).append(reading)
            queued.append(queue.door())
        loads = []
        # One that is cut off goes on taking all that comes, and nobody hears of it.
        entrance = next(iter(self._agents.nodes), None)
        taken: tuple[DoorReading, ...] = ()
        if entrance is not None:
            counted = self._doors.setdefault(self._agents.agent(entrance), {})
            taken = tuple(self._door(one, counted) for one in queued)
        for node, agent in nodes:
            loads.append(
                NodeLoads(
                    node=node,
                    agent=agent,
                    at_s=now_s,
                    replicas=tuple(readings[node]),
                    doors=taken if node == entrance else (),
                    busy_cpu_s=self._node.busy_cpu_s,
                )
            )
        return loads

    def _door(self, reading: DoorReading, counted: dict[ApiKey, int]) -> DoorReading:
        """As an agent has it, which counts since it began."""
        api = reading.api
        counted[api] = counted.get(api, 0) + reading.begun - self._counted.get(api, 0)
        self._counted[api] = reading.begun
        return DoorReading(api=api, begun=counted[api], queued=reading.queued)


def _rate(work: Work, world: PretendedWorld) -> tuple[Rate, str]:
    chance = world.random
    most = work.sustained * chance.choice((0.5, 1.0, 3.0, 6.0))
    begins_s, each_s = chance.uniform(0, 10), chance.uniform(3, 12)
    rates: tuple[tuple[str, Rate], ...] = (
        ("nothing", traces.constant(0.0)),
        ("steady", traces.constant(most / 2)),
        ("a step", traces.step(most / 10, most, at_s=begins_s)),
        ("a pulse", traces.pulse(most, at_s=begins_s, for_s=each_s)),
        ("on and off", traces.on_off(most, each_s=each_s)),
        ("a saw", traces.saw(most, period_s=each_s)),
        ("noise", traces.noise(most / 2, part=0.8, seed=chance.randint(0, 1000))),
        ("a wave", traces.wave(0.0, most, period_s=3 * each_s)),
    )
    name, rate = chance.choice(rates)
    return rate, f"{name}, up to {most:.1f}/s"
