"""Tests of `cortex.replica.tensors.dimensions`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.replica.tensors.conversion import Converter
from cortex.replica.tensors.dimensions import Dimensions
from cortex.replica.tensors.mismatch import InputMismatch
from cortex.wire.signature import Signature, TensorSpec


def spec(name, *dims, optional=False):
    return TensorSpec(name, "float32", dims, optional=optional)


def feeds(**shapes):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def problem(specs, **shapes):
    with pytest.raises(InputMismatch) as caught:
        Dimensions(specs).check(feeds(**shapes))
    return caught.value


def test_sizes_of_one_name_have_to_agree():
    specs = [spec("ids", "batch", "seq"), spec("mask", "batch", "seq")]
    Dimensions(specs).check(feeds(ids=(2, 3), mask=(2, 3)))
    error = problem(specs, ids=(1, 3), mask=(1, 1))
    assert str(error) == (
        'input "mask": expected float32[batch, seq], found float32[1, 1]: '
        'dimension 1 is 1, and dimension 1 of "ids", which is "seq" too, is 3'
    )
    assert error.hint == "make both equally long"


@pytest.mark.parametrize("shape", [(2, 3), (3, 2)])
def test_sizes_of_one_name_have_to_agree_wherever_it_stands(shape):
    turned = [spec("a", "n", "m"), spec("b", "m", "n")]
    Dimensions(turned).check(feeds(a=shape, b=shape[::-1]))
    assert problem(turned, a=shape, b=shape).input == "b"


def test_as_many_rows_go_into_every_input():
    error = problem([spec("num", "batch", 2), spec("cat", "batch", 1)], num=(2, 2), cat=(1, 1))
    assert error.input == "cat"
    assert error.reason == '1 row (dimension 0), and "num" has 2'
    assert error.hint == "send as many rows of every input"


@pytest.mark.parametrize("dims", [(None, None), ("unk__1", "unk__2"), ("a_dynamic_axes_1", None), ("batch", None)])
def test_one_row_beside_many_is_refused_where_nothing_says_that_it_is_meant(dims):
    specs = [spec("a", dims[0], 2), spec("b", dims[1], 2)]
    assert problem(specs, a=(3, 2), b=(1, 2)).input == "b"
    assert problem(specs, a=(1, 2), b=(3, 2)).input == "a"
    assert problem(specs, a=(3, 2), b=(0, 2)).input == "b"


def test_dimensions_with_names_of_their_own_are_free():
    specs = [spec("nodes", "nodes", 2), spec("edges", "edges", 2), spec("k", 1)]
    assert not Dimensions(specs).any
    for rows in ((3, 1), (1, 3), (0, 5)):
        Dimensions(specs).check(feeds(nodes=(rows[0], 2), edges=(rows[1], 2), k=(1,)))


def test_without_names_other_numbers_than_one_are_the_models_business():
    specs = [spec("nodes", None, 2), spec("edges", None, 2)]
    Dimensions(specs).check(feeds(nodes=(5, 2), edges=(7, 2)))
    assert Dimensions(specs).uneven_rows(feeds(nodes=(5, 2), edges=(7, 2))).input == "nodes"
    assert Dimensions(specs).uneven_rows(feeds(nodes=(5, 2), edges=(5, 2))) is None


def test_one_input_may_have_a_name_twice():
    square = [spec("a", "n", "n")]
    Dimensions(square).check(feeds(a=(3, 3)))
    assert 'dimension 1 is 2, and dimension 0, which is "n" too, is 3' in str(problem(square, a=(3, 2)))
    assert Converter(Signature((spec("a", "n", "n"),), ())).convert([[1, 2], [3, 4]])["a"].shape == (2, 2)
    with pytest.raises(InputMismatch):
        Converter(Signature((spec("a", "n", "n"),), ())).convert([[1, 2, 3], [3, 4, 5]])


def test_an_absent_input_agrees_with_everything():
    specs = [spec("a", "n", optional=True), spec("b", "n", optional=True), spec("c", "n")]
    Dimensions(specs).check(feeds(c=(2,)))
    assert problem(specs, b=(1,), c=(2,)).input == "b"
    both = [spec("a", "n", optional=True), spec("b", "n", optional=True), spec("c", "n", optional=True)]
    Dimensions(both).check(feeds(b=(2,)))
    assert problem(both, b=(1,), c=(2,)).input in ("b", "c")


NAMES = st.sampled_from(["n", "m", "unk__1", None, 2, "n + m"])


@given(st.lists(st.lists(NAMES, max_size=3), min_size=1, max_size=4), st.data())
@settings(max_examples=300, deadline=None)
def test_what_agrees_passes_and_a_size_of_a_name_that_differs_does_not(dims, data):
    """Against the rule written down once more, without pairs or groups."""
    specs = [spec(f"x{number}", *one) for number, one in enumerate(dims)]
    sizes = {name: data.draw(st.integers(2, 4)) for name in ("n", "m", "n + m")}
    shapes = {one.name: tuple(dim if isinstance(dim, int) else sizes.get(dim, 5) for dim in one.shape) for one in specs}
    Dimensions(specs).check(feeds(**shapes))
    named = [(one.name, axis) for one in specs for axis, dim in enumerate(one.shape) if dim in sizes]
    if not named:
        return
    name, axis = data.draw(st.sampled_from(named))
    shape = list(shapes[name])
    dim = next(one for one in specs if one.name == name).shape[axis]
    shape[axis] = 9
    shapes[name] = tuple(shape)
    alike = sum(other == dim for one in specs for other in one.shape)
    if alike > 1:
        problem(specs, **shapes)
    else:
        Dimensions(specs).check(feeds(**shapes))
