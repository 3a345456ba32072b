"""Inputs of SavedModels that are more than a tensor: serialised examples with features, and ragged tensors."""

from __future__ import annotations

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortex.replica.inspection.made_up import make_up_sample
from cortex.replica.prediction.batching import may_be_batched
from cortex.replica.tensors.conversion import Converter
from cortex.replica.tensors.examples import serialise
from cortex.replica.tensors.mismatch import InputMismatch
from cortex.wire.signature import TensorSpec


def prediction(loaded, sample):
    feeds = Converter(loaded.signature, takes_bytes=True).convert(sample)
    return dict(zip([spec.name for spec in loaded.signature.outputs], loaded.run(feeds), strict=True))


def mismatch(loaded, sample):
    with pytest.raises(InputMismatch) as caught:
        prediction(loaded, sample)
    return caught.value


# ---- examples -------------------------------------------------------------------------------------------------------


@pytest.fixture
def parser(saved_models):
    """Twice the age, the length of the city's name, the larger of two numbers, how many tags and words."""
    tf = saved_models.tf

    def parse(examples):
        parsed = tf.io.parse_example(
            examples,
            {
                "age": tf.io.FixedLenFeature([], tf.float32),
                "city": tf.io.FixedLenFeature([], tf.string, default_value="?"),
                "tags": tf.io.VarLenFeature(tf.string),
                "pair": tf.io.FixedLenFeature([2], tf.int64),
                "words": tf.io.RaggedFeature(tf.int64),
            },
        )
        tags = tf.sparse.to_dense(parsed["tags"], default_value="")
        return {
            "age": parsed["age"] * 2,
            "city": tf.strings.length(parsed["city"]),
            "most": tf.reduce_max(parsed["pair"], 1),
            "tags": tf.reduce_sum(tf.cast(tags != "", tf.int64), 1),
            "words": parsed["words"].row_lengths(),
        }

    return saved_models.load(saved_models.tf2_export(parse, ("examples", "string", [None])))


ALICE = {"age": 3, "pair": [1, -(2**63)], "city": "Bern", "tags": ["a", "b"], "words": [1, 2, 3]}
BOB = {"age": 4.5, "pair": [7, 8]}


def test_a_parsers_features_are_shown(parser):
    (examples,) = parser.signature.inputs
    assert examples.features == (
        TensorSpec("age", "float32", ()),
        TensorSpec("city", "string", (), optional=True),
        TensorSpec("pair", "int64", (2,)),
        TensorSpec("tags", "string", (None,), optional=True),
        TensorSpec("words", "int64", (None,), optional=True),
    )


@pytest.mark.parametrize(
    "sample",
    [
        [ALICE, BOB],
        {"examples": [ALICE, BOB]},
        {"instances": [ALICE, BOB]},
        {"inputs": {"examples": [ALICE, BOB]}},
        [{"examples": ALICE}, {"examples": BOB}],
    ],
    ids=["list", "named", "instances", "inputs", "records"],
)
def test_features_are_taken_as_json(parser, sample):
    found = {name: values.tolist() for name, values in prediction(parser, sample).items()}
    assert found == {"age": [6, 9], "city": [4, 1], "most": [1, 8], "tags": [2, 0], "words": [3, 0]}


def test_one_object_is_one_example_and_columns_are_several(parser):
    assert prediction(parser, ALICE)["age"].tolist() == [6]
    assert prediction(parser, {**BOB, "city": None})["city"].tolist() == [1]
    assert prediction(parser, {"age": [1, 2], "pair": [[1, 2], [3, 4]]})["most"].tolist() == [2, 4]


@pytest.mark.parametrize(
    ("sample", "words", "hint"),
    [
        ({"age": 3}, 'input "examples["pair"]": expected int64[2], which is missing', 'add the key "pair"'),
        ({**BOB, "ctiy": "Rom"}, 'the model has no feature "ctiy"', 'did you mean "city" where you wrote "ctiy"?'),
        ({**BOB, "age": "old"}, 'input "examples["age"]": expected a single float32', ""),
        ({**BOB, "pair": [1, 2, 3]}, 'input "examples["pair"]": expected int64[2], found int64[3]', ""),
    ],
)
def test_what_is_wrong_with_a_feature_is_said(parser, sample, words, hint):
    error = mismatch(parser, sample)
    assert words in str(error)
    assert error.hint == hint


def test_a_sample_is_made_up_of_a_parsers_features(parser):
    made = make_up_sample(parser)
    assert made.accepted
    assert sorted(orjson.loads(made.body)) == ["age", "city", "pair", "tags", "words"]


def test_a_parser_of_tensorflow_1_shows_its_features_too(saved_models):
    tf1 = saved_models.tf1

    def build():
        serialised = tf1.placeholder("string", [None], name="input_example_tensor")
        parsed = tf1.parse_example(serialised, {"x": tf1.FixedLenFeature([1], tf1.float32)})
        return {"f": ({"inputs": serialised}, {"y": parsed["x"] * 2})}

    loaded = saved_models.load(saved_models.tf1_export(build))
    assert loaded.signature.inputs[0].features == (TensorSpec("x", "float32", (1,)),)
    assert prediction(loaded, {"x": 2})["y"].tolist() == [[4]]


def test_a_parser_of_single_examples_shows_its_features(saved_models):
    tf = saved_models.tf

    def parse(example):
        return {"y": tf.io.parse_single_example(example, {"x": tf.io.FixedLenFeature([2], tf.float32)})["x"]}

    loaded = saved_models.load(saved_models.tf2_export(parse, ("example", "string", [])))
    assert loaded.signature.inputs[0].features == (TensorSpec("x", "float32", (2,)),)
    assert prediction(loaded, {"x": [1, 2]})["y"].tolist() == [1, 2]


def test_text_that_nobody_parses_has_no_features(saved_models):
    tf = saved_models.tf
    path = saved_models.tf2_export(lambda x: {"y": tf.strings.length(x)}, ("x", "string", [None]))
    assert saved_models.load(path).signature.inputs == (TensorSpec("x", "string", (None,)),)


LISTS = st.one_of(
    st.lists(st.floats(width=32, allow_nan=False), max_size=5).map(lambda values: np.array(values, np.float32)),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5).map(lambda values: np.array(values, np.int64)),
    st.lists(st.text() | st.binary(), max_size=5).map(lambda values: np.array([*values, None], object)[:-1]),
)


@given(features=st.dictionaries(st.text(), LISTS, max_size=4))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_example_reads_back_as_what_went_in(saved_models, features):
    read = saved_models.tf.train.Example.FromString(serialise(features)).features.feature
    assert read.keys() == features.keys()
    for name, values in features.items():
        kind = {"f": "float_list", "i": "int64_list", "O": "bytes_list"}[values.dtype.kind]
        expected = [value.encode() if isinstance(value, str) else value for value in values.tolist()]
        assert list(getattr(read[name], kind).value) == expected


# ---- ragged tensors -------------------------------------------------------------------------------------------------


def ragged(saved_models, shape, dtype="float32", *, rank=None, splits="int64", also=False):
    """Sums of what is in each row, plus another input if there is one."""
    tf = saved_models.tf
    spec = tf.RaggedTensorSpec(shape, dtype, ragged_rank=rank or len(shape) - 1, row_splits_dtype=splits)
    module, path = tf.Module(), str(saved_models.folder / "ragged")
    axes = list(range(1, len(shape)))

    def total(words):
        return {"y": tf.reduce_sum(words, axes)}

    def total_and_more(words, more):
        return {"y": tf.reduce_sum(words, axes) + more}

    specs = [spec, tf.TensorSpec([None], dtype, "more")] if also else [spec]
    module.function = tf.function(total_and_more if also else total, input_signature=specs)
    tf.saved_model.save(module, path, signatures=module.function)
    return saved_models.load(path)


def test_a_ragged_input_has_its_own_name_and_takes_rows_of_any_length(saved_models):
    loaded = ragged(saved_models, [None, None])
    spec = TensorSpec("words", "float32", (None, None), kind="ragged", ragged_rank=1)
    assert loaded.signature.inputs == (spec,)
    assert str(spec) == "ragged float32[?, ?]"
    for sample, sums in (
        ([[1, 2], [3], []], [3, 3, 0]),
        ({"words": [[1, 2], [3]]}, [3, 3]),
        ([1, 2], [3]),
        ([], []),
        ([[]], [0]),
        (np.array([[1, 2], [3, 4]]), [3, 7]),
        ([np.array([1, 2]), [3]], [3, 3]),
    ):
        assert prediction(loaded, sample)["y"].tolist() == sums
    assert not may_be_batched(loaded.signature)
    assert make_up_sample(loaded).accepted


def test_a_ragged_input_may_be_ragged_at_several_levels(saved_models):
    loaded = ragged(saved_models, [None, None, None], "int64", splits="int32", also=True)
    assert [spec.name for spec in loaded.signature.inputs] == ["more", "words"]
    sample = {"words": [[[1, 2], [3]], [], [[]]], "more": [10, 20, 30]}
    assert prediction(loaded, sample)["y"].tolist() == [16, 20, 30]
    assert prediction(loaded, {"words": [[1, 2], [3]], "more": 1})["y"].tolist() == [7]
    assert 'and "words" has 3' in str(mismatch(loaded, {**sample, "more": 1}))


def test_a_ragged_input_may_have_rows_of_fixed_size(saved_models):
    loaded = ragged(saved_models, [None, None, 2], rank=1)
    assert prediction(loaded, [[[1, 2], [3, 4]], [[5, 6]], []])["y"].tolist() == [10, 11, 0]
    assert mismatch(loaded, [[[1, 2, 3]]]).input == "words[0]"


@pytest.mark.parametrize("sample", [5, "a", [[1], "a"], [1, [2]], [[[1, 2]]], [[1, "a"]], {"word": [[1]]}, [[1], None]])
def test_what_is_no_ragged_tensor_is_refused(saved_models, sample):
    mismatch(ragged(saved_models, [None, None]), sample)
