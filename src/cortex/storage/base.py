"""What is asked of a cluster's storage, and what can be wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from cortex.errors import CortexError

DEADLINE_S = 10.0
"""Within about this time a call has an answer, or says that there is none."""

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


class Storage(Protocol):
    """
    Objects by key. May be used by several threads, and by any number of processes and machines at once.

    A key is names with `/` between them. What was created is seen by whoever reads it or lists it afterwards, wherever
    that is, and after a loss of power too.

    Every method raises StorageError when it cannot be done; says why, and what to do.
    """

    @property
    def place(self) -> str:
        """Where it is, as people know it."""
        ...

    def create(self, key: str, content: bytes) -> bool:
        """
        Create an object, whole, where there is none of that key.

        Returns:
            False where there is one. It may be this very one: its creation may have been asked for twice on the way.

        Raises:
            StorageError: it is not known whether it was created, or may yet be.
        """
        ...

    def read(self, key: str) -> bytes | None:
        """What an object holds; None where there is none."""
        ...

    def upload(self, key: str, file: Path) -> None:
        """
        Put a file, of any size, under a key that says what it holds: it may be put twice, and by several at once.

        Raises:
            StorageError: it is there whole, or not at all.
        """
        ...

    def download(self, key: str) -> Iterator[bytes] | None:
        """What an object of any size holds, piece by piece; None where there is none. Iterating raises as calls do."""
        ...

    def size(self, key: str) -> int | None:
        """Of an object, in bytes; None where there is none."""
        ...

    def keys(self, folder: str) -> list[str]:
        """Every key that begins with these names, sorted; empty where there is none."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are not there do no harm."""
        ...


class StorageError(CortexError):
    """A cluster's storage cannot be used now."""

    reference = "storage-unusable"

    def __init__(self, place: str, reason: str, *, hint: str = "") -> None:
        self.place = place
        self.reason = reason
        self.hint = hint
        super().__init__(f"the storage {place} cannot be used: {reason}")


class StorageDenied(StorageError):
    """A storage refuses access: names the credentials that were used, and which rights are needed."""

    reference = "storage-access-denied"


class StorageMissing(StorageError):
    """The bucket, container or directory that a storage names is not there."""

    reference = "storage-not-found"


class StorageUnreachable(StorageError):
    """A storage does not answer in time."""

    reference = "storage-unreachable"


class StorageFull(StorageError):
    """There is no room in a storage."""

    reference = "disk-full"


class InvalidStorage(CortexError):
    """What is named as a storage is none: neither the URL of a bucket nor the path of a directory."""

    reference = "invalid-storage"

    def __init__(self, named: str, reason: str) -> None:
        self.named = named
        self.hint = "write s3://bucket/prefix, gs://, az://, or the path of a directory that all nodes share"
        super().__init__(f"the storage {named!r} {reason}")


def checked_key(key: str) -> str:
    """
    Raises:
        ValueError: this is no key; a fault of ours.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"no key of a storage: {key!r}")
    return key
