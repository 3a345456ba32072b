"""Inputs made up from a model's signature, the same for every backend. One that is accepted proves nothing else."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cortex.replica.backends.base import Backend, InferenceFailed
from cortex.replica.tensors.examples import serialise
from cortex.wire.signature import Dim, Signature, TensorSpec

_ATTEMPTS: Final = ((1, 1), (1, 0), (32, 1), (32, 0), (64, 1), (224, 1), (224, 0))
"""
Sizes of free dimensions, and the integer to fill in, in the order tried. Detectors want multiples of 32, image models
224; 1 is a valid length and a valid token, 0 a valid index.
"""
_MAX_ELEMENTS: Final = 1 << 24


def synthetic_feeds(signature: Signature, *, free: int = 1, whole: int = 1, rows: int = 1) -> dict[str, Any]:
    """
    Make up a value for every input that may not be absent. Deterministic.

    Args:
        signature: of the model.
        free: size of free dimensions other than the first; a formula over names is worked out with this.
        whole: what integer inputs are filled with.
        rows: size of the first dimension where it is free.

    Returns:
        Feeds as `tensors.Converter.convert` makes them. Floats lie between 0 and 1, with two decimals.

    Raises:
        ValueError: an input would have more than 2**24 elements.
    """
    return {
        spec.name: _synthetic(spec, _shape(spec, free, rows), whole) for spec in signature.inputs if not spec.optional
    }


class Candidate(NamedTuple):
    """Feeds of one row that a model may accept, and what they were made with."""

    feeds: dict[str, Any]
    free: int
    whole: int


def accepted_feeds(backend: Backend) -> dict[str, Any] | None:
    """Return the first made-up feeds of one row that the model runs on; None if it rejects all that are tried."""
    for candidate in candidates(backend.signature):
        try:
            backend.run(candidate.feeds)
        except InferenceFailed:
            continue
        return candidate.feeds
    return None


def refusal(backend: Backend) -> str:
    """What a model that rejects made-up feeds says of the first ones, which often holds the shapes that it wants."""
    for candidate in candidates(backend.signature):
        try:
            backend.run(candidate.feeds)
        except InferenceFailed as error:
            return error.reason
        return ""
    return ""


def candidates(signature: Signature) -> Iterator[Candidate]:
    """Yield feeds of one row, the likeliest to be accepted first."""
    seen = []
    for free, whole in _ATTEMPTS:
        try:
            feeds = synthetic_feeds(signature, free=free, whole=whole)
        except ValueError:
            continue
        key = [(np.shape(value), whole if _has_integers(value) else None) for value in feeds.values()]
        if key not in seen:
            seen.append(key)
            yield Candidate(feeds, free, whole)


def _has_integers(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "iu"


def _shape(spec: TensorSpec, free: int, rows: int) -> tuple[int, ...]:
    if spec.shape is None:
        return (rows,)
    sizes = [_size(dim, rows if index == 0 else free, free) for index, dim in enumerate(spec.shape)]
    if math.prod(sizes) > _MAX_ELEMENTS:
        raise ValueError(f'input "{spec.name}" would have more than {_MAX_ELEMENTS} elements')
    return tuple(sizes)


def _size(dim: Dim, default: int, free: int) -> int:
    if isinstance(dim, int):
        return dim
    if dim is None or dim.isidentifier():
        return default
    try:
        return max(_evaluate(ast.parse(dim, mode="eval").body, free), 0)
    except (SyntaxError, ValueError, RecursionError, MemoryError, ArithmeticError):
        return default


_OPERATORS: Final[dict[type, Callable[[int, int], int]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
}


def _evaluate(node: ast.AST, free: int) -> int:
    """Work out a dimension named by a formula, such as `past_length + 1`. Names stand for `free`."""
    if isinstance(node, ast.Name):
        return free
    if isinstance(node, ast.Constant) and isinstance(node.value, int) and abs(node.value) < _MAX_ELEMENTS:
        return int(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        size = _OPERATORS[type(node.op)](_evaluate(node.left, free), _evaluate(node.right, free))
        if abs(size) < _MAX_ELEMENTS:
            return size
    raise ValueError("not a formula over sizes")


def _synthetic(spec: TensorSpec, shape: tuple[int, ...], whole: int) -> Any:
    if spec.kind == "ragged":
        row: Any = _tensor(spec.dtype, shape[spec.ragged_rank :], whole)
        for _ in range(spec.ragged_rank):
            row = [row]
        return row
    if spec.features:
        example = serialise({one.name: _synthetic(one, _shape(one, 1, 1), whole) for one in spec.features})
        return np.full(shape, example, dtype=object)
    if spec.kind == "sequence":
        return [_tensor(spec.dtype, shape, whole)]
    if spec.kind == "map":
        return {"a" if spec.key_dtype == "string" else 0: 1.0}
    if spec.kind == "sequence_of_maps":
        return [{"a" if spec.key_dtype == "string" else 0: 1.0}]
    return _tensor(spec.dtype, shape, whole)


def _tensor(dtype: str, shape: tuple[int, ...], whole: int) -> NDArray[Any]:
    if dtype == "string":
        return np.full(shape, "a", dtype=object)
    if dtype == "bool":
        return np.ones(shape, dtype=np.bool_)
    if dtype == "bfloat16":
        return _fractions(shape, 0.125).astype(np.float32)  # eighths are exact
    if dtype.startswith("float"):
        return _fractions(shape, 0.01).astype(dtype)
    return np.full(shape, whole, dtype=dtype)


def _fractions(shape: tuple[int, ...], step: float) -> NDArray[np.float64]:
    """Numbers from 0 up to 1 in steps, in no order that a model could follow."""
    count = round(1 / step)
    return np.round(np.random.default_rng(0).integers(0, count, shape) * step, 3)
