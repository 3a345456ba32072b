"""Values chosen by index, cut, joined or filled up: along any dimension but the rows'."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cortex.rows.refusal import refuse
from cortex.rows.rules.layout import reshaped
from cortex.rows.rules.registry import (
    CHOOSES,
    COUNTED,
    Op,
    Rounds,
    axis_of,
    dims_of,
    elements_of,
    like,
    must_be_constant,
    numbers_of,
    rule,
)
from cortex.rows.sizes import LONGEST, Dim, Term, counts_rows, magnitude, product, suppose_at_most, suppose_within
from cortex.rows.values import Element, Kind, Value, element_count, known, rows, uniform, vector
from cortex.wire.graphs import MAX_ELEMENTS

# ---- joined and cut ---------------------------------------------------------------------------------------------


@rule("Concat", takes={Kind.PLACES}, takes_counts=True)
def concat(call: Op) -> Value:
    values = call.given
    if not values:
        refuse("there are no operands")
    return concatenated(call, values, call.integer("axis", 1 if call.opset < 4 else None))


def concatenated(call: Op, values: Sequence[Value], axis: int) -> Value:
    """
    Values one after the other along a dimension that is not the rows'.

    That all their other sizes fit has to be proved: onnxruntime leaves part of the result unfilled where one without
    elements does not.

    Raises:
        NotProved: the dimension is the rows', or a value has no rows beside others that have.
    """
    if all(value.is_uniform for value in values):
        return _uniform_concatenated(call, values, axis)
    first = next(value for value in values if not value.is_uniform)
    axis = axis_of(axis, first.rank)
    if axis == first.axis:
        refuse("joins along the rows")
    for value in values:
        if value.is_uniform:
            refuse("a constant beside rows")
        if value.rank != first.rank or value.axis != first.axis or value.layout != first.layout:
            refuse("rows meet in different layouts")
    shape = list(first.known_shape)
    for index, dim in enumerate(shape):
        if index not in (axis, first.axis) and not all(_fits(value.known_shape[index], dim) for value in values):
            refuse("sizes that are not provably equal, one of which may be 0")
    shape[axis] = _total(call, [value.known_shape[axis] for value in values])
    if any(value.kind is Kind.PLACES for value in values):
        return _row_indices(values, axis, shape)
    return dataclasses.replace(first.moved(shape, first.axis), dtype=first.dtype)


def _fits(a: Dim, b: Dim) -> bool:
    """Whether two sizes are equal, or onnxruntime is sure to find out that they are not."""
    return a == b or all((size if isinstance(size, int) else size.least or 0) > 0 for size in (a, b))


def _row_indices(values: Sequence[Value], axis: int, shape: Sequence[Dim]) -> Value:
    """The row's number before what is made of the row, as an index that keeps to its own row."""
    first, *others = values
    is_index = (
        first.kind is Kind.PLACES
        and first.stride == 1
        and first.known_shape[-1] == 1
        and axis == first.rank - 1
        and all(value.is_rows for value in others)
    )
    if not is_index:
        refuse("row numbers used as data")
    return dataclasses.replace(first.moved(shape, first.axis), kind=Kind.ROW_INDICES)


def _total(call: Op, sizes: Sequence[Dim]) -> Dim:
    if all(isinstance(size, int) for size in sizes):
        return sum(size for size in sizes if isinstance(size, int))
    least = [size if isinstance(size, int) else size.least or 0 for size in sizes]
    most = [magnitude(size) for size in sizes]
    total = sum(LONGEST if one is None else one for one in most)
    return call.formula("sum of", *sizes, least=min(1, sum(least)), most=min(total, LONGEST))


def _uniform_concatenated(call: Op, values: Sequence[Value], axis: int) -> Value:
    dtype = values[0].dtype
    counted = any(value.counts_rows for value in values)
    count = sum(len(value.elements) for value in values if value.elements is not None)
    if count <= MAX_ELEMENTS and all(value.elements is not None for value in values):
        return known(np.concatenate([value.array() for value in values], axis=axis), dtype)
    if counted and all(value.shape is not None and value.rank == 1 for value in values):
        elements: list[Element] = []
        for value in values:  # a shape of which some sizes are known
            length = value.known_shape[0]
            if value.elements is not None:
                elements += value.elements
            elif isinstance(length, int):
                elements += [call.symbols.fresh(least=None) for _ in range(length)]
            else:
                refuse("a shape of unknown rank")
        return vector(elements, dtype)
    if counted:
        refuse(COUNTED)
    if any(value.shape is None for value in values):
        return uniform(dtype=dtype)
    shape = list(values[0].known_shape)
    axis = axis_of(axis, len(shape))
    shape[axis] = _total(call, [value.known_shape[axis] for value in values])
    return uniform(shape, dtype)


@rule("Split", takes_counts=True)
def split(call: Op) -> list[Value]:
    x = call.x
    axis = axis_of(call.integer("axis", 0), x.rank)
    if not x.is_uniform and axis == x.axis:
        refuse("splits the rows")
    given = call.optional(1)
    if call.opset < 13:
        sizes = call.optional_integers("split") if given is None else numbers_of(given, "split")
    else:
        sizes = None if given is None else numbers_of(given, "split")
    dims: list[Dim] = list(sizes) if sizes is not None else _even_parts(call, x.known_shape[axis], call.outputs)
    return parts(call, x, axis, dims)


def _even_parts(call: Op, size: Dim, count: int) -> list[Dim]:
    if not isinstance(size, int) or not count:
        return [call.fresh() for _ in range(count)]
    most = -(-size // count)
    return [max(0, min(most, size - index * most)) for index in range(count)]


def parts(call: Op, value: Value, axis: int, sizes: Sequence[Dim]) -> list[Value]:
    """A value cut along a dimension that is not the rows'."""
    found, start = [], 0
    for size in sizes:
        shape = list(value.known_shape)
        shape[axis] = size
        if value.elements is not None and isinstance(size, int):
            found.append(known(np.take(value.array(), range(start, start + size), axis=axis), value.dtype))
            start += size
        elif value.counts_rows:
            refuse(COUNTED)
        else:
            found.append(like(value, shape, value.axis))
    return found


@rule("Slice", takes_counts=True, keeps_bounds=True)
def slice_(call: Op) -> Value:
    if call.opset < 10:
        starts: Sequence[Dim] = call.integers("starts")
        ends: Sequence[Dim] = call.integers("ends")
        axes = call.optional_integers("axes")
        steps: Sequence[Dim] | None = None
    else:
        starts, ends = bounds_of(call, call.value(1)), bounds_of(call, call.value(2))
        given, stepped = call.optional(3), call.optional(4)
        axes = None if given is None else numbers_of(given, "axes")
        steps = None if stepped is None else bounds_of(call, stepped)
    axes = axes if axes is not None else list(range(len(starts)))
    return cut(call, call.x, axes, starts, ends, steps or [1] * len(axes))


def bounds_of(call: Op, value: Value) -> list[Dim]:
    """Known bounds, or symbols for uniform ones that are not known."""
    if not value.is_uniform:
        refuse("bounds depend on rows")
    if value.elements is not None:
        return dims_of(value, "a bound")
    length = value.known_shape[0] if value.rank == 1 else refuse("bounds are not known")
    if not isinstance(length, int):
        refuse("bounds are not known")
    return [call.symbols.fresh(least=None) for _ in range(length)]


def cut(
    call: Op, value: Value, axes: Sequence[int], starts: Sequence[Dim], ends: Sequence[Dim], steps: Sequence[Dim]
) -> Value:
    """
    A value between bounds in some dimensions.

    Raises:
        NotProved: not all rows are taken, or bounds count them.
    """
    shape = list(value.known_shape)
    array = value.array() if value.elements is not None else None
    for axis, start, end, step in zip((axis_of(axis, len(shape)) for axis in axes), starts, ends, steps, strict=True):
        size = shape[axis]
        to_the_end = end == size or (isinstance(end, int) and end >= LONGEST and suppose_within(size, end))
        if start == 0 and step == 1 and to_the_end:
            continue
        if not value.is_uniform and axis == value.axis:
            refuse("takes some of the rows")
        if any(map(counts_rows, (start, end, step))):
            refuse("the number of rows used as a bound")
        if all(isinstance(one, int) for one in (start, end, step, size)):
            chosen = _chosen(int(start), int(end), int(step), int(size))  # type: ignore[arg-type]
            shape[axis] = len(chosen)
            array = np.take(array, list(chosen), axis=axis) if array is not None else None
        elif (
            start == 0
            and step == 1
            and isinstance(size, int)
            and not isinstance(end, int)
            and suppose_at_most(end, size)
        ):
            shape[axis], array = end, None
        else:
            cut_size = call.formula("slice", start, end, step, size, least=0, most=magnitude(size))
            shape[axis] = call.fresh() if counts_rows(size) else cut_size
            array = None
    if array is not None:
        return known(array, value.dtype)
    if value.counts_rows:
        refuse(COUNTED)
    return like(value, shape, value.axis)


def _chosen(start: int, end: int, step: int, size: int) -> range:
    """Source: ONNX, "Slice": bounds are clamped; a negative step ends before 0 where `end` is below -size."""
    if not step:
        refuse("a step of 0")
    return range(*slice(start, None if step < 0 and end < -size else end, step).indices(size))


# ---- chosen by index --------------------------------------------------------------------------------------------


@rule("Gather", takes={Kind.PLACES}, takes_counts=True)
def gather(call: Op) -> Value:
    return gathered(call.x, call.value(1), call.integer("axis", 0))


def gathered(data: Value, index: Value, axis: int) -> Value:
    """
    Slices of `data` along `axis`: of a constant by rows' own indices, or of rows by constant ones.

    Raises:
        NotProved: rows would be chosen, or choose among rows.
    """
    shape, chosen = data.known_shape, index.known_shape
    axis = axis_of(axis, len(shape))
    if index.counts_rows:
        refuse("the number of rows used as an index")
    dims = [*shape[:axis], *chosen, *shape[axis + 1 :]]
    if data.elements is not None and index.elements is not None and (element_count(dims) or 0) <= MAX_ELEMENTS:
        found = np.take(data.array(), np.asarray(index.array(), dtype=np.int64), axis=axis)
        return known(np.asarray(found, dtype=object), data.dtype)  # one element comes without its array
    if data.counts_rows:
        refuse(COUNTED)
    if data.kind is Kind.PLACES:
        refuse("row numbers used as data")
    if index.kind is Kind.PLACES:
        if not data.is_rows or data.axis != axis or data.layout != (1, index.stride):
            refuse("rows choose among rows")
        place = index.moved(dims, axis + index.axis)
        return dataclasses.replace(place, kind=Kind.ROWS, stride=1, is_start=False, dtype=data.dtype)
    if index.is_rows:
        if not data.is_uniform:
            refuse("rows choose among rows")
        return dataclasses.replace(index.moved(dims, axis + index.axis), dtype=data.dtype)
    if data.is_uniform:
        return uniform(dims, data.dtype)
    if axis == data.axis:
        refuse(CHOOSES)
    return data.moved(dims, data.axis if data.axis < axis else data.axis - 1 + len(chosen))


@rule("GatherElements")
def gather_elements(call: Op) -> Value:
    data, index = call.x, call.value(1)
    axis = axis_of(call.integer("axis", 0), data.rank)
    if index.is_uniform and data.is_uniform:
        return uniform(index.shape, data.dtype)
    both = index.is_rows and data.is_rows and index.axis == data.axis and index.layout == data.layout
    if both and axis != data.axis:
        return dataclasses.replace(index, dtype=data.dtype)
    # a constant's other dimensions are at least as long as the index's: only where the rows choose along `axis`
    if index.is_rows and data.is_uniform and index.axis == axis:
        return dataclasses.replace(index, dtype=data.dtype)
    return refuse("rows choose among rows")


@rule("GatherND", takes={Kind.ROW_INDICES})
def gather_nd(call: Op) -> Value:
    data, index = call.x, call.value(1)
    batch = call.integer("batch_dims", 0) if call.opset >= 12 else 0
    depth = index.known_shape[-1] if index.rank else 0
    if not isinstance(depth, int) or not 1 <= depth <= data.rank - batch:
        refuse("an index of unknown depth")
    shape = [*index.known_shape[:-1], *data.known_shape[batch + depth :]]
    plain = data.layout == index.layout == (1, 1)
    if index.kind is Kind.ROW_INDICES:
        if data.is_rows and data.axis == 0 and batch == 0 and plain:
            return rows(shape, index.axis, dtype=data.dtype)
        return refuse(CHOOSES)
    if index.is_rows and data.is_uniform and batch <= index.axis < index.rank - 1:
        return dataclasses.replace(index.moved(shape, index.axis), dtype=data.dtype)
    if index.is_rows and data.is_rows and index.axis == data.axis < batch and index.layout == data.layout:
        return dataclasses.replace(index.moved(shape, index.axis), dtype=data.dtype)
    if index.is_uniform and data.is_rows and batch == 0 and data.axis >= depth:
        return data.moved(shape, data.axis - depth + index.rank - 1)
    if index.is_uniform and data.is_uniform:
        return uniform(shape, data.dtype)
    return refuse(CHOOSES)


@rule("Scatter", "ScatterElements")
def scatter_elements(call: Op) -> Value:
    data = call.x
    axis = axis_of(call.integer("axis", 0), data.rank)
    for value in call.given:
        if not value.is_rows or value.axis != data.axis or value.layout != data.layout or value.axis == axis:
            refuse("writes to rows by their number")
        if value.known_shape[value.axis] != data.known_shape[data.axis]:
            refuse("writes to some of the rows")
    return data


@rule("ScatterND")
def scatter_nd(call: Op) -> Value:
    data, index, updates = call.value(0), call.value(1), call.value(2)
    depth = index.known_shape[-1] if index.rank else 0
    fits = (
        isinstance(depth, int)
        and index.is_uniform
        and data.is_rows
        and updates.is_rows
        and data.axis >= depth
        and updates.axis == index.rank - 1 + data.axis - depth
        and updates.layout == data.layout
        and updates.known_shape[updates.axis] == data.known_shape[data.axis]
    )
    return data if fits else refuse("writes to rows by their number")


@rule("OneHot", rounds=Rounds.CHOOSES)
def one_hot(call: Op) -> Value:
    x, depth, values = call.value(0), call.value(1), call.value(2)
    must_be_constant(depth, values)
    axis = axis_of(call.integer("axis", -1), x.rank + 1)
    found = elements_of(depth, "the depth")[0] if depth.elements else None
    count = int(found) if isinstance(found, int | float) else call.fresh()
    shape = list(x.known_shape)
    shape.insert(axis, count)
    return like(x, shape, x.axis + (axis <= x.axis)).typed(values.dtype)


@rule("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(call: Op) -> Value:
    """Columns of a matrix; or, as exporters write a label's look-up, entries of a table for each row."""
    x, index = call.value(0), call.value(1)
    if x.is_uniform and index.is_rows:
        if any(dim != 1 for dim in x.known_shape[:-1]):
            refuse("rows choose among rows")
        wanted = reshaped(call, index, [-1], zero_copies=False)
        shape = [*([1] * max(x.rank - 1, 1)), wanted.known_shape[0]]
        return wanted.moved(shape, len(shape) - 1).typed(x.dtype)
    must_be_constant(index)
    if not x.is_rows or x.rank < 2 or x.axis == x.rank - 1:
        refuse(CHOOSES)
    if any(number < 0 for number in numbers_of(index, "which columns")):
        refuse(CHOOSES)  # older versions of onnxruntime read the row before
    return x.moved([*x.known_shape[:-1], product(index.known_shape)], x.axis)


# ---- filled up --------------------------------------------------------------------------------------------------


@rule("Pad", takes_counts=True)
def pad(call: Op) -> Value:
    x = call.x
    if call.opset < 11:
        amounts: Sequence[Dim] = call.integers("pads" if call.opset >= 2 else "paddings")
        axes = list(range(x.rank))
    else:
        amounts = bounds_of(call, call.value(1))
        given = call.optional(3)
        axes = list(range(x.rank)) if given is None else numbers_of(given, "axes")
        must_be_constant(call.optional(2))
    if len(amounts) != 2 * len(axes):
        refuse("another number of pads than dimensions")
    if x.elements is not None:
        return _shape_padded(call, axes, amounts)
    return padded(call, x, [(axis, amounts[at], amounts[at + len(axes)]) for at, axis in enumerate(axes)])


def _shape_padded(call: Op, axes: Sequence[int], amounts: Sequence[Dim]) -> Value:
    """Known elements, such as a shape, with a known one before and after."""
    filling = call.optional(2) if call.opset >= 11 else None
    fill: Any = 0
    if filling is not None:
        fill = elements_of(filling, "what is filled in")[0]
    widths = [(0, 0)] * call.x.rank
    for at, axis in enumerate(axes):
        before, after = amounts[at], amounts[at + len(axes)]
        if not isinstance(before, int) or not isinstance(after, int) or before < 0 or after < 0:
            refuse("how much is filled in is not known")
        if before + after > MAX_ELEMENTS or call.text("mode", "constant") != "constant":
            refuse("what is filled in is not known")
        widths[axis_of(axis, call.x.rank)] = (before, after)
    if math.prod(size + sum(width) for size, width in zip(call.x.array().shape, widths, strict=True)) > MAX_ELEMENTS:
        refuse("what is filled in is not known")
    return known(np.pad(call.x.array(), widths, constant_values=fill), call.x.dtype)


def padded(call: Op, value: Value, amounts: Sequence[tuple[int, Dim, Dim]]) -> Value:
    """A value filled up, by (axis, before, after), along dimensions that are not the rows'."""
    if value.counts_rows:
        refuse(COUNTED)
    shape = list(value.known_shape)
    for axis, before, after in amounts:
        if before == 0 and after == 0:
            continue
        axis = axis_of(axis, len(shape))
        if not value.is_uniform and axis == value.axis:
            refuse("pads the rows")
        size = shape[axis]
        if isinstance(before, int) and isinstance(after, int) and isinstance(size, int):
            shape[axis] = size + before + after
        else:
            grows = all(isinstance(amount, int) and amount >= 0 for amount in (before, after))
            least = (size.least or 0) if grows and isinstance(size, Term) else 0
            shape[axis] = call.formula("pad", size, before, after, least=least)
    return like(value, shape, value.axis)


@rule("Trilu", since=14)
def trilu(call: Op) -> Value:
    must_be_constant(call.optional(1))
    x = call.x
    if x.is_rows and x.axis >= x.rank - 2:
        refuse("a triangle over rows")
    return like(x, x.known_shape, x.axis)


@rule("ReverseSequence", since=10)
def reverse_sequence(call: Op) -> Value:
    x, lengths = call.value(0), call.value(1)
    if not x.is_rows or x.axis != axis_of(call.integer("batch_axis", 1), x.rank):
        refuse("its batch axis is not the rows")
    if not lengths.is_rows or lengths.layout != x.layout:
        refuse("one length for all rows")
    return x
