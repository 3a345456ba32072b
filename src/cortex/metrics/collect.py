"""
From the folder of stats files into the store, and files of replicas that are gone out of the way.

A file's end is a sequence that a crash may cut anywhere without losing or doubling a count:

1. renamed, so that a writer that was thought gone cannot slip in a newer file that would be deleted unread;
2. read and merged, and the store on disk;
3. deleted;
4. after a while, what was last seen of it forgotten. Until then a file that comes back counts only what is new in it.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from enum import Enum
from pathlib import Path

import msgspec

from cortex.clock import Clock
from cortex.ids import ApiKey, ReplicaId
from cortex.metrics.slices import HOUR_S
from cortex.metrics.store import LOCAL_NODE, StatsStore
from cortex.wire.stats import Attempt, StatsFile

log = logging.getLogger(__name__)

LARGEST_FILE_BYTES = 16 * 2**20
"""A full file of 10,000 classes with names of 256 characters is a third of this; more is no stats file of ours."""
FILES_AT_ONCE = 64
"""Files merged in one transaction: bounds the memory when many are full."""
FORGET_AFTER_S = 60.0
"""
How long the last seen counters of a replica outlive its file. A replica that was thought gone and is not writes a
new file within a second of its next request; the rest is for stalls.
"""
ENDED_SUFFIX = ".ended"
"""Of a renamed file."""
_NAME = re.compile(r"([^./]+\.[^./]+\.[^./]+\.\d+)\.(\d+)\.json")
"""A replica's id and the attempt."""
_TEMPORARY_NAME = re.compile(r"\.(.+)\.\d+\.tmp")
"""What `processes.write_whole` leaves of a file when its process is killed."""
_decode = msgspec.json.Decoder(StatsFile).decode


class CollectedCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What one pass did."""

    read: int = 0
    """Files that had changed."""
    merged: int = 0
    """Of those, the ones that held new counts."""
    deleted: int = 0


class Collector:
    """
    Merges stats files into the store. Used by one thread.

    Args:
        folder: where replicas write `<replica id>.<attempt>.json`. Files with other names are left alone.
    """

    def __init__(self, folder: Path, store: StatsStore, clock: Clock) -> None:
        self._folder = os.fspath(folder)
        self._store = store
        self._clock = clock
        self._files: dict[str, _File | None] = {}
        """By name; None for a name that is not ours."""
        self._seen: set[Attempt] | None = None
        """Attempts that the store has seen; None before the first pass."""
        self._discarded: frozenset[Attempt] | None = None
        """Attempts that count for nobody, as their api was removed; None: the store knows."""
        self._missing_since_s: dict[Attempt, float] = {}
        self._maintained_hour: int | None = None

    def collect(
        self,
        live: AbstractSet[Attempt] | None,
        *,
        wanted: AbstractSet[ApiKey] | None = None,
        serving: AbstractSet[Attempt] = frozenset(),
    ) -> CollectedCounts:
        """
        Merge what changed since the last pass, and delete the files of attempts that are gone.

        Args:
            live: attempts whose process may still run, as known before this call; None while that is not known:
                then only files that say they are the last of their attempt are deleted.
            wanted: apis that there are; see `StatsStore.merge`.
            serving: attempts that answer requests of an api that there is.

        Raises:
            StatsStoreUnusable: nothing is lost; a later pass does what this one could not.
            OSError: the folder cannot be read.
        """
        if self._seen is None:
            self._seen = set(self._store.known().get(LOCAL_NODE, ()))
        files = self._scan()
        if live is not None:
            files = [self._end(file) if file.attempt not in live else file for file in files]
        changed = [file for file in files if file.kind is not _Kind.TEMPORARY and file.found != file.read]
        changed.sort(key=lambda file: file.kind is not _Kind.ENDED)  # an ended file is older than one of its name
        merged = self._merge(changed, wanted)
        self._take_back(serving)
        deleted = self._delete([file for file in files if file.last or (file.kind is _Kind.ENDED and file.read)])
        if live is not None:
            self._clean_up([file for file in files if file.kind is _Kind.TEMPORARY and file.attempt not in live])
            present = (file.attempt for file in self._files.values() if file is not None)
            self._forget(self._seen.difference(live, present))
        self._maintain()
        return CollectedCounts(read=len(changed), merged=merged, deleted=deleted)

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
        return [file for file in present.values() if file is not None]

    def _end(self, file: _File) -> _File:
        """Take a file away from its writer, if it still has one."""
        if file.kind is not _Kind.COUNTERS:
            return file
        # An ended file from before, still there after a crash, holds less of the same counters.
        ended = _File(file.name + ENDED_SUFFIX, file.attempt, _Kind.ENDED)
        try:
            os.rename(f"{self._folder}/{file.name}", f"{self._folder}/{ended.name}")
        except OSError as error:
            if error.errno != errno.ENOENT:
                file.warn(f"cannot be renamed ({error.strerror})")
            return file
        del self._files[file.name]
        self._files[ended.name] = ended
        ended.found = file.found
        return ended

    def forget_apis(self, apis: Iterable[ApiKey]) -> None:
        """See `StatsStore.forget_apis`."""
        self._store.forget_apis(apis)
        self._discarded = None

    def _take_back(self, serving: AbstractSet[Attempt]) -> None:
        """
        Count what an api of the same name has taken over when one was removed: the same build was deployed again before
        its replicas were told to end. Those that were end with what they have in hand, and that counts for nobody.
        """
        if self._discarded is None:
            self._discarded = self._store.discarded()
        taken_over = self._discarded & serving
        if taken_over:
            self._store.count_again(taken_over)
            self._discarded -= taken_over

    def _merge(self, changed: list[_File], wanted: AbstractSet[ApiKey] | None) -> int:
        assert self._seen is not None
        merged = 0
        for first in range(0, len(changed), FILES_AT_ONCE):
            contents: list[StatsFile] = []
            read: list[tuple[_File, _Signature, bool]] = []
            for file in changed[first : first + FILES_AT_ONCE]:
                try:
                    signature, content = self._read(file)
                except OSError as error:
                    if error.errno != errno.ENOENT:
                        file.warn(f"cannot be read ({error.strerror})")
                    continue
                except _NotStats as error:
                    file.warn(f"holds no counters: {error}")
                    read.append((file, error.signature, False))
                    continue
                contents.append(content)
                read.append((file, signature, content.last))
            merged += self._store.merge(contents, self._clock.wall_s(), wanted=wanted)
            if wanted is not None and any(content.api not in wanted for content in contents):
                self._discarded = None
            self._seen.update((content.replica, content.attempt) for content in contents)
            for file, signature, last in read:  # only now: had the merge failed, they would be read again
                file.read, file.last = signature, last
        return merged

    def _read(self, file: _File) -> tuple[_Signature, StatsFile]:
        """
        Raises:
            OSError: it cannot be read now.
            _NotStats: it can, and is not what a replica writes.
        """
        # Neither a link nor a pipe that someone put there is followed or waited for.
        descriptor = os.open(f"{self._folder}/{file.name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as stream:
            status = os.fstat(descriptor)
            signature = _signature(status)
            if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_FILE_BYTES:
                raise _NotStats(signature, "no regular file, or too large")
            content = stream.read()
        try:
            stats = _decode(content)
        except msgspec.MsgspecError as error:
            raise _NotStats(signature, str(error)) from error
        if (stats.replica, stats.attempt) != file.attempt:
            raise _NotStats(signature, f"it is about {stats.replica}, attempt {stats.attempt}")
        return signature, stats

    def _delete(self, ended: list[_File]) -> int:
        if not ended or not self._store.sync():
            return 0
        return sum(self._unlink(file) for file in ended if file.name in self._files)

    def _unlink(self, file: _File) -> bool:
        try:
            os.unlink(f"{self._folder}/{file.name}")
        except FileNotFoundError:
            pass
        except OSError as error:
            file.warn(f"cannot be deleted ({error.strerror})")
            return False
        del self._files[file.name]
        return True

    def _clean_up(self, temporary: list[_File]) -> None:
        """Delete what killed writers left; not while it is fresh, as who was thought gone may be about to rename it."""
        old_ns = (self._clock.wall_s() - FORGET_AFTER_S) * 1e9
        for file in temporary:
            if file.found is not None and file.found[0] < old_ns:
                self._unlink(file)

    def _forget(self, missing: set[Attempt]) -> None:
        """Forget attempts that have neither a process nor a file, once that has been so for a while."""
        assert self._seen is not None
        now_s = self._clock.monotonic_s()
        self._missing_since_s = {attempt: self._missing_since_s.get(attempt, now_s) for attempt in missing}
        due = [attempt for attempt, since_s in self._missing_since_s.items() if now_s - since_s >= FORGET_AFTER_S]
        if due:
            self._store.forget(LOCAL_NODE, due)
            self._seen.difference_update(due)

    def _maintain(self) -> None:
        now_s = self._clock.wall_s()
        hour = int(now_s // HOUR_S)
        if hour != self._maintained_hour:
            self._store.maintain(now_s)
            self._maintained_hour = hour


_Signature = tuple[int, int, int]
"""Time of the last change in nanoseconds, size, inode. Each write makes a new inode and takes a second."""


class _Kind(Enum):
    COUNTERS = "counters"
    """As a replica writes it."""
    ENDED = "ended"
    """Taken away from a replica that is gone; to be merged and deleted."""
    TEMPORARY = "temporary"
    """A file in the making, or what is left of one."""


class _File:
    """A name in the folder, and what was last found and read under it."""

    __slots__ = ("attempt", "found", "kind", "last", "name", "read", "warned")

    def __init__(self, name: str, attempt: Attempt, kind: _Kind) -> None:
        self.name = name
        self.attempt = attempt
        self.kind = kind
        self.found: _Signature | None = None
        self.read: _Signature | None = None
        """Of the content that was merged."""
        self.last = False
        """That content said that nothing more will come."""
        self.warned = False

    def warn(self, reason: str) -> None:
        if not self.warned:
            self.warned = True
            log.warning("stats file %s %s", self.name, reason)


class _NotStats(Exception):
    def __init__(self, signature: _Signature, reason: str) -> None:
        self.signature = signature
        super().__init__(reason)


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
