"""TensorFlow, element by element: arithmetic, curves, comparisons, types, text."""

from __future__ import annotations

import dataclasses
from typing import Final

from cortex.rows.refusal import refuse
from cortex.rows.rules.elementwise import INTEGERS, broadcast, converted, stored
from cortex.rows.rules.layout import inserted
from cortex.rows.rules.reductions import reduced
from cortex.rows.rules.registry import NEWEST, RULES, Op, Rounds, axis_of, must_be_constant, numbers_of
from cortex.rows.rules.tensorflow.registry import rule
from cortex.rows.sizes import Term, divided, equal, is_number, magnitude
from cortex.rows.values import NUMBERS, Element, Kind, Value, uniform

_EXACT: Final = {
    "Abs": "clears the sign",
    "Add": "one correctly rounded operation an element, as the others here",
    "AddN": "operands added in their order",
    "AddV2": "correctly rounded",
    "BitwiseAnd": "bits",
    "BitwiseOr": "bits",
    "BitwiseXor": "bits",
    "Complex": "two numbers beside each other",
    "Conj": "turns a sign",
    "Div": "correctly rounded",
    "DivNoNan": "correctly rounded",
    "Imag": "one of two numbers",
    "Invert": "bits",
    "IsFinite": "what is finite is so in whichever order a sum rounds",
    "IsInf": "as IsFinite",
    "IsNan": "as IsFinite",
    "LeftShift": "bits",
    "LogicalAnd": "logic",
    "LogicalNot": "logic",
    "LogicalOr": "logic",
    "Mul": "correctly rounded",
    "MulNoNan": "correctly rounded",
    "Neg": "turns the sign",
    "OnesLike": "ones",
    "Real": "one of two numbers",
    "RealDiv": "correctly rounded",
    "RightShift": "bits",
    "Square": "correctly rounded",
    "SquaredDifference": "two correctly rounded operations",
    "Sub": "correctly rounded",
    "ZerosLike": "zeros",
}
_CURVES: Final = {
    "Acos": "a polynomial, which vector and remainder of a loop may round in other ways, as the others here",
    "Acosh": "",
    "Angle": "",
    "Asin": "",
    "Asinh": "",
    "Atan": "",
    "Atan2": "",
    "Atanh": "",
    "BesselI0e": "",
    "BesselI1e": "",
    "ClipByValue": "0 and -0 are equal: vector and remainder of a loop may pick another one",
    "ComplexAbs": "a root of a sum of squares",
    "Cos": "",
    "Cosh": "",
    "Digamma": "",
    "Elu": "",
    "Erf": "",
    "Erfc": "",
    "Erfinv": "",
    "Exp": "",
    "Expm1": "",
    "Inv": "an estimate that is refined",
    "LeakyRelu": "as ClipByValue",
    "Lgamma": "",
    "Log": "",
    "Log1p": "",
    "Maximum": "as ClipByValue",
    "Minimum": "as ClipByValue",
    "Ndtri": "",
    "Pow": "",
    "Reciprocal": "an estimate that is refined",
    "Relu": "as ClipByValue",
    "Relu6": "as ClipByValue",
    "Rsqrt": "an estimate that is refined",
    "Selu": "",
    "Sigmoid": "",
    "Sin": "",
    "Sinh": "",
    "Softplus": "",
    "Softsign": "",
    "Sqrt": "an estimate that is refined",
    "Tan": "",
    "Tanh": "",
    "Xdivy": "",
    "Xlog1py": "",
    "Xlogy": "",
}
_BORDERS: Final = {
    "Greater": "true or false",
    "GreaterEqual": "true or false",
    "Less": "true or false",
    "LessEqual": "true or false",
    "Sign": "jumps at 0",
}
_GRIDS: Final = {
    "Ceil": "to whole numbers",
    "Floor": "to whole numbers",
    "FloorDiv": "to whole numbers",
    "FloorMod": "jumps at each multiple",
    "Mod": "jumps at each multiple",
    "Rint": "to whole numbers",
    "Round": "to whole numbers",
    "TruncateDiv": "to whole numbers",
    "TruncateMod": "jumps at each multiple",
}
_TRUTHS: Final = frozenset({"Greater", "GreaterEqual", "Less", "LessEqual", "IsFinite", "IsInf", "IsNan"})

_SAME_IN_ONNX: Final = {
    "Abs": "Abs",
    "Add": "Add",
    "AddV2": "Add",
    "Equal": "Equal",
    "FloorMod": "Mod",
    "Greater": "Greater",
    "GreaterEqual": "GreaterOrEqual",
    "Less": "Less",
    "LessEqual": "LessOrEqual",
    "LogicalAnd": "And",
    "LogicalNot": "Not",
    "LogicalOr": "Or",
    "Maximum": "Max",
    "Minimum": "Min",
    "Mul": "Mul",
    "Neg": "Neg",
    "SelectV2": "Where",
    "Sub": "Sub",
}
"""Operators that compute sizes, and which rule of ONNX knows how: the same for whole numbers."""


def of_known(call: Op) -> Value | None:
    """The result where all elements are known; None where one is not."""
    name = _SAME_IN_ONNX.get(call.operator)
    given = call.given
    if any(value.elements is None for value in given):
        return None
    if call.operator == "FloorDiv":
        return _divided(call, *given)
    if name is None:
        return None
    same = dataclasses.replace(call, operator=name, domain="", opset=NEWEST[""], attributes={})
    result = RULES["", name].function(same)
    return result if isinstance(result, Value) else None


def _divided(call: Op, a: Value, b: Value) -> Value | None:
    """Sizes by a size, rounded down."""
    if b.elements is None or len(b.elements) != 1 or a.elements is None or a.rank < b.rank or a.dtype not in INTEGERS:
        return None
    (by,) = b.elements
    if not (is_number(by) or isinstance(by, Term)) or by == 0:
        return None

    def one(element: Element) -> Element:
        if isinstance(element, int) and isinstance(by, int):
            return stored(element // by, a.dtype)
        if not isinstance(element, int | Term) or not isinstance(by, int | Term):
            return refuse("no size")
        exact = divided(element, by) if isinstance(by, int) or (by.least or 0) > 0 else None
        positive = isinstance(element, int) or element.least is not None
        least = 0 if positive and isinstance(by, int) and by > 0 else None
        most = None if least is None else magnitude(element)
        return exact if exact is not None else call.formula("FloorDiv", element, by, least=least, most=most)

    if any(isinstance(element, bool | float | str) for element in a.elements):
        return None
    return dataclasses.replace(a, elements=tuple(map(one, a.elements)))


def _elementwise(call: Op) -> Value:
    if not call.given:
        refuse("there are no operands")
    found = of_known(call)
    if found is None:
        found = broadcast(_named_as_in_onnx(call), call.given)
    if call.operator in _TRUTHS:
        return found.typed("bool")
    if call.operator in _OF_COMPLEX:
        return found.typed(float_type(call.text("Tout", "")))
    return found.typed(float_type(call.text("T", found.dtype)))


_OF_COMPLEX: Final = frozenset({"Angle", "Complex", "ComplexAbs", "Imag", "Real"})


def float_type(dtype: str) -> str:
    """A type as noise is told by: complex numbers are floats, and have no type here."""
    return "" if dtype.startswith("complex") else dtype


def _named_as_in_onnx(call: Op) -> Op:
    """A product or sum may tell places of rows: under these names."""
    name = _SAME_IN_ONNX.get(call.operator)
    return dataclasses.replace(call, operator=name) if name in ("Add", "Mul") else call


for _names, _rounds in (
    (_EXACT, Rounds.NOTHING),
    (_CURVES, Rounds.SUMS),
    (_BORDERS, Rounds.CHOOSES),
    (_GRIDS, Rounds.STEPS),
):
    rule(*_names, rounds=_rounds, takes=NUMBERS, takes_counts=True)(_elementwise)


@rule("Equal", "NotEqual", rounds=Rounds.CHOOSES, takes=NUMBERS, takes_counts=True)
def equality(call: Op) -> Value:
    """Of shapes that do not fit it may be a single False, which no error tells."""
    x, y = call.value(0), call.value(1)
    if call.attributes.get("incompatible_shape_error", True) is not True:
        rank = min(x.rank, y.rank)
        for a, b in zip(x.known_shape[x.rank - rank :], y.known_shape[y.rank - rank :], strict=True):
            if 1 not in (a, b) and not equal(a, b):
                refuse("sizes that are not provably equal")
    found = of_known(call)
    return (found if found is not None else broadcast(call, [x, y])).typed("bool")


@rule("SelectV2", takes=NUMBERS, takes_counts=True)
def select(call: Op) -> Value:
    found = of_known(call)
    if found is not None:
        return found.typed(call.value(1).dtype)
    return broadcast(call, call.given).typed(call.value(1).dtype)


@rule("Select")
def select_rows(call: Op) -> Value:
    """A condition with one dimension chooses along the first dimension of what it chooses among."""
    condition, chosen, other = call.value(0), call.value(1), call.value(2)
    if condition.rank == 1 and chosen.rank > 1:
        condition = inserted(condition, range(1, chosen.rank))
    return broadcast(call, [condition, chosen, other]).typed(chosen.dtype)


@rule("BiasAdd")
def bias_add(call: Op) -> Value:
    x, bias = call.value(0), call.value(1)
    must_be_constant(bias)
    if call.text("data_format", "NHWC").startswith("NC"):
        bias = inserted(bias, range(1, x.rank - 1))
    return broadcast(call, [x, bias])


_ANY: Final = frozenset(Kind) - {Kind.MIXED}


@rule("Identity", "PreventGradient", "Snapshot", "StopGradient", takes=_ANY, takes_counts=True, keeps_bounds=True)
def identity(call: Op) -> Value:
    return call.x


@rule("IdentityN", takes=_ANY, takes_counts=True, keeps_bounds=True)
def identities(call: Op) -> list[Value]:
    return call.given


@rule("PlaceholderWithDefault", takes_counts=True)
def default(call: Op) -> Value:
    """No caller gives it: the default it is."""
    return call.x


@rule("CheckNumerics", "CheckNumericsV2", "EnsureShape", takes_counts=True)
def checked(call: Op) -> Value:
    """Fails, or hands through what it gets."""
    return call.x


@rule("Cast", takes=NUMBERS, takes_counts=True, keeps_bounds=True)
def cast(call: Op) -> Value:
    dtype = float_type(call.text("DstT"))
    return converted(call, call.x, dtype) if dtype else _same_shape(call.x, dtype)


@rule("Bitcast", rounds=Rounds.STEPS)
def bitcast(call: Op) -> Value:
    wide, narrow = _WIDTHS.get(call.text("T")), _WIDTHS.get(call.text("type"))
    if wide is None or wide != narrow:
        refuse("types of different width")
    return call.x.typed(call.text("type")) if call.x.is_rows else uniform(call.x.shape, call.text("type"))


_WIDTHS: Final = {
    "bfloat16": 2,
    "bool": 1,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "int8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "uint8": 1,
}


@rule("Bucketize", rounds=Rounds.CHOOSES)
def bucketize(call: Op) -> Value:
    return _same_shape(call.x, "int32")


@rule("FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars", rounds=Rounds.STEPS)
def fake_quantize(call: Op) -> Value:
    must_be_constant(*call.inputs[1:])
    return _same_shape(call.x, call.x.dtype)


@rule("FakeQuantWithMinMaxVarsPerChannel", rounds=Rounds.STEPS)
def fake_quantize_channels(call: Op) -> Value:
    must_be_constant(*call.inputs[1:])
    if call.x.is_rows and call.x.axis == call.x.rank - 1:
        refuse("a scale for each row")
    return _same_shape(call.x, call.x.dtype)


@rule("QuantizeAndDequantizeV2", "QuantizeAndDequantizeV3", "QuantizeAndDequantizeV4", rounds=Rounds.STEPS)
def quantize_and_dequantize(call: Op) -> Value:
    must_be_constant(*call.inputs[1:])
    if call.attributes.get("range_given", call.operator == "QuantizeAndDequantizeV3") is not True:
        refuse("one scale for the whole tensor")
    axis = call.integer("axis", -1)  # -1: one scale for all
    if call.x.is_rows and axis != -1 and axis_of(axis, call.x.rank) == call.x.axis:
        refuse("a scale for each row")
    return _same_shape(call.x, call.x.dtype)


def _same_shape(value: Value, dtype: str) -> Value:
    return value.typed(dtype) if value.is_rows else uniform(value.shape, dtype)


# ---- colours --------------------------------------------------------------------------------------------------------


@rule("AdjustHue", "AdjustSaturation", "HSVToRGB", "RGBToHSV", rounds=Rounds.CHOOSES)
def colour(call: Op) -> Value:
    """Pixel by pixel; which of three colours is the largest decides."""
    must_be_constant(*call.inputs[1:])
    if call.x.is_rows and call.x.axis == call.x.rank - 1:
        refuse("rows are colours")
    return _same_shape(call.x, call.x.dtype)


@rule("AdjustContrastv2", rounds=Rounds.SUMS)
def contrast(call: Op) -> Value:
    """About the mean of each picture, which is the last three dimensions."""
    must_be_constant(*call.inputs[1:])
    if call.x.is_rows and call.x.axis >= call.x.rank - 3:
        refuse("rows are within a picture")
    return _same_shape(call.x, call.x.dtype)


# ---- text -----------------------------------------------------------------------------------------------------------

_TEXTS: Final = {
    "AsString": "digits of a number",
    "DecodeBase64": "text out of text, as the others here",
    "EncodeBase64": "",
    "StaticRegexReplace": "",
    "StringLower": "",
    "StringStrip": "",
    "StringUpper": "",
    "UnicodeTranscode": "",
}
_NUMBERS_OF_TEXTS: Final = {
    "StringLength": "int32",
    "StringToHashBucket": "int64",
    "StringToHashBucketFast": "int64",
    "StringToHashBucketStrong": "int64",
    "UnicodeScript": "int32",
}


@rule(*_TEXTS, rounds=Rounds.STEPS)
def text(call: Op) -> Value:
    return _same_shape(call.x, "string")


@rule(*_NUMBERS_OF_TEXTS)
def number_of_text(call: Op) -> Value:
    return _same_shape(call.x, _NUMBERS_OF_TEXTS[call.operator])


@rule("StringToNumber")
def parsed_number(call: Op) -> Value:
    return _same_shape(call.x, call.text("out_type", "float32"))


@rule("StaticRegexFullMatch")
def matches(call: Op) -> Value:
    return _same_shape(call.x, "bool")


@rule("RegexFullMatch", "RegexReplace")
def matches_given(call: Op) -> Value:
    must_be_constant(*call.inputs[1:])
    return _same_shape(call.x, "bool" if call.operator == "RegexFullMatch" else "string")


@rule("StringJoin", "Substr")
def joined_text(call: Op) -> Value:
    return broadcast(call, call.given).typed("string")


@rule("ReduceJoin")
def reduced_text(call: Op) -> Value:
    axes = numbers_of(call.value(1), "axes")
    if not axes:
        refuse("no axes: versions differ in what that means")
    return reduced(call.x, axes, keep=call.attributes.get("keep_dims") is True)
