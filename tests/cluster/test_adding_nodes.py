"""Leases that wait are the demand for which Ray's autoscaler adds nodes; a node that holds none is taken away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_cluster import RayCluster
from ray_fixtures import Running, calls_of, until

from cortex.ids import NodeId, ReplicaId
from cortex.planning.model import LeaseState

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]

HEAD = NodeId("head")


@pytest.fixture
def growing(can_have_clusters: None) -> Iterator[RayCluster]:
    cluster = RayCluster(name=HEAD, resources={"num-cpus": 1}, kinds={"small": {"CPU": 2, "memory": 2**30}}, most=2)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def running(growing: RayCluster, tmp_path: Path) -> Iterator[Running]:
    one = Running(calls_of(growing, tmp_path, namespace="growing"))
    yield one
    one.engine.close()


def test_demand_adds_nodes_up_to_the_bound_and_what_is_idle_goes(growing: RayCluster, running: Running) -> None:
    running.ask("one", "two", "three", cpu=1000)
    until(lambda: running.where() == {"one": "head", "two": "node-100", "three": "node-100"}, "no node is added")

    running.ask("four", "five", cpu=2000)
    until(lambda: running.where()["four"] == "node-101", "no second node is added")
    assert running.lease("five").state is LeaseState.PENDING

    growing.bound(3)
    until(lambda: running.where()["five"] == "node-102", "a raised bound adds none")
    assert {one.kind for one in running.engine.machines()} == {"head", "small"}

    for name in ("four", "five"):
        running.engine.release(ReplicaId(name))
    until(lambda: {node.node for node in running.engine.nodes()} == {HEAD, "node-100"}, "idle nodes stay")
    assert running.where() == {"one": "head", "two": "node-100", "three": "node-100"}
