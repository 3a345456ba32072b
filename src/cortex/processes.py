"""
Which process is which: a pid alone may be recycled, so a process is known by pid, start time and boot.

Reads /proc; signals only through a pidfd that was checked after it was opened, so that a recycled pid is never hit.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import secrets
import select
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec

from cortex import oom
from cortex.backoff import Backoff
from cortex.oom import Rung

if TYPE_CHECKING:
    import resource
    import socket
    from subprocess import Popen

log = logging.getLogger(__name__)

R = TypeVar("R")


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Unmistakable for one process of one boot."""

    pid: int
    start_ticks: int
    """Clock ticks between boot and the process's start: field 22 of /proc/<pid>/stat."""
    boot_id: str


class ControlPlaneRecord(ProcessIdentity, frozen=True, kw_only=True):
    """`controlplane.json`: the running control plane and where it answers. One flat JSON object."""

    operator_port: int
    host: str
    port: int
    """The ingress's port."""
    version: str = ""
    environment: str = "local"


@cache
def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """
    When a process started, in clock ticks since boot; None when there is no such process, or it is a zombie.

    Source: proc(5): field 22 of /proc/pid/stat is starttime.
    """
    fields = _stat(pid)
    return None if not fields or fields[0] in (b"Z", b"X") else int(fields[19])


def is_zombie(pid: int) -> bool:
    """Whether a process has ended and its parent has yet to collect it."""
    return _stat(pid)[:1] == [b"Z"]


def _stat(pid: int) -> list[bytes]:
    """Fields of /proc/pid/stat after the last `)`, which start with number 3 (state); empty without such a process."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
    except (OSError, IndexError):
        return []


class Pulse:
    """
    Why a process of ours does not answer, as far as the kernel can tell: looked at now and then while it should.

    Time alone says little on a busy machine, where a process that is well may get no turn for seconds. But one whose
    turn has not come is ready to run, or waits for a disk. One that only sleeps, and has used no processor time since,
    has nothing on the way that could wake it up: it hangs.

    Args:
        who: for the log.
        hangs_after_s: of sleep, while it owes something; infinity: it never does.
    """

    STOPPED_LOOKS = 2
    """In a row: some tools stop a process for a moment."""

    def __init__(self, identity: ProcessIdentity, who: str, *, hangs_after_s: float = math.inf) -> None:
        self.identity = identity
        self._who = who
        self._hangs_after_s = hangs_after_s
        self._stopped_looks = 0
        self._used_ticks = -1
        self._still_since_s = 0.0

    def look(self, now_s: float, *, owes: bool = True) -> Literal["well", "stopped", "hung"]:
        """
        Look at it.

        Args:
            owes: it has something to do, so that it should not sleep.
        """
        fields = _stat(self.identity.pid)
        if len(fields) < 20 or int(fields[19]) != self.identity.start_ticks:
            return "well"  # it has ended, which others see to
        state, used_ticks = fields[0], int(fields[11]) + int(fields[12])
        if not owes or state != b"S" or used_ticks != self._used_ticks:
            self._used_ticks, self._still_since_s = used_ticks, now_s
        self._stopped_looks = self._stopped_looks + 1 if state == b"T" else 0
        if self._stopped_looks >= self.STOPPED_LOOKS:
            return "stopped"
        return "hung" if now_s - self._still_since_s >= self._hangs_after_s else "well"

    def hangs(self, now_s: float, *, owes: bool = True) -> bool:
        """Look at it, and have it go on if somebody has stopped it."""
        found = self.look(now_s, owes=owes)
        if found == "stopped":
            log.warning("%s was stopped, pid %s: it goes on", self._who, self.identity.pid)
            send_signal(self.identity, signal.SIGCONT)
        return found == "hung"


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a running process; None when there is none with this pid."""
    ticks = start_ticks(pid)
    return None if ticks is None else ProcessIdentity(pid=pid, start_ticks=ticks, boot_id=boot_id())


def own_identity() -> ProcessIdentity:
    identity = identify(os.getpid())
    assert identity is not None
    return identity


def is_alive(identity: ProcessIdentity) -> bool:
    return identity.boot_id == boot_id() and start_ticks(identity.pid) == identity.start_ticks


def open_pidfd(identity: ProcessIdentity) -> int | None:
    """A descriptor of exactly this process, readable once it ends; None when it is gone. The caller closes it."""
    if identity.boot_id != boot_id():
        return None
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if start_ticks(identity.pid) != identity.start_ticks:
        os.close(pidfd)
        return None
    return pidfd


class WatchedProcess:
    """
    A process of ours whose end the event loop notices, child or not. To be closed, unless it ends first.

    Args:
        who: for the log.
        on_end: called once, by the event loop, when it ends while it is watched.
    """

    def __init__(self, identity: ProcessIdentity, who: str, on_end: Callable[[], None]) -> None:
        self.identity = identity
        self._on_end = on_end
        self._pulse = Pulse(identity, who)
        self._pidfd: int | None = None

    @property
    def is_watched(self) -> bool:
        return self._pidfd is not None

    def watch(self) -> bool:
        """
        Begin, or go on. False: it has ended already.

        Raises:
            OSError: we are out of descriptors.
        """
        import asyncio  # only processes that have an event loop need it

        if self._pidfd is None:
            self._pidfd = open_pidfd(self.identity)
            if self._pidfd is None:
                return False
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._pidfd, self._ended)
        return True

    def close(self) -> None:
        """Its end is no affair of ours any more."""
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def has_ended(self) -> bool:
        """As of now, and not as of the last turn of the event loop. False while it is not watched."""
        return self._pidfd is not None and has_ended(self._pidfd)

    def signal(self, number: signal.Signals) -> None:
        """Exactly this process; one that has ended is not there to be signalled."""
        with suppress(OSError):
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                send_signal(self.identity, number)

    def have_go_on(self, now_s: float) -> None:
        """If somebody has stopped it. To be called every now and then."""
        self._pulse.hangs(now_s)

    def _ended(self) -> None:
        self.close()
        self._on_end()


PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
"""Source: prctl(2)."""


def become_subreaper() -> None:
    """
    Become the parent of every descendant of ours whose parent ends, in place of the system's first process.

    Nothing else finds all of them: a process may leave its group, its session and its environment behind, but not this.
    """
    import ctypes  # only long-lived processes of ours need it

    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent() -> None:
    """Have the kernel kill us when the thread that forked us ends. For children of processes with one thread."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def outlive_parent() -> None:
    """Take `end_with_parent` back."""
    import ctypes

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0)


def children(of: int | None = None) -> set[int]:
    """
    Pids of a process's children, whichever thread has forked them; of ours by default.

    Those that ended count until they are collected.
    """
    found: set[int] = set()
    for file in Path(f"/proc/{'self' if of is None else of}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has just ended
            found |= {int(pid) for pid in file.read_bytes().split()}
    return found


def descendants() -> list[int]:
    """Pids of our children, theirs, and so on; parents first."""
    found = list(children())
    for pid in found:
        found += children(pid)
    return found


def command_line(pid: int) -> str:
    """What `ps` shows of a process; empty when there is none, or it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def own_mark() -> str:
    """A word for this process that no other process of this boot has."""
    pid = os.getpid()
    return f"{pid}.{start_ticks(pid)}"


def is_marked_alive(mark: str) -> bool:
    """Whether the process of a mark runs. What is no mark names nobody who could be gone."""
    pid, _, ticks = mark.partition(".")
    if not (pid.isdecimal() and ticks.isdecimal()):
        return True
    return start_ticks(int(pid)) == int(ticks)


def peak_bytes(used: resource.struct_rusage) -> int:
    """
    The most memory that an ended process, or a child that it had collected, ever held at once.

    Source: getrusage(2), ru_maxrss, in KiB.
    """
    return used.ru_maxrss * 1024


def listener_pid(sock: socket.socket) -> int:
    """
    The process that called `listen` on the unix socket that this one is connected to.

    Source: unix(7), SO_PEERCRED: pid, user and group.
    """
    import socket
    import struct

    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def has_ended(pidfd: int, timeout_s: float = 0.0) -> bool:
    """
    Whether the process of a pidfd has ended, with all its threads, or does so in time.

    For looks that repeat: on an idle machine, where nothing is in a cache, reading /proc/pid/stat takes milliseconds.
    """
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(math.ceil(max(0.0, timeout_s) * 1000)))


def send_signal(identity: ProcessIdentity, number: signal.Signals) -> bool:
    """Signal exactly this process. False when it is gone."""
    pidfd = open_pidfd(identity)
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def spawn(
    command: Sequence[str],
    *,
    output: Path,
    environ: Mapping[str, str] | None = None,
    sockets: Sequence[socket.socket] = (),
    by: Rung = Rung.CONTROL_PLANE,
    to: Rung = Rung.CONTROL_PLANE,
) -> Popen[bytes]:
    """
    Start a process of ours that outlives us: in a session of its own, in `/`, with nothing of ours open but `sockets`.

    Args:
        output: what it prints is appended to this file.
        environ: by default ours.
        sockets: handed over to it, by their numbers at the end of its command line (`binding.handed_over`).
        by, to: where we stand and where it is to stand when memory runs out.
    """
    import subprocess  # the commands that start nothing need it not

    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        numbers = [sock.fileno() for sock in sockets]
        process = subprocess.Popen(
            [*command, *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            cwd="/",
            env=environ,
            start_new_session=True,
            pass_fds=numbers,
        )
        oom.step_up(process.pid, by=by, to=to)
        return process
    finally:
        os.close(descriptor)


def module_command(module: str, *arguments: str | os.PathLike[str], python: str = sys.executable) -> list[str]:
    """The command line that runs a module of ours, whatever lies in the folder that it runs in."""
    return [python, "-P", "-m", module, *(os.fspath(argument) for argument in arguments)]


def ends_within(identity: ProcessIdentity, timeout_s: float) -> bool:
    """Wait for the end of a process, child or not. False: it still runs."""
    pidfd = open_pidfd(identity)
    if pidfd is None:
        return True
    try:
        return has_ended(pidfd, timeout_s)
    finally:
        os.close(pidfd)


class RestartBudget:
    """
    When a process of ours that died may be started again: at once, unless it keeps dying young.

    A process that lived for `GOOD_LIFE_S` had a good start and is started again at once. One that dies younger waits
    twice as long each time, up to `LONGEST_PAUSE_S`: about five times a minute, for ever.
    """

    GOOD_LIFE_S = 3.0
    """Longer than any of our processes takes to start on an idle machine."""
    FIRST_PAUSE_S = 0.2
    LONGEST_PAUSE_S = 12.0

    def __init__(self) -> None:
        self._started_s: float | None = None
        self._ended = False
        self._backoff = Backoff(first_s=self.FIRST_PAUSE_S, longest_s=self.LONGEST_PAUSE_S, free=1)

    def note_start(self, now_s: float) -> None:
        self._started_s, self._ended = now_s, False

    def may_start(self, now_s: float) -> bool:
        """Whether to start it now, given that it is not running; the first call after its end notes when that was."""
        if self._started_s is not None and not self._ended:
            self._ended = True
            if now_s - self._started_s >= self.GOOD_LIFE_S:
                self._backoff = Backoff(first_s=self.FIRST_PAUSE_S, longest_s=self.LONGEST_PAUSE_S, free=1)
            else:
                self._backoff.note_failure(now_s)
        return not self._backoff.wait_s(now_s)


STAT_BLOCK_BYTES = 512
"""What `st_blocks` counts. Source: stat(2)."""


def write_identity(file: Path, record: msgspec.Struct) -> None:
    """
    Write a record for whoever comes after us, as `write_json` does.

    On a full disk it takes the place of our predecessor's: so who was killed there comes back.
    """
    write_json(file, msgspec.json.encode(record))


def write_json(file: Path, content: bytes) -> None:
    """
    Replace a file of JSON: whole or not at all, mode 0600. On a full disk it is written over what was there, which
    takes no room.

    Raises:
        OSError: the disk is full, and it takes more room than the file has; or another reason.
    """
    try:
        write_whole(file, content)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not file.exists():
            raise
        _write_over(file, content)


def read_record(file: Path, kind: type[R]) -> R | None:
    """What was written there; None when there is nothing, or it cannot be read."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def write_whole(file: Path, content: bytes) -> None:
    """
    Replace a file atomically, mode 0600. A crash leaves the old content or the new, never half; of several who write
    at once, in threads too, whoever ends last is read.
    """
    temporary = file.with_name(f".{file.name}.{threading.get_native_id()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        temporary.rename(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def kept_token(file: Path) -> str:
    """The secret in a file, hex digits; made once, mode 0600. Raises OSError."""
    with suppress(FileNotFoundError):
        if token := file.read_text().strip():
            return token
    token = secrets.token_hex(32)
    write_whole(file, token.encode())
    return token


def _write_over(file: Path, content: bytes) -> None:
    """Replace what is in a file by some JSON, in one write. Raises OSError: it takes more room than the file has."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if len(content) > found.st_blocks * STAT_BLOCK_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        os.pwrite(descriptor, content.ljust(found.st_size), 0)
    finally:
        os.close(descriptor)


def hold_for_life(file: Path) -> int | None:
    """
    Lock a file until this process ends, so that two of a kind never act on one home. None: someone else has it.

    Returns:
        The descriptor that holds the lock; it is never closed.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def remove_unfinished(folder: Path, name: str = "*") -> None:
    """
    Remove what `write_whole` left in a folder when its process was killed.

    Only for whoever alone writes the files of this name, else a file in the making is lost to its writer.
    """
    for file in folder.glob(f".{name}.*.tmp"):
        file.unlink(missing_ok=True)


def is_same_file(descriptor: int, file: Path) -> bool:
    """Whether a path still leads to an open file. False once it was removed or replaced; True when nobody can tell."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False
    except OSError:
        return True
