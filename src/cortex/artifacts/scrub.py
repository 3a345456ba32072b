"""Hashes everything that is stored, a little at a time, so that damage is found before someone needs the file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from cortex.artifacts.blobs import Blobs
from cortex.artifacts.disk import Stamp
from cortex.artifacts.errors import ArtifactCorrupt, BlobsMissing
from cortex.artifacts.records import Records, make_up
from cortex.artifacts.verification import Verification

SCRUB_STEP_BYTES = 4 * 2**20


class ScrubStep(NamedTuple):
    """A little work done; the caller waits `wait_s` before the next step to keep to the rate."""

    read_bytes: int
    wait_s: float
    damage: ArtifactCorrupt | None = None
    """Set when a file turned out to be damaged beyond what the store can put right itself."""


class Scrub:
    """Of one store; see `ArtifactStore.scrub`."""

    def __init__(self, blobs: Blobs, records: Records, verification: Verification) -> None:
        self._disk = blobs.disk
        self._blobs = blobs
        self._records = records
        self._verification = verification

    def steps(self, bytes_per_s: float) -> Iterator[ScrubStep]:
        seen: set[int] = set()
        for path, sha256 in self._everything(seen):
            digest = hashlib.sha256()
            with self._disk.guarded():
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                except FileNotFoundError:
                    continue  # collected meanwhile
            try:
                stamp = Stamp.of(os.fstat(descriptor))
                seen.add(stamp.inode)
                position = 0
                while chunk := _read_stored_file(descriptor, position):
                    digest.update(chunk)
                    position += len(chunk)
                    yield ScrubStep(len(chunk), len(chunk) / bytes_per_s)
            finally:
                os.close(descriptor)
            if digest.hexdigest() != sha256:
                yield ScrubStep(0, 0.0, self._damage_found(path, sha256, stamp))

    def _damage_found(self, path: Path, sha256: str, stamp: Stamp) -> ArtifactCorrupt | None:
        """Deal with a file that scrubbing found damaged; return the error unless it could be put right."""
        try:
            with self._disk.guarded():
                if self._disk.blobs not in path.parents:
                    self._blobs.distrust(sha256)
                    digest = path.relative_to(self._disk.trees).parts[0]
                    if self._records.touch(digest):
                        self._verification.verify(digest)
                    return None
                self._blobs.set_aside(path, sha256, stamp)
                self._blobs.sound(sha256, self._blobs.is_executable(path))
                return None
        except ArtifactCorrupt as error:
            return error
        except BlobsMissing:
            return ArtifactCorrupt(sha256, path)

    def _everything(self, seen: Collection[int]) -> Iterator[tuple[Path, str]]:
        """Every blob, then every file of a tree that shares no inode with what was seen; each with its digest."""
        with self._disk.guarded():
            blobs = list(self._blobs.everything())
        yield from blobs
        with self._disk.guarded():
            trees = sorted(self._disk.tree_digests())
        for digest in trees:
            with self._disk.guarded():
                record = self._records.read(digest)
            for file in record.files if record is not None and make_up(record.stored(), digest) else ():
                path = self._disk.trees / digest / file.path
                try:
                    inode = path.lstat().st_ino
                except OSError:
                    continue  # `verify` deals with what is missing
                if inode not in seen:
                    yield path, file.sha256


def _read_stored_file(descriptor: int, position: int) -> bytes:
    """A piece of a stored file; a disk error ends it, and then its digest is wrong."""
    try:
        return os.pread(descriptor, SCRUB_STEP_BYTES, position)
    except OSError:
        return b""
