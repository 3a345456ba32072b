"""LSTM, GRU and RNN: rows are the batch, and steps go along another dimension."""

from __future__ import annotations

from cortex.rows.refusal import refuse
from cortex.rows.rules.registry import Op, Rounds, must_be_constant, rule
from cortex.rows.values import Value


@rule("LSTM", "GRU", "RNN", rounds=Rounds.SUMS, since=7)
def recurrent(call: Op) -> list[Value]:
    """
    Outputs Y, Y_h and, of an LSTM, Y_c.

    Lengths and first states are the rows' own, or absent: one for all rows would be as long as the batch.

    Source:
        ONNX, "LSTM", attribute `layout`: with 0 X is [steps, rows, features], Y [steps, directions, rows, hidden] and
        states are [directions, rows, hidden]; with 1 rows come first in all of them.
    """
    x = call.x
    rows_first = bool(call.integer("layout", 0))
    batch = 0 if rows_first else 1
    hidden = call.integer("hidden_size")
    directions = 2 if call.text("direction", "forward") == "bidirectional" else 1
    must_be_constant(call.value(1), call.value(2), call.optional(3), call.optional(7))
    if not x.is_rows or x.rank != 3 or x.axis != batch:
        refuse("rows are the steps, or the features")
    for state, axis in ((call.optional(4), 0), (call.optional(5), batch), (call.optional(6), batch)):
        if state is not None and (not state.is_rows or state.axis != axis or state.layout != x.layout):
            refuse("lengths or first states are not those of the rows")
    steps, count = x.known_shape[1 - batch], x.known_shape[batch]
    if rows_first:
        last = x.moved([count, directions, hidden], 0)
        return [x.moved([count, steps, directions, hidden], 0), last, last]
    last = x.moved([directions, count, hidden], 1)
    return [x.moved([steps, directions, count, hidden], 2), last, last]
