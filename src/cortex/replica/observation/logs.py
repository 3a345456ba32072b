"""
The replica's log file, and everything that leads into it.

`print`, Python's logging and our own records become JSON lines (see `wire.logline`) that carry the id of the request
whose code wrote them. What C code, subprocesses and the fault handler write to descriptors 1 and 2 arrives in a file
beside it (see `wire.rawoutput`) and becomes records too, before the next one of ours, and once a second.

Nothing here may fail a request: text that cannot be encoded is escaped, a full disk loses lines, a closed `sys.stdout`
stays open.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import itertools
import linecache
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import msgspec
import orjson

from cortex.lib.log import get_logger
from cortex.replica.observation import places, secrecy
from cortex.replica.observation.tracebacks import format_user_traceback
from cortex.wire.logline import encode_line, is_ours, parse_line
from cortex.wire.rawoutput import MAX_WAITING_BYTES, SUFFIX, RawOutput, keep_end, left_out

REQUEST_ID: ContextVar[str] = ContextVar("cortex_request_id", default="")
"""Id of the request whose code is running; empty between requests."""

_alone = ""
"""The same for all threads, where only one request's code runs at a time."""

MAX_FILE_BYTES = 10 * 2**20
KEPT_FILES = 3
"""The current file, `.1` and `.2`."""
MAX_TEXT_CHARS = 256 * 1024
"""A longer text is cut into several records, so that readers need not hold endless lines."""
MAX_PENDING_CHARS = 64 * 1024
"""Printed text without a line end becomes a line of its own at this length."""
MAX_RAW_BYTES = 64 * 1024
"""How much output past Python is taken in at once: some thousand lines, which keep requests waiting for some 10 ms."""
MAX_BEFORE_BYTES = 2**20
"""And how much of it comes before a record of ours, so that lines stay in the order in which they were written."""
BUSY_LOOK_S = 0.05
"""How often more of it is taken in while there is more. What is written faster for long is not kept."""
MAX_LAST_BYTES = 2**20
"""And at the end of the process, which is not kept from ending for long."""
RECORDS_AT_ONCE = 1000
LOCK_PATIENCE_S = 1.0
REQUEST_PATIENCE_S = 0.05
"""
How long the end of a request waits for the thread that takes in its output past Python: some milliseconds. Where the
disk stands still, better lines without their request than late answers.
"""


def work_for(request: str) -> None:
    """
    From now on the only code that runs is a request's. Called by whoever runs one at a time; before the next,
    `Streams.finish_lines` and `work_ended`.
    """
    global _alone
    _alone = request
    REQUEST_ID.set(request)


def work_ended() -> None:
    """Nobody's code runs any more. This context's `REQUEST_ID` stays: none of it runs before the next `work_for`."""
    global _alone
    _alone = ""


class LogFile:
    """
    Where records go.

    Args:
        path: opened for appending. The process's descriptors 1 and 2 become a file beside it. Empty: records go to what
            descriptor 2 already is, and of much only the end is kept.
        attempt: written into every record.
    """

    def __init__(self, path: str, attempt: int) -> None:
        self._path = path
        self._attempt = attempt
        self._pid = os.getpid()
        self._size = 0
        """About: rotation need not be exact to the byte."""
        self._rotating = threading.Lock()
        self._raw: RawOutput | None = None
        self.descriptor: int
        """For output that cannot wait for us, such as a fault handler's. Stays the same."""
        self._taking = threading.Lock()
        self._keeping_up: threading.Thread | None = None
        self.raw_belongs_to_request = False
        """Whether what arrives past Python while a request's code runs can only be of that request."""
        if path:
            self._fd = _open(path)
            self._size = os.fstat(self._fd).st_size
            self._raw = RawOutput(path + SUFFIX)
            os.dup2(self._raw.fd, 1)
            os.dup2(self._raw.fd, 2)
            self.descriptor = self._raw.fd
        else:
            self._fd, self.descriptor = os.dup(2), os.dup(2)
        # Our own descriptor: users' code may close 1, and the next file it opens would then be number 1.
        os.set_inheritable(self._fd, False)

    def move_to(self, path: str, attempt: int) -> None:
        """
        From now on be the log at a path, and begin with what was written until now.

        Only for one that was opened without a path, on a descriptor 2 that is a file of this process alone. Copies of
        that descriptor, which users' code may have made, move as well.
        """
        before = os.dup(self._fd)
        try:
            outputs = _same_as(before) - {before, self._fd}
            fresh = _open(path)
            raw = RawOutput(path + SUFFIX)
            # At once, as other threads write meanwhile; and only those, as users' code may have led 1 elsewhere.
            os.dup2(fresh, self._fd, inheritable=False)
            for fd in outputs:
                os.dup2(raw.fd, fd, inheritable=os.get_inheritable(fd))
            os.close(fresh)
            self._raw = raw
            self._path, self._attempt = path, attempt
            self._size = os.fstat(self._fd).st_size
            self._write_lines(
                (
                    encode_line(msgspec.structs.replace(parse_line(line), attempt=attempt)) if is_ours(line) else line
                    for line in _last_lines(before)
                ),
                request="",
            )
        finally:
            os.close(before)

    def record(self, stream: str, level: str, text: str, request: str | None = None) -> None:
        """Append one record, without the values of secrets; cut into several when very long."""
        if request is None:
            request = REQUEST_ID.get()
        raw = self._raw
        if raw is not None and raw.is_waiting:
            self.take_raw(request, max_bytes=MAX_BEFORE_BYTES, most_waiting=MAX_BEFORE_BYTES)  # it was first
        for record in self._encoded(stream, level, text, request):
            self._write(record)

    def _encoded(self, stream: str, level: str, text: str, request: str) -> list[bytes]:
        text = secrecy.masked(text)
        if len(text) <= MAX_TEXT_CHARS:
            return [self._encode(stream, level, text, request)]
        return [
            self._encode(stream, level, text[start : start + MAX_TEXT_CHARS], request)
            for start in range(0, len(text), MAX_TEXT_CHARS)
        ]

    def _encode(self, stream: str, level: str, text: str, request: str) -> bytes:
        line: dict[str, Any] = {"t": round(time.time(), 6), "s": stream, "a": self._attempt}
        if request:
            line["r"] = request
        if level:
            line["l"] = level
        line["m"] = text
        try:
            return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # surrogates
            line["m"] = text.encode("utf-8", "backslashreplace").decode()
            line["r"] = request.encode("utf-8", "backslashreplace").decode()
            return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)

    # ---- what goes past Python ----------------------------------------------------------------------------------

    def take_raw(
        self,
        request: str = "",
        *,
        whole: bool = False,
        max_bytes: int = MAX_RAW_BYTES,
        most_waiting: int = MAX_WAITING_BYTES,
        patience_s: float = 0.0,
    ) -> int:
        """
        Make records of what arrived past Python; returns how many bytes they have, about.

        Args:
            request: whose code is running.
            whole: also a line that has no end yet.
            max_bytes: so much at once; the rest waits.
            most_waiting: of more than so much the beginning is left out.
            patience_s: how long to wait for another thread that is doing it; else it is left to that one.
        """
        raw = self._raw
        if raw is None or os.getpid() != self._pid or not self._taking.acquire(timeout=patience_s):
            return 0
        try:
            alone_before = _alone
            lines = raw.take(max_bytes, whole=whole, most_waiting=most_waiting)
            if not request and alone_before in ("", _alone):  # else nobody knows of which of the two it is
                request = _alone
            request = request if self.raw_belongs_to_request else ""
            self._write_lines(lines, request)
            return sum(map(len, lines))
        finally:
            self._taking.release()

    def _write_lines(self, lines: Iterable[bytes], request: str) -> None:
        """Make records of lines. Some are records already: of a process that users' code forked, see `_write`."""
        records: list[bytes] = []
        for of_ours, group in itertools.groupby(lines, is_ours):
            if of_ours:
                records += (line + b"\n" for line in group)
                continue
            texts = [line.decode("utf-8", "backslashreplace").rstrip("\r") for line in group]
            for text in filter(None, places.readable(texts)):
                records += self._encoded("raw", "", text, request)
        for start in range(0, len(records), RECORDS_AT_ONCE):
            self._write(b"".join(records[start : start + RECORDS_AT_ONCE]))

    def take_raw_of(self, request: str) -> None:
        """Called as a request's code ends: what it left past Python is its own, also an unfinished line."""
        raw = self._raw
        if raw is not None and self.raw_belongs_to_request and (raw.is_waiting or self._taking.locked()):
            self.take_raw(
                request,
                whole=True,
                max_bytes=MAX_BEFORE_BYTES,
                most_waiting=MAX_BEFORE_BYTES,
                patience_s=REQUEST_PATIENCE_S,
            )

    def every_second(self) -> None:
        """Take what waits, and see to it that neither file grows too large. Called by one thread."""
        if self._raw is None:
            return
        if self._raw.is_waiting and self.take_raw(whole=True, patience_s=LOCK_PATIENCE_S) and self._raw.is_waiting:
            self._keep_up()
        with contextlib.suppress(OSError):
            self._size = os.fstat(self._fd).st_size
        self._rotate_if_full()

    def _keep_up(self) -> None:
        """Once a second is not often enough: take what waits on a thread of its own, without hurry."""
        if self._keeping_up is not None and self._keeping_up.is_alive():
            return

        def take_until_nothing_waits() -> None:
            while self._raw is not None and self._raw.is_waiting:
                time.sleep(BUSY_LOOK_S)
                self.take_raw()

        self._keeping_up = threading.Thread(target=take_until_nothing_waits, name="cortex-output", daemon=True)
        self._keeping_up.start()

    # ---- the file -----------------------------------------------------------------------------------------------

    def _rotate_if_full(self) -> None:
        if self._size < MAX_FILE_BYTES or not self._rotating.acquire(blocking=False):
            return
        try:
            if not self._path:
                keep_end(self._fd, keep_bytes=MAX_WAITING_BYTES)
                return
            for number in range(KEPT_FILES - 1, 0, -1):
                older = f"{self._path}.{number - 1}" if number > 1 else self._path
                if os.path.exists(older):
                    os.replace(older, f"{self._path}.{number}")
            fresh = _open(self._path)
            os.dup2(fresh, self._fd, inheritable=False)  # at once: other threads write meanwhile
            os.close(fresh)
        except OSError:
            pass  # e.g. no room: the old descriptor still works, under whichever name
        finally:
            self._size = 0
            self._rotating.release()

    def _write(self, data: bytes) -> None:
        try:
            if self._raw is not None and os.getpid() != self._pid:
                # Of a child that users' code forked, which does not know when files are rotated: we take it from there.
                os.write(self._raw.fd, data)
                return
            os.write(self._fd, data)  # whole: O_APPEND on a file, one call
        except OSError:
            return
        self._size += len(data)
        if self._size >= MAX_FILE_BYTES:
            self._rotate_if_full()


def _same_as(fd: int) -> set[int]:
    """Descriptors of this process that are the same file."""
    file = os.fstat(fd)
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            if os.path.samestat(os.fstat(int(name)), file):
                found.add(int(name))
    return found


def _last_lines(fd: int) -> list[bytes]:
    """Of a file, without their ends; so much as is taken of what nobody reads while it is written."""
    size = os.fstat(fd).st_size
    begin = max(0, size - MAX_WAITING_BYTES)
    lines = os.pread(fd, size - begin, begin).split(b"\n")
    return lines if begin == 0 else [left_out(begin), *lines[1:]]


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


class LineWriter(io.TextIOBase):
    """
    A text stream that turns each line into a record. Stands in for `sys.stdout` and `sys.stderr`.

    Text without a line end waits until its thread completes or flushes it, or its request ends.
    """

    encoding = "utf-8"
    errors = "backslashreplace"
    newlines = None
    line_buffering = True
    write_through = False
    mode = "w"

    def __init__(self, log: LogFile, stream: str, fd: int) -> None:
        super().__init__()
        self.log = log
        self._stream = stream
        self._fd = fd
        self.unfinished: dict[tuple[int, str], str] = {}
        """Text without a line end, by thread and request. Empty, so false, nearly always."""
        self.name = f"<std{stream}>"
        self.buffer = _BinaryWriter(self)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        author = (threading.get_ident(), REQUEST_ID.get())
        pending = self.unfinished.pop(author, "") + text
        if "\n" not in text and "\r" not in text and len(pending) < MAX_PENDING_CHARS:
            if pending:
                self.unfinished[author] = pending
            return len(text)
        # \r alone ends a line too: progress bars redraw with it.
        *lines, rest = pending.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if len(rest) >= MAX_PENDING_CHARS:
            lines.append(rest)
        elif rest:
            self.unfinished[author] = rest
        self._record(lines)
        return len(text)

    def _record(self, lines: Sequence[str], request: str | None = None) -> None:
        if any('File "' in line for line in lines):
            lines = places.readable(lines, in_pieces=True)
        for line in filter(None, lines):
            self.log.record(self._stream, "", line, request)

    def writelines(self, lines: Iterable[Any], /) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Make a line of what this thread has pending for this request."""
        pending = self.unfinished.pop((threading.get_ident(), REQUEST_ID.get()), "")
        self._record([pending])

    def flush_all(self) -> None:
        """Make a line of whatever any thread has pending."""
        while self.unfinished:
            try:
                (_thread, request), pending = self.unfinished.popitem()
            except KeyError:
                return
            self._record([pending], request)

    def close(self) -> None:
        """Stays open: the next request prints too."""
        self.flush()

    def detach(self) -> Any:
        return self.buffer

    def reconfigure(self, **_options: Any) -> None:
        """Accepted and ignored: encoding, errors and line ends are the log's."""

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True


class _BinaryWriter(io.RawIOBase):
    """`sys.stdout.buffer`: bytes that are shown as text, with what is not UTF-8 escaped."""

    def __init__(self, text: LineWriter) -> None:
        super().__init__()
        self._text = text

    def write(self, data: Any, /) -> int:
        content = bytes(data)
        self._text.write(content.decode("utf-8", "backslashreplace"))
        return len(content)

    def flush(self) -> None:
        self._text.flush()

    def close(self) -> None:
        self._text.flush()

    def fileno(self) -> int:
        return self._text.fileno()

    def writable(self) -> bool:
        return True


def _emit(handler: logging.Handler, record: logging.LogRecord, log: LogFile) -> None:
    try:
        text = places.readable_text(handler.format(record))
        log.record("log", record.levelname, places.as_called(text) if record.exc_info else text)
    except RecursionError:
        raise
    except Exception:
        handler.handleError(record)


class RecordHandler(logging.Handler):
    """Python's logging into the log file: level and text, with a traceback kept in the same record."""

    def __init__(self, log: LogFile) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        _emit(self, record, self._log)


class Streams:
    """The pair of writers that stand in for stdout and stderr."""

    def __init__(self, log: LogFile, out: LineWriter, err: LineWriter) -> None:
        self._log = log
        self._out = out
        self._err = err

    def finish_lines(self, request: str) -> None:
        """Write out what this thread left unfinished for a request. Cheap when there is nothing, as nearly always."""
        if self._out.unfinished:
            self._out.flush()
        if self._err.unfinished:
            self._err.flush()
        self._log.take_raw_of(request)

    def forget(self) -> None:
        """In a forked child: what was printed before belongs to its parent."""
        self._out.unfinished.clear()
        self._err.unfinished.clear()

    def finish(self) -> None:
        """Write out everything: the process is about to end."""
        self._out.flush_all()
        self._err.flush_all()
        self._log.take_raw(whole=True, max_bytes=MAX_LAST_BYTES, patience_s=LOCK_PATIENCE_S)


def install(log: LogFile, project_dir: str | None = None) -> Streams:
    """
    Lead stdout, stderr and logging of this process into the log.

    The root logger gets no handler, so that `logging.basicConfig` in users' code works as they know it. What nobody
    handles comes to us as the handler of last resort, and whatever handler users configure for stdout or stderr hands
    its records over whole, instead of writing lines.

    Args:
        project_dir: tracebacks name files as they are called in there.
    """
    out, err = LineWriter(log, "out", 1), LineWriter(log, "err", 2)
    sys.stdout = sys.__stdout__ = out  # type: ignore[misc,assignment]
    sys.stderr = sys.__stderr__ = err  # type: ignore[misc,assignment]
    handler = RecordHandler(log)
    logging.lastResort = handler
    root = logging.getLogger()
    for stale in tuple(root.handlers):
        root.removeHandler(stale)
    root.setLevel(logging.INFO)
    ours = get_logger()
    for stale in tuple(ours.handlers):
        ours.removeHandler(stale)
    ours.addHandler(handler)
    logging.captureWarnings(False)
    warnings.formatwarning = _format_warning
    logging.StreamHandler.emit = _emit_to_stream  # type: ignore[method-assign,assignment]
    threading.Thread.start = _start_for_request  # type: ignore[method-assign]
    ThreadPoolExecutor.submit = _submit_for_request  # type: ignore[method-assign,assignment]
    sys.excepthook = lambda _kind, error, _trace: log.record("log", "ERROR", format_user_traceback(error, project_dir))
    threading.excepthook = functools.partial(_tell_of_thread, log, project_dir)
    _write_lines_of_c_code_at_once()
    return Streams(log, out, err)


_format_warning_anyhow = warnings.formatwarning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """`warnings.formatwarning`, except that files are named as in their project."""
    shown = linecache.getline(filename, lineno) if line is None else line
    return _format_warning_anyhow(message, category, places.as_called(filename), lineno, shown)


_emit_elsewhere = logging.StreamHandler.emit


def _emit_to_stream(self: logging.StreamHandler[Any], record: logging.LogRecord) -> None:
    """`StreamHandler.emit`, except that a record meant for our stdout or stderr keeps its level and its lines."""
    if isinstance(self.stream, LineWriter):
        _emit(self, record, self.stream.log)
    else:
        _emit_elsewhere(self, record)


# Python gives a thread no part of the context that it was started in, before 3.14 at least: what a handler's thread
# prints would belong to no request.

_start_anyhow = threading.Thread.start
_submit_anyhow = ThreadPoolExecutor.submit


def _start_for_request(self: threading.Thread) -> None:
    """`Thread.start`, except that the thread writes for the request that started it, for as long as it runs."""
    request = REQUEST_ID.get()
    if request and "run" not in vars(self):

        def run() -> None:
            del self.run
            REQUEST_ID.set(request)
            self.run()

        self.run = run  # type: ignore[method-assign]
    _start_anyhow(self)


def _submit_for_request(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
    """`ThreadPoolExecutor.submit`, except that the call writes for the request that submitted it, and only the call."""
    return _submit_anyhow(self, _Call(fn, REQUEST_ID.get()), *args, **kwargs)


class _Call:
    def __init__(self, function: Callable[..., Any], request: str) -> None:
        self._function = function
        self._request = request

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = REQUEST_ID.set(self._request)
        try:
            return self._function(*args, **kwargs)
        finally:
            REQUEST_ID.reset(before)


def _write_lines_of_c_code_at_once() -> None:
    """To a file, C's `stdout` writes only when its buffer is full, and what is in there is lost when a process dies."""
    libc = ctypes.CDLL(None)
    with contextlib.suppress(ValueError, AttributeError):  # no such symbol
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, _IOLBF, ctypes.c_size_t(0))


_IOLBF = 1
"""Source: stdio.h of glibc and musl."""


def _tell_of_thread(log: LogFile, project_dir: str | None, args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit and args.exc_value is not None:
        name = args.thread.name if args.thread else "?"
        log.record("log", "ERROR", f"exception in thread {name}\n{format_user_traceback(args.exc_value, project_dir)}")
