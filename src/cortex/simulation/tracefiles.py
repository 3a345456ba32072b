"""Traces that people write: text to rates of requests over time. Pure."""

from __future__ import annotations

import csv
import io
import json
import math
from bisect import bisect_right
from collections.abc import Iterator

import msgspec

from cortex.errors import CortexError, Problem
from cortex.simulation.traces import Rate

FIELDS = ("seconds", "requests_per_second", "api")
ALONE_S = 60.0
"""How long a trace of one line lasts."""
MOST_SECONDS = 31 * 86400.0
MOST_REQUESTS = 1e6
EXAMPLE = "seconds,requests_per_second\n0,5\n60,50\n120,5"


class BadTrace(CortexError):
    """A file is no trace of requests: `line` and `found` say where and what is wrong."""

    reference = "bad-trace"

    def __init__(self, file: str, line: int, found: str) -> None:
        self.file = file
        self.line = line
        self.found = found
        self.hint = f"a trace is for example:\n{EXAMPLE}"
        super().__init__(found)

    def problem(self) -> Problem:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return Problem(reference=self.reference, message=str(self), where=where, hint=self.hint)


class LoadTrace(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests come for one api."""

    api: str
    """As it is named; empty if none is."""
    line: int
    """Where it is first named, for messages."""
    seconds: tuple[float, ...]
    rates: tuple[float, ...]
    """Each from its second on until the next."""

    @property
    def lasts_s(self) -> float:
        """Until when it says something: its last rate holds as long as the one before."""
        last_s = self.seconds[-1]
        return last_s + (last_s - self.seconds[-2] if len(self.seconds) > 1 else ALONE_S)

    @property
    def rate(self) -> Rate:
        """None come before its first second."""
        seconds, rates = self.seconds, (0.0, *self.rates)
        return lambda at_s: rates[bisect_right(seconds, at_s)]


def parse(text: str, *, file: str) -> tuple[LoadTrace, ...]:
    """
    Return the traces of a file, by api in the order in which they are named.

    Lines are CSV, `seconds,requests_per_second` and perhaps `,api`, with or without these names above them; or JSON
    objects with these keys. Blank lines, and such as begin with `#`, are passed over.

    Raises:
        BadTrace: names the first line that is neither, whose numbers are none, or that goes back in time.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    first_lines: dict[str, int] = {}
    for line, fields in _lines(text, file):
        at_s = _number(fields[0], FIELDS[0], MOST_SECONDS, file, line)
        rate = _number(fields[1], FIELDS[1], MOST_REQUESTS, file, line)
        own = points.setdefault(fields[2], [])
        first_lines.setdefault(fields[2], line)
        if own and at_s <= own[-1][0]:
            raise BadTrace(file, line, f"expected more seconds than the {own[-1][0]:g} before, found {at_s:g}")
        own.append((at_s, rate))
    if not points:
        raise BadTrace(file, 0, "expected lines of seconds and requests per second, found none")
    if "" in points and len(points) > 1:
        named = next(api for api in points if api)
        line = max(first_lines[""], first_lines[named])
        raise BadTrace(file, line, "expected an api on each line or on none, found both")
    return tuple(
        LoadTrace(
            api=api,
            line=first_lines[api],
            seconds=tuple(at_s for at_s, _ in own),
            rates=tuple(rate for _, rate in own),
        )
        for api, own in points.items()
    )


def _lines(text: str, file: str) -> Iterator[tuple[int, tuple[object, object, str]]]:
    columns: list[str] | None = None
    for line, written in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        content = written.strip()
        if not content or content.startswith("#"):
            continue
        if content.startswith(("{", "[")):
            yield line, _of_json(content, file, line)
            continue
        try:
            cells = [cell.strip() for cell in next(csv.reader(io.StringIO(content), strict=True))]
        except csv.Error as error:
            raise BadTrace(file, line, f"expected comma-separated values: {error}") from None
        if columns is None and cells[0].lower() in FIELDS:
            columns = _columns(cells, file, line)
            continue
        columns = columns or list(FIELDS[: max(2, min(3, len(cells)))])
        if len(cells) != len(columns):
            raise BadTrace(file, line, f"expected {','.join(columns)}, found {_found(content)}")
        row = dict(zip(columns, cells, strict=True))
        yield line, (row[FIELDS[0]], row[FIELDS[1]], row.get(FIELDS[2], ""))


def _columns(cells: list[str], file: str, line: int) -> list[str]:
    names = [cell.lower() for cell in cells]
    if sorted(names) not in (sorted(FIELDS), sorted(FIELDS[:2])):
        raise BadTrace(file, line, f"expected the columns {','.join(FIELDS)} (the last may be missing)")
    return names


def _of_json(content: str, file: str, line: int) -> tuple[object, object, str]:
    try:
        found = json.loads(content)
    except ValueError:
        raise BadTrace(file, line, f"expected a JSON object, found {_found(content)}") from None
    if not isinstance(found, dict) or not set(FIELDS[:2]) <= found.keys() <= set(FIELDS):
        keys = ", ".join(f'"{name}"' for name in FIELDS)
        raise BadTrace(file, line, f"expected an object of {keys} (the last may be missing), found {_found(content)}")
    api = found.get(FIELDS[2], "")
    if not isinstance(api, str):
        raise BadTrace(file, line, f'expected the name of an api as "{FIELDS[2]}", found {_found(json.dumps(api))}')
    return found[FIELDS[0]], found[FIELDS[1]], api


def _number(found: object, name: str, most: float, file: str, line: int) -> float:
    expected = f"expected {name} as a number from 0 to {most:,.0f}"
    try:
        number = math.nan if isinstance(found, bool) else float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= most:
        raise BadTrace(file, line, f"{expected}, found {_found(str(found))}")
    return number


def _found(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")
