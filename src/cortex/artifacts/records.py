"""What is known of each stored tree: its files, and how they looked when they were last hashed. May be lost."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from cortex import processes
from cortex.artifacts.disk import Stamp, StoreDisk, mode_of, names
from cortex.artifacts.errors import InvalidDigest, InvalidTree
from cortex.artifacts.trees import tree_digest
from cortex.wire.operator import StoredFile


class RecordedFile(msgspec.Struct, frozen=True, array_like=True):
    path: str
    sha256: str
    executable: bool
    stamp: Stamp | None


class Record(msgspec.Struct, frozen=True):
    """A tree as it was when every file of it had been hashed during this boot."""

    boot_id: str
    """Empty: not to be relied on, hash everything again."""
    files: tuple[RecordedFile, ...]
    folders: dict[str, tuple[int, int]]
    """Inode and mtime of each folder, `""` being the top one: they move when an entry comes or goes."""

    def stored(self) -> tuple[StoredFile, ...]:
        return tuple(StoredFile(path=f.path, sha256=f.sha256, executable=f.executable) for f in self.files)


class Records:
    """
    One record for each tree; its mtime says when the tree was last used.

    Args:
        boot_id: of this start of the machine; empty: unknown, so that nothing hashed before counts.
    """

    def __init__(self, disk: StoreDisk, boot_id: str) -> None:
        self._disk = disk
        self._boot_id = boot_id

    def path(self, digest: str) -> Path:
        return self._disk.records / f"{digest}.json"

    def read(self, digest: str) -> Record | None:
        return processes.read_record(self.path(digest), Record)

    def is_current(self, record: Record) -> bool:
        return record.boot_id == self._boot_id != ""

    def write(self, digest: str, record: Record) -> None:
        """Keep what is known of a tree. On a full or read-only disk it is simply found out again next time."""
        with suppress(OSError):
            path, descriptor = self._disk.new_file("record-")
            try:
                with os.fdopen(descriptor, "wb") as out:
                    out.write(msgspec.json.encode(record))
                path.rename(self.path(digest))
            finally:
                path.unlink(missing_ok=True)

    def remember(
        self,
        digest: str,
        files: Iterable[StoredFile],
        stamps: Mapping[str, Stamp],
        folders: Mapping[str, os.stat_result],
    ) -> None:
        recorded = tuple(RecordedFile(f.path, f.sha256, f.executable, stamps.get(f.path)) for f in files)
        seen = {path: (found.st_ino, found.st_mtime_ns) for path, found in folders.items()}
        self.write(digest, Record(boot_id=self._boot_id, files=recorded, folders=seen))

    def last_used(self, digest: str) -> float:
        try:
            return self.path(digest).stat().st_mtime
        except FileNotFoundError:
            return (self._disk.trees / digest).stat().st_ctime

    def touch(self, digest: str) -> bool:
        """Whether a tree is here; if so, note that it was used just now."""
        if not (self._disk.trees / digest).is_dir():
            return False
        with suppress(OSError):  # no record, or read-only: then nobody removes it either
            os.utime(self.path(digest))
        return True

    def distrust(self, sha256: str) -> None:
        """See to it that these bytes are hashed again in every tree, before they are used."""
        for name in names(self._disk.records):
            digest = name.removesuffix(".json")
            record = self.read(digest)
            if record is not None and any(file.sha256 == sha256 for file in record.files):
                self.write(digest, msgspec.structs.replace(record, boot_id=""))


def unchanged(tree: Path, record: Record) -> bool:
    """Whether a tree looks just as it did when it was recorded: no file or folder came, went or changed."""
    try:
        for path, seen in record.folders.items():
            found = os.lstat(tree / path)
            if (found.st_ino, found.st_mtime_ns) != seen or found.st_mode != stat.S_IFDIR | 0o555:
                return False
        for file in record.files:
            found = os.lstat(f"{tree}/{file.path}")
            if file.stamp != Stamp.of(found) or found.st_mode != stat.S_IFREG | mode_of(file.executable):
                return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def make_up(files: Iterable[StoredFile], digest: str) -> bool:
    """Whether these files, which may come from a damaged disk, are those of a tree."""
    try:
        return tree_digest(files) == digest
    except (InvalidTree, InvalidDigest):
        return False
