"""
Stored folders are had from the control plane, by digest: first which files there are, then those that are missing here.

Nothing is believed: a listing has to give the digest of the folder, and bytes that of their file, or they are asked for
again. A pull that breaks off goes on with the byte after the last one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import TypeVar

from cortex.agent.cache import ArtifactCache
from cortex.agent.installer import Tell
from cortex.agent.upstream import ControlPlaneAway, Upstream
from cortex.artifacts.blobs import BlobWriter
from cortex.artifacts.errors import ArtifactCorrupt, BlobsMissing, BlobTooLarge, DigestMismatch
from cortex.artifacts.store import ArtifactStore
from cortex.artifacts.trees import tree_digest
from cortex.clock import Clock
from cortex.errors import CortexError
from cortex.ids import short
from cortex.wire.needs import FetchBlob, FetchTree, Need, NeedReply, TreeListing

log = logging.getLogger(__name__)

R = TypeVar("R", bound=NeedReply)
T = TypeVar("T")

AT_ONCE = 3
"""Files on their way at a time: so many that small ones do not wait for each other's round trip."""
TRIES = 3
"""How often bytes may turn out to be others than those that were asked for."""
SAY_AFTER_S = 1.0
"""What takes less is nobody's news."""


class WrongListing(CortexError):
    """The files that a control plane lists of a stored folder are not those that its digest is of."""

    reference = "wrong-listing"
    hint = "install the same version of Cortex on this node and on the control plane"

    def __init__(self, tree: str) -> None:
        super().__init__(f"the control plane lists other files than those of the folder {short(tree)}…")


class Patient:
    """
    Asks a control plane that may be away.

    Args:
        patience_s: for so long it is waited for.
    """

    def __init__(self, *, upstream: Upstream, clock: Clock, patience_s: float) -> None:
        self.upstream = upstream
        self._clock = clock
        self._patience_s = patience_s

    async def ask(self, need: Need, kind: type[R], tell: Tell, doing: str) -> R:
        """
        Args:
            doing: what is told once it takes long.

        Raises:
            ControlPlaneAway: for too long.
            CortexError: it was refused.
        """
        since_s = self.now_s()
        while True:
            asking = asyncio.ensure_future(self.upstream.ask(need, kind))
            try:
                done, _ = await asyncio.wait([asking], timeout=SAY_AFTER_S)
                if not done:
                    tell(doing)
                return await asking
            except ControlPlaneAway as error:
                await self.bear(error, since_s)
            finally:
                asking.cancel()

    def now_s(self) -> float:
        return self._clock.monotonic_s()

    async def bear(self, error: ControlPlaneAway, since_s: float) -> None:
        """Wait a moment, or raise the error: it was away for too long."""
        if self.now_s() - since_s >= self._patience_s:
            raise error
        await asyncio.sleep(error.after_s)


class Pulling:
    """Brings stored folders into this node's own store."""

    def __init__(self, *, store: ArtifactStore, patient: Patient, cache: ArtifactCache) -> None:
        self._store = store
        self._patient = patient
        self._cache = cache

    async def pull(self, tree: str, tell: Tell) -> None:
        """
        Have a stored folder here, sound.

        Raises:
            NodeDiskFull: there is no room for it.
            ControlPlaneAway: for too long.
            WrongListing, DigestMismatch: again and again other bytes came.
            StoreUnavailable
            CortexError: the control plane does not give it to us.
        """
        doing = f"fetching files from the control plane ({short(tree)}…)"
        listing = await self._patient.ask(FetchTree(tree=tree), TreeListing, tell, doing)
        if tree_digest(listing.files) != tree or len(listing.sizes_bytes) != len(listing.files):
            raise WrongListing(tree)
        for tries_left in reversed(range(TRIES)):
            await self._pull_missing(tree, listing, tell)
            try:
                await off_loop(lambda: self._store.put_tree(listing.files))
                return
            except (ArtifactCorrupt, BlobsMissing) as error:
                if not tries_left:
                    raise
                log.warning("%s; it is fetched again", error)

    async def _pull_missing(self, tree: str, listing: TreeListing, tell: Tell) -> None:
        sizes = {file.sha256: size for file, size in zip(listing.files, listing.sizes_bytes, strict=True)}
        missing = {sha256: sizes[sha256] for sha256 in await off_loop(lambda: self._store.missing(sizes))}
        if not missing:
            return
        await self._cache.make_room(sum(missing.values()))
        log.info("fetching %d files of %s, %d bytes", len(missing), short(tree), sum(missing.values()))
        progress = _Progress(missing, tell, self._patient.now_s)
        waiting = iter(sorted(missing))

        async def work() -> None:
            for sha256 in waiting:
                await self._pull_blob(tree, sha256, missing[sha256], progress)

        workers = [asyncio.ensure_future(work()) for _ in range(min(AT_ONCE, len(missing)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _pull_blob(self, tree: str, sha256: str, size_bytes: int, progress: _Progress) -> None:
        for tries_left in reversed(range(TRIES)):
            with self._store.writer(sha256, size_limit=size_bytes) as writer:
                try:
                    await self._receive(writer, tree, sha256, progress)
                    await off_loop(writer.commit)
                    return
                except (DigestMismatch, BlobTooLarge) as error:
                    if not tries_left:
                        raise
                    log.warning("%s; it is fetched again", error)
                    progress.take(-min(writer.size_bytes, size_bytes))

    async def _receive(self, writer: BlobWriter, tree: str, sha256: str, progress: _Progress) -> None:
        """All bytes of a file. Where they break off, those that are left are asked for."""
        heard_s = self._patient.now_s()
        while True:
            need = FetchBlob(tree=tree, sha256=sha256, offset=writer.size_bytes)
            try:
                async with aclosing(self._patient.upstream.stream(need)) as parts:
                    async for part in parts:
                        await off_loop(lambda part=part: writer.write(part))  # type: ignore[misc]
                        heard_s = self._patient.now_s()
                        progress.take(len(part))
                return
            except ControlPlaneAway as error:
                progress.broke_off()
                await self._patient.bear(error, heard_s)


class _Progress:
    """How far a pull is, told from time to time."""

    def __init__(self, sizes_bytes: Mapping[str, int], tell: Tell, now_s: Callable[[], float]) -> None:
        self._total = sum(sizes_bytes.values())
        self._done = 0
        self._tell = tell
        self._now_s = now_s
        self._told_s = now_s()

    def take(self, count: int) -> None:
        self._done += count
        if self._now_s() - self._told_s >= SAY_AFTER_S:
            self._say("")

    def broke_off(self) -> None:
        self._say(": waiting for the control plane")

    def _say(self, more: str) -> None:
        self._told_s = self._now_s()
        self._tell(f"fetching {self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB{more}")


async def off_loop(work: Callable[[], T]) -> T:
    """Have a thread do what writes or reads much. Whoever calls it off waits until it has ended: it has files open."""
    doing = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait([doing])
        raise
