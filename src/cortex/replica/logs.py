"""
The replica's log file, and everything that leads into it.

Descriptors 1 and 2 are the file itself, so what C code, subprocesses and the fault handler write lands there too, as
plain lines. `print`, Python's logging and our own records become JSON lines (see `wire.logline`) that carry the id of
the request whose code wrote them.

Nothing here may fail a request: text that cannot be encoded is escaped, a full disk loses lines, a closed `sys.stdout`
stays open.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import orjson

from cortex.lib.log import get_logger
from cortex.replica import secrecy

REQUEST_ID: ContextVar[str] = ContextVar("cortex_request_id", default="")
"""Id of the request whose code is running; empty between requests."""

MAX_FILE_BYTES = 10 * 2**20
KEPT_FILES = 3
"""The current file, `.1` and `.2`."""
MAX_TEXT_CHARS = 256 * 1024
"""A longer text is cut into several records, so that readers need not hold endless lines."""
MAX_PENDING_CHARS = 64 * 1024
"""Printed text without a line end becomes a line of its own at this length."""


class LogFile:
    """
    Where records go.

    Args:
        path: opened for appending, and made the process's descriptors 1 and 2. Empty: records go to what
            descriptor 2 already is, and nothing is rotated.
        attempt: written into every record.
    """

    def __init__(self, path: str, attempt: int) -> None:
        self._path = path
        self._attempt = attempt
        self._pid = os.getpid()
        if path:
            self._fd = _open(path)
            os.dup2(self._fd, 1)
            os.dup2(self._fd, 2)
        else:
            self._fd = os.dup(2)
        # Our own descriptor: users' code may close 1, and the next file it opens would then be number 1.
        os.set_inheritable(self._fd, False)

    @property
    def descriptor(self) -> int:
        return self._fd

    def record(self, stream: str, level: str, text: str, request: str | None = None) -> None:
        """Append one record, without the values of secrets; cut into several when very long."""
        text = secrecy.masked(text)
        if request is None:
            request = REQUEST_ID.get()
        if len(text) <= MAX_TEXT_CHARS:
            self._append(stream, level, text, request)
            return
        for start in range(0, len(text), MAX_TEXT_CHARS):
            self._append(stream, level, text[start : start + MAX_TEXT_CHARS], request)

    def rotate_if_full(self) -> None:
        """
        Start a new file when this one is over `MAX_FILE_BYTES`. Called once a second, by one thread.

        Not checked while writing: lines past us, of C code and subprocesses, count too, and a second of output
        fits anywhere.
        """
        if not self._path or os.getpid() != self._pid:
            return
        try:
            if os.fstat(self._fd).st_size < MAX_FILE_BYTES:
                return
            for number in range(KEPT_FILES - 1, 0, -1):
                older = f"{self._path}.{number - 1}" if number > 1 else self._path
                if os.path.exists(older):
                    os.replace(older, f"{self._path}.{number}")
            fresh = _open(self._path)
        except OSError:
            return  # e.g. no room: the old descriptor still works, under whichever name
        for fd in (self._fd, 1, 2):
            os.dup2(fresh, fd, inheritable=fd <= 2)
        os.close(fresh)

    def _append(self, stream: str, level: str, text: str, request: str) -> None:
        line: dict[str, Any] = {"t": round(time.time(), 6), "s": stream, "a": self._attempt}
        if request:
            line["r"] = request
        if level:
            line["l"] = level
        line["m"] = text
        try:
            data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # surrogates
            line["m"] = text.encode("utf-8", "backslashreplace").decode()
            line["r"] = request.encode("utf-8", "backslashreplace").decode()
            data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        try:
            os.write(self._fd, data)  # whole: O_APPEND on a file, one call
        except OSError:
            pass


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
        self._log = log
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
        for line in lines:
            if line:
                self._log.record(self._stream, "", line)
        return len(text)

    def writelines(self, lines: Iterable[Any], /) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Make a line of what this thread has pending for this request."""
        pending = self.unfinished.pop((threading.get_ident(), REQUEST_ID.get()), "")
        if pending:
            self._log.record(self._stream, "", pending)

    def flush_all(self) -> None:
        """Make a line of whatever any thread has pending."""
        while self.unfinished:
            try:
                (_thread, request), pending = self.unfinished.popitem()
            except KeyError:
                return
            self._log.record(self._stream, "", pending, request)

    def log_record(self, level: str, text: str) -> None:
        """A record of Python's logging that was meant for this stream."""
        self._log.record("log", level, text)

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


class RecordHandler(logging.Handler):
    """Python's logging into the log file: level and text, with a traceback kept in the same record."""

    def __init__(self, log: LogFile) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.record("log", record.levelname, self.format(record))
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)


class Streams:
    """The pair of writers that stand in for stdout and stderr."""

    def __init__(self, out: LineWriter, err: LineWriter) -> None:
        self._out = out
        self._err = err

    def finish_lines(self) -> None:
        """Write out what this thread printed without a line end. Cheap when there is nothing, as nearly always."""
        if self._out.unfinished:
            self._out.flush()
        if self._err.unfinished:
            self._err.flush()

    def finish(self) -> None:
        """Write out everything: the process is about to end."""
        self._out.flush_all()
        self._err.flush_all()


def install(log: LogFile) -> Streams:
    """
    Lead stdout, stderr and logging of this process into the log.

    The root logger gets no handler, so that `logging.basicConfig` in users' code works as they know it. What nobody
    handles comes to us as the handler of last resort, and whatever handler users configure for stdout or stderr hands
    its records over whole, instead of writing lines.
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
    logging.StreamHandler.emit = _emit_to_stream  # type: ignore[method-assign,assignment]
    sys.excepthook = _ExceptHook(log)
    threading.excepthook = _thread_excepthook(log)
    return Streams(out, err)


_emit_elsewhere = logging.StreamHandler.emit


def _emit_to_stream(self: logging.StreamHandler[Any], record: logging.LogRecord) -> None:
    """`StreamHandler.emit`, except that a record meant for our stdout or stderr keeps its level and its lines."""
    stream = self.stream
    if not isinstance(stream, LineWriter):
        _emit_elsewhere(self, record)
        return
    try:
        stream.log_record(record.levelname, self.format(record))
    except RecursionError:
        raise
    except Exception:
        self.handleError(record)


class _ExceptHook:
    def __init__(self, log: LogFile) -> None:
        self._log = log

    def __call__(self, kind: type[BaseException], value: BaseException, trace: TracebackType | None, /) -> None:
        self._log.record("log", "ERROR", "".join(traceback.format_exception(kind, value, trace)).rstrip())


def _thread_excepthook(log: LogFile) -> Any:
    def hook(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is SystemExit:
            return
        name = args.thread.name if args.thread else "?"
        trace = "".join(traceback.format_exception(args.exc_type, args.exc_value, args.exc_traceback))
        log.record("log", "ERROR", f"exception in thread {name}\n{trace.rstrip()}")

    return hook
