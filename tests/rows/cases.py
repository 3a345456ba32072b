"""A model with what may be fed to it, and its form as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser, printer
from truth import Batch

from cortex.wire.batching import Rounding

Array: TypeAlias = NDArray[Any]
Draw: TypeAlias = Callable[[np.random.Generator, tuple[int, ...]], Array]
"""Makes values of a shape, rows first."""

Expected: TypeAlias = Literal["proved", "mixes", "refused"]
"""`proved`, and right; `mixes`: refused, and wrong when it is run; `refused`, whatever a run shows."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, and requests for it that a replica may put into one batch."""

    name: str
    model: onnx.ModelProto
    draw: Callable[[np.random.Generator], Batch]
    expected: Expected | None = None
    rounding: Rounding | None = None
    """What is to be said of rounding, of a case that says so."""


# ---- values -----------------------------------------------------------------------------------------------------


def drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Values such as requests have: mostly plain, at times large, tiny, equal, or none that is finite."""
    if dtype.kind == "b":
        return np.asarray(rng.random(shape) < 0.5)
    if dtype.kind in "iu":
        if dtype.itemsize == 8 and rng.integers(12) == 0:  # as identifiers are, which floats cannot hold
            return rng.integers(0, 2**57, shape).astype(dtype)
        return rng.integers(0 if dtype.kind == "u" else -4, 5, shape).astype(dtype)
    if dtype.kind in "OSU":
        return rng.choice(np.array(["a", "b", "Cat", "dog", "a b", ""], object), shape)
    values = rng.standard_normal(shape)
    way = rng.integers(12)
    if way == 0:
        values = values * 30
    elif way == 1:
        values = values * 1e-3
    elif way == 2:
        values = np.round(values)
    elif way == 3:
        values = np.abs(values)
    elif way == 4 and values.size:
        values.reshape(-1)[rng.integers(values.size)] = rng.choice([np.nan, np.inf, -np.inf])
    return values.astype(dtype)


def row_counts(rng: np.random.Generator) -> list[int]:
    """How many rows each request of a batch has."""
    if rng.random() < 0.05:  # as large as a replica makes them
        return [1] * int(rng.integers(24, 33))
    return [int(count) for count in rng.choice([1, 1, 2, 3], rng.integers(2, 5))]


# ---- cases by what a model declares -----------------------------------------------------------------------------


def declared_case(
    name: str,
    model: onnx.ModelProto,
    *,
    draws: Mapping[str, Draw] | None = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
    expected: Expected | None = None,
) -> Case:
    """
    A case whose requests follow from the declared inputs.

    Args:
        draws: of the inputs that `drawn` is not right for.
        sizes: what to choose from for dimensions of these names; others are 1 to 5. A name is the same size wherever
            it stands.
    """
    defaults = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in defaults]

    def draw(rng: np.random.Generator) -> Batch:
        found: dict[str, int] = {}

        def size(dim: Any, where: str) -> int:
            if dim.HasField("dim_value"):
                return int(dim.dim_value)
            key = dim.dim_param or where
            if key not in found:
                found[key] = int(rng.choice((sizes or {}).get(key, (1, 2, 3, 4, 5))))
            return found[key]

        shapes = {
            value.name: tuple(
                size(dim, f"{value.name} {index}")
                for index, dim in enumerate(value.type.tensor_type.shape.dim[1:], start=1)
            )
            for value in inputs
        }
        return [
            {
                value.name: _fed(rng, (rows, *shapes[value.name]), value, (draws or {}).get(value.name))
                for value in inputs
            }
            for rows in row_counts(rng)
        ]

    return Case(name, model, draw, expected)


def _fed(rng: np.random.Generator, shape: tuple[int, ...], value: onnx.ValueInfoProto, draw: Draw | None) -> Array:
    dtype = fed_dtype(value.type.tensor_type.elem_type)
    return drawn(rng, shape, dtype) if draw is None else draw(rng, shape).astype(dtype)


def fed_dtype(element_type: int) -> np.dtype[Any]:
    """What numpy holds values of this type in; bfloat16 travels as float32."""
    if element_type == onnx.TensorProto.STRING:
        return np.dtype(object)
    if element_type == onnx.TensorProto.BFLOAT16:
        return np.dtype(np.float32)
    return np.dtype(helper.tensor_dtype_to_np_dtype(element_type))


def text_case(
    name: str,
    text: str,
    expected: Expected | None = None,
    *,
    opset: int = 18,
    constants: Mapping[str, Any] | None = None,
    draws: Mapping[str, Draw] | None = None,
    sizes: Mapping[str, Sequence[int]] | None = None,
) -> Case:
    """
    A case from a graph as onnx writes it, e.g. `g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }`.

    Args:
        opset: of the standard domain, where the text says nothing about operator sets.
        constants: besides those of the text.
    """
    if not text.lstrip().startswith("<"):
        text = f'<ir_version: 10, opset_import: ["": {opset}, "ai.onnx.ml": 3, "com.microsoft": 1]>\n{text}'
    model = parser.parse_model(text)
    for key, value in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), key))
    return declared_case(name, model, draws=draws, sizes=sizes, expected=expected)


def as_text(model: onnx.ModelProto) -> str:
    """A model as text that `read_case` reads again."""
    return printer.to_text(model)
