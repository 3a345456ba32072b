"""
Does each output row of a model depend on the input row of the same index alone? Proved from the graph, or not.

Pure: no I/O, no clock, no onnx, no protobuf. A value is followed from the inputs to the outputs as one of a few kinds
(`values`), sizes are symbols (`sizes`), and what an operator does to them is a rule (`rules/`). What no rule knows is
not proved. Nothing here may rely on a runtime refusing what does not fit: onnxruntime takes some of it.
"""

from cortex.rows.flow import prove
from cortex.rows.saved_models import prove_saved_model

__all__ = ["prove", "prove_saved_model"]
