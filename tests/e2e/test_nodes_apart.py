"""Nodes of other machines: each in a network namespace of its own, over mutual TLS."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from apart import Apart, Node, nodes_apart, unusable
from contract_harness import (
    DEADLINE_S,
    Connection,
    Home,
    Traffic,
    eventually,
    free_port,
    rows_model,
    running_home,
    write_project,
)

from cortex import certificates
from cortex.agent.dialing import RefusedByControlPlane, dial_tls, hang_up, introduce
from cortex.controlplane.bundles import bundle, lay_down
from cortex.ids import NodeId
from cortex.settings import ControlLayout, NodeLayout
from cortex.tls import TlsIdentity
from cortex.version import __version__
from cortex.wire.link import NEEDS, PROTOCOL, Hello
from cortex.wire.membership import Members, Membership, written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
EXAMPLE = Path(__file__).parents[2] / "examples" / "iris"
APIS = ("sklearn", "xgboost", "pytorch", "raw")
ROW = b"[1, 2, 3, 4]"
YAML = """
    - {kind: deployment, name: d}
    - {kind: api, name: one, model: m.onnx, compute: {cpu: 20m, max_replicas: 1}}
    - {kind: api, name: two, model: m.onnx, compute: {cpu: 20m, min_replicas: 2, max_replicas: 2}}
"""
CLIENTS, PER_S = 8, 100.0
"""At each of two doors."""


@pytest.fixture
def apart() -> Iterator[Apart]:
    if reason := unusable():
        pytest.skip(reason)
    with nodes_apart() as apart:
        apart.started()
        yield apart


def answer_of(node: Node, path: str, body: bytes) -> Any:
    """What a door answers; None while it has no replica for it."""
    with Connection(node.membership.port, host=node.host) as connection:
        answer = connection.ask("POST", path, body, {"content-type": "application/json"})
    return answer.json if answer.status == 200 else None


def deployed(apart: Apart) -> None:
    apart.home.deploy(write_project(apart.home.path.parent / "p", {"cortex.yaml": YAML, "m.onnx": rows_model()}))


def counted(apart: Apart, api: str) -> int:
    found: int = next(
        one["requests"]["2xx"] for one in apart.home.cortex("get", "-o", "json").json if one["name"] == api
    )
    return found


def test_the_example_is_deployed_unchanged_and_every_door_serves_every_api(apart: Apart) -> None:
    apart.home.deploy(EXAMPLE)
    sample = (EXAMPLE / "sample.json").read_bytes()
    for node in apart.nodes:
        for api in APIS:
            body = b"[5.2, 3.6, 1.4, 0.3]" if api == "raw" else sample
            eventually(lambda: answer_of(node, f"/iris/{api}", body), f"{node.name} serves {api}")  # noqa: B023
    told = apart.told()
    assert [(node["name"], node["door"], node["home"]) for node in told] == [
        (node.name, f"http://{node.host}:{node.membership.port}", None) for node in apart.nodes
    ]
    assert sum(node["replicas"] for node in told) == len(APIS)
    eventually(lambda: {api: counted(apart, api) for api in APIS} == dict.fromkeys(APIS, 3), "each request is counted")


def victim_of(apart: Apart) -> tuple[Node, list[Node]]:
    """A node with a replica of the api that has two, and the others."""
    replicas = {node["name"]: node["replicas"] for node in apart.told()}
    victim = next(node for node in reversed(apart.nodes) if replicas[node.name])
    return victim, [node for node in apart.nodes if node is not victim]


def agent_of(node: Node) -> bytes:
    """Which process it is."""
    return node.layout.agent_file.read_bytes()


def traffic(node: Node) -> Traffic:
    return Traffic(node.membership.port, "/d/two", ROW, clients=CLIENTS, per_s=PER_S, host=node.host)


def served(*clients: Traffic) -> int:
    return sum(client.outcomes["200"] for client in clients)


def test_a_node_that_is_killed_fails_nothing_at_the_other_doors_and_is_used_again(apart: Apart) -> None:
    deployed(apart)
    victim, others = victim_of(apart)
    with traffic(others[0]) as first, traffic(others[1]) as second:
        first.answered(100)
        second.answered(100)
        victim.kill()
        first.answered(200)
        second.answered(200)
        eventually(lambda: apart.states()[victim.name] == "gone", "it is found to be lost")
        first.answered(100)
        second.answered(100)
        victim.start()
        eventually(apart.is_whole, "it is used again")
        first.answered(100)
        second.answered(100)
    assert {*first.outcomes, *second.outcomes} == {"200"}, (first.outcomes, second.outcomes)
    assert max(first.longest_wait_s, second.longest_wait_s) < DEADLINE_S / 2
    eventually(lambda: answer_of(victim, "/d/two", ROW), "its door serves again")
    answered, in_a_second = served(first, second) + 1, round(2 * 2 * PER_S)
    eventually(lambda: answered - in_a_second <= counted(apart, "two"), "nothing is missing but for its last second")
    assert counted(apart, "two") <= answered + 2 * CLIENTS, "what is delivered twice is no more than was under way"


def test_a_node_that_is_cut_off_is_left_out_by_the_other_doors_and_is_used_again(apart: Apart) -> None:
    deployed(apart)
    victim, others = victim_of(apart)
    with traffic(others[0]) as first, traffic(others[1]) as second:
        first.answered(100)
        second.answered(100)
        victim.cut_off()
        first.answered(200)
        second.answered(200)
        eventually(lambda: apart.states()[victim.name] == "gone", "it is found to be lost")
        agent = agent_of(victim)
        first.answered(100)
        second.answered(100)
        victim.mend()
        eventually(apart.is_whole, "it is used again")
        assert agent_of(victim) == agent, "nothing of it had to be started anew"
        first.answered(100)
        second.answered(100)
    outcomes = first.outcomes + second.outcomes
    assert outcomes.keys() <= {"200", "dropped"}, outcomes
    assert outcomes["dropped"] <= CLIENTS, "those alone whose connection was just being made: docs/limits.md"
    assert max(first.longest_wait_s, second.longest_wait_s) < DEADLINE_S / 2
    eventually(lambda: answer_of(victim, "/d/two", ROW), "its door serves again")
    answered = served(first, second) + 1
    eventually(lambda: answered <= counted(apart, "two"), "all that it had counted is delivered")
    assert counted(apart, "two") <= answered + 2 * CLIENTS, "what is delivered twice is no more than was under way"


def test_nodes_serve_without_a_control_plane_and_come_back_to_the_one_that_is_started_again(apart: Apart) -> None:
    deployed(apart)
    record = apart.home.control_plane()
    assert record is not None
    before = [agent_of(node) for node in apart.nodes]
    os.kill(record.pid, signal.SIGKILL)
    eventually(lambda: apart.home.control_plane() is None, "it has ended")
    for node in apart.nodes:
        for api in ("one", "two"):
            assert answer_of(node, f"/d/{api}", ROW) == [[[10.0]]], (node.name, api)
    apart.home.cortex("up")
    eventually(apart.is_whole, "all nodes have come back")
    for node in apart.nodes:
        assert answer_of(node, "/d/one", ROW) == [[[10.0]]]
    assert [agent_of(node) for node in apart.nodes] == before, "none of them was started anew"
    eventually(lambda: counted(apart, "one") == 6, "what was counted meanwhile is delivered")
    apart.home.cortex("down")
    for node in apart.nodes:
        eventually(lambda: node.pids() == [], f"{node.name} was told to end")  # noqa: B023


# ---- who is let in --------------------------------------------------------------------------------------------------

SOMEBODY = Membership(node=NodeId("n1"), host="127.0.0.1", port=1, peer_port=2, control_planes=("127.0.0.1:9",))
HELLO = Hello(node=SOMEBODY.node, agent="a", way=NEEDS)


@pytest.fixture(scope="module")
def listening() -> Iterator[tuple[Home, int]]:
    """A control plane of no node, and the port where agents dial in."""
    with running_home() as home:
        layout, port = ControlLayout(home.path), free_port()
        layout.prepare()
        layout.members_file.write_bytes(written(Members(bind="127.0.0.1", port=port)))
        home.cortex("up")
        yield home, port


def brought(home: Home, folder: Path, membership: Membership = SOMEBODY) -> NodeLayout:
    """What a node of this control plane has."""
    lay_down(folder, bundle(ControlLayout(home.path), membership, now_wall_s=time.time()))
    return NodeLayout(folder)


def dial(port: int, node: NodeLayout, hello: Hello = HELLO) -> None:
    """Come with what a node has."""
    identity = TlsIdentity(authority=node.authority, certificate=node.certificate, key=node.certificate)

    async def story() -> None:
        async with asyncio.timeout(DEADLINE_S):
            _reader, writer = await introduce(dial_tls("127.0.0.1", port, identity), hello)
            await hang_up(writer)

    asyncio.run(story())


def log_of(home: Home) -> str:
    return (ControlLayout(home.path).logs / "controlplane.log").read_text()


def test_an_agent_with_its_bundle_is_let_in_also_one_of_the_protocol_before(
    listening: tuple[Home, int], tmp_path: Path
) -> None:
    home, port = listening
    node = brought(home, tmp_path / "n")
    dial(port, node)
    dial(port, node, msgspec.structs.replace(HELLO, version="0.0.9", protocol=PROTOCOL - 1))


def test_an_agent_of_another_version_is_turned_away_with_both_named(
    listening: tuple[Home, int], tmp_path: Path
) -> None:
    home, port = listening
    with pytest.raises(RefusedByControlPlane, match=rf"Cortex 9\.9\.9 .* its control plane Cortex {__version__}"):
        dial(port, brought(home, tmp_path / "n"), msgspec.structs.replace(HELLO, version="9.9.9", protocol=99))


def test_an_agent_under_the_name_of_another_node_is_turned_away_with_both_named(
    listening: tuple[Home, int], tmp_path: Path
) -> None:
    home, port = listening
    node = brought(home, tmp_path / "n", msgspec.structs.replace(SOMEBODY, node=NodeId("n2")))
    with pytest.raises(RefusedByControlPlane, match="says that it is of node n1, and its certificate is of n2"):
        dial(port, node)


def test_an_agent_of_another_cluster_is_not_let_in_and_tells_nothing(
    listening: tuple[Home, int], tmp_path: Path
) -> None:
    home, port = listening
    node, other = brought(home, tmp_path / "n"), certificates.make_authority(time.time())
    node.certificate.write_bytes(certificates.issue(other, SOMEBODY.node, time.time()))
    with pytest.raises(OSError):
        dial(port, node)
    eventually(lambda: "CERTIFICATE_VERIFY_FAILED" in log_of(home), "the control plane says why")
    node = brought(home, tmp_path / "n")
    node.authority.write_bytes(other.certificate)
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        dial(port, node)


def test_an_agent_whose_certificate_has_expired_is_not_let_in(listening: tuple[Home, int], tmp_path: Path) -> None:
    home, port = listening
    layout, node = ControlLayout(home.path), brought(home, tmp_path / "n")
    authority = certificates.Authority(layout.authority_certificate.read_bytes(), layout.authority_key.read_bytes())
    long_ago_s = time.time() - certificates.NODE_LIFE_S - 1
    node.certificate.write_bytes(certificates.issue(authority, SOMEBODY.node, long_ago_s))
    with pytest.raises(OSError):
        dial(port, node)
    eventually(lambda: "certificate has expired" in log_of(home), "the control plane says why")
