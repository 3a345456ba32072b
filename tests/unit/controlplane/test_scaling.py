"""The loop of autoscaling: real ticks, state and rule; nodes are pretended, and a request takes a replica 50 ms."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest

from cortex.controlplane.scaling import Scaling
from cortex.controlplane.tick import tick
from cortex.controlplane.world import World
from cortex.engines.fake import FakeEngine
from cortex.ids import ApiKey, ReplicaId
from cortex.planning.assessment import Assessment
from cortex.planning.model import WantedApi
from cortex.state.records import StateStore
from cortex.testing.builders import API, NODE, a_build, a_deploy, a_node, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.testing.fake_agent import FakeAgents
from cortex.wire.build import Resources
from cortex.wire.events import Event, EventKind
from cortex.wire.loads import HANDLER, DoorReading, LoadReading, NodeLoads, SeatReading
from cortex.wire.reports import Phase

READ_S = 0.5
EACH_S = 0.05
"""What a request takes of the one seat of a replica; it computes for nothing."""


@dataclass
class Served:
    """What an api and its replicas have done."""

    rate: float = 0.0
    begun: float = 0.0
    queued: float = 0.0
    ended: dict[ReplicaId, float] = field(default_factory=dict)
    ready_s: dict[ReplicaId, float] = field(default_factory=dict)


class Lab:
    """A control plane whose replicas follow the load."""

    def __init__(self, **capacity: int) -> None:
        self.clock = FakeClock()
        self.state = StateStore()
        machine = a_node(**({"cpu_millis": 8000} | capacity))
        self.engine = FakeEngine([machine], clock=self.clock, shares_cpu=True)
        self.agents = FakeAgents(self.clock, [machine])
        self.served: dict[ApiKey, Served] = {}
        self.latest: Assessment | None = None
        self.woken = 0
        self.events: list[Event] = []
        self.restart()

    def restart(self) -> None:
        """The control plane ends and starts again."""
        self.world = World(
            state=self.state,
            engine=self.engine,
            agents=self.agents,
            clock=self.clock,
            epoch=self.state.take_epoch(),
            show=self.show,
        )
        self.scaling = Scaling(
            state=self.state,
            engine=self.engine,
            clock=self.clock,
            latest=lambda: self.latest,
            downscale_window_s=60.0,
            changed=self.wake,
            tell=self.events.append,
        )

    def show(self, assessment: Assessment) -> None:
        self.latest = assessment

    def wake(self) -> None:
        self.woken += 1

    def deploy(self, *wanted: WantedApi) -> None:
        self.state.commit_deploy(a_deploy(*wanted))
        self.run(5.0)

    def run(self, seconds: float) -> None:
        """Let time pass, with a reading and a decision each half second."""
        end_s = self.clock.monotonic_s() + seconds
        while self.clock.monotonic_s() < end_s:
            self.clock.advance(READ_S)
            for _ in range(20):
                if not tick(self.world).actions:
                    break
            self.scaling.take(self.reading())
            self.scaling.step()

    def reading(self) -> NodeLoads:
        now_s = self.clock.monotonic_s()
        replicas = []
        for api, served in self.served.items():
            ready = [
                report for _node, report in self.agents.replicas() if report.api == api and report.phase is Phase.READY
            ]
            came = served.rate * READ_S
            served.begun += came
            done = min(served.queued + came, len(ready) * READ_S / EACH_S)
            served.queued += came - done
            for report in ready:
                served.ended[report.replica] = served.ended.get(report.replica, 0.0) + done / len(ready)
                served.ready_s.setdefault(report.replica, now_s - READ_S)
            replicas += [
                LoadReading(
                    replica=report.replica,
                    api=api,
                    revision=report.revision,
                    attempt=report.attempt,
                    at_s=now_s,
                    ready_s=served.ready_s[report.replica],
                    rows=(_seat(served.ended[report.replica] * EACH_S),),
                    ended=round(served.ended[report.replica]),
                    ended_s=served.ended[report.replica] * EACH_S,
                    in_flight=0,
                    cpu_s=0.0,
                )
                for report in ready
            ]
        doors = tuple(
            DoorReading(api=api, begun=round(served.begun), queued=round(served.queued))
            for api, served in self.served.items()
        )
        return NodeLoads(node=NODE, agent="agent", at_s=now_s, replicas=tuple(replicas), doors=doors)

    def come(self, rate: float, api: ApiKey = API) -> None:
        """So many requests a second from now on."""
        self.served.setdefault(api, Served()).rate = rate

    def number(self, api: ApiKey = API) -> int:
        record = self.state.api(api)
        assert record is not None
        return record.wanted.replicas

    def ready(self, api: ApiKey = API) -> int:
        return sum(r.phase is Phase.READY and r.api == api for _node, r in self.agents.replicas())

    def told(self, api: ApiKey = API) -> str:
        record = self.state.api(api)
        assert record is not None
        status = self.scaling.status(record.wanted)
        assert status is not None
        return status.reason


def _seat(busy_s: float) -> SeatReading:
    return SeatReading(row=HANDLER, seats=1, busy_s=busy_s, ended_busy_s=busy_s, full_s=busy_s)


def an_api(api: ApiKey = API, **settings: float) -> WantedApi:
    build = a_build("v1", api=api, resources=Resources(cpu_millis=200))
    return msgspec.structs.replace(a_wanted_api(build, replicas=1, live=False), serving=None, **settings)


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_replicas_follow_a_step_up_and_the_loop_is_woken_for_it(lab: Lab) -> None:
    lab.deploy(an_api())
    lab.come(60.0)
    lab.run(10.0)
    assert lab.number() == lab.ready() == 4
    assert lab.woken


def test_what_was_needed_stays_for_a_window_and_then_goes(lab: Lab) -> None:
    lab.deploy(an_api())
    lab.come(60.0)
    lab.run(10.0)
    lab.come(0.0)
    lab.run(50.0)
    assert lab.number() == 4
    assert lab.told() == "held at 4: more were needed within the last 1 min; wanted 0: there is nothing to do"
    lab.run(60.0)
    assert lab.number() == lab.ready() == 1


def test_an_api_may_have_a_window_of_its_own(lab: Lab) -> None:
    lab.deploy(an_api(downscale_window_s=5.0))
    lab.come(60.0)
    lab.run(10.0)
    assert lab.number() == 4
    lab.come(0.0)
    lab.run(45.0)
    assert lab.number() == 1


@pytest.mark.parametrize(("bounds", "number"), [({"max_replicas": 2}, 2), ({"min_replicas": 6}, 6)])
def test_a_number_stays_within_its_bounds(lab: Lab, bounds: dict[str, float], number: int) -> None:
    lab.deploy(an_api(**bounds))
    lab.come(60.0)
    lab.run(10.0)
    assert lab.number() == lab.ready() == number


def test_what_decided_is_told_with_figures_and_when(lab: Lab) -> None:
    lab.deploy(an_api(max_replicas=2))
    lab.come(38.0)
    lab.run(30.0)
    assert lab.told() == (
        "wanted 3: 38 requests/s of 50 ms each fill 1.9 seats, 1 in a replica, target 80 %; capped by max_replicas 2"
    )
    record = lab.state.api(API)
    assert record is not None
    status = lab.scaling.status(record.wanted)
    assert status is not None
    assert status.changed is not None
    assert status.change == record.wanted.scale.reason
    assert status.advice.startswith("a request waits 50 of 50 ms in the handler: `concurrency: ")


def test_nothing_is_told_of_an_api_that_was_not_decided_on(lab: Lab) -> None:
    assert lab.scaling.status(an_api()) is None
    lab.scaling.step()
    assert lab.scaling.decisions == {}


def test_after_a_restart_the_number_stays_until_a_window_has_passed(lab: Lab) -> None:
    lab.deploy(an_api())
    lab.come(60.0)
    lab.run(10.0)
    lab.come(0.0)
    lab.run(40.0)
    lab.restart()
    lab.run(60.0)
    assert lab.number() == 4
    lab.run(40.0)
    assert lab.number() == 1


def test_replicas_that_nobody_needs_go_at_once_when_another_api_has_no_memory() -> None:
    lab = Lab(mem_bytes=4 * 2**30)
    resources = Resources(cpu_millis=200, mem_bytes=2**30)
    other = ApiKey("iris/other")
    first, second = (
        msgspec.structs.replace(
            a_wanted_api(a_build("v1", api=api, resources=resources), replicas=1, live=False), serving=None
        )
        for api in (API, other)
    )
    lab.deploy(first)
    lab.come(60.0)
    lab.run(10.0)
    assert lab.ready() == 4
    lab.come(0.0)
    lab.run(35.0)
    assert lab.ready() == 4
    lab.deploy(first, second)
    lab.run(5.0)
    assert lab.ready(other) == 1
    assert lab.ready() == 1


def test_who_is_parked_is_no_part_of_the_load(lab: Lab) -> None:
    lab.deploy(an_api())
    lab.served[API] = Served(rate=5.0)
    newer = a_wanted_api(a_build("v2"))
    lab.deploy(msgspec.structs.replace(newer, min_replicas=1, max_replicas=10))
    lab.run(10.0)
    assert lab.latest is not None
    (case,) = lab.latest.cases
    assert case.decision.parked is not None
    load = lab.scaling.decisions[API].load
    assert load is not None
    assert load.ready == 1


def test_every_change_of_the_number_and_what_holds_it_is_told(lab: Lab) -> None:
    lab.deploy(msgspec.structs.replace(a_wanted_api(a_build("v1")), max_replicas=2))
    lab.come(60.0)
    lab.run(10.0)
    assert lab.number() == 2
    kinds = [event.kind for event in lab.events]
    assert kinds.count(EventKind.SCALED) == 1
    scaled = next(event for event in lab.events if event.kind is EventKind.SCALED)
    assert scaled.text.startswith("1 -> 2 replicas: wanted ")
    held = [event for event in lab.events if event.kind is EventKind.HELD]
    assert held[-1].text.startswith("held at 2: capped by max_replicas 2; wanted ")
    lab.come(0.0)
    lab.run(60.0)
    assert lab.events[-1].kind in (EventKind.RELEASED, EventKind.SCALED)
    assert EventKind.RELEASED in {event.kind for event in lab.events[len(kinds) :]}


def test_falling_asleep_is_told(lab: Lab) -> None:
    lab.deploy(msgspec.structs.replace(a_wanted_api(a_build("v1"), min_replicas=0), idle_timeout_s=20.0))
    lab.come(0.0)
    lab.run(40.0)
    assert [event.text for event in lab.events if event.kind is EventKind.SLEPT] == ["nobody asked for 20 s"]


def test_an_api_that_sleeps_is_left_alone(lab: Lab) -> None:
    lab.deploy(an_api(min_replicas=0))
    (record,) = lab.state.apis()
    lab.state.fall_asleep(API, record.wanted.build.revision, reason="nobody asked", wall_s=lab.clock.wall_s())
    lab.run(5.0)
    assert lab.scaling.decisions == {}


def test_a_deleted_api_is_forgotten(lab: Lab) -> None:
    lab.deploy(an_api(), an_api(ApiKey("iris/other")))
    lab.run(1.0)
    assert set(lab.scaling.decisions) == {API, ApiKey("iris/other")}
    lab.deploy(an_api())
    assert set(lab.scaling.decisions) == {API}
