"""Artifacts that also lie in a cluster's storage: there before anything refers to them, and brought when asked for."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest

from cortex.artifacts.errors import ArtifactCorrupt, ArtifactMissing, BlobsMissing, DigestMismatch
from cortex.artifacts.shared import SharedArtifactStore
from cortex.storage.base import StorageError, StorageUnreachable
from cortex.testing.storage import FakeStorage
from cortex.wire.operator import StoredFile

MODEL = {"model.onnx": b"weights", "labels/a.txt": b"a", "labels/b.txt": b"b", "labels/again.txt": b"a"}


@pytest.fixture
def storage() -> FakeStorage:
    return FakeStorage()


@pytest.fixture
def store(tmp_path: Path, storage: FakeStorage) -> SharedArtifactStore:
    """Of a head."""
    return SharedArtifactStore(tmp_path / "head", FakeStorage(storage))


@pytest.fixture
def another(tmp_path: Path, storage: FakeStorage) -> SharedArtifactStore:
    """Of the next head, whose disk is empty."""
    return SharedArtifactStore(tmp_path / "another", FakeStorage(storage))


def put(store: SharedArtifactStore, files: Mapping[str, bytes]) -> str:
    found = []
    for path, content in files.items():
        digest = hashlib.sha256(content).hexdigest()
        store.put(digest, [content])
        found.append(StoredFile(path=path, sha256=digest, executable=path.endswith(".sh")))
    return store.put_tree(found)


def content(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_is_kept_is_there_for_the_next_head(store: SharedArtifactStore, another: SharedArtifactStore) -> None:
    model, project = put(store, MODEL), put(store, {"run.sh": b"#!/bin/sh\n"})
    store.keep([model, project])
    assert (another.has(model), another.has("0" * 64), another.trees()) == (True, False, ())
    assert content(another.tree_path(model)) == MODEL
    assert another.verify(project).path.joinpath("run.sh").stat().st_mode & 0o111
    assert another.listing(model) == store.listing(model)
    digest = hashlib.sha256(b"weights").hexdigest()
    assert another.blob_path(digest).read_bytes() == b"weights"


def test_nothing_is_sent_twice(store: SharedArtifactStore, storage: FakeStorage, tmp_path: Path) -> None:
    line = FakeStorage(storage)
    asked: list[tuple[str, str]] = []
    line.before = lambda what, key: asked.append((what, key))
    head = SharedArtifactStore(tmp_path / "head", line)
    model = put(store, MODEL)
    head.keep([model, model])
    assert len([key for what, key in asked if what == "upload"]) == 3
    assert asked[-1] == ("create", f"trees/{model}"), "last of all"
    asked.clear()
    head.keep([model])
    assert asked == []
    other = put(store, MODEL | {"labels/c.txt": b"c"})
    head.keep([other])
    assert len([key for what, key in asked if what == "upload"]) == 1


def test_a_folder_counts_as_kept_once_all_of_it_is(store: SharedArtifactStore, another: SharedArtifactStore) -> None:
    model = put(store, MODEL)
    line = FakeStorage()
    uploads = itertools.count(1)  # they go side by side

    def break_off(what: str, key: str) -> None:
        if what == "upload" and next(uploads) == 3:
            raise StorageUnreachable("memory://storage", "no answer in time")

    line.before = break_off
    head = SharedArtifactStore(store.root, line)
    with pytest.raises(StorageUnreachable):
        head.keep([model])
    assert line.keys("trees") == []
    line.before = lambda what, key: None
    head.keep([model])
    assert content(SharedArtifactStore(another.root, FakeStorage(line)).tree_path(model)) == MODEL


def test_what_is_nowhere_is_missing(another: SharedArtifactStore, storage: FakeStorage) -> None:
    for ask in (another.tree_path, another.verify, another.listing):
        with pytest.raises(ArtifactMissing):
            ask("0" * 64)
    with pytest.raises(BlobsMissing):
        another.blob_path("0" * 64)
    with pytest.raises(ArtifactMissing):
        another.keep(["0" * 64])
    assert storage.objects == {}


def test_a_damaged_file_is_brought_anew(store: SharedArtifactStore) -> None:
    model = put(store, MODEL)
    store.keep([model])
    for path in [store.tree_path(model) / "model.onnx", *(store.root / "blobs").rglob("*")]:
        if path.is_file() and path.read_bytes() in (b"weights", b"b"):
            path.chmod(0o644)
            path.write_bytes(b"rotten!")
    (store.tree_path(model) / "labels/b.txt").chmod(0o644)
    assert content(store.verify(model).path) == MODEL


def test_one_that_is_damaged_and_not_in_the_storage_is_named(store: SharedArtifactStore) -> None:
    model = put(store, MODEL)
    for path in [store.tree_path(model) / "model.onnx", *(store.root / "blobs").rglob("*")]:
        if path.is_file() and path.read_bytes() == b"weights":
            path.chmod(0o644)
            path.write_bytes(b"rotten!")
    with pytest.raises(ArtifactCorrupt):
        store.verify(model)


def test_what_is_damaged_in_the_storage_is_not_taken_for_what_was_asked_for(
    store: SharedArtifactStore, another: SharedArtifactStore, storage: FakeStorage
) -> None:
    model = put(store, MODEL)
    store.keep([model])
    sound = dict(storage.objects)
    digest = hashlib.sha256(b"weights").hexdigest()
    storage.objects[f"blobs/{digest[:2]}/{digest}"] = b"rotten!"
    with pytest.raises(DigestMismatch):
        another.tree_path(model)
    for listed in (b"[]", b"dear diary"):
        storage.objects.update(sound | {f"trees/{model}": listed})
        with pytest.raises(StorageError, match="does not hold what its name says"):
            another.tree_path(model)
    storage.objects.update(sound)
    assert content(another.tree_path(model)) == MODEL


def test_a_storage_that_is_away_holds_up_nothing_that_is_here(store: SharedArtifactStore, storage: FakeStorage) -> None:
    model = put(store, MODEL)
    line = FakeStorage()

    def fail(*_: object) -> None:
        raise StorageUnreachable("memory://storage", "no answer in time")

    line.before = fail
    head = SharedArtifactStore(store.root, line)
    assert content(head.tree_path(model)) == MODEL
    head.verify(model)
    with pytest.raises(StorageUnreachable):
        head.keep([model])
    with pytest.raises(StorageUnreachable):
        head.tree_path("0" * 64)
