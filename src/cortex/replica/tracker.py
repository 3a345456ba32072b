"""What a replica counts of its predictions, as `tracker:` in cortex.yaml asks. Never touches a response."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cortex.errors import Response
from cortex.wire.build import TrackerConfig
from cortex.wire.stats import EXACT_CLASSES, TrackerStats

WARN_INTERVAL_S = 60.0
"""A tracker that misses, misses often: one line a minute says so."""
_LARGEST = 1.7976931348623157e308
_MISSING: Any = object()


class Tracker:
    """
    Counts predictions of one api. `track` is called on the event loop or in one handler thread at a time each.

    Args:
        config: what to count.
        warn: takes the text of a warning.
        monotonic_s: the clock that spaces warnings.
    """

    def __init__(
        self, config: TrackerConfig, *, warn: Callable[[str], None], monotonic_s: Callable[[], float]
    ) -> None:
        self._key = config.key
        self._classifies = config.model_type == "classification"
        self._warn = warn
        self._monotonic_s = monotonic_s
        self._next_warning_s = -math.inf
        self._classes: dict[str, int] = {}
        self._other = 0
        self._count = 0
        self._total = 0.0
        self._least = math.inf
        self._greatest = -math.inf
        self._misses = 0

    def snapshot(self) -> TrackerStats:
        counted = self._count > 0
        return TrackerStats(
            classes=self._classes.copy(),
            other=self._other,
            count=self._count,
            total=max(-_LARGEST, min(_LARGEST, self._total)),  # JSON knows no infinity
            least=self._least if counted else None,
            greatest=self._greatest if counted else None,
            misses=self._misses,
        )

    def track_response(self, response: Any) -> None:
        """Count what a handler's `post_inference` returned: one prediction or one miss."""
        if isinstance(response, Response):
            if response.status >= 300:
                return  # an error of the handler's choice is no prediction
            response = response.body
        value = response
        if self._key is not None:
            value = _lookup(response, self._key)
            if value is _MISSING:
                self._miss(_no_key(response, self._key))
                return
        self._count_one(_only_element(value))

    def track_prediction(self, outputs: Mapping[str, Any]) -> None:
        """
        Count a model's raw prediction: each row is one.

        Args:
            outputs: value by output name.
        """
        if self._key is not None:
            value = outputs.get(self._key, _MISSING)
            if value is _MISSING:
                self._miss(f'the model has no output "{self._key}"')
                return
        elif len(outputs) == 1:
            value = next(iter(outputs.values()))
        else:
            self._miss(f"the model has {len(outputs)} outputs, and `tracker: key:` names none")
            return
        for row in _rows(value):
            self._count_one(_only_element(row))

    def _count_one(self, value: Any) -> None:
        if self._classifies:
            name = _class_name(value)
            if name is None:
                self._miss(f"expected text or an integer, found {_kind(value)}")
                return
            classes = self._classes
            if name in classes:
                classes[name] += 1
            elif len(classes) < EXACT_CLASSES:
                classes[name] = 1
            else:
                self._other += 1
            return
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            self._miss(f"expected a number, found {_kind(value)}")
            return
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            self._miss(f"expected a number, found {_kind(value)} that is none or too large")
            return
        if not math.isfinite(number):
            self._miss(f"the number is {number}")
            return
        self._count += 1
        self._total += number
        self._least = min(self._least, number)
        self._greatest = max(self._greatest, number)

    def _miss(self, reason: str) -> None:
        self._misses += 1
        now_s = self._monotonic_s()
        if now_s >= self._next_warning_s:
            self._next_warning_s = now_s + WARN_INTERVAL_S
            self._warn(f"tracker: nothing to count in this response: {reason} ({self._misses} misses so far)")


def _class_name(value: Any) -> str | None:
    """The text under which a class is counted; None for what is no class."""
    if type(value) is str:
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"  # as the response shows it
    if isinstance(value, str | int | np.integer):
        return str(value)
    if isinstance(value, np.bytes_):
        return value.decode("utf-8", "backslashreplace")
    return None


def _only_element(value: Any) -> Any:
    """A list or array of one element counts as that element, however deep."""
    for _ in range(32):  # a list may hold itself
        if isinstance(value, np.ndarray):
            return value.reshape(-1)[0] if value.size == 1 else value  # a numpy scalar keeps its type
        if not isinstance(value, list | tuple) or len(value) != 1:
            return value
        value = value[0]
    return value


def _rows(value: Any) -> list[Any] | Any:
    """The rows of an output: along the first dimension; a scalar is one row."""
    if isinstance(value, np.ndarray):
        return value.reshape(1) if value.ndim == 0 else value
    return value if isinstance(value, list | tuple) else [value]


def _lookup(response: Any, key: str) -> Any:
    if isinstance(response, Mapping):
        return response.get(key, _MISSING)
    if hasattr(type(response), "__dataclass_fields__"):  # shown as an object too
        return getattr(response, key, _MISSING)
    return _MISSING


def _no_key(response: Any, key: str) -> str:
    if isinstance(response, Mapping):
        found = ", ".join(f'"{name}"' for name in list(response)[:5]) or "none"
        return f'it has no key "{key}"; its keys: {found}'
    return f'an object with the key "{key}" was expected, found {_kind(response)}'


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {list(value.shape)} and type {value.dtype}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return "null" if value is None else type(value).__name__
