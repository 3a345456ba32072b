"""Tests of `cortex.spec.explanation`, on the JSON of a `ProjectSpec`; of files see `test_loading_errors.py`."""

import pytest
from pydantic import ValidationError

from cortex.errors import Problem
from cortex.spec.explanation import EXAMPLES, explain
from cortex.spec.models import BLOCKS, ApiSpec, ProjectSpec, SecretRef
from cortex.spec.problems import REFERENCES

IRIS = {"name": "iris", "model": "iris.onnx"}


def explained(data) -> tuple[Problem, ...]:
    with pytest.raises(ValidationError) as caught:
        ProjectSpec.model_validate(data)
    return explain(caught.value, data)


def test_a_project_that_came_by_http_is_explained_like_a_file():
    assert explained({"deployment": "flowers", "apis": [IRIS | {"compute": {"max_replica": 3}}]}) == (
        Problem(
            reference="unknown-field",
            message='"max_replica" is not a field of compute',
            subject='api "iris": compute: max_replica',
            path=("apis", 0, "compute", "max_replica"),
            hint='did you mean "max_replicas"?',
        ),
    )


@pytest.mark.parametrize(
    ("data", "reference", "subject", "message"),
    [
        ({"deploymnt": "x"}, "unknown-field", "deploymnt", '"deploymnt" is not a field of a project'),
        ({"deployment": "X"}, "bad-name", "deployment", '"X" is not a name'),
        ({"apis": {}}, "wrong-type", "apis", "expected a list, found a mapping"),
        ({"apis": [5]}, "wrong-type", "api at index 0", "expected a mapping, found the number 5"),
        ({"apis": [{"model": "m"}]}, "missing-field", "api at index 0: name", '"name" is missing'),
        ({"apis": [IRIS, IRIS]}, "duplicate-name", 'api "iris": name', 'two apis are named "iris"'),
        ({"deployment": "healthz"}, "reserved-name", "deployment", 'no deployment can be named "healthz"'),
        ({"apis": [IRIS | {"name": "readyz"}]}, "reserved-name", 'api "readyz": name', 'no api can be named "readyz"'),
        (
            {"deployment": "a", "apis": [IRIS | {"name": "v2"}]},
            "reserved-name",
            'api "v2": name',
            'no api can be named "v2" here: <endpoint>/v2 belongs to the Open Inference Protocol',
        ),
        ([], "wrong-type", "", "expected a mapping, found a list"),
        ({"apis": [IRIS | {"cpu": 1}]}, "misplaced-field", 'api "iris": cpu', '"cpu" is not a field of an api'),
        (
            {"apis": [IRIS | {"env": {"A": {"secret": ""}}}]},
            "bad-text",
            'api "iris": env: A: secret',
            "expected a string that is not empty",
        ),
        (
            {"apis": [IRIS | {"compute": {"cpu": float("inf")}}]},
            "bad-quantity",
            'api "iris": compute: cpu',
            "expected a finite number, found inf",
        ),
    ],
)
def test_each_mistake_has_reference_subject_and_message(data, reference, subject, message):
    (problem,) = explained(data)
    assert (problem.reference, problem.subject) == (reference, subject)
    assert problem.message.startswith(message)
    assert problem.reference in REFERENCES


def test_bounds_that_only_the_default_breaks_are_told_at_what_was_written():
    (problem,) = explained({"apis": [IRIS | {"compute": {"min_replicas": 150}}]})
    assert problem.path == ("apis", 0, "compute", "min_replicas")
    assert "which is 100 unless given" in problem.message


def test_what_follows_from_another_mistake_is_not_told():
    problems = explained({"apis": [IRIS | {"compute": {"min_replicas": "x"}}]})
    assert [problem.path for problem in problems] == [("apis", 0, "compute", "min_replicas")]


def test_every_field_has_an_example():
    fields = {name for model in (ApiSpec, SecretRef, *BLOCKS.values()) for name in model.model_fields}
    assert set(EXAMPLES) == fields | {"kind"}


def test_every_example_begins_with_its_field():
    for field, example in EXAMPLES.items():
        assert example.startswith(f"{field}:")


@pytest.mark.parametrize("field", sorted(set(EXAMPLES) - {"kind", "name", "model", "secret", "tf_signature_key"}))
def test_every_example_can_be_pasted(field, accepted):
    block = next((block for block, model in BLOCKS.items() if field in model.model_fields), None)
    lines = EXAMPLES[field].splitlines()
    if block:
        beside = ["model_type: regression"] if block == "tracker" and field != "model_type" else []
        lines = [f"{block}:", *(f"  {line}" for line in [*beside, *lines])]
    accepted("\n  ".join(["- kind: api", "name: iris", "model: models/iris", *lines]))
