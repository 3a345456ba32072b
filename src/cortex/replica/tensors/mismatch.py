"""What did not match the model's signature, in words and facts for the caller."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from cortex.errors import CortexError, Problem
from cortex.replica.tensors.shapes import Shape
from cortex.wire.signature import Dim, TensorSpec, shape_text

LISTS: Final = frozenset({list, tuple})
MAX_RANK: Final = 32  # numpy 1.x holds no more dimensions
_MANY: Final = 1 << 18  # elements that are looked at one by one for the sake of a message
_SHOWN_CHARS: Final = 40


class InputMismatch(CortexError):
    """
    A sample does not match the model's signature.

    Args:
        spec: of the input; None if the sample as a whole is wrong, which should be an object.
        found: dtype (`int64`, `float64`, `bool`, `string`, `null`, `object`, `mixed`, an array's; None if it is
            missing) and shape, None where it has none (it is missing, or ragged).
        reason: what is wrong, in words.
        hint: what to do about it.
    """

    reference = "input-mismatch"

    def __init__(
        self, spec: TensorSpec | None, found: tuple[str | None, Shape | None], reason: str, hint: str = ""
    ) -> None:
        is_tensor = spec is not None and spec.kind == "tensor"
        self.input = "" if spec is None else spec.name
        self.expected_dtype = "object" if spec is None else spec.dtype if is_tensor else str(spec)
        self.expected_shape = spec.shape if spec is not None and is_tensor else None
        self.found_dtype, self.found_shape = found
        self.reason = reason
        self.hint = hint
        self.after: str | None = None
        """`pre_inference` when a handler made the value."""
        super().__init__(reason)

    def __str__(self) -> str:
        if not self.input:
            return self.reason
        expected = _tensor_text(self.expected_dtype, self.expected_shape)
        if self.found_dtype is None:
            return f'input "{self.input}": expected {expected}, {self.reason}'
        found = _tensor_text(self.found_dtype, self.found_shape)
        text = f'input "{self.input}": expected {expected}, found {found}'
        return f"{text}: {self.reason}" if self.reason else text

    @property
    def facts(self) -> dict[str, Any]:
        """Keys of the JSON error body, in order."""
        facts: dict[str, Any] = {
            "input": self.input or None,
            "expected": {"dtype": self.expected_dtype, "shape": _listed(self.expected_shape)},
            "found": {"dtype": self.found_dtype, "shape": _listed(self.found_shape)},
            "hint": self.hint or None,
        }
        if self.after is not None:
            facts["after"] = self.after
        return facts

    def problem(self) -> Problem:
        subject = f'input "{self.input}"' if self.input else ""
        return Problem(reference=self.reference, message=str(self), hint=self.hint, subject=subject)


def _tensor_text(dtype: str, shape: tuple[Dim, ...] | None) -> str:
    if shape is None:
        return dtype
    return f"{dtype}{shape_text(shape)}" if shape else f"a single {dtype}"


def _listed(shape: tuple[Dim, ...] | None) -> list[Dim] | None:
    return None if shape is None else list(shape)


class WrongNames(InputMismatch):
    """
    The names in a sample are not the model's: one is missing, or the model has no such input.

    What a handler makes has the names that the handler gives it, so there it is no caller's mistake.
    """

    meant: Mapping[str, str] = MappingProxyType({})
    """Inputs that were probably meant, by the key that was written."""


def wrong_names(specs: Sequence[TensorSpec], sample: Mapping[Any, Any], *, noun: str = "input") -> WrongNames:
    """
    Return the mismatch for a sample whose keys are not those of the model's inputs, with a guess at what was meant.

    Args:
        specs: all the model's inputs.
        sample: what was sent; it lacks one that may not be absent, or has a key too many.
        noun: what they are called.
    """
    names = [spec.name for spec in specs]
    absent = [spec for spec in specs if spec.name not in sample]
    needed = [spec for spec in absent if not spec.optional]
    known = set(names)
    unknown = [str(key) for key in sample if key not in known]
    hints = []
    meant: dict[str, str] = {}
    for key in unknown[:_MOST_NAMED]:
        close = _closest(key, [spec.name for spec in (needed or absent) if spec.name not in meant.values()])
        if close is not None:
            meant[key] = close
            hints.append(f'did you mean "{close}" where you wrote "{key[:_SHOWN_CHARS]}"?')
    add = [spec.name for spec in needed if spec.name not in meant.values()]
    if len(names) == 1 and add and noun == "input":
        hints.append(f'send the value itself, or {{"{names[0]}": value}}')
    elif add:
        hints.append(f"add the key{'s' * (len(add) > 1)} {quoted(add)}")
    elif not hints:
        hints.append(_told(names, noun))
    if needed:
        first, *others = needed
        reason = "which is missing" + (
            f", and so {_are(others)} {quoted([spec.name for spec in others])}" if others else ""
        )
        reason = f"{reason}; the model has no {noun} {quoted(unknown)}" if unknown else reason
        mismatch = WrongNames(first, (None, None), reason, " ".join(hints))
    else:
        mismatch = WrongNames(None, ("object", None), f"the model has no {noun} {quoted(unknown)}", " ".join(hints))
    mismatch.meant = meant
    return mismatch


def _told(names: Sequence[str], noun: str) -> str:
    if not names:
        return f"the model has no {noun}s: send {{}}"
    return f"the only {noun} is {quoted(names)}" if len(names) == 1 else f"its {noun}s are {quoted(names)}"


def _are(items: Sequence[object]) -> str:
    return "is" if len(items) == 1 else "are"


def no_object(specs: Sequence[TensorSpec], sample: object) -> WrongNames:
    """The mismatch for a sample that names no inputs, of a model that has several."""
    needed = [spec.name for spec in specs if not spec.optional] or [spec.name for spec in specs]
    reason = f"the model has {len(specs)} inputs, and the sample is no object that names them"
    return WrongNames(None, describe(sample), reason, f"send an object with the keys {quoted(needed)}")


def quoted(names: Sequence[str]) -> str:
    """Names for a message, shortened, the first few of many."""
    listed = ", ".join(f'"{name[:_SHOWN_CHARS]}"' for name in names[:_MOST_NAMED])
    return listed + (", …" if len(names) > _MOST_NAMED else "")


def _closest(key: str, names: Sequence[str]) -> str | None:
    """The name that was probably meant. Case, and how words are joined, matters least."""
    plain = {_plain(name): name for name in reversed(names)}
    close = difflib.get_close_matches(_plain(key[:_LONGEST_COMPARED]), list(plain), n=1, cutoff=0.6)
    return plain[close[0]] if close else None


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum()) or name


_MOST_NAMED: Final = 10
_LONGEST_COMPARED: Final = 200  # characters: the time that comparing takes grows with the square


def ragged(level: Sequence[Any], shape: Sequence[int], dims: Sequence[Dim] | None) -> tuple[str, str]:
    """
    Reason and hint for a level whose items are not lists of one length.

    Args:
        level: the items.
        shape: that of the levels above: fewer dimensions than the model's.
        dims: the model's; None for any.
    """
    first = level[0]
    index, item = next((i, x) for i, x in enumerate(level) if type(x) not in LISTS or len(x) != len(first))
    here = "".join(f"[{i}]" for i in np.unravel_index(index, shape))
    origin = "[0]" * len(shape)
    if type(item) not in LISTS:
        return f"{here} is no list while {origin} is one", "make all rows equally deep"
    found = f"{here} has {len(item)} values while {origin} has {len(first)}"
    size = dims[len(shape)] if dims is not None else None
    if isinstance(size, int) and size in (len(item), len(first)):
        return found, f"the model takes {shape_text(dims or ())}: give every one {size}"
    return found, "make all rows equally long, or pad them"


def describe(value: object) -> tuple[str, Shape | None]:
    """Return dtype and shape as they are reported to the caller; shape None if ragged."""
    if isinstance(value, np.ndarray):
        return dtype_name(value.dtype), value.shape
    if isinstance(value, np.generic):
        return dtype_name(value.dtype), ()
    if type(value) not in LISTS:
        return _type_name(value), ()
    shape: list[int] = []
    level: list[Any] = [value]
    while level and len(shape) < MAX_RANK and all(type(item) in LISTS for item in level):
        size = len(level[0])
        if any(len(item) != size for item in level):
            return _common_type(chain.from_iterable(level)), None
        shape.append(size)
        if size == 0:
            return "float64", tuple(shape)
        # A list that holds itself doubles at each level: look at one row once the value is large.
        level = list(chain.from_iterable(level)) if len(level) * size < _MANY else list(level[0])
    uneven = any(type(item) in LISTS for item in level) and len(shape) < MAX_RANK
    return _common_type(level), None if uneven else tuple(shape)


def _common_type(items: Iterable[Any]) -> str:
    names = {_type_name(item) for item in items} - {"list"}
    if len(names) <= 1:
        return names.pop() if names else "mixed"
    if names <= {"int64", "float64", "bool", "null"}:
        return "float64" if "float64" in names or "null" in names else "int64"
    return "mixed"


def _type_name(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, np.generic | np.ndarray):
        return dtype_name(value.dtype)
    for types, name in _TYPE_NAMES:
        if isinstance(value, types):
            return name
    return type(value).__name__


_TYPE_NAMES: Final[tuple[tuple[type | tuple[type, ...], str], ...]] = (
    (bool, "bool"),
    (int, "int64"),
    (float, "float64"),
    (str, "string"),
    ((bytes, bytearray, memoryview), "bytes"),
    (Mapping, "object"),
    ((list, tuple), "list"),
)


def dtype_name(dtype: np.dtype[Any]) -> str:
    return "string" if dtype.kind in "UT" else "bytes" if dtype.kind == "S" else dtype.name


def shown(value: object) -> str:
    """A value for a message, shortened. Never calls code of the value's own class."""
    if isinstance(value, int) and not isinstance(value, bool):
        # int's own repr refuses numbers of more than 4,300 digits
        return repr(int(value)) if value.bit_length() < 256 else f"an integer of {value.bit_length()} bits"
    if not isinstance(value, bool | float | str | bytes | np.generic):
        return type(value).__name__
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"
