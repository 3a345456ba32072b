"""Problems as a person reads them: on stderr, in colour where there is any, broken to the width of the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from cortex.cli import text
from cortex.cli.terminal import Paint, Terminal, harmless
from cortex.errors import Problem


def show_problems(terminal: Terminal, problems: Sequence[Problem], *, level: str = "error") -> None:
    """Problems as in the docs, on stderr, a blank line between them."""
    width = terminal.width if terminal.shows_talk else None
    blocks = [rendered(problem, terminal.paint_talk, level=level, width=width) for problem in problems]
    terminal.say("\n\n".join(blocks))


def rendered(problem: Problem, paint: Paint, *, level: str = "error", width: int | None = None) -> str:
    """
    A problem as text, with colours when there are any.

    Args:
        width: sentences are broken between words to fit; None leaves lines whole.
    """
    from cortex.spec.problems import render

    head, *lines = harmless(render(problem, level=level)).splitlines()
    word, _, reference = head.partition(" ")
    colour = "red" if level == "error" else "yellow"
    painted = [f"{paint(word, 'bold', colour)} {paint(reference, 'bold')}".rstrip()]
    if problem.where and lines:
        where = harmless(problem.where)
        lines[0] = lines[0].replace(where, paint(where, "cyan"), 1)
    if width is not None:
        lines = [part for line in lines for part in _broken(line, width)]
    return "\n".join([*painted, *(_painted_hint(line, paint) for line in lines)])


def _broken(line: str, width: int) -> list[str]:
    """A line of a message or hint in as many lines as it takes; what is indented further is meant as it stands."""
    sentence = line[2:]
    if text.columns_of(line) <= width or not line.startswith("  ") or sentence[:1] in ("", " "):
        return [line]
    further = " " * (len("  hint: ") if sentence.startswith("hint: ") else 2)
    first, *rest = text.wrapped(sentence, width - len(further))
    return [f"  {first}", *(further + part for part in rest)]


def _painted_hint(line: str, paint: Paint) -> str:
    mark = "  hint:"
    return paint(mark, "green") + line.removeprefix(mark) if line.startswith(mark) else line
