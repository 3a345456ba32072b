"""Small files that would take hours or all memory: each is done with after a bounded number of steps."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from graph_builder import model, node, proof, refusal, result, rows, weights

from cortex.rows import flow, prove
from cortex.rows.flow import MAX_RANK, MAX_WORK, Flow
from cortex.wire.graphs import Function, Graph, GraphNode, Tensor


def chain(operator: str, first: str, *others: str, times: int, **attributes: Any) -> tuple[GraphNode, ...]:
    names = [first, *(f"v{index}" for index in range(times - 1)), "y"]
    return tuple(node(operator, a, *others, to=b, **attributes) for a, b in itertools.pairwise(names))


def test_numbers_do_not_become_longer_than_any_size() -> None:
    """As many as 256 to the power of the number of operators."""
    nodes, last = [], "k"
    for index in range(6):
        nodes += [
            node("Concat", *[last] * 200, to=f"c{index}", axis=0),
            node("ReduceProd", f"c{index}", to=f"p{index}"),
        ]
        last = f"p{index}"
    assert result(*nodes, outputs=last, k=[2**40]).elements is None


def test_a_value_of_more_dimensions_than_any_tensor_is_not_followed() -> None:
    wider = node("Unsqueeze", "x", "axes")
    assert refusal(wider, x=rows(4), axes=list(range(1, MAX_RANK))) == f"more than {MAX_RANK} dimensions"
    assert "dimensions" in refusal(node("Relu", "x"), x=rows(*[1] * MAX_RANK))
    assert result(node("Identity", "w"), w=weights(*[1] * (MAX_RANK + 1))).shape is None


def test_numbers_are_not_filled_up_or_repeated_to_more_than_are_kept() -> None:
    assert result(node("Pad", "k", "pads"), k=[[[[1]]]], pads=[100] * 8).elements is None
    chosen = result(node("Gather", "k", "i", axis=0), k=[list(range(100))], i=[0] * 100)
    assert (chosen.shape, chosen.elements) == ((100, 100), None)
    assert result(node("Concat", *["k"] * 100, axis=0), k=list(range(100))).elements is None


def test_names_and_numbers_that_are_looked_at_are_counted() -> None:
    shape = node("Shape", "x", to="s", start=1)
    many = (node("Concat", *["s"] * 250, to="v", axis=0), *chain("Add", "v", "c", times=MAX_WORK // 250))
    named = {"x": rows(None), "c": list(range(1, 251))}
    assert proof(shape, *many, **named).reason == "it has more names and numbers than are looked at"


@pytest.fixture
def little_work(monkeypatch: pytest.MonkeyPatch) -> int:
    """Of names and numbers a tenth is looked at: what counts is counted the same, and tests take a tenth."""
    monkeypatch.setattr(flow, "MAX_WORK", MAX_WORK // 10)
    return MAX_WORK // 10


@pytest.mark.parametrize("what", ["operands", "constants"])
def test_names_in_functions_are_counted_in_each_call(what: str, little_work: int) -> None:
    if what == "operands":
        body: tuple[GraphNode, ...] = (node("Sum", *["a"] * 500, to="b"),)
    else:
        constants = {f"k{index}": Tensor("int64", ()) for index in range(500)}
        branch = Graph((), (), ("a",), constants)
        body = (node("If", "yes", to="b", then_branch=branch, else_branch=branch),)
        body = (node("Constant", to="yes", value=Tensor("bool", (), (True,))), *body)
    function = Function("F", "own", body, ("a",), ("b",))
    calls = [node("F", "x", to=f"y{index}" if index else "y", domain="own") for index in range(little_work // 500)]
    made = dataclasses.replace(model(*calls, x=rows(4)), functions={("own", "F"): function})
    assert prove(made).reason == "it has more names and numbers than are looked at"


def test_passes_that_suppose_sizes_are_counted_together(little_work: int) -> None:
    nodes = [node("Relu", "x0", to=f"r{index}") for index in range(little_work // 100)]
    pairs = [node("Add", f"x{index}", f"x{index + 1}", to=f"a{index}") for index in range(22)]
    settings = {f"x{index}": rows(None) for index in range(23)}
    found = proof(*nodes, *pairs, outputs="a0", **settings)
    assert found.reason == "it has more names and numbers than are looked at"
    assert proof(*pairs, outputs="a0", **settings).proved


def test_a_branch_that_is_not_taken_is_put_in_order_once() -> None:
    class Counted(tuple[GraphNode, ...]):
        walks = 0

        def __iter__(self) -> Any:
            Counted.walks += 1
            return super().__iter__()

    unused = Graph(Counted((node("Relu", "a", to="o"),)), (), ("o",))
    taken = Graph((node("Identity", "a", to="t"),), (), ("t",))
    body = (node("If", "yes", to="b", then_branch=taken, else_branch=unused),)
    function = Function(
        "F", "own", (node("Constant", to="yes", value=Tensor("bool", (), (True,))), *body), ("a",), ("b",)
    )
    calls = [node("F", "x", to=f"y{index}" if index else "y", domain="own") for index in range(50)]
    made = dataclasses.replace(model(*calls, x=rows(4)), functions={("own", "F"): function})
    assert Flow(made).run()[0].is_rows
    assert Counted.walks == 1
