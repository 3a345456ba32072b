"""
The artifact store's folder on a disk: where things are, how they look, its lock, and how things get in and out.

    <root>/
    ├── blobs/ab/abcd…        the bytes with that SHA-256, mode 0444
    ├── blobs/ab/abcd….x      the same bytes once more, mode 0555: hard links share their mode
    ├── trees/<digest>/…      a folder laid out with hard links to blobs, folders 0555; there whole or not at all
    ├── records/<digest>.json which files a tree has, and how they looked when they were last hashed; may be lost
    ├── quarantine/           blobs that no longer had their bytes, for whoever wants to know why
    ├── pins/                 one locked file for each running deploy: trees that must not be collected
    ├── tmp/                  blobs that are being written
    └── lock                  shared: "this is here, keep it"; exclusive: removing and repairing
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cortex.artifacts.errors import InvalidDigest, StoreUnavailable
from cortex.artifacts.hashing import hash_descriptor, is_sha256

NEW, GONE = ".new-", ".gone-"
"""What a folder of `trees/` is called while it is laid out, and once it is only to be removed."""
LINK_TRIES = 100
"""Each failed one means that another process has put the same blob in between, which few do at once."""


class Stamp(NamedTuple):
    """How a file looked: while this stays the same and the machine is not restarted, so do the bytes."""

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)


class Listing(NamedTuple):
    """Everything below a folder, links not followed. Paths are relative; the folder itself is `""`."""

    files: dict[str, os.stat_result]
    """Also links and whatever else is no folder."""
    folders: dict[str, os.stat_result]

    @classmethod
    def of(cls, top: Path) -> Listing:
        # A folder is looked at before it is listed: an entry that comes in between shows in its mtime later.
        listing = cls({}, {"": top.lstat()})
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            with os.scandir(top / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(found.st_mode):
                        listing.folders[path] = found
                        waiting.append(path)
                    else:
                        listing.files[path] = found
        return listing

    @property
    def paths(self) -> set[str]:
        return {*self.files, *self.folders}

    def folders_intact(self, wanted: Iterable[str]) -> bool:
        modes = (self.folders.get(folder) for folder in ("", *wanted))
        return all(found is not None and stat.S_IMODE(found.st_mode) == 0o555 for found in modes)


class StoreDisk:
    """The folders of one store. They come into being when something is first written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs"
        self.trees = root / "trees"
        self.records = root / "records"
        self.quarantine = root / "quarantine"
        self.pins = root / "pins"
        self.tmp = root / "tmp"

    def tree_digests(self) -> list[str]:
        """Of every tree that is there."""
        return [name for name in names(self.trees) if is_sha256(name)]

    def prepare(self) -> None:
        for folder in (self.root, self.blobs, self.trees, self.records, self.tmp):
            if not folder.is_dir():
                folder.mkdir(mode=0o755, parents=folder is self.root, exist_ok=True)
                sync(folder.parent)

    def new_file(self, prefix: str) -> tuple[Path, int]:
        self.prepare()
        path = self.tmp / f"{prefix}{secrets.token_hex(8)}"
        return path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(self.root, error) from error

    @contextmanager
    def locked(self, how: int) -> Iterator[None]:
        """Hold the store's lock. Each holder opens the file anew, so that threads exclude each other as well."""
        descriptor = -1
        try:
            self.prepare()
            descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            # Where nothing may be written, nothing can be removed from under a reader: it needs no lock.
            if how != fcntl.LOCK_SH or error.errno not in (errno.EROFS, errno.EACCES):
                raise
        try:
            if descriptor >= 0:
                fcntl.flock(descriptor, how)
            yield
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def check_digest(text: str) -> None:
    """Raises InvalidDigest."""
    if not is_sha256(text):
        raise InvalidDigest(text)


def mode_of(executable: bool) -> int:
    return 0o555 if executable else 0o444


def hash_stored(path: Path) -> tuple[str | None, Stamp]:
    """
    SHA-256 of a stored file, and how it looked before it was read; None when the disk cannot read it.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        stamp = Stamp.of(os.fstat(descriptor))
        try:
            return hash_descriptor(descriptor), stamp
        except OSError as error:
            if error.errno == errno.EIO:
                return None, stamp
            raise
    finally:
        os.close(descriptor)


def names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def link_or_copy(blob: Path, target: Path) -> None:
    """
    Hard link inside the store; a copy where an inode has no room for another name or links are unknown.

    Raises:
        FileNotFoundError: the blob is gone.
    """
    try:
        _link(blob, target)
    except OSError as error:
        if error.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV):
            raise
        shutil.copyfile(blob, target)
        shutil.copymode(blob, target)
        sync(target)


def _link(blob: Path, target: Path) -> None:
    """
    Give a blob another name.

    Linking fails as if the blob were gone when another process renames an equal one over it at that moment: the inode
    that was looked up has lost its last name. Whoever looks again finds the new one.
    """
    for _ in range(LINK_TRIES):
        try:
            os.link(blob, target, follow_symlinks=False)
            return
        except FileNotFoundError:
            blob.lstat()
    os.link(blob, target, follow_symlinks=False)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_entry(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove_folder(path)
    else:
        path.unlink(missing_ok=True)


def remove_folder(top: Path) -> None:
    """Remove a folder whose folders may be read-only."""
    if not top.is_dir():
        return
    for folder in (top, *(top / path for path in Listing.of(top).folders)):
        folder.chmod(0o700)
    shutil.rmtree(top)
