"""Tests of `cortex.wire.onnx_proto`, against models that the onnx package writes."""

import gzip
import os

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cortex.wire.onnx_proto import ValueInfo, external_files, read_header

FLOAT = TensorProto.FLOAT


def tensor_info(name, shape):
    return helper.make_tensor_value_info(name, FLOAT, shape)


def external(location, name="w"):
    tensor = TensorProto(name=name, data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(nodes=None, inputs=None, **graph):
    nodes = nodes or [helper.make_node("Identity", ["x"], ["y"])]
    made = helper.make_graph(nodes, "g", inputs or [tensor_info("x", ["N", 4])], [tensor_info("y", None)], **graph)
    return helper.make_model(
        made,
        ir_version=10,
        producer_name="pytorch",
        producer_version="2.5",
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)],
    )


@pytest.fixture
def saved(tmp_path):
    def save(content):
        path = tmp_path / "model.onnx"
        path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
        return path

    return save


def test_a_header_tells_operators_inputs_and_outputs(saved):
    weights = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    header = read_header(
        saved(model(inputs=[tensor_info("x", ["N", 4, None]), tensor_info("w", [4])], initializer=[weights]))
    )
    assert header.opsets == {"": 21, "ai.onnx.ml": 3}
    assert header.inputs == (ValueInfo("x", ("N", 4, None)), ValueInfo("w", (4,)))
    assert header.outputs == (ValueInfo("y", None),)


def test_shapes_are_found_inside_sequences_and_optionals_and_told_from_scalars(saved):
    tensor = helper.make_tensor_type_proto(FLOAT, [None, 3])
    kinds = {
        "scalar": helper.make_tensor_type_proto(FLOAT, []),
        "unknown": helper.make_tensor_type_proto(FLOAT, None),
        "negative": helper.make_tensor_type_proto(FLOAT, [-1, 0]),
        "sequence": helper.make_sequence_type_proto(tensor),
        "optional": helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor)),
        "map": helper.make_map_type_proto(TensorProto.INT64, tensor),
    }
    header = read_header(saved(model(inputs=[helper.make_value_info(name, kind) for name, kind in kinds.items()])))
    assert dict(header.inputs) == {
        "scalar": (),
        "unknown": None,
        "negative": (None, 0),
        "sequence": (None, 3),
        "optional": (None, 3),
        "map": None,
    }


def test_external_files_are_found_wherever_a_tensor_can_stand(saved):
    subgraph = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=external("in/branch.bin"))],
        "branch",
        [],
        [tensor_info("c", [2])],
        initializer=[external("branch.weights")],
    )
    nodes = [
        helper.make_node("Constant", [], ["k"], value=external("attribute")),
        helper.make_node("If", ["b"], ["y"], then_branch=subgraph, else_branch=subgraph),
    ]
    nodes[0].attribute.append(onnx.AttributeProto(name="many", tensors=[external("list")], type=9))
    made = model(nodes, initializer=[external("./model.onnx.data"), external("model.onnx.data", "v")])
    made.graph.sparse_initializer.add(values=external("sparse"), indices=external("indices"), dims=[4])
    function_node = helper.make_node("Constant", [], ["f"], value=external("function"))
    default = helper.make_attribute("default", external("default"))
    made.functions.append(
        helper.make_function("own", "F", [], ["f"], [function_node], [helper.make_opsetid("", 21)], [], [default])
    )
    made.training_info.add().algorithm.CopyFrom(helper.make_graph([], "t", [], [], initializer=[external("training")]))
    assert external_files(saved(made)) == [
        "attribute",
        "branch.weights",
        "default",
        "function",
        "in/branch.bin",
        "indices",
        "list",
        "model.onnx.data",
        "sparse",
        "training",
    ]


def test_a_model_that_keeps_its_weights_names_no_files(saved):
    weights = numpy_helper.from_array(np.zeros(1_000_000, np.float32), "w")
    assert external_files(saved(model(initializer=[weights]))) == []


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "../secret", "a/../../b", "..", "", ".", "a\\b", "C:w", "x\0y", "*/_ORT_MEM_ADDR_/*", "./.."],
)
def test_a_file_outside_the_models_folder_is_refused(saved, location):
    with pytest.raises(ValueError, match="not a file in its own folder"):
        external_files(saved(model(initializer=[external(location)])))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"hello world\n", 'it is text, not an ONNX model; it begins with "hello world"'),
        ("é".encode() * 400, "it is text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html>", "web page"),
        (b"PK\x03\x04" + bytes(20), "zip archive"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (gzip.compress(b"x", mtime=0), "gzip"),
        (b"\x80\x04\x95", "pickle"),
        (b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        (b"\x08\x0a", "no graph"),
        (b"\xff" * 100, "no ONNX model"),
        (bytes(100), "no ONNX model"),
    ],
)
def test_a_file_that_is_something_else_is_recognised(saved, content, words):
    path = saved(content)
    for read in (read_header, external_files):
        with pytest.raises(ValueError, match=words):
            read(path)


def test_a_file_cut_anywhere_is_refused_or_reads_as_less(saved):
    whole = model(initializer=[numpy_helper.from_array(np.zeros(8, np.float32), "w")]).SerializeToString()
    refused = 0
    for length in range(len(whole)):
        path = saved(whole[:length])
        try:
            read_header(path)
            external_files(path)
        except ValueError:
            refused += 1
    assert refused > 0.9 * len(whole)


def test_a_cut_file_says_how_much_is_missing(saved):
    whole = model(initializer=[numpy_helper.from_array(np.zeros(1000, np.float32), "w")]).SerializeToString()
    with pytest.raises(ValueError, match=r"ends at least \d+ bytes too early"):
        read_header(saved(whole[:2000]))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_never_does_worse_than_a_value_error(tmp_path_factory, data):
    content = bytearray(model([helper.make_node("Constant", [], ["k"], value=external("w"))]).SerializeToString())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(bytes(content))
    for read in (read_header, external_files):
        try:
            read(path)
        except ValueError as error:
            reason = str(error)
        else:
            continue
        assert reason


def wrapped(number, content):
    """A protobuf field with a length."""
    size, length = len(content), b""
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def test_graphs_nested_without_end_are_refused(saved):
    graph = b""
    for _ in range(150):
        graph = wrapped(1, wrapped(5, wrapped(6, graph)))  # graph.node.attribute.g
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        external_files(saved(wrapped(7, graph)))


def test_a_name_of_megabytes_is_refused(saved):
    with pytest.raises(ValueError, match="name of 1000000 bytes"):
        read_header(saved(model(inputs=[tensor_info("x" * 1_000_000, [1])])))


def test_reading_costs_a_window_however_large_the_weights_are(saved, monkeypatch):
    weights = numpy_helper.from_array(np.zeros(2_000_000, np.float32), "w")
    path = saved(model(initializer=[weights]))
    asked = []
    pread = os.pread

    def counted(fd, length, offset):
        asked.append(length)
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    read_header(path)
    external_files(path)
    assert sum(asked) < 500_000


def forest(nodes):
    """A model whose weights are attributes; the onnx package writes their elements one by one."""
    ensemble = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        nodes_featureids=[index % 300 for index in range(nodes)],
        nodes_modes=["BRANCH_LEQ", "LEAF"] * (nodes // 2),
        nodes_values=[0.5] * nodes,
        n_targets=1,
    )
    return model([ensemble, helper.make_node("Constant", [], ["k"], value=external("beside"))])


def test_a_forest_of_any_size_costs_a_window_for_each_attribute(saved, monkeypatch):
    path = saved(forest(300_000))
    assert path.stat().st_size > 4_000_000
    asked = []
    pread = os.pread

    def counted(fd, length, offset):
        asked.append(length)
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    assert external_files(path) == ["beside"]
    assert read_header(path).inputs == (ValueInfo("x", ("N", 4)),)
    assert sum(asked) < 500_000


@pytest.mark.parametrize("place", ["before", "after"])
def test_files_are_found_beside_long_lists_that_no_type_stands_after(saved, place):
    numbers = b"\x40\x07" * 100_000
    tensor = wrapped(5, external("beside").SerializeToString())
    attribute = tensor + numbers if place == "before" else numbers + tensor
    assert external_files(saved(wrapped(7, wrapped(1, wrapped(5, attribute))))) == ["beside"]


@pytest.mark.slow
def test_a_list_may_have_more_elements_than_fields_are_looked_at_wherever_its_type_stands(saved):
    numbers = b"\x40\x07" * 20_000_001
    kind = b"\xa0\x01\x07"
    name = wrapped(1, b"nodes_treeids")
    for attribute in (name + numbers + kind, name + kind + numbers):
        assert external_files(saved(wrapped(7, wrapped(1, wrapped(5, attribute))))) == []


def test_the_onnx_package_agrees_on_every_model_it_ships(tmp_path):
    folder = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data")
    paths = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if name.endswith(".onnx")]
    assert len(paths) > 100
    for path in paths:
        reference = onnx.load(path, load_external_data=False)
        header = read_header(path)
        assert header.opsets == {opset.domain: opset.version for opset in reference.opset_import}
        assert [value.name for value in header.inputs] == [value.name for value in reference.graph.input]
        for value, expected in zip(header.inputs, reference.graph.input, strict=True):
            if expected.type.HasField("tensor_type"):
                shape = expected.type.tensor_type.shape
                assert value.shape == tuple(
                    dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in shape.dim
                )
        assert external_files(path) == []


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "none.onnx")
