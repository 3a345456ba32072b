"""What the artifact store no longer needs, and its removal. Nothing else removes anything from it for good."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cortex.artifacts.blobs import Blobs
from cortex.artifacts.disk import GONE, NEW, Listing, names, remove_entry, remove_folder
from cortex.artifacts.pins import pinned
from cortex.artifacts.records import Records

STRAY_AGE_S = 3600.0
"""A temporary file that nobody wrote to for this long belongs to a process that died."""
UPLOAD_GRACE_S = 24 * 3600.0
"""How long a blob that no tree holds is kept: a large upload takes hours, and one that failed is soon repeated."""
UNUSED_GRACE_S = 900.0
"""
A tree, or a blob that a tree just let go, is kept for this long after it was last used: the caller of
`collect_garbage` read what is in use a moment ago, and a deploy may have finished since.
"""

MAX_UNUSED_TREES = 1000
"""So many trees that nobody needs are kept however small they are: each is a folder, and files, to be gone through."""


class Collected(NamedTuple):
    """What `collect_garbage` did."""

    trees: tuple[str, ...]
    """Digests of the trees removed, least recently used first."""
    blobs: int
    strays: int
    """Temporary and quarantined files removed."""
    freed_bytes: int
    kept_bytes: int


class CountedBlob(NamedTuple):
    path: Path
    inode: int
    touched_wall_s: float


class Census:
    """Who holds which bytes, by inode: each is counted once, whatever its number of names."""

    def __init__(self, blobs: Iterable[Path], trees: Mapping[str, Path]) -> None:
        self.trees: dict[str, Counter[int]] = {}
        self._blobs: dict[int, CountedBlob] = {}
        self._names: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}
        for path in blobs:
            found = path.lstat()
            self._blobs[found.st_ino] = CountedBlob(path, found.st_ino, found.st_ctime)
            self._count(found)
        for digest, top in trees.items():
            files = Listing.of(top).files.values()
            self.trees[digest] = Counter(found.st_ino for found in files)
            for found in files:
                self._count(found)
        self.bytes = sum(self._sizes.values())

    def _count(self, found: os.stat_result) -> None:
        self._names[found.st_ino] = found.st_nlink
        self._sizes[found.st_ino] = found.st_size

    def unheld(self) -> list[CountedBlob]:
        """Blobs that no tree holds."""
        return [blob for inode, blob in self._blobs.items() if self._names[inode] == 1]

    def let_go(self, digest: str) -> list[CountedBlob]:
        """A tree is gone. Return the blobs that no tree holds any more."""
        unheld = []
        for inode, held in self.trees[digest].items():
            self._names[inode] -= held
            if inode in self._blobs and self._names[inode] == 1:
                unheld.append(self._blobs[inode])
            elif self._names[inode] == 0:
                self.bytes -= self._sizes[inode]
        return unheld

    def drop(self, blob: CountedBlob) -> None:
        """A blob that no tree holds is gone."""
        self.bytes -= self._sizes[blob.inode]
        del self._blobs[blob.inode]


class Garbage:
    """Of one store; see `ArtifactStore.collect_garbage`."""

    def __init__(self, blobs: Blobs, records: Records) -> None:
        self._disk = blobs.disk
        self._blobs = blobs
        self._records = records

    def collect(self, in_use: Collection[str], keep_bytes: int, now_wall_s: float) -> Collected:
        with self._disk.guarded(), self._disk.locked(fcntl.LOCK_EX):
            self._remove_buried()  # by whoever did not get to it
            strays = self._remove_strays(now_wall_s)
            protected = set(in_use) | pinned(self._disk)
            census = Census(
                (path for path, _ in self._blobs.everything()),
                {d: self._disk.trees / d for d in self._disk.tree_digests()},
            )
            before_bytes = census.bytes
            blobs = self._remove_unheld(census, census.unheld(), now_wall_s - UPLOAD_GRACE_S)
            removed: list[str] = []
            unused = len(census.trees.keys() - protected)
            for used_wall_s, digest in sorted((self._records.last_used(d), d) for d in census.trees):
                if census.bytes <= keep_bytes and unused - len(removed) <= MAX_UNUSED_TREES:
                    break
                if digest in protected or now_wall_s - used_wall_s < UNUSED_GRACE_S:
                    continue
                self._bury(digest)
                removed.append(digest)
                blobs += self._remove_unheld(census, census.let_go(digest), now_wall_s - UNUSED_GRACE_S)
            self._remove_buried()
            return Collected(tuple(removed), blobs, strays, before_bytes - census.bytes, census.bytes)

    def _bury(self, digest: str) -> None:
        """Take a tree out of sight at once; removing its files takes longer."""
        (self._disk.trees / digest).rename(self._disk.trees / f"{GONE}{secrets.token_hex(8)}")
        self._records.path(digest).unlink(missing_ok=True)

    def _remove_buried(self) -> None:
        for name in names(self._disk.trees):
            if name.startswith(GONE):
                remove_folder(self._disk.trees / name)

    def _remove_unheld(self, census: Census, blobs: Iterable[CountedBlob], touched_before_wall_s: float) -> int:
        removed = 0
        for blob in blobs:
            if blob.touched_wall_s <= touched_before_wall_s:
                blob.path.unlink(missing_ok=True)
                census.drop(blob)
                removed += 1
        return removed

    def _remove_strays(self, now_wall_s: float) -> int:
        removed = 0
        strays = [(self._disk.tmp / name, STRAY_AGE_S) for name in names(self._disk.tmp)]
        strays += [(self._disk.trees / name, STRAY_AGE_S) for name in names(self._disk.trees) if name.startswith(NEW)]
        strays += [(self._disk.quarantine / name, UPLOAD_GRACE_S) for name in names(self._disk.quarantine)]
        trees = set(self._disk.tree_digests())
        strays += [
            (self._disk.records / name, STRAY_AGE_S)
            for name in names(self._disk.records)
            if name.removesuffix(".json") not in trees
        ]
        for path, age_s in strays:
            with suppress(FileNotFoundError):
                found = path.lstat()
                # mtime: when a file was last written to. ctime: when a folder or a file set aside was moved there.
                touched = found.st_mtime if path.parent == self._disk.tmp else found.st_ctime
                if now_wall_s - touched >= age_s:
                    remove_entry(path)
                    removed += 1
        return removed
