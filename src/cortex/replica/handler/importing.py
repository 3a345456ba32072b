"""
Under which name a handler's file is imported, and how the processes that it starts find it under the same name.

`pickle` names a function by its module. A worker that `spawn`, `forkserver` or joblib starts is a fresh interpreter: it
imports that module from `sys.path`, where a file that we leave in a folder of the replica's own stands for it. Standard
library only, since such a worker imports this.
"""

from __future__ import annotations

import os
import re
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

_SHIM = """\
# Made by Cortex. Under this name other processes find what {file} defines.
from cortex.replica.handler.importing import run

run({file!r}, globals())
"""


def module_name(api: str) -> str:
    """One that nothing else has: `handlers/sklearn_iris.py` must not be in the way of `import sklearn_iris`."""
    return "cortex_handler_" + re.sub(r"\W", "_", api)


def leave_shim(folder: str, file: str, api: str) -> None:
    """Let whoever has `folder` on its `sys.path` import the handler under its name. Raises OSError."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with open(os.path.join(folder, module_name(api) + ".py"), "w", encoding="utf-8") as shim:
        shim.write(_SHIM.format(file=file))


def run(file: str, namespace: dict[str, Any]) -> None:
    """Run a handler's file as the module whose namespace this is."""
    keep_out_of_the_way(file)
    namespace["__file__"] = file
    with open(file, "rb") as source:
        exec(compile(source.read(), file, "exec"), namespace)


def keep_out_of_the_way(file: str) -> None:
    """Have `import requests` find the package, also for a handler `requests.py` in the first folder of `sys.path`."""
    name = os.path.basename(file).removesuffix(".py")
    if name.isidentifier() and not any(isinstance(finder, _Elsewhere) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Elsewhere(name, os.path.dirname(file)))


class _Elsewhere:
    """Finds one top-level module anywhere but in one folder. What is nowhere else is left to the other finders."""

    def __init__(self, name: str, folder: str) -> None:
        self._name = name
        self._folder = folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self._name or path is not None:
            return None
        elsewhere = [entry for entry in sys.path if os.path.abspath(entry) != self._folder]
        found = PathFinder.find_spec(name, elsewhere)
        return found if found is not None and found.origin is not None else None  # without: a folder of that name
