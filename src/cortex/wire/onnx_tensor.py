"""Constants of an ONNX model: what type and shape they have, and what is in the small ones."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from cortex.wire.graphs import MAX_ELEMENTS, Tensor
from cortex.wire.onnx_schema import TENSOR_LISTS, SparseTensorTag, TensorTag
from cortex.wire.protobuf import Source, Span, signed

_DTYPES: Final = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
}  # fmt: skip
"""By TensorProto.DataType."""

_FORMATS: Final = {
    "float32": "f", "float64": "d", "float16": "e", "bfloat16": "H", "bool": "?",
    "int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
}  # fmt: skip
"""By type: how `struct` has it."""

_LIST_OF: Final = {
    "float32": "float_data", "float64": "double_data", "string": "string_data", "int64": "int64_data",
    "int32": "int32_data", "int16": "int32_data", "int8": "int32_data", "uint16": "int32_data", "uint8": "int32_data",
    "bool": "int32_data", "float16": "int32_data", "bfloat16": "int32_data",
    "uint32": "uint64_data", "uint64": "uint64_data",
}  # fmt: skip
"""By type: the list that its values are in, where they are not in `raw_data`."""

_SPARSE_DIMS: Final = frozenset({SparseTensorTag.DIMS, SparseTensorTag.PACKED_DIMS})

_MAX_DIMS_BYTES = 1 << 12
_MAX_DATA_BYTES = 1 << 16
"""`MAX_ELEMENTS` of anything take less, but for long texts."""

_Elements: TypeAlias = "tuple[int | float | bool | str, ...] | None"


def dtype_of(data_type: int) -> str:
    """The name of a TensorProto.DataType, as it is written in a file; empty where it has none."""
    return _DTYPES.get(data_type & 0xFFFFFFFF, "")


def read_tensor(source: Source, start: int, end: int) -> tuple[str, Tensor]:
    """
    Return a TensorProto's name, and what is known of it.

    Raises:
        ValueError: it is none.
    """
    name, dtype, elsewhere = "", "", False
    raw: Span | None = None
    lists: dict[str, list[Span]] = {}
    for tag, first, last in source.tagged(start, end, TENSOR_LISTS):
        if last is None:
            if tag == TensorTag.DATA_TYPE:
                dtype = dtype_of(first)
            elif tag == TensorTag.DATA_LOCATION:
                elsewhere = elsewhere or first != 0
        elif tag in TENSOR_LISTS:
            _add(lists.setdefault(TENSOR_LISTS[tag], []), first, last)
        elif tag == TensorTag.NAME:
            name = source.name(first, last)
        elif tag == TensorTag.RAW_DATA:
            raw = first, last
        elif tag in (TensorTag.EXTERNAL_DATA, TensorTag.SEGMENT):
            elsewhere = True
    shape = _shape(source, lists.pop("dims", []))
    elements: _Elements = None
    if not elsewhere and math.prod(shape) <= MAX_ELEMENTS:
        elements = _from_lists(source, dtype, lists) if raw is None else _from_raw(source, dtype, raw, lists)
        if elements is not None and len(elements) != math.prod(shape):
            elements = None
    return name, Tensor(dtype, shape, elements)


def read_sparse_tensor(source: Source, start: int, end: int) -> tuple[str, Tensor]:
    """
    Return a SparseTensorProto's name, which is its values', and what is known of it.

    Raises:
        ValueError: it is none.
    """
    name, dtype = "", ""
    dims: list[Span] = []
    for tag, first, last in source.tagged(start, end, _SPARSE_DIMS):
        if last is None:
            continue
        if tag in _SPARSE_DIMS:
            _add(dims, first, last)
        elif tag == SparseTensorTag.VALUES:
            name, values = read_tensor(source, first, last)
            dtype = values.dtype
    return name, Tensor(dtype, _shape(source, dims), None)


def _add(spans: list[Span], first: int, last: int) -> None:
    """Add a piece of a list, which may go on where the one before ended."""
    if spans and spans[-1][1] == first:
        first, _ = spans.pop()
    spans.append((first, last))


def _shape(source: Source, spans: Sequence[Span]) -> tuple[int, ...]:
    if _size(spans) > _MAX_DIMS_BYTES:
        raise ValueError("it has a tensor of more dimensions than any has")
    shape = tuple(map(signed, source.integers(spans)))
    if min(shape, default=0) < 0:
        raise ValueError(f"it has a tensor with a dimension of {min(shape)}")
    return shape


def _size(spans: Sequence[Span]) -> int:
    return sum(last - first for first, last in spans)


# ---- values ---------------------------------------------------------------------------------------------------------


def _from_raw(source: Source, dtype: str, raw: Span, lists: Mapping[str, Sequence[Span]]) -> _Elements:
    if lists or _size([raw]) > _MAX_DATA_BYTES:
        return None
    first, last = raw
    return _unpacked(dtype, source.read(first, last - first))


def _from_lists(source: Source, dtype: str, lists: Mapping[str, Sequence[Span]]) -> _Elements:
    name = _LIST_OF.get(dtype, "")
    spans = lists.get(name, ())
    if not name or not lists.keys() <= {name} or _size(spans) > _MAX_DATA_BYTES:
        return None
    if name == "string_data":
        return _texts(source.contents(spans))
    if name in ("float_data", "double_data"):
        return _unpacked(dtype, b"".join(source.contents(spans)))
    return _unpacked(dtype, _as_raw(dtype, source.integers(spans)))


def _texts(contents: Sequence[bytes]) -> _Elements:
    try:
        return tuple(content.decode("utf-8") for content in contents)
    except UnicodeDecodeError:
        return None


def _as_raw(dtype: str, numbers: Sequence[int]) -> bytes:
    """What `raw_data` would be; of float16 and bfloat16 the numbers are the bits. Nothing if one is out of range."""
    code = "H" if dtype == "float16" else _FORMATS[dtype]
    try:
        return struct.pack(f"<{len(numbers)}{code}", *(n if dtype == "uint64" else signed(n) for n in numbers))
    except struct.error:
        return b""


def _unpacked(dtype: str, raw: bytes) -> _Elements:
    code = _FORMATS.get(dtype)
    if code is None or len(raw) % struct.calcsize(f"<{code}"):
        return None
    if dtype == "bfloat16":  # the upper half of a float32
        code, raw = "f", b"".join(b"\0\0" + raw[at : at + 2] for at in range(0, len(raw), 2))
    return struct.unpack(f"<{len(raw) // struct.calcsize(f'<{code}')}{code}", raw)
