"""
The artifact store: files by the SHA-256 of their bytes, folders by the digest of what they hold.

    <root>/
    ├── blobs/ab/abcd…        the bytes with that SHA-256, mode 0444
    ├── blobs/ab/abcd….x      the same bytes once more, mode 0555: hard links share their mode
    ├── trees/<digest>/…      a folder laid out with hard links to blobs, folders 0555; there whole or not at all
    ├── records/<digest>.json which files a tree has, and how they looked when they were last hashed; may be lost
    ├── quarantine/           blobs that no longer had their bytes, for whoever wants to know why
    ├── pins/                 one locked file for each running deploy: trees that must not be collected
    ├── tmp/                  blobs that are being written
    └── lock                  shared: "this is here, keep it"; exclusive: removing and repairing

Blobs and trees appear by an atomic rename after their bytes are on disk, so that a crash at any point leaves at most a
temporary file, which `collect_garbage` removes. Any number of threads and processes may use one store at once.

Recency is kept by the file system: of a tree, the mtime of its record; of a blob, its ctime, which linking it and
touching it (a chmod to the mode it has) move and which nobody can set back.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import msgspec

from cortex.artifacts.errors import (
    ArtifactCorrupt,
    ArtifactMissing,
    BlobsMissing,
    BlobTooLarge,
    DigestMismatch,
    FileChanged,
    InvalidDigest,
    InvalidTree,
    StoreUnavailable,
    UnusableFile,
)
from cortex.artifacts.hashing import CHUNK_BYTES, hash_descriptor, is_sha256, open_regular, same_content
from cortex.artifacts.trees import checked, folders_of, tree_digest
from cortex.wire.operator import StoredFile

FICLONE = 0x40049409
"""Share a file's blocks copy-on-write. Source: linux/fs.h, `_IOW(0x94, 9, int)`; ioctl_ficlone(2)."""

STRAY_AGE_S = 3600.0
"""A temporary file that nobody wrote to for this long belongs to a process that died."""
UPLOAD_GRACE_S = 24 * 3600.0
"""How long a blob that no tree holds is kept: a large upload takes hours, and one that failed is soon repeated."""
UNUSED_GRACE_S = 900.0
"""
A tree, or a blob that a tree just let go, is kept for this long after it was last used: the caller of
`collect_garbage` read what is in use a moment ago, and a deploy may have finished since.
"""
SCRUB_STEP_BYTES = 4 * 2**20
TRUSTED_BLOBS = 50_000
"""How many hashed blobs a process remembers; beyond that they are forgotten, which costs hashing them again."""

LINK_TRIES = 100
"""Each failed one means that another process has put the same blob in between, which few do at once."""

_EXECUTABLE = ".x"
_NEW, _GONE = ".new-", ".gone-"


class StoredBlob(NamedTuple):
    sha256: str
    size_bytes: int


class Verified(NamedTuple):
    """A tree that holds what its digest says."""

    path: Path
    hashed_bytes: int
    """0 when nothing had changed since it was last hashed."""
    repaired: tuple[str, ...]
    """Paths that were wrong and have been put right from blobs."""


class ScrubStep(NamedTuple):
    """A little work done; the caller waits `wait_s` before the next step to keep to the rate."""

    read_bytes: int
    wait_s: float
    damage: ArtifactCorrupt | None = None
    """Set when a file turned out to be damaged beyond what the store can put right itself."""


class Collected(NamedTuple):
    """What `collect_garbage` did."""

    trees: tuple[str, ...]
    """Digests of the trees removed, least recently used first."""
    blobs: int
    strays: int
    """Temporary and quarantined files removed."""
    freed_bytes: int
    kept_bytes: int


class _Stamp(NamedTuple):
    """How a file looked: while this stays the same and the machine is not restarted, so do the bytes."""

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> _Stamp:
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)


class _RecordedFile(msgspec.Struct, frozen=True, array_like=True):
    path: str
    sha256: str
    executable: bool
    stamp: _Stamp | None


class _Record(msgspec.Struct, frozen=True):
    """A tree as it was when every file of it had been hashed during this boot."""

    boot_id: str
    """Empty: not to be relied on, hash everything again."""
    files: tuple[_RecordedFile, ...]
    folders: dict[str, tuple[int, int]]
    """Inode and mtime of each folder, `""` being the top one: they move when an entry comes or goes."""

    def stored(self) -> tuple[StoredFile, ...]:
        return tuple(StoredFile(path=f.path, sha256=f.sha256, executable=f.executable) for f in self.files)


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
        self._blobs = root / "blobs"
        self._trees = root / "trees"
        self._records = root / "records"
        self._quarantine = root / "quarantine"
        self._pins = root / "pins"
        self._tmp = root / "tmp"
        self._boot_id = kernel_boot_id() if boot_id is None else boot_id
        self._trusted: dict[str, _Stamp] = {}
        self._trusted_guard = threading.Lock()

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
            _check_digest(digest)
        with self._guarded(), self._locked(fcntl.LOCK_SH):
            return tuple(digest for digest in wanted if not self._touch_blob(digest))

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
        _check_digest(sha256)
        with self._guarded():
            if not self.missing([sha256]):
                return StoredBlob(sha256, self._size_of(sha256))
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
            _check_digest(sha256)
        return BlobWriter(self, sha256, size_limit)

    def put_file(self, path: Path, *, sha256: str | None = None) -> StoredBlob:
        """
        Copy a user's file into the store, sharing its blocks where the file system can (never its inode).

        Args:
            sha256: what the file must hash to; None takes it as it is.

        Raises:
            FileChanged: it was written to while it was copied.
            DigestMismatch: it has another digest. Nothing is kept; same for the other errors.
            UnusableFile: it cannot be read, or is no regular file. A missing one too.
            InvalidDigest, StoreUnavailable
        """
        try:
            source = open_regular(path)
        except FileNotFoundError as error:
            raise UnusableFile(path, "does not exist") from error
        try:
            before = os.fstat(source)
            with self.writer(sha256) as writer:
                if not writer.clone(source):
                    while chunk := _read_users_file(source, path):
                        writer.write(chunk)
                    if not same_content(before, os.fstat(source)):
                        raise FileChanged(path)
                return writer.commit()
        finally:
            os.close(source)

    def blob_path(self, sha256: str) -> Path:
        """
        A file with the bytes of a blob, to be read soon: it stays while a tree holds it, or for `UPLOAD_GRACE_S`.

        Raises:
            BlobsMissing: there is none.
            InvalidDigest
        """
        _check_digest(sha256)
        for executable in (False, True):
            path = self._blob(sha256, executable)
            if path.exists():
                return path
        raise BlobsMissing((sha256,))

    def discard(self, sha256: str) -> None:
        """
        Remove a blob at once instead of after its grace time, unless a tree holds it.

        Raises:
            InvalidDigest, StoreUnavailable
        """
        _check_digest(sha256)
        with self._guarded(), self._locked(fcntl.LOCK_EX):
            for executable in (False, True):
                path = self._blob(sha256, executable)
                with suppress(FileNotFoundError):
                    if path.lstat().st_nlink == 1:
                        path.unlink()
                        self._forget(sha256)

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
        with self._guarded():
            with self._locked(fcntl.LOCK_SH):
                exists = self._touch_tree(digest)
                missing = [] if exists else [f.sha256 for f in ordered if not self._touch_blob(f.sha256)]
            if missing:
                raise BlobsMissing(tuple(dict.fromkeys(missing)))
            if exists:
                self._verify(digest, ordered)
            else:
                self._build(digest, ordered)
        return digest

    def tree_path(self, digest: str) -> Path:
        """
        Folder of a stored tree, and mark it as used. Cheap; see `verify` for whether its bytes are right.

        Raises:
            ArtifactMissing: there is no such tree.
            InvalidDigest, StoreUnavailable
        """
        _check_digest(digest)
        with self._guarded():
            if not self._touch_tree(digest):
                raise ArtifactMissing(digest)
        return self._trees / digest

    def trees(self) -> tuple[str, ...]:
        """Digests of all stored trees, sorted. Raises StoreUnavailable."""
        with self._guarded():
            return tuple(sorted(name for name in _names(self._trees) if is_sha256(name)))

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
        _check_digest(digest)
        with self._guarded():
            if not self._touch_tree(digest):
                raise ArtifactMissing(digest)
            try:
                return self._verify(digest, None)
            except FileNotFoundError as error:
                if (self._trees / digest).is_dir():
                    raise
                raise ArtifactMissing(digest) from error  # collected meanwhile

    # --- upkeep ------------------------------------------------------------------------------------------------------

    @contextmanager
    def pin(self, *digests: str) -> Iterator[Pin]:
        """
        Keep trees from being collected while the block runs; they need not exist yet. Ends with the process, too.

        Raises:
            InvalidDigest, StoreUnavailable
        """
        with self._guarded():
            pin = Pin(self._pins / secrets.token_hex(8), self)
            try:
                with self._locked(fcntl.LOCK_SH):
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
        seen: set[int] = set()
        for path, sha256 in self._everything_stored(seen):
            digest = hashlib.sha256()
            with self._guarded():
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                except FileNotFoundError:
                    continue  # collected meanwhile
            try:
                stamp = _Stamp.of(os.fstat(descriptor))
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

    def collect_garbage(self, in_use: Collection[str], keep_bytes: int, now_wall_s: float) -> Collected:
        """
        Remove what is not needed: the least recently used trees until at most `keep_bytes` remain, and leftovers.

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
        with self._guarded(), self._locked(fcntl.LOCK_EX):
            self._remove_buried()  # by whoever did not get to it
            strays = self._remove_strays(now_wall_s)
            protected = set(in_use) | self._pinned()
            census = _Census(self._blob_paths(), {d: self._trees / d for d in self._tree_names()})
            before_bytes = census.bytes
            blobs = self._remove_unheld(census, census.unheld(), now_wall_s - UPLOAD_GRACE_S)
            removed: list[str] = []
            for used_wall_s, digest in sorted((self._last_used(d), d) for d in census.trees):
                if census.bytes <= keep_bytes:
                    break
                if digest in protected or now_wall_s - used_wall_s < UNUSED_GRACE_S:
                    continue
                self._bury(digest)
                removed.append(digest)
                blobs += self._remove_unheld(census, census.let_go(digest), now_wall_s - UNUSED_GRACE_S)
            self._remove_buried()
            return Collected(tuple(removed), blobs, strays, before_bytes - census.bytes, census.bytes)

    # --- inside: blobs -----------------------------------------------------------------------------------------------

    def _blob(self, sha256: str, executable: bool) -> Path:
        return self._blobs / sha256[:2] / (sha256 + (_EXECUTABLE if executable else ""))

    def _touch_blob(self, sha256: str) -> bool:
        """Whether the bytes are here; if so, keep them a while. The shared lock must be held."""
        found = False
        for executable in (False, True):
            path = self._blob(sha256, executable)
            try:
                os.chmod(path, _mode(executable))
                found = True
            except FileNotFoundError:
                continue
            except OSError:
                if not path.exists():
                    raise
                found = True  # read-only: then nobody removes it either
        return found

    def _size_of(self, sha256: str) -> int:
        path = self._blob(sha256, False)
        return (path if path.exists() else self._blob(sha256, True)).stat().st_size

    def _trust(self, path: Path, stamp: _Stamp) -> None:
        with self._trusted_guard:
            if len(self._trusted) >= TRUSTED_BLOBS:
                self._trusted.clear()
            self._trusted[path.name] = stamp

    def _forget(self, sha256: str) -> None:
        with self._trusted_guard:
            for executable in (False, True):
                self._trusted.pop(self._blob(sha256, executable).name, None)

    def _is_trusted(self, path: Path, stamp: _Stamp) -> bool:
        with self._trusted_guard:
            return self._trusted.get(path.name) == stamp

    def _sound(self, sha256: str, executable: bool) -> tuple[Path, _Stamp]:
        """
        A blob that is known to hold its bytes, made from its twin with the other mode if need be.

        Raises:
            ArtifactCorrupt: it was found damaged just now and has no sound twin.
            BlobsMissing: it is not there, nor is its twin.
        """
        path = self._blob(sha256, executable)
        damaged: Path | None = None
        with suppress(FileNotFoundError):
            stamp = self._hash_blob(path, sha256)
            if stamp is not None:
                return path, stamp
            damaged = path
        twin = self._blob(sha256, not executable)
        with suppress(FileNotFoundError):
            if self._hash_blob(twin, sha256) is not None:
                self._copy_blob(twin, path, sha256, executable)
                found = self._hash_blob(path, sha256)
                if found is not None:
                    return path, found
            damaged = damaged or twin
        if damaged is not None:
            raise ArtifactCorrupt(sha256, damaged)
        raise BlobsMissing((sha256,))

    def _hash_blob(self, path: Path, sha256: str) -> _Stamp | None:
        """How a sound blob looks; None if it is damaged, and then it has been set aside. Absent: FileNotFoundError."""
        stamp = _Stamp.of(path.lstat())
        if self._is_trusted(path, stamp):
            return stamp
        found, stamp = _hash_stored(path)
        if found == sha256:
            self._trust(path, stamp)
            return stamp
        self._set_aside(path, sha256, stamp)
        return None

    def _copy_blob(self, source: Path, target: Path, sha256: str, executable: bool) -> None:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            with BlobWriter(self, sha256, None, executable=executable) as writer:
                if not writer.clone(descriptor):
                    position = 0
                    while chunk := os.pread(descriptor, CHUNK_BYTES, position):
                        writer.write(chunk)
                        position += len(chunk)
                with suppress(DigestMismatch):  # damaged since it was hashed: the caller finds no target
                    writer.commit()
        finally:
            os.close(descriptor)

    def _set_aside(self, path: Path, sha256: str, stamp: _Stamp) -> None:
        """Move a damaged blob out of the way, unless another thread did or has put a new one there meanwhile."""
        self._distrust(sha256)
        with suppress(OSError), self._locked(fcntl.LOCK_EX):
            if _Stamp.of(path.lstat()) == stamp:
                self._quarantine.mkdir(mode=0o755, exist_ok=True)
                path.rename(self._quarantine / f"{path.name}.{secrets.token_hex(4)}")

    def _distrust(self, sha256: str) -> None:
        """See to it that these bytes are hashed again wherever they are, before they are used."""
        self._forget(sha256)
        for name in _names(self._records):
            digest = name.removesuffix(".json")
            record = self._read_record(digest)
            if record is not None and any(file.sha256 == sha256 for file in record.files):
                self._write_record(digest, msgspec.structs.replace(record, boot_id=""))

    def _damage_found(self, path: Path, sha256: str, stamp: _Stamp) -> ArtifactCorrupt | None:
        """Deal with a file that scrubbing found damaged; return the error unless it could be put right."""
        try:
            with self._guarded():
                if self._blobs not in path.parents:
                    self._distrust(sha256)
                    digest = path.relative_to(self._trees).parts[0]
                    if self._touch_tree(digest):
                        self._verify(digest, None)
                    return None
                self._set_aside(path, sha256, stamp)
                self._sound(sha256, path.name.endswith(_EXECUTABLE))
                return None
        except ArtifactCorrupt as error:
            return error
        except BlobsMissing:
            return ArtifactCorrupt(sha256, path)

    # --- inside: trees -----------------------------------------------------------------------------------------------

    def _build(self, digest: str, files: Sequence[StoredFile]) -> None:
        blobs = {(f.sha256, f.executable): self._sound(f.sha256, f.executable) for f in files}
        building = self._trees / f"{_NEW}{secrets.token_hex(8)}"
        try:
            building.mkdir(mode=0o700)
            for inner in folders_of(files):
                (building / inner).mkdir(mode=0o700)
            stamps: dict[str, _Stamp] = {}
            for file in files:
                blob, stamp = blobs[file.sha256, file.executable]
                try:
                    _link_or_copy(blob, building / file.path)
                except FileNotFoundError as error:  # set aside a moment ago
                    raise BlobsMissing((file.sha256,)) from error
                if _Stamp.of((building / file.path).lstat()) == stamp:
                    stamps[file.path] = stamp
            for folder in {self._blobs, *(blob.parent for blob, _ in blobs.values())}:
                _sync(folder)
            for folder in (building, *(building / inner for inner in folders_of(files))):
                folder.chmod(0o555)
                _sync(folder)
            # The move stays within one folder: moving a folder elsewhere would need write permission on it.
            try:
                building.rename(self._trees / digest)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                _remove_folder(building)  # someone else laid out the same tree first
                return
            _sync(self._trees)
        except BaseException:
            with suppress(OSError):
                _remove_folder(building)
            raise
        self._remember(digest, files, stamps, _Listing.of(self._trees / digest).folders)

    def _touch_tree(self, digest: str) -> bool:
        """Whether a tree is here; if so, note that it was used just now."""
        if not (self._trees / digest).is_dir():
            return False
        with suppress(OSError):  # no record, or read-only: then nobody removes it either
            os.utime(self._record(digest))
        return True

    def _verify(self, digest: str, manifest: Sequence[StoredFile] | None) -> Verified:
        tree = self._trees / digest
        record = self._read_record(digest)
        if record is not None and self._is_current(record) and _unchanged(tree, record):
            return Verified(tree, 0, ())
        if manifest is None and record is not None and _are(record.stored(), digest):
            manifest = record.stored()
        listing = _Listing.of(tree)
        if manifest is None:
            return self._verify_by_digest(digest, listing)
        known: Mapping[tuple[str, str], _Stamp | None] = {}
        if record is not None and self._is_current(record):
            known = {(f.path, f.sha256): f.stamp for f in record.files}
        stamps: dict[str, _Stamp] = {}
        damaged: list[StoredFile] = []
        hashed_bytes = 0
        for file in manifest:
            found = listing.files.get(file.path)
            if found is None or not stat.S_ISREG(found.st_mode):
                damaged.append(file)
                continue
            if stat.S_IMODE(found.st_mode) != _mode(file.executable):
                os.chmod(tree / file.path, _mode(file.executable))
            stamp = _Stamp.of(found)
            if known.get((file.path, file.sha256)) != stamp:
                sha256, stamp = _hash_stored(tree / file.path)
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
            listing = _Listing.of(tree)
        self._remember(digest, manifest, stamps, listing.folders)  # what is lost has no stamp: it is hashed next time
        if lost:
            raise ArtifactCorrupt(lost[0].sha256, tree / lost[0].path)
        return Verified(tree, hashed_bytes, repaired)

    def _verify_by_digest(self, digest: str, listing: _Listing) -> Verified:
        """Verify a tree whose list of files is lost: what is there, hashed, must give its name."""
        tree = self._trees / digest
        files: list[StoredFile] = []
        stamps: dict[str, _Stamp] = {}
        for path, found in listing.files.items():
            if not stat.S_ISREG(found.st_mode):
                raise ArtifactCorrupt(digest, tree / path)
            sha256, stamps[path] = _hash_stored(tree / path)
            executable = bool(found.st_mode & stat.S_IXUSR)
            files.append(StoredFile(path=path, sha256=sha256 or "0" * 64, executable=executable))
        if not _are(files, digest):
            raise ArtifactCorrupt(digest, tree)
        self._remember(digest, files, stamps, listing.folders)
        return Verified(tree, sum(stamp.size for stamp in stamps.values()), ())

    def _repair(
        self,
        tree: Path,
        manifest: Sequence[StoredFile],
        damaged: Sequence[StoredFile],
        strangers: Collection[str],
        stamps: dict[str, _Stamp],
    ) -> list[StoredFile]:
        """
        Put a tree right in place, each file by an atomic rename, so that what runs from it never misses one.

        Adds how the new files look to `stamps`. Returns the files that no sound blob is there for; they stay.
        """
        lost: list[StoredFile] = []
        sources: list[tuple[StoredFile, Path, _Stamp]] = []
        for file in damaged:
            self._forget(file.sha256)
            try:
                sources.append((file, *self._sound(file.sha256, file.executable)))
            except (ArtifactCorrupt, BlobsMissing):
                self._distrust(file.sha256)
                lost.append(file)
        if sources or strangers or not lost:
            with self._locked(fcntl.LOCK_EX):
                stamps |= _put_right(tree, ("", *folders_of(manifest)), sources, strangers)
        return lost

    # --- inside: records ---------------------------------------------------------------------------------------------

    def _record(self, digest: str) -> Path:
        return self._records / f"{digest}.json"

    def _read_record(self, digest: str) -> _Record | None:
        try:
            return msgspec.json.decode(self._record(digest).read_bytes(), type=_Record)
        except (OSError, msgspec.DecodeError):
            return None

    def _is_current(self, record: _Record) -> bool:
        return record.boot_id == self._boot_id != ""

    def _write_record(self, digest: str, record: _Record) -> None:
        """Keep what is known of a tree. On a full or read-only disk it is simply found out again next time."""
        with suppress(OSError):
            path, descriptor = self._new_file("record-")
            try:
                with os.fdopen(descriptor, "wb") as out:
                    out.write(msgspec.json.encode(record))
                path.rename(self._record(digest))
            finally:
                path.unlink(missing_ok=True)

    def _remember(
        self,
        digest: str,
        files: Iterable[StoredFile],
        stamps: Mapping[str, _Stamp],
        folders: Mapping[str, os.stat_result],
    ) -> None:
        recorded = tuple(_RecordedFile(f.path, f.sha256, f.executable, stamps.get(f.path)) for f in files)
        seen = {path: (found.st_ino, found.st_mtime_ns) for path, found in folders.items()}
        self._write_record(digest, _Record(boot_id=self._boot_id, files=recorded, folders=seen))

    def _last_used(self, digest: str) -> float:
        try:
            return self._record(digest).stat().st_mtime
        except FileNotFoundError:
            return (self._trees / digest).stat().st_ctime

    # --- inside: upkeep ----------------------------------------------------------------------------------------------

    def _tree_names(self) -> list[str]:
        return [name for name in _names(self._trees) if is_sha256(name)]

    def _blob_paths(self) -> Iterator[Path]:
        for shard in sorted(_names(self._blobs)):
            for name in sorted(_names(self._blobs / shard)):
                if is_sha256(name.removesuffix(_EXECUTABLE)):
                    yield self._blobs / shard / name

    def _everything_stored(self, seen: Collection[int]) -> Iterator[tuple[Path, str]]:
        """Every blob, then every file of a tree that shares no inode with what was seen; each with its digest."""
        with self._guarded():
            blobs = list(self._blob_paths())
        for path in blobs:
            yield path, path.name.removesuffix(_EXECUTABLE)
        for digest in self.trees():
            with self._guarded():
                record = self._read_record(digest)
            for file in record.files if record is not None and _are(record.stored(), digest) else ():
                path = self._trees / digest / file.path
                try:
                    inode = path.lstat().st_ino
                except OSError:
                    continue  # `verify` deals with what is missing
                if inode not in seen:
                    yield path, file.sha256

    def _bury(self, digest: str) -> None:
        """Take a tree out of sight at once; removing its files takes longer."""
        (self._trees / digest).rename(self._trees / f"{_GONE}{secrets.token_hex(8)}")
        self._record(digest).unlink(missing_ok=True)

    def _remove_buried(self) -> None:
        for name in _names(self._trees):
            if name.startswith(_GONE):
                _remove_folder(self._trees / name)

    def _remove_unheld(self, census: _Census, blobs: Iterable[_CountedBlob], touched_before_wall_s: float) -> int:
        removed = 0
        for blob in blobs:
            if blob.touched_wall_s <= touched_before_wall_s:
                blob.path.unlink(missing_ok=True)
                census.drop(blob)
                removed += 1
        return removed

    def _remove_strays(self, now_wall_s: float) -> int:
        removed = 0
        strays = [(self._tmp / name, STRAY_AGE_S) for name in _names(self._tmp)]
        strays += [(self._trees / name, STRAY_AGE_S) for name in _names(self._trees) if name.startswith(_NEW)]
        strays += [(self._quarantine / name, UPLOAD_GRACE_S) for name in _names(self._quarantine)]
        trees = set(self._tree_names())
        strays += [
            (self._records / name, STRAY_AGE_S)
            for name in _names(self._records)
            if name.removesuffix(".json") not in trees
        ]
        for path, age_s in strays:
            with suppress(FileNotFoundError):
                found = path.lstat()
                # mtime: when a file was last written to. ctime: when a folder or a file set aside was moved there.
                touched = found.st_mtime if path.parent == self._tmp else found.st_ctime
                if now_wall_s - touched >= age_s:
                    _remove_entry(path)
                    removed += 1
        return removed

    def _pinned(self) -> set[str]:
        digests: set[str] = set()
        for name in _names(self._pins):
            try:
                descriptor = os.open(self._pins / name, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # its owner lives
                digests.update(os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode().split())
            else:
                (self._pins / name).unlink(missing_ok=True)
            finally:
                os.close(descriptor)
        return digests

    # --- inside: files -----------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        for folder in (self.root, self._blobs, self._trees, self._records, self._tmp):
            if not folder.is_dir():
                folder.mkdir(mode=0o755, parents=folder is self.root, exist_ok=True)
                _sync(folder.parent)

    def _new_file(self, prefix: str) -> tuple[Path, int]:
        self._prepare()
        path = self._tmp / f"{prefix}{secrets.token_hex(8)}"
        return path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(self.root, error) from error

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Hold the store's lock. Each holder opens the file anew, so that threads exclude each other as well."""
        descriptor = -1
        try:
            self._prepare()
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


class BlobWriter:
    """Bytes on their way into the store; see `ArtifactStore.writer`."""

    def __init__(
        self, store: ArtifactStore, sha256: str | None, size_limit: int | None, *, executable: bool = False
    ) -> None:
        self._store = store
        self._expected = sha256
        self._limit = size_limit
        self._executable = executable
        self._hash = hashlib.sha256()
        self._cloned = False
        self.size_bytes = 0
        with store._guarded():
            self._path, self._descriptor = store._new_file("blob-")

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
        with self._store._guarded():
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
        store = self._store
        with store._guarded():
            if self._cloned:
                self.size_bytes = os.fstat(self._descriptor).st_size
            sha256 = hash_descriptor(self._descriptor) if self._cloned else self._hash.hexdigest()
            if self._expected is not None and sha256 != self._expected:
                raise DigestMismatch(self._expected, sha256, self.size_bytes)
            os.fchmod(self._descriptor, _mode(self._executable))
            os.fsync(self._descriptor)
            target = store._blob(sha256, self._executable)
            target.parent.mkdir(mode=0o755, exist_ok=True)
            stamp = _Stamp.of(os.fstat(self._descriptor))
            with store._locked(fcntl.LOCK_SH):
                self._path.rename(target)
            store._trust(target, stamp)
        return StoredBlob(sha256, self.size_bytes)


class Pin:
    """Trees that a running deploy needs; see `ArtifactStore.pin`."""

    def __init__(self, path: Path, store: ArtifactStore) -> None:
        self._path = path
        self._store = store
        self._descriptor = -1

    def take(self) -> None:
        self._path.parent.mkdir(mode=0o755, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def add(self, *digests: str) -> None:
        """Also keep these. Raises InvalidDigest, StoreUnavailable."""
        for digest in digests:
            _check_digest(digest)
        with self._store._guarded():
            os.write(self._descriptor, "".join(f"{digest}\n" for digest in digests).encode())

    def release(self) -> None:
        if self._descriptor >= 0:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1


class _Listing(NamedTuple):
    """Everything below a folder, links not followed. Paths are relative; the folder itself is `""`."""

    files: dict[str, os.stat_result]
    """Also links and whatever else is no folder."""
    folders: dict[str, os.stat_result]

    @classmethod
    def of(cls, top: Path) -> _Listing:
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


class _CountedBlob(NamedTuple):
    path: Path
    inode: int
    touched_wall_s: float


class _Census:
    """Who holds which bytes, by inode: each is counted once, whatever its number of names."""

    def __init__(self, blobs: Iterable[Path], trees: Mapping[str, Path]) -> None:
        self.trees: dict[str, Counter[int]] = {}
        self._blobs: dict[int, _CountedBlob] = {}
        self._names: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}
        for path in blobs:
            found = path.lstat()
            self._blobs[found.st_ino] = _CountedBlob(path, found.st_ino, found.st_ctime)
            self._count(found)
        for digest, top in trees.items():
            files = _Listing.of(top).files.values()
            self.trees[digest] = Counter(found.st_ino for found in files)
            for found in files:
                self._count(found)
        self.bytes = sum(self._sizes.values())

    def _count(self, found: os.stat_result) -> None:
        self._names[found.st_ino] = found.st_nlink
        self._sizes[found.st_ino] = found.st_size

    def unheld(self) -> list[_CountedBlob]:
        """Blobs that no tree holds."""
        return [blob for inode, blob in self._blobs.items() if self._names[inode] == 1]

    def let_go(self, digest: str) -> list[_CountedBlob]:
        """A tree is gone. Return the blobs that no tree holds any more."""
        unheld = []
        for inode, names in self.trees[digest].items():
            self._names[inode] -= names
            if inode in self._blobs and self._names[inode] == 1:
                unheld.append(self._blobs[inode])
            elif self._names[inode] == 0:
                self.bytes -= self._sizes[inode]
        return unheld

    def drop(self, blob: _CountedBlob) -> None:
        """A blob that no tree holds is gone."""
        self.bytes -= self._sizes[blob.inode]
        del self._blobs[blob.inode]


def kernel_boot_id() -> str:
    """Random text that the kernel chose when the machine started; empty where it cannot be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _check_digest(text: str) -> None:
    if not is_sha256(text):
        raise InvalidDigest(text)


def _mode(executable: bool) -> int:
    return 0o555 if executable else 0o444


def _chunks(source: Iterable[bytes] | BinaryIO) -> Iterator[bytes]:
    if hasattr(source, "read"):
        while chunk := source.read(CHUNK_BYTES):
            yield chunk
    else:
        yield from source


def _read_users_file(descriptor: int, path: Path) -> bytes:
    try:
        return os.read(descriptor, CHUNK_BYTES)
    except OSError as error:
        raise UnusableFile(path, f"cannot be read ({error.strerror})") from error


def _read_stored_file(descriptor: int, position: int) -> bytes:
    """A piece of a stored file; a disk error ends it, and then its digest is wrong."""
    try:
        return os.pread(descriptor, SCRUB_STEP_BYTES, position)
    except OSError:
        return b""


def _hash_stored(path: Path) -> tuple[str | None, _Stamp]:
    """
    SHA-256 of a stored file, and how it looked before it was read; None when the disk cannot read it.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        stamp = _Stamp.of(os.fstat(descriptor))
        try:
            return hash_descriptor(descriptor), stamp
        except OSError as error:
            if error.errno == errno.EIO:
                return None, stamp
            raise
    finally:
        os.close(descriptor)


def _unchanged(tree: Path, record: _Record) -> bool:
    """Whether a tree looks just as it did when it was recorded: no file or folder came, went or changed."""
    try:
        for path, seen in record.folders.items():
            found = os.lstat(tree / path)
            if (found.st_ino, found.st_mtime_ns) != seen or found.st_mode != stat.S_IFDIR | 0o555:
                return False
        for file in record.files:
            found = os.lstat(f"{tree}/{file.path}")
            if file.stamp != _Stamp.of(found) or found.st_mode != stat.S_IFREG | _mode(file.executable):
                return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _are(files: Iterable[StoredFile], digest: str) -> bool:
    """Whether these files, which may come from a damaged disk, are those of a tree."""
    try:
        return tree_digest(files) == digest
    except (InvalidTree, InvalidDigest):
        return False


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _put_right(
    tree: Path,
    folders: Sequence[str],
    sources: Iterable[tuple[StoredFile, Path, _Stamp]],
    strangers: Iterable[str],
) -> dict[str, _Stamp]:
    """Give a tree its folders, take out what does not belong, and link in new files over damaged or missing ones."""
    stamps: dict[str, _Stamp] = {}
    try:
        for folder in folders:
            where = tree / folder
            if not where.is_dir() or where.is_symlink():
                where.unlink(missing_ok=True)
                where.mkdir()
            where.chmod(0o755)
        for path in sorted(strangers):
            _remove_entry(tree / path)
        for file, blob, stamp in sources:
            target = tree / file.path
            if target.is_dir() and not target.is_symlink():
                _remove_folder(target)
            beside = target.with_name(f"{_NEW}{secrets.token_hex(8)}")
            try:
                _link_or_copy(blob, beside)
                if _Stamp.of(beside.lstat()) == stamp:
                    stamps[file.path] = stamp
                beside.rename(target)
            finally:
                beside.unlink(missing_ok=True)
    finally:
        for folder in reversed(folders):
            with suppress(OSError):
                (tree / folder).chmod(0o555)
                _sync(tree / folder)
    return stamps


def _link_or_copy(blob: Path, target: Path) -> None:
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
        _sync(target)


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_entry(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        _remove_folder(path)
    else:
        path.unlink(missing_ok=True)


def _remove_folder(top: Path) -> None:
    """Remove a folder whose folders may be read-only."""
    if not top.is_dir():
        return
    for folder in (top, *(top / path for path in _Listing.of(top).folders)):
        folder.chmod(0o700)
    shutil.rmtree(top)
