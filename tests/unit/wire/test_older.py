"""Tests of `cortex.wire.older`."""

import base64
from typing import Any

import msgspec
import pytest

from cortex.testing.builders import a_build, a_sample
from cortex.wire.build import BuildSpec
from cortex.wire.older import build_of_now

DIGEST = "d" * 64


def never(_body: bytes) -> str:
    raise AssertionError("there is no body to be stored")


def as_json(build: BuildSpec) -> dict[str, Any]:
    return msgspec.json.decode(msgspec.json.encode(build))


def test_the_body_of_a_sample_becomes_the_digest_of_where_it_is_stored() -> None:
    stored: list[bytes] = []

    def store(body: bytes) -> str:
        stored.append(body)
        return DIGEST

    rest = {"content_type": "image/png", "gate": True, "timeout_s": 5.0}
    older = {**as_json(a_build()), "sample": {"body": base64.b64encode(b"\x89PNG").decode(), **rest}}
    assert build_of_now(older, store)["sample"] == {"tree": DIGEST, **rest}
    assert stored == [b"\x89PNG"]


@pytest.mark.parametrize("model_format", ["onnx", "tensorflow"])
def test_a_build_that_names_no_runtime_ran_in_that_of_its_models_format(model_format: str) -> None:
    today = as_json(a_build())
    model = {**today["model"], "format": model_format}
    older = {name: value for name, value in {**today, "model": model}.items() if name != "runtime"}
    assert build_of_now(older, never) == {**today, "model": model, "runtime": model_format}


def test_a_build_in_the_form_of_today_stays_as_it_is() -> None:
    for build in (as_json(a_build()), as_json(a_build(sample=a_sample(b"1", gate=True)))):
        assert build_of_now(build, never) == build
