"""What is said of a value that does not fit: its type and shape, shortened, and the names that were probably meant."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cortex.replica.tensors.mismatch import (
    MAX_RANK,
    InputMismatch,
    describe,
    no_object,
    quoted,
    shown,
    wrong_names,
)
from cortex.wire.signature import TensorSpec


def deep(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (5, ("int64", ())),
        (2.5, ("float64", ())),
        (True, ("bool", ())),
        (None, ("null", ())),
        ("a", ("string", ())),
        (b"a", ("bytes", ())),
        ({"a": 1}, ("object", ())),
        ({1}, ("set", ())),
        (np.float32(1), ("float32", ())),
        (np.zeros((2, 3), np.int8), ("int8", (2, 3))),
        (np.array(["a"]), ("string", (1,))),
        (np.array([b"a"]), ("bytes", (1,))),
        ([], ("float64", (0,))),
        ([[], []], ("float64", (2, 0))),
        ([1, 2], ("int64", (2,))),
        ((1, 2), ("int64", (2,))),
        ([1, 2.5], ("float64", (2,))),
        ([1, None], ("float64", (2,))),
        ([1, True], ("int64", (2,))),
        ([None, None], ("null", (2,))),
        ([1, "a"], ("mixed", (2,))),
        ([[1, 2], [3, "a"]], ("mixed", (2, 2))),
        ([[1], [2, 3]], ("int64", None)),
        ([[1], ["a", 3]], ("mixed", None)),
        ([[1], 2], ("int64", None)),
        ([np.float32(1), np.float32(2)], ("float32", (2,))),
        (deep(1, MAX_RANK - 1), ("int64", (1,) * (MAX_RANK - 1))),
        (deep(1, MAX_RANK), ("int64", (1,) * MAX_RANK)),
    ],
    ids=str,
)
def test_a_value_is_described_by_its_type_and_its_shape_if_it_has_one(value: object, found: Any) -> None:
    assert describe(value) == found


def test_of_a_large_value_one_row_is_looked_at() -> None:
    row = [0] * 2**10
    assert describe([*([row] * 2**8), ["a"] * 2**10]) == ("int64", (2**8 + 1, 2**10))
    assert describe([*([row] * (2**8 - 2)), ["a"] * 2**10]) == ("mixed", (2**8 - 1, 2**10))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (True, "True"),
        (2.5, "2.5"),
        (np.float64(2.5), "2.5"),
        ("a", "'a'"),
        (2**254, str(2**254)),
        (2**255, "an integer of 256 bits"),
        pytest.param(10**5000, "an integer of 16610 bits", id="of more than 4,300 digits"),
        ("x" * 38, f"'{'x' * 38}'"),
        ("x" * 39, f"'{'x' * 38}…"),
        ([1], "list"),
        (None, "NoneType"),
    ],
)
def test_a_value_is_shown_as_it_is_written_and_text_in_at_most_40_characters(value: object, text: str) -> None:
    assert shown(value) == text


def test_of_many_names_the_first_10_are_told_with_40_characters_each() -> None:
    names = [f"c{number}" for number in range(11)]
    assert quoted(names[:10]) == ", ".join(f'"{name}"' for name in names[:10])
    assert quoted(names) == quoted(names[:10]) + ", …"
    assert quoted(["x" * 50]) == f'"{"x" * 40}"'


def spec(name: str, *, optional: bool = False) -> TensorSpec:
    return TensorSpec(name, "float32", (), optional=optional)


AGE, CITY, FARE = spec("age"), spec("city"), spec("fare", optional=True)


@pytest.mark.parametrize(
    ("sample", "blamed", "reason", "hint"),
    [
        ({"city": 1}, "age", "which is missing", 'add the key "age"'),
        ({}, "age", 'which is missing, and so is "city"', 'add the keys "age", "city"'),
        (
            {"Age": 1},
            "age",
            'which is missing, and so is "city"; the model has no input "Age"',
            'did you mean "age" where you wrote "Age"? add the key "city"',
        ),
        (
            {"age": 1, "city": 1, "fair": 1},
            "",
            'the model has no input "fair"',
            'did you mean "fare" where you wrote "fair"?',
        ),
        (
            {"age": 1, "city": 1, "zzz": 1},
            "",
            'the model has no input "zzz"',
            'its inputs are "age", "city", "fare"',
        ),
        ({"age_": 1, "aage": 1}, "age", "", 'did you mean "age" where you wrote "age_"? add the key "city"'),
    ],
)
def test_names_that_are_wrong_are_told_with_those_that_were_probably_meant(
    sample: dict[str, int], blamed: str, reason: str, hint: str
) -> None:
    error = wrong_names((AGE, CITY, FARE), sample)
    assert (error.input, error.hint) == (blamed, hint)
    assert not reason or error.reason == reason


def test_three_that_are_missing_are_told_as_several() -> None:
    error = wrong_names((AGE, CITY, spec("name")), {})
    assert error.reason == 'which is missing, and so are "city", "name"'


def test_who_names_no_inputs_is_told_those_that_are_needed() -> None:
    assert no_object((AGE, CITY, FARE), [1, 2]).hint == 'send an object with the keys "age", "city"'
    optional = (spec("a", optional=True), FARE)
    error = no_object(optional, [1, 2])
    assert error.hint == 'send an object with the keys "a", "fare"'
    assert (error.reason, error.found_dtype, error.found_shape) == (
        "the model has 2 inputs, and the sample is no object that names them",
        "int64",
        (2,),
    )


def test_what_is_no_tensor_is_expected_by_its_kind_and_in_no_shape() -> None:
    sequence = TensorSpec("s", "float32", (2,), kind="sequence")
    facts = InputMismatch(sequence, ("int64", ()), "a list is expected").facts
    assert facts["expected"] == {"dtype": str(sequence), "shape": None}
    assert InputMismatch(None, ("object", None), "no").facts["expected"] == {"dtype": "object", "shape": None}


def test_a_mismatch_without_a_reason_says_what_was_expected_and_found() -> None:
    tensor = TensorSpec("x", "float32", (2,))
    assert str(InputMismatch(tensor, ("int64", (3,)), "")) == 'input "x": expected float32[2], found int64[3]'
    assert str(InputMismatch(tensor, (None, None), "which is missing")) == (
        'input "x": expected float32[2], which is missing'
    )


def test_a_mismatch_is_a_problem_of_its_input() -> None:
    problem = InputMismatch(TensorSpec("x", "float32", ()), ("string", ()), "is text", "send a number").problem()
    assert (problem.reference, problem.subject, problem.hint) == ("input-mismatch", 'input "x"', "send a number")
    assert problem.message == 'input "x": expected a single float32, found a single string: is text'
    assert InputMismatch(None, ("object", None), "no").problem().subject == ""
