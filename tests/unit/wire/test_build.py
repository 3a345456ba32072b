"""Tests of `cortex.wire.build`."""

import msgspec
import pytest

from cortex.testing.builders import a_build
from cortex.wire.build import BuildSpec, ModelArtifact, ModelKey, Resources, mem_text

ONNX = ModelArtifact(format="onnx", tree="a" * 64, entry="model.onnx")


@pytest.mark.parametrize(("stored", "mode"), [(True, "auto"), (False, "off")])
def test_a_build_from_before_batching_could_be_on_is_read(stored, mode):
    known = msgspec.to_builtins(a_build())
    del known["trust_rows"]
    assert msgspec.convert({**known, "batching": stored}, BuildSpec).batching_mode == mode


def test_the_users_word_for_batching_is_a_mode_of_its_own():
    assert msgspec.structs.replace(a_build(), trust_rows=True).batching_mode == "on"


def key_of(gpus: int = 0, **model):
    model = msgspec.structs.replace(ONNX, **model)
    return msgspec.structs.replace(a_build(), model=model, resources=Resources(gpus=gpus)).model_key


def test_a_model_is_the_same_wherever_it_came_from():
    assert key_of(source="elsewhere.onnx") == key_of()
    for other in ({"tree": "b" * 64}, {"entry": "other.onnx"}, {"format": "tensorflow"}, {"signature_key": "predict"}):
        assert key_of(**other) != key_of()


def test_a_saved_model_is_another_on_a_gpu_for_which_it_may_bring_a_graph_of_its_own():
    assert key_of(gpus=1, format="tensorflow") != key_of(gpus=0, format="tensorflow")
    assert key_of(gpus=1) == key_of(gpus=0)


def test_rows_that_disagreed_on_one_device_may_have_been_those_of_the_other():
    assert key_of(gpus=1, format="tensorflow").may_be(key_of(gpus=0, format="tensorflow"))


def test_without_a_signature_key_it_may_be_any_of_the_models():
    unnamed, one, other = (ModelKey("tensorflow", "a" * 64, ".", key) for key in (None, "predict", "classify"))
    assert unnamed.may_be(one)
    assert one.may_be(unnamed)
    assert one.may_be(one)
    assert not one.may_be(other)
    assert not unnamed.may_be(ModelKey("tensorflow", "b" * 64, "."))


def test_memory_is_never_shown_smaller_than_it_is():
    assert [mem_text(2**20), mem_text(2**20 + 1), mem_text(1)] == ["1Mi", "2Mi", "1Mi"]
