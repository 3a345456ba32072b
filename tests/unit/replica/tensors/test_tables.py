"""Tests of `cortex.replica.tensors.tables`, by way of the converter that uses it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.replica.tensors.conversion import Converter
from cortex.replica.tensors.mismatch import InputMismatch
from cortex.wire.signature import Signature, TensorSpec

COLUMNS = (
    TensorSpec("age", "float32", ("N", 1)),
    TensorSpec("city", "string", ("N", 1)),
    TensorSpec("count", "int64", ("N",)),
)
FEATURES = (TensorSpec("x", "float32", (None, 4)),)
ROWS = [[1, 2, 3, 4], [5, 6, 7, 8]]


def convert(inputs, sample, *, key=None, after=None):
    feeds = Converter(Signature(tuple(inputs), (), key=key)).convert(sample, after)
    return {name: value.tolist() for name, value in feeds.items()}


def mismatch(inputs, sample, *, key=None, after=None):
    with pytest.raises(InputMismatch) as caught:
        convert(inputs, sample, key=key, after=after)
    return caught.value


RECORDS = [{"age": 22, "city": "Bern", "count": 1}, {"city": "Rom", "age": None, "count": 2}]
TABLE = {"age": [22, 38], "city": ["Bern", "Rom"], "count": [1, 2]}
READ = {"age": [[22], [38]], "city": [["Bern"], ["Rom"]], "count": [1, 2]}


@pytest.mark.parametrize(
    "sample",
    [
        TABLE,
        [{name: values[row] for name, values in TABLE.items()} for row in range(2)],
        {"instances": [{name: values[row] for name, values in TABLE.items()} for row in range(2)]},
        {"inputs": TABLE},
        {name: dict(zip("01", column, strict=True)) for name, column in TABLE.items()},
        {"dataframe_records": [{name: values[row] for name, values in TABLE.items()} for row in range(2)]},
        {"dataframe_split": {"columns": list(TABLE), "data": [[22, "Bern", 1], [38, "Rom", 2]], "index": [0, 1]}},
        {"dataframe_split": {"columns": ["city", "count", "age"], "data": [["Bern", 1, 22], ["Rom", 2, 38]]}},
    ],
    ids=[
        "columns",
        "records",
        "instances",
        "inputs",
        "columns with an index",
        "mlflow records",
        "split",
        "split in another order",
    ],
)
def test_a_table_is_taken_in_each_of_its_forms(sample):
    assert convert(COLUMNS, sample) == READ


def test_a_record_may_hold_null_for_nan():
    assert str(convert(COLUMNS, RECORDS)["age"]) == "[[22.0], [nan]]"


@pytest.mark.parametrize(
    "sample",
    [
        ROWS,
        {"x": ROWS},
        {"instances": ROWS},
        {"inputs": ROWS},
        {"inputs": {"x": ROWS}},
        {"instances": [{"x": row} for row in ROWS]},
        [{"x": row} for row in ROWS],
        {"dataframe_split": {"columns": ["a", "b", "c", "d"], "data": ROWS}},
    ],
    ids=str,
)
def test_a_model_with_one_input_takes_rows_in_each_of_their_forms(sample):
    assert convert(FEATURES, sample) == {"x": ROWS}


def test_a_name_of_the_models_own_is_no_envelope():
    inputs = (TensorSpec("inputs", "float32", (None, 4)),)
    assert convert(inputs, {"inputs": ROWS}) == {"inputs": ROWS}
    assert convert(inputs, {"instances": ROWS}) == {"inputs": ROWS}
    mismatch(inputs, {"inputs": {"inputs": ROWS}})


def test_a_signature_may_be_named_beside_if_it_is_the_one_that_is_served():
    sample = {"signature_name": "serving_default", "instances": ROWS}
    assert convert(FEATURES, sample, key="serving_default") == {"x": ROWS}
    another = mismatch(FEATURES, sample, key="predict")
    assert (str(another), another.hint) == (
        'this api serves "predict", and the sample asks for another',
        'leave "signature_name" out',
    )
    assert "the model has no signatures" in str(mismatch(FEATURES, sample))
    mismatch(FEATURES, {"instances": ROWS, "more": 1})
    mismatch(FEATURES, {"instances": ROWS, "inputs": ROWS})


@pytest.mark.parametrize(
    ("sample", "hint"),
    [
        ([{"a": 1, "b": 2, "c": 3, "d": 4}], "send rows without names"),
        ({"a": [1, 5], "b": [2, 6], "c": [3, 7], "d": [4, 8]}, "send rows without names"),
        ({"dataframe_records": [{"a": 1, "b": 2}]}, "send rows without names"),
        ([{"X": [1, 2, 3, 4]}], 'did you mean "x" where you wrote "X"?'),
        ({"instances": [{"X": [1, 2, 3, 4]}]}, 'did you mean "x" where you wrote "X"?'),
        ({"instances": ROWS, "parameters": {}}, 'leave out what stands beside "instances"'),
        ({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}, "send data itself"),
    ],
)
def test_names_that_a_model_with_one_input_does_not_know_are_told_as_names(sample, hint):
    error = mismatch(FEATURES, sample)
    assert "which is missing; the model has no input" in str(error)
    assert hint in error.hint


def test_columns_whose_indexes_differ_are_no_table():
    mismatch(COLUMNS, {"age": {"0": 1, "1": 2}, "city": {"1": "a", "0": "b"}, "count": {"0": 1, "1": 2}})


def test_rows_of_several_inputs_are_taken_apart_whatever_each_input_takes():
    inputs = (TensorSpec("s", "float32", (), kind="sequence"), TensorSpec("x", "float32", (None,)))
    feeds = Converter(Signature(inputs, ())).convert([{"s": 1.0, "x": 2.0}, {"s": 3.0, "x": 4.0}])
    assert ([one.tolist() for one in feeds["s"]], feeds["x"].tolist()) == ([1.0, 3.0], [2.0, 4.0])


def test_records_of_a_ragged_input_are_rows_of_any_length():
    inputs = (TensorSpec("r", "int32", (None, None), kind="ragged", ragged_rank=1),)
    feeds = Converter(Signature(inputs, ())).convert([{"r": [1, 2]}, {"r": [3]}])
    assert [row.tolist() for row in feeds["r"]] == [[1, 2], [3]]


def test_a_single_record_is_one_row_and_nothing_else():
    assert convert(COLUMNS, [{"age": 22, "city": "Bern", "count": 1}]) == {
        "age": [[22]],
        "city": [["Bern"]],
        "count": [1],
    }


def test_columns_of_several_values_are_rows_too():
    inputs = (TensorSpec("num", "float32", ("N", 2)), TensorSpec("cat", "string", ("N", 1)))
    records = [{"num": [1, 2], "cat": "a"}, {"num": [3, 4], "cat": ["b"]}]
    assert mismatch(inputs, records).input == "cat"
    records[1]["cat"] = "b"
    assert convert(inputs, records) == {"num": [[1, 2], [3, 4]], "cat": [["a"], ["b"]]}


@pytest.mark.parametrize(
    ("sample", "words", "hint"),
    [
        ([{"age": 1, "city": "a", "count": 1}, {"age": 1, "city": "a"}], 'record [1] lacks "count"', "the same keys"),
        ([{"age": 1, "city": "a"}], 'input "count"', 'add the key "count"'),
        ([{"Age": 1, "city": "a", "count": 1}], 'input "age"', 'did you mean "age" where you wrote "Age"?'),
        ({"age": [1, 2], "city": ["a"], "count": [1, 2]}, '1 row (dimension 0), and "age" has 2', "as many rows"),
        ({"instances": [[1, "a", 2]]}, "the model has 3 inputs", 'keys "age", "city", "count"'),
        ({"dataframe_split": {"columns": ["age", "city", "count"], "data": [[1, "a"]]}}, "2 values for 3", "each col"),
        ({"dataframe_split": {"columns": ["age", "age"], "data": []}}, "two columns of one name", "rename"),
        ({"dataframe_split": {"columns": ["age"]}}, "no object with columns and data", "send"),
        ({"dataframe_split": {"columns": 1, "data": [1]}}, "no list", "send"),
        ({"dataframe_split": [1]}, "no object with columns and data", "send"),
        ({"records": RECORDS}, '"records"', "without the object around it"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_in_its_own_words(sample, words, hint):
    error = mismatch(COLUMNS, sample)
    assert words in str(error)
    assert hint in error.hint


def test_a_mistake_inside_an_envelope_is_told_as_without_it():
    inside, outside = mismatch(FEATURES, {"instances": [[1, 2, 3]]}), mismatch(FEATURES, [[1, 2, 3]])
    assert (str(inside), inside.hint) == (str(outside), outside.hint)


def test_what_a_handler_returns_is_in_no_envelope():
    assert convert(COLUMNS, [dict(zip(TABLE, row, strict=True)) for row in zip(*TABLE.values(), strict=True)]) == READ
    mismatch(FEATURES, {"instances": ROWS}, after="pre_inference")


def test_a_map_takes_any_key_of_its_own():
    inputs = (TensorSpec("m", "float32", (), kind="map", key_dtype="string"),)
    signature = Signature(inputs, ())
    assert Converter(signature).convert({"instances": 1, "m": 2}) == {"m": {"instances": 1.0, "m": 2.0}}
    assert Converter(signature).convert({"m": {"a": 1}}) == {"m": {"a": 1.0}}


@given(st.integers(1, 4), st.integers(1, 5), st.data())
@settings(deadline=None)
def test_all_forms_of_one_table_are_the_same_feeds(width, height, data):
    names = [f"c{number}" for number in range(width)]
    inputs = tuple(TensorSpec(name, "int64", data.draw(st.sampled_from([("N",), ("N", 1)]))) for name in names)
    rows = data.draw(st.lists(st.lists(st.integers(-9, 9), min_size=width, max_size=width), min_size=height))
    rows = rows or [[0] * width]
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    records = [dict(zip(names, row, strict=True)) for row in rows]
    expected = convert(inputs, columns)
    for sample in (
        records,
        {"instances": records},
        {"inputs": columns},
        {"dataframe_split": {"columns": names, "data": rows}},
    ):
        assert convert(inputs, json.loads(json.dumps(sample))) == expected
