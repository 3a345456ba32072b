"""Recurrent layers of TensorFlow that are one operator."""

from __future__ import annotations

from cortex.rows.refusal import refuse
from cortex.rows.rules.registry import Op, Rounds, must_be_constant
from cortex.rows.rules.tensorflow.registry import rule
from cortex.rows.values import Value


@rule("CudnnRNN", "CudnnRNNV2", "CudnnRNNV3", rounds=Rounds.SUMS)
def cudnn(call: Op) -> list[Value]:
    """
    Input, first states, weights, and in the third version lengths.

    Source: TensorFlow, "CudnnRNNV3": time major unless an attribute says otherwise; states are layers × rows × units.
    """
    if call.attributes.get("is_training", True) is not False and call.attributes.get("dropout", 0.0) != 0:
        refuse("random numbers, as in training")
    x, h, c, weights = (call.value(index) for index in range(4))
    lengths = call.optional(4)
    axis = 1 if call.attributes.get("time_major", True) is not False else 0
    state_axis = axis
    must_be_constant(weights)
    if not x.is_rows or x.axis != axis or x.rank != 3:
        refuse("rows are the time steps" if x.is_rows else "is not made of rows")
    if not h.is_rows or h.axis != state_axis or h.layout != x.layout:
        refuse("the first state is not made of rows")
    is_lstm = call.text("rnn_mode", "lstm") == "lstm"
    if is_lstm and (not c.is_rows or c.axis != state_axis or c.layout != x.layout):
        refuse("the first state is not made of rows")
    if lengths is not None and (not lengths.is_rows or lengths.axis != 0 or lengths.layout != x.layout):
        refuse("lengths of no rows")
    units = h.known_shape[-1]
    width = call.fresh() if call.text("direction", "unidirectional") != "unidirectional" else units
    output = x.moved([*x.known_shape[:2], width], axis)
    state = h.moved(h.known_shape, h.axis)
    return [output, state, state]
