"""The pretended nodes do what real agents promise, and have the misfortunes they are told to have."""

from __future__ import annotations

import msgspec
import pytest

from cortex.controlplane.world import StaleEpoch
from cortex.errors import Problem, RetryLater
from cortex.ids import NodeId, ReplicaId, replica_id
from cortex.testing.builders import API, NODE, a_build, a_node, a_route, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.testing.fake_agent import RUNTIME, FakeAgents, FakeLife, Fate, IngressAnswer, Way
from cortex.wire.batching import BatchingOrder, BatchingState
from cortex.wire.orders import (
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
from cortex.wire.reports import Phase, ReplicaReport

V1 = a_build("v1")
R0 = replica_id(API, V1.revision, 0)
N2 = NodeId("n2")
BOOM = Problem(reference="x", message="boom")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def agents(clock: FakeClock) -> FakeAgents:
    return FakeAgents(clock)


@pytest.fixture
def two(clock: FakeClock) -> FakeAgents:
    return FakeAgents(clock, [a_node(), a_node(N2)])


def start(attempt: int = 1, ordinal: int = 0) -> StartReplica:
    return StartReplica(replica=replica_id(API, V1.revision, ordinal), attempt=attempt, build=V1)


def give(agents: FakeAgents, *orders: Order, epoch: int = 1, node: NodeId = NODE) -> None:
    for error in agents.order({node: Orders(epoch=epoch, orders=orders)}).values():
        raise error


def only(agents: FakeAgents) -> ReplicaReport:
    ((_node, report),) = agents.replicas()
    return report


def route(*targets: ReplicaId, hold: bool = True) -> SetRoute:
    return a_route(a_wanted_api(V1), *targets, hold=hold)


# ---- lives -----------------------------------------------------------------------------------------------------------


def test_a_started_replica_becomes_ready_when_its_time_has_come(agents: FakeAgents, clock: FakeClock) -> None:
    agents.lives = lambda _order: FakeLife(ready_after_s=2.0)
    give(agents, start())
    assert (only(agents).phase, agents.next_change_s()) == (Phase.STARTING, 1002.0)
    clock.advance(2.0)
    assert (only(agents).phase, only(agents).was_ready, agents.next_change_s()) == (Phase.READY, True, None)


def test_a_replica_can_fail_to_start(agents: FakeAgents, clock: FakeClock) -> None:
    agents.lives = lambda _order: FakeLife(start_error=BOOM, permanent=True, exit_code=3)
    give(agents, start())
    clock.advance(1.0)
    found = only(agents).exit
    assert found is not None
    assert (found.code, found.problem, found.permanent, only(agents).was_ready) == (3, BOOM, True, False)


def test_a_replica_that_hangs_while_it_loads_is_given_up(agents: FakeAgents, clock: FakeClock) -> None:
    agents.lives = lambda _order: FakeLife(never_ready=True)
    give(agents, start())
    clock.advance(299.0)
    assert only(agents).phase is Phase.STARTING
    clock.advance(1.0)
    found = only(agents).exit
    assert found is not None
    assert found.problem is not None
    assert (found.problem.reference, found.permanent) == ("start-timeout", True)


def test_a_replica_can_crash_some_time_after_it_was_ready(agents: FakeAgents, clock: FakeClock) -> None:
    agents.lives = lambda _order: FakeLife(ready_after_s=1.0, crash_after_s=5.0, exit_signal=9, oom=True)
    give(agents, start())
    clock.advance(6.0)
    found = only(agents).exit
    assert found is not None
    assert (found.code, found.signal, found.oom, only(agents).was_ready) == (None, 9, True, True)


def test_draining_takes_as_long_as_there_is_something_to_finish(agents: FakeAgents, clock: FakeClock) -> None:
    agents.lives = lambda _order: FakeLife(ready_after_s=0.0, drain_s=3.0)
    give(agents, start())
    give(agents, DrainReplica(replica=R0, timeout_s=60.0))
    assert only(agents).phase is Phase.DRAINING
    clock.advance(3.0)
    found = only(agents).exit
    assert found is not None
    assert (found.drained, found.code) == (True, 0)


def test_a_replica_that_ignores_being_asked_is_killed_when_time_is_up(agents: FakeAgents, clock: FakeClock) -> None:
    agents.lives = lambda _order: FakeLife(ready_after_s=0.0, ignores_sigterm=True)
    give(agents, start())
    give(agents, DrainReplica(replica=R0, timeout_s=10.0))
    clock.advance(11.0)
    assert only(agents).phase is Phase.DRAINING
    clock.advance(1.0)
    found = only(agents).exit
    assert found is not None
    assert (found.drained, found.signal) == (True, 9)


def test_a_killed_replica_keeps_its_slot_until_it_is_forgotten(agents: FakeAgents, clock: FakeClock) -> None:
    give(agents, start())
    clock.advance(1.0)
    assert agents.kill(R0)
    assert not agents.kill(R0)
    assert only(agents).phase is Phase.EXITED
    give(agents, ForgetReplica(replica=R0))
    assert agents.replicas() == ()


# ---- batching --------------------------------------------------------------------------------------------------------


def test_what_a_replica_was_ordered_about_batches_is_reported(agents: FakeAgents, clock: FakeClock) -> None:
    give(agents, msgspec.structs.replace(start(), batches=BatchingOrder(True, "labels")))
    assert (only(agents).batches, only(agents).batching) == (BatchingOrder(True, "labels"), None)
    give(agents, SetReplicaBatching(replica=R0, batches=BatchingOrder()))
    clock.advance(1.0)
    assert (only(agents).batches, only(agents).batching) == (BatchingOrder(), BatchingState(runtime=RUNTIME))


def test_rows_can_disagree_in_a_replica(agents: FakeAgents, clock: FakeClock) -> None:
    give(agents, start())
    clock.advance(1.0)
    agents.disagree(R0)
    batching = only(agents).batching
    assert batching is not None
    assert batching.disagreement is not None


# ---- orders ----------------------------------------------------------------------------------------------------------


def test_orders_may_be_repeated(agents: FakeAgents, clock: FakeClock) -> None:
    for _ in range(2):
        give(agents, start(), route(R0))
    clock.advance(1.0)
    give(agents, start(), route(R0))
    assert (only(agents).phase, only(agents).attempt, len(agents.routes())) == (Phase.READY, 1, 1)
    for _ in range(2):
        give(agents, DrainReplica(replica=R0, timeout_s=1.0), RemoveRoute(api=API))
    for _ in range(2):
        give(agents, ForgetReplica(replica=R0))
    assert (agents.replicas(), agents.routes()) == ((), ())


def test_a_higher_attempt_starts_only_what_has_ended(agents: FakeAgents, clock: FakeClock) -> None:
    give(agents, start())
    give(agents, start(attempt=2))
    assert only(agents).attempt == 1
    agents.kill(R0)
    give(agents, start(attempt=1))
    assert only(agents).phase is Phase.EXITED
    give(agents, start(attempt=2))
    assert (only(agents).phase, only(agents).attempt) == (Phase.STARTING, 2)


def test_orders_of_an_older_epoch_are_refused(agents: FakeAgents) -> None:
    give(agents, start(), epoch=5)
    with pytest.raises(StaleEpoch):
        give(agents, ForgetReplica(replica=R0), epoch=4)
    assert only(agents).replica == R0


@pytest.mark.parametrize(
    ("fate", "told", "done_at_once", "done_later"),
    [
        (Fate.DONE, True, True, True),
        (Fate.TWICE, True, True, True),
        (Fate.LOST, False, False, False),
        (Fate.UNANSWERED, False, True, True),
        (Fate.LATE, False, False, True),
    ],
)
def test_what_becomes_of_orders(
    agents: FakeAgents, clock: FakeClock, fate: Fate, told: bool, done_at_once: bool, done_later: bool
) -> None:
    agents.fate = lambda _node, _orders: fate
    if told:
        give(agents, start())
    else:
        with pytest.raises(RetryLater):
            give(agents, start())
    assert bool(agents.replicas()) is done_at_once
    clock.advance(agents.late_by_s)
    assert bool(agents.replicas()) is done_later


def test_late_orders_are_not_overtaken(agents: FakeAgents) -> None:
    fates = iter([Fate.LATE, Fate.DONE])
    agents.fate = lambda _node, _orders: next(fates)
    with pytest.raises(RetryLater):
        give(agents, start())
    give(agents, ForgetReplica(replica=R0))
    assert agents.replicas() == ()


# ---- reports ---------------------------------------------------------------------------------------------------------


def test_a_report_shows_what_was_just_ordered(agents: FakeAgents) -> None:
    give(agents, start(), route(R0))
    (report,) = agents.reports()
    assert [replica.phase for replica in report.replicas] == [Phase.STARTING]
    assert report.routes == (route(R0),)
    assert report.epoch == 1


def test_the_serial_grows_with_each_change_and_only_then(agents: FakeAgents, clock: FakeClock) -> None:
    give(agents, start())
    first = agents.reports()[0].serial
    give(agents, start())
    clock.advance(0.01)
    assert agents.reports()[0].serial == first
    clock.advance(1.0)
    assert agents.reports()[0].serial > first


def test_reports_can_be_late_but_never_go_back(agents: FakeAgents, clock: FakeClock) -> None:
    give(agents, start())
    agents.report_delay_s = 1.0
    clock.advance(0.5)
    phases = []
    for _ in range(5):
        clock.advance(0.4)
        phases.append(agents.reports()[0].replicas[0].phase)
    assert phases == [Phase.STARTING] * 3 + [Phase.READY] * 2


def test_a_restarted_agent_adopts_what_runs_and_counts_anew(agents: FakeAgents, clock: FakeClock) -> None:
    give(agents, start(), route(R0))
    clock.advance(1.0)
    before = agents.reports()[0]
    agents.restart_agent(NODE, down_s=1.0)
    with pytest.raises(RetryLater):
        give(agents, start())
    assert agents.reports() == (before,)
    assert agents.ask(API).outcome == "answered"
    clock.advance(1.0)
    after = agents.reports()[0]
    assert (after.agent != before.agent, after.serial, after.replicas, after.routes) == (
        True,
        1,
        before.replicas,
        before.routes,
    )


def test_orders_on_their_way_are_lost_with_the_agent(agents: FakeAgents, clock: FakeClock) -> None:
    agents.fate = lambda _node, _orders: Fate.LATE
    with pytest.raises(RetryLater):
        give(agents, start())
    agents.restart_agent(NODE)
    clock.advance(10.0)
    assert agents.replicas() == ()


def test_nodes_come_and_go(two: FakeAgents) -> None:
    give(two, start(), route(R0), node=N2)
    two.lose_node(N2)
    assert (two.nodes, two.replicas(), two.routes()) == ((NODE,), (), ())
    with pytest.raises(RetryLater):
        give(two, start(), node=N2)
    two.add_node(a_node(N2))
    assert [(report.name, report.replicas, report.routes) for report in two.reports()] == [(NODE, (), ()), (N2, (), ())]


def test_what_a_lost_node_said_last_is_known_until_it_is_back_or_all_is_forgotten(
    two: FakeAgents, clock: FakeClock
) -> None:
    give(two, start(), node=N2)
    first = two.reports()[1]
    two.lose_node(N2)
    clock.advance(3.0)
    assert two.reports()[1] is first
    assert two.silent_s() == {NODE: 0.0, N2: 3.0}
    assert (two.true_until_s(), two.true_until_s(but=[N2])) == (1000.0, None)
    two.add_node(a_node(N2))
    assert (two.reports()[1].replicas, two.reports()[1].agent == first.agent) == ((), False)
    two.lose_node(N2)
    two.forget_reports()
    assert [report.name for report in two.reports()] == [NODE]


def test_a_node_may_come_back_with_the_routes_that_it_had(two: FakeAgents) -> None:
    table = SetRoutes(revision=RoutesRevision(1, 1), routes=(route(R0),))
    give(two, table, node=N2)
    two.lose_node(N2)
    two.add_node(a_node(N2), keeps_routes=True)
    assert (two.reports()[1].routes, two.reports()[1].routes_revision) == ((route(R0),), RoutesRevision(1, 1))
    assert dict(two.tables())[N2] == {API: route(R0)}


def test_a_node_that_hears_no_orders_is_heard(two: FakeAgents, clock: FakeClock) -> None:
    two.cut_off(N2, Way.ORDERS)
    with pytest.raises(RetryLater):
        give(two, start(), node=N2)
    clock.advance(2.0)
    assert (two.replicas(), two.silent_s()[N2]) == ((), 0.0)
    assert ([node for node, _ in two.reachable()], [node for node, _ in two.heard()]) == ([NODE], [NODE, N2])


def test_a_node_that_is_not_heard_carries_out_what_it_is_told(two: FakeAgents, clock: FakeClock) -> None:
    two.reports()
    two.cut_off(N2, Way.REPORTS)
    with pytest.raises(RetryLater):
        give(two, start(), node=N2)
    clock.advance(2.0)
    assert ([node for node, _ in two.replicas()], two.silent_s()[N2]) == ([N2], 2.0)
    assert two.reports()[1].replicas == ()
    two.reconnect(N2)
    assert [report.phase for report in two.reports()[1].replicas] == [Phase.READY]


def test_over_a_link_that_lags_one_batch_at_a_time_arrives_late_and_so_do_reports(
    two: FakeAgents, clock: FakeClock
) -> None:
    two.link_delay_s = lambda node: 2.0 if node == N2 else 0.0
    two.reports()
    for ordinal in range(2):
        with pytest.raises(RetryLater):
            give(two, start(ordinal=ordinal), node=N2)
    clock.advance(1.9)
    assert two.replicas() == ()
    clock.advance(0.2)
    assert [report.replica for _node, report in two.replicas()] == [R0]
    assert (two.reports()[1].replicas, two.silent_s()[N2]) == ((), 0.0)
    clock.advance(2.0)
    assert [report.replica for report in two.reports()[1].replicas] == [R0]


def test_a_node_that_is_cut_off_goes_on_serving(agents: FakeAgents, clock: FakeClock) -> None:
    give(agents, start(), route(R0))
    clock.advance(1.0)
    agents.reports()
    agents.cut_off(NODE)
    agents.kill(R0)
    assert agents.reports()[0].replicas[0].phase is Phase.READY
    agents.reconnect(NODE)
    assert agents.reports()[0].replicas[0].phase is Phase.EXITED


def test_a_new_control_plane_has_heard_of_nobody_yet(agents: FakeAgents) -> None:
    agents.reports()
    agents.cut_off(NODE)
    assert agents.settled
    agents.forget_reports()
    assert not agents.settled
    assert agents.reports() == ()
    agents.reconnect(NODE)
    assert agents.settled
    assert len(agents.reports()) == 1


# ---- sleep -----------------------------------------------------------------------------------------------------------


def hold(ordinal: int = 0) -> HoldSlot:
    return HoldSlot(replica=replica_id(API, V1.revision, ordinal), build=V1)


def test_one_that_sleeps_waits_for_a_knock_and_is_started_on_its_slot(agents: FakeAgents, clock: FakeClock) -> None:
    assert not agents.knock(R0)
    give(agents, hold(), route(R0))
    assert (only(agents).phase, only(agents).attempt, only(agents).knocked_age_s) == (Phase.ASLEEP, 0, None)
    assert agents.ask(API).outcome == "held"
    clock.advance(500.0)
    assert agents.knock(R0)
    clock.advance(2.0)
    agents.knock(R0)
    assert only(agents).knocked_age_s == 2.0, "since the first knock"
    give(agents, start())
    assert (only(agents).phase, only(agents).attempt, only(agents).knocked_age_s) == (Phase.STARTING, 1, None)
    clock.advance(1.0)
    assert agents.ask(API) == IngressAnswer(outcome="answered", replica=R0, version=V1.version)
    assert not agents.knock(R0)


def test_a_slot_is_held_once(agents: FakeAgents, clock: FakeClock) -> None:
    give(agents, start(), hold())
    assert only(agents).phase is Phase.STARTING
    agents.kill(R0)
    give(agents, hold())
    assert only(agents).phase is Phase.EXITED
    give(agents, ForgetReplica(replica=R0), hold())
    agents.knock(R0)
    give(agents, hold())
    assert only(agents).knocked_age_s == 0.0


def test_who_knocks_is_turned_away_after_a_while_and_may_knock_again(agents: FakeAgents, clock: FakeClock) -> None:
    give(agents, hold())
    agents.knock(R0)
    clock.advance(29.9)
    assert only(agents).knocked_age_s is not None
    clock.advance(0.2)
    assert (only(agents).phase, only(agents).knocked_age_s) == (Phase.ASLEEP, None)
    agents.knock(R0)
    assert only(agents).knocked_age_s == 0.0


def test_there_is_nobody_to_be_killed_or_finished_in_one_that_sleeps(agents: FakeAgents) -> None:
    lost: list[ReplicaReport] = []
    agents.on_exit = lambda _node, report: lost.append(report)
    give(agents, hold())
    assert not agents.kill(R0)
    give(agents, DrainReplica(replica=R0, timeout_s=60.0))
    assert only(agents).phase is Phase.EXITED
    exit_report = only(agents).exit
    assert exit_report is not None
    assert exit_report.drained
    give(agents, hold(ordinal=1))
    agents.lose_node(NODE)
    assert lost == []


# ---- clients ---------------------------------------------------------------------------------------------------------


def test_what_a_client_gets(agents: FakeAgents, clock: FakeClock) -> None:
    assert agents.ask(API) == IngressAnswer(outcome="unknown")
    give(agents, route())
    assert agents.ask(API) == IngressAnswer(outcome="unavailable")
    give(agents, start(), route(R0))
    assert agents.ask(API) == IngressAnswer(outcome="held")
    clock.advance(1.0)
    assert agents.ask(API) == IngressAnswer(outcome="answered", replica=R0, version=V1.version)
    agents.kill(R0)
    assert agents.ask(API) == IngressAnswer(outcome="held")
    give(agents, route(R0, hold=False))
    assert agents.ask(API) == IngressAnswer(outcome="unavailable")


def test_a_draining_replica_gets_no_new_requests(agents: FakeAgents, clock: FakeClock) -> None:
    agents.lives = lambda _order: FakeLife(drain_s=5.0)
    give(agents, start(), route(R0))
    clock.advance(1.0)
    give(agents, DrainReplica(replica=R0, timeout_s=60.0))
    assert agents.ask(API).outcome == "unavailable"


def test_time_does_not_run_backwards(clock: FakeClock) -> None:
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1.0)
    before = clock.monotonic_s()
    clock.jump_wall(-50.0)
    assert clock.monotonic_s() == before


def test_an_ingress_has_routes_some_time_after_they_were_ordered_and_before_one_of_its_node_is_drained() -> None:
    clock = FakeClock()
    agents = FakeAgents(clock)
    agents.route_delay_s = lambda _node: 1.0
    revision = RoutesRevision(1, 1)
    give(agents, start(), SetRoutes(revision=revision, routes=(route(R0),)))
    (report,) = agents.reports()
    assert (report.routes, report.routes_revision, report.pending_routes) == ((route(R0),), revision, (API,))
    assert agents.routes() == ()
    clock.advance(1.0)
    assert (len(agents.routes()), agents.reports()[0].pending_routes) == (1, ())
    give(agents, RemoveRoute(api=API))
    assert len(agents.routes()) == 1
    give(agents, DrainReplica(replica=R0, timeout_s=1.0))
    assert agents.routes() == ()
