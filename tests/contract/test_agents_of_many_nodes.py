"""What control planes are promised of the agents of several nodes, whatever becomes of one of them."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import pytest
import trustme

sys.path.insert(0, str(Path(__file__).parent))

from small_agents import DEADLINE_S, Disk, SmallAgent

from cortex.agent.dialing import dial_tls, dial_unix
from cortex.binding import bind_tcp
from cortex.controlplane import knowntables
from cortex.controlplane.agents import LinkedAgents
from cortex.controlplane.world import Agents, StaleEpoch
from cortex.errors import RetryLater
from cortex.ids import NodeId, ReplicaId, api_key, replica_id
from cortex.testing.builders import a_build, a_node, a_route, a_wanted_api
from cortex.testing.clock import FakeClock
from cortex.testing.fake_agent import FakeAgents, Fate
from cortex.testing.linked_agents import linked_agents
from cortex.tls import TlsIdentity
from cortex.wire.membership import CONTROL_PLANE
from cortex.wire.orders import HoldSlot, Order, Orders, RemoveRoute, RoutesRevision, SetRoute, SetRoutes
from cortex.wire.reports import AgentReport

pytestmark = pytest.mark.slow

N1, N2, N3 = NODES = (NodeId("n1"), NodeId("n2"), NodeId("n3"))


class Lab(Protocol):
    """Agents of three nodes, which have reported, and what may happen to one."""

    agents: Agents

    def restart_agent(self, node: NodeId) -> None: ...

    def stall(self, node: NodeId) -> None:
        """Orders reach it, and are neither carried out nor answered until `go_on`."""
        ...

    def go_on(self, node: NodeId) -> None: ...

    def cut(self, node: NodeId) -> None:
        """Nothing reaches it until `mend`."""
        ...

    def mend(self, node: NodeId) -> None: ...

    def lose_answer(self, node: NodeId) -> None:
        """The next orders are carried out, and nobody hears of it."""
        ...

    def until(self, look: Callable[[], bool], what: str) -> None:
        """Let time pass until something is so."""
        ...


def an_identity(folder: Path, name: str, authority: trustme.CA) -> TlsIdentity:
    """Somebody whom an authority has signed."""
    signed = authority.issue_cert(name)
    identity = TlsIdentity(*(folder / f"{name}-{part}.pem" for part in ("authority", "certificate", "key")))
    authority.cert_pem.write_to_path(identity.authority)
    signed.cert_chain_pems[0].write_to_path(identity.certificate)
    signed.private_key_pem.write_to_path(identity.key)
    return identity


class PretendedLab:
    def __init__(self) -> None:
        self._clock = FakeClock()
        self.agents = self._fake = FakeAgents(self._clock, [a_node(node) for node in NODES])
        self._fates: dict[NodeId, Fate] = {}
        self._fake.fate = lambda node, _orders: self._fates.get(node, Fate.DONE)
        self._fake.late_by_s = 1e6

    def restart_agent(self, node: NodeId) -> None:
        self._fake.restart_agent(node, down_s=1.0)

    def stall(self, node: NodeId) -> None:
        self._fates[node] = Fate.LATE

    def go_on(self, node: NodeId) -> None:
        del self._fates[node]

    def cut(self, node: NodeId) -> None:
        self._fake.cut_off(node)

    def mend(self, node: NodeId) -> None:
        self._fake.reconnect(node)

    def lose_answer(self, node: NodeId) -> None:
        def once(to: NodeId, _orders: Orders) -> Fate:
            if to != node:
                return Fate.DONE
            self._fake.fate = lambda _node, _orders: Fate.DONE
            return Fate.UNANSWERED

        self._fake.fate = once

    def until(self, look: Callable[[], bool], what: str) -> None:
        for _ in range(1000):
            if look():
                return
            self._clock.advance(0.1)
        raise AssertionError(f"never so: {what}")

    def close(self) -> None:
        pass


class LinkedLab:
    """Small agents over the links of the real thing, as on one machine or as over a network."""

    def __init__(self, folder: Path, *, tls: bool = False) -> None:
        path = folder / "links.sock"
        wide, self._dials = None, dict.fromkeys(NODES, dial_unix(path))
        if tls:
            authority = trustme.CA()
            listener = bind_tcp("127.0.0.1", 0)
            wide = listener, an_identity(folder, CONTROL_PLANE, authority).server_context()
            port = listener.getsockname()[1]
            self._dials = {node: dial_tls("127.0.0.1", port, an_identity(folder, node, authority)) for node in NODES}
        self.agents: LinkedAgents = linked_agents(path, known=NODES, wide=wide)
        self.agents.start()
        self._disks = {node: Disk() for node in NODES}
        self._number = 0
        self.small: dict[NodeId, SmallAgent] = {}
        for node in NODES:
            self._begin(node)

    def _begin(self, node: NodeId) -> None:
        self._number += 1
        self.small[node] = SmallAgent(node, f"agent-{self._number}", self._dials[node], self._disks[node])

    def restart_agent(self, node: NodeId) -> None:
        self.small[node].end()
        self._begin(node)

    def stall(self, node: NodeId) -> None:
        self.small[node].stall()

    def go_on(self, node: NodeId) -> None:
        self.small[node].go_on()

    def cut(self, node: NodeId) -> None:
        self.small[node].cut()

    def mend(self, node: NodeId) -> None:
        self.small[node].mend()

    def lose_answer(self, node: NodeId) -> None:
        self.small[node].loses_answer = True

    def until(self, look: Callable[[], bool], what: str) -> None:
        until_s = time.monotonic() + DEADLINE_S
        while not look():
            assert time.monotonic() < until_s, f"not within {DEADLINE_S:g} s: {what}"
            time.sleep(0.01)

    def close(self) -> None:
        self.agents.close()
        for small in self.small.values():
            small.end()


@pytest.fixture(params=["fake", "linked", "linked over tls"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    lab = PretendedLab() if request.param == "fake" else LinkedLab(folder, tls="tls" in request.param)
    try:
        lab.until(lambda: lab.agents.settled and len(lab.agents.reports()) == len(NODES), "all have reported")
        yield lab
    finally:
        lab.close()
        shutil.rmtree(folder, ignore_errors=True)


def seen(lab: Lab, node: NodeId) -> AgentReport:
    (report,) = [report for report in lab.agents.reports() if report.name == node]
    return report


def held(lab: Lab, node: NodeId) -> set[ReplicaId]:
    return {replica.replica for replica in seen(lab, node).replicas}


def a_slot(name: str, **build: object) -> HoldSlot:
    """An order that needs no model, and shows in reports at once."""
    made = msgspec.structs.replace(a_build(api=api_key("contract", name)), **build)
    return HoldSlot(replica=replica_id(made.api, made.revision, 0), build=made)


def a_way(slot: HoldSlot) -> SetRoute:
    return a_route(a_wanted_api(build=slot.build), slot.replica)


def batch(*orders: Order, epoch: int = 1) -> Orders:
    return Orders(epoch=epoch, orders=orders)


def taken(lab: Lab, node: NodeId, *orders: Order) -> bool:
    """Whether it takes orders now."""
    return not lab.agents.order({node: batch(*orders)})


def test_each_node_carries_out_its_own_orders(lab: Lab) -> None:
    slots = {node: a_slot(node) for node in NODES}
    assert lab.agents.order({node: batch(slot) for node, slot in slots.items()}) == {}
    assert {node: held(lab, node) for node in NODES} == {node: {slot.replica} for node, slot in slots.items()}


def test_a_node_that_is_cut_off_is_named_and_the_others_do_what_they_were_told(lab: Lab) -> None:
    lab.cut(N2)
    slot = a_slot("a")
    problems = lab.agents.order({node: batch(slot) for node in NODES})
    assert set(problems) == {N2}
    assert isinstance(problems[N2], RetryLater)
    assert held(lab, N1) == held(lab, N3) == {slot.replica}
    lab.mend(N2)
    lab.until(lambda: taken(lab, N2, slot), "it takes orders again")
    assert held(lab, N2) == {slot.replica}


def test_a_node_that_stands_still_holds_up_no_other(lab: Lab) -> None:
    lab.stall(N1)
    try:
        slot = a_slot("a")
        assert set(lab.agents.order({node: batch(slot) for node in NODES})) == {N1}
        assert (held(lab, N2), held(lab, N3)) == ({slot.replica}, {slot.replica})
        more = a_slot("b")
        assert set(lab.agents.order({node: batch(more) for node in NODES})) == {N1}
        assert more.replica in held(lab, N3)
    finally:
        lab.go_on(N1)


def test_what_was_not_answered_in_time_does_not_come_after_what_was_ordered_later(lab: Lab) -> None:
    slot = a_slot("a")
    lab.stall(N1)
    assert set(lab.agents.order({N1: batch(slot, a_way(slot))})) == {N1}
    lab.go_on(N1)
    lab.until(lambda: taken(lab, N1, slot, RemoveRoute(api=slot.build.api)), "it takes orders again")
    assert (held(lab, N1), seen(lab, N1).routes) == ({slot.replica}, ())
    assert taken(lab, N1)
    assert seen(lab, N1).routes == ()


def test_an_answer_that_is_lost_leaves_orders_that_can_be_given_again(lab: Lab) -> None:
    slot = a_slot("a")
    lab.lose_answer(N1)
    assert set(lab.agents.order({N1: batch(slot), N2: batch(slot)})) == {N1}
    lab.until(lambda: held(lab, N1) == {slot.replica}, "what was done is seen")
    lab.until(lambda: taken(lab, N1, slot), "it takes them once more")
    assert held(lab, N1) == {slot.replica}


def test_one_node_that_somebody_newer_is_in_charge_of_is_told_once_all_were_tried(lab: Lab) -> None:
    assert lab.agents.order({N2: batch(epoch=7)}) == {}
    slot = a_slot("a")
    with pytest.raises(StaleEpoch):
        lab.agents.order({node: batch(slot, epoch=6) for node in NODES})
    assert [held(lab, node) for node in NODES] == [{slot.replica}, set(), {slot.replica}]


def test_another_agent_of_a_node_takes_the_place_of_the_one_before(lab: Lab) -> None:
    slot = a_slot("a")
    assert taken(lab, N2, slot)
    before = seen(lab, N2)
    lab.restart_agent(N2)
    lab.until(lambda: seen(lab, N2).agent != before.agent, "another has reported")
    assert held(lab, N2) == {slot.replica}
    assert [report.name for report in lab.agents.reports()] == [*NODES]
    lab.until(lambda: taken(lab, N2, a_slot("b")), "it takes orders")


@pytest.mark.parametrize("kept", [knowntables.MOST, 0], ids=["known here", "forgotten here"])
def test_the_table_that_each_node_has_is_in_its_report_whoever_made_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(knowntables, "MOST", kept)
    a, b = a_way(a_slot("a")), a_way(a_slot("b"))
    first, second = RoutesRevision(1, 1), RoutesRevision(1, 2)
    assert lab.agents.order({node: batch(SetRoutes(revision=first, routes=(a,))) for node in NODES}) == {}
    assert (
        lab.agents.order({node: batch(SetRoutes(revision=second, base=first, routes=(b,))) for node in (N1, N2)}) == {}
    )
    assert [(seen(lab, node).routes, seen(lab, node).routes_revision) for node in NODES] == [
        ((a, b), second),
        ((a, b), second),
        ((a,), first),
    ]
    before = seen(lab, N2)
    lab.restart_agent(N2)
    lab.until(lambda: seen(lab, N2).agent != before.agent, "another has reported")
    assert seen(lab, N2).routes == (a, b)
    assert lab.agents.order({N3: batch(SetRoutes(revision=RoutesRevision(2, 1), routes=(b,)), epoch=2)}) == {}
    assert taken(lab, N1, a_slot("c"))
    assert [seen(lab, node).routes for node in NODES] == [(a, b), (a, b), (b,)]


def test_how_long_a_node_has_been_silent_is_known_of_each(lab: Lab) -> None:
    lab.cut(N3)
    lab.until(lambda: lab.agents.silent_s()[N3] > 8.0, "one is missed")
    silent_s = lab.agents.silent_s()
    assert set(silent_s) == set(NODES)
    assert max(silent_s[N1], silent_s[N2]) < silent_s[N3]
    lab.mend(N3)
    lab.until(lambda: lab.agents.silent_s()[N3] < 8.0, "it is back")


def test_orders_of_many_megabytes_arrive_whole(lab: Lab) -> None:
    slots = [a_slot(f"a{number}", env={"WORD": "x" * 2**20}) for number in range(8)]
    assert taken(lab, N1, *slots)
    assert held(lab, N1) == {slot.replica for slot in slots}
