"""What a SavedModel's parser looks for in serialised `tf.Example`s. Pure: reads protobufs, knows no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from cortex.wire.signature import Dim, TensorSpec

_CALLS: Final = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
_PARSERS: Final = frozenset({"ParseExample", "ParseExampleV2", "ParseSingleExample"})
_DTYPES: Final = {1: "float32", 7: "string", 9: "int64"}
"""The three that an example can hold. Source: tensorflow/core/framework/types.proto, core/example/feature.proto."""


class _Scope(NamedTuple):
    """Nodes that see each other: a graph's, or a function's."""

    nodes: Sequence[Any]
    function: str = ""
    """Its name; empty: the graph itself."""

    def output(self, node: str) -> tuple[str, ...]:
        """How others write the first output of a node."""
        return (f"{node}:output:0",) if self.function else (node, f"{node}:0")

    def constant(self, name: str) -> Any | None:
        """The tensor of a constant, as it is named by what it goes into; None if it is none."""
        wanted = name.partition(":")[0]
        node = next((node for node in self.nodes if node.name == wanted), None)
        return node.attr["value"].tensor if node is not None and node.op == "Const" else None


def features_of(graph: Any, tensor: str) -> tuple[TensorSpec, ...]:
    """
    Return what the parsers that a tensor goes into take from each example, in the order of their names.

    Args:
        graph: a `GraphDef`.
        tensor: an input of the signature, e.g. `serving_default_examples:0`.

    Returns:
        Features by name, dtype and shape; those without which an example is refused are not optional. Empty where the
        tensor goes into no parser, or its keys are no constants.
    """
    functions = {function.signature.name: function for function in graph.library.function}
    waiting: list[tuple[_Scope, tuple[str, ...]]] = [(_Scope(graph.node), (tensor, tensor.removesuffix(":0")))]
    followed: set[tuple[str, tuple[str, ...]]] = set()
    found: dict[str, TensorSpec] = {}
    while waiting:
        scope, names = waiting.pop()
        if (scope.function, names) in followed:
            continue  # a function may call itself
        followed.add((scope.function, names))
        for node in scope.nodes:
            for place, name in enumerate(node.input):
                if name not in names:
                    continue
                if node.op == "Identity":
                    waiting.append((scope, scope.output(node.name)))
                elif node.op in _CALLS or node.op in functions:
                    function = node.attr["f"].func.name if node.op in _CALLS else node.op
                    called = functions.get(function)
                    if called is not None and place < len(called.signature.input_arg):
                        argument = called.signature.input_arg[place].name
                        waiting.append((_Scope(called.node_def, function), (argument,)))
                elif node.op in _PARSERS and place == 0:
                    found.update((feature.name, feature) for feature in _parsed(node, scope))
    return tuple(found[name] for name in sorted(found))


def _parsed(node: Any, scope: _Scope) -> Iterator[TensorSpec]:
    """What one parser takes. Source: tensorflow/core/ops/parsing_ops.cc."""
    inputs = list(node.input)
    dense_types = [_DTYPES.get(kind, "") for kind in node.attr["Tdense"].list.type]
    shapes = [_shape(shape) for shape in node.attr["dense_shapes"].list.shape]
    sparse_types: Sequence[int] = node.attr["sparse_types"].list.type
    ragged_types: Sequence[int] = node.attr["ragged_value_types"].list.type
    if node.op == "ParseSingleExample":
        dense = [key.decode() for key in node.attr["dense_keys"].list.s]
        sparse = [key.decode() for key in node.attr["sparse_keys"].list.s]
        ragged: list[str] = []
        defaults = inputs[1:]
    elif node.op == "ParseExample":
        split = 2 + node.attr["Nsparse"].i
        end = split + node.attr["Ndense"].i
        sparse, dense, ragged = _keys(scope, inputs[2:split]), _keys(scope, inputs[split:end]), []
        defaults = inputs[end:]
    else:
        sparse, dense, ragged = (_keys(scope, [name]) for name in inputs[2:5])
        defaults = inputs[5:]
    for key, kind, shape, default in zip(dense, dense_types, shapes, defaults, strict=False):
        if kind:
            value = scope.constant(default)  # none is a constant of nothing; others may be put into shape on the way
            yield TensorSpec(key, kind, shape, optional=value is None or not _is_empty(value))
    for keys, kinds in ((sparse, sparse_types), (ragged, ragged_types)):
        for key, number in zip(keys, kinds, strict=False):
            if number in _DTYPES:
                yield TensorSpec(key, _DTYPES[number], (None,), optional=True)


def _keys(scope: _Scope, names: Sequence[str]) -> list[str]:
    """Text of constants, each of one key or of several."""
    keys: list[str] = []
    for name in names:
        tensor = scope.constant(name)
        if tensor is not None:
            keys += [key.decode("utf-8", "replace") for key in tensor.string_val]
    return keys


def _is_empty(tensor: Any) -> bool:
    """Whether a default is none: its shape has a size of 0."""
    return any(dim.size == 0 for dim in tensor.tensor_shape.dim)


def _shape(shape: Any) -> tuple[Dim, ...] | None:
    if shape.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim)
