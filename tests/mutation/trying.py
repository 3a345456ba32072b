"""Runs unit tests on a changed source, in a copy of the tree and a process of its own that may hang or eat memory."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

Outcome = Literal["killed", "timed out", "survived"]

_COPIED: Final = ("src", "tests", "pyproject.toml")
_MEMORY_BYTES: Final = 16 * 2**30
"""Of addresses: a change may make a list grow for ever."""
_WALL_S: Final = 900.0
"""And one that does nothing for so long to wait for ever, should pytest's own time limit not end it."""


class Run(NamedTuple):
    """How tests ended."""

    code: int
    """As pytest has it; negative: a signal."""
    cpu_s: float


class NoTensorFlow:
    """Leaves out tests that need TensorFlow: its import alone takes longer than all others."""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if "tensorflow" not in getattr(item, "fixturenames", ())]


class Copy:
    """
    A copy of the tree, in which sources are changed.

    Args:
        root: of the tree; nothing is written there but below `folder`.
        folder: where the copy goes; what was there is removed.
        least_cpu_s: what every run may take, however short the tests are.
        cpu_factor: a change that takes so much more cpu loops for ever; cpu, since any machine may stand still.
    """

    def __init__(self, root: Path, folder: Path, *, least_cpu_s: float = 20.0, cpu_factor: float = 5.0) -> None:
        self._folder = folder
        self._least_cpu_s = least_cpu_s
        self._cpu_factor = cpu_factor
        self._cpu_s: dict[str, float] = {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for entry in sorted(root.iterdir()):
            if entry.name not in _COPIED:
                if not entry.name.startswith(".") and entry != folder and entry not in folder.parents:
                    (folder / entry.name).symlink_to(entry)
            elif entry.is_dir():
                shutil.copytree(entry, folder / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(entry, folder / entry.name)
        self._times = 0

    def try_unchanged(self, test: str) -> Run:
        """Run a file of tests on the tree as it is, which also says how long it may take on a changed one."""
        run = self._run([test], limit_s=3600.0, keeps_bytecode=True)
        self._cpu_s[test] = run.cpu_s
        return run

    def try_changed(self, path: str, source: str, stages: Sequence[Sequence[str]]) -> Outcome:
        """
        Run stages of tests until one fails; in each, what took the least first.

        Args:
            stages: of files, each of which was tried unchanged before.
        """
        with self._changed(self._folder / path, source):
            for stage in stages:
                tests = sorted(stage, key=lambda test: self._cpu_s[test])
                run = self._run(tests, self._least_cpu_s + self._cpu_factor * sum(self._cpu_s[test] for test in tests))
                if run.code in (-signal.SIGXCPU, -signal.SIGKILL):
                    return "timed out"
                if run.code != 0:
                    return "killed"
        return "survived"

    @property
    def log(self) -> Path:
        """What the last run printed."""
        return self._folder / "log.txt"

    @contextlib.contextmanager
    def _changed(self, file: Path, source: str) -> Iterator[None]:
        as_it_was = file.read_text()
        try:
            self._write(file, source)
            yield
        finally:
            self._write(file, as_it_was)

    def _write(self, file: Path, source: str) -> None:
        """Each time with a time of its own, as bytecode is taken for that of a source by its time and size alone."""
        file.write_text(source)
        self._times += 1
        os.utime(file, (10**9 + self._times, 10**9 + self._times))

    def _run(self, tests: Sequence[str], limit_s: float, *, keeps_bytecode: bool = False) -> Run:
        process = os.fork()
        if process == 0:
            code = 99
            try:
                self._enter(limit_s, keeps_bytecode)
                code = _pytest(tests)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        try:
            waiting = os.pidfd_open(process)
            try:
                select.select([waiting], [], [], _WALL_S)
            finally:
                os.close(waiting)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process, signal.SIGKILL)  # whatever it has started, too
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)  # it may have been about to begin a group
            _, status, used = os.wait4(process, 0)
        return Run(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime)

    def _enter(self, limit_s: float, keeps_bytecode: bool) -> None:
        """Make a forked process one that tests may run in."""
        os.setpgid(0, 0)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, stands_for in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, stands_for)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit_s), math.ceil(limit_s) + 5))
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(self._folder)
        sys.path.insert(0, str(self._folder / "src"))
        sys.dont_write_bytecode = not keeps_bytecode
        os.environ["PYTHONPATH"] = str(self._folder / "src")
        os.environ["CI"] = "1"  # tests/conftest.py: the same generated examples each time


def warm_up() -> None:
    """Import what tests need, once for all processes; nothing of `cortex`, which they import changed."""
    import hypothesis  # noqa: F401
    import msgspec  # noqa: F401
    import numpy  # noqa: F401
    import orjson  # noqa: F401
    import pytest  # noqa: F401


def _pytest(tests: Sequence[str]) -> int:
    import pytest

    # `warm_up` has imported plugins before it.
    options = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    options += ["-x", "--tb=short", "-p", "no:cacheprovider", "--randomly-seed=1", "--randomly-dont-reorganize"]
    return int(pytest.main([*options, *tests], plugins=[NoTensorFlow()]))
