"""
The artifact store of a node that has one of its own: a cache of what the control plane has.

It holds at most what the setting allows, but for what is ordered, runs, or is being looked at here: that stays whatever
its size. Of the rest the least recently used goes first, and is had again when it is needed.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from cortex.artifacts.store import ArtifactStore
from cortex.clock import Clock, SettledWall
from cortex.errors import CortexError

log = logging.getLogger(__name__)

RESERVE_BYTES = 64 * 2**20
"""Left free on the disk: for logs, records and counts of what serves."""


class NodeDiskFull(CortexError):
    """The disk of a node has no room for files that a replica needs there."""

    reference = "node-disk-full"

    def __init__(self, store: ArtifactStore, needed_bytes: int, free_bytes: int) -> None:
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.hint = f"free space on the disk that holds {store.root}; what runs goes on serving"
        super().__init__(
            f"{needed_bytes / 1e6:.0f} MB have to be fetched into {store.root}, whose disk has {free_bytes / 1e6:.0f} "
            f"MB free, of which {RESERVE_BYTES / 1e6:.0f} MB are kept for what serves"
        )


class ArtifactCache:
    """
    Keeps a node's own store within its limit.

    Args:
        keep_bytes: how large it may be, and its rest where more has to stay.
        needed: digests of what is ordered here or runs.
    """

    def __init__(
        self, *, store: ArtifactStore, keep_bytes: int, clock: Clock, needed: Callable[[], Collection[str]]
    ) -> None:
        self._store = store
        self._keep_bytes = keep_bytes
        self._wall = SettledWall(clock)
        self._needed = needed
        self._used: Counter[str] = Counter()

    @contextmanager
    def using(self, *trees: str) -> Iterator[None]:
        """Keep these, which need not be there yet, while the block runs."""
        self._used.update(trees)
        try:
            yield
        finally:
            self._used.subtract(trees)
            self._used += Counter()  # without those at 0

    async def make_room(self, needed_bytes: int) -> None:
        """
        Remove what nobody needs, so that so much may come.

        Raises:
            NodeDiskFull: there is no room on the disk all the same.
            StoreUnavailable
        """
        await self._collect(max(0, self._keep_bytes - needed_bytes))
        free_bytes = await asyncio.to_thread(self._free_bytes)
        if needed_bytes > free_bytes - RESERVE_BYTES:
            await self._collect(0)
            free_bytes = await asyncio.to_thread(self._free_bytes)
        if needed_bytes > free_bytes - RESERVE_BYTES:
            raise NodeDiskFull(self._store, needed_bytes, free_bytes)

    async def clean(self) -> None:
        """Remove what is beyond the limit, and leftovers."""
        try:
            await self._collect(self._keep_bytes)
        except CortexError as error:
            log.error("%s; %s", error, error.hint)

    async def _collect(self, keep_bytes: int) -> None:
        in_use = {*self._needed(), *self._used}
        done = await asyncio.to_thread(self._store.collect_garbage, in_use, keep_bytes, self._wall.wall_s())
        if done.trees or done.blobs or done.strays:
            log.info(
                "artifacts: %d folders, %d files and %d leftovers removed, %d bytes freed, %d kept",
                *(len(done.trees), done.blobs, done.strays, done.freed_bytes, done.kept_bytes),
            )

    def _free_bytes(self) -> int:
        self._store.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.statvfs(self._store.root)
        return found.f_bavail * found.f_frsize
