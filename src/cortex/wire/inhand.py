"""
Which requests a replica has in hand, in a file that outlives it: who dies without a word still leaves their ids.

The replica maps the file into memory and writes a few bytes as a request comes and goes; the agent reads it once, when
the process is gone. One header byte, then places of a fixed size, each the request's beginning and its id.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from cortex.wire.mapping import map_file

SUFFIX = ".inhand"
PLACES = 64
"""As many ids are kept; a replica with more in hand forgets the youngest."""
MAX_ID_BYTES = 128
_PLACE = struct.Struct(f"<d{MAX_ID_BYTES}s")
_write = _PLACE.pack_into
_SIZE = 1 + PLACES * _PLACE.size
_ONE_AT_A_TIME = 1
_NOBODY = b"\0" * 8


class InHand:
    """
    The replica's side.

    Args:
        path: made anew. Empty, or where there is no room for it: the ids are kept where nobody finds them.
    """

    def __init__(self, path: str = "") -> None:
        self._map = map_file(path, _SIZE)
        self._free = list(range(_SIZE - _PLACE.size, 0, -_PLACE.size))

    def one_at_a_time(self) -> None:
        """Say that only one request's code runs at a time: the one that came first."""
        self._map[0] = _ONE_AT_A_TIME

    def take(self, id_bytes: bytes, started_s: float) -> int:
        """
        Note a request.

        Args:
            started_s: on any clock that only grows; above 0.

        Returns:
            Where its place begins, for `put`; 0: there is none left.
        """
        if not self._free:
            return 0
        place = self._free.pop()
        _write(self._map, place, started_s, id_bytes)
        return place

    def put(self, place: int) -> None:
        """The request of this place is done with."""
        self._map[place : place + 8] = _NOBODY
        self._free.append(place)


class LeftInHand(NamedTuple):
    """What a replica that is gone had in hand."""

    requests: tuple[str, ...] = ()
    """Ids, those that came first in front."""
    running: str = ""
    """The one whose code ran; empty where there was none, or nobody knows which."""


def left_in_hand(path: str | os.PathLike[str]) -> LeftInHand:
    """What a replica left in its file. Never raises."""
    try:
        with open(path, "rb") as file:
            content = file.read(_SIZE)
    except OSError:
        return LeftInHand()
    if len(content) < _SIZE:
        return LeftInHand()
    found = sorted(entry for entry in _PLACE.iter_unpack(content[1:]) if entry[0] > 0)
    requests = tuple(id_bytes.rstrip(b"\0").decode("ascii", "replace") for _started_s, id_bytes in found)
    is_known = len(requests) == 1 or content[0] == _ONE_AT_A_TIME
    return LeftInHand(requests, requests[0] if requests and is_known else "")
