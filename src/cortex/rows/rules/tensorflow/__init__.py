"""What each operator of TensorFlow does to rows, in terms of the same values as those of ONNX."""

from cortex.rows.rules.tensorflow import (  # noqa: F401  (importing them registers their rules)
    arrays,
    effects,
    elements,
    lists,
    parsing,
    recurrent,
    state,
    sums,
    windows,
)
