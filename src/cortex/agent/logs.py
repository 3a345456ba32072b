"""
Reading what the replicas of an api wrote, in time order, across attempts, versions and rotated files; and removing
what replicas that are gone wrote long ago.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from cortex.ids import ReplicaId, split_api_key
from cortex.wire.agent import LogLine, LogLines, ReadLogs
from cortex.wire.logline import LoggedLine, parse_line

MAX_LINES = 10_000
"""Most lines in one answer; the cursor leads on."""
MAX_TAIL_BYTES = 4 * 2**20
"""How far back a tail looks in one file, and how much of one file a single answer follows."""
MAX_PROCESS_LOG_BYTES = 10 * 2**20
"""What one of our own processes may have printed before it is cut."""
_ROTATED = re.compile(r"(?P<replica>.+)\.log(\.(?P<age>\d+))?")


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """Where a reader stands: bytes read of each file, by inode, since files are renamed when they rotate."""

    offsets: dict[str, int] = {}


class LogReader:
    """Reads the log files of one folder; keeps nothing between calls but what the cursor says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, request: ReadLogs) -> LogLines:
        """Lines as asked for, oldest first, and the cursor to go on from."""
        files = self._files(request)
        cursor = _decode_cursor(request.cursor)
        offsets: dict[str, int] = {}
        streams: list[list[LogLine]] = []
        for file, replica in files:
            try:
                inode = str(file.stat().st_ino)
                lines, offsets[inode] = self._read_file(
                    file, replica, request, cursor.offsets.get(inode), bool(request.cursor)
                )
            except FileNotFoundError:
                continue  # rotated away while we looked
            streams.append(lines)
        merged = list(heapq.merge(*streams, key=lambda line: line.wall_s))
        if not request.cursor and request.tail is not None:
            merged = merged[len(merged) - request.tail :] if request.tail else []
        return LogLines(lines=tuple(merged), cursor=msgspec.json.encode(Cursor(offsets=offsets)).decode())

    def _files(self, request: ReadLogs) -> list[tuple[Path, ReplicaId]]:
        """The api's files with the replica each belongs to; a replica's rotated files oldest first."""
        deployment, api = split_api_key(request.api)
        prefix = f"{deployment}.{api}."
        found: list[tuple[str, int, Path]] = []
        for file in self._folder.iterdir() if self._folder.is_dir() else ():
            match = _ROTATED.fullmatch(file.name)
            if match is None or not file.name.startswith(prefix):
                continue
            if request.replica is None or _is_meant(request.replica, match["replica"]):
                found.append((match["replica"], -int(match["age"] or 0), file))
        return [(file, ReplicaId(replica)) for replica, _age, file in sorted(found)]

    def _read_file(
        self, file: Path, replica: ReplicaId, request: ReadLogs, offset: int | None, following: bool
    ) -> tuple[list[LogLine], int]:
        """The wanted lines of one file, and how far it has been read: to the end of a line."""
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            written_s = os.fstat(stream.fileno()).st_mtime
            first = offset if following and offset is not None else 0
            if not following and request.tail is not None:
                first = max(0, size - MAX_TAIL_BYTES)
            if first > size:
                first = 0  # cut short by someone else: begin again
            stream.seek(first)
            content = stream.read(min(size - first, MAX_TAIL_BYTES) if following else size - first)
        complete = content.rfind(b"\n") + 1
        if following:
            # What does not fit comes with the next answer.
            complete = _end_of_line(content, MAX_LINES) or complete
            if not complete and len(content) == MAX_TAIL_BYTES:
                complete = len(content)  # no line of ours
        midway = first > 0 and not following
        lines = list(_wanted(content[:complete], replica, request, started_midway=midway, written_s=written_s))
        return lines[-MAX_LINES:], first + complete


def clean_up(
    folder: Path, alive: Collection[ReplicaId], *, keep_bytes: int, keep_s: float, now_wall_s: float
) -> tuple[Path, ...]:
    """
    Remove logs of replicas that are gone: those nobody wrote to for `keep_s`, and the oldest beyond `keep_bytes`.

    Returns:
        The files removed.
    """
    gone: list[tuple[float, int, Path]] = []
    for file in folder.iterdir() if folder.is_dir() else ():
        match = _ROTATED.fullmatch(file.name)
        if match is None or match["replica"] in alive:
            continue
        with contextlib.suppress(FileNotFoundError):
            found = file.stat()
            gone.append((found.st_mtime, found.st_size, file))
    removed = []
    kept_bytes = 0
    for written_s, size, file in sorted(gone, reverse=True):
        kept_bytes += size
        if kept_bytes > keep_bytes or now_wall_s - written_s > keep_s:
            file.unlink(missing_ok=True)
            removed.append(file)
    return tuple(removed)


def cut_process_logs(folder: Path) -> None:
    """Empty what our own processes print to, once it is large; their proper logs rotate by themselves."""
    for pattern in ("*.out", "launcher-*.log"):
        for file in folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_size > MAX_PROCESS_LOG_BYTES:
                    os.truncate(file, 0)  # whoever prints there appends


def _wanted(
    content: bytes, replica: ReplicaId, request: ReadLogs, *, started_midway: bool, written_s: float
) -> Iterator[LogLine]:
    raw_lines = content.split(b"\n")
    if not raw_lines[-1]:
        raw_lines.pop()
    if started_midway:
        raw_lines = raw_lines[1:]
    lines = [parse_line(raw) for raw in raw_lines]
    # Output that went past us carries no time. It follows what was before it; what nothing was before, or was read
    # already, is as old as what comes next, or else was written last.
    last_s = next((line.wall_s for line in lines if line.wall_s), written_s)
    for line in lines:
        last_s = line.wall_s or last_s
        if request.since_wall_s is not None and last_s < request.since_wall_s:
            continue
        if request.request is not None and line.request != request.request:
            continue
        yield _shown(line, replica, last_s)


def _end_of_line(content: bytes, number: int) -> int:
    """Where the line of this number ends; 0 when there are fewer."""
    end = 0
    for _ in range(number):
        end = content.find(b"\n", end) + 1
        if not end:
            break
    return end


def _shown(line: LoggedLine, replica: ReplicaId, wall_s: float) -> LogLine:
    return LogLine(
        wall_s=wall_s, replica=replica, text=line.text, stream=line.stream, level=line.level, request=line.request
    )


def _is_meant(asked: str, replica: str) -> bool:
    """A replica may be named in full or by its last parts, as `cortex logs` shows it: `3fa1c09d.0`."""
    return replica == asked or replica.endswith(f".{asked}")


def _decode_cursor(text: str) -> Cursor:
    try:
        return msgspec.json.decode(text, type=Cursor) if text else Cursor()
    except msgspec.MsgspecError:
        return Cursor()
