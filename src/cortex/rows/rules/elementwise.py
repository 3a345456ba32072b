"""Element by element, with broadcasting: rows must meet in one dimension, and a constant have size 1 there."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from cortex.rows.refusal import NotProved, refuse
from cortex.rows.rules.registry import COUNTED, Op, Rounds, axis_of, must_be_constant, rule
from cortex.rows.sizes import (
    NUMBER_OF_ROWS,
    ROWS,
    Dim,
    Term,
    divided,
    equal,
    is_number,
    magnitude,
    suppose_within,
    times,
)
from cortex.rows.values import NUMBERS, Element, Kind, Shape, Value, known, uniform
from cortex.wire.graphs import MAX_ELEMENTS

_MICROSOFT: Final = "com.microsoft"

_EXACT: Final = {
    "Abs": "clears the sign",
    "Add": "one correctly rounded operation an element, as the others here",
    "And": "logic",
    "BitwiseAnd": "bits",
    "BitwiseNot": "bits",
    "BitwiseOr": "bits",
    "BitwiseXor": "bits",
    "BitShift": "bits",
    "Div": "correctly rounded",
    "IsInf": "what is infinite is so in whichever order a sum rounds",
    "IsNaN": "what is no number is none in whichever order a sum rounds",
    "Mul": "correctly rounded",
    "Neg": "turns the sign",
    "Not": "logic",
    "Or": "logic",
    "Reciprocal": "correctly rounded",
    "Sqrt": "correctly rounded",
    "StringConcat": "text beside text",
    "Sub": "correctly rounded",
    "Sum": "operands added in their order",
    "Xor": "logic",
}
_CURVES: Final = {
    "Acos": "a polynomial, which vector and remainder of a loop may round in other ways, as the others here",
    "Acosh": "",
    "Asin": "",
    "Asinh": "",
    "Atan": "",
    "Atanh": "",
    "Celu": "",
    "Cos": "",
    "Cosh": "",
    "Elu": "",
    "Erf": "",
    "Exp": "",
    "Gelu": "",
    "HardSigmoid": "a product and a sum, which may be one operation or two",
    "HardSwish": "as HardSigmoid",
    "LeakyRelu": "0 and -0 are equal: vector and remainder of a loop may pick another one",
    "Log": "",
    "Max": "as LeakyRelu",
    "Mean": "a sum and a quotient",
    "Min": "as LeakyRelu",
    "Mish": "",
    "PRelu": "as LeakyRelu",
    "Pow": "",
    "Relu": "as LeakyRelu",
    "Selu": "",
    "Sigmoid": "",
    "Sin": "",
    "Sinh": "",
    "Softplus": "",
    "Softsign": "",
    "Swish": "",
    "Tan": "",
    "Tanh": "",
}
_BORDERS: Final = {
    "Equal": "true or false",
    "Greater": "true or false",
    "GreaterOrEqual": "true or false",
    "Less": "true or false",
    "LessOrEqual": "true or false",
    "RegexFullMatch": "true or false",
    "Shrink": "jumps at lambd",
    "Sign": "jumps at 0",
    "ThresholdedRelu": "jumps at alpha",
}
_GRIDS: Final = {
    "Ceil": "to whole numbers",
    "Floor": "to whole numbers",
    "Mod": "jumps at each multiple",
    "Round": "to whole numbers",
}
_MICROSOFT_CURVES: Final = {
    "BiasGelu": "a sum with a bias, and a curve",
    "FastGelu": "a curve, after a sum with a bias if there is one",
    "Gelu": "a curve",
    "QuickGelu": "a curve",
}
_TRUTHS: Final = frozenset(
    {"Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "And", "Or", "Xor", "Not"}
    | {"RegexFullMatch"}
)

_DTYPES: Final = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
"""
By the number that stands for it in ONNX.

Source: TensorProto.DataType in onnx.proto3.
"""


_WIDE: Final = frozenset({"int32", "int64", "uint32", "uint64", "float32", "float64"})
"""Types that sizes are computed in; 32-bit floats do not hold a row's place among all elements."""


def broadcast(call: Op, values: Sequence[Value]) -> Value:
    """
    What is known of a value that is computed element by element, with broadcasting.

    Of row numbers it is their sum with something, or it has a shape and no more use.

    Raises:
        NotProved: rows meet in different dimensions or layouts, or a constant is not of size 1 along them.
    """
    for value in values:
        if value.counts_rows:
            refuse(COUNTED)
    with_rows = [value for value in values if not value.is_uniform]
    dtype = values[0].dtype if values else ""
    if not with_rows:
        if any(value.shape is None for value in values):
            return uniform(dtype=dtype)
        return uniform(_broadcast_shape([value.known_shape for value in values], call), dtype)
    rank = max(value.rank for value in values)
    first = with_rows[0]
    axis = first.axis + rank - first.rank
    for value in values:
        offset = rank - value.rank
        if not value.is_uniform:
            if value.axis + offset != axis:
                refuse("rows meet in different dimensions")
            if value.layout != first.layout:
                refuse("rows meet in different layouts")
        elif axis >= offset and value.known_shape[axis - offset] != 1:
            refuse(f"a constant of size {value.known_shape[axis - offset]} along the rows")
    shape = list(_broadcast_shape([_without(value, rank, axis) for value in values], call))
    shape[axis] = first.known_shape[first.axis]
    found = dataclasses.replace(first.moved(shape, axis), kind=Kind.ROWS, stride=1, is_start=False, dtype=dtype)
    return _numbered(call, values, found) if any(value.kind in NUMBERS for value in values) else found


def _numbered(call: Op, values: Sequence[Value], found: Value) -> Value:
    """A row's number times a stride, plus what is less than the stride, is a place of that row; all else no use."""
    places = [value for value in values if value.kind is Kind.PLACES]
    others = [value for value in values if value.kind is not Kind.PLACES]
    if len(places) == len(others) == 1 and places[0].is_start:
        place, other = places[0], others[0]
        is_wide = place.dtype in INTEGERS or place.dtype == "float64"
        if (
            call.operator == "Mul"
            and place.stride == 1
            and is_wide
            and other.elements is not None
            and len(other.elements) == 1
        ):
            (stride,) = other.elements
            is_stride = isinstance(stride, Term) or (isinstance(stride, int) and is_number(stride) and stride > 0)
            if is_stride and holds(place.dtype, times(NUMBER_OF_ROWS, stride)):  # type: ignore[arg-type]
                return dataclasses.replace(found, kind=Kind.PLACES, stride=stride, is_start=True)  # type: ignore[arg-type]
        if call.operator == "Add" and other.below == place.stride and other.kind is not Kind.NUMBERED:
            return dataclasses.replace(found, kind=Kind.PLACES, stride=place.stride, is_start=False)
    return dataclasses.replace(found, kind=Kind.NUMBERED)


def _without(value: Value, rank: int, axis: int) -> Shape:
    """The shape, with 1 in place of the rows."""
    index = axis - rank + value.rank
    return tuple(1 if place == index else dim for place, dim in enumerate(value.known_shape))


def _broadcast_shape(shapes: Sequence[Shape], call: Op) -> Shape:
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Dim] = []
    for place in range(-rank, 0):
        sizes = [shape[place] for shape in shapes if -place <= len(shape) and shape[place] != 1]
        if not sizes:
            result.append(1)
        elif all(equal(size, sizes[0]) for size in sizes if isinstance(size, Term) == isinstance(sizes[0], Term)):
            result.append(next((size for size in sizes if isinstance(size, int)), sizes[0]))
        else:  # a number wins over a symbol, which is that number, or 1, or does not fit
            least = min(size if isinstance(size, int) else size.least or 0 for size in sizes)
            any_size = call.symbols.fresh(least=min(1, least))
            result.append(next((size for size in sizes if isinstance(size, int)), any_size))
    return tuple(result)


def _elementwise(call: Op) -> Value:
    if not call.given:
        refuse("there are no operands")
    if call.opset < 7 and not call.domain and (call.has("axis") or call.has("broadcast")):
        refuse("broadcasting as it was before operator set 7")
    found = _evaluated(call, call.given)
    if found is not None:
        return found
    result = broadcast(call, call.given)
    return result.typed("bool") if call.operator in _TRUTHS else result


rule(*_EXACT, rounds=Rounds.NOTHING, takes=NUMBERS, takes_counts=True)(_elementwise)
rule(*_CURVES, rounds=Rounds.SUMS, takes=NUMBERS, takes_counts=True)(_elementwise)
rule(*_BORDERS, rounds=Rounds.CHOOSES, takes=NUMBERS, takes_counts=True)(_elementwise)
rule(*_GRIDS, rounds=Rounds.STEPS, takes=NUMBERS, takes_counts=True)(_elementwise)
rule(*_MICROSOFT_CURVES, domain=_MICROSOFT, rounds=Rounds.SUMS)(_elementwise)


@rule("Where", takes=NUMBERS, takes_counts=True)
def where(call: Op) -> Value:
    condition, chosen, other = call.value(0), call.value(1), call.value(2)
    found = _evaluated(call, [condition, chosen, other])
    if found is not None:
        return found.typed(chosen.dtype)
    return broadcast(call, [condition, chosen, other]).typed(chosen.dtype)


@rule("Identity", takes=frozenset(Kind) - {Kind.MIXED}, takes_counts=True, keeps_bounds=True)
def identity(call: Op) -> Value:
    return call.x


@rule("Cast", takes=NUMBERS, takes_counts=True, keeps_bounds=True)
def cast(call: Op) -> Value:
    return converted(call, call.x, _DTYPES.get(call.integer("to"), ""))


@rule("CastLike", takes_counts=True)
def cast_like(call: Op) -> Value:
    return converted(call, call.x, call.value(1).dtype)


def converted(call: Op, value: Value, dtype: str) -> Value:
    """A value in another type; says what that adds to noise."""
    is_float = not value.dtype or value.dtype.startswith(("float", "bfloat"))
    to_float = dtype.startswith(("float", "bfloat"))
    if is_float and not to_float and not value.is_whole:
        call.rounds = Rounds.CHOOSES if dtype == "bool" else Rounds.STEPS
    if is_float and dtype == "uint32":
        call.rounds = Rounds.SUMS_AND_STEPS  # what does not fit becomes 0 in a vector, and not in its remainder
    if value.kind is Kind.PLACES and not (
        dtype in _WIDE
        and (dtype != "float32" or value.stride == 1)
        and holds(dtype, times(NUMBER_OF_ROWS, value.stride))
    ):
        value = dataclasses.replace(value, kind=Kind.NUMBERED)
    is_whole = value.dtype in INTEGERS or value.dtype == "bool" or value.is_whole
    value = dataclasses.replace(value, is_whole=is_whole and dtype in ("float32", "float64"))
    if value.dtype == "bool" and dtype in _WIDE:
        value = dataclasses.replace(value, below=2)
    elif dtype not in _WIDE:
        value = dataclasses.replace(value, below=None)
    if value.elements is not None:
        try:
            elements = tuple(_cast(call, element, value.dtype, dtype) for element in value.elements)
            return bounded(dataclasses.replace(value, dtype=dtype, elements=elements), value.below)
        except NotProved:
            if value.counts_rows:
                raise
            return bounded(dataclasses.replace(value, dtype=dtype, elements=None), value.below)
    if value.counts_rows:
        refuse(COUNTED)
    return bounded(value.typed(dtype), value.below)


def _cast(call: Op, element: Element, source: str, dtype: str) -> Element:
    if isinstance(element, Term):
        if _keeps_all(source, dtype):
            return element
        is_whole = source in INTEGERS or _is_whole(element)
        if is_whole and dtype in _WIDE and holds(dtype, element):
            return element
        return call.formula(f"{source} as {dtype}", element)
    if isinstance(element, str):
        return refuse("text and numbers")
    if isinstance(element, float) and not math.isfinite(element):
        return refuse("no finite number")
    if dtype == "bool":
        return bool(element)
    return stored(int(element) if dtype in INTEGERS else float(element), dtype)


INTEGERS: Final = {
    f"{prefix}int{bits}": (0, 2**bits) if prefix else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    for prefix in ("", "u") for bits in (8, 16, 32, 64)
}  # fmt: skip
"""From where to below where their numbers go."""
_FLOATS: Final = frozenset({"float16", "float32", "float64"})
EXACT_TO: Final = {"float16": 2**11, "float32": 2**24, "float64": 2**53}
"""Up to where floats hold each whole number, either sign."""


def most_of(dtype: str) -> int | None:
    """Up to where a type holds each whole number, and no arithmetic leaves it or rounds; None of an unknown type."""
    return INTEGERS[dtype][1] - 1 if dtype in INTEGERS else EXACT_TO.get(dtype)


def holds(dtype: str, number: Dim) -> bool:
    """
    Whether numbers of this type can be a whole number, as it is, whatever its symbols stand for.

    Raises:
        Supposition: they can where sizes of inputs are not as long as they may be.
    """
    most = most_of(dtype)
    least = number if isinstance(number, int) else number.least
    if most is None or (dtype.startswith("uint") and (least is None or least < 0)):
        return False
    return suppose_within(number, most)


def bounded(value: Value, below: Dim | None) -> Value:
    """The value, of whole numbers from 0 to below this; without a bound where its type may round them."""
    most, found = most_of(value.dtype), None if below is None else magnitude(below)
    return dataclasses.replace(value, below=below if most is not None and found is not None and found <= most else None)


def held(call: Op, number: Dim, dtype: str, *, name: str = "") -> Dim:
    """A size in this type; a symbol of its own, which nothing is known of, where it might not be in it as it is."""
    return number if holds(dtype, number) else call.formula(f"{name or call.operator} in {dtype}", number)


def _keeps_all(source: str, dtype: str) -> bool:
    """Whether each number of a type is one of the other type, too."""
    if source == dtype:
        return bool(dtype)
    if source in INTEGERS and dtype in INTEGERS:
        return INTEGERS[dtype][0] <= INTEGERS[source][0] and INTEGERS[source][1] <= INTEGERS[dtype][1]
    if source in INTEGERS:
        return INTEGERS[source][1] <= EXACT_TO.get(dtype, 0)
    return EXACT_TO.get(source, math.inf) <= EXACT_TO.get(dtype, 0)


def stored(number: Element, dtype: str) -> Element:
    """
    A plain number as a tensor of this type holds it.

    Raises:
        NotProved: it is out of range, or nothing is known of the type.
    """
    if dtype in INTEGERS and isinstance(number, int):
        least, limit = INTEGERS[dtype]
        return number if least <= number < limit else refuse(f"a number that is none of {dtype}")
    if dtype in _FLOATS and isinstance(number, int | float):
        with np.errstate(over="ignore"):
            found = float(np.asarray(number).astype(dtype))
        return found if math.isfinite(found) else refuse(f"a number that is none of {dtype}")
    return refuse(f"elements of {dtype or 'an unknown type'}")


def _is_whole(size: Term) -> bool:
    """Whether a size is certainly a size: in floats a formula may be a fraction."""
    return all(symbol.least is not None for symbol in size.symbols)


@rule("Clip", rounds=Rounds.SUMS, takes_counts=True)
def clip(call: Op) -> Value:
    must_be_constant(*call.inputs[1:])
    if call.x.counts_rows:
        refuse(COUNTED)
    return call.x if call.x.is_rows else uniform(call.x.shape, call.x.dtype)


@rule("Dropout", when_uniform=False)
def dropout(call: Op) -> list[Value]:
    training = call.optional(2)
    if training is not None and (training.elements is None or any(training.elements)):
        refuse("random numbers, as in training")
    if call.opset < 7 and not call.integer("is_test", 0):
        refuse("random numbers, as in training")
    mask = call.x if call.x.is_rows else uniform(call.x.shape)
    return [call.x, mask.typed("bool")]


@rule("QuantizeLinear", rounds=Rounds.STEPS)
def quantize(call: Op) -> Value:
    zero_point = call.optional(2)
    return _scaled(call).typed(zero_point.dtype if zero_point is not None else "uint8")


@rule("DequantizeLinear")
def dequantize(call: Op) -> Value:
    found = _scaled(call).typed(call.value(1).dtype)
    return dataclasses.replace(found, is_dequantized=True) if found.is_uniform else found


rule("QuantizeLinear", domain=_MICROSOFT, rounds=Rounds.STEPS)(quantize)
rule("DequantizeLinear", domain=_MICROSOFT)(dequantize)


def _scaled(call: Op) -> Value:
    x, scale = call.x, call.value(1)
    must_be_constant(*call.inputs[1:])
    if x.is_uniform:
        return uniform(x.shape)
    if call.has("block_size") and call.integer("block_size"):
        refuse("scales by blocks")
    if scale.known_shape not in ((), (1,)) and axis_of(call.integer("axis", 1), x.rank) == x.axis:
        refuse("a scale for each row")
    return x


@rule("QLinearAdd", "QLinearMul", domain=_MICROSOFT)
def quantized_pair(call: Op) -> Value:
    must_be_constant(*(value for index, value in enumerate(call.inputs) if index not in (0, 3)))
    return broadcast(call, [call.value(0), call.value(3)])


@rule("QLinearSigmoid", "QLinearLeakyRelu", domain=_MICROSOFT)
def quantized_curve(call: Op) -> Value:
    must_be_constant(*call.inputs[1:])
    return call.x if call.x.is_rows else uniform(call.x.shape, call.x.dtype)


# ---- sizes as elements ------------------------------------------------------------------------------------------


def _quotient(a: Any, b: Any) -> Any:
    """Truncated as C has it for integers, which onnxruntime follows."""
    if isinstance(a, int) and isinstance(b, int):
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    return a / b


def _remainder(a: Any, b: Any) -> Any:
    return a % b if isinstance(a, int) and isinstance(b, int) else refuse("a remainder of floats")


_NUMERIC: Final[dict[str, Callable[..., Any]]] = {
    "Abs": abs,
    "Add": operator.add,
    "And": lambda a, b: a and b,
    "Ceil": lambda a: float(math.ceil(a)),
    "Div": _quotient,
    "Equal": operator.eq,
    "Floor": lambda a: float(math.floor(a)),
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Max": max,
    "Min": min,
    "Mod": _remainder,
    "Mul": operator.mul,
    "Neg": operator.neg,
    "Not": operator.not_,
    "Or": lambda a, b: a or b,
    "Pow": operator.pow,
    "Sqrt": math.sqrt,
    "Sub": operator.sub,
    "Where": lambda condition, a, b: a if condition else b,
}


def _evaluated(call: Op, values: Sequence[Value]) -> Value | None:
    """The result where all elements are known; None where it cannot be told."""
    compute = _NUMERIC.get(call.operator)
    if compute is None or call.domain or any(value.elements is None for value in values):
        return None
    if call.operator == "Mod" and call.integer("fmod", 0):
        return None
    try:
        if math.prod(np.broadcast_shapes(*(value.array().shape for value in values))) > MAX_ELEMENTS:
            return None
        arrays = np.broadcast_arrays(*(value.array() for value in values))
        dtype = values[1 if call.operator == "Where" else 0].dtype
        types = " and ".join(dict.fromkeys(value.dtype for value in values))
        results = [
            element(call, compute, arguments, dtype, types)
            for arguments in zip(*(array.reshape(-1).tolist() for array in arrays), strict=True)
        ]
    except (ValueError, ArithmeticError, TypeError, NotProved):
        return None
    array = np.empty(len(results), dtype=object)
    array[:] = results
    return known(array.reshape(arrays[0].shape), "bool" if call.operator in _TRUTHS else dtype)


def element(call: Op, compute: Callable[..., Any], arguments: tuple[Any, ...], dtype: str, types: str) -> Element:
    """
    One element of a result, a symbol for what is no product, or might leave the type that it is computed in.

    Args:
        dtype: of the result, or of what is compared.
        types: of the numbers that go in, for the name of a symbol.
    """
    name = call.operator
    if any(isinstance(argument, float) and not math.isfinite(argument) for argument in arguments):
        refuse("no finite number")
    if not any(isinstance(argument, Term) for argument in arguments):
        if name == "Pow" and not (all(map(_is_int, arguments)) and 0 <= arguments[1] <= 64):
            refuse("a power that libraries round in their own ways, or too large to compute")
        result: Element = compute(*arguments)
        if name == "Pow" and isinstance(result, int) and abs(result) > EXACT_TO["float64"]:
            refuse("a power of whole numbers, which onnxruntime computes as one of floats")
        return result if isinstance(result, bool | str) or dtype == "bool" else stored(result, dtype)
    a = arguments[0]
    b = arguments[1] if len(arguments) == 2 else None
    sizes = all(_is_int(argument) or (isinstance(argument, Term) and _is_whole(argument)) for argument in arguments)
    sizes = sizes or dtype in INTEGERS
    if name == "Mul" and sizes and b is not None:
        found = times(a, b)
        if holds(dtype, found):
            return found
    if name == "Div" and sizes and b is not None and (isinstance(b, int) or (b.least or 0) > 0):
        quotient = divided(a, b)
        if quotient is not None:
            return quotient
    if name == "Add" and (a == 0 or b == 0):
        return b if a == 0 else a  # type: ignore[return-value]
    if name == "Sub" and (b == 0 or a == b):
        return a if b == 0 else 0
    if name == "Where":
        condition, chosen, other = arguments
        if not isinstance(condition, Term):
            return chosen if condition else other  # type: ignore[no-any-return]
        if chosen == other:
            return chosen  # type: ignore[no-any-return]
    if name in ("Max", "Min") and a == b:
        return a  # type: ignore[no-any-return]
    if name in _COMPARED and b is not None:
        ordered = _ordered(a, b)
        if ordered is not None:
            return ordered in _COMPARED[name]
    return call.formula(f"{name} of {types}", *arguments, most=_most(name, arguments, dtype))


def _most(name: str, arguments: tuple[Any, ...], dtype: str) -> int | None:
    """What a formula of whole numbers is at most, its sign aside; None where nobody knows, or it leaves its type."""
    if dtype not in INTEGERS or not all(isinstance(one, Term) or _is_int(one) for one in arguments):
        return None
    found = [magnitude(argument) for argument in arguments]
    if None in found:
        return None
    sizes = [one for one in found if one is not None]
    least, limit = INTEGERS[dtype]
    if least == 0:  # a difference goes round, below 0
        return None
    match name:
        case "Add" | "Sub":
            most = sum(sizes)
        case "Abs" | "Neg" | "Div":
            most = sizes[0]
        case "Max" | "Min":
            most = max(sizes)
        case "Mod":
            most = sizes[1]
        case _:
            return None
    return most if most < limit else None


_COMPARED: Final = {
    "Equal": (0,),
    "Greater": (1,),
    "GreaterOrEqual": (0, 1),
    "Less": (-1,),
    "LessOrEqual": (-1, 0),
}
"""Which orders make it true."""


def _ordered(a: Any, b: Any) -> int | None:
    """-1, 0 or 1 for less, equal, greater, where that does not depend on what symbols stand for."""
    if a == b:
        return 0
    if isinstance(a, Term) and _is_int(b) and _is_more(a, b):
        return 1
    if isinstance(b, Term) and _is_int(a) and _is_more(b, a):
        return -1
    return None


def _is_more(size: Term, number: int) -> bool:
    """
    Whether a size is certainly more than a number.

    Elsewhere what windows make has places, as nobody serves a model for images of none; where a branch may hang on it
    that has to be certain.
    """
    if size.least is None:
        return False
    return number < (1 if all(symbol.of_input or symbol == ROWS for symbol in size.symbols) else 0)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
