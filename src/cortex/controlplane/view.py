"""
What the control plane shows, and who waits for it to change.

Statuses are computed once for each tick, by `planning.status`, and kept for readers; a watcher passes the token of
what it has seen and is answered as soon as there is something else.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading

from cortex.wire.operator import ApiStatus, Watched


class View:
    """The latest statuses. Written by the control loop's thread, read by the API's."""

    def __init__(self) -> None:
        self._statuses: dict[str, ApiStatus] = {}
        self._serial = 0
        self._life = secrets.token_hex(4)
        """Part of each token: what another process of ours has shown is not what we show."""
        self._lock = threading.Lock()
        self._waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def publish(self, statuses: tuple[ApiStatus, ...]) -> None:
        """Replace everything shown; wakes watchers when it differs."""
        new = {f"{status.deployment}/{status.name}": status for status in statuses}
        with self._lock:
            if new == self._statuses:
                return
            self._statuses = new
            self._serial += 1
            waiting = tuple(self._waiting)
        for loop, event in waiting:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                loop.call_soon_threadsafe(event.set)

    def statuses(self, deployment: str | None = None) -> tuple[ApiStatus, ...]:
        """All apis, or one deployment's, sorted by deployment and name."""
        with self._lock:
            found = self._statuses
        return tuple(found[key] for key in sorted(found) if deployment is None or found[key].deployment == deployment)

    def status(self, deployment: str, name: str) -> ApiStatus | None:
        with self._lock:
            return self._statuses.get(f"{deployment}/{name}")

    def now(self, deployment: str | None = None) -> Watched:
        with self._lock:
            serial = self._serial
        return Watched(token=f"{self._life}-{serial}", apis=self.statuses(deployment))

    async def changed(self, token: str, timeout_s: float, deployment: str | None = None) -> Watched:
        """What is shown now, if that is not what `token` stands for; else wait for it to change."""
        event = asyncio.Event()
        entry = (asyncio.get_running_loop(), event)
        with self._lock:
            self._waiting.add(entry)
        try:
            if self.now().token == token:
                async with asyncio.timeout(timeout_s):
                    await event.wait()
        except TimeoutError:
            pass
        finally:
            with self._lock:
                self._waiting.discard(entry)
        return self.now(deployment)
