"""
Values to tensors: one sample, from JSON or from a handler, becomes the arrays that a model takes.

What depends only on the model is worked out once, in `build_converter`; a request then costs about a microsecond an
input. The numeric path rests on `struct.pack`: in one C call it refuses text and null, refuses integers that do not
fit and floats that overflow, takes booleans as 1 and 0, and rounds to nearest, which is the element table of the API.
Whatever it refuses goes to the careful path, which either knows better (null is NaN, 2.0 is an integer) or says
which element is wrong.
"""

from __future__ import annotations

import base64
import binascii
import math
import operator
import re
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from typing import Any, Final, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from cortex.replica.tensors.dimensions import Dimensions
from cortex.replica.tensors.examples import serialise
from cortex.replica.tensors.mismatch import (
    LISTS,
    MAX_RANK,
    InputMismatch,
    WrongNames,
    describe,
    no_object,
    ragged,
    shown,
    wrong_names,
)
from cortex.replica.tensors.shapes import Shape, ShapeRules, shape_advice
from cortex.replica.tensors.tables import OTHER_WRAPPERS, column_hint, columns_of, unwrapped, without_index
from cortex.wire.signature import Signature, TensorSpec, shape_text

__all__ = ["Array", "Converter", "Feeds", "InputMismatch", "WrongNames", "build_converter", "to_bfloat16"]

Array: TypeAlias = NDArray[Any]
Feeds: TypeAlias = dict[str, Any]
"""
Value by input name: an array; a list of arrays for a sequence; a dict for a map; for a ragged tensor lists of lists, as
deep as its ragged rank, of arrays. Absent inputs have no key.
"""

_PACK_CODES: Final = {
    "float16": "e", "float32": "f", "float64": "d",
    "int8": "b", "int16": "h", "int32": "i", "int64": "q",
    "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
}  # fmt: skip
_PACK_REFUSES: Final = (struct.error, TypeError, ValueError, OverflowError)
_MAX_SUBLISTS: Final = 1 << 20  # where the rank does not bound it: a list that holds itself twice doubles for ever
_LARGEST_BFLOAT16: Final = 3.3895313892515355e38
_PLAIN_NUMBERS: Final = frozenset({float, int, bool})


class Converter:
    """
    Turns samples into what `Backend.run` takes. Built once a model; safe to use from several threads.

    Args:
        signature: of the model.
        takes_bytes: whether text inputs may hold bytes that are not UTF-8 (TensorFlow: yes, ONNX: no).
    """

    __slots__ = ("_dimensions", "_key", "_lone", "_names", "_only", "_only_name", "_plans", "_specs", "needs_value")

    def __init__(self, signature: Signature, *, takes_bytes: bool = False) -> None:
        self._specs = signature.inputs
        self._plans: tuple[tuple[TensorSpec, _Plan], ...] = tuple(
            (spec, _plan(spec, takes_bytes)) for spec in signature.inputs
        )
        self._names = tuple(spec.name for spec in signature.inputs)
        self._key = signature.key
        needed = [(spec.name, plan) for spec, plan in self._plans if not spec.optional]
        self.needs_value = bool(needed)
        """Whether there is an input that may not be left out."""
        self._lone = needed[0] if len(needed) == 1 else None
        """The input that a value without a name is for, beside others that may be left out."""
        dimensions = Dimensions(signature.inputs)
        self._dimensions = dimensions if dimensions.any else None
        # one input whose sizes need no comparing: the shortest way
        single = len(self._plans) == 1
        self._only: _Plan | None = self._plans[0][1] if single and self._dimensions is None else None
        self._only_name = self._names[0] if single else ""

    def convert(self, sample: object, after: str | None = None) -> Feeds:
        """
        Return the model's feeds for one sample.

        Args:
            sample: a JSON value, or whatever a handler returned.
            after: `pre_inference` if a handler made the sample: then it is in no envelope.

        Returns:
            Arrays in native byte order, with the dtype and a shape that the model declares. They may be read-only
            and may share memory with the sample.

        Raises:
            WrongNames: an input is missing, or the model has none of a name.
            InputMismatch: names the input, what is expected, what was found, and a hint.
        """
        try:
            only = self._only
            if only is not None and type(sample) is list:
                return {self._only_name: only(sample)}
            return self._direct(sample)
        except InputMismatch as error:
            found = error
        try:
            return self._otherwise(sample, found, is_callers=after is None)
        except InputMismatch as error:
            error.after = after
            raise error from None

    def refused(self, feeds: Feeds, reason: str, after: str | None = None) -> InputMismatch:
        """
        The mismatch for feeds that fit the signature, and that the model refused to run on.

        Args:
            feeds: what `convert` returned.
            reason: the runtime's words.
            after: as for `convert`.
        """
        uneven = None if self._dimensions is None else self._dimensions.uneven_rows(feeds)
        if uneven is not None:
            uneven.reason += f"; the model says: {reason}"
            uneven.after = after
            return uneven
        given = [spec for spec in self._specs if spec.name in feeds]
        spec = _culprit(given, feeds, reason)
        reason = f"the model does not take these values: {reason}"
        if spec is None:
            listed = ", ".join(f'"{one.name}" {_fed_text(one, feeds[one.name])}' for one in given[:_MOST_LISTED])
            mismatch = InputMismatch(
                "",
                expected_dtype="object",
                expected_shape=None,
                found_dtype="object",
                reason=f"{reason}; it was given {listed or 'nothing'}",
            )
        else:
            is_tensor = spec.kind == "tensor"
            mismatch = InputMismatch(
                spec.name,
                expected_dtype=spec.dtype if is_tensor else str(spec),
                expected_shape=spec.shape if is_tensor else None,
                found_dtype=spec.dtype if is_tensor else str(spec),
                found_shape=np.shape(feeds[spec.name]) if is_tensor else None,
                reason=reason,
            )
        mismatch.after = after
        return mismatch

    def _direct(self, sample: object) -> Feeds:
        """The feeds of a sample that is in the model's own form."""
        feeds = self._single(sample, self._plans[0][1]) if len(self._plans) == 1 else self._several(sample)
        if self._dimensions is not None:
            self._dimensions.check(feeds)
        return feeds

    def _single(self, sample: object, plan: _Plan) -> Feeds:
        spec = self._plans[0][0]
        value = sample
        if isinstance(sample, Mapping):
            if spec.name in sample:
                if len(sample) == 1:
                    value = sample[spec.name]
                elif spec.kind != "map":
                    raise wrong_names(self._specs, sample)
            elif spec.kind != "map" and not spec.features and not _is_b64(sample):
                if spec.optional and not sample:
                    return {}
                raise wrong_names(self._specs, sample)
        if value is None and spec.optional:
            return {}
        return {spec.name: plan(value)}

    def _several(self, sample: object) -> Feeds:
        if not isinstance(sample, Mapping):
            return self._nameless(sample)
        feeds: Feeds = {}
        known = 0
        for spec, plan in self._plans:
            value = sample.get(spec.name, _MISSING)
            if value is _MISSING:
                if not spec.optional:
                    if self._lone is not None and _is_b64(sample):
                        return self._nameless(sample)
                    raise wrong_names(self._specs, sample)
                continue
            known += 1
            if value is not None or not spec.optional:
                feeds[spec.name] = plan(value)
        if known != len(sample):
            raise wrong_names(self._specs, sample)
        return feeds

    def _nameless(self, sample: object) -> Feeds:
        """The feeds of a value that names no input."""
        if self._lone is not None:
            name, plan = self._lone
            return {name: plan(sample)}
        if not self._specs or (sample is None and all(spec.optional for spec in self._specs)):
            return {}  # a model without inputs answers to anything
        raise no_object(self._specs, sample)

    def _otherwise(self, sample: object, mismatch: InputMismatch, *, is_callers: bool) -> Feeds:
        """
        Read a sample that is not in the model's own form as a table, or as what another system would be sent.

        Raises:
            InputMismatch: of the form that is most likely meant; `mismatch` where that is the model's own.
        """
        form = sample
        if is_callers:
            form = without_index(unwrapped(sample, self._names, self._key))
            if form is not sample:
                try:
                    return self._direct(form)
                except InputMismatch as error:
                    mismatch = error
        columns = columns_of(form) if self._may_be_records(form) else None
        if columns is not None:
            try:
                return self._direct(columns)
            except InputMismatch as error:
                form, mismatch = columns, error
        if isinstance(mismatch, WrongNames) and isinstance(form, Mapping):
            mismatch.hint = self._tried_hint(form, mismatch)
        raise mismatch

    def _may_be_records(self, sample: object) -> bool:
        """Whether a list of objects can be meant as rows: where an input takes objects itself it is not."""
        if len(self._specs) != 1:
            return True
        spec = self._specs[0]
        if spec.kind not in ("tensor", "ragged") or type(sample) is not list or not sample:
            return False
        keys = _keys(sample[0])
        return spec.name in keys or (len(keys) > 0 and not spec.features and not _is_b64(sample[0]))

    def _tried_hint(self, sample: Mapping[Any, Any], mismatch: WrongNames) -> str:
        """The hint of a mismatch of names, tried: who follows it is not told of the next mistake only then."""
        for wrapper in OTHER_WRAPPERS:
            if len(sample) == 1 and wrapper in sample:
                inner = sample[wrapper]
                if self._problem(columns_of(inner) if isinstance(inner, list) and columns_of(inner) else inner) is None:
                    return f'send what is in "{wrapper}", without the object around it'
        if mismatch.meant:
            renamed = {mismatch.meant.get(str(key), key): value for key, value in sample.items()}
            problem = self._problem(renamed)
            if problem is not None and not isinstance(problem, WrongNames):
                return f"{mismatch.hint} Its value does not fit either: {problem}"
        elif len(self._specs) == 1 and len(sample) > 1 and mismatch.input:
            return column_hint(sample)
        return mismatch.hint

    def _problem(self, sample: object) -> InputMismatch | None:
        try:
            self._direct(sample)
        except InputMismatch as error:
            return error
        return None


def _culprit(given: Sequence[TensorSpec], feeds: Feeds, reason: str) -> TensorSpec | None:
    """The input that a runtime's words are about: the only one, or the only one that holds the index they name."""
    if len(given) == 1:
        return given[0]
    index = _INDEX.search(reason)
    if index is None:
        return None
    value = int(index[1])
    holding = [
        spec
        for spec in given
        if isinstance(feeds[spec.name], np.ndarray)
        and feeds[spec.name].dtype.kind in "iu"
        and bool((feeds[spec.name] == value).any())
    ]
    return holding[0] if len(holding) == 1 else None


_INDEX: Final = re.compile(r"(?:\bidx=|\bindex = |\] = )(-?\d{1,19})\b")
"""How onnxruntime and TensorFlow name an index that is out of range."""
_MOST_LISTED: Final = 10


def _fed_text(spec: TensorSpec, value: Any) -> str:
    return f"{spec.dtype}{shape_text(value.shape)}" if isinstance(value, np.ndarray) else str(spec)


def _keys(record: object) -> Collection[Any]:
    return record.keys() if isinstance(record, Mapping) else ()


def build_converter(signature: Signature, *, takes_bytes: bool = False) -> Converter:
    """Return the converter of a model; see `Converter`."""
    return Converter(signature, takes_bytes=takes_bytes)


_Plan: TypeAlias = Callable[[object], Any]
"""One input's converter. Raises `InputMismatch`."""

_MISSING: Final = object()


def _plan(spec: TensorSpec, takes_bytes: bool) -> _Plan:
    element: _Plan
    if spec.kind in ("map", "sequence_of_maps"):
        element = _MapInput(spec)
    elif spec.kind == "ragged":
        return _RaggedInput(spec, takes_bytes)
    elif spec.features:
        element = _ExampleTensor(spec, takes_bytes)
    elif spec.dtype == "string":
        element = _TextTensor(spec, takes_bytes)
    elif spec.dtype == "bool":
        element = _BoolTensor(spec)
    elif spec.dtype == "bfloat16":
        element = _BFloat16Tensor(spec)
    else:
        element = _NumberTensor(spec)
    return _SequenceInput(spec, element) if spec.kind.startswith("sequence") else element


class _BadElement(Exception):
    """An element that the table refuses: why, and what to do about it."""

    def __init__(self, reason: str, hint: str = "") -> None:
        self.reason = reason
        self.hint = hint


class _Tensor:
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
            raise InputMismatch(
                self.spec.name,
                expected_dtype=self.spec.dtype,
                expected_shape=self.spec.shape,
                found_dtype=type(value).__name__,
                reason=f"it cannot be made an array: {error}",
            ) from error

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
        dtype, shape = describe(value)
        return InputMismatch(
            self.spec.name,
            expected_dtype=self.spec.dtype,
            expected_shape=self.spec.shape,
            found_dtype=dtype,
            found_shape=shape,
            reason=reason,
            hint=hint,
        )

    def element_mismatch(self, value: object, shape: Shape, index: int, bad: _BadElement) -> InputMismatch:
        """The mismatch for one element, found at `index` of the flattened value."""
        path = "".join(f"[{i}]" for i in np.unravel_index(index, shape)) if shape else ""
        return self.mismatch(value, f"{path} {bad.reason}".strip(), bad.hint)


class _NumberTensor(_Tensor):
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
            return self._array(_stack(self, value))
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
            except _BadElement as bad:
                raise self.element_mismatch(value, shape, index, bad) from None
            except _PACK_REFUSES:
                raise self.element_mismatch(value, shape, index, self._out_of_range(found)) from None
            result.append(number)
        return result

    def _element(self, value: object) -> int | float:
        value = _plain(value)
        if isinstance(value, int):  # bool too
            return value
        if isinstance(value, float):
            if self._is_float:
                return value
            if not math.isfinite(value):
                raise _BadElement(f"is {value}, which is no integer")
            if not value.is_integer():
                raise _BadElement(f"is {value!r}, which is not a whole number")
            return int(value)
        if value is None:
            if self._is_float:
                return math.nan
            raise _BadElement("is null", "only float inputs take null, as NaN")
        raise _not_a_number(value)

    def _out_of_range(self, value: object) -> _BadElement:
        if self._is_float:
            limit = "65504" if self.spec.dtype == "float16" else f"{self._largest():.4g}"
            bounds = f"-{limit} to {limit}"
        else:
            info = np.iinfo(self.dtype)
            bounds = f"{info.min} to {info.max}"
        return _BadElement(f"is {shown(value)}, outside the range of {self.spec.dtype} ({bounds})")

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
            raise self.mismatch(array, f"an array of {array.dtype} is no array of numbers", _text_hint(kind))
        if self._is_float:
            with np.errstate(over="ignore", invalid="ignore"):
                result = array.astype(self.dtype)
            if self.dtype.itemsize == 2 or (kind == "f" and array.dtype.itemsize > self.dtype.itemsize):
                self._check_overflow(array, result)
            return result
        self._check_integers(array)
        return array.astype(self.dtype)

    def _check_overflow(self, array: Array, result: Array) -> None:
        bad = np.isinf(result) & np.isfinite(array)
        if bad.any():
            index = int(np.argmax(bad))
            raise self.element_mismatch(array, array.shape, index, self._out_of_range(array.ravel()[index].item()))

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
            index = int(np.argmax(bad))
            value = array.ravel()[index].item()
            if isinstance(value, float) and not math.isfinite(value):
                raise self.element_mismatch(array, array.shape, index, _BadElement(f"is {value}, which is no integer"))
            raise self.element_mismatch(array, array.shape, index, self._out_of_range(value))

    def _other(self, value: object) -> Array:
        """Values that JSON has no lists or numbers of: what handlers return, null, text, objects."""
        if type(value) in LISTS:
            return self._nested(cast("Sequence[Any]", value))
        array = self.array_of(value)
        if array is not None:
            return self._array(array)
        try:
            self._element(value)  # before the shape: what a text or an object is matters more than where it stands
        except _BadElement as bad:
            raise self.element_mismatch(value, (), 0, bad) from None
        return self._nested_of((), [value], value)


class _BFloat16Tensor(_NumberTensor):
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
            index = int(np.argmax(bad))
            raise self.element_mismatch(value, wide.shape, index, self._out_of_range(wide.ravel()[index].item()))
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


class _BoolTensor(_Tensor):
    """An input of booleans: true and false, or 1 and 0."""

    __slots__ = ()

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__(spec, np.dtype(np.bool_))

    def __call__(self, value: object) -> Array:
        if type(value) in LISTS:
            values = cast("Sequence[Any]", value)
            if len(values) and hasattr(values[0], "__array__") and np.ndim(values[0]):
                return self._array(_stack(self, values))
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
            plain = _plain(found)
            if isinstance(plain, int | float) and (plain == 0 or plain == 1):
                result.append(bool(plain))
                continue
            if plain is None:
                bad = _BadElement("is null", "send true or false")
            elif isinstance(plain, int | float):
                bad = _BadElement(f"is {shown(plain)}, and only 0 and 1 are booleans")
            else:
                bad = _not_a_number(plain, "boolean")
            raise self.element_mismatch(value, shape, index, bad)
        return result

    def _array(self, array: Array) -> Array:
        target = self.fit(array, array.shape)
        kind = array.dtype.kind
        if kind == "O":
            flat = self._each(array.ravel().tolist(), array.shape, array)
            return np.array(flat, np.bool_).reshape(target)
        if kind not in "biuf":
            raise self.mismatch(array, f"an array of {array.dtype} is no array of booleans", _text_hint(kind))
        if kind == "f" and np.isnan(array).any():
            raise self.mismatch(array, "it holds NaN, which is neither true nor false")
        return array.astype(np.bool_, copy=False).reshape(target)


class _TextTensor(_Tensor):
    """An input of strings: an object array of str, and of bytes where the backend takes them."""

    __slots__ = ("_takes_bytes",)

    def __init__(self, spec: TensorSpec, takes_bytes: bool) -> None:
        super().__init__(spec, np.dtype(object))
        self._takes_bytes = takes_bytes

    def __call__(self, value: object) -> Array:
        if self.filled_count == 1 and type(value) is str and value.isascii():
            result = np.empty(self.filled, dtype=object)
            result[...] = value
            return result
        if type(value) in LISTS:
            values = cast("Sequence[Any]", value)
            if len(values) and isinstance(values[0], np.ndarray) and values[0].ndim:
                return self._array(_stack(self, values))
            shape, flat = self.flatten(values)
            return self._of(shape, flat, value)
        if not isinstance(value, str | bytes):
            array = self.array_of(value)
            if array is not None:
                return self._array(array)
        return self._of((), [value], value)

    def _array(self, array: Array) -> Array:
        if array.dtype.kind not in "OUST":
            raise self.mismatch(array, f"an array of {array.dtype} is no array of text")
        try:
            flat = array.ravel().tolist()
        except (ValueError, SystemError):  # four bytes a character, and some are none
            raise self.mismatch(array, "its characters are not Unicode") from None
        return self._of(array.shape, flat, array)

    def _of(self, shape: Shape, flat: list[Any], value: object) -> Array:
        target = self.fit(value, shape)
        result = np.empty(len(flat), dtype=object)
        for index, found in enumerate(flat):
            try:
                result[index] = self._element(found)
            except _BadElement as bad:
                raise self.element_mismatch(value, shape, index, bad) from None
        return result.reshape(target)

    def _element(self, value: object) -> str | bytes:
        if isinstance(value, str):
            if not value.isascii():
                _refuse_lone_surrogates(value)
            return value
        if _is_b64(value):
            value = _from_b64(cast("Mapping[str, object]", value)["b64"])
        if isinstance(value, bytes | bytearray | memoryview):
            return self._bytes(bytes(value))
        if value is None:
            raise _BadElement("is null", 'send "" for an empty text')
        if isinstance(value, Mapping):
            raise _BadElement("is an object", 'send text, or {"b64": "…"} for bytes')
        if isinstance(value, bool | np.bool_ | int | float | np.number):
            raise _BadElement(f"is {shown(value)}, which is no text", f'put it in quotes: "{shown(value)}"')
        if type(value) in LISTS:
            raise _BadElement("is a list where the others are not", "make all rows equally deep")
        raise _BadElement(f"is of type {type(value).__name__}, which is no text")

    def _bytes(self, value: bytes) -> str | bytes:
        if self._takes_bytes:
            return value
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise _BadElement("is bytes that are not UTF-8, and this model's text has to be UTF-8") from None


class _ExampleTensor(_TextTensor):
    """An input of serialised `tf.Example`s, which objects of their features are made into."""

    __slots__ = ("_features", "_known", "_specs")

    def __init__(self, spec: TensorSpec, takes_bytes: bool) -> None:
        super().__init__(spec, takes_bytes)
        self._specs = spec.features
        self._known = frozenset(feature.name for feature in spec.features)
        self._features = tuple((feature, _plan(feature, takes_bytes)) for feature in spec.features)

    def __call__(self, value: object) -> Array:
        if type(value) is list:
            return super().__call__([self._serialised(item) if _is_features(item) else item for item in value])
        if not _is_features(value):
            return super().__call__(value)
        features = cast("Mapping[Any, Any]", value)
        try:
            return super().__call__(self._serialised(features))
        except InputMismatch as error:
            rows = _rows(features)
            if rows is None:
                raise
            try:
                return super().__call__([self._serialised(row) for row in rows])
            except InputMismatch:
                raise error from None

    def _serialised(self, features: Mapping[Any, Any]) -> bytes:
        given: dict[str, Array] = {}
        for spec, plan in self._features:
            value = features.get(spec.name)
            if spec.name not in features and not spec.optional:
                raise self._wrong_names(features)
            if value is not None or not spec.optional:
                try:
                    given[spec.name] = plan(value)
                except InputMismatch as error:
                    error.input = f'{self.spec.name}["{error.input}"]'
                    raise
        if not self._known.issuperset(features):
            raise self._wrong_names(features)
        return serialise(given)

    def _wrong_names(self, features: Mapping[Any, Any]) -> InputMismatch:
        error = wrong_names(self._specs, features, noun="feature")
        error.input = f'{self.spec.name}["{error.input}"]' if error.input else ""
        return error


def _is_features(value: object) -> bool:
    return isinstance(value, Mapping) and not _is_b64(value)


def _rows(columns: Mapping[Any, Any]) -> list[dict[Any, Any]] | None:
    """Columns of one length as rows; None if they are none."""
    lengths = {len(column) if type(column) in LISTS else -1 for column in columns.values()}
    if len(lengths) != 1 or -1 in lengths:
        return None
    return [{name: column[row] for name, column in columns.items()} for row in range(lengths.pop())]


class _RaggedInput:
    """An input whose rows may have different lengths: lists of lists, as deep as its ragged rank, of arrays."""

    __slots__ = ("_rank", "_row", "_spec")

    def __init__(self, spec: TensorSpec, takes_bytes: bool) -> None:
        assert spec.shape is not None
        self._spec = spec
        self._rank = spec.ragged_rank
        self._row = _plan(TensorSpec(spec.name, spec.dtype, (None, *spec.shape[self._rank + 1 :])), takes_bytes)

    def __call__(self, value: object) -> list[Any]:
        rows = list(value) if isinstance(value, np.ndarray) and value.ndim else value
        if type(rows) not in LISTS:
            raise self._mismatch(value, "a list of rows is expected", "put it in brackets: [[…], …]")
        if len(cast("Sequence[Any]", rows)) and _depth(rows) == len(self._spec.shape or ()) - 1:
            rows = [rows]  # a single row
        return self._level(cast("Sequence[Any]", rows), self._rank, self._spec.name)

    def _level(self, rows: Sequence[Any], rank: int, path: str) -> list[Any]:
        result = []
        for index, row in enumerate(rows):
            here = f"{path}[{index}]"
            if rank > 1 and type(row) in LISTS:
                result.append(self._level(row, rank - 1, here))
                continue
            if rank > 1 or not (type(row) in LISTS or isinstance(row, np.ndarray)):
                raise self._mismatch(rows, f"{here} is no list", "make all rows equally deep, of any length")
            try:
                result.append(self._row(row))
            except InputMismatch as error:
                error.input = here
                raise
        return result

    def _mismatch(self, value: object, reason: str, hint: str) -> InputMismatch:
        dtype, shape = describe(value)
        return InputMismatch(
            self._spec.name,
            expected_dtype=str(self._spec),
            expected_shape=None,
            found_dtype=dtype,
            found_shape=shape,
            reason=reason,
            hint=hint,
        )


def _depth(value: object) -> int:
    """How deep lists and arrays are nested, at the deepest place."""
    if isinstance(value, np.ndarray):
        return value.ndim
    depth = 0
    level = [value]
    while depth < MAX_RANK:
        lists = [item for item in level if type(item) in LISTS]
        if not lists:
            break
        depth += 1
        level = [item for row in lists for item in cast("Sequence[Any]", row)][:_MANY_ROWS]
    return depth + max((item.ndim for item in level if isinstance(item, np.ndarray)), default=0)


_MANY_ROWS: Final = 1 << 12  # of a list that holds itself twice there are more at each level


class _SequenceInput:
    """An input that is a list of tensors, or of maps; each is converted by itself."""

    __slots__ = ("_element", "_spec")

    def __init__(self, spec: TensorSpec, element: _Plan) -> None:
        self._spec = spec
        self._element = element

    def __call__(self, value: object) -> list[Any]:
        if not isinstance(value, list | tuple | np.ndarray) or (isinstance(value, np.ndarray) and not value.ndim):
            dtype, shape = describe(value)
            raise InputMismatch(
                self._spec.name,
                expected_dtype=str(self._spec),
                expected_shape=None,
                found_dtype=dtype,
                found_shape=shape,
                reason="a list is expected",
                hint="put it in brackets: […]",
            )
        result = []
        for index, item in enumerate(value):
            try:
                result.append(self._element(item))
            except InputMismatch as error:
                error.input = f"{self._spec.name}[{index}]"
                raise
        return result


class _MapInput:
    """An input that maps text or integers to numbers. onnxruntime takes float32 values only."""

    __slots__ = ("_integer_keys", "_number", "_spec")

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec
        self._integer_keys = spec.key_dtype != "string"
        self._number = _plan(TensorSpec(spec.name, spec.dtype, ()), False)

    def __call__(self, value: object) -> dict[Any, Any]:
        if not isinstance(value, Mapping):
            raise self._mismatch(value, "an object is expected", "send {key: number, …}")
        result: dict[Any, Any] = {}
        for key, number in value.items():
            try:
                result[self._key(key, value)] = self._number(number).item()
            except InputMismatch as error:
                error.input = f"{self._spec.name}[{shown(key)}]"
                raise
        return result

    def _key(self, key: object, value: object) -> int | str:
        if not self._integer_keys:
            return str(key)
        try:
            integer = int(key) if isinstance(key, str) else operator.index(cast("int", key))
        except (TypeError, ValueError):
            raise self._mismatch(value, f"the key {shown(key)} is no integer") from None
        if not -(1 << 63) <= integer < 1 << 63:
            raise self._mismatch(value, f"the key {shown(key)} does not fit in 64 bits")
        return integer

    def _mismatch(self, value: object, reason: str, hint: str = "") -> InputMismatch:
        dtype, shape = describe(value)
        return InputMismatch(
            self._spec.name,
            expected_dtype=str(self._spec),
            expected_shape=None,
            found_dtype=dtype,
            found_shape=shape,
            reason=reason,
            hint=hint,
        )


def _stack(tensor: _Tensor, value: Sequence[Any]) -> Array:
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


def _plain(value: object) -> object:
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


def _is_b64(value: object) -> bool:
    return isinstance(value, Mapping) and len(value) == 1 and "b64" in value


def _from_b64(text: object) -> bytes:
    """
    Bytes of base64 in any of its forms: with line breaks, url-safe, without padding, as a `data:` URL.

    Source:
        RFC 4648, sections 4 and 5; RFC 2045, section 6.8 (line breaks); RFC 2397 (`data:`).
    """
    if not isinstance(text, str):
        raise _BadElement('has a "b64" that is no text')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise _BadElement('has a "b64" that is a data: URL without ";base64,"', "encode the bytes as base64")
    plain = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _BadElement('has a "b64" that is not base64') from None


_URL_SAFE: Final = str.maketrans("-_", "+/")


def _refuse_lone_surrogates(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _BadElement("has half a character (a lone surrogate)") from None


def _text_hint(kind: str) -> str:
    return "convert text to numbers in pre_inference" if kind in "UST" else ""


def _not_a_number(value: object, wanted: str = "number") -> _BadElement:
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
        return _BadElement(f"is text, {shown(value)}, where a {wanted} is expected", hint)
    if isinstance(value, Mapping):
        return _BadElement(f"is an object where a {wanted} is expected")
    if type(value) in LISTS:
        return _BadElement("is a list where the others are not", "make all rows equally deep")
    if isinstance(value, bytes | bytearray | memoryview):
        return _BadElement(f"is bytes where a {wanted} is expected", "decode them in pre_inference")
    return _BadElement(f"is of type {type(value).__name__}, which is no {wanted}")
