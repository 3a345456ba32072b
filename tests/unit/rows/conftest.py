"""Makes builders of graphs importable: tests are no package, so that a module beside them has no name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

for name in ("graph_builder", "saved_model_builder"):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
