"""
Sizes that are not numbers: products of symbols, one of which is the number of rows.

Any other formula over sizes is a symbol of its own: the same formula of the same sizes, the same symbol.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

from cortex.rows.refusal import refuse
from cortex.wire.batching import MOST_ELEMENTS, MOST_ROWS


@dataclasses.dataclass(frozen=True, slots=True)
class Symbol:
    """A number that is the same wherever the symbol stands, within one analysis."""

    index: int
    least: int | None = 1
    """What it is at least: 1 for a dimension of an input, 0 for any other; None: it may be any integer."""
    of_rows: bool = False
    """Depends on the number of rows."""
    widened: bool = False
    """Stands for several sizes that items of a list, branches or turns of a loop have there."""
    of_input: bool = False
    """The size of an input's dimension, which a proof may suppose."""
    input: str = ""
    """Which input's: free sizes of one are not all large at once."""
    product: int = MOST_ELEMENTS
    """What different free sizes of that input, multiplied, are at most."""
    most: int | None = None
    """What it is at most, its sign aside; None: it may be any number."""

    def __hash__(self) -> int:
        """Other symbols of one analysis have another index; products of many are looked up often."""
        return self.index


@dataclasses.dataclass(frozen=True, slots=True)
class Term:
    """A factor times at least one symbol. A product without symbols is an `int`, never a `Term`."""

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
    def least(self) -> int | None:
        """What it is at least; None where it may be any integer."""
        least = self.factor
        for symbol in self.symbols:
            if least < 0 or symbol.least is None:
                return None
            least *= symbol.least
        return least

    def __str__(self) -> str:
        names = [
            "N" if symbol == ROWS else f"{'n' if symbol.of_rows else 's'}{symbol.index}" for symbol in self.symbols
        ]
        return "*".join(names if self.factor == 1 else [str(self.factor), *names])


Dim: TypeAlias = int | Term
"""How long a dimension is."""

MAX_FACTORS: Final = 32
"""In a product. No size of a model has more; a few operators in a row could make one that has millions."""

MAX_SIZE: Final = 2**63
"""No number of elements is larger, nor fits into any integer type."""

LONGEST: Final = 10**9
"""
No dimension is longer, but for what rows are merged with: a value of so many elements does not fit beside a model.

Exporters write this, or more, for "to the end".
"""

ROWS: Final = Symbol(0, of_rows=True, most=MOST_ROWS)
NUMBER_OF_ROWS: Final = Term(1, (ROWS,))


class Symbols:
    """Hands out the symbols of one analysis."""

    def __init__(self) -> None:
        self._next = 1
        self._formulas: dict[tuple[object, ...], Term] = {}

    @property
    def next_index(self) -> int:
        """Symbols that are made from now on have this index or a larger one."""
        return self._next

    def fresh(self, *, least: int | None = 0, widened: bool = False) -> Term:
        """Return a size that nothing more is known of, but that it does not depend on the number of rows."""
        most = None if least is None else LONGEST
        return self._sized(Symbol(self._next, least=least, widened=widened, most=most))

    def of_input(self, name: str = "", most: int | None = None, *, fixed: int = 1) -> Term:
        """
        Return the size of a free dimension of an input.

        Args:
            name: of the input.
            most: what the size is at most; None: as much as fits into a row.
            fixed: how many elements a row of the input has where all that is free is 1.
        """
        product = max(1, MOST_ELEMENTS // fixed)
        most = product if most is None else min(most, product)
        return self._sized(Symbol(self._next, of_input=True, input=name, most=most, product=product))

    def formula(self, name: str, *arguments: object, least: int | None = None, most: int | None = None) -> Term:
        """
        Return the symbol that stands for this formula of these arguments.

        Args:
            name: of the formula, with the types in which it is computed, where another type might give another number.
            least: what it is at least: 0 for what certainly is a size.
            most: what it is at most, its sign aside; None: any number, or any that a dimension may have.
        """
        key = (name, *((type(argument), argument) for argument in arguments))
        found = self._formulas.get(key)
        if found is None:
            most = LONGEST if most is None and least is not None else most
            of_rows = any(map(counts_rows, arguments))
            found = self._sized(Symbol(self._next, least=least, of_rows=of_rows, most=most))
            self._formulas[key] = found
        return found

    def _sized(self, symbol: Symbol) -> Term:
        self._next += 1
        return Term(1, (symbol,))


def counts_rows(element: object) -> bool:
    """Whether a size, or an element of a known value, depends on the number of rows."""
    return isinstance(element, Term) and element.counts_rows


def is_widened(dim: Dim, since: int) -> bool:
    """Whether a size stands for several, by a symbol made since then."""
    return isinstance(dim, Term) and any(symbol.widened and symbol.index >= since for symbol in dim.symbols)


def _index(symbol: Symbol) -> int:
    return symbol.index


def times(a: Dim, b: Dim) -> Dim:
    """
    Raises:
        NotProved: the product has more than `MAX_FACTORS` symbols, or its factor is no number of elements.
    """
    factor, symbols = 1, ()  # type: int, tuple[Symbol, ...]
    for one in (a, b):
        if isinstance(one, int):
            factor *= one
        else:
            factor *= one.factor
            symbols += one.symbols
    if len(symbols) > MAX_FACTORS or abs(factor) >= MAX_SIZE:
        refuse("a size of too many factors")
    if not symbols:
        return factor
    return Term(factor, tuple(sorted(symbols, key=_index))) if factor else 0


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
    return Term(factor, tuple(a_symbols))


class AtMost(NamedTuple):
    """A bound of a size."""

    size: int


class Supposition(Exception):
    """The proof goes no further unless more is known of a size of an input: start again with that."""

    def __init__(self, symbol: Symbol, size: int | Symbol | AtMost) -> None:
        super().__init__(f"{symbol}: {size}")
        self.symbol = symbol
        self.size = size
        """What it is, the size of another input's dimension that it is equal to, or its bound."""


def equal(a: Dim, b: Dim) -> bool:
    """
    Whether two sizes are equal whatever their symbols stand for.

    Raises:
        Supposition: they are where one size of an input is a certain number, or equal to another.
    """
    if a == b:
        return True
    a_factor, a_symbols, b_factor, b_symbols = _reduced(a, b)
    if len(a_symbols) < len(b_symbols):
        a_factor, a_symbols, b_factor, b_symbols = b_factor, b_symbols, a_factor, a_symbols
    if len(a_symbols) != 1 or not a_symbols[0].of_input or a_factor <= 0 or b_factor <= 0:
        return False
    if not b_symbols and b_factor % a_factor == 0:
        raise Supposition(a_symbols[0], b_factor // a_factor)
    if len(b_symbols) == 1 and b_symbols[0].of_input and a_factor == b_factor:
        later, earlier = sorted((a_symbols[0], b_symbols[0]), key=_index, reverse=True)
        raise Supposition(later, earlier)
    return False


def magnitude(dim: Dim) -> int | None:
    """What a size is at most, its sign aside, whatever its symbols stand for; None: it may be any number."""
    if isinstance(dim, int):
        return abs(dim)
    found = abs(dim.factor)
    of_inputs: dict[str, list[Symbol]] = {}
    for symbol in dim.symbols:
        if symbol.most is None:
            return None
        if symbol.of_input:
            of_inputs.setdefault(symbol.input, []).append(symbol)
        else:
            found *= symbol.most
    for symbols in of_inputs.values():
        squared = max(symbols.count(symbol) for symbol in symbols)
        found *= min(math.prod(symbol.most or 0 for symbol in symbols), symbols[0].product ** squared)
    return found


def suppose_within(size: Dim, most: int) -> bool:
    """
    Whether a size, its sign aside, is this at most.

    Raises:
        Supposition: it is where sizes of inputs are not as long as they may be.
    """
    found = magnitude(size)
    if found is None or found <= most or isinstance(size, int):
        return found is not None and found <= most
    free = [symbol for symbol in size.symbols if symbol.of_input]
    others = abs(size.factor) * math.prod(symbol.most or 0 for symbol in size.symbols if not symbol.of_input)
    length = _root(most // others, len(free)) if free and others else 0
    if length < _SHORTEST_SUPPOSED:
        return False
    longest = max(free, key=lambda symbol: symbol.most or 0)
    raise Supposition(longest, AtMost(length))


_SHORTEST_SUPPOSED: Final = 256
"""Where inputs would have to be shorter for a number not to leave its type, nothing is known of the number instead."""


def _root(number: int, degree: int) -> int:
    """The largest whole number whose power is this at most."""
    low, high = 0, number
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= number else (low, middle - 1)
    return low


def suppose_at_most(size: Dim, most: int) -> bool:
    """
    Whether a size is this at most.

    Raises:
        Supposition: it is the size of an input, and may be.
    """
    if isinstance(size, int):
        return size <= most
    if size.factor != 1 or len(size.symbols) != 1 or not size.symbols[0].of_input:
        return False
    if size.symbols[0].most is None or size.symbols[0].most > most:
        raise Supposition(size.symbols[0], AtMost(most))
    return True


def quotient(a: Dim, b: Dim) -> Dim | None:
    """
    As `divided`.

    Raises:
        Supposition: it leaves no remainder where one size of an input is equal to another.
    """
    found = divided(a, b)
    if found is not None:
        return found
    _, a_symbols, _, b_symbols = _reduced(a, b)
    if len(b_symbols) == 1 and b_symbols[0].of_input:
        candidates = [symbol for symbol in a_symbols if symbol.of_input]
        if len(candidates) == 1:
            equal(Term(1, (candidates[0],)), Term(1, (b_symbols[0],)))
    return None


def _reduced(a: Dim, b: Dim) -> tuple[int, list[Symbol], int, list[Symbol]]:
    """Factors and symbols of both, without those that they share."""
    a_factor, a_symbols = (a, []) if isinstance(a, int) else (a.factor, list(a.symbols))
    b_factor, b_symbols = (b, []) if isinstance(b, int) else (b.factor, list(b.symbols))
    for symbol in list(a_symbols):
        if symbol in b_symbols:
            a_symbols.remove(symbol)
            b_symbols.remove(symbol)
    return a_factor, a_symbols, b_factor, b_symbols


def is_number(element: object) -> bool:
    """Whether an element is a plain integer."""
    return isinstance(element, int) and not isinstance(element, bool)
