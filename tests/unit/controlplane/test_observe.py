"""From reports, leases and stored state to what planning is told."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cortex.controlplane.observe import SETTLE_LIMIT_S, observe, running_leases
from cortex.controlplane.world import World
from cortex.engines.fake import FakeEngine
from cortex.errors import RetryLater
from cortex.ids import DeviceId, NodeId, replica_id
from cortex.planning.actions import RecordExit
from cortex.planning.model import Lease, LeaseRequest, LeaseState
from cortex.state.records import StateStore
from cortex.testing.builders import API, NODE, a_build, a_deploy, a_node, a_wanted_api, an_exit
from cortex.testing.clock import FakeClock
from cortex.testing.fake_agent import FakeAgents, FakeLife
from cortex.wire.build import Resources
from cortex.wire.orders import Orders, StartReplica
from cortex.wire.reports import AgentReport

V1 = a_build("v1")
R0 = replica_id(API, V1.revision, 0)


def a_world(gpus: int = 0) -> World:
    clock = FakeClock()
    return World(
        state=StateStore(),
        engine=FakeEngine([a_node(gpus=gpus)], clock=clock),
        agents=FakeAgents(clock),
        clock=clock,
        epoch=1,
    )


def start_one(world: World) -> None:
    order = StartReplica(replica=R0, attempt=1, build=V1)
    world.agents.order({NODE: Orders(epoch=1, orders=(order,))})


def test_everything_there_is_is_seen() -> None:
    world = a_world()
    world.state.commit_deploy(a_deploy(a_wanted_api(V1)))
    world.engine.acquire(LeaseRequest(replica=R0, api=API, resources=V1.resources, surge=True))
    start_one(world)
    found = observe(world)
    assert [wanted.api for wanted in found.desired.apis] == [API]
    (node,) = found.seen.nodes
    assert (node.name, [report.replica for report in node.replicas]) == (NODE, [R0])
    assert found.seen.leases == (
        Lease(
            request=LeaseRequest(replica=R0, api=API, resources=V1.resources, surge=True),
            state=LeaseState.GRANTED,
            node=NODE,
        ),
    )
    assert found.seen.settled
    assert found.seen.now_s == world.clock.monotonic_s()


def test_what_has_not_changed_is_not_loaded_again() -> None:
    world = a_world()
    world.state.commit_deploy(a_deploy(a_wanted_api(V1)))
    first = observe(world)
    second = observe(world)
    assert second.desired is first.desired
    assert second.seen.leases is first.seen.leases
    world.state.set_scale(API, 3, reason="busy", wall_s=0.0)
    assert observe(world).desired.apis[0].replicas == 3


def test_ages_are_as_of_when_they_were_loaded() -> None:
    world = a_world()
    assert isinstance(world.clock, FakeClock)
    world.state.commit_deploy(a_deploy(a_wanted_api(V1)))
    ended = RecordExit(api=API, revision=V1.revision, replica=R0, attempt=1, was_ready=True, exit=an_exit())
    world.state.record_exit(ended, wall_s=world.steady_wall_s())
    world.clock.advance(3.0)
    loaded = observe(world).desired
    world.clock.advance(5.0)
    again = observe(world).desired
    assert again.as_of_s == loaded.as_of_s == world.clock.monotonic_s() - 5.0
    assert [record.last_exit_age_s for record in again.records] == [3.0]


def test_usage_is_passed_on_once_a_report() -> None:
    world = a_world()
    assert isinstance(world.agents, FakeAgents)
    world.agents.lives = lambda _order: FakeLife(peak_rss_bytes=2**20)
    world.engine.acquire(LeaseRequest(replica=R0, api=API, resources=V1.resources))
    start_one(world)
    observe(world)
    assert world.engine.requested()[NODE].mem_bytes == 2**20


def test_usage_that_grows_without_anything_else_happening_is_passed_on() -> None:
    world = a_world()
    world.engine.acquire(LeaseRequest(replica=R0, api=API, resources=V1.resources))
    start_one(world)
    observe(world)
    (report,) = world.agents.reports()

    class Grown:
        settled = True

        def reports(self) -> tuple[AgentReport, ...]:
            (replica,) = report.replicas
            grown = msgspec.structs.replace(replica, peak_rss_bytes=2**30)
            return (msgspec.structs.replace(report, replicas=(grown,)),)

        def order(self, batches: Mapping[NodeId, Orders]) -> Mapping[NodeId, RetryLater]:
            raise AssertionError

        def silent_s(self) -> Mapping[NodeId, float]:
            return {}

    world.agents = Grown()
    observe(world)
    assert world.engine.requested()[NODE].mem_bytes == 2**30


def test_everything_reported_holds_room() -> None:
    world = a_world()
    start_one(world)
    assert running_leases(world) == (
        Lease(
            request=LeaseRequest(replica=R0, api=API, resources=V1.resources),
            state=LeaseState.GRANTED,
            node=NODE,
        ),
    )


def test_gpus_are_seen_in_leases_and_come_back_from_reports() -> None:
    world = a_world(gpus=2)
    build = a_build(resources=Resources(gpus=1))
    replica = replica_id(API, build.revision, 0)
    world.engine.acquire(LeaseRequest(replica=replica, api=API, resources=build.resources))
    (lease,) = observe(world).seen.leases
    assert lease.devices == ("GPU-0",)
    order = StartReplica(replica=replica, attempt=1, build=build, devices=(DeviceId("GPU-1"),))
    world.agents.order({NODE: Orders(epoch=1, orders=(order,))})
    assert [running.devices for running in running_leases(world)] == [("GPU-1",)]


def test_a_silent_node_is_waited_for_but_not_for_ever() -> None:
    world = a_world()
    assert isinstance(world.agents, FakeAgents)
    assert isinstance(world.clock, FakeClock)
    world.agents.cut_off(NODE)
    assert not observe(world).seen.settled
    world.clock.advance(SETTLE_LIMIT_S)
    assert observe(world).seen.settled
