"""
Messages between whoever needs a remote model and the process that fetches it (`artifacts.fetcher`), lines of JSON.

On its stdin one `FetchRequest`; the pipe stays open for as long as the model is wanted. On its stdout any number of
`FetchProgress`, then `Fetched` or `FetchRefused`. Credentials travel in the process's variables, never here.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from cortex.errors import Problem
from cortex.wire.build import ModelFormat
from cortex.wire.operator import ModelUpload


class OriginObject(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object of an origin as it was when it was read: while this stays the same, so do its bytes."""

    url: str
    """Without query, user and password."""
    size_bytes: int
    etag: str | None = None
    """As the origin wrote it, with its quotes."""
    modified_wall_s: float | None = None
    sha256: str = ""
    """Of its bytes; those of a zip are not kept, so it only serves to recognise them."""

    def is_same(self, other: OriginObject) -> bool:
        """
        Whether both are known to be the same bytes, as far as their origin tells.

        An ETag names content; without one, size and date have to do; with neither, nothing is known.
        """
        if self.url != other.url or self.size_bytes != other.size_bytes:
            return False
        if self.etag or other.etag:
            return self.etag == other.etag
        return self.modified_wall_s is not None and self.modified_wall_s == other.modified_wall_s


class Origin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a model's bytes came from, and what they were there."""

    url: str
    """As cortex.yaml has it, masked."""
    objects: tuple[OriginObject, ...]
    """Those that were chosen, sorted by URL."""
    wanted_format: ModelFormat | None = None
    """What `model_format` said: it has a say in what is chosen."""
    packed: bool = False
    """The one object is a zip, and the model is what was in it."""
    note: str = ""
    """What was chosen and why, for people."""


class KnownModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that was fetched before; what has not changed since is not read again."""

    origin: Origin
    model: ModelUpload


class FetchRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    """As cortex.yaml has it: a signed URL with its query."""
    store: str
    """Root of the artifact store that takes the files."""
    model_format: ModelFormat | None = None
    known: tuple[KnownModel, ...] = ()

    def __repr__(self) -> str:
        return "FetchRequest(…)"


class FetchProgress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """Bytes read so far, of those that have to be read as far as is known yet."""

    done_bytes: int
    total_bytes: int
    note: str = ""
    """What went wrong and is tried again."""


class Fetched(msgspec.Struct, frozen=True, kw_only=True, tag="fetched"):
    """The model lies in the store, as a tree."""

    origin: Origin
    model: ModelUpload
    read_bytes: int
    """Content that was read from the origin for this; 0 when everything was known."""
    read_objects: int


class FetchRefused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    problem: Problem


def described(one: OriginObject) -> str:
    """`ETag 9b2c… of 2026-11-26 17:00:03 UTC`, for people."""
    parts = [f"ETag {one.etag.strip(chr(34))}" if one.etag else f"{one.size_bytes} bytes"]
    if one.modified_wall_s is not None:
        parts.append(f"of {datetime.fromtimestamp(one.modified_wall_s, UTC):%Y-%m-%d %H:%M:%S} UTC")
    return " ".join(parts)


FetchEvent = FetchProgress | Fetched | FetchRefused
