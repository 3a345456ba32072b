"""What was served and predicted: takes in what nodes deliver of it, and adds the figures to statuses."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import msgspec

from cortex.clock import Clock, until_beat_s
from cortex.errors import CortexError
from cortex.ids import ApiKey, NodeId, Version, api_key
from cortex.metrics import summary
from cortex.metrics.counts import Lifetime
from cortex.metrics.intake import CountIntake
from cortex.metrics.store import StatsStore, StatsStoreUnusable, Window
from cortex.planning.watching import Answers
from cortex.wire.build import TrackerConfig
from cortex.wire.needs import CountsTaken, DeliverCounts
from cortex.wire.operator import AllVersions, ApiStatus, Traffic
from cortex.wire.reports import AgentReport, IngressRefusals, Phase
from cortex.wire.stats import Attempt

log = logging.getLogger(__name__)

COLLECT_EVERY_S = 1.0
"""As often as nodes deliver."""


class Statistics:
    """
    The counters of everything that ran here. Nothing else depends on them: without a usable file, nothing is shown.

    Args:
        file: the store.
        reports: the agents' last reports; empty while none has come since our start.
        wanted: the apis that there are.
    """

    def __init__(
        self,
        *,
        file: Path,
        clock: Clock,
        reports: Callable[[], tuple[AgentReport, ...]],
        wanted: Callable[[], Iterable[ApiKey]],
    ) -> None:
        self._file = file
        self._clock = clock
        self._reports = reports
        self._wanted = wanted
        self._store: StatsStore | None = None
        self._intake: CountIntake | None = None
        self._merged_refusals: tuple[IngressRefusals, ...] = ()
        self._counting = threading.Lock()
        self._closed = False
        self.collect()

    def close(self) -> None:
        """Count what there is for the last time."""
        self.collect()
        with self._counting:
            self._closed = True
            if self._store is not None:
                self._store.close()

    def take(self, delivery: DeliverCounts, node: NodeId) -> CountsTaken:
        """
        Count what a node delivers.

        Raises:
            StatsStoreUnusable: nothing was counted; it may be delivered again.
        """
        wanted = frozenset(self._wanted())
        serving = self._serving(wanted)
        with self._counting:
            if self._closed:
                raise StatsStoreUnusable(self._file, "this control plane ends")
            _store, intake = self._opened()
            return intake.take(node, delivery, wanted=wanted, serving=serving)

    def collect(self) -> None:
        """Count what the agents' reports say, and forget what is over."""
        reports = self._reports()
        serving = self._serving(frozenset(self._wanted()))
        with self._counting:
            if self._closed:
                return
            try:
                store, intake = self._opened()
                intake.take_back(serving)
                intake.tidy({report.node.node for report in reports})
                self._merge_refusals(store, reports)
            except CortexError as error:
                log.warning("statistics could not be collected, will be tried again: %s", error)

    def _opened(self) -> tuple[StatsStore, CountIntake]:
        """Raises StatsStoreUnusable."""
        if self._store is None or self._intake is None:
            self._store = StatsStore(self._file)
            self._intake = CountIntake(self._store, self._clock)
        return self._store, self._intake

    def _serving(self, wanted: AbstractSet[ApiKey]) -> set[Attempt]:
        """Attempts that answer requests of an api that there is."""
        return {
            (replica.replica, replica.attempt)
            for report in self._reports()
            for replica in report.replicas
            if replica.phase is Phase.READY and replica.api in wanted
        }

    def forget(self, apis: Iterable[ApiKey]) -> None:
        """Nothing that these apis have counted is shown any more, nor what their replicas still count."""
        with self._counting:
            try:
                if self._intake is not None and not self._closed:
                    self._intake.forget_apis(apis)
            except CortexError as error:
                log.warning("statistics of removed apis could not be forgotten: %s", error)

    def with_requests(self, status: ApiStatus, version: Version) -> ApiStatus:
        """A status with what was answered by this version, over at most 14 days."""
        window = self._window(status, version, classes=False)
        if window is None:
            return status
        return msgspec.structs.replace(status, requests=summary.request_counts(window.counts))

    def with_everything(self, status: ApiStatus, version: Version, tracker: TrackerConfig | None) -> ApiStatus:
        """A status with requests, what was predicted, the last hour's traffic, and all versions together."""
        classifies = tracker is not None and tracker.model_type == "classification"
        own = self._window(status, version, classes=classifies)
        together = self._window(status, None, classes=classifies)
        if own is None or together is None:
            return status
        api, now_s = api_key(status.deployment, status.name), self._clock.wall_s()
        try:
            store = self._store
            recent = () if store is None else store.recent(api, now_wall_s=now_s)
            versions = 0 if store is None else len(store.versions(api))
        except CortexError as error:
            log.warning("statistics cannot be read: %s", error)
            return status
        return msgspec.structs.replace(
            status,
            requests=summary.request_counts(own.counts),
            tracker=_told(tracker, own),
            traffic=Traffic(
                per_second=summary.requests_per_second(recent, now_s), minutes=summary.sparkline(recent, now_s)
            ),
            all_versions=AllVersions(
                versions=versions,
                requests=summary.request_counts(together.counts),
                tracker=_told(tracker, together),
            ),
        )

    def answers(self, api: ApiKey, version: Version) -> Answers | None:
        """What a version has answered, over at most 14 days; None where nobody can tell."""
        store = self._store
        try:
            if store is None:
                return None
            counts = store.window(api, version, now_wall_s=self._clock.wall_s()).counts
        except CortexError as error:
            log.warning("statistics cannot be read: %s", error)
            return None
        return Answers(counts.served, counts.failed)

    def minutes(self, api: ApiKey, version: Version, *, until_wall_s: float, minutes: int) -> tuple[Answers, ...]:
        """What a version has answered in each minute before an instant in which it did, oldest first."""
        store = self._store
        try:
            found = () if store is None else store.recent(api, version, now_wall_s=until_wall_s, minutes=minutes)
        except CortexError as error:
            log.warning("statistics cannot be read: %s", error)
            return ()
        before = (one.counts for one in found if one.start_s <= until_wall_s)
        return tuple(Answers(counts.served, counts.failed) for counts in before if counts.answered)

    def lifetimes(self) -> dict[ApiKey, Lifetime]:
        """Totals that only grow, for Prometheus."""
        store = self._store
        try:
            return {} if store is None else store.lifetimes()
        except CortexError as error:
            log.warning("statistics cannot be read: %s", error)
            return {}

    def _window(self, status: ApiStatus, version: Version | None, *, classes: bool) -> Window | None:
        """What was counted of a version, or of all together; None where nobody can tell."""
        api, store = api_key(status.deployment, status.name), self._store
        try:
            if store is None:
                return None
            return store.window(api, version, now_wall_s=self._clock.wall_s(), classes=classes)
        except CortexError as error:
            log.warning("statistics cannot be read: %s", error)
            return None

    def _merge_refusals(self, store: StatsStore, reports: tuple[AgentReport, ...]) -> None:
        ingresses = [report.ingress for report in reports if report.ingress is not None]
        refusals = tuple(refusal for ingress in ingresses for refusal in ingress.refusals)
        if not refusals or refusals == self._merged_refusals:
            return
        store.merge_ingress(refusals, live={refusal.instance for refusal in refusals}, now_wall_s=self._clock.wall_s())
        self._merged_refusals = refusals

    def step(self) -> float:
        """Collect; returns seconds until the next time."""
        self.collect()
        return until_beat_s(self._clock.monotonic_s(), COLLECT_EVERY_S)


def _told(tracker: TrackerConfig | None, window: Window) -> dict[str, Any] | None:
    return None if tracker is None else summary.tracker(tracker.model_type, window.counts, window.classes)
