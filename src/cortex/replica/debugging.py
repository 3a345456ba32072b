"""What `?debug=true` logs of a request: the value after each step, shortened, and how long the step took."""

from __future__ import annotations

import reprlib
from time import perf_counter
from typing import Any

import numpy as np

from cortex.replica.logs import LogFile
from cortex.replica.secrecy import masked

_TRUE = frozenset({b"", b"true", b"1", b"yes"})


def wants_debug(query: bytes) -> bool:
    """Whether a query string has `debug`, bare or as `true`, `1` or `yes`."""
    for parameter in query.split(b"&"):
        name, _, value = parameter.partition(b"=")
        if name == b"debug":
            return value.lower() in _TRUE
    return False


class Trace:
    """Takes notes on one request and logs each at once."""

    def __init__(self, log: LogFile, request: str) -> None:
        self._log = log
        self._request = request
        self._last_s = perf_counter()

    def note(self, step: str, value: Any) -> None:
        """Log the value that a step has made, and the microseconds since the step before."""
        took_us = (perf_counter() - self._last_s) * 1e6
        self._log.record("log", "DEBUG", f"debug: {step}: {shorten(value)} ({took_us:.0f} µs)", self._request)
        self._last_s = perf_counter()


def shorten(value: Any) -> str:
    """A value in one readable line, however large it is. Never raises."""
    try:
        return _SHORT.repr(value).replace("\n", " ")
    except Exception as error:
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxset = 12
        self.maxdict = 20
        self.maxstring = self.maxother = 300
        self.maxlong = 60

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, np.ndarray):
            return _array(x)
        if isinstance(x, str):
            return self.repr_str(masked(str(x)), level)  # before it is shortened: half a secret is still one
        if isinstance(x, bytes | bytearray):
            shown = repr(masked(bytes(x[:4096]).decode("latin-1"))[:40].encode("latin-1"))
            return shown if len(x) <= 40 else f"{shown}… ({len(x)} bytes)"
        if isinstance(x, list):  # and the backends' own kinds of it
            return self.repr_list(x, level)
        if isinstance(x, dict):
            return self.repr_dict(x, level)
        return super().repr1(x, level)


def _array(array: np.ndarray[Any, Any]) -> str:
    values = np.array2string(array, threshold=16, edgeitems=4, max_line_width=10_000, separator=", ")
    return f"{array.dtype}{list(array.shape)} {' '.join(values.split())}"


_SHORT = _Short()
