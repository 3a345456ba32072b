"""The control plane's loop, on pretended nodes: its thread is real, and what it is told wakes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from cortex.controlplane.loop import Loop
from cortex.engines.fake import FakeEngine
from cortex.ids import ApiKey, DeploymentName
from cortex.planning.assessment import Assessment
from cortex.planning.status import statuses
from cortex.state.bucket import BucketStateStore
from cortex.state.records import StateStore
from cortex.testing.builders import API, a_build, a_deploy, a_node, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.testing.fake_agent import FakeAgents
from cortex.testing.storage import FakeStorage
from cortex.wire.operator import ApiStatus, Status
from cortex.wire.orders import Orders

DEADLINE_S = 30.0
V1 = a_build("v1")


@dataclass
class Lab:
    """A loop with everything around it pretended."""

    state: StateStore = field(default_factory=StateStore)
    in_charge: bool = True
    fault: Exception | None = None
    shown: dict[ApiKey, ApiStatus] = field(default_factory=dict)
    at_order: list[dict[ApiKey, ApiStatus]] = field(default_factory=list)
    """What was shown when orders were given."""
    resigned: threading.Event = field(default_factory=threading.Event)
    changed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        clock = FakeClock()
        self.agents = FakeAgents(clock)
        self.agents.before_order = self.note_order
        self.loop = Loop(
            state=self.state,
            engine=FakeEngine([a_node()], clock=clock),
            agents=self.agents,
            clock=clock,
            in_charge=lambda: self.in_charge and (not isinstance(self.state, BucketStateStore) or self.state.leads),
            resign=self.resigned.set,
            show=self.show,
            changed=self.changed.set,
        )

    def show(self, assessment: Assessment) -> None:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        self.shown = statuses(assessment)

    def note_order(self, *_arguments: object) -> None:
        self.at_order.append(self.shown)


@pytest.fixture
def lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.loop.stop()
    lab.loop.join(DEADLINE_S)


def test_what_was_stored_is_shown_once_the_loop_has_caught_up(lab: Lab) -> None:
    lab.loop.start()
    lab.state.commit_deploy(a_deploy(a_wanted_api(V1)))
    lab.loop.catch_up()
    assert lab.shown[API].version == V1.version[:8]
    lab.state.delete(DeploymentName("iris"), wall_s=0.0)
    lab.loop.catch_up()
    assert lab.shown.get(API) is None or lab.shown[API].status is Status.STOPPING


def test_what_is_acted_on_has_been_shown_before(lab: Lab) -> None:
    lab.state.commit_deploy(a_deploy(a_wanted_api(V1)))
    lab.loop.start()
    lab.loop.catch_up()
    lab.loop.stop()
    lab.loop.join(DEADLINE_S)
    assert lab.at_order
    assert all(API in shown for shown in lab.at_order)
    assert lab.changed.is_set()
    assert lab.loop.latest is not None
    assert [case.wanted.api for case in lab.loop.latest.cases] == [API]


def test_nobody_waits_for_a_loop_that_has_ended(lab: Lab) -> None:
    lab.loop.start()
    lab.loop.stop()
    lab.loop.join(DEADLINE_S)
    lab.state.commit_deploy(a_deploy(a_wanted_api(V1)))
    lab.loop.catch_up()
    assert lab.shown == {}


def test_it_resigns_once_the_home_is_another_ones(lab: Lab) -> None:
    lab.in_charge = False
    lab.state.commit_deploy(a_deploy(a_wanted_api(V1)))
    lab.loop.start()
    assert lab.resigned.wait(DEADLINE_S)
    lab.loop.join(DEADLINE_S)
    assert lab.shown == {}


def test_one_that_stood_still_while_another_one_took_over_orders_nothing_writes_nothing_and_ends() -> None:
    storage = FakeStorage()
    lab = Lab(state=BucketStateStore(FakeStorage(storage), FakeClock()))
    lab.state.commit_deploy(a_deploy(a_wanted_api(V1)))
    later = BucketStateStore(FakeStorage(storage), FakeClock()).take_epoch()
    lab.agents.order({lab.agents.nodes[0]: Orders(epoch=later, orders=())})
    before = dict(storage.objects)
    lab.loop.start()
    assert lab.resigned.wait(DEADLINE_S)
    lab.loop.join(DEADLINE_S)
    assert lab.agents.replicas() == ()
    assert storage.objects == before


def test_a_fault_of_ours_is_counted_and_the_next_tick_goes_on(lab: Lab) -> None:
    lab.fault = RuntimeError("a bug")
    lab.state.commit_deploy(a_deploy(a_wanted_api(V1)))
    lab.loop.start()
    lab.loop.catch_up()
    assert API in lab.shown
    assert lab.loop.counts.failed_ticks == 1


def test_agents_that_know_a_later_epoch_are_given_orders_of_a_later_one_still(lab: Lab) -> None:
    node = lab.agents.nodes[0]
    lab.agents.order({node: Orders(epoch=7, orders=())})
    lab.state.commit_deploy(a_deploy(a_wanted_api(V1)))
    lab.loop.start()
    lab.loop.catch_up()
    ended_s = time.monotonic() + DEADLINE_S
    while not lab.agents.replicas():
        assert time.monotonic() < ended_s, "no order has been taken"
    assert int(lab.state.meta("epoch") or 0) > 7
