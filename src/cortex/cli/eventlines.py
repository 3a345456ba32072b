"""How events look in a terminal and in a pipe."""

from __future__ import annotations

from collections.abc import Sequence

from cortex.cli import text
from cortex.cli.terminal import Terminal, harmless
from cortex.wire.events import EventKind
from cortex.wire.operator import EventLine

COLOURS = {"warning": "yellow", "error": "red"}
GOOD = frozenset((EventKind.LIVE, EventKind.WOKE, EventKind.RECOVERED, EventKind.REPAIRED, EventKind.ROOM))
KIND_WIDTH = max(len(kind) for kind in EventKind)
MACHINE = "-"
"""Instead of an api."""


class LinePrinter:
    """
    Prints events: time, api, kind, version or replica, text. In a pipe each is one line, with the date.

    Args:
        known: the first ones, which say how wide the names of apis are.
        with_api: whether they are of several.
        indent: what each line begins with.
    """

    def __init__(self, terminal: Terminal, known: Sequence[EventLine], *, with_api: bool, indent: str = "") -> None:
        self._indent = indent
        self._terminal = terminal
        self._with_api = with_api
        self._width = max((len(_name(line)) for line in known), default=0)

    def __call__(self, line: EventLine) -> None:
        for shown in self.lines(line):
            self._terminal.out(shown)

    def lines(self, line: EventLine) -> list[str]:
        terminal = self._terminal
        paint, for_people = terminal.paint, terminal.shows_results
        now_s = terminal.clock.wall_s() if for_people else None
        when = text.local_time(text.instant(line.time) or 0.0, now_s)
        name = text.padded(_name(line), self._width) if self._with_api else ""
        kind = text.padded(harmless(line.kind), KIND_WIDTH)
        of = text.short_replica(line.replica) if line.replica else line.version
        words = harmless(line.text) + _times(line, now_s)
        words = f"{of} {words}" if of else words
        colour = COLOURS.get(line.severity) or ("green" if line.kind in GOOD else "cyan")
        plain = [part for part in (when, name, kind) if part]
        painted = [part for part in (paint(when, "dim"), paint(name, "bold"), paint(kind, colour)) if part]
        head = self._indent + "  ".join(painted)
        if not for_people:
            return [f"{head}  {' '.join(words.split())}"]
        hang = self._indent + " " * sum(len(part) + 2 for part in plain)
        room = terminal.width - len(hang)
        if room < text.NARROWEST_TEXT:
            return [head.rstrip(), *text.wrapped(words, terminal.width, indent=self._indent + "  ")]
        first, *rest = text.wrapped(words, room)
        return [f"{head}  {first}", *(hang + part for part in rest)]


def _name(line: EventLine) -> str:
    return f"{line.deployment}/{line.api}" if line.api else MACHINE


def _times(line: EventLine, now_s: float | None) -> str:
    if line.count == 1:
        return ""
    return f" ({line.count} times since {text.local_time(text.instant(line.first) or 0.0, now_s)})"
