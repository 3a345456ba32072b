"""
Stacks of calls that were printed, by Python's tracebacks or by its fault handler, as users should read them.

Files are called as `places` calls them, and frames of this package are left out, unless nothing else would be left:
then the fault is ours. The rest of a text is left alone, as whoever prints a path himself wants it as it is. Pure, as
what wrote a trace may be dead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from cortex.wire.places import Places

_FRAME = re.compile(r'(?P<indent>[ |]*)File "(?P<path>[^"\n]*)", line (?:\d+|\?\?\?)(?P<rest>,? in .*)?')
_OTHER_THREAD = re.compile(r"Thread 0x[0-9a-f]+ .*\(most recent call first\):")
_OURS = re.compile(r"<frozen |.*/cortex/(?:(?:replica|wire|lib)/.*|[a-z]+\.py)$|.*/\w+3\.\d+\w*/threading\.py$")
"""Of this package, wherever it is installed, and around it: a thread's first frames are those of `threading`."""


def readable(lines: Sequence[str], places: Places, *, in_pieces: bool = False) -> list[str]:
    """
    The same lines with frames as users should read them; lines of anything else stay as they are.

    Args:
        places: files in there are users', whatever they are called.
        in_pieces: a trace comes in several calls, and it is one that a handler printed: none of ours is worth a line.
    """
    shown: list[str] = []
    rest = list(lines)
    while rest:
        if _FRAME.fullmatch(rest[0]) is None:
            shown.append(rest.pop(0))
            continue
        frames = list(_taken(rest))
        theirs = [frame for frame in frames if not _is_ours(_path(frame[0]), places)]
        is_fault = " in " in frames[0][0] and ", in " not in frames[0][0]
        if in_pieces or (theirs if is_fault else any(places.has(_path(frame[0])) for frame in theirs)):
            frames = theirs
        elif shown and _OTHER_THREAD.fullmatch(shown[-1]):
            shown.pop()
            del rest[: bool(rest) and not rest[0]]
            continue
        shown += [line for first, *more in frames for line in (_named(first, places), *more)]
    return shown


def readable_text(text: str, places: Places) -> str:
    """The same of a text, which is nearly always one without frames."""
    if 'File "' not in text:
        return text
    return "\n".join(readable(text.split("\n"), places))


def _taken(rest: list[str]) -> Iterator[list[str]]:
    """Take frames off the beginning, each with what belongs to it: its source, carets, how often it repeats."""
    while rest and (match := _FRAME.fullmatch(rest[0])) is not None:
        frame = [rest.pop(0)]
        indent = match["indent"]
        while rest and _FRAME.fullmatch(rest[0]) is None and rest[0].startswith((f"{indent}  ", f"{indent}[Prev")):
            frame.append(rest.pop(0))
        yield frame


def _path(line: str) -> str:
    match = _FRAME.fullmatch(line)
    assert match is not None
    return match["path"]


def _is_ours(path: str, places: Places) -> bool:
    return not places.has(path) and _OURS.match(path) is not None


def _named(line: str, places: Places) -> str:
    path = _path(line)
    return line.replace(path, places.called(path), 1)
