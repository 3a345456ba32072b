"""
Features to serialised `tf.Example`s, without TensorFlow: three kinds of lists by name.

Source:
    tensorflow/core/example/example.proto and feature.proto; protobuf's "Encoding".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray


def serialise(features: Mapping[str, NDArray[Any]]) -> bytes:
    """
    Return one example.

    Args:
        features: by name, of any shape: float32, int64, or objects of str and bytes.
    """
    entries = (
        _field(1, _field(1, name.encode("utf-8")) + _field(2, _feature(values))) for name, values in features.items()
    )
    return _field(1, b"".join(entries))


def _feature(values: NDArray[Any]) -> bytes:
    flat = values.ravel().tolist()
    if values.dtype.kind == "f":
        return _field(2, _field(1, struct.pack(f"<{len(flat)}f", *flat)))
    if values.dtype.kind in "iu":
        return _field(3, _field(1, b"".join(_varint(value & 0xFFFF_FFFF_FFFF_FFFF) for value in flat)))
    return _field(1, b"".join(_field(1, value) for value in _encoded(flat)))


def _encoded(values: Iterable[str | bytes]) -> Iterable[bytes]:
    return (value.encode("utf-8") if isinstance(value, str) else value for value in values)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
