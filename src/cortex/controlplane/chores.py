"""How the control plane does what has time: in a thread of its own, one step after another."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from cortex.errors import CortexError

log = logging.getLogger(__name__)

FAULT_PAUSE_S = 60.0


class Chore:
    """
    Takes a step now and then, until it is closed.

    Args:
        step: does what is due, and returns seconds until the next step; None: once woken.
        first_after_s: likewise, before the first.
        settle_s: waited before each step, woken or not: what it is to look at is still on its way.
        fault_pause_s: until the next step, when one has failed.
        stopping: set when it is closed, for a step that takes long.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], float | None],
        *,
        first_after_s: float | None = 0.0,
        settle_s: float = 0.0,
        fault_pause_s: float = FAULT_PAUSE_S,
        stopping: threading.Event | None = None,
    ) -> None:
        self._name = name
        self._step = step
        self._first_after_s = first_after_s
        self._settle_s = settle_s
        self._fault_pause_s = fault_pause_s
        self._woken = threading.Event()
        self._stopping = stopping or threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There may be something to do."""
        self._woken.set()

    def close(self) -> None:
        """Begin no further step."""
        self._stopping.set()
        self._woken.set()

    def _run(self) -> None:
        pause_s = self._first_after_s
        while True:
            self._woken.wait(pause_s)
            self._woken.clear()
            if self._stopping.wait(self._settle_s):
                return
            pause_s = self._fault_pause_s
            try:
                pause_s = self._step()
            except CortexError as error:
                log.warning("%s is put off: %s", self._name, error)
            except Exception:
                log.exception("a fault of ours; %s is put off", self._name)
