"""
The objects that a cluster's state consists of: their keys, and what is in them. Pure.

    epoch/<e>            who has become the leader by creating it
    state/<e>/0          the whole state as it was when that leader began
    state/<e>/<n>        what its n-th transaction changed; or that the number is not used; or, last of all, the seal
    snapshots/<e>/<n>    the whole state after state/<e>/<n>

Each is JSON, compressed by gzip, whose checksum tells damaged ones: `zcat` shows what is in it. Records are rows as the
SQLite store has them, and `schema` says of which of its schemas: so its migrations bring them up to date, and nothing
but these needs to know what older ones looked like. A change of the objects themselves raises that number, too.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Mapping

import msgspec

EPOCHS, STATE, SNAPSHOTS = "epoch", "state", "snapshots"
_NUMBER = re.compile(r"[0-9]{10}")


_NULL = msgspec.Raw(b"null")


class StateRow(msgspec.Struct, frozen=True, array_like=True):
    """One record of the state."""

    kind: str
    key: str
    record: msgspec.Raw
    """As JSON; null: it is removed."""

    @property
    def is_removal(self) -> bool:
        return self.record == _NULL


class EpochBegun(msgspec.Struct, frozen=True, kw_only=True, tag="begun"):
    """Somebody became the leader."""

    schema: int
    """Of the rows that it will write."""
    epoch: int
    token: str
    """Drawn by the leader: no other one writes the same bytes."""
    who: str = ""
    """For people: where it runs."""
    version: str = ""
    """Of Cortex."""
    wall_s: float = 0.0


class Whole(msgspec.Struct, frozen=True, kw_only=True, tag="whole"):
    """The whole state, after a transaction, or as an epoch begins."""

    schema: int
    epoch: int
    number: int
    token: str
    rows: tuple[StateRow, ...]


class Changed(msgspec.Struct, frozen=True, kw_only=True, tag="changed"):
    """What one transaction changed."""

    schema: int
    epoch: int
    number: int
    token: str
    rows: tuple[StateRow, ...]


class Unused(msgspec.Struct, frozen=True, kw_only=True, tag="unused"):
    """A number whose transaction was given up: its object, which may still be on its way, can come no more."""

    schema: int
    epoch: int
    number: int
    token: str


class Sealed(msgspec.Struct, frozen=True, kw_only=True, tag="sealed"):
    """The end of an epoch, written by a later leader: whoever led it writes nothing any more."""

    schema: int
    epoch: int
    number: int
    token: str
    by: int
    """The later epoch."""


Numbered = Whole | Changed | Unused | Sealed
Content = EpochBegun | Numbered


class Damaged(Exception):
    """An object is not what was written; says why."""


class TooNew(Exception):
    """A newer Cortex wrote an object, of a schema that is not known."""

    def __init__(self, found: int) -> None:
        self.found = found
        super().__init__(f"schema {found}")


class _Schema(msgspec.Struct):
    schema: int


_schemas = msgspec.json.Decoder(_Schema)
_contents = msgspec.json.Decoder(Content)


def epoch_key(epoch: int) -> str:
    return f"{EPOCHS}/{epoch:010}"


def state_key(epoch: int, number: int) -> str:
    return f"{STATE}/{epoch:010}/{number:010}"


def snapshot_key(epoch: int, number: int) -> str:
    return f"{SNAPSHOTS}/{epoch:010}/{number:010}"


def numbers(keys: Iterable[str]) -> list[int]:
    """The last number of each of these keys, ascending; those that are not ours are left out."""
    names = (key.rpartition("/")[2] for key in keys)
    return sorted(int(name) for name in names if _NUMBER.fullmatch(name))


def epochs(keys: Iterable[str]) -> set[int]:
    """Of which epochs these keys are."""
    names = (key.split("/")[1] for key in keys)
    return {int(name) for name in names if _NUMBER.fullmatch(name)}


def encoded(content: Content) -> bytes:
    """The same bytes for the same content."""
    return gzip.compress(msgspec.json.encode(content), compresslevel=6, mtime=0)


def decoded(content: bytes, *, known: int) -> Content:
    """
    Args:
        known: the newest schema that we know.

    Raises:
        Damaged, TooNew
    """
    try:
        text = gzip.decompress(content)
        found = _schemas.decode(text).schema
        if found > known:
            raise TooNew(found)
        return _contents.decode(text)
    except (OSError, EOFError, zlib.error) as error:
        raise Damaged(f"it is not compressed as it was written: {error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"it cannot be read: {error}") from error


def folded(rows: Mapping[tuple[str, str], StateRow], changes: Iterable[StateRow]) -> dict[tuple[str, str], StateRow]:
    """The rows, by kind and key, after these changes."""
    after = dict(rows)
    for row in changes:
        if row.is_removal:
            after.pop((row.kind, row.key), None)
        else:
            after[row.kind, row.key] = row
    return after
