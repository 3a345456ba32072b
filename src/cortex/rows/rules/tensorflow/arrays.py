"""TensorFlow's shapes, layouts and indices."""

from __future__ import annotations

from typing import Final

from cortex.rows.refusal import refuse
from cortex.rows.rules.elementwise import held
from cortex.rows.rules.indexing import bounds_of, concatenated, cut, gathered, padded, parts
from cortex.rows.rules.layout import expanded, inserted, removed, reshaped, tiled, transposed
from cortex.rows.rules.registry import (
    CHOOSES,
    COUNTED,
    RULES,
    Op,
    axis_of,
    dims_of,
    elements_of,
    like,
    must_be_constant,
    numbers_of,
)
from cortex.rows.rules.tensorflow.registry import rule
from cortex.rows.sizes import Dim, Term, counts_rows, divided, is_number, product
from cortex.rows.values import NUMBERS, Kind, Value, element_count, filled, known, rows, scalar, uniform, vector
from cortex.wire.graphs import MAX_ELEMENTS

_ANY_ROWS: Final = NUMBERS | {Kind.ROW_INDICES}
_TO_THE_END: Final = 2**31 - 1
_FROM_THE_START: Final = -(2**31)


# ---- constants and shapes -------------------------------------------------------------------------------------------


@rule("Const", when_uniform=False)
def constant(call: Op) -> Value:
    tensor = call.tensor("value")
    if tensor is None:
        refuse("its value is not known")
    return Value(Kind.UNIFORM, tensor.shape, elements=tensor.elements, dtype=tensor.dtype)


@rule("Shape", takes=_ANY_ROWS, takes_counts=True)
def shape_of(call: Op) -> Value:
    return _shape_of(call, call.x)


@rule("ShapeN", takes=_ANY_ROWS, takes_counts=True)
def shapes_of(call: Op) -> list[Value]:
    return [_shape_of(call, value) for value in call.given]


def _shape_of(call: Op, value: Value) -> Value:
    dtype = call.text("out_type", "int32")
    return vector([held(call, dim, dtype) for dim in value.known_shape], dtype)


@rule("Size", takes=_ANY_ROWS, takes_counts=True)
def size(call: Op) -> Value:
    dtype = call.text("out_type", "int32")
    return scalar(held(call, product(call.x.known_shape), dtype), dtype)


@rule("Rank", takes=_ANY_ROWS, takes_counts=True)
def rank(call: Op) -> Value:
    return scalar(call.x.rank, "int32")


@rule("Fill", takes_counts=True)
def fill(call: Op) -> Value:
    shape, value = dims_of(call.value(0), "the shape"), call.value(1)
    must_be_constant(value)
    with_rows = [index for index, dim in enumerate(shape) if counts_rows(dim)]
    if with_rows:
        return filled(shape, with_rows[0], value.dtype)
    count = element_count(tuple(shape))
    if value.elements is not None and count is not None and count <= MAX_ELEMENTS:
        return Value(Kind.UNIFORM, tuple(shape), elements=value.elements * count, dtype=value.dtype)
    return uniform(shape, value.dtype)


rule("Range", takes_counts=True, keeps_bounds=True)(RULES["", "Range"].function)


@rule("LinSpace")
def lin_space(call: Op) -> Value:
    must_be_constant(*call.inputs)
    count = call.value(2).elements
    return uniform((count[0] if count and is_number(count[0]) else call.fresh(),), call.x.dtype)  # type: ignore[arg-type]


@rule("BroadcastArgs", takes_counts=True)
def broadcast_args(call: Op) -> Value:
    """The shape that two shapes come to."""
    a, b = dims_of(call.value(0), "a shape"), dims_of(call.value(1), "a shape")
    longest = max(len(a), len(b))
    ones: list[Dim] = [1] * longest
    padded_a, padded_b = (ones + a)[-longest:], (ones + b)[-longest:]
    return vector(
        [
            p if q in (1, p) else q if p == 1 else refuse("sizes that differ")
            for p, q in zip(padded_a, padded_b, strict=True)
        ],
        call.x.dtype,
    )


@rule("InvertPermutation")
def inverted(call: Op) -> Value:
    order = numbers_of(call.x, "the order")
    return vector([order.index(place) for place in range(len(order))], call.x.dtype)


# ---- layout ---------------------------------------------------------------------------------------------------------


@rule("Reshape", takes=NUMBERS, takes_counts=True, keeps_bounds=True)
def reshape(call: Op) -> Value:
    return reshaped(call, call.x, dims_of(call.value(1), "the new shape"), zero_copies=False)


@rule("ExpandDims", takes=NUMBERS, takes_counts=True, keeps_bounds=True)
def expand_dims(call: Op) -> Value:
    return inserted(call.x, numbers_of(call.value(1), "the axis"))


@rule("Squeeze", takes=NUMBERS, takes_counts=True, keeps_bounds=True)
def squeeze(call: Op) -> Value:
    axes = call.integers("squeeze_dims", [])
    if axes:
        return removed(call.x, axes)
    if not call.x.is_uniform:
        refuse("drops each dimension of size 1, the rows too when there is one")
    if not all(isinstance(dim, int) for dim in call.x.known_shape):
        if call.x.counts_rows:
            refuse(COUNTED)
        return uniform(dtype=call.x.dtype)
    return removed(call.x, [index for index, dim in enumerate(call.x.known_shape) if dim == 1])


@rule("Transpose", takes=NUMBERS, takes_counts=True, keeps_bounds=True)
def transpose(call: Op) -> Value:
    order = numbers_of(call.value(1), "the order")
    return transposed(call.x, [axis_of(axis, call.x.rank) for axis in order])


@rule("BroadcastTo", takes=NUMBERS, takes_counts=True, keeps_bounds=True)
def broadcast_to(call: Op) -> Value:
    return expanded(call, call.x, dims_of(call.value(1), "the new shape"))


@rule("Tile", takes=NUMBERS, takes_counts=True, keeps_bounds=True)
def tile(call: Op) -> Value:
    return tiled(call, call.x, dims_of(call.value(1), "repeats"))


@rule("Pack", takes={Kind.PLACES}, takes_counts=True)
def pack(call: Op) -> Value:
    values = call.given
    if not values:
        refuse("there are no operands")
    axis = axis_of(call.integer("axis", 0), values[0].rank + 1)
    return concatenated(call, [inserted(value, [axis]) for value in values], axis)


@rule("Unpack", takes_counts=True)
def unpack(call: Op) -> list[Value]:
    axis = axis_of(call.integer("axis", 0), call.x.rank)
    return [removed(part, [axis]) for part in parts(call, call.x, axis, [1] * call.integer("num"))]


@rule("ConcatV2", takes={Kind.PLACES}, takes_counts=True)
def concat(call: Op) -> Value:
    *values, axis = call.given
    return concatenated(call, values, *numbers_of(axis, "the axis"))


@rule("Concat", takes={Kind.PLACES}, takes_counts=True)
def concat_of_old(call: Op) -> Value:
    axis, *values = call.given
    return concatenated(call, values, *numbers_of(axis, "the axis"))


@rule("Split", takes_counts=True)
def split(call: Op) -> list[Value]:
    (axis,), x = numbers_of(call.value(0), "the axis"), call.value(1)
    count = call.integer("num_split")
    axis = _not_rows(x, axis, "splits the rows")
    part = divided(x.known_shape[axis], count)
    return parts(call, x, axis, [part if part is not None else call.fresh()] * count)


@rule("SplitV", takes_counts=True)
def split_by(call: Op) -> list[Value]:
    x, (axis,) = call.value(0), numbers_of(call.value(2), "the axis")
    axis = _not_rows(x, axis, "splits the rows")
    sizes = dims_of(call.value(1), "the sizes")
    if any(map(counts_rows, sizes)):
        refuse(COUNTED)
    if -1 in sizes:  # what is left
        total, others = x.known_shape[axis], [one for one in sizes if one != -1]
        known_sizes = [one for one in (total, *others) if isinstance(one, int)]
        exact = len(known_sizes) == len(sizes) and isinstance(total, int)
        left: Dim = total - sum(known_sizes[1:]) if exact and isinstance(total, int) else call.fresh()
        sizes = [left if one == -1 else one for one in sizes]
    return parts(call, x, axis, [one if isinstance(one, int) and one >= 0 else call.fresh() for one in sizes])


def _not_rows(value: Value, axis: int, reason: str) -> int:
    found = axis_of(axis, value.rank)
    return refuse(reason) if value.is_rows and found == value.axis else found


# ---- cut ------------------------------------------------------------------------------------------------------------


@rule("Slice", takes_counts=True)
def slice_(call: Op) -> Value:
    starts, sizes = bounds_of(call, call.value(1)), bounds_of(call, call.value(2))
    x = call.x
    if len(starts) != x.rank or len(sizes) != x.rank:
        refuse("another number of bounds than dimensions")
    ends = [
        _end(call, start, size, x.known_shape[axis])
        for axis, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]
    return cut(call, x, range(x.rank), starts, ends, [1] * x.rank)


def _end(call: Op, start: Dim, size: Dim, whole: Dim) -> Dim:
    if size == -1:
        return _TO_THE_END
    if start == 0:
        return size
    if isinstance(start, int) and isinstance(size, int):
        return start + size
    return call.formula("end of a slice", start, size)


@rule("StridedSlice", takes=NUMBERS, takes_counts=True)
def strided_slice(call: Op) -> Value:
    """
    `x[begin:end:stride, …]`: masks say where a bound is left out, an index takes one, or a dimension comes new.

    Source: TensorFlow, "StridedSlice": an ellipsis stands for all dimensions that nothing else is said about.
    """
    x = call.x
    begins, ends, strides = (bounds_of(call, call.value(index)) for index in (1, 2, 3))
    begin_mask, end_mask = call.integer("begin_mask", 0), call.integer("end_mask", 0)
    new_mask, one_mask = call.integer("new_axis_mask", 0), call.integer("shrink_axis_mask", 0)
    ellipsis = call.integer("ellipsis_mask", 0)
    count = len(begins)
    if not count == len(ends) == len(strides):
        refuse("bounds of different number")
    named = sum(not (ellipsis >> at & 1 or new_mask >> at & 1) for at in range(count))
    if ellipsis & (ellipsis - 1) or named > x.rank:
        refuse("more bounds than dimensions")
    found, axis, ones = x, 0, []
    for at in range(count):
        if ellipsis >> at & 1:
            axis += x.rank - named
        elif new_mask >> at & 1:
            found = inserted(found, [axis])
            axis += 1
        else:
            if one_mask >> at & 1:
                found = _one(call, found, axis, begins[at])
                ones.append(axis)
            else:
                begin = None if begin_mask >> at & 1 else begins[at]
                end = None if end_mask >> at & 1 else ends[at]
                found = _between(call, found, axis, begin, end, strides[at])
            axis += 1
    return removed(found, ones) if ones else found


def _one(call: Op, value: Value, axis: int, index: Dim) -> Value:
    """The element of this index, with a dimension of size 1, which is removed afterwards: never that of the rows."""
    if counts_rows(index):
        refuse("the number of rows used as an index")
    if value.elements is not None and isinstance(index, int):
        place = axis_of(index, value.array().shape[axis])
        return known(value.array().take([place], axis=axis), value.dtype)
    if value.counts_rows:
        refuse(COUNTED)
    shape = list(value.known_shape)
    shape[axis] = 1
    return like(value, shape, value.axis)


def _between(call: Op, value: Value, axis: int, begin: Dim | None, end: Dim | None, stride: Dim) -> Value:
    if begin is None and end is None and stride == -1 and value.elements is None:  # turned round
        if not value.is_uniform and axis == value.axis:
            refuse("turns the order of the rows round")
        return value
    backwards = isinstance(stride, int) and stride < 0
    if not isinstance(stride, int) and (begin is None or end is None):
        refuse("a stride that is not known")
    start = begin if begin is not None else _TO_THE_END if backwards else 0
    stop = end if end is not None else _FROM_THE_START if backwards else _TO_THE_END
    return cut(call, value, [axis], [start], [stop], [stride])


@rule("ReverseV2")
def reverse(call: Op) -> Value:
    x = call.x
    for axis in numbers_of(call.value(1), "the axes"):
        _not_rows(x, axis, "turns the order of the rows round")
    return like(x, x.known_shape, x.axis)


@rule("ReverseSequence")
def reverse_sequence(call: Op) -> Value:
    x, lengths = call.value(0), call.value(1)
    batch, along = axis_of(call.integer("batch_dim", 0), x.rank), axis_of(call.integer("seq_dim"), x.rank)
    if not x.is_rows:
        refuse("lengths of no rows")
    if along == x.axis:
        refuse("turns the order of the rows round")
    if batch != x.axis:
        must_be_constant(lengths)
    elif not lengths.is_rows or lengths.layout != x.layout:
        refuse("one length for all rows")
    return x


# ---- chosen by index ------------------------------------------------------------------------------------------------


@rule("Gather", takes={Kind.PLACES}, takes_counts=True)
def gather(call: Op) -> Value:
    return gathered_in_batches(call, call.value(0), call.value(1), 0, 0)


@rule("GatherV2", takes={Kind.PLACES}, takes_counts=True)
def gather_along(call: Op) -> Value:
    (axis,) = numbers_of(call.value(2), "the axis")
    return gathered_in_batches(call, call.value(0), call.value(1), axis, call.integer("batch_dims", 0))


def gathered_in_batches(call: Op, data: Value, index: Value, axis: int, batch_dims: int) -> Value:
    """
    As `gathered`; the first `batch_dims` dimensions of both go side by side.

    Raises:
        NotProved: rows would choose among other rows.
    """
    if not batch_dims:
        return gathered(data, index, axis)
    batch_dims = axis_of(batch_dims, index.rank + 1)
    axis = axis_of(axis, data.rank)
    if not data.is_rows or not index.is_rows:
        refuse("only one of data and index has rows")
    if data.axis != index.axis or data.axis >= batch_dims or data.layout != index.layout or axis < batch_dims:
        refuse(CHOOSES)
    shape = [*data.known_shape[:axis], *index.known_shape[batch_dims:], *data.known_shape[axis + 1 :]]
    return data.moved(shape, data.axis)


rule("GatherNd", takes={Kind.ROW_INDICES})(RULES["", "GatherND"].function)


@rule("OneHot")
def one_hot(call: Op) -> Value:
    x, depth = call.value(0), call.value(1)
    must_be_constant(*call.inputs[1:])
    axis = axis_of(call.integer("axis", -1), x.rank + 1)
    shape = list(x.known_shape)
    found = elements_of(depth, "the depth")[0] if depth.elements else None
    shape.insert(
        axis, found if isinstance(found, Term) or (isinstance(found, int) and is_number(found)) else call.fresh()
    )
    return like(x, shape, x.axis + (axis <= x.axis)).typed(call.value(2).dtype)


# ---- filled up, and triangles ---------------------------------------------------------------------------------------


@rule("Pad", "PadV2", "MirrorPad")
def pad(call: Op) -> Value:
    x, amounts = call.value(0), call.value(1)
    must_be_constant(*call.inputs[1:])
    found = dims_of(amounts, "how much is filled up")
    if len(found) != 2 * x.rank:
        refuse("another number of pads than dimensions")
    return padded(call, x, [(axis, found[2 * axis], found[2 * axis + 1]) for axis in range(x.rank)])


@rule("MatrixBandPart")
def band(call: Op) -> Value:
    must_be_constant(*call.inputs[1:])
    return _by_matrix(call.x)


def _by_matrix(x: Value) -> Value:
    if x.is_rows and x.axis >= x.rank - 2:
        refuse("a triangle over rows")
    return like(x, x.known_shape, x.axis)


# ---- pictures in other shapes ---------------------------------------------------------------------------------------


@rule("SpaceToBatchND", "BatchToSpaceND")
def space_and_batch(call: Op) -> Value:
    """
    Pieces of pictures as pictures of their own, before the rows, and back.

    Source: TensorFlow, "SpaceToBatchND": the place within a block comes before the batch in dimension 0.
    """
    x, block, amounts = call.value(0), numbers_of(call.value(1), "the blocks"), dims_of(call.value(2), "the margins")
    if not x.is_rows or x.axis != 0:
        refuse("rows are not dimension 0")
    count = product(block)
    spatial = []
    for at, size in enumerate(block):
        dim, before, after = x.known_shape[1 + at], amounts[2 * at], amounts[2 * at + 1]
        spatial.append(call.formula(call.operator, dim, size, before, after, least=0))
    rest = x.known_shape[1 + len(block) :]
    if call.operator == "SpaceToBatchND":
        before_rows = product([count, x.before])
    else:
        found = divided(x.before, count)
        before_rows = found if found is not None else refuse("its blocks are not before the rows")
    whole = product([before_rows, _rows_of(x), x.after])
    return rows([whole, *spatial, *rest], 0, before=before_rows, after=x.after, dtype=x.dtype)


def _rows_of(x: Value) -> Dim:
    found = divided(x.known_shape[x.axis], product([x.before, x.after]))
    return found if found is not None else refuse("the number of rows in a formula")


@rule("DepthToSpace", "SpaceToDepth")
def depth_and_space(call: Op) -> Value:
    x, block = call.x, call.integer("block_size")
    if call.text("data_format", "NHWC") != "NHWC":
        refuse("channels first")
    if not x.is_rows or x.axis != 0 or x.rank != 4:
        refuse("rows are not dimension 0")
    n, height, width, depth = x.known_shape

    def smaller(dim: Dim, by: int) -> Dim:
        found = divided(dim, by)
        return found if found is not None else call.fresh()

    if call.operator == "DepthToSpace":
        return x.moved([n, product([height, block]), product([width, block]), smaller(depth, block * block)], 0)
    return x.moved([n, smaller(height, block), smaller(width, block), product([depth, block * block])], 0)
