"""Tests of `cortex.replica.backends.made_up_feeds`."""

import numpy as np
import pytest

from cortex.replica.backends.base import InferenceFailed
from cortex.replica.backends.made_up_feeds import accepted_feeds, synthetic_feeds
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
