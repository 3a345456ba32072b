"""What every storage promises, and state that lies in it relies on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from origin_harness import S3, s3_storage

from cortex.storage.base import Storage
from cortex.storage.opening import open_storage
from cortex.testing.storage import FakeStorage

Make = Callable[[], Storage]


@pytest.fixture(params=["memory", "directory", pytest.param("s3", marks=pytest.mark.takes("moto"))])
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Opens one storage, as any number of processes may."""
    if request.param == "memory":
        first = FakeStorage()
        return lambda: FakeStorage(first)
    if request.param == "directory":
        return lambda: open_storage(str(tmp_path), {})
    endpoint = request.getfixturevalue("moto")
    bucket = S3(endpoint).bucket
    return lambda: s3_storage(endpoint, f"s3://{bucket}/a/prefix/")


@pytest.fixture
def storage(another: Make) -> Storage:
    return another()


def test_an_object_is_created_once_and_stays_as_it_is(storage: Storage) -> None:
    assert storage.create("epoch/0000000001", b"mine")
    assert not storage.create("epoch/0000000001", b"another")
    assert not storage.create("epoch/0000000001", b"mine"), "nor the same one twice"
    assert storage.read("epoch/0000000001") == b"mine"


def test_what_is_not_there_is_none(storage: Storage) -> None:
    assert storage.read("epoch/0000000001") is None
    assert storage.keys("epoch") == []


def test_keys_are_those_below_a_folder_in_order(storage: Storage) -> None:
    for key in ("state/2/1", "state/10/1", "state/1/1", "state/1/0", "states/1/1", "epoch/1"):
        storage.create(key, b"")
    assert storage.keys("state") == ["state/1/0", "state/1/1", "state/10/1", "state/2/1"]
    assert storage.keys("state/1") == ["state/1/0", "state/1/1"]


def test_objects_may_be_empty_or_large(storage: Storage) -> None:
    large = bytes(range(256)) * 2**12
    storage.create("a/large", large)
    storage.create("a/empty", b"")
    assert (storage.read("a/large"), storage.read("a/empty")) == (large, b"")


def test_what_is_deleted_is_gone_and_may_be_deleted_again(storage: Storage) -> None:
    storage.create("a/b", b"1")
    storage.create("a/c", b"2")
    for _ in range(2):
        storage.delete(["a/b", "a/never"])
        assert (storage.read("a/b"), storage.keys("a")) == (None, ["a/c"])
    assert storage.create("a/b", b"3")


def test_files_of_any_size_are_put_and_come_back_in_pieces(storage: Storage, tmp_path: Path) -> None:
    for name, size in (("empty", 0), ("small", 10), ("large", 2**20 * 11 + 1)):
        file = tmp_path / name
        file.write_bytes(bytes(range(251)) * (size // 251) + bytes(size % 251))
        for _ in range(2):
            storage.upload(f"blobs/{name}", file)
        pieces = storage.download(f"blobs/{name}")
        assert pieces is not None
        assert b"".join(pieces) == file.read_bytes()
        assert storage.size(f"blobs/{name}") == size
    assert (storage.download("blobs/none"), storage.size("blobs/none")) == (None, None)
    assert storage.keys("blobs") == ["blobs/empty", "blobs/large", "blobs/small"]


def test_what_one_has_created_another_one_finds(another: Make) -> None:
    one, other = another(), another()
    one.create("a/b", b"1")
    assert (other.read("a/b"), other.keys("a"), other.create("a/b", b"2")) == (b"1", ["a/b"], False)


def test_of_all_who_create_an_object_at_once_one_succeeds(another: Make) -> None:
    for turn in range(10):
        succeeded: list[bytes] = []
        start = threading.Barrier(4)

        def create(content: bytes, key: str, start: threading.Barrier, succeeded: list[bytes]) -> None:
            storage = another()
            start.wait(60)
            if storage.create(key, content):
                succeeded.append(content)

        key = f"epoch/{turn}"
        threads = [threading.Thread(target=create, args=(b"%d" % n, key, start, succeeded)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(succeeded) == 1
        assert another().read(key) == succeeded[0]


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a b", "a/\n"])
def test_what_is_no_key_is_a_fault_of_ours(storage: Storage, key: str) -> None:
    with pytest.raises(ValueError, match="no key"):
        storage.create(key, b"")


def test_a_storage_says_where_it_is(storage: Storage, tmp_path: Path) -> None:
    assert storage.place in (str(tmp_path), "memory://storage") or storage.place.endswith("/a/prefix")
