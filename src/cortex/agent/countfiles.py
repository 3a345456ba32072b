"""
The folder in which replicas count: what is to be delivered of it, and files of replicas that are gone out of the way.

A file's end is a sequence that a crash may cut anywhere without losing or doubling a count:

1. renamed, so that a writer that was thought gone cannot slip in a newer file that would be deleted undelivered;
2. read, delivered, and what the control plane counted of it on its disk;
3. deleted;
4. not named as kept any more: a while after that the control plane forgets what it has seen of it. Until then a file
   that comes back counts only what is new in it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
from collections.abc import Set as AbstractSet
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import msgspec

from cortex.clock import Clock
from cortex.ids import ReplicaId
from cortex.wire.framing import UNREADABLE
from cortex.wire.stats import Attempt

log = logging.getLogger(__name__)

LARGEST_FILE_BYTES = 16 * 2**20
"""A full file of 10,000 classes with names of 256 characters is a third of this; more is no stats file of ours."""
FILES_AT_ONCE = 64
BYTES_AT_ONCE = 4 * 2**20
"""
What one message carries, unless one file alone is larger: bounds the memory when many are full. A frame holds 32 MiB.
"""
OLD_S = 60.0
"""How old a file in the making is that nobody will finish: a write takes no second, the rest is for stalls."""
ENDED_SUFFIX = ".ended"
"""Of a renamed file."""
_NAME = re.compile(r"([^./]+\.[^./]+\.[^./]+\.\d+)\.(\d+)\.json")
"""A replica's id and the attempt."""
_TEMPORARY_NAME = re.compile(r"\.(.+)\.\d+\.tmp")
"""What `processes.write_whole` leaves of a file when its process is killed."""


class _Head(msgspec.Struct):
    """Of a `wire.stats.StatsFile`: what has to be known of it here. The rest passes unread."""

    replica: ReplicaId
    attempt: int
    last: bool = False


_decode = msgspec.json.Decoder(_Head).decode


class Batch(NamedTuple):
    """Files to be delivered together."""

    contents: tuple[msgspec.Raw, ...]
    durably: bool
    """Some of them are to be deleted once they are counted."""
    files: tuple[_Read, ...]


class CountFiles:
    """
    What replicas of this node have counted, and what of it was taken. Used by one thread at a time. One that is made
    anew delivers everything again, which is harmless.

    Args:
        folder: where replicas write `<replica id>.<attempt>.json`. Files with other names are left alone.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = os.fspath(folder)
        self._clock = clock
        self._files: dict[str, _File | None] = {}
        """By name; None for a name that is not ours."""
        self._live: frozenset[Attempt] = frozenset()

    @property
    def kept(self) -> frozenset[Attempt]:
        """Attempts that may count more, or of which there is a file: as of the last look."""
        return self._live.union(file.attempt for file in self._files.values() if file is not None)

    def look(self, live: AbstractSet[Attempt]) -> None:
        """
        See what has changed, and take the files of attempts that are gone away from their writers.

        Args:
            live: attempts whose process may still run, as known before this call.

        Raises:
            OSError: the folder cannot be read.
        """
        self._live = frozenset(live)
        for file in self._scan():
            self._remove_counted(file)
            if file.end is _End.READ:
                file.taken, file.end = None, _End.OPEN
            if file.attempt in live:
                continue
            if file.kind is _Kind.COUNTERS:
                self._end(file)
            elif file.kind is _Kind.TEMPORARY and file.is_older_than(self._clock.wall_s() - OLD_S):
                self._unlink(file)  # not while it is fresh: who was thought gone may be about to rename it

    def batch(self) -> Batch | None:
        """The next of what has changed since it was taken; None: all is taken. What cannot be read now is left out."""
        changed = [file for file in self._ours() if file.kind is not _Kind.TEMPORARY and file.found != file.taken]
        changed.sort(key=lambda file: file.kind is not _Kind.ENDED)  # an ended file is older than one of its name
        contents: list[msgspec.Raw] = []
        read: list[_Read] = []
        size = 0
        for file in changed:
            found = self._read(file)
            if found is None:
                continue
            if read and size + found.size > BYTES_AT_ONCE:
                break
            size += found.size
            read.append(found)
            contents.append(msgspec.Raw(found.content))
            if len(read) == FILES_AT_ONCE:
                break
        if not read:
            return None
        return Batch(tuple(contents), any(one.is_last for one in read), tuple(read))

    def taken(self, batch: Batch, *, durable: bool) -> None:
        """
        A batch was counted: what nothing will follow is deleted.

        Args:
            durable: also should the power fail. If not, what is to be deleted is delivered again after the next look.
        """
        for one in batch.files:
            one.file.found = one.file.taken = one.signature  # what came since it was read is for the next look
            if one.is_last:
                one.file.end = _End.COUNTED if durable else _End.READ
                self._remove_counted(one.file)

    def forget_taken(self) -> None:
        """Whoever counts is another one, and may know less."""
        for file in self._ours():
            file.taken, file.end = None, _End.OPEN

    def _ours(self) -> list[_File]:
        return [file for file in self._files.values() if file is not None]

    def _scan(self) -> list[_File]:
        """Every file of ours in the folder, its times and size as they are now."""
        known = self._files
        present: dict[str, _File | None] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                name = entry.name
                file = known[name] if name in known else _named(name)
                if file is not None:
                    if not entry.is_file(follow_symlinks=False):
                        continue
                    try:
                        file.found = _signature(entry.stat(follow_symlinks=False))
                    except FileNotFoundError:
                        continue
                present[name] = file
        self._files = present
        return self._ours()

    def _end(self, file: _File) -> None:
        """Take a file away from its writer."""
        # An ended file from before, still there after a crash, holds less of the same counters.
        ended = _File(file.name + ENDED_SUFFIX, file.attempt, _Kind.ENDED)
        try:
            os.rename(f"{self._folder}/{file.name}", f"{self._folder}/{ended.name}")
        except OSError as error:
            if error.errno != errno.ENOENT:
                file.warn(f"cannot be renamed ({error.strerror})")
            return
        del self._files[file.name]
        self._files[ended.name] = ended
        ended.found = file.found

    def _read(self, file: _File) -> _Read | None:
        """None: it cannot be read now, or holds nothing that a replica writes, which is told once."""
        try:
            # Neither a link nor a pipe that someone put there is followed or waited for.
            descriptor = os.open(f"{self._folder}/{file.name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb") as stream:
                status = os.fstat(descriptor)
                is_ours = stat.S_ISREG(status.st_mode) and status.st_size <= LARGEST_FILE_BYTES
                content = stream.read() if is_ours else b""
        except OSError as error:
            if error.errno != errno.ENOENT:
                file.warn(f"cannot be read ({error.strerror})")
            return None
        signature = _signature(status)
        reason = "no regular file, or too large"
        if is_ours:
            try:
                head = _decode(content)
                if (head.replica, head.attempt) == file.attempt:
                    return _Read(file, signature, content, head.last or file.kind is _Kind.ENDED)
                reason = f"it is about {head.replica}, attempt {head.attempt}"
            except UNREADABLE as error:
                reason = str(error)
        file.warn(f"holds no counters: {reason}")
        file.found = file.taken = signature
        if file.kind is _Kind.ENDED:
            self._unlink(file)
        return None

    def _remove_counted(self, file: _File) -> None:
        """Attempts are numbered anew after `cortex down`: by now there may be another file of the name."""
        if file.end is _End.COUNTED and self._files.get(file.name) is file:
            with contextlib.suppress(OSError):
                if _signature(os.stat(f"{self._folder}/{file.name}", follow_symlinks=False)) == file.taken:
                    self._unlink(file)

    def _unlink(self, file: _File) -> None:
        try:
            os.unlink(f"{self._folder}/{file.name}")
        except FileNotFoundError:
            pass
        except OSError as error:
            file.warn(f"cannot be deleted ({error.strerror})")
            return
        self._files.pop(file.name, None)


_Signature = tuple[int, int, int]
"""Time of the last change in nanoseconds, size, inode. Each write makes a new inode and takes a second."""


class _Kind(Enum):
    COUNTERS = "counters"
    """As a replica writes it."""
    ENDED = "ended"
    """Taken away from a replica that is gone; to be delivered and deleted."""
    TEMPORARY = "temporary"
    """A file in the making, or what is left of one."""


class _End(Enum):
    """How far the end of a file has come."""

    OPEN = "open"
    READ = "read"
    """That was the last of it, and it is counted, but not for good: to be delivered again."""
    COUNTED = "counted"
    """It is counted for good, and may go."""


class _File:
    """A name in the folder, and what was last found and taken under it."""

    __slots__ = ("attempt", "end", "found", "kind", "name", "taken", "warned")

    def __init__(self, name: str, attempt: Attempt, kind: _Kind) -> None:
        self.name = name
        self.attempt = attempt
        self.kind = kind
        self.found: _Signature | None = None
        self.taken: _Signature | None = None
        """Of the content that was counted."""
        self.end = _End.OPEN
        self.warned = False

    def is_older_than(self, wall_s: float) -> bool:
        return self.found is not None and self.found[0] < wall_s * 1e9

    def warn(self, reason: str) -> None:
        if not self.warned:
            self.warned = True
            log.warning("stats file %s %s", self.name, reason)


class _Read(NamedTuple):
    """A file as it was read."""

    file: _File
    signature: _Signature
    content: bytes
    is_last: bool
    """Nothing more will come from this attempt, or not under this name."""

    @property
    def size(self) -> int:
        return len(self.content)


def _named(name: str) -> _File | None:
    """What a file of this name is about; None when it is none of ours."""
    kind, stem = _Kind.COUNTERS, name
    temporary = _TEMPORARY_NAME.fullmatch(name)
    if temporary is not None:
        kind, stem = _Kind.TEMPORARY, temporary[1]
    elif name.endswith(ENDED_SUFFIX):
        kind, stem = _Kind.ENDED, name.removesuffix(ENDED_SUFFIX)
    match = _NAME.fullmatch(stem)
    return None if match is None else _File(name, (ReplicaId(match[1]), int(match[2])), kind)


def _signature(status: os.stat_result) -> _Signature:
    return status.st_mtime_ns, status.st_size, status.st_ino
