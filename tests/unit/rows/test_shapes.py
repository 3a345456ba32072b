"""What changes shapes, and what is known of sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
from graph_builder import constant, node, proved, refusal, result, rows, weights

from cortex.rows.values import Kind
from cortex.wire.graphs import GraphNode, Tensor


def test_an_empty_list_of_axes_squeezes_each_dimension_of_size_1_as_none_at_all_does() -> None:
    assert "the rows too" in refusal(node("Squeeze", "x", "axes"), x=rows(1), axes=np.zeros(0, "int64"))
    assert "the rows too" in refusal(node("Squeeze", "x", axes=()), x=rows(1), opsets={"": 11})
    assert proved(node("Squeeze", "x", "axes"), x=rows(1), axes=[1])


def test_a_weight_for_each_of_several_rows_does_not_normalise_rows() -> None:
    assert proved(node("LayerNormalization", "x", "w", axis=-1), x=rows(3, 4), w=weights(3, 4))
    assert proved(node("LayerNormalization", "x", "w", axis=-1), x=rows(3, 4), w=weights(1, 3, 4))
    assert "along the rows" in refusal(node("LayerNormalization", "x", "w", axis=-1), x=rows(3, 4), w=weights(2, 3, 4))


def test_rows_are_found_by_places_that_their_type_holds() -> None:
    def found(dtype: int, start: Any) -> bool:
        nodes = (
            node("Shape", "x", to="s", start=0, end=1), node("Squeeze", "s", "axes", to="n0"),
            GraphNode("Cast", ("n0",), ("n",), {"to": dtype}), node("Range", "start", "n", "one", to="r"),
            node("Shape", "x", to="t", start=1), node("Squeeze", "t", "axes", to="l0"),
            GraphNode("Cast", ("l0",), ("l",), {"to": dtype}), node("Mul", "r", "l", to="p"),
            GraphNode("Cast", ("p",), ("i",), {"to": 7}), node("Reshape", "x", "all", to="f"), node("Gather", "f", "i"),
        )  # fmt: skip
        return proved(*nodes, x=rows(None), axes=[0], start=start(0), one=start(1), all=[-1])

    assert found(7, constant)
    assert found(6, lambda number: Tensor("int32", (), (number,)))
    assert not found(1, lambda number: constant(float(number)))


def test_a_row_has_a_place_where_the_last_one_is_within_its_type() -> None:
    def kind(dtype: str, to: int, stride: int) -> Kind:
        nodes = (
            node("Shape", "x", to="s", start=0, end=1), node("Squeeze", "s", "axes", to="n0"),
            GraphNode("Cast", ("n0",), ("n",), {"to": to}), node("Range", "start", "n", "one", to="r"),
            node("Mul", "r", "stride", to="y"),
        )  # fmt: skip
        typed = {"start": 0, "one": 1, "stride": stride}
        named = {name: Tensor(dtype, (), (number,)) for name, number in typed.items()}
        return result(*nodes, x=rows(4), axes=[0], **named).kind

    assert kind("int32", 6, 2**20) is kind("int64", 7, 2**40) is Kind.PLACES
    assert kind("int32", 6, 2**27) is Kind.NUMBERED
