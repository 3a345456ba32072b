"""
Which inputs of a SavedModel's signature are parts of one ragged tensor. Pure: reads protobufs, knows no TensorFlow.

TensorFlow 2 exports a ragged tensor as its parts, `r` with all values and `r_1`, `r_2` with where rows begin, and a
signature does not say so. The function that the signature calls was exported too, with the types of its arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from cortex.wire.signature import Dim

_CALLS: Final = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_RAGGED: Final = "RaggedTensorSpec"


class RaggedParts(NamedTuple):
    """One ragged tensor among the inputs of a signature."""

    keys: tuple[str, ...]
    """Of its parts: values, then where rows begin, the outermost first. The first is its name."""
    shape: tuple[Dim, ...]
    rank: int
    """How many dimensions after the first may differ in length."""


def ragged_inputs(meta_graph: Any, definition: Any) -> list[RaggedParts]:
    """
    Return the ragged inputs of a signature.

    Args:
        meta_graph: a `MetaGraphDef`, with the functions that were exported.
        definition: the `SignatureDef`.
    """
    graph, exported = meta_graph.graph_def, meta_graph.object_graph_def.concrete_functions
    functions = {function.signature.name: function for function in graph.library.function}
    keys = {info.name.removesuffix(":0"): key for key, info in definition.inputs.items()}
    for call in graph.node:
        wrapper = functions.get(call.attr["f"].func.name) if call.op in _CALLS else None
        if wrapper is None or not any(name in keys for name in call.input):
            continue
        arguments = {
            argument.name: keys[name]
            for argument, name in zip(wrapper.signature.input_arg, call.input, strict=False)
            if name in keys
        }
        for inner in wrapper.node_def:
            called = inner.attr["f"].func.name if inner.op in _CALLS else ""
            if called in exported:
                return list(_found(exported[called].canonicalized_input_signature, inner.input, arguments))
    return []


def _found(signature: Any, inputs: Any, keys: Mapping[str, str]) -> Iterator[RaggedParts]:
    place = 0
    for parts, spec in _flat(signature):
        names = list(inputs[place : place + parts])
        place += parts
        if spec is None or spec.type_spec_class_name != _RAGGED or not all(name in keys for name in names):
            continue
        state = list(spec.type_state.tuple_value.values)
        shape, rank = state[0].tensor_shape_value, state[2].int64_value
        if shape.unknown_rank or parts != rank + 1:
            continue
        dims = tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim)
        yield RaggedParts(tuple(keys[name] for name in names), dims, int(rank))


def _flat(value: Any) -> Iterator[tuple[int, Any]]:
    """Number of tensors of each argument in the order in which they are passed, with its type if it is composite."""
    kind = value.WhichOneof("kind")
    if kind in ("tensor_spec_value", "bounded_tensor_spec_value"):
        yield 1, None
    elif kind == "type_spec_value":
        yield value.type_spec_value.num_flat_components, value.type_spec_value
    elif kind in ("tuple_value", "list_value"):
        for item in getattr(value, kind).values:
            yield from _flat(item)
    elif kind == "named_tuple_value":
        for pair in value.named_tuple_value.values:
            yield from _flat(pair.value)
    elif kind == "dict_value":
        for _, item in sorted(value.dict_value.fields.items()):
            yield from _flat(item)
