"""
Whether a row was answered alone as it was together with others, up to what rounding may do. Pure.

Kernels sum in another order when more rows are there, so that equal bits cannot be asked of every model; and what lies
near 0 may differ by any factor, so that a share of each value cannot be asked either: a row's largest value is the
measure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cortex.replica.prediction.batching import NotRowwise, Outputs
from cortex.wire.batching import TOLERANCES, Disagreement, Rounding
from cortex.wire.signature import Signature

TIES_APART: Final = 10_000
"""
Rows that must lie between two which may be a tie. One that falls the other way by rounding is rarer than that, so the
second is none.
"""
_MAX_VALUE_CHARS: Final = 80


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """What comparing two answers has shown."""

    worst: float = 0.0
    """The largest difference within the tolerance, as a share of it."""
    disagreement: Disagreement | None = None
    """The first output that is not equal, where it is so the least."""
    may_be_tie: bool = False
    """Rounding alone explains the disagreement, should it be seen no second time."""


def compare(alone: Outputs, together: Outputs, signature: Signature, rounding: Rounding) -> Comparison:
    """
    Compare what rows gave alone with what they gave together with others.

    Floats may differ by `TOLERANCES`, by none of their bits if `rounding` is `exact`; infinities and NaN have to be in
    the same places. Everything else has to be equal.

    Args:
        alone: in the order of the signature's outputs: arrays with a row of each, or lists with an item a row.
        together: the same rows' part of a larger run.

    Returns:
        With `labels` a label that differs while all floats agree may be a tie; with `steps` also a float.
    """
    worst = 0.0
    floats: Disagreement | None = None
    labels: Disagreement | None = None
    for spec, one, other in zip(signature.outputs, alone, together, strict=True):
        for dtype, left, right in _pairs(spec.dtype, one, other):
            if left.shape != right.shape or left.dtype != right.dtype:
                found = Disagreement(output=spec.name, alone=_outline(left), together=_outline(right))
                return Comparison(worst, found)
            if left.size == 0:
                continue
            if dtype not in TOLERANCES:
                place = _label_apart(left, right)
                if place is not None and labels is None:
                    labels = _described(spec.name, left, right, place)
            elif rounding == "exact":
                place = _bits_apart(left, right)
                if place is not None and floats is None:
                    floats = _described(spec.name, left, right, place)
            else:
                share, place, tolerance = _float_apart(left, right, dtype)
                if share <= 1:
                    worst = max(worst, share)
                elif floats is None:
                    floats = _described(spec.name, left, right, place, tolerance)
    if floats is not None:
        return Comparison(worst, floats, rounding == "steps")
    return Comparison(worst, labels, labels is not None and rounding in ("labels", "steps"))


class Judge:
    """
    Decides which of many comparisons are a disagreement: all that are none of a tie's, and a tie's second.

    A tie cannot be told from a fault by itself; by how often it comes it can.
    """

    def __init__(self) -> None:
        self.rows = 0
        """How many were compared."""
        self.worst = 0.0
        """As of `Comparison`, of all of them."""
        self._last_tie: int | None = None

    def weigh(self, comparison: Comparison) -> Disagreement | None:
        """Take one more row into account. Returns what shows that rows depend on each other, if it does."""
        self.rows += 1
        self.worst = max(self.worst, comparison.worst)
        if comparison.disagreement is None or not comparison.may_be_tie:
            return comparison.disagreement
        last, self._last_tie = self._last_tie, self.rows
        return comparison.disagreement if last is not None and self.rows - last < TIES_APART else None


def row_of(outputs: Outputs, row: int) -> list[Any]:
    """One row's part of the outputs of several; arrays are views."""
    return [output[row : row + 1] for output in outputs]


def rows_lost(error: NotRowwise, signature: Signature) -> Disagreement:
    """The disagreement that is in another number of rows than went in."""
    return Disagreement(output=signature.outputs[error.index].name, alone=f"{error.rows} rows", together=error.found)


def failed_together(reason: str) -> Disagreement:
    """The disagreement that is in a batch's failing though none of its rows fails alone."""
    return Disagreement(output="", alone="an answer", together=_cut(reason))


def explained(found: Disagreement) -> str:
    """A disagreement in words that go behind a colon."""
    where = f'output "{found.output}": ' if found.output else ""
    size = "" if found.difference is None else f", {found.difference:.3g} apart where {found.tolerance:.3g} is allowed"
    return f"{where}alone {found.alone}, together {found.together}{size}"


# ---- values ---------------------------------------------------------------------------------------------------------


def _pairs(dtype: str, alone: Any, together: Any) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """
    What of an output is compared as one: arrays with a row of each, and the type that says what they may differ by.

    Of a list each item is a row, and so are the values of a map. Where lists or keys are not equal themselves, these
    are.
    """
    if isinstance(alone, Mapping) and isinstance(together, Mapping):
        keys, others = sorted(map(repr, alone)), sorted(map(repr, together))
        if keys != others:
            yield "", _array([", ".join(keys)]), _array([", ".join(others)])
            return
        values = _array([list(alone.values())])
        yield _type_of(values, dtype), values, _array([[together[key] for key in alone]])
    elif isinstance(alone, list) and isinstance(together, list):
        if len(alone) != len(together):
            yield "", np.empty(len(alone), object), np.empty(len(together), object)
            return
        for one, other in zip(alone, together, strict=True):
            yield from _pairs(dtype, _as_row(one), _as_row(other))
    else:
        left, right = _array(alone), _array(together)
        yield _type_of(left, dtype), left, right


def _as_row(item: Any) -> Any:
    return item if isinstance(item, Mapping | list) else _array(item)[np.newaxis]


def _array(value: Any) -> NDArray[Any]:
    """As an array; text in objects, whose type does not go by its length."""
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind in "US" else array


def _type_of(values: NDArray[Any], dtype: str) -> str:
    """The type whose tolerance holds: the declared one, if these are floats. Those of maps arrive as Python's."""
    if values.dtype.kind != "f":
        return ""
    return dtype if dtype in TOLERANCES else "float32"


def _label_apart(alone: NDArray[Any], together: NDArray[Any]) -> int | None:
    """Flat index of what differs, of numbers what differs most; None: all are equal."""
    same = np.asarray(alone == together, dtype=np.bool_).ravel()
    if same.all():
        return None
    if alone.dtype.kind in "iu":
        apart = np.abs(alone.astype(np.float64) - together.astype(np.float64)).ravel()
        return int(np.argmax(np.where(same, -1.0, apart)))
    return int(np.argmin(same))


def _bits_apart(alone: NDArray[Any], together: NDArray[Any]) -> int | None:
    """As `_label_apart`, for floats. One NaN is as good as another."""
    bits = f"u{alone.dtype.itemsize}"
    same = np.ascontiguousarray(alone).view(bits) == np.ascontiguousarray(together).view(bits)
    same = (same | (np.isnan(alone) & np.isnan(together))).ravel()
    if same.all():
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(alone.astype(np.float64) - together.astype(np.float64)).ravel()
    return int(np.argmax(np.where(same, -1.0, np.nan_to_num(apart, nan=np.inf))))


def _float_apart(alone: NDArray[Any], together: NDArray[Any], dtype: str) -> tuple[float, int, float]:
    """
    The largest difference.

    Returns:
        Its share of what is allowed there, its flat index, and what is allowed.
    """
    absolute, relative = TOLERANCES[dtype]
    rows = alone.shape[0] if alone.ndim else 1
    left = alone.astype(np.float64).reshape(rows, -1)
    right = together.astype(np.float64).reshape(rows, -1)
    largest = np.max(np.abs(left), axis=1, initial=0.0, where=np.isfinite(left), keepdims=True)
    allowed = np.broadcast_to(absolute + relative * largest, left.shape)
    with np.errstate(invalid="ignore", over="ignore"):
        share = np.abs(left - right) / allowed
    is_equal = (left == right) | (np.isnan(left) & np.isnan(right))
    finite = np.isfinite(left) & np.isfinite(right)
    share = np.where(is_equal, 0.0, np.where(finite, share, np.inf))
    place = int(np.argmax(share))
    return float(share.flat[place]), place, float(allowed.flat[place])


def _described(
    output: str, alone: NDArray[Any], together: NDArray[Any], place: int, tolerance: float = 0.0
) -> Disagreement:
    left, right = alone.flat[place], together.flat[place]
    difference: float | None = None
    if alone.dtype.kind in "iuf":
        with np.errstate(invalid="ignore", over="ignore"):
            difference = abs(float(left) - float(right))
        if not np.isfinite(difference):
            difference = None
    return Disagreement(
        output=output, alone=_text(left), together=_text(right), difference=difference, tolerance=tolerance
    )


def _text(value: Any) -> str:
    return _cut(repr(value) if isinstance(value, str | bytes) else str(value))


def _outline(values: NDArray[Any]) -> str:
    name = "" if values.dtype == object else values.dtype.name
    return f"{name}{list(values.shape)}"


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 1] + "…"
