"""Starts the process that asks an api, and takes in what it says. The process itself: `prober`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading

import msgspec

from cortex.errors import CortexError
from cortex.wire.probing import ProbeAnswer, ProbeRequest

COMMAND = (sys.executable, "-P", "-m", "cortex.controlplane.prober")
"""`-P`: nothing in the current folder is ours to import."""
END_S = 5.0


class ProberFailed(CortexError):
    """The process that asks an api while its change-over is proved could not be started; nothing was changed."""

    reference = "prober-failed"
    hint = "deploy again, or without --prove"


class Probing:
    """
    An api that is being asked, until it is closed.

    Raises:
        ProberFailed
    """

    def __init__(self, request: ProbeRequest) -> None:
        self._answers: list[ProbeAnswer] = []
        try:
            self._process = subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", start_new_session=True
            )
        except OSError as error:
            raise ProberFailed(f"the process that asks could not be started: {error}") from error
        self._reader = threading.Thread(target=self._read, name="probing", daemon=True)
        self._reader.start()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, as is seen by whoever looks
            self._process.stdin.write(msgspec.json.encode(request) + b"\n")
            self._process.stdin.flush()

    def answers(self) -> tuple[ProbeAnswer, ...]:
        """All so far, in the order in which they were answered."""
        return tuple(self._answers)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Unasked: something has killed it."""
        return self._process.poll() is not None

    def close(self) -> None:
        """Ask no more."""
        process = self._process
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # which it takes for a request to end
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join(END_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        decoder = msgspec.json.Decoder(ProbeAnswer)
        rest = b""
        with self._process.stdout as output:
            while chunk := os.read(output.fileno(), 2**16):
                *lines, rest = (rest + chunk).split(b"\n")
                self._answers += map(decoder.decode, lines)
