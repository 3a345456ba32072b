"""
What a replica counts of its predictions, as `tracker:` in cortex.yaml asks. Never touches a response.

Classes are counted exactly as long as there is room for all. After that the frequent ones stay: a class that finds no
room makes all others a little lighter, and those that weigh nothing any more give their place to the next. How often
that happened bounds how much any count is too low, and it happens at most once in `EXACT_CLASSES` + 1 predictions.

Source: Misra, Gries: Finding repeated elements, 1982. Bound and merging: Agarwal et al.: Mergeable summaries, 2012.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cortex.errors import Response
from cortex.wire.build import TrackerConfig
from cortex.wire.stats import (
    BUCKETS_PER_E,
    EXACT_CLASSES,
    LARGEST_NUMBER,
    SMALLEST_NUMBER,
    TrackerStats,
)

WARN_INTERVAL_S = 60.0
"""A tracker that misses, misses often: one line a minute says so."""
MAX_NAME_CHARS = 200
"""Longer names are counted under their beginning and a digest: ten thousand of them are kept in memory."""
_NUMBERS = (float, int, np.floating, np.integer)
_HOLDERS = (list, tuple, np.ndarray)
_LARGEST = 1.7976931348623157e308
_MISSING: Any = object()


class Tracker:
    """
    Counts predictions of one api. Called on the event loop only; `snapshot` from any thread.

    Args:
        config: what to count.
        output_names: of the model, in its order.
        warn: takes the text of a warning.
        monotonic_s: the clock that spaces warnings.
    """

    def __init__(
        self,
        config: TrackerConfig,
        *,
        output_names: Sequence[str],
        warn: Callable[[str], None],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._output_names = tuple(output_names)
        self._key = config.key
        self._classifies = config.model_type == "classification"
        self._warn = warn
        self._monotonic_s = monotonic_s
        self._next_warning_s = -math.inf
        self._classes: dict[str, int] = {}
        self._admitted: dict[str, int] = {}
        self._other = 0
        self._rounds = 0
        self._light: list[str] = []
        """Classes that may leave, as of the last round."""
        # Held while more than one count changes, and while they are copied; adding one to a class needs no lock.
        # Reentrant, as a signal may come in between and end the process, which writes the counts.
        self._moving = threading.RLock()
        self._count = 0
        self._total = 0.0
        self._least = math.inf
        self._greatest = -math.inf
        self._positive: dict[int, int] = {}
        self._negative: dict[int, int] = {}
        self._zeros = 0
        self._misses = 0

    def snapshot(self) -> TrackerStats:
        with self._moving:
            return self._snapshot()

    def _snapshot(self) -> TrackerStats:
        counted = self._count > 0
        return TrackerStats(
            classes=self._classes.copy(),
            admitted=self._admitted.copy(),
            other=self._other,
            rounds=self._rounds,
            positive_buckets=self._positive.copy(),
            negative_buckets=self._negative.copy(),
            zeros=self._zeros,
            count=self._count,
            total=max(-_LARGEST, min(_LARGEST, self._total)),  # JSON knows no infinity
            least=self._least if counted else None,
            greatest=self._greatest if counted else None,
            misses=self._misses,
        )

    def track_response(self, response: Any) -> None:
        """Count what a handler's `post_inference` returned: one prediction or one miss."""
        key, classes = self._key, self._classes
        value = response if key is None else response.get(key) if type(response) is dict else None
        if isinstance(value, str) and value in classes:  # nearly always
            classes[value] += 1
        else:
            self._look_closer(response)

    def _look_closer(self, response: Any) -> None:
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

    def track_prediction(self, prediction: Any, rows: int) -> None:
        """
        Count a model's raw prediction: each row is one.

        Args:
            prediction: outputs in the order of `output_names`, or by name.
            rows: how many rows went in. With one row, outputs may have lost that dimension.
        """
        if self._key is not None:
            value = self._output(prediction, self._key)
            if value is _MISSING:
                self._miss(f'the model has no output "{self._key}"')
                return
        elif len(prediction) == 1:
            value = next(iter(prediction.values())) if isinstance(prediction, Mapping) else prediction[0]
        else:
            self._miss(f"the model has {len(prediction)} outputs, and `tracker: key:` names none")
            return
        if rows > 1 and isinstance(value, np.ndarray | list) and _length(value) == rows:
            for row in value:
                self._count_one(_only_element(row))
        else:
            self._count_one(_only_element(value))

    def _output(self, prediction: Any, name: str) -> Any:
        if isinstance(prediction, Mapping):
            return prediction.get(name, _MISSING)
        if name in self._output_names:
            return prediction[self._output_names.index(name)]
        return _MISSING

    def _count_one(self, value: Any) -> None:
        if self._classifies:
            name = _class_name(value)
            if name is None:
                self._miss(f"expected text or an integer, found {_kind(value)}")
                return
            if len(name) > MAX_NAME_CHARS:
                digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
                name = f"{name[:MAX_NAME_CHARS]}… ({digest})"
            if name in self._classes:
                self._classes[name] += 1
            else:
                self._count_new(_writable(name))
            return
        if isinstance(value, bool) or not isinstance(value, _NUMBERS):
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
        with self._moving:
            self._count_number(number)

    def _count_new(self, name: str) -> None:
        """Count a class that is not held: in the place of one that weighs nothing any more, if there is no other."""
        classes, admitted = self._classes, self._admitted
        with self._moving:
            if name in classes:  # under another spelling
                classes[name] += 1
                return
            while self._light and len(classes) >= EXACT_CLASSES:
                held = self._light.pop()
                if self._weight(held) <= 0:  # else it was predicted again meanwhile
                    self._other += classes.pop(held)
                    admitted.pop(held, None)
            if len(classes) < EXACT_CLASSES:
                classes[name] = 1
                if self._rounds:
                    admitted[name] = self._rounds
                return
            self._rounds += 1
            self._other += 1
            self._light = [held for held in classes if self._weight(held) <= 0]

    def _weight(self, held: str) -> int:
        """What a class has on top of what a round took from each; it began with 1, so 0 takes a round at least."""
        return self._classes[held] - (self._rounds - self._admitted.get(held, 0))

    def _count_number(self, number: float) -> None:
        self._count += 1
        self._total += number
        if number < self._least:
            self._least = number
        if number > self._greatest:
            self._greatest = number
        magnitude = -number if number < 0 else number
        if magnitude < SMALLEST_NUMBER:
            self._zeros += 1
            return
        if magnitude > LARGEST_NUMBER:
            magnitude = LARGEST_NUMBER
        bucket = math.ceil(math.log(magnitude) * BUCKETS_PER_E)  # `number_bucket`, without the calls
        buckets = self._negative if number < 0 else self._positive
        buckets[bucket] = buckets.get(bucket, 0) + 1

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


def _writable(name: str) -> str:
    """The same text, unless it holds halves of characters, which no file of ours can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode()
    return name


def _only_element(value: Any) -> Any:
    """A list or array of one element counts as that element, however deep."""
    if not isinstance(value, _HOLDERS):
        return value
    for _ in range(32):  # a list may hold itself
        if isinstance(value, np.ndarray):
            return value.reshape(-1)[0] if value.size == 1 else value  # a numpy scalar keeps its type
        if not isinstance(value, list | tuple) or len(value) != 1:
            return value
        value = value[0]
    return value


def _length(value: Any) -> int:
    """Size along the first dimension; -1 if there is none."""
    return -1 if isinstance(value, np.ndarray) and value.ndim == 0 else len(value)


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
