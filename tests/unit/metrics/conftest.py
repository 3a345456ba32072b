"""Builders for tests of `cortex.metrics`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortex.ids import ApiKey, ReplicaId, Version
from cortex.metrics.store import StatsStore
from cortex.testing.clock import FakeClock
from cortex.wire.stats import StatsFile, TrackerStats


class Build:
    """Makes stats files; a test states only what it is about."""

    api = ApiKey("iris/sklearn")
    version = Version("a" * 64)
    replica = ReplicaId("iris.sklearn.aaaaaaaa.0")

    def file(self, *, ok: int = 0, latency: dict[int, int] | None = None, **changes: Any) -> StatsFile:
        """By default every answer fell into bucket 10."""
        facts: dict[str, Any] = {
            "replica": self.replica,
            "attempt": 1,
            "api": self.api,
            "version": self.version,
            "ok": ok,
            "latency_buckets": latency if latency is not None else ({10: ok} if ok else {}),
        }
        return StatsFile(**(facts | changes))

    def classes(
        self, counts: dict[str, int], *, other: int = 0, misses: int = 0, rounds: int = 0, **changes: Any
    ) -> StatsFile:
        tracker = TrackerStats(classes=counts, other=other, misses=misses, rounds=rounds)
        return self.file(tracker=tracker, **changes)

    def numbers(self, **facts: Any) -> StatsFile:
        return self.file(tracker=TrackerStats(**facts))


@pytest.fixture(scope="session")
def build() -> Build:
    return Build()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StatsStore]:
    store = StatsStore(tmp_path / "stats.db")
    yield store
    store.close()
