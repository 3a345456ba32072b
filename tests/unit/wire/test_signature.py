"""Tests of `cortex.wire.signature`."""

import msgspec
import pytest

from cortex.wire.signature import Signature, TensorSpec, shape_text

SIGNATURE = Signature(
    inputs=(
        TensorSpec("x", "float32", ("N", None, 4)),
        TensorSpec("o", "string", None, optional=True, kind="sequence"),
    ),
    outputs=(TensorSpec("p", "float32", (), kind="sequence_of_maps", key_dtype="int64"),),
    key="serving_default",
)


def test_a_signature_comes_back_from_json_as_it_was():
    assert msgspec.json.decode(msgspec.json.encode(SIGNATURE), type=Signature) == SIGNATURE


def test_fields_of_a_newer_version_are_ignored():
    message = msgspec.to_builtins(SIGNATURE) | {"added_later": 1}
    assert msgspec.convert(message, Signature) == SIGNATURE


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (TensorSpec("x", "float32", ("N", None, 4)), "float32[N, ?, 4]"),
        (TensorSpec("x", "int64", ()), "int64[]"),
        (TensorSpec("x", "int64", None), "int64[…]"),
        (TensorSpec("x", "string", (None,), kind="sequence"), "sequence of string[?]"),
        (TensorSpec("x", "float32", (), kind="map", key_dtype="string"), "map from string to float32"),
        (
            TensorSpec("x", "float32", (), kind="sequence_of_maps", key_dtype="int64"),
            "sequence of map from int64 to float32",
        ),
    ],
)
def test_a_spec_reads_as_one_would_say_it(spec, text):
    assert str(spec) == text


def test_a_shape_without_dimensions_is_a_pair_of_brackets():
    assert shape_text(()) == "[]"
