"""Errors become text and an exit code here, and nowhere else."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from cortex.cli import text
from cortex.cli.command import StoppedByUser
from cortex.cli.problems import show_problems
from cortex.cli.terminal import Terminal
from cortex.errors import CortexError, Problem
from cortex.settings import ControlLayout, UnusableHome, WrongSetting, load_settings

DONE = 0
FAILED = 1
USAGE = 2
OUR_FAULT = 3
INTERRUPTED = 130

EXIT_CODES: Sequence[tuple[type[BaseException], int]] = (
    (WrongSetting, USAGE),
    (CortexError, FAILED),
    (click.ClickException, USAGE),
    (BrokenPipeError, FAILED),
    (StoppedByUser, INTERRUPTED),
    (KeyboardInterrupt, INTERRUPTED),
    (BaseException, OUR_FAULT),
)
"""The first row that fits decides."""


def handle(error: BaseException, terminal: Terminal, argv: Sequence[str]) -> int:
    """Tell a person about an error, and return the exit code for it. Raises nothing."""
    if isinstance(error, OSError) and (unusable := _of_home(error, terminal, argv)) is not None:
        error = unusable
    code = next(code for kind, code in EXIT_CODES if isinstance(error, kind))
    try:
        _tell(error, terminal, argv)
    except BrokenPipeError:
        pass
    except Exception as second:  # telling it failed: at least the traceback of the first, on the real stderr
        code = OUR_FAULT
        _last_resort(error, second)
    return code


def _of_home(error: OSError, terminal: Terminal, argv: Sequence[str]) -> UnusableHome | None:
    """A failure to read or write in the home, which is its owner's matter and no fault of ours; None if it is not."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not is_full and (
        error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or not isinstance(error.filename, str | bytes)
    ):
        return None
    flags = [
        arg.partition("=")[2] or after for arg, after in zip(argv, [*argv[1:], ""], strict=True) if arg[:6] == "--home"
    ]
    try:
        home = load_settings(terminal.environ, home=flags[-1] if flags else None).home
    except CortexError:
        return None
    path = home if error.filename is None else Path(os.fsdecode(error.filename))
    if not path.is_relative_to(home):
        return None
    if is_full:  # where a write failed is not told
        return UnusableHome(path, "cannot be written: the disk is full", f"free space on the disk of {home}")
    why = (error.strerror or str(error)).lower()
    return UnusableHome(path, f"cannot be used ({why})", "set CORTEX_HOME to a folder that you own and can write")


def _tell(error: BaseException, terminal: Terminal, argv: Sequence[str]) -> None:
    if isinstance(error, CortexError):
        show_problems(terminal, error.all_problems())
    elif isinstance(error, click.ClickException):
        show_problems(terminal, [_usage_problem(error)])
    elif isinstance(error, StoppedByUser | KeyboardInterrupt):
        sentence = f": {error}" if str(error) else ""
        quiet = isinstance(error, StoppedByUser) and not sentence
        lines = text.wrapped(f"interrupted{sentence}", terminal.width if terminal.shows_talk else sys.maxsize)
        terminal.say("\n".join([""] if quiet else ["", *lines]))
    elif not isinstance(error, BrokenPipeError):
        show_problems(terminal, [_fault_problem(error, terminal, argv)])


def _usage_problem(error: click.ClickException) -> Problem:
    context = error.ctx if isinstance(error, click.UsageError) else None
    message, hint = error.format_message(), getattr(error, "hint", "")
    if isinstance(error, click.NoSuchOption):
        message, hint = f"there is no option {error.option_name}", _option_hint(error, context)
    if not hint and context is not None:
        hint = f"`{context.command_path} --help` shows what it takes"
    return Problem(reference="wrong-usage", message=message.rstrip("."), hint=hint)


def _option_hint(error: click.NoSuchOption, context: click.Context | None) -> str:
    from cortex.cli.suggestion import option_hint

    if context is None:
        return ""
    options = [
        name
        for parameter in context.command.get_params(context)
        for name in (*parameter.opts, *parameter.secondary_opts)
    ]
    name = context.command.name if context.parent is not None else ""
    return option_hint(name or "", error.option_name, options)


def _fault_problem(error: BaseException, terminal: Terminal, argv: Sequence[str]) -> Problem:
    import traceback

    now = datetime.fromtimestamp(terminal.clock.wall_s(), UTC)
    report = fault_report(error, argv, now)
    file = write_report(report, now, terminal)
    what = traceback.format_exception_only(error)[-1].strip()
    if file is None:
        return Problem(reference="our-fault", message=f"Cortex failed, this is its fault: {what}", traceback=report)
    return Problem(
        reference="our-fault",
        message=f"Cortex failed, this is its fault: {what}",
        hint=f"a report for its makers is in {file}; look through it before you pass it on",
    )


def fault_report(error: BaseException, argv: Sequence[str], now: datetime) -> str:
    """What is needed to find a fault: versions, the command line, the traceback."""
    import platform
    import traceback
    from importlib.metadata import PackageNotFoundError, version

    from cortex.version import __version__

    def version_of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "none"

    return "\n".join(
        [
            f"cortex {__version__}",
            f"python {platform.python_version()} on {platform.platform()}",
            *(f"{package} {version_of(package)}" for package in ("click", "msgspec", "pydantic", "rich")),
            f"when {now.isoformat(timespec='seconds')}",
            f"command {['cortex', *argv]!r}",
            "",
            "".join(traceback.format_exception(error)),
        ]
    )


def write_report(report: str, now: datetime, terminal: Terminal) -> Path | None:
    """Write a report to the home if there is one, else to the folder of temporary files; None if neither works."""
    name = f"fault-{now:%Y%m%dT%H%M%S}-{os.getpid()}.txt"
    for folder in _report_folders(terminal):
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            file = folder / name
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(report)
        except OSError:
            continue
        return file
    return None


def _report_folders(terminal: Terminal) -> list[Path]:
    import tempfile

    folders = []
    try:
        folders.append(ControlLayout(load_settings(terminal.environ).home).reports)
    except CortexError:
        pass
    try:
        folders.append(Path(tempfile.gettempdir()))
    except OSError:
        pass
    return folders


def _last_resort(error: BaseException, second: BaseException) -> None:
    import traceback

    try:
        sys.__stderr__ and sys.__stderr__.write(
            f"error: our-fault\n{''.join(traceback.format_exception(error))}\n"
            f"and while telling that:\n{''.join(traceback.format_exception(second))}\n"
        )
    except Exception:
        pass
