from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "integration" / "origins"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from engines import chosen, left_out

    engine = chosen()
    for item in items:
        if item.path.parent == Path(__file__).parent:
            reason = left_out(item.path.name, getattr(item, "originalname", item.name), engine)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
