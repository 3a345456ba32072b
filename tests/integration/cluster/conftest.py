from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "origins"))

from origin_harness import running_moto


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """URL of a server that speaks the protocols of AWS."""
    with running_moto() as url:
        yield url
