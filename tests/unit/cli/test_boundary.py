"""Whatever goes wrong becomes text a person can act on, and the right exit code."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cortex.cli import boundary, main
from cortex.cli.command import StoppedByUser
from cortex.errors import CortexError, Problem, Problems


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class NoRoom(CortexError):
    reference = "no-room"
    hint = "make room"


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes every command line end with an exception."""

    def prepare(error: BaseException) -> None:
        def dispatch(*_arguments: object) -> int:
            raise error

        monkeypatch.setattr(main, "dispatch", dispatch)

    return prepare


def test_one_of_our_errors_is_shown_as_a_problem(cortex: Any, raising: Any) -> None:
    raising(NoRoom("there is none"))
    ran = cortex("get")
    assert (ran.code, ran.out) == (1, "")
    assert ran.talk == "error: no-room\n  there is none\n  hint: make room\n"


def test_several_problems_are_shown_one_below_the_other(cortex: Any, raising: Any) -> None:
    raising(
        Problems(
            [
                Problem(reference="a", message="one", where="cortex.yaml:1:2", subject='api "x"'),
                Problem(reference="b", message="two"),
            ]
        )
    )
    assert cortex("get").talk == 'error: a\n  cortex.yaml:1:2   api "x"\n  one\n\nerror: b\n  two\n'


def test_colours_are_for_terminals(cortex: Any, raising: Any) -> None:
    raising(Problems([Problem(reference="a", message="one", where="cortex.yaml:1:2", hint="do")]))
    talk = cortex("get", tty=True).talk
    assert "\x1b[1;31merror:\x1b[0m \x1b[1ma\x1b[0m" in talk
    assert "\x1b[36mcortex.yaml:1:2\x1b[0m" in talk
    cortex.environ = {"NO_COLOR": "1"}
    assert "\x1b" not in cortex("get", tty=True).talk


def test_long_sentences_break_between_words_on_a_terminal_only(cortex: Any, raising: Any) -> None:
    raising(Problems([Problem(reference="a", message="word " * 30, hint="try " * 30 + "\nkind: api")]))
    lines = cortex("get", tty=True).talk.splitlines()
    assert max(len(line) for line in lines) <= 80 + len("\x1b[1;31m\x1b[0m\x1b[32m")
    assert lines[-1] == "        kind: api"
    assert "  " + "word " * 29 + "word\n" in cortex("get").talk


def test_a_traceback_is_never_broken(cortex: Any, raising: Any) -> None:
    raising(Problems([Problem(reference="a", message="m", traceback="x" * 200)]))
    assert "    " + "x" * 200 in cortex("get", tty=True).talk


def test_what_others_wrote_cannot_move_the_cursor(cortex: Any, raising: Any) -> None:
    raising(NoRoom("a\x1b[2Jb\x1b]0;title\x07c\rd"))
    assert cortex("get").talk == "error: no-room\n  abc\n  d\n  hint: make room\n"


def test_a_fault_of_ours_writes_a_report_and_says_where(cortex: Any, raising: Any) -> None:
    cortex.home.mkdir()
    raising(ValueError("oops"))
    ran = cortex("get", "--watch")
    (report,) = (cortex.home / "reports").iterdir()
    assert ran.code == 3
    assert ran.talk.startswith("error: our-fault\n  Cortex failed, this is its fault: ValueError: oops\n")
    assert f"is in {report};" in ran.talk
    text = report.read_text()
    assert text.startswith("cortex 0.1.0\npython 3.")
    assert "command ['cortex', 'get', '--watch']" in text
    assert "ValueError: oops" in text
    assert report.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("home", ["missing", "read-only", "a file"])
def test_without_a_usable_home_the_report_goes_to_the_temporary_folder(
    cortex: Any, raising: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    if home == "read-only":
        cortex.home.mkdir()
        real_mkdir = Path.mkdir

        def refuse(self: Path, *arguments: Any, **flags: Any) -> None:  # a read-only folder does not stop root
            if self.is_relative_to(cortex.home):
                raise PermissionError(13, "read-only")
            real_mkdir(self, *arguments, **flags)

        monkeypatch.setattr(Path, "mkdir", refuse)
    elif home == "a file":
        cortex.home.write_text("")
    raising(ValueError("oops"))
    ran = cortex("get")
    assert ran.code == 3
    assert [file.name.startswith("fault-") for file in (tmp_path / "tmp").iterdir()] == [True]
    assert cortex.home.exists() == (home != "missing")


def test_without_any_place_the_report_is_printed(cortex: Any, raising: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cortex.home.write_text("a file")
    monkeypatch.setattr(tempfile, "tempdir", str(cortex.home))
    raising(ValueError("oops"))
    ran = cortex("get")
    assert ran.code == 3
    assert "Traceback (most recent call last)" in ran.talk


def test_an_exception_that_cannot_be_printed_is_still_told(cortex: Any, raising: Any) -> None:
    raising(Unprintable())
    ran = cortex("get")
    assert ran.code == 3
    assert "Unprintable" in ran.talk


def test_wrong_settings_do_not_keep_a_fault_from_being_told(cortex: Any, raising: Any) -> None:
    cortex.environ = {"CORTEX_PORT": "x"}
    raising(ValueError("oops"))
    assert cortex("get").code == 3


def test_telling_that_fails_ends_with_3_and_the_traceback(
    cortex: Any, raising: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boundary, "show_problems", lambda *_arguments: 1 / 0)
    monkeypatch.setattr(sys, "__stderr__", io.StringIO())
    raising(ValueError("oops"))
    assert cortex("get").code == 3
    assert isinstance(sys.__stderr__, io.StringIO)
    assert "ValueError: oops" in sys.__stderr__.getvalue()
    assert "ZeroDivisionError" in sys.__stderr__.getvalue()


def test_ctrl_c_exits_with_130(cortex: Any, raising: Any) -> None:
    raising(KeyboardInterrupt())
    assert (cortex("get").code, cortex("get").talk) == (130, "\ninterrupted\n")
    raising(StoppedByUser("nothing was changed"))
    assert (cortex("get").code, cortex("get").talk) == (130, "\ninterrupted: nothing was changed\n")
    raising(StoppedByUser(""))
    assert cortex("get").talk == "\n"


def test_a_reader_that_left_is_not_told_anything(cortex: Any, raising: Any) -> None:
    raising(BrokenPipeError())
    ran = cortex("get")
    assert (ran.code, ran.out, ran.talk) == (1, "", "")


def test_a_pipe_that_closes_early_leaves_no_noise(running: Any, cortex: Any, fakes: Any) -> None:
    running.apis = [fakes.api(f"api-{number}") for number in range(2000)]
    read, write = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-m", "cortex.cli.main", "get"],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=cortex.cwd,
        env={**os.environ, "CORTEX_HOME": str(cortex.home)},
    ) as process:
        os.close(write)
        os.close(read)
        assert process.stderr is not None
        assert (process.stderr.read(), process.wait()) == (b"", 1)


@pytest.mark.parametrize(
    ("number", "words", "hint"),
    [
        (errno.EACCES, "cannot be used (permission denied)", "set CORTEX_HOME to a folder that you own and can write"),
        (errno.EROFS, "cannot be used (read-only file system)", "set CORTEX_HOME to a folder that you own"),
        (errno.ENOSPC, "cannot be written: the disk is full", "free space on the disk of "),
    ],
)
def test_a_home_that_cannot_be_written_is_its_owners_matter(
    cortex: Any, monkeypatch: pytest.MonkeyPatch, number: int, words: str, hint: str
) -> None:
    from cortex.cli import version

    file = str(cortex.home / "lock")

    def fail(*_rest: object, **_named: object) -> int:
        raise OSError(number, os.strerror(number), file)

    monkeypatch.setattr(version.COMMAND, "function", fail)
    ran = cortex("version")
    assert (ran.code, ran.out) == (1, "")
    assert ran.talk.startswith(f"error: unusable-home\n  {cortex.home}/lock: {words}\n  hint: {hint}")
    file = "/elsewhere/lock"
    assert cortex("version").code == 3
