"""How our agent comes to a node that has nothing of ours, and that it stays when Ray goes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_cluster import RayCluster
from ray_fixtures import Running, calls_of, until

from cortex.engines.ray.messages import BootOrder
from cortex.engines.ray.ourwheel import DISTRIBUTION
from cortex.ids import NodeId
from cortex.processes import ProcessIdentity, is_alive, read_record
from cortex.settings import NodeLayout
from cortex.testing.wheels import repacked_with_needs

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]

BARE = NodeId("bare")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "node"


@pytest.fixture
def running(ray_cluster: RayCluster, tmp_path: Path, home: Path) -> Iterator[Running]:
    ray_cluster.add_node(BARE, resources={"num-cpus": 1}, variables={"CORTEX_HOME": str(home)})
    one = Running(calls_of(ray_cluster, tmp_path, namespace="boot"))
    yield one
    one.engine.close()
    ray_cluster.remove_node(BARE)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whatever we need, as wheels: the machines of the tests reach no index."""
    folder = tmp_path_factory.mktemp("packages")
    repacked_with_needs(folder, [DISTRIBUTION])
    for ours in folder.glob("cortex_serving-*"):
        ours.unlink()
    return folder


def test_an_agent_comes_as_a_wheel_and_outlives_its_raylet(
    ray_cluster: RayCluster, running: Running, home: Path, packages: Path
) -> None:
    order = BootOrder(
        home=str(home),
        files={"node/brought": b"\x00\xff"},
        arguments=(),
        installer=("--offline", "--no-index", f"--find-links={packages}"),
        use_installed=False,
    )

    def boot() -> ProcessIdentity:
        running.engine.start_agent(BARE, order)
        until(lambda: running.engine.booted(BARE) is not None, "the order is not carried out")
        booted = running.engine.booted(BARE)
        assert booted is not None
        assert booted.problem == ""
        assert booted.python.startswith(str(home / "software"))
        until(lambda: read_record(layout.agent_file, ProcessIdentity) is not None, "there is no agent")
        identity = read_record(layout.agent_file, ProcessIdentity)
        assert identity is not None
        return identity

    layout = NodeLayout(home)
    agent = boot()
    assert (home / "node/brought").read_bytes() == b"\x00\xff"
    assert (home / "node/brought").stat().st_mode & 0o777 == 0o600
    machine = ray_cluster.nodes[BARE]
    assert agent.pid in machine.pids()
    variables = Path(f"/proc/{agent.pid}/environ").read_bytes().split(b"\0")
    assert [variable for variable in variables if variable.upper().startswith((b"RAY_", b"OMP_", b"CUDA_"))] == []

    assert boot() == agent  # the second finds the first there, and ends

    (raylet,) = machine.pids_of("raylet/raylet")
    os.kill(raylet, signal.SIGKILL)
    until(lambda: BARE not in [node.node for node in running.engine.nodes()], "Ray does not notice")
    assert is_alive(agent)


def test_what_keeps_an_agent_from_a_node_is_told(running: Running, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    order = BootOrder(
        home=str(tmp_path / "other"),
        files={},
        arguments=(),
        installer=("--offline", "--no-index", f"--find-links={nothing}"),
        use_installed=False,
    )
    running.engine.start_agent(BARE, order)
    until(lambda: running.engine.booted(BARE) is not None, "nothing is told")
    booted = running.engine.booted(BARE)
    assert booted is not None
    assert "pip install" in booted.problem
