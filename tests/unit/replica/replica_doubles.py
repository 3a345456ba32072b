"""What stands around a service in a replica, played: its log, its streams, a connection."""

from __future__ import annotations

from typing import Any

import orjson

from cortex.replica.transport.http import Exchange


class Log:
    def __init__(self) -> None:
        self.records: list[tuple[str, str, str, str | None]] = []

    def record(self, stream: str, level: str, text: str, request: str | None = None) -> None:
        self.records.append((stream, level, text, request))

    @property
    def text(self) -> str:
        return "\n".join(record[2] for record in self.records)


class Streams:
    def finish_lines(self, request: str) -> None:
        pass


class Answer:
    """Plays the connection."""

    def __init__(self) -> None:
        self.status = 0
        self.content_type = b""
        self.body = b""
        self.extra = b""
        self.lost = False
        self.left = False
        self.times = 0
        self.looks = 0
        """How often was asked whether the caller is gone."""

    def respond(self, exchange: Exchange, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> bool:
        if self.lost:
            return False
        self.times += 1
        self.status, self.content_type, self.body, self.extra = status, content_type, body, extra
        return True

    def peer_has_left(self) -> bool:
        return self.left

    def peer_is_gone(self) -> bool:
        self.looks += 1
        return self.lost

    @property
    def headers(self) -> dict[str, str]:
        lines = self.extra.decode().split("\r\n")
        return dict(line.split(": ", 1) for line in lines if line) | {"content-type": self.content_type.decode()}

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)
