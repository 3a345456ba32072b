"""Tests of `cortex.metrics.collect`."""

import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.ids import ReplicaId
from cortex.metrics import collect
from cortex.metrics.collect import FORGET_AFTER_S, LARGEST_FILE_BYTES, CollectedCounts, Collector
from cortex.metrics.store import StatsStore
from cortex.processes import write_whole
from cortex.testing.clock import FakeClock
from cortex.wire.stats import EXIT_FILE_SUFFIX, Attempt, StatsFile


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "stats"
    folder.mkdir()
    return folder


@pytest.fixture
def collector(folder: Path, store: StatsStore, clock: FakeClock) -> Collector:
    return Collector(folder, store, clock)


def write(folder: Path, file: StatsFile) -> Path:
    path = folder / f"{file.replica}.{file.attempt}.json"
    write_whole(path, msgspec.json.encode(file))
    return path


def attempt(file: StatsFile) -> Attempt:
    return file.replica, file.attempt


def served(store: StatsStore, clock: FakeClock, build) -> int:
    return store.window(build.api, now_wall_s=clock.wall_s()).counts.ok


# ---- reading --------------------------------------------------------------------------------------------------------


def test_changed_files_are_read_and_others_not(folder, collector, store, clock, build):
    one, two = build.file(ok=1), build.file(ok=2, attempt=2)
    live = {attempt(one), attempt(two)}
    write(folder, one)
    write(folder, two)
    assert collector.collect(live) == CollectedCounts(read=2, merged=2)
    assert collector.collect(live) == CollectedCounts()
    write(folder, build.file(ok=5))
    assert collector.collect(live) == CollectedCounts(read=1, merged=1)
    assert served(store, clock, build) == 7


def test_a_new_collector_reads_everything_and_counts_nothing_twice(folder, collector, store, clock, build):
    write(folder, build.file(ok=1))
    collector.collect(None)
    assert Collector(folder, store, clock).collect(None) == CollectedCounts(read=1, merged=0)
    assert served(store, clock, build) == 1


def test_more_files_than_fit_one_transaction_are_all_merged(folder, collector, store, clock, build):
    for n in range(150):
        write(folder, build.file(ok=1, attempt=n))
    assert collector.collect(None) == CollectedCounts(read=150, merged=150)
    assert served(store, clock, build) == 150


def test_files_of_others_are_left_alone(folder, collector, store, build):
    file = build.file(ok=1)
    names = (
        f"{file.replica}.1.json{EXIT_FILE_SUFFIX}",
        f".{file.replica}.1.json{EXIT_FILE_SUFFIX}.77.tmp",
        "notes.txt",
        "package.1.json",
        f"{file.replica}.json",
        f"{file.replica}.one.json",
    )
    for name in names:
        (folder / name).write_bytes(b"{}")
    assert collector.collect(set()) == CollectedCounts()
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_a_file_that_cannot_be_read_is_skipped_with_one_warning_until_it_can(
    folder, collector, store, clock, build, caplog
):
    path = write(folder, build.file(ok=1))
    os.truncate(path, 10)
    with caplog.at_level(logging.WARNING):
        assert collector.collect(None) == CollectedCounts(read=1)
        assert collector.collect(None) == CollectedCounts()
    assert len(caplog.records) == 1
    write(folder, build.file(ok=2))
    assert collector.collect(None) == CollectedCounts(read=1, merged=1)
    assert served(store, clock, build) == 2


def test_a_damaged_file_of_a_gone_replica_is_deleted(folder, collector, build, caplog):
    path = write(folder, build.file(ok=1))
    os.truncate(path, 0)
    with caplog.at_level(logging.WARNING):
        assert collector.collect(set()).deleted == 1
    assert "holds no counters" in caplog.text
    assert not path.exists()


def test_a_file_about_another_replica_counts_for_nobody(folder, collector, store, clock, build, caplog):
    path = folder / f"{build.replica}.1.json"
    write_whole(path, msgspec.json.encode(build.file(ok=1, replica="iris.other.aaaaaaaa.0")))
    with caplog.at_level(logging.WARNING):
        collector.collect(None)
    assert "it is about iris.other.aaaaaaaa.0" in caplog.text
    assert served(store, clock, build) == 0


def test_what_is_no_file_is_left_alone(folder, collector, store, clock, build, tmp_path):
    target = tmp_path / "target.json"
    target.write_bytes(msgspec.json.encode(build.file(ok=1)))
    (folder / f"{build.replica}.1.json").symlink_to(target)
    os.mkfifo(folder / f"{build.replica}.2.json")
    (folder / f"{build.replica}.3.json").mkdir()
    assert collector.collect(set()) == CollectedCounts()
    assert len(list(folder.iterdir())) == 3


def test_a_file_of_absurd_size_is_not_read(folder, collector, caplog, build):
    os.truncate(write(folder, build.file(ok=1)), LARGEST_FILE_BYTES + 1)
    with caplog.at_level(logging.WARNING):
        assert collector.collect(None) == CollectedCounts(read=1)
    assert "too large" in caplog.text


# ---- the end of a file ----------------------------------------------------------------------------------------------


def test_the_file_of_a_gone_replica_is_merged_and_deleted(folder, collector, store, clock, build):
    gone, live = build.file(ok=1), build.file(ok=2, attempt=2)
    write(folder, gone)
    write(folder, live)
    assert collector.collect({attempt(live)}) == CollectedCounts(read=2, merged=2, deleted=1)
    assert [path.name for path in folder.iterdir()] == [f"{build.replica}.2.json"]
    assert served(store, clock, build) == 3


def test_a_file_that_says_it_is_the_last_is_deleted_at_once(folder, collector, store, clock, build):
    last = build.file(ok=1, last=True)
    write(folder, last)
    assert collector.collect({attempt(last)}) == CollectedCounts(read=1, merged=1, deleted=1)
    assert served(store, clock, build) == 1


def test_nothing_else_is_deleted_while_it_is_not_known_who_lives(folder, collector, build):
    path = write(folder, build.file(ok=1))
    assert collector.collect(None).deleted == 0
    assert path.exists()


def test_a_gone_replicas_file_is_read_once_more_though_it_looks_unchanged(folder, collector, store, clock, build):
    path = write(folder, build.file(ok=1))
    collector.collect(None)
    before = path.stat()
    path.write_bytes(msgspec.json.encode(build.file(ok=7)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size - len('{"10":1}') + len('{"10":7}')
    assert collector.collect(None) == CollectedCounts()
    assert collector.collect(set()) == CollectedCounts(read=1, merged=1, deleted=1)
    assert served(store, clock, build) == 7


def test_nothing_is_deleted_before_it_is_on_disk(folder, collector, store, clock, build, monkeypatch):
    write(folder, build.file(ok=1))
    monkeypatch.setattr(store, "sync", lambda: False)
    assert collector.collect(set()) == CollectedCounts(read=1, merged=1, deleted=0)
    assert len(list(folder.iterdir())) == 1
    monkeypatch.undo()
    assert collector.collect(set()).deleted == 1
    assert served(store, clock, build) == 1


def test_what_a_killed_writer_left_is_deleted_once_it_is_old(folder, collector, clock, build):
    left = folder / f".{build.replica}.1.json.4711.tmp"
    left.write_bytes(b"{")
    os.utime(left, (clock.wall_s(), clock.wall_s()))
    collector.collect(set())
    clock.advance(FORGET_AFTER_S + 1)
    collector.collect({(build.replica, 1)})
    assert left.exists()
    collector.collect(set())
    assert not left.exists()


def test_a_replica_that_was_thought_gone_is_not_counted_twice(folder, collector, store, clock, build):
    write(folder, build.file(ok=3))
    collector.collect(set())
    clock.advance(1.0)
    write(folder, build.file(ok=5))
    collector.collect({(build.replica, 1)})
    assert served(store, clock, build) == 5


def test_last_seen_counters_are_forgotten_a_while_after_the_file(folder, collector, store, clock, build):
    write(folder, build.file(ok=3))
    collector.collect(set())
    clock.advance(FORGET_AFTER_S - 1)
    collector.collect(set())
    assert store.known() == {"local": {(build.replica, 1)}}
    clock.advance(1)
    collector.collect(set())
    assert store.known() == {}
    assert served(store, clock, build) == 3


def test_last_seen_counters_of_the_living_are_kept_without_a_file(folder, collector, store, clock, build):
    path = write(folder, build.file(ok=3))
    live = {(build.replica, 1)}
    collector.collect(live)
    path.unlink()
    for _ in range(3):
        clock.advance(FORGET_AFTER_S)
        collector.collect(live)
    write(folder, build.file(ok=4))
    collector.collect(live)
    assert served(store, clock, build) == 4


def test_a_collector_started_after_the_deletion_forgets_too(folder, store, clock, build):
    store.merge([build.file(ok=3)], clock.wall_s())
    collector = Collector(folder, store, clock)
    collector.collect(set())
    clock.advance(FORGET_AFTER_S)
    collector.collect(set())
    assert store.known() == {}


def test_maintenance_runs_at_the_start_and_each_hour(folder, collector, store, clock, monkeypatch):
    times: list[float] = []
    monkeypatch.setattr(store, "maintain", times.append)
    for _ in range(121):
        collector.collect(None)
        clock.advance(60.0)
    start_s = FakeClock().wall_s()
    assert times == [start_s, start_s + 3600.0, start_s + 7200.0]


# ---- any order, any crash -------------------------------------------------------------------------------------------


class CrashingStore(StatsStore):
    """A store whose process ends before or after some step, and during which something else may happen."""

    steps = 0
    crash_at: int | None = None
    meanwhile: tuple[int, Callable[[], None]] | None = None

    def step(self) -> None:
        if self.meanwhile is not None and self.meanwhile[0] == self.steps:
            self.meanwhile[1]()
        if self.crash_at == self.steps:
            raise Crash
        self.steps += 1

    def around(self, do: Callable[[], object]) -> object:
        self.step()
        result = do()
        self.step()
        return result

    def merge(self, files, now_wall_s, **facts):
        def crashing():
            for file in files:
                self.step()
                yield file

        return self.around(lambda: StatsStore.merge(self, crashing(), now_wall_s, **facts))

    def sync(self):
        return self.around(lambda: StatsStore.sync(self))

    def forget(self, node, attempts):
        self.around(lambda: StatsStore.forget(self, node, attempts))

    def maintain(self, now_wall_s):
        self.around(lambda: StatsStore.maintain(self, now_wall_s))


@dataclass
class World:
    """Replicas that serve, write and end, and a collector that may crash at any step."""

    build: object
    root: Path
    clock: FakeClock = field(default_factory=FakeClock)
    ordinals: dict[int, int] = field(default_factory=dict)
    """Attempt of each running replica."""
    counters: dict[int, Counter] = field(default_factory=dict)
    """Of the running attempt of each."""
    written: dict[Attempt, Counter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.root / "stats"
        self.folder.mkdir()
        self.open()

    def open(self) -> None:
        self.store = CrashingStore(self.root / "stats.db")
        self.collector = Collector(self.folder, self.store, self.clock)

    def serve(self, ordinal: int, name: str) -> None:
        self.ordinals.setdefault(ordinal, 1)
        self.counters.setdefault(ordinal, Counter())[name] += 1

    def write(self, ordinal: int, *, last: bool = False) -> None:
        if ordinal in self.counters:
            counts = self.counters[ordinal]
            file = self.build.classes(
                dict(counts),
                ok=counts.total(),
                replica=self.replica(ordinal),
                attempt=self.ordinals[ordinal],
                last=last,
                wall_s=self.clock.wall_s(),
            )
            write(self.folder, file)
            self.written[attempt(file)] = counts.copy()

    def serve_and_write(self, ordinal: int) -> None:
        self.serve(ordinal, "c")
        self.write(ordinal)

    def end(self, ordinal: int, *, orderly: bool) -> None:
        if ordinal in self.counters:
            if orderly:
                self.write(ordinal, last=True)
            del self.counters[ordinal]
            self.ordinals[ordinal] += 1

    def replica(self, ordinal: int) -> ReplicaId:
        return ReplicaId(f"iris.sklearn.aaaaaaaa.{ordinal}")

    def live(self) -> set[Attempt]:
        return {(self.replica(ordinal), self.ordinals[ordinal]) for ordinal in self.counters}

    def collect(
        self,
        live: set[Attempt] | None,
        crash_at: int | None = None,
        meanwhile: tuple[int, Callable[[], None]] | None = None,
    ) -> bool:
        """One pass; False when it crashed."""
        self.store.steps, self.store.crash_at, self.store.meanwhile = 0, crash_at, meanwhile
        crashed = False
        try:
            with patch.object(collect, "os", self.system()):
                self.collector.collect(live)
        except Crash:
            crashed = True
            self.store.close()
            self.open()
        self.store.crash_at = self.store.meanwhile = None
        self.clock.advance(1.0)
        return not crashed

    def system(self) -> SimpleNamespace:
        """`os` as the collector has it: it may crash before or after each change of a file."""

        def in_steps(change: Callable[..., object]) -> Callable[..., object]:
            return lambda *names: self.store.around(lambda: change(*names))

        return SimpleNamespace(**{**vars(os), "rename": in_steps(os.rename), "unlink": in_steps(os.unlink)})

    def counts_written(self) -> Counter:
        return sum(self.written.values(), Counter())

    def check(self) -> None:
        expected = self.counts_written()
        window = self.store.window(self.build.api, now_wall_s=self.clock.wall_s(), classes=True)
        assert window.classes == dict(expected)
        assert window.counts.ok == expected.total()
        if expected:
            assert self.store.lifetimes()[self.build.api].counts.ok == expected.total()


replicas = st.integers(0, 2)
steps = st.one_of(
    st.tuples(st.just("serve"), replicas, st.sampled_from("ab")),
    st.tuples(st.just("write"), replicas),
    st.tuples(st.just("end"), replicas, st.booleans()),
    st.tuples(
        st.just("collect"),
        st.sampled_from(["live", "unknown", "nobody"]),  # who is said to be live; the last is usually wrong
        st.none() | st.integers(0, 15),  # step at which the collector crashes
        st.none() | st.tuples(st.integers(0, 15), replicas),  # step during which a replica serves and writes
    ),
)


@given(st.lists(steps, max_size=40))
@settings(max_examples=60, deadline=None)
def test_counts_are_what_replicas_wrote_whatever_crashes(tmp_path_factory, build, schedule):
    world = World(build, tmp_path_factory.mktemp("world"))
    for action, *facts in schedule:
        if action == "serve":
            world.serve(*facts)
        elif action == "write":
            world.write(*facts)
        elif action == "end":
            world.end(facts[0], orderly=facts[1])
        else:
            said, crash_at, race = facts
            live = {"live": world.live(), "unknown": None, "nobody": set()}[said]
            meanwhile = None if race is None else (race[0], partial(world.serve_and_write, race[1]))
            world.collect(live, crash_at, meanwhile)
    for ordinal in list(world.counters):
        world.write(ordinal)
        world.end(ordinal, orderly=False)
    world.collect(set())
    world.check()
    world.clock.advance(FORGET_AFTER_S)
    world.collect(set())
    world.check()
    assert list(world.folder.iterdir()) == []
    assert world.store.known() == {}
    world.store.close()


def test_a_crash_at_each_single_step_of_a_files_end_neither_loses_nor_doubles(tmp_path_factory, build):
    crash_at, passed = 0, False
    while not passed:
        world = World(build, tmp_path_factory.mktemp("world"))
        for ordinal in range(2):
            world.serve(ordinal, "a")
            world.write(ordinal)
            world.end(ordinal, orderly=False)
        passed = world.collect(set(), crash_at)
        world.collect(set())
        world.check()
        assert list(world.folder.iterdir()) == []
        world.store.close()
        crash_at += 1
    assert crash_at > 10


def test_a_write_at_each_single_step_of_a_files_end_is_neither_lost_nor_doubled(tmp_path_factory, build):
    step, written = 0, True
    while written:
        world = World(build, tmp_path_factory.mktemp("world"))
        world.serve_and_write(0)
        world.collect(set(), meanwhile=(step, partial(world.serve_and_write, 0)))
        world.end(0, orderly=False)
        world.collect(set())
        world.check()
        world.store.close()
        written = world.counts_written() == {"c": 2}
        step += 1
    assert step > 8
