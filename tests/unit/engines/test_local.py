"""One machine as several nodes."""

from __future__ import annotations

from cortex.engines.local import shares
from cortex.ids import DeviceId, NodeId
from cortex.testing.builders import a_node
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
