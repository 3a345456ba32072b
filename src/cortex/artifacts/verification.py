"""Whether a tree holds what its digest says; what does not is put right from blobs."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cortex.artifacts.blobs import Blobs
from cortex.artifacts.checkout import put_right
from cortex.artifacts.disk import Listing, Stamp, hash_stored, mode_of
from cortex.artifacts.errors import ArtifactCorrupt, BlobsMissing
from cortex.artifacts.records import Records, make_up, unchanged
from cortex.artifacts.trees import folders_of
from cortex.wire.operator import StoredFile


class Verified(NamedTuple):
    """A tree that holds what its digest says."""

    path: Path
    hashed_bytes: int
    """0 when nothing had changed since it was last hashed."""
    repaired: tuple[str, ...]
    """Paths that were wrong and have been put right from blobs."""


class Verification:
    """Of the trees of one store; see `ArtifactStore.verify`."""

    def __init__(self, blobs: Blobs, records: Records) -> None:
        self._blobs = blobs
        self._records = records

    def verify(self, digest: str, manifest: Sequence[StoredFile] | None = None) -> Verified:
        """
        Args:
            manifest: its files, if they are known.
        """
        tree = self._blobs.disk.trees / digest
        record = self._records.read(digest)
        if record is not None and self._records.is_current(record) and unchanged(tree, record):
            return Verified(tree, 0, ())
        if manifest is None and record is not None and make_up(record.stored(), digest):
            manifest = record.stored()
        listing = Listing.of(tree)
        if manifest is None:
            return self._by_digest(digest, listing)
        known: Mapping[tuple[str, str], Stamp | None] = {}
        if record is not None and self._records.is_current(record):
            known = {(f.path, f.sha256): f.stamp for f in record.files}
        stamps: dict[str, Stamp] = {}
        damaged: list[StoredFile] = []
        hashed_bytes = 0
        for file in manifest:
            found = listing.files.get(file.path)
            if found is None or not stat.S_ISREG(found.st_mode):
                damaged.append(file)
                continue
            if stat.S_IMODE(found.st_mode) != mode_of(file.executable):
                os.chmod(tree / file.path, mode_of(file.executable))
            stamp = Stamp.of(found)
            if known.get((file.path, file.sha256)) != stamp:
                sha256, stamp = hash_stored(tree / file.path)
                hashed_bytes += stamp.size
                if sha256 != file.sha256:
                    damaged.append(file)
                    continue
            stamps[file.path] = stamp
        strangers = listing.paths - {f.path for f in manifest} - {"", *folders_of(manifest)}
        lost: list[StoredFile] = []
        repaired: tuple[str, ...] = ()
        if damaged or strangers or not listing.folders_intact(folders_of(manifest)):
            lost = self._repair(tree, manifest, damaged, strangers, stamps)
            repaired = tuple(sorted({f.path for f in damaged} | strangers))
            listing = Listing.of(tree)
        self._records.remember(
            digest, manifest, stamps, listing.folders
        )  # what is lost has no stamp: it is hashed next time
        if lost:
            raise ArtifactCorrupt(lost[0].sha256, tree / lost[0].path)
        return Verified(tree, hashed_bytes, repaired)

    def files(self, digest: str) -> tuple[StoredFile, ...]:
        """Those of a tree that was just verified: as they are recorded, or hashed once more where no record is."""
        record = self._records.read(digest)
        if record is not None and make_up(record.stored(), digest):
            return record.stored()
        return self._hashed(digest, Listing.of(self._blobs.disk.trees / digest))[0]

    def _by_digest(self, digest: str, listing: Listing) -> Verified:
        """Verify a tree whose list of files is lost: what is there, hashed, must give its name."""
        files, stamps = self._hashed(digest, listing)
        self._records.remember(digest, files, stamps, listing.folders)
        return Verified(self._blobs.disk.trees / digest, sum(stamp.size for stamp in stamps.values()), ())

    def _hashed(self, digest: str, listing: Listing) -> tuple[tuple[StoredFile, ...], dict[str, Stamp]]:
        """The files that are there, and how they look; raises ArtifactCorrupt where they do not give the digest."""
        tree = self._blobs.disk.trees / digest
        files: list[StoredFile] = []
        stamps: dict[str, Stamp] = {}
        for path, found in listing.files.items():
            if not stat.S_ISREG(found.st_mode):
                raise ArtifactCorrupt(digest, tree / path)
            sha256, stamps[path] = hash_stored(tree / path)
            executable = bool(found.st_mode & stat.S_IXUSR)
            files.append(StoredFile(path=path, sha256=sha256 or "0" * 64, executable=executable))
        if not make_up(files, digest):
            raise ArtifactCorrupt(digest, tree)
        return tuple(files), stamps

    def _repair(
        self,
        tree: Path,
        manifest: Sequence[StoredFile],
        damaged: Sequence[StoredFile],
        strangers: Collection[str],
        stamps: dict[str, Stamp],
    ) -> list[StoredFile]:
        """
        Put a tree right in place, each file by an atomic rename, so that what runs from it never misses one.

        Adds how the new files look to `stamps`. Returns the files that no sound blob is there for; they stay.
        """
        lost: list[StoredFile] = []
        sources: list[tuple[StoredFile, Path, Stamp]] = []
        for file in damaged:
            self._blobs.forget(file.sha256)
            try:
                sources.append((file, *self._blobs.sound(file.sha256, file.executable)))
            except (ArtifactCorrupt, BlobsMissing):
                self._blobs.distrust(file.sha256)
                lost.append(file)
        if sources or strangers or not lost:
            with self._blobs.disk.locked(fcntl.LOCK_EX):
                stamps |= put_right(tree, ("", *folders_of(manifest)), sources, strangers)
        return lost
