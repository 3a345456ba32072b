"""
Lines of a replica's log file: written by the replica, read by the agent.

A line of ours is a JSON object on one line. Anything else in the file, such as a half-written line, is shown as it is.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Stream = Literal["out", "err", "log", "raw"]


class LoggedLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One record of a replica's log. Field names in the file are one letter: there are many lines."""

    wall_s: float = msgspec.field(name="t", default=0.0)
    """Seconds since the Unix epoch; 0 for raw lines, which carry no time."""
    stream: Stream = msgspec.field(name="s", default="raw")
    """`out` and `err` were printed; `log` came through Python's logging or is ours; `raw` bypassed us."""
    attempt: int = msgspec.field(name="a", default=0)
    request: str = msgspec.field(name="r", default="")
    """Id of the request whose code wrote it."""
    level: str = msgspec.field(name="l", default="")
    text: str = msgspec.field(name="m", default="")
    """Without the line's end. Tracebacks stay in one record, so `log` records may have several lines."""


_BEGINNING = b'{"t":'
_DECODER = msgspec.json.Decoder(LoggedLine)


def is_ours(line: bytes) -> bool:
    """Whether a line looks like a record."""
    return line.startswith(_BEGINNING)


def encode_line(line: LoggedLine) -> bytes:
    """A record, without a line end."""
    return msgspec.json.encode(line)


def parse_line(line: bytes) -> LoggedLine:
    """
    Read one line of a log file; never fails.

    Args:
        line: with or without its line end. A half-written last line comes back as raw text, like any other
            line that is not ours.
    """
    line = line.rstrip(b"\r\n")
    if is_ours(line):
        try:
            return _DECODER.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
    return LoggedLine(text=line.decode("utf-8", "backslashreplace"))
