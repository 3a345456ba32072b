"""One turn of the control plane, on pretended nodes and a clock that is moved."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from cortex.controlplane.rollback import take_back
from cortex.controlplane.tick import REPEAT_PAUSE_S, StaleEpoch, tick
from cortex.engines.fake import FakeEngine
from cortex.engines.local import LocalEngine
from cortex.errors import Problem, RetryLater
from cortex.ids import ApiKey, NodeId, ReplicaId, replica_id
from cortex.planning.actions import Plan
from cortex.planning.model import LeaseState, WantedApi
from cortex.planning.reach import LOST_AFTER_S
from cortex.testing.builders import API, NODE, a_build, a_deploy, a_node, a_wanted_api
from cortex.testing.fake_agent import FakeAgents, FakeLife, Fate
from cortex.testing.lab import Lab
from cortex.wire.build import Resources
from cortex.wire.events import told_to_nobody
from cortex.wire.operator import Status
from cortex.wire.orders import Orders
from cortex.wire.reports import Phase

V1, V2 = a_build("v1"), a_build("v2")
BOOM = Problem(reference="handler-error", message="ZeroDivisionError: division by zero", traceback="Traceback …")


@pytest.fixture
def lab() -> Lab:
    return Lab()


N2 = NodeId("n2")


def name(ordinal: int = 0, label: str = "v1") -> ReplicaId:
    return replica_id(API, a_build(label).revision, ordinal)


# ---- deploys ---------------------------------------------------------------------------------------------------------


def test_a_deploy_goes_live_and_comes_to_rest(lab: Lab) -> None:
    plan = lab.deploy(a_wanted_api(V1, replicas=2))
    assert plan == Plan()
    assert lab.phases() == {name(0): Phase.READY, name(1): Phase.READY}
    assert lab.wanted().live_wall_s is not None
    assert lab.status() is Status.LIVE
    assert [line.outcome for line in lab.state.history(API)] == ["live"]


def test_a_rollout_comes_to_its_end_although_the_number_grows_all_the_while(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1, replicas=2))
    lab.agents.lives = lambda _order: FakeLife(ready_after_s=1.0)
    lab.state.commit_deploy(a_deploy(a_wanted_api(V2, watch_s=0.0)))
    for replicas in range(3, 30):
        lab.state.set_scale(API, replicas, reason="busy", wall_s=lab.clock.wall_s())
        lab.run(0.9)
        assert lab.agents.ask(API).outcome == "answered"
        ready = [replica for replica, phase in lab.phases().items() if phase == Phase.READY]
        assert sum(name(ordinal, "v2") in ready for ordinal in range(replicas)) < replicas, "as many as are wanted now"
    assert lab.wanted().live_wall_s is not None
    assert lab.wanted().serving == V2
    assert lab.run(5.0) == Plan()
    assert lab.phases() == {name(ordinal, "v2"): Phase.READY for ordinal in range(29)}


def test_a_rollout_comes_to_its_end_with_fewer_when_there_are_to_be_fewer(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1, replicas=3))
    lab.agents.lives = lambda _order: FakeLife(ready_after_s=1.0)
    lab.state.commit_deploy(a_deploy(a_wanted_api(V2, watch_s=0.0)))
    lab.run(0.5)
    lab.state.set_scale(API, 1, reason="quiet", wall_s=lab.clock.wall_s())
    assert lab.run(5.0) == Plan()
    assert lab.phases() == {name(0, "v2"): Phase.READY}
    assert lab.wanted().live_wall_s is not None


def test_a_rollout_answers_every_request(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1, replicas=3))
    lab.agents.lives = lambda _order: FakeLife(ready_after_s=0.5, drain_s=0.3)
    lab.state.commit_deploy(a_deploy(a_wanted_api(V2, replicas=3, watch_s=0.0)))
    answered = set()
    for _ in range(100):
        lab.run(0.05)
        answer = lab.agents.ask(API)
        assert answer.outcome == "answered"
        answered.add(answer.version)
    assert answered == {V1.version, V2.version}
    assert lab.phases() == {name(ordinal, "v2"): Phase.READY for ordinal in range(3)}
    assert [lease.request.replica for lease in lab.engine.leases()] == [name(o, "v2") for o in range(3)]
    assert not any(lease.request.surge for lease in lab.engine.leases())


def test_a_version_that_cannot_start_is_given_up_and_the_old_one_serves(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1))
    lab.agents.lives = lambda _order: FakeLife(start_error=BOOM)
    lab.deploy(a_wanted_api(V2))
    assert lab.phases() == {name(): Phase.READY}
    assert lab.status() is Status.UPDATE_FAILED
    failed = lab.wanted().failed
    assert failed is not None
    assert failed.traceback == "Traceback …"
    assert [line.outcome for line in lab.state.history(API)] == [
        f"failed: {name(0, 'v2')} failed 3 starts in a row; the last time: ZeroDivisionError: division by zero",
        "live",
    ]


def test_deploying_the_failed_version_again_tries_it_again(lab: Lab) -> None:
    lab.agents.lives = lambda _order: FakeLife(start_error=BOOM, permanent=True)
    lab.deploy(a_wanted_api(V1))
    assert lab.status() is Status.ERROR
    lab.agents.lives = lambda _order: FakeLife()
    lab.deploy(a_wanted_api(V1))
    assert lab.status() is Status.LIVE


def test_a_deleted_api_leaves_nothing(lab: Lab) -> None:
    lab.agents.lives = lambda _order: FakeLife(drain_s=1.0)
    lab.deploy(a_wanted_api(V1, replicas=2))
    lab.state.delete(lab.state.deployments()[0].name, wall_s=lab.clock.wall_s())
    lab.run(0.5)
    assert set(lab.phases().values()) == {Phase.DRAINING}
    assert lab.agents.ask(API).outcome == "unknown"
    lab.run(5.0)
    assert (lab.agents.replicas(), lab.agents.routes(), lab.engine.leases()) == ((), (), ())


# ---- crashes ---------------------------------------------------------------------------------------------------------


def test_a_single_replica_killed_every_two_seconds_is_back_at_once_each_time(lab: Lab) -> None:
    lab.agents.lives = lambda _order: FakeLife(ready_after_s=0.1)
    lab.deploy(a_wanted_api(V1))
    for _ in range(30):
        assert lab.agents.kill(name())
        assert lab.agents.ask(API).outcome == "held"
        lab.run(0.11)
        assert lab.agents.ask(API).outcome == "answered"
        lab.run(1.89)
    (record,) = lab.state.desired(now_wall_s=0.0).records
    assert record.crashes == 30


def test_a_replica_that_crashes_by_itself_again_and_again_is_slowed_down(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1))
    attempts = []
    lab.agents.lives = lambda order: attempts.append(order.attempt) or FakeLife(ready_after_s=0.1, crash_after_s=0.1)  # type: ignore[func-returns-value]
    lab.agents.kill(name())
    lab.run(60.0)
    assert len(attempts) == 12
    assert lab.status() is Status.CRASHING


def test_an_api_crashes_until_a_minute_has_passed_without_an_end_even_if_it_is_ready_now(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1))
    for number in range(3):
        assert lab.status() is Status.LIVE
        lab.agents.kill(name())
        lab.run(1.0)
        assert lab.agents.ask(API).outcome == "answered", number
    assert lab.status() is Status.CRASHING
    lab.restart()
    lab.run(58.0)
    assert lab.status() is Status.CRASHING
    lab.run(1.5)
    assert lab.status() is Status.LIVE


def test_a_wall_clock_that_is_set_neither_ends_nor_prolongs_a_wait(lab: Lab) -> None:
    for jump_s in (-86400.0, 86400.0):
        fresh = Lab()
        fresh.agents.lives = lambda _order: FakeLife(ready_after_s=0.05, crash_after_s=0.05)
        fresh.deploy(a_wanted_api(V1), seconds=0.1 * 8 + 0.5 + 1.0 + 0.1)  # waits for 2 s now
        plan = fresh.settle()
        assert plan.wake_after_s is not None
        fresh.clock.jump_wall(jump_s)
        fresh.state.set_scale(API, 1, reason="quiet", wall_s=0.0)
        fresh.state.set_meta("anything", "else")
        again = fresh.settle()
        assert again.wake_after_s == pytest.approx(plan.wake_after_s)


def test_a_wait_outlives_a_restart_of_the_control_plane_even_if_the_clock_was_set_back(lab: Lab) -> None:
    lab.agents.lives = lambda _order: FakeLife(ready_after_s=0.05, crash_after_s=0.05)
    lab.deploy(a_wanted_api(V1), seconds=20.0)
    assert lab.phases()[name()] == Phase.EXITED
    before = lab.agents.replicas()[0][1].attempt
    lab.clock.jump_wall(-3600.0)
    lab.restart()
    lab.settle()
    assert lab.phases()[name()] == Phase.EXITED
    lab.run(60.0)
    assert lab.agents.replicas()[0][1].attempt > before


# ---- restarts --------------------------------------------------------------------------------------------------------


def test_a_new_control_plane_adopts_what_runs_even_over_capacity(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1, replicas=3))
    before = lab.agents.replicas()
    lab.engine = LocalEngine(a_node(cpu_millis=200))  # type: ignore[assignment]
    lab.agents.forget_reports()
    lab.world = lab.a_world()
    assert lab.run(1.0) == Plan()
    assert lab.agents.replicas() == before
    assert [lease.state for lease in lab.engine.leases()] == [LeaseState.GRANTED] * 3


def test_nothing_is_done_before_the_nodes_have_reported(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1))
    lab.restart()
    lab.agents.restart_agent(NODE, down_s=10.0)
    plan = lab.settle()
    assert not plan.actions
    assert [note.text for note in plan.notes] == ["not every node has reported since the control plane started"]
    assert lab.engine.leases() == ()
    lab.run(11.0)
    assert lab.phases() == {name(): Phase.READY}


def test_a_node_that_stays_silent_does_not_keep_the_others_from_being_looked_after() -> None:
    lab = Lab()
    nodes = [a_node(), a_node(NodeId("n2"))]
    lab.engine, lab.agents = FakeEngine(nodes, clock=lab.clock), FakeAgents(lab.clock, nodes)
    lab.agents.cut_off(NodeId("n2"))
    lab.world = lab.a_world()
    lab.deploy(a_wanted_api(V1), seconds=LOST_AFTER_S - 0.5)
    assert lab.phases() == {}
    lab.run(2.0)
    assert lab.phases() == {name(): Phase.READY}


def two_nodes(*, replicas: int) -> Lab:
    """With an api whose replicas are on both."""
    lab = Lab(nodes=[a_node(), a_node(N2)])
    lab.deploy(a_wanted_api(V1, replicas=replicas), seconds=2.0)
    assert {node for node, _report in lab.agents.replicas()} == {NODE, N2}
    return lab


def test_what_runs_on_a_lost_node_is_replaced_and_ends_once_the_node_is_back() -> None:
    lab = two_nodes(replicas=2)
    lab.agents.cut_off(N2)
    lab.run(LOST_AFTER_S - 1.0)
    assert len(lab.agents.replicas()) == 2
    lab.run(3.0)
    here = [report.replica for node, report in lab.agents.replicas() if node == NODE]
    assert here == [name(0), name(2)]
    routes = dict(lab.agents.routes())
    assert (routes[NODE].targets, routes[NODE].nodes) == ((name(0), name(2)), {})
    assert routes[N2].targets == (name(0), name(1))
    lab.agents.reconnect(N2)
    lab.run(3.0)
    assert [(node, report.replica) for node, report in lab.agents.replicas()] == [(NODE, name(0)), (NODE, name(2))]
    assert lab.agents.routes()[0][1] == lab.agents.routes()[1][1]
    assert lab.agents.routes()[0][1].nodes == {NODE: 2}
    assert {lease.request.replica for lease in lab.engine.leases()} == {name(0), name(2)}


def test_what_a_lost_node_runs_is_taken_as_it_is_where_there_was_no_room_for_another() -> None:
    lab = two_nodes(replicas=2)
    lab.engine.deny = lambda _request: "no room"
    lab.agents.cut_off(N2)
    lab.run(LOST_AFTER_S + 3.0)
    assert [lease.state for lease in lab.engine.leases()] == [LeaseState.GRANTED, LeaseState.PENDING]
    lab.agents.reconnect(N2)
    lab.run(3.0)
    assert [(node, report.replica) for node, report in lab.agents.replicas()] == [(NODE, name(0)), (N2, name(1))]
    assert {(lease.node, lease.request.replica) for lease in lab.engine.leases()} == {(NODE, name(0)), (N2, name(1))}
    assert dict(lab.agents.routes())[N2].nodes == {NODE: 1, N2: 1}


def test_a_node_that_was_lost_is_not_taken_for_back_when_the_other_one_falls_silent() -> None:
    lab = two_nodes(replicas=2)
    lab.agents.cut_off(N2)
    lab.run(LOST_AFTER_S + 30.0)
    lab.agents.cut_off(NODE)
    lab.run(LOST_AFTER_S + 30.0)
    assert lab.world.memory.lost == {N2}
    lab.agents.reconnect(NODE)
    lab.run(3.0)
    assert [report.replica for node, report in lab.agents.replicas() if node == NODE] == [name(0), name(2)]


def test_nobody_is_lost_because_we_have_not_looked_for_a_while() -> None:
    lab = two_nodes(replicas=2)
    lab.agents.cut_off(N2)
    lab.run(2.0)
    lab.clock.advance(60.0)
    lab.run(2.0)
    assert {node for node, _report in lab.agents.replicas()} == {NODE, N2}
    assert len(lab.agents.replicas()) == 2


def test_a_control_plane_that_is_not_in_charge_any_more_is_told(lab: Lab) -> None:
    old = lab.world
    lab.deploy(a_wanted_api(V1))
    lab.world = lab.a_world()
    lab.agents.kill(name())
    lab.run(1.0)
    lab.agents.kill(name())
    with pytest.raises(StaleEpoch):
        tick(old)


# ---- faults on the way -----------------------------------------------------------------------------------------------


def test_orders_that_do_not_arrive_are_given_again_after_a_pause(lab: Lab) -> None:
    fates = iter([Fate.LOST, Fate.UNANSWERED, Fate.LATE])
    lab.agents.fate = lambda _node, _orders: next(fates, Fate.DONE)
    lab.state.commit_deploy(a_deploy(a_wanted_api(V1)))
    assert lab.settle().wake_after_s == pytest.approx(0.2)
    lab.run(3.0)
    assert lab.phases() == {name(): Phase.READY}


def test_the_same_orders_without_effect_are_not_repeated_without_a_pause(lab: Lab) -> None:
    given: list[Orders] = []

    class Deaf(FakeAgents):
        """Says yes and does nothing."""

        def order(self, batches: Mapping[NodeId, Orders]) -> Mapping[NodeId, RetryLater]:
            given.extend(batches.values())
            return {}

    lab.agents = Deaf(lab.clock)
    lab.world = lab.a_world()
    lab.state.commit_deploy(a_deploy(a_wanted_api(V1)))
    plan = lab.settle()
    assert plan.wake_after_s == REPEAT_PAUSE_S
    assert len(given) <= 3


def test_an_api_that_cannot_get_on_does_not_slow_down_the_others() -> None:
    lab = Lab()
    nodes = [a_node(cpu_millis=200), a_node(NodeId("n2"))]
    lab.engine, lab.agents = FakeEngine(nodes, clock=lab.clock), FakeAgents(lab.clock, nodes)
    lab.world = lab.a_world()
    lab.deploy(a_wanted_api(V1))
    lab.agents.kill(name())
    lab.agents.restart_agent(NODE, down_s=60.0)
    other = a_build(api=ApiKey("default/other"))
    lab.state.commit_deploy(a_deploy(a_wanted_api(other)))
    began_s = lab.clock.monotonic_s()
    while lab.phases().get(replica_id(other.api, other.revision, 0)) is None:
        lab.run(0.001)
    assert lab.clock.monotonic_s() - began_s < 0.01


def test_a_quiet_world_is_not_planned_again(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1))
    calls = []

    def planner(*arguments: object) -> Plan:
        calls.append(arguments)
        return Plan()

    lab.world.planner = planner  # type: ignore[assignment]
    for _ in range(5):
        lab.clock.advance(5.0)
        tick(lab.world)
    assert calls == []
    lab.agents.kill(name())
    tick(lab.world)
    assert len(calls) == 1


def test_a_wait_is_told_as_it_runs_down_and_ends_the_rest(lab: Lab) -> None:
    lab.agents.lives = lambda _order: FakeLife(start_error=BOOM)
    lab.state.commit_deploy(a_deploy(a_wanted_api(V1)))
    lab.run(0.1)
    first = lab.settle()
    lab.clock.advance(0.2)
    second = lab.settle()
    assert first.wake_after_s is not None
    assert second.wake_after_s == pytest.approx(first.wake_after_s - 0.2)
    lab.clock.advance(second.wake_after_s)
    assert tick(lab.world).actions


def test_memory_that_is_not_stated_is_counted_as_it_is_seen(lab: Lab) -> None:
    lab.agents.lives = lambda _order: FakeLife(peak_rss_bytes=2**30)
    lab.deploy(a_wanted_api(V1, replicas=2))
    assert lab.engine.requested()[NODE].mem_bytes == 2 * 2**30


def test_apis_do_not_disturb_each_other(lab: Lab) -> None:
    other = a_build(api=ApiKey("iris/other"))
    lab.deploy(a_wanted_api(V1), a_wanted_api(other))
    lab.agents.lives = lambda _order: FakeLife(start_error=BOOM)
    lab.state.commit_deploy(a_deploy(a_wanted_api(V2), a_wanted_api(other)))
    for _ in range(20):
        lab.run(0.1)
        assert lab.agents.ask(other.api).outcome == "answered"
        assert lab.agents.ask(API).outcome == "answered"


def test_a_changed_setting_reaches_the_route(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1))
    lab.deploy(msgspec.structs.replace(a_wanted_api(V1), timeout_s=3.0))
    ((_node, route),) = lab.agents.routes()
    assert route.timeout_s == 3.0
    assert lab.phases() == {name(): Phase.READY}


# ---- one machine with little cpu -------------------------------------------------------------------------------------


@pytest.fixture
def small() -> Lab:
    """Two cores and nowhere else to go."""
    lab = Lab()
    machine = a_node(cpu_millis=2000)
    lab.engine = FakeEngine([machine], clock=lab.clock, shares_cpu=True)
    lab.agents = FakeAgents(lab.clock, [machine])
    lab.world = lab.a_world()
    return lab


def sized(cpu_millis: int, *, replicas: int, minimum: int = 1, api: ApiKey = API) -> WantedApi:
    build = a_build(api=api, resources=Resources(cpu_millis=cpu_millis))
    return a_wanted_api(build, replicas=replicas, min_replicas=minimum)


def sizes(lab: Lab) -> list[int]:
    """The cpu of each ready replica."""
    return sorted(r.resources.cpu_millis for _n, r in lab.agents.replicas() if r.phase is Phase.READY)


def test_many_idle_apis_share_the_cpu_of_one_machine_and_say_so(small: Lab) -> None:
    keys = [ApiKey(f"iris/a{number}") for number in range(30)]
    small.deploy(*(sized(200, replicas=1, api=key) for key in keys))
    assert {view.status for view in small.statuses().values()} == {Status.LIVE}
    assert {view.notes for view in small.statuses().values()} == {
        ("cpu is shared: 6000m requested of the 2000m of node local",)
    }


def test_nothing_is_booked_for_good(small: Lab) -> None:
    other = ApiKey("iris/other")
    small.deploy(sized(20, replicas=6))
    small.deploy(sized(900, replicas=6))
    small.deploy(sized(900, replicas=6), sized(900, replicas=1, api=other))
    assert small.statuses()[other].status is Status.LIVE
    small.deploy(sized(100, replicas=6))
    assert sizes(small) == [100] * 6
    assert small.statuses()[API].notes == ()


def test_a_minimum_grows_however_much_cpu_is_requested(small: Lab) -> None:
    small.deploy(sized(20, replicas=6, minimum=6))
    small.deploy(sized(900, replicas=6, minimum=6), seconds=30.0)
    assert sizes(small) == [900] * 6
    view = small.statuses()[API]
    assert (view.status, view.notes) == (
        Status.LIVE,
        ("cpu is shared: 5400m requested of the 2000m of node local",),
    )


def test_a_larger_size_that_cannot_start_leaves_the_old_at_full_size(small: Lab) -> None:
    small.deploy(sized(20, replicas=6))
    small.agents.lives = lambda order: (
        FakeLife(start_error=BOOM) if order.build.resources.cpu_millis == 900 else FakeLife()
    )
    small.deploy(sized(900, replicas=6), seconds=60.0)
    assert small.statuses()[API].status is Status.UPDATE_FAILED
    assert sizes(small) == [20] * 6


def test_an_update_of_the_same_size_goes_through_however_much_is_requested(small: Lab) -> None:
    other = ApiKey("iris/other")
    small.deploy(sized(500, replicas=4))
    small.deploy(sized(500, replicas=4), sized(900, replicas=1, api=other))
    assert sizes(small) == [500, 500, 500, 500, 900]
    changed = a_build("v2", resources=Resources(cpu_millis=500))
    small.deploy(a_wanted_api(changed, replicas=4, watch_s=0.0), sized(900, replicas=1, api=other), seconds=30.0)
    assert sizes(small) == [500, 500, 500, 500, 900]
    assert small.wanted().live_wall_s is not None


# ---- one that is parked ----------------------------------------------------------------------------------------------


def gone_back(lab: Lab) -> None:
    """The version before comes back."""
    revision, wall_s = lab.wanted().build.revision, lab.clock.wall_s()
    assert take_back(lab.state, told_to_nobody, API, revision, V1.revision, reason="it fails", wall_s=wall_s)


def test_a_replica_of_the_version_before_is_parked_until_the_watch_ends(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1))
    lab.deploy(a_wanted_api(V2))
    assert lab.phases() == {name(): Phase.READY, name(0, "v2"): Phase.READY}
    assert lab.agents.routes()[0][1].targets == (name(0, "v2"),)
    assert lab.status() is Status.LIVE
    assert not any(lease.request.surge for lease in lab.engine.leases())
    lab.restart()
    assert lab.run(60.0) == Plan()
    assert lab.phases() == {name(): Phase.READY, name(0, "v2"): Phase.READY}
    lab.state.end_watch(API, V2.revision)
    assert lab.run(5.0) == Plan()
    assert lab.phases() == {name(0, "v2"): Phase.READY}
    assert [lease.request.replica for lease in lab.engine.leases()] == [name(0, "v2")]


def test_going_back_to_one_that_is_parked_is_a_change_of_the_route(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1))
    lab.deploy(a_wanted_api(V2))
    lab.agents.lives = lambda _order: FakeLife(never_ready=True)
    gone_back(lab)
    lab.settle()
    assert lab.agents.routes()[0][1].targets == (name(),)
    assert lab.agents.ask(API).version == V1.version
    assert lab.wanted().live_wall_s is not None
    assert lab.run(5.0) == Plan()
    assert lab.phases() == {name(): Phase.READY}


def test_going_back_with_more_than_one_the_others_start_as_ever(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1, replicas=3))
    lab.deploy(a_wanted_api(V2))
    assert list(lab.phases().values()) == [Phase.READY] * 4
    gone_back(lab)
    for _ in range(50):
        lab.run(0.1)
        assert lab.agents.ask(API).outcome == "answered"
    assert lab.phases() == {name(ordinal): Phase.READY for ordinal in range(3)}


def test_the_next_version_takes_the_place_of_one_that_is_parked(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1))
    lab.deploy(a_wanted_api(V2))
    lab.deploy(a_wanted_api(a_build("v3")))
    assert lab.phases() == {name(0, "v2"): Phase.READY, name(0, "v3"): Phase.READY}


def test_one_that_is_parked_and_ends_is_not_started_again_and_no_crash(lab: Lab) -> None:
    lab.deploy(a_wanted_api(V1))
    lab.deploy(a_wanted_api(V2))
    lab.agents.kill(name())
    assert lab.run(5.0) == Plan()
    assert lab.phases() == {name(0, "v2"): Phase.READY}
    assert all(not record.crashes for record in lab.state.desired(now_wall_s=0.0).records)


def test_one_that_is_parked_makes_room_for_whoever_needs_it(small: Lab) -> None:
    mem = 6 * 2**30
    small.deploy(a_wanted_api(a_build("v1", resources=Resources(cpu_millis=100, mem_bytes=mem))))
    small.deploy(a_wanted_api(a_build("v2", resources=Resources(cpu_millis=100, mem_bytes=mem))))
    assert sorted(small.phases().values()) == [Phase.READY] * 2
    small.state.set_scale(API, 2, reason="busy", wall_s=small.clock.wall_s())
    assert small.run(5.0) == Plan()
    assert [replica.split(".")[2] for replica in small.phases()] == [a_digits("v2", mem)] * 2


def a_digits(label: str, mem_bytes: int) -> str:
    return a_build(label, resources=Resources(cpu_millis=100, mem_bytes=mem_bytes)).revision[:8]
