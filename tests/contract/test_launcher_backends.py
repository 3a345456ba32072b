"""
Every backend can be forked: imported, it leaves the launcher one thread, and a child loads, answers and ends in order.

A thread at fork time would hang children now and then, which no other test would notice in time.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration" / "replica"))

from replica_harness import LauncherProcess, running, spec_for

from cortex.wire.launch import ChildExited

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
BACKENDS = {
    "onnx": ("onnxruntime", EXAMPLES / "iris" / "models" / "sklearn.onnx", [1, 2, 3, 4]),
    "tensorflow": (
        "tensorflow",
        EXAMPLES / "iris" / "models" / "tensorflow",
        {"sepal_length": 5.2, "sepal_width": 3.6, "petal_length": 1.4, "petal_width": 0.3},
    ),
}
"""Library, a model, and a sample that it takes."""


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if importlib.util.find_spec(BACKENDS[name][0]) is None:
        pytest.skip(f"{BACKENDS[name][0]} is not installed")
    return name


@pytest.fixture(scope="module")
def launcher(backend: str) -> Iterator[LauncherProcess]:
    """One for all tests of a backend: importing tensorflow takes seconds."""
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    # As careless as an environment can be: threads are what the launcher has to prevent.
    environment = {"OPENBLAS_NUM_THREADS": "4", "OMP_NUM_THREADS": "4", "ORT_DISABLE_TELEMETRY": "0"}
    yield from running(folder, backend=backend, environment=environment)
    shutil.rmtree(folder, ignore_errors=True)


def test_the_launcher_has_one_thread(launcher: LauncherProcess) -> None:
    assert os.listdir(f"/proc/{launcher.pid}/task") == [str(launcher.pid)]


def test_children_answer_and_end_in_order(launcher: LauncherProcess, backend: str) -> None:
    _, model, sample = BACKENDS[backend]
    for number in range(3):
        spec = spec_for(launcher.folder, model, replica=f"t.a.00000000.{number}", runtime=backend, threads=2)
        replica = launcher.fork(spec)
        assert replica.post(sample).status == 200
        assert launcher.fork(spec_for(launcher.folder, model, replica=f"t.b.0.{number}", runtime=backend)).ready()
        replica.drain()
        exited = launcher.link.wait_for(ChildExited, lambda message, pid=replica.pid: message.pid == pid)
        assert (exited.code, exited.signal) == (0, None)
        assert replica.stats().ok == 1
    assert os.listdir(f"/proc/{launcher.pid}/task") == [str(launcher.pid)], "forking has not started any"


def libraries_of(pid: int) -> set[str]:
    """Shared libraries that a process has loaded, extension modules among them."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {path for line in lines if re.search(r"\.so\b", path := line.partition("/")[2])}


def test_children_have_no_library_left_to_load(launcher: LauncherProcess, backend: str) -> None:
    _, model, _ = BACKENDS[backend]
    replica = launcher.fork(spec_for(launcher.folder, model, replica="t.c.0.0", runtime=backend)).ready()
    assert libraries_of(launcher.pid)
    assert libraries_of(replica.pid) <= libraries_of(launcher.pid), "what a child loads, each replica loads for itself"


def test_inspection_answers(launcher: LauncherProcess, backend: str) -> None:
    _, model, _ = BACKENDS[backend]
    report = launcher.link.inspect(spec_for(launcher.folder, model, runtime=backend))
    assert report.problems == ()
    assert report.signature is not None


def test_a_missing_library_is_named_and_used_once_it_is_there(backend: str) -> None:
    library, model, sample = BACKENDS[backend]
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    hidden = folder / "hidden"
    hidden.mkdir()
    (hidden / f"{library}.py").write_text(f"raise ModuleNotFoundError('hidden', name={library!r})")
    for launcher in running(folder, backend=backend, environment={"PYTHONPATH": str(hidden)}):
        spec = spec_for(folder, model, runtime=backend)
        (problem,) = launcher.link.inspect(spec).problems
        assert problem.reference == "backend-missing"
        assert problem.hint.startswith("pip install ")
        (hidden / f"{library}.py").unlink()
        assert launcher.link.inspect(spec).problems == ()
        assert launcher.fork(spec).post(sample).status == 200
        assert os.listdir(f"/proc/{launcher.pid}/task") == [str(launcher.pid)]
    shutil.rmtree(folder, ignore_errors=True)
