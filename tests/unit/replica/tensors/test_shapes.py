"""Tests of `cortex.replica.tensors.shapes`."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.replica.tensors.shapes import ShapeRules, shape_advice
from cortex.wire.signature import shape_text

DIMS = st.lists(st.one_of(st.none(), st.sampled_from(["N", "rows"]), st.integers(0, 5)), max_size=4).map(tuple)
FOUND = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("found", "dims", "expected"),
    [
        ((2, 4), ("N", 4), (2, 4)),
        ((0, 4), ("N", 4), (0, 4)),
        ((7,), ("N",), (7,)),
        ((), (), ()),
        ((3, 1, 2), None, (3, 1, 2)),
        ((4,), ("N", 4), (1, 4)),
        ((4,), (1, 4), (1, 4)),
        ((3, 8, 8), (None, 3, None, None), (1, 3, 8, 8)),
        ((), ("N",), (1,)),
        ((7,), (1, None), (1, 7)),
        ((), ("N", 1), (1, 1)),
        ((), ("N", 1, 1), (1, 1, 1)),
        ((1,), (), ()),
        ((6,), (2, 3), (2, 3)),
        ((12,), ("N", 3, 4), (1, 3, 4)),
        ((0,), (0, 4), (0, 4)),
        ((5,), ("N", 1), (5, 1)),
        ((5,), (None, 1, 1), (5, 1, 1)),
        ((28, 28), (None, 28, 28, 1), (1, 28, 28, 1)),
        ((28, 28), (None, 1, 28, 28), (1, 1, 28, 28)),
        ((9, 28, 28), (None, 28, 28, 1), (9, 28, 28, 1)),
        ((9, 28, 28), (None, 1, 28, 28), (9, 1, 28, 28)),
        ((28, 28, 1), (None, 28, 28, 1), (1, 28, 28, 1)),
        ((5,), ("N", 1, None), (1, 1, 5)),
        ((5, 1), ("N", "T", 1), (1, 5, 1)),
        ((0,), ("N", 4), (0, 4)),
        ((0,), ("N", 28, 28, 1), (0, 28, 28, 1)),
        ((2, 0), ("N", None, 3), (2, 0, 3)),
        ((0,), ("N", "T", 3), (0, 1, 3)),
        ((0,), (1, "T", 3), (1, 0, 3)),
        ((0,), (None, 1), (0, 1)),
    ],
)
def test_a_shape_that_fits_by_one_of_the_rules(found, dims, expected):
    assert ShapeRules(dims).fit(found) == expected


@pytest.mark.parametrize(
    ("found", "dims"),
    [
        ((3,), ("N", 4)),
        ((8,), ("N", 4)),
        ((0,), (2, 4)),
        ((0,), (3, 1)),
        ((4,), (2, 4)),
        ((2, 2), ("N", 4)),
        ((2, 6), (3, 4)),
        ((1, 1, 4), ("N", 4)),
        ((), (3,)),
        ((2,), ()),
        ((1, 1), ()),
        ((2,), (3, 1)),
        ((2, 3), ("N", 1)),
        ((5, 1), ("N", "T", 1, 1)),  # one row of five, or five rows of one
    ],
)
def test_a_shape_that_fits_by_no_rule(found, dims):
    assert ShapeRules(dims).fit(found) is None


@given(FOUND, DIMS)
def test_a_result_has_as_many_elements_and_the_models_fixed_dimensions(found, dims):
    fitted = ShapeRules(dims).fit(found)
    if fitted is not None:
        assert math.prod(fitted) == math.prod(found)
        assert len(fitted) == len(dims)
        assert all(size == dim for size, dim in zip(fitted, dims, strict=True) if isinstance(dim, int))


@given(FOUND, DIMS)
@settings(max_examples=300)
def test_values_of_two_dimensions_or_more_keep_their_nesting_but_for_dimensions_of_one(found, dims):
    fitted = ShapeRules(dims).fit(found)
    if fitted is not None and len(found) > 1 and 0 not in found:
        assert [size for size in fitted if size != 1] == [size for size in found if size != 1]


@given(DIMS)
def test_no_rows_at_all_are_a_list_of_nothing_where_there_may_be_any_number(dims):
    if dims and not isinstance(dims[0], int) and all(isinstance(dim, int) and dim > 0 for dim in dims[1:]):
        assert ShapeRules(dims).fit((0,)) == (0, *dims[1:])


@given(FOUND, DIMS)
@settings(max_examples=300)
def test_whatever_does_not_fit_gets_a_reason(found, dims):
    rules = ShapeRules(dims)
    if rules.fit(found) is None:
        reason, hint = shape_advice(dims, found, rules.filled_count)
        assert reason
        assert isinstance(hint, str)


@pytest.mark.parametrize(
    ("found", "dims", "words"),
    [
        ((1, 224, 224, 3), ("N", 3, 224, 224), "channels come last, and the model wants them first"),
        ((224, 224, 3), ("N", 3, 224, 224), "channels come last, and the model wants them first"),
        ((1, 3, 8, 8), (None, None, None, 3), "channels come first, and the model wants them last"),
        ((3, 8, 8), (8, 8, 3), "channels come first, and the model wants them last"),
        *(((n, 8, 8), (8, 8, n), "channels come first, and the model wants them last") for n in (1, 2, 4)),
        ((2, 4), (3, 2, 4), "the batch dimension is missing"),
        ((1, 2, 4), (2, 4), "one dimension too many"),
        ((3,), ("N", 4), "4 values expected, 3 found"),
        ((8,), ("N", 4), "8 values in one list"),
        ((2, 5), ("N", 4), "dimension 1 is 5 instead of 4"),
        ((5,), ("N", 4), "4 values expected, 5 found"),
        ((2,), (1,), "1 value expected, 2 found"),
        ((3,), ("N", 0), "0 values expected, 3 found"),
        ((8,), (2, 2), "4 values expected, 8 found"),
        ((3, 5), (4, 6), "dimension 0 is 3 instead of 4, dimension 1 is 5 instead of 6"),
        ((), ("N", 4), "2 dimensions expected, 0 found"),
        ((2,), (), "1 value expected, 2 found"),
        ((2, 2), (1,), "1 dimension expected, 2 found"),
        ((8, 8), ("N", 3, 8), "with the batch dimension added it would be [1, 8, 8]"),
        ((2, 4), (1, 2, 4, 4), "4 dimensions expected, 2 found"),
    ],
)
def test_the_reason_names_what_is_wrong(found, dims, words):
    reason, _ = shape_advice(dims, found, ShapeRules(dims).filled_count)
    assert reason == words


@pytest.mark.parametrize(
    ("found", "dims", "words"),
    [
        ((8,), ("N", 4), "for 2 rows of 4 values, nest them: [[…], […], …]"),
        ((3,), ("N", None, None), "for 3 rows of 1 value, nest them: [[[…]], [[…]], …]"),
        ((2, 4), (3, 2, 4), "the model takes exactly 3 rows at once: send a list of 3 such values"),
        ((1, 2, 4), (2, 4), "take away the outermost brackets"),
        ((1, 8, 8, 3), ("N", 3, 8, 8), "the model takes [N, 3, 8, 8]: transpose the image"),
        ((3,), (2, 4), "the model takes [2, 4]"),
        ((2, 2), (), "send one value"),
        ((3,), (2,), ""),
        ((3,), ("N", 4), ""),
        ((2, 5), ("N", 4), ""),
    ],
)
def test_the_hint_says_what_to_send(found, dims, words):
    _, hint = shape_advice(dims, found, ShapeRules(dims).filled_count)
    assert hint == words


def obeyed(hint, found, dims):
    """Shapes that somebody may send who does what a hint says; None if it says nothing to do."""
    rows = re.search(r"send a list of (\d+) such values", hint)
    nested = re.search(r"for (\d+) rows of", hint)
    if "transpose the image" in hint:
        *lead, first, second, third = found
        return [(*lead, third, first, second), (*lead, second, third, first)]
    if rows:
        return [(int(rows[1]), *found)]
    if nested:
        return [(int(nested[1]), *ShapeRules(dims).filled[1:])]
    if hint == "take away the outermost brackets":
        return [found[1:]]
    if hint == "send one value":
        return [()]
    assert not hint or hint == f"the model takes {shape_text(dims)}"
    return None


SIZES = st.lists(st.one_of(st.none(), st.sampled_from(["N", "rows"]), st.integers(1, 5)), max_size=4).map(tuple)


@given(FOUND, SIZES)
@settings(max_examples=600, deadline=None)
def test_who_does_what_a_hint_says_is_not_refused_again(found, dims):
    rules = ShapeRules(dims)
    if rules.fit(found) is None:
        _, hint = shape_advice(dims, found, rules.filled_count)
        shapes = obeyed(hint, found, dims)
        assert shapes is None or any(rules.fit(shape) is not None for shape in shapes)
