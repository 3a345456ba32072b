"""Trees that running deploys need, as one locked file for each deploy: its lock ends with the process."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress

from cortex.artifacts.disk import StoreDisk, check_digest, names


class Pin:
    """Trees that a running deploy needs; see `ArtifactStore.pin`."""

    def __init__(self, disk: StoreDisk) -> None:
        self._path = disk.pins / secrets.token_hex(8)
        self._disk = disk
        self._descriptor = -1

    def take(self) -> None:
        self._path.parent.mkdir(mode=0o755, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def add(self, *digests: str) -> None:
        """Also keep these. Raises InvalidDigest, StoreUnavailable."""
        for digest in digests:
            check_digest(digest)
        with self._disk.guarded():
            os.write(self._descriptor, "".join(f"{digest}\n" for digest in digests).encode())

    def release(self) -> None:
        if self._descriptor >= 0:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1


def pinned(disk: StoreDisk) -> set[str]:
    """Digests of all pinned trees; forgets the pins of processes that died."""
    digests: set[str] = set()
    for name in names(disk.pins):
        try:
            descriptor = os.open(disk.pins / name, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # its owner lives
            digests.update(os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode().split())
        else:
            (disk.pins / name).unlink(missing_ok=True)
        finally:
            os.close(descriptor)
    return digests
