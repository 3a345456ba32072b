"""
Processes that handlers started and that outlive their replica: found by descent and by name, and ended.

A replica collects its descendants itself, and its launcher those of a replica that was killed. Of a replica whose
launcher died they become our children, if we were its ancestor. What a former agent's launchers left behind when they
died is nobody's child that we know of: it still bears the mark of the process that started it. That stands in the
mounts of its namespace, which a process cannot shed by a new session or empty variables, and, where no namespace
could be had, in its variables or title.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from cortex import processes
from cortex.processes import ProcessIdentity
from cortex.wire.launch import CHILD_TITLE, PROCESS_VARIABLE, VIEW_SOURCE

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.1
"""A child is a stranger if it is unknown twice in a row: one of our own is known a moment after it was started."""
LOOKS = 5


class Seen(NamedTuple):
    """A process as /proc shows it."""

    pid: int
    session: int
    start_ticks: int
    command: str
    mark: str
    """Which replica's process it names: in its mounts, its variables, or a forked child's title. Empty: none."""


def left_behind(seen: Iterable[Seen], gone: Collection[ProcessIdentity], is_alive: Callable[[str], bool]) -> list[Seen]:
    """
    Those that a replica which is gone has left.

    Args:
        gone: replicas that are known to have ended: whoever is of their session is theirs.
        is_alive: whether the process of a mark runs.
    """
    seen = tuple(seen)
    # A number is not given away again while a session has it: where somebody bears it, the session is that process's.
    sessions = {replica.pid for replica in gone} - {one.pid for one in seen}
    return [one for one in seen if one.session in sessions or (one.mark and not is_alive(one.mark))]


class Strays:
    """
    Ends what replicas left behind.

    Args:
        is_own: whether a child of ours, by pid and command line, is one that we started.
    """

    def __init__(self, is_own: Callable[[int, str], bool]) -> None:
        self._is_own = is_own
        self._sweeping = asyncio.Lock()
        self._gone: set[ProcessIdentity] = set()
        """Those that nobody has looked after yet."""
        self._asked = self._done = 0

    async def end(self, *gone: ProcessIdentity) -> None:
        """End everything that replicas which are gone have left, these and others; returns once nothing is found."""
        self._gone |= set(gone)
        self._asked += 1
        mine = self._asked
        async with self._sweeping:
            if self._done >= mine:
                return  # whoever went before has looked after this call
            self._done = self._asked
            gone, self._gone = tuple(self._gone), set()
            seen_before: set[int] = set()
            for _ in range(LOOKS):
                unknown = self._unknown_children()
                strangers = {pid for pid in unknown & seen_before if _kill(pid)}
                named = await asyncio.to_thread(_sweep, gone)
                if not unknown and not named:
                    return
                if strangers or named:
                    log.warning("ended %d processes that replicas left behind", len(strangers) + len(named))
                seen_before = unknown
                await asyncio.sleep(LOOK_AGAIN_S)

    def _unknown_children(self) -> set[int]:
        found = set()
        for pid in processes.children():
            if processes.is_zombie(pid):
                continue  # collected by whoever knows it, or with all strangers
            command = processes.command_line(pid)
            titled = command.startswith("cortex-") and not command.startswith(CHILD_TITLE)
            if not titled and not self._is_own(pid, command):
                found.add(pid)
        return found


def _kill(pid: int) -> bool:
    """A child of ours: its pid is nobody else's until it is collected."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _sweep(gone: Collection[ProcessIdentity]) -> list[Seen]:
    ended = left_behind(_look(), gone, processes.is_marked_alive)
    for one in ended:
        identity = ProcessIdentity(pid=one.pid, start_ticks=one.start_ticks, boot_id=processes.boot_id())
        processes.send_signal(identity, signal.SIGKILL)
    return ended


def _look() -> list[Seen]:
    """Every process of this user."""
    own = os.getuid()
    marks = {os.readlink("/proc/self/ns/mnt"): ""}
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):  # it may end while we look
            if entry.stat().st_uid != own:
                continue
            fields = Path(entry.path, "stat").read_bytes().rsplit(b")", 1)[1].split()
            if fields[0] in (b"Z", b"X"):
                continue
            command = processes.command_line(int(entry.name))
            mark = _mark_of_mounts(Path(entry.path), marks) or _mark(Path(entry.path), command)
            found.append(Seen(int(entry.name), int(fields[3]), int(fields[19]), command, mark))
    return found


def _mark_of_mounts(entry: Path, known: dict[str, str]) -> str:
    """
    The mark in a process's mount namespace, if it has one.

    Args:
        known: by namespace, those that were read before; added to.
    """
    namespace = os.readlink(entry / "ns" / "mnt")
    if namespace not in known:
        known[namespace] = mark_of_mounts((entry / "mountinfo").read_text(errors="replace"))
    return known[namespace]


def mark_of_mounts(mountinfo: str) -> str:
    """
    Which replica's view a mount namespace has. Empty: none's.

    Source: proc_pid_mountinfo(5): after a `-` come the file system's type, its source and its options. The last view
    counts: a namespace that was made in a replica has that one's as well.
    """
    marks = [
        word.removeprefix(VIEW_SOURCE)
        for line in mountinfo.splitlines()
        for word in line.rpartition(" - ")[2].split(" ")[1:2]
        if word.startswith(VIEW_SOURCE)
    ]
    return marks[-1] if marks else ""


def _mark(entry: Path, command: str) -> str:
    if command.startswith(CHILD_TITLE):
        return command.rpartition(" ")[2]
    if command.startswith("cortex-"):
        return ""
    prefix = f"{PROCESS_VARIABLE}=".encode()
    variables = (entry / "environ").read_bytes().split(b"\0")
    return next((one[len(prefix) :].decode("ascii", "replace") for one in variables if one.startswith(prefix)), "")
