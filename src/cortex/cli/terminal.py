"""Where a command's input, output, width, colour and time come from. One object, replaced as a whole in tests."""

from __future__ import annotations

import io
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from cortex.clock import Clock, SystemClock
from cortex.errors import CortexError

DEFAULT_WIDTH = 80
DEFAULT_HEIGHT = 24
NARROWEST = 40

_COLOURS = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Paint:
    """Puts colours around text, or does nothing."""

    enabled: bool

    def __call__(self, text: str, *styles: str) -> str:
        """Text in styles such as `bold`, `red`; unchanged when colours are off or there is no text."""
        if not self.enabled or not styles or not text:
            return text
        return f"\x1b[{';'.join(_COLOURS[style] for style in styles)}m{text}\x1b[0m"


@dataclass
class Terminal:
    """
    The outside of a command.

    Args:
        width: characters in a line; None finds out.
        is_tty: by stream name, overrides what the streams say of themselves.
    """

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    environ: Mapping[str, str]
    cwd: Path
    clock: Clock = field(default_factory=SystemClock)
    sleep: Callable[[float], None] = time.sleep
    fixed_width: int | None = None
    fixed_height: int | None = None
    has_results: bool = False
    """Whether anything was printed to stdout."""

    @classmethod
    def of_process(cls) -> Terminal:
        """The terminal of this process."""
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="replace")  # a terminal that cannot show a character shows "?"
        return cls(stdin=sys.stdin, stdout=sys.stdout, stderr=sys.stderr, environ=os.environ, cwd=_working_folder())

    @property
    def width(self) -> int:
        """Characters in a line, at least `NARROWEST`; 80 where there is no terminal."""
        return max(self.fixed_width or self._size("COLUMNS", 0, DEFAULT_WIDTH), NARROWEST)

    @property
    def height(self) -> int:
        return self.fixed_height or self._size("LINES", 1, DEFAULT_HEIGHT)

    @property
    def paint(self) -> Paint:
        """Colours for stdout."""
        return Paint(self._is_coloured(self.stdout))

    @property
    def paint_talk(self) -> Paint:
        """Colours for stderr."""
        return Paint(self._is_coloured(self.stderr))

    @property
    def shows_results(self) -> bool:
        """Whether stdout is a terminal."""
        return _is_tty(self.stdout)

    @property
    def shows_talk(self) -> bool:
        """Whether stderr is a terminal that can redraw lines."""
        return _is_tty(self.stderr) and self.environ.get("TERM") != "dumb"

    @property
    def can_ask(self) -> bool:
        """Whether there is somebody to answer."""
        return _is_tty(self.stdin) and _is_tty(self.stderr)

    @property
    def unicode(self) -> bool:
        """Whether both streams can show block characters and ticks."""
        return all(_can_show(stream) for stream in (self.stdout, self.stderr))

    def out(self, text: str = "") -> None:
        """
        Print a result.

        Raises:
            OutputFailed: where stdout leads cannot be written.
            BrokenPipeError: who read it has left.
        """
        self.has_results = True
        try:
            self.stdout.write(text + "\n")
            self.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(error.strerror or str(error)) from error

    def say(self, text: str = "") -> None:
        """Print talk: progress, notes, errors. On a terminal sentences are broken between words."""
        if self.shows_talk:
            from cortex.cli.text import sentence

            text = "\n".join(part for line in text.split("\n") for part in sentence(line, self.width))
        try:
            self.stderr.write(text + "\n")
            self.stderr.flush()
        except BrokenPipeError:
            raise
        except OSError:
            pass  # a full disk that talk is redirected to is no reason to stop halfway

    def ask(self, question: str) -> bool:
        """Ask yes or no; everything but y and yes is no."""
        self.stderr.write(f"{question} [y/N] ")
        self.stderr.flush()
        return self.stdin.readline().strip().lower() in ("y", "yes")

    def piped(self) -> bytes | None:
        """All that is piped in or redirected from a file; None where stdin is neither, or empty."""
        try:
            if self.stdin.isatty() or stat.S_ISCHR(os.fstat(self.stdin.fileno()).st_mode):
                return None  # somebody at a keyboard, or /dev/null
        except io.UnsupportedOperation:
            pass  # in memory
        except (OSError, ValueError):
            return None  # closed
        return self.read_bytes() or None

    def read_bytes(self) -> bytes:
        """All of stdin."""
        binary = getattr(self.stdin, "buffer", None)
        return bytes(binary.read()) if binary is not None else self.stdin.read().encode()

    def ask_hidden(self, question: str) -> str:
        """Ask for a line that does not show while it is typed."""
        import termios

        try:
            descriptor = self.stdin.fileno()
            shown = termios.tcgetattr(descriptor)
        except (OSError, ValueError, termios.error):  # no terminal, so nothing that would show it
            self.stderr.write(question)
            self.stderr.flush()
            return self.stdin.readline().rstrip("\r\n")
        hidden = [*shown]
        hidden[3] &= ~termios.ECHO
        try:
            # Before the question: whoever answers at once would be seen, and not be heard.
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, hidden)
            self.stderr.write(question)
            self.stderr.flush()
            return self.stdin.readline().rstrip("\r\n")
        finally:
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, shown)
            self.stderr.write("\n")

    def _is_coloured(self, stream: TextIO) -> bool:
        if self.environ.get("NO_COLOR"):
            return False
        if self.environ.get("FORCE_COLOR"):
            return True
        return _is_tty(stream) and self.environ.get("TERM") != "dumb"

    def _size(self, variable: str, index: int, default: int) -> int:
        given = self.environ.get(variable, "")
        if given.isascii() and given.isdigit() and int(given) > 0:
            return int(given)
        for stream in (self.stdout, self.stderr, self.stdin):
            try:
                size = os.get_terminal_size(stream.fileno())[index]
            except (OSError, ValueError):
                continue
            if size > 0:
                return size
        return default


class OutputFailed(CortexError):
    """What a command prints cannot be written where stdout leads."""

    reference = "output-failed"
    hint = "look at where the output is redirected to; what the command did stays done"

    def __init__(self, reason: str) -> None:
        super().__init__(f"stdout cannot be written: {reason[:1].lower()}{reason[1:]}")


def harmless(text: str) -> str:
    """Text of others without what would move the cursor or recolour the terminal."""
    return _CONTROL.sub("", _ESCAPE.sub("", text.replace("\r\n", "\n").replace("\t", "    ")))


def _is_tty(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def _can_show(stream: TextIO) -> bool:
    try:
        "⠋✓█".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _working_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:  # it was removed under us: what needs it says so
        return Path(os.environ.get("PWD") or "/removed")
