"""What the inputs of all element types share: shapes, nested lists, arrays, and what is said of one bad element."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from cortex.replica.tensors.mismatch import LISTS, MAX_RANK, InputMismatch, describe, ragged, shown
from cortex.replica.tensors.shapes import Shape, ShapeRules, shape_advice
from cortex.wire.signature import TensorSpec, shape_text

Array: TypeAlias = NDArray[Any]
Plan: TypeAlias = Callable[[object], Any]
"""One input's converter. Raises `InputMismatch`."""

_MAX_SUBLISTS: Final = 1 << 20  # where the rank does not bound it: a list that holds itself twice doubles for ever


class BadElement(Exception):
    """An element that the table refuses: why, and what to do about it."""

    def __init__(self, reason: str, hint: str = "") -> None:
        self.reason = reason
        self.hint = hint


class TensorInput:
    """What the tensor inputs of all element types share: shapes, and errors."""

    __slots__ = ("dtype", "filled", "filled_count", "max_rank", "rules", "spec")

    def __init__(self, spec: TensorSpec, dtype: np.dtype[Any]) -> None:
        self.spec = spec
        self.dtype = dtype
        self.rules = ShapeRules(spec.shape)
        self.filled = self.rules.filled
        self.filled_count = self.rules.filled_count
        self.max_rank = MAX_RANK if spec.shape is None else len(spec.shape)

    def fit(self, value: object, found: Shape) -> Shape:
        """
        Return the shape that a value of shape `found` gets.

        Raises:
            InputMismatch: it does not fit the model's.
        """
        target = self.rules.fit(found)
        if target is None:
            assert self.spec.shape is not None
            raise self.mismatch(value, *shape_advice(self.spec.shape, found, self.filled_count))
        return target

    def array_of(self, value: object) -> Array | None:
        """
        Return anything with `__array__` as an array; None for everything else.

        Raises:
            InputMismatch: its `__array__` failed, as that of a tensor which still records gradients.
        """
        if isinstance(value, type) or not hasattr(value, "__array__"):
            return None
        try:
            if isinstance(value, np.ma.MaskedArray):  # numpy would give what lies under the mask
                return np.array(value.tolist(), object) if np.ma.is_masked(value) else value.data
            return np.asarray(value)
        except Exception as error:
            reason = f"it cannot be made an array: {error}"
            raise InputMismatch(self.spec, (type(value).__name__, None), reason) from error

    def flatten(self, value: Sequence[Any]) -> tuple[Shape, list[Any]]:
        """
        Return shape and elements of a nested list, row-major.

        Raises:
            InputMismatch: ragged, or nested deeper than the model's rank.
        """
        shape = [len(value)]
        level = cast("list[Any]", value)
        while level and type(level[0]) in LISTS:
            if len(shape) >= self.max_rank or (self.spec.shape is None and len(level) > _MAX_SUBLISTS):
                raise self.mismatch(value, *self._too_deep(value))
            size = len(level[0])
            if len(level) > 1 and (set(map(type, level)) - LISTS or set(map(len, level)) != {size}):
                raise self.mismatch(value, *ragged(level, shape, self.rules.dims))
            shape.append(size)
            level = list(chain.from_iterable(level))
        return tuple(shape), level

    def _too_deep(self, value: object) -> tuple[str, str]:
        if self.spec.shape is None:
            return "nested too deep", ""
        if self.max_rank == 0:
            return "one value is expected, not nested lists", "send one value"
        _, found = describe(value)
        levels = f"{self.max_rank} level{'s' * (self.max_rank != 1)}"
        reason = f"nested more than {levels} deep"
        if found is not None and found[0] == 1 and self.rules.fit(found[1:]) is not None:
            return reason, "take away the outermost brackets"
        return reason, f"the model takes {shape_text(self.spec.shape)}"

    def mismatch(self, value: object, reason: str, hint: str = "") -> InputMismatch:
        return InputMismatch(self.spec, describe(value), reason, hint)

    def element_mismatch(self, value: object, shape: Shape, index: int, bad: BadElement) -> InputMismatch:
        """The mismatch for one element, found at `index` of the flattened value."""
        path = "".join(f"[{i}]" for i in np.unravel_index(index, shape)) if shape else ""
        return self.mismatch(value, f"{path} {bad.reason}".strip(), bad.hint)


def stack(tensor: TensorInput, value: Sequence[Any]) -> Array:
    """
    Return a list of arrays as one array with one more dimension.

    Raises:
        InputMismatch: their shapes differ.
    """
    arrays = [np.asarray(item, dtype=None if hasattr(item, "__array__") else object) for item in value]
    shapes = {array.shape for array in arrays}
    if len(shapes) != 1:
        shown = " and ".join(sorted(shape_text(shape) for shape in shapes)[:3])
        raise tensor.mismatch(value, f"a list of arrays of different shapes: {shown}")
    return np.stack(arrays)


def as_plain(value: object) -> object:
    """numpy's scalars, and other things that are a number, as Python has them."""
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, int | float | str | bytes | list | tuple | Mapping):
        return value
    if isinstance(value, np.ndarray):
        return value.item() if value.ndim == 0 else value
    if hasattr(value, "__float__"):  # Decimal, Fraction
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return value
        return number
    return value


def text_hint(kind: str) -> str:
    return "convert text to numbers in pre_inference" if kind in "UST" else ""


def not_a_number(value: object, wanted: str = "number") -> BadElement:
    if isinstance(value, str):
        hint = ""
        try:
            float(value)
            hint = "send numbers without quotes"
        except ValueError:
            if value.lower() in ("true", "false"):
                hint = "send true and false without quotes"
            elif value.lstrip()[:1] in ("[", "{"):
                hint = "JSON goes without quotes around it, and with -H 'content-type: application/json'"
        return BadElement(f"is text, {shown(value)}, where a {wanted} is expected", hint)
    if isinstance(value, Mapping):
        return BadElement(f"is an object where a {wanted} is expected")
    if type(value) in LISTS:
        return BadElement("is a list where the others are not", "make all rows equally deep")
    if isinstance(value, bytes | bytearray | memoryview):
        return BadElement(f"is bytes where a {wanted} is expected", "decode them in pre_inference")
    return BadElement(f"is of type {type(value).__name__}, which is no {wanted}")
