"""What is stored of a model is what its runtime loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cortex.artifacts.models import as_upload, resolve
from cortex.artifacts.store import ArtifactStore

pytestmark = pytest.mark.slow
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

RUN = """
import json, sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
print(json.dumps(session.run(None, {"x": numpy.ones(300, dtype=numpy.float32)})[0].tolist()))
"""


def test_onnxruntime_loads_a_stored_model_with_its_weights_beside_it(tmp_path: Path) -> None:
    """Weights in files of their own, one of them in a subfolder, as hard links in a read-only tree."""
    weights = [float(number) for number in range(300)]
    tensors = [onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [300], weights) for name in ("a", "b")]
    nodes = [onnx.helper.make_node("Mul", ["x", "a"], ["m"]), onnx.helper.make_node("Add", ["m", "b"], ["y"])]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [300]) for name in ("x", "y")]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 17)])
    for tensor, location in zip(model.graph.initializer, ("model.onnx.data", "more/b.bin"), strict=True):
        tensor.raw_data = onnx.numpy_helper.to_array(tensor).tobytes()
        tensor.ClearField("float_data")
        onnx.external_data_helper.set_external_data(tensor, location)
    (tmp_path / "project/models/more").mkdir(parents=True)
    onnx.save(model, tmp_path / "project/models/model.onnx")

    resolved = resolve("models/model.onnx", folder=tmp_path / "project", scratch=tmp_path / "scratch")
    upload = as_upload(resolved)
    assert [file.path for file in upload.files] == ["model.onnx", "model.onnx.data", "more/b.bin"]
    store = ArtifactStore(tmp_path / "store")
    for stored, (_, source) in zip(upload.files, resolved.files, strict=True):
        with source.open("rb") as bytes_of_file:
            store.put(stored.sha256, bytes_of_file)
    digest = store.put_tree(upload.files)

    entry = store.verify(digest).path / upload.entry
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, entry], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [weight + weight for weight in weights]
    assert store.verify(digest).hashed_bytes == 0
