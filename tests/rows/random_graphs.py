"""
Random graphs of a few operators, most of which run: sizes are followed while one is made.

A value's shape is kept as it is for seven rows, and no other size is a multiple of seven, so that a size that counts
the rows is told from one that does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import onnx
from cases import Case, drawn, row_counts
from onnx import TensorProto, helper, numpy_helper
from truth import Batch

N: Final = 7
"""The number of rows that shapes are kept for."""
MOST_ELEMENTS: Final = 40_000
_LARGE: Final = (1, 2, 16, 18, 33, 64)
OPSETS: Final = (11, 12, 13, 17, 18, 21, 22)
NEWEST: Final = 28
"""In place of the last of them in half of the graphs."""

_TYPES: Final = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}


class Unfit(Exception):
    """The operator that was drawn does not go with the value."""


@dataclass(frozen=True)
class Wire:
    """A value of the graph."""

    name: str
    shape: tuple[int, ...]
    """With N rows."""
    dtype: str = "float32"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith("float")

    @property
    def row_axes(self) -> list[int]:
        """Dimensions whose size counts the rows."""
        return [axis for axis, size in enumerate(self.shape) if size % N == 0]


Step: TypeAlias = "Callable[[Sketch, Wire], Wire]"


@dataclass
class Sketch:
    """A graph in the making."""

    rng: np.random.Generator
    opset: int = 18
    is_large: bool = False
    """Of sizes where loops over vectors have a remainder."""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    counter: list[int] = field(default_factory=lambda: [0])

    # -- chance

    def below(self, high: int, low: int = 0) -> int:
        require(low < high)
        return int(self.rng.integers(low, high))

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def one_of(self, values: Sequence[Any]) -> Any:
        return values[self.below(len(values))]

    def size(self) -> int:
        return int(self.one_of(_LARGE if self.is_large else (1, 2, 2, 3, 3, 4, 5)))

    def axis(self, wire: Wire) -> int:
        """A dimension, mostly one that is not the rows; at times counted from the end."""
        require(wire.rank > 0)
        calm = [axis for axis in range(wire.rank) if axis not in wire.row_axes]
        axis = self.one_of(calm) if calm and self.chance(0.75) else self.below(wire.rank)
        return axis - wire.rank if self.chance(0.3) else axis

    def other(self, fits: Callable[[Wire], bool] = lambda wire: True) -> Wire:
        """Any value made so far that fits."""
        found = [wire for wire in self.wires if fits(wire)]
        require(bool(found))
        found_one: Wire = self.one_of(found)
        return found_one

    # -- making

    def name(self) -> str:
        self.counter[0] += 1
        return f"v{self.counter[0]}"

    def constant(self, value: Any, dtype: str = "") -> Wire:
        array = np.asarray(value, dtype or None)
        wire = Wire(self.name(), array.shape, str(array.dtype))
        self.constants.append(numpy_helper.from_array(array, wire.name))
        return wire

    def numbers(self, *values: int) -> Wire:
        return self.constant(np.array(values, np.int64))

    def noise(self, *shape: int, dtype: str = "float32") -> Wire:
        return self.constant(self.rng.standard_normal(shape).astype(dtype))

    def emit(
        self,
        operator: str,
        inputs: Sequence[Wire | None],
        shape: Sequence[int],
        dtype: str = "",
        *,
        outputs: int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> Wire:
        """Add a node; return its first output. Further ones are named after it."""
        require(math.prod(shape) <= MOST_ELEMENTS)
        first = next(wire for wire in inputs if wire is not None)
        made = Wire(self.name(), tuple(int(size) for size in shape), dtype or first.dtype)
        names = [made.name, *(f"{made.name}_{index}" for index in range(1, outputs))]
        given = ["" if wire is None else wire.name for wire in inputs]
        self.nodes.append(helper.make_node(operator, given, names, domain=domain, **attributes))
        return made

    def with_axes(
        self, operator: str, wire: Wire, axes: Sequence[int], shape: Sequence[int], *, since: int, **more: Any
    ) -> Wire:
        """An operator that takes its axes as an input since some operator set, as an attribute before."""
        if self.opset >= since:
            return self.emit(operator, [wire, self.numbers(*axes)], shape, **more)
        return self.emit(operator, [wire], shape, axes=list(axes), **more)

    def size_of(self, wire: Wire, axis: int) -> Wire:
        """The size of a dimension as a vector of one element, as exporters write it."""
        shape = self.emit("Shape", [wire], (wire.rank,), "int64")
        if self.chance(0.5):
            scalar = self.emit("Gather", [shape, self.constant(np.int64(axis))], (), "int64", axis=0)
            return self.unsqueezed(scalar)
        if self.chance(0.5):
            return self.emit("Gather", [shape, self.numbers(axis)], (1,), "int64", axis=0)
        return self.emit("Slice", [shape, self.numbers(axis), self.numbers(axis + 1), self.numbers(0)], (1,), "int64")

    def rows(self, wire: Wire | None = None) -> Wire:
        """The number of rows as a vector of one element."""
        counted = wire or self.other(lambda one: one.rank > 0 and one.shape[0] == N)
        require(counted.rank > 0 and counted.shape[0] == N)
        return self.size_of(counted, 0)

    def unsqueezed(self, wire: Wire, axis: int = 0) -> Wire:
        shape = [*wire.shape[:axis], 1, *wire.shape[axis:]]
        return self.with_axes("Unsqueeze", wire, [axis], shape, since=13)

    def as_float(self, wire: Wire, dtype: str = "float32") -> Wire:
        return wire if wire.dtype == dtype else self.emit("Cast", [wire], wire.shape, dtype, to=_TYPES[dtype])

    def index(self, wire: Wire, high: int, dtype: str = "int64") -> Wire:
        """Whole numbers from 0 to below `high`, made of a value."""
        wire = self.as_float(wire)
        small = self.emit(
            "Clip", [self.emit("Abs", [wire], wire.shape), None, self.constant(np.float32(high - 1))], wire.shape
        )
        tamed = self.emit(
            "Where",
            [self.emit("IsNaN", [small], small.shape, "bool"), self.constant(np.float32(0)), small],
            small.shape,
        )
        return self.emit("Cast", [tamed], tamed.shape, dtype, to=_TYPES[dtype])


def require(fits: bool) -> None:
    if not fits:
        raise Unfit


# ---- layout -----------------------------------------------------------------------------------------------------


def transpose(s: Sketch, x: Wire) -> Wire:
    require(x.rank > 1)
    order = [int(axis) for axis in s.rng.permutation(x.rank)]
    if x.rank > 2 and x.row_axes == [0] and s.chance(0.5):
        order = [0, *(int(axis) + 1 for axis in s.rng.permutation(x.rank - 1))]
    return s.emit("Transpose", [x], [x.shape[axis] for axis in order], perm=order)


def _factors(s: Sketch, number: int, most: int) -> list[int]:
    """The number as a product of up to so many, in any order."""
    found = [1] * s.below(most + 1, 1)
    rest = number
    for prime in (2, 3, 5, 7, 11, 13):
        while rest % prime == 0:
            found[s.below(len(found))] *= prime
            rest //= prime
    require(rest == 1)
    return found


def reshape(s: Sketch, x: Wire) -> Wire:
    """To sizes that fit: the rows left where they are, -1, 0, or counted."""
    total = math.prod(x.shape)
    require(total > 0)
    if x.row_axes == [0] and x.shape[0] == N and s.chance(0.5):
        shape = [N, *_factors(s, total // N, 3)]
    else:
        shape = _factors(s, total, 4)
    counted = [index for index, size in enumerate(shape) if size % N == 0]
    require(len(counted) <= 1)
    parts: list[int | Wire] = list(shape)
    for index in counted:
        kept = index < x.rank and x.shape[index] == shape[index] and s.chance(0.4)
        if kept:
            parts[index] = 0
        elif s.chance(0.6):
            parts[index] = -1
        else:
            rows = s.rows()
            factor = shape[index] // N
            parts[index] = rows if factor == 1 else s.emit("Mul", [rows, s.numbers(factor)], (1,), "int64")
    calm = [index for index in range(len(shape)) if index not in counted]
    if calm and -1 not in parts and s.chance(0.4):
        parts[s.one_of(calm)] = -1
    return s.emit("Reshape", [x, _vector(s, parts)], shape)


def reshape_blindly(s: Sketch, x: Wire) -> Wire:
    """To sizes of which nobody looked whether they fit: it may run all the same."""
    target = [int(s.one_of((-1, 1, 2, 3, 4, 6, 0))) for _ in range(s.below(4, 1))]
    pieces = [s.numbers(*target)]
    if s.chance(0.4):
        source = s.other(lambda wire: wire.rank > 0)
        counted = s.size_of(source, s.below(source.rank))
        if s.chance(0.3):
            counted = s.emit("Mul", [counted, s.numbers(s.below(4, 1))], (1,), "int64")
        at = s.below(len(target) + 1)
        pieces = [s.numbers(*target[:at]), counted, s.numbers(*target[at:])]
    tensor = pieces[0] if len(pieces) == 1 else s.emit("Concat", pieces, (len(target) + 1,), "int64", axis=0)
    try:
        dims = [-1 if size == 0 else size for size in target]
        shape = np.zeros(x.shape, np.int8).reshape(dims).shape if len(pieces) == 1 else (N, *([1] * len(target)))
    except ValueError:
        shape = (N,) * len(target)
    return s.emit("Reshape", [x, tensor], shape)


def flatten(s: Sketch, x: Wire) -> Wire:
    axis = s.one_of((1, 1, s.below(x.rank + 1)))
    require(axis <= x.rank)
    return s.emit("Flatten", [x], (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])), axis=axis)


def squeeze(s: Sketch, x: Wire) -> Wire:
    ones = [axis for axis, size in enumerate(x.shape) if size == 1]
    if not ones or s.chance(0.15):
        return s.emit("Squeeze", [x], [size for size in x.shape if size != 1])
    axis = s.one_of(ones) if s.chance(0.9) else s.below(x.rank)
    return s.with_axes("Squeeze", x, [axis], [*x.shape[:axis], *x.shape[axis + 1 :]], since=13)


def unsqueeze(s: Sketch, x: Wire) -> Wire:
    require(x.rank < 5)
    return s.unsqueezed(x, s.below(x.rank + 1))


def expand(s: Sketch, x: Wire) -> Wire:
    """Dimensions of 1 to a size, or to the number of rows."""
    rank = max(x.rank, s.below(4))
    shape = [1] * (rank - x.rank) + list(x.shape)
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    require(bool(ones))
    target: list[int | Wire] = [1] * rank
    grown = s.one_of(ones)
    if s.chance(0.4):
        target[grown], shape[grown] = s.rows(), N
    else:
        target[grown] = shape[grown] = s.size()
    return s.emit("Expand", [x, _vector(s, target)], shape)


def _vector(s: Sketch, parts: Sequence[int | Wire]) -> Wire:
    if all(isinstance(part, int) for part in parts):
        return s.numbers(*(part for part in parts if isinstance(part, int)))
    pieces = [part if isinstance(part, Wire) else s.numbers(part) for part in parts]
    return pieces[0] if len(pieces) == 1 else s.emit("Concat", pieces, (len(pieces),), "int64", axis=0)


def tile(s: Sketch, x: Wire) -> Wire:
    require(x.rank > 0)
    repeats = [1] * x.rank
    repeats[s.axis(x)] = s.below(4, 1)
    return s.emit("Tile", [x, s.numbers(*repeats)], [a * b for a, b in zip(x.shape, repeats, strict=True)])


def concat(s: Sketch, x: Wire) -> Wire:
    axis = s.axis(x)

    def fits(wire: Wire) -> bool:
        at = axis % x.rank
        return (
            wire.dtype == x.dtype
            and wire.rank == x.rank
            and all(a == b for index, (a, b) in enumerate(zip(wire.shape, x.shape, strict=True)) if index != at)
        )

    y = s.other(fits)
    if s.chance(0.1):  # a constant beside it, or nothing at all
        shape = list(x.shape)
        shape[axis] = s.below(2)
        require(not any(size % N == 0 for index, size in enumerate(shape) if index != axis % x.rank))
        y = s.noise(*shape, dtype=x.dtype) if x.is_float else s.constant(np.zeros(shape, x.dtype))
    shape = list(x.shape)
    shape[axis] += y.shape[axis]
    return s.emit("Concat", [x, y] if s.chance(0.5) else [y, x], shape, axis=axis)


def split(s: Sketch, x: Wire) -> Wire:
    axis = s.axis(x)
    size = x.shape[axis]
    require(size > 1)
    first = s.below(size, 1)
    shape = list(x.shape)
    shape[axis] = first
    if axis % x.rank in x.row_axes:
        require(s.opset >= 18)
        shape[axis] = (size + 1) // 2
        made = s.emit("Split", [x], shape, outputs=2, axis=axis, num_outputs=2)
    elif s.opset >= 13:
        made = s.emit("Split", [x, s.numbers(first, size - first)], shape, outputs=2, axis=axis)
    else:
        made = s.emit("Split", [x], shape, outputs=2, axis=axis, split=[first, size - first])
    shape[axis] = size - first
    return Wire(f"{made.name}_1", tuple(shape), x.dtype) if s.chance(0.3) else made


def slice_(s: Sketch, x: Wire) -> Wire:
    axis = s.axis(x)
    size = x.shape[axis]
    start, end, step = (
        (s.below(3, -2), int(s.one_of((1, 2, -1, 1000, 2**31 - 1))), 1) if s.chance(0.7) else (-1, -(2**31), -1)
    )
    if s.chance(0.2):
        start, end = 0, 2**62
    kept = len(range(*slice(start, end if end != -(2**31) else None, step).indices(size)))
    shape = list(x.shape)
    shape[axis] = size if kept == size else kept
    bounds = [s.numbers(start), s.numbers(end)]
    if s.chance(0.2):
        source = s.other(lambda wire: wire.rank > 0)
        along = s.below(source.rank)
        bounds[1] = s.size_of(source, along)
        shape[axis] = len(range(*slice(start, source.shape[along], step).indices(size)))
    return s.emit("Slice", [x, *bounds, s.numbers(axis), s.numbers(step)], shape)


def pad(s: Sketch, x: Wire) -> Wire:
    require(x.rank > 0 and x.dtype in ("float32", "float64"))
    pads = [0] * 2 * x.rank
    axis = s.axis(x) % x.rank
    pads[axis + (x.rank if s.chance(0.5) else 0)] = 1
    shape = list(x.shape)
    shape[axis] += 1
    return s.emit("Pad", [x, s.numbers(*pads)], shape, mode=s.one_of(("constant", "edge")))


def depth_to_space(s: Sketch, x: Wire) -> Wire:
    require(x.rank == 4 and x.dtype == "float32")
    n, c, h, w = x.shape
    if c % 4 == 0 and s.chance(0.6):
        return s.emit("DepthToSpace", [x], (n, c // 4, h * 2, w * 2), blocksize=2, mode=s.one_of(("DCR", "CRD")))
    require(h % 2 == 0 and w % 2 == 0)
    return s.emit("SpaceToDepth", [x], (n, c * 4, h // 2, w // 2), blocksize=2)


def resize(s: Sketch, x: Wire) -> Wire:
    require(1 < x.rank < 5 and x.dtype == "float32")
    axis = s.axis(x) % x.rank
    scales = [1.0] * x.rank
    scales[axis] = 2.0
    shape = list(x.shape)
    shape[axis] *= 2
    nothing = s.constant(np.zeros(0, np.float32))
    return s.emit(
        "Resize", [x, nothing, s.constant(np.array(scales, np.float32))], shape,
        mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip


def trilu(s: Sketch, x: Wire) -> Wire:
    require(x.rank >= 2 and s.opset >= 14 and x.dtype in ("float32", "int64"))
    return s.emit("Trilu", [x], x.shape, upper=s.below(2))


# ---- elementwise ------------------------------------------------------------------------------------------------

_UNARY: Final = (
    "Abs", "Neg", "Exp", "Tanh", "Sigmoid", "Relu", "Erf", "Sqrt", "Floor", "Ceil", "Round", "Sign", "LeakyRelu",
    "Softplus", "Sin", "Identity", "HardSigmoid", "Elu", "Reciprocal", "Atan", "HardSwish", "Softsign",
)  # fmt: skip


def unary(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32")
    operator = s.one_of(_UNARY)
    require(operator != "HardSwish" or s.opset >= 14)
    if operator in ("Sqrt", "Reciprocal", "Exp"):  # where a number stays a number
        x = s.emit("Clip", [x, s.constant(np.float32(0.01)), s.constant(np.float32(9))], x.shape)
    return s.emit(operator, [x], x.shape)


def _broadcast(a: Wire, b: Wire) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise Unfit from None


def binary(s: Sketch, x: Wire) -> Wire:
    y = s.other(lambda wire: wire.dtype == x.dtype)
    require(x.is_float or x.dtype in ("int64", "int32"))
    if x.dtype == "float32" and s.chance(0.1):
        above_0 = s.emit("Clip", [y, s.constant(np.float32(0.5)), s.constant(np.float32(3))], y.shape)
        return s.emit("Div", [x, above_0], _broadcast(x, y))
    operator = s.one_of(("Add", "Mul", "Sub", "Max", "Min"))
    return s.emit(operator, [x, y] if s.chance(0.5) else [y, x], _broadcast(x, y))


def with_constant(s: Sketch, x: Wire) -> Wire:
    require(x.is_float)
    shape = [size if s.chance(0.5) and size % N else 1 for size in x.shape][s.below(x.rank + 1) :]
    if s.chance(0.1):
        shape = [s.size() for _ in range(s.below(4))]
    y = s.noise(*shape, dtype=x.dtype)
    return s.emit(s.one_of(("Add", "Mul", "Sub", "Max")), [x, y] if s.chance(0.5) else [y, x], _broadcast(x, y))


def compare(s: Sketch, x: Wire) -> Wire:
    require(x.is_float)
    y = s.other(lambda wire: wire.dtype == x.dtype) if s.chance(0.5) else s.constant(np.zeros((), x.dtype))
    return s.emit(s.one_of(("Greater", "Less", "Equal", "GreaterOrEqual")), [x, y], _broadcast(x, y), "bool")


def where(s: Sketch, x: Wire) -> Wire:
    condition = x if x.dtype == "bool" else compare(s, x)
    y = s.other(lambda wire: wire.dtype == "float32")
    z = s.other(lambda wire: wire.dtype == "float32") if s.chance(0.4) else s.constant(np.float32(1))
    shape = _broadcast(Wire("", _broadcast(condition, y)), z)
    return s.emit("Where", [condition, y, z] if s.chance(0.5) else [condition, z, y], shape, "float32")


def logic(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "bool")
    if s.chance(0.5):
        return s.emit("Not", [x], x.shape)
    y = s.other(lambda wire: wire.dtype == "bool")
    return s.emit(s.one_of(("And", "Or", "Xor")), [x, y], _broadcast(x, y))


def cast(s: Sketch, x: Wire) -> Wire:
    dtype = s.one_of(("float64", "float16", "float32", "float32", "bool")) if x.is_float else "float32"
    require(dtype != x.dtype)
    return s.emit("Cast", [x], x.shape, dtype, to=_TYPES[dtype])


def to_whole(s: Sketch, x: Wire) -> Wire:
    """To integers, after which sums that round show as steps."""
    return s.index(x, 5, s.one_of(("int64", "int32")))


def prelu(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32" and x.rank > 0 and x.shape[-1] % N != 0)
    return s.emit("PRelu", [x, s.noise(x.shape[-1])], x.shape)


# ---- products ---------------------------------------------------------------------------------------------------


def _product(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    try:
        product = np.matmul(np.zeros(a, np.int8), np.zeros(b, np.int8))
    except ValueError:
        raise Unfit from None
    return tuple(product.shape)


def matmul(s: Sketch, x: Wire) -> Wire:
    require(x.is_float and x.dtype != "float16")
    y = s.other(lambda wire: wire.dtype == x.dtype)
    if x.rank > 1 and s.chance(0.4):
        order = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
        y = s.emit("Transpose", [x], [x.shape[axis] for axis in order], perm=order)
    a, b = (x, y) if s.chance(0.6) else (y, x)
    return s.emit("MatMul", [a, b], _product(a.shape, b.shape))


def matmul_constant(s: Sketch, x: Wire) -> Wire:
    require(x.is_float and x.rank > 0)
    inner = x.shape[-1] if x.shape[-1] % N else s.size()
    if s.chance(0.75):
        w = s.noise(inner, s.size(), dtype=x.dtype)
        return s.emit("MatMul", [x, w], _product(x.shape, w.shape))
    w = s.noise(*[s.size() for _ in range(s.below(4, 1))], dtype=x.dtype)
    if x.rank > 1 and x.shape[-2] % N and s.chance(0.7):
        w = s.noise(s.size(), x.shape[-2], dtype=x.dtype)
    return s.emit("MatMul", [w, x], _product(w.shape, x.shape))


def gemm(s: Sketch, x: Wire) -> Wire:
    require(x.rank == 2 and x.dtype in ("float32", "float64"))
    is_turned = s.chance(0.3)
    shape = x.shape[::-1] if is_turned else x.shape
    if shape[1] % N == 0:
        w = s.other(lambda wire: wire.rank == 2 and wire.shape[0] == shape[1] and wire.dtype == x.dtype)
    else:
        w = s.noise(shape[1], s.size(), dtype=x.dtype)
    inputs = [x, w]
    if s.chance(0.5):
        inputs.append(s.noise(*s.one_of(((w.shape[1],), (1, w.shape[1]), (1,), ())), dtype=x.dtype))
    require(w.shape[1] % N != 0 or len(inputs) == 2)
    return s.emit("Gemm", inputs, (shape[0], w.shape[1]), transA=int(is_turned), alpha=0.5)


def einsum(s: Sketch, x: Wire) -> Wire:
    require(x.rank in (2, 3) and x.dtype == "float32" and s.opset >= 12)
    y = s.other(lambda wire: wire.dtype == "float32" and 1 <= wire.rank <= 3)
    letters: dict[int, list[str]] = {}
    spare = list("abcdefgh")
    terms = []
    for wire in (x, y):
        term = ""
        for size in wire.shape:
            known = [letter for letter in letters.get(size, []) if letter not in term]
            if known and s.chance(0.8):
                term += s.one_of(known)
            else:
                letter = spare.pop(0)
                letters.setdefault(size, []).append(letter)
                term += letter
        terms.append(term)
    sizes = {letter: size for size, found in letters.items() for letter in found}
    kept = [letter for letter in sizes if s.chance(0.6)]
    order = [kept[index] for index in s.rng.permutation(len(kept))]
    return s.emit(
        "Einsum", [x, y], [sizes[letter] for letter in order], equation=f"{terms[0]},{terms[1]}->{''.join(order)}"
    )


# ---- reductions and normalisations ------------------------------------------------------------------------------

_REDUCTIONS: Final = ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL2", "ReduceLogSumExp", "ReduceL1")


def reduce(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32")
    axis, keep = s.axis(x), s.below(2)
    shape = list(x.shape)
    shape[axis] = 1
    if not keep:
        del shape[axis]
    if s.chance(0.4):
        return s.with_axes("ReduceSum", x, [axis], shape, since=13, keepdims=keep)
    if s.chance(0.1):
        return s.emit(s.one_of(_REDUCTIONS), [x], [1] * x.rank if keep else [], keepdims=keep)
    return s.with_axes(s.one_of(_REDUCTIONS), x, [axis], shape, since=18, keepdims=keep)


def arg_extreme(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32")
    axis, keep = s.axis(x), s.below(2)
    shape = list(x.shape)
    shape[axis] = 1
    if not keep:
        del shape[axis]
    return s.emit(s.one_of(("ArgMax", "ArgMin")), [x], shape, "int64", axis=axis, keepdims=keep)


def softmax(s: Sketch, x: Wire) -> Wire:
    require(x.dtype in ("float32", "float64") and x.rank > 0)
    return s.emit(s.one_of(("Softmax", "LogSoftmax", "Hardmax")), [x], x.shape, axis=s.axis(x))


def cumulate(s: Sketch, x: Wire) -> Wire:
    require(x.dtype in ("float32", "float64", "int64"))
    return s.emit("CumSum", [x, s.constant(np.int64(s.axis(x)))], x.shape, reverse=s.below(2))


def top(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32")
    axis = s.axis(x)
    shape = list(x.shape)
    shape[axis] = count = 1 if axis % x.rank in x.row_axes else s.below(x.shape[axis] + 1, 1)
    is_sorted = int(s.chance(0.7))
    made = s.emit("TopK", [x, s.numbers(count)], shape, outputs=2, axis=axis, largest=s.below(2), sorted=is_sorted)
    return Wire(f"{made.name}_1", made.shape, "int64") if s.chance(0.4) else made


def layer_norm(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32" and x.rank > 1 and s.opset >= 17)
    axis = s.below(x.rank, 1) if s.chance(0.8) else s.below(x.rank)
    scale = s.noise(*[1 if size % N == 0 else size for size in x.shape[axis:]])
    return s.emit("LayerNormalization", [x, scale], x.shape, axis=axis)


def batch_norm(s: Sketch, x: Wire) -> Wire:
    require(x.rank > 1 and x.dtype == "float32" and x.shape[1] % N != 0)
    c = x.shape[1]
    parameters = [s.noise(c), s.noise(c), s.noise(c), s.constant(np.abs(s.rng.standard_normal(c)).astype(np.float32))]
    if s.opset >= 14 and s.chance(0.2):
        return s.emit("BatchNormalization", [x, *parameters], x.shape, outputs=3, training_mode=1)
    return s.emit("BatchNormalization", [x, *parameters], x.shape)


def other_norm(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32" and x.rank > 1)
    kind = s.below(4)
    if kind == 0:
        return s.emit("LpNormalization", [x], x.shape, axis=s.axis(x), p=s.one_of((1, 2)))
    if kind == 1:
        axes = sorted({s.axis(x) % x.rank, s.axis(x) % x.rank})
        return s.emit("MeanVarianceNormalization", [x], x.shape, axes=axes)
    require(x.rank > 2 and x.shape[1] % N != 0)
    if kind == 2:
        return s.emit("InstanceNormalization", [x, s.noise(x.shape[1]), s.noise(x.shape[1])], x.shape)
    require(x.rank == 4)
    return s.emit("LRN", [x], x.shape, size=3)


# ---- windows and recurrences ------------------------------------------------------------------------------------


def convolve(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32" and x.rank in (3, 4) and x.shape[1] % N != 0)
    spatial = x.shape[2:]
    kernel = [1 if s.chance(0.3) else min(2, size) for size in spatial]
    out = s.size()
    shape = [x.shape[0], out, *(size - k + 1 for size, k in zip(spatial, kernel, strict=True))]
    inputs = [x, s.noise(out, x.shape[1], *kernel)]
    if s.chance(0.4):
        inputs.append(s.noise(out))
    return s.emit("Conv", inputs, shape)


def convolve_back(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32" and x.rank in (3, 4) and x.shape[1] % N != 0)
    out = s.size()
    kernel = [2] * (x.rank - 2)
    shape = [x.shape[0], out, *(size + 1 for size in x.shape[2:])]
    return s.emit("ConvTranspose", [x, s.noise(x.shape[1], out, *kernel)], shape)


def pool(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32" and x.rank in (3, 4))
    if s.chance(0.3):
        operator = s.one_of(("GlobalAveragePool", "GlobalMaxPool"))
        return s.emit(operator, [x], [*x.shape[:2], *([1] * (x.rank - 2))])
    kernel = [min(2, size) for size in x.shape[2:]]
    shape = [*x.shape[:2], *(size - k + 1 for size, k in zip(x.shape[2:], kernel, strict=True))]
    made = s.emit(s.one_of(("MaxPool", "AveragePool")), [x], shape, kernel_shape=kernel)
    if s.nodes[-1].op_type == "MaxPool" and s.chance(0.2):
        s.nodes[-1].output.append(f"{made.name}_1")
        return Wire(f"{made.name}_1", made.shape, "int64")
    return made


def recur(s: Sketch, x: Wire) -> Wire:
    require(x.rank == 3 and x.dtype == "float32" and x.shape[2] % N != 0)
    operator, gates = s.one_of((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    steps, count, features = x.shape
    inputs: list[Wire | None] = [x, s.noise(1, 2 * gates, features), s.noise(1, 2 * gates, 2)]
    if s.chance(0.3):
        lengths = s.other(lambda wire: wire.rank == 1 and wire.shape[0] == count)
        inputs += [
            None,
            s.emit("Add", [s.index(lengths, steps, "int32"), s.constant(np.int32(1))], lengths.shape, "int32"),
        ]
    shapes = [(steps, 1, count, 2), (1, count, 2)]
    made = s.emit(operator, inputs, shapes[0], outputs=2, hidden_size=2)
    return Wire(f"{made.name}_1", shapes[1]) if s.chance(0.4) else made


def reverse(s: Sketch, x: Wire) -> Wire:
    require(x.rank >= 2 and x.dtype in ("float32", "int64"))
    batch = s.below(2)
    lengths = s.other(lambda wire: wire.rank == 1 and wire.shape[0] == x.shape[batch])
    counted = s.emit("Add", [s.index(lengths, x.shape[1 - batch]), s.constant(np.int64(1))], lengths.shape, "int64")
    return s.emit("ReverseSequence", [x, counted], x.shape, x.dtype, batch_axis=batch, time_axis=1 - batch)


# ---- choosing by index ------------------------------------------------------------------------------------------


def gather(s: Sketch, x: Wire) -> Wire:
    axis = s.axis(x)
    size = x.shape[axis]
    chosen = s.constant(np.int64(s.below(size))) if s.chance(0.5) else s.numbers(0, s.below(size), s.below(size))
    if s.chance(0.15):  # positions counted from a size
        source = s.other(lambda wire: wire.rank > 0)
        along = s.below(source.rank)
        chosen = s.emit("Sub", [s.size_of(source, along), s.numbers(1)], (1,), "int64")
        require(source.shape[along] <= size)
    at = axis % x.rank
    return s.emit("Gather", [x, chosen], [*x.shape[:at], *chosen.shape, *x.shape[at + 1 :]], axis=axis)


def look_up(s: Sketch, x: Wire) -> Wire:
    table = s.noise(5, 3)
    axis = s.below(2)
    index = s.index(x, table.shape[axis])
    shape = [*table.shape[:axis], *x.shape, *table.shape[axis + 1 :]]
    return s.emit("Gather", [table, index], shape, axis=axis)


def gather_by_rows(s: Sketch, x: Wire) -> Wire:
    """Values choose among values."""
    y = s.other(lambda wire: wire.rank > 0 and wire.dtype == "float32")
    kind = s.below(3)
    if kind == 0:
        axis = s.below(y.rank)
        index = s.index(x, 1 if axis in y.row_axes else y.shape[axis])
        return s.emit("Gather", [y, index], [*y.shape[:axis], *x.shape, *y.shape[axis + 1 :]], "float32", axis=axis)
    require(x.rank == y.rank)
    if kind == 1:
        axis = s.below(y.rank)
        fits = all(a <= b for index, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if index != axis)
        require(fits)
        index = s.index(x, 1 if axis in y.row_axes else y.shape[axis])
        return s.emit("GatherElements", [y, index], x.shape, "float32", axis=axis)
    batch = s.below(2)
    depth = x.shape[-1] if x.rank else 0
    require(0 < depth <= y.rank - batch and x.rank > batch and x.shape[:batch] == y.shape[:batch])
    require(s.opset >= 12)
    index = s.index(x, 1)
    return s.emit("GatherND", [y, index], [*x.shape[:-1], *y.shape[batch + depth :]], "float32", batch_dims=batch)


def scatter(s: Sketch, x: Wire) -> Wire:
    require(x.rank > 0 and x.dtype == "float32")
    if s.chance(0.5):
        axis = s.axis(x)
        update = s.other(lambda wire: wire.shape == x.shape and wire.dtype == "float32")
        index = s.index(
            s.other(lambda wire: wire.shape == x.shape), 1 if axis % x.rank in x.row_axes else x.shape[axis]
        )
        return s.emit("ScatterElements", [x, index, update], x.shape, axis=axis)
    first = x.shape[0] if x.shape[0] % N else 1
    update = s.other(lambda wire: wire.shape == (1, *x.shape[1:]) and wire.dtype == "float32") if first else x
    return s.emit("ScatterND", [x, s.constant(np.array([[s.below(first)]], np.int64)), update], x.shape)


def one_hot(s: Sketch, x: Wire) -> Wire:
    require(x.rank < 4)
    axis = s.below(x.rank + 1)
    index = s.index(x, 3)
    values = s.constant(np.array([0.0, 1.0], np.float32))
    shape = [*x.shape[:axis], 3, *x.shape[axis:]]
    return s.emit("OneHot", [index, s.constant(np.int64(3)), values], shape, "float32", axis=axis)


# ---- sizes as data ----------------------------------------------------------------------------------------------


def size_as_data(s: Sketch, x: Wire) -> Wire:
    """x times, or divided by, a size: right unless it is that of the rows."""
    require(x.dtype == "float32")
    source = s.other(lambda wire: wire.rank > 0)
    calm = [axis for axis in range(source.rank) if axis not in source.row_axes]
    axis = s.one_of(calm) if calm and s.chance(0.6) else s.below(source.rank)
    size = s.size_of(source, axis)
    if s.chance(0.3):
        size = s.emit(s.one_of(("Add", "Max", "Sub")), [size, s.numbers(s.below(4))], (1,), "int64")
    return s.emit(s.one_of(("Mul", "Add")), [x, s.as_float(size)], _broadcast(x, size))


def positions(s: Sketch, x: Wire) -> Wire:
    """Numbers from 0 along a dimension, added."""
    require(x.dtype == "float32" and x.rank > 0)
    axis = s.axis(x) % x.rank
    size = s.size_of(x, axis)
    end = s.with_axes("Squeeze", size, [0], (), since=13)
    numbers = s.emit("Range", [s.constant(np.int64(0)), end, s.constant(np.int64(1))], (x.shape[axis],), "int64")
    y = s.as_float(numbers)
    for _ in range(x.rank - axis - 1):
        y = s.unsqueezed(y, y.rank)
    return s.emit("Add", [x, y], x.shape)


def row_numbers(s: Sketch, x: Wire) -> Wire:
    """One value of each row, chosen with row numbers beside an index, as exporters pool."""
    require(x.rank >= 2 and x.shape[0] == N and x.dtype == "float32" and s.opset >= 12)
    index = s.other(lambda wire: wire.rank == 1 and wire.shape[0] == N)
    end = s.with_axes("Squeeze", s.rows(x), [0], (), since=13)
    numbers = s.emit("Range", [s.constant(np.int64(0)), end, s.constant(np.int64(1))], (N,), "int64")
    columns = [s.unsqueezed(numbers, 1), s.unsqueezed(s.index(index, x.shape[1]), 1)]
    pairs = s.emit("Concat", columns if s.chance(0.8) else columns[::-1], (N, 2), "int64", axis=1)
    return s.emit("GatherND", [x, pairs], (N, *x.shape[2:]))


def constant_of_rows(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32" and x.rank > 0)
    at = s.below(x.rank)
    parts: list[int | Wire] = [1] * x.rank
    parts[at] = s.size_of(x, at)
    shape = [1] * x.rank
    shape[at] = x.shape[at]
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.5])
    filled = s.emit("ConstantOfShape", [_vector(s, parts)], shape, "float32", value=value)
    return s.emit("Add", [x, filled], _broadcast(x, filled))


# ---- quantisation -----------------------------------------------------------------------------------------------


def quantise(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32" and x.rank > 0)
    if s.opset >= 13 and s.chance(0.4):
        axis = s.axis(x) % x.rank
        require(x.shape[axis] % N != 0)
        scale = s.constant((np.abs(s.rng.standard_normal(x.shape[axis])) * 0.05 + 0.01).astype(np.float32))
        zero = s.constant(np.full(x.shape[axis], 128, np.uint8))
        return s.emit("QuantizeLinear", [x, scale, zero], x.shape, "uint8", axis=axis)
    dtype = s.one_of(("uint8", "int8"))
    return s.emit("QuantizeLinear", [x, s.constant(np.float32(0.05)), s.constant(np.zeros((), dtype))], x.shape, dtype)


def dequantise(s: Sketch, x: Wire) -> Wire:
    require(x.dtype in ("uint8", "int8"))
    zero = s.constant(np.zeros((), x.dtype))
    return s.emit("DequantizeLinear", [x, s.constant(np.float32(0.05)), zero], x.shape, "float32")


def quantise_dynamically(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32")
    made = s.emit("DynamicQuantizeLinear", [x], x.shape, "uint8", outputs=3)
    scale, zero = Wire(f"{made.name}_1", ()), Wire(f"{made.name}_2", (), "uint8")
    return s.emit("DequantizeLinear", [made, scale, zero], x.shape, "float32")


def product_of_bytes(s: Sketch, x: Wire) -> Wire:
    require(x.dtype in ("uint8", "int8") and x.rank > 1 and x.shape[-1] % N != 0)
    w = s.constant(s.rng.integers(0, 9, (x.shape[-1], s.size())).astype(np.uint8))
    shape = _product(x.shape, w.shape)
    if s.chance(0.5):
        return s.emit("MatMulInteger", [x, w], shape, "int32")
    require(x.dtype == "uint8")
    scale, zero = s.constant(np.float32(0.05)), s.constant(np.uint8(0))
    return s.emit("QLinearMatMul", [x, scale, zero, w, scale, zero, s.constant(np.float32(1.0)), zero], shape, "uint8")


# ---- operators of other domains ---------------------------------------------------------------------------------


def classical(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32" and x.rank == 2 and x.shape[1] % N != 0)
    rows, width = x.shape
    kind = s.below(5)
    if kind == 0:
        return s.emit("Scaler", [x], x.shape, domain="ai.onnx.ml", offset=[0.5] * width, scale=[2.0] * width)
    if kind == 1:
        return s.emit("Normalizer", [x], x.shape, domain="ai.onnx.ml", norm=s.one_of(("MAX", "L1", "L2")))
    if kind == 2:
        return s.emit(
            "TreeEnsembleRegressor", [x], (rows, 1), domain="ai.onnx.ml", n_targets=1,
            nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[s.below(width), 0, 0],
            nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values=[0.1, 0.0, 0.0], nodes_truenodeids=[1, 0, 0],
            nodes_falsenodeids=[2, 0, 0], target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0],
            target_weights=[0.6, -0.7],
        )  # fmt: skip
    if kind == 3:
        weights = [float(value) for value in s.rng.standard_normal(2 * width)]
        made = s.emit(
            "LinearClassifier", [x], (rows,), "int64", domain="ai.onnx.ml", outputs=2, coefficients=weights,
            intercepts=[0.1, -0.1], classlabels_ints=[0, 1], post_transform="SOFTMAX",
        )  # fmt: skip
        return Wire(f"{made.name}_1", (rows, 2)) if s.chance(0.5) else made
    chosen = s.numbers(*(s.below(width) for _ in range(2)))
    return s.emit("ArrayFeatureExtractor", [x, chosen], (rows, 2), domain="ai.onnx.ml")


def fused(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32" and x.rank > 1)
    kind = s.below(3)
    if kind == 0:
        require(x.shape[-1] % N != 0)
        return s.emit("BiasGelu", [x, s.noise(x.shape[-1])], x.shape, domain="com.microsoft")
    if kind == 1:
        require(x.rank in (2, 3) and x.shape[-1] % N != 0)
        y = s.other(lambda wire: wire.shape == x.shape and wire.dtype == "float32")
        return s.emit("SkipLayerNormalization", [x, y, s.noise(x.shape[-1])], x.shape, domain="com.microsoft")
    y = s.other(lambda wire: wire.dtype == "float32" and wire.rank == x.rank)
    turned = [*y.shape[:-2], y.shape[-1], y.shape[-2]]
    return s.emit("FusedMatMul", [x, y], _product(x.shape, turned), domain="com.microsoft", transB=1, alpha=0.5)


# ---- what onnxruntime makes one operator of ---------------------------------------------------------------------


def _scalar(s: Sketch, operator: str, x: Wire, value: float) -> Wire:
    return s.emit(operator, [x, s.constant(np.float32(value))], x.shape)


def gelu_in_parts(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32")
    curve = s.emit("Erf", [_scalar(s, "Div", x, 2**0.5)], x.shape)
    return _scalar(s, "Mul", s.emit("Mul", [x, _scalar(s, "Add", curve, 1.0)], x.shape), 0.5)


def layer_norm_in_parts(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32" and x.rank > 1 and x.shape[-1] % N != 0)
    narrow = [*x.shape[:-1], 1]
    mean = s.with_axes("ReduceMean", x, [-1], narrow, since=18)
    off = s.emit("Sub", [x, mean], x.shape)
    variance = s.with_axes("ReduceMean", _scalar(s, "Pow", off, 2.0), [-1], narrow, since=18)
    spread = s.emit("Sqrt", [_scalar(s, "Add", variance, 1e-5)], narrow)
    scaled = s.emit("Mul", [s.emit("Div", [off, spread], x.shape), s.noise(x.shape[-1])], x.shape)
    return s.emit("Add", [scaled, s.noise(x.shape[-1])], x.shape)


def dense(s: Sketch, x: Wire) -> Wire:
    """A product, a bias, an activation; at times between quantised values."""
    require(x.dtype == "float32" and x.rank > 1 and x.shape[-1] % N != 0)
    w = s.noise(x.shape[-1], s.size())
    if s.opset >= 13 and s.chance(0.3):
        scale, zero = s.constant(np.float32(0.05)), s.constant(np.int8(0))

        def rounded(wire: Wire) -> Wire:
            return s.emit(
                "DequantizeLinear",
                [s.emit("QuantizeLinear", [wire, scale, zero], wire.shape, "int8"), scale, zero],
                wire.shape,
                "float32",
            )

        return rounded(s.emit("MatMul", [rounded(x), rounded(w)], (*x.shape[:-1], w.shape[1])))
    made = s.emit("MatMul", [x, w], (*x.shape[:-1], w.shape[1]))
    made = s.emit("Add", [made, s.noise(w.shape[1])], made.shape)
    return s.emit(s.one_of(("Relu", "Tanh", "Sigmoid")), [made], made.shape)


def convolution_block(s: Sketch, x: Wire) -> Wire:
    made = convolve(s, x)
    c = made.shape[1]
    parameters = [s.noise(c), s.noise(c), s.noise(c), s.constant(np.abs(s.rng.standard_normal(c)).astype(np.float32))]
    made = s.emit("BatchNormalization", [made, *parameters], made.shape)
    if made.shape == x.shape and s.chance(0.6):
        made = s.emit("Add", [made, x], x.shape)
    return s.emit("Relu", [made], made.shape)


def attention_in_parts(s: Sketch, x: Wire) -> Wire:
    """Heads are made by a reshape to counted sizes or to 0 and -1, products are scaled, added up with a mask."""
    require(x.rank == 3 and x.dtype == "float32" and x.shape[2] in (2, 4, 16, 64) and len(x.row_axes) == 1)
    n, steps, width = x.shape
    heads = 2

    def apart(wire: Wire) -> Wire:
        target: list[int | Wire] = [0, 0, heads, width // heads]
        if s.chance(0.5):
            target = [s.size_of(wire, 0), -1, heads, width // heads]
        split = s.emit("Reshape", [wire, _vector(s, target)], (n, steps, heads, width // heads))
        return s.emit("Transpose", [split], (n, heads, steps, width // heads), perm=[0, 2, 1, 3])

    queries, keys, values = (
        apart(s.emit("Add", [s.emit("MatMul", [x, s.noise(width, width)], x.shape), s.noise(width)], x.shape))
        for _ in range(3)
    )
    turned = s.emit("Transpose", [keys], (n, heads, width // heads, steps), perm=[0, 1, 3, 2])
    products = _scalar(s, "Div", s.emit("MatMul", [queries, turned], (n, heads, steps, steps)), 1.5)
    if s.chance(0.4):
        mask = s.other(lambda wire: wire.shape in ((n, steps), (n, 1, 1, steps)) and wire.dtype == "float32")
        if mask.rank == 2:
            mask = s.unsqueezed(s.unsqueezed(mask, 1), 2)
        products = s.emit("Add", [products, mask], products.shape)
    shares = s.emit("Softmax", [products], products.shape, axis=3)
    joined = s.emit("MatMul", [shares, values], queries.shape)
    turned = s.emit("Transpose", [joined], (n, steps, heads, width // heads), perm=[0, 2, 1, 3])
    target: list[int | Wire] = [0, 0, width] if s.chance(0.5) else [s.size_of(x, 0), s.size_of(x, 1), width]
    return s.emit("Reshape", [turned, _vector(s, target)], x.shape)


# ---- control flow -----------------------------------------------------------------------------------------------


def _body(
    s: Sketch, inputs: Sequence[Wire], make: Callable[[Sketch], Sequence[Wire]], declared: Sequence[Any] = ()
) -> onnx.GraphProto:
    """A subgraph; it may use everything around it."""
    inner = Sketch(
        s.rng, s.opset, s.is_large, constants=s.constants, functions=s.functions, wires=list(s.wires), counter=s.counter
    )
    inner.wires += inputs
    outputs = make(inner)
    given = [helper.make_tensor_value_info(wire.name, _TYPES[wire.dtype], None) for wire in inputs]
    made = [helper.make_tensor_value_info(wire.name, _TYPES[wire.dtype], None) for wire in outputs]
    return helper.make_graph(inner.nodes, s.name(), given, made)


def branch(s: Sketch, x: Wire) -> Wire:
    """If, on a constant, on a size, or on values."""
    require(x.dtype == "float32")
    kind = s.below(3)
    if kind == 0:
        condition = s.constant(np.bool_(s.chance(0.5)))
    elif kind == 1:
        source = s.other(lambda wire: wire.rank > 0)
        calm = [axis for axis in range(source.rank) if axis not in source.row_axes]
        axis = s.one_of(calm) if calm and s.chance(0.7) else s.below(source.rank)
        size = s.with_axes("Squeeze", s.size_of(source, axis), [0], (), since=13)
        condition = s.emit("Greater", [size, s.constant(np.int64(2))], (), "bool")
    else:
        largest = s.emit("ReduceMax", [x], (), keepdims=0)
        condition = s.emit("Greater", [largest, s.constant(np.float32(1))], (), "bool")

    def then(inner: Sketch) -> list[Wire]:
        return [inner.emit("Neg", [x], x.shape)]

    def otherwise(inner: Sketch) -> list[Wire]:
        for _ in range(4):
            step = inner.one_of((unary, with_constant, cumulate, softmax, transpose, layer_norm))
            try:
                made = step(inner, x)
            except Unfit:
                continue
            if made.shape == x.shape and made.dtype == x.dtype:
                return [made]
        return [inner.emit("Identity", [x], x.shape)]

    bodies = {"then_branch": _body(s, [], then), "else_branch": _body(s, [], otherwise)}
    return s.emit("If", [condition], x.shape, x.dtype, **bodies)


def loop(s: Sketch, x: Wire) -> Wire:
    """A fixed number of turns, as many as a size says, or until values say stop."""
    require(x.dtype == "float32" and x.rank > 0)
    kind = s.below(4)
    if kind <= 1:
        turns = s.constant(np.int64(3))
    else:
        axis = s.axis(x) % x.rank
        turns = s.with_axes("Squeeze", s.size_of(x, axis), [0], (), since=13)
    state = Wire(s.name(), x.shape)
    turn, goes_on = Wire(s.name(), (), "int64"), Wire(s.name(), (), "bool")

    def make(inner: Sketch) -> list[Wire]:
        made = inner.emit("Mul", [state, inner.constant(np.float32(0.5))], x.shape)
        for _ in range(3):
            step = inner.one_of((unary, with_constant, cumulate, softmax, transpose, matmul_constant, reduce, slice_))
            try:
                found = step(inner, made)
            except Unfit:
                continue
            if found.shape == x.shape and found.dtype == x.dtype:
                made = found
        if kind == 1:
            largest = inner.emit("ReduceMax", [made], (), keepdims=0)
            condition = inner.emit("Greater", [largest, inner.constant(np.float32(0.3))], (), "bool")
        else:
            condition = inner.emit("Identity", [goes_on], (), "bool")
        if inner.chance(0.3):
            column = inner.emit("Gather", [x, turn], x.shape[1:], axis=0)
            made = inner.emit("Add", [made, column], _broadcast(made, column))
            require(made.shape == x.shape)
        return [condition, made, inner.emit("Identity", [made], made.shape)]

    body = _body(s, [turn, goes_on, state], make)
    made = s.emit("Loop", [turns, s.constant(np.bool_(True)), x], x.shape, "float32", outputs=2, body=body)
    count = 3 if kind <= 1 else x.shape[axis]
    return Wire(f"{made.name}_1", (count, *x.shape)) if s.chance(0.3) and kind != 1 else made


def scan(s: Sketch, x: Wire) -> Wire:
    require(x.dtype == "float32" and x.rank > 1)
    axis = s.axis(x) % x.rank
    rest = (*x.shape[:axis], *x.shape[axis + 1 :])
    start = s.with_axes("ReduceSum", x, [axis], rest, since=13, keepdims=0)
    start = s.emit("Mul", [start, s.constant(np.float32(0))], rest)
    state, element = Wire(s.name(), rest), Wire(s.name(), rest)

    def make(inner: Sketch) -> list[Wire]:
        total = inner.emit("Add", [state, element], rest)
        made = inner.emit("Tanh", [total], rest)
        return [made, inner.emit("Identity", [made], rest)]

    body = _body(s, [state, element], make)
    out = s.below(len(rest) + 1)
    made = s.emit(
        "Scan", [start, x], rest, "float32", outputs=2, body=body, num_scan_inputs=1, scan_input_axes=[axis],
        scan_output_axes=[out],
    )  # fmt: skip
    shape = (*rest[:out], x.shape[axis], *rest[out:])
    return Wire(f"{made.name}_1", shape) if s.chance(0.6) else made


def call(s: Sketch, x: Wire) -> Wire:
    """A function of the model, with an attribute that the call gives."""
    require(x.dtype == "float32" and x.rank > 0 and s.opset >= 13)
    name = s.name()
    function = helper.make_function(
        "own", name, ["a"], ["c"],
        [helper.make_node("Softmax", ["a"], ["b"]), helper.make_node("Add", ["a", "b"], ["c"])],
        [helper.make_opsetid("", s.one_of((13, s.opset)))], ["axis"],
    )  # fmt: skip
    reference = onnx.AttributeProto(name="axis", ref_attr_name="axis", type=onnx.AttributeProto.INT)
    function.node[0].attribute.append(reference)
    s.functions.append(function)
    return s.emit(name, [x], x.shape, domain="own", axis=s.axis(x))


def through_sequence(s: Sketch, x: Wire) -> Wire:
    require(x.rank > 0 and x.dtype == "float32")
    if s.chance(0.5):
        axis = s.axis(x) % x.rank
        keep = s.below(2)
        parts = s.emit("SplitToSequence", [x], x.shape, axis=axis, keepdims=keep)
        shape = [*x.shape[:axis], *([1] if keep else []), *x.shape[axis + 1 :]]
        if s.chance(0.4):
            return s.emit("SequenceAt", [parts, s.constant(np.int64(0))], shape, x.dtype)
        if keep:
            return s.emit("ConcatFromSequence", [parts], x.shape, x.dtype, axis=axis)
        return s.emit(
            "ConcatFromSequence", [parts], [*shape[:axis], x.shape[axis], *shape[axis:]], x.dtype, axis=axis, new_axis=1
        )
    y = s.other(lambda wire: wire.shape == x.shape and wire.dtype == x.dtype)
    both = s.emit("SequenceConstruct", [x, y], x.shape)
    axis = s.axis(x) % x.rank
    shape = list(x.shape)
    shape[axis] *= 2
    return s.emit("ConcatFromSequence", [both], shape, x.dtype, axis=axis)


def unruly(s: Sketch, x: Wire) -> Wire:
    """What depends on all values: the size of its result too."""
    require(x.dtype == "float32")
    kind = s.below(3)
    if kind == 0:
        return s.emit("NonZero", [x], (x.rank, math.prod(x.shape)), "int64")
    if kind == 1:
        return s.emit("Unique", [x], (math.prod(x.shape),))
    require(x.rank > 0)
    axis = s.axis(x)
    condition = s.constant(s.rng.random(x.shape[axis] if x.shape[axis] % N else 2) < 0.7)
    shape = list(x.shape)
    shape[axis] = int(numpy_helper.to_array(s.constants[-1]).sum())
    return s.emit("Compress", [x, condition], shape, axis=axis)


STEPS: Final[Mapping[Step, int]] = {
    transpose: 4, reshape: 6, reshape_blindly: 1, flatten: 2, squeeze: 2, unsqueeze: 3, expand: 2, tile: 1, concat: 3,
    split: 2, slice_: 3, pad: 1, depth_to_space: 1, resize: 1, trilu: 1,
    unary: 3, binary: 4, with_constant: 3, compare: 1, where: 2, logic: 1, cast: 2, to_whole: 1, prelu: 1,
    matmul: 4, matmul_constant: 4, gemm: 2, einsum: 2,
    reduce: 4, arg_extreme: 1, softmax: 3, cumulate: 2, top: 1, layer_norm: 2, batch_norm: 1, other_norm: 1,
    convolve: 2, convolve_back: 1, pool: 1, recur: 1, reverse: 1,
    gather: 3, look_up: 2, gather_by_rows: 3, scatter: 2, one_hot: 1,
    size_as_data: 2, positions: 2, row_numbers: 1, constant_of_rows: 1,
    quantise: 2, dequantise: 3, quantise_dynamically: 1, product_of_bytes: 2,
    gelu_in_parts: 1, layer_norm_in_parts: 2, dense: 2, convolution_block: 2, attention_in_parts: 2,
    classical: 2, fused: 2, branch: 1, loop: 2, scan: 2, call: 1, through_sequence: 2, unruly: 1,
}  # fmt: skip
"""What a graph is made of, with how often."""
_CHOICES: Final[list[Step]] = [step for step, weight in STEPS.items() for _ in range(weight)]


def random_case(seed: int) -> Case:
    """The graph of a seed, which is the same each time."""
    rng = np.random.default_rng(seed)
    opset = int(rng.choice(OPSETS))
    if opset == OPSETS[-1] and seed % 2:
        opset = NEWEST
    s = Sketch(rng, opset, bool(rng.random() < 0.15))
    trailing = tuple(s.size() for _ in range(s.below(4)))
    inputs = [Wire("x", (N, *trailing), str(s.one_of(("float32",) * 6 + ("float64", "float16"))))]
    if s.chance(0.5):
        shape = trailing if s.chance(0.6) else tuple(s.size() for _ in range(s.below(3)))
        inputs.append(Wire("y", (N, *shape), inputs[0].dtype if s.chance(0.8) else "int64"))
    s.wires += inputs
    _walk(s, s.below(9, 2))
    if s.chance(0.8):
        _bring_rows_first(s)
    outputs = [s.wires[-1]]
    if s.chance(0.2):
        outputs.append(
            s.other(lambda wire: wire not in inputs and wire != outputs[0])
            if len(s.wires) > len(inputs) + 1
            else outputs[0]
        )
    is_free = s.chance(0.5)
    return Case(f"random graph {seed}", _model(s, inputs, outputs, is_free), _draw_of(inputs, is_free))


def _walk(s: Sketch, steps: int) -> None:
    """Add so many operators, mostly to the value made last."""
    added = 0
    for _ in range(20 * steps):
        x = s.wires[-1] if s.chance(0.75) else s.other()
        kept = len(s.nodes), len(s.constants), len(s.functions)
        try:
            made = s.one_of(_CHOICES)(s, x)
        except (Unfit, IndexError):
            del s.nodes[kept[0] :], s.constants[kept[1] :], s.functions[kept[2] :]
            continue
        s.wires.append(made)
        added += 1
        if added == steps:
            return


def _bring_rows_first(s: Sketch) -> None:
    """Let the value made last be one whose rows are dimension 0, where that takes a step or none."""
    x = s.wires[-1]
    if len(x.row_axes) == 1 and x.shape[x.row_axes[0]] == N:
        axis = x.row_axes[0]
        order = [axis, *(index for index in range(x.rank) if index != axis)]
        kept = len(s.nodes)
        try:
            if axis:
                s.wires.append(s.emit("Transpose", [x], [x.shape[index] for index in order], perm=order))
            return
        except Unfit:  # as any operator that does not fit
            del s.nodes[kept:]
    found = [wire for wire in s.wires if wire.shape[:1] == (N,) and len(wire.row_axes) == 1]
    s.wires.append(found[-1])


def _model(s: Sketch, inputs: Sequence[Wire], outputs: Sequence[Wire], is_free: bool) -> onnx.ModelProto:
    declared = [
        helper.make_tensor_value_info(
            wire.name, _TYPES[wire.dtype], ["N", *(None if is_free else size for size in wire.shape[1:])]
        )
        for wire in inputs
    ]
    names = list(dict.fromkeys(wire.name for wire in outputs))
    graph = helper.make_graph(s.nodes, "g", declared, [onnx.ValueInfoProto(name=name) for name in names], s.constants)
    if s.chance(0.8):
        prune(graph)
    opsets = [("", s.opset), ("ai.onnx.ml", 3), ("com.microsoft", 1), ("own", 1)]
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets], ir_version=9, functions=s.functions
    )


def prune(graph: onnx.GraphProto) -> None:
    """Remove nodes and constants that nothing is made of."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.isdisjoint(node.output):
            continue
        kept.append(node)
        needed |= names_used(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def names_used(node: onnx.NodeProto) -> set[str]:
    """Names of values that a node takes, its subgraphs' too."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            names |= names_used(inner)
        names |= {output.name for output in attribute.g.output}
    return names


def _draw_of(inputs: Sequence[Wire], is_free: bool) -> Callable[[np.random.Generator], Batch]:
    """Requests of the sizes that the graph was made for; where sizes are free, of others in every second batch."""

    def draw(rng: np.random.Generator) -> Batch:
        shapes = {wire.name: wire.shape[1:] for wire in inputs}
        if is_free and rng.random() < 0.5:
            others = rng.integers(1, 6, 1 + max(_LARGE))
            alike = rng.random() < 0.8  # what was as long as something else stays so
            shapes = {
                name: tuple(int(others[size]) if alike else int(rng.integers(1, 4)) for size in shape)
                for name, shape in shapes.items()
            }
        return [
            {wire.name: drawn(rng, (rows, *shapes[wire.name]), np.dtype(wire.dtype)) for wire in inputs}
            for rows in row_counts(rng)
        ]

    return draw
