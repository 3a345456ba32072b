from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from origin_harness import S3, Door, running_moto


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """URL of a server that speaks the S3 protocol."""
    with running_moto() as url:
        yield url


@pytest.fixture
def s3(moto: str) -> S3:
    """A bucket of its own."""
    return S3(moto)


@pytest.fixture
def door(moto: str) -> Iterator[Door]:
    with Door(moto) as door:
        yield door
