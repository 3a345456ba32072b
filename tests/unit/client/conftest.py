"""The fake control plane, for the tests of `client`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent


def load_fake() -> ModuleType:
    """`fake_operator.py` as a module; tests are not a package, so that it cannot be imported by name."""
    name = "cortex_fake_operator"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / "fake_operator.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def fakes() -> ModuleType:
    """Builders: `fakes.api(...)`, `fakes.change(...)`, `fakes.log_line(...)`."""
    return load_fake()


@pytest.fixture
def fake(fakes: Any) -> Iterator[Any]:
    """A control plane that answers."""
    operator = fakes.FakeOperator()
    yield operator
    operator.close()
