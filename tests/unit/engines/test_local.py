"""One machine as several nodes, and machines that are met."""

from __future__ import annotations

from cortex.engines.local import LocalEngine, shares
from cortex.ids import DeviceId, NodeId, ReplicaId
from cortex.planning.model import LeaseRequest, LeaseState
from cortex.testing.builders import API, a_node
from cortex.wire.build import Resources
from cortex.wire.reports import Node


def test_each_share_has_all_of_the_cpu_a_part_of_the_memory_and_gpus_of_its_own() -> None:
    machine = a_node(cpu_millis=8000, mem_bytes=900, gpus=4)
    names = [NodeId(f"node-{number}") for number in (1, 2, 3)]
    devices = [[DeviceId("GPU-0"), DeviceId("GPU-3")], [DeviceId("GPU-1")], [DeviceId("GPU-2")]]
    assert shares(machine, names) == tuple(
        Node(node=name, cpu_millis=8000, mem_bytes=300, gpus=len(of_node), devices=tuple(of_node))
        for name, of_node in zip(names, devices, strict=True)
    )


def test_one_share_is_the_machine() -> None:
    machine = a_node(gpus=2)
    assert shares(machine, [machine.node]) == (machine,)


def test_what_waits_for_a_machine_is_placed_as_one_is_met() -> None:
    engine = LocalEngine(shares_cpu=False)
    engine.acquire(LeaseRequest(replica=ReplicaId("a"), api=API, resources=Resources(cpu_millis=500)))
    (waiting,) = engine.leases()
    assert (waiting.state, waiting.reason) == (LeaseState.PENDING, "there is no node")
    engine.meet([a_node(NodeId("n1"), cpu_millis=400)])
    assert [lease.state for lease in engine.leases()] == [LeaseState.PENDING]
    engine.meet([a_node(NodeId("n1"), cpu_millis=800)])
    (granted,) = engine.leases()
    assert (granted.state, granted.node) == (LeaseState.GRANTED, "n1")


def test_a_machine_that_says_the_same_again_changes_nothing() -> None:
    engine = LocalEngine(a_node(NodeId("n1")), shares_cpu=False)
    revision = engine.revision
    engine.meet([a_node(NodeId("n1"))])
    assert engine.revision == revision
