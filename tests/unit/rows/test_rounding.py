"""How far rounding may move a row: what jumps where noise crosses a border."""

from __future__ import annotations

from typing import Any

from graph_builder import constant, node, proof, rows, weights

from cortex.wire.graphs import GraphNode

PRODUCT = node("MatMul", "x", "w", to="p")
SETTINGS: dict[str, Any] = {"x": rows(4), "w": weights(4, 4)}


def test_a_class_by_a_noisy_number_is_a_label() -> None:
    one_hot = node("OneHot", "p", "depth", "values")
    settings = {**SETTINGS, "depth": constant(5), "values": [0.0, 1.0]}
    assert proof(PRODUCT, one_hot, **settings).rounding == "labels"
    assert proof(node("OneHot", "x", "depth", "values"), **settings).rounding == "exact"


def test_what_does_not_fit_into_32_bits_without_a_sign_is_cut_in_more_than_one_way() -> None:
    assert proof(GraphNode("Cast", ("x",), ("y",), {"to": 12}), x=rows(4)).rounding == "steps"
    assert proof(GraphNode("Cast", ("x",), ("y",), {"to": 12}), x=rows(4, dtype="int64")).rounding == "exact"
    assert proof(GraphNode("Cast", ("x",), ("y",), {"to": 6}), x=rows(4)).rounding == "exact"


def test_a_label_stays_one_by_way_of_floats_that_hold_it() -> None:
    def rounding(wide: int, *between: GraphNode) -> str:
        label = node("ArgMax", "p", to="l", axis=1)
        there = GraphNode("Cast", ("l",), ("f",), {"to": wide})
        back = GraphNode("Cast", ("g" if between else "f",), ("y",), {"to": 7})
        return proof(PRODUCT, label, there, *between, back, half=constant(0.5), **SETTINGS).rounding

    assert rounding(1) == rounding(11) == "labels"
    assert rounding(1, node("Identity", "f", to="g")) == "labels"
    assert rounding(10) == "steps"
    assert rounding(1, node("Mul", "f", "half", to="g")) == "steps"
    assert rounding(1, node("Sqrt", "f", to="g")) == "steps"


def test_sums_of_64_bit_integers_are_exact_where_floats_hold_them() -> None:
    def rounding(dtype: str, *nodes: GraphNode, operator: str = "ReduceSum") -> str:
        total = node(operator, "b" if nodes else "x", "axis", to="y")
        return proof(*nodes, total, x=rows(None, 4, dtype=dtype), axis=[1], zero=constant(0)).rounding

    mask = (node("Greater", "x", "zero", to="a"), GraphNode("Cast", ("a",), ("b",), {"to": 7}))
    assert rounding("int64") == rounding("uint64") == rounding("int64", operator="ReduceMean") == "steps"
    assert rounding("int32") == rounding("int64", *mask) == "exact"
    assert rounding("int64", operator="ReduceMax") == "exact"
    assert rounding("int32", operator="ReduceLogSumExp") == "steps"
    assert rounding("float32") == "rounding"
