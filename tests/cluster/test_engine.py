"""The engine on a real cluster: what it costs, and what becomes of leases when processes and machines go."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_cluster import RayCluster
from ray_fixtures import Running, calls_of, until

from cortex.ids import NodeId, ReplicaId
from cortex.planning.model import LeaseState

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]

LOCAL, N2, N3 = NodeId("local"), NodeId("n2"), NodeId("n3")


@pytest.fixture
def running(ray_cluster: RayCluster, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    one = Running(calls_of(ray_cluster, tmp_path, namespace=request.node.name))
    yield one
    one.release_all()
    one.engine.close()


def pids(cluster: RayCluster) -> set[int]:
    return {pid for machine in cluster.nodes.values() for pid in machine.pids()}


def test_fifty_leases_begin_no_process(ray_cluster: RayCluster, running: Running) -> None:
    running.ask("first")
    running.settle()
    before = pids(ray_cluster)
    running.ask(*(f"replica-{number}" for number in range(50)))
    until(lambda: all(lease.state is LeaseState.GRANTED for lease in running.engine.leases()), "leases are not granted")
    running.settle()
    assert len(running.engine.leases()) == 51
    assert pids(ray_cluster) - before == set()


def test_leases_outlive_the_process_that_asked_for_them(running: Running) -> None:
    running.ask("before")
    running.settle()
    first = running.calls.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    running.ask("after")
    until(lambda: running.lease("after").state is LeaseState.GRANTED, "nothing is granted any more")
    assert running.lease("before").state is LeaseState.GRANTED
    assert running.calls.pid not in (None, first)
    assert running.engine.trouble == ""


def test_an_engine_that_is_started_anew_takes_its_leases_back(
    ray_cluster: RayCluster, running: Running, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    running.ask("one", "two")
    running.settle()
    held = running.engine.leases()
    again = Running(calls_of(ray_cluster, tmp_path, namespace=request.node.name))
    again.engine.recover(held)
    again.settle()
    assert again.engine.leases() == held
    again.engine.close()


def test_what_was_on_a_machine_whose_raylet_is_killed_is_lost_and_may_be_had_elsewhere(
    ray_cluster: RayCluster, running: Running
) -> None:
    machine = ray_cluster.add_node("n4", resources={"num-cpus": 4})
    n4 = NodeId("n4")
    until(lambda: n4 in [node.node for node in running.engine.nodes()], "the node is not seen")
    running.ask("stays", node=N2)
    running.ask("goes", node=n4)
    running.settle()
    (raylet,) = machine.pids_of("raylet/raylet")
    os.kill(raylet, signal.SIGKILL)
    until(lambda: running.lease("goes").state is LeaseState.LOST, "nobody notices")
    assert running.lease("goes").reason == "node n4 is gone"
    assert n4 not in [node.node for node in running.engine.nodes()]
    running.engine.release(ReplicaId("goes"))
    running.ask("goes")
    running.settle()
    assert running.lease("goes").state is LeaseState.GRANTED
    assert running.lease("goes").node != n4
    ray_cluster.remove_node("n4")


def test_a_node_that_is_given_back_ends_when_it_holds_nothing(ray_cluster: RayCluster, running: Running) -> None:
    machine = ray_cluster.add_node("n5", resources={"num-cpus": 4})
    n5 = NodeId("n5")
    until(lambda: n5 in [node.node for node in running.engine.nodes()], "the node is not seen")
    running.ask("there", node=n5)
    running.settle()
    running.engine.give_back(n5, "its replicas fit elsewhere")
    until(lambda: any(one.draining for one in running.engine.machines()), "it is not drained")
    running.ask("waits", node=n5)
    assert running.lease("there").state is LeaseState.GRANTED
    assert running.lease("waits").reason == "node n5: is being given back"
    running.engine.release(ReplicaId("waits"))
    running.engine.release(ReplicaId("there"))
    until(lambda: n5 not in [node.node for node in running.engine.nodes()], "it stays")
    until(lambda: machine.pids_of("raylet/raylet") == [], "its raylet goes on")
    ray_cluster.remove_node("n5")
