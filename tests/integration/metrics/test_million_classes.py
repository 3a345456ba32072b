"""A million different classes on their way from a replica's tracker to what is shown: bounded everywhere."""

import random
from collections import Counter

import msgspec
import psutil
import pytest

from cortex.agent.countfiles import CountFiles
from cortex.clock import SystemClock
from cortex.ids import ApiKey, NodeId, ReplicaId, Version
from cortex.metrics import summary
from cortex.metrics.intake import CountIntake
from cortex.metrics.store import StatsStore
from cortex.replica.observation.stats import Counters, StatsWriter
from cortex.replica.observation.tracker import Tracker
from cortex.wire.build import TrackerConfig
from cortex.wire.launch import ReplicaSpec
from cortex.wire.needs import DeliverCounts
from cortex.wire.stats import EXACT_CLASSES

API, VERSION = ApiKey("iris/sklearn"), Version("a" * 64)
DIFFERENT = 1_000_000
LOOKS = 12
SEED = 7
MEMORY_BYTES = 60 * 2**20
"""Far less than a million names take."""
FILE_BYTES = 4 * 2**20


@pytest.mark.slow
def test_a_million_classes_are_counted_in_bounded_room_and_the_top_20_are_right_within_the_bound(tmp_path):
    """Two replicas, one after the other, so that room has to be made in each and again where they are added up."""
    folder = tmp_path / "stats"
    folder.mkdir()
    frequent = Counter({f"frequent {n}": 3_000 + 700 * n for n in range(20)})
    # Many of them late: whoever keeps the first classes it sees has no room left for these.
    stream = [*(f"class {n}" for n in range(DIFFERENT)), *frequent.elements()]
    rng = random.Random(SEED)
    early = stream[: DIFFERENT // 10]
    late = stream[DIFFERENT // 10 :]
    rng.shuffle(late)
    stream = early + late
    store, clock = StatsStore(tmp_path / "stats.db"), SystemClock()
    files, intake = CountFiles(folder, clock), CountIntake(store, clock)

    process = psutil.Process()
    before_bytes = process.memory_info().rss
    part = len(stream) // 2 + 1
    for attempt in (1, 2):
        count_and_deliver(stream[(attempt - 1) * part : attempt * part], attempt, folder, files, intake)
    held_bytes = process.memory_info().rss - before_bytes

    window = store.window(API, VERSION, now_wall_s=clock.wall_s(), classes=True)
    shown = summary.tracker("classification", window.counts, window.classes)
    rows = [
        store.database.connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
        for table in ("class", "class_count")
    ]
    store.close()
    assert shown["count"] == len(stream)
    assert sum(shown["classes"].values()) + shown["other"] == len(stream)
    assert shown["approximate"] is True
    assert 0 < shown["bound"] <= 3 * len(stream) // EXACT_CLASSES  # each of three places loses one in 10,001 at most
    assert list(shown["classes"]) == [name for name, _ in frequent.most_common()]
    for name, count in frequent.items():
        assert count - shown["bound"] <= shown["classes"][name] <= count
    assert len(window.classes) <= EXACT_CLASSES
    assert max(rows) <= 2 * EXACT_CLASSES  # the day may have changed meanwhile
    assert held_bytes < MEMORY_BYTES
    assert (tmp_path / "stats.db").stat().st_size < FILE_BYTES


def count_and_deliver(stream, attempt, folder, files, intake):
    replica = ReplicaId("iris.sklearn.aaaaaaaa.0")
    spec = ReplicaSpec(
        replica=replica,
        attempt=attempt,
        api=API,
        version=VERSION,
        revision="",
        home="",
        runtime="onnx",
        model_path="",
        stats_path=str(folder / f"{replica}.{attempt}.json"),
    )
    writer = StatsWriter(spec, Counters())
    writer.tracker = Tracker(
        TrackerConfig(model_type="classification"), output_names=["label"], warn=pytest.fail, monotonic_s=lambda: 0.0
    )
    step = len(stream) // LOOKS
    for place, name in enumerate(stream):
        writer.tracker.track_response(name)
        if place % step == 0:
            writer.write()
            deliver(files, intake, (replica, attempt))
    writer.write(last=True)
    deliver(files, intake, (replica, attempt))


def deliver(files, intake, attempt):
    files.look({attempt})
    while (batch := files.batch()) is not None:
        message = msgspec.json.encode(DeliverCounts(agent="a", number=1, files=batch.contents, durably=batch.durably))
        taken = intake.take(NodeId("local"), msgspec.json.decode(message, type=DeliverCounts))
        files.taken(batch, durable=taken.durable)
