"""
Small graphs of TensorFlow in a line, and what comes of their rows.

    assert proved(op("MatMul", "x", "w"), x=rows(4), w=weights(4, 3))

Operators name their inputs; what the names stand for follows by keyword: `rows(…)` is an input of the signature, all
else is a `Const`. An operator's name is `y` unless it says so, and so is the output's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from graph_builder import constant

from cortex.rows import prove_saved_model
from cortex.rows.saved_models import SavedModelFlow
from cortex.rows.values import Value
from cortex.wire.batching import Proof
from cortex.wire.graphs import Attribute, Function, Graph, GraphInput, GraphNode, Model, Tensor

DOMAIN = "tensorflow"


def op(operator: str, *inputs: str, name: str = "y", after: Sequence[str] = (), **attributes: Attribute) -> GraphNode:
    """An operator; `after` are those that run before it without giving it a value."""
    return GraphNode(operator, inputs, (), attributes, name, DOMAIN, tuple(after))


def function(
    name: str,
    *nodes: GraphNode,
    inputs: str = "",
    outputs: str = "",
    after: str = "",
    task: str = "",
    **named: Any,
) -> Function:
    """A function; what a name of its nodes stands for may follow by keyword, as in a graph."""
    return Function(
        name,
        DOMAIN,
        (*(_with_outputs(one, named) for one in nodes), *_constants(named)),
        tuple(inputs.split()),
        tuple(outputs.split()),
        after=tuple(after.split()),
        task=task,
    )


def _with_outputs(node: GraphNode, named: dict[str, Any]) -> GraphNode:
    """In functions a constant is called by its output's name, too."""
    inputs = tuple(f"{one}:output:0" if one in named else one for one in node.inputs)
    return dataclasses.replace(node, inputs=inputs)


def model(*parts: GraphNode | Function, outputs: str = "y", **named: GraphInput | Tensor | Any) -> Model:
    nodes = [part for part in parts if isinstance(part, GraphNode)]
    functions = {(DOMAIN, part.name): part for part in parts if isinstance(part, Function)}
    inputs = {name: value for name, value in named.items() if isinstance(value, GraphInput)}
    nodes += _constants({name: value for name, value in named.items() if name not in inputs})
    graph = Graph(
        nodes=tuple(nodes),
        inputs=tuple(
            GraphInput(f"{name}:0", one.dtype, one.shape, one.is_tensor, label=name) for name, one in inputs.items()
        ),
        outputs=tuple(name if ":" in name else f"{name}:0" for name in outputs.split()),
        output_labels=tuple(outputs.split()),
    )
    return Model(graph, functions)


def _constants(named: dict[str, Any]) -> list[GraphNode]:
    return [
        op("Const", name=name, value=value if isinstance(value, Tensor) else constant(value))
        for name, value in named.items()
    ]


def proof(*parts: GraphNode | Function, **settings: Any) -> Proof:
    """The verdict on a model; settings as of `model`."""
    return prove_saved_model(model(*parts, **settings))


def proved(*parts: GraphNode | Function, **settings: Any) -> bool:
    return proof(*parts, **settings).proved


def refusal(*parts: GraphNode | Function, **settings: Any) -> str:
    """Why a model is not proved; empty if it is."""
    return proof(*parts, **settings).reason


def result(*parts: GraphNode | Function, **settings: Any) -> Value:
    """What is known of a model's first output."""
    return SavedModelFlow(model(*parts, **settings)).run()[0]
