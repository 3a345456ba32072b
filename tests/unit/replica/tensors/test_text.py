"""Inputs of text, and of examples whose features are read as JSON, without a backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from cortex.replica.tensors.conversion import plan
from cortex.replica.tensors.examples import serialise
from cortex.replica.tensors.mismatch import InputMismatch
from cortex.wire.signature import TensorSpec

TEXTS = TensorSpec("t", "string", (None,))
FEATURES = (
    TensorSpec("age", "float32", ()),
    TensorSpec("city", "string", (), optional=True),
    TensorSpec("pair", "int64", (2,)),
)
EXAMPLES = TensorSpec("e", "string", (None,), features=FEATURES)
ONE_EXAMPLE = TensorSpec("e", "string", (), features=FEATURES)

ANN = {"age": 3, "city": "Bern", "pair": [1, 2]}
BOB: dict[str, Any] = {"age": 4.5, "pair": [7, 8]}


def convert(spec: TensorSpec, value: object) -> Any:
    return plan(spec, takes_bytes=True)(value).tolist()


def refused(spec: TensorSpec, value: object) -> tuple[str, str, str]:
    """What is blamed, why, and what to do."""
    with pytest.raises(InputMismatch) as caught:
        convert(spec, value)
    return caught.value.input, caught.value.reason, caught.value.hint


def serialised(features: Mapping[str, Any]) -> bytes:
    dtypes = {"age": np.float32, "city": object, "pair": np.int64}
    return serialise({name: np.array(features[name], dtypes[name]) for name in dtypes if name in features})


@pytest.mark.parametrize("value", [[ANN, BOB], {"age": [3, 4.5], "city": ["Bern", "Rom"], "pair": [[1, 2], [7, 8]]}])
def test_objects_and_columns_become_an_example_each(value: Any) -> None:
    bob = BOB if isinstance(value, list) else {**BOB, "city": "Rom"}
    assert convert(EXAMPLES, value) == [serialised(ANN), serialised(bob)]


@pytest.mark.parametrize("spec", [EXAMPLES, ONE_EXAMPLE])
def test_one_object_is_one_example(spec: TensorSpec) -> None:
    assert np.ravel(convert(spec, ANN)).tolist() == [serialised(ANN)]


def test_what_is_an_example_already_stays_as_it_is() -> None:
    ann = serialised(ANN)
    assert convert(EXAMPLES, [ann, BOB, {"b64": "YWI="}]) == [ann, serialised(BOB), b"ab"]
    assert convert(EXAMPLES, {"b64": "YWI="}) == [b"ab"]


def test_null_leaves_out_a_feature_that_may_be_left_out_and_no_other() -> None:
    assert convert(EXAMPLES, [{**BOB, "city": None}]) == [serialised(BOB)]
    assert refused(EXAMPLES, [{**BOB, "pair": None}])[:2] == ('e["pair"]', "is null")
    assert convert(EXAMPLES, [{**BOB, "age": None}]) == [serialised({**BOB, "age": np.nan})]


@pytest.mark.parametrize(
    ("features", "blamed", "reason", "hint"),
    [
        ({"age": 3}, 'e["pair"]', "which is missing", 'add the key "pair"'),
        ({}, 'e["age"]', 'which is missing, and so is "pair"', 'add the keys "age", "pair"'),
        (
            {**BOB, "ctiy": "Rom"},
            "",
            'the model has no feature "ctiy"',
            'did you mean "city" where you wrote "ctiy"?',
        ),
        ({**BOB, "pair": [1, 2, 3]}, 'e["pair"]', "2 values expected, 3 found", ""),
    ],
)
def test_a_feature_that_is_wrong_is_named_with_its_input(
    features: dict[str, Any], blamed: str, reason: str, hint: str
) -> None:
    assert refused(EXAMPLES, [ANN, features]) == (blamed, reason, hint)
    assert refused(EXAMPLES, features) == (blamed, reason, hint)


@pytest.mark.parametrize(
    "columns",
    [
        {"age": [3, 4.5], "pair": [[1, 2]]},
        {"age": [3, 4.5], "pair": 1},
        {"age": 3, "pair": [[1, 2]]},
        {"age": [[3]], "pair": [[1, 2], [7, 8]]},
    ],
    ids=["of other lengths", "and a value", "beside a value", "of other things"],
)
def test_what_are_no_columns_of_one_length_is_told_as_one_example(columns: dict[str, Any]) -> None:
    blamed, _reason, _hint = refused(EXAMPLES, columns)
    assert blamed in ('e["age"]', 'e["pair"]')
