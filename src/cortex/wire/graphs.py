"""
A model's computation without its weights: what the readers of file formats hand to `cortex.rows`.

One form for ONNX and TensorFlow: named values, nodes that make them, functions that nodes may call. Everything is as
the file says it; nothing is checked against what an operator wants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final, TypeAlias

from cortex.wire.signature import Dim

MAX_ELEMENTS: Final = 256
"""A constant of more elements is known by type and shape alone: sizes, axes and bounds are never that many."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A constant."""

    dtype: str
    """numpy's name, `bfloat16`, `string`, or empty for a type that has no such name."""
    shape: tuple[int, ...]
    elements: tuple[int | float | bool | str, ...] | None = None
    """In row-major order; None where there are more than `MAX_ELEMENTS`, or they stand in another file."""


@dataclasses.dataclass(frozen=True, slots=True)
class LongList:
    """An attribute that was passed over: a list of more bytes than anything but weights has."""

    kind: str
    """`floats`, `ints` or `strings`."""
    strings: bytes | None = None
    """Of strings: the attribute's bytes as they stand in the file; None where there are too many even for that."""

    def may_hold(self, text: str) -> bool:
        """Whether a string may be in the list; False only if it certainly is not."""
        if self.kind != "strings":
            return False
        encoded = text.encode("utf-8")
        return self.strings is None or len(encoded) > 127 or bytes((len(encoded),)) + encoded in self.strings


@dataclasses.dataclass(frozen=True, slots=True)
class Reference:
    """An attribute that has the value of an attribute of the function around it."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class FunctionName:
    """An attribute that names a function of the model (TensorFlow)."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class FunctionNames:
    """An attribute that names several functions of the model (TensorFlow)."""

    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Shapes:
    """An attribute of several shapes (TensorFlow)."""

    shapes: tuple[tuple[int, ...] | None, ...]
    """-1: a free dimension; None: not even their number is known."""


Attribute: TypeAlias = (
    "int | float | bool | str | Tensor | Graph | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]"
    " | LongList | Reference | FunctionName | FunctionNames | Shapes | None"
)
"""None: of a kind that no rule looks at."""


@dataclasses.dataclass(frozen=True, slots=True)
class GraphNode:
    """One operation."""

    operator: str
    inputs: tuple[str, ...]
    """Names of values; an empty name is an input that is left out."""
    outputs: tuple[str, ...]
    """Names of values. TensorFlow's nodes name none: theirs are `<node>:<index>` and, in functions,
    `<node>:<output>:<index>`."""
    attributes: Mapping[str, Attribute] = dataclasses.field(default_factory=dict)
    name: str = ""
    domain: str = ""
    """Where the operator comes from: empty for ONNX's own, `tensorflow` for TensorFlow's."""
    after: tuple[str, ...] = ()
    """Names of nodes that run before it without giving it a value: TensorFlow's control edges."""


@dataclasses.dataclass(frozen=True, slots=True)
class GraphInput:
    """An input as the graph declares it."""

    name: str
    dtype: str = ""
    """Of the innermost tensor, if it is none; empty where none is declared."""
    shape: tuple[Dim, ...] | None = None
    """Likewise. None: no shape is declared."""
    is_tensor: bool = True
    label: str = ""
    """What callers name it, where that is not `name` (TensorFlow)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in the order of the file, which need not be the order of their dependencies in TensorFlow."""

    nodes: tuple[GraphNode, ...]
    inputs: tuple[GraphInput, ...]
    """With those that have a default in `constants`."""
    outputs: tuple[str, ...]
    """Names of values."""
    constants: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    output_dtypes: tuple[str, ...] = ()
    """As far as the file declares them; of the same length as `outputs`, or empty."""
    output_labels: tuple[str, ...] = ()
    """What callers name them, where that is not as in `outputs` (TensorFlow); of the same length, or empty."""


@dataclasses.dataclass(frozen=True, slots=True)
class Function:
    """A function of the model, called by nodes of its name."""

    name: str
    domain: str
    nodes: tuple[GraphNode, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    """Names of values, in the order of the call's outputs."""
    attributes: tuple[str, ...] = ()
    """Names of attributes that a call may give it, apart from those with a default."""
    defaults: Mapping[str, Attribute] = dataclasses.field(default_factory=dict)
    """Values of attributes that a call may leave out."""
    opsets: Mapping[str, int] = dataclasses.field(default_factory=dict)
    after: tuple[str, ...] = ()
    """Names of nodes that run though no output needs them: TensorFlow's control outputs."""
    task: str = ""
    """What it is for: of the functions of one task any may be run in place of another (TensorFlow)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """Everything that a proof about a model rests on."""

    graph: Graph
    functions: Mapping[tuple[str, str], Function] = dataclasses.field(default_factory=dict)
    """By domain and name."""
    opsets: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Version of the operator set by domain; the standard domain is empty."""
