"""Sizes that have to agree between a model's inputs: those of one name, and numbers of rows. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from cortex.replica.tensors.mismatch import InputMismatch
from cortex.wire.signature import TensorSpec

_GENERATED: Final = re.compile(
    r"none|unk\w*|unknown\w*|dynamic\w*|dyn|any|-?\d+|\w*_dynamic_axes_\d+|DynamicDimension\.\d+|\W*", re.IGNORECASE
)
"""
What exporters write for a dimension that they have no name for: it says nothing of others that are called the same.

Source:
    tf2onnx (`unk__12`), torch.onnx (`x_dynamic_axes_1`), paddle2onnx (`DynamicDimension.0`), onnxmltools (`None`).
"""


class _Place(NamedTuple):
    """A dimension of an input."""

    spec: TensorSpec
    axis: int


class Dimensions:
    """
    Which sizes of a model's inputs have to agree, worked out once.

    Those of one name do, wherever they stand. So do the numbers of rows, the first sizes where they are free, unless
    the model calls them by different names. Where it has no names for them they may be anything but 1 beside more: that
    is the case in which a runtime repeats the one row for all the others, and says nothing.
    """

    __slots__ = ("_alike", "_pairs", "_rows", "any")

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        tensors = [spec for spec in inputs if spec.kind in ("tensor", "ragged") and spec.shape is not None]
        by_name: dict[str, list[_Place]] = {}
        for spec in sorted(tensors, key=lambda spec: spec.optional):  # one that is always there is compared with first
            for axis, dim in enumerate((spec.shape or ()) if spec.kind == "tensor" else ()):
                if _is_name(dim):
                    by_name.setdefault(str(dim), []).append(_Place(spec, axis))
        self._pairs = tuple(pair for places in by_name.values() for pair in _pairs(places))
        free = [spec for spec in tensors if spec.shape and not isinstance(spec.shape[0], int)]
        names = {str(spec.shape[0]) for spec in free if spec.shape and _is_name(spec.shape[0])}
        rows = [spec for spec in free if len(names) == 1 or not _is_name((spec.shape or (None,))[0])]
        self._rows = tuple(rows) if len(rows) > 1 else ()
        same = len({spec.shape for spec in tensors}) == 1 and not any(
            place.spec is other.spec for place, other in self._pairs
        )
        alike = same and len(tensors) > 1 and all(spec.kind == "tensor" and not spec.optional for spec in tensors)
        self._alike = tuple(spec.name for spec in tensors) if alike else ()
        """Inputs of one shape, if all are: what has the same sizes throughout needs no closer look."""
        self.any = bool(self._pairs or self._rows)
        """Whether there is anything to compare."""

    def check(self, feeds: Mapping[str, Any]) -> None:
        """
        Compare what goes into one run.

        Raises:
            InputMismatch: names both inputs and what has to agree.
        """
        if self._alike:
            first, *others = self._alike
            shape = feeds[first].shape
            for name in others:
                if feeds[name].shape != shape:
                    break
            else:
                return
        for place, other in self._pairs:
            one, another = feeds.get(place.spec.name), feeds.get(other.spec.name)
            if one is None or another is None:
                continue
            if one.shape[place.axis] != another.shape[other.axis]:
                raise _sizes_differ(place, other, feeds)
        if self._rows:
            given = [(len(feeds[spec.name]), spec) for spec in self._rows if spec.name in feeds]
            if given:
                fewest, most = min(given, key=_rows), max(given, key=_rows)
                if fewest[0] != most[0] and fewest[0] <= 1:
                    raise _rows_differ(fewest[1], most[1], feeds)

    def uneven_rows(self, feeds: Mapping[str, Any]) -> InputMismatch | None:
        """For a model that refused to run: the mismatch of inputs whose numbers of rows differ at all."""
        given = [(len(feeds[spec.name]), spec) for spec in self._rows if spec.name in feeds]
        if not given:
            return None
        fewest, most = min(given, key=_rows), max(given, key=_rows)
        return None if fewest[0] == most[0] else _rows_differ(fewest[1], most[1], feeds)


def _is_name(dim: object) -> bool:
    return isinstance(dim, str) and _GENERATED.fullmatch(dim) is None


def _pairs(places: Sequence[_Place]) -> Iterable[tuple[_Place, _Place]]:
    """Which to compare so that all are: each with the first, if that is always there."""
    if not places[0].spec.optional:
        return [(place, places[0]) for place in places[1:]]
    return [(place, other) for index, place in enumerate(places) for other in places[:index]]


def _rows(given: tuple[int, TensorSpec]) -> int:
    return given[0]


def _sizes_differ(place: _Place, other: _Place, feeds: Mapping[str, Any]) -> InputMismatch:
    assert place.spec.shape is not None
    size = feeds[place.spec.name].shape[place.axis]
    wanted = feeds[other.spec.name].shape[other.axis]
    if place.axis == other.axis == 0:
        return _rows_differ(place.spec, other.spec, feeds)
    whose = "" if place.spec is other.spec else f' of "{other.spec.name}"'
    name = place.spec.shape[place.axis]
    return _mismatch(
        place.spec,
        feeds,
        f'dimension {place.axis} is {size}, and dimension {other.axis}{whose}, which is "{name}" too, is {wanted}',
        "make both equally long",
    )


def _rows_differ(spec: TensorSpec, other: TensorSpec, feeds: Mapping[str, Any]) -> InputMismatch:
    rows, wanted = len(feeds[spec.name]), len(feeds[other.name])
    return _mismatch(
        spec,
        feeds,
        f'{rows} row{"s" * (rows != 1)} (dimension 0), and "{other.name}" has {wanted}',
        "send as many rows of every input",
    )


def _mismatch(spec: TensorSpec, feeds: Mapping[str, Any], reason: str, hint: str) -> InputMismatch:
    mismatch = InputMismatch(spec, (spec.dtype, getattr(feeds[spec.name], "shape", None)), reason, hint)
    mismatch.expected_dtype, mismatch.expected_shape = spec.dtype, spec.shape  # of one that is ragged, too
    return mismatch
