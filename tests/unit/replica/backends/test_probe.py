"""Tests of `cortex.replica.backends.probe`."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from cortex.replica.backends.base import InferenceFailed
from cortex.replica.backends.probe import accepted_feeds, rows_are_independent, synthetic_feeds
from cortex.wire.signature import Signature, TensorSpec


def signature(*inputs):
    return Signature(inputs, (TensorSpec("y", "float32", ("N", 2)),))


def test_made_up_values_have_the_models_types_and_shapes():
    feeds = synthetic_feeds(
        signature(
            TensorSpec("x", "float32", ("N", 3, None)),
            TensorSpec("ids", "int64", ("N", "seq")),
            TensorSpec("rate", "int64", ()),
            TensorSpec("flag", "bool", (2,)),
            TensorSpec("text", "string", ("N", 1)),
            TensorSpec("any", "float64", None),
            TensorSpec("half", "bfloat16", ("N",)),
            TensorSpec("parts", "float16", (None, 2), kind="sequence"),
            TensorSpec("words", "float32", (), kind="map", key_dtype="string"),
            TensorSpec("left_out", "float32", (1,), optional=True),
        ),
        free=4,
        whole=7,
        rows=2,
    )
    shapes = {name: (value.dtype.name, value.shape) for name, value in feeds.items() if isinstance(value, np.ndarray)}
    assert shapes == {
        "x": ("float32", (2, 3, 4)),
        "ids": ("int64", (2, 4)),
        "rate": ("int64", ()),
        "flag": ("bool", (2,)),
        "text": ("object", (2, 1)),
        "any": ("float64", (2,)),
        "half": ("float32", (2,)),
    }
    assert feeds["parts"][0].dtype == np.float16
    assert feeds["words"] == {"a": 1.0}
    assert (feeds["ids"] == 7).all()
    assert "left_out" not in feeds


def test_made_up_values_are_the_same_every_time():
    spec = signature(TensorSpec("x", "float32", ("N", 8)))
    assert np.array_equal(synthetic_feeds(spec)["x"], synthetic_feeds(spec)["x"])


@pytest.mark.parametrize(
    ("dim", "size"),
    [
        ("a + b", 6),
        ("2*a - 1", 5),
        ("a // 2", 1),
        ("a.b", 3),
        ("f(a)", 3),
        ("a +", 3),
        ("9**9**9", 3),
        ("-5", 3),
        ("a/0", 3),
    ],
)
def test_dimensions_named_by_a_formula_are_worked_out(dim, size):
    feeds = synthetic_feeds(signature(TensorSpec("x", "int8", ("N", dim))), free=3)
    assert feeds["x"].shape == (1, size)


def test_a_value_of_gigabytes_is_not_made():
    spec = signature(TensorSpec("x", "float32", (None,) * 6))
    with pytest.raises(ValueError, match="more than"):
        synthetic_feeds(spec, free=224)


class Scripted:
    """A backend that accepts what a function says."""

    def __init__(self, signature, accepts):
        self.signature = signature
        self.accepts = accepts
        self.tried = []

    def run(self, feeds):
        self.tried.append({name: np.shape(value) for name, value in feeds.items()})
        if not self.accepts(feeds):
            raise InferenceFailed("no")
        return [np.zeros((1, 2))]


def test_other_sizes_are_tried_when_the_model_rejects_ones():
    image = TensorSpec("x", "float32", (None, 3, "h", "w"))
    backend = Scripted(signature(image), lambda feeds: feeds["x"].shape[2] % 32 == 0)
    assert accepted_feeds(backend)["x"].shape == (1, 3, 32, 32)
    assert [tried["x"] for tried in backend.tried] == [(1, 3, 1, 1), (1, 3, 32, 32)]


def test_zero_is_tried_where_one_is_no_valid_index():
    backend = Scripted(signature(TensorSpec("i", "int64", ())), lambda feeds: feeds["i"] == 0)
    assert accepted_feeds(backend)["i"] == 0


def test_a_model_that_rejects_everything_gets_nothing():
    backend = Scripted(signature(TensorSpec("x", "float32", ("N", 2))), lambda feeds: False)
    assert accepted_feeds(backend) is None
    assert len(backend.tried) == 1


# ---- batching, on real models ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "node",
    [
        ("Identity", ["x"], ["y"], {}),
        ("Softmax", ["x"], ["y"], {"axis": 1}),
        ("ReduceSum", ["x", "one"], ["y"], {"keepdims": 0}),
        ("ArgMax", ["x"], ["y"], {"axis": 1}),
    ],
)
def test_rows_that_do_not_see_each_other_may_be_batched(models, node):
    axis = numpy_helper.from_array(np.array([1]), "one")
    outputs = {"y": ("INT64" if node[0] == "ArgMax" else "FLOAT", None)}
    loaded = models.load([node], outputs=outputs, initializer=[axis])
    assert not loaded.batchable
    assert loaded.probe_batchable()
    assert loaded.batchable
    assert loaded.probe_batchable({"x": np.array([[3, 4]], np.float32)})


@pytest.mark.parametrize(
    "node",
    [
        ("Softmax", ["x"], ["y"], {"axis": 0}),
        ("CumSum", ["x", "zero"], ["y"], {}),
        ("ReduceMean", ["x"], ["y"], {}),
        ("LpNormalization", ["x"], ["y"], {"axis": 0}),
        ("RandomNormalLike", ["x"], ["y"], {}),
        ("Transpose", ["x"], ["y"], {}),
        ("TopK", ["x", "one"], ["y", "i"], {"axis": 0}),
        ("Shape", ["x"], ["y"], {}),
    ],
)
def test_rows_that_see_each_other_may_not(models, node):
    constants = [numpy_helper.from_array(np.array(0), "zero"), numpy_helper.from_array(np.array([1]), "one")]
    outputs = {"y": ("INT64" if node[0] == "Shape" else "FLOAT", None)}
    assert not models.load([node], outputs=outputs, initializer=constants).probe_batchable()


def test_a_quantisation_over_the_whole_batch_is_found_out(models):
    nodes = [
        ("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], {}),
        ("DequantizeLinear", ["q", "s", "z"], ["y"], {}),
    ]
    assert not models.load(nodes).probe_batchable()


@pytest.mark.parametrize("dims", [[1, 2], [], None, [3, 2]])
def test_a_first_dimension_that_is_not_free_is_no_batch(models, dims):
    assert not models.load([("Identity", ["x"], ["y"], {})], {"x": ("FLOAT", dims)}).probe_batchable()


def test_tokens_and_text_are_probed_too(models):
    table = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "table")
    embedding = models.load([("Gather", ["table", "x"], ["y"], {})], {"x": ("INT64", ["N", "L"])}, initializer=[table])
    assert embedding.probe_batchable()
    assert embedding.probe_batchable({"x": np.array([[0, 2, 1]])})
    text = {"x": ("STRING", ["N", 1])}, {"y": ("STRING", None)}
    assert models.load([("Identity", ["x"], ["y"], {})], *text).probe_batchable()


def test_an_input_shared_by_all_rows_forbids_batching(models):
    loaded = models.load(
        [("Gather", ["x", "i"], ["y"], {})], {"x": ("FLOAT", ["N", 2]), "i": ("INT64", ["M"])}, name="gather.onnx"
    )
    assert not loaded.probe_batchable()


def test_a_model_that_fails_on_two_rows_is_not_batched(models):
    shape = numpy_helper.from_array(np.array([1, 2]), "s")
    assert not models.load([("Reshape", ["x", "s"], ["y"], {})], initializer=[shape]).probe_batchable()


def test_sequences_and_optional_inputs_are_not_batched(models):
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [None, 2]))
    info = [helper.make_value_info("x", kind)]
    assert not models.load([("ConcatFromSequence", ["x"], ["y"], {"axis": 0})], info).probe_batchable()


def test_a_given_sample_of_several_rows_shows_nothing():
    calls = []
    spec = signature(TensorSpec("x", "float32", ("N", 2)))
    assert not rows_are_independent(calls.append, spec, {"x": np.ones((2, 2))})
    assert calls == []
