"""
The statistics of a cluster in its storage, as of their last flush: for the head that follows one whose disk is lost.

    statistics/<epoch>/<n>    the file's pages: all of them, or those that differ from the object before

Apart from the state: they change each second, and nothing depends on them. A head that begins with what was flushed
loses nothing that a node still has: the file says what was last seen of each run, and nodes send all of their files to
another control plane. So of what was counted since, only that of runs that ended meanwhile is missing.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec

from cortex.errors import CortexError
from cortex.processes import write_whole
from cortex.storage.base import Storage

log = logging.getLogger(__name__)

FLUSH_EVERY_S = 10.0
PAGE_BYTES = 4096
"""SQLite's own, so that what was not written to is found to be the same."""
WHOLE_EVERY = 60
"""Objects: ten minutes of changes, read one after the other by the next head."""

FOLDER = "statistics"


class Pages(msgspec.Struct, frozen=True, kw_only=True):
    """What one flush holds."""

    epoch: int
    number: int
    is_whole: bool
    size_bytes: int
    """Of the file."""
    pages: dict[int, bytes]
    """By their place in it."""


_decoded = msgspec.msgpack.Decoder(Pages).decode


class Flushes:
    """
    Those of one leader. Not thread-safe.

    Args:
        epoch: in which it leads. What somebody else flushes in an older one later is never read.
    """

    def __init__(self, storage: Storage, *, epoch: int) -> None:
        self._storage = storage
        self._epoch = epoch
        self._number = -1
        self._digests: Sequence[bytes] = ()
        """Of the pages as they were flushed last; empty: the next flush is whole."""
        self._wholes: list[int] = []

    def restore(self, file: Path) -> bool:
        """Make a file of what was flushed last; False where there is nothing. Raises StorageError, OSError."""
        image = self.image()
        if image is None:
            return False
        write_whole(file, image)
        return True

    def image(self) -> bytes | None:
        """
        The file as it was flushed last, by whoever led before; None where nothing was, or nothing can be read.

        What follows an object that is damaged or missing is left out: what comes of the rest is a file as it once was.

        Raises:
            StorageError
        """
        older = [key for key in self._storage.keys(FOLDER) if key < _key(self._epoch, 0)]
        for folder in sorted({key.rpartition("/")[0] for key in older}, reverse=True):
            image = self._image_of([key for key in older if key.startswith(f"{folder}/")])
            if image is not None:
                return image
        return None

    def flush(self, image: bytes) -> bool:
        """
        Write what has changed since the last flush, as one object; False where nothing has.

        Raises:
            StorageError: the next flush is of everything.
        """
        pages = [image[start : start + PAGE_BYTES] for start in range(0, len(image), PAGE_BYTES)]
        digests = [blake2b(page, digest_size=16).digest() for page in pages]
        if digests == self._digests:
            return False
        number = self._number + 1
        is_whole = not self._digests or number - self._wholes[-1] >= WHOLE_EVERY
        before = () if is_whole else self._digests
        changed = {
            index: page for index, page in enumerate(pages) if index >= len(before) or digests[index] != before[index]
        }
        flushed = Pages(epoch=self._epoch, number=number, is_whole=is_whole, size_bytes=len(image), pages=changed)
        self._digests, self._number = (), number  # until it is known to be there
        self._storage.create(_key(self._epoch, number), gzip.compress(msgspec.msgpack.encode(flushed), mtime=0))
        self._digests = digests
        if is_whole:
            self._wholes.append(number)
            self._clear_up()
        return True

    def _clear_up(self) -> None:
        """Keep what comes from the last whole file but one, and of older epochs, until there are two, everything."""
        if len(self._wholes) < 2:
            return
        first = _key(self._epoch, self._wholes[-2])
        try:
            self._storage.delete(key for key in self._storage.keys(FOLDER) if key < first)
        except CortexError as error:
            log.warning("flushed statistics that are superfluous could not be removed: %s", error)
        self._wholes = self._wholes[-2:]

    def _image_of(self, keys: Sequence[str]) -> bytes | None:
        """The file that these objects of one epoch, in their order, come to."""
        later: list[Pages | None] = []
        for key in reversed(keys):
            found = self._read(key)
            if found is None or not found.is_whole:
                later.append(found)
                continue
            image = _with(b"", found)
            for number, changed in enumerate(reversed(later), found.number + 1):
                if changed is None or changed.number != number:
                    log.warning("%s is damaged or missing: what was flushed since is lost", _key(found.epoch, number))
                    break
                image = _with(image, changed)
            return image
        return None

    def _read(self, key: str) -> Pages | None:
        content = self._storage.read(key)
        try:
            found = _decoded(gzip.decompress(content or b""))
        except (OSError, EOFError, zlib.error, msgspec.MsgspecError):
            return None
        return found if _key(found.epoch, found.number) == key else None


def _with(image: bytes, changed: Pages) -> bytes:
    after = bytearray(image[: changed.size_bytes].ljust(changed.size_bytes, b"\0"))
    for index, page in changed.pages.items():
        after[index * PAGE_BYTES : index * PAGE_BYTES + len(page)] = page
    return bytes(after)


def _key(epoch: int, number: int) -> str:
    return f"{FOLDER}/{epoch:010}/{number:010}"
