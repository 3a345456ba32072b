"""
What a replica knows of itself: written by the main thread, read by the control thread at any moment.

No locks: each fact is one attribute, and a status that is one step behind does no harm.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from time import perf_counter
from typing import Any

from cortex.errors import Problem
from cortex.processes import start_ticks
from cortex.replica.calls import Call
from cortex.replica.prediction.inference import BatchingCondition
from cortex.wire import inhand
from cortex.wire.inhand import InHand
from cortex.wire.launch import ReplicaSpec, ReplicaStatus
from cortex.wire.reports import Phase

OVERDUE_GRACE_S = 1.0
"""After its timeout a request's code gets this long to end, since it may just have been cancelled."""
STUCK_AFTER_S = 0.25
"""
A request whose time was up so long ago and which was not even told so: the event loop sits in a handler.

Less than the ingress waits on top of a timeout (`ingress.configuration.REPLICA_GRACE_MS`), so that what comes after it
has given up that request already goes elsewhere.
"""


class Condition:
    """Phase, progress, and what is being worked on."""

    def __init__(self, spec: ReplicaSpec) -> None:
        now_s = time.time()
        self.spec = spec
        self.pid = os.getpid()
        self.start_ticks = start_ticks(self.pid) or 0
        self.started_wall_s = now_s
        self.phase = Phase.LOADING
        self.phase_wall_s = now_s
        self.was_ready = False
        self.progress = ""
        self.progress_wall_s = now_s
        self.problem: Problem | None = None
        self.warnings: tuple[Problem, ...] = ()
        self.batching = BatchingCondition(spec.batches)
        self.counts = 0
        """Of the last `Ask` whose counters are in the file."""
        self.facts: dict[str, Any] = {}
        """What was found out while starting."""
        self.in_hand = InHand(f"{spec.stats_path}{inhand.SUFFIX}" if spec.stats_path else "")
        self.in_flight: dict[Call, None] = {}
        """Oldest first. A call leaves when its code has ended, which may be after it was answered."""
        self.heartbeat_s = perf_counter()
        self.starved_since_s: float | None = None
        """Since when new connections wait until there are descriptors; None: they do not."""
        """When the event loop last came round."""
        self.ending = False
        """The event loop is not meant to come round any more: the handler's code is being ended."""
        self.resumed_s = 0.0
        """When the whole process last went on after it had been stopped or starved: no fault of the event loop's."""
        self.rests = False
        """Nothing has happened for a while, so that the control thread looks less often: who begins something has to
        `stir`."""
        self.active = False
        """What the control thread found when it looked last: something happens."""
        self.announce: Callable[[], None] = lambda: None
        """Called after each change that should be pushed to whoever watches."""

    def enter(self, phase: Phase) -> None:
        """Go on to the next phase; never back."""
        self.phase = phase
        self.phase_wall_s = time.time()
        if phase is Phase.READY:
            self.was_ready = True
            self.progress = ""
        self.announce()

    def stir(self) -> None:
        """After a rest a request has come."""
        self.rests = False
        self.announce()

    def report(self, progress: str) -> None:
        """Say what is being done while starting."""
        self.progress = progress
        self.progress_wall_s = time.time()
        self.announce()

    def warn(self, problem: Problem) -> None:
        self.warnings = (*self.warnings, problem)
        self.announce()

    def fail(self, problem: Problem) -> None:
        self.problem = problem
        self.announce()

    def status(self) -> ReplicaStatus:
        now_s = perf_counter()
        oldest_s, overdue, count = self._look_at_requests(now_s)
        most_rows = self.batching.most_rows
        serving = self.phase in (Phase.READY, Phase.DRAINING) and not self.ending
        return ReplicaStatus(
            replica=self.spec.replica,
            attempt=self.spec.attempt,
            pid=self.pid,
            start_ticks=self.start_ticks,
            phase=self.phase,
            phase_wall_s=self.phase_wall_s,
            started_wall_s=self.started_wall_s,
            was_ready=self.was_ready,
            heartbeat_age_s=max(0.0, now_s - max(self.heartbeat_s, self.resumed_s)) if serving else 0.0,
            oldest_request_age_s=oldest_s,
            overdue=overdue,
            starved_s=0.0 if self.starved_since_s is None else now_s - self.starved_since_s,
            stuck=serving and self.until_stuck_s() <= 0,
            ending=self.ending,
            in_flight=count,
            progress=self.progress,
            progress_wall_s=self.progress_wall_s,
            problem=self.problem,
            warnings=self.warnings,
            batching=self.batching.state(),
            counts=self.counts,
            active=self.active,
            facts={**self.facts, "batching": most_rows > 1, "largest_batch": most_rows} if self.facts else {},
        )

    def has_in_hand(self, request: str) -> bool:
        """Whether a request of this id is being worked on."""
        return any(call.id == request for call in self._requests())

    def until_stuck_s(self) -> float:
        """Seconds until the event loop counts as stuck, unless it answers before; 0 or less: it is, infinity: never."""
        due_s = [e.started_s + e.timeout_s for e in self._requests() if not e.answered]
        return min(due_s, default=math.inf) + STUCK_AFTER_S - perf_counter()

    def _requests(self) -> list[Call]:
        for _ in range(10):
            try:
                return list(self.in_flight)  # atomic in CPython but for a resize at the wrong moment
            except RuntimeError:
                continue
        return []

    def _look_at_requests(self, now_s: float) -> tuple[float, bool, int]:
        """Age of the oldest request, whether any has outlived its timeout, and how many there are."""
        calls = self._requests()
        oldest_s = 0.0
        overdue = False
        for call in calls:
            age_s = now_s - call.started_s
            oldest_s = max(oldest_s, age_s)
            overdue = overdue or age_s > call.timeout_s + OVERDUE_GRACE_S
        return oldest_s, overdue, len(calls)
