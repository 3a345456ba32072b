"""Request bodies that are made up for models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from cortex.replica.backends.base import InferenceFailed
from cortex.replica.inspection import made_up
from cortex.replica.inspection.made_up import make_up_sample
from cortex.wire.launch import MadeUpSample
from cortex.wire.signature import Signature, TensorSpec


class FakeBackend:
    """A model that runs on whatever `takes` says."""

    takes_bytes = False

    def __init__(self, *inputs: TensorSpec, takes: Callable[[Mapping[str, Any]], bool] = lambda feeds: True) -> None:
        self.signature = Signature(inputs, (TensorSpec("y", "float32", (None,)),))
        self._takes = takes
        self.runs: list[Mapping[str, Any]] = []

    def run(self, feeds: Mapping[str, Any]) -> Sequence[Any]:
        self.runs.append(feeds)
        if not self._takes(feeds):
            raise InferenceFailed("no")
        return [np.zeros(1, np.float32)]


def made(backend: Any) -> tuple[Any, bool]:
    sample = make_up_sample(backend)
    assert sample is not None
    return json.loads(sample.body), sample.accepted


X = TensorSpec("x", "float32", ("N", 2))
COUNT = TensorSpec("count", "int64", ())
WORD = TensorSpec("word", "string", (None, 1))
BIAS = TensorSpec("bias", "float32", (2,), optional=True)


@pytest.mark.parametrize(
    ("inputs", "body"),
    [
        ((X,), [[0.85, 0.63]]),
        ((COUNT,), 1),
        ((WORD,), [["a"]]),
        ((X, COUNT, WORD), {"x": [[0.85, 0.63]], "count": 1, "word": [["a"]]}),
        ((X, BIAS), {"x": [[0.85, 0.63]]}),
        ((BIAS,), None),
        ((), {}),
        ((TensorSpec("x", "bool", (2,)),), [True, True]),
        ((TensorSpec("x", "bfloat16", (1,)),), [0.75]),
        ((TensorSpec("x", "int64", (1,), kind="sequence"),), [[1]]),
        ((TensorSpec("m", "float32", (), kind="map", key_dtype="int64"),), {"0": 1.0}),
    ],
)
def test_the_body_has_the_form_that_the_api_takes(inputs: tuple[TensorSpec, ...], body: Any) -> None:
    assert made(FakeBackend(*inputs)) == (body, True)


def test_the_model_has_run_on_what_is_read_from_the_body() -> None:
    backend = FakeBackend(X, COUNT)
    body, accepted = made(backend)
    last = {name: value.tolist() for name, value in backend.runs[-1].items()}
    assert (accepted, last["count"]) == (True, body["count"])
    assert last["x"] == pytest.approx(np.array(body["x"]))


def test_sizes_are_tried_until_the_model_takes_one() -> None:
    image = TensorSpec("image", "float32", ("N", 3, "h", "w"))
    body, accepted = made(FakeBackend(image, takes=lambda feeds: feeds["image"].shape[2:] == (32, 32)))
    assert (np.shape(body), accepted) == ((1, 3, 32, 32), True)


def test_a_body_that_no_model_was_seen_to_take_has_at_least_the_right_shape() -> None:
    assert made(FakeBackend(X, COUNT, takes=lambda feeds: False)) == ({"x": [[0.85, 0.63]], "count": 1}, False)


def test_what_the_model_says_of_the_first_is_told() -> None:
    found = make_up_sample(FakeBackend(X, takes=lambda feeds: False))
    assert found is not None
    assert found.reason == "no"


def test_a_model_that_takes_the_made_up_values_but_not_what_is_read_is_not_taken_for_accepting() -> None:
    backend = FakeBackend(X, takes=lambda feeds: len(backend.runs) == 1)
    assert made(backend) == ([[0.85, 0.63]], False)


def test_a_map_with_a_key_of_the_inputs_name_is_named() -> None:
    """`{"a": 1}` alone would be read as the value 1 for the input `a`."""
    spec = TensorSpec("a", "float32", (), kind="map", key_dtype="string")
    assert made(FakeBackend(spec)) == ({"a": {"a": 1.0}}, True)


@pytest.mark.parametrize("shape", [(1, 2000, 2000), (2**13, 2**13)])
def test_nothing_is_made_up_that_would_be_very_large(shape: tuple[int, ...]) -> None:
    assert make_up_sample(FakeBackend(TensorSpec("x", "float32", shape))) is None


def test_the_limit_is_about_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"[[0.85,0.63]]"
    monkeypatch.setattr(made_up, "MAX_BODY_BYTES", len(body))
    assert make_up_sample(FakeBackend(X)) == MadeUpSample(body=body, accepted=True)
    monkeypatch.setattr(made_up, "MAX_BODY_BYTES", len(body) - 1)
    assert make_up_sample(FakeBackend(X)) is None
