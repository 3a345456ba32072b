"""What each tick sees, told as events where it begins or ends; what it means is decided by `planning.happenings`."""

from __future__ import annotations

from collections.abc import Mapping

from cortex.clock import Clock
from cortex.ids import ApiKey
from cortex.planning import happenings
from cortex.planning.assessment import Assessment
from cortex.planning.model import Scale
from cortex.wire.events import TellEvent
from cortex.wire.operator import ApiStatus


class Chronicle:
    """Tells what is true of each api whenever that may have changed. Remembers nothing that has to survive."""

    def __init__(self, *, tell: TellEvent, clock: Clock) -> None:
        self._tell = tell
        self._clock = clock
        self._seen: dict[ApiKey, tuple[ApiStatus, Scale]] = {}

    def take(self, assessment: Assessment, statuses: Mapping[ApiKey, ApiStatus]) -> None:
        """Look at what is shown of a tick."""
        if not assessment.seen.settled:
            return
        before, self._seen = self._seen, {}
        for case in assessment.cases:
            api = case.wanted.api
            status = statuses[api]
            seen = self._seen[api] = (status, case.wanted.scale)
            if before.get(api) != seen:
                now_wall_s = self._clock.wall_s()
                for event in happenings.conditions(case.wanted, case.seen, status, now_wall_s=now_wall_s):
                    self._tell(event)
