"""
Which field of a `saved_model.pb` is which, by tag: its number and how it is written.

Source:
    tensorflow/core/protobuf/{saved_model,meta_graph}.proto and tensorflow/core/framework/{graph,versions,node_def,
    function,op_def,attr_value,tensor,tensor_shape,types}.proto (github.com/tensorflow/tensorflow), version 2.21.
"""

from __future__ import annotations

from typing import Final

from cortex.wire.protobuf import BYTES, FIXED32, VARINT, tag_of


class EntryTag:
    """Of any map."""

    KEY: Final = tag_of(1, BYTES)
    VALUE: Final = tag_of(2, BYTES)


class SavedModelTag:
    META_GRAPHS: Final = tag_of(2, BYTES)


class MetaGraphTag:
    META_INFO: Final = tag_of(1, BYTES)
    GRAPH: Final = tag_of(2, BYTES)
    SIGNATURES: Final = tag_of(5, BYTES)


class MetaInfoTag:
    TAGS: Final = tag_of(4, BYTES)


class SignatureTag:
    INPUTS: Final = tag_of(1, BYTES)
    OUTPUTS: Final = tag_of(2, BYTES)
    DEFAULTS: Final = tag_of(4, BYTES)


class TensorInfoTag:
    NAME: Final = tag_of(1, BYTES)
    DTYPE: Final = tag_of(2, VARINT)
    SHAPE: Final = tag_of(3, BYTES)
    SPARSE: Final = tag_of(4, BYTES)
    COMPOSITE: Final = tag_of(5, BYTES)


class GraphTag:
    NODE: Final = tag_of(1, BYTES)
    LIBRARY: Final = tag_of(2, BYTES)
    VERSIONS: Final = tag_of(4, BYTES)


class VersionsTag:
    PRODUCER: Final = tag_of(1, VARINT)


class NodeTag:
    NAME: Final = tag_of(1, BYTES)
    OPERATOR: Final = tag_of(2, BYTES)
    INPUT: Final = tag_of(3, BYTES)
    ATTRIBUTES: Final = tag_of(5, BYTES)


class LibraryTag:
    FUNCTION: Final = tag_of(1, BYTES)


class FunctionTag:
    SIGNATURE: Final = tag_of(1, BYTES)
    NODE: Final = tag_of(3, BYTES)
    RETURNED: Final = tag_of(4, BYTES)
    ATTRIBUTES: Final = tag_of(5, BYTES)
    RUN: Final = tag_of(6, BYTES)


class FunctionSignatureTag:
    NAME: Final = tag_of(1, BYTES)
    INPUT: Final = tag_of(2, BYTES)
    OUTPUT: Final = tag_of(3, BYTES)


class NamedTag:
    """Of an argument of a function, and of an attribute that names a function."""

    NAME: Final = tag_of(1, BYTES)


class AttributeTag:
    """Of an attribute, and of what is in one that is a list."""

    LIST: Final = tag_of(1, BYTES)
    TEXT: Final = tag_of(2, BYTES)
    INT: Final = tag_of(3, VARINT)
    INTS: Final = tag_of(3, BYTES)
    FLOAT: Final = tag_of(4, FIXED32)
    FLOATS: Final = tag_of(4, BYTES)
    BOOL: Final = tag_of(5, VARINT)
    BOOLS: Final = tag_of(5, BYTES)
    TYPE: Final = tag_of(6, VARINT)
    TYPES: Final = tag_of(6, BYTES)
    SHAPE: Final = tag_of(7, BYTES)
    TENSOR: Final = tag_of(8, BYTES)
    PLACEHOLDER: Final = tag_of(9, BYTES)
    LISTED_FUNCTION: Final = tag_of(9, BYTES)
    FUNCTION: Final = tag_of(10, BYTES)


class ShapeTag:
    DIM: Final = tag_of(2, BYTES)
    UNKNOWN_RANK: Final = tag_of(3, VARINT)


class DimTag:
    SIZE: Final = tag_of(1, VARINT)
    NAME: Final = tag_of(2, BYTES)


class TensorTag:
    DTYPE: Final = tag_of(1, VARINT)
    SHAPE: Final = tag_of(2, BYTES)
    CONTENT: Final = tag_of(4, BYTES)
    TEXT: Final = tag_of(8, BYTES)


TENSOR_LISTS: Final = {5: "f", 6: "d", 7: "", 10: "", 11: "", 13: "", 16: "", 17: ""}
"""Fields of a tensor with its elements, by number: how `struct` has them; empty where they are varints."""
