"""Along dimensions that must not be the rows': reductions, softmaxes, normalisations, orders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from cortex.rows.refusal import refuse
from cortex.rows.rules.elementwise import EXACT_TO, INTEGERS, bounded, broadcast, holds
from cortex.rows.rules.registry import (
    ALONG_ROWS,
    COUNTED,
    Op,
    Rounds,
    axis_of,
    dims_of,
    like,
    must_be_constant,
    numbers_of,
    rule,
)
from cortex.rows.sizes import MAX_SIZE, Dim, magnitude, product, suppose_within
from cortex.rows.values import Value, uniform, vector

_MICROSOFT: Final = "com.microsoft"

_SUMS: Final = {
    "ReduceL1": "a sum of magnitudes",
    "ReduceL2": "a root of a sum of squares",
    "ReduceLogSum": "a logarithm of a sum",
    "ReduceLogSumExp": "a logarithm of a sum of exponentials",
    "ReduceMean": "a sum by a constant",
    "ReduceProd": "a product, rounded in its order",
    "ReduceSum": "a sum",
    "ReduceSumSquare": "a sum of squares",
}
_PICKS: Final = {"ReduceMax": "picks one, of 0 and -0 any", "ReduceMin": "as ReduceMax"}
_AXES_AS_INPUT_SINCE: Final = {"ReduceSum": 13}
"""The others take axes as an input since 18."""


def _reduce(call: Op) -> Value:
    as_input = call.opset >= _AXES_AS_INPUT_SINCE.get(call.operator, 18)
    given = call.optional(1) if as_input else None
    axes = call.optional_integers("axes") if not as_input else None if given is None else numbers_of(given, "axes")
    keep = bool(call.integer("keepdims", 1))
    if not axes:
        if as_input and call.integer("noop_with_empty_axes", 0):
            return reduced(call.x, [], keep=True)
        axes = list(range(call.x.rank))
    if call.x.elements and call.x.rank == 1 and call.operator in ("ReduceProd", "ReduceMax", "ReduceMin"):
        dims = dims_of(call.x, "a size")
        if call.operator == "ReduceProd":  # onnxruntime multiplies whole numbers as floats of 64 bits
            return _only(call, multiplied(call, dims, call.x.dtype, EXACT_TO["float64"]), keep=keep)
        return _only(call, extreme(call, dims, largest=call.operator == "ReduceMax"), keep=keep)
    if _jumps(call, axes):
        call.rounds = Rounds.SUMS_AND_STEPS
    return reduced(call.x, axes, keep=keep)


def _jumps(call: Op, axes: Sequence[int]) -> bool:
    """
    Whether a sum of whole numbers may differ from itself.

    Measured on onnxruntime 1.32, 32 rows alone and together: it adds up 64-bit integers as floats, and in batches of
    some shapes as integers; only above 2^53 one sees it. What its ReduceLogSumExp makes of integers is rounded to one.
    """
    if call.x.dtype not in INTEGERS:
        return False
    if call.operator in ("ReduceSum", "ReduceMean") and call.x.dtype.endswith("64"):
        shape = call.x.known_shape
        if call.x.below is None:
            return True
        most = magnitude(product([*(shape[axis] for axis in axes), call.x.below]))
        return most is None or most > EXACT_TO["float64"]
    return call.operator == "ReduceLogSumExp"


def _only(call: Op, element: Dim, *, keep: bool) -> Value:
    """A single element, in place of those of a vector."""
    return dataclasses.replace(vector([element], call.x.dtype), shape=(1,) if keep else ())


def multiplied(call: Op, dims: Sequence[Dim], dtype: str, most: int = MAX_SIZE) -> Dim:
    """
    The product of sizes, or a symbol that nothing is known of, where it may leave its type or be more than `most`.

    Raises:
        NotProved: nor is it a size.
    """
    found = product(dims)
    if holds(dtype, found) and suppose_within(found, most):
        return found
    if isinstance(found, int):
        refuse("a product that its type cannot hold")
    return call.formula(f"{call.operator} of {dtype}", *dims)


def extreme(call: Op, dims: Sequence[Dim], *, largest: bool) -> Dim:
    """The largest, or smallest, of sizes."""
    if all(dim == dims[0] for dim in dims):
        return dims[0]
    numbers = [dim for dim in dims if isinstance(dim, int)]
    if len(numbers) < len(dims):
        found = [magnitude(dim) for dim in dims]
        most = None if None in found else max(one for one in found if one is not None)
        return call.formula("Max" if largest else "Min", *dims, most=most)
    return max(numbers) if largest else min(numbers)


rule(*_SUMS, *_PICKS, rounds=Rounds.SUMS, takes_counts=True)(_reduce)


def reduced(value: Value, axes: Sequence[int], *, keep: bool) -> Value:
    """
    One value in place of all along some dimensions.

    Raises:
        NotProved: the rows are among them.
    """
    if value.counts_rows:
        refuse(COUNTED)
    shape = value.known_shape
    places = {axis_of(axis, len(shape)) for axis in axes}
    if value.is_rows and value.axis in places:
        refuse("reduces over the rows")
    if keep:
        return like(value, (1 if index in places else dim for index, dim in enumerate(shape)), value.axis)
    dims = [dim for index, dim in enumerate(shape) if index not in places]
    return like(value, dims, value.axis - sum(index < value.axis for index in places))


@rule("ArgMax", "ArgMin", rounds=Rounds.CHOOSES, keeps_bounds=True)
def arg_max(call: Op) -> Value:
    axis = axis_of(call.integer("axis", 0), call.x.rank)
    found = reduced(call.x, [axis], keep=bool(call.integer("keepdims", 1)))
    return bounded(found.typed("int64"), call.x.known_shape[axis])


def along(value: Value, axis: int) -> Value:
    """
    A value of the same shape, each element made of those along one dimension.

    Raises:
        NotProved: it is the rows'.
    """
    if value.is_rows and axis_of(axis, value.rank) == value.axis:
        refuse(ALONG_ROWS)
    return value if value.is_rows else uniform(value.shape, value.dtype)


@rule("Softmax", "LogSoftmax", "Hardmax", rounds=Rounds.SUMS)
def softmax(call: Op) -> Value:
    if call.operator == "Hardmax":
        call.rounds = Rounds.CHOOSES
    if call.opset >= 13:
        return along(call.x, call.integer("axis", -1))
    x = call.x
    axis = axis_of(call.integer("axis", 1), x.rank)
    if x.is_rows and x.axis >= axis:  # as a matrix: all dimensions from `axis` on are one
        refuse(ALONG_ROWS)
    return x if x.is_rows else uniform(x.shape, x.dtype)


@rule("QLinearSoftmax", domain=_MICROSOFT, rounds=Rounds.SUMS_AND_STEPS)
def quantized_softmax(call: Op) -> Value:
    must_be_constant(*call.inputs[1:])
    x = call.x
    axis = axis_of(call.integer("axis", -1), x.rank)
    if x.is_rows and (x.axis == axis or (call.integer("opset", 13) < 13 and x.axis > axis)):
        refuse(ALONG_ROWS)
    return x if x.is_rows else uniform(x.shape, x.dtype)


@rule("LpNormalization", rounds=Rounds.SUMS)
def lp_normalization(call: Op) -> Value:
    return along(call.x, call.integer("axis", -1))


@rule("CumSum", rounds=Rounds.SUMS, since=11)
def cum_sum(call: Op) -> Value:
    (axis,) = numbers_of(call.value(1), "the axis")
    return along(call.x, axis)


@rule("TopK", rounds=(Rounds.NOTHING, Rounds.CHOOSES))
def top_k(call: Op) -> list[Value]:
    x = call.x
    axis = axis_of(call.integer("axis", -1), x.rank)
    if x.is_rows and axis == x.axis:
        refuse(ALONG_ROWS)
    count: Dim
    if call.opset < 10:
        count = call.integer("k")
    else:
        must_be_constant(call.value(1))
        counts = call.value(1).elements
        count = dims_of(call.value(1), "k")[0] if counts else call.fresh()
    shape = list(x.known_shape)
    shape[axis] = count
    chosen = like(x, shape, x.axis)
    return [chosen, chosen.typed("int64")]


@rule("LayerNormalization", "RMSNormalization", rounds=Rounds.SUMS, since=1)
def layer_normalization(call: Op) -> list[Value]:
    x = call.x
    axis = axis_of(call.integer("axis", -1), x.rank)
    must_be_constant(*call.inputs[1:])
    if not x.is_rows:
        return [uniform(x.shape, x.dtype)]
    if x.axis >= axis:
        refuse("normalises over the rows")
    for value in call.given[1:]:  # may have all dimensions that x has, the rows' too
        broadcast(call, [x, value])
    statistics = x.moved((1 if index >= axis else dim for index, dim in enumerate(x.known_shape)), x.axis)
    return [x, statistics, statistics]


rule("SimplifiedLayerNormalization", rounds=Rounds.SUMS)(layer_normalization)
rule("LayerNormalization", "SimplifiedLayerNormalization", domain=_MICROSOFT, rounds=Rounds.SUMS)(layer_normalization)


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=_MICROSOFT, rounds=Rounds.SUMS)
def skip_layer_normalization(call: Op) -> list[Value]:
    """Normalises the sum of two values over their last dimension; only the second may be stretched."""
    if not call.x.is_rows:
        refuse("rows are added to a constant")
    total = broadcast(call, [call.value(0), call.value(1)])
    must_be_constant(*call.inputs[2:])
    if not total.is_rows or total.axis >= total.rank - 1:
        refuse("normalises over the rows")
    statistics = total.moved([*total.known_shape[:-1], 1], total.axis)
    return [total, statistics, statistics, total]
