"""
The canonical form of a folder: its digest, and which lists of files can be one. Pure.

A tree is a set of files, each with a path, an executable bit and the SHA-256 of its bytes. Its digest is the SHA-256 of

    cortex-tree-1 LF
    <mode> SP <sha256> SP <path> NUL        for each file, sorted by the UTF-8 bytes of its path

where mode is `100755` for executable files and `100644` for others (git's). Paths are relative UTF-8 with forward
slashes, byte for byte as given: no Unicode normalisation, no case folding. Empty folders, owners and times are not part
of a tree. Mode and digest have fixed widths and a path holds no NUL, so two different trees never share a text.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable

from cortex.artifacts.errors import InvalidDigest, InvalidTree
from cortex.artifacts.hashing import is_sha256
from cortex.wire.operator import StoredFile

HEADER = b"cortex-tree-1\n"
MAX_NAME_BYTES = 255
"""What Linux file systems take for one component."""
MAX_PATH_BYTES = 2048
"""Half of Linux's PATH_MAX: the other half is left to the folder of the store."""


def tree_digest(files: Iterable[StoredFile]) -> str:
    """
    Digest of a folder with these files, in whatever order they come: 64 hex digits.

    Raises:
        InvalidTree: see `checked`.
        InvalidDigest: a file's sha256 is none.
    """
    digest = hashlib.sha256(HEADER)
    for file in checked(files):
        mode = "100755" if file.executable else "100644"
        digest.update(f"{mode} {file.sha256} {file.path}\0".encode())
    return digest.hexdigest()


def checked(files: Iterable[StoredFile]) -> tuple[StoredFile, ...]:
    """
    Return the files in canonical order, or say why they cannot be laid out as a folder.

    Raises:
        InvalidTree: a path is not relative and plain, too long, not UTF-8, there twice, or both a file and a folder.
        InvalidDigest: a file's sha256 is none.
    """
    files = tuple(files)
    seen: set[str] = set()
    for file in files:
        _check_path(file.path)
        if not is_sha256(file.sha256):
            raise InvalidDigest(file.sha256)
        if file.path in seen:
            raise InvalidTree(file.path, "is listed twice")
        seen.add(file.path)
    for folder in folders_of(files):
        if folder in seen:
            raise InvalidTree(folder, "is listed as a file and is a folder of another file")
    return tuple(sorted(files, key=lambda file: file.path.encode()))


def folders_of(files: Iterable[StoredFile]) -> tuple[str, ...]:
    """Every folder that these files need, parents before children; without the top one."""
    folders: set[str] = set()
    for file in files:
        folder = posixpath.dirname(file.path)
        while folder and folder not in folders:
            folders.add(folder)
            folder = posixpath.dirname(folder)
    return tuple(sorted(folders))


def _check_path(path: str) -> None:
    try:
        size = len(path.encode())
    except UnicodeEncodeError as error:
        raise InvalidTree(path.encode(errors="backslashreplace").decode(), "is not a UTF-8 name") from error
    if not path:
        raise InvalidTree(path, "is an empty path")
    if "\0" in path:
        raise InvalidTree(path, "holds a NUL")
    if path.startswith("/"):
        raise InvalidTree(path, "is absolute; paths are relative to the folder")
    if size > MAX_PATH_BYTES:
        raise InvalidTree(path, f"has {size} bytes; a path has at most {MAX_PATH_BYTES}")
    for name in path.split("/"):
        if name in ("", ".", ".."):
            raise InvalidTree(path, 'has a component that is empty, "." or ".."')
        if len(name.encode()) > MAX_NAME_BYTES:
            raise InvalidTree(path, f"has a component of more than {MAX_NAME_BYTES} bytes")
