from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration" / "origins"))

from origin_harness import running_moto


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """URL of a server that speaks the S3 protocol."""
    with running_moto() as url:
        yield url
