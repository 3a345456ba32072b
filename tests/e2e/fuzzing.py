"""Random requests to an api's endpoint: any method, path, headers and body, well-formed HTTP or nearly so."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from contract_harness import Connection, Home
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

ANY_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=30,
)
NUMBERS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(), max_size=6)
BODIES = st.one_of(
    st.binary(max_size=2000),
    ANY_JSON.map(lambda value: json.dumps(value).encode()),
    (NUMBERS | st.lists(NUMBERS, max_size=4)).map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=500).map(gzip.compress),
    st.binary(max_size=200).map(lambda data: b"\x93NUMPY\x01\x00" + data),
    st.binary(max_size=200).map(lambda data: b"--b\r\n" + data + b"\r\n--b--"),
    st.integers(1, 200_000).map(lambda count: b"[" * count),
)
CONTENT_TYPES = st.sampled_from(
    [
        *("application/json", "application/x-npy", "image/png", "audio/wav", "application/octet-stream", "text/plain"),
        *("multipart/form-data; boundary=b", "multipart/form-data", "application/json; charset=utf-16", "", ";", "/"),
    ]
) | st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40)
VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("accept", "accept-encoding", "authorization", "cookie", "expect", "if-none-match", "origin", "range"),
            *("x-request-id", "x-cortex-limits", "x-forwarded-for", "x-http-method-override", "te", "upgrade"),
        ]
    ),
    VALUES,
    max_size=5,
)
METHODS = st.sampled_from(["POST"] * 6 + ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "get", "FOO"])
SUFFIXES = st.sampled_from(
    ["", "", "", "/", "?debug=true", "?debug", "?a=%00%ff&a", "?" + "x" * 3000, "//", "/../", "#a"]
)


@dataclass
class Fuzzed:
    """What came of it."""

    statuses: Counter[int] = field(default_factory=Counter)
    closed: int = 0
    """Connections that ended without an answer: only for what is no usable HTTP."""
    bad: list[tuple[int, bytes]] = field(default_factory=list)
    """Answers of 5xx, with the beginning of the request."""

    @property
    def count(self) -> int:
        """Requests that were answered."""
        return sum(self.statuses.values())


def fuzz_endpoint(home: Home, path: str, *, seconds: float, at_least: int = 0, seed: int | None = None) -> Fuzzed:
    """
    Send random requests for a while.

    Args:
        at_least: so many even when the time is up: the machine may be busy.

    Raises:
        TimeoutError: one was not answered within a minute.
    """
    fuzzed = Fuzzed()
    until_s = time.monotonic() + seconds

    @settings(
        max_examples=1_000_000 if seconds > 30 else 100_000,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        method=METHODS,
        suffix=SUFFIXES,
        headers=HEADERS,
        content_type=st.none() | CONTENT_TYPES,
        encoding=st.sampled_from([None, None, None, "gzip", "identity", "br", "gzip, gzip"]),
        body=BODIES,
        chunked=st.booleans(),
    )
    def send(**request: Any) -> None:
        if time.monotonic() > until_s and fuzzed.count >= at_least:
            raise _Enough
        _one(home, path, fuzzed, **request)

    with warnings.catch_warnings(), contextlib.suppress(_Enough):
        warnings.filterwarnings("ignore", "Generating overly large repr")
        (send if seed is None else seeded(seed)(send))()
    return fuzzed


class _Enough(Exception):
    """The time is up."""


def _one(
    home: Home,
    path: str,
    fuzzed: Fuzzed,
    *,
    method: str,
    suffix: str,
    headers: dict[str, str],
    content_type: str | None,
    encoding: str | None,
    body: bytes,
    chunked: bool,
) -> None:
    lines = [f"{method} {path}{suffix} HTTP/1.1", "host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"content-type: {content_type}"] if content_type is not None else []
    lines += [f"content-encoding: {encoding}"] if encoding is not None else []
    lines += ["transfer-encoding: chunked" if chunked else f"content-length: {len(body)}"]
    sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked and body else b"0\r\n\r\n" if chunked else body
    data = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + sent
    with Connection(home.port) as connection:
        try:
            connection.send(data)
            answer = connection.receive(has_body=method != "HEAD")
        except ConnectionError:
            fuzzed.closed += 1
            return
    fuzzed.statuses[answer.status] += 1
    if answer.status >= 500:
        fuzzed.bad.append((answer.status, data[:500]))
