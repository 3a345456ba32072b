"""Tests of `cortex.metrics.intake` and of what delivers to it, `cortex.agent.counting` and `countfiles`."""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.agent import countfiles
from cortex.agent.countfiles import BYTES_AT_ONCE, FILES_AT_ONCE, LARGEST_FILE_BYTES, CountFiles
from cortex.agent.counting import Counting
from cortex.agent.upstream import ControlPlaneAway
from cortex.ids import NodeId, ReplicaId
from cortex.metrics.intake import FORGET_AFTER_S, NODES_HERE_AFTER_S, CountIntake
from cortex.metrics.slices import DAY_S
from cortex.metrics.store import StatsStore
from cortex.processes import write_whole
from cortex.testing.clock import FakeClock
from cortex.wire.needs import CountsTaken, DeliverCounts, Need
from cortex.wire.stats import EXIT_FILE_SUFFIX, Attempt, StatsFile

LOCAL = NodeId("local")


class Crash(BaseException):
    """The process ends here."""


class Delivered(NamedTuple):
    """What one pass did."""

    files: int = 0
    messages: int = 0
    deleted: int = 0


class Node:
    """A node with a folder of counts, and its agents, which deliver straight into an intake."""

    def __init__(self, folder: Path, intake: CountIntake, clock: FakeClock, name: NodeId = LOCAL) -> None:
        self.folder = folder
        self.intake = intake
        self.clock = clock
        self.name = name
        self.live: set[Attempt] = set()
        self.sent: list[DeliverCounts] = []
        self.on_way: Callable[[DeliverCounts], CountsTaken] = self.take
        """What a message comes to."""
        self.agents = 0
        self.restart()

    def restart(self) -> None:
        """Another agent."""
        self.agents += 1
        self.counting = Counting(
            agent=f"{self.name}-{self.agents}",
            files=CountFiles(self.folder, self.clock),
            upstream=self,
            clock=self.clock,
            live=lambda: self.live,
        )

    async def ask(self, need: Need, kind: type[CountsTaken]) -> CountsTaken:
        """As `Upstream.ask`, through what goes over the wire."""
        delivery = msgspec.json.decode(msgspec.json.encode(need), type=DeliverCounts)
        self.sent.append(delivery)
        return self.on_way(delivery)

    def stream(self, need: Need) -> None:
        raise NotImplementedError

    def take(self, delivery: DeliverCounts) -> CountsTaken:
        return self.intake.take(self.name, delivery)

    def deliver(self, live: set[Attempt]) -> Delivered:
        """One pass, with these attempts running; then the control plane tidies up."""
        self.live = live
        before, files = len(self.sent), {path.name for path in self.folder.iterdir()}
        asyncio.run(self.counting.deliver())
        self.intake.tidy({self.name})
        sent = self.sent[before:]
        left = {path.name.removesuffix(".ended") for path in self.folder.iterdir()}
        deleted = {name.removesuffix(".ended") for name in files} - left
        return Delivered(sum(len(message.files) for message in sent), len(sent), len(deleted))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "stats"
    folder.mkdir()
    return folder


@pytest.fixture
def intake(store: StatsStore, clock: FakeClock) -> CountIntake:
    return CountIntake(store, clock)


@pytest.fixture
def node(folder: Path, intake: CountIntake, clock: FakeClock) -> Node:
    return Node(folder, intake, clock)


def write(folder: Path, file: StatsFile) -> Path:
    path = folder / f"{file.replica}.{file.attempt}.json"
    write_whole(path, msgspec.json.encode(file))
    return path


def attempt(file: StatsFile) -> Attempt:
    return file.replica, file.attempt


def served(store: StatsStore, clock: FakeClock, build) -> int:
    return store.window(build.api, now_wall_s=clock.wall_s()).counts.ok


@pytest.mark.parametrize("ahead_s", [600.0, -600.0, 1.0])
def test_what_a_node_whose_clock_is_wrong_counts_is_counted_when_it_happened(
    folder: Path, intake: CountIntake, store: StatsStore, clock: FakeClock, build, ahead_s: float
) -> None:
    theirs = FakeClock(wall_s=clock.wall_s() + ahead_s)
    node = Node(folder, intake, theirs)
    clock.advance(1000.0)
    theirs.advance(1000.0)
    file = build.file(ok=3, wall_s=theirs.wall_s() - 300.0)
    write(folder, file)
    node.deliver({attempt(file)})
    (minute,) = store.recent(build.api, now_wall_s=clock.wall_s())
    assert (minute.counts.ok, abs(clock.wall_s() - 300.0 - minute.start_s) <= 61.0) == (3, True)


# ---- what is sent ---------------------------------------------------------------------------------------------------


def test_changed_files_are_sent_and_others_not(folder, node, store, clock, build):
    one, two = build.file(ok=1), build.file(ok=2, attempt=2)
    live = {attempt(one), attempt(two)}
    write(folder, one)
    write(folder, two)
    assert node.deliver(live) == Delivered(files=2, messages=1)
    assert node.deliver(live) == Delivered()
    write(folder, build.file(ok=5))
    assert node.deliver(live) == Delivered(files=1, messages=1)
    assert served(store, clock, build) == 7


def test_a_new_agent_says_at_once_what_there_is(node):
    assert node.deliver(set()) == Delivered(messages=1)
    assert node.sent[0].kept == ()
    assert node.deliver(set()) == Delivered()


def test_a_new_agent_sends_everything_and_nothing_counts_twice(folder, node, store, clock, build):
    write(folder, build.file(ok=1))
    live = {(build.replica, 1)}
    node.deliver(live)
    node.restart()
    assert node.deliver(live).files == 1
    assert served(store, clock, build) == 1


def test_another_control_plane_is_sent_everything_once_it_has_answered(folder, node, store, clock, build):
    one, two = build.file(ok=1), build.file(ok=2, attempt=2)
    live = {attempt(one), attempt(two)}
    write(folder, one)
    write(folder, two)
    node.deliver(live)
    node.intake = CountIntake(store, clock)
    assert node.deliver(live) == Delivered(), "who has nothing to say has not heard of it"
    write(folder, build.file(ok=5))
    assert node.deliver(live) == Delivered(files=2, messages=2)
    assert node.sent[-1].kept == tuple(sorted(live))
    assert served(store, clock, build) == 7


def test_a_control_plane_that_has_lost_its_counts_is_told_what_replicas_still_know(
    folder, node, clock, build, tmp_path
):
    one, two = build.file(ok=1), build.file(ok=2, attempt=2)
    write(folder, one)
    write(folder, two)
    live = {attempt(one), attempt(two)}
    node.deliver(live)
    store = StatsStore(tmp_path / "new.db")
    node.intake = CountIntake(store, clock)
    write(folder, build.file(ok=5))
    node.deliver(live)
    assert served(store, clock, build) == 7
    store.close()


def test_more_files_than_fit_one_message_are_sent_in_several(folder, node, store, clock, build):
    live = set()
    for n in range(150):
        live.add(attempt(file := build.file(ok=1, attempt=n)))
        write(folder, file)
    assert node.deliver(live) == Delivered(files=150, messages=3)
    assert max(len(message.files) for message in node.sent) == FILES_AT_ONCE
    assert served(store, clock, build) == 150


def test_large_files_are_sent_in_messages_of_bounded_size(folder, node, store, clock, build):
    names = {f"{n:0200}": 1 for n in range(8_000)}
    live = set()
    for n in range(4):
        live.add(attempt(file := build.classes(names, ok=1, attempt=n)))
        write(folder, file)
    assert node.deliver(live) == Delivered(files=4, messages=2)
    assert max(sum(map(len, map(bytes, message.files))) for message in node.sent) <= BYTES_AT_ONCE
    assert served(store, clock, build) == 4


def test_a_file_that_is_written_between_looking_and_reading_is_sent_once(folder, node, store, clock, build):
    path = write(folder, build.file(ok=1))
    opened = os.open

    def overtaken(*given: object) -> int:
        write(folder, build.file(ok=2))
        return opened(*given)

    live = {(build.replica, 1)}
    with patch.object(countfiles, "os", SimpleNamespace(**{**vars(os), "open": overtaken})):
        assert node.deliver(live) == Delivered(files=1, messages=1)
    assert node.deliver(live) == Delivered()
    assert path.exists()
    assert served(store, clock, build) == 2


def test_files_of_others_are_left_alone(folder, node, build):
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
    assert node.deliver(set()) == Delivered(messages=1)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_a_file_that_cannot_be_read_is_skipped_with_one_warning_until_it_can(folder, node, store, clock, build, caplog):
    live = {(build.replica, 1)}
    path = write(folder, build.file(ok=1))
    os.truncate(path, 10)
    with caplog.at_level(logging.WARNING):
        assert node.deliver(live).files == 0
        assert node.deliver(live) == Delivered()
    assert len(caplog.records) == 1
    write(folder, build.file(ok=2))
    assert node.deliver(live).files == 1
    assert served(store, clock, build) == 2


def test_a_damaged_file_of_a_gone_replica_is_deleted(folder, node, build, caplog):
    path = write(folder, build.file(ok=1))
    os.truncate(path, 0)
    with caplog.at_level(logging.WARNING):
        assert node.deliver(set()).deleted == 1
    assert "holds no counters" in caplog.text
    assert not path.exists()


def test_a_file_about_another_replica_counts_for_nobody(folder, node, store, clock, build, caplog):
    path = folder / f"{build.replica}.1.json"
    write_whole(path, msgspec.json.encode(build.file(ok=1, replica="iris.other.aaaaaaaa.0")))
    with caplog.at_level(logging.WARNING):
        node.deliver({(build.replica, 1)})
    assert "it is about iris.other.aaaaaaaa.0" in caplog.text
    assert served(store, clock, build) == 0


def test_a_file_whose_counters_are_none_harms_no_other(folder, node, store, clock, build, caplog):
    write(folder, build.file(ok=1))
    (folder / f"{build.replica}.2.json").write_bytes(
        msgspec.json.encode({**msgspec.to_builtins(build.file(attempt=2)), "2xx": "many"})
    )
    with caplog.at_level(logging.WARNING):
        node.deliver({(build.replica, 1)})
    assert "a stats file of node local holds no counters" in caplog.text
    assert served(store, clock, build) == 1
    assert [path.name for path in folder.iterdir()] == [f"{build.replica}.1.json"]


def test_what_is_no_file_is_left_alone(folder, node, build, tmp_path):
    target = tmp_path / "target.json"
    target.write_bytes(msgspec.json.encode(build.file(ok=1)))
    (folder / f"{build.replica}.1.json").symlink_to(target)
    os.mkfifo(folder / f"{build.replica}.2.json")
    (folder / f"{build.replica}.3.json").mkdir()
    assert node.deliver(set()) == Delivered(messages=1)
    assert len(list(folder.iterdir())) == 3


def test_a_file_of_absurd_size_is_not_read(folder, node, caplog, build):
    os.truncate(write(folder, build.file(ok=1)), LARGEST_FILE_BYTES + 1)
    with caplog.at_level(logging.WARNING):
        assert node.deliver({(build.replica, 1)}).files == 0
    assert "too large" in caplog.text


# ---- the end of a file ----------------------------------------------------------------------------------------------


def test_the_file_of_a_gone_replica_is_counted_and_deleted(folder, node, store, clock, build):
    gone, live = build.file(ok=1), build.file(ok=2, attempt=2)
    write(folder, gone)
    write(folder, live)
    assert node.deliver({attempt(live)}) == Delivered(files=2, messages=2, deleted=1)
    assert [path.name for path in folder.iterdir()] == [f"{build.replica}.2.json"]
    assert [message.kept for message in node.sent] == [(attempt(gone), attempt(live)), (attempt(live),)]
    assert served(store, clock, build) == 3


def test_a_file_that_says_it_is_the_last_is_deleted_at_once(folder, node, store, clock, build):
    last = build.file(ok=1, last=True)
    write(folder, last)
    assert node.deliver({attempt(last)}) == Delivered(files=1, messages=1, deleted=1)
    assert served(store, clock, build) == 1


def test_what_a_former_version_had_renamed_and_not_counted_is_counted(folder, node, store, clock, build):
    write(folder, build.file(ok=3)).rename(folder / f"{build.replica}.1.json.ended")
    write(folder, build.file(ok=5))
    assert node.deliver(set()).files == 1, "what it wrote later takes the place of what was renamed"
    assert served(store, clock, build) == 5
    assert list(folder.iterdir()) == []


def test_a_gone_replicas_file_is_read_once_more_though_it_looks_unchanged(folder, node, store, clock, build):
    live = {(build.replica, 1)}
    path = write(folder, build.file(ok=1))
    node.deliver(live)
    before = path.stat()
    path.write_bytes(msgspec.json.encode(build.file(ok=7)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size - len('{"10":1}') + len('{"10":7}')
    assert node.deliver(live) == Delivered()
    assert node.deliver(set()) == Delivered(files=1, messages=2, deleted=1)
    assert served(store, clock, build) == 7


def test_nothing_is_deleted_before_it_is_on_the_disk_of_who_counts(folder, node, store, clock, build, monkeypatch):
    write(folder, build.file(ok=1))
    write(folder, live := build.file(ok=2, attempt=2))
    monkeypatch.setattr(store, "sync", lambda: False)
    assert node.deliver({attempt(live)}) == Delivered(files=2, messages=1)
    assert node.deliver({attempt(live)}) == Delivered(files=1, messages=1), "what may be lost is sent again, no more"
    assert len(list(folder.iterdir())) == 2
    monkeypatch.undo()
    assert node.deliver({attempt(live)}).deleted == 1
    assert served(store, clock, build) == 3


def test_a_file_that_cannot_be_deleted_is_sent_once_and_deleted_later(folder, node, store, clock, build):
    write(folder, build.file(ok=1))

    def refuse(_path: str) -> None:
        raise PermissionError(1, "no")

    with patch.object(countfiles, "os", SimpleNamespace(**{**vars(os), "unlink": refuse})):
        assert node.deliver(set()) == Delivered(files=1, messages=1)
        assert node.deliver(set()) == Delivered()
    assert node.deliver(set()) == Delivered(messages=1, deleted=1)
    assert served(store, clock, build) == 1


def test_a_file_of_the_same_name_that_came_meanwhile_is_not_deleted(folder, node, store, clock, build):
    """Attempts are numbered anew after `cortex down`."""
    write(folder, build.file(ok=1, run="before", last=True))

    def overtaken(delivery: DeliverCounts) -> CountsTaken:
        node.on_way = node.take
        write(folder, build.file(ok=2, run="after"))
        return node.take(delivery)

    node.on_way = overtaken
    live = {(build.replica, 1)}
    assert node.deliver(live).deleted == 0
    node.deliver(live)
    assert served(store, clock, build) == 3


def test_what_a_killed_writer_left_is_deleted_once_it_is_old(folder, node, clock, build):
    left = folder / f".{build.replica}.1.json.4711.tmp"
    left.write_bytes(b"{")
    os.utime(left, (clock.wall_s(), clock.wall_s()))
    node.deliver(set())
    clock.advance(FORGET_AFTER_S + 1)
    node.deliver({(build.replica, 1)})
    assert left.exists()
    node.deliver(set())
    assert not left.exists()


def test_a_replica_that_was_thought_gone_is_not_counted_twice(folder, node, store, clock, build):
    write(folder, build.file(ok=3))
    node.deliver(set())
    clock.advance(1.0)
    write(folder, build.file(ok=5))
    node.deliver({(build.replica, 1)})
    assert served(store, clock, build) == 5


# ---- what was last seen ---------------------------------------------------------------------------------------------


def test_last_seen_counters_are_forgotten_a_while_after_the_file(folder, node, store, clock, build):
    write(folder, build.file(ok=3))
    node.deliver(set())
    clock.advance(FORGET_AFTER_S - 1)
    node.deliver(set())
    assert store.known() == {LOCAL: {(build.replica, 1)}}
    clock.advance(1)
    node.deliver(set())
    assert store.known() == {}
    assert served(store, clock, build) == 3


def test_last_seen_counters_of_the_living_are_kept_without_a_file(folder, node, store, clock, build):
    path = write(folder, build.file(ok=3))
    live = {(build.replica, 1)}
    node.deliver(live)
    path.unlink()
    for _ in range(3):
        clock.advance(FORGET_AFTER_S)
        node.deliver(live)
    write(folder, build.file(ok=4))
    node.deliver(live)
    assert served(store, clock, build) == 4


def test_a_control_plane_started_after_the_deletion_forgets_too(node, store, clock, build):
    store.merge([build.file(ok=3)], clock.wall_s())
    node.intake = CountIntake(store, clock)
    node.deliver(set())
    clock.advance(FORGET_AFTER_S)
    node.deliver(set())
    assert store.known() == {}


def test_what_a_lost_node_had_counted_is_counted_once_when_it_is_back(folder, node, intake, store, clock, build):
    write(folder, build.file(ok=3))
    live = {(build.replica, 1)}
    node.deliver(live)
    clock.advance(DAY_S)
    intake.tidy(set())
    write(folder, build.file(ok=4))
    node.restart()
    node.deliver(live)
    assert served(store, clock, build) == 4


def test_what_is_on_one_node_is_not_forgotten_for_what_another_says(folder, intake, store, clock, build, tmp_path):
    (tmp_path / "b").mkdir()
    one, other = Node(folder, intake, clock, NodeId("a")), Node(tmp_path / "b", intake, clock, NodeId("b"))
    write(folder, build.file(ok=3, run="a"))
    live = {(build.replica, 1)}
    one.deliver(live)
    other.deliver(set())
    for _ in range(2):
        clock.advance(FORGET_AFTER_S)
        other.deliver(set())
    write(folder, build.file(ok=4, run="a"))
    one.deliver(live)
    assert served(store, clock, build) == 4


def test_a_node_that_is_there_and_idle_for_weeks_is_no_lost_one(folder, node, store, clock, build):
    write(folder, build.file(ok=3))
    live = {(build.replica, 1)}
    node.deliver(live)
    clock.advance(15 * DAY_S)
    node.intake = CountIntake(store, clock)
    for _ in range(2):
        node.intake.tidy({LOCAL})
        clock.advance(NODES_HERE_AFTER_S)
    assert LOCAL in store.known()
    node.intake.tidy(set())
    assert store.known() == {}


@pytest.mark.parametrize("another_agent", [False, True])
def test_what_was_said_of_files_holds_no_more_when_it_was_overtaken(folder, node, store, clock, build, another_agent):
    node.deliver(set())
    (before,) = node.sent
    if another_agent:
        node.restart()
    write(folder, build.file(ok=3))
    live = {(build.replica, 1)}
    node.deliver(live)
    node.take(before)
    for _ in range(2):
        clock.advance(FORGET_AFTER_S)
        node.deliver(live)
    write(folder, build.file(ok=4))
    node.deliver(live)
    assert served(store, clock, build) == 4


def test_maintenance_runs_at_the_start_and_each_hour(intake, store, clock, monkeypatch):
    times: list[float] = []
    monkeypatch.setattr(store, "maintain", times.append)
    for _ in range(121):
        intake.tidy({LOCAL})
        clock.advance(60.0)
    start_s = FakeClock().wall_s()
    assert times == [start_s, start_s + 3600.0, start_s + 7200.0]


# ---- any order, any crash -------------------------------------------------------------------------------------------


class CrashingStore(StatsStore):
    """A store that tells its steps, so that a process may end before, during or after each."""

    def __init__(self, file: Path, step: Callable[[], None]) -> None:
        super().__init__(file)
        self._step = step

    def around(self, do: Callable[[], object]) -> object:
        self._step()
        result = do()
        self._step()
        return result

    def merge(self, files, now_wall_s, **facts):
        def crashing():
            for file in files:
                self._step()
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
    """Replicas that serve, write and end on a node, whose agent may crash at any step, as may the control plane."""

    build: object
    root: Path
    clock: FakeClock = field(default_factory=FakeClock)
    ordinals: dict[int, int] = field(default_factory=dict)
    """Attempt of each running replica."""
    counters: dict[int, Counter] = field(default_factory=dict)
    """Of the running attempt of each."""
    written: dict[Attempt, Counter] = field(default_factory=dict)
    steps: int = 0
    crash_at: int | None = None
    meanwhile: tuple[int, Callable[[], None]] | None = None
    """At which step something else happens."""

    def __post_init__(self) -> None:
        self.folder = self.root / "stats"
        self.folder.mkdir()
        self.open()
        self.node = Node(self.folder, self.intake, self.clock)
        self.node.on_way = self.on_way

    def open(self) -> None:
        """A control plane starts."""
        self.store = CrashingStore(self.root / "stats.db", self.step)
        self.intake = CountIntake(self.store, self.clock)

    def step(self) -> None:
        if self.meanwhile is not None and self.meanwhile[0] == self.steps:
            self.meanwhile[1]()
        if self.crash_at == self.steps:
            self.steps += 1
            raise Crash
        self.steps += 1

    def on_way(self, delivery: DeliverCounts) -> CountsTaken:
        """A message is on its way, is taken, and the answer is on its way: all that may go wrong there."""
        self.step()
        try:
            taken = self.node.take(delivery)
        except Crash:
            self.crash_control_plane()
            raise ControlPlaneAway("it was killed") from None
        self.step()
        return taken

    def crash_control_plane(self) -> None:
        self.store.close()
        self.open()
        self.node.intake = self.intake

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

    def deliver(
        self,
        live: set[Attempt],
        crash_at: int | None = None,
        meanwhile: tuple[int, Callable[[], None]] | None = None,
    ) -> bool:
        """One pass of the agent and a look of the control plane; False when either crashed."""
        self.steps, self.crash_at, self.meanwhile = 0, crash_at, meanwhile
        crashed = False
        self.node.live = live
        with patch.object(countfiles, "os", self.system()):
            try:
                asyncio.run(self.node.counting.deliver())
            except ControlPlaneAway:
                crashed = True
            except Crash:
                crashed = True
                self.node.restart()
        try:
            self.intake.tidy({LOCAL})
        except Crash:
            crashed = True
            self.crash_control_plane()
        self.crash_at = self.meanwhile = None
        self.clock.advance(1.0)
        return not crashed

    def late(self, number: int) -> None:
        """A message of before arrives once more."""
        if self.node.sent:
            self.node.take(self.node.sent[-1 - number % min(len(self.node.sent), LATE)])

    def system(self) -> SimpleNamespace:
        """`os` as the agent has it: it may crash before or after each change of a file."""

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


LATE = 6
"""So many messages ago at most: no later than within a minute."""
STEPS = 20
replicas = st.integers(0, 2)
steps = st.one_of(
    st.tuples(st.just("serve"), replicas, st.sampled_from("ab")),
    st.tuples(st.just("write"), replicas),
    st.tuples(st.just("end"), replicas, st.booleans()),
    st.tuples(st.just("late"), st.integers(0, LATE)),
    st.tuples(st.just("restart"), st.booleans()),
    st.tuples(
        st.just("deliver"),
        st.sampled_from(["live", "live", "nobody"]),  # who is said to be live; the last is usually wrong
        st.none() | st.integers(0, STEPS),  # step at which somebody crashes
        st.none() | st.tuples(st.integers(0, STEPS), replicas),  # step during which a replica serves and writes
    ),
)


@given(st.lists(steps, max_size=40))
@settings(max_examples=60, deadline=None)
def test_counts_are_what_replicas_wrote_whatever_crashes_and_comes_late(tmp_path_factory, build, schedule):
    world = World(build, tmp_path_factory.mktemp("world"))
    for action, *facts in schedule:
        if action == "serve":
            world.serve(*facts)
        elif action == "write":
            world.write(*facts)
        elif action == "end":
            world.end(facts[0], orderly=facts[1])
        elif action == "late":
            world.late(*facts)
        elif action == "restart":
            world.crash_control_plane() if facts[0] else world.node.restart()
        else:
            said, crash_at, race = facts
            meanwhile = None if race is None else (race[0], partial(world.serve_and_write, race[1]))
            world.deliver({"live": world.live(), "nobody": set()}[said], crash_at, meanwhile)
    for ordinal in list(world.counters):
        world.write(ordinal)
        world.end(ordinal, orderly=False)
    assert world.deliver(set())
    world.check()
    world.clock.advance(FORGET_AFTER_S)
    world.deliver(set())
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
        passed = world.deliver(set(), crash_at)
        assert world.deliver(set())
        world.check()
        assert list(world.folder.iterdir()) == []
        world.store.close()
        crash_at += 1
    assert crash_at > STEPS


def test_a_write_at_each_single_step_of_a_files_end_is_neither_lost_nor_doubled(tmp_path_factory, build):
    step, written = 0, True
    while written:
        world = World(build, tmp_path_factory.mktemp("world"))
        world.serve_and_write(0)
        world.deliver(set(), meanwhile=(step, partial(world.serve_and_write, 0)))
        world.end(0, orderly=False)
        world.deliver(set())
        world.check()
        world.store.close()
        written = world.counts_written() == {"c": 2}
        step += 1
    assert step > 8


def test_an_agent_killed_in_the_middle_of_each_message_counts_once(tmp_path_factory, build):
    """Before it was read, after it was counted and before that was heard, and both again."""
    for first in range(STEPS):
        for second in (0, 1, 5, 6):
            world = World(build, tmp_path_factory.mktemp("world"))
            world.serve_and_write(0)
            world.deliver(world.live(), first)
            world.serve_and_write(0)
            world.deliver(world.live(), second)
            world.end(0, orderly=False)
            assert world.deliver(set())
            world.check()
            world.store.close()
