"""
An artifact store of a machine that may be lost: what the state refers to also lies in the cluster's storage.

    blobs/<first two digits>/<sha256>    the bytes of a file
    trees/<digest>                       which files a folder holds; there once all of their blobs are

Before the state refers to a folder it is put there (`keep`). A store that lacks one brings it when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from cortex.artifacts.disk import check_digest
from cortex.artifacts.errors import ArtifactCorrupt, ArtifactMissing, BlobsMissing
from cortex.artifacts.store import ArtifactStore
from cortex.artifacts.trees import tree_digest
from cortex.artifacts.verification import Verified
from cortex.storage.base import Storage, StorageError
from cortex.wire.operator import StoredFile

AT_ONCE = 8
"""Files on their way at a time: of a project with hundreds of small ones each costs some 50 ms."""


class SharedArtifactStore(ArtifactStore):
    """
    Args:
        storage: of the cluster. Nothing in it is removed by this class.

    Whatever an `ArtifactStore` raises, and StorageError where something has to be brought that cannot be.
    """

    def __init__(self, root: Path, storage: Storage, *, boot_id: str | None = None) -> None:
        super().__init__(root, boot_id=boot_id)
        self._storage = storage
        self._kept: set[str] = set()
        """Trees that are known to be in the storage: nobody removes them from there."""

    def keep(self, digests: Iterable[str]) -> None:
        """
        Have these folders in the storage, too. What is there already is not sent again.

        Raises:
            ArtifactMissing, ArtifactCorrupt: this store does not have one as it should be.
            StorageError: one is not there as a whole; the next time goes on from what is.
        """
        for digest in dict.fromkeys(digests):
            if digest not in self._kept and self._storage.size(_tree_key(digest)) is None:
                self._send(digest)
            self._kept.add(digest)

    def has(self, digest: str) -> bool:
        return super().has(digest) or self._storage.size(_tree_key(digest)) is not None

    def tree_path(self, digest: str) -> Path:
        try:
            return super().tree_path(digest)
        except ArtifactMissing:
            self._bring(digest)
            return super().tree_path(digest)

    def verify(self, digest: str) -> Verified:
        try:
            return super().verify(digest)
        except ArtifactMissing:
            self._bring(digest)
        except ArtifactCorrupt:
            if self._storage.size(_tree_key(digest)) is None:
                raise
            self._repair(digest)
        return super().verify(digest)

    def blob_path(self, sha256: str) -> Path:
        try:
            return super().blob_path(sha256)
        except BlobsMissing:
            self._bring_blob(sha256)
            return super().blob_path(sha256)

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _send(self, digest: str) -> None:
        sizes = self.listing(digest)
        files = tuple(sizes)

        def send(file: StoredFile) -> None:
            key = _blob_key(file.sha256)
            if self._storage.size(key) != sizes[file]:
                self._storage.upload(key, self.tree_path(digest) / file.path)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(send, {file.sha256: file for file in files}.values()))
        self._storage.create(_tree_key(digest), msgspec.json.encode(files))

    def _bring(self, digest: str) -> None:
        """
        Raises:
            ArtifactMissing: the storage does not have it either.
        """
        check_digest(digest)
        files = self._files(digest)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._bring_blob, self.missing(file.sha256 for file in files)))
        self.put_tree(files)

    def _repair(self, digest: str) -> None:
        """Bring files that are damaged here; each is found by itself, once the one before is sound again."""
        files = self._files(digest)
        for _ in files:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self._bring_blob, self.missing(file.sha256 for file in files)))
            try:
                self.put_tree(files)
            except ArtifactCorrupt:
                continue
            return

    def _files(self, digest: str) -> tuple[StoredFile, ...]:
        listed = self._storage.read(_tree_key(digest))
        if listed is None:
            raise ArtifactMissing(digest)
        try:
            files = msgspec.json.decode(listed, type=tuple[StoredFile, ...])
        except msgspec.MsgspecError as error:
            raise self._damaged(_tree_key(digest)) from error
        if tree_digest(files) != digest:
            raise self._damaged(_tree_key(digest))
        return files

    def _bring_blob(self, sha256: str) -> None:
        pieces = self._storage.download(_blob_key(sha256))
        if pieces is None:
            raise BlobsMissing((sha256,))
        self.put(sha256, pieces)

    def _damaged(self, key: str) -> StorageError:
        hint = "remove it there and deploy again: what is missing is put anew"
        return StorageError(self._storage.place, f"{key} does not hold what its name says", hint=hint)


def _tree_key(digest: str) -> str:
    return f"trees/{digest}"


def _blob_key(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"
