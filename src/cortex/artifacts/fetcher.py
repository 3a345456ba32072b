"""
A short-lived process that fetches one model: see `wire.fetch` for what it reads and writes.

Apart from the control plane, so that neither the client of object stores, nor its buffers, nor credentials are
ever in it, and so that whoever does not want the model any more can end it at any moment.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

import msgspec
import setproctitle

from cortex.artifacts.remote import fetch
from cortex.artifacts.store import ArtifactStore
from cortex.errors import CortexError
from cortex.spec.locations import masked_model
from cortex.storage.credentials import CredentialSurroundings, access_to
from cortex.wire.fetch import Fetched, FetchEvent, FetchProgress, FetchRefused, FetchRequest

TELL_EVERY_S = 0.2
NICENESS = 5
"""Predictions come first."""


class NotWanted(BaseException):
    """Nobody wants the model any more."""


class Teller:
    """Writes events: what is said of progress at most once in `TELL_EVERY_S`, the newest. For several threads."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._guard = threading.Lock()
        self._newest: FetchProgress | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def progress(self, progress: FetchProgress) -> None:
        with self._guard:
            if progress.note:
                self._write(progress)
            else:
                self._newest = progress

    def result(self, event: Fetched | FetchRefused) -> None:
        with self._guard:
            self._write_newest()
            self._write(event)

    def _run(self) -> None:
        while True:
            with self._guard:
                self._write_newest()
            time.sleep(TELL_EVERY_S)

    def _write_newest(self) -> None:
        if self._newest is not None:
            self._write(self._newest)
            self._newest = None

    def _write(self, event: FetchEvent) -> None:
        try:
            self._output.write(msgspec.json.encode(event) + b"\n")
            self._output.flush()
        except BrokenPipeError:
            pass  # whoever listened is gone, which `_watch_caller` deals with


def run(request: FetchRequest, environ: dict[str, str], teller: Teller) -> Fetched | FetchRefused:
    """Fetch, and put what went wrong into words."""
    from cortex.artifacts.origin import open_origin

    try:
        access = access_to(request.model.partition("://")[0].lower(), CredentialSurroundings(environ))
        return fetch(
            open_origin(request.model, access),
            ArtifactStore(Path(request.store)),
            model_format=request.model_format,
            known=request.known,
            tell=teller.progress,
        )
    except CortexError as error:
        return FetchRefused(problem=error.problem())


def main() -> NoReturn:
    """Ends with 0 when there is an answer, whichever; leaves no half-written file behind when it is told to end."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us, who ends us
    os.nice(NICENESS)
    code = 1
    try:
        request = msgspec.json.decode(sys.stdin.buffer.readline(), type=FetchRequest)
        setproctitle.setproctitle(f"cortex-fetcher {Path(request.store).parent} {masked_model(request.model)}")
        threading.Thread(target=_watch_caller, daemon=True).start()
        teller = Teller(sys.stdout.buffer)
        teller.start()
        teller.result(run(request, dict(os.environ), teller))
        code = 0
    except NotWanted:
        pass
    except BaseException:
        import traceback

        traceback.print_exc()
    # Threads that wait for an answer of the origin are not waited for.
    sys.stderr.flush()
    os._exit(code)


def _watch_caller() -> None:
    """The pipe ends with whoever wanted the model, however that comes about."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _end(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise NotWanted


if __name__ == "__main__":
    main()
