"""Inputs that are made of others, without a backend: how deep, under which path, and what is no such value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cortex.replica.tensors.conversion import plan
from cortex.replica.tensors.mismatch import InputMismatch
from cortex.wire.signature import TensorSpec

ROWS = TensorSpec("r", "int32", (None, None), kind="ragged", ragged_rank=1)
PAIRS = TensorSpec("r", "int32", (None, None, 2), kind="ragged", ragged_rank=1)
DEEP = TensorSpec("r", "int32", (None, None, None), kind="ragged", ragged_rank=2)
DEEPER = TensorSpec("r", "int32", (None, None, None, None), kind="ragged", ragged_rank=3)
SEQUENCE = TensorSpec("s", "float32", (2,), kind="sequence")
BY_NAME = TensorSpec("m", "float32", (), kind="map", key_dtype="string")
BY_NUMBER = TensorSpec("m", "float32", (), kind="map", key_dtype="int64")
MAPS = TensorSpec("m", "float32", (), kind="sequence_of_maps", key_dtype="int64")


def convert(spec: TensorSpec, value: object) -> Any:
    return plan(spec, takes_bytes=False)(value)


def as_lists(value: Any) -> Any:
    return [as_lists(item) for item in value] if isinstance(value, list) else value.tolist()


def refused(spec: TensorSpec, value: object) -> tuple[str, str, str]:
    """What is blamed, why, and what to do."""
    with pytest.raises(InputMismatch) as caught:
        convert(spec, value)
    return caught.value.input, caught.value.reason, caught.value.hint


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (ROWS, [[1, 2], [], [3]]),
        (ROWS, [[1]]),
        (ROWS, []),
        (PAIRS, [[[1, 2], [3, 4]], [[5, 6]]]),
        (DEEP, [[[1, 2], []], [[3]], []]),
        (DEEPER, [[[[1], [2, 3]], []], [[[4]]]]),
    ],
)
def test_rows_keep_their_lengths_at_every_depth(spec, value):
    assert as_lists(convert(spec, value)) == value


@pytest.mark.parametrize(
    ("spec", "value"), [(ROWS, [1, 2]), (PAIRS, [[1, 2], [3, 4]]), (DEEP, [[1, 2], [3]]), (DEEPER, [[[1], []], [[2]]])]
)
def test_a_row_alone_is_one_row(spec, value):
    assert as_lists(convert(spec, value)) == [value]


def test_rows_may_be_arrays():
    rows = [np.arange(2), np.arange(3)]
    assert as_lists(convert(ROWS, rows)) == [[0, 1], [0, 1, 2]]
    assert as_lists(convert(ROWS, np.ones((2, 3), np.int32))) == [[1, 1, 1], [1, 1, 1]]
    assert as_lists(convert(DEEP, [[np.arange(2)], []])) == [[[0, 1]], []]
    assert as_lists(convert(ROWS, np.arange(3))) == [[0, 1, 2]]
    assert as_lists(convert(DEEP, [np.arange(2), np.arange(1)])) == [[[0, 1], [0]]]


def test_what_is_no_rows_is_refused_with_the_way_out():
    expected = ("r", "a list of rows is expected", "put it in brackets: [[…], …]")
    assert refused(ROWS, 5) == expected
    assert refused(ROWS, np.array(5)) == expected
    assert refused(ROWS, {"a": 1}) == expected


@pytest.mark.parametrize(
    ("spec", "value", "path"),
    [
        (ROWS, [[1], 2], "r[1]"),
        (ROWS, [[1], None], "r[1]"),
        (DEEP, [[[1]], [2]], "r[1][0]"),
        (DEEP, [[[1]], 2], "r[1]"),
        (DEEPER, [[[[1]]], [[[1]], [2]]], "r[1][1][0]"),
    ],
)
def test_a_row_that_is_not_as_deep_as_the_others_is_named(spec, value, path):
    assert refused(spec, value) == ("r", f"{path} is no list", "make all rows equally deep, of any length")


@pytest.mark.parametrize(
    ("spec", "value", "path"),
    [(ROWS, [[1], ["a"]], "r[1]"), (DEEP, [[[1], ["a"]]], "r[0][1]"), (PAIRS, [[[1, 2]], [[3]]], "r[1]")],
)
def test_a_row_that_holds_something_else_is_named(spec, value, path):
    assert refused(spec, value)[0] == path


def test_a_list_that_holds_itself_ends():
    endless: list[Any] = []
    endless += [endless, endless]
    with pytest.raises(InputMismatch):
        convert(ROWS, endless)


def test_the_elements_of_a_sequence_are_converted_each_by_itself():
    assert as_lists(convert(SEQUENCE, [[1, 2], [3, 4]])) == [[1.0, 2.0], [3.0, 4.0]]
    assert as_lists(convert(SEQUENCE, ([1, 2],))) == [[1.0, 2.0]]
    assert as_lists(convert(SEQUENCE, np.ones((2, 2)))) == [[1.0, 1.0], [1.0, 1.0]]
    assert convert(SEQUENCE, []) == []
    assert refused(SEQUENCE, [[1, 2], [3]])[0] == "s[1]"


@pytest.mark.parametrize("value", [5, "text", None, np.array(5.0)])
def test_what_is_no_sequence_is_refused(value):
    assert refused(SEQUENCE, value) == ("s", "a list is expected", "put it in brackets: […]")


def test_keys_of_a_map_are_text_or_integers_as_the_model_has_them():
    assert convert(BY_NAME, {"a": 1, 5: 2.5}) == {"a": 1.0, "5": 2.5}
    assert convert(BY_NUMBER, {"7": 1, 8: 2, "-9": 3}) == {7: 1.0, 8: 2.0, -9: 3.0}
    assert convert(MAPS, [{"7": 1}, {}]) == [{7: 1.0}, {}]


@pytest.mark.parametrize("key", [-(2**63), 2**63 - 1])
def test_a_key_may_have_every_value_of_64_bits(key):
    assert convert(BY_NUMBER, {key: 1}) == {key: 1.0}


@pytest.mark.parametrize("key", [-(2**63) - 1, 2**63])
def test_a_key_of_more_than_64_bits_is_refused(key):
    assert refused(BY_NUMBER, {key: 1}) == (f"m[{key}]", f"the key {key} does not fit in 64 bits", "")


@pytest.mark.parametrize(("key", "shown"), [("a", "'a'"), (1.5, "1.5"), (None, "NoneType"), ("", "''")])
def test_a_key_that_is_no_integer_is_refused(key, shown):
    assert refused(BY_NUMBER, {key: 1}) == (f"m[{shown}]", f"the key {shown} is no integer", "")


def test_a_value_that_is_no_number_is_named_by_its_key():
    assert refused(BY_NAME, {"a": 1, "b": "x"})[0] == "m['b']"
    assert refused(MAPS, [{"7": 1}, {"8": "x"}])[0] == "m[1]"


def test_what_is_no_map_is_refused_with_what_was_found_and_what_is_taken():
    with pytest.raises(InputMismatch) as caught:
        convert(BY_NAME, [1, 2])
    error = caught.value
    assert (error.input, error.reason, error.hint) == ("m", "an object is expected", "send {key: number, …}")
    assert error.facts["expected"]["dtype"] == "map from string to float32"
