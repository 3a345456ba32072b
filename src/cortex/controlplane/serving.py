"""
uvicorn, asleep while nobody asks anything: by itself it looks ten times a second whether it should end, and writes down
what time it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from email.utils import formatdate
from types import FrameType
from typing import Any

import uvicorn

from cortex.binding import say_when_out_of_descriptors

_Message = MutableMapping[str, Any]
_Send = Callable[[_Message], Awaitable[None]]
_Receive = Callable[[], Awaitable[_Message]]
App = Callable[[_Message, _Receive, _Send], Awaitable[None]]


class SleepingServer(uvicorn.Server):
    """Serves an app until `end` is called or a signal comes."""

    def __init__(self, app: App, *, timeout_graceful_shutdown_s: int) -> None:
        super().__init__(
            uvicorn.Config(
                dated(app),
                log_config=None,
                access_log=False,
                lifespan="off",
                date_header=False,
                timeout_graceful_shutdown=timeout_graceful_shutdown_s,
            )
        )
        self._told = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def end(self) -> None:
        """Have it end, in order. From any thread, also before it runs."""
        self.should_exit = True
        self._tell()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._tell()

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        say_when_out_of_descriptors(self._loop)
        while not await self.on_tick(0):
            await self._told.wait()

    def _tell(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._told.set)


def dated(app: App) -> App:
    """
    An app whose responses say when they were made.

    Source: RFC 9110, 6.6.1: an origin server with a clock must.
    """

    async def serve(scope: _Message, receive: _Receive, send: _Send) -> None:
        async def send_dated(message: _Message) -> None:
            if message["type"] == "http.response.start":
                date = (b"date", formatdate(usegmt=True).encode())
                message = {**message, "headers": [date, *message.get("headers", ())]}
            await send(message)

        await app(scope, receive, send_dated)

    return serve
