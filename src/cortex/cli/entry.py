"""
The first code of the console scripts: whoever presses Ctrl-C while the rest is imported gets a word, not a traceback.

Imports nothing heavy; `main` takes over once it is there.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn


def run() -> NoReturn:
    """Entry point of the console scripts."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # else a shell has it ignored, and it stays so
        signal.signal(signal.SIGINT, _leave)
    from cortex.cli.main import run as begin

    signal.signal(signal.SIGINT, usual)
    begin()


def _leave(*_: object) -> None:
    os.write(2, b"\ninterrupted\n")
    os._exit(130)
