"""Counters of this replica, and the file they are written to."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from pathlib import Path

import msgspec
import numpy as np

from cortex.processes import write_json, write_whole
from cortex.replica.observation.tracker import Tracker
from cortex.wire.launch import ReplicaSpec
from cortex.wire.stats import BUCKETS_PER_E, EXIT_FILE_SUFFIX, SMALLEST_MS, LastWords, StatsFile

MOST_UNSORTED = 1_000
"""Durations that wait to be sorted into buckets: sorting so many holds up nobody for longer than a prediction takes."""


class Counters:
    """
    What this attempt has answered. Counted on the event loop only; read by the control thread at any time.

    With a request its duration is only noted; durations are sorted into buckets many at once. One by one that takes
    four times as long, as the logarithm and its surroundings are in no cache by then.
    """

    __slots__ = (
        "_sorting",
        "_unsorted",
        "abandoned",
        "by_class",
        "dropped",
        "latency_buckets",
        "latency_sum_ms",
        "unavailable",
    )

    def __init__(self) -> None:
        self.by_class = [0] * 6
        """Responses by the first digit of their status."""
        self.unavailable = 0
        """Those with 503."""
        self.abandoned = 0
        self.dropped = 0
        self.latency_sum_ms = 0.0
        """Like the buckets, as of the last `sort`."""
        self.latency_buckets: dict[int, int] = {}
        self._unsorted: deque[float] = deque()
        self._sorting = threading.RLock()

    def answered(self, status: int, duration_s: float) -> None:
        """Count one answer."""
        self.by_class[status // 100] += 1
        if status == 503:
            self.unavailable += 1
        unsorted = self._unsorted
        unsorted.append(duration_s)
        if len(unsorted) >= MOST_UNSORTED:
            self.sort()

    def sort(self) -> None:
        """Sort the durations noted so far into their buckets. From any thread."""
        with self._sorting:
            take = self._unsorted.popleft  # one by one, as the loop goes on adding
            durations = [take() for _ in range(len(self._unsorted))]
            if not durations:
                return
            milliseconds = np.array(durations) * 1000.0  # (n,)
            self.latency_sum_ms += float(milliseconds.sum())
            # `bucket_of`, for all at once.
            buckets = np.ceil(np.log(np.maximum(milliseconds, SMALLEST_MS)) * BUCKETS_PER_E).astype(np.int64)
            counted = self.latency_buckets
            for bucket, n in zip(*(part.tolist() for part in np.unique(buckets, return_counts=True)), strict=True):
                counted[bucket] = counted.get(bucket, 0) + n


class StatsWriter:
    """Writes counters to their file: when they changed, and last of all."""

    def __init__(self, spec: ReplicaSpec, counters: Counters) -> None:
        self._spec = spec
        self._counters = counters
        self._run = secrets.token_hex(8)
        self.tracker: Tracker | None = None
        self._written: StatsFile | None = None
        self._lock = threading.Lock()  # the temporary file's name is the process's

    def snapshot(self, *, last: bool = False) -> StatsFile:
        """The counters as they are now. From another thread than the loop's: at most one request out of step."""
        spec, counters = self._spec, self._counters
        counters.sort()
        by_class = tuple(counters.by_class)
        return StatsFile(
            replica=spec.replica,
            attempt=spec.attempt,
            api=spec.api,
            version=spec.version,
            run=self._run,
            last=last,
            ok=by_class[1] + by_class[2] + by_class[3],
            client_error=by_class[4],
            server_error=by_class[5],
            unavailable=counters.unavailable,
            abandoned=counters.abandoned,
            dropped=counters.dropped,
            latency_sum_ms=counters.latency_sum_ms,
            latency_buckets=counters.latency_buckets.copy(),
            tracker=self.tracker.snapshot() if self.tracker is not None else None,
        )

    def write(self, *, last: bool = False) -> None:
        """
        Replace the file if anything changed since the last time. A full disk is no reason to stop serving, and takes no
        counts as long as the file has room for them.

        Args:
            last: nothing is written after this: another thread may be about to, until the process is gone.
        """
        if not self._spec.stats_path:
            return
        with self._lock:
            if self._written is not None and self._written.last:
                return
            now = self.snapshot(last=last)
            if now == self._written:
                return
            content = msgspec.json.encode(msgspec.structs.replace(now, wall_s=time.time()))
            try:
                write_json(Path(self._spec.stats_path), content)
            except OSError:
                return
            self._written = now


def write_last_words(spec: ReplicaSpec, words: LastWords) -> None:
    """Leave the reason for our end in a file, in case no agent is listening."""
    if not spec.stats_path:
        return
    try:
        write_whole(Path(spec.stats_path + EXIT_FILE_SUFFIX), msgspec.json.encode(words))
    except OSError:
        pass
