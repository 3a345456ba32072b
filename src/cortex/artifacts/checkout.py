"""Trees of the artifact store as folders of hard links to blobs: laid out, and put right in place."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from cortex.artifacts.blobs import Blobs
from cortex.artifacts.disk import NEW, Listing, Stamp, link_or_copy, remove_entry, remove_folder, sync
from cortex.artifacts.errors import BlobsMissing
from cortex.artifacts.records import Records
from cortex.artifacts.trees import folders_of
from cortex.wire.operator import StoredFile


def lay_out(digest: str, files: Sequence[StoredFile], blobs: Blobs, records: Records) -> None:
    """
    Make a tree of sound blobs: there whole or not at all, and it outlives a power failure.

    Raises:
        BlobsMissing, ArtifactCorrupt: of a blob.
        OSError
    """
    disk = blobs.disk
    sound = {(f.sha256, f.executable): blobs.sound(f.sha256, f.executable) for f in files}
    building = disk.trees / f"{NEW}{secrets.token_hex(8)}"
    try:
        building.mkdir(mode=0o700)
        for inner in folders_of(files):
            (building / inner).mkdir(mode=0o700)
        stamps: dict[str, Stamp] = {}
        for file in files:
            blob, stamp = sound[file.sha256, file.executable]
            try:
                link_or_copy(blob, building / file.path)
            except FileNotFoundError as error:  # set aside a moment ago
                raise BlobsMissing((file.sha256,)) from error
            if Stamp.of((building / file.path).lstat()) == stamp:
                stamps[file.path] = stamp
        for folder in {disk.blobs, *(blob.parent for blob, _ in sound.values())}:
            sync(folder)
        for folder in (building, *(building / inner for inner in folders_of(files))):
            folder.chmod(0o555)
            sync(folder)
        # The move stays within one folder: moving a folder elsewhere would need write permission on it.
        try:
            building.rename(disk.trees / digest)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            remove_folder(building)  # someone else laid out the same tree first
            return
        sync(disk.trees)
    except BaseException:
        with suppress(OSError):
            remove_folder(building)
        raise
    records.remember(digest, files, stamps, Listing.of(disk.trees / digest).folders)


def put_right(
    tree: Path,
    folders: Sequence[str],
    sources: Iterable[tuple[StoredFile, Path, Stamp]],
    strangers: Iterable[str],
) -> dict[str, Stamp]:
    """Give a tree its folders, take out what does not belong, and link in new files over damaged or missing ones."""
    stamps: dict[str, Stamp] = {}
    try:
        for folder in folders:
            where = tree / folder
            if not where.is_dir() or where.is_symlink():
                where.unlink(missing_ok=True)
                where.mkdir()
            where.chmod(0o755)
        for path in sorted(strangers):
            remove_entry(tree / path)
        for file, blob, stamp in sources:
            target = tree / file.path
            if target.is_dir() and not target.is_symlink():
                remove_folder(target)
            beside = target.with_name(f"{NEW}{secrets.token_hex(8)}")
            try:
                link_or_copy(blob, beside)
                if Stamp.of(beside.lstat()) == stamp:
                    stamps[file.path] = stamp
                beside.rename(target)
            finally:
                beside.unlink(missing_ok=True)
    finally:
        for folder in reversed(folders):
            with suppress(OSError):
                (tree / folder).chmod(0o555)
                sync(tree / folder)
    return stamps
