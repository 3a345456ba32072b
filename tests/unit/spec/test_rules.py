"""Tests of `cortex.spec.rules`, beyond the wrong files of `test_loading_errors.py`."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from cortex.spec import rules

# Machines may be busy; the timeout of pytest ends what hangs.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("name", ["a", "iris", "iris-v2", "a1", "a" * 42, "x--y"])
def test_a_name_has_lower_case_letters_digits_and_inner_dashes(name):
    assert rules.check_name(name) == name


@pytest.mark.parametrize("name", ["", "A", "1a", "-a", "a-", "a_b", "a.b", "a b", "é", "a\n", "a" * 43, "a/b"])
def test_everything_else_is_no_name(name):
    with pytest.raises(PydanticCustomError) as caught:
        rules.check_name(name)
    assert caught.value.type == "bad-name"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Iris_V2", "iris-v2"),
        ("my deployment", "my-deployment"),
        ("__init__", "init"),
        ("3d", "api-3d"),
        ("a" * 50, "a" * 42),
        ("a" * 41 + "-b", "a" * 41),
        ("模型", None),
        ("---", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_suggested(text, name):
    assert rules.suggest_name(text) == name


@unhurried
@given(st.text())
def test_a_suggested_name_is_a_name(text):
    name = rules.suggest_name(text)
    assert name is None or rules.check_name(name) == name


@pytest.mark.parametrize(
    "model",
    [
        "model.onnx",
        "./models/iris",
        "../models/iris",
        "/srv/models/iris",
        "models/with space.onnx",
        "a:b/model.onnx",
        "C:/models/model.onnx",
        "file:///srv/model.onnx",
        "file://localhost/srv/model.onnx",
        "s3://bucket/model.onnx",
        "s3://bucket/folder/",
        "gs://bucket/bert",
        "az://container/bert",
        "https://host/model.onnx?signature=a/b",
        "https://me:password@host:8443/model.onnx",
    ],
)
def test_a_model_is_a_path_or_in_one_of_five_places(model):
    assert rules.check_model(model) == model


@pytest.mark.parametrize(
    "model",
    [
        "",
        " ",
        " model.onnx",
        "model.onnx ",
        "a\nb",
        "a\x00b",
        "a" * 4097,
        "http://host/model.onnx",
        "S3://bucket/model.onnx",
        "gcs://bucket/model.onnx",
        "hdfs://host/model",
        "s3:bucket/model.onnx",
        "s3:/bucket/model.onnx",
        "file:/srv/model.onnx",
        "https:host/model.onnx",
        "s3://",
        "s3://bucket",
        "s3://bucket/",
        "s3:///model.onnx",
        "https://host",
        "https://host/?signature=a",
        "file://model.onnx",
        "file:///",
        "~/model.onnx",
        "~me/model.onnx",
    ],
)
def test_everything_else_is_no_model(model):
    with pytest.raises(PydanticCustomError):
        rules.check_model(model)


@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("S3://bucket/m", "s3://bucket/m"),
        ("gcs://bucket/m", "gs://bucket/m"),
        ("azure://container/m", "az://container/m"),
        ("s3a://bucket/m", "s3://bucket/m"),
        ("htps://host/m", "https://host/m"),
        ("http:host/m", "https://host/m"),
        ("gs:bucket/m", "gs://bucket/m"),
        ("file:/srv/m", "file:///srv/m"),
    ],
)
def test_a_scheme_of_another_habit_is_offered_in_ours(model, meant):
    with pytest.raises(PydanticCustomError) as caught:
        rules.check_model(model)
    assert caught.value.context["hint"] == f'did you mean "{meant}"?'


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("handler.py", "handler.py"),
        ("./handler.py", "handler.py"),
        ("src//handler.py", "src/handler.py"),
        ("src/../handler.py", "handler.py"),
        ("src/.hidden.py", "src/.hidden.py"),
        ("my handler.py", "my handler.py"),
        ("..handler.py", "..handler.py"),
    ],
)
def test_a_handler_is_a_normalised_path_inside_the_project(written, path):
    assert rules.check_handler(written) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "handler",
        "handler.ipynb",
        "handler.PY",
        "handler.py/",
        "handler.py/.",
        ".py",
        "src/.py",
        ".",
        "..",
        "../handler.py",
        "src/../../handler.py",
        "/handler.py",
        "//handler.py",
        "~/handler.py",
        "src\\handler.py",
        "handler.py\x00",
    ],
)
def test_everything_else_is_no_handler(path):
    with pytest.raises(PydanticCustomError):
        rules.check_handler(path)


@unhurried
@given(st.lists(st.sampled_from(["..", ".", "a", "", "handler.py"]), min_size=1, max_size=8))
def test_no_accepted_handler_leaves_the_project(parts):
    try:
        path = rules.check_handler("/".join(parts))
    except PydanticCustomError:
        return
    assert not path.startswith("/")
    assert ".." not in path.split("/")


@pytest.mark.parametrize("name", ["A", "_", "path", "A1_b", "OMP_NUM_THREADS", "cortex_x", "a" * 255])
def test_an_environment_name_has_letters_digits_and_underscores(name):
    assert rules.check_env_name(name) == name


@pytest.mark.parametrize("name", ["", "1A", "A-B", "A B", "A=B", "É", "A\n", "a" * 256, "CORTEX_API", "CORTEX_"])
def test_everything_else_is_no_environment_name_of_a_user(name):
    with pytest.raises(PydanticCustomError):
        rules.check_env_name(name)


@pytest.mark.parametrize(
    ("value", "text"),
    [("x", "x"), ("", ""), ("a\nb", "a\nb"), (8080, "8080"), (0.5, "0.5"), (True, "true"), (False, "false")],
)
def test_an_environment_value_becomes_text(value, text):
    assert rules.check_env_value(value) == text


@pytest.mark.parametrize("value", ["a\0b", "é" * 64 * 1024, ["a"], None])
def test_a_value_that_no_environment_can_hold_is_refused(value):
    with pytest.raises(PydanticCustomError):
        rules.check_env_value(value)


@pytest.mark.parametrize("name", ["token", "TOKEN", "team.token-1_a", "_x", "1", "a" * 128])
def test_a_secret_has_a_name_that_is_fit_for_a_file(name):
    assert rules.check_secret_name(name) == name


@pytest.mark.parametrize("name", ["", ".hidden", "-x", "a/b", "a b", "a" * 129, 5])
def test_everything_else_is_no_name_of_a_secret(name):
    with pytest.raises(PydanticCustomError):
        rules.check_secret_name(name)


@pytest.mark.parametrize("spelling", ["on", "On", "ON", "yes", "Yes", "YES", "true", "True", "TRUE", True])
def test_on_is_spelled_as_yaml_has_always_allowed(spelling):
    assert rules.check_switch("on", "off")(spelling) == "on"


@pytest.mark.parametrize("spelling", ["off", "Off", "OFF", "no", "No", "NO", "false", "False", "FALSE", False])
def test_off_is_spelled_as_yaml_has_always_allowed(spelling):
    assert rules.check_switch("auto", "off")(spelling) == "off"


@pytest.mark.parametrize("value", ["oN", "", "auto", 1, 0, None, [], "y"])
def test_nothing_else_is_on_or_off(value):
    with pytest.raises(PydanticCustomError):
        rules.check_switch("on", "off")(value)


@pytest.mark.parametrize("value", [0, 2.0, "2", True, None, 1_000_001, [1]])
def test_an_integer_field_takes_nothing_but_integers_in_range(value):
    with pytest.raises(PydanticCustomError):
        rules.check_at_least(1)(value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**63), 2**64 - 1),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@unhurried
@given(JSON)
def test_any_json_value_is_a_sample(value):
    assert rules.check_json(value) == value


def test_a_sample_is_a_copy():
    value = {"rows": [[1, 2]]}
    copy = rules.check_json(value)
    value["rows"][0].append(3)
    assert copy == {"rows": [[1, 2]]}


def test_everything_that_json_cannot_express_is_told_with_its_place():
    value = {"a": [1, float("nan")], "b": 2**64, "c": {1: 2}, "d": {"e": b"bytes"}, "f": -(2**63) - 1}
    with pytest.raises(ValidationError) as caught:
        rules.check_json(value)
    assert [error["loc"] for error in caught.value.errors()] == [("a", 1), ("b",), ("c",), ("d", "e"), ("f",)]


def test_a_sample_nested_beyond_reason_is_refused_without_recursing():
    value: list = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValidationError):
        rules.check_json(value)
    while value:  # Python frees nested lists recursively
        value = value.pop()


def test_patterns_of_the_schema_are_anchored_at_both_ends():
    for pattern in (rules.NAME_PATTERN, rules.SECRET_NAME_PATTERN, rules.ENV_NAME_PATTERN):
        assert re.fullmatch(r"\^.*\$", pattern)
