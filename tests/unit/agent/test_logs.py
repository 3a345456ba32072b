"""Tests of `cortex.agent.logs`."""

import json
import os

import msgspec
import pytest

from cortex.agent import logs
from cortex.agent.logs import Clocks, LogReader, clean_up, cut_process_logs
from cortex.ids import ApiKey, ReplicaId
from cortex.wire.agent import ReadLogs
from cortex.wire.places import Places

NOWHERE = Places("")


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


def test_only_some_revisions_may_be_asked_for_and_the_others_then_count_as_read(folder):
    reader = LogReader(folder)
    for tail in (100, None):
        first = reader.read(ask(revisions=("22222222",), tail=tail))
        assert texts(first) == ["two", "three"]
        assert texts(reader.read(ask(cursor=first.cursor))) == []
    with (folder / "iris.a.11111111.0.log").open("a") as file:
        file.write(record(5, "five"))
    (folder / "iris.a.44444444.0.log").write_text(record(6, "of a new version"))
    assert texts(reader.read(ask(cursor=first.cursor))) == ["five", "of a new version"]
    assert texts(reader.read(ask(cursor=first.cursor, revisions=("44444444",)))) == ["of a new version"]


def test_what_is_after_an_instant_is_left_for_later(folder):
    reader = LogReader(folder)
    first = reader.read(ask(tail=None, until_wall_s=2.5))
    assert (texts(first), first.held, first.more) == (["one", "two"], True, False)
    second = reader.read(ask(cursor=first.cursor, until_wall_s=2.9))
    assert (texts(second), second.held) == ([], True)
    third = reader.read(ask(cursor=second.cursor, until_wall_s=4.0))
    assert (texts(third), third.held) == (["three", "four"], False)


def test_instants_are_by_the_clock_of_who_asks_where_ours_is_far_off():
    asked = ask(since_wall_s=50.0, until_wall_s=99.0, asked_wall_s=100.0)
    assert Clocks.of(asked, 101.0).here(asked) is asked
    for ours_s, ahead_s in ((700.0, 600.0), (40.0, -60.0)):
        here = Clocks.of(asked, ours_s).here(asked)
        assert (here.since_wall_s, here.until_wall_s) == (50.0 + ahead_s, 99.0 + ahead_s)
    for plain in (ask(), ask(until_wall_s=99.0)):
        assert Clocks.of(plain, 700.0).here(plain) is plain


def test_lines_are_told_by_the_clock_of_who_asks_where_ours_is_far_off(folder):
    found = LogReader(folder).read(ask(tail=1))
    (line,) = found.lines
    asked = ask(asked_wall_s=100.0)
    assert Clocks.of(asked, 101.0).there(found) is found
    (told,) = Clocks.of(asked, 700.0).there(found).lines
    assert told == msgspec.structs.replace(line, wall_s=line.wall_s - 600.0)


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


def test_output_past_us_that_nothing_was_before_is_as_old_as_what_comes_next(folder):
    (folder / "iris.a.33333333.0.log").write_text("from C\n" + record(2.5, "then") + "more from C\n")
    lines = LogReader(folder).read(ask(since_wall_s=2.2, tail=100)).lines
    assert [(line.wall_s, line.text) for line in lines] == [
        (2.5, "from C"),
        (2.5, "then"),
        (2.5, "more from C"),
        (3, "three"),
        (4, "four"),
    ]


def test_output_past_us_without_any_time_around_it_was_written_when_the_file_was(folder):
    reader = LogReader(folder)
    first = reader.read(ask())
    path = folder / "iris.a.22222222.0.log"
    with path.open("a") as file:
        file.write("from C\n")
    os.utime(path, (7, 7))
    (line,) = reader.read(ask(cursor=first.cursor, since_wall_s=6)).lines
    assert (line.wall_s, line.text) == (7, "from C")


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


def test_a_request_is_found_by_how_its_id_begins(folder):
    reader = LogReader(folder)
    assert texts(reader.read(ask(request="r…"))) == ["one", "two"]
    assert texts(reader.read(ask(request="r..."))) == ["one", "two"]
    assert texts(reader.read(ask(request="r"))) == []
    assert texts(reader.read(ask(request="…"))) == []


def test_an_id_that_json_escapes_is_found_too(folder):
    (folder / "iris.a.11111111.0.log").write_text(record(1, "one", 'say "hi" ä'))
    assert texts(LogReader(folder).read(ask(request='say "hi" ä'))) == ["one"]
    assert texts(LogReader(folder).read(ask(request='say "hi…'))) == ["one"]


def test_a_replica_is_found_by_the_name_that_is_shown(folder):
    assert texts(LogReader(folder).read(ask(replica=ReplicaId("22222222.0")))) == ["two", "three"]


def test_output_that_carries_no_time_follows_what_was_before_it(folder):
    with (folder / "iris.a.11111111.0.log").open("a") as file:
        file.write("Fatal Python error: Segmentation fault\n")
    lines = LogReader(folder).read(ask(since_wall_s=4)).lines
    assert [(line.wall_s, line.text) for line in lines] == [(4, "four"), (4, "Fatal Python error: Segmentation fault")]


def test_an_api_without_logs_has_no_lines(tmp_path):
    assert LogReader(tmp_path / "missing").read(ask()).lines == ()


# ---- everything there is ---------------------------------------------------------------------------------------------


def everything(reader, **asked):
    """Texts of all answers, one list each, until nothing more is there."""
    answer = reader.read(ask(tail=None, **asked))
    answers = [texts(answer)]
    while answer.more:
        answer = reader.read(ask(tail=None, cursor=answer.cursor, **asked))
        answers.append(texts(answer))
    return answers


def test_everything_comes_in_as_many_answers_as_it_needs_and_in_time_order(monkeypatch, tmp_path):
    monkeypatch.setattr(logs, "MAX_LINES", 4)
    (tmp_path / "iris.a.11111111.0.log.1").write_text("".join(record(10 + n, str(n)) for n in (0, 3, 4)))
    (tmp_path / "iris.a.11111111.0.log").write_text("".join(record(10 + n, str(n)) for n in (8, 9)))
    (tmp_path / "iris.a.22222222.0.log").write_text("".join(record(10 + n, str(n)) for n in (1, 2, 5, 6, 7)))
    assert everything(LogReader(tmp_path)) == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8", "9"]]


def test_what_an_answer_holds_is_bounded_in_bytes_too(monkeypatch, tmp_path):
    monkeypatch.setattr(logs, "MAX_ANSWER_BYTES", 1000)
    (tmp_path / "iris.a.11111111.0.log").write_text("".join(record(n, str(n) * 1000) for n in range(3)))
    assert [len(answer) for answer in everything(LogReader(tmp_path))] == [1, 1, 1]


def test_much_that_is_not_wanted_is_passed_over_in_several_answers(monkeypatch, tmp_path):
    monkeypatch.setattr(logs, "MAX_SCANNED_BYTES", 1000)
    lines = [record(n, "x", "other") for n in range(100)]
    (tmp_path / "iris.a.11111111.0.log").write_text("".join([*lines, record(200, "found", "r1")]))
    answers = everything(LogReader(tmp_path), request="r1")
    assert len(answers) > 3
    assert [text for answer in answers for text in answer] == ["found"]


def test_since_reaches_over_any_number_of_lines(tmp_path):
    (tmp_path / "iris.a.11111111.0.log").write_text("".join(record(n, str(n)) for n in range(30_000)))
    answers = everything(LogReader(tmp_path), since_wall_s=5000)
    assert [text for answer in answers for text in answer] == [str(n) for n in range(5000, 30_000)]


def test_the_last_lines_are_found_over_rotated_files_and_long_lines(tmp_path):
    (tmp_path / "iris.a.11111111.0.log.1").write_text(record(1, "one") + record(2, "y" * 200_000))
    (tmp_path / "iris.a.11111111.0.log").write_text(record(3, "x" * 200_000) + record(4, "four"))
    reader = LogReader(tmp_path)
    assert [text[:4] for text in texts(reader.read(ask(tail=3)))] == ["yyyy", "xxxx", "four"]
    assert [text[:4] for text in texts(reader.read(ask(tail=9)))] == ["one", "yyyy", "xxxx", "four"]
    assert texts(reader.read(ask(tail=0))) == []


def test_lines_that_were_taken_out_of_order_end_no_answer_early(tmp_path):
    (tmp_path / "iris.a.11111111.0.log").write_text(
        record(5, "five") + record(4.9, "a moment before") + record(6, "six")
    )
    (tmp_path / "iris.a.22222222.0.log").write_text(record(5.5, "between"))
    assert everything(LogReader(tmp_path)) == [["five", "a moment before", "between", "six"]]


def test_a_file_whose_inode_is_used_again_is_read_from_its_beginning(monkeypatch, folder):
    reader = LogReader(folder)
    cursor = reader.read(ask()).cursor
    file = folder / "iris.a.11111111.0.log"
    with file.open("r+") as stream:  # the same inode, as after a rotation that freed it
        stream.truncate()
        stream.write("".join(record(20 + number, f"new {number}") for number in range(9)))
    assert texts(reader.read(ask(cursor=cursor))) == [f"new {number}" for number in range(9)]


# ---- output past Python ----------------------------------------------------------------------------------------------


def test_what_a_dead_replica_left_unread_ends_its_log(folder):
    log_file = folder / "iris.a.11111111.0.log"
    raw = folder / "iris.a.11111111.0.log.raw"
    raw.write_bytes(b"Fatal Python error\n" + record(5, "of a child", "r9").encode() + b"half \xff")
    os.utime(raw, (6, 6))
    logs.take_leftover(log_file, 3, NOWHERE)
    logs.take_leftover(log_file, 3, NOWHERE)
    found = LogReader(folder).read(ask(replica=ReplicaId("11111111.0"))).lines
    assert [(line.wall_s, line.stream, line.request, line.text) for line in found] == [
        (1, "out", "r1", "one"),
        (4, "out", "", "four"),
        (6, "raw", "", "Fatal Python error"),
        (6, "out", "r9", "of a child"),
        (6, "raw", "", "half \\xff"),
    ]


def test_a_replica_that_left_nothing_gets_no_log(tmp_path):
    logs.take_leftover(tmp_path / "iris.a.11111111.0.log", 1, NOWHERE)
    assert list(tmp_path.iterdir()) == []


def test_output_that_nobody_reads_is_cut(monkeypatch, tmp_path):
    monkeypatch.setattr(logs, "MAX_RAW_BYTES", 64 * 1024)
    small, large = tmp_path / "iris.a.11111111.0.log.raw", tmp_path / "iris.a.22222222.0.log.raw"
    small.write_bytes(b"x" * 1000)
    large.write_bytes(b"x" * 1_000_000)
    (tmp_path / "iris.a.22222222.0.log").write_bytes(b"x" * 1_000_000)
    oversized = logs.oversized([*logs.raw_output(tmp_path), str(tmp_path / "of nobody.raw")])
    assert logs.cut_raw_output(oversized) == [str(large)]
    assert logs.oversized(logs.raw_output(tmp_path)) == []
    assert large.stat().st_blocks * 512 <= 32 * 1024


# ---- following a busy api --------------------------------------------------------------------------------------------


def followed(reader, cursor):
    """Texts of all answers until there is nothing new, one list each."""
    answers = []
    while (answer := reader.read(ask(cursor=cursor))).lines:
        answers.append(texts(answer))
        cursor = answer.cursor
    return answers


def test_a_reader_that_fell_behind_is_given_everything_in_several_answers(monkeypatch, folder):
    monkeypatch.setattr(logs, "MAX_LINES", 3)
    reader = LogReader(folder)
    cursor = reader.read(ask(tail=1)).cursor
    with (folder / "iris.a.22222222.0.log").open("a") as file:
        file.writelines(record(10 + number, str(number)) for number in range(7))
    assert followed(reader, cursor) == [["0", "1", "2"], ["3", "4", "5"], ["6"]]


def test_one_answer_follows_no_more_than_so_much_of_a_file(monkeypatch, folder):
    monkeypatch.setattr(logs, "MAX_SCANNED_BYTES", 100)
    reader = LogReader(folder)
    cursor = reader.read(ask()).cursor
    with (folder / "iris.a.22222222.0.log").open("a") as file:
        file.writelines(record(10 + number, str(number)) for number in range(5))
    answers = followed(reader, cursor)
    assert len(answers) > 1
    assert [text for answer in answers for text in answer] == ["0", "1", "2", "3", "4"]


def test_output_without_line_ends_does_not_hold_a_reader_up(monkeypatch, folder):
    monkeypatch.setattr(logs, "MAX_LINE_BYTES", 100)
    reader = LogReader(folder)
    cursor = reader.read(ask()).cursor
    with (folder / "iris.a.22222222.0.log").open("a") as file:
        file.write("x" * 250 + "\n")
    assert "".join(text for answer in followed(reader, cursor) for text in answer) == "x" * 250


# ---- cleaning up -----------------------------------------------------------------------------------------------------


def a_log(folder, name, *, size=100, written_s=0.0):
    file = folder / name
    file.write_bytes(b"x" * size)
    os.utime(file, (written_s, written_s))
    return file


def left(folder):
    return sorted(file.name for file in folder.iterdir())


def test_old_logs_of_replicas_that_are_gone_are_removed(tmp_path):
    a_log(tmp_path, "t.a.11111111.0.log", written_s=10)
    a_log(tmp_path, "t.a.22222222.0.log.1", written_s=10)
    a_log(tmp_path, "t.a.33333333.0.log", written_s=95)
    removed = clean_up(tmp_path, {ReplicaId("t.a.11111111.0")}, keep_bytes=1000, keep_s=50, now_wall_s=100)
    assert [file.name for file in removed] == ["t.a.22222222.0.log.1"]
    assert left(tmp_path) == ["t.a.11111111.0.log", "t.a.33333333.0.log"]


def test_unread_output_of_replicas_that_are_gone_is_removed_with_their_logs(tmp_path):
    a_log(tmp_path, "t.a.11111111.0.log.raw", written_s=10)
    a_log(tmp_path, "t.a.22222222.0.log.raw", written_s=10)
    clean_up(tmp_path, {ReplicaId("t.a.11111111.0")}, keep_bytes=1000, keep_s=50, now_wall_s=100)
    assert left(tmp_path) == ["t.a.11111111.0.log.raw"]


def test_the_newest_logs_are_kept_up_to_a_size(tmp_path):
    for number in range(5):
        a_log(tmp_path, f"t.a.{number}{number}{number}{number}0000.0.log", written_s=number)
    a_log(tmp_path, "t.a.99999999.0.log", size=10_000, written_s=-100)
    clean_up(tmp_path, {ReplicaId("t.a.99999999.0")}, keep_bytes=250, keep_s=1000, now_wall_s=100)
    assert left(tmp_path) == ["t.a.33330000.0.log", "t.a.44440000.0.log", "t.a.99999999.0.log"]


def test_the_newest_logs_are_kept_up_to_a_number(monkeypatch, tmp_path):
    monkeypatch.setattr(logs, "MAX_GONE_FILES", 3)
    for number in range(5):
        a_log(tmp_path, f"t.a.{number}{number}{number}{number}0000.0.log", written_s=number)
    a_log(tmp_path, "t.a.44440000.0.log.raw", size=0, written_s=3.5)
    a_log(tmp_path, "t.a.99999999.0.log", written_s=-100)
    clean_up(tmp_path, {ReplicaId("t.a.99999999.0")}, keep_bytes=10_000, keep_s=1000, now_wall_s=100)
    assert left(tmp_path) == [
        "t.a.33330000.0.log",
        "t.a.44440000.0.log",
        "t.a.44440000.0.log.raw",
        "t.a.99999999.0.log",
    ]


def test_files_that_are_no_logs_of_replicas_are_left_alone(tmp_path):
    a_log(tmp_path, "notes.txt", size=10_000)
    assert clean_up(tmp_path, set(), keep_bytes=0, keep_s=0, now_wall_s=100) == ()
    assert left(tmp_path) == ["notes.txt"]
    assert clean_up(tmp_path / "missing", set(), keep_bytes=0, keep_s=0, now_wall_s=100) == ()


def test_what_processes_print_is_cut_once_it_is_large(monkeypatch, tmp_path):
    monkeypatch.setattr(logs, "MAX_PROCESS_LOG_BYTES", 1000)
    for name in ("agent.out", "launcher-onnx-123456.log", "agent.log"):
        a_log(tmp_path, name, size=2000)
    a_log(tmp_path, "keeper.out", size=500)
    cut_process_logs(tmp_path)
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert sizes == {"agent.out": 0, "launcher-onnx-123456.log": 0, "agent.log": 2000, "keeper.out": 500}
