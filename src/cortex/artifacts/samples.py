"""
Bodies of samples in the artifact store.

Each is a stored folder with one file, so that all that holds for models and projects holds for it: what wants it keeps
it, and damage is found, named and put right.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cortex.artifacts.store import ArtifactStore
from cortex.artifacts.trees import tree_digest
from cortex.wire.operator import StoredFile

_FILE_NAME = "body"


def files_of(sha256: str) -> tuple[StoredFile, ...]:
    """What the folder of a body with this digest holds."""
    return (StoredFile(path=_FILE_NAME, sha256=sha256),)


def tree_of(body: bytes) -> str:
    """Digest of the folder that holds a body."""
    return tree_digest(files_of(hashlib.sha256(body).hexdigest()))


def put_body(store: ArtifactStore, body: bytes) -> str:
    """
    Store a body; returns the digest of its folder.

    Raises:
        StoreUnavailable
    """
    with store.writer() as writer:
        writer.write(body)
        return store.put_tree(files_of(writer.commit().sha256))


def body_file(store: ArtifactStore, tree: str) -> Path:
    """
    The file with the body that a stored folder holds, after a look at whether it is still that.

    Raises:
        ArtifactCorrupt: it is not, and cannot be put right here.
        ArtifactMissing: there is no such folder.
        StoreUnavailable
    """
    return body_in(store.verify(tree).path)


def body_in(folder: Path) -> Path:
    """The file with the body in such a folder."""
    return folder / _FILE_NAME
