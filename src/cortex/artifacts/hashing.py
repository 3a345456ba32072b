"""SHA-256 of files that may be written to meanwhile, and a memory of the ones that did not change."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from cortex.artifacts.errors import FileChanged, UnusableFile

CHUNK_BYTES = 1 << 20
ATTEMPTS = 3
"""A file that is saved once while we read it is simply read again; one that is written on and on is an error."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_sha256(text: str) -> bool:
    """Whether `text` is a SHA-256 digest as we write them: 64 lower-case hex digits."""
    return _SHA256.fullmatch(text) is not None


class FileDigest(NamedTuple):
    """What a file was when it was read from beginning to end without a change."""

    sha256: str
    size_bytes: int
    executable: bool
    """By its owner."""


def hash_descriptor(descriptor: int) -> str:
    """SHA-256 of a file from its beginning, leaving the file position alone. Raises OSError."""
    digest = hashlib.sha256()
    position = 0
    while chunk := os.pread(descriptor, CHUNK_BYTES, position):
        digest.update(chunk)
        position += len(chunk)
    return digest.hexdigest()


def hash_file(path: Path, cache: HashCache | None = None) -> FileDigest:
    """
    Hash a user's file; links are followed.

    Raises:
        FileNotFoundError: there is no such file (any more).
        UnusableFile: it cannot be read, or is no regular file.
        FileChanged: it was written to each time it was read.
    """
    for _ in range(ATTEMPTS):
        descriptor = open_regular(path)
        try:
            before = os.fstat(descriptor)
            sha256 = cache.find(before) if cache else None
            if sha256 is None:
                sha256 = hash_descriptor(descriptor)
                after = os.fstat(descriptor)
                if not same_content(before, after):
                    continue
                if cache:
                    cache.add(after, sha256)
            return FileDigest(sha256, before.st_size, bool(before.st_mode & stat.S_IXUSR))
        except OSError as error:
            raise UnusableFile(path, f"cannot be read ({error.strerror})") from error
        finally:
            os.close(descriptor)
    raise FileChanged(path)


def open_regular(path: Path) -> int:
    """
    Open a user's file for reading, without waiting on a pipe that pretends to be one. Returns a descriptor.

    Raises:
        FileNotFoundError: there is no such file.
        UnusableFile: it cannot be opened, or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "is no regular file" if error.errno == errno.ENXIO else f"cannot be read ({error.strerror})"
        raise UnusableFile(path, reason) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnusableFile(path, "is no regular file")
    return descriptor


def same_content(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether a file was left alone between two looks, as far as the file system tells."""
    return _identity(before) == _identity(after)


def _identity(found: os.stat_result) -> tuple[int, int, int, int, int]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class HashCache:
    """
    Digests of files hashed before, by device, inode, size, mtime and ctime. Losing it costs time, never correctness.

    A file whose ctime is not at least `SETTLED_S` older than `now_wall_s` is not remembered: file systems keep time in
    steps of some milliseconds, and a second write within one step would go unnoticed (git calls this "racy").

    Args:
        file: where it is kept; None keeps it in memory. An unreadable or damaged file counts as empty.
        now_wall_s: wall clock when the files are about to be hashed.
    """

    SETTLED_S = 2.0
    MAX_ENTRIES = 20_000

    def __init__(self, file: Path | None = None, *, now_wall_s: float) -> None:
        self._file = file
        self._settled_ns = int((now_wall_s - self.SETTLED_S) * 1e9)
        self._digests: dict[str, str] = {}
        self._changed = False
        if file is not None:
            with suppress(OSError, msgspec.DecodeError):
                self._digests = msgspec.json.decode(file.read_bytes(), type=dict[str, str])

    def find(self, found: os.stat_result) -> str | None:
        key = self._key(found)
        digest = self._digests.get(key)
        if digest is None or not is_sha256(digest):
            return None
        self._digests[key] = self._digests.pop(key)  # most recently used last
        return digest

    def add(self, found: os.stat_result, sha256: str) -> None:
        if found.st_ctime_ns <= self._settled_ns:
            self._digests[self._key(found)] = sha256
            self._changed = True

    def save(self) -> None:
        """Write it to its file, the most recently used entries only. Failing to is no error: it is only a cache."""
        if self._file is None or not self._changed:
            return
        kept = dict(list(self._digests.items())[-self.MAX_ENTRIES :])
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._file.parent, prefix=f".{self._file.name}.")
            try:
                with os.fdopen(descriptor, "wb") as out:
                    out.write(msgspec.json.encode(kept))
                os.replace(name, self._file)
            except BaseException:
                os.unlink(name)
                raise
            self._changed = False

    @staticmethod
    def _key(found: os.stat_result) -> str:
        return ":".join(map(str, _identity(found)))
