"""
Every operator test that the onnx package ships, served as JSON.

Inputs become JSON and tensors again, run through our backend, and must give bit for bit what onnxruntime gives when it
is called directly on the original arrays: nothing may be lost, cast or reshaped on the way. The onnx package's own
expected values play no part: they test onnxruntime, not us.
"""

import importlib
import os
import pkgutil
import sys
import warnings

import numpy as np
import onnx
import onnx.backend.test.case.base
import onnx.backend.test.case.node as node_cases
import onnxruntime
import pytest
from onnx import numpy_helper

from cortex.replica.backends import locales
from cortex.replica.backends import onnx as backend
from cortex.replica.backends.base import InferenceFailed, ModelError, UnsupportedType
from cortex.replica.bodies.codec import Decoder
from cortex.replica.bodies.results import encode
from cortex.replica.tensors.conversion import Converter

pytestmark = pytest.mark.slow  # all of them together

COSTLY = {"attention", "averagepool", "linear_attention", "lppool", "maxpool", "softmax_cross_entropy_loss"}
"""Making these cases takes the onnx package a second or more each."""
OPERATORS = sorted(
    f"{package}{module.name}"
    for package in ("", "ai_onnx_ml.")
    for module in pkgutil.iter_modules(importlib.import_module(f"{node_cases.__name__}.{package}".rstrip(".")).__path__)
    if not module.ispkg and not module.name.startswith("_") and module.name not in COSTLY
)
SHIPPED = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data")
FOLDERS = sorted(
    os.path.join(kind, name)
    for kind in ("simple", "pytorch-operator", "pytorch-converted")
    for name in os.listdir(os.path.join(SHIPPED, kind))
    if os.path.isdir(os.path.join(SHIPPED, kind, name))
)
NOT_DETERMINISTIC = {
    "Bernoulli",
    "RandomUniform",
    "RandomNormal",
    "RandomUniformLike",
    "RandomNormalLike",
    "Multinomial",
}
DECODE = Decoder(has_pre_inference=False).decode


@pytest.fixture(scope="module", autouse=True)
def no_snippets():
    """Keep the onnx package from collecting the source of each case for its documentation, half the time it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx.backend.test.case.base, "process_snippet", lambda op_name, name, export: (name, ""))
        yield


@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_gives_what_onnxruntime_gives(operator, tmp_path, monkeypatch):
    name = f"{node_cases.__name__}.{operator}"
    monkeypatch.delitem(sys.modules, name, raising=False)  # it tells its cases when it is imported, and only then
    node_cases._existing_names.clear()  # of cases that another test has made in this process
    already = len(node_cases._NodeTestCases)
    with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"):  # of the cases' own arithmetic
        importlib.import_module(name)
    cases = [case for case in node_cases._NodeTestCases[already:] if "_expanded" not in case.name]
    assert cases
    for case in cases:
        if not {node.op_type for node in case.model.graph.node} & NOT_DETERMINISTIC:
            path = tmp_path / "model.onnx"
            path.write_bytes(case.model.SerializeToString())
            names = [value.name for value in case.model.graph.input]
            for inputs, _ in case.data_sets:
                compare(str(path), dict(zip(names, inputs, strict=False)))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_shipped_model_gives_what_onnxruntime_gives(folder):
    path = os.path.join(SHIPPED, folder, "model.onnx")
    names = [value.name for value in onnx.load(path).graph.input]
    data = os.path.join(SHIPPED, folder, "test_data_set_0")
    files = sorted(name for name in os.listdir(data) if name.startswith("input"))
    compare(path, {name: read(os.path.join(data, file)) for name, file in zip(names, files, strict=False)})


def read(path):
    with open(path, "rb") as file:
        content = file.read()
    try:
        return numpy_helper.to_array(onnx.TensorProto.FromString(content))
    except Exception:
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))


def compare(path, values):
    """Run a model on JSON through our code, and directly on `values`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        with locales.standing_in(locales.DEFAULT_NAMES):
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception:
        with pytest.raises(ModelError):  # of the newest operators onnxruntime lacks some
            backend.load(path)
        return
    types = [arg.type for arg in (*session.get_inputs(), *session.get_outputs())]
    if any(word in kind for kind in types for word in ("float8", "float4", "int4", "int2")):
        with pytest.raises(UnsupportedType):
            backend.load(path)
        return
    if any("bfloat16" in kind for kind in types):
        return  # not even onnxruntime's own run() takes these; test_onnx.py does
    loaded = backend.load(path)
    values = {name: plain(value) for name, value in values.items() if value is not None}
    feeds = Converter(loaded.signature).convert(through_json(values))
    direct = {arg.name: values[arg.name] for arg in session.get_inputs() if arg.name in values}
    for name, value in direct.items():
        assert_identical(feeds[name], value)
    try:
        expected = session.run(None, direct)
    except Exception:
        with pytest.raises(InferenceFailed):  # what the operator's definition allows and onnxruntime does not
            loaded.run(feeds)
        return
    assert_identical(list(loaded.run(feeds)), expected)


def plain(value):
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return value if isinstance(value, list) else np.asarray(value)


def through_json(values):
    """
    What a client sends: JSON, but arrays as they are (as a handler would return them) where JSON has no form for them.

    That is for infinities, and for arrays of no elements, which as lists lose their inner dimensions.
    """
    return {name: value if beyond_json(value) else DECODE(encode(value)) for name, value in values.items()}


def beyond_json(value):
    if isinstance(value, list):
        return any(beyond_json(item) for item in value)
    return value.size == 0 or (value.dtype.kind == "f" and bool(np.isinf(value).any()))


def assert_identical(found, expected):
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_identical(one, other)
    elif isinstance(expected, dict) or expected is None:
        assert found == expected
    else:
        found, expected = np.asarray(found), np.asarray(expected)
        if expected.dtype.kind in "UO":
            assert found.tolist() == expected.tolist()
            return
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert np.array_equal(found, expected, equal_nan=found.dtype.kind in "fc")
