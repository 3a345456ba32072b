"""The one place where the harness meets what it judges."""

from __future__ import annotations

import onnx
from truth import stored

from cortex.rows import prove
from cortex.wire.batching import Proof
from cortex.wire.graphs import Model
from cortex.wire.onnx_proto import read_graph


def graph_of(model: onnx.ModelProto) -> Model:
    """What the prover is handed of a model: what is read from its file."""
    with stored(model) as path:
        return read_graph(path)


def proof_of(model: onnx.ModelProto) -> Proof:
    return prove(graph_of(model))
