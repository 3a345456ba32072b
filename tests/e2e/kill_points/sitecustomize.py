"""
Kills processes at the moment when one of ours comes to a given step. Nothing of this is in the product.

Python loads this module in every process that is started with this folder on PYTHONPATH. The folder named by
KILL_POINTS holds `points`, a line `module:name` for each function that may be such a step, and, while somebody waits
for one, `armed.json`: `at` which of them, `when` ("before" it runs, or "after"), a pattern that `says` what it has to
be called with, how many `times` it is passed over first, and whose processes then end, the `victims`. It fires once:
`armed.json` is renamed to `fired.json` by whoever does.
"""

from __future__ import annotations

import functools
import importlib.machinery
import inspect
import json
import os
import re
import signal
import sys
from collections import Counter, defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(os.environ.get("KILL_POINTS", "/nonexistent"))
passed: Counter[int] = Counter()
"""How often the point that was armed at a given time was come to."""


def main() -> None:
    names = defaultdict(list)
    try:
        for line in (FOLDER / "points").read_text().splitlines():
            module, name = line.split(":")
            names[module].append(name)
    except OSError:
        return
    sys.meta_path.insert(0, Finder(names))


class Finder:
    """Has functions of some modules wrapped as soon as there are any."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self._names = names

    def find_spec(self, module: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        names = self._names.get(module)
        spec = importlib.machinery.PathFinder.find_spec(module, path, target) if names else None
        if names and spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_wrap(made: ModuleType) -> None:
                execute(made)
                for name in names:
                    wrap(made, name)

            spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


def wrap(module: ModuleType, name: str) -> None:
    *holders, last = name.split(".")
    holder: Any = functools.reduce(getattr, holders, module)
    function, point = getattr(holder, last), f"{module.__name__}:{name}"
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            come_to(point, "before", args, kwargs)
            result = await function(*args, **kwargs)
            come_to(point, "after", args, kwargs)
            return result

        setattr(holder, last, awaited)
        return

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        come_to(point, "before", args, kwargs)
        result = function(*args, **kwargs)
        come_to(point, "after", args, kwargs)
        return result

    setattr(holder, last, called)


def come_to(point: str, when: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    armed = FOLDER / "armed.json"
    try:
        with armed.open("rb") as stream:
            wanted, since = json.load(stream), os.fstat(stream.fileno()).st_mtime_ns
    except FileNotFoundError:
        return
    if (wanted["at"], wanted["when"]) != (point, when) or not re.search(wanted["says"], f"{args} {kwargs}", re.DOTALL):
        return
    passed[since] += 1
    if passed[since] <= wanted["times"]:
        return
    try:
        armed.rename(armed.with_name("fired.json"))
    except FileNotFoundError:
        return  # somebody else has come to it as well
    home = os.environ["CORTEX_HOME"].partition("/nodes/")[0]  # whichever node of it this is
    titles = tuple(f"cortex-{victim} {home}" for victim in wanted["victims"])
    hit = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if title_of(pid).startswith(titles)]
    for pid in sorted(hit, key=lambda pid: pid == os.getpid()):  # ourselves last
        os.kill(pid, signal.SIGKILL)


def title_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


main()
