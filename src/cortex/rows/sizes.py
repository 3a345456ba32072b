"""
Sizes that are not numbers: products of symbols, one of which is the number of rows.

Any other formula over sizes is a symbol of its own: the same formula of the same sizes, the same symbol.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final, TypeAlias


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Symbol:
    """A number that is the same wherever the symbol stands, within one analysis."""

    index: int
    positive: bool = True
    """At least 1, as the size of an input's dimension; else it may be any integer."""
    of_rows: bool = False
    """Depends on the number of rows."""
    widened: bool = False
    """Stands for several sizes that branches or turns of a loop have there."""


@dataclasses.dataclass(frozen=True, slots=True)
class Size:
    """A factor times at least one symbol. A product without symbols is an `int`, never a `Size`."""

    factor: int
    symbols: tuple[Symbol, ...]
    """Sorted; a symbol stands as often as it is multiplied."""

    @property
    def counts_rows(self) -> bool:
        return any(symbol.of_rows for symbol in self.symbols)

    @property
    def is_multiple_of_rows(self) -> bool:
        """The number of rows times something that does not depend on it."""
        return sum(symbol.of_rows for symbol in self.symbols) == 1 and ROWS in self.symbols

    @property
    def is_positive(self) -> bool:
        return self.factor > 0 and all(symbol.positive for symbol in self.symbols)

    def __str__(self) -> str:
        names = ["N" if symbol == ROWS else f"{'n' if symbol.of_rows else 's'}{symbol.index}" for symbol in self.symbols]
        return "*".join(names if self.factor == 1 else [str(self.factor), *names])


Dim: TypeAlias = int | Size
"""How long a dimension is."""

ROWS: Final = Symbol(0, of_rows=True)
NUMBER_OF_ROWS: Final = Size(1, (ROWS,))


class Symbols:
    """Hands out the symbols of one analysis."""

    def __init__(self) -> None:
        self._next = 1
        self._formulas: dict[tuple[object, ...], Size] = {}

    def fresh(self, *, positive: bool = True, widened: bool = False) -> Size:
        """Return a size that nothing is known of, but that it does not depend on the number of rows."""
        return Size(1, (self._new(positive=positive, widened=widened),))

    def formula(self, name: str, *arguments: object) -> Size:
        """Return the symbol that stands for this formula of these arguments, whatever its value."""
        key = (name, *((type(argument), argument) for argument in arguments))
        found = self._formulas.get(key)
        if found is None:
            found = Size(1, (self._new(positive=False, of_rows=any(map(counts_rows, arguments))),))
            self._formulas[key] = found
        return found

    def _new(self, *, positive: bool, of_rows: bool = False, widened: bool = False) -> Symbol:
        symbol = Symbol(self._next, positive=positive, of_rows=of_rows, widened=widened)
        self._next += 1
        return symbol


def counts_rows(element: object) -> bool:
    """Whether a size, or an element of a known value, depends on the number of rows."""
    return isinstance(element, Size) and element.counts_rows


def times(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    factor, symbols = 1, []
    for one in (a, b):
        if isinstance(one, int):
            factor *= one
        else:
            factor *= one.factor
            symbols += one.symbols
    return Size(factor, tuple(sorted(symbols))) if factor else 0


def product(dims: Iterable[Dim]) -> Dim:
    result: Dim = 1
    for dim in dims:
        result = times(result, dim)
    return result


def divided(a: Dim, b: Dim) -> Dim | None:
    """Return `a / b` where that leaves no remainder whatever the symbols are; else None."""
    a_factor, a_symbols = (a, []) if isinstance(a, int) else (a.factor, list(a.symbols))
    b_factor, b_symbols = (b, ()) if isinstance(b, int) else (b.factor, b.symbols)
    if b_factor == 0 or a_factor % b_factor:
        return None
    for symbol in b_symbols:
        if symbol not in a_symbols:
            return None
        a_symbols.remove(symbol)
    factor = a_factor // b_factor
    if not a_symbols or not factor:
        return factor
    return Size(factor, tuple(a_symbols))


def is_number(element: object) -> bool:
    """Whether an element is a plain integer."""
    return isinstance(element, int) and not isinstance(element, bool)
