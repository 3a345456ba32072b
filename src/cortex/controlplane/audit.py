"""
Who changed what, and from where: a line for each call that changes something, and for whoever was turned away.

Lines are only ever appended, to one file a day, which nothing of ours writes again or shortens; after 90 days a file is
removed as a whole. What cannot be written does not stop the call: operators have to be able to make room.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from cortex.clock import Clock
from cortex.wire.operator import AuditLine, rfc3339_ms

log = logging.getLogger(__name__)

KEPT_S = 90 * 86400.0
STRANGERS_EVERY_S = 60.0
"""Calls without a token that is known are counted, and told this often: anybody may send as many as they like."""
MOST_IN_MEMORY = 1000
"""Lines that could not be written yet."""
LONGEST_TEXT = 500


class Audit:
    """
    The audit log of a home. Thread-safe.

    Args:
        folder: made when there is something to write.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._unwritten: deque[bytes] = deque(maxlen=MOST_IN_MEMORY)
        self._day = ""
        self._strangers = 0
        self._told_s = float("-inf")

    def note(self, *, who: str, role: str, origin: str, what: str, status: int, detail: str = "") -> None:
        """
        Write a line.

        Args:
            who: name of the token.
            origin: address of the caller.
            what: the call in words.
            status: HTTP status of the answer.
            detail: what came of it, where the status does not tell.
        """
        with self._lock:
            self._add(who=who, role=role, origin=origin, what=what, status=status, detail=detail)

    def turned_away(self, origin: str) -> None:
        """Somebody called without a token that is known."""
        with self._lock:
            self._strangers += 1
            now_s = self._clock.monotonic_s()
            if now_s - self._told_s < STRANGERS_EVERY_S:
                return
            self._told_s = now_s
            count, self._strangers = self._strangers, 0
            more = f", {count} times since the last such line" if count > 1 else ""
            self._add(who="", role="", origin=origin, what=f"call without a token that is known{more}", status=401)

    def lines(self, limit: int) -> tuple[AuditLine, ...]:
        """The last lines, oldest first. Raises OSError."""
        found: deque[bytes] = deque(maxlen=limit)
        for file in self._files():
            with file.open("rb") as lines:
                found.extend(lines)
        read = []
        for line in found:
            try:
                read.append(msgspec.json.decode(line, type=AuditLine))
            except (msgspec.MsgspecError, UnicodeDecodeError):  # cut off by a full disk, or not ours
                log.warning("a line of the audit log in %s cannot be read", self._folder)
        return tuple(read)

    def _add(self, *, who: str, role: str, origin: str, what: str, status: int, detail: str = "") -> None:
        wall_s = self._clock.wall_s()
        line = AuditLine(
            time=rfc3339_ms(wall_s),
            who=who,
            role=role,
            origin=origin,
            what=what[:LONGEST_TEXT],
            status=status,
            detail=detail[:LONGEST_TEXT],
        )
        self._unwritten.append(msgspec.json.encode(line) + b"\n")
        day = datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%d")
        try:
            if day != self._day:
                self._folder.mkdir(mode=0o700, exist_ok=True)
                self._forget(wall_s)
                self._day = day
            self._append(self._folder / f"{day}.jsonl")
        except OSError as error:
            self._day = ""
            log.warning("the audit log cannot be written now: %s", error)

    def _append(self, file: Path) -> None:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while self._unwritten:
                line = self._unwritten[0]
                if os.write(descriptor, line) < len(line):
                    os.write(descriptor, b"\n")
                    raise OSError(28, "no room for a whole line")
                self._unwritten.popleft()
        finally:
            os.close(descriptor)

    def _forget(self, now_wall_s: float) -> None:
        oldest = datetime.fromtimestamp(now_wall_s - KEPT_S, UTC).strftime("%Y-%m-%d")
        for file in self._files():
            if file.stem < oldest:
                file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        try:
            return sorted(self._folder.glob("????-??-??.jsonl"))
        except FileNotFoundError:
            return []
