from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.rows.refusal import NotProved
from cortex.rows.sizes import (
    MAX_FACTORS,
    NUMBER_OF_ROWS,
    Dim,
    Symbol,
    Symbols,
    Term,
    counts_rows,
    divided,
    product,
    times,
)

SYMBOLS = [NUMBER_OF_ROWS.symbols[0], Symbol(1), Symbol(2, least=0), Symbol(3, least=None)]


@st.composite
def sizes(draw: st.DrawFn) -> Dim:
    factor = draw(st.integers(0, 6))
    symbols = draw(st.lists(st.sampled_from(SYMBOLS), max_size=4))
    return product([factor, *(Term(1, (symbol,)) for symbol in symbols)])


def value_of(size: Dim, values: dict[Symbol, int]) -> int:
    return size if isinstance(size, int) else size.factor * math.prod(values[symbol] for symbol in size.symbols)


some_values = st.fixed_dictionaries({symbol: st.integers(1, 5) for symbol in SYMBOLS})


@given(sizes(), sizes(), some_values)
def test_a_product_is_the_product_whatever_the_symbols_stand_for(a: Dim, b: Dim, values: dict[Symbol, int]) -> None:
    assert value_of(times(a, b), values) == value_of(a, values) * value_of(b, values)
    assert times(a, b) == times(b, a)


@given(sizes(), sizes(), some_values)
def test_a_quotient_leaves_no_remainder_whatever_the_symbols_stand_for(
    a: Dim, b: Dim, values: dict[Symbol, int]
) -> None:
    quotient = divided(a, b)
    if quotient is not None:
        assert value_of(quotient, values) * value_of(b, values) == value_of(a, values)


@given(sizes().filter(lambda size: size != 0), sizes().filter(lambda size: size != 0))
def test_what_was_multiplied_can_be_divided_again(a: Dim, b: Dim) -> None:
    assert divided(times(a, b), b) == a


@given(sizes(), some_values)
def test_a_size_is_never_less_than_its_least(size: Dim, values: dict[Symbol, int]) -> None:
    if isinstance(size, Term) and size.least is not None:
        assert value_of(size, values) >= size.least
        assert all(symbol.least is not None for symbol in size.symbols)


def test_the_same_formula_of_the_same_sizes_is_the_same_symbol_and_of_others_another() -> None:
    symbols = Symbols()
    a, b = symbols.fresh(), symbols.fresh()
    assert symbols.formula("sum", a, 1) == symbols.formula("sum", a, 1)
    assert len({symbols.formula("sum", a, 1), symbols.formula("sum", b, 1), symbols.formula("difference", a, 1)}) == 3
    assert symbols.formula("is", 1) != symbols.formula("is", True)


def test_a_formula_counts_the_rows_where_one_of_its_sizes_does() -> None:
    symbols = Symbols()
    assert counts_rows(symbols.formula("sum", times(2, NUMBER_OF_ROWS), 1))
    assert not counts_rows(symbols.formula("sum", symbols.fresh(), 1))
    assert not symbols.formula("sum", NUMBER_OF_ROWS, 1).is_multiple_of_rows


def test_only_the_number_of_rows_once_is_a_multiple_of_it() -> None:
    assert NUMBER_OF_ROWS.is_multiple_of_rows
    squared = times(NUMBER_OF_ROWS, NUMBER_OF_ROWS)
    assert isinstance(squared, Term)
    assert not squared.is_multiple_of_rows


def test_a_product_that_grows_without_end_is_refused() -> None:
    size = product([Symbols().fresh()] * MAX_FACTORS)
    with pytest.raises(NotProved, match="too many factors"):
        times(size, size)
