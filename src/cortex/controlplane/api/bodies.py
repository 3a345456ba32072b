"""
What comes in and goes out: bodies read within their limits, answers as JSON.

Bodies are msgspec types rather than pydantic models, because the CLI shares them and has to start in an instant.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

import msgspec
from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cortex.controlplane.api.refusals import BadRequest
from cortex.wire.framing import UNREADABLE

MAX_JSON_BYTES = 32 * 2**20
"""A deploy's body: the names of 50,000 files, a couple of hundred bytes each, have 10 MiB."""
PIECE_BYTES = 2**20
"""What is handed to a thread at once: a hash and a write of this take longer than getting there."""
MAX_DROPPED_BYTES = 2**30
"""How much of a refused body is read for nothing, so that the caller gets to read why."""

T = TypeVar("T")


def as_json(content: object) -> Response:
    return Response(encode(content), media_type="application/json")


def encode(content: object) -> bytes:
    return msgspec.json.encode(content)


async def read_body(request: Request, kind: type[T]) -> T:
    """All of it. Raises BadRequest where it does not fit, HTTPException where it is too large."""
    parts: list[bytes] = []
    size = 0
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > MAX_JSON_BYTES:
        raise HTTPException(413, f"the body is over {MAX_JSON_BYTES} bytes")
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_JSON_BYTES:
            raise HTTPException(413, f"the body is over {MAX_JSON_BYTES} bytes")
        parts.append(chunk)
    try:
        return msgspec.json.decode(b"".join(parts), type=kind)
    except UNREADABLE as error:
        raise BadRequest(f"the body does not fit: {error}") from error


class LargeBody:
    """A request's body as it arrives."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._over = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it, in pieces of about `PIECE_BYTES`. Raises ClientDisconnect."""
        parts: list[bytes] = []
        size = 0
        while not self._over:
            chunk = await self._chunk()
            parts.append(chunk)
            size += len(chunk)
            if size >= PIECE_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
        if size:
            yield b"".join(parts)

    async def drop_rest(self) -> None:
        """Read on, up to `MAX_DROPPED_BYTES`, for nothing."""
        dropped = 0
        with contextlib.suppress(ClientDisconnect):
            while not self._over and dropped < MAX_DROPPED_BYTES:
                dropped += len(await self._chunk())

    async def _chunk(self) -> bytes:
        message = await self._request.receive()
        if message["type"] != "http.request":
            self._over = True
            raise ClientDisconnect
        self._over = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body
