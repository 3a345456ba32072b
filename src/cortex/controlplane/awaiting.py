"""How calls of the API wait for news of other threads, without a thread each."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Awaited:
    """Something that happens now and then, in any thread, and that coroutines of any loop wait for."""

    def __init__(self) -> None:
        self.closed = False
        self._number = 0
        self._lock = threading.RLock()
        """May be taken again by a handler of a signal, in the thread that has it."""
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    @property
    def now(self) -> int:
        """How often it has happened. Look at this before looking at what it is about, and nothing is missed."""
        return self._number

    def note(self) -> None:
        """It has happened."""
        with self._lock:
            self._number += 1
            waiting = tuple(self._waiting)
        for loop, event in waiting:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """Nobody is kept waiting any more."""
        self.closed = True
        self.note()

    async def after(self, number: int, timeout_s: float) -> None:
        """Return once it has happened more often than `number` times, or the time is up."""
        event = asyncio.Event()
        entry = (asyncio.get_running_loop(), event)
        with self._lock:
            self._waiting.add(entry)
        try:
            if self._number == number and not self.closed:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await event.wait()
        finally:
            with self._lock:
                self._waiting.discard(entry)
