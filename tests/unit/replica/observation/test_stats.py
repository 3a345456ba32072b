from __future__ import annotations

import errno
import os
import random
import threading
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from cortex import processes
from cortex.errors import Problem
from cortex.ids import ApiKey, ReplicaId, Revision, Version
from cortex.replica.observation.stats import Counters, StatsWriter, write_last_words
from cortex.wire.launch import ReplicaSpec
from cortex.wire.stats import LastWords, StatsFile, bucket_of


@pytest.fixture
def spec(tmp_path: Path) -> ReplicaSpec:
    return ReplicaSpec(
        replica=ReplicaId("t.a.0.0"),
        attempt=2,
        api=ApiKey("t/a"),
        version=Version("1" * 64),
        revision=Revision("2" * 64),
        home="/h",
        runtime="onnx",
        model_path="/m",
        stats_path=str(tmp_path / "s.json"),
    )


def read(spec: ReplicaSpec) -> StatsFile:
    return msgspec.json.decode(Path(spec.stats_path).read_bytes(), type=StatsFile)


def test_answers_are_counted_by_class_and_duration(spec: ReplicaSpec) -> None:
    counters = Counters()
    for status, duration_s in ((200, 0.001), (201, 0.001), (302, 0.5), (404, 0.0), (500, 2.0)):
        counters.answered(status, duration_s)
    counters.abandoned, counters.dropped = 3, 2
    found = StatsWriter(spec, counters).snapshot()
    assert (found.ok, found.client_error, found.server_error) == (3, 1, 1)
    assert (found.abandoned, found.dropped) == (3, 2)
    assert found.latency_sum_ms == pytest.approx(2502.0)
    assert found.latency_buckets == {bucket_of(1.0): 2, bucket_of(500.0): 1, bucket_of(0.0): 1, bucket_of(2000.0): 1}


def test_answers_that_tell_of_load_are_counted_apart_too(spec: ReplicaSpec) -> None:
    counters = Counters()
    for status in (200, 503, 500, 503):
        counters.answered(status, 0.001)
    found = StatsWriter(spec, counters).snapshot()
    assert (found.server_error, found.unavailable) == (3, 2)


def test_each_duration_falls_into_its_bucket(spec: ReplicaSpec) -> None:
    rng = random.Random(2)
    durations_s = [rng.expovariate(1) * 10.0 ** rng.uniform(-6, 2) for _ in range(2_000)]
    counters = Counters()
    for duration_s in durations_s:
        counters.answered(200, duration_s)
    found = StatsWriter(spec, counters).snapshot()
    assert found.latency_buckets == Counter(bucket_of(1000 * duration_s) for duration_s in durations_s)
    assert found.latency_sum_ms == pytest.approx(1000 * sum(durations_s))


def test_whoever_writes_after_the_last_time_changes_nothing(spec: ReplicaSpec) -> None:
    writer = StatsWriter(spec, Counters())
    writer.write(last=True)
    writer.write()  # a thread that is still at it while the process ends
    assert read(spec).last


def test_reading_meanwhile_loses_and_doubles_no_duration(spec: ReplicaSpec) -> None:
    counters = Counters()
    writer = StatsWriter(spec, counters)
    begun = threading.Barrier(3, timeout=60)
    ended = threading.Event()

    def read_on() -> None:
        begun.wait()
        while not ended.is_set():
            writer.snapshot()

    readers = [threading.Thread(target=read_on) for _ in range(2)]
    for reader in readers:
        reader.start()
    begun.wait()
    for _ in range(20_000):
        counters.answered(200, 0.001)
    ended.set()
    for reader in readers:
        reader.join()
    assert writer.snapshot().latency_buckets == {bucket_of(1.0): 20_000}


def test_durations_that_nobody_reads_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.replica.observation.stats.MOST_UNSORTED", 10)
    counters = Counters()
    for _ in range(25):
        counters.answered(200, 0.001)
    assert counters.latency_buckets == {bucket_of(1.0): 20}


def test_the_file_says_whose_counters_these_are(spec: ReplicaSpec) -> None:
    writer = StatsWriter(spec, Counters())
    writer.write()
    found = read(spec)
    assert (found.replica, found.attempt, found.api, found.version) == ("t.a.0.0", 2, "t/a", "1" * 64)
    assert found.wall_s > 0
    assert not found.last


def test_it_is_written_only_when_something_changed(spec: ReplicaSpec) -> None:
    counters = Counters()
    writer = StatsWriter(spec, counters)
    writer.write()
    Path(spec.stats_path).unlink()
    writer.write()
    assert not Path(spec.stats_path).exists()
    counters.answered(200, 0.1)
    writer.write()
    assert read(spec).ok == 1
    writer.write(last=True)
    assert read(spec).last


def test_it_is_replaced_whole(spec: ReplicaSpec) -> None:
    counters = Counters()
    writer = StatsWriter(spec, counters)
    for _ in range(5):
        counters.answered(200, 0.1)
        writer.write()
    assert [file.name for file in Path(spec.stats_path).parent.iterdir()] == ["s.json"]


def test_on_a_full_disk_counts_take_the_place_of_those_before(
    spec: ReplicaSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    counters = Counters()
    writer = StatsWriter(spec, counters)
    writer.write()
    monkeypatch.setattr(processes, "write_whole", full)
    for number in range(1, 4):
        counters.answered(200, 0.1)
        writer.write(last=number == 3)
        assert read(spec).ok == number
    assert read(spec).last


def test_a_folder_that_is_gone_stops_nobody(spec: ReplicaSpec) -> None:
    nowhere = msgspec.structs.replace(spec, stats_path="/nowhere/s.json")
    StatsWriter(nowhere, Counters()).write(last=True)
    write_last_words(nowhere, LastWords(problem=Problem(reference="x", message="y")))
    assert not Path(nowhere.stats_path).parent.exists()
    StatsWriter(msgspec.structs.replace(spec, stats_path=""), Counters()).write()


def test_last_words_lie_beside_the_counters(spec: ReplicaSpec) -> None:
    words = LastWords(problem=Problem(reference="x", message="y", traceback="z"), permanent=True)
    write_last_words(spec, words)
    assert msgspec.json.decode(Path(spec.stats_path + ".exit.json").read_bytes(), type=LastWords) == words
