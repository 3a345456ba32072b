"""
The end of a replica, as a handler's code sees it: what an interpreter does at the end of a script, within a time.

In the main thread, in this order: `on_stop`; tasks are cancelled; executors finish; `atexit` with `logging.shutdown`;
open files are flushed; processes are told to end, and killed. Nothing here may keep the replica: whatever raises is
told, and whoever calls has a watchdog for what never returns.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from cortex import processes
from cortex.replica.handler.hooks import LifeHook
from cortex.replica.observation.tracebacks import format_user_traceback, one_line

TERMINATE_S = 1.0
"""Between SIGTERM and SIGKILL for processes that a handler started."""
_LOOK_S = 0.01
_ENDED_BY_CLOSE = (
    *(("tarfile", "TarFile"), ("zipfile", "ZipFile")),
    *(("gzip", "GzipFile"), ("bz2", "BZ2File"), ("lzma", "LZMAFile")),
)
"""Files that are whole only once they were closed; those that may be inside another one come first."""


class Ending:
    """
    Ends users' code, step by step.

    Args:
        loops: the handler's and ours.
        say: takes level and text of what went wrong.
        until_s: when it has to be over, on the monotonic clock.
    """

    def __init__(
        self,
        *,
        on_stop: LifeHook | None,
        loops: Iterable[asyncio.AbstractEventLoop],
        loop: asyncio.AbstractEventLoop,
        project_dir: str | None,
        say: Callable[[str, str], None],
        until_s: float,
    ) -> None:
        self._on_stop = on_stop
        self._loops = tuple(dict.fromkeys((loop, *loops)))
        self._loop = loop
        self._project_dir = project_dir
        self._say = say
        self.until_s = until_s
        self.step = "the handler's end"
        """What it is at, for whoever has to break it off."""

    def run(self) -> None:
        """Do it all. In the main thread, with no loop running."""
        steps: tuple[tuple[str, Callable[[], None]], ...] = (
            ("on_stop", self._call_on_stop),
            ("the end of its tasks", self._cancel_tasks),
            ("its executors", self._finish_executors),
            ("its atexit functions", _run_atexit),
            ("flushing its files", self._flush_files),
            ("its processes", end_descendants),
            ("what multiprocessing cleans up", _end_multiprocessing),
        )
        for self.step, work in steps:
            try:
                work()
            except BaseException as error:
                self._say("ERROR", f"{self.step}: {format_user_traceback(error, self._project_dir)}")

    def _left_s(self) -> float:
        return max(0.0, self.until_s - time.monotonic())

    def _call_on_stop(self) -> None:
        if self._on_stop is not None and not self._loop.is_closed():
            self._on_stop.run(self._loop, timeout_s=self._left_s() / 2)

    def _cancel_tasks(self) -> None:
        for loop in self._loops:
            if loop.is_closed() or loop.is_running():
                continue
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks, timeout=self._left_s() / 2))
            loop.run_until_complete(loop.shutdown_asyncgens())

    def _finish_executors(self) -> None:
        """Let submitted work be done: by half of the time that is left, as more may wait behind it."""
        modules = [sys.modules.get(f"concurrent.futures.{kind}") for kind in ("process", "thread")]
        finish = [module._python_exit for module in modules if module is not None]
        if finish:
            waiting = threading.Thread(target=lambda: [each() for each in finish], name="cortex-executors", daemon=True)
            waiting.start()
            waiting.join(self._left_s() / 2)

    def _flush_files(self) -> None:
        gc.unfreeze()  # what is frozen is not listed
        everything = gc.get_objects()
        files = [one for one in everything if issubclass(type(one), io.IOBase) and not _is_ours(one)]
        self._each(files, _flush)
        for module, name in _ENDED_BY_CLOSE:
            kind = getattr(sys.modules.get(module), name, None)
            if kind is not None:
                self._each([one for one in everything if issubclass(type(one), kind)], lambda file: file.close())
        self._each(files, _flush)  # what that has written

    def _each(self, files: list[Any], work: Callable[[Any], object]) -> None:
        for file in files:
            try:
                work(file)
            except BaseException as error:
                self._say("ERROR", f"{getattr(file, 'name', file)}: {one_line(error)}")


def _run_atexit() -> None:
    """Without what `multiprocessing` registers: that waits for its processes, which are yet to be told to end."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        atexit.unregister(util._exit_function)
    atexit._run_exitfuncs()


def _end_multiprocessing() -> None:
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._exit_function()


def end_descendants(patience_s: float = TERMINATE_S) -> None:
    """SIGTERM to every descendant, SIGKILL to those that are there after `patience_s`. We have to be a subreaper."""
    if not _running_children():
        return
    signal_descendants(signal.SIGTERM)
    until_s = time.monotonic() + patience_s
    while _running_children():
        if time.monotonic() > until_s:
            signal_descendants(signal.SIGKILL)
        if time.monotonic() > until_s + TERMINATE_S:
            return  # in the kernel's hands; our parent goes on
        time.sleep(_LOOK_S)


def signal_descendants(number: signal.Signals) -> None:
    """To each that there is now: those that are started meanwhile are for another call."""
    for pid in processes.descendants():
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _running_children() -> set[int]:
    """Children of ours, after those that have ended were collected."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    return processes.children()


def _is_ours(file: object) -> bool:
    return type(file).__module__.partition(".")[0] == "cortex"


def _flush(file: Any) -> None:
    if not file.closed and file.writable():
        file.flush()
