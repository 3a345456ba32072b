"""
Small graphs in a line, and what comes of their rows.

    assert proved(node("MatMul", "x", "w"), x=rows(4), w=weights(4, 3))

Nodes name their inputs; what the names stand for follows by keyword: `rows(…)` is an input of the model, all else is a
constant of it. A node's output is `y` unless it says so, and so is the graph's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cortex.rows import prove
from cortex.rows.flow import Flow, Place, Supposed
from cortex.rows.rules.registry import NEWEST
from cortex.rows.sizes import Supposition, Symbol
from cortex.rows.values import Value
from cortex.wire.batching import Proof
from cortex.wire.graphs import MAX_ELEMENTS, Attribute, Graph, GraphInput, GraphNode, Model, Tensor


def rows(*trailing: int | None, dtype: str = "float32") -> GraphInput:
    """An input: the first dimension is the rows, then these; None is a size that requests choose."""
    return GraphInput("", dtype, (None, *trailing))


def weights(*shape: int, dtype: str = "float32") -> Tensor:
    """A constant that only type and shape are known of."""
    return Tensor(dtype, shape)


def constant(array: Any) -> Tensor:
    """A constant with its elements; plain floats are of 32 bits."""
    array = np.asarray(array, dtype="float32" if np.asarray(array).dtype == "float64" else None)
    elements = tuple(array.reshape(-1).tolist()) if array.size <= MAX_ELEMENTS else None
    return Tensor(str(array.dtype) if array.dtype.kind != "U" else "string", array.shape, elements)


def node(operator: str, *inputs: str, to: str = "y", domain: str = "", **attributes: Attribute) -> GraphNode:
    """An operator; `to` are the names of its outputs. An input without a name is left out."""
    return GraphNode(operator, inputs, tuple(to.split()), attributes, domain=domain)


def ml(operator: str, *inputs: str, to: str = "y", **attributes: Attribute) -> GraphNode:
    return node(operator, *inputs, to=to, domain="ai.onnx.ml", **attributes)


def microsoft(operator: str, *inputs: str, to: str = "y", **attributes: Attribute) -> GraphNode:
    return node(operator, *inputs, to=to, domain="com.microsoft", **attributes)


def model(
    *nodes: GraphNode,
    outputs: str = "y",
    opsets: Mapping[str, int] | None = None,
    **named: GraphInput | Tensor | Any,
) -> Model:
    """A model; its operators are of the newest sets that rules know, but of domains that `opsets` names."""
    inputs, constants = [], {}
    for name, value in named.items():
        if isinstance(value, GraphInput):
            inputs.append(GraphInput(name, value.dtype, value.shape, value.is_tensor))
        else:
            constants[name] = value if isinstance(value, Tensor) else constant(value)
    return Model(Graph(nodes, tuple(inputs), tuple(outputs.split()), constants), opsets={**NEWEST, **(opsets or {})})


def proof(*nodes: GraphNode, **settings: Any) -> Proof:
    """The verdict on a model; settings as of `model`."""
    return prove(model(*nodes, **settings))


def proved(*nodes: GraphNode, **settings: Any) -> bool:
    return proof(*nodes, **settings).proved


def refusal(*nodes: GraphNode, **settings: Any) -> str:
    """Why a model is not proved; empty if it is."""
    return proof(*nodes, **settings).reason


def results(*nodes: GraphNode, **settings: Any) -> list[Value]:
    """What is known of a model's outputs, where sizes are as has to be supposed."""
    return supposing(*nodes, **settings)[0]


def supposing(*nodes: GraphNode, **settings: Any) -> tuple[list[Value], dict[Place, Supposed]]:
    """What is known of a model's outputs, and what has to be supposed of sizes for that."""
    suppositions: dict[Place, Supposed] = {}
    while True:
        flow = Flow(model(*nodes, **settings), suppositions)
        try:
            return flow.run(), suppositions
        except Supposition as wanted:
            size = flow.place_of(wanted.size) if isinstance(wanted.size, Symbol) else wanted.size
            suppositions[flow.place_of(wanted.symbol)] = size


def result(*nodes: GraphNode, **settings: Any) -> Value:
    """What is known of a model's first output."""
    return results(*nodes, **settings)[0]
