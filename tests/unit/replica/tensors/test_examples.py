"""Serialised `tf.Example`s, read back by protobuf itself, which is told what the messages look like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cortex.replica.tensors.examples import serialise

_PROTO: dict[str, list[tuple[str, int, str, str]]] = {
    "Example": [("features", 1, "message", "Features")],
    "Features": [("entries", 1, "messages", "Entry")],
    "Entry": [("key", 1, "string", ""), ("value", 2, "message", "Feature")],
    "Feature": [
        ("bytes_list", 1, "message", "BytesList"),
        ("float_list", 2, "message", "FloatList"),
        ("int64_list", 3, "message", "Int64List"),
    ],
    "BytesList": [("value", 1, "bytes", "")],
    "FloatList": [("value", 1, "float", "")],
    "Int64List": [("value", 1, "int64", "")],
}
"""As in tensorflow/core/example; a map is a list of entries."""


@pytest.fixture(scope="module")
def messages() -> Any:
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="example", syntax="proto3")
    for name, fields in _PROTO.items():
        message = file.message_type.add(name=name)
        for field, number, what, of in fields:
            repeated = what in ("messages", "bytes", "float", "int64")
            message.field.add(
                name=field,
                number=number,
                label=kind.LABEL_REPEATED if repeated else kind.LABEL_OPTIONAL,
                type=getattr(kind, f"TYPE_{what.removesuffix('s') if what == 'messages' else what}".upper()),
                type_name=f".example.{of}" if of else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("example.Example"))


def read(messages: Any, serialised: bytes) -> dict[str, tuple[str, list[Any]]]:
    """Each feature with its kind."""
    found = {}
    for entry in messages.FromString(serialised).features.entries:
        ((kind, of_kind),) = entry.value.ListFields()
        found[entry.key] = (kind.name, list(of_kind.value))
    return found


@given(
    floats=arrays.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False)),
    integers=arrays.arrays(np.int64, st.integers(0, 40)),
    texts=st.lists(st.text(max_size=200) | st.binary(max_size=200), max_size=5),
    name=st.text(max_size=150),
)
@example(
    floats=np.zeros(0, np.float32),
    integers=np.array([0, 1, 127, 128, 255, 256, 16383, 16384, 2**63 - 1, -(2**63), -1]),
    texts=["", b"\xff", "x" * 127, "x" * 128],
    name="",
)
def test_what_is_serialised_is_read_back(messages, floats, integers, texts, name):
    features = {f"f{name}": floats, f"i{name}": integers, f"t{name}": np.array([*texts, None], object)[:-1]}
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    assert read(messages, serialise(features)) == {
        f"f{name}": ("float_list", floats.tolist()),
        f"i{name}": ("int64_list", integers.tolist()),
        f"t{name}": ("bytes_list", encoded),
    }


def test_an_example_may_have_no_features_and_values_any_shape(messages):
    assert read(messages, serialise({})) == {}
    assert read(messages, serialise({"x": np.arange(6).reshape(2, 3), "y": np.array(2.5, np.float32)})) == {
        "x": ("int64_list", [0, 1, 2, 3, 4, 5]),
        "y": ("float_list", [2.5]),
    }
