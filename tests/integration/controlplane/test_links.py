"""Where agents dial in, what becomes of their lines, and who is turned away: real sockets, agents by hand."""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import pytest

from cortex.controlplane.agents import LinkedAgents
from cortex.controlplane.links import Incarnations
from cortex.ids import NodeId
from cortex.testing.builders import a_node
from cortex.testing.linked_agents import linked_agents
from cortex.wire.agent import AgentRequest, GiveOrders, KnownRoutes, Observe, Observed
from cortex.wire.framing import receive_frame, send_frame
from cortex.wire.link import ORDERS, Greeting, Hello, TurnedAway, Welcome
from cortex.wire.orders import Orders
from cortex.wire.reports import AgentReport

N1, N2 = NodeId("n1"), NodeId("n2")
DEADLINE_S = 60.0
_REQUESTS: msgspec.json.Decoder[AgentRequest] = msgspec.json.Decoder(AgentRequest)
_GREETINGS: msgspec.json.Decoder[Greeting] = msgspec.json.Decoder(Greeting)


@pytest.fixture
def path() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    yield folder / "run" / "links.sock"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def agents(path: Path) -> Iterator[LinkedAgents]:
    path.parent.mkdir()
    agents = linked_agents(path, known=[N1])
    agents.start()
    yield agents
    agents.close()


class Dialed:
    """A line that an agent has dialed."""

    def __init__(self, path: Path, agent: str = "a", node: NodeId = N1) -> None:
        self.agent, self.node = agent, node
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(DEADLINE_S)
        self._sock.connect(str(path))
        send_frame(self._sock, msgspec.json.encode(Hello(node=node, agent=agent, way=ORDERS)))
        self.greeting = _GREETINGS.decode(receive_frame(self._sock)[0])

    def asked(self) -> AgentRequest:
        return _REQUESTS.decode(receive_frame(self._sock)[0])

    def report(self, serial: int = 1) -> None:
        report = AgentReport(
            node=a_node(self.node), serial=serial, agent=self.agent, epoch=1, pid=1, started_wall_s=0.0
        )
        send_frame(self._sock, msgspec.json.encode(Observed(report=report)))

    @property
    def has_ended(self) -> bool:
        return self._sock.recv(1) == b""

    def close(self) -> None:
        self._sock.close()


class Dial(Protocol):
    def __call__(self, agent: str = "a", node: NodeId = N1) -> Dialed: ...


@pytest.fixture
def dial(path: Path, agents: LinkedAgents) -> Iterator[Dial]:
    lines = []

    def dial(agent: str = "a", node: NodeId = N1) -> Dialed:
        lines.append(Dialed(path, agent, node))
        return lines[-1]

    yield dial
    for line in lines:
        line.close()


def until(look: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + DEADLINE_S
    while not look():
        assert time.monotonic() < until_s, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.01)


def test_an_agent_that_has_dialed_in_is_asked_how_it_is_and_orders_go_another_way(
    dial: Dial, agents: LinkedAgents
) -> None:
    watched = dial()
    assert watched.greeting == Welcome(epoch=1)
    assert isinstance(watched.asked(), Observe)
    watched.report()
    until(lambda: agents.settled, "it has reported")
    assert isinstance(watched.asked(), Observe)
    ordered = dial()
    given: list[object] = []
    giving = threading.Thread(target=lambda: given.append(agents.order({N1: Orders(epoch=1, orders=())})))
    giving.start()
    assert ordered.asked() == GiveOrders(orders=Orders(epoch=1, orders=()), turn=1, known=KnownRoutes(epoch=1))
    ordered.report(serial=2)
    giving.join(DEADLINE_S)
    assert given == [{}]
    assert [report.serial for report in agents.reports()] == [2]
    watched.report(serial=1)
    assert isinstance(watched.asked(), Observe)
    assert [report.serial for report in agents.reports()] == [2]


def test_a_node_that_was_never_heard_is_not_settled_and_a_new_one_is_known_once_it_comes(
    dial: Dial, agents: LinkedAgents
) -> None:
    line = dial(node=N2)
    line.asked()
    line.report()
    until(lambda: [report.name for report in agents.reports()] == [N2], "it has reported")
    assert not agents.settled
    assert set(agents.silent_s()) == {N1, N2}


def test_no_further_orders_are_given_to_a_node_before_it_has_answered_those_before(
    dial: Dial, agents: LinkedAgents
) -> None:
    watched, ordered, spare = dial(), dial(), dial()
    lines = {watched, ordered, spare}
    orders = {N1: Orders(epoch=1, orders=())}
    assert set(agents.order(orders)) == {N1}
    (problem,) = agents.order(orders).values()
    assert "orders before" in str(problem)
    for line in lines:
        line.close()  # nobody knows what became of them, and others may be given
    until(lambda: "orders before" not in str(agents.order(orders).get(N1)), "their line has broken")


def test_a_second_agent_takes_the_place_of_the_first_which_is_turned_away(dial: Dial, agents: LinkedAgents) -> None:
    first = dial("a")
    second = dial("b")
    assert second.greeting == Welcome(epoch=1)
    until(lambda: first.has_ended if isinstance(first.asked(), Observe) else False, "its line is closed")
    again = dial("a")
    assert again.greeting == TurnedAway(reason="another agent of node n1 has followed this one")
    assert again.has_ended
    second.asked()
    second.report()
    until(lambda: [report.agent for report in agents.reports()] == ["b"], "the second reports")


def test_a_line_whose_agent_has_left_is_passed_over(dial: Dial, agents: LinkedAgents) -> None:
    watched = dial()
    watched.asked()
    stays, left = dial(), dial()
    left.close()
    giving = threading.Thread(target=lambda: agents.order({N1: Orders(epoch=1, orders=())}))
    giving.start()
    assert isinstance(stays.asked(), GiveOrders)
    stays.report()
    giving.join(DEADLINE_S)


def test_agents_find_a_control_plane_whose_socket_was_removed(path: Path, dial: Dial) -> None:
    shutil.rmtree(path.parent)
    until(path.exists, "there is a socket again")
    assert dial().greeting == Welcome(epoch=1)


def test_who_is_present_follows_from_when_connections_came_and_not_from_when_they_were_looked_at() -> None:
    def hello(agent: str) -> Hello:
        return Hello(node=N1, agent=agent, way=ORDERS)

    incarnations = Incarnations()
    assert incarnations.admit(hello("b"), 5)
    assert not incarnations.admit(hello("a"), 4)  # it came before, and was looked at late
    assert incarnations.admit(hello("b"), 3)
    assert incarnations.admit(hello("c"), 6)
    assert not incarnations.admit(hello("b"), 7)
    assert incarnations.is_present(N1, "c")
