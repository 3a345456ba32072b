"""TensorFlow's reductions, normalisations, products and orders: along dimensions that are not the rows'."""

from __future__ import annotations

import dataclasses
import string
from typing import Final

from cortex.rows.refusal import refuse
from cortex.rows.rules.elementwise import bounded
from cortex.rows.rules.layout import transposed
from cortex.rows.rules.products import contracted, multiplied
from cortex.rows.rules.reductions import along, extreme, reduced
from cortex.rows.rules.reductions import multiplied as product_of
from cortex.rows.rules.registry import (
    ALONG_ROWS,
    Op,
    Rounds,
    axis_of,
    dims_of,
    like,
    must_be_constant,
    must_have_rows_first,
    numbers_of,
)
from cortex.rows.rules.tensorflow.registry import rule
from cortex.rows.sizes import Dim
from cortex.rows.values import Value, uniform, vector

# ---- reductions -----------------------------------------------------------------------------------------------------

_SUMS: Final = {
    "EuclideanNorm": "a root of a sum of squares",
    "Max": "0 and -0 are equal: which one it picks depends on the order",
    "Mean": "a sum by a constant",
    "Min": "as Max",
    "Prod": "a product, rounded in its order",
    "Sum": "a sum",
}


@rule(*_SUMS, rounds=Rounds.SUMS, takes_counts=True)
def reduce_(call: Op) -> Value:
    x, keep = call.x, call.attributes.get("keep_dims") is True
    axes = numbers_of(call.value(1), "the axes")
    if call.operator in ("Max", "Min", "Prod") and x.elements and x.rank == 1 and axes in ([0], [-1]):
        dims = dims_of(x, "a size")
        if call.operator == "Prod":
            result = product_of(call, dims, x.dtype)
        else:
            result = extreme(call, dims, largest=call.operator == "Max")
        return dataclasses.replace(vector([result], x.dtype), shape=(1,) if keep else ())
    return reduced(x, axes, keep=keep)


@rule("All", "Any")
def reduce_truths(call: Op) -> Value:
    found = reduced(call.x, numbers_of(call.value(1), "the axes"), keep=call.attributes.get("keep_dims") is True)
    return found.typed("bool")


@rule("ArgMax", "ArgMin", rounds=Rounds.CHOOSES, keeps_bounds=True)
def arg_max(call: Op) -> Value:
    (axis,) = numbers_of(call.value(1), "the axis")
    found = reduced(call.x, [axis], keep=False)
    below = call.x.known_shape[axis_of(axis, call.x.rank)]
    return bounded(found.typed(call.text("output_type", "int64")), below)


# ---- along the last dimension ---------------------------------------------------------------------------------------


@rule("Softmax", "LogSoftmax", rounds=Rounds.SUMS)
def softmax(call: Op) -> Value:
    return along(call.x, -1)


@rule("Cumsum", "Cumprod", "CumulativeLogsumexp", rounds=Rounds.SUMS)
def cumulative(call: Op) -> Value:
    return along(call.x, *numbers_of(call.value(1), "the axis"))


@rule("TopK", "TopKV2", rounds=(Rounds.SUMS, Rounds.CHOOSES))
def top_k(call: Op) -> list[Value]:
    x = call.x
    if x.is_rows and x.axis == x.rank - 1:
        refuse(ALONG_ROWS)
    count: Dim
    if call.operator == "TopK":
        count = call.integer("k")
    else:
        must_be_constant(call.value(1))
        count = dims_of(call.value(1), "k")[0] if call.value(1).elements else call.fresh()
    chosen = like(x, [*x.known_shape[:-1], count], x.axis)
    return [chosen, chosen.typed(call.text("index_type", "int32"))]


@rule("InTopK", "InTopKV2", rounds=Rounds.CHOOSES)
def in_top_k(call: Op) -> Value:
    predictions, targets = call.value(0), call.value(1)
    must_be_constant(*call.inputs[2:])
    if predictions.is_uniform and targets.is_uniform:
        return uniform(targets.shape, "bool")
    must_have_rows_first(predictions)
    must_have_rows_first(targets)
    if predictions.layout != targets.layout:
        refuse("rows meet in different layouts")
    return targets.typed("bool")


@rule("DenseBincount", rounds=Rounds.SUMS)
def bin_count(call: Op) -> Value:
    """Of a matrix it counts line by line; of a vector all that is in it."""
    x, size, weights = call.value(0), call.value(1), call.value(2)
    must_be_constant(size)
    must_have_rows_first(x)
    if x.rank != 2:
        refuse("counts over all rows")
    if weights.is_uniform:
        if weights.shape != (0,):
            refuse("weights of no rows")
        call.rounds = Rounds.NOTHING  # it counts
    elif weights.shape != x.shape or weights.layout != x.layout:
        refuse("weights of other rows")
    count = dims_of(size, "how many are counted")[0] if size.elements else call.fresh()
    return x.moved([x.known_shape[0], count], 0).typed(weights.dtype)


# ---- spectra --------------------------------------------------------------------------------------------------------

_SPECTRA: Final = {
    "BatchFFT": 1,
    "FFT": 1,
    "FFT2D": 2,
    "FFT3D": 3,
    "IFFT": 1,
    "IFFT2D": 2,
    "IFFT3D": 3,
}
"""Over how many of the last dimensions."""
_REAL_SPECTRA: Final = {"IRFFT": 1, "IRFFT2D": 2, "IRFFT3D": 3, "RFFT": 1, "RFFT2D": 2, "RFFT3D": 3}


@rule(*_SPECTRA, rounds=Rounds.SUMS)
def spectrum(call: Op) -> Value:
    return _beside_rows(call.x, _SPECTRA[call.operator]).typed("")


@rule(*_REAL_SPECTRA, rounds=Rounds.SUMS)
def real_spectrum(call: Op) -> Value:
    last = _REAL_SPECTRA[call.operator]
    x = _beside_rows(call.x, last)
    lengths = dims_of(call.value(1), "the lengths")
    if len(lengths) != last:
        refuse("lengths that are not known")
    if call.operator.startswith("RFFT"):
        end = lengths[-1]
        lengths[-1] = end // 2 + 1 if isinstance(end, int) else call.formula("half of", end, least=0)
    found = like(x, [*x.known_shape[: x.rank - last], *lengths], x.axis)
    return found.typed("" if call.operator.startswith("RFFT") else call.text("Treal", "float32"))


def _beside_rows(x: Value, last: int) -> Value:
    """The value, whose last dimensions are not the rows."""
    if x.is_rows and x.axis >= x.rank - last:
        refuse(ALONG_ROWS)
    return x if x.is_rows else uniform(x.shape, x.dtype)


# ---- products -------------------------------------------------------------------------------------------------------


def _turned(value: Value, *, turn: bool) -> Value:
    if not turn:
        return value
    order = list(range(value.rank))
    order[-2:] = order[:-3:-1]
    return transposed(value, order)


@rule("MatMul", rounds=Rounds.SUMS)
def mat_mul(call: Op) -> Value:
    a, b = call.value(0), call.value(1)
    if a.rank != 2 or b.rank != 2:
        refuse("operands are no matrices")
    return multiplied(
        call,
        _turned(a, turn=call.attributes.get("transpose_a") is True),
        _turned(b, turn=call.attributes.get("transpose_b") is True),
    )


@rule("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", rounds=Rounds.SUMS)
def batch_mat_mul(call: Op) -> Value:
    a, b = call.value(0), call.value(1)
    if a.rank < 2 or b.rank < 2:
        refuse("operands are no matrices")
    found = multiplied(
        call,
        _turned(a, turn=call.attributes.get("adj_x") is True),
        _turned(b, turn=call.attributes.get("adj_y") is True),
    )
    return found.typed(call.text("Tout", found.dtype))


@rule("Einsum", "XlaEinsum", rounds=Rounds.SUMS)
def einsum(call: Op) -> Value:
    """Source: TensorFlow, "Einsum": an ellipsis stands for dimensions that are broadcast, wherever it is."""
    left, arrow, right = call.text("equation").replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != len(call.given):
        refuse("an equation that does not fit")
    free = [letter for letter in string.ascii_letters if letter not in left + right]
    most = max(
        (
            value.rank - len(term.replace("...", ""))
            for term, value in zip(terms, call.given, strict=True)
            if "..." in term
        ),
        default=0,
    )
    if most > len(free):
        refuse("an equation of too many dimensions")
    hidden = "".join(free[:most])

    def spelled(term: str, value: Value) -> str:
        count = value.rank - len(term.replace("...", ""))
        return term.replace("...", hidden[most - count :] if count > 0 else "")

    labels = [spelled(term, value) for term, value in zip(terms, call.given, strict=True)]
    wanted = right.replace("...", hidden)
    letters = "".join(labels)
    if not (letters + wanted).isalpha() or not set(wanted) <= set(letters) or len(set(wanted)) != len(wanted):
        refuse("an equation that does not fit")
    return contracted(call, call.given, labels, wanted)


# ---- normalisations over the batch, or not --------------------------------------------------------------------------


@rule("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", rounds=Rounds.SUMS)
def batch_norm(call: Op) -> list[Value]:
    """
    In inference by constants. In training each channel by its own mean: with the rows as channels, as Keras 2 writes a
    layer normalisation, these are means of rows.
    """
    x, scale, offset = call.value(0), call.value(1), call.value(2)
    channel = 1 if call.text("data_format", "NHWC").startswith("NC") else x.rank - 1
    if call.attributes.get("is_training", True) is False:
        must_be_constant(*call.inputs[1:])
        if x.is_rows and x.axis == channel:
            refuse("constants for each row")
        return [x if x.is_rows else uniform(x.shape, x.dtype)]
    if not x.is_rows or x.axis != channel:
        refuse("normalises over the rows, as in training")
    must_be_constant(*call.inputs[3:])
    for value in (scale, offset):
        if not value.is_rows or value.axis != 0 or value.layout != x.layout:
            refuse("constants for each row")
    return [x]


@rule("LRN", rounds=Rounds.SUMS)
def lrn(call: Op) -> Value:
    """Over neighbouring channels, which are the last dimension."""
    return along(call.x, -1)


@rule("L2Loss", rounds=Rounds.SUMS)
def l2_loss(call: Op) -> Value:
    return reduced(call.x, range(call.x.rank), keep=False)


@rule("Mfcc", rounds=Rounds.SUMS)
def mfcc(call: Op) -> Value:
    must_be_constant(*call.inputs[1:])
    found = along(call.x, -1)
    return like(found, [*found.known_shape[:-1], call.integer("dct_coefficient_count", 13)], found.axis)
