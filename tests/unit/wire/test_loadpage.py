"""A replica's page: what is written is read, whole or not at all."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from cortex.wire import loadpage
from cortex.wire.loadpage import Load, LoadPage, LoadPageReader
from cortex.wire.loads import HANDLER, LOOP, MODEL, SeatReading


def a_row(row: str, number: float) -> SeatReading:
    return SeatReading(row=row, seats=3, busy_s=number, ended_busy_s=number / 2, full_s=number / 4)


def a_load(number: int = 1, *rows: str) -> Load:
    """Every figure says the number."""
    return Load(
        at_s=1000.0 + number,
        ready_s=float(number),
        ended=number,
        ended_s=float(number),
        in_flight=number,
        cpu_before_s=float(number),
        runnable_before_s=float(number),
        rows=tuple(a_row(row, number) for row in rows or (HANDLER, MODEL, LOOP)),
    )


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / f"stats.json{loadpage.SUFFIX}")


def read(file: str) -> Load | None:
    reader = LoadPageReader(file)
    found = reader.read()
    reader.close()
    return found


@pytest.mark.parametrize("rows", [(HANDLER,), (HANDLER, LOOP), (HANDLER, MODEL, LOOP)])
def test_what_was_written_last_is_read(file: str, rows: tuple[str, ...]) -> None:
    page, reader = LoadPage(file), LoadPageReader(file)
    for number in (1, 2):
        page.write(a_load(number, *rows))
        assert reader.read() == a_load(number, *rows)
    reader.close()


def test_a_page_that_nobody_has_written_says_nothing(file: str) -> None:
    LoadPage(file)
    assert read(file) is None


def test_a_page_that_is_not_there_cannot_be_read(file: str) -> None:
    with pytest.raises(FileNotFoundError):
        LoadPageReader(file)


def test_where_there_is_no_room_for_a_page_writing_it_is_no_error(tmp_path: Path) -> None:
    for path in ("", str(tmp_path / "absent" / "x")):
        LoadPage(path).write(a_load())


@pytest.mark.parametrize("byte", [0, 4, 8, 40, 100, -1], ids=lambda byte: f"byte {byte}")
def test_a_page_that_is_another_than_was_written_says_nothing(file: str, byte: int) -> None:
    """Torn, damaged, or of another layout."""
    LoadPage(file).write(a_load())
    content = bytearray(Path(file).read_bytes())
    content[byte] ^= 0xFF
    Path(file).write_bytes(content)
    assert read(file) is None


def test_a_page_that_was_cut_short_says_nothing(file: str) -> None:
    LoadPage(file).write(a_load())
    os.truncate(file, 50)
    assert read(file) is None


def test_a_reader_never_sees_parts_of_two_writings(file: str) -> None:
    page, reader = LoadPage(file), LoadPageReader(file)
    page.write(a_load(0))
    seen: list[Load | None] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(reader.read())

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(5000):
        page.write(a_load(number))
    done.set()
    thread.join()
    seen.append(reader.read())
    reader.close()
    numbers = [load.ended for load in seen if load is not None]
    assert [load for load in seen if load is not None] == [a_load(number) for number in numbers]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 4999


def test_it_outlives_a_process_that_is_killed(file: str) -> None:
    child = os.fork()
    if child == 0:
        LoadPage(file).write(a_load(7))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert read(file) == a_load(7)
