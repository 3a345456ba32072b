"""Shapes as values, and what is made from them: sizes may count the rows there, and nowhere else."""

from __future__ import annotations

from cortex.rows.refusal import refuse
from cortex.rows.rules.elementwise import bounded
from cortex.rows.rules.registry import COUNTED, Op, dims_of, elements_of, rule
from cortex.rows.sizes import NUMBER_OF_ROWS, Dim, Term, counts_rows, product
from cortex.rows.values import NUMBERS, Kind, Value, element_count, filled, scalar, uniform, vector
from cortex.wire.graphs import MAX_ELEMENTS

_ANY_ROWS = NUMBERS | {Kind.ROW_INDICES}


@rule("Constant", when_uniform=False)
def constant(call: Op) -> Value:
    tensor = call.tensor("value")
    if tensor is not None:
        return Value(Kind.UNIFORM, tensor.shape, elements=tensor.elements, dtype=tensor.dtype)
    for name, dtype in (("value_int", "int64"), ("value_float", "float32"), ("value_string", "string")):
        found = call.attributes.get(name)
        if isinstance(found, int | float | str):
            return scalar(found, dtype)
    for name, dtype in (("value_ints", "int64"), ("value_floats", "float32"), ("value_strings", "string")):
        found = call.attributes.get(name)
        if isinstance(found, tuple):
            if len(found) <= MAX_ELEMENTS:
                return vector(found, dtype)
            return uniform((len(found),), dtype)
    return uniform()


@rule("Shape", takes=_ANY_ROWS, takes_counts=True)
def shape_of(call: Op) -> Value:
    shape = call.x.known_shape
    start = call.integer("start", 0)
    end = call.attributes.get("end")
    return vector(shape[start : end if isinstance(end, int) else None])


@rule("Size", takes=_ANY_ROWS, takes_counts=True)
def size(call: Op) -> Value:
    return scalar(product(call.x.known_shape))


@rule("ConstantOfShape", takes_counts=True)
def constant_of_shape(call: Op) -> Value:
    shape = dims_of(call.x, "the shape")
    tensor = call.tensor("value")
    dtype = tensor.dtype if tensor is not None else "float32"
    with_rows = [index for index, dim in enumerate(shape) if counts_rows(dim)]
    if with_rows:
        return filled(shape, with_rows[0], dtype)
    count = element_count(tuple(shape))
    if count is not None and count <= MAX_ELEMENTS and (tensor is None or tensor.elements):
        element = tensor.elements[0] if tensor is not None and tensor.elements else 0.0
        return Value(Kind.UNIFORM, tuple(shape), elements=(element,) * count, dtype=dtype)
    return uniform(shape, dtype)


@rule("Range", takes_counts=True, keeps_bounds=True)
def range_(call: Op) -> Value:
    start, limit, step = (_only(call.value(index)) for index in range(3))
    dtype = call.x.dtype
    if any(map(counts_rows, (start, limit, step))):
        if start == 0 and step == 1 and limit == NUMBER_OF_ROWS:
            return Value(Kind.PLACES, (NUMBER_OF_ROWS,), axis=0, is_start=True, dtype=dtype)
        refuse(COUNTED)
    if isinstance(start, int) and isinstance(limit, int) and isinstance(step, int) and step:
        found = range(start, limit, step)
        made = vector(list(found), dtype) if len(found) <= MAX_ELEMENTS else uniform((len(found),), dtype)
        return bounded(made, len(found) if start == 0 and step == 1 else None)
    is_length = start == 0 and step == 1 and isinstance(limit, Term) and limit.least is not None
    length: Dim = limit if is_length and isinstance(limit, Term) else call.fresh()
    return bounded(uniform((length,), dtype), length if start == 0 and step == 1 else None)


def _only(value: Value) -> object:
    found = elements_of(value, "a bound")
    return found[0] if len(found) == 1 else refuse("a bound is not known")


@rule("EyeLike")
def eye_like(call: Op) -> Value:
    """Only of uniform values: over rows it is a diagonal."""
    if not call.x.is_uniform:
        refuse("a diagonal over rows")
    return uniform(call.x.shape)
