"""What is known of values that differ from turn to turn, or from item to item."""

from __future__ import annotations

from graph_builder import constant, node, refusal, result, rows, weights

from cortex.rows.sizes import NUMBER_OF_ROWS as N
from cortex.wire.graphs import Graph, GraphInput

ON = node("Identity", "go", to="on")


def turn(*nodes: object, state: str, outputs: str) -> Graph:
    inputs = tuple(GraphInput(name) for name in ("i", "go", *state.split()))
    return Graph((*nodes, ON), inputs, ("on", *outputs.split()))  # type: ignore[arg-type]


def test_a_state_is_not_below_what_it_was_below_at_first() -> None:
    body = turn(
        node("Add", "start", "at", to="place"), node("Gather", "flat", "place", to="found"),
        node("Sub", "at", "one", to="next"), state="at old", outputs="next found",
    )  # fmt: skip
    nodes = (
        node("Shape", "x", to="s"), node("Gather", "s", "zero", to="n"), node("Range", "n0", "n", "one", to="r"),
        node("Mul", "r", "four", to="start"), node("Reshape", "x", "flattened", to="flat"),
        node("ArgMax", "x", to="best", axis=1, keepdims=0), node("ReduceMax", "x", "axes", to="first", keepdims=0),
        node("Loop", "turns", "", "best", "first", to="_ y", body=body),
    )  # fmt: skip
    settings = {"zero": constant(0), "n0": constant(0), "one": constant(1), "four": constant(4), "turns": constant(2)}
    assert refusal(*nodes, x=rows(4), flattened=[-1], axes=[1], **settings) == "row numbers used as data"


def test_items_of_a_list_are_not_taken_to_be_of_one_size() -> None:
    pieces = node("SplitToSequence", "x", "sizes", to="list", axis=1)
    first, second = node("SequenceAt", "list", "zero", to="a"), node("SequenceAt", "list", "one", to="b")
    settings = {"x": rows(12, None), "sizes": [8, 4], "zero": constant(0), "one": constant(1)}
    a = result(pieces, first, second, outputs="a", **settings)
    assert (a.known_shape[0], a.known_shape[2]) == (N, result(node("Identity", "x"), x=rows(12, None)).known_shape[2])
    like_the_other = (node("Shape", "b", to="shape"), node("Reshape", "a", "shape"))
    assert "not provably" in refusal(pieces, first, second, *like_the_other, **settings)


def test_a_size_of_one_of_two_branches_may_grow_in_a_loop() -> None:
    twice = Graph((node("Concat", "x", "x", to="a", axis=1),), (), ("a",))
    once = Graph((node("Identity", "x", to="b"),), (), ("b",))
    body = turn(
        node("Reshape", "s", "shape", to="t"), node("Concat", "s", "s", to="next", axis=1),
        state="s old", outputs="next t",
    )  # fmt: skip
    nodes = (
        node("ReduceMax", "large", to="m", keepdims=0), node("IsNaN", "m", to="c"),
        node("If", "c", to="v", then_branch=twice, else_branch=once),
        node("Shape", "v", to="shape"), node("Loop", "turns", "", "v", "v", to="_ y", body=body),
    )  # fmt: skip
    assert "not provably" in refusal(*nodes, x=rows(4), large=weights(300), turns=constant(2))
