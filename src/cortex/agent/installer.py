"""
Runs the package installer, uv, in confined processes: own session, few variables, low priority, a time limit.

Packages that come as source run code of their authors while they are built. It gets no credentials but those that a
user has set for the package index, and it ends with us.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from cortex import oom
from cortex.agent import confined
from cortex.errors import CortexError
from cortex.oom import Rung
from cortex.packages.explanation import without_credentials
from cortex.wire.indexes import is_index_variable, passwords, with_handed_over
from cortex.wire.secrecy import to_mask, without

log = logging.getLogger(__name__)

MAX_OUTPUT_BYTES = 2**20
"""Of what an installer writes, the end is kept."""
HEARTBEAT_S = 2.0
"""Somebody waits at the other end: silence for long would look like an end. And this is how soon it is noticed that
nobody does any more."""
EXIT_GRACE_S = 2.0
"""For a pipe that a stray grandchild keeps open."""

Tell = Callable[[str], None]
"""Told in a few words what is being done; the same words again mean that it still is."""

_INHERITED = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"),
        *("CC", "CXX", "FC", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "LD_LIBRARY_PATH", "LIBRARY_PATH", "CPATH"),
        *("MAKEFLAGS", "PKG_CONFIG_PATH", "CMAKE_PREFIX_PATH", "CARGO_HOME", "RUSTUP_HOME", "CUDA_HOME"),
        *("UV_CACHE_DIR", "UV_CONCURRENT_BUILDS", "UV_CONCURRENT_DOWNLOADS", "UV_CONCURRENT_INSTALLS"),
    }
)
"""Beside those that say where packages come from."""
_OF_PIP = {
    "PIP_INDEX_URL": "UV_INDEX_URL",
    "PIP_EXTRA_INDEX_URL": "UV_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_CERT": "SSL_CERT_FILE",
}
"""What people have set for pip and expect to count; uv's own names win."""
_FIXED = {
    "UV_NO_PROGRESS": "1",
    "UV_PYTHON_DOWNLOADS": "never",
    "NO_COLOR": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_ADDED = {"--find-links": ("UV_FIND_LINKS", ","), "--extra-index-url": ("UV_EXTRA_INDEX_URL", " ")}
"""Options of which there may be several, each with the variable that says the same and what separates its values."""
_TOLD = re.compile(r"^\s*(Downloading|Building|Compiling|Updating) .+$")


class InstallerMissing(CortexError):
    """There is no uv."""

    reference = "installer-missing"
    hint = "pip install uv"

    def __init__(self) -> None:
        super().__init__("packages are installed with uv, which is neither beside this Python nor on PATH")


class InstallerFailed(CortexError):
    """The installer ended with an error, or took too long."""

    reference = "packages-failed"

    def __init__(self, output: str, *, timeout_s: float | None = None) -> None:
        self.output = output
        self.timeout_s = timeout_s
        super().__init__(output if timeout_s is None else f"it took more than {timeout_s:.0f} s")


def find_installer() -> str:
    """
    The path of uv: the one that was installed with us, else the one on PATH.

    Raises:
        InstallerMissing
    """
    try:
        from uv import find_uv_bin

        return os.fspath(find_uv_bin())
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
        if found is None:
            raise InstallerMissing() from None
        return found


def installer_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What of our variables an installer gets: where packages and compilers are, and no credentials of others."""
    inherited = {
        name: value
        for name, value in environ.items()
        if name in _INHERITED or name.startswith("LC_") or (is_index_variable(name) and not name.startswith("PIP_"))
    }
    for theirs, ours in _OF_PIP.items():
        if environ.get(theirs) and ours not in inherited and "UV_DEFAULT_INDEX" not in inherited:
            inherited[ours] = environ[theirs]
    return {**inherited, **_FIXED}


def _merged(arguments: Sequence[str], variables: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """
    Options that are given *and* set by a variable: uv takes one or the other, pip takes both, and so do we.

    All of it goes into the variable: a command line is for everybody on the machine to see.
    """
    merged = dict(variables)
    left: list[str] = []
    given: dict[str, list[str]] = {}
    rest = iter(arguments)
    for argument in rest:
        if argument in _ADDED:
            given.setdefault(argument, []).append(next(rest))
        else:
            left.append(argument)
    for option, values in given.items():
        variable, separator = _ADDED[option]
        merged[variable] = separator.join(filter(None, [*values, variables.get(variable, "")]))
    return left, merged


async def _nothing(_tell: Tell) -> Mapping[str, str] | None:
    return None


class Installer:
    """
    Runs programs that install packages.

    Args:
        environ: of this process; `installer_variables` says what of it is passed on.
        handed_over: where packages come from, as the last deploy's shell had it; asked at each run of uv, and told what
            takes long. Kept no longer than the run takes.
        find: where uv is; asked at each run, so that one installed meanwhile is found.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        handed_over: Callable[[Tell], Awaitable[Mapping[str, str] | None]] = _nothing,
        find: Callable[[], str] = find_installer,
    ) -> None:
        self._environ = dict(environ)
        self._handed_over = handed_over
        self._find = find
        self._running: set[asyncio.subprocess.Process] = set()

    @property
    def pids(self) -> set[int]:
        """Of what runs now: their end is for us to collect."""
        return {process.pid for process in self._running}

    async def uv(self, arguments: Sequence[str], *, cwd: Path, timeout_s: float, tell: Tell, doing: str) -> str:
        """
        Run uv to its end; returns what it wrote.

        Raises:
            InstallerFailed, InstallerMissing
            CortexError: nobody says where packages come from.
        """
        variables = installer_variables(with_handed_over(self._environ, await self._handed_over(tell)))
        arguments, variables = _merged(arguments, variables)
        command = [self._find(), *arguments]
        return await self._run(command, variables, cwd=cwd, timeout_s=timeout_s, tell=tell, doing=doing)

    async def run(self, command: Sequence[str], *, cwd: Path, timeout_s: float, tell: Tell, doing: str) -> str:
        """
        Run another program, confined, to its end; returns what it wrote.

        Args:
            command: an absolute path and arguments; no shell sees them.
            tell: told `doing`, with what is downloaded or built, at least every `HEARTBEAT_S`.

        Raises:
            InstallerFailed: carries everything it wrote.
        """
        variables = installer_variables(self._environ)
        variables = {name: value for name, value in variables.items() if not name.startswith("UV_")}
        return await self._run(command, variables, cwd=cwd, timeout_s=timeout_s, tell=tell, doing=doing)

    async def _run(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        *,
        cwd: Path,
        timeout_s: float,
        tell: Tell,
        doing: str,
    ) -> str:
        tell(doing)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", os.fspath(Path(confined.__file__)), str(os.getpid()), *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=cwd,
            env=variables,
            start_new_session=True,
        )
        oom.step_up(process.pid, by=Rung.NODE, to=Rung.USERS)
        self._running.add(process)
        output = _Output(tell, doing, hidden=to_mask(passwords(variables)))
        reading = asyncio.ensure_future(output.read(process))
        try:
            try:
                async with asyncio.timeout(timeout_s):
                    await process.wait()
            except TimeoutError:
                raise InstallerFailed(output.text, timeout_s=timeout_s) from None
            finally:
                await _end(process)
            await asyncio.wait([reading], timeout=EXIT_GRACE_S)
        finally:
            reading.cancel()
            self._running.discard(process)
        if process.returncode != 0:
            log.error("%s failed, exit code %s:\n%s", doing, process.returncode, without_credentials(output.text))
            raise InstallerFailed(output.text)
        return output.text


class _Output:
    """What a process writes, as it writes it."""

    def __init__(self, tell: Tell, doing: str, *, hidden: Sequence[str] = ()) -> None:
        self._tell = tell
        self._doing = doing
        self._hidden = hidden
        self._kept = bytearray()
        self._line = b""

    @property
    def text(self) -> str:
        return without(self._hidden, self._kept.decode("utf-8", "replace"))

    async def read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        told = self._doing
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    data = await process.stdout.read(65536)
            except TimeoutError:
                self._tell(told)
                continue
            if not data:
                return
            self._kept += data
            del self._kept[:-MAX_OUTPUT_BYTES]
            *lines, self._line = (self._line + data)[-65536:].split(b"\n")
            for line in lines:
                text = line.decode("utf-8", "replace")
                if _TOLD.match(text):
                    told = f"{self._doing}: {without_credentials(without(self._hidden, text.strip()))}"
                    self._tell(told)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill a process that still runs, with everything it has started."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # it may not have its own group yet
        process.kill()
    await asyncio.shield(process.wait())
