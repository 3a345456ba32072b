"""
Results to JSON bytes.

orjson writes almost everything by itself; what it hands back comes through `_default`, at C speed around it. Only a
result that it refuses altogether (a key that is no text, an integer of more than 64 bits, something that is no JSON) is
walked in Python, and that walk either finds a way or says where the trouble is.
"""

from __future__ import annotations

import array
import base64
import dataclasses
import datetime
import decimal
import enum
import json
import math
import pathlib
import uuid
from collections.abc import Callable, Mapping, Sequence, Set, ValuesView
from typing import Any, Final, TypeAlias

import numpy as np
import orjson
from numpy.typing import NDArray

from cortex.errors import CortexError
from cortex.replica.bodies import foreign
from cortex.replica.bodies.foreign import NoForm

_Array: TypeAlias = NDArray[Any]

_PLAIN: Final = orjson.OPT_PASSTHROUGH_DATACLASS
"""For whole results: what is numpy's comes through `_hook`. Keys are text, as two others may become one."""
_ANY_KEYS: Final = _PLAIN | orjson.OPT_NON_STR_KEYS
"""Writes two keys with the same text one after the other."""
_OPTIONS: Final = _PLAIN | orjson.OPT_SERIALIZE_NUMPY
_MAX_DEPTH: Final = 250  # orjson's own limit is 254, and its hook adds levels
_INT64_MIN, _UINT64_MAX = -(1 << 63), (1 << 64) - 1
_Written: Final = orjson.Fragment
_dumps: Final = orjson.dumps
_WRITTEN_ELEMENTS: Final = frozenset("?efdbhilqBHILQ")
"""`dtype.char` of the arrays that orjson writes at once."""
_WRITTEN_SCALARS: Final = (
    *(np.bool_, np.float16, np.float32, np.float64, np.datetime64),
    *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
)
"""numpy's scalars that orjson writes; dates only once `_moment` has looked at them."""
_OPENS: Final = object()


class Unserialisable(CortexError):
    """
    A result that has no JSON form.

    Args:
        path: where it stands, e.g. `result["a"][3]`.
        found: what stands there, in words.
        hint: the line to write instead.
    """

    reference = "result-not-serialisable"

    def __init__(self, path: str, found: str, hint: str = "") -> None:
        self.path = path
        self.found = found
        self.hint = hint or "return text, numbers, lists, dicts, numpy arrays or a cortex.Response"
        super().__init__(f"{path}: {found} cannot be written as JSON")

    @property
    def facts(self) -> dict[str, Any]:
        """Keys of the JSON error body, in order."""
        return {"path": self.path, "found": self.found, "hint": self.hint}


def encode(result: object) -> bytes:
    """
    Return a result as JSON, UTF-8.

    Args:
        result: what a handler returned, or a raw prediction: any nesting of text, numbers, booleans, None, lists,
            tuples, mappings, sets, numpy arrays and scalars, Decimal, dates, UUID, Enum, dataclasses, and what
            `foreign.opened` knows; bytes become `{"b64": "…"}`; NaN, NaT, NA and infinities null. A float32 is the
            shortest text that reads back as it, wherever it stands. Keys that are not text become text. Key order is
            kept.

    Raises:
        Unserialisable: names the type and where it stands, or two keys that would become one.
    """
    try:
        return _dumps(result, _hook, _PLAIN)
    except (TypeError, RecursionError):
        pass
    try:
        if _keys_stay_apart(result):
            return _dumps(result, _hook, _ANY_KEYS)
    except (TypeError, RecursionError):
        pass
    walk = _Walk()
    try:
        return orjson.dumps(walk.value(result), None, _OPTIONS)
    except RecursionError as error:
        raise Unserialisable(walk.where(), "a value nested too deep") from error
    except TypeError as error:
        raise Unserialisable("result", str(error)) from error


def _keys_stay_apart(value: Any) -> bool:
    """Whether it is certain, without a look at single keys, that no two keys of a dict become the same text."""
    if isinstance(value, dict):
        kinds = set(map(type, value))
        if not (kinds <= _TEXTS or kinds == _INTEGERS):
            return False
        items: Any = value.values()
    elif isinstance(value, list | tuple):
        items = value
    else:
        return type(value) in _LEAVES or (type(value) is np.ndarray and value.dtype.kind != "O")
    return set(map(type, items)) <= _LEAVES or all(map(_keys_stay_apart, items))


_TEXTS: Final = frozenset({str, np.str_})
_INTEGERS: Final = frozenset({int})
_LEAVES: Final = frozenset({str, int, float, bool, type(None), np.float32, np.float64, np.int64, np.str_})


def _hook(value: Any) -> Any:
    """
    orjson's hook: return something that it can write for what it cannot.

    Everything of numpy's comes through here and is handed back written. orjson is not let at it alone: of an array
    of dates that has several dimensions and a year out of range it leaves half of the brackets out and says nothing
    (seen with 3.13), and NaT it takes for a date.
    """
    if type(value) is np.ndarray and value.dtype.char in _WRITTEN_ELEMENTS:
        try:
            return _Written(_dumps(value, None, _OPTIONS))
        except TypeError:
            pass  # no dimensions, strides, foreign byte order
    plain = _array(value) if isinstance(value, np.ndarray) else value
    if isinstance(plain, np.datetime64):
        plain = _moment(plain)
    if (isinstance(plain, np.ndarray) and plain.dtype.kind in "biuf") or isinstance(plain, _WRITTEN_SCALARS):
        return _Written(_dumps(plain, None, _OPTIONS))
    return _default(value) if plain is value else plain


def _default(value: Any) -> Any:
    """Return something that orjson can write, or nearly, for what it cannot. Raises NoForm."""
    if isinstance(value, np.ndarray):
        return _array(value)
    for types, convert in _CONVERSIONS:
        if isinstance(value, types):
            return convert(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    inner = foreign.opened(value)
    return _array(inner) if isinstance(inner, np.ndarray) else inner


def _array(array: _Array) -> Any:
    """
    Return an array in a form that orjson writes.

    Args:
        array: any shape; orjson refused it: strings, objects, no dimensions, strides, foreign byte order.

    Returns:
        A contiguous native array where orjson writes its type, else nested lists or a scalar.
    """
    kind = array.dtype.kind
    if isinstance(array, np.ma.MaskedArray):  # masked elements become None
        return _array(array.filled(np.nan)) if kind == "f" else array.tolist()
    if array.ndim == 0:
        return array[()]
    if kind in "biuf":
        native = array.dtype.newbyteorder("=")
        if native.itemsize > 8:  # long double
            native = np.dtype(np.float64)
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, dtype=native)
    if kind == "M":
        moments = [_moment(moment) for moment in array.ravel()]
        return np.array(moments, dtype=object).reshape(array.shape).tolist()
    if kind == "c":
        return _array(np.stack([array.real, array.imag], axis=-1))
    if kind == "V" and "float" in array.dtype.name:  # ml_dtypes' bfloat16 and float8
        return array.astype(np.float32)
    if kind == "m":
        raise NoForm("an array of time differences", 'return their seconds: array / numpy.timedelta64(1, "s")')
    return list(array) if array.dtype.names else array.tolist()


def _moment(moment: np.datetime64) -> np.datetime64 | str | None:
    """A numpy date or time that orjson writes, else its text; None for NaT."""
    if np.isnat(moment):
        return None
    try:
        orjson.dumps(moment, None, _OPTIONS)
    except TypeError:  # a year beyond 9999
        return str(moment)
    return moment


def _scalar(value: Any) -> Any:
    if isinstance(value, np.datetime64):
        return _moment(value)
    if isinstance(value, np.timedelta64):
        raise NoForm("object of type timedelta64", foreign.advice(value))
    if isinstance(value, np.complexfloating):
        return [value.real, value.imag]
    if isinstance(value, np.floating):  # long double, whose item() is itself
        return float(value)
    if value.dtype.names:
        return {name: value[name] for name in value.dtype.names}
    if value.dtype.kind == "V" and "float" in value.dtype.name:
        return np.float32(value)
    return value.item()


def _decimal(value: decimal.Decimal) -> orjson.Fragment | None:
    """Digits as they are: a Decimal was chosen because they matter."""
    return orjson.Fragment(str(value)) if value.is_finite() else None


def _time(value: datetime.datetime | datetime.date | datetime.time) -> str | None:
    return None if foreign.is_missing(value) else value.isoformat()


def _numbers(value: array.array[Any]) -> Any:
    return value.tounicode() if value.typecode in "uw" else np.array(value)


def _b64(value: bytes | bytearray | memoryview) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode("ascii")}


_CONVERSIONS: Final[tuple[tuple[Any, Callable[[Any], Any]], ...]] = (
    ((bytes, bytearray, memoryview), _b64),
    (Mapping, dict),
    (np.generic, _scalar),
    ((Set, ValuesView), list),
    (array.array, _numbers),
    (Sequence, list),
    ((datetime.datetime, datetime.date, datetime.time), _time),
    (decimal.Decimal, _decimal),
    (float, float.__float__),
    (complex, lambda value: [value.real, value.imag]),
)
"""Order matters: `np.bytes_` is bytes and a numpy scalar."""


class _Walk:
    """Rebuilds a result from what orjson is sure to write, and knows where it is while it does."""

    def __init__(self) -> None:
        self._path: list[object] = []
        self._open: set[int] = set()

    def where(self) -> str:
        steps = [f"[{_shown_key(key)}]" for key in self._path]
        if len(steps) > 20:
            steps = [*steps[:10], "…", *steps[-10:]]
        return "result" + "".join(steps)

    def value(self, value: Any) -> Any:
        """
        Return `value` in a form that orjson writes.

        Raises:
            Unserialisable: something in it has no JSON form, holds itself, or is nested too deep.
        """
        simple = self._simple(value)
        if simple is not _OPENS:
            return simple
        if id(value) in self._open:
            raise Unserialisable(self.where(), "a value that contains itself")
        if len(self._open) >= _MAX_DEPTH:
            raise Unserialisable(self.where(), f"a value nested more than {_MAX_DEPTH} levels deep")
        self._open.add(id(value))
        inner = self._inner(value)
        result: Any
        if isinstance(inner, dict):
            result = {}
            for key, item in inner.items():
                text = key if type(key) is str and key.isascii() else self._key(key)
                if text in result:
                    raise self._clash(inner, key, text)
                if _is_written(item):
                    result[text] = item
                    continue
                self._path.append(key)
                result[text] = self.value(item)
                self._path.pop()
        elif isinstance(inner, list):
            result = []
            for index, item in enumerate(inner):
                if _is_written(item):
                    result.append(item)
                    continue
                self._path.append(index)
                result.append(self.value(item))
                self._path.pop()
        else:
            result = self.value(inner)
        self._open.discard(id(value))
        return result

    def _simple(self, value: Any) -> Any:
        """Return what needs no opening; `_OPENS` for everything else."""
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, enum.Enum):
            return _OPENS
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else None
        if isinstance(value, str):
            return _text(value)
        if isinstance(value, int):
            return _integer(value)
        if isinstance(value, datetime.datetime | datetime.date | datetime.time):
            return _time(value)
        if isinstance(value, uuid.UUID):
            return str(value)
        if isinstance(value, np.timedelta64):  # an integer to numpy
            return _OPENS
        if isinstance(value, np.integer | np.float32 | np.float16 | np.bool_):
            return value
        if isinstance(value, np.datetime64):
            return _moment(value)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return _array(value)
        if isinstance(value, decimal.Decimal):
            return _decimal(value)
        return _OPENS

    def _inner(self, value: Any) -> Any:
        """Return a container as a dict or a list of its items, anything else as something simpler."""
        if isinstance(value, dict | list):
            return value
        if isinstance(value, tuple | Set):
            return list(value)
        if isinstance(value, enum.Enum):
            return value.value
        try:
            return _default(value)
        except NoForm as error:
            raise Unserialisable(self.where(), error.found, error.hint) from error
        except Exception as error:
            found = f"object of type {type(value).__name__}"
            if not isinstance(error, TypeError):
                found += f" ({type(error).__name__}: {error})"
            raise Unserialisable(self.where(), found, foreign.advice(value)) from error

    def _key(self, key: Any) -> str:
        """Text for a key. Raises Unserialisable."""
        try:
            return _key_text(key)
        except NoForm as error:
            raise Unserialisable(self.where(), error.found, error.hint) from error

    def _clash(self, mapping: dict[Any, Any], key: Any, text: str) -> Unserialisable:
        other = next(one for one in mapping if _key_text(one) == text)
        return Unserialisable(
            self.where(),
            f"a dict whose keys {_named_key(other)} and {_named_key(key)} both become {_shown_key(text)}",
            "give each its own text, e.g. {str(key): …}",
        )


def _key_text(key: Any) -> str:
    """What a key would be as a value, as text. Raises NoForm."""
    if type(key) is int:
        return _digits(key)
    if isinstance(key, enum.Enum):
        return _key_text(key.value)
    if isinstance(key, str):
        return key.encode("utf-8", "replace").decode("utf-8")
    if isinstance(key, bytes):
        return key.decode("utf-8", "replace")
    if isinstance(key, np.datetime64):
        key = _moment(key)
    elif isinstance(key, np.complexfloating):
        key = complex(key)
    elif isinstance(key, np.generic) and not isinstance(key, np.float32 | np.float16 | np.timedelta64):
        key = _scalar(key)
    if key is None or foreign.is_missing(key):
        return "null"
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, float | np.float32 | np.float16 | np.datetime64):
        return orjson.dumps(key if isinstance(key, np.generic) else float(key), None, _OPTIONS).decode().strip('"')
    if isinstance(key, int):
        return _digits(key)
    if isinstance(key, datetime.datetime | datetime.date | datetime.time):
        return key.isoformat()
    if isinstance(key, tuple):
        return str(tuple(map(_key_part, key)))
    if isinstance(key, str | frozenset | decimal.Decimal | complex | uuid.UUID | _NAMED_BY_THEIR_TEXT):
        return str(key)
    text = foreign.key_text(key)
    if text is None:
        raise NoForm(f"a key of type {type(key).__name__}", "write its text: {str(key): …}")
    return text


def _key_part(part: Any) -> Any:
    """An item of a tuple that is a key, as something whose `repr` is what it would be as a value. Raises NoForm."""
    if type(part) in (str, int, float, bool, bytes, complex) and part == part:
        return part
    if isinstance(part, tuple):
        return tuple(map(_key_part, part))
    if part is None or foreign.is_missing(part):
        return None
    if isinstance(part, np.float32 | np.float16):
        return float(_key_text(part))
    if isinstance(part, np.generic) and part.dtype.kind in "biuf":
        return part.item()
    if isinstance(part, enum.Enum):
        return _key_part(part.value)
    return _key_text(part)


_NAMED_BY_THEIR_TEXT: Final = datetime.timedelta | np.timedelta64 | pathlib.PurePath


def _is_written(value: Any) -> bool:
    """Whether orjson writes a value as it is: most of what stands in a dict or a list."""
    kind = type(value)
    return (
        kind is float
        or (kind is str and value.isascii())
        or (kind is int and _INT64_MIN <= value <= _UINT64_MAX)
        or value is None
        or kind is bool
    )


def _text(value: str) -> Any:
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return orjson.Fragment(json.dumps(value))  # half characters, escaped
    return value


def _integer(value: int) -> Any:
    if _INT64_MIN <= value <= _UINT64_MAX:
        return value
    return orjson.Fragment(_digits(value))


def _digits(value: int) -> str:
    """An integer in decimal; `str` refuses more than 4,300 digits, and `Decimal` does not."""
    return str(value) if value.bit_length() < 10_000 else format(decimal.Decimal(value), "f")


def _shown_key(key: object) -> str:
    """A key or index for a path. Never calls code of the key's own class."""
    if isinstance(key, enum.Enum | np.generic):
        return type(key).__name__
    if isinstance(key, str):
        return json.dumps(str(key) if len(key) <= 40 else key[:39] + "…", ensure_ascii=False)
    if isinstance(key, bool):
        return repr(key)
    if isinstance(key, int):
        return str(int(key)) if key.bit_length() < 256 else "…"
    return repr(key)[:40] if isinstance(key, float | bytes | None) else type(key).__name__


def _named_key(key: object) -> str:
    """A key, told from another that would be written alike."""
    kind = type(key)
    if kind in (str, int, float, bytes, bool, type(None)):
        return _shown_key(key)
    if isinstance(key, enum.Enum):
        return f"{kind.__name__}.{key.name}"
    return f"{kind.__name__}({_key_text(key)})"
