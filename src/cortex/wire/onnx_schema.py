"""
Which field of an ONNX file is which, by tag: its number and how it is written.

Source:
    onnx/onnx.proto3 (github.com/onnx/onnx), version 1.23. Whoever compiles that file packs lists of numbers in
    attributes, the onnx package itself does not; readers have to take both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cortex.wire.protobuf import BYTES, FIXED32, FIXED64, VARINT, tag_of


class ModelTag:
    GRAPH: Final = tag_of(7, BYTES)
    OPSET_IMPORT: Final = tag_of(8, BYTES)
    TRAINING_INFO: Final = tag_of(20, BYTES)
    FUNCTIONS: Final = tag_of(25, BYTES)


class TrainingTag:
    INITIALIZATION: Final = tag_of(1, BYTES)
    ALGORITHM: Final = tag_of(2, BYTES)


class OpsetTag:
    DOMAIN: Final = tag_of(1, BYTES)
    VERSION: Final = tag_of(2, VARINT)


class GraphTag:
    NODE: Final = tag_of(1, BYTES)
    INITIALIZER: Final = tag_of(5, BYTES)
    INPUT: Final = tag_of(11, BYTES)
    OUTPUT: Final = tag_of(12, BYTES)
    SPARSE_INITIALIZER: Final = tag_of(15, BYTES)


class FunctionTag:
    NAME: Final = tag_of(1, BYTES)
    INPUT: Final = tag_of(4, BYTES)
    OUTPUT: Final = tag_of(5, BYTES)
    ATTRIBUTE: Final = tag_of(6, BYTES)
    NODE: Final = tag_of(7, BYTES)
    OPSET_IMPORT: Final = tag_of(9, BYTES)
    DOMAIN: Final = tag_of(10, BYTES)
    ATTRIBUTE_PROTO: Final = tag_of(11, BYTES)
    OVERLOAD: Final = tag_of(13, BYTES)


class NodeTag:
    INPUT: Final = tag_of(1, BYTES)
    OUTPUT: Final = tag_of(2, BYTES)
    NAME: Final = tag_of(3, BYTES)
    OP_TYPE: Final = tag_of(4, BYTES)
    ATTRIBUTE: Final = tag_of(5, BYTES)
    DOMAIN: Final = tag_of(7, BYTES)
    OVERLOAD: Final = tag_of(8, BYTES)


class AttributeTag:
    NAME: Final = tag_of(1, BYTES)
    F: Final = tag_of(2, FIXED32)
    I: Final = tag_of(3, VARINT)  # noqa: E741 (its name)
    S: Final = tag_of(4, BYTES)
    T: Final = tag_of(5, BYTES)
    G: Final = tag_of(6, BYTES)
    FLOATS: Final = tag_of(7, FIXED32)
    PACKED_FLOATS: Final = tag_of(7, BYTES)
    INTS: Final = tag_of(8, VARINT)
    PACKED_INTS: Final = tag_of(8, BYTES)
    STRINGS: Final = tag_of(9, BYTES)
    TENSORS: Final = tag_of(10, BYTES)
    GRAPHS: Final = tag_of(11, BYTES)
    TP: Final = tag_of(14, BYTES)
    TYPE_PROTOS: Final = tag_of(15, BYTES)
    TYPE: Final = tag_of(20, VARINT)
    REF_ATTR_NAME: Final = tag_of(21, BYTES)
    SPARSE_TENSOR: Final = tag_of(22, BYTES)
    SPARSE_TENSORS: Final = tag_of(23, BYTES)


class AttributeType:
    """AttributeProto.AttributeType: which of its fields an attribute's value is in."""

    FLOAT: Final = 1
    INT: Final = 2
    STRING: Final = 3
    TENSOR: Final = 4
    GRAPH: Final = 5
    FLOATS: Final = 6
    INTS: Final = 7
    STRINGS: Final = 8
    TENSORS: Final = 9
    GRAPHS: Final = 10
    SPARSE_TENSOR: Final = 11
    SPARSE_TENSORS: Final = 12
    TYPE_PROTO: Final = 13
    TYPE_PROTOS: Final = 14


ATTRIBUTE_LISTS: Final[Mapping[int, int]] = {
    AttributeTag.FLOATS: AttributeType.FLOATS,
    AttributeTag.PACKED_FLOATS: AttributeType.FLOATS,
    AttributeTag.INTS: AttributeType.INTS,
    AttributeTag.PACKED_INTS: AttributeType.INTS,
    AttributeTag.STRINGS: AttributeType.STRINGS,
}
"""By tag, of what an attribute may have millions."""


class TensorTag:
    DIMS: Final = tag_of(1, VARINT)
    PACKED_DIMS: Final = tag_of(1, BYTES)
    DATA_TYPE: Final = tag_of(2, VARINT)
    SEGMENT: Final = tag_of(3, BYTES)
    FLOAT_DATA: Final = tag_of(4, FIXED32)
    PACKED_FLOAT_DATA: Final = tag_of(4, BYTES)
    INT32_DATA: Final = tag_of(5, VARINT)
    PACKED_INT32_DATA: Final = tag_of(5, BYTES)
    STRING_DATA: Final = tag_of(6, BYTES)
    INT64_DATA: Final = tag_of(7, VARINT)
    PACKED_INT64_DATA: Final = tag_of(7, BYTES)
    NAME: Final = tag_of(8, BYTES)
    RAW_DATA: Final = tag_of(9, BYTES)
    DOUBLE_DATA: Final = tag_of(10, FIXED64)
    PACKED_DOUBLE_DATA: Final = tag_of(10, BYTES)
    UINT64_DATA: Final = tag_of(11, VARINT)
    PACKED_UINT64_DATA: Final = tag_of(11, BYTES)
    EXTERNAL_DATA: Final = tag_of(13, BYTES)
    DATA_LOCATION: Final = tag_of(14, VARINT)


TENSOR_LISTS: Final[Mapping[int, str]] = {
    TensorTag.DIMS: "dims",
    TensorTag.PACKED_DIMS: "dims",
    TensorTag.FLOAT_DATA: "float_data",
    TensorTag.PACKED_FLOAT_DATA: "float_data",
    TensorTag.INT32_DATA: "int32_data",
    TensorTag.PACKED_INT32_DATA: "int32_data",
    TensorTag.STRING_DATA: "string_data",
    TensorTag.INT64_DATA: "int64_data",
    TensorTag.PACKED_INT64_DATA: "int64_data",
    TensorTag.DOUBLE_DATA: "double_data",
    TensorTag.PACKED_DOUBLE_DATA: "double_data",
    TensorTag.UINT64_DATA: "uint64_data",
    TensorTag.PACKED_UINT64_DATA: "uint64_data",
}
"""By tag, of what a tensor may have millions."""


class EntryTag:
    """StringStringEntryProto."""

    KEY: Final = tag_of(1, BYTES)
    VALUE: Final = tag_of(2, BYTES)


class SparseTensorTag:
    VALUES: Final = tag_of(1, BYTES)
    INDICES: Final = tag_of(2, BYTES)
    DIMS: Final = tag_of(3, VARINT)
    PACKED_DIMS: Final = tag_of(3, BYTES)


class ValueTag:
    """ValueInfoProto."""

    NAME: Final = tag_of(1, BYTES)
    TYPE: Final = tag_of(2, BYTES)


class TypeTag:
    TENSOR: Final = tag_of(1, BYTES)
    SEQUENCE: Final = tag_of(4, BYTES)
    MAP: Final = tag_of(5, BYTES)
    OPAQUE: Final = tag_of(7, BYTES)
    SPARSE_TENSOR: Final = tag_of(8, BYTES)
    OPTIONAL: Final = tag_of(9, BYTES)


class TensorTypeTag:
    """Of sparse tensors too."""

    ELEM_TYPE: Final = tag_of(1, VARINT)
    SHAPE: Final = tag_of(2, BYTES)


class ElementTypeTag:
    """Of sequences and optional values."""

    ELEM_TYPE: Final = tag_of(1, BYTES)


class ShapeTag:
    DIM: Final = tag_of(1, BYTES)


class DimTag:
    VALUE: Final = tag_of(1, VARINT)
    PARAM: Final = tag_of(2, BYTES)
