"""Tests of `cortex.replica.backends.tensorflow`: what it loads, what it refuses, how it says so."""

import base64
import copy
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest

from cortex.replica.backends import base
from cortex.replica.backends.base import (
    BackendMissing,
    InferenceFailed,
    InputRefused,
    ModelError,
    ModelUnreadable,
    UnsupportedType,
)
from cortex.replica.backends.cuda import GpuUnusable
from cortex.replica.backends.made_up_feeds import accepted_feeds
from cortex.replica.backends.signatures import AmbiguousSignature, NoSignature, UnknownSignature
from cortex.replica.bodies.results import encode
from cortex.replica.prediction.batching import may_be_batched
from cortex.replica.tensors.conversion import Converter
from cortex.wire.signature import TensorSpec

IRIS = Path(__file__).parents[4] / "examples" / "iris" / "models" / "tensorflow"
NUMBERS = [
    *("float16", "bfloat16", "float32", "float64"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
]


@pytest.fixture
def backend(tensorflow):
    from cortex.replica.backends import tensorflow as backend

    return backend


def feeds(loaded, sample):
    return Converter(loaded.signature, takes_bytes=loaded.takes_bytes).convert(sample)


def outputs(loaded, sample):
    """JSON value in, outputs by name, as the model gives them."""
    names = [spec.name for spec in loaded.signature.outputs]
    return dict(zip(names, loaded.run(feeds(loaded, sample)), strict=True))


def prediction(loaded, sample):
    """JSON value in, what `post_inference` gets."""
    given = feeds(loaded, sample)
    return loaded.present(loaded.run(given), given)


def answer(loaded, sample):
    """JSON value in, JSON value out, as for an api without a handler."""
    return orjson.loads(encode(loaded.plain(prediction(loaded, sample))))


def refused(error, load, *args, **options):
    with pytest.raises(error) as caught:
        load(*args, **options)
    problem = caught.value.problem()
    assert problem.hint == caught.value.hint
    assert problem.reference == caught.value.reference
    assert "\n" not in problem.message.strip() or error in (AmbiguousSignature, UnknownSignature)
    return caught.value


# ---- what can be served ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*NUMBERS, "bool", "string"])
def test_every_element_type_goes_in_and_comes_out(saved_models, dtype):
    loaded = saved_models.load(saved_models.identity(dtype, [None, 2]))
    assert loaded.signature.inputs == (TensorSpec("x", dtype, (None, 2)),)
    sample = {"string": [["a", "é"]], "bool": [[True, False]]}.get(dtype, [[1, 2]])
    output = outputs(loaded, sample)["y"]
    assert output.tolist() == sample
    assert output.dtype == {"string": object, "bfloat16": np.float32}.get(dtype, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "bool", "float32", "int64", "string"])
def test_scalars_of_every_kind_are_arrays_with_one_item_for_handlers(saved_models, dtype):
    loaded = saved_models.load(saved_models.identity(dtype, []))
    sample = {"string": "é", "bool": True}.get(dtype, 3)
    output = outputs(loaded, sample)["y"]
    assert isinstance(output, np.ndarray)
    assert (output.shape, output.item()) == ((), sample)
    assert prediction(loaded, sample)["y"][0] == sample
    assert answer(loaded, sample) == {"y": [sample]}


@pytest.mark.parametrize(
    ("shape", "sample", "found"),
    [
        ([], 5, ()),
        ([None], [1, 2, 3], (3,)),
        ([None], 7, (1,)),
        ([None, None], [[1, 2, 3]], (1, 3)),
        ([None, 3, None, None], [[[[0.5]]] * 3], (1, 3, 1, 1)),
        ([1], 4, (1,)),
        ([None, 1], [[1], [2]], (2, 1)),
        (None, [[[1.0]]], (1, 1, 1)),
        (None, 2, ()),
        ([0, 2], [], (0, 2)),
    ],
)
def test_every_kind_of_shape(saved_models, shape, sample, found):
    loaded = saved_models.load(saved_models.identity("float32", shape))
    assert loaded.signature.inputs[0].shape == (None if shape is None else tuple(shape))
    assert outputs(loaded, sample)["y"].shape == found


def test_a_function_of_tensorflow_2_has_inputs_and_outputs_by_name_as_people_count(saved_models):
    path = saved_models.tf2_export(
        lambda b_10, b_9, a: {"z_10": b_10 + a, "z_9": b_9, "label": saved_models.tf.constant("x")},
        ("b_10", "float32", [None]),
        ("b_9", "int64", []),
        ("a", "float32", [None]),
    )
    loaded = saved_models.load(path)
    assert [str(spec) for spec in loaded.signature.inputs] == ["float32[?]", "int64[]", "float32[?]"]
    assert [spec.name for spec in loaded.signature.inputs] == ["a", "b_9", "b_10"]
    assert [spec.name for spec in loaded.signature.outputs] == ["label", "z_9", "z_10"]
    assert answer(loaded, {"a": 1, "b_9": 2, "b_10": [3]}) == {"label": ["x"], "z_9": [2], "z_10": [4.0]}


@pytest.mark.slow
def test_what_keras_exports_is_served(saved_models):
    tf = saved_models.tf
    words = tf.keras.layers.StringLookup(vocabulary=["a", "b"])
    text = tf.keras.Input((2,), dtype="string", name="text")
    number = tf.keras.Input((1,), name="number")
    joined = tf.keras.layers.Concatenate()([tf.keras.layers.Embedding(3, 2)(words(text))[:, 0], number])
    recurrent = tf.keras.layers.LSTM(2)(joined[:, None])
    model = tf.keras.Model({"text": text, "number": number}, {"one": joined, "two": recurrent})
    path = str(saved_models.folder / "keras")
    model.export(path, verbose=False)
    loaded = saved_models.load(path)
    assert loaded.signature.key == "serving_default"
    assert loaded.notes
    expected = model({"text": tf.constant([["b", "zz"]]), "number": tf.constant([[0.5]])})
    found = prediction(loaded, {"text": ["b", "zz"], "number": 0.5})
    assert found.keys() == {"one", "two"}
    for name, output in found.items():
        np.testing.assert_allclose(output, expected[name].numpy()[0], rtol=1e-5)


def example(tf, **features):
    made = {name: tf.train.Feature(float_list=tf.train.FloatList(value=[value])) for name, value in features.items()}
    serialised = tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()
    return {"b64": base64.b64encode(serialised).decode()}


def estimator(saved_models):
    """Three signatures over serialised examples, as estimators exported them."""
    tf, tf1 = saved_models.tf, saved_models.tf1

    def build():
        serialised = tf1.placeholder(tf.string, [None], name="input_example_tensor")
        features = tf1.parse_example(serialised, {"age": tf1.FixedLenFeature([1], tf.float32)})
        weight = tf1.get_variable("w", [1, 1], initializer=tf1.constant_initializer(3.0), use_resource=False)
        result = features["age"] @ weight  # (rows, 1)
        classes = tf.tile(tf.constant([["no", "yes"]]), [tf.shape(result)[0], 1])
        return {
            "classify": ({"inputs": serialised}, {"classes": classes, "scores": tf.concat([1 - result, result], 1)}),
            "regress": ({"inputs": serialised}, {"outputs": tf.reshape(result, [-1])}),
            "predict": ({"age": features["age"]}, {"result": result}),
        }

    return saved_models.tf1_export(build)


def test_classify_takes_serialised_examples(saved_models):
    loaded = saved_models.load(estimator(saved_models), signature_key="classify")
    made = example(saved_models.tf, age=2)
    assert answer(loaded, made) == {"classes": ["no", "yes"], "scores": [-5.0, 6.0]}
    assert answer(loaded, {"inputs": [made, made]}) == {
        "classes": [["no", "yes"]] * 2,
        "scores": [[-5.0, 6.0]] * 2,
    }


def test_regress_gives_a_number_a_row(saved_models):
    loaded = saved_models.load(estimator(saved_models), signature_key="regress")
    assert answer(loaded, [example(saved_models.tf, age=2)]) == {"outputs": [6.0]}
    assert answer(loaded, [example(saved_models.tf, age=age) for age in (1, 2)]) == {"outputs": [3.0, 6.0]}


def test_predict_may_be_fed_in_the_middle_of_the_graph(saved_models):
    loaded = saved_models.load(estimator(saved_models))
    assert loaded.signature.key == "predict"
    assert answer(loaded, 2) == {"result": [6.0]}


@pytest.mark.parametrize("content", [b"\0\1\2", b"hello", b"quo'te", b"\n\xff", b"'", b"{'age': 1}", b"a" * 1000])
def test_bytes_that_are_no_example_are_refused_without_what_was_quoted_of_them(saved_models, content):
    loaded = saved_models.load(estimator(saved_models), signature_key="regress")
    with pytest.raises(InputRefused) as caught:
        outputs(loaded, {"b64": base64.b64encode(content).decode()})
    assert caught.value.reason == "Could not parse example input: it is no serialized tf.Example"


def test_an_example_without_a_feature_is_refused_with_its_name(saved_models):
    loaded = saved_models.load(estimator(saved_models), signature_key="regress")
    with pytest.raises(InputRefused) as caught:
        outputs(loaded, example(saved_models.tf))
    assert caught.value.reason.startswith("Feature: age (data type: ")


def vocabulary(saved_models, *words):
    file = saved_models.folder / "vocabulary.txt"
    file.write_text("\n".join(words))
    return str(file)


def test_tables_and_assets_of_tensorflow_2_are_ready(saved_models):
    tf = saved_models.tf
    index = (tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER)
    words = tf.lookup.TextFileInitializer(
        vocabulary(saved_models, "a", "b"), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, *index
    )
    table = tf.lookup.StaticHashTable(words, -1)
    numbers = tf.Variable([10, 20])
    path = saved_models.tf2_export(
        lambda text: {"index": table.lookup(text), "numbers": numbers + 1},
        ("text", "string", [None]),
        table=table,
        numbers=numbers,
    )
    (saved_models.folder / "vocabulary.txt").unlink()
    moved = str(saved_models.folder / "elsewhere")
    shutil.move(path, moved)
    loaded = saved_models.load(moved)
    assert answer(loaded, ["b", "zz"]) == {"index": [1, -1], "numbers": [11, 21]}
    assert loaded.signature_keys == ("serving_default",)


@pytest.mark.parametrize("legacy", [False, True])
def test_tables_and_assets_of_tensorflow_1_are_ready(saved_models, legacy):
    tf, tf1 = saved_models.tf, saved_models.tf1
    file = vocabulary(saved_models, "a", "b")

    def build():
        words = tf1.lookup.TextFileInitializer(file, tf.string, -2, tf.int64, -1)
        table = tf1.lookup.StaticHashTable(words, default_value=-1)
        text = tf1.placeholder(tf.string, [None])
        return {"look": ({"text": text}, {"index": table.lookup(text)})}

    path = saved_models.tf1_export(
        build,
        **{"legacy_init_op" if legacy else "main_op": tf1.tables_initializer},
        assets_collection=lambda: tf1.get_collection(tf1.GraphKeys.ASSET_FILEPATHS),
    )
    Path(file).unlink()
    assert answer(saved_models.load(path), ["b", "zz"]) == {"index": [1, -1]}


@pytest.mark.parametrize("old", [False, True], ids=["functional", "switches and merges"])
def test_loops_conditions_and_maps_run_in_the_calling_thread(saved_models, old):
    tf, tf1 = saved_models.tf, saved_models.tf1

    def build():
        x = tf1.placeholder(tf.float32, [None, 2])
        doubled = tf1.while_loop(lambda i, a: i < 10, lambda i, a: (i + 1, a * 2), [0, x])[1]
        either = tf1.cond(tf.reduce_sum(x) > 0, lambda: x + 1, lambda: x - 1)
        return {"f": ({"x": x}, {"doubled": doubled, "either": either, "mapped": tf1.map_fn(lambda row: row * 3, x)})}

    (tf1.disable_control_flow_v2 if old else tf1.enable_control_flow_v2)()
    try:
        path = saved_models.tf1_export(build)
    finally:
        tf1.enable_control_flow_v2()
    loaded = saved_models.load(path)
    assert answer(loaded, [[1, 0], [0, 1]]) == {
        "doubled": [[1024.0, 0.0], [0.0, 1024.0]],
        "either": [[2.0, 1.0], [1.0, 2.0]],
        "mapped": [[3.0, 0.0], [0.0, 3.0]],
    }


def test_a_model_without_variables_and_without_inputs(saved_models):
    path = saved_models.tf1_export(lambda: {"f": ({}, {"y": saved_models.tf.constant([1.0])})})
    assert not os.listdir(f"{path}/variables")
    os.rmdir(f"{path}/variables")  # the artifact store keeps no empty folders
    loaded = saved_models.load(path)
    assert loaded.signature.inputs == ()
    assert answer(loaded, {}) == {"y": [1.0]}


def test_a_graph_that_says_little_about_itself(saved_models):
    path = with_a_variable(saved_models)
    saved_models.edit(path, lambda saved_model: saved_model.meta_graphs[0].meta_info_def.ClearField("stripped_op_list"))
    (Path(path) / "fingerprint.pb").unlink()
    assert answer(saved_models.load(path), [1.0] * 1000)["y"][:3] == [1.0, 2.0, 3.0]


def test_a_graph_in_text_form(saved_models):
    def build():
        x = saved_models.tf1.placeholder("float32", [None])
        return {"f": ({"x": x}, {"y": x + 1})}

    path = saved_models.tf1_export(build, as_text=True)
    assert sorted(os.listdir(path)) == ["saved_model.pbtxt", "variables"]
    assert answer(saved_models.load(path), [1]) == {"y": [2.0]}


def test_an_input_may_be_handed_through_and_a_tensor_have_two_names(saved_models):
    def build():
        x, key = (saved_models.tf1.placeholder(kind, [None]) for kind in ("float32", "string"))
        y = x + 1
        return {"f": ({"x": x, "key": key}, {"key": key, "y": y, "same": y, "x": x})}

    loaded = saved_models.load(saved_models.tf1_export(build))
    sample = {"x": [1, 2], "key": ["a", {"b64": "/w=="}]}
    assert answer(loaded, sample) == {"key": ["a", {"b64": "/w=="}], "same": [2.0, 3.0], "x": [1, 2], "y": [2.0, 3.0]}
    only = saved_models.load(saved_models.identity())
    assert answer(only, [1]) == {"y": [1.0]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_input_with_a_default_may_be_absent(saved_models, dtype):
    tf = saved_models.tf

    def build():
        x, factor = saved_models.tf1.placeholder("float32", [None]), saved_models.tf1.placeholder(dtype, [])
        return {"f": ({"x": x, "factor": factor}, {"y": x * tf.cast(factor, tf.float32)})}

    def add_default(saved_model):
        definition = saved_model.meta_graphs[0].signature_def["f"]
        definition.defaults["factor"].CopyFrom(tf.make_tensor_proto(2.0, dtype))

    loaded = saved_models.load(saved_models.edit(saved_models.tf1_export(build), add_default))
    assert {spec.name: spec.optional for spec in loaded.signature.inputs} == {"factor": True, "x": False}
    assert answer(loaded, {"x": [3]}) == {"y": [6.0]}
    assert answer(loaded, {"x": [3], "factor": None}) == {"y": [6.0]}
    assert answer(loaded, {"x": [3], "factor": 5}) == {"y": [15.0]}


def test_text_is_str_and_bytes_where_it_is_not_utf8(saved_models):
    loaded = saved_models.load(saved_models.identity("string", [None]))
    given = ["é", {"b64": base64.b64encode(b"\xff\x00").decode()}, "", "a\x00"]
    assert outputs(loaded, given)["y"].tolist() == ["é", b"\xff\x00", "", "a\x00"]
    assert answer(loaded, given) == {"y": given}


def test_writing_into_a_prediction_changes_nothing_in_the_model(saved_models):
    tf = saved_models.tf
    kept = tf.Variable(np.arange(64, dtype=np.float32))
    fixed = np.arange(64, dtype=np.float32)
    path = saved_models.tf2_export(
        lambda x: {"variable": kept + 0, "read": kept, "constant": tf.constant(fixed), "x": x},
        ("x", "float32", [None]),
        kept=kept,
    )
    loaded = saved_models.load(path)
    given = np.ones(64, np.float32)
    for output in loaded.run({"x": given}):
        output[:] = -1
    again = dict(zip((spec.name for spec in loaded.signature.outputs), loaded.run({"x": given}), strict=True))
    assert again["x"].tolist() == [1.0] * 64
    assert again["read"].tolist() == again["constant"].tolist() == again["variable"].tolist() == fixed.tolist()


def test_the_only_graph_is_served_whatever_its_tags_and_of_several_the_one_for_serving(saved_models):
    def build():
        x = saved_models.tf1.placeholder("float32", [None])
        return {"f": ({"x": x}, {"y": x + 1})}

    assert answer(saved_models.load(saved_models.tf1_export(build, tags=())), [1]) == {"y": [2.0]}
    several = saved_models.tf1_export(build, tags=[("train",), ("serve",), ("serve", "tpu")])
    assert answer(saved_models.load(several), [1]) == {"y": [2.0]}


def test_a_tensorflow_without_the_quick_way_to_call_is_called_the_slow_way(saved_models, monkeypatch):
    path = saved_models.tf2_export(lambda x: {"y": x + 1, "x": x}, ("x", "float32", [None]))
    monkeypatch.delattr(saved_models.tf1.Session.__mro__[1], "_make_callable_from_options")
    assert answer(saved_models.load(path), [1]) == {"x": [1.0], "y": [2.0]}


# ---- signatures -----------------------------------------------------------------------------------------------------


def test_the_signature_that_is_served_is_said_with_the_line_for_another(saved_models):
    loaded = saved_models.load(estimator(saved_models))
    assert loaded.signature.key == "predict"
    assert loaded.signature_keys == ("classify", "predict", "regress")
    assert loaded.notes == (
        'serves its signature predict; for another (classify, regress) add e.g. "tf_signature_key: classify"',
    )
    assert saved_models.load(estimator(saved_models), signature_key="classify").notes == ()


def test_handlers_see_every_signature_without_tensorflow(saved_models):
    loaded = saved_models.load(estimator(saved_models), signature_key="regress")
    for metadata in (loaded.metadata_inputs, loaded.metadata_outputs):
        assert set(metadata) == {"classify", "predict", "regress"}
        served = metadata["predict"]
        assert [(spec.name, spec.dtype, spec.shape) for spec in served.inputs.values()] == [
            ("age", "float32", (None, 1))
        ]
        assert served.outputs["result"].shape == (None, 1)
        assert served.method_name == "test"
        assert copy.deepcopy(metadata) == metadata
        assert copy.deepcopy(served).inputs == served.inputs


def test_handlers_of_cortex_0_8_find_what_they_look_for_in_the_metadata(saved_models):
    metadata = saved_models.load(estimator(saved_models), signature_key="regress").metadata_inputs
    served = metadata["predict"]["inputs"]["age"]
    assert (served["dtype"], served["tensorShape"]) == ("DT_FLOAT", {"dim": [{"size": "-1"}, {"size": "1"}]})
    assert list(metadata["predict"]) == ["inputs", "outputs", "methodName"]
    assert json.loads(json.dumps(metadata))["predict"]["methodName"] == "test"
    assert encode(metadata)


def test_what_initialises_or_trains_is_not_for_serving(saved_models):
    tf1 = saved_models.tf1

    def build():
        x = tf1.placeholder("float32", [None])
        return {"f": ({"x": x}, {"y": x + 1}), "later": ({"x": x}, {"op": x * 2})}

    def reserve(saved_model):
        definitions = saved_model.meta_graphs[0].signature_def
        definitions["__saved_model_train_op"].CopyFrom(definitions["later"])
        del definitions["later"]

    path = saved_models.edit(saved_models.tf1_export(build, main_op=tf1.no_op), reserve)
    assert saved_models.load(path).signature_keys == ("f",)
    refused(UnknownSignature, saved_models.load, path, signature_key="__saved_model_train_op")


def test_a_model_that_was_exported_without_signatures_is_refused(saved_models):
    path = str(saved_models.folder / "none")
    saved_models.tf.saved_model.save(saved_models.tf.Module(), path)
    assert "model.export(folder)" in refused(NoSignature, saved_models.load, path).hint


def test_several_signatures_that_nothing_chooses_from_are_refused(saved_models):
    path = saved_models.tf2_export(lambda x: {"y": x}, ("x", "float32", [None]), signatures=["a", "b"])
    error = refused(AmbiguousSignature, saved_models.load, path)
    assert "  a: x float32[?] → y float32[?]" in str(error).splitlines()
    assert "tf_signature_key: a" in error.hint
    assert saved_models.load(path, signature_key="b").signature.key == "b"


def test_an_unknown_signature_is_refused_with_a_guess(saved_models):
    error = refused(UnknownSignature, saved_models.load, estimator(saved_models), signature_key="clasify")
    assert error.hint == "did you mean `tf_signature_key: classify`?"


# ---- the batch dimension --------------------------------------------------------------------------------------------


def columns(saved_models):
    """x: float32 [?, 2] → outputs of many shapes, some with a row for each row of x."""
    tf = saved_models.tf

    def build():
        x = saved_models.tf1.placeholder("float32", [None, 2])
        return {
            "f": (
                {"x": x},
                {
                    "row": tf.concat([x, x], 1),  # (rows, 4)
                    "one": x[:, :1],  # (rows, 1)
                    "flat": x[:, 0],  # (rows,)
                    "table": tf.ones([1, 3]),  # its first dimension is fixed to 1
                    "guess": saved_models.tf1.placeholder_with_default(tf.zeros([1, 2]), [None, 2]),  # nor this
                    "total": tf.reduce_sum(x),  # ()
                },
            )
        }

    return saved_models.load(saved_models.tf1_export(build))


def test_of_one_row_two_dimensions_and_more_lose_the_batch(saved_models):
    found = prediction(columns(saved_models), [1, 2])
    assert {name: output.tolist() for name, output in found.items()} == {
        "row": [1, 2, 1, 2],
        "one": [1],
        "flat": [1],
        "table": [1, 1, 1],
        "guess": [[0, 0]],
        "total": [3],
    }
    assert list(found) == ["flat", "guess", "one", "row", "table", "total"]


def test_of_several_rows_nothing_is_dropped(saved_models):
    found = prediction(columns(saved_models), [[1, 2], [3, 4]])
    assert {name: output.shape for name, output in found.items()} == {
        "row": (2, 4),
        "one": (2, 1),
        "flat": (2,),
        "table": (1, 3),
        "guess": (1, 2),
        "total": (1,),
    }


def test_a_model_that_takes_no_made_up_row_is_looked_at_with_its_first_one(saved_models):
    tf = saved_models.tf
    path = saved_models.tf2_export(
        lambda text: {"y": tf.stack([tf.strings.to_number(text), tf.ones_like(text, tf.float32)], 1)},
        ("text", "string", [None]),
    )
    loaded = saved_models.load(path)
    assert accepted_feeds(loaded) is None
    assert prediction(loaded, ["1", "2"])["y"].shape == (2, 2)
    assert prediction(loaded, ["1"])["y"].shape == (2,)
    assert prediction(loaded, ["1"])["y"].shape == (2,)


def test_a_model_that_fails_on_two_rows_keeps_its_dimensions(saved_models):
    def build():
        x = saved_models.tf1.placeholder("float32", [None, 2])
        shape = saved_models.tf1.placeholder_with_default([1, 2], [2])
        return {"f": ({"x": x}, {"y": saved_models.tf.reshape(x, shape)})}

    loaded = saved_models.load(saved_models.tf1_export(build))
    assert loaded.signature.outputs[0].shape == (None, None)
    assert prediction(loaded, [1, 2])["y"].shape == (1, 2)


@pytest.mark.parametrize(
    ("shape", "sample", "found"),
    [
        ([1, 3], [1, 2, 3], [1, 2, 3]),
        ([1, 1], [7], [7]),
        ([1, None], [[1, 2]], [1, 2]),
        ([1, 2, 1], [[1], [2]], [[1], [2]]),
        ([1], 7, [7]),
        ([2, 1], [[1], [2]], [[1], [2]]),
    ],
)
def test_a_first_dimension_that_the_model_fixes_to_1_is_dropped_as_a_free_one(saved_models, shape, sample, found):
    loaded = saved_models.load(saved_models.identity("float32", shape))
    assert prediction(loaded, sample)["y"].tolist() == found


def test_a_first_dimension_of_1_is_known_from_the_graph_where_the_signature_does_not_say(saved_models):
    def forget_shape(saved_model):
        saved_model.meta_graphs[0].signature_def["serving_default"].outputs["y"].tensor_shape.Clear()
        saved_model.meta_graphs[0].signature_def["serving_default"].outputs["y"].tensor_shape.unknown_rank = True

    path = saved_models.tf2_export(lambda x: {"y": x * 2}, ("x", "float32", [1, None]))
    loaded = saved_models.load(saved_models.edit(path, forget_shape))
    assert loaded.signature.outputs[0].shape is None
    assert prediction(loaded, [[1, 2]])["y"].tolist() == [2, 4]
    assert prediction(loaded, [[1]])["y"].tolist() == [2]


def test_rows_are_those_of_all_inputs_that_have_them(saved_models):
    path = saved_models.tf2_export(
        lambda x, z, factor: {"y": (x + z) * factor},
        ("x", "float32", [None, 2]),
        ("z", "float32", [None, 1]),
        ("factor", "float32", []),
    )
    loaded = saved_models.load(path)
    assert answer(loaded, {"x": [1, 2], "z": 1, "factor": 10}) == {"y": [20.0, 30.0]}
    assert answer(loaded, {"x": [[1, 2], [1, 2]], "z": [1, 2], "factor": 10}) == {"y": [[20.0, 30.0], [30.0, 40.0]]}
    assert not may_be_batched(loaded.signature)  # a scalar cannot be stacked


def test_inputs_of_any_rank_may_have_rows_or_none(saved_models):
    loaded = saved_models.load(
        saved_models.tf2_export(lambda x: {"y": x + 1, "pair": x[..., None] * [1, 2]}, ("x", "float32", None))
    )
    assert loaded.signature.inputs[0].shape is None
    assert answer(loaded, 1) == {"pair": [1.0, 2.0], "y": [2.0]}
    assert answer(loaded, [1]) == {"pair": [1.0, 2.0], "y": [2.0]}
    assert answer(loaded, [[1, 2]]) == {"pair": [[1.0, 2.0], [2.0, 4.0]], "y": [2.0, 3.0]}
    assert answer(loaded, [1, 2]) == {"pair": [[1.0, 2.0], [2.0, 4.0]], "y": [2.0, 3.0]}


def test_rows_may_disturb_each_other_and_still_be_rows(saved_models):
    path = saved_models.tf2_export(lambda x: {"y": x / saved_models.tf.reduce_sum(x)}, ("x", "float32", [None, 2]))
    loaded = saved_models.load(path)
    assert prediction(loaded, [1, 3])["y"].tolist() == [0.25, 0.75]


# ---- what cannot be served ------------------------------------------------------------------------------------------


def test_a_folder_without_a_graph_is_refused(saved_models):
    error = refused(ModelUnreadable, saved_models.load, str(saved_models.folder))
    assert str(error) == "saved_model.pb cannot be read: there is no such file"


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_graph_that_is_cut_off_is_refused(saved_models, keep):
    path = saved_models.identity()
    file = Path(path) / "saved_model.pb"
    file.write_bytes(file.read_bytes()[:keep])
    error = refused(ModelUnreadable, saved_models.load, path)
    assert str(error).startswith("saved_model.pb cannot be read: ")
    assert error.hint == "export the model again and deploy that folder"


def test_nonsense_in_place_of_a_graph_is_refused(saved_models):
    for name, content in (("saved_model.pb", b"nonsense"), ("saved_model.pbtxt", b"{"), ("saved_model.pbtxt", b"\xff")):
        folder = saved_models.folder / f"{name} {content!r}"
        folder.mkdir()
        (folder / name).write_bytes(content)
        assert str(refused(ModelUnreadable, saved_models.load, str(folder))).startswith(f"{name} cannot be read: ")


def test_a_function_that_is_missing_in_a_damaged_graph_is_named_and_not_searched_for_ever(saved_models):
    """What TensorFlow says of it has the whole library of functions, and `Session.run` would read that for minutes."""

    def rename(saved_model):
        for function in saved_model.meta_graphs[0].graph_def.library.function:
            if "signature_wrapper" in function.signature.name:
                function.signature.name += "_other"

    path = str(saved_models.folder / "iris")
    shutil.copytree(IRIS, path)
    error = refused(ModelUnreadable, saved_models.load, saved_models.edit(path, rename))
    assert re.fullmatch(r"it calls __inference_signature_wrapper_predict_\d+, which is not in it", error.reason)


def test_graphs_of_which_none_is_for_serving_are_listed(saved_models):
    def build():
        x = saved_models.tf1.placeholder("float32", [None])
        return {"f": ({"x": x}, {"y": x + 1})}

    path = saved_models.tf1_export(build, tags=[("train",), ("serve", "tpu")])
    error = refused(ModelUnreadable, saved_models.load, path)
    assert "it holds 2 graphs, tagged serve, tpu; train, and none is tagged serve alone" in str(error)


def with_a_variable(saved_models):
    kept = saved_models.tf.Variable(np.arange(1000, dtype=np.float32))
    return saved_models.tf2_export(lambda x: {"y": x + kept}, ("x", "float32", [None, 1000]), kept=kept)


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        ("variables/variables.index", "variables/variables.index"),
        ("variables/variables.data-00000-of-00001", "variables/variables.data-00000-of-00001"),
        ("variables", "variables/variables.index"),
    ],
)
def test_missing_files_of_variables_are_named(saved_models, backend, removed, named):
    path = with_a_variable(saved_models)
    file = Path(path) / removed
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    error = refused(backend.SavedModelIncomplete, saved_models.load, path)
    assert str(error) == f"the SavedModel needs {named}, which is not there"


def test_a_missing_shard_of_variables_is_named(saved_models, backend):
    path = with_a_variable(saved_models)
    file = Path(path) / "variables" / "variables.data-00000-of-00001"
    file.rename(file.with_name("variables.data-00001-of-00003"))
    error = refused(backend.SavedModelIncomplete, saved_models.load, path)
    assert error.file == "variables/variables.data-00000-of-00003"


def test_variables_that_are_cut_off_are_refused(saved_models):
    path = with_a_variable(saved_models)
    file = Path(path) / "variables" / "variables.data-00000-of-00001"
    file.write_bytes(file.read_bytes()[:100])
    error = refused(ModelUnreadable, saved_models.load, path)
    assert str(error).startswith("variables/ cannot be read: ")
    assert path not in str(error)


def test_variables_of_another_export_are_refused(saved_models):
    path, other = with_a_variable(saved_models), saved_models.tf2_export(lambda x: {"y": x}, ("x", "float32", [None]))
    shutil.rmtree(f"{path}/variables")
    shutil.copytree(f"{other}/variables", f"{path}/variables")
    assert str(refused(ModelUnreadable, saved_models.load, path)).startswith("variables/ cannot be read: ")


def test_a_missing_asset_is_named(saved_models, backend):
    tf = saved_models.tf
    words = tf.lookup.TextFileInitializer(vocabulary(saved_models, "a"), tf.string, -2, tf.int64, -1)
    table = tf.lookup.StaticHashTable(words, -1)
    path = saved_models.tf2_export(lambda x: {"y": table.lookup(x)}, ("x", "string", [None]), table=table)
    (Path(path) / "assets" / "vocabulary.txt").unlink()
    assert refused(backend.SavedModelIncomplete, saved_models.load, path).file == "assets/vocabulary.txt"


def test_an_operation_that_tensorflow_does_not_have_is_named(saved_models, backend):
    def rename(saved_model):
        for node in saved_model.meta_graphs[0].graph_def.node:
            if node.op == "AddV2":
                node.op = "SentencepieceTokenizeOp"

    def build():
        x = saved_models.tf1.placeholder("float32", [None])
        return {"f": ({"x": x}, {"y": x + 1})}

    path = saved_models.edit(saved_models.tf1_export(build), rename)
    error = refused(backend.UnsupportedOperation, saved_models.load, path)
    assert error.operation == "SentencepieceTokenizeOp"
    assert "Op type not registered" in str(error)
    assert "custom operations are not loaded" in error.hint


def test_an_operation_without_a_kernel_for_this_device_is_named(saved_models, backend):
    def only_on_gpus(saved_model):
        for node in saved_model.meta_graphs[0].graph_def.node:
            if node.op == "Identity":
                node.op = "NcclAllReduce"
                node.attr["reduction"].s, node.attr["num_devices"].i, node.attr["shared_name"].s = b"sum", 1, b""

    path = saved_models.edit(saved_models.identity("float32", [2]), only_on_gpus)
    error = refused(backend.UnsupportedOperation, saved_models.load, path)
    assert error.operation == "NcclAllReduce"
    assert "No OpKernel was registered" in str(error)


@pytest.mark.parametrize("dtype", ["complex64", "qint8"])
def test_an_element_type_that_has_no_form_outside_the_model_is_named(saved_models, dtype):
    error = refused(UnsupportedType, saved_models.load, saved_models.identity(dtype, [None]))
    assert (error.name, error.type, error.is_input) == ("x", dtype, True)


def test_an_output_without_a_form_outside_is_left_out_and_the_others_are_served(saved_models):
    tf = saved_models.tf
    path = saved_models.tf2_export(
        lambda x: {"y": x + 1, "z": tf.cast(x, tf.complex64)}, ("x", "float32", [None]), signatures=["serve"]
    )
    model = saved_models.load(path)
    assert [spec.name for spec in model.signature.outputs] == ["y"]
    assert model.notes == ('output "z" is of type complex64, which has no form outside the model: it is left out',)
    assert model.run({"x": np.array([1.0], "float32")})[0].tolist() == [2.0]


def test_a_signature_that_gives_a_ragged_tensor_alone_is_told_in_words(saved_models):
    tf = saved_models.tf
    path = saved_models.tf2_export(
        lambda x: {"r": tf.RaggedTensor.from_row_lengths(x, [1])}, ("x", "float32", [1]), signatures=["serve"]
    )
    error = refused(NoSignature, saved_models.load, path)
    assert str(error) == (
        'the SavedModel has no signature to serve: serve gives "r", a ragged tensor, which has no form outside'
    )
    assert "ragged.to_tensor()" in error.hint


def test_a_sparse_input_is_named(saved_models):
    def build():
        x = saved_models.tf1.sparse_placeholder("float32", [None, 2])
        return {"f": ({"x": x}, {"y": saved_models.tf1.sparse.reduce_sum(x)})}

    error = refused(UnsupportedType, saved_models.load, saved_models.tf1_export(build))
    assert (error.name, error.type) == ("x", "a sparse tensor")


@pytest.mark.parametrize(
    ("with_cuda", "driver_problem", "reason", "hint"),
    [
        (False, None, "tensorflow-cpu has no support for them", 'pip install "tensorflow[and-cuda]"'),
        (True, "the driver is broken", "the driver is broken", "nvidia-smi"),
        (True, None, "it cannot load CUDA's libraries", 'pip install "tensorflow[and-cuda]"'),
    ],
)
def test_a_gpu_that_cannot_be_used_is_refused_with_its_reason(
    saved_models, backend, monkeypatch, with_cuda, driver_problem, reason, hint
):
    monkeypatch.setattr(backend.tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(backend.tf.test, "is_built_with_cuda", lambda: with_cuda)
    monkeypatch.setattr(backend, "driver_problem", lambda: driver_problem)
    error = refused(GpuUnusable, saved_models.load, saved_models.identity(), gpu=True)
    assert str(error) == f"the api asks for a GPU, and TensorFlow cannot use one: {reason}"
    assert hint in error.hint


def test_without_tensorflow_the_extra_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.delitem(sys.modules, "cortex.replica.backends.tensorflow", raising=False)
    for use in (lambda: base.preload("tensorflow"), lambda: base.load("tensorflow", "/nowhere")):
        error = refused(BackendMissing, use)
        assert error.hint == 'pip install "cortex-serving[tensorflow]"'


def test_a_tensorflow_that_cannot_be_imported_says_why(monkeypatch, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise TypeError('Descriptors cannot be created directly')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.delitem(sys.modules, "cortex.replica.backends.tensorflow", raising=False)
    error = refused(ModelError, base.preload, "tensorflow")
    assert "Descriptors cannot be created directly" in str(error)


def test_a_failing_run_is_told_without_nodes_and_stacks(saved_models):
    loaded = saved_models.load(
        saved_models.tf2_export(lambda x: {"y": saved_models.tf.reshape(x, [2, 3])}, ("x", "float32", [None]))
    )
    with pytest.raises(InputRefused) as caught:
        outputs(loaded, [1, 2])
    assert caught.value.reason == "Input to reshape is a tensor with 2 values, but the requested shape has 6"
    assert outputs(loaded, [1, 2, 3, 4, 5, 6])["y"].shape == (2, 3)


@pytest.mark.parametrize(
    ("make", "dtype", "shape", "sample", "reason"),
    [
        (lambda tf, x: tf.gather(tf.ones([100, 4]), x), "int64", [None], [999], "indices[0] = 999 is not in [0, 100)"),
        (lambda tf, x: tf.concat([x, tf.ones([3, 1])], 1), "float32", [None, 1], [1], "ConcatOp : Dimension 0 in both"),
        (lambda tf, x: tf.io.decode_jpeg(x), "string", [], "no image", "Unknown image file format."),
        (lambda tf, x: tf.io.decode_png(x), "string", [], {"b64": "iVBORw0KGgo="}, "Invalid PNG"),
        (lambda tf, x: tf.audio.decode_wav(x)[0], "string", [], "no sound", "Header mismatch"),
        (lambda tf, x: tf.strings.to_number(x), "string", [None], ["abc"], "StringToNumberOp could not correctly"),
        (lambda tf, x: tf.io.decode_compressed(x, "GZIP"), "string", [None], ["no gzip"], ""),
        (
            lambda tf, x: tf.fill(x, 1.0),
            "int64",
            [None],
            [10**14],
            "a result of 364 TiB is asked for",
        ),
        (lambda tf, x: tf.debugging.check_numerics(x, "not a number"), "float32", [None], [None], "not a number"),
    ],
)
def test_what_a_caller_can_mend_is_no_failure_of_the_model(saved_models, make, dtype, shape, sample, reason):
    tf = saved_models.tf
    loaded = saved_models.load(saved_models.tf2_export(lambda x: {"y": make(tf, x)}, ("x", dtype, shape)))
    with pytest.raises(InputRefused) as caught:
        outputs(loaded, sample)
    assert caught.value.reason.startswith(reason)
    assert "node" not in caught.value.reason
    assert caught.value.reason.isprintable()


def test_a_graph_that_lacks_something_itself_fails(saved_models):
    def build():
        x = saved_models.tf1.placeholder("float32", [None])
        return {"f": ({"x": x}, {"y": x * saved_models.tf1.placeholder("float32", [], "keep")})}

    loaded = saved_models.load(saved_models.tf1_export(build))
    with pytest.raises(InferenceFailed) as caught:
        outputs(loaded, [1])
    assert type(caught.value) is InferenceFailed
    assert "You must feed a value for placeholder tensor 'keep'" in caught.value.reason
