"""Tests of `cortex.controlplane.merging`, on what real readers find in folders that are written meanwhile."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.agent import logs
from cortex.agent.logs import Clocks, LogReader
from cortex.controlplane import merging
from cortex.controlplane.merging import SETTLED_S, MergedLogs
from cortex.errors import CortexError, RetryLater
from cortex.ids import ApiKey, NodeId
from cortex.testing.clock import FakeClock
from cortex.wire.agent import LogLines, ReadLogs

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
DEADLINE_S = 30.0


class Written(NamedTuple):
    """A line, and when it is there to be read."""

    node: NodeId
    replica: int
    wall_s: float
    there_s: float

    @property
    def text(self) -> str:
        return f"{self.node}{self.replica} {self.wall_s}"


class World:
    """Nodes whose replicas write as time passes, and a control plane that reads their logs."""

    def __init__(self, folder: Path, *nodes: NodeId) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.began_s = self.clock.wall_s()
        self.ahead_s: dict[NodeId, float] = {}
        """Of clocks that are wrong."""
        self.away: Callable[[NodeId], bool] = lambda _node: False
        self.to_come: list[Written] = []
        self.nodes: dict[NodeId, Any] = {}
        self.asked: list[tuple[NodeId, ReadLogs]] = []
        for node in nodes:
            self.join(node)
        self.merged = MergedLogs(lambda: self.nodes, self.clock, pause=self.pass_time)

    @property
    def now_s(self) -> float:
        return self.clock.wall_s() - self.began_s

    def join(self, node: NodeId) -> None:
        (self.folder / node).mkdir(exist_ok=True)
        reader = LogReader(self.folder / node)

        def read(request: ReadLogs) -> LogLines:
            self.asked.append((node, request))
            if self.away(node):
                raise RetryLater(f"{node} is away", after_s=1.0)
            clocks = Clocks.of(request, self.clock.wall_s() + self.ahead_s.get(node, 0.0))
            return clocks.there(reader.read(clocks.here(request)))

        self.nodes[node] = read

    def write(self, node: NodeId, wall_s: float, text: str = "", replica: int = 0) -> None:
        record = {"t": self.began_s + wall_s, "s": "out", "a": 1, "r": "", "m": text or f"{node} {wall_s:g}"}
        with (self.folder / node / f"iris.x.{replica:08}.0.log").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def come(self) -> None:
        """What is there by now is written."""
        due = sorted((line for line in self.to_come if line.there_s <= self.now_s), key=lambda line: line.there_s)
        self.to_come = [line for line in self.to_come if line.there_s > self.now_s]
        for line in due:
            self.write(line.node, line.wall_s, line.text, line.replica)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.come()

    def read(self, **facts: Any) -> LogLines:
        return self.merged.read(ReadLogs(api=ApiKey("iris/x"), **facts))

    def follow(self, cursor: str, wait_s: float = 5.0) -> LogLines:
        return self.read(cursor=cursor, tail=None, wait_s=wait_s)


def texts(found: LogLines) -> list[str]:
    return [line.text for line in found.lines]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, A, B, C)


# ---- one node -------------------------------------------------------------------------------------------------------


def test_with_one_node_question_and_answer_pass_as_they_are(tmp_path: Path) -> None:
    world = World(tmp_path, A)
    world.write(A, 1)
    asked = ReadLogs(api=ApiKey("iris/x"), tail=5)
    answer = world.merged.read(asked)
    assert answer == LogReader(tmp_path / A).read(asked)
    following = ReadLogs(api=ApiKey("iris/x"), tail=None, cursor=answer.cursor, wait_s=5.0)
    assert world.merged.read(following).cursor == answer.cursor
    assert world.asked == [(A, asked), (A, following)]


def test_the_only_node_may_refuse(tmp_path: Path) -> None:
    world = World(tmp_path, A)
    world.away = lambda _node: True
    with pytest.raises(CortexError, match="a is away"):
        world.read()


def test_who_follows_one_node_goes_on_when_there_are_more(tmp_path: Path) -> None:
    world = World(tmp_path, A)
    world.write(A, 1)
    first = world.read()
    world.join(B)
    world.write(B, 0.5, "of before")
    world.pass_time(10)
    world.write(A, 3)
    world.write(B, 2, "still of before")
    second = world.follow(first.cursor)
    assert texts(second) == ["a 3"]
    world.write(B, 11)
    world.pass_time(5)
    assert texts(world.follow(second.cursor)) == ["b 11"]


def test_who_follows_several_goes_on_when_there_is_one_and_finds_the_others_when_they_are_back(world: World) -> None:
    for node in (A, B, C):
        world.write(node, 1)
    cursor = world.read().cursor
    gone = {node: world.nodes.pop(node) for node in (B, C)}
    world.write(A, 2)
    world.write(B, 3)
    world.pass_time(10)
    found = world.follow(cursor)
    assert texts(found) == ["a 2"]
    world.nodes.update(gone)
    assert texts(world.follow(found.cursor)) == ["b 3"]


# ---- several --------------------------------------------------------------------------------------------------------


def test_the_last_lines_of_all_nodes_come_in_time_order(world: World) -> None:
    for n in range(9):
        world.write([A, B, C][n % 3], n)
    assert texts(world.read(tail=4)) == ["c 5", "a 6", "b 7", "c 8"]
    assert texts(world.read(tail=0)) == []


def test_all_that_is_kept_comes_in_pieces_that_are_in_order_together(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_LINES", 5)
    monkeypatch.setattr(merging, "MAX_LINES", 7)
    for n in range(40):
        world.write(A if n % 4 else B, n)
    found = world.read(tail=None)
    told = texts(found)
    while found.more:
        found = world.read(cursor=found.cursor, tail=None)
        assert len(found.lines) <= 7
        told += texts(found)
    assert told == [f"{A if n % 4 else B} {n}" for n in range(40)]


def test_much_that_is_not_wanted_on_one_node_does_not_let_another_overtake_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_SCANNED_BYTES", 500)
    for n in range(50):
        world.write(A, n)
    world.write(B, 30, "b of r1")
    with (world.folder / A / "iris.x.00000000.0.log").open("a") as file:
        file.write(json.dumps({"t": world.began_s + 29, "s": "out", "a": 1, "r": "r1", "m": "a of r1"}) + "\n")
    with (world.folder / B / "iris.x.00000000.0.log").open("a") as file:
        file.write(json.dumps({"t": world.began_s + 60, "s": "out", "a": 1, "r": "r1", "m": "b of r1"}) + "\n")
    found = world.read(tail=None, request="r1")
    told, answers = texts(found), 1
    while found.more:
        found = world.read(cursor=found.cursor, tail=None, request="r1")
        told += texts(found)
        answers += 1
    assert told == ["a of r1", "b of r1"]
    assert 2 < answers < 50


def test_a_node_that_refuses_is_named_and_its_lines_come_later(world: World) -> None:
    cursor = world.read().cursor
    world.away = lambda node: node == B
    for node in (A, B, C):
        world.write(node, 1)
    world.pass_time(5)
    found = world.follow(cursor)
    assert (texts(found), found.missing) == (["a 1", "c 1"], (B,))
    world.away = lambda _node: False
    found = world.follow(found.cursor)
    assert (texts(found), found.missing) == (["b 1"], ())


def test_of_a_node_that_was_away_at_first_what_was_before_is_not_told_as_new(world: World) -> None:
    world.write(B, -100)
    world.away = lambda node: node == B
    first = world.read()
    assert first.missing == (B,)
    world.away = lambda _node: False
    world.write(B, 2)
    world.pass_time(5)
    assert texts(world.follow(first.cursor)) == ["b 2"]


def test_that_no_node_answers_is_an_error(world: World) -> None:
    world.away = lambda _node: True
    with pytest.raises(CortexError, match="is away"):
        world.read()
    with pytest.raises(CortexError, match="is away"):
        world.read(tail=None)


def test_a_silent_node_holds_the_others_up_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "ANSWERS_WITHIN_S", 0.05)
    go_on, begun, ended = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)
    answers = world.nodes[B]

    def silent(request: ReadLogs) -> LogLines:
        begun.release()
        try:
            assert go_on.wait(DEADLINE_S)
            return answers(request)  # type: ignore[no-any-return]
        finally:
            ended.release()

    world.nodes[B] = silent
    for node in (A, B, C):
        world.write(node, 1)
    found = world.read()
    assert (texts(found), found.missing) == (["a 1", "c 1"], (B,))
    for _ in range(20):
        assert world.read().missing == (B,)
    assert begun.acquire(timeout=DEADLINE_S)
    assert not begun.acquire(blocking=False), "it is not asked again before it has answered"
    go_on.set()
    assert ended.acquire(timeout=DEADLINE_S)
    for _ in range(1000):
        if not (found := world.read()).missing:
            break
    assert texts(found) == ["a 1", "b 1", "c 1"]


# ---- following ------------------------------------------------------------------------------------------------------


def test_who_waits_is_answered_when_the_time_is_up(world: World) -> None:
    cursor, began_s = world.read().cursor, world.now_s
    found = world.follow(cursor, wait_s=5.0)
    assert (found.lines, found.more) == ((), False)
    assert world.now_s == pytest.approx(began_s + 5.0)


def test_a_first_line_of_any_node_ends_the_wait_once_it_is_settled(world: World) -> None:
    cursor = world.read().cursor
    world.to_come = [Written(B, 0, 2.0, 2.0)]
    assert texts(world.follow(cursor)) == ["b0 2.0"]
    assert 2.0 + SETTLED_S <= world.now_s <= 2.0 + SETTLED_S + 2 * merging.LOOK_EVERY_S


def test_a_line_that_is_late_comes_before_younger_ones_of_other_nodes(world: World) -> None:
    cursor = world.read().cursor
    world.to_come = [Written(A, 0, 2.0, 2.0), Written(B, 0, 1.5, 2.4)]
    found = world.follow(cursor)
    assert texts(found) + texts(world.follow(found.cursor)) == ["b0 1.5", "a0 2.0"]


@pytest.mark.parametrize("ahead_s", [600.0, -600.0])
def test_lines_of_a_node_whose_clock_is_wrong_come_as_soon(world: World, ahead_s: float) -> None:
    cursor = world.read().cursor
    world.ahead_s[B] = ahead_s
    world.write(B, 1.0 + ahead_s, "by another clock")
    world.pass_time(3.0)
    assert texts(world.follow(cursor)) == ["by another clock"]


@pytest.mark.parametrize("ahead_s", [600.0, -600.0])
def test_lines_of_a_node_whose_clock_is_wrong_stand_among_those_of_the_others(world: World, ahead_s: float) -> None:
    world.ahead_s[B] = ahead_s
    for second in range(1, 7):
        node = (A, B, C)[second % 3]
        world.write(node, second + world.ahead_s.get(node, 0.0), str(second))
    world.pass_time(10.0)
    assert texts(world.read()) == texts(world.read(tail=None)) == list("123456")
    assert texts(world.read(tail=3)) == list("456")
    assert texts(world.read(since_wall_s=world.began_s + 3.5)) == list("456")


def lines_of(delays: Mapping[tuple[NodeId, int], float]) -> Any:
    """Lines of replicas each of which is late by a time of its own."""
    line = st.tuples(st.sampled_from(sorted(delays)), st.integers(1, 80))
    return st.lists(line, max_size=40, unique=True).map(
        lambda found: [
            Written(node, replica, tenths / 10, tenths / 10 + delays[node, replica])
            for (node, replica), tenths in sorted(found, key=lambda each: each[1])
        ]
    )


late_lines = st.fixed_dictionaries(
    {(node, replica): st.integers(0, 9).map(lambda tenths: tenths / 10) for node in (A, B, C) for replica in (0, 1)}
).flatmap(lines_of)


@given(late_lines, st.integers(3, 100), st.none() | st.tuples(st.sampled_from([A, B, C]), st.integers(0, 60)))
@settings(max_examples=100, deadline=None)
def test_who_follows_gets_each_line_once_and_in_order_as_if_there_were_one_node(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[Written],
    most: int,
    away: tuple[NodeId, int] | None,
) -> None:
    world = World(tmp_path_factory.mktemp("nodes"), A, B, C)
    if away is not None:
        world.away = lambda node: node == away[0] and away[1] / 10 <= world.now_s < away[1] / 10 + 2.0
    world.to_come = list(lines)
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "MAX_LINES", most)
        patch.setattr(merging, "MAX_LINES", most)
        found = world.read(tail=None)
        first = len(found.lines)
        told += texts(found)
        while world.now_s < 12.0 or found.more:
            found = world.follow(found.cursor, wait_s=0.7)
            told += texts(found)
            world.pass_time(0.1)
    assert first == 0
    expected = [line.text for line in sorted(lines, key=lambda line: line.wall_s)]
    assert sorted(told) == sorted(expected)
    if away is None:
        assert [float(text.split()[1]) for text in told] == sorted(line.wall_s for line in lines)
