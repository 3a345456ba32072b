"""Files of the artifact store by the SHA-256 of their bytes: put, found, hashed again, set aside when damaged."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from cortex.artifacts.disk import Stamp, StoreDisk, hash_stored, mode_of, names
from cortex.artifacts.errors import (
    ArtifactCorrupt,
    BlobsMissing,
    BlobTooLarge,
    DigestMismatch,
)
from cortex.artifacts.hashing import CHUNK_BYTES, hash_descriptor, is_sha256
from cortex.artifacts.records import Records

FICLONE = 0x40049409
"""Share a file's blocks copy-on-write. Source: linux/fs.h, `_IOW(0x94, 9, int)`; ioctl_ficlone(2)."""
TRUSTED_BLOBS = 50_000
"""How many hashed blobs a process remembers; beyond that they are forgotten, which costs hashing them again."""
_EXECUTABLE = ".x"


class StoredBlob(NamedTuple):
    sha256: str
    size_bytes: int


class Blobs:
    """Those of one store. Each may be there twice, plain and executable: hard links share their mode."""

    def __init__(self, disk: StoreDisk, records: Records) -> None:
        self.disk = disk
        self._records = records
        self._trusted: dict[str, Stamp] = {}
        self._trusted_guard = threading.Lock()

    def path_of(self, sha256: str, executable: bool) -> Path:
        return self.disk.blobs / sha256[:2] / (sha256 + (_EXECUTABLE if executable else ""))

    def find(self, sha256: str) -> Path | None:
        """A file with these bytes, if there is one."""
        paths = (self.path_of(sha256, executable) for executable in (False, True))
        return next((path for path in paths if path.exists()), None)

    def is_executable(self, path: Path) -> bool:
        """Whether a blob's path is that of an executable twin."""
        return path.name.endswith(_EXECUTABLE)

    def touch(self, sha256: str) -> bool:
        """Whether the bytes are here; if so, keep them a while. The shared lock must be held."""
        found = False
        for executable in (False, True):
            path = self.path_of(sha256, executable)
            try:
                os.chmod(path, mode_of(executable))
                found = True
            except FileNotFoundError:
                continue
            except OSError:
                if not path.exists():
                    raise
                found = True  # read-only: then nobody removes it either
        return found

    def trust(self, path: Path, stamp: Stamp) -> None:
        """It was hashed, and holds its bytes as long as it looks like this."""
        with self._trusted_guard:
            if len(self._trusted) >= TRUSTED_BLOBS:
                self._trusted.clear()
            self._trusted[path.name] = stamp

    def forget(self, sha256: str) -> None:
        """Hash it again before it counts as sound."""
        with self._trusted_guard:
            for executable in (False, True):
                self._trusted.pop(self.path_of(sha256, executable).name, None)

    def _is_trusted(self, path: Path, stamp: Stamp) -> bool:
        with self._trusted_guard:
            return self._trusted.get(path.name) == stamp

    def sound(self, sha256: str, executable: bool) -> tuple[Path, Stamp]:
        """
        A blob that is known to hold its bytes, made from its twin with the other mode if need be.

        Raises:
            ArtifactCorrupt: it was found damaged just now and has no sound twin.
            BlobsMissing: it is not there, nor is its twin.
        """
        path = self.path_of(sha256, executable)
        damaged: Path | None = None
        with suppress(FileNotFoundError):
            stamp = self._hash(path, sha256)
            if stamp is not None:
                return path, stamp
            damaged = path
        twin = self.path_of(sha256, not executable)
        with suppress(FileNotFoundError):
            if self._hash(twin, sha256) is not None:
                if self._copy(twin, path, sha256, executable):
                    found = self._hash(path, sha256)
                    if found is not None:
                        return path, found
                else:
                    self.forget(sha256)
                    self._hash(twin, sha256)  # it was trusted for its looks: now it is set aside
            damaged = damaged or twin
        if damaged is not None:
            raise ArtifactCorrupt(sha256, damaged)
        raise BlobsMissing((sha256,))

    def _hash(self, path: Path, sha256: str) -> Stamp | None:
        """How a sound blob looks; None if it is damaged, and then it has been set aside. Absent: FileNotFoundError."""
        stamp = Stamp.of(path.lstat())
        if self._is_trusted(path, stamp):
            return stamp
        found, stamp = hash_stored(path)
        if found == sha256:
            self.trust(path, stamp)
            return stamp
        self.set_aside(path, sha256, stamp)
        return None

    def _copy(self, source: Path, target: Path, sha256: str, executable: bool) -> bool:
        """False: the source holds other bytes than when it was hashed."""
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            with BlobWriter(self, sha256, None, executable=executable) as writer:
                if not writer.clone(descriptor):
                    position = 0
                    while chunk := os.pread(descriptor, CHUNK_BYTES, position):
                        writer.write(chunk)
                        position += len(chunk)
                writer.commit()
        except DigestMismatch:
            return False
        finally:
            os.close(descriptor)
        return True

    def set_aside(self, path: Path, sha256: str, stamp: Stamp) -> None:
        """Move a damaged blob out of the way, unless another thread did or has put a new one there meanwhile."""
        self.distrust(sha256)
        with suppress(OSError), self.disk.locked(fcntl.LOCK_EX):
            if Stamp.of(path.lstat()) == stamp:
                self.disk.quarantine.mkdir(mode=0o755, exist_ok=True)
                path.rename(self.disk.quarantine / f"{path.name}.{secrets.token_hex(4)}")

    def distrust(self, sha256: str) -> None:
        """See to it that these bytes are hashed again wherever they are, before they are used."""
        self.forget(sha256)
        self._records.distrust(sha256)

    def discard(self, sha256: str) -> None:
        """Remove it, unless a tree holds it. The exclusive lock must be held."""
        for executable in (False, True):
            path = self.path_of(sha256, executable)
            with suppress(FileNotFoundError):
                if path.lstat().st_nlink == 1:
                    path.unlink()
                    self.forget(sha256)

    def everything(self) -> Iterator[tuple[Path, str]]:
        """Every blob with its digest, twins for themselves."""
        for shard in sorted(names(self.disk.blobs)):
            for name in sorted(names(self.disk.blobs / shard)):
                if is_sha256(sha256 := name.removesuffix(_EXECUTABLE)):
                    yield self.disk.blobs / shard / name, sha256


class BlobWriter:
    """Bytes on their way into the store; see `ArtifactStore.writer`."""

    def __init__(self, blobs: Blobs, sha256: str | None, size_limit: int | None, *, executable: bool = False) -> None:
        self._blobs = blobs
        self._expected = sha256
        self._limit = size_limit
        self._executable = executable
        self._hash = hashlib.sha256()
        self._cloned = False
        self.size_bytes = 0
        with blobs.disk.guarded():
            self._path, self._descriptor = blobs.disk.new_file("blob-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        with suppress(OSError):  # gone by `commit`, or collected as a stray later
            self._path.unlink()

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Raises BlobTooLarge, StoreUnavailable."""
        self.size_bytes += len(chunk)
        if self._limit is not None and self.size_bytes > self._limit:
            raise BlobTooLarge(self._limit)
        self._hash.update(chunk)
        with self._blobs.disk.guarded():
            view = memoryview(chunk)
            while view:
                view = view[os.write(self._descriptor, view) :]

    def clone(self, source: int) -> bool:
        """Take the whole of an open file by sharing its blocks; False where the file system cannot."""
        try:
            fcntl.ioctl(self._descriptor, FICLONE, source)
        except OSError:
            return False
        self._cloned = True
        return True

    def commit(self) -> StoredBlob:
        """
        Make the bytes a blob, durably.

        Raises:
            DigestMismatch: they are not the ones that were announced.
            StoreUnavailable
        """
        disk = self._blobs.disk
        with disk.guarded():
            if self._cloned:
                self.size_bytes = os.fstat(self._descriptor).st_size
            sha256 = hash_descriptor(self._descriptor) if self._cloned else self._hash.hexdigest()
            if self._expected is not None and sha256 != self._expected:
                raise DigestMismatch(self._expected, sha256, self.size_bytes)
            os.fchmod(self._descriptor, mode_of(self._executable))
            os.fsync(self._descriptor)
            target = self._blobs.path_of(sha256, self._executable)
            target.parent.mkdir(mode=0o755, exist_ok=True)
            stamp = Stamp.of(os.fstat(self._descriptor))
            with disk.locked(fcntl.LOCK_SH):
                self._path.rename(target)
            self._blobs.trust(target, stamp)
        return StoredBlob(sha256, self.size_bytes)
