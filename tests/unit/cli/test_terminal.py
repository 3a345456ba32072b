"""Width, colours, questions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cortex.cli.terminal import Paint, Terminal, harmless


def test_painting_puts_colours_around_text_only_when_there_are_any() -> None:
    assert Paint(True)("x", "bold", "red") == "\x1b[1;31mx\x1b[0m"
    assert Paint(True)("", "red") == ""
    assert Paint(False)("x", "red") == "x"


@pytest.mark.parametrize(
    ("environ", "tty", "coloured"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colours_follow_terminal_and_environment(
    cortex: Any, environ: dict[str, str], tty: bool, coloured: bool
) -> None:
    cortex.environ = environ
    assert cortex.terminal(tty=tty).paint.enabled is coloured


def test_the_width_is_80_where_there_is_no_terminal(cortex: Any) -> None:
    cortex.width = None
    assert cortex.terminal().width == 80
    cortex.environ = {"COLUMNS": "120"}
    assert cortex.terminal().width == 120
    cortex.environ = {"COLUMNS": "3"}
    assert cortex.terminal().width == 40
    cortex.environ = {"COLUMNS": "wide"}
    assert cortex.terminal().width == 80


@pytest.mark.parametrize(
    ("typed", "yes"), [(b"y\n", True), (b"YES\n", True), (b"n\n", False), (b"\n", False), (b"", False)]
)
def test_only_yes_is_yes(cortex: Any, typed: bytes, yes: bool) -> None:
    terminal = cortex.terminal(stdin=typed)
    assert terminal.ask("Sure?") is yes
    assert terminal.stderr.content == "Sure? [y/N] "


def test_nobody_is_asked_without_a_terminal(cortex: Any) -> None:
    assert not cortex.terminal().can_ask
    assert not cortex.terminal(tty=True, answers=False).can_ask
    assert cortex.terminal(tty=True).can_ask


def test_a_stream_that_cannot_show_ticks_gets_none(cortex: Any) -> None:
    assert cortex.terminal().unicode
    assert not cortex.terminal(encoding="ascii").unicode


def test_what_others_wrote_is_made_harmless() -> None:
    assert harmless("a\x1b[31mred\x1b[0m\tb\r\nc\x00\x07\x9b") == "ared    b\nc"
    assert harmless("\x1b]8;;http://x\x1b\\link") == "link"
    assert harmless("grüße ✓") == "grüße ✓"


def test_a_removed_working_folder_is_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    monkeypatch.setenv("PWD", str(folder))
    assert Terminal.of_process().cwd == folder
    os.chdir(tmp_path)
