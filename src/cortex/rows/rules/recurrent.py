"""LSTM, GRU and RNN: rows are the batch, and steps go along another dimension."""

from __future__ import annotations

from cortex.rows.refusal import refuse
from cortex.rows.rules.registry import Call, Rounds, must_be_constant, rule
from cortex.rows.values import Value, uniform


@rule("LSTM", "GRU", "RNN", rounds=Rounds.SUMS)
def recurrent(call: Call) -> list[Value]:
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
    if x.is_uniform:
        return [uniform() for _ in range(3)]
    if x.axis != batch:
        refuse("rows are the steps, or the features")
    lengths = call.optional(4)
    if lengths is not None and (not lengths.is_rows or lengths.axis != 0 or lengths.layout != x.layout):
        refuse("lengths are not those of the rows")
    for state in (call.optional(5), call.optional(6)):
        if state is not None and (not state.is_rows or state.axis != batch or state.layout != x.layout):
            refuse("the first state is not that of the rows")
    steps, count = x.known_shape[1 - batch], x.known_shape[batch]
    if rows_first:
        last = x.moved([count, directions, hidden], 0)
        return [x.moved([count, steps, directions, hidden], 0), last, last]
    last = x.moved([directions, count, hidden], 1)
    return [x.moved([steps, directions, count, hidden], 2), last, last]
