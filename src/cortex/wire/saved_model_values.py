"""What is said of values in a SavedModel: types, shapes, attributes of nodes, and what is in the small constants."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Final

from cortex.wire.graphs import MAX_ELEMENTS, Attribute, FunctionName, FunctionNames, LongList, Reference, Shapes, Tensor
from cortex.wire.protobuf import MAX_TEXT_BYTES, Source, Span, signed
from cortex.wire.saved_model_schema import TENSOR_LISTS, AttributeTag, DimTag, EntryTag, NamedTag, ShapeTag, TensorTag
from cortex.wire.signature import Dim

_DTYPES: Final = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 8: "complex64",
    9: "int64", 10: "bool", 11: "qint8", 12: "quint8", 13: "qint32", 14: "bfloat16", 15: "qint16", 16: "quint16",
    17: "uint16", 18: "complex128", 19: "float16", 20: "resource", 21: "variant", 22: "uint32", 23: "uint64",
}  # fmt: skip
"""By DataType; a reference to a variable of a type has a number that is 100 larger."""

_FORMATS: Final = {
    "float32": "f", "float64": "d", "float16": "e", "bool": "?",
    "int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
}  # fmt: skip
"""By type: how `struct` has it."""

_MAX_DIMS: Final = 254
"""TensorFlow's own limit."""
_MAX_LIST_BYTES: Final = 10 * MAX_ELEMENTS
"""A packed list of more bytes has more than `MAX_ELEMENTS` numbers, however they are written."""

_Element = int | float | bool | str


def dtype_of(number: int) -> str:
    """The name of a DataType, as it is written in a file; empty where it has none."""
    return _DTYPES.get(number - 100 if number > 100 else number, "")


def entry(source: Source, start: int, end: int) -> tuple[str, Span]:
    """A map's entry: its key, and where its value is. One that is left out is an empty message."""
    key, value = "", (end, end)
    for tag, first, last in source.tagged(start, end):
        if last is None:
            continue
        if tag == EntryTag.KEY:
            key = source.name(first, last)
        elif tag == EntryTag.VALUE:
            value = first, last
    return key, value


def name_of(source: Source, start: int, end: int) -> str:
    """The name of an argument, or of a function that an attribute names."""
    name = ""
    for tag, first, last in source.tagged(start, end):
        if tag == NamedTag.NAME and last is not None:
            name = source.name(first, last)
    return name


def shape_of(source: Source, start: int, end: int) -> tuple[Dim, ...] | None:
    """
    A shape; None where not even the number of dimensions is known.

    Raises:
        ValueError: it has more dimensions than any tensor has.
    """
    dims: list[Dim] = []
    unknown = False
    for tag, first, last in source.tagged(start, end):
        if tag == ShapeTag.UNKNOWN_RANK:
            unknown = first != 0
        elif tag == ShapeTag.DIM and last is not None:
            if len(dims) == _MAX_DIMS:
                raise ValueError(f"it has a shape of more than {_MAX_DIMS} dimensions")
            size, name = 0, ""
            for inner, at, until in source.tagged(first, last):
                if inner == DimTag.SIZE:
                    size = signed(at)
                elif inner == DimTag.NAME and until is not None:
                    name = source.text(at, until)
            dims.append(size if size >= 0 else name or None)
    return None if unknown else tuple(dims)


# ---- attributes -----------------------------------------------------------------------------------------------------


def attribute(source: Source, start: int, end: int) -> Attribute:
    """
    An attribute's value. Of several, of which a file should have one, the last counts.

    Raises:
        ValueError: it is none.
    """
    value: Attribute = None
    for tag, first, last in source.tagged(start, end):
        if tag == AttributeTag.LIST and last is not None:
            value = _listed(source, first, last)
        elif tag == AttributeTag.PLACEHOLDER and last is not None:
            value = Reference(source.name(first, last))
        elif tag == AttributeTag.TENSOR and last is not None:
            value = read_tensor(source, first, last)
        elif tag == AttributeTag.SHAPE and last is not None:
            value = _free_as_negative(shape_of(source, first, last))
        elif tag == AttributeTag.FUNCTION and last is not None:
            value = FunctionName(name_of(source, first, last))
        else:
            value = _single(source, tag, first, last)
    return value


def _free_as_negative(shape: tuple[Dim, ...] | None) -> tuple[int, ...] | None:
    return None if shape is None else tuple(dim if isinstance(dim, int) else -1 for dim in shape)


def _single(source: Source, tag: int, first: int, last: int | None) -> _Element | None:
    if tag == AttributeTag.INT:
        return signed(first)
    if tag == AttributeTag.BOOL:
        return first != 0
    if tag == AttributeTag.TYPE:
        return dtype_of(first)
    if last is None:
        return None
    if tag == AttributeTag.FLOAT:
        return _unpacked("f", source.read(first, last - first))[0]
    if tag == AttributeTag.TEXT and last - first <= MAX_TEXT_BYTES:
        return source.text(first, last)
    return None


_KINDS: Final = {
    AttributeTag.TEXT: "strings", AttributeTag.INT: "ints", AttributeTag.INTS: "ints", AttributeTag.FLOAT: "floats",
    AttributeTag.FLOATS: "floats", AttributeTag.BOOL: "ints", AttributeTag.BOOLS: "ints", AttributeTag.TYPE: "strings",
    AttributeTag.TYPES: "strings",
}  # fmt: skip


def _listed(source: Source, start: int, end: int) -> Attribute:
    """A list of values of one kind; None for tensors, which no rule looks at, and for several kinds in one list."""
    items: list[_Element] = []
    shapes: list[tuple[int, ...] | None] = []
    functions: list[str] = []
    kinds = set()
    for tag, first, last in source.tagged(start, end):
        kinds.add(_KINDS.get(tag, str(tag)))
        if len(items) + len(shapes) + len(functions) > MAX_ELEMENTS:
            return LongList(_KINDS.get(tag, ""))
        if tag in (AttributeTag.INTS, AttributeTag.BOOLS, AttributeTag.TYPES, AttributeTag.FLOATS) and last is not None:
            if last - first > _MAX_LIST_BYTES:
                return LongList(_KINDS[tag])
            items += _packed(source, tag, first, last)
        elif tag == AttributeTag.SHAPE and last is not None:
            shapes.append(_free_as_negative(shape_of(source, first, last)))
        elif tag == AttributeTag.LISTED_FUNCTION and last is not None:
            functions.append(name_of(source, first, last))
        else:
            item = _single(source, tag, first, last)
            if item is None:
                return None
            items.append(item)
    if len(kinds) > 1:
        return None
    if functions:
        return FunctionNames(tuple(functions))
    return Shapes(tuple(shapes)) if shapes else tuple(items)  # type: ignore[return-value]  # items of one kind


def _packed(source: Source, tag: int, first: int, last: int) -> Sequence[_Element]:
    if tag == AttributeTag.FLOATS:
        return _unpacked("f", source.read(first, last - first))
    numbers = _varints(source.read(first, last - first))
    if tag == AttributeTag.INTS:
        return [signed(number) for number in numbers]
    return [number != 0 if tag == AttributeTag.BOOLS else dtype_of(number) for number in numbers]


# ---- constants ------------------------------------------------------------------------------------------------------


def read_tensor(source: Source, start: int, end: int) -> Tensor:
    """
    What is known of a constant.

    Raises:
        ValueError: it is none, or its shape is not known.
    """
    dtype = ""
    shape: tuple[Dim, ...] | None = ()
    content: Span | None = None
    lists: dict[int, list[tuple[int, int | None]]] = {}
    texts: list[Span] = []
    values = 0
    for tag, first, last in source.tagged(start, end, (TensorTag.TEXT,)):
        if tag == TensorTag.DTYPE:
            dtype = dtype_of(first)
        elif tag == TensorTag.SHAPE and last is not None:
            shape = shape_of(source, first, last)
        elif tag == TensorTag.CONTENT and last is not None:
            content = first, last
        elif tag == TensorTag.TEXT and last is not None:
            texts.append((first, last))
        elif tag >> 3 in TENSOR_LISTS:
            values += 1
            if values <= MAX_ELEMENTS:
                lists.setdefault(tag >> 3, []).append((first, last))
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        raise ValueError("it has a constant of unknown shape")
    dims = tuple(dim for dim in shape if isinstance(dim, int))
    count = math.prod(dims)
    if count > MAX_ELEMENTS or values > MAX_ELEMENTS or (dtype != "string" and dtype not in _FORMATS):
        return Tensor(dtype, dims)
    if content is not None and content[0] < content[1]:
        return Tensor(dtype, dims, _of_content(source, dtype, count, content))
    found = _of_texts(source, texts) if dtype == "string" else _of_lists(source, dtype, lists)
    return Tensor(dtype, dims, _repeated(dtype, count, found))


def _of_content(source: Source, dtype: str, count: int, content: Span) -> tuple[_Element, ...] | None:
    """Elements as they lie in memory."""
    first, last = content
    code = _FORMATS.get(dtype)
    if code is None or last - first != count * struct.calcsize(code):
        return None
    return _unpacked(code, source.read(first, last - first))


def _of_texts(source: Source, texts: Sequence[Span]) -> list[_Element] | None:
    if sum(last - first for first, last in texts) > MAX_TEXT_BYTES:
        return None
    return [text.decode("utf-8", "replace") for text in source.contents(texts)]


def _of_lists(source: Source, dtype: str, lists: dict[int, list[tuple[int, int | None]]]) -> list[_Element] | None:
    """Elements as numbers, of the one kind that there should be."""
    if len(lists) > 1:
        return None
    found: list[_Element] = []
    for number, spans in lists.items():
        for first, last in spans:
            if last is not None and last - first > _MAX_LIST_BYTES:
                return None
            if TENSOR_LISTS[number]:
                data = source.read(first, last - first) if last is not None else b""
                found += _unpacked(TENSOR_LISTS[number], data)
            else:
                numbers = [first] if last is None else _varints(source.read(first, last - first))
                found += (_narrowed(dtype, number) for number in numbers)
    return found


def _repeated(dtype: str, count: int, found: Sequence[_Element] | None) -> tuple[_Element, ...] | None:
    """Of fewer than there are elements the last one goes on; of none all are 0."""
    if found is None or len(found) > count:
        return None
    zero: _Element = "" if dtype == "string" else _narrowed(dtype, 0)
    return (*found, *[found[-1] if found else zero] * (count - len(found)))


def _narrowed(dtype: str, number: int) -> _Element:
    """An element out of its bits: those of an integer, or of a float of half width."""
    code = _FORMATS[dtype]
    size = struct.calcsize(code)
    bits = (number & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    return _unpacked(code, bits)[0] if dtype != "bool" else number != 0


def _unpacked(code: str, data: bytes) -> tuple[_Element, ...]:
    """
    Numbers of a fixed width.

    Raises:
        ValueError: it ends in the middle of one.
    """
    size = struct.calcsize(code)
    if len(data) % size:
        raise ValueError("it has a list that ends in the middle of a number")
    return struct.unpack(f"<{len(data) // size}{code}", data)


def _varints(data: bytes) -> list[int]:
    """
    Numbers of any width.

    Raises:
        ValueError: it ends in the middle of one.
    """
    numbers, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
        elif shift > 63:
            raise ValueError("it has a number of more than 64 bits")
    if shift:
        raise ValueError("it has a list that ends in the middle of a number")
    return numbers
