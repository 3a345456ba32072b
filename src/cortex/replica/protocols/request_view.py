"""What a handler sees of a request that came over HTTP."""

from __future__ import annotations

import functools
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cortex.replica.transport.http import Exchange


class RequestView:
    """
    What a hook sees of its request: `.id .headers .query .content_type .body .warmup .state`.

    `state` is a dict that pre and post of one request share.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.state: dict[Any, Any] = {}

    @property
    def id(self) -> str:
        return self._exchange.id

    @functools.cached_property
    def headers(self) -> Mapping[str, str]:
        """Case-insensitive."""
        return Headers({**self._exchange.headers_text(), "x-request-id": self.id})

    @functools.cached_property
    def query(self) -> dict[str, str]:
        """Parameters of the URL; of a repeated one the last value."""
        text = self._exchange.query.decode("latin-1")
        try:
            return dict(urllib.parse.parse_qsl(text, keep_blank_values=True))
        except ValueError:  # more parameters than Python wants to separate
            return {}

    @property
    def content_type(self) -> str:
        """The media type without parameters, in lower case; empty when none was sent."""
        return (self._exchange.content_type or "").partition(";")[0].strip().lower()

    @property
    def body(self) -> bytes:
        """As it was sent, unpacked if it was compressed."""
        return self._exchange.body

    @property
    def warmup(self) -> bool:
        """True for the request that tries a replica before it gets any traffic."""
        return self._exchange.warmup


class Headers(Mapping[str, str]):
    """Request headers, found whatever the case of their name."""

    def __init__(self, by_lower_name: dict[str, str]) -> None:
        self._items = by_lower_name

    def __getitem__(self, name: str) -> str:
        return self._items[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return repr(self._items)
