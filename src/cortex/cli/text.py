"""Words for people: tables, durations, sizes, bars. Pure: text in, text out."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

GAP = "   "
NARROW_GAP = "  "
NARROW_NAME = 20
NARROWEST_NAME = 12
NARROWEST_TEXT = 24
"""Of a column of sentences: in less it reads badly."""
BAR_WIDTH = 24
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EIGHTHS = " ▏▎▍▌▋▊▉"
_HEIGHTS = "▁▂▃▄▅▆▇█"
_HEIGHTS_ASCII = "_.-+*#"


def columns_of(text: str) -> int:
    """How many columns of a terminal a text takes: wide characters two, combining ones and colours none."""
    if "\x1b" in text:
        text = _COLOUR.sub("", text)
    if text.isascii():
        return len(text)
    width = 0
    for character in text:
        if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn", "Me"):
            continue
        width += 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
    return width


def cut(text: str, width: int) -> str:
    """Text in at most so many columns; what does not fit becomes `…`."""
    if columns_of(text) <= width:
        return text
    kept, used = "", 0
    for character in text:
        used += columns_of(character)
        if used > width - 1:
            break
        kept += character
    return kept + "…"


def padded(text: str, width: int, *, right: bool = False) -> str:
    fill = " " * max(width - columns_of(text), 0)
    return fill + text if right else text + fill


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    widest: int | None = None,
    folds: Sequence[str | tuple[str, ...]] = (),
) -> list[str]:
    """
    Return aligned lines, the header first, without trailing blanks. Nothing is left out.

    Args:
        right: columns that are aligned to the right, by header.
        widest: columns of the terminal; None in a pipe, where a row is always one line. What is too wide gets narrower
            gaps, then a shorter first column, then folds: each row goes on below itself, indented, with what was cut.
            A last column that is still too wide is broken between words below itself.
        folds: columns that may go below, the first one first; those in a tuple together.
    """
    shown = list(range(len(header)))
    widths = [max(columns_of(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    if widest is None:
        return [_row(cells, header, shown, widths, right, GAP) for cells in (header, *rows)]
    gap = GAP

    def over() -> int:
        return sum(widths[i] for i in shown) + len(gap) * (len(shown) - 1) - widest

    if over() > 0:
        gap = NARROW_GAP
    widths[0] -= min(max(over(), 0), max(widths[0] - NARROW_NAME, 0))
    below: list[int] = []
    for together in folds:
        names = (together,) if isinstance(together, str) else together
        going = [header.index(name) for name in names if over() > 0 and name in header]
        below += going
        shown = [i for i in shown if i not in going]
    below.sort()
    last = shown[-1]
    if len(shown) > 1 and over() > 0:
        widths[last] -= min(over(), max(widths[last] - max(NARROWEST_TEXT, columns_of(header[last])), 0))
    widths[0] -= min(max(over(), 0), max(widths[0] - NARROWEST_NAME, 0))
    lines = [_row(header, header, shown, widths, right, gap)]
    for cells in rows:
        first, *rest = wrapped(cells[last], widths[last]) if len(shown) > 1 else [cells[last]]
        indent = " " * (sum(widths[i] for i in shown[:-1]) + len(gap) * (len(shown) - 1))
        broken = [*cells[:last], first, *cells[last + 1 :]]
        parts = [_row(broken, header, shown, widths, right, gap), *(indent + part for part in rest)]
        cut_off = [0] if columns_of(cells[0]) > widths[0] else []
        told = ", ".join(f"{header[i]} {cells[i]}" for i in (*cut_off, *below) if cells[i].strip(" -"))
        parts += wrapped(told, widest, indent="  ") if told else []
        lines.append("\n".join(parts))
    return lines


def _row(
    cells: Sequence[str],
    header: Sequence[str],
    shown: Sequence[int],
    widths: Sequence[int],
    right: Collection[str],
    gap: str,
) -> str:
    parts = (padded(cut(cells[i], widths[i]), widths[i], right=header[i] in right) for i in shown)
    return gap.join(parts).rstrip()


def pairs(rows: Sequence[tuple[str, str]], *, indent: str = "") -> list[str]:
    """`name   value` lines, aligned; further lines of a value stand under its first."""
    width = max((columns_of(name) for name, _ in rows), default=0)
    lines = []
    for name, value in rows:
        first, *rest = value.splitlines() or [""]
        lines.append(f"{indent}{padded(name, width)}{GAP}{first}".rstrip())
        lines += [f"{indent}{' ' * width}{GAP}{line}".rstrip() for line in rest]
    return lines


def sentence(text: str, width: int | None, *, hang: str = "") -> list[str]:
    """
    A line of talk in as many as it takes, broken between words. What begins with a blank is meant as it stands.

    Args:
        width: None leaves it whole.
        hang: what further lines begin with.
    """
    if width is None or columns_of(text) <= width or (text[:1] == " " and not hang):
        return [text]
    first, *rest = wrapped(text.lstrip(" "), width - columns_of(hang or ""))
    start = " " * (len(text) - len(text.lstrip(" ")))
    return [start + first, *(hang + line for line in rest)]


def wrapped(text: str, width: int, *, indent: str = "") -> list[str]:
    """Text in lines of at most `width` columns, broken between words; its own line ends are kept."""
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if line and columns_of(indent + joined) > width:
                lines.append(indent + line)
                line = word
            else:
                line = joined
        lines.append((indent + line).rstrip())
    return lines


def age(seconds: float) -> str:
    """`45s`, `8m` below an hour, `5h` below two days, `3d`."""
    seconds = max(seconds, 0.0)
    if seconds < 60:
        return f"{int(seconds)}s"
    if seconds < 3600:
        return f"{int(seconds // 60)}m"
    if seconds < 48 * 3600:
        return f"{int(seconds // 3600)}h"
    return f"{int(seconds // 86400)}d"


def ago(rfc3339: str | None, now_wall_s: float) -> str:
    """`8m ago`; `-` when unknown."""
    wall_s = instant(rfc3339)
    return "-" if wall_s is None else f"{age(now_wall_s - wall_s)} ago"


def instant(rfc3339: str | None) -> float | None:
    """Seconds since the Unix epoch; None for none, or for text that is no instant."""
    if not rfc3339:
        return None
    try:
        parsed = datetime.fromisoformat(rfc3339)
    except ValueError:
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def short_replica(replica: str) -> str:
    """`3fa1c09d.0`: what tells the replicas of one api apart."""
    return ".".join(replica.rsplit(".", 2)[-2:])


def local_time(wall_s: float, now_wall_s: float | None) -> str:
    """`10:32:07`, with the date unless that is today's; with it always where nobody knows when it is read (None)."""
    if not wall_s:
        return ""
    at = datetime.fromtimestamp(wall_s)
    is_today = now_wall_s is not None and at.date() == datetime.fromtimestamp(now_wall_s).date()
    return f"{at:%H:%M:%S}" if is_today else f"{at:%Y-%m-%d %H:%M:%S}"


def took(seconds: float) -> str:
    """How long something took: `0.4 s`, `12 s`, `2m 05s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest:02d}s"


def briefly(seconds: float) -> str:
    """As `took`, with hundredths: `0.04 s`, `1.20 s`, `12 s`."""
    return f"{seconds:.2f} s" if seconds < 9.95 else took(seconds)


def milliseconds(value: float | None) -> str:
    """Three digits: `1.23 ms`, `45.6 ms`, `1.20 s`; `-` for none."""
    if value is None:
        return "-"
    number, unit = (value, "ms") if value < 1000 else (value / 1000, "s")
    decimals = 2 if number < 10 else 1 if number < 100 else 0
    return f"{number:.{decimals}f} {unit}"


def size(size_bytes: float) -> str:
    """`512 B`, `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" or size_bytes >= 100 else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def cpus(millis: int) -> str:
    """`2`, `0.2`."""
    return f"{millis / 1000:g}"


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 api`, `2 apis`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def bar(share: float, width: int = BAR_WIDTH, *, unicode: bool = True) -> str:
    """A bar for a share from 0 to 1; never empty for a share above 0."""
    if not unicode:
        return "#" * max(round(share * width), 1 if share > 0 else 0)
    eighths = max(round(share * width * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def sparkline(values: Sequence[int], *, unicode: bool = True) -> str:
    """A character a value, as high as the value; the lowest is for 0 alone."""
    heights = _HEIGHTS if unicode else _HEIGHTS_ASCII
    highest, most = len(heights) - 1, max(values, default=0)
    return "".join(heights[-(-value * highest // most) if value else 0] for value in values)


def shown_path(path: Path, cwd: Path) -> str:
    """A path as it is shortest to type from `cwd`."""
    relative = os.path.relpath(path, cwd)
    return min(relative, str(path), key=len)


def quoted_for_shell(text: str) -> str:
    import shlex

    return shlex.quote(text)
