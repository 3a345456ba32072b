"""
Keeping the artifact store from growing for ever, in quiet moments, and from rotting unseen.

What may still be wanted stays whatever its size: everything that serves or shall, and the last versions of each api.
Of the rest the least recently used goes first, once the store is larger than the setting allows.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from cortex.artifacts.store import ArtifactStore
from cortex.clock import Clock, SettledWall
from cortex.ids import Version
from cortex.planning import happenings
from cortex.state.records import StateStore
from cortex.wire.events import TellEvent, told_to_nobody
from cortex.wire.reports import AgentReport, Phase

log = logging.getLogger(__name__)

FIRST_AFTER_S = 120.0
"""After our start: whoever deploys right away shall not wait for it."""
EVERY_S = 3600.0
NOT_QUIET_PAUSE_S = 60.0
SCRUB_EVERY_S = 7 * 86400.0
SCRUB_BYTES_PER_S = 8.0 * 2**20
"""About 2 % of a core, and little enough for a disk that also serves; 100 GiB take three and a half hours."""


class Upkeep:
    """
    Collects garbage in the artifact store from time to time, and reads all of it now and then.

    Args:
        keep_bytes: how large the store may remain; see `ArtifactStore.collect_garbage`.
        reports: the agents' last reports; empty while none has come since our start.
        stopping: ends a scrub that is under way.
    """

    def __init__(
        self,
        *,
        state: StateStore,
        store: ArtifactStore,
        clock: Clock,
        keep_bytes: int,
        reports: Callable[[], tuple[AgentReport, ...]],
        stopping: threading.Event,
        tell: TellEvent = told_to_nobody,
    ) -> None:
        self._state = state
        self._tell = tell
        self._store = store
        self._wall = SettledWall(clock)
        self._keep_bytes = keep_bytes
        self._reports = reports
        self._stopping = stopping

    def collect(self) -> float:
        """
        Remove what nobody needs any more, unless this is not the moment. Returns seconds until the next look.

        Raises:
            CortexError: state or store cannot be used now.
        """
        in_use, versions = wanted_trees(self._state)
        if not is_quiet(self._reports(), versions):
            return NOT_QUIET_PAUSE_S
        self._state.prune_batching(in_use)
        done = self._store.collect_garbage(in_use, self._keep_bytes, self._wall.wall_s())
        if done.trees or done.blobs or done.strays:
            log.info(
                "artifacts: %d folders, %d files and %d leftovers removed, %d bytes freed, %d kept",
                len(done.trees),
                done.blobs,
                done.strays,
                done.freed_bytes,
                done.kept_bytes,
            )
        return EVERY_S

    def scrub(self) -> float:
        """
        Read all that is stored, slowly, so that damage is known before a replica needs the file.

        Returns:
            Seconds until the next time.

        Raises:
            CortexError: the store cannot be used now.
        """
        for step in self._store.scrub(bytes_per_s=SCRUB_BYTES_PER_S):
            if step.damage is not None:
                log.error("artifacts: %s; %s", step.damage, step.damage.hint)
                self._tell(happenings.damaged(f"{step.damage}; {step.damage.hint}"))
            if self._stopping.wait(step.wait_s):
                break
        return SCRUB_EVERY_S


def wanted_trees(state: StateStore) -> tuple[set[str], set[Version]]:
    """Stored folders that may still be wanted, locks of packages among them, and the versions that they belong to."""
    kept = state.versions()
    return {tree for one in kept for tree in one.build.trees}, {one.build.version for one in kept}


def is_quiet(reports: Iterable[AgentReport], known: Iterable[Version]) -> bool:
    """
    Whether it is known what everything that runs was started from.

    A replica that is on its way out may be of a version that nothing remembers, and still read its project.
    """
    known, found = set(known), False
    for report in reports:
        found = True
        for replica in report.replicas:
            if replica.phase is not Phase.EXITED and replica.version not in known:
                return False
    return found
