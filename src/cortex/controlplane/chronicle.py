"""What is seen, told as events where it begins or ends; what it means is decided by `planning.happenings`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cortex.clock import Clock
from cortex.ids import ApiKey, NodeId
from cortex.planning import happenings
from cortex.planning.assessment import Assessment
from cortex.planning.model import Scale
from cortex.planning.refusing import Refusing
from cortex.wire.events import TellEvent
from cortex.wire.operator import ApiStatus
from cortex.wire.reports import AgentReport


class Chronicle:
    """
    Tells what is true whenever that may have changed. Remembers nothing that has to survive.

    Args:
        version, pid: of this control plane.
    """

    def __init__(self, *, tell: TellEvent, clock: Clock, version: str, pid: int) -> None:
        self._tell = tell
        self._clock = clock
        self._version = version
        self._pid = pid
        self._started_s, self._started_wall_s = clock.monotonic_s(), clock.wall_s()
        self._seen: dict[ApiKey, tuple[ApiStatus, Scale]] = {}
        self._agents: dict[NodeId, tuple[AgentReport, AgentReport | None]] = {}
        """The last report of each node, and the last one of another agent there."""
        self._refusing = Refusing()

    def take(self, assessment: Assessment, statuses: Mapping[ApiKey, ApiStatus]) -> None:
        """Look at what is shown of a tick."""
        if not assessment.seen.settled:
            return
        for report in assessment.seen.nodes:
            self._take_report(report)
        before, self._seen = self._seen, {}
        for case in assessment.cases:
            api = case.wanted.api
            status = statuses[api]
            seen = self._seen[api] = (status, case.wanted.scale)
            if before.get(api) != seen:
                now_wall_s = self._clock.wall_s()
                for event in happenings.conditions(case.wanted, case.seen, status, now_wall_s=now_wall_s):
                    self._tell(event)

    def count(self, reports: Iterable[AgentReport]) -> None:
        """Look at what the ingress has refused. To be called each second or so, in one thread."""
        rows = [row for report in reports if report.ingress is not None for row in report.ingress.refusals]
        for event in self._refusing.look(rows, now_s=self._clock.monotonic_s()):
            self._tell(event)

    def _take_report(self, report: AgentReport) -> None:
        last, former = self._agents.get(report.name, (None, None))
        if last is not None and last.agent != report.agent:
            former = last
        self._agents[report.name] = (report, former)
        if last is None or (last.agent, _restarts(last)) != (report.agent, _restarts(report)):
            for event in happenings.started(
                report,
                former,
                version=self._version,
                pid=self._pid,
                started_wall_s=self._started_wall_s,
                up_s=self._clock.monotonic_s() - self._started_s,
            ):
                self._tell(event)


def _restarts(report: AgentReport) -> int:
    return report.ingress.restarts if report.ingress is not None else 0
