"""Recurrent layers: rows are the batch, and lengths and first states are theirs."""

from __future__ import annotations

from typing import Any

import pytest
from graph_builder import node, proof, proved, refusal, result, results, rows, weights

from cortex.rows.sizes import NUMBER_OF_ROWS as N
from cortex.wire.graphs import GraphInput, GraphNode, Tensor

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS_FIRST = node("Transpose", "s", to="x", perm=(1, 0, 2))
"""Of [rows, steps, features]."""
S = rows(5, 3)
LSTM = node("LSTM", "x", "w", "r", to="y h c", hidden_size=2)


def layers(operator: str, directions: int = 1) -> dict[str, Tensor]:
    gates = GATES[operator]
    return {"w": weights(directions, gates * 2, 3), "r": weights(directions, gates * 2, 2)}


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize(("direction", "directions"), [("forward", 1), ("reverse", 1), ("bidirectional", 2)])
def test_rows_are_dimension_2_of_all_states_and_1_of_the_last(operator: str, direction: str, directions: int) -> None:
    layer = node(operator, "x", "w", "r", to="y h", hidden_size=2, direction=direction)
    every, last = results(STEPS_FIRST, layer, outputs="y h", s=S, **layers(operator, directions))
    assert (every.shape, every.axis) == ((5, directions, N, 2), 2)
    assert (last.shape, last.axis) == ((directions, N, 2), 1)


def test_the_last_cell_is_as_the_last_state() -> None:
    _, last, cell = results(STEPS_FIRST, LSTM, outputs="y h c", s=S, **layers("LSTM"))
    assert cell == last


def test_sums_round() -> None:
    nodes = (STEPS_FIRST, LSTM, node("Transpose", "h", to="z", perm=(1, 0, 2)))
    assert proof(*nodes, outputs="z", s=S, **layers("LSTM")).rounding == "rounding"


def test_rows_may_come_first_in_all() -> None:
    layer = node("GRU", "x", "w", "r", to="y h", hidden_size=2, layout=1)
    every, last = results(layer, outputs="y h", x=S, **layers("GRU"))
    assert (every.shape, every.axis) == ((N, 5, 1, 2), 0)
    assert (last.shape, last.axis) == ((N, 1, 2), 0)


@pytest.mark.parametrize("perm", [(0, 1, 2), (1, 2, 0)])
def test_rows_that_are_steps_or_features_are_refused(perm: tuple[int, ...]) -> None:
    turn = node("Transpose", "s", to="x", perm=perm)
    assert refusal(turn, LSTM, s=S, **layers("LSTM")) == "rows are the steps, or the features"


def test_a_value_of_another_rank_is_refused() -> None:
    layer = node("GRU", "x", "w", "r", hidden_size=2, layout=1)
    assert refusal(layer, x=rows(5, 3, 1), **layers("GRU")) == "rows are the steps, or the features"


def test_an_unknown_number_of_hidden_features_is_refused() -> None:
    layer = node("LSTM", "x", "w", "r")
    assert refusal(STEPS_FIRST, layer, s=S, **layers("LSTM")) == "hidden_size is not known"


STATE = node("Transpose", "h0", to="first", perm=(1, 0, 2))
"""Of [rows, directions, hidden]."""
WITH_STATES = node("LSTM", "x", "w", "r", "", "n", "first", "first", to="y h c", hidden_size=2)
BACK = node("Transpose", "h", to="z", perm=(1, 0, 2))


LENGTHS = rows(dtype="int32")


def with_states(*nodes: GraphNode, **settings: Any) -> str:
    return refusal(STEPS_FIRST, *nodes, WITH_STATES, BACK, outputs="z", s=S, **layers("LSTM"), **settings)


def test_lengths_and_first_states_are_those_of_the_rows() -> None:
    assert with_states(STATE, n=LENGTHS, h0=rows(1, 2)) == ""


@pytest.mark.parametrize(
    ("nodes", "settings"),
    [
        ((STATE,), {"n": weights(1, dtype="int32"), "h0": rows(1, 2)}),
        ((), {"n": LENGTHS, "first": weights(1, 1, 2)}),
        ((node("Identity", "h0", to="first"),), {"n": LENGTHS, "h0": rows(1, 2)}),
        ((STATE, node("Unsqueeze", "m", "zero", to="n")), {"m": LENGTHS, "zero": [0], "h0": rows(1, 2)}),
    ],
)
def test_one_length_or_state_for_all_rows_is_refused(nodes: tuple[GraphNode, ...], settings: dict[str, Any]) -> None:
    assert with_states(*nodes, **settings) == "lengths or first states are not those of the rows"


def test_states_of_another_order_are_refused() -> None:
    nodes = (
        node("Reshape", "s", "signals", to="flat"),
        node("Transpose", "flat", to="x", perm=(1, 0, 2)),
        node("Transpose", "h0", to="turned", perm=(1, 0, 2)),
        node("Reshape", "turned", "states", to="first"),
        node("LSTM", "x", "w", "r", "", "", "first", to="y h c", hidden_size=2),
    )
    shapes = {"signals": [-1, 5, 3], "states": [1, -1, 2]}
    verdict = refusal(*nodes, outputs="h", s=rows(4, 5, 3), h0=rows(4, 2), **shapes, **layers("LSTM"))
    assert verdict == "lengths or first states are not those of the rows"


def test_a_constant_signal_from_states_of_rows_is_refused() -> None:
    assert not proved(STATE, WITH_STATES, BACK, outputs="z", x=weights(5, 1, 3), h0=rows(1, 2), n=rows(dtype="int32"),
                      **layers("LSTM"))  # fmt: skip


@pytest.mark.parametrize("name", ["w", "r", "b", "p"])
def test_weights_are_constants(name: str) -> None:
    layer = node("LSTM", "x", "w", "r", "b", "", "", "", "p", to="y h c", hidden_size=2)
    given: dict[str, GraphInput | Tensor] = {**layers("LSTM"), "b": weights(1, 16), "p": weights(1, 6)}
    assert proved(STEPS_FIRST, layer, BACK, outputs="z", s=S, **given)
    made = {**given, name: rows(*given[name].shape[1:])}
    assert not proved(STEPS_FIRST, layer, BACK, outputs="z", s=S, **made)


def test_older_layers_are_refused() -> None:
    assert not proved(STEPS_FIRST, LSTM, BACK, outputs="z", s=S, **layers("LSTM"), opsets={"": 6})
    assert result(STEPS_FIRST, LSTM, outputs="h", s=S, **layers("LSTM"), opsets={"": 7}).is_rows
