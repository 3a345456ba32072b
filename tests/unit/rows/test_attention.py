"""Attention: rows first in all operands, in one order, and of sizes that are proved to fit."""

from __future__ import annotations

from typing import Any

import pytest
from graph_builder import microsoft, node, proof, proved, refusal, result, rows, weights

from cortex.rows.sizes import NUMBER_OF_ROWS as N
from cortex.wire.graphs import GraphInput, GraphNode, Tensor

FOUR = {"q": rows(4, 3, 8), "k": rows(2, 5, 8), "v": rows(2, 5, 6)}
"""4 heads of queries, 2 of keys; 3 steps of queries, 5 of keys."""
THREE = {"q": rows(3, 32), "k": rows(5, 16), "v": rows(5, 12)}
HEADS = {"q_num_heads": 4, "kv_num_heads": 2}
PLAIN = node("Attention", "q", "k", "v")
MASKED = node("Attention", "q", "k", "v", "m")
WITH_HEADS = node("Attention", "q", "k", "v", **HEADS)


def test_each_row_attends_to_itself() -> None:
    assert result(PLAIN, **FOUR).shape == (N, 4, 3, 6)
    assert result(WITH_HEADS, **THREE).shape == (N, 3, 24)
    assert proof(PLAIN, **FOUR).rounding == "rounding"


@pytest.mark.parametrize(
    "changed",
    [
        {"k": rows(2, 5, 7)},
        {"v": rows(1, 5, 6)},
        {"v": rows(2, 4, 6)},
        {"k": rows(5, 8)},
        {"q": rows(4, 3, 8, 1)},
        {"k": weights(1, 2, 5, 8)},
        {"v": weights(1, 2, 5, 6)},
        {"q": weights(1, 4, 3, 8)},
    ],
)
def test_operands_that_do_not_fit_are_refused(changed: dict[str, GraphInput | Tensor]) -> None:
    assert not proved(PLAIN, **{**FOUR, **changed})


@pytest.mark.parametrize(
    "changed", [{"k": rows(5, 15)}, {"v": rows(4, 12)}, {"v": rows(5, 13)}, {"q": rows(3, 33)}, {"q": rows(4, 3, 8)}]
)
def test_merged_heads_that_do_not_fit_are_refused(changed: dict[str, GraphInput]) -> None:
    assert not proved(WITH_HEADS, **{**THREE, **changed})


def test_operands_of_other_ranks_are_refused() -> None:
    assert refusal(PLAIN, **{**FOUR, "k": rows(5, 8)}) == "3 dimensions for 4"
    assert refusal(PLAIN, **{**FOUR, "q": rows(4, 3, 8, 1)}) == "5 dimensions for 4"
    assert refusal(many(), **{**MANY, "q": rows(32)}) == "2 dimensions for 3"
    turned = node("RotaryEmbedding", "x", "c", "s", "p")
    assert refusal(turned, x=rows(3), **TABLE, p=PLACES) == "2 dimensions for 4"
    assert refusal(embedded(segments=""), x=rows(3, 3, dtype="int32"), **TABLES) == "3 dimensions for 2"


def test_rows_in_other_dimensions_are_refused() -> None:
    turn = node("Transpose", "turned", to="x", perm=(1, 0, 2))
    assert refusal(turn, own(), turned=OWN["x"], w=OWN["w"], b=OWN["b"]) == "rows are dimension 1, not 0"
    turn = node("Transpose", "words", to="x", perm=(1, 0))
    assert refusal(turn, embedded(segments=""), words=WORDS["x"], **TABLES) == "rows are dimension 1, not 0"


def test_steps_that_requests_choose_are_supposed_to_fit() -> None:
    free = {"q": rows(4, None, 8), "k": rows(2, None, 8), "v": rows(2, None, 6)}
    (condition,) = proof(PLAIN, **free).sizes
    assert (condition.input, condition.axis, condition.other_input, condition.other_axis) == ("v", 2, "k", 2)


@pytest.mark.parametrize("turned", ["k", "m"])
def test_rows_of_another_order_are_refused(turned: str) -> None:
    """Each row has 7 of everything, of which one operand has the first of all rows first."""
    shapes = {"q": [-1, 4, 3, 8], "k": [-1, 2, 5, 8], "v": [-1, 2, 5, 6], "m": [-1, 4, 3, 5]}
    nodes = [node("Transpose", turned, to="t", perm=(1, 0, 2, 3, 4))]
    for name in shapes:
        source = "t" if name == turned else name
        nodes.append(node("Reshape", source, f"{name}_shape", to=f"{name}_flat"))
    settings: dict[str, Any] = {name: rows(7, *shape[1:]) for name, shape in shapes.items()}
    settings |= {f"{name}_shape": shape for name, shape in shapes.items()}
    attention = node("Attention", "q_flat", "k_flat", "v_flat", "m_flat")
    assert refusal(*nodes, attention, **settings) == "rows meet in different layouts"


@pytest.mark.parametrize(
    ("mask", "fits"),
    [
        (weights(3, 5), True),
        (weights(4, 3, 5), True),
        (weights(1, 4, 3, 5), True),
        (weights(2, 4, 3, 5), False),
        (rows(4, 3, 5), True),
        (rows(1, 3, 5), True),
        (rows(1, 1, 5), False),
        (rows(2, 3, 5), False),
        (rows(4, 3, 4), False),
        (rows(3, 5), False),
        (rows(5), False),
    ],
)
def test_a_mask_is_one_for_all_rows_or_one_for_each(mask: GraphInput | Tensor, fits: bool) -> None:
    assert proved(MASKED, **FOUR, m=mask) is fits


@pytest.mark.parametrize(("mask", "fits"), [(rows(4, 3, 5), True), (rows(4, 3, 4), False), (rows(4, 1, 5), False)])
def test_merged_heads_are_masked_in_the_same_way(mask: GraphInput, fits: bool) -> None:
    assert proved(node("Attention", "q", "k", "v", "m", **HEADS), **THREE, m=mask) is fits


def test_a_step_that_is_to_be_stretched_is_not_supposed_to_be_the_only_one() -> None:
    free = {**FOUR, "q": rows(4, None, 8)}
    assert refusal(MASKED, **free, m=rows(1, 1, 5)).startswith("a size of 1 where")
    assert refusal(MASKED, **FOUR, m=rows(1, None, 5)) == ""
    assert refusal(MASKED, **{**FOUR, "q": rows(4, 1, 8)}, m=rows(1, None, 5)).endswith("where 1 is wanted")


def test_keys_of_before_are_refused() -> None:
    cached = node("Attention", "q", "k", "v", "", "pk", "pv", to="y nk nv")
    past = {"pk": rows(2, 6, 8), "pv": rows(2, 6, 6)}
    assert refusal(cached, **FOUR, **past) == "keys and values of before"
    lengths = node("Attention", "q", "k", "v", "", "", "", "n")
    assert refusal(lengths, **FOUR, n=rows(dtype="int64")) == "keys and values of before"


# ---- rotary embedding -------------------------------------------------------------------------------------------

TABLE = {"c": weights(9, 4), "s": weights(9, 4)}
PLACES = rows(3, dtype="int64")


@pytest.mark.parametrize(("x", "heads"), [(rows(4, 3, 8), 0), (rows(3, 32), 4)])
def test_each_row_turns_by_its_own_places(x: GraphInput, heads: int) -> None:
    turned = node("RotaryEmbedding", "x", "c", "s", "p", num_heads=heads)
    assert proved(turned, x=x, **TABLE, p=PLACES)
    assert not proved(turned, x=x, **TABLE, p=rows(4, dtype="int64"))
    assert not proved(turned, x=x, **TABLE, p=weights(1, 3, dtype="int64"))
    assert not proved(turned, x=x, c=rows(4), s=TABLE["s"], p=PLACES)


@pytest.mark.parametrize(("x", "heads"), [(rows(4, 3, 8), 0), (rows(3, 32), 4)])
def test_each_row_turns_by_its_own_angles(x: GraphInput, heads: int) -> None:
    turned = node("RotaryEmbedding", "x", "c", "s", num_heads=heads)
    angles = {"c": rows(3, 4), "s": rows(3, 4)}
    assert proved(turned, x=x, **angles)
    for name in angles:
        for wrong in (rows(3, 3), rows(2, 4), weights(1, 3, 4)):
            assert not proved(turned, x=x, **{**angles, name: wrong})


def test_part_of_a_head_turns_by_fewer_angles() -> None:
    turned = node("RotaryEmbedding", "x", "c", "s", num_heads=4, rotary_embedding_dim=4)
    assert proved(turned, x=rows(4, 3, 8), c=rows(3, 2), s=rows(3, 2))
    assert not proved(turned, x=rows(4, 3, 8), c=rows(3, 4), s=rows(3, 4))


def test_what_has_no_heads_does_not_turn() -> None:
    turned = node("RotaryEmbedding", "x", "c", "s", "p", num_heads=4)
    assert not proved(turned, x=rows(3, 33), **TABLE, p=PLACES)
    assert not proved(turned, x=rows(3), **TABLE, p=PLACES)


# ---- com.microsoft ----------------------------------------------------------------------------------------------

MANY = {"q": rows(3, 32), "k": rows(5, 32), "v": rows(5, 24)}


def many(*inputs: str) -> GraphNode:
    return microsoft("MultiHeadAttention", "q", "k", "v", *inputs, num_heads=4)


def test_many_heads_attend_to_their_row() -> None:
    assert result(many(), **MANY).shape == (N, 3, 24)
    assert proved(many("b"), **MANY, b=weights(88))
    assert proved(many("", "p"), **MANY, p=rows(5, dtype="int32"))
    assert proved(many("", "", "a"), **MANY, a=rows(4, 3, 5))
    assert proved(many("", "", "a"), **MANY, a=weights(1, 4, 3, 5))


@pytest.mark.parametrize(
    ("inputs", "changed"),
    [
        ((), {"k": rows(5, 28)}),
        ((), {"v": rows(4, 24)}),
        ((), {"v": rows(5, 26)}),
        ((), {"q": rows(3, 30), "k": rows(5, 30)}),
        ((), {"k": weights(1, 5, 32)}),
        ((), {"q": rows(4, 3, 8)}),
        (("b",), {"b": rows()}),
        (("", "p"), {"p": rows(4, dtype="int32")}),
        (("", "p"), {"p": weights(1, 5, dtype="int32")}),
        (("", "p"), {"p": rows(dtype="int32")}),
        (("", "", "a"), {"a": rows(4, 3, 4)}),
        (("", "", "a"), {"a": weights(2, 4, 3, 5)}),
        (("", "", "", "c"), {"c": rows(4, 6, 8)}),
    ],
)
def test_many_heads_of_operands_that_do_not_fit_are_refused(
    inputs: tuple[str, ...], changed: dict[str, GraphInput | Tensor]
) -> None:
    assert not proved(many(*inputs), **{**MANY, **changed})


OWN: dict[str, Any] = {"x": rows(3, 16), "w": weights(16, 96), "b": weights(96)}


def own(*inputs: str, **attributes: Any) -> GraphNode:
    return microsoft("Attention", "x", "w", "b", *inputs, num_heads=4, **attributes)


def test_a_value_attends_to_itself() -> None:
    assert result(own(), **OWN).shape == (N, 3, 32)
    assert result(own(qkv_hidden_sizes=(32, 32, 24)), x=OWN["x"], w=weights(16, 88), b=weights(88)).shape == (N, 3, 24)
    for mask in (rows(dtype="int32"), rows(3, dtype="int32"), rows(3, 3, dtype="int32")):
        assert proved(own("m"), **OWN, m=mask)


@pytest.mark.parametrize(
    ("operator", "changed"),
    [
        (own(), {"x": rows(3, 15)}),
        (own(), {"x": rows(16)}),
        (own(), {"w": weights(16, 90)}),
        (own(), {"w": weights(16, 97)}),
        (own(), {"w": rows(96)}),
        (own(), {"b": rows()}),
        (own("m"), {"m": rows(2, dtype="int32")}),
        (own("m"), {"m": rows(3, 2, dtype="int32")}),
        (own("m"), {"m": rows(1, 3, 3, dtype="int32")}),
        (own("m"), {"m": weights(1, 3, dtype="int32")}),
        (own("", "p"), {"p": weights(2, 1, 4, 5, 8)}),
        (own("", "", "a"), {"a": rows(4, 3, 2)}),
        (own("", "", "", "l"), {"l": weights(1, dtype="int32")}),
        (own(do_rotary=1), {}),
    ],
)
def test_a_value_that_does_not_fit_itself_is_refused(
    operator: GraphNode, changed: dict[str, GraphInput | Tensor]
) -> None:
    assert not proved(operator, **{**OWN, **changed})


TABLES = {"w": weights(9, 16), "p": weights(7, 16), "t": weights(3, 16), "g": weights(16), "b": weights(16)}
WORDS = {"x": rows(3, dtype="int32"), "s": rows(3, dtype="int32")}


def embedded(*inputs: str, segments: str = "s") -> GraphNode:
    tables = ("w", "p", "t", "g", "b")
    return microsoft("EmbedLayerNormalization", "x", segments, *tables, *inputs, to="y n")


def test_words_become_vectors_of_their_row() -> None:
    vectors = result(embedded(), **WORDS, **TABLES)
    assert (vectors.shape, vectors.dtype) == ((N, 3, 16), "float32")
    counted = result(embedded("m"), outputs="n", **WORDS, **TABLES, m=rows(3, dtype="int32"))
    assert (counted.shape, counted.dtype) == ((N,), "int32")
    assert proved(embedded("", "places"), **WORDS, **TABLES, places=rows(3, dtype="int32"))


@pytest.mark.parametrize(
    ("operator", "changed"),
    [
        (embedded(), {"s": rows(4, dtype="int32")}),
        (embedded(), {"s": weights(1, 3, dtype="int32")}),
        (embedded(), {"x": rows(dtype="int32"), "s": rows(dtype="int32")}),
        (embedded("m"), {"m": rows(2, dtype="int32")}),
        (embedded("", "places"), {"places": weights(1, 3, dtype="int32")}),
        *((embedded(), {name: rows(16)}) for name in "wptgb"),
    ],
)
def test_words_with_other_segments_are_refused(operator: GraphNode, changed: dict[str, GraphInput | Tensor]) -> None:
    assert not proved(operator, **{**WORDS, **TABLES, **changed})
