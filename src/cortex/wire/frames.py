"""
Frames of traces that were printed, by Python or by its fault handler, as users should read them.

Files of their project have the names that they have there, and frames of this package are left out, unless nothing else
would be left: then the fault is ours. Pure text, as what wrote it may be dead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_FRAME = re.compile(r'(?P<indent>[ |]*)File "(?P<path>[^"\n]*)", line (?:\d+|\?\?\?)(?P<rest>,? in .*)?')
_OTHER_THREAD = re.compile(r"Thread 0x[0-9a-f]+ .*\(most recent call first\):")
_OURS = re.compile(r"<frozen |.*/cortex/(?:(?:replica|wire|lib)/.*|[a-z]+\.py)$|.*/threading\.py$")
"""Of this package, wherever it is installed, and around it: a thread's first frames are those of `threading`."""


def readable(lines: Sequence[str], projects: Sequence[str], *, in_pieces: bool = False) -> list[str]:
    """
    The same lines with frames as users should read them; lines of anything else stay as they are.

    Args:
        projects: folders that users' files are named from.
        in_pieces: a trace comes in several calls, and it is one that a handler printed: none of ours is worth a line.
    """
    shown: list[str] = []
    rest = list(lines)
    while rest:
        if _FRAME.fullmatch(rest[0]) is None:
            shown.append(rest.pop(0))
            continue
        frames = list(_taken(rest))
        theirs = [frame for frame in frames if not _is_ours(frame[0], projects)]
        is_fault = " in " in frames[0][0] and ", in " not in frames[0][0]
        if in_pieces or (theirs if is_fault else any(_is_in(frame[0], projects) for frame in theirs)):
            frames = theirs
        elif shown and _OTHER_THREAD.fullmatch(shown[-1]):
            shown.pop()
            del rest[: bool(rest) and not rest[0]]
            continue
        shown += [line for first, *more in frames for line in (_named(first, projects), *more)]
    return shown


def readable_text(text: str, projects: Sequence[str], *, in_pieces: bool = False) -> str:
    """The same of a text, which is nearly always one without frames."""
    if 'File "' not in text:
        return text
    return "\n".join(readable(text.split("\n"), projects, in_pieces=in_pieces))


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


def _is_in(line: str, projects: Sequence[str]) -> bool:
    return any(_path(line).startswith(f"{project}/") for project in projects)


def _is_ours(line: str, projects: Sequence[str]) -> bool:
    return not _is_in(line, projects) and _OURS.match(_path(line)) is not None


def _named(line: str, projects: Sequence[str]) -> str:
    for project in projects:
        line = line.replace(f'File "{project}/', 'File "', 1)
    return line
