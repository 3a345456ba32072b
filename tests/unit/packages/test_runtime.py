"""Tests of `cortex.packages.runtime`."""

import ast
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import cortex
from cortex.packages import runtime
from cortex.packages.requirements import RequirementLine
from cortex.packages.runtime import (
    BACKENDS,
    REPLICA,
    out_of_range,
    preferred_versions,
    runtime_requirements,
)

PACKAGE = Path(cortex.__file__).parent
OF_REPLICAS = ("replica", "wire", "lib", "errors.py", "ids.py", "version.py", "__init__.py")
"""What a process with users' packages imports of us."""


def named(requirements):
    return {Requirement(line).name: str(Requirement(line).specifier) for line in requirements}


def line(text):
    return RequirementLine(text=text, name=Requirement(text).name, where="requirements.txt:1")


def imported(file: Path) -> set[str]:
    """Top-level names that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_replicas_need_what_their_code_imports_and_nothing_else():
    import sys

    files = [
        f
        for part in OF_REPLICAS
        for f in ([PACKAGE / part] if part.endswith(".py") else (PACKAGE / part).rglob("*.py"))
    ]
    backends = {PACKAGE / "replica" / "backends" / f"{name}.py" for name in BACKENDS}
    names = {name for file in files if file not in backends for name in imported(file)}
    backends_and_extras = {"onnxruntime", "tensorflow", "opentelemetry"}
    assert names - set(sys.stdlib_module_names) - {"cortex"} - backends_and_extras == set(REPLICA)


def test_replicas_get_the_ranges_that_this_cortex_was_made_for():
    found = named(runtime_requirements("onnx"))
    assert found.keys() == {*REPLICA, "onnxruntime"}
    assert all("<" in specifier and ">=" in specifier for specifier in found.values())


def test_ranges_are_written_with_the_lower_bound_first():
    assert "numpy>=1.26,<3" in runtime_requirements("onnx")


@pytest.mark.parametrize("asked", ["onnxruntime-gpu", "onnxruntime"])
def test_of_packages_with_the_same_module_the_one_that_is_asked_for_is_taken(asked):
    assert named(runtime_requirements("onnx", {asked})).keys() == {*REPLICA, asked}


@pytest.mark.parametrize(
    ("installed", "taken"),
    [
        ({"onnxruntime"}, "onnxruntime"),
        ({"onnxruntime", "onnxruntime-gpu"}, "onnxruntime-gpu"),
        (set(), "onnxruntime"),
    ],
)
def test_where_onnxruntime_for_gpus_is_installed_environments_get_it_too(monkeypatch, installed, taken):
    monkeypatch.setattr(runtime, "installed_version", lambda name: "1.0" if name in installed else None)
    assert named(runtime_requirements("onnx")).keys() == {*REPLICA, taken}


def test_each_format_has_its_own_backend():
    found = named(runtime_requirements("tensorflow")).keys() - set(REPLICA)
    assert len(found) == 1
    assert found <= set(BACKENDS["tensorflow"])


def test_what_is_installed_here_is_preferred():
    assert set(REPLICA) <= preferred_versions().keys()


@pytest.mark.parametrize(
    ("text", "conflicts"),
    [
        ("numpy==1.20.0", True),
        ("numpy==1.26.4", False),
        ("numpy==2.*", False),
        ("numpy", False),
        ("numpy<1.20", False),  # only the resolver can tell
        ("pillow==1", False),
        ("numpy==1.20.0; python_version < '3'", False),
    ],
)
def test_a_pin_that_a_replica_cannot_live_with_is_found(text, conflicts):
    found = list(out_of_range([line(text)], ["numpy>=1.26,<3"]))
    assert found == ([(line(text), "numpy>=1.26,<3")] if conflicts else [])
