"""
What reaches the log file, from a process of its own: it replaces descriptors and streams.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from cortex.replica.observation import logs
from cortex.replica.observation.logs import LogFile
from cortex.wire.logline import LoggedLine, parse_line

pytestmark = pytest.mark.slow

PREAMBLE = """
import logging, os, sys
from cortex.replica.observation import logs
log = logs.LogFile(sys.argv[1], 7)
streams = logs.install(log)
from cortex.lib.log import get_logger
"""


def written(path: Path) -> list[LoggedLine]:
    return [parse_line(line) for line in path.read_bytes().splitlines()]


def run(tmp_path: Path, code: str) -> list[LoggedLine]:
    path = tmp_path / "r.log"
    script = PREAMBLE + textwrap.dedent(code) + "\nstreams.finish()\n"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, timeout=110, check=False)
    assert done.returncode == 0, path.read_text()
    assert done.stdout == done.stderr == b"", "everything goes into the file"
    return written(path)


def parts(lines: list[LoggedLine]) -> list[tuple[str, str, str]]:
    return [(line.stream, line.level, line.text) for line in lines]


def test_prints_become_records_with_stream_attempt_and_request(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        """
        print("one")
        logs.REQUEST_ID.set("r-1")
        print("two", "words")
        print("three", file=sys.stderr)
        """,
    )
    assert parts(lines) == [("out", "", "one"), ("out", "", "two words"), ("err", "", "three")]
    assert [line.request for line in lines] == ["", "r-1", "r-1"]
    assert {line.attempt for line in lines} == {7}
    assert all(line.wall_s > 1e9 for line in lines)


def test_unfinished_lines_are_kept_apart_and_completed(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        """
        import threading
        logs.REQUEST_ID.set("a")
        print("left", end="")
        other = threading.Thread(target=lambda: (logs.REQUEST_ID.set("b"), print("other")))
        other.start(); other.join()
        print(" and right")
        print("never finished", end="")
        streams.finish_lines(logs.REQUEST_ID.get())
        sys.stdout.write("10%\\r20%\\r\\n30%\\n")
        print("until the end", end="")
        """,
    )
    assert [(line.request, line.text) for line in lines] == [
        ("b", "other"),
        ("a", "left and right"),
        ("a", "never finished"),
        ("a", "10%"),
        ("a", "20%"),
        ("a", "30%"),
        ("a", "until the end"),
    ]


def test_a_line_that_is_flushed_does_not_wait(tmp_path: Path) -> None:
    lines = run(tmp_path, 'print("a", end="", flush=True); print("b")')
    assert [line.text for line in lines] == ["a", "b"]


def test_text_that_is_no_text_is_escaped(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        r"""
        print("half \ud83d smile")
        sys.stdout.buffer.write(b"\xff\x00binary\n")
        print("umlaut \u00e4 \U0001f600")
        """,
    )
    assert [line.text for line in lines] == ["half \\ud83d smile", "\\xff\x00binary", "umlaut ä 😀"]


def test_closing_or_losing_stdout_breaks_nothing(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        """
        sys.stdout.close()
        print("still here")
        os.close(1)
        mine = os.open("/dev/null", os.O_WRONLY)
        print("and here", mine)
        assert not sys.stdout.closed
        sys.stdout.reconfigure(encoding="ascii")
        print("ä")
        """,
    )
    assert [line.text for line in lines] == ["still here", "and here 1", "ä"]


def test_output_that_bypasses_python_becomes_records_too(tmp_path: Path) -> None:
    before_s = time.time()
    lines = run(
        tmp_path,
        """
        import subprocess
        os.write(1, b"from C\\n")
        print("from Python")
        subprocess.run(["sh", "-c", "echo from a shell; echo its error >&2"], stdout=sys.stdout)
        print("after that")
        os.write(2, b"half a line, \\xff")
        """,
    )
    assert parts(lines) == [
        ("raw", "", "from C"),
        ("out", "", "from Python"),
        ("raw", "", "from a shell"),
        ("raw", "", "its error"),
        ("out", "", "after that"),
        ("raw", "", "half a line, \\xff"),
    ]
    assert all(line.wall_s >= before_s and line.attempt == 7 for line in lines)


def test_a_handler_that_closes_every_descriptor_fails_nothing(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        """
        print("before")
        os.closerange(3, 100)
        print("lost")
        log.every_second()
        streams.finish_lines(logs.REQUEST_ID.get())
        """,
    )
    assert [line.text for line in lines] == ["before"]


def test_what_c_prints_is_there_without_a_flush(tmp_path: Path) -> None:
    lines = run(tmp_path, 'import ctypes; ctypes.CDLL(None).puts(b"from C"); print("then"); os._exit(0)')
    assert [line.text for line in lines] == ["from C", "then"]


def test_output_past_python_belongs_to_the_request_whose_code_runs_alone(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        """
        log.raw_belongs_to_request = True
        os.write(1, b"before any\\n")
        log.every_second()
        logs.REQUEST_ID.set("r-1")
        os.write(1, b"of one\\nunfinished")
        streams.finish_lines(logs.REQUEST_ID.get())
        logs.REQUEST_ID.set("")
        os.write(1, b"between\\n")
        log.every_second()
        log.raw_belongs_to_request = False
        logs.REQUEST_ID.set("r-2")
        os.write(1, b"of nobody knows whom\\n")
        streams.finish_lines(logs.REQUEST_ID.get())
        """,
    )
    assert [(line.request, line.text) for line in lines] == [
        ("", "before any"),
        ("r-1", "of one"),
        ("r-1", "unfinished"),
        ("", "between"),
        ("", "of nobody knows whom"),
    ]


def test_output_past_python_that_the_control_thread_takes_in_belongs_to_the_request_too(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        """
        import threading
        log.raw_belongs_to_request = True
        logs.work_for("r-1")
        os.write(1, b"taken meanwhile\\n")
        control = threading.Thread(target=log.every_second)
        control.start()
        control.join()
        streams.finish_lines(logs.REQUEST_ID.get())
        logs.work_ended()
        os.write(1, b"afterwards\\n")
        log.every_second()
        """,
    )
    assert [(line.request, line.text) for line in lines] == [("r-1", "taken meanwhile"), ("", "afterwards")]


def test_secrets_are_masked_in_output_past_python(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        'from cortex.replica.observation import secrecy; secrecy.keep(["hunter22"]); os.system("echo pw=hunter22")',
    )
    assert [line.text for line in lines] == ["pw=****"]


def test_what_a_forked_child_prints_outlives_a_rotation(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        """
        begin, go = os.pipe()
        logs.REQUEST_ID.set("r-1")
        child = os.fork()
        if not child:
            os.read(begin, 1)
            print("of a child")
            os._exit(0)
        print("x" * (logs.MAX_FILE_BYTES + 1))
        assert os.path.exists(sys.argv[1] + ".1")
        os.write(go, b"!")
        os.waitpid(child, 0)
        """,
    )
    assert ("out", "r-1", "of a child") in [(line.stream, line.request, line.text) for line in lines]


def test_our_logger_and_others_are_recorded_with_their_level(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        """
        logger = get_logger()
        logger.debug("fine %s", "print")
        logging.getLogger("library").warning("careful")
        logging.getLogger("library").info("by the way")
        logging.getLogger("library").debug("too much")
        """,
    )
    assert parts(lines) == [
        ("log", "DEBUG", "fine print"),
        ("log", "WARNING", "careful"),
        ("log", "INFO", "by the way"),
    ]


def test_a_traceback_stays_in_one_record(tmp_path: Path) -> None:
    (line,) = run(
        tmp_path,
        """
        try:
            1 / 0
        except ZeroDivisionError:
            get_logger().exception("it failed")
        """,
    )
    assert line.text.startswith("it failed\nTraceback")
    assert line.text.endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    "configure",
    [
        "logging.basicConfig(level=logging.DEBUG)",
        "logging.basicConfig(level=logging.DEBUG, force=True, stream=sys.stdout)",
        "logging.warning('this configures logging')",
        """import logging.config; logging.config.dictConfig({"version": 1})""",
        """import logging.config; logging.config.dictConfig({
           "version": 1, "root": {"handlers": ["h"], "level": "DEBUG"},
           "handlers": {"h": {"class": "logging.StreamHandler"}}})""",
    ],
)
def test_users_configuring_logging_silences_nothing(tmp_path: Path, configure: str) -> None:
    lines = run(
        tmp_path,
        f"""
        before = get_logger()
        {configure}
        before.info("ours")
        try:
            raise KeyError("k")
        except KeyError:
            logging.getLogger("new").exception("theirs")
        """,
    )
    ours = next(line for line in lines if "ours" in line.text)
    theirs = next(line for line in lines if "theirs" in line.text)
    assert (ours.stream, ours.level) == ("log", "INFO")
    assert (theirs.stream, theirs.level) == ("log", "ERROR")
    assert theirs.text.endswith("KeyError: 'k'"), "level and traceback in one record, whoever configured it"


def test_an_exception_in_a_thread_is_one_record(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        """
        import threading
        def fail(): raise ValueError("in a thread")
        thread = threading.Thread(target=fail, name="helper"); thread.start(); thread.join()
        """,
    )
    (line,) = lines
    assert line.level == "ERROR"
    assert "exception in thread helper" in line.text
    assert line.text.endswith("ValueError: in a thread")


def test_an_exception_in_a_thread_begins_with_the_users_frames(tmp_path: Path) -> None:
    (line,) = run(
        tmp_path,
        """
        import threading
        def fail(): raise ValueError("in a thread")
        thread = threading.Thread(target=fail, name="helper"); thread.start(); thread.join()
        """,
    )
    assert "threading.py" not in line.text
    assert line.text.splitlines()[:3] == [
        "exception in thread helper",
        "Traceback (most recent call last):",
        '  File "<string>", line 9, in fail',
    ]


def test_threads_write_for_the_request_that_started_them(tmp_path: Path) -> None:
    lines = run(
        tmp_path,
        """
        import threading
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor(1)
        timer = threading.Timer(0, print, ("of a timer",))
        for request in ("r-1", "r-2"):
            logs.REQUEST_ID.set(request)
            thread = threading.Thread(target=print, args=("of a thread",)); thread.start(); thread.join()
            pool.submit(print, "of a pool").result()
        timer.start(); timer.join()
        logs.REQUEST_ID.set("")
        thread = threading.Thread(target=print, args=("of none",)); thread.start(); thread.join()
        pool.submit(print, "of a pool").result()
        """,
    )
    assert [(line.request, line.text) for line in lines] == [
        ("r-1", "of a thread"),
        ("r-1", "of a pool"),
        ("r-2", "of a thread"),
        ("r-2", "of a pool"),
        ("r-2", "of a timer"),
        ("", "of none"),
        ("", "of a pool"),
    ]


def test_a_logging_call_with_wrong_arguments_breaks_nothing(tmp_path: Path) -> None:
    lines = run(tmp_path, 'get_logger().info("%d", "no number"); print("on")')
    assert lines[-1].text == "on"


def test_a_very_long_text_is_cut_into_records(tmp_path: Path) -> None:
    lines = run(tmp_path, 'print("x" * 700_000)')
    assert "".join(line.text for line in lines) == "x" * 700_000
    assert len(lines) == 3


def on_disk(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir())


def test_a_full_file_makes_room_for_a_new_one_and_three_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.log"
    run(
        tmp_path,
        """
        for number in range(5):
            print(f"generation {number}")
            for _ in range(42):
                print("x" * 2**18)
        print("last")
        """,
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["r.log", "r.log.1", "r.log.2", "r.log.raw"]
    assert written(path)[-1].text == "last"
    assert written(tmp_path / "r.log.1")[-1].text == "x" * 2**18
    assert on_disk(tmp_path) < 3 * 11 * 2**20


@pytest.mark.parametrize(
    "write",
    [
        'for _ in range(100_000): print("x" * 1000)',
        'for _ in range(100): os.write(1, b"x" * 2**20)',
        'for _ in range(100): os.write(1, (b"x" * 1023 + b"\\n") * 1024); log.every_second()',
        "os.system(\"head -c 100000000 /dev/zero | tr '\\\\0' x | fold -w 1000\")",
    ],
    ids=["print", "without line ends", "in C code", "in a subprocess"],
)
def test_a_hundred_megabytes_leave_no_more_than_the_log_may_have(tmp_path: Path, write: str) -> None:
    code = f"{write}\nprint('the end')"
    run(tmp_path, code)
    kept = [line.text for path in tmp_path.glob("r.log*") if path.suffix != ".raw" for line in written(path)]
    assert "the end" in kept, "in whichever file: output past Python is still taken in after it"
    assert on_disk(tmp_path) < 3 * 12 * 2**20


def test_what_nobody_could_read_past_python_frees_the_disk(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
        log._keep_up = lambda: None  # what is looked at once a second has to be enough
        for _ in range(20):
            os.write(2, b"a flood of lines\\n" * 300_000)
            log.every_second()
            left = os.stat(sys.argv[1] + ".raw").st_blocks * 512
            assert left < 8 * 2**20, left
        """,
    )
    assert any("too much at once and are left out" in line.text for line in written(tmp_path / "r.log"))


def test_a_small_file_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path, 'print("a"); log.every_second()')
    assert sorted(file.name for file in tmp_path.iterdir()) == ["r.log", "r.log.raw"]


def test_what_the_last_attempt_left_unread_comes_first(tmp_path: Path) -> None:
    run(tmp_path, 'os.write(2, b"Fatal error\\n"); os._exit(0)')
    assert [line.text for line in run(tmp_path, 'print("second")')] == ["Fatal error", "second"]


def test_attempts_append_to_one_file(tmp_path: Path) -> None:
    run(tmp_path, 'print("first")')
    assert [line.text for line in run(tmp_path, 'print("second")')] == ["first", "second"]


def test_a_log_without_a_path_goes_to_stderr() -> None:
    code = 'from cortex.replica.observation import logs; logs.LogFile("", 1).record("log", "INFO", "hello", "")'
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=110, check=True)
    assert parse_line(done.stderr).text == "hello"


def test_the_file_is_private(tmp_path: Path) -> None:
    run(tmp_path, 'print("a")')
    assert (tmp_path / "r.log").stat().st_mode & 0o077 == 0


def test_limits_are_as_documented() -> None:
    assert (logs.MAX_FILE_BYTES, logs.KEPT_FILES) == (10 * 2**20, 3)
    assert LogFile.record.__doc__
