"""
Reading what the replicas of an api wrote, in time order, across attempts, versions and rotated files; and removing
what replicas that are gone wrote long ago.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from cortex.clock import CLOCKS_AGREE_S
from cortex.ids import ReplicaId, revision_of, split_api_key
from cortex.wire import rawoutput
from cortex.wire.agent import LogLine, LogLines, ReadLogs
from cortex.wire.logline import LoggedLine, encode_line, is_ours, parse_line
from cortex.wire.places import Places
from cortex.wire.stacks import readable

MAX_LINES = 10_000
MAX_ANSWER_BYTES = 4 * 2**20
MAX_SCANNED_BYTES = 64 * 2**20
"""What one answer may hold, and how much may be read for it; the cursor leads on."""
MAX_LINE_BYTES = 2**20
"""What is longer without an end is no line of ours, and comes in pieces."""
FIRST_TAIL_BYTES = 64 * 1024
"""Where looking back for the last lines begins, from the end of a file; it goes on in larger steps."""
LAST_LINES = 10
LAST_LINE_CHARS = 400
"""What is told of a replica that died, in statuses and in what is stored."""
MAX_PROCESS_LOG_BYTES = 10 * 2**20
"""What one of our own processes may have printed before it is cut."""
MAX_GONE_FILES = 2000
"""Of replicas that are gone, two each at least. Each look goes through all: with 4,000 an agent had grown by 13 MB."""
MAX_RAW_BYTES = 8 * rawoutput.MAX_WAITING_BYTES
"""Of output past Python, unread by a replica that does not get to it."""
_ROTATED = re.compile(r"(?P<replica>.+)\.log(\.(?P<age>\d+))?")
_PLAIN = re.compile(r"[-._A-Za-z0-9]+")
"""What JSON writes as it is."""
_RAW = re.compile(rf"(?P<replica>.+)\.log{re.escape(rawoutput.SUFFIX)}")


class Cursor(msgspec.Struct, frozen=True, kw_only=True):
    """Where a reader stands: bytes read of each file. Files are renamed when they rotate, so names do not tell them."""

    offsets: dict[str, int] = {}


class LogReader:
    """Reads the log files of one folder; keeps nothing between calls but what the cursor says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, request: ReadLogs) -> LogLines:
        """
        Lines as asked for, oldest first, and the cursor to go on from.

        Without a cursor, and with a `tail` that one answer can hold: the last lines. Otherwise from the cursor on, or
        from the beginning, as many as one answer holds, up to `until_wall_s`.
        """
        replicas: dict[ReplicaId, list[_File]] = {}
        left_out: list[_File] = []
        for path, replica in self._files(request):
            file = _File.seen(path)
            if file is None:
                continue
            if request.revisions is None or revision_of(replica) in request.revisions:
                replicas.setdefault(replica, []).append(file)
            else:
                left_out.append(file)
        cursor = _decode_cursor(request.cursor)
        read = {file.key: cursor.offsets.get(file.key, file.size) for file in left_out}
        if not request.cursor and request.tail is not None and request.tail <= MAX_LINES:
            return _last_lines(replicas, request, request.tail, read)
        return _lines_from(cursor, replicas, request, read)

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


class Clocks(NamedTuple):
    """
    The clock of a node, and that of who asks.

    Attributes:
        ahead_s: of the node; 0 where it is so little that times need not be told apart.
    """

    ahead_s: float = 0.0

    @classmethod
    def of(cls, request: ReadLogs, wall_s: float) -> Clocks:
        """Args: `wall_s`: what the node's clock says as it is asked."""
        ahead_s = 0.0 if request.asked_wall_s is None else wall_s - request.asked_wall_s
        return cls(ahead_s if abs(ahead_s) > CLOCKS_AGREE_S else 0.0)

    def here(self, request: ReadLogs) -> ReadLogs:
        """A question as it is meant on the node."""
        if not self.ahead_s:
            return request
        since_s, until_s = request.since_wall_s, request.until_wall_s
        return msgspec.structs.replace(
            request,
            since_wall_s=None if since_s is None else since_s + self.ahead_s,
            until_wall_s=None if until_s is None else until_s + self.ahead_s,
        )

    def there(self, found: LogLines) -> LogLines:
        """An answer by the clock of who asks, so that lines of all nodes can be put in order."""
        if not self.ahead_s:
            return found
        lines = tuple(msgspec.structs.replace(line, wall_s=line.wall_s - self.ahead_s) for line in found.lines)
        return msgspec.structs.replace(found, lines=lines)


class _File(NamedTuple):
    """A log file as it was found."""

    path: Path
    key: str
    """What it is called in a cursor: stays when it is renamed, and is another one's when its inode is used again."""
    size: int
    written_s: float

    @classmethod
    def seen(cls, path: Path) -> _File | None:
        try:
            with path.open("rb") as stream:
                found = os.fstat(stream.fileno())
                head = stream.read(24)  # the time of its first line
        except OSError:
            return None  # rotated away while we looked
        return cls(path, f"{found.st_ino}-{zlib.crc32(head):08x}", found.st_size, found.st_mtime)


def _last_lines(
    replicas: Mapping[ReplicaId, Sequence[_File]], request: ReadLogs, number: int, read: Mapping[str, int]
) -> LogLines:
    """The last lines of all. `read`: offsets in files that were not asked for, for the cursor."""
    offsets = dict(read)
    streams = []
    for replica, files in replicas.items():
        lines: list[LogLine] = []
        for file in reversed(files):
            found, offsets[file.key] = _end_of_file(file, replica, request, number - len(lines))
            lines = found + lines
        streams.append(lines)
    merged = list(heapq.merge(*streams, key=lambda line: line.wall_s))
    return LogLines(lines=tuple(merged[-number:] if number else ()), cursor=_encode_cursor(offsets))


def _end_of_file(file: _File, replica: ReplicaId, request: ReadLogs, number: int) -> tuple[list[LogLine], int]:
    """The last wanted lines of a file, and where its last whole line ends."""
    length = min(FIRST_TAIL_BYTES, file.size)
    try:
        with file.path.open("rb") as stream:
            while True:
                stream.seek(file.size - length)
                content = stream.read(length)
                end = content.rfind(b"\n") + 1
                raw_lines = content[:end].split(b"\n")[:-1]
                if length < file.size:
                    raw_lines = raw_lines[1:]  # begun before
                reading = _Reading(replica, request)
                reading.begin(raw_lines, file.written_s)
                lines = [line for raw in raw_lines if (line := reading.wanted(raw)) is not None] if number > 0 else []
                if len(lines) >= number or length == file.size:
                    whole = file.size - length + end if end or length == file.size else file.size
                    return lines[len(lines) - number :] if number < len(lines) else lines, whole
                length = min(length * 8, file.size)
    except OSError:
        return [], 0


def _lines_from(
    cursor: Cursor, replicas: Mapping[ReplicaId, Sequence[_File]], request: ReadLogs, read: Mapping[str, int]
) -> LogLines:
    offsets = dict(read) | {file.key: cursor.offsets.get(file.key, 0) for files in replicas.values() for file in files}
    lines: list[LogLine] = []
    answer_bytes = scanned_bytes = 0
    more = held = False
    streams = [_read(replica, files, offsets, request) for replica, files in replicas.items()]
    for found in heapq.merge(*streams, key=lambda found: found.wall_s):
        if len(lines) >= MAX_LINES or answer_bytes >= MAX_ANSWER_BYTES or scanned_bytes >= MAX_SCANNED_BYTES:
            more = True
            break
        if request.until_wall_s is not None and found.wall_s > request.until_wall_s:
            held = True
            break
        offsets[found.file] = found.end
        scanned_bytes += found.size
        if found.line is not None:
            answer_bytes += found.size
            lines.append(found.line)
    return LogLines(lines=tuple(lines), cursor=_encode_cursor(offsets), more=more, held=held)


class _Found(NamedTuple):
    wall_s: float
    """Never less than that of the line before it."""
    line: LogLine | None
    """None: it is not wanted."""
    file: str
    end: int
    size: int


def _read(
    replica: ReplicaId, files: Sequence[_File], offsets: Mapping[str, int], request: ReadLogs
) -> Iterator[_Found]:
    """The lines of a replica's files from where a reader stands."""
    reading = _Reading(replica, request)
    for file in files:
        offset = offsets[file.key]
        if offset > file.size:
            offset = 0  # cut short by someone else: begin again
        if offset == file.size:
            continue
        if request.since_wall_s is not None and file.written_s < request.since_wall_s:
            yield _Found(reading.last_s, None, file.key, file.size, 0)
            continue
        try:
            with file.path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size < offset:
                    continue  # rotated since we looked: the next answer has it
                stream.seek(offset)
                reading.begin(stream.read(FIRST_TAIL_BYTES).split(b"\n"), file.written_s)
                stream.seek(offset)
                while raw := stream.readline(MAX_LINE_BYTES):
                    if not raw.endswith(b"\n") and len(raw) < MAX_LINE_BYTES:
                        break  # not whole yet
                    offset += len(raw)
                    line = reading.wanted(raw)
                    yield _Found(reading.last_s, line, file.key, offset, len(raw))
        except OSError:
            continue


class _Reading:
    """Lines of one replica, one after another."""

    def __init__(self, replica: ReplicaId, request: ReadLogs) -> None:
        self._replica = replica
        self._since_s = request.since_wall_s
        self._request = request.request
        beginning = _beginning(request.request or "")
        self._in_line = beginning.encode() if _PLAIN.fullmatch(beginning) else b""
        self.last_s = 0.0

    def begin(self, lines: Iterable[bytes], written_s: float) -> None:
        """
        Find out when the first lines were written, should they be no records of ours: those carry no time. Each follows
        what was before it; what nothing was before is as old as what comes next, or else was written last.
        """
        if not self.last_s:
            self.last_s = next((time_s for line in lines if (time_s := parse_line(line).wall_s)), written_s)

    def wanted(self, raw: bytes) -> LogLine | None:
        if self._in_line not in raw:  # sooner known than read
            return None
        line = parse_line(raw)
        # Threads may write in another order than they took the time in, and what is no record has none.
        self.last_s = max(self.last_s, line.wall_s)
        if self._since_s is not None and self.last_s < self._since_s:
            return None
        if self._request is not None and not _is_of(line.request, self._request):
            return None
        return LogLine(
            wall_s=self.last_s,
            replica=self._replica,
            text=line.text,
            stream=line.stream,
            level=line.level,
            request=line.request,
        )


def _is_of(request: str, asked: str) -> bool:
    """A request may be named in full, or by its beginning as `cortex logs` shows it, with `…` after it."""
    beginning = _beginning(asked)
    return request == asked or (beginning not in ("", asked) and request.startswith(beginning))


def _beginning(asked: str) -> str:
    return asked.removesuffix("...").removesuffix("…")


def take_leftover(log_file: Path, attempt: int, places: Places, request: str = "") -> None:
    """
    Append to a dead replica's log what it wrote past Python and had no time to read. Never raises.

    Args:
        places: what traces call files.
        request: whose code ran as it died, where that is known.
    """
    lines, written_s = rawoutput.leftover(f"{log_file}{rawoutput.SUFFIX}")
    records: list[bytes] = []
    for of_ours, group in itertools.groupby(lines, is_ours):
        if of_ours:
            records += group
            continue
        for text in readable([line.decode("utf-8", "backslashreplace") for line in group], places):
            line = LoggedLine(wall_s=written_s, stream="raw", attempt=attempt, request=request, text=text)
            records.append(encode_line(line))
    _append(log_file, b"".join(record + b"\n" for record in records))


def note_end(log_file: Path, attempt: int, text: str, requests: Sequence[str], wall_s: float) -> None:
    """
    Append to a dead replica's log how it ended: a line of each request that it had in hand, or one of nobody's. Never
    raises.
    """
    records = (
        LoggedLine(wall_s=wall_s, stream="log", level="ERROR", attempt=attempt, request=request, text=text)
        for request in requests or ("",)
    )
    _append(log_file, b"".join(encode_line(record) + b"\n" for record in records))


def last_lines(log_file: Path, attempt: int) -> tuple[str, ...]:
    """What an attempt wrote last, at most `LAST_LINES`, each shortened. Never raises."""
    try:
        with log_file.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - FIRST_TAIL_BYTES))
            found = [parse_line(raw) for raw in stream.read().split(b"\n")[:-1]]
    except OSError:
        return ()
    lines = [part for line in found if line.attempt == attempt for part in line.text.splitlines() if part.strip()]
    told = _told_by_fault_handler(lines) or lines[-LAST_LINES:]
    return tuple(f"{line[:LAST_LINE_CHARS]}…" if len(line) > LAST_LINE_CHARS else line for line in told)


def _told_by_fault_handler(lines: Sequence[str]) -> list[str]:
    """Of what Python's fault handler wrote: what happened, and where the thread was that it happened to."""
    begin = next((n for n in range(len(lines) - 1, -1, -1) if lines[n].startswith("Fatal Python error:")), None)
    if begin is None:
        return []
    where = next((n for n in range(begin, len(lines)) if lines[n].startswith("Current thread")), begin + 1)
    return [lines[begin], *lines[where : where + LAST_LINES - 1]]


def _append(log_file: Path, content: bytes) -> None:
    if not content:
        return
    with contextlib.suppress(OSError):  # a full disk: it is lost
        descriptor = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(descriptor, "ab", buffering=0) as file:
            file.write(content)


def raw_output(folder: Path) -> list[str]:
    """Where the replicas that are here, or were, write past Python."""
    return [os.path.join(folder, name) for name in _names(folder) if name.endswith(rawoutput.SUFFIX)]


def oversized(files: Iterable[str]) -> list[str]:
    """Those of some files with output past Python that take more of the disk than `MAX_RAW_BYTES`."""
    found = []
    for file in files:
        with contextlib.suppress(OSError):
            if os.stat(file).st_blocks * 512 > MAX_RAW_BYTES:
                found.append(file)
    return found


def cut_raw_output(files: Iterable[str]) -> list[str]:
    """
    Free what they take but for the end. Each replica reads its own, unless it is hung in code that writes, or dead with
    a subprocess that goes on.

    Returns:
        The files of which something was freed.
    """
    return [file for file in files if rawoutput.shrink(file, keep_bytes=MAX_RAW_BYTES // 4)]


def clean_up(
    folder: Path, alive: Collection[ReplicaId], *, keep_bytes: int, keep_s: float, now_wall_s: float
) -> tuple[Path, ...]:
    """
    Remove logs of replicas that are gone: those nobody wrote to for `keep_s`, and the oldest beyond `keep_bytes` or
    `MAX_GONE_FILES`.

    Returns:
        The files removed.
    """
    gone: list[tuple[float, int, str]] = []
    for name in _names(folder):
        match = _ROTATED.fullmatch(name) or _RAW.fullmatch(name)
        if match is None or match["replica"] in alive:
            continue
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(os.path.join(folder, name))
            gone.append((found.st_mtime, min(found.st_size, found.st_blocks * 512), name))
    removed = []
    kept_bytes = 0
    for number, (written_s, size, name) in enumerate(sorted(gone, reverse=True)):
        kept_bytes += size
        if number >= MAX_GONE_FILES or kept_bytes > keep_bytes or now_wall_s - written_s > keep_s:
            file = folder / name
            file.unlink(missing_ok=True)
            removed.append(file)
    return tuple(removed)


def _names(folder: Path) -> list[str]:
    """Of what lies there, which may be thousands of files."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def cut_process_logs(folder: Path) -> None:
    """Empty what our own processes print to, once it is large; their proper logs rotate by themselves."""
    for pattern in ("*.out", "launcher-*.log"):
        for file in folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if file.stat().st_size > MAX_PROCESS_LOG_BYTES:
                    os.truncate(file, 0)  # whoever prints there appends


def _is_meant(asked: str, replica: str) -> bool:
    """A replica may be named in full or by its last parts, as `cortex logs` shows it: `3fa1c09d.0`."""
    return replica == asked or replica.endswith(f".{asked}")


def _decode_cursor(text: str) -> Cursor:
    try:
        return msgspec.json.decode(text, type=Cursor) if text else Cursor()
    except msgspec.MsgspecError:
        return Cursor()


def _encode_cursor(offsets: Mapping[str, int]) -> str:
    return msgspec.json.encode(Cursor(offsets=dict(offsets))).decode()
