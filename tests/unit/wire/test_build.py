"""Tests of `cortex.wire.build`."""

import msgspec
import pytest

from cortex.testing.builders import a_build
from cortex.wire.build import BuildSpec, ModelArtifact, ModelKey

ONNX = ModelArtifact(format="onnx", tree="a" * 64, entry="model.onnx")


@pytest.mark.parametrize(("stored", "mode"), [(True, "auto"), (False, "off")])
def test_a_build_from_before_batching_could_be_on_is_read(stored, mode):
    known = msgspec.to_builtins(a_build())
    del known["trust_rows"]
    assert msgspec.convert({**known, "batching": stored}, BuildSpec).batching_mode == mode


def test_the_users_word_for_batching_is_a_mode_of_its_own():
    assert msgspec.structs.replace(a_build(), trust_rows=True).batching_mode == "on"


def test_a_model_is_the_same_wherever_it_came_from():
    assert msgspec.structs.replace(ONNX, source="elsewhere.onnx").key == ONNX.key
    for other in ({"tree": "b" * 64}, {"entry": "other.onnx"}, {"format": "tensorflow"}, {"signature_key": "predict"}):
        assert msgspec.structs.replace(ONNX, **other).key != ONNX.key


def test_without_a_signature_key_it_may_be_any_of_the_models():
    unnamed, one, other = (ModelKey("tensorflow", "a" * 64, ".", key) for key in (None, "predict", "classify"))
    assert unnamed.may_be(one)
    assert one.may_be(unnamed)
    assert one.may_be(one)
    assert not one.may_be(other)
    assert not unnamed.may_be(ModelKey("tensorflow", "b" * 64, "."))
