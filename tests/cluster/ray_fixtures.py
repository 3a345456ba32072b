"""Fixtures of a cluster that is shared by all tests of a session; conftests that want them import them from here."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import machines
import pytest
from ray_cluster import RayCluster

from cortex.clock import SystemClock
from cortex.engines.ray.calls import RayCalls
from cortex.engines.ray.engine import RayEngine
from cortex.ids import ApiKey, NodeId, ReplicaId
from cortex.planning.model import Lease, LeaseRequest
from cortex.wire.build import Resources

NODES = ("local", "n2", "n3")
"""Ray's names of its nodes, the head's first."""
DEADLINE_S = 120.0
ROOM = {"num-cpus": 16, "memory": 8 * 2**30, "num-gpus": 8}
"""What each says that it has: more than any test asks for. Nothing uses it."""


@pytest.fixture(scope="session")
def can_have_clusters() -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the extra `ray`")
    why = machines.lacking()
    if why is not None:
        pytest.skip(why)


@pytest.fixture(scope="session")
def ray_cluster(can_have_clusters: None) -> Iterator[RayCluster]:
    cluster = RayCluster(name=NODES[0], resources=ROOM)
    try:
        for name in NODES[1:]:
            cluster.add_node(name, resources=ROOM)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def ray_calls(ray_cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCalls]:
    calls = calls_of(ray_cluster, tmp_path_factory.mktemp("calls"), namespace="shared")
    yield calls
    calls.close()


def calls_of(cluster: RayCluster, folder: Path, *, namespace: str, token_file: Path | None = None) -> RayCalls:
    """Calls from a process on the head's machine."""
    return RayCalls(
        address=cluster.address,
        beside=cluster.head.address,
        namespace=namespace,
        token_file=token_file or cluster.token_file,
        output=folder / "driver.out",
        environ=os.environ,
        before=cluster.head.command(),
    )


def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


class Running:
    """An engine that looks after itself, and what it is asked for."""

    def __init__(self, calls: RayCalls) -> None:
        self.calls = calls
        self.engine = RayEngine(calls=calls, clock=SystemClock())
        self.engine.start()

    def ask(self, *names: str, node: NodeId | None = None, cpu: int = 100) -> None:
        for name in names:
            self.engine.acquire(
                LeaseRequest(
                    replica=ReplicaId(name),
                    api=ApiKey("iris/sklearn"),
                    resources=Resources(cpu_millis=cpu, mem_bytes=2**20),
                    node=node,
                )
            )

    def lease(self, name: str) -> Lease:
        return next(lease for lease in self.engine.leases() if lease.request.replica == name)

    def where(self) -> dict[str, str]:
        """Node of each lease, or its state."""
        return {lease.request.replica: lease.node or lease.state.value for lease in self.engine.leases()}

    def settle(self) -> None:
        until(lambda: self.engine.is_settled, "Ray does not come to what is wanted")

    def release_all(self) -> None:
        for lease in self.engine.leases():
            self.engine.release(lease.request.replica)
        self.settle()
