"""What deploys have done on nodes, and what becomes of it when nodes go away: real links, agents by hand."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from cortex.clock import SystemClock
from cortex.controlplane.errands import Errands, NoNodeFits
from cortex.controlplane.lines import AgentUnreachable, CalledOff
from cortex.engines.fake import FakeEngine
from cortex.errors import GiveUp, Problem
from cortex.ids import NodeId
from cortex.planning.model import LeaseRequest
from cortex.state.records import StateStore
from cortex.testing.builders import a_build, a_deploy, a_lease, a_node, a_wanted_api, an_agent_report
from cortex.testing.linked_agents import linked_agents
from cortex.wire.agent import (
    AgentReply,
    AgentRequest,
    InspectBuild,
    InspectedBuild,
    InstalledPackages,
    InstallPackages,
    Observe,
    Observed,
    PackagesRefused,
    Refused,
    ResolvedPackages,
    ResolvePackages,
)
from cortex.wire.build import Resources
from cortex.wire.framing import receive_frame, send_frame
from cortex.wire.launch import InspectReport
from cortex.wire.link import ORDERS, Greeting, Hello, Welcome
from cortex.wire.packages import PackageLock
from cortex.wire.reports import Node

pytestmark = pytest.mark.slow

N1, N2, N3 = NODES = (NodeId("n1"), NodeId("n2"), NodeId("n3"))
DEADLINE_S = 60.0
LINES = 6
FULL = Problem(reference="node-disk-full", message="no room")
LOCK = PackageLock(python="3.11", platform="linux-x86_64", packages=())
Answer = Callable[[AgentRequest], AgentReply]
_REQUESTS: msgspec.json.Decoder[AgentRequest] = msgspec.json.Decoder(AgentRequest)
_GREETINGS: msgspec.json.Decoder[Greeting] = msgspec.json.Decoder(Greeting)


class Died(Exception):
    """The agent that was asked is gone."""


def able(request: AgentRequest) -> AgentReply:
    match request:
        case InspectBuild():
            return InspectedBuild(report=InspectReport())
        case InstallPackages():
            return InstalledPackages()
        case _:
            return ResolvedPackages(lock=LOCK)


class HandAgent:
    """An agent whose answers to errands a test gives; each line has a thread, and any of them may die."""

    def __init__(self, path: Path, node: Node, answer: Answer) -> None:
        self._node, self._answer = node, answer
        self._ended = threading.Event()
        self._socks: list[socket.socket] = []
        for _ in range(LINES):
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(path))
            hello = Hello(node=node.node, agent=f"{node.node}-{id(self)}", way=ORDERS)
            send_frame(sock, msgspec.json.encode(hello))
            assert isinstance(_GREETINGS.decode(receive_frame(sock)[0]), Welcome)
            self._socks.append(sock)
        self._threads = [threading.Thread(target=self._serve, args=(sock,), daemon=True) for sock in self._socks]
        for thread in self._threads:
            thread.start()

    def die(self) -> None:
        self._ended.set()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        self.die()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        for sock in self._socks:
            sock.close()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                request = _REQUESTS.decode(receive_frame(sock)[0])
                try:
                    reply = self._reply(request)
                except Died:
                    self.die()
                    return
                send_frame(sock, msgspec.json.encode(reply))

    def _reply(self, request: AgentRequest) -> AgentReply:
        if not isinstance(request, Observe):
            return self._answer(request)
        if request.serial >= 0:
            self._ended.wait(request.timeout_s)
        report = an_agent_report(self._node)
        return Observed(report=msgspec.structs.replace(report, agent=f"{self._node.node}-{id(self)}"))


class Lab:
    """Three nodes that a control plane knows; which have an agent, and what that does, says a test."""

    def __init__(self, folder: Path) -> None:
        self.out: set[NodeId] = set()
        self.asked: list[tuple[NodeId, type[AgentRequest]]] = []
        """Which node was asked what, as it came."""
        self.state = StateStore()
        self._path = folder / "links.sock"
        self._clock = SystemClock()
        self._made: list[HandAgent] = []
        self.agents = linked_agents(self._path, known=NODES)
        self.engine, self.errands = self.with_nodes([a_node(node) for node in NODES])
        self.agents.start()

    def with_nodes(self, nodes: Sequence[Node]) -> tuple[FakeEngine, Errands]:
        self.engine = FakeEngine(nodes, clock=self._clock)
        self.errands = Errands(
            agents=self.agents, engine=self.engine, state=self.state, clock=self._clock, out=lambda: self.out
        )
        return self.engine, self.errands

    def agent(self, node: NodeId, answer: Answer = able) -> HandAgent:
        """Have a node that has reported."""

        def noted(request: AgentRequest) -> AgentReply:
            self.asked.append((node, type(request)))
            return answer(request)

        self._made.append(HandAgent(self._path, a_node(node), noted))
        self.until(lambda: node in {report.name for report in self.agents.reports()}, f"{node} has reported")
        return self._made[-1]

    def until(self, look: Callable[[], bool], what: str) -> None:
        until_s = time.monotonic() + DEADLINE_S
        while not look():
            assert time.monotonic() < until_s, f"not within {DEADLINE_S:g} s: {what}"
            time.sleep(0.01)

    def inspected(self, **build: object) -> InspectReport:
        return self.errands.inspect(msgspec.structs.replace(a_build(), **build), DEADLINE_S)

    def where(self, kind: type[AgentRequest] = InspectBuild) -> list[NodeId]:
        return [node for node, asked in self.asked if asked is kind]

    def close(self) -> None:
        self.agents.close()
        for agent in self._made:
            agent.join()


@pytest.fixture
def lab() -> Iterator[Lab]:
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    lab = Lab(folder)
    yield lab
    lab.close()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_build_is_looked_at_although_the_first_node_has_no_agent(lab: Lab) -> None:
    lab.agent(N2)
    lab.agent(N3)
    assert lab.inspected() == InspectReport()
    assert lab.where() == [N2]


def test_an_agent_that_dies_over_an_inspection_leaves_it_to_another_node(lab: Lab) -> None:
    def dying(_request: AgentRequest) -> AgentReply:
        raise Died

    lab.agent(N1, dying)
    lab.agent(N2, dying)
    lab.agent(N3)
    assert lab.inspected() == InspectReport()
    assert lab.where() == [N1, N2, N3]


def test_a_node_that_is_lost_over_an_inspection_leaves_it_to_another_one(lab: Lab) -> None:
    """Its connections stand, and nothing comes over them any more, as when a cable is pulled."""
    over = threading.Event()

    def cut_off(_request: AgentRequest) -> AgentReply:
        lab.out.add(N1)
        assert over.wait(DEADLINE_S)
        raise Died

    lab.agent(N1, cut_off)
    lab.agent(N2)
    try:
        assert lab.inspected() == InspectReport()
        assert lab.where() == [N1, N2]
    finally:
        over.set()


def test_an_inspection_waits_for_an_agent_when_no_node_has_one(lab: Lab) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lab.inspected)
        lab.agent(N3)
        assert waiting.result(DEADLINE_S) == InspectReport()


def test_what_the_disk_of_one_node_has_no_room_for_is_done_on_another(lab: Lab) -> None:
    def full(request: AgentRequest) -> AgentReply:
        if isinstance(request, InspectBuild):
            return InspectedBuild(report=InspectReport(problems=(FULL,)))
        return PackagesRefused(problem=FULL)

    lab.agent(N1, full)
    lab.agent(N2, full)
    third = lab.agent(N3)
    assert lab.inspected() == InspectReport()
    lab.errands.install_packages(msgspec.structs.replace(a_build(), packages="lock"), print)
    assert lab.where() == lab.where(InstallPackages) == [N1, N2, N3]
    third.die()
    lab.out.add(N3)
    assert lab.inspected(packages="other").problems == (FULL,)
    with pytest.raises(GiveUp, match="no room"):
        lab.errands.install_packages(msgspec.structs.replace(a_build(), packages="other"), print)


def test_what_is_wrong_with_packages_is_not_tried_on_every_node(lab: Lab) -> None:
    conflict = Problem(reference="packages-conflict", message="two of them do not fit")
    for node in NODES:
        lab.agent(node, lambda _request: PackagesRefused(problem=conflict))
    with pytest.raises(GiveUp, match="do not fit"):
        lab.errands.resolve_packages(ResolvePackages(requirements=("a",), needed=()), print)
    assert lab.where(ResolvePackages) == [N1]


def test_a_node_that_refuses_is_told_of_only_when_no_other_is_there(lab: Lab) -> None:
    lab.agent(N1, lambda _request: Refused(reason="the agent is ending"))
    lab.agent(N2)
    assert lab.inspected() == InspectReport()
    lab.out |= {N2, N3}
    with pytest.raises(AgentUnreachable, match="is ending"):
        lab.inspected()


def test_packages_are_installed_and_builds_looked_at_on_the_node_where_the_lock_was_made(lab: Lab) -> None:
    lab.engine.acquire(
        LeaseRequest(replica=a_lease(a_build("x")).request.replica, api=a_build().api, resources=Resources())
    )
    (lease,) = lab.engine.leases()
    for node in NODES:
        lab.agent(node)
    lab.errands.resolve_packages(ResolvePackages(requirements=("a",), needed=()), print)
    (at,) = lab.where(ResolvePackages)
    assert at != lease.node, "where least is"
    lab.engine.release(lease.request.replica)
    lab.errands.install_packages(msgspec.structs.replace(a_build(), packages="lock"), print)
    for label in ("a", "b", "c"):
        lab.errands.inspect(msgspec.structs.replace(a_build(label), packages="lock"), DEADLINE_S)
    assert {node for node, _kind in lab.asked} == {at}


def test_packages_that_replicas_run_with_somewhere_are_not_built_once_more_elsewhere(lab: Lab) -> None:
    build = msgspec.structs.replace(a_build(), packages="lock")
    lab.state.commit_deploy(a_deploy(a_wanted_api(build)))
    request = msgspec.structs.replace(a_lease(build).request, node=N3)
    lab.engine.acquire(request)
    for node in NODES:
        lab.agent(node)
    lab.errands.install_packages(build, print)
    assert lab.where(InstallPackages) == [N3]


def test_inspections_at_once_are_spread_over_nodes(lab: Lab) -> None:
    all_there = threading.Barrier(len(NODES))

    def together(request: AgentRequest) -> AgentReply:
        all_there.wait(DEADLINE_S)
        return able(request)

    for node in NODES:
        lab.agent(node, together)
    with ThreadPoolExecutor(len(NODES)) as pool:
        for done in [pool.submit(lab.inspected) for _ in NODES]:
            assert done.result(DEADLINE_S) == InspectReport()
    assert Counter(lab.where()) == Counter(NODES)


def test_a_gpu_is_looked_for_and_its_absence_said(lab: Lab) -> None:
    lab.with_nodes([a_node(N1), a_node(N2), a_node(N3, gpus=1)])
    for node in NODES:
        lab.agent(node)
    lab.inspected(resources=Resources(gpus=1))
    assert lab.where() == [N3]
    with pytest.raises(NoNodeFits, match="2 gpu asked"):
        lab.inspected(resources=Resources(gpus=2))


def test_an_inspection_that_nobody_waits_for_ends(lab: Lab) -> None:
    left, over = threading.Event(), threading.Event()

    def leaving(request: AgentRequest) -> AgentReply:
        left.set()
        assert over.wait(DEADLINE_S)
        return able(request)

    lab.agent(N1, leaving)
    lab.agent(N2, leaving)
    try:
        with pytest.raises(CalledOff):
            lab.errands.inspect(a_build(), DEADLINE_S, left=left)
        assert lab.where() == [N1]
    finally:
        over.set()


def test_nobody_is_waited_for_once_the_control_plane_ends(lab: Lab) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lab.inspected)
        lab.agents.close()
        with pytest.raises(AgentUnreachable):
            waiting.result(DEADLINE_S)
