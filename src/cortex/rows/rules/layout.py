"""The same elements in another shape: where the rows are then, and in which order with what is merged with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from cortex.rows.refusal import refuse
from cortex.rows.rules.registry import COUNTED, Op, axis_of, dims_of, numbers_of, rule
from cortex.rows.sizes import NUMBER_OF_ROWS, Dim, Term, counts_rows, divided, equal, product, quotient, times
from cortex.rows.values import NUMBERS, Kind, Shape, Value, filled, known, uniform

_LAID_OUT = NUMBERS | {Kind.PADDED}


@rule("Reshape", takes=_LAID_OUT, takes_counts=True, keeps_bounds=True)
def reshape(call: Op) -> Value:
    if call.opset < 5:
        wanted: list[Dim] = list(call.integers("shape"))
    else:
        wanted = dims_of(call.value(1), "the new shape")
    return reshaped(call, call.x, wanted, zero_copies=not call.integer("allowzero", 0))


@rule("Flatten", takes=_LAID_OUT, takes_counts=True, keeps_bounds=True)
def flatten(call: Op) -> Value:
    shape = call.x.known_shape
    at = call.integer("axis", 1)
    at = at + len(shape) if at < 0 else at
    if not 0 <= at <= len(shape):
        refuse(f"there is no dimension {at}")
    return reshaped(call, call.x, [product(shape[:at]), product(shape[at:])], zero_copies=False)


def reshaped(call: Op, value: Value, wanted: Sequence[Dim], *, zero_copies: bool) -> Value:
    """
    A value in another shape of as many elements.

    Rows stay rows where the new shape has all of a row's elements in one dimension with N, in an order that is a
    product before × N × after again. That the number of elements is the same has to be proved, too: onnxruntime
    makes `[-1, c]` of `[N, c]`, and so does not always find what does not fit.

    Args:
        wanted: as ONNX has it: one -1 is what is left; 0 copies the old size, if `zero_copies`.

    Raises:
        NotProved: the rows are spread, or that cannot be told.
    """
    if value.shape is None:
        return _unknown_reshaped(call, value, wanted)
    shape = value.shape
    target = list(wanted)
    for index, dim in enumerate(target):
        if dim == 0 and zero_copies:
            target[index] = shape[index] if index < len(shape) else refuse("0 beyond the rank")
    total = product(shape)
    if target.count(-1) > 1:
        refuse("two sizes are left open")
    if -1 in target:
        open_ = target.index(-1)
        rest = product(dim for index, dim in enumerate(target) if index != open_)
        left = quotient(total, rest) if not value.is_uniform else divided(total, rest)
        if left is None:
            if not value.is_uniform or counts_rows(total) or counts_rows(rest):
                refuse(f"{total} elements in rows of {rest}: not provably whole rows")
            left = call.fresh()
        target[open_] = left
    if value.is_uniform:
        return _uniform_reshaped(call, value, target)
    return _rows_reshaped(value, target, total)


def _unknown_reshaped(call: Op, value: Value, wanted: Sequence[Dim]) -> Value:
    if not value.is_uniform or any(map(counts_rows, wanted)):
        refuse("a value of unknown rank")
    return uniform((call.fresh() if dim in (-1, 0) else dim for dim in wanted), value.dtype)


def _uniform_reshaped(call: Op, value: Value, target: Sequence[Dim]) -> Value:
    if any(map(counts_rows, target)) or any(map(counts_rows, value.shape or ())):
        refuse("a constant in the shape of rows")
    if value.elements is not None and all(isinstance(dim, int) for dim in target):
        return known(value.array().reshape([int(dim) for dim in target if isinstance(dim, int)]), value.dtype)
    if value.counts_rows:
        refuse(COUNTED)
    # what may be -1 or 0 when it runs is not the size that comes out
    return uniform(
        (call.fresh() if isinstance(dim, Term) and dim.least is None else dim for dim in target), value.dtype
    )


def _rows_reshaped(value: Value, target: Sequence[Dim], total: Dim) -> Value:
    shape = value.known_shape
    holders = [index for index, dim in enumerate(target) if counts_rows(dim)]
    if len(holders) != 1:
        refuse("rows are spread over dimensions")
    axis = holders[0]
    size = target[axis]
    if not isinstance(size, Term) or not size.is_multiple_of_rows:
        refuse("the number of rows in a formula")
    if not equal(product(target), total):
        refuse(f"{_text(shape)} in the shape {_text(target)}: not provably as many elements")
    elements_before = times(product(shape[: value.axis]), value.before)
    elements_after = times(value.after, product(shape[value.axis + 1 :]))
    width = divided(size, NUMBER_OF_ROWS)
    before = divided(elements_before, product(target[:axis]))
    after = divided(elements_after, product(target[axis + 1 :]))
    if width is None or before is None or after is None or times(before, after) != width:
        refuse(f"{_text(shape)} in the shape {_text(target)}: not provably whole rows")
    if value.kind is Kind.PADDED and (axis == len(target) - 1 or target[-1] != shape[-1]):
        refuse("rows are padded to the longest of the batch")
    return dataclasses.replace(value, before=before, after=after).moved(target, axis)


def _text(shape: Iterable[Dim]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


@rule("Transpose", takes=NUMBERS, takes_counts=True, keeps_bounds=True)
def transpose(call: Op) -> Value:
    permutation = call.optional_integers("perm")
    return transposed(call.x, permutation if permutation is not None else range(call.x.rank)[::-1])


def transposed(value: Value, permutation: Sequence[int]) -> Value:
    """A value with its dimensions in another order."""
    shape = value.known_shape
    if sorted(permutation) != list(range(len(shape))):
        refuse("no order of the dimensions")
    if value.is_uniform:
        if value.elements is not None:
            return known(value.array().transpose(permutation), value.dtype)
        if value.counts_rows:
            refuse(COUNTED)
        return dataclasses.replace(value, shape=tuple(shape[index] for index in permutation))
    return value.moved((shape[index] for index in permutation), list(permutation).index(value.axis))


@rule("Unsqueeze", takes=NUMBERS, takes_counts=True, keeps_bounds=True)
def unsqueeze(call: Op) -> Value:
    axes = call.integers("axes") if call.opset < 13 else numbers_of(call.value(1), "axes")
    return inserted(call.x, axes)


def inserted(value: Value, axes: Sequence[int]) -> Value:
    """A value with dimensions of size 1 inserted; axes count in the result."""
    shape = value.known_shape
    rank = len(shape) + len(axes)
    places = [axis_of(axis, rank) for axis in axes]
    if len(set(places)) != len(places):
        refuse("a dimension is inserted twice")
    old = iter(range(len(shape)))
    sources = [None if index in places else next(old) for index in range(rank)]
    dims = [1 if source is None else shape[source] for source in sources]
    if value.is_uniform:
        return dataclasses.replace(value, shape=tuple(dims))
    return value.moved(dims, sources.index(value.axis))


@rule("Squeeze", takes=NUMBERS, takes_counts=True, keeps_bounds=True)
def squeeze(call: Op) -> Value:
    if call.opset < 13:
        axes = call.optional_integers("axes")
    else:
        given = call.optional(1)
        axes = None if given is None else numbers_of(given, "axes")
    if axes:  # none in the list are no list to onnxruntime
        return removed(call.x, axes)
    if not call.x.is_uniform:
        refuse("drops each dimension of size 1, the rows too when there is one")
    if not all(isinstance(dim, int) for dim in call.x.known_shape):
        if call.x.counts_rows:
            refuse(COUNTED)
        return uniform(dtype=call.x.dtype)
    return removed(call.x, [index for index, dim in enumerate(call.x.known_shape) if dim == 1])


def removed(value: Value, axes: Sequence[int]) -> Value:
    """A value with these dimensions, each of size 1, removed."""
    shape = value.known_shape
    places = {axis_of(axis, len(shape)) for axis in axes}
    dims = [dim for index, dim in enumerate(shape) if index not in places]
    if value.is_uniform:
        if any(counts_rows(shape[index]) for index in places):
            refuse(COUNTED)
        return dataclasses.replace(value, shape=tuple(dims))
    if value.axis in places:
        refuse("drops the rows")
    return value.moved(dims, value.axis - sum(index < value.axis for index in places))


@rule("Expand", takes=NUMBERS, takes_counts=True, keeps_bounds=True)
def expand(call: Op) -> Value:
    return expanded(call, call.x, dims_of(call.value(1), "the new shape"))


def expanded(call: Op, value: Value, wanted: Sequence[Dim]) -> Value:
    """
    A value repeated along dimensions of size 1, both ways of broadcasting.

    Raises:
        NotProved: rows would be repeated, or the number of rows comes from elsewhere.
    """
    if value.counts_rows:
        refuse(COUNTED)
    shape = value.known_shape
    rank = max(len(shape), len(wanted))
    old: Shape = (1,) * (rank - len(shape)) + shape
    new: Shape = (1,) * (rank - len(wanted)) + tuple(wanted)
    axis = None if value.is_uniform else value.axis + rank - len(shape)
    result: list[Dim] = []
    grown = None
    for index, (have, want) in enumerate(zip(old, new, strict=True)):
        if index == axis:
            if want not in (1, have):
                refuse(f"repeats rows to {want}")
            result.append(have)
        elif counts_rows(want):
            if have != 1:
                refuse("a constant in the shape of rows")
            if axis is not None or grown is not None:
                refuse("rows meet in different dimensions")
            grown = index
            result.append(want)
        elif have == 1 or want == 1 or have == want:
            result.append(want if have == 1 else have)
        else:
            result.append(have if isinstance(have, int) else want if isinstance(want, int) else call.fresh())
    if grown is not None:
        return filled(result, grown, value.dtype)
    if axis is not None:
        return value.moved(result, axis)
    return dataclasses.replace(value, shape=tuple(result), elements=None)


@rule("Tile", takes=NUMBERS, takes_counts=True, keeps_bounds=True, since=6)
def tile(call: Op) -> Value:
    return tiled(call, call.x, dims_of(call.value(1), "repeats"))


def tiled(call: Op, value: Value, repeats: Sequence[Dim]) -> Value:
    """
    A value beside itself, so many times in each dimension.

    Raises:
        NotProved: rows would be repeated, or a constant along a dimension that is not of size 1.
    """
    if value.counts_rows:
        refuse(COUNTED)
    shape = value.known_shape
    if len(repeats) != len(shape):
        refuse("another number of repeats than dimensions")
    dims = [times(dim, count) for dim, count in zip(shape, repeats, strict=True)]
    if not value.is_uniform:
        if repeats[value.axis] != 1:
            refuse("repeats rows")
        return value.moved(dims, value.axis)
    grown = [index for index, count in enumerate(repeats) if counts_rows(count)]
    if not grown:
        return uniform(dims, value.dtype)
    if len(grown) > 1 or shape[grown[0]] != 1:
        refuse("a constant repeated along the rows")
    return filled(dims, grown[0], value.dtype)
