"""Which shapes a model's input takes, and what to say about one that it does not. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from cortex.wire.signature import Dim, shape_text

Shape: TypeAlias = tuple[int, ...]

_CHANNEL_COUNTS = (1, 2, 3, 4)


class ShapeRules:
    """
    The shape rules of the API for one input, worked out once.

    Args:
        dims: the model's shape; None takes any.
    """

    __slots__ = ("dims", "filled", "filled_count", "takes_column", "takes_row")

    def __init__(self, dims: tuple[Dim, ...] | None) -> None:
        self.dims = dims
        self.filled: Shape = tuple(d if isinstance(d, int) else 1 for d in dims or ())
        """`dims` with free dimensions taken as 1."""
        self.filled_count = -1 if dims is None else math.prod(self.filled)
        """Product of `filled`; -1 for any shape."""
        self.takes_row = dims is not None and len(dims) == 2 and takes_one_row(dims)
        """Whether `[[…]]` with `filled_count` values inside fits as it is, or would but for their number."""
        self.takes_column = dims is not None and len(dims) == 2 and dims[1] == 1 and not isinstance(dims[0], int)
        """Whether a flat list is one value a row."""

    def fit(self, found: Shape) -> Shape | None:
        """
        Return the shape that a value of shape `found` gets; None: it does not fit.

        In this order: as it is; with the first dimension added; one row, or a single value, out of as many values; one
        value a row; nothing at all, with the sizes that an empty list cannot say; with dimensions of 1 that were left
        out, where there is one way to add them. The last keeps the order of the values, so nothing is ever mixed up.
        """
        dims = self.dims
        if dims is None or fits(found, dims):
            return found
        if takes_one_row(dims) and fits(found, dims[1:]):
            return (1, *found)
        if len(found) <= 1 and math.prod(found) == self.filled_count:
            return self.filled
        if self.takes_column and len(found) == 1:
            return (found[0], 1)
        return _emptied(found, dims) or _with_ones(found, dims)


def _emptied(found: Shape, dims: tuple[Dim, ...]) -> Shape | None:
    """
    An empty list says nothing of what would be in its items: the shape that the model's fixed sizes make of it.

    Free sizes behind the empty one are taken as 1.
    """
    if not found or found[-1] != 0:
        return None
    for shape in (found, (1, *found)) if takes_one_row(dims) else (found,):
        if len(shape) < len(dims) and fits(shape, dims[: len(shape)]):
            return shape + tuple(dim if isinstance(dim, int) else 1 for dim in dims[len(shape) :])
    return None


def _with_ones(found: Shape, dims: tuple[Dim, ...]) -> Shape | None:
    """
    `found` with dimensions of 1 added where the model wants exactly 1, or has its free first one.

    None where that does not make it fit, or two different shapes would.
    """
    if len(found) >= len(dims):
        return None
    ways: dict[int, set[Shape]] = {0: {()}}
    """By number of dimensions of `found` that are used up. Of more than two ways two say enough."""
    for index, dim in enumerate(dims):
        may_add = dim == 1 or (index == 0 and not isinstance(dim, int))
        longer: dict[int, set[Shape]] = {}
        for used, shapes in ways.items():
            for shape in shapes:
                if used < len(found) and (found[used] == dim or not isinstance(dim, int)):
                    longer.setdefault(used + 1, set()).add((*shape, found[used]))
                if may_add:
                    longer.setdefault(used, set()).add((*shape, 1))
        ways = {used: set(sorted(shapes)[:2]) for used, shapes in longer.items()}
    fitting = ways.get(len(found), set())
    return next(iter(fitting)) if len(fitting) == 1 else None


def fits(found: Shape, dims: Sequence[Dim]) -> bool:
    """Whether every fixed dimension agrees."""
    if len(found) != len(dims):
        return False
    return all(size == dim or not isinstance(dim, int) for size, dim in zip(found, dims, strict=True))


def takes_one_row(dims: Sequence[Dim]) -> bool:
    """Whether dimension 0 is free or 1, so that a single row may be sent without it."""
    return bool(dims) and (dims[0] == 1 or not isinstance(dims[0], int))


def shape_advice(dims: tuple[Dim, ...], found: Shape, filled_count: int) -> tuple[str, str]:
    """
    Reason and hint for a shape that does not fit.

    Args:
        dims: the model's shape.
        found: the value's shape, which `ShapeRules.fit` refused.
        filled_count: product of `dims` with free dimensions taken as 1.
    """
    rank = len(dims)
    order = _channel_order(dims, found)
    if order:
        return f"channels {order}", f"the model takes {shape_text(dims)}: transpose the image"
    if len(found) == rank - 1 and isinstance(dims[0], int) and dims[0] != 1 and fits(found, dims[1:]):
        return (
            "the batch dimension is missing",
            f"the model takes exactly {dims[0]} rows at once: send a list of {dims[0]} such values",
        )
    if len(found) == rank + 1 and found[0] == 1 and fits(found[1:], dims):
        return "one dimension too many", "take away the outermost brackets"
    if len(found) == 1 and filled_count >= 0:
        count = found[0]
        if rank >= 2 and not isinstance(dims[0], int) and 0 < filled_count < count and count % filled_count == 0:
            rows, each = count // filled_count, f"{filled_count} value{'s' * (filled_count != 1)}"
            inner = f"{'[' * (rank - 1)}…{']' * (rank - 1)}"
            return f"{count} values in one list", f"for {rows} rows of {each}, nest them: [{inner}, {inner}, …]"
        hint = "" if takes_one_row(dims) or rank == 1 else _takes(dims)  # a single row need not be nested
        return f"{filled_count} value{'s' * (filled_count != 1)} expected, {count} found", hint
    if len(found) == rank:
        wrong = [i for i in range(rank) if isinstance(dims[i], int) and dims[i] != found[i]]
        named = ", ".join(f"dimension {i} is {found[i]} instead of {dims[i]}" for i in wrong)
        return named, ""
    if len(found) == rank - 1 and takes_one_row(dims):
        return f"with the batch dimension added it would be {shape_text((1, *found))}", ""
    return f"{rank} dimension{'s' * (rank != 1)} expected, {len(found)} found", _takes(dims)


def _takes(dims: tuple[Dim, ...]) -> str:
    """A hint that holds whatever was found."""
    return f"the model takes {shape_text(dims)}" if dims else "send one value"


def _channel_order(dims: tuple[Dim, ...], found: Shape) -> str:
    """Say so when an image's channels come last where the model wants them first, or the other way round."""
    lead = len(found) - 3
    if lead not in (0, 1) or len(dims) < 3:
        return ""
    if len(dims) == len(found):
        if not fits(found[:lead], dims[:lead]):
            return ""
    elif len(dims) != len(found) + 1 or not takes_one_row(dims):
        return ""
    wanted, (first, second, third) = dims[-3:], found[-3:]
    if wanted[0] in _CHANNEL_COUNTS and fits((third, first, second), wanted):
        return "come last, and the model wants them first"
    if wanted[2] in _CHANNEL_COUNTS and fits((second, third, first), wanted):
        return "come first, and the model wants them last"
    return ""
