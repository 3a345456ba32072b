"""How a plan is carried out, and what is left out when something fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import pytest

from cortex.controlplane.apply import apply
from cortex.controlplane.world import Agents, StaleEpoch, World
from cortex.engines.fake import FakeEngine
from cortex.errors import Problem, RetryLater
from cortex.ids import ApiKey, NodeId, ReplicaId, replica_id
from cortex.planning.actions import (
    AcquireLease,
    Action,
    GoBack,
    MarkAwake,
    MarkFailed,
    MarkLive,
    OrderNode,
    Plan,
    RecordExit,
    RecordStop,
    RecoverLease,
    ReleaseLease,
    RouteApi,
    UnrouteApi,
)
from cortex.planning.batching import BatchingStop
from cortex.planning.model import Lease, LeaseRequest
from cortex.state.base import DeployChange, StateFull
from cortex.state.records import StateStore, Write
from cortex.testing.builders import (
    API,
    NODE,
    a_build,
    a_deploy,
    a_node,
    a_replica,
    a_route,
    a_wanted_api,
    an_agent_report,
    an_exit,
)
from cortex.testing.clock import FakeClock
from cortex.testing.fake_agent import FakeAgents, Fate
from cortex.wire.batching import RULES, BatchingOrder, Disagreement
from cortex.wire.events import Event, EventKind
from cortex.wire.orders import (
    DrainReplica,
    ForgetReplica,
    Order,
    Orders,
    RemoveRoute,
    RoutesRevision,
    SetReplicaBatching,
    SetRoutes,
    StartReplica,
)
from cortex.wire.reports import AgentReport, Phase

V1 = a_build("v1")
ROUTE = a_route(a_wanted_api(V1))
OTHER_API = ApiKey("iris/other")
N2 = NodeId("n2")


class Recorder:
    """Agents that write down what they are told; nodes in `silent` do not answer."""

    def __init__(self) -> None:
        self.given: list[tuple[NodeId, tuple[Order, ...]]] = []
        self.silent: set[NodeId] = set()
        self.settled = True
        self.nodes: tuple[AgentReport, ...] = ()

    def reports(self) -> tuple[AgentReport, ...]:
        return self.nodes

    def order(self, batches: Mapping[NodeId, Orders]) -> Mapping[NodeId, RetryLater]:
        assert {orders.epoch for orders in batches.values()} == {7}
        self.given += [(node, orders.orders) for node, orders in batches.items() if node not in self.silent]
        return {node: RetryLater("no answer", after_s=0.3) for node in batches if node in self.silent}

    def silent_s(self) -> Mapping[NodeId, float]:
        return {}


class FullDisk(StateStore):
    """A store that cannot write any more, after this deploy."""

    def __init__(self, change: DeployChange) -> None:
        self._full = False
        super().__init__()
        self.commit_deploy(change)
        self._full = True

    def _persist(self, writes: object, *, durable: bool) -> None:
        if self._full:
            raise StateFull("state.db", "the disk is full")


@pytest.fixture
def agents() -> Recorder:
    return Recorder()


def a_world(agents: Agents, state: StateStore | None = None) -> World:
    clock = FakeClock()
    engine = FakeEngine([a_node(), a_node(N2, gpus=2)], clock=clock)
    return World(state=state or StateStore(), engine=engine, agents=agents, clock=clock, epoch=7)


def name(api: ApiKey = API) -> ReplicaId:
    return replica_id(api, V1.revision, 0)


def start(node: NodeId = NODE, api: ApiKey = API) -> OrderNode:
    return OrderNode(node=node, api=api, order=StartReplica(replica=name(api), attempt=1, build=V1))


def unroute(node: NodeId = NODE, api: ApiKey = API) -> OrderNode:
    return OrderNode(node=node, api=api, order=RemoveRoute(api=api))


def drain(node: NodeId = NODE, api: ApiKey = API) -> OrderNode:
    return OrderNode(node=node, api=api, order=DrainReplica(replica=name(api), timeout_s=60.0))


def forget(node: NodeId = NODE, api: ApiKey = API) -> OrderNode:
    return OrderNode(node=node, api=api, order=ForgetReplica(replica=name(api)))


def release(api: ApiKey = API) -> Action:
    return ReleaseLease(replica=name(api), api=api)


def acquire(api: ApiKey = API) -> AcquireLease:
    return AcquireLease(request=LeaseRequest(replica=name(api), api=api, resources=V1.resources))


def a_record_of_an_exit() -> Action:
    return RecordExit(api=API, revision=V1.revision, replica=name(), attempt=1, was_ready=True, exit=an_exit())


def told(agents: Recorder, *actions: Action, state: StateStore) -> list[tuple[str, str]]:
    """What is told as these are carried out, twice: the second time nothing is new."""
    events: list[Event] = []
    for _ in range(2):
        world = a_world(agents, state)
        world.tell = events.append
        apply(Plan(actions=actions), world)
    return [(event.kind, event.text) for event in events]


def orders(*actions: OrderNode) -> tuple[Order, ...]:
    return tuple(action.order for action in actions)


def test_a_node_gets_all_its_orders_in_one_message_what_takes_away_last(agents: Recorder) -> None:
    plan = (start(), drain(), start(api=OTHER_API), forget(api=OTHER_API))
    failures = apply(Plan(actions=plan), a_world(agents))
    assert agents.given == [(NODE, orders(start(), start(api=OTHER_API), drain(), forget(api=OTHER_API)))]
    assert failures.retry_after_s is None


def test_one_message_starts_then_routes_then_takes_away() -> None:
    clock = FakeClock()
    agents, given = FakeAgents(clock), []
    agents.before_order = lambda _node, order, _orders: given.append(type(order))
    plan = (start(), RouteApi(route=ROUTE), drain(), start(api=OTHER_API))
    assert not apply(Plan(actions=plan), a_world(agents)).apis
    assert given == [StartReplica, StartReplica, SetRoutes, DrainReplica]


def test_a_node_that_has_other_routes_than_it_reported_loses_nothing() -> None:
    agents = FakeAgents(FakeClock())
    world = a_world(agents)
    world.engine.acquire(LeaseRequest(replica=name(OTHER_API), api=OTHER_API, resources=V1.resources))
    apply(Plan(actions=(start(), RouteApi(route=ROUTE))), world)
    agents.report_delay_s = 60.0
    agents.fate = lambda _node, _orders: Fate.UNANSWERED
    apply(Plan(actions=(UnrouteApi(api=API),)), world)
    agents.fate = lambda _node, _orders: Fate.DONE
    plan = Plan(actions=(RouteApi(route=ROUTE), drain(), forget(api=OTHER_API), release(OTHER_API)))
    assert apply(plan, world).apis == {API, OTHER_API}
    assert [report.phase for _node, report in agents.replicas()] == [Phase.STARTING]
    assert len(world.engine.leases()) == 1
    assert agents.routes() == ()
    assert not apply(plan, world).apis
    assert agents.routes() == ((NODE, ROUTE),)


def test_a_node_whose_last_orders_are_known_is_told_of_no_table_that_it_has() -> None:
    agents, given = FakeAgents(FakeClock()), []
    agents.before_order = lambda _node, order, _orders: given.append(order)
    world = a_world(agents)
    plan = Plan(actions=(RouteApi(route=ROUTE),))
    for _ in range(2):
        apply(plan, world)
    assert given == [SetRoutes(revision=RoutesRevision(7, 1), routes=(ROUTE,))]
    agents.fate = lambda _node, _orders: Fate.LOST
    assert apply(Plan(actions=(start(),)), world).apis == {API}
    agents.fate = lambda _node, _orders: Fate.DONE
    apply(plan, world)
    assert given[1:] == [SetRoutes(revision=RoutesRevision(7, 1), base=RoutesRevision(7, 1))]


def test_one_table_of_routes_brings_all_nodes_there_from_whatever_they_have() -> None:
    agents, given = FakeAgents(FakeClock(), [a_node(), a_node(N2)]), []
    world = a_world(agents)
    other = a_route(a_wanted_api(a_build("v1", api=OTHER_API)))
    apply(Plan(actions=(RouteApi(route=ROUTE),)), world)
    agents.fate = lambda node, _orders: Fate.LOST if node == N2 else Fate.DONE
    assert apply(Plan(actions=(RouteApi(route=other),)), world).apis == {OTHER_API}
    agents.fate = lambda _node, _orders: Fate.DONE
    agents.before_order = lambda node, order, _orders: given.append((node, order))
    assert not apply(Plan(actions=(UnrouteApi(api=API),)), world).apis
    revision, second, first = (RoutesRevision(7, number) for number in (3, 2, 1))
    assert given == [
        (NODE, SetRoutes(revision=revision, base=second, removed=(API,))),
        (N2, SetRoutes(revision=revision, base=first, routes=(other,), removed=(API,))),
    ]
    assert agents.routes() == ((NODE, other), (N2, other))


def test_an_agent_that_knows_of_no_tables_gets_each_route_by_itself(agents: Recorder) -> None:
    agents.nodes = (an_agent_report(routes=(a_route(a_wanted_api(a_build("v1", api=OTHER_API))),)),)
    apply(Plan(actions=(RouteApi(route=ROUTE), UnrouteApi(api=OTHER_API))), a_world(agents))
    assert agents.given == [(NODE, (RemoveRoute(api=OTHER_API), ROUTE))]


def test_on_several_nodes_nothing_is_taken_before_all_routes_are_set(agents: Recorder) -> None:
    apply(Plan(actions=(unroute(), unroute(N2), drain())), a_world(agents))
    assert agents.given == [(NODE, orders(unroute())), (N2, orders(unroute())), (NODE, orders(drain()))]


def test_a_silent_node_keeps_its_apis_from_losing_anything_but_not_others_nor_from_starting(
    agents: Recorder,
) -> None:
    agents.silent = {N2}
    plan = (start(), unroute(N2), drain(), release(), unroute(api=OTHER_API), drain(api=OTHER_API))
    world = a_world(agents)
    world.engine.acquire(LeaseRequest(replica=name(), api=API, resources=V1.resources))
    failures = apply(Plan(actions=plan), world)
    assert agents.given == [(NODE, orders(start(), unroute(api=OTHER_API))), (NODE, orders(drain(api=OTHER_API)))]
    assert len(world.engine.leases()) == 1
    assert failures.apis == {API}
    assert failures.retry_after_s == 0.3


def test_room_is_released_only_after_the_replica_was_forgotten(agents: Recorder) -> None:
    world = a_world(agents)
    world.engine.acquire(LeaseRequest(replica=name(), api=API, resources=V1.resources))
    agents.silent = {NODE}
    apply(Plan(actions=(forget(), release())), world)
    assert len(world.engine.leases()) == 1
    agents.silent = set()
    apply(Plan(actions=(forget(), release())), world)
    assert world.engine.leases() == ()


def test_what_becomes_of_a_version_is_told_once_it_is_written(agents: Recorder) -> None:
    state, v2 = StateStore(), a_build("v2")
    state.commit_deploy(a_deploy(a_wanted_api(V1)))
    live = MarkLive(api=API, revision=V1.revision)
    assert told(agents, live, MarkLive(api=API, revision=v2.revision), state=state) == [(EventKind.LIVE, "serves")]
    state.commit_deploy(a_deploy(a_wanted_api(v2)))
    fails = MarkFailed(api=API, revision=v2.revision, problem=Problem(reference="x", message="boom"))
    text = f"could not go live: boom; {V1.version[:8]} goes on serving"
    assert told(agents, fails, state=state) == [(EventKind.FAILED, text)]


def test_the_end_of_a_replica_is_told_under_a_key_by_which_it_is_kept_once(agents: Recorder) -> None:
    state, events = StateStore(), []
    state.commit_deploy(a_deploy(a_wanted_api(V1)))
    world = a_world(agents, state)
    world.tell = events.append
    for _ in range(2):
        apply(Plan(actions=(a_record_of_an_exit(),)), world)
    assert {(event.kind, event.once != "") for event in events} == {(EventKind.CRASHED, True)}
    assert len({event.once for event in events}) == 1


def test_an_api_is_awake_since_somebody_has_knocked(agents: Recorder) -> None:
    state = StateStore()
    state.commit_deploy(a_deploy(a_wanted_api(V1, min_replicas=0)))
    state.fall_asleep(API, V1.revision, reason="nobody asked", wall_s=0.0)
    world = a_world(agents, state)
    apply(Plan(actions=(MarkAwake(api=API, waited_s=2.5),)), world)
    (record,) = state.apis()
    assert (record.wanted.scale.asleep, record.wanted.scale.since_wall_s) == (False, world.clock.wall_s() - 2.5)


def test_what_could_not_be_written_is_not_told(agents: Recorder) -> None:
    actions = (MarkLive(api=API, revision=V1.revision), a_record_of_an_exit())
    assert told(agents, *actions, state=FullDisk(a_deploy(a_wanted_api(V1)))) == []


def test_a_full_disk_does_not_keep_a_crashed_replica_down(agents: Recorder) -> None:
    state = FullDisk(a_deploy(a_wanted_api(V1)))
    failures = apply(Plan(actions=(a_record_of_an_exit(), start(), drain())), a_world(agents, state))
    assert agents.given == [(NODE, orders(start()))]
    assert failures.apis == {API}


def test_a_version_that_cannot_be_marked_live_does_not_replace_the_old_one(agents: Recorder) -> None:
    state = FullDisk(a_deploy(a_wanted_api(V1)))
    apply(Plan(actions=(MarkLive(api=API, revision=V1.revision), drain())), a_world(agents, state))
    assert agents.given == []


def test_an_engine_out_of_reach_costs_no_replica(agents: Recorder) -> None:
    world = a_world(agents)
    assert isinstance(world.engine, FakeEngine)
    world.engine.unreachable = True
    failures = apply(Plan(actions=(acquire(), start(), drain(), release(), drain(api=OTHER_API))), world)
    assert agents.given == [(NODE, orders(start(), drain(api=OTHER_API)))]
    assert failures.retry_after_s == 0.2


def test_room_can_be_taken_back_for_what_runs(agents: Recorder) -> None:
    world = a_world(agents)
    running = msgspec.structs.replace(a_replica(V1), devices=("GPU-1",))
    apply(Plan(actions=(RecoverLease(lease=Lease.of_running(running, N2)),)), world)
    leases = [(lease.state, lease.node, lease.devices) for lease in world.engine.leases()]
    assert leases == [("granted", N2, ("GPU-1",))]


def test_being_refused_as_stale_ends_it(agents: Recorder) -> None:
    class Newer(Recorder):
        def order(self, batches: Mapping[NodeId, Orders]) -> Mapping[NodeId, RetryLater]:
            raise StaleEpoch("someone newer is in charge")

    world = a_world(Newer())
    world.engine.acquire(LeaseRequest(replica=name(), api=API, resources=V1.resources))
    with pytest.raises(StaleEpoch):
        apply(Plan(actions=(unroute(), release())), world)
    assert len(world.engine.leases()) == 1


def test_the_same_failure_is_logged_once(agents: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    world = a_world(agents)
    agents.silent = {NODE}
    for _ in range(3):
        apply(Plan(actions=(start(),)), world)
    assert [record.getMessage() for record in caplog.records] == [
        f"failed, will be tried again: iris/sklearn: on local: start {name()} (attempt 1): no answer"
    ]
    agents.silent = set()
    apply(Plan(actions=(start(),)), world)
    agents.silent = {NODE}
    apply(Plan(actions=(start(),)), world)
    assert len(caplog.records) == 2


APART = Disagreement(output="y", alone="0.5", together="0.7")
STOP = RecordStop(
    model=V1.model_key,
    stop=BatchingStop(api=API, replica=name(), started_wall_s=3.0, runtime="ort, cpu", disagreement=APART),
)


def test_rows_that_disagreed_are_kept_with_when_and_where_and_logged(
    agents: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    world = a_world(agents)
    apply(Plan(actions=(STOP,)), world)
    (record,) = world.state.batching()
    (stop,) = record.stops
    assert (record.model, record.rules) == (V1.model_key, RULES)
    assert (stop.replica, stop.started_wall_s, stop.runtime, stop.disagreement) == (name(), 3.0, "ort, cpu", APART)
    assert stop.wall_s == world.clock.wall_s()
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert 'rows disagreed (output "y" is 0.5 alone and 0.7 beside others), on ort, cpu' in line


def test_replicas_are_told_not_to_batch_even_if_the_reason_cannot_be_kept(agents: Recorder) -> None:
    tell = OrderNode(node=NODE, api=API, order=SetReplicaBatching(replica=name(), batches=BatchingOrder()))
    failures = apply(Plan(actions=(STOP, tell)), a_world(agents, FullDisk(a_deploy(a_wanted_api(V1)))))
    assert failures.apis == {API}
    assert agents.given == [(NODE, (tell.order,))]


def test_a_version_that_failed_once_it_had_taken_over_goes_back(agents: Recorder) -> None:
    state, v2 = StateStore(), a_build("v2")
    for build in (V1, v2):
        state.commit_deploy(a_deploy(a_wanted_api(build)))
        state.mark_live(API, build.revision, wall_s=0.0)
    problem = Problem(reference="replica-failed", message="it ended\nagain and again")
    back = GoBack(api=API, revision=v2.revision, to=V1.revision, problem=problem)
    # The second time it is not wanted any more.
    assert told(agents, back, state=state) == [(EventKind.ROLLED_BACK, f"by itself, from {v2.version[:8]}: it ended")]
    (record,) = state.apis()
    assert record.wanted.rolled_back is not None
    assert (record.wanted.build, record.wanted.serving, record.wanted.rolled_back.reason) == (V1, v2, "it ended")
    assert next(line.cause for line in state.history(API)) == f"back from {v2.version[:8]}: it ended"


def test_where_the_version_before_is_not_kept_the_watch_ends(agents: Recorder) -> None:
    state, v2 = StateStore(), a_build("v2")
    for build in (V1, v2):
        state.commit_deploy(a_deploy(a_wanted_api(build)))
        state.mark_live(API, build.revision, wall_s=0.0)
    unknown = GoBack(
        api=API,
        revision=v2.revision,
        to=a_build("v0").revision,
        problem=Problem(reference="replica-failed", message="it ended"),
    )
    apply(Plan(actions=(unknown,)), a_world(agents, state))
    (record,) = state.apis()
    assert (record.wanted.build, record.wanted.previous) == (v2, None)


def test_all_that_one_tick_keeps_is_one_transaction(agents: Recorder) -> None:
    made: list[int] = []

    class Counting(StateStore):
        def _persist(self, writes: Sequence[Write], *, durable: bool) -> None:
            made.append(len(writes))

    state, other = Counting(), ApiKey("iris/other")
    state.commit_deploy(a_deploy(a_wanted_api(V1), a_wanted_api(a_build(api=other))))
    made.clear()
    marks = [MarkLive(api=key, revision=a_build(api=key).revision) for key in (API, other)]
    apply(Plan(actions=(a_record_of_an_exit(), *marks)), a_world(agents, state))
    assert len(made) == 1
    assert [record.wanted.live_wall_s is None for record in state.apis()] == [False, False]
    assert len(state.desired(now_wall_s=0.0).records) == 1
