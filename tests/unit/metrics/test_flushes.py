"""Statistics in a cluster's storage: a head on an empty disk begins with what was flushed last."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.ids import ApiKey, ReplicaId, Version
from cortex.metrics import flushes
from cortex.metrics.flushes import PAGE_BYTES, Flushes
from cortex.metrics.store import StatsStore
from cortex.storage.base import StorageUnreachable
from cortex.testing.clock import START_WALL_S
from cortex.testing.storage import FakeStorage
from cortex.wire.stats import StatsFile

API = ApiKey("iris/sklearn")


@pytest.fixture
def storage() -> FakeStorage:
    return FakeStorage()


@pytest.fixture
def restored(storage: FakeStorage, tmp_path: Path) -> Callable[[int], bytes | None]:
    """What a head that leads in an epoch begins with."""

    def restore(epoch: int) -> bytes | None:
        file = tmp_path / f"{epoch}.db"
        return file.read_bytes() if Flushes(storage, epoch=epoch).restore(file) else None

    return restore


def image(*pages: int, rest: int = 0) -> bytes:
    """A file whose pages hold these numbers."""
    return b"".join(bytes([page]) * PAGE_BYTES for page in pages) + bytes(rest)


def test_nothing_that_was_flushed_is_nothing(restored: Callable[[int], bytes | None]) -> None:
    assert restored(1) is None


def test_a_flush_is_one_object_of_what_has_changed(storage: FakeStorage) -> None:
    head = Flushes(storage, epoch=1)
    noise = random.Random(1).randbytes(PAGE_BYTES * 100)
    assert head.flush(noise)
    assert not head.flush(noise)
    assert head.flush(noise[:-1] + b"x")
    whole, changed = (len(storage.objects[key]) for key in storage.keys("statistics"))
    assert whole > PAGE_BYTES * 100
    assert changed < PAGE_BYTES * 2


@given(st.lists(st.lists(st.integers(0, 3), max_size=6).map(lambda pages: image(*pages, rest=len(pages)))))
def test_the_next_head_begins_with_the_last_flush_whatever_it_was(images: list[bytes]) -> None:
    storage = FakeStorage()
    head = Flushes(storage, epoch=1)
    last: bytes | None = None
    for one in images:
        if head.flush(one):
            last = one
    assert Flushes(storage, epoch=2).image() == last


def test_what_is_damaged_or_missing_ends_what_is_read(
    storage: FakeStorage, restored: Callable[[int], bytes | None]
) -> None:
    head = Flushes(storage, epoch=1)
    for number in range(5):
        head.flush(image(number, 7))
    keys = storage.keys("statistics")
    storage.objects[keys[3]] = storage.objects[keys[3]][:-3]
    assert restored(2) == image(2, 7)
    del storage.objects[keys[2]]
    assert restored(3) == image(1, 7)
    storage.objects[keys[0]] = b""
    assert restored(4) is None


def test_what_an_older_leader_flushes_later_is_not_read(
    storage: FakeStorage, restored: Callable[[int], bytes | None]
) -> None:
    old, new = Flushes(storage, epoch=1), Flushes(storage, epoch=2)
    old.flush(image(1))
    new.flush(image(2))
    old.flush(image(3))
    assert restored(3) == image(2)
    assert restored(2) == image(3), "of older ones alone"


def test_after_a_flush_that_failed_the_next_one_is_whole(
    storage: FakeStorage, restored: Callable[[int], bytes | None]
) -> None:
    line = FakeStorage(storage)
    head = Flushes(line, epoch=1)
    head.flush(image(1, 1))

    def fail(*_: object) -> None:
        raise StorageUnreachable("memory://storage", "no answer in time")

    for hook in ("before", "after"):
        setattr(line, hook, fail)
        with pytest.raises(StorageUnreachable):
            head.flush(image(2, 1))
        setattr(line, hook, lambda *_: None)
    head.flush(image(3, 1))
    assert restored(2) == image(3, 1)


def test_superfluous_ones_are_removed(
    storage: FakeStorage, restored: Callable[[int], bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flushes, "WHOLE_EVERY", 4)
    Flushes(storage, epoch=1).flush(image(9))
    head = Flushes(storage, epoch=2)
    for number in range(11):
        head.flush(image(number))
    assert storage.keys("statistics") == [f"statistics/{2:010}/{number:010}" for number in range(4, 11)]
    assert restored(3) == image(10)


def test_counts_go_on_from_a_flush_and_what_nodes_send_again_counts_once(storage: FakeStorage, tmp_path: Path) -> None:
    def counted(ok: int) -> StatsFile:
        return StatsFile(
            api=API,
            version=Version("v1"),
            replica=ReplicaId("iris.sklearn.v1.0"),
            attempt=1,
            run="run",
            wall_s=START_WALL_S,
            ok=ok,
            latency_sum_ms=2.0 * ok,
            latency_buckets={20: ok},
        )

    store = StatsStore(tmp_path / "head.db")
    store.merge([counted(5)], START_WALL_S)
    Flushes(storage, epoch=1).flush(store.image())
    store.merge([counted(8)], START_WALL_S)
    store.close()
    file = tmp_path / "next.db"
    assert Flushes(storage, epoch=2).restore(file)
    again = StatsStore(file)
    assert again.window(API, now_wall_s=START_WALL_S).counts.ok == 5
    again.merge([counted(8)], START_WALL_S)
    assert again.window(API, now_wall_s=START_WALL_S).counts.ok == 8
    again.close()
