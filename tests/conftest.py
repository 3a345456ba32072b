from __future__ import annotations

import warnings
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tensorflow() -> Any:
    """TensorFlow, for tests that make or serve its models; where it is not installed they are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, while it is imported
        return pytest.importorskip("tensorflow", reason="needs the extra `tensorflow`")
