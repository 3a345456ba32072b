"""
Made-up inputs, and what they show about a model. The same for every backend.

Nothing here proves a model right; it shows that a value was accepted, or that rows do not disturb each other.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cortex.replica.backends.base import Backend, InferenceFailed
from cortex.wire.signature import Dim, Signature, TensorSpec

Run: TypeAlias = Callable[[Mapping[str, Any]], Sequence[Any]]

_ATTEMPTS: Final = ((1, 1), (1, 0), (32, 1), (32, 0), (64, 1), (224, 1), (224, 0))
"""
Sizes of free dimensions, and the integer to fill in, in the order tried. Detectors want multiples of 32, image models
224; 1 is a valid length and a valid token, 0 a valid index.
"""
_MAX_ELEMENTS: Final = 1 << 24
_EXACT: Final = 0.0
_RELATIVE_TOLERANCE: Final = {"float16": 1e-2, "bfloat16": 2e-2, "float32": 1e-4, "float64": 1e-9}
"""How far a row may move when others are beside it: kernels sum in another order, and no more than that."""


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


def accepted_feeds(backend: Backend) -> dict[str, Any] | None:
    """Return the first made-up feeds of one row that the model runs on; None if it rejects all that are tried."""
    for feeds in _candidates(backend.signature):
        if _try(backend.run, feeds) is not None:
            return feeds
    return None


def rows_are_independent(run: Run, signature: Signature, feeds: Mapping[str, Any] | None = None) -> bool:
    """
    Show whether requests may share a run: dimension 0 is the batch, and no row sees another.

    Runs two different rows alone, then two and three rows together, and compares. A model that draws random numbers,
    normalises over the batch or quantises by its range is found out by this.

    Args:
        run: executes the model; raises `InferenceFailed`.
        signature: of the model.
        feeds: of one row, known to be accepted; None makes them up.

    Returns:
        False also when the model fails, or when no second row can be found that it accepts.
    """
    if not may_be_batched(signature):
        return False
    candidates = _candidates(signature) if feeds is None else (feeds,)
    for first in candidates:
        if any(np.shape(value)[:1] != (1,) for value in first.values()):
            continue
        alone = _try(run, first)
        if alone is not None:
            break
    else:
        return False
    for second in _variations(first):
        alone_second = _try(run, second)
        if alone_second is not None:
            break
    else:
        return False
    return _agree(run, signature, (first, second), (alone, alone_second)) and _agree(
        run, signature, (second, first, second), (alone_second, alone, alone_second)
    )


def _agree(run: Run, signature: Signature, rows: Sequence[Mapping[str, Any]], alone: Sequence[Sequence[Any]]) -> bool:
    """Whether `rows`, run together, give what each gave `alone`."""
    together = _try(run, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
    return together is not None and _same_rows(together, alone, signature)


def _try(run: Run, feeds: Mapping[str, Any]) -> Sequence[Any] | None:
    """Run the model; None if it fails."""
    try:
        return run(feeds)
    except InferenceFailed:
        return None


def may_be_batched(signature: Signature) -> bool:
    """Whether every input is a tensor whose first dimension is free, so that trying makes sense."""
    return len(signature.inputs) > 0 and all(
        spec.kind == "tensor" and not spec.optional and spec.shape and not isinstance(spec.shape[0], int)
        for spec in signature.inputs
    )


def _candidates(signature: Signature) -> Iterator[dict[str, Any]]:
    seen = []
    for free, whole in _ATTEMPTS:
        try:
            feeds = synthetic_feeds(signature, free=free, whole=whole)
        except ValueError:
            continue
        key = [(np.shape(value), whole if _has_integers(value) else None) for value in feeds.values()]
        if key not in seen:
            seen.append(key)
            yield feeds


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


def _variations(feeds: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield rows of the same shapes that differ from the given one; the likeliest to be accepted first."""
    for change in (_reversed, _smaller, _other):
        varied = {name: change(value) for name, value in feeds.items()}
        if any(not np.array_equal(varied[name], value) for name, value in feeds.items()):
            yield varied


def _reversed(value: NDArray[Any]) -> NDArray[Any]:
    """The same elements backwards, so that tokens stay in the vocabulary; floats also shrink."""
    backwards = np.ascontiguousarray(value.reshape(-1)[::-1].reshape(value.shape))
    return _other(backwards) if value.dtype.kind == "f" else backwards


def _smaller(value: NDArray[Any]) -> NDArray[Any]:
    return np.zeros_like(value) if value.dtype.kind in "iub" else _other(value)


def _other(value: NDArray[Any]) -> NDArray[Any]:
    kind = value.dtype.kind
    if kind == "f":
        return (value * 0.5 + 0.25).astype(value.dtype)
    if kind in "iu":
        return np.ones_like(value)
    return ~value if kind == "b" else np.full(value.shape, "b", dtype=object)


def _same_rows(together: Sequence[Any], alone: Sequence[Sequence[Any]], signature: Signature) -> bool:
    """Whether row i of every output equals what row i gave alone."""
    for index, spec in enumerate(signature.outputs):
        tolerance = _RELATIVE_TOLERANCE.get(spec.dtype, _EXACT)
        if _rows(together[index]) != len(alone):
            return False
        for row, outputs in enumerate(alone):
            if _rows(outputs[index]) != 1 or not _close(together[index][row], outputs[index][0], tolerance):
                return False
    return True


def _rows(output: Any) -> int:
    """Size of dimension 0; -1 for what has none."""
    if isinstance(output, list):
        return len(output)
    shape = np.shape(output)
    return shape[0] if shape else -1


def _close(found: Any, expected: Any, tolerance: float) -> bool:
    """Whether two rows are equal up to rounding. A tolerance of 0 compares exactly."""
    if isinstance(expected, Mapping):
        return found.keys() == expected.keys() and all(_close(found[k], expected[k], tolerance) for k in expected)
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return False
    if not tolerance:
        return bool(np.array_equal(found, expected))
    scale = float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected)))
    return bool(np.allclose(found, expected, rtol=tolerance, atol=tolerance * max(scale, 1e-3), equal_nan=True))
