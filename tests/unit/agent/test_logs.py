"""Tests of `cortex.agent.logs`."""

import json

import pytest

from cortex.agent.logs import LogReader
from cortex.ids import ApiKey, ReplicaId
from cortex.wire.agent import ReadLogs


def record(wall_s, text, request=""):
    return json.dumps({"t": wall_s, "s": "out", "a": 1, "r": request, "m": text}) + "\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "iris.a.11111111.0.log").write_text(record(1, "one", "r1") + record(4, "four"))
    (tmp_path / "iris.a.22222222.0.log").write_text(record(2, "two", "r1") + record(3, "three"))
    (tmp_path / "iris.ab.33333333.0.log").write_text(record(1, "another api"))
    return tmp_path


def texts(lines):
    return [line.text for line in lines.lines]


def ask(**kwargs):
    return ReadLogs(api=ApiKey("iris/a"), **kwargs)


def test_replicas_are_interleaved_in_time_order_and_other_apis_left_out(folder):
    assert texts(LogReader(folder).read(ask())) == ["one", "two", "three", "four"]


def test_only_the_last_lines_are_shown_at_first(folder):
    assert texts(LogReader(folder).read(ask(tail=2))) == ["three", "four"]


def test_a_reader_goes_on_where_it_stood(folder):
    reader = LogReader(folder)
    first = reader.read(ask())
    with (folder / "iris.a.22222222.0.log").open("a") as file:
        file.write(record(5, "five") + '{"t":6,"m":"half')
    second = reader.read(ask(cursor=first.cursor))
    assert texts(second) == ["five"]
    with (folder / "iris.a.22222222.0.log").open("a") as file:
        file.write(' written"}\n')
    assert texts(reader.read(ask(cursor=second.cursor))) == ["half written"]


def test_a_new_replica_joins_a_reader_that_follows(folder):
    reader = LogReader(folder)
    first = reader.read(ask())
    (folder / "iris.a.44444444.0.log").write_text(record(9, "hello"))
    assert texts(reader.read(ask(cursor=first.cursor))) == ["hello"]


def test_a_rotated_file_is_not_shown_twice(folder):
    reader = LogReader(folder)
    first = reader.read(ask())
    current = folder / "iris.a.11111111.0.log"
    current.rename(folder / "iris.a.11111111.0.log.1")
    current.write_text(record(7, "after rotation"))
    assert texts(reader.read(ask(cursor=first.cursor))) == ["after rotation"]


def test_lines_of_one_request_are_found_in_all_replicas(folder):
    assert texts(LogReader(folder).read(ask(request="r1"))) == ["one", "two"]


def test_a_replica_is_found_by_the_name_that_is_shown(folder):
    assert texts(LogReader(folder).read(ask(replica=ReplicaId("22222222.0")))) == ["two", "three"]


def test_output_that_carries_no_time_follows_what_was_before_it(folder):
    with (folder / "iris.a.11111111.0.log").open("a") as file:
        file.write("Fatal Python error: Segmentation fault\n")
    lines = LogReader(folder).read(ask(since_wall_s=4)).lines
    assert [(line.wall_s, line.text) for line in lines] == [(4, "four"), (4, "Fatal Python error: Segmentation fault")]


def test_an_api_without_logs_has_no_lines(tmp_path):
    assert LogReader(tmp_path / "missing").read(ask()).lines == ()
