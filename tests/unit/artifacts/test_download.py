"""Tests of `cortex.artifacts.download`: objects in memory, connections that break where they are told to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from cortex.artifacts.download import (
    ATTEMPTS,
    PROGRESS_BYTES,
    Download,
    Interrupted,
    Item,
    Piece,
    RangesUnsupported,
)

BIG = bytes(range(256)) * 1024  # 256 KiB
PART = 100_000


class FakeSource:
    """Objects by name, given out in chunks of `chunk_bytes`."""

    def __init__(self, **objects: bytes) -> None:
        self.objects = objects
        self.chunk_bytes = 10_000
        self.asked: list[tuple[str, int, int]] = []
        self.break_after: Callable[[str, int], int | None] = lambda name, start: None
        """How many bytes of an answer come before it breaks; None: all."""
        self.ranges = True
        self._guard = threading.Lock()

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        with self._guard:
            self.asked.append((name, start, end))
            limit = self.break_after(name, start)
        content = self.objects[name]
        if not self.ranges and (start, end) != (0, len(content)):
            raise RangesUnsupported
        given = 0
        while start < end:
            if limit is not None and given >= limit:
                raise Interrupted("cut")
            chunk = content[start : min(start + self.chunk_bytes, end)]
            yield chunk
            start, given = start + len(chunk), given + len(chunk)


class Listener:
    def __init__(self) -> None:
        self.bytes = 0
        self.troubles: list[str] = []
        self.pauses: list[float] = []
        self._guard = threading.Lock()

    def arrived(self, count: int) -> None:
        with self._guard:
            self.bytes += count


@pytest.fixture
def listener() -> Listener:
    return Listener()


def download(source: FakeSource, listener: Listener, **options: int) -> Download:
    return Download(
        source,
        on_bytes=listener.arrived,
        on_trouble=listener.troubles.append,
        pause=listener.pauses.append,
        **{"part_bytes": PART, "connections": 3, "buffer_bytes": 3 * PART, **options},
    )


def items(source: FakeSource) -> list[Item]:
    return [Item(name, len(content)) for name, content in source.objects.items()]


def joined(pieces: Iterator[Piece]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for piece in pieces:
        assert piece.start == len(found.get(piece.item.name, b"")), "pieces come in order"
        found[piece.item.name] = found.get(piece.item.name, b"") + bytes(piece.content)
    return found


def test_objects_come_whole_and_in_order_whatever_their_size(listener: Listener) -> None:
    source = FakeSource(big=BIG, empty=b"", exact=BIG[: 2 * PART], small=b"x")
    assert joined(download(source, listener).pieces(items(source))) == source.objects
    assert listener.bytes == sum(map(len, source.objects.values()))


def test_a_large_object_is_read_in_parts(listener: Listener) -> None:
    source = FakeSource(big=BIG)
    joined(download(source, listener).pieces(items(source)))
    assert sorted(source.asked) == [("big", 0, PART), ("big", PART, 2 * PART), ("big", 2 * PART, len(BIG))]


def test_no_more_is_read_ahead_than_the_buffer_holds(listener: Listener) -> None:
    source = FakeSource(big=BIG * 8)
    pieces = download(source, listener, connections=8).pieces(items(source))
    next(pieces)
    assert len(source.asked) <= 3
    for _ in pieces:
        assert len(source.asked) * PART <= listener.bytes + 4 * PART


def test_a_broken_part_is_read_on_from_where_it_broke(listener: Listener) -> None:
    source = FakeSource(big=BIG)
    broken: Counter[int] = Counter()

    def once(_name: str, start: int) -> int | None:
        broken[start] += 1
        return 70_000 if start == PART and broken[start] == 1 else None

    source.break_after = once
    assert joined(download(source, listener).pieces(items(source))) == source.objects
    assert ("big", PART + 70_000, 2 * PART) in source.asked
    assert listener.troubles == ["cut"]
    assert listener.bytes == len(BIG)


def test_a_connection_that_ends_early_without_an_error_is_read_on_too(listener: Listener) -> None:
    source = FakeSource(big=b"x" * 50)
    read = source.read
    first = iter([True])

    def short(name: str, start: int, end: int) -> Iterator[bytes]:
        return iter([b"x" * 20]) if next(first, False) else read(name, start, end)

    source.read = short  # type: ignore[method-assign]
    assert joined(download(source, listener).pieces(items(source))) == source.objects
    assert listener.troubles == ["the connection ended with 30 bytes missing"]


def test_tries_without_progress_are_given_up_after_longer_and_longer_pauses(listener: Listener) -> None:
    source = FakeSource(one=b"x" * 1000)
    source.break_after = lambda name, start: 0
    with pytest.raises(Interrupted):
        joined(download(source, listener).pieces(items(source)))
    assert len(source.asked) == ATTEMPTS
    assert listener.pauses == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_a_slow_connection_that_breaks_again_and_again_gets_there_as_long_as_it_brings_something(
    listener: Listener,
) -> None:
    size = (ATTEMPTS + 4) * PROGRESS_BYTES
    source = FakeSource(one=b"x" * size)
    source.break_after = lambda name, start: PROGRESS_BYTES
    got = joined(download(source, listener, part_bytes=size, buffer_bytes=size).pieces(items(source)))
    assert got == source.objects
    assert set(listener.pauses) == {0.5}


def test_any_other_error_ends_it_at_once(listener: Listener) -> None:
    source = FakeSource(one=b"x")

    def read(name: str, start: int, end: int) -> Iterator[bytes]:
        raise PermissionError("no")

    source.read = read  # type: ignore[method-assign]
    with pytest.raises(PermissionError):
        joined(download(source, listener).pieces(items(source)))
    assert listener.pauses == []


def test_an_origin_without_ranges_is_read_at_once_and_begins_anew(listener: Listener) -> None:
    source = FakeSource(big=BIG)
    source.ranges = False
    broken = iter([50_000])
    source.break_after = lambda name, start: next(broken, None)
    with pytest.raises(RangesUnsupported):
        joined(download(source, listener).pieces(items(source)))
    broken = iter([50_000])
    content = b""
    for piece in download(source, listener).at_once(Item("big", len(BIG))):
        content = content[: piece.start] + bytes(piece.content)
    assert content == BIG
    assert listener.troubles == ["cut"]
    assert listener.bytes == len(BIG)
