"""
The first code of the console scripts: whoever presses Ctrl-C while the rest is imported gets a word, not a traceback.

Imports nothing heavy; `main` takes over once it is there.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn


def run() -> NoReturn:
    """Entry point of the console scripts."""
    open_streams()
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # else a shell has it ignored, and it stays so
        signal.signal(signal.SIGINT, _leave)
    from cortex.cli.main import run as begin

    signal.signal(signal.SIGINT, usual)
    begin()


def open_streams() -> None:
    """
    Open what was closed of stdin, stdout and stderr, as `>&-` and some supervisors do, on nothing.

    Else the next file or socket that is opened gets its number, and what is printed goes there.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def _leave(*_: object) -> None:
    os.write(2, b"\ninterrupted\n")
    os._exit(130)
