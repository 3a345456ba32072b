"""What a directory adds to the contract of storages: what is wrong with it is named."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cortex.storage.base import StorageDenied, StorageError, StorageFull, StorageMissing, StorageUnreachable
from cortex.storage.directory import DirectoryStorage


def test_a_directory_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StorageMissing, match="there is no such directory") as raised:
        DirectoryStorage(tmp_path / "mount")
    assert "mount what it lies on" in raised.value.hint
    assert not (tmp_path / "mount").exists()


def test_a_mount_that_goes_away_is_named_by_every_call(tmp_path: Path) -> None:
    root = tmp_path / "mount"
    root.mkdir()
    storage = DirectoryStorage(root)
    root.rmdir()
    for call in (lambda: storage.create("a/b", b""), lambda: storage.read("a/b"), lambda: storage.keys("a")):
        with pytest.raises(StorageMissing):
            call()
    assert not root.exists()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EACCES, StorageDenied),
        (errno.ENOSPC, StorageFull),
        (errno.EOPNOTSUPP, StorageError),
        (errno.ESTALE, StorageUnreachable),
        (errno.ENAMETOOLONG, StorageError),
    ],
)
def test_what_the_system_says_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[StorageError]
) -> None:
    storage = DirectoryStorage(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", fail)
        with pytest.raises(StorageError) as raised:
            storage.create("a/b", b"1")
    assert type(raised.value) is expected
    assert os.strerror(code) in str(raised.value)
    assert raised.value.hint
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
    assert storage.create("a/b", b"1")
