"""What two operators come to together, where one after the other says little."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from cortex.rows.values import Kind, Value, scalar


class Made(NamedTuple):
    """An operator, and what it is given."""

    operator: str
    inputs: Sequence[Value]


Pattern: TypeAlias = Callable[[Sequence[Value], Sequence[Made]], Made | None]
"""Takes an operator's inputs and what makes each of them, and returns the operator that may stand in its place."""


def bounded(inputs: Sequence[Value], makers: Sequence[Made]) -> Made | None:
    """
    The number that `min(a, max(b, x))` is whatever x is, where a ≤ b.

    Keras bounds a number of categories in this way, by what it knows from both sides.
    """
    for value, other, maker in _both_ways(inputs, makers):
        most = _whole_number(value)
        if most is None or maker.operator != "Maximum" or other.kind is not Kind.MIXED:
            continue
        least = [number for number in map(_whole_number, maker.inputs) if number is not None]
        if least and max(least) >= most:
            return Made("Identity", [scalar(most, value.dtype)])
    return None


def sign_bit(inputs: Sequence[Value], makers: Sequence[Made]) -> Made | None:
    """
    The highest bit of a float: its sign, which is a label, while its bits as a whole jump with each rounding.

    Keras tells 0 and -0 apart in this way before it looks for the largest.
    """
    for value, other, maker in _both_ways(inputs, makers):
        mask = _whole_number(value)
        if maker.operator == "Bitcast" and other.is_rows and mask is not None and mask == _HIGHEST_BIT.get(value.dtype):
            return Made("Sign", maker.inputs)
    return None


_HIGHEST_BIT: Final = {
    "int16": -(1 << 15),
    "int32": -(1 << 31),
    "int64": -(1 << 63),
    "uint16": 1 << 15,
    "uint32": 1 << 31,
    "uint64": 1 << 63,
}


def _both_ways(inputs: Sequence[Value], makers: Sequence[Made]) -> Sequence[tuple[Value, Value, Made]]:
    """Either input, the other one, and what makes that."""
    (a, b), (from_a, from_b) = inputs, makers
    return [(a, b, from_b), (b, a, from_a)]


def _whole_number(value: Value) -> int | None:
    """The only element, if it is a known integer."""
    if value.elements is None or value.shape != () or not value.dtype.startswith(("int", "uint")):
        return None
    (element,) = value.elements
    return element if isinstance(element, int) and not isinstance(element, bool) else None


PATTERNS: Final[Mapping[str, Pattern]] = {"BitwiseAnd": sign_bit, "Minimum": bounded}
"""By the operator that comes last."""
