"""
Kills an agent in the middle of a message to or from its control plane. Nothing of this is in the product.

Python loads this module in every process that is started with this folder on PYTHONPATH; only in agents it does
anything. While the folder named by HALF_MESSAGES holds `armed.json`, that says which `way` ("in" or "out") a message
goes, and a pattern of what it `says`; the agent that comes to it is killed once half of it was read, or was sent. It
fires once: `armed.json` is renamed to `fired.json` by whoever does.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import re
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(os.environ.get("HALF_MESSAGES", "/nonexistent"))
ONLY_AGENTS_IMPORT = "cortex.agent.dialing"


class Finder:
    """Has an agent's messages watched as soon as there may be any."""

    def find_spec(self, module: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if module != ONLY_AGENTS_IMPORT:
            return None
        spec = importlib.machinery.PathFinder.find_spec(module, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_watch(made: ModuleType) -> None:
                execute(made)
                watch()

            spec.loader.exec_module = execute_and_watch  # type: ignore[method-assign]
        return spec


def watch() -> None:
    from asyncio import StreamWriter

    from cortex.wire.framing import LENGTH, FrameReader

    take, write = FrameReader.take, StreamWriter.write

    def take_watched(self: FrameReader, data: bytes, fds: Any = ()) -> Any:
        is_half = self._length is not None and 2 * (len(self._data) + len(data)) >= self._length
        if is_half and is_meant("in", bytes(self._data) + data):
            os.kill(os.getpid(), signal.SIGKILL)
        return take(self, data, fds)

    def write_watched(self: StreamWriter, data: bytes) -> None:
        if is_meant("out", data[LENGTH.size :]):
            os.write(self.get_extra_info("socket").fileno(), data[: LENGTH.size + len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, data)

    FrameReader.take, StreamWriter.write = take_watched, write_watched  # type: ignore[method-assign]


def is_meant(way: str, message: bytes) -> bool:
    armed = FOLDER / "armed.json"
    try:
        wanted = json.loads(armed.read_bytes())
    except FileNotFoundError:
        return False
    if wanted["way"] != way or not re.search(wanted["says"], message.decode("latin-1"), re.DOTALL):
        return False
    try:
        armed.rename(armed.with_name("fired.json"))
    except FileNotFoundError:
        return False  # somebody else has come to it as well
    return True


sys.meta_path.insert(0, Finder())
