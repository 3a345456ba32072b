"""
What the artifact store cannot put right by itself is had again where it came from.

A replica whose model's stored bytes are damaged ends with `artifact-corrupt`, and is tried again. Where the model was
fetched from a URL it is fetched once more: if its bytes are still the same, the store puts them in the place of the
damaged ones, and the next try works. What came from somebody's machine only a deploy brings again; the problem says so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence

from cortex.artifacts.errors import ArtifactCorrupt, ArtifactMissing
from cortex.artifacts.store import ArtifactStore
from cortex.artifacts.trees import tree_digest
from cortex.errors import CortexError
from cortex.planning import happenings
from cortex.spec.locations import is_remote
from cortex.state.base import ApiRecord
from cortex.wire.build import ModelFormat
from cortex.wire.events import TellEvent, told_to_nobody
from cortex.wire.fetch import Fetched
from cortex.wire.reports import AgentReport

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
TRY_EVERY_S = 60.0
"""After an origin did not have the bytes: somebody may be putting them back."""

Fetch = Callable[[str, ModelFormat | None, threading.Event], Fetched]
"""Has a model fetched anew, from its URL; ends early when the event is set. Raises CortexError."""


def damaged(reports: Iterable[AgentReport], records: Iterable[ApiRecord]) -> list[ApiRecord]:
    """The apis that a replica could not be started of for want of sound bytes, and whose model has an origin to ask."""
    corrupt = {
        replica.api
        for report in reports
        for replica in report.replicas
        if replica.exit is not None
        and replica.exit.problem is not None
        and replica.exit.problem.reference in (ArtifactCorrupt.reference, ArtifactMissing.reference)
    }
    return [record for record in records if record.wanted.api in corrupt and _can_be_asked(record)]


def _can_be_asked(record: ApiRecord) -> bool:
    """A signed URL cannot: what signed it was never kept."""
    origin = record.version.origin
    return origin is not None and is_remote(origin.url) and not origin.url.endswith("?***")


class Healing:
    """
    Fetches damaged models anew.

    Args:
        known: all apis that are stored.
        reports: the agents' last reports.
        stopping: ends a fetch that is under way.
    """

    def __init__(
        self,
        *,
        store: ArtifactStore,
        known: Callable[[], Sequence[ApiRecord]],
        reports: Callable[[], tuple[AgentReport, ...]],
        fetch: Fetch,
        stopping: threading.Event,
        tell: TellEvent = told_to_nobody,
    ) -> None:
        self._store = store
        self._tell = tell
        self._known = known
        self._reports = reports
        self._fetch = fetch
        self._stopping = stopping

    def look(self) -> float:
        """
        Heal what can be healed. Returns seconds until the next look: later where something is damaged still.

        Raises:
            CortexError: state or store cannot be used now.
        """
        healed = True
        for record in damaged(self._reports(), self._known()) if self._any_exit() else ():
            healed = self._heal(record) and healed
        return LOOK_EVERY_S if healed else TRY_EVERY_S

    def _any_exit(self) -> bool:
        """Whether state has to be read at all, which is not so on a node that is well."""
        return any(replica.exit is not None for report in self._reports() for replica in report.replicas)

    def _heal(self, record: ApiRecord) -> bool:
        build, origin = record.wanted.build, record.version.origin
        assert origin is not None
        assert build.model is not None
        try:
            self._store.verify(build.model.tree)
            return True  # it is the project that is damaged, or somebody was faster
        except (ArtifactCorrupt, ArtifactMissing) as error:
            log.error("%s: %s; its model is fetched again", build.api, error)
            self._tell(happenings.damaged(f"{error}; its model is fetched again", api=build.api))
        try:
            fetched = self._fetch(origin.url, origin.wanted_format, self._stopping)
            if tree_digest(fetched.model.files) != build.model.tree:
                log.error("%s: the model at %s is another one by now: deploy it", build.api, origin.url)
                self._tell(
                    happenings.damaged(f"the model at {origin.url} is another one by now: deploy it", api=build.api)
                )
                return False
            self._store.put_tree(fetched.model.files)
        except CortexError as error:
            log.error("%s: its model cannot be had again from %s: %s", build.api, origin.url, error)
            self._tell(happenings.damaged(f"its model cannot be had again from {origin.url}: {error}", api=build.api))
            return False
        log.info("%s: its model was put right from %s", build.api, origin.url)
        self._tell(happenings.repaired(build.api, f"its model was put right from {origin.url}"))
        return True
