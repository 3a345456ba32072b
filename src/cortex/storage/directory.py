"""
A storage in a directory, on one machine or on a file system that all nodes share.

Not through the client of object stores: its local store creates objects likewise, by a hard link, and does not force
them to the disk, so that a loss of power would leave empty ones under numbers that nobody can write again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from cortex.storage.base import (
    StorageDenied,
    StorageError,
    StorageFull,
    StorageMissing,
    StorageUnreachable,
    checked_key,
)

PIECE_BYTES = 2**20
UNFINISHED = ".unfinished"
"""Folder of what is being written. What a process that was killed leaves there is a few bytes of no use."""


class DirectoryStorage:
    """
    Args:
        root: has to be there: one that is made by us might lie below a mount that is missing.

    Raises:
        StorageMissing
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.place = str(root)
        with self._named_errors():
            self._check()

    def create(self, key: str, content: bytes) -> bool:
        return self._created(key, [content])

    def upload(self, key: str, file: Path) -> None:
        with open(file, "rb") as source:
            self._created(key, iter(lambda: source.read(PIECE_BYTES), b""))

    def download(self, key: str) -> Iterator[bytes] | None:
        return None if self.size(key) is None else self._pieces(self._root / key)

    def size(self, key: str) -> int | None:
        with self._named_errors():
            try:
                return (self._root / checked_key(key)).stat().st_size
            except FileNotFoundError:
                self._check()
                return None

    def read(self, key: str) -> bytes | None:
        with self._named_errors():
            try:
                return (self._root / checked_key(key)).read_bytes()
            except FileNotFoundError:
                self._check()
                return None

    def keys(self, folder: str) -> list[str]:
        with self._named_errors():
            self._check()
            found = os.walk(self._root / checked_key(folder), onerror=_raise_others)
            return sorted(
                Path(parent, name).relative_to(self._root).as_posix()
                for parent, _folders, names in found
                for name in names
            )

    def delete(self, keys: Iterable[str]) -> None:
        with self._named_errors():
            for key in keys:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._root / checked_key(key))

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _created(self, key: str, content: Iterable[bytes]) -> bool:
        file = self._root / checked_key(key)
        with self._named_errors():
            unfinished = self._written(content)
            try:
                self._make_folder(file.parent)
                os.link(unfinished, file)
            except FileExistsError:
                return False
            finally:
                os.unlink(unfinished)
            _force(file.parent)
        return True

    def _pieces(self, file: Path) -> Iterator[bytes]:
        with self._named_errors(), open(file, "rb") as source:
            yield from iter(lambda: source.read(PIECE_BYTES), b"")

    def _written(self, content: Iterable[bytes]) -> Path:
        """A file with this content, on the disk, and under no key."""
        file = self._root / UNFINISHED / secrets.token_hex(16)
        self._check()
        with contextlib.suppress(FileExistsError):
            os.mkdir(file.parent, 0o700)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as writer:
                writer.writelines(content)
                writer.flush()
                os.fsync(writer.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file)
            raise
        return file

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        _force(folder.parent)

    def _check(self) -> None:
        if not self._root.is_dir():
            raise self._missing()

    def _missing(self) -> StorageMissing:
        hint = "make it, or mount what it lies on, on every node; it has to be the same one everywhere"
        return StorageMissing(self.place, "there is no such directory", hint=hint)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._explained(error) from error

    def _explained(self, error: OSError) -> StorageError:
        reason = error.strerror or str(error)
        match error.errno:
            case errno.EACCES | errno.EROFS:
                hint = (
                    f"it must belong to the user who runs Cortex, on every node; `ls -ld {self._root}` shows the owner"
                )
                return StorageDenied(self.place, reason, hint=hint)
            case errno.ENOSPC | errno.EDQUOT:
                return StorageFull(self.place, reason, hint="free space there; what runs goes on serving")
            case errno.EPERM | errno.EOPNOTSUPP | errno.EMLINK:
                hint = "a file system that knows hard links is needed, such as NFS; or a bucket"
                return StorageError(self.place, f"a file cannot be linked ({reason})", hint=hint)
            case errno.ESTALE | errno.ETIMEDOUT | errno.EIO | errno.ENOTCONN | errno.EHOSTDOWN:
                return StorageUnreachable(self.place, reason, hint="check the mount and the server that it leads to")
            case _:
                return StorageError(self.place, reason, hint=f"check {self._root}")


def _force(folder: Path) -> None:
    """Have names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _raise_others(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
