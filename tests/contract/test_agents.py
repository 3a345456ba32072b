"""What control planes are promised of the agents of their nodes: the suite that keeps the fake honest."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from cortex.controlplane.world import Agents, StaleEpoch
from cortex.errors import RetryLater
from cortex.ids import ApiKey, NodeId, ReplicaId, api_key, replica_id
from cortex.processes import ProcessIdentity, read_record
from cortex.settings import NodeLayout, Settings
from cortex.testing.builders import a_build, a_route, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.testing.fake_agent import FakeAgents
from cortex.testing.linked_agents import local_agents
from cortex.wire.orders import ForgetReplica, HoldSlot, Order, Orders, RemoveRoute, RoutesRevision, SetRoute, SetRoutes
from cortex.wire.reports import AgentReport

pytestmark = pytest.mark.slow

DEADLINE_S = 60.0


class Lab(Protocol):
    """Agents of one node, and what may happen to it."""

    agents: Agents

    def restart_agent(self) -> None:
        """The agent dies, and there is another one at some time."""
        ...

    def until(self, look: Callable[[], bool], what: str) -> None:
        """Let time pass until something is so."""
        ...


class PretendedLab:
    def __init__(self) -> None:
        self._clock = FakeClock()
        self.agents = self._fake = FakeAgents(self._clock)

    def restart_agent(self) -> None:
        self._fake.restart_agent(self._fake.nodes[0], down_s=1.0)

    def until(self, look: Callable[[], bool], what: str) -> None:
        for _ in range(1000):
            if look():
                return
            self._clock.advance(0.1)
        raise AssertionError(f"never so: {what}")


class RealLab:
    """An agent of this machine, in a home of its own, started by the line to it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            settings = Settings(home=folder, port=free.getsockname()[1])
        self._layout = NodeLayout(folder)
        self._layout.prepare()
        self.agents = self._agent = local_agents(settings, self._layout)
        self._agent.start()

    def restart_agent(self) -> None:
        identity = read_record(self._layout.agent_file, ProcessIdentity)
        assert identity is not None
        os.kill(identity.pid, signal.SIGKILL)

    def until(self, look: Callable[[], bool], what: str) -> None:
        until_s = time.monotonic() + DEADLINE_S
        while not look():
            assert time.monotonic() < until_s, f"not within {DEADLINE_S:g} s: {what}"
            time.sleep(0.01)

    def close(self) -> None:
        self._agent.stop_agents(0.5)
        self._agent.close()


@pytest.fixture(params=["fake", "local"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if request.param == "fake":
        yield PretendedLab()
        return
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    real = RealLab(folder)
    try:
        yield real
    finally:
        real.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def node(lab: Lab) -> NodeId:
    """The node, once it has reported."""
    lab.until(lambda: lab.agents.settled and bool(lab.agents.reports()), "the node has reported")
    return lab.agents.reports()[0].node.node


def seen(lab: Lab) -> AgentReport:
    (report,) = lab.agents.reports()
    return report


def held(report: AgentReport) -> set[ReplicaId]:
    return {replica.replica for replica in report.replicas}


def routed(report: AgentReport) -> set[ApiKey]:
    return {route.api for route in report.routes}


def a_slot(name: str) -> HoldSlot:
    """An order that needs no model, and shows in reports at once."""
    build = a_build(api=api_key("contract", name))
    return HoldSlot(replica=replica_id(build.api, build.revision, 0), build=build)


def a_way(slot: HoldSlot) -> SetRoute:
    return a_route(a_wanted_api(build=slot.build), slot.replica)


def order(lab: Lab, node: NodeId, *orders: Order, epoch: int = 1) -> None:
    for error in lab.agents.order({node: Orders(epoch=epoch, orders=orders)}).values():
        raise error


def test_each_node_has_one_report_once_all_have_been_heard(lab: Lab, node: NodeId) -> None:
    assert lab.agents.settled
    assert [report.node.node for report in lab.agents.reports()] == [node]


def test_orders_that_were_taken_are_in_the_next_report(lab: Lab, node: NodeId) -> None:
    slot = a_slot("a")
    order(lab, node, slot, a_way(slot))
    assert (held(seen(lab)), routed(seen(lab))) == ({slot.replica}, {slot.build.api})
    order(lab, node, RemoveRoute(api=slot.build.api))
    assert routed(seen(lab)) == set()


def test_orders_of_a_batch_are_carried_out_in_their_sequence(lab: Lab, node: NodeId) -> None:
    kept, gone = a_slot("a"), a_slot("b")
    order(
        lab,
        node,
        gone,
        ForgetReplica(replica=gone.replica),
        kept,
        a_way(kept),
        a_way(gone),
        RemoveRoute(api=gone.build.api),
    )
    lab.until(lambda: held(seen(lab)) == {kept.replica}, "the other slot is closed")
    assert routed(seen(lab)) == {kept.build.api}


def test_a_table_of_routes_is_taken_over_and_changes_to_another_one_end_the_batch(lab: Lab, node: NodeId) -> None:
    kept, gone, late = a_slot("a"), a_slot("b"), a_slot("c")
    first, second, third = (RoutesRevision(1, number) for number in (1, 2, 3))
    order(lab, node, SetRoutes(revision=first, routes=(a_way(kept), a_way(gone))))
    order(lab, node, SetRoutes(revision=second, base=first, removed=(gone.build.api,)), kept)
    order(lab, node, SetRoutes(revision=second, base=first, removed=(gone.build.api,)))
    order(lab, node, gone, SetRoutes(revision=third, base=first, routes=(a_way(late),)), late)
    report = seen(lab)
    assert (report.routes_revision, routed(report)) == (second, {kept.build.api})
    assert held(report) == {kept.replica, gone.replica}


def test_the_same_orders_once_more_change_nothing(lab: Lab, node: NodeId) -> None:
    slot = a_slot("a")
    orders = (slot, a_way(slot))
    order(lab, node, *orders)
    before = seen(lab)
    order(lab, node, *orders)
    after = seen(lab)
    assert (held(after), after.routes) == (held(before), before.routes)
    assert [(one.attempt, one.phase) for one in after.replicas] == [(one.attempt, one.phase) for one in before.replicas]


def test_orders_of_an_older_epoch_are_refused_as_a_whole(lab: Lab, node: NodeId) -> None:
    slot, late = a_slot("a"), a_slot("b")
    order(lab, node, slot, epoch=7)
    with pytest.raises(StaleEpoch):
        order(lab, node, late, ForgetReplica(replica=slot.replica), epoch=6)
    assert (held(seen(lab)), seen(lab).epoch) == ({slot.replica}, 7)
    order(lab, node, late, epoch=7)
    assert held(seen(lab)) == {slot.replica, late.replica}


def test_a_node_that_nobody_knows_cannot_be_ordered(lab: Lab, node: NodeId) -> None:
    slot = a_slot("a")
    with pytest.raises(RetryLater, match="elsewhere"):
        order(lab, NodeId("elsewhere"), slot)
    assert held(seen(lab)) == set()


def test_another_agent_reports_under_another_name_what_the_one_before_left(lab: Lab, node: NodeId) -> None:
    slot = a_slot("a")
    order(lab, node, slot, a_way(slot), epoch=3)
    before = seen(lab)
    lab.restart_agent()
    lab.until(lambda: seen(lab).agent != before.agent, "another agent has reported")
    after = seen(lab)
    assert (held(after), after.routes, after.epoch) == ({slot.replica}, before.routes, 3)
    assert after.node.node == node


def test_another_agent_still_refuses_orders_of_an_older_epoch(lab: Lab, node: NodeId) -> None:
    order(lab, node, a_slot("a"), epoch=3)
    lab.restart_agent()

    def refused() -> bool:
        try:
            order(lab, node, a_slot("b"), epoch=2)
        except StaleEpoch:
            return True
        except RetryLater:
            return False
        raise AssertionError("it took them")

    lab.until(refused, "it says so")


def test_orders_are_lost_or_carried_out_while_an_agent_is_away_and_can_be_given_again(lab: Lab, node: NodeId) -> None:
    slot = a_slot("a")
    lab.restart_agent()

    def given() -> bool:
        try:
            order(lab, node, slot)
        except RetryLater:
            return False
        return True

    lab.until(given, "orders are taken again")
    assert held(seen(lab)) == {slot.replica}


def test_what_is_reported_never_goes_back_while_orders_are_given(lab: Lab, node: NodeId) -> None:
    here: list[AgentReport] = []
    elsewhere: list[AgentReport] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            elsewhere.append(seen(lab))

    watchers = [threading.Thread(target=watch)] if isinstance(lab, RealLab) else []
    for watcher in watchers:
        watcher.start()
    try:
        for number in range(30):
            slot = a_slot(f"n{number}")
            order(lab, node, slot, epoch=1 + number // 10)
            here.append(seen(lab))
            assert slot.replica in held(here[-1])
    finally:
        done.set()
        for watcher in watchers:
            watcher.join()
    for reports in (here, elsewhere):
        told = [(report.agent, report.epoch, report.serial, len(held(report))) for report in reports]
        assert told == sorted(told)
