"""Users' tracebacks: their frames first, ours folded away, files named as in their project."""

from __future__ import annotations

import os
import threading
import traceback
from types import TracebackType

import cortex
from cortex.replica.observation.places import as_called
from cortex.replica.observation.secrecy import masked

MAX_CHARS = 20_000
_OURS = (os.path.dirname(os.path.abspath(cortex.__file__)) + os.sep, "<frozen ", threading.__file__)
"""Where frames begin that are of no interest: a thread's first ones are those of `threading`."""


def format_user_traceback(error: BaseException, project_dir: str | None) -> str:
    """
    The traceback as users should read it.

    Frames of this package and of the import machinery are left out, in chained exceptions too; paths inside the
    project are relative to it. Never raises: exceptions whose `__str__` fails are shown as such.
    """
    try:
        summary = traceback.TracebackException.from_exception(error)
        _clean(summary, project_dir, set())
        text = "".join(summary.format()).rstrip()
    except Exception as broken:  # e.g. a RecursionError while formatting one
        text = f"{type(error).__name__} (its traceback cannot be shown: {type(broken).__name__})"
    text = as_called(masked(text))
    if len(text) > MAX_CHARS:
        half = MAX_CHARS // 2
        text = f"{text[:half]}\n… {len(text) - MAX_CHARS} characters left out …\n{text[-half:]}"
    return text


def format_fault(error: BaseException, project_dir: str | None) -> str:
    """The traceback of what nobody expected: as users should read it if their code took part, else with all of ours."""
    if project_dir is not None and _passes_through(error, os.path.join(os.path.abspath(project_dir), "")):
        return format_user_traceback(error, project_dir)
    return masked("".join(traceback.format_exception(error)).rstrip())


def _passes_through(error: BaseException, folder: str) -> bool:
    return any(frame.f_code.co_filename.startswith(folder) for frame, _ in traceback.walk_tb(error.__traceback__))


def user_location(error: BaseException, project_dir: str | None) -> str:
    """`file:line` of the innermost frame inside the project; the innermost that is not ours otherwise; or empty."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown_path(error.filename, project_dir)}:{error.lineno or 1}"
    inside = outside = ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith(_OURS):
            shown = _shown_path(file, project_dir)
            if shown != file or project_dir is None:
                inside = f"{shown}:{trace.tb_lineno}"
            outside = f"{shown}:{trace.tb_lineno}"
        trace = trace.tb_next
    return inside or outside


def one_line(error: BaseException, max_chars: int = 300) -> str:
    """`KeyError: 'sepal_length'`: type and first line of the message, shortened. Never raises."""
    try:
        message = str(error).strip()
    except Exception:
        message = "<its message cannot be shown>"
    message = as_called(masked(message)).split("\n", 1)[0]
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def _clean(summary: traceback.TracebackException, project_dir: str | None, seen: set[int]) -> None:
    if id(summary) in seen:
        return
    seen.add(id(summary))
    frames = []
    for frame in summary.stack:
        if frame.filename.startswith(_OURS):
            continue
        _ = frame.line  # looked up by the real path, before it is shortened
        frame.filename = _shown_path(frame.filename, project_dir)
        frames.append(frame)
    summary.stack = traceback.StackSummary.from_list(frames)
    shown = getattr(summary, "filename", None)
    if isinstance(shown, str):  # a SyntaxError's own file
        summary.filename = _shown_path(shown, project_dir)
    for chained in (summary.__cause__, summary.__context__, *(getattr(summary, "exceptions", None) or ())):
        if chained is not None:
            _clean(chained, project_dir, seen)


def _shown_path(path: str, project_dir: str | None) -> str:
    if project_dir is not None:
        inside = os.path.join(os.path.abspath(project_dir), "")
        if path.startswith(inside):
            return path[len(inside) :]
    return path
