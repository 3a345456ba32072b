from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))
sys.path.insert(0, str(Path(__file__).parents[1] / "integration" / "origins"))

from origin_harness import running_moto
from ray_fixtures import can_have_clusters, ray_calls, ray_cluster

__all__ = ["can_have_clusters", "moto", "ray_calls", "ray_cluster"]


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """URL of a server that speaks the S3 protocol."""
    with running_moto() as url:
        yield url
