"""
What a replica has had to do so far, in a file of one page that it writes over again and again; the agent reads it.

The replica maps the file into memory, so that writing it costs no call of the system. Whoever reads while it is written
sees parts of two writings: that is told by a checksum. Everything but cpu is counted from when the replica was ready.

A replica in which nothing happens does not write, and one at rest writes as soon as a request comes. So a page on which
none is in flight says that nothing has happened since, but for the last `INTERVAL_S`.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import NamedTuple

from cortex.wire.loads import HANDLER, LOOP, MODEL, SeatReading
from cortex.wire.mapping import map_file

SUFFIX = ".load"
INTERVAL_S = 0.5
"""How often a replica writes in which something happens."""

_LAYOUT = 1
"""Of the page. One of another layout is none."""
_ROWS = (HANDLER, MODEL, LOOP)
_HEAD = struct.Struct("<II")
"""Layout, and a checksum of all that follows."""
_BODY = struct.Struct("<ddQdQdd" + "Qddd" * len(_ROWS))
_SIZE = _HEAD.size + _BODY.size
_TRIES = 3


class Load(NamedTuple):
    """What a page says."""

    at_s: float
    """Monotonic seconds of the node, as is the next."""
    ready_s: float
    ended: int
    ended_s: float
    in_flight: int
    cpu_before_s: float
    """What the process and those of its children that had been collected by then had used before it was ready."""
    runnable_before_s: float
    """For how long its main thread had waited for a processor by then."""
    rows: tuple[SeatReading, ...]
    """At most one of each kind."""


class LoadPage:
    """
    The replica's side.

    Args:
        path: made anew. Empty, or where there is no room for it: nobody will find what is written.
    """

    def __init__(self, path: str = "") -> None:
        self._map = map_file(path, _SIZE)

    def write(self, load: Load) -> None:
        """By one thread at a time."""
        rows = {row.row: row for row in load.rows}
        numbers: list[float] = [*load[:7]]
        for name in _ROWS:
            row = rows.get(name)
            numbers += (0, 0.0, 0.0, 0.0) if row is None else (row.seats, row.busy_s, row.ended_busy_s, row.full_s)
        body = _BODY.pack(*numbers)
        self._map[:] = _HEAD.pack(_LAYOUT, zlib.crc32(body)) + body


class LoadPageReader:
    """
    The agent's side.

    Raises:
        OSError: there is no such file, or no descriptor left.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._last: tuple[bytes, Load] | None = None

    def read(self) -> Load | None:
        """What was written last. None: nothing was, or whoever wrote it was stopped or killed while it did."""
        for _ in range(_TRIES):
            content = os.pread(self._fd, _SIZE, 0)
            if self._last is not None and self._last[0] == content:
                return self._last[1]
            load = _load_of(content)
            if load is not None:
                self._last = content, load
                return load
        return None

    def close(self) -> None:
        os.close(self._fd)


def _load_of(content: bytes) -> Load | None:
    if len(content) < _SIZE:
        return None
    layout, checksum = _HEAD.unpack_from(content)
    body = content[_HEAD.size :]
    if layout != _LAYOUT or checksum != zlib.crc32(body):
        return None
    at_s, ready_s, ended, ended_s, in_flight, cpu_before_s, runnable_before_s, *numbers = _BODY.unpack(body)
    rows = []
    for place, name in enumerate(_ROWS):
        seats, busy_s, ended_busy_s, full_s = numbers[4 * place : 4 * place + 4]
        if seats:
            reading = SeatReading(row=name, seats=seats, busy_s=busy_s, ended_busy_s=ended_busy_s, full_s=full_s)
            rows.append(reading)
    return Load(at_s, ready_s, ended, ended_s, in_flight, cpu_before_s, runnable_before_s, tuple(rows))
