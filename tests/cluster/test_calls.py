"""What is said of a cluster that will not have us, and what becomes of calls that are cut off; on a real one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from ray_cluster import RayCluster, variables_of_nodes
from ray_fixtures import calls_of

from cortex.engines.ray import calls as calls_module
from cortex.engines.ray.calls import RayCalls
from cortex.engines.ray.errors import (
    ClusterTokenRefused,
    ClusterUnreachable,
    ClusterVersionsDiffer,
    NotOnTheCluster,
)
from cortex.engines.ray.messages import Bundle, NewGroup, Selector
from cortex.errors import RetryLater

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]


def other_calls(cluster: RayCluster, folder: Path, **different: object) -> RayCalls:
    arguments: dict[str, object] = {
        "address": cluster.address,
        "beside": cluster.head.address,
        "namespace": "other",
        "token_file": cluster.token_file,
        "output": folder / "driver.out",
        "environ": os.environ,
        "before": cluster.head.command(),
    }
    return RayCalls(**{**arguments, **different})  # type: ignore[arg-type]


def test_an_address_where_nobody_listens_is_named(ray_cluster: RayCluster, tmp_path: Path) -> None:
    calls = other_calls(ray_cluster, tmp_path, address=f"{ray_cluster.head.address}:1")
    with pytest.raises(ClusterUnreachable, match=r":1 cannot be reached: .*refused"):
        calls.look()
    assert calls.pid is None


def test_an_address_that_answers_nothing_is_named(ray_cluster: RayCluster, tmp_path: Path) -> None:
    with socket.create_server((ray_cluster.network.our_address, 0)) as listener:
        address = f"{ray_cluster.network.our_address}:{listener.getsockname()[1]}"
        with pytest.raises(ClusterUnreachable, match="cannot be reached"):
            other_calls(ray_cluster, tmp_path, address=address).look()


@pytest.mark.parametrize("address", ["nowhere", "head:", "head:x", "no.such.host.invalid:6379"])
def test_what_is_no_address_is_named(ray_cluster: RayCluster, tmp_path: Path, address: str) -> None:
    with pytest.raises(ClusterUnreachable, match=f"{address} cannot be reached"):
        other_calls(ray_cluster, tmp_path, address=address).look()


def test_a_wrong_token_is_named(ray_cluster: RayCluster, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 64)
    with pytest.raises(ClusterTokenRefused, match=str(wrong)):
        other_calls(ray_cluster, tmp_path, token_file=wrong).look()


def test_no_token_is_named(ray_cluster: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(ClusterTokenRefused, match="without a token"):
        other_calls(ray_cluster, tmp_path, token_file=None).look()


def test_a_machine_without_a_raylet_is_named(ray_cluster: RayCluster, tmp_path: Path) -> None:
    with pytest.raises(NotOnTheCluster, match=r"has the address 127\.0\.0\.1"):
        other_calls(ray_cluster, tmp_path, beside="127.0.0.1").look()


SET_VERSIONS = """
import json, sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
about = json.loads(client.internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster"))
about.update(json.loads(sys.argv[2]))
client.internal_kv_put(b"CLUSTER_METADATA", json.dumps(about).encode(), True, namespace=b"cluster")
"""


@pytest.fixture
def set_versions(ray_cluster: RayCluster) -> Callable[[str], None]:
    def set_(versions: str) -> None:
        command = [sys.executable, "-c", SET_VERSIONS, ray_cluster.address, versions]
        subprocess.run(command, env=variables_of_nodes(ray_cluster.token_file), cwd="/", check=True)

    return set_


def test_another_python_or_ray_is_named_with_both_versions(
    ray_cluster: RayCluster, tmp_path: Path, set_versions: Callable[[str], None]
) -> None:
    import ray

    ours = ".".join(map(str, sys.version_info[:3]))
    set_versions('{"ray_version": "2.1.0", "python_version": "3.9.1"}')
    try:
        with pytest.raises(ClusterVersionsDiffer) as caught:
            other_calls(ray_cluster, tmp_path).look()
    finally:
        set_versions(f'{{"ray_version": "{ray.__version__}", "python_version": "{ours}"}}')
    assert (caught.value.ours, caught.value.theirs) == (
        f"Ray {ray.__version__} on Python {ours}",
        "Ray 2.1.0 on Python 3.9.1",
    )


# ---- calls that are cut off -----------------------------------------------------------------------------------------


def test_a_process_that_was_killed_is_replaced_and_what_it_made_is_still_there(
    ray_cluster: RayCluster, tmp_path: Path
) -> None:
    calls = calls_of(ray_cluster, tmp_path, namespace="killed")
    raylet = next(node.raylet for node in calls.look().nodes if node.name == "n2")
    group = NewGroup(name="cx:one:1", bundle=Bundle(cpus=0.5), selector=Selector(raylets=(raylet,)))
    calls.change(remove=[], make=[group])
    before = calls.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    with pytest.raises(RetryLater, match="has ended"):
        calls.look()
    (found,) = calls.look().groups
    assert (found.name, found.bundle, found.selector) == (group.name, group.bundle, group.selector)
    assert calls.pid != before
    calls.change(remove=[found.id], make=[])
    assert calls.look().groups == ()
    calls.close()


def test_a_process_that_hangs_is_killed_and_replaced(
    ray_cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of(ray_cluster, tmp_path, namespace="hung")
    calls.look()
    before = calls.pid
    assert before is not None
    os.kill(before, signal.SIGSTOP)
    monkeypatch.setattr(calls_module, "CALL_TIMEOUT_S", 1.0)
    with pytest.raises(RetryLater, match="has not answered for 1 s"):
        calls.look()
    monkeypatch.undo()
    assert calls.look().groups == ()
    assert calls.pid != before
    assert not Path(f"/proc/{before}").exists()
    calls.close()


def test_the_process_ends_with_whoever_asks(ray_cluster: RayCluster, tmp_path: Path) -> None:
    calls = calls_of(ray_cluster, tmp_path, namespace="ended")
    calls.look()
    pid = calls.pid
    calls.close()
    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(RetryLater, match="closed"):
        calls.look()
