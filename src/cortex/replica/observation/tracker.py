"""
What a replica counts of its predictions, as `tracker:` in cortex.yaml asks. Never touches a response.

Classes are counted exactly as long as there is room for all. After that the frequent ones stay: a class that finds no
room makes all others a little lighter, and those that weigh nothing any more give their place to the next. How often
that happened bounds how much any count is too low, and it happens at most once in `EXACT_CLASSES` + 1 predictions.

Source: Misra, Gries: Finding repeated elements, 1982. Bound and merging: Agarwal et al.: Mergeable summaries, 2012.
"""

from __future__ import annotations

import difflib
import enum
import hashlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence, Set, ValuesView
from typing import Any, NamedTuple

import numpy as np
import orjson

from cortex.errors import Response
from cortex.replica.bodies.results import Unserialisable, encode
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
_SETS = (Set, ValuesView)
_PLAIN = frozenset({str, int, float, bool, type(None)})
MAX_ITEMS = 10_000
"""A longer list of a handler's is one miss: it is no list of predictions, and is not gone through with each request."""
_LARGEST = 1.7976931348623157e308
_MISSING: Any = object()


class Mismatch(NamedTuple):
    """Why a tracker can never count what an api answers, and what to do about it."""

    reason: str
    hint: str


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
        """Count what a handler's `post_inference` returned: a prediction, several in a list of scalars, or a miss."""
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
        value = self._within(response)
        if value is _MISSING:
            self._miss(_no_key(response, self._key or ""))
            return
        self._count_each(value)

    def _within(self, response: Any) -> Any:
        """The value under the key, if there is one to look for; `_MISSING` if it is not there."""
        key = self._key
        if key is None:
            return response
        if not isinstance(response, Mapping):
            response = _as_json(response)
        return response.get(key, _MISSING) if isinstance(response, Mapping) else _MISSING

    def _count_each(self, value: Any) -> None:
        """Count a value: several where it is a list of scalars, at least one of which can be counted."""
        if type(value) in _PLAIN:
            self._count_one(value)
            return
        values = _scalars(value)
        if len(values) > 1 and all(self._refusal(one) for one in values):
            self._miss(self._expected(value))
            return
        for one in values:
            self._count_one(one)

    def track_prediction(self, prediction: Any, rows: int) -> None:
        """
        Count a model's raw prediction: each row is one.

        Args:
            prediction: outputs in the order of `output_names`, or by name.
            rows: how many rows went in. With one row, outputs may have lost that dimension.
        """
        found = self._rows(prediction, rows)
        if isinstance(found, str):
            self._miss(found)
            return
        for row in found:
            self._count_one(row)

    def _rows(self, prediction: Any, rows: int) -> list[Any] | str:
        """One value for each row, or why there is none."""
        if self._key is not None:
            value = self._output(prediction, self._key)
            if value is _MISSING:
                return f'the model has no output "{self._key}"'
        elif len(prediction) == 1:
            value = next(iter(prediction.values())) if isinstance(prediction, Mapping) else prediction[0]
        else:
            return f"the model has {len(prediction)} outputs, and `tracker: key:` names none"
        if rows > 1 and isinstance(value, np.ndarray | list) and _length(value) == rows:
            return [_only_element(row) for row in value]
        return [_only_element(value)]

    # ---- ahead of time ------------------------------------------------------------------------------------------

    def never_counts(self, response: Any) -> Mismatch | None:
        """Why neither this response of a `post_inference` nor any like it is counted; None if one may be."""
        if isinstance(response, Response):
            if response.status >= 300:
                return None
            response = response.body
        value = self._within(response)
        if value is _MISSING:
            return _without_key(response, self._key or "")
        return self._mismatch(value, _scalars(value))

    def never_counts_prediction(self, prediction: Any, rows: int) -> Mismatch | None:
        """As `never_counts`, of a raw prediction."""
        found = self._rows(prediction, rows)
        if isinstance(found, str):
            return Mismatch(found, "name an output of the model with `key:` below `tracker:`")
        return self._mismatch(found[0] if len(found) == 1 else found, found)

    def _mismatch(self, value: Any, values: list[Any]) -> Mismatch | None:
        if not values or not all(map(self._is_never, values)):
            return None
        plain = _as_json(values[0])
        hint = "return a single value, or one for each row"
        if isinstance(plain, dict):
            hint = (
                f"add `key:` below `tracker:`, with {_one_of(plain)}"
                if self._key is None
                else "track a value of its own"
            )
        elif not isinstance(plain, list):
            hint = f"track another value with `key:`, or count these with `model_type: {self._other_type}`"
        return Mismatch(self._expected(value), hint)

    @property
    def _other_type(self) -> str:
        return "regression" if self._classifies else "classification"

    def _is_never(self, value: Any) -> bool:
        """Whether the kind of a value is never counted, whatever its value. Nothing may be something another time."""
        plain = _as_json(value)
        if plain is None or (isinstance(plain, list) and not plain):
            return False
        if not self._classifies and _number(value) is not None:
            return False  # it may be finite another time
        return bool(self._refusal(value))

    def _expected(self, value: Any) -> str:
        wanted = "text or an integer" if self._classifies else "a number"
        return f"expected {wanted}, found {_kind(value)}"

    def _refusal(self, value: Any) -> str:
        """Why a single value is not counted; empty if it is."""
        if self._classifies:
            return "" if _class_name(value) is not None else self._expected(value)
        number = _number(value)
        if number is None:
            return self._expected(value)
        return "" if math.isfinite(number) else f"the number is {number}"

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
                self._miss(self._expected(value))
                return
            if len(name) > MAX_NAME_CHARS:
                digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
                name = f"{name[:MAX_NAME_CHARS]}… ({digest})"
            if name in self._classes:
                self._classes[name] += 1
            else:
                self._count_new(_writable(name))
            return
        number = _number(value)
        if number is None or not math.isfinite(number):
            self._miss(self._refusal(value))
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
            misses = "miss" if self._misses == 1 else "misses"
            self._warn(f"tracker: nothing to count in this response: {reason} ({self._misses} {misses} so far)")


def _class_name(value: Any) -> str | None:
    """The text under which a class is counted; None for what is no class."""
    if type(value) is str:
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"  # as the response shows it
    if isinstance(value, np.bytes_):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, np.timedelta64):  # an integer to numpy
        return None
    if isinstance(value, enum.Enum) or not isinstance(value, str | int | np.integer):
        plain = _as_json(value)
        return None if plain is value or not isinstance(plain, str | int) else _class_name(plain)
    return str(value)


def _number(value: Any) -> float | None:
    """A number as it is counted; None for what is none, or is too large for a float."""
    if type(value) is float:
        return value
    if isinstance(value, bool | np.bool_ | np.timedelta64):
        return None
    if isinstance(value, enum.Enum) or not isinstance(value, _NUMBERS):
        plain = _as_json(value)
        return None if plain is value or not isinstance(plain, int | float) else _number(plain)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _as_json(value: Any) -> Any:
    """
    A value as its JSON reads: text of a date, the value of an Enum, an object of a model's fields.

    Returns:
        The same value where it is plain already, or has no JSON form.
    """
    if type(value) in _PLAIN:
        return value
    try:
        return orjson.loads(encode(value))
    except (Unserialisable, orjson.JSONDecodeError):
        return value


def _writable(name: str) -> str:
    """The same text, unless it holds halves of characters, which no file of ours can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode()
    return name


def _only_element(value: Any) -> Any:
    """A list, set or array of one element counts as that element, however deep; other sets as lists."""
    if not isinstance(value, (*_HOLDERS, *_SETS)):
        return value
    for _ in range(32):  # a list may hold itself
        if isinstance(value, _SETS):
            value = list(value)
        if isinstance(value, np.ndarray):
            return value.reshape(-1)[0] if value.size == 1 else value  # a numpy scalar keeps its type
        if not isinstance(value, list | tuple) or len(value) != 1:
            return value
        value = value[0]
    return value


def _scalars(value: Any) -> list[Any]:
    """What a value counts as: the items of a list, set or array of scalars, else the one that it is."""
    value = _only_element(value)
    if isinstance(value, np.ndarray):
        items = [_only_element(item) for item in value] if value.ndim and 0 < len(value) <= MAX_ITEMS else []
    elif isinstance(value, list | tuple) and 0 < len(value) <= MAX_ITEMS:
        items = [_only_element(item) for item in value]
    else:
        return [value]
    return items if items and not any(map(_is_container, items)) else [value]


def _is_container(value: Any) -> bool:
    return isinstance(value, (*_HOLDERS, *_SETS, Mapping))


def _length(value: Any) -> int:
    """Size along the first dimension; -1 if there is none."""
    return -1 if isinstance(value, np.ndarray) and value.ndim == 0 else len(value)


def _no_key(response: Any, key: str) -> str:
    if isinstance(response, Mapping):
        found = ", ".join(f'"{name}"' for name in list(response)[:5]) or "none"
        return f'it has no key "{key}"; its keys: {found}'
    return f'an object with the key "{key}" was expected, found {_kind(response)}'


def _without_key(response: Any, key: str) -> Mismatch:
    plain = _as_json(response)
    if not isinstance(plain, dict):
        return Mismatch(_no_key(response, key), f'take `key:` out, or return an object: {{"{key}": …}}')
    close = difflib.get_close_matches(key, plain, n=1)
    return Mismatch(_no_key(plain, key), f'did you mean "{close[0]}"?' if close else f"set `key:` to {_one_of(plain)}")


def _one_of(keys: Mapping[str, Any]) -> str:
    """For a hint: which keys there are."""
    return "one of " + ", ".join(f'"{key}"' for key in list(keys)[:5]) if keys else "its keys, once it has some"


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {list(value.shape)} and type {value.dtype}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if value is None:
        return "null"
    return "an object" if isinstance(value, Mapping) else type(value).__name__
