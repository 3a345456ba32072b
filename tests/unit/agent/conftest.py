from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex.settings import NodeLayout, Settings


@pytest.fixture
def layout() -> Iterator[NodeLayout]:
    """A home whose path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="cx", dir="/tmp"))
    layout = NodeLayout(folder / "h")
    layout.prepare()
    yield layout
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def settings(layout: NodeLayout) -> Settings:
    return Settings(home=layout.home)
