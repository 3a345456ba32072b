"""
Inputs of numbers: floats and integers of every width, bfloat16, booleans.

The numeric path rests on `struct.pack`: in one C call it refuses text and null, refuses integers that do not
fit and floats that overflow, takes booleans as 1 and 0, and rounds to nearest, which is the element table of the API.
Whatever it refuses goes to the careful path, which either knows better (null is NaN, 2.0 is an integer) or says
which element is wrong.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from cortex.replica.tensors.elements import Array, BadElement, TensorInput, as_plain, not_a_number, stack, text_hint
from cortex.replica.tensors.mismatch import LISTS, InputMismatch, shown
from cortex.replica.tensors.shapes import Shape
from cortex.wire.signature import TensorSpec

_PACK_CODES: Final = {
    "float16": "e", "float32": "f", "float64": "d",
    "int8": "b", "int16": "h", "int32": "i", "int64": "q",
    "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
}  # fmt: skip  # fmt: skip
_PACK_REFUSES: Final = (struct.error, TypeError, ValueError, OverflowError)
_LARGEST_BFLOAT16: Final = 3.3895313892515355e38
_READ_AS_FLOAT: Final = -(2.0**63)
"""What orjson makes of -2**63 - 1 and of some integers below it: the only such float that int64 has room for."""
_PLAIN_NUMBERS: Final = frozenset({float, int, bool})


class NumberInput(TensorInput):
    """An input of any float or integer type that numpy has."""

    __slots__ = ("_code", "_is_float", "_pack_filled", "_pack_one")

    def __init__(self, spec: TensorSpec, code: str | None = None) -> None:
        super().__init__(spec, np.dtype(spec.dtype if code is None else "float64"))
        self._code = code or _PACK_CODES[spec.dtype]
        self._is_float = self._code in "efd"
        # "=" and not "@": native mode lets floats overflow to infinity
        self._pack_one = struct.Struct(f"={self._code}").pack
        self._pack_filled = struct.Struct(f"={max(self.filled_count, 0)}{self._code}").pack

    def __call__(self, value: object) -> Array:
        kind = type(value)
        if kind is list:
            # The common cases: a flat list or a single row that fills the model's shape, as in [5.1, 3.5, 1.4, 0.2].
            values = cast("list[Any]", value)
            count = len(values)
            try:
                if count == self.filled_count:
                    if not count or type(values[0]) in _PLAIN_NUMBERS:
                        return np.ndarray(self.filled, self.dtype, self._pack_filled(*values))
                elif count == 1 and self.rules.takes_row:
                    row = values[0]
                    if type(row) is list and len(row) == self.filled_count:
                        return np.ndarray(self.filled, self.dtype, self._pack_filled(*row))
            except _PACK_REFUSES:
                pass  # the careful path knows better or says why
            return self._nested(values)
        if kind in _PLAIN_NUMBERS:
            return self._number(value)
        if kind is np.ndarray:
            return self._array(cast("Array", value))
        return self._other(value)

    def _number(self, value: object) -> Array:
        try:
            if self.filled_count == 1:
                return np.ndarray(self.filled, self.dtype, self._pack_one(value))
        except _PACK_REFUSES:
            pass
        return self._nested_of((), [value], value)

    def _nested(self, value: Sequence[Any]) -> Array:
        if len(value) and hasattr(value[0], "__array__") and np.ndim(value[0]):
            return self._array(stack(self, value))
        shape, flat = self.flatten(value)
        return self._nested_of(shape, flat, value)

    def _nested_of(self, shape: Shape, flat: list[Any], value: object) -> Array:
        target = self.fit(value, shape)
        try:
            if not flat or type(flat[0]) in _PLAIN_NUMBERS:
                return np.ndarray(target, self.dtype, self._pack(flat))
        except _PACK_REFUSES:
            pass
        return np.ndarray(target, self.dtype, self._pack(self._each(flat, shape, value)))

    def _pack(self, flat: list[Any]) -> bytes:
        if self._code == "B":
            return bytes(flat)  # as struct's B, three times faster
        return struct.pack(f"={len(flat)}{self._code}", *flat)

    def _each(self, flat: list[Any], shape: Shape, value: object) -> list[Any]:
        """Apply the element table one by one; the result is sure to pack."""
        element, pack_one = self._element, self._pack_one
        result = []
        for index, found in enumerate(flat):
            try:
                number = element(found)
                pack_one(number)
            except BadElement as bad:
                raise self.element_mismatch(value, shape, index, bad) from None
            except _PACK_REFUSES:
                raise self.element_mismatch(value, shape, index, self._out_of_range(found)) from None
            result.append(number)
        return result

    def _element(self, value: object) -> int | float:
        value = as_plain(value)
        if isinstance(value, int):  # bool too
            return value
        if isinstance(value, float):
            if self._is_float:
                return value
            if not math.isfinite(value):
                raise BadElement(f"is {value}, which is no integer")
            if not value.is_integer():
                raise BadElement(f"is {value!r}, which is not a whole number")
            if value == _READ_AS_FLOAT:
                raise BadElement("is a float that may stand for other integers", "write it without a point or exponent")
            return int(value)
        if value is None:
            if self._is_float:
                return math.nan
            raise BadElement("is null", "only float inputs take null, as NaN")
        raise not_a_number(value)

    def _out_of_range(self, value: object) -> BadElement:
        if self._is_float:
            limit = "65504" if self.spec.dtype == "float16" else f"{self._largest():.4g}"
            bounds = f"-{limit} to {limit}"
        else:
            info = np.iinfo(self.dtype)
            bounds = f"{info.min} to {info.max}"
        return BadElement(f"is {shown(value)}, outside the range of {self.spec.dtype} ({bounds})")

    def _largest(self) -> float:
        return float(np.finfo(self.dtype).max)

    def _array(self, array: Array) -> Array:
        target = self.fit(array, array.shape)
        if array.dtype == self.dtype:
            # dtype equality includes the byte order
            return array if target == array.shape else array.reshape(target)
        return self._cast(array).reshape(target)

    def _cast(self, array: Array) -> Array:
        """Cast between numeric kinds as numpy does, but refuse what would turn into something else entirely."""
        kind = array.dtype.kind
        if kind == "V" and "float" in array.dtype.name:  # ml_dtypes' bfloat16 and float8
            array = array.astype(np.float32)
            kind = "f"
        if kind == "O":
            flat = self._each(array.ravel().tolist(), array.shape, array)
            return np.ndarray(array.shape, self.dtype, self._pack(flat))
        if kind not in "biuf":
            raise self.mismatch(array, f"an array of {array.dtype} is no array of numbers", text_hint(kind))
        if self._is_float:
            with np.errstate(over="ignore", invalid="ignore"):
                result = array.astype(self.dtype)
            if self.dtype.itemsize == 2 or (kind == "f" and array.dtype.itemsize > self.dtype.itemsize):
                bad = np.isinf(result) & np.isfinite(array)
                if bad.any():
                    raise self._out_of_range_in(array, array, bad)
            return result
        self._check_integers(array)
        return array.astype(self.dtype)

    def _out_of_range_in(self, value: object, array: Array, bad: Array) -> InputMismatch:
        """The mismatch for the first element of which `bad` holds."""
        index = int(np.argmax(bad))
        found = array.ravel()[index].item()
        refused = self._out_of_range(found)
        if not self._is_float and not math.isfinite(found):
            refused = BadElement(f"is {found}, which is no integer")
        return self.element_mismatch(value, array.shape, index, refused)

    def _check_integers(self, array: Array) -> None:
        if array.dtype.kind == "b" or array.size == 0:
            return
        info = np.iinfo(self.dtype)
        if array.dtype.kind == "f":
            # float(max + 1) is exact for every integer type, float(max) is not
            wide = array.astype(np.float64)
            bad = ~((np.trunc(wide) >= float(info.min)) & (wide < float(info.max + 1)))
        elif np.can_cast(array.dtype, self.dtype, "safe"):
            return
        else:
            low, high = int(array.min()), int(array.max())
            if info.min <= low and high <= info.max:
                return
            bad = array == (low if low < info.min else high)
        if bad.any():
            raise self._out_of_range_in(array, array, bad)

    def _other(self, value: object) -> Array:
        """Values that JSON has no lists or numbers of: what handlers return, null, text, objects."""
        if type(value) in LISTS:
            return self._nested(cast("Sequence[Any]", value))
        array = self.array_of(value)
        if array is not None:
            return self._array(array)
        try:
            self._element(value)  # before the shape: what a text or an object is matters more than where it stands
        except BadElement as bad:
            raise self.element_mismatch(value, (), 0, bad) from None
        return self._nested_of((), [value], value)


class BFloat16Input(NumberInput):
    """
    An input of bfloat16, which numpy lacks: its values, rounded, in a float32 array.

    Source:
        Rounding to nearest, ties to even, on the upper half of the float32 bits, as in Eigen's `bfloat16`.
    """

    __slots__ = ()

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec, "d")

    def __call__(self, value: object) -> Array:
        wide: Array = super().__call__(value)
        narrow = to_bfloat16(wide)
        bad = np.isinf(narrow) & np.isfinite(wide)
        if bad.any():
            raise self._out_of_range_in(value, wide, bad)
        return narrow

    def _largest(self) -> float:
        return _LARGEST_BFLOAT16


def to_bfloat16(array: Array) -> NDArray[np.float32]:
    """
    Round to the nearest bfloat16, ties to even.

    Args:
        array: float64 or float32, any shape.

    Returns:
        float32 of the same shape whose lower 16 bits are zero. Infinite where bfloat16 overflows.
    """
    with np.errstate(over="ignore"):
        single = np.atleast_1d(array).astype(np.float32)  # never a scalar: numpy warns when those wrap around
    bits = single.view(np.uint32)
    if array.dtype != np.float32:
        # A tie that rounding to float32 made is none: step one bit back towards the value it came from.
        tie = (bits & 0xFFFF) == 0x8000
        if tie.any():
            wide, near = np.abs(np.atleast_1d(array)), np.abs(single.astype(np.float64))
            bits = bits + (tie & (near < wide)).astype(np.uint32) - (tie & (near > wide)).astype(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    rounded = np.where(np.isnan(single), np.uint32(0x7FC00000), rounded)
    return np.asarray(rounded, dtype=np.uint32).view(np.float32).reshape(array.shape)


class BoolInput(TensorInput):
    """An input of booleans: true and false, or 1 and 0."""

    __slots__ = ()

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec, np.dtype(np.bool_))

    def __call__(self, value: object) -> Array:
        if type(value) in LISTS:
            values = cast("Sequence[Any]", value)
            if len(values) and hasattr(values[0], "__array__") and np.ndim(values[0]):
                return self._array(stack(self, values))
            shape, flat = self.flatten(values)
        else:
            array = self.array_of(value)
            if array is not None:
                return self._array(array)
            shape, flat = (), [value]
        target = self.fit(value, shape)
        if set(map(type, flat)) != {bool}:
            flat = self._each(flat, shape, value)
        return np.array(flat, np.bool_).reshape(target)

    def _each(self, flat: list[Any], shape: Shape, value: object) -> list[bool]:
        result = []
        for index, found in enumerate(flat):
            plain = as_plain(found)
            if isinstance(plain, int | float) and (plain == 0 or plain == 1):
                result.append(bool(plain))
                continue
            if plain is None:
                bad = BadElement("is null", "send true or false")
            elif isinstance(plain, int | float):
                bad = BadElement(f"is {shown(plain)}, and only 0 and 1 are booleans")
            else:
                bad = not_a_number(plain, "boolean")
            raise self.element_mismatch(value, shape, index, bad)
        return result

    def _array(self, array: Array) -> Array:
        target = self.fit(array, array.shape)
        kind = array.dtype.kind
        if kind == "O":
            flat = self._each(array.ravel().tolist(), array.shape, array)
            return np.array(flat, np.bool_).reshape(target)
        if kind not in "biuf":
            raise self.mismatch(array, f"an array of {array.dtype} is no array of booleans", text_hint(kind))
        if kind == "f" and np.isnan(array).any():
            raise self.mismatch(array, "it holds NaN, which is neither true nor false")
        return array.astype(np.bool_, copy=False).reshape(target)
