"""
The moving part of a deploy: what is being done, and how far each api is.

On a terminal lines are redrawn in place, finished ones stay above; elsewhere a line is printed now and then. Only
stderr is written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from cortex.cli import text
from cortex.cli.terminal import Terminal, harmless
from cortex.client.follow import Followed, Outcome
from cortex.wire.operator import Waits

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

WAIT_SHOWN_S = 5.0
"""How long a replica on its way is at one thing before it is told until when: most are at nothing for so long."""
SHOWN_AFTER_S = 1.0
"""What is over sooner is not worth a line."""
PLAIN_PAUSE_S = 2.0
"""Between two lines about one api on its way where lines stay: a log that tells each tenth of a second helps nobody."""
FRAMES_A_SECOND = 10
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
PLAIN_SPINNER = "|/-\\"

MARKS = {Outcome.LIVE: ("✓", "green"), Outcome.FAILED: ("✗", "red"), Outcome.STALLED: ("!", "yellow")}
PLAIN_MARKS = {Outcome.LIVE: "+", Outcome.FAILED: "x", Outcome.STALLED: "!"}


class Display(Protocol):
    """Where a deploy shows how far it is."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def step(self, message: str, done: int = 0, total: int = 0, *, in_bytes: bool = False) -> None:
        """What is being done now, and how much of it."""
        ...

    def follow(self, rows: Sequence[Followed]) -> None:
        """How far each api is."""
        ...


def display(terminal: Terminal) -> Display:
    return MovingDisplay(terminal) if terminal.shows_talk else PlainDisplay(terminal)


class PlainDisplay:
    """For pipes, files and CI: a line when something changed, at most every `PLAIN_PAUSE_S`, and one with the end."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._message = ""
        self._told: dict[str, tuple[str, float]] = {}
        """Of each api the last line, and when it was told; at first nothing, when it was first seen."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def step(self, message: str, done: int = 0, total: int = 0, *, in_bytes: bool = False) -> None:
        if message and message != self._message:
            amount = f" ({text.size(total)})" if in_bytes and total else ""
            self._terminal.say(f"{harmless(message)}{amount}")
        self._message = message

    def follow(self, rows: Sequence[Followed]) -> None:
        now_s = self._terminal.clock.monotonic_s()
        for row in rows:
            before, told_s = self._told.setdefault(row.name, ("", now_s))
            line = _plain_line(row, now_s)
            left = _left(row, self._terminal.clock.wall_s()) if line else ""
            news = f"{line}; …" if left else line  # which is told once, not each second anew
            if line and news != before and (row.is_done or now_s - told_s >= PLAIN_PAUSE_S):
                self._told[row.name] = (news, now_s)
                self._terminal.say(f"{row.name}: {line}{left}")


def _plain_line(row: Followed, now_s: float) -> str:
    """What is told of an api: nothing new, nothing said."""
    if row.is_done:
        if not row.had_to_wait:
            return ""
        words = _live_words(row) if row.outcome is Outcome.LIVE else _status_words(row)
        if row.outcome is Outcome.STALLED:
            return f"{words}, no progress any more after {text.took(row.elapsed_s(now_s))}"
        return f"{words} after {text.took(row.elapsed_s(now_s))}"
    if row.status is None:
        return ""
    return f"{row.status.status}{': ' if _progress(row) else ''}{_progress(row)}"


def _live_words(row: Followed) -> str:
    """`live`, or `asleep` once it has shown that it works."""
    return "live" if row.status is None else str(row.status.status)


class MovingDisplay:
    """For a terminal."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._step: tuple[str, int, int, bool] | None = None
        self._begin_s = terminal.clock.monotonic_s()
        self._has_rows = False
        self._rows: tuple[Followed, ...] = ()
        self._above: set[str] = set()
        self._live = self._build()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def step(self, message: str, done: int = 0, total: int = 0, *, in_bytes: bool = False) -> None:
        self._step = (message, done, total, in_bytes) if message else None

    def follow(self, rows: Sequence[Followed]) -> None:
        self._step = None
        finished = [row for row in rows if row.is_done and row.name not in self._above]
        if not self._has_rows and any(row.had_to_wait for row in rows):
            self._has_rows = True
            self._live.console.print()
        self._rows = tuple(row for row in rows if not row.is_done)
        width = max((len(row.name) for row in rows), default=0)
        for row in finished:
            self._above.add(row.name)
            if row.had_to_wait:
                self._live.console.print(self._finished(row, width), soft_wrap=False, no_wrap=True)
        self._live.refresh()

    def _build(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        terminal = self._terminal
        console = Console(
            file=terminal.stderr,
            force_terminal=True,
            color_system="standard" if terminal.paint_talk.enabled else None,
            no_color=not terminal.paint_talk.enabled,
            width=terminal.width,
            height=terminal.height,
            highlight=False,
            markup=False,
            legacy_windows=False,
        )
        return Live(
            console=console,
            get_renderable=self.picture,
            refresh_per_second=FRAMES_A_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def picture(self) -> Text:
        """What the moving part shows now."""
        from rich.text import Text

        now_s = self._terminal.clock.monotonic_s()
        lines = []
        if self._step is not None and now_s - self._begin_s >= SHOWN_AFTER_S:
            lines.append(self._step_line(*self._step, now_s=now_s))
        most = max(self._terminal.height - 3, 1)
        width = max((len(row.name) for row in self._rows), default=0)
        lines += [self._moving(row, width, now_s) for row in self._rows[:most]]
        if len(self._rows) > most:
            lines.append(Text(f"  … and {len(self._rows) - most} more", style="dim"))
        return Text("\n", no_wrap=True, overflow="ellipsis").join(lines)

    def _step_line(self, message: str, done: int, total: int, in_bytes: bool, *, now_s: float) -> Text:
        from rich.text import Text

        line = Text(f"{self._spinner(now_s)} {harmless(message)}", no_wrap=True)
        if total:
            share = min(done / total, 1.0)
            amount = f"{text.size(done)} of {text.size(total)}" if in_bytes else f"{done} of {total}"
            line.append("  ")
            bar = text.bar(share, unicode=self._terminal.unicode)
            line.append(text.padded(bar, text.BAR_WIDTH), style="cyan")
            line.append(f" {100 * share:3.0f} %  {amount}")
        return line

    def _moving(self, row: Followed, width: int, now_s: float) -> Text:
        from rich.text import Text

        status = str(row.status.status) if row.status is not None else "waiting"
        line = Text(no_wrap=True)
        line.append(f"{self._spinner(now_s)} ", style="cyan")
        line.append(f"{row.name:<{width}}  ")
        line.append(f"{status:<10}  ", style="yellow")
        line.append(f"{text.age(row.elapsed_s(now_s)):>4}")
        room = self._terminal.width - 1 - len(line.plain) - 2
        progress = text.cut(_progress(row) + _left(row, self._terminal.clock.wall_s()), max(room, 0))
        line.append(f"  {progress}" if progress else "", style="dim")
        return line

    def _finished(self, row: Followed, width: int) -> Text:
        from rich.text import Text

        mark, colour = MARKS[row.outcome]
        if not self._terminal.unicode:
            mark = PLAIN_MARKS[row.outcome]
        words = _status_words(row) if row.outcome is not Outcome.STALLED else f"{_status_words(row)}, no progress"
        line = Text(no_wrap=True)
        line.append(f"{mark} ", style=colour)
        line.append(f"{row.name:<{width}}  ")
        line.append(f"{words}", style=colour)
        line.append(f"  {text.took(row.elapsed_s(self._terminal.clock.monotonic_s()))}", style="dim")
        return line

    def _spinner(self, now_s: float) -> str:
        frames = SPINNER if self._terminal.unicode else PLAIN_SPINNER
        return frames[int(now_s * FRAMES_A_SECOND) % len(frames)]


def _status_words(row: Followed) -> str:
    return "removed" if row.status is None else str(row.status.status)


def patience(waits: Waits | None, now_wall_s: float) -> tuple[str, str] | None:
    """
    How long a replica has been at what it does, and what becomes of it: `42s`, `ended in 4m if it does not get on`.
    None where that is no time worth a word.
    """
    since_s, until_s = (text.instant(waits.since), text.instant(waits.until)) if waits is not None else (None, None)
    if since_s is None or until_s is None or now_wall_s - since_s < WAIT_SHOWN_S:
        return None
    left = f"ended in {text.age(until_s - now_wall_s)} if it does not get on" if until_s > now_wall_s else "to be ended"
    return text.age(now_wall_s - since_s), left


def _left(row: Followed, now_wall_s: float) -> str:
    found = patience(row.status.waits, now_wall_s) if row.status is not None and not row.is_done else None
    return f"; {found[1]}" if found is not None else ""


def _progress(row: Followed) -> str:
    """What an api's replicas are doing, on one line."""
    if row.status is None:
        return ""
    return " ".join(harmless(row.status.progress or row.status.reason or "").split())
