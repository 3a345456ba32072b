from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from replica_harness import LauncherProcess, Replica, running, spec_for

IRIS = Path(__file__).parents[3] / "examples" / "iris" / "models" / "sklearn.onnx"
OF_THE_SHELL = {"CORTEX_TEST_SECRET": "of the shell", "CORTEX_HOME": "/nowhere"}
"""In the launcher's environment, and not to be found in that of a handler."""
_NUMBERS = itertools.count()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_launcher() -> Iterator[LauncherProcess]:
    """For tests that do nothing to the launcher itself: it takes a second to start."""
    path = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    yield from running(path, environment=OF_THE_SHELL)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def own_launcher(folder: Path) -> Iterator[LauncherProcess]:
    """A launcher that the test may do anything to."""
    yield from running(folder)


@pytest.fixture
def birth(request: pytest.FixtureRequest) -> str:
    """How a replica begins: `forked`, or `kept` by the inspection that loaded it; see `either_birth`."""
    return getattr(request, "param", "forked")


@pytest.fixture
def start(shared_launcher: LauncherProcess, folder: Path, birth: str) -> Iterator[Callable[..., Replica]]:
    """Start a replica of the shared launcher, on the iris model unless told otherwise."""
    started: list[Replica] = []

    def start(
        source: str | None = None,
        *,
        model: Path = IRIS,
        wait: bool = True,
        secrets: dict[str, str] | None = None,
        **fields: Any,
    ) -> Replica:
        fields.setdefault("replica", f"t.a.00000000.{next(_NUMBERS)}")
        spec = spec_for(folder, model, handler_source=source, **fields)
        kept = shared_launcher.keep(spec, secrets=secrets).kept if birth == "kept" else ""
        replica = shared_launcher.fork(spec, secrets=secrets, kept=kept)
        started.append(replica)
        return replica.ready() if wait else replica

    yield start
    for replica in started:
        replica.kill()
