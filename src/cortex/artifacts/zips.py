"""
Zip archives of models, read as if an enemy had made them.

Everything is checked against the archive's directory before a byte is unpacked: names that lead elsewhere, links,
encryption, one name twice, more entries or bytes than a model has, and compression that only a bomb reaches. Unpacking
then trusts none of the declared sizes.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from cortex.artifacts.errors import UnusableZip, in_words
from cortex.artifacts.hashing import CHUNK_BYTES

MAX_ENTRIES = 100_000
MAX_UNPACKED_BYTES = 256 * 2**30
"""Larger than models are; a limit all the same, since it is written to disk."""
RATIO_FREE_BYTES = 2**30
"""Up to this size an archive may be packed as tightly as it likes: it can do no harm."""
MAX_RATIO = 100
"""Weights hardly compress; text and graphs reach 20 to 1; bombs 1000 to 1 and, with overlapping entries, far beyond."""

_ENCRYPTED = 0x1
"""General purpose bit 0. Source: PKWARE APPNOTE 6.3.10, section 4.4.4."""
_UNIX = 3
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError)
"""What `zipfile` raises for archives that are not what they say."""


class ModelZip:
    """
    An open archive whose directory has been checked. A context manager.

    Args:
        model: how the user named it, for errors.
        shown: how people know the file, if not by its path.

    Raises:
        UnusableZip: no zip, damaged, encrypted, or not to be trusted; says why.
    """

    def __init__(self, path: Path, model: str, *, shown: str = "") -> None:
        self._path = path
        self._model = model
        self._shown = shown
        try:
            self._archive = zipfile.ZipFile(path)
        except _DAMAGE as error:
            raise self._refusal(f"is no zip archive that can be read ({_reason(error)})") from error
        try:
            self._entries = self._checked()
        except BaseException:
            self._archive.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Paths of all files in it, sorted, with forward slashes."""
        return tuple(sorted(self._entries))

    def size_of(self, name: str) -> int:
        return self._entries[name].file_size

    def unpack(self, names: Iterable[str], folder: Path) -> None:
        """
        Write these files below `folder`, under their own names. What is there already stays.

        Raises:
            UnusableZip: an entry is damaged or larger than it says, or the disk has no room for it.
        """
        wanted = [name for name in names if not (folder / name).exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.check_room(wanted, folder)
            for name in wanted:
                self._unpack_one(name, folder / name)
        except OSError as error:
            raise self._refusal(f"cannot be unpacked to {folder} ({error.strerror or error})") from error

    def read(self, name: str) -> Iterator[bytes]:
        """
        A file's content in chunks; trusts none of the declared sizes.

        Raises:
            UnusableZip: it is damaged, or larger than it says.
        """
        entry = self._entries[name]
        left = entry.file_size
        for chunk in self._chunks(entry, name):
            left -= len(chunk)
            if left < 0:
                raise self._refusal(f'"{name}" is larger than the archive says')
            yield chunk
        if left:
            raise self._damaged(name, EOFError(f"{left} bytes are missing"))

    def _unpack_one(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            for chunk in self.read(name):
                out.write(chunk)

    def _chunks(self, entry: zipfile.ZipInfo, name: str) -> Iterator[bytes]:
        try:
            with self._archive.open(entry) as source:
                while chunk := source.read(CHUNK_BYTES):
                    yield chunk
        except _DAMAGE as error:
            raise self._damaged(name, error) from error

    def check_room(self, names: Iterable[str], folder: Path) -> None:
        """Raises UnusableZip when the disk has less room than these files need."""
        needed, free = sum(self.size_of(name) for name in names), shutil.disk_usage(folder).free
        if needed > free:
            raise self._refusal(
                f"unpacks to {in_words(needed)}, and {folder} has room for {in_words(free)}",
                hint="free space there, or set TMPDIR to a folder on a larger disk",
            )

    def _checked(self) -> dict[str, zipfile.ZipInfo]:
        entries = self._archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise self._refusal(f"holds {len(entries)} entries; an archive of a model has at most {MAX_ENTRIES}")
        files: dict[str, zipfile.ZipInfo] = {}
        folders: set[str] = set()
        for entry in entries:
            if not entry.filename:
                raise self._refusal("holds an entry without a name")
            name = self._checked_name(entry)
            kind = stat.S_IFMT(entry.external_attr >> 16) if entry.create_system == _UNIX else 0
            if stat.S_ISLNK(kind):
                raise self._refusal(
                    f'holds the link "{name}"; only files and folders are unpacked',
                    hint="pack what the link points to: `zip -r` without `-y`",
                )
            if entry.is_dir() or entry.filename.endswith("\\"):
                continue
            if kind not in (0, stat.S_IFREG):
                raise self._refusal(f'holds "{name}", which is neither a file nor a folder')
            if entry.flag_bits & _ENCRYPTED:
                raise self._refusal(f'is encrypted ("{name}")', hint="pack it without a password")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise self._refusal(
                    f'holds "{name}" packed with method {entry.compress_type}, which is not supported',
                    hint="pack it with deflate, as `zip` does",
                )
            if name in files:
                raise self._refusal(f'holds "{name}" twice')
            files[name] = entry
            while name := posixpath.dirname(name):
                folders.add(name)
        if both := folders & files.keys():
            raise self._refusal(f'holds "{min(both)}" both as a file and as a folder')
        self._check_size(files.values())
        return files

    def _checked_name(self, entry: zipfile.ZipInfo) -> str:
        """The entry's path, relative and plain. Some tools for Windows write backslashes."""
        name = entry.filename.replace("\\", "/")
        while name.startswith("./"):
            name = name.removeprefix("./")
        name = name.rstrip("/") if name.strip("/") else ""
        parts = name.split("/")
        if (
            name.startswith("/")
            or ".." in parts
            or (len(name) > 1 and name[1] == ":")
            or "\0" in name
            or (name and any(part in ("", ".") for part in parts))
        ):
            raise self._refusal(f"holds {entry.filename[:200]!r}, which would be unpacked outside its own folder")
        if any(len(os.fsencode(part)) > 255 for part in parts):
            raise self._refusal(f"holds a name of more than 255 bytes: {name[:80]!r}…")
        return name

    def _check_size(self, entries: Iterable[zipfile.ZipInfo]) -> None:
        packed = self._path.stat().st_size
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > MAX_UNPACKED_BYTES:
            raise self._refusal(f"unpacks to {in_words(unpacked)}; at most {in_words(MAX_UNPACKED_BYTES)} are unpacked")
        if unpacked > RATIO_FREE_BYTES and unpacked > MAX_RATIO * packed:
            raise self._refusal(
                f"has {in_words(packed)} and unpacks to {in_words(unpacked)}: no model does, it looks like a bomb",
                hint="unpack it yourself and name the folder in `model:`",
            )

    def _damaged(self, name: str, error: Exception) -> UnusableZip:
        return self._refusal(
            f'"{name}" in it cannot be unpacked ({_reason(error)})', hint="was it copied whole? pack or copy it again"
        )

    def _refusal(self, reason: str, *, hint: str = "") -> UnusableZip:
        return UnusableZip(self._model, self._shown or self._path, reason, hint=hint)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
