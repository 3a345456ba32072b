"""What `?debug=true` logs of a request: the value after each step, shortened, and how long the step took."""

from __future__ import annotations

import itertools
import reprlib
from time import perf_counter
from typing import Any

import numpy as np

from cortex.replica.observation.logs import LogFile
from cortex.replica.observation.secrecy import masked

SMALL_ARRAY = 16
"""Elements up to which all are shown."""
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
        """Log the value that a step has made, and the time since the step before."""
        took = _took(perf_counter() - self._last_s)
        self._log.record("log", "DEBUG", f"debug: {step}: {shorten(value)} ({took})", self._request)
        self._last_s = perf_counter()


def _took(seconds: float) -> str:
    """`35 µs`, `200 ms`, `1.25 s`."""
    if seconds < 0.01:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1.0 else f"{seconds:.2f} s"


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

    def repr_dict(self, x: Any, level: int) -> str:
        """In their own order."""
        if not x or level <= 0:
            return "{...}" if x else "{}"
        shown = [
            f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}"
            for key, value in itertools.islice(x.items(), self.maxdict)
        ]
        return "{" + ", ".join([*shown, "..."] if len(x) > self.maxdict else shown) + "}"

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
    """Small ones as they are; of large ones the range of their values, and the first and last of them."""
    about = f"{array.dtype}{list(array.shape)}"
    if array.size > SMALL_ARRAY:
        about += _range(array)
        array = array.reshape(-1)
    large: dict[str, Any] = {"formatter": {"float_kind": "{:.5g}".format}} if array.size > SMALL_ARRAY else {}
    values = np.array2string(array, threshold=SMALL_ARRAY, edgeitems=4, max_line_width=10_000, separator=", ", **large)
    return f"{about} {' '.join(values.split())}"


def _range(array: np.ndarray[Any, Any]) -> str:
    """What tells whether an input was scaled as a model wants it."""
    if array.dtype.kind not in "iuf":
        return ""
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    if not finite.size:
        return " without a finite value"
    words = f" from {finite.min():.5g} to {finite.max():.5g}, mean {finite.mean(dtype=np.float64):.5g}"
    return words if finite.size == array.size else f"{words}, {array.size - finite.size} not finite"


_SHORT = _Short()
