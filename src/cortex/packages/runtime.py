"""What a replica itself needs, with the ranges that this Cortex was made for: read from its own metadata, once."""

from __future__ import annotations

import platform
import sys
from collections.abc import Collection, Iterable, Iterator
from functools import cache
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from cortex.errors import CortexError
from cortex.packages.requirements import OURS, RequirementLine
from cortex.wire.build import Runtime

REPLICA = ("httptools", "msgspec", "numpy", "orjson", "setproctitle", "uvloop")
"""What `cortex.replica`, `cortex.wire` and `cortex.lib` import. A test starts a launcher with these and a backend."""

BACKENDS: dict[Runtime, tuple[str, ...]] = {
    "onnx": ("onnxruntime", "onnxruntime-gpu"),
    "tensorflow": ("tensorflow-cpu", "tensorflow", "tensorflow-gpu"),
}
"""
Packages that a runtime stands on, and that hold the same module: an installation gets one of them. The first is the
default; later ones use GPUs too.
"""


class RuntimeUnknown(CortexError):
    """This Cortex was not installed as a package, so nobody knows what its replicas need."""

    reference = "runtime-unknown"
    hint = "install Cortex with pip or uv; of a source tree: pip install --editable ."

    def __init__(self, package: str) -> None:
        self.package = package
        super().__init__(f"the metadata of {OURS} does not say which {package} replicas need")


def runtime_requirements(runtime: Runtime, asked: Collection[str] = ()) -> tuple[str, ...]:
    """
    What replicas of a runtime need, as lines of a requirements.txt.

    Args:
        asked: names that the user's requirements have, normalised: of several packages that the runtime can stand
            on, the one that is among them is taken, else the one that is installed here, for GPUs if several are.

    Raises:
        RuntimeUnknown
    """
    ranges = _ranges()
    candidates = BACKENDS[runtime]
    here = next((name for name in reversed(candidates) if installed_version(name) is not None), candidates[0])
    backend = next((name for name in candidates if name in asked), here)
    conditions = dict(ranges)
    conditions.setdefault(backend, _any_of(candidates, ranges))
    return tuple(f"{name}{_range_of(name, conditions)}" for name in sorted({*REPLICA, backend}))


def preferred_versions() -> dict[str, str]:
    """What is installed here of what replicas need: known to work, and known to be in the installer's cache."""
    names = {*REPLICA, *(name for names in BACKENDS.values() for name in names)}
    return {name: version for name in sorted(names) if (version := installed_version(name)) is not None}


def python_here() -> str:
    """`3.11`: packages are installed for the Python that runs us."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def platform_here() -> str:
    """`linux-x86_64`."""
    return f"{sys.platform}-{platform.machine()}"


def out_of_range(lines: Iterable[RequirementLine], needed: Iterable[str]) -> Iterator[tuple[RequirementLine, str]]:
    """Requirements that pin a version which what is needed rules out, each with the need in question."""
    by_name = {canonicalize_name(need.name): need for need in map(Requirement, needed)}
    for line in lines:
        need = by_name.get(canonicalize_name(line.name))
        if need is None:
            continue
        requirement = Requirement(line.text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        pins = [s.version for s in requirement.specifier if s.operator == "==" and not s.version.endswith(".*")]
        if any(not need.specifier.contains(pin, prereleases=True) for pin in pins):
            yield line, f"{need.name}{_shown(need.specifier)}"


def _range_of(name: str, ranges: dict[str, str]) -> str:
    if name not in ranges:
        raise RuntimeUnknown(name)
    return ranges[name]


def _any_of(candidates: tuple[str, ...], ranges: dict[str, str]) -> str:
    found = next((ranges[name] for name in candidates if name in ranges), None)
    if found is None:
        raise RuntimeUnknown(candidates[0])
    return found


@cache
def _ranges() -> dict[str, str]:
    """Version range by package, of everything that this distribution depends on, its extras included."""
    try:
        lines = metadata.requires(OURS) or []
    except metadata.PackageNotFoundError:
        return {}
    ranges: dict[str, str] = {}
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        extras = ("", "tensorflow", "gpu")
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            ranges.setdefault(canonicalize_name(requirement.name), _shown(requirement.specifier))
    return ranges


def _shown(specifiers: SpecifierSet) -> str:
    """`>=1.26,<3`, the lower bound first."""
    return ",".join(str(one) for one in sorted(specifiers, key=lambda one: (Version(one.version), one.operator)))


@cache
def installed_version(name: str) -> str | None:
    """Of a package that is installed here."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
