"""A paste that lost its indentation: which lines to indent, and what comes out. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cortex.spec.document import ListNode, MapNode, UnreadableError, parse

_SHOWN_LINES = 60
"""Of the mended text; a file with more is mended in an editor, and the numbers of its lines say how."""
_NOTHING = re.compile(r"\s*(#|$)")


@dataclass(frozen=True)
class Mended:
    """A text with lines moved two columns to the right, which made a list of mappings of it."""

    text: str
    lines: tuple[range, ...]
    """The lines that were moved, counted from 1."""

    @property
    def hint(self) -> str:
        shown = self.text.splitlines()
        more = ["…"] if len(shown) > _SHOWN_LINES else []
        return "\n".join([f"indent {_listed(self.lines)} by two spaces:", *shown[:_SHOWN_LINES], *more])


def mended(text: str) -> Mended | None:
    """
    Return what a text was before its indentation went.

    None unless moving lines that stand at the edge makes YAML of it.

    Tried is to move, in each resource, all from its first line at the edge on, then only the lines at the edge.
    """
    lines = text.splitlines()
    for moves in (_from_the_edge_on, _those_at_the_edge):
        moved = moves(lines)
        if not moved:
            continue
        new = "\n".join(f"  {line}" if line and number in moved else line for number, line in enumerate(lines, 1))
        if _is_list_of_mappings(new):
            return Mended(text=new, lines=tuple(_ranges(moved)))
    return None


def _from_the_edge_on(lines: Sequence[str]) -> list[int]:
    """Of each resource the lines from the first at the edge up to the last that holds something."""
    moved: list[int] = []
    waiting: list[int] | None = None
    for number, line in enumerate(lines, 1):
        if _is_dash(line):
            waiting = []
        elif waiting is not None and (waiting or line[:1].strip() or (moved and moved[-1] == number - 1)):
            waiting.append(number)
            if not _NOTHING.match(line):
                moved += waiting
                waiting = []
    return moved


def _those_at_the_edge(lines: Sequence[str]) -> list[int]:
    return [number for number in _from_the_edge_on(lines) if not lines[number - 1].startswith(" ")]


def _is_dash(line: str) -> bool:
    return line == "-" or line.startswith("- ")


def _is_list_of_mappings(text: str) -> bool:
    try:
        document = parse(text)
    except UnreadableError:
        return False
    root = document.root
    return isinstance(root, ListNode) and all(isinstance(item, MapNode) for _, item in root.items)


def _ranges(numbers: Sequence[int]) -> Iterator[range]:
    """Runs of lines that follow each other."""
    begin = numbers[0]
    for number, after in zip(numbers, [*numbers[1:], None], strict=True):
        if after != number + 1:
            yield range(begin, number + 1)
            begin = after or 0


def _listed(lines: Sequence[range]) -> str:
    words = [str(each.start) if len(each) == 1 else f"{each.start} to {each[-1]}" for each in lines]
    noun = "line" if len(lines) == 1 and len(lines[0]) == 1 else "lines"
    return f"{noun} {' and '.join([', '.join(words[:-1]), words[-1]] if len(words) > 1 else words)}"
