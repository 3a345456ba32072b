"""
Tensors as the Open Inference Protocol has them in requests and responses: datatypes, JSON data, binary data.

Source:
    Open Inference Protocol v2, "Tensor Data"; its binary data is Triton's extension of it, "Binary Tensor Data".
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cortex.replica.bodies.codec import BadBody
from cortex.replica.tensors.conversion import plan
from cortex.wire.signature import TensorSpec, shape_text

Array: TypeAlias = NDArray[Any]

DATATYPES: Final = {
    "bool": "BOOL",
    **{f"{kind}{bits}": f"{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "bfloat16": "BF16",
    "string": "BYTES",
}
"""By `TensorSpec.dtype`. BF16 is Triton's; the protocol has no name for it."""
_MAX_RANK: Final = 32
_LENGTH: Final = struct.Struct("<I")
_TOO_FEW: Final = "has too few bytes"


class DataError(BadBody):
    """
    Data that is not what its tensor says of it.

    Args:
        input: name of the tensor.
    """

    def __init__(self, input: str, reason: str) -> None:
        self.input = input
        super().__init__(f'input "{input}" {reason}')


def read_shape(name: str, shape: object) -> tuple[int, ...]:
    """A tensor's shape as the request gives it. Raises DataError."""
    if not isinstance(shape, list):
        raise DataError(name, "needs a shape: a list of integers")
    if len(shape) > _MAX_RANK:
        raise DataError(name, f"has {len(shape)} dimensions, more than {_MAX_RANK}")
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
            raise DataError(name, f"has {size!r} in its shape, which is no size")
    return tuple(shape)


def count(shape: Sequence[int]) -> int:
    """How many elements there are."""
    found = 1
    for size in shape:
        found *= size
    return found


def read_json(spec: TensorSpec, shape: tuple[int, ...], data: object, at_most: int, takes_bytes: bool) -> Array:
    """
    Elements of a tensor from JSON, flat or nested as they stand in the array.

    Args:
        spec: of the model's input.
        at_most: elements that the request can possibly hold: nothing is made ready for more.

    Raises:
        DataError: there is another number of elements.
        InputMismatch: an element is none of the model's type.
    """
    if not isinstance(data, list) and shape:
        raise DataError(spec.name, f"has {type(data).__name__} for data, and a list is expected")
    if count(shape) > at_most:
        raise DataError(spec.name, f"has fewer elements than its shape {shape_text(shape)} says")
    given = TensorSpec(spec.name, spec.dtype, shape)
    found: Array = plan(given, takes_bytes)(data)
    return found


def read_binary(spec: TensorSpec, shape: tuple[int, ...], data: memoryview) -> Array:
    """
    Elements of a tensor from binary data, row-major and little-endian. May share memory with it, and be read-only.

    Raises:
        DataError: there is another number of bytes, or some are no element.
    """
    if spec.dtype == "string":
        return _read_texts(spec.name, shape, data)
    kind = np.dtype("<u2" if spec.dtype == "bfloat16" else spec.dtype).newbyteorder("<")
    needed = count(shape) * kind.itemsize
    if len(data) != needed:
        relation = _TOO_FEW if len(data) < needed else "has too many bytes"
        raise DataError(
            spec.name, f"{relation}: {len(data)}, and {DATATYPES[spec.dtype]}{shape_text(shape)} takes {needed}"
        )
    flat = np.frombuffer(data, np.dtype("u1") if kind.kind == "b" else kind)
    if kind.kind == "b":
        if (flat > 1).any():
            raise DataError(spec.name, "has bytes other than 0 and 1 for BOOL")
        flat = flat.view(np.bool_)
    elif spec.dtype == "bfloat16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    elif not flat.flags.aligned:
        flat = flat.copy()
    return _shaped(spec.name, flat, shape)


def _read_texts(name: str, shape: tuple[int, ...], data: memoryview) -> Array:
    number = count(shape)
    if number * _LENGTH.size > len(data):
        raise DataError(name, f"{_TOO_FEW} for {number} elements: {len(data)}")
    flat = np.empty(number, dtype=object)
    place = 0
    for index in range(number):
        start = place + _LENGTH.size
        if start > len(data):
            raise DataError(name, f"{_TOO_FEW} for element {index}")
        (size,) = _LENGTH.unpack_from(data, place)
        place = start + size
        if place > len(data):
            raise DataError(name, f"{_TOO_FEW} for element {index}, which says that it has {place - start}")
        flat[index] = bytes(data[start:place])
    if place != len(data):
        raise DataError(name, f"has {len(data) - place} bytes behind its last element")
    return _shaped(name, flat, shape)


def _shaped(name: str, flat: Array, shape: tuple[int, ...]) -> Array:
    try:
        return flat.reshape(shape)
    except ValueError:  # sizes beyond what numpy holds, beside one of 0
        raise DataError(name, f"has the shape {shape_text(shape)}, which no array can have") from None


def datatype_of(spec: TensorSpec, array: Array) -> str | None:
    """The datatype of an output; None if there is none for what it holds."""
    if array.dtype.kind in "OUS":
        return "BYTES"
    return DATATYPES.get("bfloat16" if spec.dtype == "bfloat16" else array.dtype.name)


def write_json(name: str, array: Array) -> Any:
    """
    An output's elements, flat, for `results.encode`.

    Raises:
        BadBody: an element is bytes that JSON has no text for.
    """
    if array.dtype.kind not in "OUS":
        return array.ravel()
    try:
        return [one.decode() if isinstance(one, bytes) else str(one) for one in array.ravel().tolist()]
    except UnicodeDecodeError:
        raise BadBody(f'output "{name}" has bytes that are no text: ask for it with "binary_data": true') from None


def write_binary(datatype: str, array: Array) -> bytes:
    """An output's elements, row-major and little-endian."""
    if datatype == "BYTES":
        texts = [one if isinstance(one, bytes) else str(one).encode() for one in array.ravel().tolist()]
        return b"".join(part for one in texts for part in (_LENGTH.pack(len(one)), one))
    if datatype == "BF16":  # its values are those of a bfloat16, in a float32
        return (np.ascontiguousarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
