"""Small ONNX models, written for the test at hand."""

import pytest
from onnx import TensorProto, helper

from cortex.replica.backends import onnx as backend


class Models:
    """Writes models into a folder of the test's own, and loads them."""

    def __init__(self, folder):
        self.folder = folder
        self.opened = []

    def write(
        self, nodes, inputs=None, outputs=None, *, opset=18, domains=(), ir_version=9, name="model.onnx", **graph
    ):
        """
        Save a model.

        Args:
            nodes: tuples (operator, inputs, outputs, attributes) or protos.
            inputs, outputs: {name: (element type, shape)} or protos; by default x: float [N, 2] and y of any shape.
        """
        protos = [helper.make_node(*node[:3], **node[3]) if isinstance(node, tuple) else node for node in nodes]
        made = helper.make_model(
            helper.make_graph(
                protos,
                "g",
                values(inputs or {"x": ("FLOAT", ["N", 2])}),
                values(outputs or {"y": ("FLOAT", None)}),
                **graph,
            ),
            opset_imports=[helper.make_opsetid("", opset), *(helper.make_opsetid(*domain) for domain in domains)],
            ir_version=ir_version,
        )
        return self.write_bytes(made.SerializeToString(), name)

    def write_bytes(self, content, name="model.onnx"):
        path = self.folder / name
        path.write_bytes(content)
        return str(path)

    def load(self, *args, **kwargs):
        """Save and load a model."""
        loaded = backend.load(self.write(*args, **kwargs))
        self.opened.append(loaded)
        return loaded


def values(named):
    if not isinstance(named, dict):
        return named
    return [
        helper.make_tensor_value_info(name, getattr(TensorProto, kind), dims) for name, (kind, dims) in named.items()
    ]


@pytest.fixture
def models(tmp_path):
    made = Models(tmp_path)
    yield made
    for loaded in made.opened:
        loaded.close()
