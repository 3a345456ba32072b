"""Tests of `cortex.wire.rawoutput`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex.wire import rawoutput
from cortex.wire.rawoutput import RawOutput, leftover, shrink


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "r.log.raw"


@pytest.fixture
def raw(file: Path) -> Iterator[RawOutput]:
    raw = RawOutput(file)
    yield raw
    raw.close()


def put(file: Path, content: bytes) -> None:
    with file.open("ab") as stream:
        stream.write(content)


def on_disk(file: Path) -> int:
    return file.stat().st_blocks * 512


def test_lines_are_taken_once(raw, file):
    put(file, b"one\ntwo\n\nthree\n")
    assert raw.is_waiting
    assert raw.take() == [b"one", b"two", b"", b"three"]
    assert not raw.is_waiting
    assert raw.take() == []


def test_a_line_without_an_end_waits_for_it_unless_all_is_wanted(raw, file):
    put(file, b"one\nha")
    assert raw.take() == [b"one"]
    put(file, b"lf\nrest")
    assert raw.take() == [b"half"]
    assert raw.take(whole=True) == [b"rest"]


def test_only_so_much_is_taken_at_once_and_no_line_is_torn(raw, file):
    put(file, b"1234\n" * 10 + b"end")
    assert raw.take(12, whole=True) == [b"1234", b"1234"]
    assert raw.take(whole=True) == [b"1234"] * 8 + [b"end"]


def test_an_endless_line_is_taken_in_pieces(raw, file):
    put(file, b"x" * 25)
    assert [raw.take(10) for _ in range(3)] == [[b"x" * 10], [b"x" * 10], []]
    assert raw.take(10, whole=True) == [b"x" * 5]


def test_of_too_much_the_end_is_taken_and_the_rest_is_counted(raw, file):
    put(file, b"x" * (2 * rawoutput.MAX_WAITING_BYTES) + b"\nlast\n")
    first, *_, last = raw.take()
    assert first == b"[6.0 MiB of output were too much at once and are left out]"
    assert last == b"last"


def test_what_was_taken_is_off_the_disk(raw, file):
    put(file, b"x" * 2**20 + b"\n")
    raw.take()
    assert on_disk(file) <= 8192


def test_a_successor_finds_what_was_not_taken(raw, file):
    put(file, b"taken\n" * 2000)
    raw.take()
    put(file, b"left\n")
    other = RawOutput(file)
    assert other.take() == [b"left"]
    put(file, b"more\n")
    assert other.take() == [b"more"]
    other.close()


def test_what_a_dead_process_left_is_found_once(raw, file):
    put(file, b"taken\n")
    raw.take()
    put(file, b"Fatal Python error: Segmentation fault\nhalf")
    os.utime(file, (1000.0, 1000.5))
    lines, written_s = leftover(file)
    assert lines == [b"Fatal Python error: Segmentation fault", b"half"]
    assert written_s == 1000.5
    assert leftover(file)[0] == []


def test_nothing_is_left_where_nothing_was(tmp_path):
    assert leftover(tmp_path / "missing.raw") == ([], 0.0)
    assert os.listdir(tmp_path) == []


def test_of_much_that_a_dead_process_left_its_last_words_are_found(file):
    put(file, b"noise\n" * 500_000 + b"the reason\n")
    lines, _ = leftover(file)
    assert lines[0].startswith(b"[")
    assert lines[-1] == b"the reason"
    assert sum(map(len, lines)) < rawoutput.MAX_LEFT_BYTES


def test_a_file_that_nobody_reads_is_cut_to_its_end(raw, file):
    put(file, b"x" * 2**20 + b"\nthe end\n")
    assert shrink(file, keep_bytes=8192)
    assert on_disk(file) <= 16384
    assert raw.take()[-1] == b"the end"
    assert not shrink(file, keep_bytes=2**21)
    assert not shrink(file.with_name("missing"), keep_bytes=1)


def test_without_holes_a_file_that_was_read_is_emptied(monkeypatch, raw, file):
    monkeypatch.setattr(rawoutput, "punched", lambda fd, end: False)
    put(file, b"one\n")
    assert raw.take() == [b"one"]
    assert file.stat().st_size == 0
    put(file, b"two\n")
    assert raw.take() == [b"two"]
