from __future__ import annotations

import itertools
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from agent_harness import Node

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """An agent that the tests of a module share; whatever they kill comes back."""
    yield from _running()


@pytest.fixture
def own_node() -> Iterator[Node]:
    """An agent that the test may end."""
    yield from _running()


@pytest.fixture
def hasty_node() -> Iterator[Node]:
    """An agent that lets requests wait for a second only, and a replica hang for ten."""
    yield from _running(hold_timeout_s=1.0, hung_after_s=10.0)


@pytest.fixture
def curt_node() -> Iterator[Node]:
    """An agent that lets who comes to a replica that sleeps wait for 2 seconds only."""
    yield from _running(knock_held_s=2.0)


@pytest.fixture
def api() -> str:
    """A name that no other test has."""
    return f"a{next(_NUMBERS)}"


@pytest.fixture
def names() -> Callable[[], str]:
    return lambda: f"a{next(_NUMBERS)}"


def _running(**options: float) -> Iterator[Node]:
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    node = Node(folder / "h", **options)
    try:
        node.start()
        yield node
    finally:
        node.close()
        shutil.rmtree(folder, ignore_errors=True)
