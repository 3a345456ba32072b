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


class SavedModels:
    """Exports SavedModels into a folder of the test's own, and loads them."""

    def __init__(self, tensorflow, folder):
        self.tf = tensorflow
        self.tf1 = tensorflow.compat.v1
        self.folder = folder
        self.opened = []

    def tf1_export(self, build, *, tags=("serve",), as_text=False, **options):
        """
        Export as TensorFlow 1 did.

        Args:
            build: called in a new graph; returns {signature key: (inputs, outputs)}, both by name.
            tags: of the graph; a list of several makes a graph of each.
            options: of the builder, as functions that are called in the graph, e.g. `main_op`.
            as_text: write the graph as text.
        """
        tf1, path = self.tf1, self.folder / f"saved-{len(list(self.folder.iterdir()))}"
        builder = tf1.saved_model.Builder(str(path))
        for number, each in enumerate(tags if isinstance(tags, list) else [tags]):
            with tf1.Graph().as_default(), tf1.Session() as session:
                signatures = {
                    key: tf1.saved_model.build_signature_def(*(self._infos(part) for part in parts), "test")
                    for key, parts in build().items()
                }
                session.run(tf1.global_variables_initializer())
                if number:
                    builder.add_meta_graph(list(each), signatures)
                else:
                    made = {name: make() for name, make in options.items()}
                    builder.add_meta_graph_and_variables(session, list(each), signatures, **made)
        builder.save(as_text=as_text)
        return str(path)

    def _infos(self, tensors):
        return {name: self.tf1.saved_model.build_tensor_info(tensor) for name, tensor in tensors.items()}

    def identity(self, dtype="float32", shape=None):
        """x → y = x, exported by TensorFlow 1."""

        def build():
            x = self.tf1.placeholder(dtype, shape)
            return {"serving_default": ({"x": x}, {"y": self.tf.identity(x)})}

        return self.tf1_export(build)

    def tf2_export(self, function, *specs, signatures=None, **parts):
        """
        Export a `tf.function` as TensorFlow 2 does.

        Args:
            function: takes tensors and returns a dict of them.
            specs: (name, dtype, shape) of its arguments.
            signatures: keys it is exported under; by default `serving_default`.
            parts: variables and tables that the module has to own.
        """
        tf, path = self.tf, self.folder / f"saved-{len(list(self.folder.iterdir()))}"
        module = tf.Module()
        for name, part in parts.items():
            setattr(module, name, part)
        traced = tf.function(
            function, input_signature=[tf.TensorSpec(shape, dtype, name) for name, dtype, shape in specs]
        )
        module.function = traced
        tf.saved_model.save(module, str(path), signatures=dict.fromkeys(signatures or ["serving_default"], traced))
        return str(path)

    def edit(self, path, change):
        """Change the protobuf of an exported SavedModel in place."""
        from tensorflow.core.protobuf import saved_model_pb2

        file = f"{path}/saved_model.pb"
        saved_model = saved_model_pb2.SavedModel()
        with open(file, "rb") as stream:
            saved_model.ParseFromString(stream.read())
        change(saved_model)
        with open(file, "wb") as stream:
            stream.write(saved_model.SerializeToString())
        return path

    def load(self, path, **options):
        from cortex.replica.backends import tensorflow as backend

        loaded = backend.load(path, **options)
        self.opened.append(loaded)
        return loaded


@pytest.fixture
def saved_models(tensorflow, tmp_path):
    made = SavedModels(tensorflow, tmp_path)
    yield made
    for loaded in made.opened:
        loaded.close()
