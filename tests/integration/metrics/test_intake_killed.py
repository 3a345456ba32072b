"""Whoever delivers and whoever counts are killed again and again while replicas write: every count arrives once."""

import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from cortex.agent.countfiles import CountFiles
from cortex.clock import SystemClock
from cortex.ids import ApiKey, NodeId, ReplicaId, Version
from cortex.metrics.intake import CountIntake
from cortex.metrics.store import StatsStore
from cortex.processes import write_whole
from cortex.wire.needs import DeliverCounts
from cortex.wire.stats import StatsFile, TrackerStats, bucket_of

REPLICAS = 6
KILLS = 8
LONGEST_ATTEMPT = 30
API = ApiKey("iris/sklearn")

COUNT_FOR_EVER = """
import os, sys
from pathlib import Path
from cortex.agent.countfiles import CountFiles
from cortex.clock import SystemClock
from cortex.ids import NodeId
from cortex.metrics.intake import CountIntake
from cortex.metrics.store import StatsStore
from cortex.wire.needs import DeliverCounts

home, clock, node = Path(sys.argv[1]), SystemClock(), NodeId("local")
files, intake = CountFiles(home / "stats", clock), CountIntake(StatsStore(home / "stats.db"), clock)
known = frozenset()
number = 0
while True:
    # Nobody lives, which is wrong for most files: nobody must care.
    files.look(set() if os.urandom(1)[0] < 128 else known)
    while (batch := files.batch()) is not None:
        number += 1
        known = files.kept
        taken = intake.take(node, DeliverCounts(
            agent=str(os.getpid()), number=number, files=batch.contents, kept=tuple(known), durably=batch.durably,
        ))
        files.taken(batch, durable=taken.durable)
    intake.tidy({node})
    print("pass", flush=True)
"""


class Replica(threading.Thread):
    """Serves and writes whenever a write is allowed, in attempts that end in order or are killed."""

    def __init__(self, folder: Path, ordinal: int, writes: threading.Semaphore, enough: threading.Event) -> None:
        super().__init__()
        self.folder = folder
        self.ordinal = ordinal
        self.writes = writes
        self.enough = enough
        self.rng = random.Random(ordinal)
        self.written: Counter[str] = Counter()

    def run(self) -> None:
        attempt = 0
        while not self.enough.is_set():
            attempt += 1
            self.written += self.one_attempt(attempt)

    def one_attempt(self, attempt: int) -> Counter[str]:
        counts: Counter[str] = Counter()
        latency: Counter[int] = Counter()
        ends_in_order = self.rng.random() < 0.5
        length = self.rng.randint(1, LONGEST_ATTEMPT)
        for n in range(1, length + 1):
            self.writes.acquire()
            for _ in range(self.rng.randint(1, 5)):
                counts[self.rng.choice("abc")] += 1
                latency[bucket_of(self.rng.expovariate(0.1))] += 1
            file = StatsFile(
                replica=ReplicaId(f"iris.sklearn.aaaaaaaa.{self.ordinal}"),
                attempt=attempt,
                api=API,
                version=Version("a" * 64),
                last=ends_in_order and n == length,
                ok=counts.total(),
                latency_buckets=dict(latency),
                tracker=TrackerStats(classes=dict(counts)),
            )
            write_whole(self.folder / f"{file.replica}.{attempt}.json", msgspec.json.encode(file))
        return counts


@pytest.mark.slow
def test_counts_equal_what_was_served_however_often_who_counts_is_killed(tmp_path):
    folder = tmp_path / "stats"
    folder.mkdir()
    writes, enough = threading.Semaphore(0), threading.Event()
    replicas = [Replica(folder, ordinal, writes, enough) for ordinal in range(REPLICAS)]
    for replica in replicas:
        replica.start()
    rng = random.Random(1)
    try:
        for _ in range(KILLS):
            with subprocess.Popen(
                [sys.executable, "-c", COUNT_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE
            ) as counter:
                assert counter.stdout is not None
                try:
                    for _ in range(rng.randint(1, 20)):
                        writes.release(2 * REPLICAS)  # they go on during this pass
                        assert counter.stdout.readline() == b"pass\n"
                finally:
                    counter.kill()
    finally:
        enough.set()
        writes.release(REPLICAS * LONGEST_ATTEMPT)
        for replica in replicas:
            replica.join()
    store = StatsStore(tmp_path / "stats.db")
    clock = SystemClock()
    files, intake = CountFiles(folder, clock), CountIntake(store, clock)
    files.look(set())
    while (batch := files.batch()) is not None:
        delivery = DeliverCounts(agent="last", number=1, files=batch.contents, durably=True)
        files.taken(batch, durable=intake.take(NodeId("local"), delivery).durable)
    served = sum((replica.written for replica in replicas), Counter())
    window = store.window(API, now_wall_s=clock.wall_s(), classes=True)
    assert window.classes == dict(served)
    assert window.counts.ok == served.total() == sum(window.counts.latency.values())
    assert store.lifetimes()[API].counts.ok == served.total()
    assert list(folder.iterdir()) == []
    store.close()
