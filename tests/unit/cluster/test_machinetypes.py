"""What the name of a type of machine tells."""

from __future__ import annotations

import pytest

from cortex.cluster.machinetypes import GIB, MachineType, is_arm, machine


@pytest.mark.parametrize(
    ("provider", "name", "cpus", "gib", "gpus"),
    [
        ("gcp", "n2-standard-4", 4, 16, 0),
        ("gcp", "n1-standard-8", 8, 30, 0),
        ("gcp", "e2-highmem-2", 2, 16, 0),
        ("gcp", "n2d-highcpu-16", 16, 16, 0),
        ("gcp", "n2-custom-6-20480", 6, 20, 0),
        ("gcp", "g2-standard-24", 24, 96, 2),
        ("gcp", "a2-highgpu-4g", 48, 340, 4),
        ("azure", "Standard_D4s_v5", 4, 16, 0),
        ("azure", "Standard_E8ds_v5", 8, 64, 0),
        ("azure", "Standard_F16s_v2", 16, 32, 0),
        ("azure", "Standard_NC4as_T4_v3", 4, 28, 1),
        ("azure", "Standard_NC48ads_A100_v4", 48, 440, 2),
    ],
)
def test_a_name_tells_cpus_memory_and_gpus(provider: str, name: str, cpus: int, gib: int, gpus: int) -> None:
    assert machine(provider, name) == MachineType(cpus, gib * GIB, gpus)


@pytest.mark.parametrize(
    ("provider", "name"),
    [
        *(("gcp", name) for name in ("e2-medium", "g2-standard-5", "n2-standard-", "z9-mega-4", "m5.xlarge")),
        *(("azure", name) for name in ("Standard_M128s", "Standard_NC5as_T4_v3", "Standard_HB120rs_v3", "D4s")),
    ],
)
def test_of_other_names_nothing_is_claimed(provider: str, name: str) -> None:
    assert machine(provider, name) is None


def test_processors_of_arm_are_told_from_gpus_in_the_name() -> None:
    assert [
        name for name in ("m7g.large", "t4g.small", "c6gn.xlarge", "a1.large", "g5g.xlarge") if not is_arm(name)
    ] == []
    assert [name for name in ("m5.xlarge", "g4dn.xlarge", "g5.xlarge", "p3.2xlarge", "c6i.large") if is_arm(name)] == []
