"""
Watching new versions: each is compared with the one before while its `watch` lasts, and goes back if it fails far more.

What is compared is decided by `planning.watching`; here counts are read and what was decided is done. What was counted
of a watch is kept in memory: after a restart of the control plane it begins anew with what comes then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from cortex.clock import Clock
from cortex.controlplane.rollback import take_back
from cortex.ids import ApiKey, Revision, Version, short
from cortex.planning import happenings, watching
from cortex.planning.model import RolledBack
from cortex.planning.watching import LOOK_EVERY_S, Answers, Base
from cortex.state.base import ApiRecord
from cortex.state.records import StateStore
from cortex.wire.events import TellEvent, told_to_nobody

log = logging.getLogger(__name__)

AFTERWARDS_S = 600.0
"""For so long it is looked at whether the failures go on once the version before is back."""


class Counted(Protocol):
    """What was answered; `statistics.Statistics` knows."""

    def answers(self, api: ApiKey, version: Version) -> Answers | None:
        """All answers of a version so far; None where nobody can tell."""
        ...

    def minutes(self, api: ApiKey, version: Version, *, until_wall_s: float, minutes: int) -> tuple[Answers, ...]:
        """Those of each minute before an instant in which there were any, oldest first."""
        ...


@dataclass
class _Watch:
    """What was seen of one new version."""

    revision: Revision
    version: Version
    base: Base | None
    until_s: float
    """Monotonic: whatever becomes of the wall clock."""
    looked_s: float
    answers: Answers
    """Of the version, as of the last look."""
    intervals: list[Answers] = field(default_factory=list)


@dataclass
class _Aftermath:
    """What is seen of the version before, now that it is back."""

    back: RolledBack
    new: Answers
    """Of the version that failed."""
    left: Version
    """That one."""
    version: Version
    answers: Answers
    """Of the version that is back, as of when it went back."""
    until_s: float


class Watching:
    """
    Looks at all watched apis, and takes them back.

    Args:
        committed: called after the wanted state has changed.
    """

    def __init__(
        self,
        *,
        state: StateStore,
        counted: Counted,
        clock: Clock,
        committed: Callable[[], None],
        tell: TellEvent = told_to_nobody,
    ) -> None:
        self._state = state
        self._tell = tell
        self._counted = counted
        self._clock = clock
        self._committed = committed
        self._watches: dict[ApiKey, _Watch] = {}
        self._aftermaths: dict[ApiKey, _Aftermath] = {}

    def step(self) -> float | None:
        """
        Look at what is due. Returns seconds until the next look; None: nothing is watched.

        Raises:
            StateError: the state cannot be written; it is tried again.
        """
        now_s = self._clock.monotonic_s()
        watched = {record.wanted.api: record for record in self._state.watched()}
        self._watches = {api: watch for api, watch in self._watches.items() if api in watched}
        for api, record in watched.items():
            self._look(api, record, now_s)
        for api, aftermath in tuple(self._aftermaths.items()):
            self._look_after(api, aftermath, now_s)
        return LOOK_EVERY_S if self._aftermaths or self._state.watched() else None

    def _look(self, api: ApiKey, record: ApiRecord, now_s: float) -> None:
        wanted = record.wanted
        watch = self._watches.get(api)
        answers = self._counted.answers(api, wanted.build.version)
        if answers is None:
            if (wanted.watched_until_wall_s or 0.0) <= self._clock.wall_s():
                self._state.end_watch(api, wanted.build.revision)
            return
        if watch is None or watch.revision != wanted.build.revision:
            self._watches[api] = self._begun(record, answers, now_s)
            return
        if now_s - watch.looked_s < LOOK_EVERY_S:
            return
        watch.intervals.append(_since(watch.answers, answers))
        watch.answers, watch.looked_s = answers, now_s
        if watch.base is None:  # what the version before answered last was still on its way when the watch began
            watch.base = self._base(record)
        reason = watching.reason_to_go_back(watch.base, watch.intervals) if watch.base is not None else ""
        if reason and wanted.previous is not None:
            self._take_back(record, watch, wanted.previous, reason, now_s)
        elif now_s >= watch.until_s:
            self._state.end_watch(api, watch.revision)
            del self._watches[api]

    def _begun(self, record: ApiRecord, answers: Answers, now_s: float) -> _Watch:
        wanted, now_wall_s = record.wanted, self._clock.wall_s()
        left_s = (wanted.watched_until_wall_s or now_wall_s) - now_wall_s
        return _Watch(
            revision=wanted.build.revision,
            version=wanted.build.version,
            base=self._base(record),
            until_s=now_s + max(0.0, min(left_s, wanted.watch_s)),
            looked_s=now_s,
            answers=answers,
        )

    def _base(self, record: ApiRecord) -> Base | None:
        """What the version before had answered until the new one was live; None: too little, as far as is known."""
        wanted = record.wanted
        before = self._version_of(wanted.api, wanted.previous)
        if before is None:
            return None
        until_wall_s = self._clock.wall_s() if wanted.live_wall_s is None else wanted.live_wall_s
        minutes = self._counted.minutes(
            wanted.api, before, until_wall_s=until_wall_s, minutes=watching.DISPERSION_MINUTES
        )
        return watching.base_of(minutes)

    def _take_back(self, record: ApiRecord, watch: _Watch, previous: Revision, reason: str, now_s: float) -> None:
        api, now_wall_s = record.wanted.api, self._clock.wall_s()
        before = self._version_of(api, previous)
        del self._watches[api]
        if not take_back(self._state, self._tell, api, watch.revision, previous, reason=reason, wall_s=now_wall_s):
            return
        log.warning("%s: back from version %s: %s", api, short(watch.version), reason)
        self._committed()
        after = self._state.api(api)
        answers = self._counted.answers(api, before) if before is not None else None
        if after is not None and after.wanted.rolled_back is not None and before is not None and answers is not None:
            self._aftermaths[api] = _Aftermath(
                back=after.wanted.rolled_back,
                new=watching.together(watch.intervals),
                left=watch.version,
                version=before,
                answers=answers,
                until_s=now_s + AFTERWARDS_S,
            )

    def _look_after(self, api: ApiKey, aftermath: _Aftermath, now_s: float) -> None:
        """Whether the version before fails as well, now that it is back."""
        answers = self._counted.answers(api, aftermath.version)
        if answers is None:
            return
        after = _since(aftermath.answers, answers)
        if after.served >= watching.FEWEST:
            del self._aftermaths[api]
            if watching.goes_on(aftermath.new, after):
                excuse = f"no fault of that version: {after.text} since, too"
                log.warning("%s: %s", api, excuse)
                self._state.excuse(api, aftermath.back, excuse)
                self._tell(happenings.excused(api, aftermath.left, excuse))
                self._committed()
        elif now_s >= aftermath.until_s:
            del self._aftermaths[api]

    def _version_of(self, api: ApiKey, revision: Revision | None) -> Version | None:
        kept = (one.build for one in self._state.versions() if one.build.api == api)
        return next((build.version for build in kept if build.revision == revision), None)


def _since(before: Answers, now: Answers) -> Answers:
    """What came since; nothing where counts became less, as old ones are forgotten at midnight."""
    failed = max(0, now.failed - before.failed)
    return Answers(max(failed, now.served - before.served), failed)
