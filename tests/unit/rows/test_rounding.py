"""How far rounding may move a row: what jumps where noise crosses a border."""

from __future__ import annotations

from typing import Any

from graph_builder import constant, node, proof, rows, weights

from cortex.wire.graphs import Node

PRODUCT = node("MatMul", "x", "w", to="p")
SETTINGS: dict[str, Any] = {"x": rows(4), "w": weights(4, 4)}


def test_a_class_by_a_noisy_number_is_a_label() -> None:
    one_hot = node("OneHot", "p", "depth", "values")
    settings = {**SETTINGS, "depth": constant(5), "values": [0.0, 1.0]}
    assert proof(PRODUCT, one_hot, **settings).rounding == "labels"
    assert proof(node("OneHot", "x", "depth", "values"), **settings).rounding == "exact"


def test_what_does_not_fit_into_32_bits_without_a_sign_is_cut_in_more_than_one_way() -> None:
    assert proof(Node("Cast", ("x",), ("y",), {"to": 12}), x=rows(4)).rounding == "steps"
    assert proof(Node("Cast", ("x",), ("y",), {"to": 12}), x=rows(4, dtype="int64")).rounding == "exact"
    assert proof(Node("Cast", ("x",), ("y",), {"to": 6}), x=rows(4)).rounding == "exact"
