"""
The artifact store: files by the SHA-256 of their bytes, folders by the digest of what they hold.

`disk` says where things are, `blobs` and `checkout` put them there, `records` remembers how they looked, `verification`
and `scrub` find and repair damage, `garbage` and `pins` decide what may go.

Blobs and trees appear by an atomic rename after their bytes are on disk, so that a crash at any point leaves at most a
temporary file, which `collect_garbage` removes. Any number of threads and processes may use one store at once.

Recency is kept by the file system: of a tree, the mtime of its record; of a blob, its ctime, which linking it and
touching it (a chmod to the mode it has) move and which nobody can set back.
"""

from __future__ import annotations

import fcntl
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cortex import processes
from cortex.artifacts.blobs import Blobs, BlobWriter, StoredBlob
from cortex.artifacts.checkout import lay_out
from cortex.artifacts.disk import StoreDisk, check_digest
from cortex.artifacts.errors import ArtifactMissing, BlobsMissing
from cortex.artifacts.garbage import Collected, Garbage
from cortex.artifacts.hashing import CHUNK_BYTES
from cortex.artifacts.pins import Pin
from cortex.artifacts.records import Records
from cortex.artifacts.scrub import Scrub, ScrubStep
from cortex.artifacts.trees import checked, tree_digest
from cortex.artifacts.verification import Verification, Verified
from cortex.wire.operator import StoredFile


class ArtifactStore:
    """
    A content-addressed store below one folder.

    Args:
        root: created when something is first written. Everything in it belongs to this class.
        boot_id: tells one start of the machine from the next; None asks the kernel. Empty: unknown, so that nothing
            hashed before counts.
    """

    def __init__(self, root: Path, *, boot_id: str | None = None) -> None:
        self.root = root
        self._disk = StoreDisk(root)
        self._records = Records(self._disk, processes.boot_id() if boot_id is None else boot_id)
        self._blobs = Blobs(self._disk, self._records)
        self._verification = Verification(self._blobs, self._records)

    # --- blobs -------------------------------------------------------------------------------------------------------

    def missing(self, digests: Iterable[str]) -> tuple[str, ...]:
        """
        Return those digests whose blobs have to be put, in the order given.

        The others are kept for `UPLOAD_GRACE_S` from now on.

        Raises:
            InvalidDigest: one of them is no digest.
            StoreUnavailable
        """
        wanted = tuple(dict.fromkeys(digests))
        for digest in wanted:
            check_digest(digest)
        with self._disk.guarded(), self._disk.locked(fcntl.LOCK_SH):
            return tuple(digest for digest in wanted if not self._blobs.touch(digest))

    def put(self, sha256: str, source: Iterable[bytes] | BinaryIO, *, size_limit: int | None = None) -> StoredBlob:
        """
        Store bytes under their digest. A blob that is there already is not read again.

        Args:
            source: chunks of bytes, or an open binary file.

        Raises:
            DigestMismatch: the bytes have another digest; nothing is kept. Same for the other errors.
            BlobTooLarge: more than `size_limit` arrived.
            InvalidDigest, StoreUnavailable
            Anything that `source` raises.
        """
        check_digest(sha256)
        with self._disk.guarded():
            if not self.missing([sha256]):
                return StoredBlob(sha256, self.blob_path(sha256).stat().st_size)
        with self.writer(sha256, size_limit=size_limit) as writer:
            for chunk in _chunks(source):
                writer.write(chunk)
            return writer.commit()

    def writer(self, sha256: str | None = None, *, size_limit: int | None = None) -> BlobWriter:
        """
        Store bytes as they arrive: a context manager with `write` and `commit`. Left without `commit`, nothing is kept.

        Args:
            sha256: what the bytes must hash to; None when only the bytes will tell.

        Raises:
            InvalidDigest, StoreUnavailable
        """
        if sha256 is not None:
            check_digest(sha256)
        return BlobWriter(self._blobs, sha256, size_limit)

    def blob_path(self, sha256: str) -> Path:
        """
        A file with the bytes of a blob, to be read soon: it stays while a tree holds it, or for `UPLOAD_GRACE_S`.

        Raises:
            BlobsMissing: there is none.
            InvalidDigest
        """
        check_digest(sha256)
        path = self._blobs.find(sha256)
        if path is None:
            raise BlobsMissing((sha256,))
        return path

    def discard(self, sha256: str) -> None:
        """
        Remove a blob at once instead of after its grace time, unless a tree holds it.

        Raises:
            InvalidDigest, StoreUnavailable
        """
        check_digest(sha256)
        with self._disk.guarded(), self._disk.locked(fcntl.LOCK_EX):
            self._blobs.discard(sha256)

    # --- trees -------------------------------------------------------------------------------------------------------

    def put_tree(self, files: Sequence[StoredFile]) -> str:
        """
        Lay out a folder with these files and return its digest (`trees.tree_digest`).

        Its blobs must be there. A tree that exists is verified instead, and put right where it is damaged. When this
        returns, the tree outlives a power failure.

        Raises:
            BlobsMissing: names every blob that has to be put first.
            ArtifactCorrupt: a blob was found damaged; it is set aside, and `missing` names it from now on.
            InvalidTree, InvalidDigest, StoreUnavailable
        """
        ordered = checked(files)
        digest = tree_digest(ordered)
        with self._disk.guarded():
            with self._disk.locked(fcntl.LOCK_SH):
                exists = self._records.touch(digest)
                missing = [] if exists else [f.sha256 for f in ordered if not self._blobs.touch(f.sha256)]
            if missing:
                raise BlobsMissing(tuple(dict.fromkeys(missing)))
            if exists:
                self._verification.verify(digest, ordered)
            else:
                lay_out(digest, ordered, self._blobs, self._records)
        return digest

    def keep(self, digests: Iterable[str]) -> None:
        """
        Have these trees wherever they have to be before the state may refer to them. For this store, that is here.

        Raises:
            CortexError: one of them is not; `shared` says why.
        """

    def tree_path(self, digest: str) -> Path:
        """
        Folder of a stored tree, and mark it as used. Cheap; see `verify` for whether its bytes are right.

        Raises:
            ArtifactMissing: there is no such tree.
            InvalidDigest, StoreUnavailable
        """
        check_digest(digest)
        with self._disk.guarded():
            if not self._records.touch(digest):
                raise ArtifactMissing(digest)
        return self._disk.trees / digest

    def has(self, digest: str) -> bool:
        """Whether there is such a tree. Raises StoreUnavailable."""
        return digest in self.trees()

    def trees(self) -> tuple[str, ...]:
        """Digests of all stored trees, sorted. Raises StoreUnavailable."""
        with self._disk.guarded():
            return tuple(sorted(self._disk.tree_digests()))

    def verify(self, digest: str) -> Verified:
        """
        Make sure that a tree holds what its digest says, and put right what can be put right.

        Files are hashed when inode, size, mtime, mode or boot id differ from when they were last hashed; otherwise this
        costs one `stat` a file. What is damaged is replaced, file by file and atomically, from blobs that are sound.

        Raises:
            ArtifactCorrupt: a file is damaged and so is its blob: the blob is set aside, the tree stays where it is, so
                that what runs from it goes on. After the blob was put again, `put_tree` or `verify` repairs the tree.
            ArtifactMissing: there is no such tree.
            InvalidDigest, StoreUnavailable
        """
        check_digest(digest)
        with self._disk.guarded():
            if not self._records.touch(digest):
                raise ArtifactMissing(digest)
            try:
                return self._verification.verify(digest)
            except FileNotFoundError as error:
                if (self._disk.trees / digest).is_dir():
                    raise
                raise ArtifactMissing(digest) from error  # collected meanwhile

    def listing(self, digest: str) -> dict[StoredFile, int]:
        """
        The files of a tree, which is verified first, each with its size in bytes.

        Raises:
            ArtifactCorrupt, ArtifactMissing, InvalidDigest, StoreUnavailable
        """
        tree = self.verify(digest).path
        with self._disk.guarded():
            return {file: (tree / file.path).lstat().st_size for file in self._verification.files(digest)}

    # --- upkeep ------------------------------------------------------------------------------------------------------

    @contextmanager
    def pin(self, *digests: str) -> Iterator[Pin]:
        """
        Keep trees from being collected while the block runs; they need not exist yet. Ends with the process, too.

        Raises:
            InvalidDigest, StoreUnavailable
        """
        with self._disk.guarded():
            pin = Pin(self._disk)
            try:
                with self._disk.locked(fcntl.LOCK_SH):
                    pin.take()
                pin.add(*digests)
            except BaseException:
                pin.release()
                raise
        try:
            yield pin
        finally:
            pin.release()

    def scrub(self, *, bytes_per_s: float) -> Iterator[ScrubStep]:
        """
        Hash everything once, a few megabytes at a time, so that damage is found before someone needs the file.

        Never waits itself: the caller lets `wait_s` pass between steps. What is damaged is put right from its twin if
        there is one; else it is set aside and reported, and `verify` of the trees that hold it says so until they are
        repaired.

        Raises:
            StoreUnavailable
        """
        return Scrub(self._blobs, self._records, self._verification).steps(bytes_per_s)

    def collect_garbage(self, in_use: Collection[str], keep_bytes: int, now_wall_s: float) -> Collected:
        """
        Remove what is not needed: the least recently used trees until at most `keep_bytes` remain, and
        `MAX_UNUSED_TREES` that nobody needs; and leftovers.

        Never removed: trees `in_use`, pinned ones, ones used within `UNUSED_GRACE_S`, and their blobs; together they
        may be more than `keep_bytes`. Always removed: blobs that no tree has held for `UPLOAD_GRACE_S`, temporary
        files older than `STRAY_AGE_S`, and what was set aside for `UPLOAD_GRACE_S`.

        Args:
            in_use: tree digests.
            keep_bytes: how large the store may remain; bytes shared by trees count once.
            now_wall_s: wall clock.

        Raises:
            StoreUnavailable
        """
        return Garbage(self._blobs, self._records).collect(in_use, keep_bytes, now_wall_s)


def _chunks(source: Iterable[bytes] | BinaryIO) -> Iterator[bytes]:
    if hasattr(source, "read"):
        while chunk := source.read(CHUNK_BYTES):
            yield chunk
    else:
        yield from source
