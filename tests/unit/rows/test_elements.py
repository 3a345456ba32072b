"""Numbers that are known: as the runtime holds them, or not at all."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pytest
from graph_builder import constant, ml, node, result, results, rows, supposing
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.rows.rules.elementwise import most_of
from cortex.rows.sizes import AtMost, Term
from cortex.rows.values import Element
from cortex.wire.batching import MOST_ELEMENTS
from cortex.wire.graphs import GraphNode, Tensor


def typed(value: Any, dtype: str) -> Tensor:
    array = np.asarray(value, dtype)
    return Tensor(dtype, array.shape, tuple(array.reshape(-1).tolist()))


def element(*nodes: GraphNode, **named: Any) -> Element | None:
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
        ((node("Pow", "a", "b"),), typed(3, "int64"), typed(35, "int64"), None),
        ((node("Pow", "a", "b"),), typed(2, "int64"), typed(-1, "int64"), None),
        ((node("Pow", "a", "b"),), typed(2, "float32"), typed(0.5, "float32"), None),
        ((node("Max", "a", "b"),), typed(np.nan, "float32"), typed(1, "float32"), None),
        ((node("Mul", "a", "b"),), typed(3e38, "float32"), typed(3e38, "float32"), None),
    ],
)
def test_an_element_is_as_its_type_holds_it_or_unknown(
    nodes: tuple[GraphNode, ...], a: Tensor, b: Tensor, found: Element | None
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
    assert element(GraphNode("Cast", ("a",), ("y",), {"to": to}), a=value) == found


LENGTH = (node("Shape", "x", to="s", start=1), node("Squeeze", "s", "first", to="l"))
SETTINGS = {"x": rows(None), "first": [0], "zero": constant(0)}


def test_half_a_size_is_another_number_once_it_is_cut_to_a_whole_one() -> None:
    nodes = (GraphNode("Cast", ("l",), ("f",), {"to": 1}), node("Mul", "f", "half", to="h"))
    cut = GraphNode("Cast", ("h",), ("y",), {"to": 7})
    fraction, whole = results(*LENGTH, *nodes, cut, outputs="h y", half=constant(0.5), **SETTINGS)
    assert fraction.elements != whole.elements


def test_a_size_stays_itself_in_floats_and_back() -> None:
    there, back = GraphNode("Cast", ("l",), ("f",), {"to": 1}), GraphNode("Cast", ("f",), ("y",), {"to": 7})
    length = element(*LENGTH, outputs="l", **SETTINGS)
    assert isinstance(length, Term)
    assert element(*LENGTH, there, back, **SETTINGS) == length


def test_a_quotient_of_sizes_is_another_one_in_floats() -> None:
    named = {**SETTINGS, "three": constant(3), "threes": constant(3.0)}
    there = GraphNode("Cast", ("l",), ("f",), {"to": 1})
    quotients = (node("Div", "l", "three", to="a"), node("Div", "f", "threes", to="b"))
    whole, fraction = results(*LENGTH, there, *quotients, outputs="a b", **named)
    assert whole.elements != fraction.elements


def test_a_size_of_an_input_is_above_0_and_one_of_a_window_may_be_0() -> None:
    more = node("Greater", "l", "zero")
    assert element(*LENGTH, more, **SETTINGS) is True
    pooled = node("MaxPool", "x", to="p", kernel_shape=(3,))
    places = (node("Shape", "p", to="s", start=2), LENGTH[1])
    named = {**SETTINGS, "x": rows(4, None)}
    assert isinstance(element(pooled, *places, more, **named), Term)


def test_a_product_of_sizes_is_above_minus_1_where_its_type_holds_it() -> None:
    named = {**SETTINGS, "least": constant(-1), "narrow": typed(-1, "int32")}
    product = node("Mul", "l", "l", to="p")
    assert element(*LENGTH, product, node("Greater", "p", "least"), **named) is True
    narrow = (GraphNode("Cast", ("p",), ("q",), {"to": 6}), node("Greater", "q", "narrow"))
    found, supposed = supposing(*LENGTH, product, *narrow, **named)
    assert (found[0].elements, list(supposed.values())) == ((True,), [AtMost(46340)])
    large = {**named, "large": constant(2**30)}
    product = node("Mul", "l", "large", to="p")
    assert isinstance(element(*LENGTH, product, *narrow, **large), Term)


_TO: Final = {"int32": 6, "int64": 7, "uint32": 12, "uint64": 13, "float32": 1, "float64": 11}


@st.composite
def arithmetic(draw: st.DrawFn) -> tuple[list[tuple[str, str]], list[int]]:
    """Steps of computing something of a size, each an operator and a type, and the constants that they take."""
    steps, dtype = [], "int64"
    numbers = []
    for _ in range(draw(st.integers(1, 5))):
        name = draw(st.sampled_from(["Mul", "Mul", "Square", "Cast", "Cast", "Div", "ReduceProd"]))
        dtype = draw(st.sampled_from(sorted(_TO))) if name == "Cast" else dtype
        steps.append((name, dtype))
        most = min(most_of(dtype) or 1, 2**62)
        numbers.append(draw(st.one_of(st.integers(1, 12), st.integers(0, 62).map(lambda bits: 2**bits))) % (most + 1))
    return steps, numbers


@given(arithmetic(), st.floats(0, 1))
@settings(max_examples=300)
def test_what_is_known_of_a_size_is_what_its_types_make_of_it(
    computed: tuple[list[tuple[str, str]], list[int]], share: float
) -> None:
    """Whole numbers that leave their type go round, and those that a float cannot hold are rounded."""
    nodes, constants = list(LENGTH), {}
    before = "l"
    for index, ((name, dtype), number) in enumerate(zip(*computed, strict=True)):
        constants[f"c{index}"] = typed(number, dtype)
        constants[f"v{index}"] = typed([number], dtype)
        after = f"p{index}"
        match name:
            case "Cast":
                nodes.append(GraphNode("Cast", (before,), (after,), {"to": _TO[dtype]}))
            case "Square":
                nodes.append(node("Mul", before, before, to=after))
            case "ReduceProd":
                nodes.append(node("Unsqueeze", before, "first", to=f"u{index}"))
                nodes.append(node("Concat", f"u{index}", f"v{index}", to=f"w{index}", axis=0))
                nodes.append(node("ReduceProd", f"w{index}", to=after, keepdims=0))
            case _:
                nodes.append(node(name, before, f"c{index}", to=after))
        before = after
    (size, found), supposed = supposing(*nodes, outputs=f"l {before}", **SETTINGS, **constants)
    if found.elements is None or not isinstance(found.elements[0], Term) or size.elements is None:
        return
    (claimed,), (length,) = found.elements, size.elements
    assert isinstance(length, Term)
    if not isinstance(claimed, Term) or set(claimed.symbols) != set(length.symbols):
        return
    most = min((one.size for one in supposed.values() if isinstance(one, AtMost)), default=MOST_ELEMENTS)
    for value in {1, 1 + int(share * (most - 1)), most}:
        assert claimed.factor * value ** len(claimed.symbols) == _as_it_runs(value, *computed), (claimed, value)


def _as_it_runs(value: int, steps: list[tuple[str, str]], numbers: list[int]) -> float:
    result = np.array(value, "int64")
    with np.errstate(all="ignore"):
        for (name, dtype), number in zip(steps, numbers, strict=True):
            match name:
                case "Cast":
                    result = result.astype(dtype)
                case "Square":
                    result = np.asarray(result * result)
                case "Div":
                    by = np.array(number, dtype)
                    result = np.asarray(result / by if dtype.startswith("float") else result // by)
                case "Mul":
                    result = np.asarray(result * np.array(number, dtype))
                case _:  # as onnxruntime has it
                    product = result.astype("float64") * np.array(number, dtype).astype("float64")
                    result = np.asarray(product).astype(dtype)
    whole: float = result.item()
    return whole


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
def test_elements_of_the_input_are_not_taken_for_those_of_the_output(made: GraphNode) -> None:
    assert element(made, a=constant([5.0]), t=Tensor("string", (1,), ("five",)), none=Tensor("int64", (0,), ())) is None


def test_a_matrix_of_numbers_chooses_as_many_columns_as_it_has_elements() -> None:
    chosen = result(ml("ArrayFeatureExtractor", "x", "i"), x=rows(5), i=[[0, 1, 2], [3, 4, 0]])
    assert chosen.known_shape[1] == 6
