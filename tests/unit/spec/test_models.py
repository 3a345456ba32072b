"""Tests of `cortex.spec.models`."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cortex.spec.models import BLOCKS, KEPT_AS_WRITTEN, ApiSpec, ComputeSpec, DeploymentSpec, ProjectSpec, SecretRef
from cortex.spec.quantities import Cpu, Duration, Memory, Size, WatchTime

# Machines may be busy; the timeout of pytest ends what hangs.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SMALLEST = {"name": "iris", "model": "models/iris"}
EVERYTHING = {
    "name": "iris",
    "model": "s3://bucket/iris",
    "model_format": "tensorflow",
    "request_handler": "./handler.py",
    "tf_signature_key": "predict",
    "tracker": {"key": "class", "model_type": "classification"},
    "compute": {
        "min_replicas": 2,
        "max_replicas": 10,
        "init_replicas": 3,
        "target_cpu_utilization": 120,
        "target_in_flight": 0.5,
        "downscale_window": "45s",
        "idle_timeout": "90s",
        "cpu": "0.5",
        "gpu": 1,
        "mem": "512Mi",
        "concurrency": 8,
    },
    "sample": {"sepal_length": 5.2, "tags": [None, True, "x"]},
    "retry": "off",
    "env": {"LEVEL": "debug", "TOKEN": {"secret": "token"}},
    "timeout": "1m30s",
    "max_body": "1Gi",
    "batching": "off",
    "rollout": {"watch": "1m30s"},
}


def api(**fields) -> ApiSpec:
    return ApiSpec.model_validate(SMALLEST | fields)


def errors(model, data) -> list[tuple[str, tuple]]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(data)
    return [(error["type"], error["loc"]) for error in caught.value.errors()]


def test_an_api_with_only_a_name_and_a_model_has_every_documented_default():
    assert api().model_dump(mode="json") == {
        "name": "iris",
        "model": "models/iris",
        "model_format": None,
        "request_handler": None,
        "tf_signature_key": None,
        "tracker": None,
        "compute": {
            "min_replicas": 1,
            "max_replicas": 100,
            "init_replicas": 1,
            "target_cpu_utilization": 80,
            "target_in_flight": None,
            "downscale_window": None,
            "idle_timeout": "5m",
            "cpu": "200m",
            "gpu": 0,
            "mem": None,
            "concurrency": None,
        },
        "sample": None,
        "retry": "on",
        "env": {},
        "timeout": "10m",
        "max_body": "100Mi",
        "batching": "auto",
        "rollout": {"watch": "2m"},
    }


def test_code_reads_amounts_in_the_unit_that_the_name_says():
    spec = ApiSpec.model_validate(EVERYTHING)
    assert spec.compute.cpu_millis == 500
    assert spec.compute.mem_bytes == 512 * 1024**2
    assert spec.compute.downscale_window_s == 45
    assert spec.compute.idle_timeout_s == 90
    assert spec.timeout_s == 90
    assert spec.max_body_bytes == 1024**3


@pytest.mark.parametrize(("watch", "seconds"), [("2m", 120.0), (90, 90.0), (0, 0.0), ("0s", 0.0), ("1h", 3600.0)])
def test_a_new_version_is_watched_for_up_to_an_hour_or_not_at_all(watch, seconds):
    assert api(rollout={"watch": watch}).rollout.watch.seconds == seconds


@pytest.mark.parametrize("watch", ["61m", -1, "soon", True])
def test_no_other_watch_can_be_meant(watch):
    ((_kind, loc),) = errors(ApiSpec, SMALLEST | {"rollout": {"watch": watch}})
    assert loc == ("rollout", "watch")


def test_memory_that_was_not_requested_is_none():
    assert api().compute.mem_bytes is None


def test_the_users_spelling_is_kept_for_display():
    spec = api(compute={"cpu": "1000m", "mem": 128974848}, timeout=30, max_body="129e6")
    shown = spec.model_dump(mode="json")
    assert (shown["compute"]["cpu"], shown["compute"]["mem"]) == ("1000m", "128974848")
    assert (shown["timeout"], shown["max_body"]) == ("30", "129e6")


def test_specs_are_equal_if_their_amounts_are_however_they_are_spelled():
    assert api(compute={"cpu": "1"}, timeout="90s") == api(compute={"cpu": "1000m"}, timeout="1m30s")
    assert api(compute={"cpu": "1"}) != api(compute={"cpu": "1001m"})


def test_a_project_survives_the_way_to_the_control_plane():
    project = ProjectSpec.model_validate({"deployment": "flowers", "apis": [EVERYTHING, SMALLEST | {"name": "rose"}]})
    sent = json.dumps(project.model_dump(mode="json"))
    received = ProjectSpec.model_validate(json.loads(sent))
    assert received == project
    assert received.model_dump(mode="json") == project.model_dump(mode="json")
    assert ProjectSpec.model_validate_json(sent) == project


AMOUNTS = {
    "cpu": st.sampled_from(["200m", "1", 2, 0.25, "1e-1", "1n"]),
    "mem": st.sampled_from([None, "1Gi", 2**20, "1.5G", "129e6"]),
    "gpu": st.integers(0, 8),
    "min_replicas": st.integers(1, 50),
    "max_replicas": st.integers(50, 200),
    "concurrency": st.none() | st.integers(1, 64),
}


@unhurried
@given(st.fixed_dictionaries({}, optional=AMOUNTS), st.sampled_from(["30s", 5, 0.5]), st.booleans())
def test_any_valid_api_survives_json(compute, timeout, retry):
    spec = api(compute=compute, timeout=timeout, retry=retry)
    assert ApiSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


@pytest.mark.parametrize("field", sorted(set(ApiSpec.model_fields) - set(SMALLEST)))
def test_an_explicit_null_means_the_default(field):
    assert api(**{field: None}) == api()


@pytest.mark.parametrize("field", sorted(ComputeSpec.model_fields))
def test_an_explicit_null_means_the_default_in_compute_too(field):
    assert ComputeSpec.model_validate({field: None}) == ComputeSpec()


def test_an_explicit_null_in_env_is_no_variable():
    assert api(env={"A": None, "B": "x"}).env == {"B": "x"}


@pytest.mark.parametrize("field", ["name", "model"])
def test_an_explicit_null_for_a_required_field_is_a_missing_field(field):
    assert errors(ApiSpec, SMALLEST | {field: None}) == [("missing", (field,))]


def test_nulls_inside_of_a_sample_are_values():
    assert api(sample={"a": None}).sample == {"a": None}


def test_models_are_frozen():
    with pytest.raises(ValidationError):
        api().name = "other"


def test_unknown_fields_are_refused_in_every_block():
    data = SMALLEST | {"a": 1, "compute": {"b": 1}, "tracker": {"model_type": "regression", "c": 1}}
    assert sorted(loc for _, loc in errors(ApiSpec, data)) == [("a",), ("compute", "b"), ("tracker", "c")]


def test_init_replicas_is_min_replicas_unless_given():
    assert ComputeSpec.model_validate({"min_replicas": 3}).init_replicas == 3
    assert ComputeSpec.model_validate({"min_replicas": 3, "init_replicas": 5}).init_replicas == 5


def test_all_bounds_may_be_equal():
    assert ComputeSpec.model_validate({"min_replicas": 7, "init_replicas": 7, "max_replicas": 7}).max_replicas == 7


@unhurried
@given(st.integers(1, 120), st.integers(1, 120), st.integers(1, 120))
def test_only_min_init_max_in_this_order_are_accepted(low, start, high):
    data = {"min_replicas": low, "init_replicas": start, "max_replicas": high}
    if low <= start <= high:
        assert ComputeSpec.model_validate(data).model_dump(include=set(data)) == data
    else:
        assert {kind for kind, _ in errors(ComputeSpec, data)} <= {"replica-bounds", "default_factory_not_called"}


def test_an_api_that_may_sleep_has_no_gpu():
    assert ComputeSpec.model_validate({"min_replicas": 0}).min_replicas == 0
    assert ComputeSpec.model_validate({"min_replicas": 0, "gpu": 0}).gpu == 0
    assert errors(ComputeSpec, {"min_replicas": 0, "gpu": 1}) == [("sleep-with-gpu", ("gpu",))]


def test_bounds_are_checked_beside_other_mistakes():
    found = errors(ComputeSpec, {"min_replicas": 5, "max_replicas": 3, "cpu": "x"})
    assert {("replica-bounds", ("max_replicas",)), ("bad-quantity", ("cpu",))} <= set(found)


def test_the_default_maximum_bounds_the_minimum():
    assert ("replica-bounds", ("max_replicas",)) in errors(ComputeSpec, {"min_replicas": 101})


@pytest.mark.parametrize(
    "fields",
    [{"model": "a.onnx"}, {"model_format": "onnx"}, {"model": "a.zip", "model_format": "onnx"}],
)
def test_a_signature_key_with_an_onnx_model_is_refused(fields):
    found = errors(ApiSpec, SMALLEST | fields | {"tf_signature_key": "predict"})
    assert found == [("signature-key-with-onnx", ("tf_signature_key",))]


@pytest.mark.parametrize("fields", [{}, {"model": "a.zip"}, {"model": "a.onnx", "model_format": "tensorflow"}])
def test_a_signature_key_with_any_other_model_is_accepted(fields):
    assert api(**fields, tf_signature_key="predict").tf_signature_key == "predict"


def test_secrets_are_told_from_values():
    assert api(env=EVERYTHING["env"]).env == {"LEVEL": "debug", "TOKEN": SecretRef(secret="token")}


def test_the_location_of_a_model_may_be_shown_masked():
    assert api(model="https://host/m.onnx?signature=abc").masked_model == "https://host/m.onnx?***"


def test_a_sample_may_be_the_path_of_a_file():
    assert api(sample="flower.jpg").sample_path == "flower.jpg"
    assert api(sample=[1, 2]).sample_path is None


def test_a_project_without_anything_is_the_empty_default_deployment():
    assert ProjectSpec().model_dump(mode="json") == {"deployment": "default", "apis": []}


def test_two_apis_of_one_name_are_refused_at_the_later_ones():
    apis = [SMALLEST, SMALLEST | {"name": "rose"}, SMALLEST, SMALLEST]
    assert errors(ProjectSpec, {"apis": apis}) == [
        ("duplicate-name", ("apis", 2, "name")),
        ("duplicate-name", ("apis", 3, "name")),
    ]


def test_a_deployment_follows_the_rule_for_names():
    assert DeploymentSpec.model_validate({"name": "iris"}).name == "iris"
    assert errors(DeploymentSpec, {"name": "my_deployment"}) == [("bad-name", ("name",))]


def test_values_of_the_user_are_not_repeated_by_pydantic():
    with pytest.raises(ValidationError) as caught:
        api(env={"TOKEN": {"secret": ["hunter2"]}}, timeout="hunter2hunter2")
    assert "input_value" not in str(caught.value)


def test_every_quantity_and_duration_is_kept_as_written():
    amounts = {
        (*block, name)
        for block, model in [((), ApiSpec), *(((block,), model) for block, model in BLOCKS.items())]
        for name, field in model.model_fields.items()
        if any(kind.__name__ in str(field.annotation) for kind in (Cpu, Memory, Size, Duration, WatchTime))
    }
    assert amounts == KEPT_AS_WRITTEN


def test_every_field_is_described():
    for model in (ApiSpec, DeploymentSpec, ProjectSpec, SecretRef, *BLOCKS.values()):
        for name, field in model.model_fields.items():
            assert field.description, name
            assert field.description.endswith("."), name


@pytest.mark.parametrize("value", [0, -1, "4", True, float("inf"), float("nan"), 10**12])
def test_a_target_in_flight_is_a_number_above_0(value):
    assert [loc for _, loc in errors(ComputeSpec, {"target_in_flight": value})] == [("target_in_flight",)]
