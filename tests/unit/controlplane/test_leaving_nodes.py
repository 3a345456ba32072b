"""Nodes that are to be given back: what runs there answers until others do elsewhere, and then nothing is left."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import pytest

from cortex.ids import NodeId, ReplicaId, replica_id
from cortex.planning.model import LeaseState
from cortex.testing.builders import API, NODE, a_build, a_node, a_wanted_api
from cortex.testing.fake_agent import FakeLife
from cortex.testing.lab import Lab
from cortex.wire.build import Resources
from cortex.wire.reports import Phase

V1, V2 = a_build("v1"), a_build("v2")
N2, N3 = NodeId("n2"), NodeId("n3")


class Nodes(Lab):
    """A control plane with three nodes, which asks at every door after each tick."""

    def __init__(self, *, cpu_millis: int = 8000) -> None:
        super().__init__(nodes=[a_node(node, cpu_millis=cpu_millis) for node in (NODE, N2, N3)])

    def where(self) -> dict[ReplicaId, NodeId]:
        return {report.replica: node for node, report in self.agents.replicas() if report.phase is not Phase.EXITED}

    def leave(self, *nodes: NodeId) -> None:
        self.state.set_leaving(nodes)

    def is_empty(self, node: NodeId) -> bool:
        return node not in self.where().values() and all(lease.node != node for lease in self.engine.leases())


def lowest_of_ready(lab: Nodes, seconds: float, nodes: Collection[NodeId] = (NODE, N2, N3)) -> int:
    """Let time pass in small steps and ask at every door; returns the fewest ready replicas there were."""
    fewest = len(lab.agents.ready())
    until_s = lab.clock.monotonic_s() + seconds
    while lab.clock.monotonic_s() < until_s:
        lab.settle()
        for node in nodes:
            assert lab.agents.ask(API, node).outcome == "answered", f"at {lab.clock.monotonic_s():.2f} s"
        fewest = min(fewest, len(lab.agents.ready()))
        lab.clock.advance(0.01)
    return fewest


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_what_runs_there_is_replaced_elsewhere_first_and_no_request_fails(replicas: int) -> None:
    lab = Nodes()
    lab.deploy(a_wanted_api(V1, replicas=replicas))
    gone = next(iter(lab.where().values()))
    lab.leave(gone)
    assert lowest_of_ready(lab, 10.0) == replicas
    assert lab.is_empty(gone)
    assert len(lab.agents.ready()) == replicas
    assert not any(lease.request.surge for lease in lab.engine.leases())


def test_what_runs_there_stays_while_there_is_no_room_elsewhere_and_that_is_said() -> None:
    lab = Nodes(cpu_millis=1000)
    large = a_build("v1", resources=Resources(cpu_millis=1000))
    lab.deploy(a_wanted_api(large, replicas=3))
    lab.engine.deny = lambda request: "full" if request.surge else None
    lab.leave(N2)
    assert lowest_of_ready(lab, 5.0) == 3
    assert N2 in lab.where().values()
    assert "no room for one more replica" in " ".join(note.text for note in lab.run(0.1).notes)
    lab.leave()
    lab.run(2.0)
    assert sorted(lab.where().values()) == sorted([NODE, N2, N3])
    assert all(lease.state is LeaseState.GRANTED and not lease.request.surge for lease in lab.engine.leases())


def test_nothing_new_is_placed_there_but_what_was_asked_for_there_by_name() -> None:
    lab = Nodes()
    lab.leave(NODE, N2)
    lab.deploy(a_wanted_api(V1, replicas=3))
    assert set(lab.where().values()) == {N3}


def test_a_new_version_comes_up_elsewhere() -> None:
    lab = Nodes()
    lab.deploy(a_wanted_api(V1, replicas=3))
    lab.leave(N2)
    lab.deploy(a_wanted_api(V2, replicas=3), seconds=0.0)
    assert lowest_of_ready(lab, 10.0) >= 3
    assert lab.is_empty(N2)
    assert {lab.agents.ask(API, node).version for node in (NODE, N2, N3)} == {V2.version}


def test_where_the_new_version_fails_what_serves_moves_all_the_same() -> None:
    lab = Nodes()
    lab.deploy(a_wanted_api(V1, replicas=3))
    lab.agents.lives = lambda order: FakeLife(crash_after_s=0.0 if order.build.revision == V2.revision else None)
    lab.deploy(a_wanted_api(V2, replicas=3), seconds=20.0)
    lab.leave(N2)
    assert lowest_of_ready(lab, 10.0) >= 3
    assert lab.is_empty(N2)


def test_one_that_sleeps_there_sleeps_elsewhere() -> None:
    lab = Nodes()
    lab.deploy(a_wanted_api(V1, min_replicas=0))
    assert lab.state.fall_asleep(API, V1.revision, reason="nobody asks", wall_s=0.0)
    lab.run(3.0)
    (gone,) = set(lab.where().values())
    lab.leave(gone)
    lab.run(3.0)
    ((replica, there),) = lab.where().items()
    assert there != gone
    assert lab.is_empty(gone)
    assert lab.agents.knock(replica)
    lab.run(2.0)
    assert [report.replica for report, _since in lab.agents.ready()] == [replica]


def test_who_knocked_at_one_that_sleeps_there_is_answered_there_and_then_it_moves() -> None:
    lab = Nodes()
    lab.deploy(a_wanted_api(V1, min_replicas=0))
    assert lab.state.fall_asleep(API, V1.revision, reason="nobody asks", wall_s=0.0)
    lab.run(3.0)
    ((replica, gone),) = lab.where().items()
    assert lab.agents.knock(replica)
    lab.leave(gone)
    ready_there = False
    for _ in range(1000):
        lab.settle()
        ready_there = ready_there or any(report.replica == replica for report, _since in lab.agents.ready())
        lab.clock.advance(0.01)
    assert ready_there
    assert lab.is_empty(gone)
    assert len(lab.agents.ready()) == 1


def test_it_goes_on_where_it_was_after_a_restart_of_the_control_plane() -> None:
    lab = Nodes()
    lab.deploy(a_wanted_api(V1, replicas=3))
    lab.agents.lives = lambda _order: FakeLife(ready_after_s=3.0)
    lab.leave(N2)
    assert lowest_of_ready(lab, 1.0) == 3
    lab.restart()
    assert lowest_of_ready(lab, 10.0) == 3
    assert lab.is_empty(N2)


def test_a_parked_replica_is_not_kept_there() -> None:
    lab = Nodes()
    lab.deploy(a_wanted_api(V1))
    lab.deploy(msgspec.structs.replace(a_wanted_api(V2), watch_s=120.0))
    parked = [node for replica, node in lab.where().items() if replica == replica_id(API, V1.revision, 0)]
    assert len(parked) == 1
    lab.leave(*parked)
    assert lowest_of_ready(lab, 10.0) >= 1
    assert lab.is_empty(parked[0])
