"""Sums of products: rows are never summed, and meet nothing but rows in one dimension and constants of size 1 there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from cortex.rows.refusal import refuse
from cortex.rows.rules.elementwise import broadcast
from cortex.rows.rules.layout import transposed
from cortex.rows.rules.registry import Op, Rounds, like, must_be_constant, rule
from cortex.rows.sizes import Dim
from cortex.rows.values import Grade, Value, uniform

_MICROSOFT: Final = "com.microsoft"

Label: TypeAlias = int | str
"""Names a dimension: dimensions of one name are multiplied index by index, those that the result lacks are summed."""


def contracted(
    call: Op, operands: Sequence[Value], labels: Sequence[Sequence[Label]], wanted: Sequence[Label]
) -> Value:
    """
    Products of operands, summed over the dimensions that are not wanted.

    Args:
        labels: of each operand's dimensions. Sizes of one label are equal, or 1.
        wanted: the result's dimensions.

    Raises:
        NotProved: rows are summed, meet rows elsewhere, or a constant that is longer than 1.
    """
    sizes: dict[Label, list[Dim]] = {}
    for value, names in zip(operands, labels, strict=True):
        if value.rank != len(names):
            refuse(f"{value.rank} dimensions for {len(names)} labels")
        for name, size in zip(names, value.known_shape, strict=True):
            sizes.setdefault(name, []).append(size)
    first = next(
        ((value, names[value.axis]) for value, names in zip(operands, labels, strict=True) if value.is_rows), None
    )
    if first is None:
        return uniform((_common(call, sizes[name]) for name in wanted), operands[0].dtype)
    rows, along = first
    if along not in wanted:
        refuse("sums over the rows")
    for value, names in zip(operands, labels, strict=True):
        _must_meet(value, names, rows, along)
    shape = [rows.known_shape[rows.axis] if name == along else _common(call, sizes[name]) for name in wanted]
    return rows.moved(shape, wanted.index(along)).typed(operands[0].dtype)


def _must_meet(value: Value, names: Sequence[Label], rows: Value, along: Label) -> None:
    """
    Raises:
        NotProved: an operand has its rows elsewhere, or is none and longer than 1 along them.
    """
    if value.is_rows:
        if names[value.axis] != along or list(names).count(along) > 1:
            refuse("rows meet in different dimensions")
        if value.layout != rows.layout:
            refuse("rows meet in different layouts")
        return
    for name, size in zip(names, value.known_shape, strict=True):
        if name == along and size != 1:
            refuse(f"a constant of size {size} along the rows")


def _common(call: Op, sizes: Sequence[Dim]) -> Dim:
    """The size of what has these sizes, of which some may be 1."""
    longer = [size for size in sizes if size != 1]
    if not longer:
        return 1
    return longer[0] if all(size == longer[0] for size in longer) else call.fresh()


def multiplied(call: Op, a: Value, b: Value) -> Value:
    """
    A product of matrices, or stacks of them, as numpy has it.

    Raises:
        NotProved: as `contracted`.
    """
    batch: list[Label] = list(range(2 - max(a.rank, b.rank, 2), 0))
    left: list[Label] = ["m", "k"] if a.rank > 1 else ["k"]
    right: list[Label] = ["k", "n"] if b.rank > 1 else ["k"]
    labels = [batch[len(batch) + len(ends) - value.rank :] + ends for value, ends in ((a, left), (b, right))]
    return contracted(call, [a, b], labels, batch + left[:-1] + right[1:])


def _turned(value: Value, flag: int) -> Value:
    """A value with its last two dimensions exchanged, if the flag is set; a vector as it is."""
    if not flag or value.rank < 2:
        return value
    order = list(range(value.rank))
    order[-2:] = order[:-3:-1]
    return transposed(value, order)


# ---- floats -----------------------------------------------------------------------------------------------------


def _say_what_rounds(call: Op) -> None:
    """
    Of weights of few bits, which onnxruntime keeps as they are: it rounds each row to 8 bits and adds up whole numbers.

    Source: onnxruntime's fusion of DequantizeLinear and MatMul or Gemm to MatMulNBits, at accuracy level 4.
    """
    if call.value(1).is_dequantized and call.value(0).noise.grade is not Grade.EXACT:
        call.rounds = Rounds.STEPS


@rule("MatMul", rounds=Rounds.SUMS)
def mat_mul(call: Op) -> Value:
    _say_what_rounds(call)
    return multiplied(call, call.value(0), call.value(1))


@rule("FusedMatMul", domain=_MICROSOFT, rounds=Rounds.SUMS)
def fused_mat_mul(call: Op) -> Value:
    if call.integer("transBatchA", 0) or call.integer("transBatchB", 0):
        refuse("moves its first dimension")
    a, b = call.value(0), call.value(1)
    return multiplied(call, _turned(a, call.integer("transA", 0)), _turned(b, call.integer("transB", 0)))


@rule("Gemm", rounds=Rounds.SUMS, since=7)
def gemm(call: Op) -> Value:
    _say_what_rounds(call)
    return _with_bias(call, _product_of_two(call, call.value(0), call.value(1)), call.optional(2))


rule("FusedGemm", domain=_MICROSOFT, rounds=Rounds.SUMS)(gemm)  # an activation besides, element by element


def _product_of_two(call: Op, a: Value, b: Value) -> Value:
    if a.rank != 2 or b.rank != 2:
        refuse("operands are no matrices")
    return multiplied(call, _turned(a, call.integer("transA", 0)), _turned(b, call.integer("transB", 0)))


def _with_bias(call: Op, product: Value, bias: Value | None) -> Value:
    """
    A product to which something is added, which is stretched to its shape and never stretches it.

    Raises:
        NotProved: rows of the bias are not those of the product.
    """
    if bias is None:
        return product
    total = broadcast(call, [product, bias])
    if (total.is_rows and not product.is_rows) or total.rank != product.rank:
        refuse("the bias has rows that the product lacks")
    return product


@rule("Einsum", rounds=Rounds.SUMS, since=12)
def einsum(call: Op) -> Value:
    if call.x.dtype in ("int64", "uint64"):  # onnxruntime sums them as ReduceSum does
        call.rounds = Rounds.SUMS_AND_STEPS
    equation = call.text("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    letters = left.replace(",", "")
    if not (letters + right).isalpha():
        refuse("an equation with an ellipsis")
    if not arrow:
        if letters != letters.lower():
            refuse("an equation without a result, where onnxruntime does not order capital letters")
        right = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    if not set(right) <= set(letters) or len(set(right)) != len(right) or len(terms) != len(call.given):
        refuse("an equation that does not fit")
    return contracted(call, call.given, terms, right)


# ---- integers, which add up the same in any order ----------------------------------------------------------------


def _must_be_one_scale(*values: Value | None) -> None:
    """
    Raises:
        NotProved: a scale or zero point is not a single one.
    """
    for value in values:
        if value is not None and value.shape not in ((), (1,)):
            refuse("scales that may differ from row to row")


def _must_be_scales_of(operand: Value, *values: Value | None) -> None:
    """
    Raises:
        NotProved: a scale or zero point depends on rows, or there are many of an operand that has rows.
    """
    if operand.is_rows:
        _must_be_one_scale(*values)
    must_be_constant(*values)


@rule("MatMulInteger", since=10)
def mat_mul_integer(call: Op) -> Value:
    a, b = call.value(0), call.value(1)
    _must_be_one_scale(call.optional(2))
    _must_be_scales_of(b, call.optional(3))
    return multiplied(call, a, b).typed("int32")


@rule("QLinearMatMul", rounds=Rounds.STEPS, since=10)
def q_linear_mat_mul(call: Op) -> Value:
    a, b = call.value(0), call.value(3)
    _must_be_one_scale(call.value(1), call.value(2), call.value(6), call.value(7))
    _must_be_scales_of(b, call.value(4), call.value(5))
    return multiplied(call, a, b).typed(call.value(7).dtype)


@rule("QGemm", domain=_MICROSOFT)
def q_gemm(call: Op) -> Value:
    a, b, y_scale, y_zero_point = call.value(0), call.value(3), call.optional(7), call.optional(8)
    _must_be_one_scale(call.value(1), call.value(2), y_scale, y_zero_point)
    _must_be_scales_of(b, call.value(4), call.value(5))
    product = _with_bias(call, _product_of_two(call, a, b), call.optional(6))
    call.rounds = Rounds.SUMS if y_scale is None else Rounds.STEPS
    return product.typed("float32" if y_zero_point is None else y_zero_point.dtype)


@rule("MatMulIntegerToFloat", domain=_MICROSOFT, rounds=Rounds.SUMS)
def mat_mul_integer_to_float(call: Op) -> Value:
    a, b, scale = call.value(0), call.value(1), call.value(2)
    _must_be_one_scale(scale, call.optional(4))
    _must_be_scales_of(b, call.value(3), call.optional(5), call.optional(6))
    return multiplied(call, a, b).typed(scale.dtype)


@rule("MatMulNBits", domain=_MICROSOFT)
def mat_mul_n_bits(call: Op) -> Value:
    """A product with packed weights; at accuracy level 4 rows are rounded to 8 bits first, each by itself."""
    x = call.x
    must_be_constant(*call.inputs[1:])
    if x.known_shape[-1:] != (call.integer("K"),):
        refuse("another number of columns than the weights have")
    rounds_rows = call.integer("accuracy_level", 0) > 1 and x.noise.grade is not Grade.EXACT
    call.rounds = Rounds.STEPS if rounds_rows else Rounds.SUMS
    return like(x, [*x.known_shape[:-1], call.integer("N")], x.axis)
