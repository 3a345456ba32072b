"""Builders for the tests of model files, projects and the store."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from cortex.artifacts.store import ArtifactStore
from cortex.wire.operator import StoredFile

Write = Callable[[Mapping[str, bytes]], Path]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def stored(store: ArtifactStore) -> Callable[..., tuple[StoredFile, ...]]:
    """Put files given as `path=bytes` (or a mapping) and return them as a tree's list; a trailing `*` is executable."""

    def put(files: Mapping[str, bytes]) -> tuple[StoredFile, ...]:
        listed = []
        for path, content in files.items():
            sha256 = hashlib.sha256(content).hexdigest()
            store.put(sha256, [content])
            listed.append(StoredFile(path=path.rstrip("*"), sha256=sha256, executable=path.endswith("*")))
        return tuple(listed)

    return put


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write files below `tmp_path / "in"` and return that folder."""

    def files(content: Mapping[str, bytes]) -> Path:
        top = tmp_path / "in"
        top.mkdir(exist_ok=True)
        for path, data in content.items():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_bytes(data)
        return top

    return files


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Call it to go on without root's right to read and write everything; undone after the test."""
    if os.geteuid() != 0:
        yield lambda: None
        return
    opened = [folder for folder in (tmp_path, *tmp_path.parents) if folder.stat().st_uid == 0]
    modes = {folder: folder.stat().st_mode for folder in opened}

    def drop() -> None:
        for folder in opened:
            if not modes[folder] & 0o001:
                folder.chmod(modes[folder] | 0o011)
        for path in (tmp_path, *tmp_path.rglob("*")):
            os.chown(path, 65534, 65534, follow_symlinks=False)
        os.setegid(65534)
        os.seteuid(65534)

    try:
        yield drop
    finally:
        os.seteuid(0)
        os.setegid(0)
        for folder, mode in modes.items():
            folder.chmod(mode)
