"""Numbers that are known: as the runtime holds them, or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graph_builder import constant, ml, node, result, results, rows

from cortex.rows.sizes import Size
from cortex.rows.values import Element
from cortex.wire.graphs import Node, Tensor


def typed(value: Any, dtype: str) -> Tensor:
    array = np.asarray(value, dtype)
    return Tensor(dtype, array.shape, tuple(array.reshape(-1).tolist()))


def element(*nodes: Node, **named: Any) -> Element | None:
    """What is known of the only element of the result."""
    found = result(*nodes, **named).elements
    assert found is None or len(found) == 1
    return found[0] if found else None


ADD = node("Add", "a", "b")


@pytest.mark.parametrize(
    ("nodes", "a", "b", "found"),
    [
        ((ADD,), typed(2, "int64"), typed(3, "int64"), 5),
        ((ADD,), typed(0.1, "float32"), typed(0.2, "float32"), float(np.float32(0.1) + np.float32(0.2))),
        ((ADD,), typed(2e9, "int32"), typed(2e9, "int32"), None),
        ((ADD,), typed(200, "uint8"), typed(100, "uint8"), None),
        ((node("Sub", "a", "b"),), typed(1, "uint64"), typed(2, "uint64"), None),
        ((node("Pow", "a", "b"),), typed(2, "int64"), typed(10, "int64"), 1024),
        ((node("Pow", "a", "b"),), typed(2, "int64"), typed(-1, "int64"), None),
        ((node("Pow", "a", "b"),), typed(2, "float32"), typed(0.5, "float32"), None),
        ((node("Max", "a", "b"),), typed(np.nan, "float32"), typed(1, "float32"), None),
        ((node("Mul", "a", "b"),), typed(3e38, "float32"), typed(3e38, "float32"), None),
    ],
)
def test_an_element_is_as_its_type_holds_it_or_unknown(
    nodes: tuple[Node, ...], a: Tensor, b: Tensor, found: Element | None
) -> None:
    assert element(*nodes, a=a, b=b) == found


@pytest.mark.parametrize(
    ("value", "to", "found"),
    [
        (typed(16777217, "int64"), 1, 16777216.0),
        (typed(300, "int64"), 2, None),
        (typed(-2.7, "float32"), 7, -2),
        (typed(np.inf, "float32"), 7, None),
        (typed(0.1, "float64"), 1, float(np.float32(0.1))),
        (typed(7, "int64"), 17, None),
    ],
)
def test_an_element_in_another_type_is_as_that_holds_it_or_unknown(
    value: Tensor, to: int, found: Element | None
) -> None:
    assert element(Node("Cast", ("a",), ("y",), {"to": to}), a=value) == found


LENGTH = (node("Shape", "x", to="s", start=1), node("Squeeze", "s", "first", to="l"))
SETTINGS = {"x": rows(None), "first": [0], "zero": constant(0)}


def test_half_a_size_is_another_number_once_it_is_cut_to_a_whole_one() -> None:
    nodes = (Node("Cast", ("l",), ("f",), {"to": 1}), node("Mul", "f", "half", to="h"))
    cut = Node("Cast", ("h",), ("y",), {"to": 7})
    fraction, whole = results(*LENGTH, *nodes, cut, outputs="h y", half=constant(0.5), **SETTINGS)
    assert fraction.elements != whole.elements


def test_a_size_stays_itself_in_floats_and_back() -> None:
    there, back = Node("Cast", ("l",), ("f",), {"to": 1}), Node("Cast", ("f",), ("y",), {"to": 7})
    length = element(*LENGTH, outputs="l", **SETTINGS)
    assert isinstance(length, Size)
    assert element(*LENGTH, there, back, **SETTINGS) == length


def test_a_quotient_of_sizes_is_another_one_in_floats() -> None:
    settings = {**SETTINGS, "three": constant(3), "threes": constant(3.0)}
    there = Node("Cast", ("l",), ("f",), {"to": 1})
    quotients = (node("Div", "l", "three", to="a"), node("Div", "f", "threes", to="b"))
    whole, fraction = results(*LENGTH, there, *quotients, outputs="a b", **settings)
    assert whole.elements != fraction.elements


def test_a_size_of_an_input_is_above_0_and_one_of_a_window_may_be_0() -> None:
    more = node("Greater", "l", "zero")
    assert element(*LENGTH, more, **SETTINGS) is True
    pooled = node("MaxPool", "x", to="p", kernel_shape=(3,))
    places = (node("Shape", "p", to="s", start=2), LENGTH[1])
    settings = {**SETTINGS, "x": rows(4, None)}
    assert isinstance(element(pooled, *places, more, **settings), Size)


def test_a_product_of_sizes_is_above_minus_1_where_its_type_holds_it() -> None:
    settings = {**SETTINGS, "least": constant(-1), "narrow": typed(-1, "int32")}
    product = node("Mul", "l", "l", to="p")
    assert element(*LENGTH, product, node("Greater", "p", "least"), **settings) is True
    narrow = Node("Cast", ("p",), ("q",), {"to": 6})
    assert isinstance(element(*LENGTH, product, narrow, node("Greater", "q", "narrow"), **settings), Size)


@pytest.mark.parametrize(
    "made",
    [
        ml("Binarizer", "a", threshold=1.0),
        ml("LabelEncoder", "a", keys_floats=(5.0,), values_floats=(0.0,)),
        ml("CategoryMapper", "t", cats_int64s=(5,), cats_strings=("five",)),
        node("Dropout", "a", to="_ y"),
        node("ReduceSumSquare", "a", "none", noop_with_empty_axes=1),
        node("StringNormalizer", "t", case_change_action="UPPER"),
    ],
)
def test_elements_of_the_input_are_not_taken_for_those_of_the_output(made: Node) -> None:
    assert element(made, a=constant([5.0]), t=Tensor("string", (1,), ("five",)), none=Tensor("int64", (0,), ())) is None


def test_a_matrix_of_numbers_chooses_as_many_columns_as_it_has_elements() -> None:
    chosen = result(ml("ArrayFeatureExtractor", "x", "i"), x=rows(5), i=[[0, 1, 2], [3, 4, 0]])
    assert chosen.known_shape[1] == 6
