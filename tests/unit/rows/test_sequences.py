"""Lists: what is in them is alike, and they are as long for any number of rows."""

from __future__ import annotations

import pytest
from graph_builder import node, proof, proved, refusal, result, rows, weights

from cortex.rows.sizes import NUMBER_OF_ROWS as N
from cortex.rows.values import Kind
from cortex.wire.graphs import GraphInput, GraphNode, Tensor

BOTH = node("SequenceConstruct", "a", "b", to="list")
FIRST = node("SequenceAt", "list", "zero")
JOINED = node("ConcatFromSequence", "list", axis=1)
STACKED = node("ConcatFromSequence", "list", axis=1, new_axis=1)
ZERO = {"zero": 0}
A, B = rows(4), rows(4)


def test_a_list_of_rows_gives_rows() -> None:
    assert result(BOTH, FIRST, a=A, b=B, **ZERO).shape == (N, 4)
    assert proved(BOTH, FIRST, a=A, b=B, **ZERO)


def test_a_list_itself_has_no_rows() -> None:
    assert result(BOTH, outputs="list", a=A, b=B).kind is Kind.TENSORS
    assert refusal(BOTH, outputs="list", a=A, b=B) == 'the output "list" has no rows'


def test_sizes_that_differ_from_item_to_item_are_not_known() -> None:
    item = result(BOTH, FIRST, a=A, b=rows(5), **ZERO)
    assert item.known_shape[1] not in (4, 5)


@pytest.mark.parametrize(
    ("nodes", "b"),
    [
        ((), weights(1, 4)),
        ((), rows(4, 1)),
        ((node("Transpose", "c", to="b", perm=(1, 0)),), rows(4)),
    ],
)
def test_a_list_of_rows_and_other_things_is_refused(nodes: tuple[GraphNode, ...], b: GraphInput | Tensor) -> None:
    other = {"c" if nodes else "b": b}
    assert refusal(*nodes, BOTH, FIRST, a=A, **other, **ZERO) == "a list of things that are not alike"


def test_noise_of_any_item_is_noise_of_all() -> None:
    assert proof(BOTH, FIRST, a=A, b=B, **ZERO).rounding == "exact"
    assert proof(node("Exp", "e", to="b"), BOTH, FIRST, a=A, e=B, **ZERO).rounding == "rounding"


def test_items_are_inserted_and_taken_out() -> None:
    empty = node("SequenceEmpty", to="empty")
    inserted = node("SequenceInsert", "empty", "a", to="one")
    again = node("SequenceInsert", "one", "b", "zero", to="two")
    shorter = node("SequenceErase", "two", "zero", to="list")
    assert result(empty, inserted, again, shorter, FIRST, a=A, b=B, **ZERO).shape == (N, 4)


def test_nothing_is_in_an_empty_list() -> None:
    verdict = refusal(node("SequenceEmpty", to="list"), FIRST, node("Add", "x", "y", to="z"), outputs="z", x=A, **ZERO)
    assert verdict == "nothing is known of what is in an empty list"


def test_what_is_inserted_has_to_be_alike() -> None:
    one, two = node("SequenceConstruct", "a", to="one"), node("SequenceInsert", "one", "b", to="list")
    assert not proved(one, two, FIRST, a=A, b=weights(1, 4), **ZERO)


@pytest.mark.parametrize(
    "operator",
    [
        node("SequenceAt", "list", "i"),
        node("SequenceInsert", "list", "a", "i", to="other"),
        node("SequenceErase", "list", "i", to="other"),
    ],
)
def test_rows_do_not_choose_items(operator: GraphNode) -> None:
    after = () if operator.outputs == ("y",) else (node("SequenceAt", "other", "zero"),)
    verdict = refusal(BOTH, operator, *after, a=A, b=B, i=rows(dtype="int64"), **ZERO)
    assert verdict == "an operand that must be constant depends on rows"


def test_a_list_is_as_long_for_any_number_of_rows() -> None:
    length = node("SequenceLength", "list", to="length")
    assert result(BOTH, length, outputs="length", a=A, b=B).is_uniform
    assert proved(BOTH, length, node("Add", "n", "length"), a=A, b=B, n=rows(dtype="int64"))


def test_items_are_joined_and_stacked_beside_the_rows() -> None:
    joined, stacked = result(BOTH, JOINED, a=A, b=B), result(BOTH, STACKED, a=A, b=B)
    assert (joined.known_shape[0], joined.axis, joined.rank) == (N, 0, 2)
    assert (stacked.known_shape[0], stacked.known_shape[2], stacked.axis, stacked.rank) == (N, 4, 0, 3)
    first = result(BOTH, node("ConcatFromSequence", "list", axis=0, new_axis=1), a=A, b=B)
    assert (first.known_shape[1:], first.axis) == ((N, 4), 1)


def test_rows_are_not_joined() -> None:
    assert refusal(BOTH, node("ConcatFromSequence", "list", axis=0), a=A, b=B) == "joins along the rows"


@pytest.mark.parametrize("joining", [node("ConcatFromSequence", "list", axis=2), STACKED])
def test_items_of_sizes_that_differ_are_not_joined_beside_each_other(joining: GraphNode) -> None:
    verdict = refusal(BOTH, joining, a=rows(4, 3), b=rows(5, 3))
    assert verdict == "sizes that differ from item to item"


def test_items_may_differ_where_they_are_joined() -> None:
    assert proved(BOTH, JOINED, a=rows(4, 3), b=rows(5, 3))


# ---- cut into items ---------------------------------------------------------------------------------------------


def cut(*inputs: str, **attributes: int) -> GraphNode:
    return node("SplitToSequence", "x", *inputs, to="list", **attributes)


def test_a_value_is_cut_beside_its_rows() -> None:
    assert result(cut(axis=1), FIRST, x=rows(4, 3), **ZERO).shape == (N, 1, 3)
    assert result(cut(axis=-1, keepdims=0), FIRST, x=rows(4, 3), **ZERO).shape == (N, 4)
    turn = node("Transpose", "t", to="x", perm=(1, 0, 2))
    turned = result(turn, cut(axis=0, keepdims=0), FIRST, t=rows(4, 3), **ZERO)
    assert (turned.shape, turned.axis) == ((N, 3), 0)


def test_rows_are_not_cut() -> None:
    assert refusal(cut(axis=0), FIRST, x=rows(4), **ZERO) == "works along the rows"


def test_parts_are_of_sizes_that_differ() -> None:
    parts = result(cut("sizes", axis=1, keepdims=0), FIRST, x=rows(4, 3), sizes=[1, 3], **ZERO)
    assert (parts.known_shape[0], parts.known_shape[2], parts.rank) == (N, 3, 3)
    assert parts.known_shape[1] not in (1, 3)
    assert refusal(cut("sizes", axis=1), STACKED, x=rows(4, 3), sizes=[1, 3]) == "sizes that differ from item to item"


def test_parts_are_joined_again() -> None:
    assert proved(cut("two", axis=1), JOINED, x=rows(4, 3), two=2)
    assert proved(cut(axis=1), JOINED, x=rows(4, 3))


def test_rows_do_not_say_how_to_cut() -> None:
    verdict = refusal(cut("sizes", axis=1), FIRST, x=rows(4, 3), sizes=rows(dtype="int64"), **ZERO)
    assert verdict == "an operand that must be constant depends on rows"


# ---- constants --------------------------------------------------------------------------------------------------


def test_a_list_of_constants_is_one_for_all_rows() -> None:
    constants = {"a": weights(1, 4), "b": weights(1, 4)}
    assert proved(BOTH, FIRST, node("Add", "x", "y", to="z"), outputs="z", x=A, **constants, **ZERO)
    cut_up = node("SplitToSequence", "c", to="list", axis=0)
    assert proved(cut_up, FIRST, node("Add", "x", "y", to="z"), outputs="z", x=A, c=weights(3, 4), **ZERO)


def test_a_tensor_is_no_list() -> None:
    assert refusal(node("SequenceAt", "a", "zero"), a=A, **ZERO) == "a tensor used as a list"
    assert refusal(BOTH, node("Add", "list", "list"), a=A, b=B) == "a list used as a tensor"


def test_row_numbers_are_not_listed() -> None:
    nodes = (
        node("Shape", "a", to="shape"),
        node("Gather", "shape", "zero", to="count"),
        node("Range", "zero", "count", "one", to="numbers"),
        node("SequenceConstruct", "numbers", to="list"),
    )
    assert not proved(*nodes, FIRST, a=A, one=1, **ZERO)
