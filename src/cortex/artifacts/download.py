"""
Reads objects over connections that break: in ranges, several at once, in order, with bounded memory.

Knows nothing of object stores: what is read is a `Readable`, and what comes out are pieces in the order in which they
lie in their objects, so that they can be hashed on the way to the disk.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

PART_BYTES = 8 * 2**20
"""Large enough that a request's latency does not show, small enough that a broken one costs little."""
CONNECTIONS = 8
"""Object stores give each connection a share of 50 to 100 MB/s; eight fill a fast link."""
BUFFER_BYTES = CONNECTIONS * PART_BYTES
"""Parts in memory at once: what was read ahead of the one that is being written."""
ATTEMPTS = 6
"""In a row without progress, with 0.5, 1, 2, 4 and 8 s between them."""
PROGRESS_BYTES = 2**16
"""An attempt that brought less than this counts as one without progress."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0


class Interrupted(Exception):
    """A connection broke, stalled or was refused for now: the rest may be had by asking again. `str()` says how."""


class RangesUnsupported(Exception):
    """The origin gives this object only as a whole."""


class Item(NamedTuple):
    """One object to read."""

    name: str
    size_bytes: int


class Readable(Protocol):
    """Where objects are read from. Used by several threads at once."""

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """
        Content from byte `start` up to, not including, `end`, in pieces of any size.

        Raises:
            Interrupted: at any moment; what came before is good.
            RangesUnsupported: only before the first piece, and never for the whole object.
            Anything else ends the download.
        """
        ...


class Piece(NamedTuple):
    item: Item
    start: int
    content: bytes | bytearray | memoryview


class _Part(NamedTuple):
    item: Item
    start: int
    end: int


class Download:
    """
    One pass over some objects.

    Args:
        on_bytes: told the size of what arrived, from any thread; negative when it has to be read again.
        on_trouble: told in words what went wrong before it is tried again.
        pause: waits that many seconds, or raises when nobody wants the bytes any more.
    """

    def __init__(
        self,
        source: Readable,
        *,
        on_bytes: Callable[[int], None] = lambda _count: None,
        on_trouble: Callable[[str], None] = lambda _words: None,
        pause: Callable[[float], None] = time.sleep,
        part_bytes: int = PART_BYTES,
        connections: int = CONNECTIONS,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> None:
        self._source = source
        self._on_bytes = on_bytes
        self._on_trouble = on_trouble
        self._pause = pause
        self._part_bytes = part_bytes
        self._connections = connections
        self._buffer_bytes = buffer_bytes

    def pieces(self, items: Sequence[Item]) -> Iterator[Piece]:
        """
        Everything, object after object and each from its beginning; an empty one has one empty piece.

        Small objects are read ahead just as parts of large ones are.

        Raises:
            Interrupted: several attempts in a row brought nothing.
            RangesUnsupported: see `Readable.read`; nothing of this object has been handed out.
            Anything that the source raises.
        """
        pool = ThreadPoolExecutor(self._connections, thread_name_prefix="download")
        waiting: deque[tuple[_Part, Future[bytearray]]] = deque()
        ahead = 0
        try:
            parts = self._parts(items)
            part = next(parts, None)
            while part is not None or waiting:
                while part is not None and (not waiting or ahead + part.end - part.start <= self._buffer_bytes):
                    waiting.append((part, pool.submit(self._whole_part, part)))
                    ahead += part.end - part.start
                    part = next(parts, None)
                ready, future = waiting.popleft()
                content = future.result()
                yield Piece(ready.item, ready.start, content)
                ahead -= ready.end - ready.start
        finally:
            # Threads that still read are not waited for: whoever gives up ends the process, or lets them time out.
            pool.shutdown(wait=False, cancel_futures=True)

    def at_once(self, item: Item) -> Iterator[Piece]:
        """
        One object over one connection, for origins without ranges. Begins anew after an interruption: a piece with
        `start` 0 says that everything before it is void.
        """
        failures = 0
        while True:
            position = 0
            try:
                for content in self._source.read(item.name, 0, item.size_bytes):
                    yield Piece(item, position, content)
                    position += len(content)
                    self._on_bytes(len(content))
                if position < item.size_bytes:
                    raise Interrupted(_cut_short(item.size_bytes - position))
                if not item.size_bytes:
                    yield Piece(item, 0, b"")
                return
            except Interrupted as error:
                self._on_bytes(-position)
                failures += 1
                self._try_again(error, failures)

    def _parts(self, items: Sequence[Item]) -> Iterator[_Part]:
        for item in items:
            for start in range(0, max(item.size_bytes, 1), self._part_bytes):
                yield _Part(item, start, min(start + self._part_bytes, item.size_bytes))

    def _whole_part(self, part: _Part) -> bytearray:
        """A part's content; after an interruption it is read on from where it broke off."""
        content = bytearray()
        size = part.end - part.start
        failures = 0
        while len(content) < size:
            before = len(content)
            try:
                for chunk in self._source.read(part.item.name, part.start + before, part.end):
                    content += chunk
                    self._on_bytes(len(chunk))
                if len(content) < size:
                    raise Interrupted(_cut_short(size - len(content)))
            except Interrupted as error:
                failures = 1 if len(content) - before >= PROGRESS_BYTES else failures + 1
                self._try_again(error, failures)
        return content

    def _try_again(self, error: Interrupted, failures: int) -> None:
        if failures >= ATTEMPTS:
            raise error
        self._on_trouble(str(error))
        self._pause(min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S))


def _cut_short(missing_bytes: int) -> str:
    return f"the connection ended with {missing_bytes} bytes missing"
