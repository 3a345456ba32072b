"""Tests of `cortex.spec.locations`."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortex.spec.locations import infer_format, is_remote, masked_model, sample_path

# Machines may be busy; the timeout of pytest ends what hangs.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("model", "format_"),
    [
        ("model.onnx", "onnx"),
        ("models/MODEL.ONNX", "onnx"),
        ("s3://bucket/model.onnx", "onnx"),
        ("https://host/model.onnx?signature=abc", "onnx"),
        ("https://host/model.onnx#part", "onnx"),
        ("file:///home/me/model.onnx", "onnx"),
        ("model.zip", "tensorflow"),
        ("gs://bucket/model.ZIP", "tensorflow"),
        ("models/iris", None),
        ("models/iris/", None),
        ("models/iris.onnx/", None),
        ("https://host/download?name=model.onnx", None),
        ("s3://bucket/model?.onnx", "onnx"),
        ("saved_model.pb", None),
        ("", None),
    ],
)
def test_the_format_is_told_by_the_ending_of_the_path(model, format_):
    assert infer_format(model) == format_


@pytest.mark.parametrize(
    ("model", "remote"),
    [
        ("s3://b/m", True),
        ("gs://b/m", True),
        ("az://b/m", True),
        ("https://h/m", True),
        ("file:///m", False),
        ("m.onnx", False),
        ("/m", False),
    ],
)
def test_a_model_is_remote_unless_it_is_a_file(model, remote):
    assert is_remote(model) is remote


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("https://host/m.onnx?X-Amz-Signature=abc&x=y", "https://host/m.onnx?***"),
        ("https://me:password@host:8443/m.onnx", "https://host:8443/m.onnx"),
        ("https://host/m.onnx#secret", "https://host/m.onnx"),
        ("https://host/m@v2.onnx", "https://host/m@v2.onnx"),
        ("https://host", "https://host"),
        ("s3://bucket/m?.onnx", "s3://bucket/m?.onnx"),
        ("models/m.onnx", "models/m.onnx"),
    ],
)
def test_the_secret_parts_of_a_url_are_masked(model, shown):
    assert masked_model(model) == shown


@unhurried
@given(st.text())
def test_any_text_has_a_format_a_mask_and_a_side(text):
    for location in (text, f"https://{text}", f"s3://{text}"):
        infer_format(location)
        masked_model(location)
        is_remote(location)


@pytest.mark.parametrize(
    ("sample", "path"),
    [
        ("sample.json", "sample.json"),
        ("samples/flower 1.JPG", "samples/flower 1.JPG"),
        ("../audio.wav", "../audio.wav"),
        ("what a flower", None),
        ("see sample.json\nfor more", None),
        ("v1.5", None),
        ("", None),
        (".json", None),
        ({"file": "sample.json"}, None),
        (["sample.json"], None),
        (None, None),
    ],
)
def test_a_sample_is_a_path_if_it_ends_like_a_file_that_can_be_sent(sample, path):
    assert sample_path(sample) == path
