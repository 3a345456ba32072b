"""
Where the rules say that rows are, against where they are: each element of an array carries the number of its row, numpy
moves it about, and the rules must know where it went.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cortex.rows.flow import Flow, Scope
from cortex.rows.refusal import NotProved
from cortex.rows.rules.indexing import cut
from cortex.rows.rules.layout import expanded, inserted, removed, reshaped, tiled, transposed
from cortex.rows.rules.registry import Op
from cortex.rows.sizes import NUMBER_OF_ROWS, Dim, Term, product, times
from cortex.rows.values import Value, rows
from cortex.wire.graphs import Graph, Model

COUNTS = (1, 2, 3)


def call() -> Op:
    flow = Flow(Model(Graph((), (), ())))
    return Op("Test", "", 18, (), {}, 1, flow.symbols, flow, Scope({"": 18}))


def at(size: Dim, count: int) -> int:
    if isinstance(size, int):
        return size
    assert size.is_multiple_of_rows
    return size.factor * count


def numbers(value: Value, count: int) -> NDArray[Any]:
    """An array of the value's shape, each element the number of its row, as the value says."""
    before, after = at(value.before, count), at(value.after, count)
    along = np.tile(np.repeat(np.arange(count), after), before)
    shape = [at(dim, count) for dim in value.known_shape]
    return np.broadcast_to(along.reshape([-1 if index == value.axis else 1 for index in range(len(shape))]), shape)


@st.composite
def values(draw: st.DrawFn) -> Value:
    shape: list[Dim] = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    axis = draw(st.integers(0, len(shape) - 1))
    before, after = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape[axis] = product([before, NUMBER_OF_ROWS, after])
    return rows(shape, axis, before=before, after=after)


@st.composite
def new_shapes(draw: st.DrawFn, value: Value) -> list[Dim]:
    """Shapes of as many elements, most of them; with and without -1 and 0."""
    total = product(value.known_shape)
    assert isinstance(total, Term)
    left, dims = total.factor, []
    for _ in range(draw(st.integers(0, 3))):
        divisors = [size for size in range(1, left + 1) if left % size == 0]
        dims.append(draw(st.sampled_from(divisors)))
        left //= dims[-1]
    wanted: list[Dim] = list(draw(st.permutations([*dims, times(left, NUMBER_OF_ROWS)])))
    if draw(st.booleans()):
        wanted[draw(st.integers(0, len(wanted) - 1))] = -1
    if draw(st.booleans()):
        place = draw(st.integers(0, len(wanted) - 1))
        if place < value.rank and wanted[place] == value.known_shape[place]:
            wanted[place] = 0
    return wanted


def check(before: Value, after: Value, move: Any) -> None:
    for count in COUNTS:
        assert np.array_equal(move(numbers(before, count), count), numbers(after, count))


@given(st.data(), values())
def test_reshaped_rows_are_where_the_rule_says(data: st.DataObject, value: Value) -> None:
    wanted = data.draw(new_shapes(value))
    try:
        found = reshaped(call(), value, wanted, zero_copies=True)
    except NotProved:
        assume(False)

    def move(array: NDArray[Any], count: int) -> NDArray[Any]:
        shape = [array.shape[index] if dim == 0 else at(dim, count) for index, dim in enumerate(wanted)]
        return array.reshape(shape)

    check(value, found, move)


@given(st.data(), values())
def test_a_reshape_that_keeps_rows_in_order_is_known_to(data: st.DataObject, value: Value) -> None:
    """The rule gives up no more than it must: if the rows are a product before × N × after again, it says so."""
    wanted = data.draw(new_shapes(value))
    shapes = {count: [at(dim, count) for dim in wanted] for count in COUNTS}
    assume(all(dim != 0 for dim in wanted) and -1 not in wanted)
    axis = next(index for index, dim in enumerate(wanted) if isinstance(dim, Term))
    size = wanted[axis]
    assert isinstance(size, Term)
    moved = {count: numbers(value, count).reshape(shapes[count]) for count in COUNTS}
    fits = [
        (before, size.factor // before)
        for before in range(1, size.factor + 1)
        if size.factor % before == 0
        and all(
            np.array_equal(moved[count], numbers(rows(wanted, axis, before=before, after=size.factor // before), count))
            for count in COUNTS
        )
    ]
    try:
        found = reshaped(call(), value, wanted, zero_copies=True)
    except NotProved:
        assert not fits
    else:
        assert found.layout in fits


@given(st.data(), values())
def test_transposed_rows_are_where_the_rule_says(data: st.DataObject, value: Value) -> None:
    order = data.draw(st.permutations(range(value.rank)))
    check(value, transposed(value, order), lambda array, count: array.transpose(order))


@given(st.data(), values())
def test_rows_with_dimensions_inserted_and_removed_are_where_the_rule_says(data: st.DataObject, value: Value) -> None:
    count = data.draw(st.integers(1, 2))
    axes = data.draw(
        st.lists(st.integers(0, value.rank + count - 1), min_size=count, max_size=count, unique=True).map(sorted)
    )
    wider = inserted(value, axes)
    check(value, wider, lambda array, _: np.expand_dims(array, tuple(axes)))
    check(wider, removed(wider, axes), lambda array, _: np.squeeze(array, tuple(axes)))


@given(st.data(), values())
def test_expanded_rows_are_where_the_rule_says(data: st.DataObject, value: Value) -> None:
    extra = data.draw(st.lists(st.integers(1, 3), max_size=2))
    wanted: list[Dim] = [*extra]
    for index, dim in enumerate(value.known_shape):
        may_grow = index != value.axis and dim == 1
        wanted.append(data.draw(st.sampled_from([1, 2, dim] if may_grow else [1, dim])))
    found = expanded(call(), value, wanted)

    def move(array: NDArray[Any], count: int) -> NDArray[Any]:
        shape = np.broadcast_shapes(array.shape, tuple(at(dim, count) for dim in wanted))
        return np.broadcast_to(array, shape)

    check(value, found, move)


@given(st.data(), values())
def test_tiled_rows_are_where_the_rule_says(data: st.DataObject, value: Value) -> None:
    repeats = [1 if index == value.axis else data.draw(st.integers(1, 2)) for index in range(value.rank)]
    check(value, tiled(call(), value, repeats), lambda array, _: np.tile(array, repeats))


@given(st.data(), values())
def test_cut_rows_are_where_the_rule_says(data: st.DataObject, value: Value) -> None:
    axis = data.draw(st.integers(-value.rank, value.rank - 1))
    start, step = data.draw(st.integers(-3, 3)), data.draw(st.sampled_from([1, 1, 2, -1]))
    end = data.draw(st.one_of(st.integers(-4, 4), st.just(2**31 - 1), st.just(-(2**31))))
    try:
        found = cut(call(), value, [axis], [start], [end], [step])
    except NotProved:
        assert axis % value.rank == value.axis
        return

    def move(array: NDArray[Any], count: int) -> NDArray[Any]:
        size = array.shape[axis]
        stop = None if step < 0 and end < -size else end
        chosen = range(*slice(start, stop, step).indices(size))
        return np.take(array, list(chosen), axis=axis)

    check(value, found, move)
