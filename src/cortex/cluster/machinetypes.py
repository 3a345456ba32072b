"""What a machine of a cloud has, as far as the name of its type tells. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 1024**3

_GCP_GPU = re.compile(r"(?P<family>a2-highgpu|a2-ultragpu|a3-highgpu)-(?P<gpus>\d+)g")
_GCP_GPU_CPUS = {"a2-highgpu": 12, "a2-ultragpu": 12, "a3-highgpu": 26}
_GCP_GPU_MEM_GIB = {"a2-highgpu": 85, "a2-ultragpu": 170, "a3-highgpu": 234}
_GCP_L4 = {4: 1, 8: 1, 12: 1, 16: 1, 24: 2, 32: 1, 48: 4, 96: 8}
"""GPUs of a g2-standard by its cpus."""
_GCP = re.compile(r"(?P<family>[a-z]\d[a-z]?)-(?P<kind>standard|highmem|highcpu)-(?P<cpus>\d+)")
_GCP_CUSTOM = re.compile(r"(?:[a-z]\d[a-z]?-)?custom-(?P<cpus>\d+)-(?P<mib>\d+)")
_GCP_GIB = {"standard": 4.0, "highmem": 8.0, "highcpu": 1.0}
_GCP_GIB_OF = {("n1", "standard"): 3.75, ("n1", "highmem"): 6.5, ("n1", "highcpu"): 0.9}

_AZURE = re.compile(
    r"Standard_(?P<series>[A-Z]{1,2})(?P<cpus>\d+)(?:-\d+)?(?P<letters>[a-z]*)(?P<gpu>_[A-Z0-9]+)?(_v\d+)?"
)
_AZURE_GIB = {"B": 4.0, "D": 4.0, "E": 8.0, "F": 2.0, "L": 8.0}
_AZURE_GPUS = {
    ("NC", "_T4"): ((4, 1, 28), (8, 1, 56), (16, 1, 110), (64, 4, 440)),
    ("NC", "_A100"): ((24, 1, 220), (48, 2, 440), (96, 4, 880)),
    ("NV", "_A10"): ((36, 1, 440), (72, 2, 880)),
}
"""By series and the GPU in the name: cpus, GPUs, GiB."""

_ARM = re.compile(r"(a1|[a-z]+\d+g[a-z]*)\..+")


@dataclass(frozen=True, slots=True)
class MachineType:
    """
    What one machine of a type has.

    Source:
        Google Cloud, "Machine families resource and comparison guide"; Azure, "Sizes for virtual machines in Azure",
        both as of November 2026.
    """

    cpus: int
    mem_bytes: int
    gpus: int = 0


def machine(provider: str, name: str) -> MachineType | None:
    """
    Return what a machine of gcp or azure has; None where its name does not tell.

    Ray has to be told: what it does not know of a kind of node it never adds one for. On aws it finds out by itself.
    """
    return _gcp(name) if provider == "gcp" else _azure(name)


def is_arm(name: str) -> bool:
    """Whether an instance type of aws has a processor of ARM's, which takes another image: `m7g.large`, `t4g.small`."""
    return _ARM.fullmatch(name) is not None


def _gcp(name: str) -> MachineType | None:
    if match := _GCP_GPU.fullmatch(name):
        gpus, family = int(match["gpus"]), match["family"]
        return MachineType(gpus * _GCP_GPU_CPUS[family], gpus * _GCP_GPU_MEM_GIB[family] * GIB, gpus)
    if match := _GCP_CUSTOM.fullmatch(name):
        return MachineType(int(match["cpus"]), int(match["mib"]) * 1024**2)
    match = _GCP.fullmatch(name)
    if match is None or int(match["cpus"]) < 1:
        return None
    cpus, family, kind = int(match["cpus"]), match["family"], match["kind"]
    mem_bytes = int(cpus * _GCP_GIB_OF.get((family, kind), _GCP_GIB[kind]) * GIB)
    if family == "g2":
        return MachineType(cpus, mem_bytes, _GCP_L4[cpus]) if cpus in _GCP_L4 else None
    return MachineType(cpus, mem_bytes)


def _azure(name: str) -> MachineType | None:
    match = _AZURE.fullmatch(name)
    if match is None:
        return None
    cpus, series = int(match["cpus"]), match["series"]
    if match["gpu"] is not None or series.startswith("N"):
        rows = _AZURE_GPUS.get((series, match["gpu"] or ""), ())
        return next((MachineType(cpus, gib * GIB, gpus) for has, gpus, gib in rows if has == cpus), None)
    gib = _AZURE_GIB.get(series[0])
    if gib is None or cpus < 1 or len(series) > 2:
        return None
    return MachineType(cpus, int(cpus * gib * GIB))
