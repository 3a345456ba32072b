"""Tests of `cortex.replica.backends.onnx`: what it loads, what it refuses, how it says so."""

import copy
import os
import pickle
import threading

import numpy as np
import onnxruntime
import orjson
import pytest
from onnx import TensorProto, helper, numpy_helper

from cortex.replica.backends import base, locales
from cortex.replica.backends import onnx as backend
from cortex.replica.backends.base import (
    BackendMissing,
    InferenceFailed,
    InputRefused,
    ModelError,
    ModelUnreadable,
    UnsupportedIrVersion,
    UnsupportedOperator,
    UnsupportedOpset,
    UnsupportedType,
    WeightsFileMissing,
)
from cortex.replica.backends.cuda import GpuUnusable
from cortex.replica.backends.onnx import Prediction
from cortex.replica.bodies.results import encode
from cortex.replica.tensors.conversion import Converter
from cortex.wire.signature import TensorSpec

IDENTITY = ("Identity", ["x"], ["y"], {})
NUMPY_NAMES = {
    "FLOAT16": "float16",
    "FLOAT": "float32",
    "DOUBLE": "float64",
    "BFLOAT16": "bfloat16",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "BOOL": "bool",
    "STRING": "string",
}


def answer(loaded, sample):
    """JSON value in, outputs out, as for an api without a handler."""
    return loaded.run(Converter(loaded.signature).convert(sample))


def refused(error, path, **options):
    with pytest.raises(error) as caught:
        backend.load(path, **options)
    assert caught.value.problem().hint == caught.value.hint
    return caught.value


def lowering(models, **attributes):
    node = ("StringNormalizer", ["x"], ["y"], {"case_change_action": "LOWER", "is_case_sensitive": 1, **attributes})
    return models.write([node], {"x": ("STRING", ["N"])}, {"y": ("STRING", ["M"])})


# ---- what can be served ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("element", "dtype"), NUMPY_NAMES.items())
def test_every_element_type_goes_in_and_comes_out(models, element, dtype):
    loaded = models.load([IDENTITY], {"x": (element, ["N", 2])}, {"y": (element, None)})
    assert loaded.signature.inputs == (TensorSpec("x", dtype, ("N", 2)),)
    sample = {"string": ["a", "é"], "bool": [True, False]}.get(dtype, [1, 2])
    (output,) = answer(loaded, sample)
    assert output.tolist() == [sample]
    assert output.dtype == {"string": object, "bfloat16": np.float32}.get(dtype, dtype)


@pytest.mark.parametrize(
    ("dims", "sample", "shape"),
    [
        ([], 5, ()),
        ([None], [1, 2, 3], (3,)),
        (["rows", "width"], [[1, 2, 3]], (1, 3)),
        (["batch", 3, None, None], [[[[0.5]]] * 3], (1, 3, 1, 1)),
        (None, [[[1.0]]], (1, 1, 1)),
        ([0, 2], [], (0, 2)),
    ],
)
def test_every_kind_of_shape(models, dims, sample, shape):
    loaded = models.load([IDENTITY], {"x": ("FLOAT", dims)})
    assert loaded.signature.inputs[0].shape == (None if dims is None else tuple(dims))
    assert answer(loaded, sample)[0].shape == shape


def test_several_inputs_and_outputs_keep_their_order(models):
    loaded = models.load(
        [("Add", ["b", "a"], ["sum"], {}), ("Cast", ["c"], ["d"], {"to": TensorProto.STRING})],
        {"b": ("FLOAT", [None, 1]), "a": ("FLOAT", [None, 1]), "c": ("INT64", [])},
        {"d": ("STRING", []), "sum": ("FLOAT", None)},
    )
    assert [spec.name for spec in loaded.signature.inputs] == ["b", "a", "c"]
    assert [output.tolist() for output in answer(loaded, {"a": 1, "b": 2, "c": 7})] == ["7", [[3.0]]]


def optional(inner):
    return [helper.make_value_info("x", helper.make_optional_type_proto(inner))]


def sequence(kind=TensorProto.FLOAT, dims=(None, 3)):
    return helper.make_sequence_type_proto(helper.make_tensor_type_proto(kind, dims))


def test_optional_inputs_may_be_absent(models):
    for inner in (helper.make_tensor_type_proto(TensorProto.FLOAT, [None, 3]), sequence()):
        loaded = models.load([("OptionalHasElement", ["x"], ["y"], {})], optional(inner), {"y": ("BOOL", None)})
        (spec,) = loaded.signature.inputs
        assert (spec.optional, spec.shape) == (True, (None, 3))
        given = [1, 2, 3] if spec.kind == "tensor" else [[1, 2, 3]]
        assert answer(loaded, None)[0].tolist() is False
        assert answer(loaded, {"x": None})[0].tolist() is False
        assert answer(loaded, given)[0].tolist() is True


def test_sequences_go_in_and_come_out(models):
    info = [helper.make_value_info("x", sequence())]
    joined = models.load([("ConcatFromSequence", ["x"], ["y"], {"axis": 0})], info)
    assert joined.signature.inputs == (TensorSpec("x", "float32", (None, 3), kind="sequence"),)
    assert answer(joined, [[1, 2, 3], [[4, 5, 6], [7, 8, 9]]])[0].shape == (3, 3)
    split = models.load(
        [("SplitToSequence", ["x"], ["y"], {"axis": 0})],
        {"x": ("STRING", [None, 1])},
        [helper.make_value_info("y", sequence(TensorProto.STRING))],
    )
    assert split.signature.outputs[0].kind == "sequence"
    assert [part.tolist() for part in answer(split, [["a"], ["b"]])[0]] == [[["a"]], [["b"]]]


@pytest.mark.parametrize(("key", "keys"), [(TensorProto.STRING, ["a", "b"]), (TensorProto.INT64, [7, 8])])
def test_maps_go_in(models, key, keys):
    info = helper.make_value_info(
        "x", helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    attribute = "string_vocabulary" if key == TensorProto.STRING else "int64_vocabulary"
    node = helper.make_node("DictVectorizer", ["x"], ["y"], domain="ai.onnx.ml", **{attribute: keys})
    loaded = models.load([node], [info], domains=[("ai.onnx.ml", 1)])
    assert loaded.signature.inputs[0].key_dtype == ("string" if key == TensorProto.STRING else "int64")
    assert answer(loaded, {str(keys[1]): 2.5, str(keys[0]): 1})[0].tolist() == [[1, 2.5]]


def zipmap(models):
    probabilities = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    nodes = [
        ("Identity", ["x"], ["raw"], {}),
        helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[3, 5]),
    ]
    outputs = [
        helper.make_tensor_value_info("raw", TensorProto.FLOAT, ["N", 2]),
        helper.make_value_info("y", helper.make_sequence_type_proto(probabilities)),
    ]
    return models.load(nodes, outputs=outputs, domains=[("ai.onnx.ml", 1)])


def test_maps_come_out_as_a_dict_a_row(models):
    loaded = zipmap(models)
    assert loaded.signature.outputs[1] == TensorSpec("y", "float32", (), kind="sequence_of_maps", key_dtype="int64")
    assert answer(loaded, [[1, 2], [3, 4]])[1] == [{3: 1.0, 5: 2.0}, {3: 3.0, 5: 4.0}]


def test_bfloat16_beside_other_types(models):
    loaded = models.load(
        [("Cast", ["x"], ["y"], {"to": TensorProto.FLOAT}), ("Identity", ["h"], ["z"], {})],
        {"x": ("BFLOAT16", ["N", 2]), "h": ("FLOAT16", [])},
        {"y": ("FLOAT", None), "z": ("FLOAT16", [])},
    )
    y, z = answer(loaded, {"x": [0.1, -3], "h": 2.5})
    assert y.tolist() == [[0.10009765625, -3.0]]
    assert z.tolist() == 2.5


def test_weights_in_a_file_beside_the_model(models, tmp_path):
    path = models.write_bytes(with_external_weights("model.onnx.data"))
    (tmp_path / "model.onnx.data").write_bytes(np.array([10, 20], np.float32).tobytes())
    assert backend.external_files(path) == ["model.onnx.data"]
    assert answer(backend.load(path), [1, 2])[0].tolist() == [[11, 22]]


def with_external_weights(location):
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializer=[weights],
    )
    opsets = [helper.make_opsetid("", 18)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


# ---- what cannot ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty (0 bytes)"),
        (b"not a model\n", 'it is text, not an ONNX model; it begins with "not a model"'),
        (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        (b"\x80\x04\x95\x00", "it is a Python pickle"),
        (b"\x08\x0a\x12\x07pytorch", "it holds no graph"),
        (bytes(range(128, 256)), "no ONNX model"),
    ],
)
def test_a_file_that_is_no_model(models, content, words):
    error = refused(ModelUnreadable, models.write_bytes(content))
    assert words in str(error)
    assert error.path.endswith("model.onnx")


def test_a_model_cut_short(models):
    weights = numpy_helper.from_array(np.zeros(100, np.float32), "w")
    path = models.write([("Add", ["x", "w"], ["y"], {})], {"x": ("FLOAT", [100])}, initializer=[weights])
    os.truncate(path, os.path.getsize(path) - 50)
    assert "bytes too early" in str(refused(ModelUnreadable, path))


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path):
    assert "there is no such file" in str(refused(ModelUnreadable, str(tmp_path / "none.onnx")))
    assert "directory" in str(refused(ModelUnreadable, str(tmp_path)))


def test_missing_weights_name_the_file_to_add(models):
    error = refused(WeightsFileMissing, models.write_bytes(with_external_weights("model.onnx.data")))
    assert str(error) == "model.onnx needs model.onnx.data beside it"
    assert (error.model, error.file) == ("model.onnx", "model.onnx.data")


def test_weights_that_end_too_early(models, tmp_path, capfd):
    path = models.write_bytes(with_external_weights("w.bin"))
    (tmp_path / "w.bin").write_bytes(b"1234")
    assert "the weights of w reach beyond the end of their file" in str(refused(ModelUnreadable, path))
    capfd.readouterr()  # onnxruntime's own words


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "*/_ORT_MEM_ADDR_/*"])
def test_weights_outside_the_folder_are_never_read(models, tmp_path, location):
    error = refused(ModelUnreadable, models.write_bytes(with_external_weights(location), "m.onnx"))
    assert "which is not a file in its own folder" in str(error)


def test_a_newer_opset_names_both_numbers_and_how_to_export_lower(models):
    error = refused(UnsupportedOpset, models.write([IDENTITY], opset=99))
    assert (error.domain, error.found) == ("ai.onnx", 99)
    assert f"opset 99 of ai.onnx, and this onnxruntime runs up to {error.supported}" in str(error)
    assert f"opset_version={error.supported}" in error.hint
    assert models.load([IDENTITY], opset=error.supported)


def test_a_newer_opset_of_another_domain(models):
    error = refused(UnsupportedOpset, models.write([IDENTITY], domains=[("ai.onnx.ml", 99)]))
    assert (error.domain, error.found) == ("ai.onnx.ml", 99)
    assert f'target_opset={{"ai.onnx.ml": {error.supported}}}' in error.hint


def test_a_newer_file_format_names_both_numbers(models):
    error = refused(UnsupportedIrVersion, models.write([IDENTITY], ir_version=99))
    assert error.found == 99
    assert f"m.ir_version = {error.supported}" in error.hint


@pytest.mark.parametrize(
    ("node", "options", "operator", "domain"),
    [
        (helper.make_node("Foo", ["x"], ["y"], domain="com.acme"), {"domains": [("com.acme", 1)]}, "Foo", "com.acme"),
        (helper.make_node("Foo", ["x"], ["y"], domain="com.acme"), {}, "Foo", "com.acme"),
        (("Foo", ["x"], ["y"], {}), {}, "Foo", ""),
        (("Gelu", ["x"], ["y"], {}), {"opset": 13}, "Gelu", ""),
        (("Erf", ["x"], ["y"], {}), {"inputs": {"x": ("STRING", [1])}, "outputs": {"y": ("STRING", [1])}}, "Erf", ""),
    ],
)
def test_an_operator_that_onnxruntime_lacks_is_named(models, node, options, operator, domain):
    error = refused(UnsupportedOperator, models.write([node], **options))
    assert (error.operator, error.domain) == (operator, domain)
    assert (f"{domain}:{operator}" if domain else operator) in str(error)
    assert ("custom operator libraries" in error.hint) == bool(domain)


@pytest.mark.parametrize("element", ["FLOAT8E4M3FN", "INT4"])
def test_types_without_a_form_outside_the_model_name_the_cast_to_add(models, element):
    kind = getattr(TensorProto, element)
    path = models.write(
        [("Cast", ["x"], ["y"], {"to": TensorProto.FLOAT})], {"x": (element, [2])}, opset=21, ir_version=10
    )
    error = refused(UnsupportedType, path)
    assert (error.name, error.is_input) == ("x", True)
    path = models.write([("Cast", ["x"], ["y"], {"to": kind})], outputs={"y": (element, None)}, opset=21, ir_version=10)
    error = refused(UnsupportedType, path)
    assert (error.name, error.is_input) == ("y", False)
    assert "Cast" in error.hint


def test_maps_that_cannot_be_fed_are_refused(models):
    kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.INT64, []))
    node = helper.make_node("DictVectorizer", ["x"], ["y"], domain="ai.onnx.ml", string_vocabulary=["a"])
    info = [helper.make_value_info("x", kind)]
    error = refused(UnsupportedType, models.write([node], info, {"y": ("INT64", None)}, domains=[("ai.onnx.ml", 1)]))
    assert error.type == "map(string,tensor(int64))"


def test_bfloat16_beside_text_is_refused(models):
    nodes = [IDENTITY, ("Identity", ["s"], ["t"], {})]
    inputs, outputs = {"x": ("BFLOAT16", [2]), "s": ("STRING", [1])}, {"y": ("BFLOAT16", [2]), "t": ("STRING", [1])}
    assert refused(UnsupportedType, models.write(nodes, inputs, outputs)).name == "x"


def test_any_other_failure_keeps_onnxruntimes_words_without_its_source_lines(models):
    error = refused(ModelUnreadable, models.write([("Add", ["x", "nowhere"], ["y"], {})]))
    assert "nowhere" in error.reason
    assert "onnxruntime_src" not in error.reason
    assert "\n" not in error.reason


@pytest.mark.parametrize("attributes", [{}, {"locale": "en_US"}, {"locale": "de_DE.UTF-8"}, {"locale": "C.UTF-8"}])
def test_text_changes_its_case_without_the_locale_being_installed(models, attributes):
    path = lowering(models, **attributes)
    before = os.environ.get("LOCPATH")
    assert answer(backend.load(path), ["Hello WÖRLD"])[0].tolist() == ["hello wörld"]
    assert os.environ.get("LOCPATH") == before


@pytest.mark.parametrize("name", ["tr_TR.UTF-8", "no such locale", "de_DE.ISO-8859-15"])
def test_a_locale_that_nothing_can_stand_in_for_is_named(models, name):
    if locales.is_there(name):
        pytest.skip("it is installed here")
    error = refused(ModelUnreadable, lowering(models, locale=name))
    assert f'the locale "{name}", which this machine lacks' in error.reason
    assert "en_US" in error.hint


def test_a_signature_key_is_refused(models):
    error = refused(ModelError, models.write([IDENTITY]), signature_key="predict")
    assert error.hint == "remove tf_signature_key"


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def with_cuda(monkeypatch):
    """
    An onnxruntime that was built with CUDA, and whose sessions do this when they are asked for it.

    What the real one does was seen with onnxruntime-gpu 1.31 without CUDA's libraries, without a driver, and with a
    driver whose every call fails.
    """
    session = onnxruntime.InferenceSession

    def build(*, comes_up=True, fails=""):
        def made(path, options, *, providers, enable_fallback):
            assert (providers, enable_fallback) == ([CUDA, CPU], 0)
            if fails:
                raise RuntimeError(fails)
            made = session(path, options, providers=[CPU])
            if comes_up:
                monkeypatch.setattr(made, "get_providers", lambda: [CUDA, CPU])
            return made

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
        monkeypatch.setattr(onnxruntime, "InferenceSession", made)
        monkeypatch.setattr(backend, "driver_problem", lambda: None)

    return build


def test_a_gpu_without_the_package_for_it_names_the_extra_and_the_requirement(models, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr(backend.metadata, "version", missing_package)
    error = refused(BackendMissing, models.write([IDENTITY]), gpu=True)
    assert 'pip install "cortex-serving[gpu]"' in error.hint
    assert "onnxruntime-gpu[cuda,cudnn]" in error.hint


def missing_package(name):
    raise backend.metadata.PackageNotFoundError(name)


def test_a_gpu_package_that_the_other_one_was_installed_over_is_told(models, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr(backend.metadata, "version", lambda name: "1.31.1")
    error = refused(GpuUnusable, models.write([IDENTITY]), gpu=True)
    assert "onnxruntime was installed over it" in str(error)
    assert error.hint == "pip install --force-reinstall --no-deps onnxruntime-gpu"


def test_on_a_gpu_a_model_answers(models, with_cuda):
    with_cuda()
    loaded = backend.load(models.write([IDENTITY]), gpu=True)
    assert loaded.run({"x": np.ones((1, 2), np.float32)})[0].tolist() == [[1, 1]]
    loaded.close()


def test_a_session_that_comes_up_on_the_cpu_is_refused_with_what_the_driver_says(models, with_cuda, monkeypatch):
    with_cuda(comes_up=False)
    monkeypatch.setattr(backend, "driver_problem", lambda: "the NVIDIA driver shows no device")
    error = refused(GpuUnusable, models.write([IDENTITY]), gpu=True)
    assert str(error) == "the api asks for a GPU, and onnxruntime cannot use one: the NVIDIA driver shows no device"
    assert "nvidia-smi" in error.hint


def test_a_session_that_comes_up_on_the_cpu_is_refused_with_the_library_that_is_missing(models, with_cuda):
    with_cuda(comes_up=False)
    error = refused(GpuUnusable, models.write([IDENTITY]), gpu=True)
    assert error.reason == "cannot open shared object file: No such file or directory"  # of the CUDA provider itself
    assert 'pip install "onnxruntime-gpu[cuda,cudnn]"' in error.hint


CUDA_CALL_FAILED = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t<THRW, void> CudaCall() "
    "CUDA failure 36: API call is not supported in the installed CUDA driver ; GPU=-1 ; hostname=vm ; "
    "file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=355 ; "
    "expr=cudaSetDevice(info_.device_id); \n\n"
)
"""As onnxruntime-gpu 1.31 says it."""


def test_a_cuda_call_that_fails_is_told_in_one_line(models, with_cuda):
    with_cuda(fails=CUDA_CALL_FAILED)
    error = refused(GpuUnusable, models.write([IDENTITY]), gpu=True)
    assert error.reason == "CUDA failure 36: API call is not supported in the installed CUDA driver"


def test_what_is_wrong_with_the_model_is_told_on_a_gpu_too(models, with_cuda):
    with_cuda(fails="[ONNXRuntimeError] : 10 : INVALID_GRAPH : Load model from m failed:This is an invalid model.")
    refused(ModelUnreadable, models.write([IDENTITY]), gpu=True)


# ---- running --------------------------------------------------------------------------------------------------------


def test_a_model_that_fails_says_why_in_one_line_and_prints_nothing(models, capfd, monkeypatch):
    monkeypatch.setattr(base, "machines_memory_bytes", lambda: 1 << 50)  # so that it is short of it just now
    loaded = models.load([("Expand", ["x", "s"], ["y"], {})], {"x": ("FLOAT", [1]), "s": ("INT64", ["n"])})
    with pytest.raises(InferenceFailed) as caught:
        loaded.run({"x": np.ones(1, np.float32), "s": np.array([1 << 40])})
    assert type(caught.value) is InferenceFailed
    assert caught.value.reason.startswith("Expand node: Failed to allocate memory")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


TABLE = numpy_helper.from_array(np.ones((100, 4), np.float32), "t")
GRID = {"x": ("FLOAT", ["n", "m"])}
IDS = {"i": ("INT64", ["n", "m"])}


@pytest.mark.parametrize(
    ("nodes", "inputs", "initializer", "feeds", "reason"),
    [
        (
            [("Gather", ["t", "i"], ["y"], {})],
            IDS,
            [TABLE],
            {"i": np.array([[9999]])},
            "Gather: indices element out of data bounds, idx=9999 must be within the inclusive range [-100,99]",
        ),
        (
            [("GatherElements", ["t", "i"], ["y"], {})],
            IDS,
            [TABLE],
            {"i": np.array([[9999]])},
            "GatherElements: GatherElements op: Out of range value in index tensor",
        ),
        (
            [("Reshape", ["x", "s"], ["y"], {})],
            GRID,
            [numpy_helper.from_array(np.array([-1, 4]), "s")],
            {"x": np.ones((1, 3), np.float32)},
            "Reshape: The input tensor cannot be reshaped to the requested shape. "
            "Input shape:{1,3}, requested shape:{-1,4}",
        ),
        (
            [("Add", ["x", "x2"], ["y"], {})],
            {**GRID, "x2": ("FLOAT", ["a", "b"])},
            [],
            {"x": np.ones((2, 3), np.float32), "x2": np.ones((2, 2), np.float32)},
            "Add: Attempting to broadcast an axis by a dimension other than 1. 2 by 3",
        ),
        (
            [("Concat", ["x", "x2"], ["y"], {"axis": 1})],
            {**GRID, "x2": ("FLOAT", ["a", "b"])},
            [],
            {"x": np.ones((2, 3), np.float32), "x2": np.ones((1, 2), np.float32)},
            "Concat: Non concat axis dimensions must match: Axis 0 has mismatched dimensions of 1 and 2",
        ),
        (
            [("MatMul", ["x", "t"], ["y"], {})],
            GRID,
            [TABLE],
            {"x": np.ones((2, 3), np.float32)},
            "MatMul: MatMul dimension mismatch",
        ),
        (
            [("Cast", ["s"], ["y"], {"to": 1})],
            {"s": ("STRING", ["n"])},
            [],
            {"s": np.array(["abc"], object)},
            "Cast: a text is no number",
        ),
        (
            [("TopK", ["x", "k"], ["y", "places"], {})],
            {**GRID, "k": ("INT64", [1])},
            [],
            {"x": np.ones((2, 3), np.float32), "k": np.array([5])},
            "TopK: k argument [5] should not be greater than specified axis dim value [3]",
        ),
        *(
            (
                [(operator, ["i", "j"], ["k"], {}), ("Cast", ["k"], ["y"], {"to": 1})],
                {"i": ("INT64", ["n"]), "j": ("INT64", ["n"])},
                [],
                {"i": np.array([5]), "j": np.array([0])},
                f"{operator}: Integer {noun} by zero",
            )
            for operator, noun in (("Div", "division"), ("Mod", "modulo"))
        ),
        (
            [("ConstantOfShape", ["n"], ["y"], {})],
            {"n": ("INT64", ["d"])},
            [],
            {"n": np.array([10**14])},
            "ConstantOfShape: a result of 364 TiB is asked for, which is more memory than there is; "
            "a number in the input is taken for a size, or there are too many values",
        ),
    ],
)
def test_what_a_caller_can_mend_is_told_without_words_about_the_source(
    models, capfd, nodes, inputs, initializer, feeds, reason
):
    loaded = models.load(nodes, inputs, initializer=initializer)
    with pytest.raises(InputRefused) as caught:
        loaded.run(feeds)
    assert caught.value.reason == reason
    assert capfd.readouterr() == ("", "")


def test_an_input_with_a_default_in_the_model_may_be_given(models):
    factor = numpy_helper.from_array(np.array([2], np.float32), "k")
    loaded = models.load(
        [("Mul", ["x", "k"], ["y"], {})], {**GRID, "k": ("FLOAT", [1])}, initializer=[factor], name="default.onnx"
    )
    assert loaded.signature.inputs == (
        TensorSpec("x", "float32", ("n", "m")),
        TensorSpec("k", "float32", (1,), optional=True),
    )
    x = np.ones((1, 2), np.float32)
    assert loaded.run({"x": x})[0].tolist() == [[2, 2]]
    assert loaded.run({"x": x, "k": np.array([10], np.float32)})[0].tolist() == [[10, 10]]
    assert [given.name for given in loaded.metadata_inputs] == ["x"]  # as handlers know it


def test_weights_that_an_old_exporter_lists_among_the_inputs_are_none(models):
    """Before IR version 4 every weight had to be listed, and onnxruntime takes none of them from outside."""
    factor = numpy_helper.from_array(np.array([2], np.float32), "k")
    loaded = models.load(
        [("Mul", ["x", "k"], ["y"], {})], {**GRID, "k": ("FLOAT", [1])}, initializer=[factor], ir_version=3, opset=9
    )
    assert [spec.name for spec in loaded.signature.inputs] == ["x"]


def test_handlers_get_onnxruntimes_own_descriptions(models):
    loaded = models.load([IDENTITY])
    (given,) = loaded.metadata_inputs
    assert (given.name, given.type, given.shape) == ("x", "tensor(float)", ["N", 2])
    (result,) = loaded.metadata_outputs
    assert (result.name, result.type) == ("y", "tensor(float)")


def test_a_prediction_is_a_list_that_knows_the_outputs_names(models):
    loaded = zipmap(models)
    feeds = {"x": np.ones((1, 2), np.float32)}
    prediction = loaded.present(loaded.run(feeds), feeds)
    assert prediction["raw"] is prediction[0]
    assert prediction["y"] == prediction[-1] == [{3: 1.0, 5: 1.0}]
    assert isinstance(prediction, list)
    assert len(prediction) == 2
    assert prediction[:1] == [prediction[0]]
    assert loaded.plain(prediction) == [prediction[0], [{"3": 1.0, "5": 1.0}]]
    assert prediction["y"] == [{3: 1.0, 5: 1.0}], "what a handler has stays as it was"
    with pytest.raises(KeyError, match='no output "label"; it has raw, y'):
        prediction["label"]


def test_floats_in_maps_have_the_digits_of_their_float32(models):
    loaded = zipmap(models)
    feeds = {"x": np.array([[0.1, np.nan], [0.7, 16777217.0]], np.float32)}
    prediction = loaded.present(loaded.run(feeds), feeds)
    assert repr(prediction["y"]) == "[{3: 0.1, 5: nan}, {3: 0.7, 5: 16777216.0}]"
    assert encode(loaded.plain(prediction)) == (
        b'[[[0.1,null],[0.7,16777216.0]],[{"3":0.1,"5":null},{"3":0.7,"5":16777216.0}]]'
    )


def test_a_prediction_is_copied_pickled_and_written_as_json():
    prediction = Prediction.of([1, [2]], {"a": 0, "b": 1})
    for same in (copy.copy(prediction), copy.deepcopy(prediction), pickle.loads(pickle.dumps(prediction))):
        assert same == [1, [2]]
        assert same["b"] == [2]
    assert orjson.dumps(prediction) == b"[1,[2]]"


def test_arrays_of_any_layout_are_run_as_they_are(models):
    loaded = models.load([IDENTITY])
    for array in (
        np.arange(8, dtype=np.float32).reshape(2, 4)[:, ::2],
        np.asfortranarray(np.arange(4, dtype=np.float32).reshape(2, 2)),
        np.arange(4, dtype=np.float32).reshape(2, 2)[::-1],
        np.frombuffer(np.arange(2, dtype=np.float32).tobytes(), np.float32).reshape(1, 2),
        np.zeros((0, 2), np.float32),
    ):
        assert np.array_equal(loaded.run({"x": array})[0], array)
    swapped = np.arange(2, dtype=">f4").reshape(1, 2)
    assert np.array_equal(answer(loaded, swapped)[0], swapped)


def test_a_closed_model_fails_politely(models):
    loaded = models.load([IDENTITY])
    loaded.close()
    loaded.close()
    with pytest.raises(InferenceFailed, match="it was closed"):
        loaded.run({"x": np.ones((1, 2), np.float32)})


def test_threads_share_one_model(models):
    loaded = models.load([("Mul", ["x", "x"], ["y"], {})])
    wrong = []

    def ask(number):
        for _ in range(50):
            found = loaded.run({"x": np.full((1, 2), number, np.float32)})[0]
            if found.tolist() != [[number**2] * 2]:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_session_options_are_those_of_a_good_neighbour(models, monkeypatch):
    given, really = [], onnxruntime.InferenceSession

    def load(path, options, **more):
        given.append(options)
        return really(path, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", load)
    backend.load(models.write([IDENTITY]), threads=3)
    backend.load(models.write([IDENTITY], {"x": ("FLOAT", [1, 2])}, name="fixed.onnx"))
    options, of_fixed_shapes = given
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.inter_op.allow_spinning") == "0"
    assert options.log_severity_level == 3
    assert not options.enable_mem_pattern
    assert of_fixed_shapes.enable_mem_pattern


def test_base_loads_by_format(models):
    base.preload("onnx")
    assert base.load("onnx", models.write([IDENTITY])).signature.inputs[0].name == "x"
