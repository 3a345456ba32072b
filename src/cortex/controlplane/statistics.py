"""What was served and predicted: merges the replicas' files in its own thread, and adds the figures to statuses."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from cortex.clock import Clock
from cortex.errors import CortexError
from cortex.ids import ApiKey, Version, api_key
from cortex.metrics import summary
from cortex.metrics.collect import Collector
from cortex.metrics.counts import IngressCounts, Lifetime
from cortex.metrics.store import StatsStore
from cortex.wire.build import TrackerConfig
from cortex.wire.operator import ApiStatus
from cortex.wire.reports import AgentReport, Phase

log = logging.getLogger(__name__)

COLLECT_EVERY_S = 1.0
"""As often as replicas write."""


class Statistics:
    """
    The counters of everything that ran here.

    Args:
        folder: where replicas write.
        file: the store.
        reports: the agents' last reports; empty while none has come since our start.
    """

    def __init__(
        self, *, folder: Path, file: Path, clock: Clock, reports: Callable[[], tuple[AgentReport, ...]]
    ) -> None:
        self._clock = clock
        self._reports = reports
        self._store = StatsStore(file)
        self._collector = Collector(folder, self._store, clock)
        self._collecting = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="statistics", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Count what there is for the last time."""
        self._stopping.set()
        self._thread.join(timeout=5.0)
        self.collect()
        self._store.close()

    def collect(self) -> None:
        """Merge what the replicas have written since the last time."""
        reports = self._reports()
        live = {
            (replica.replica, replica.attempt)
            for report in reports
            for replica in report.replicas
            if replica.phase is not Phase.EXITED
        }
        with self._collecting:
            try:
                self._collector.collect(live if reports else None)
                self._merge_refusals(reports)
            except (CortexError, OSError) as error:
                log.warning("statistics could not be collected, will be tried again: %s", error)

    def with_requests(self, status: ApiStatus, version: Version) -> ApiStatus:
        """A status with what was answered by this version, over at most 14 days."""
        api = api_key(status.deployment, status.name)
        window = self._store.window(api, version, now_wall_s=self._clock.wall_s())
        return msgspec.structs.replace(status, requests=summary.request_counts(window.counts))

    def with_tracker(self, status: ApiStatus, version: Version, tracker: TrackerConfig | None) -> ApiStatus:
        """A status with requests, and what was predicted."""
        status = self.with_requests(status, version)
        if tracker is None:
            return status
        api = api_key(status.deployment, status.name)
        window = self._store.window(api, version, now_wall_s=self._clock.wall_s(), classes=True)
        told = summary.tracker(tracker.model_type, window.counts, window.classes)
        return msgspec.structs.replace(status, tracker=told)

    def lifetimes(self) -> dict[ApiKey, Lifetime]:
        """Totals that only grow, for Prometheus."""
        return self._store.lifetimes()

    def _merge_refusals(self, reports: tuple[AgentReport, ...]) -> None:
        ingresses = [report.ingress for report in reports if report.ingress is not None]
        refusals = [refusal for ingress in ingresses for refusal in ingress.refusals]
        if not refusals:
            return
        self._store.merge_ingress(
            (
                IngressCounts(
                    instance=refusal.instance,
                    api=refusal.api,
                    version=refusal.version,
                    client_error=refusal.client_error,
                    server_error=refusal.server_error,
                )
                for refusal in refusals
            ),
            live={refusal.instance for refusal in refusals},
            now_wall_s=self._clock.wall_s(),
        )

    def _run(self) -> None:
        while not self._stopping.wait(COLLECT_EVERY_S):
            self.collect()
