from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# On a busy machine an example may take its time. CI tries the same examples each time, so that a change is judged by
# itself; everywhere else new ones are found.
settings.register_profile(
    "cortex", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("cortex")


@pytest.fixture(scope="session")
def tensorflow() -> Any:
    """TensorFlow, for tests that make or serve its models; where it is not installed they are skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, while it is imported
        return pytest.importorskip("tensorflow", reason="needs the extra `tensorflow`")
