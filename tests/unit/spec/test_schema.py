"""Tests of `cortex.spec.schema`; that it takes what `load` takes is checked by the `accepted` fixture everywhere."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cortex.spec.models import BLOCKS, RESOURCES
from cortex.spec.schema import json_schema

IRIS = {"kind": "api", "name": "iris", "model": "iris.onnx"}


def with_(**fields):
    return [IRIS | fields]


@pytest.mark.parametrize(
    "data",
    [
        [IRIS],
        [{"kind": "deployment", "name": "flowers"}],
        [{"kind": "deployment", "name": "flowers"}, IRIS],
        with_(compute={"cpu": 0.2, "mem": 128974848}),
        with_(compute={"cpu": "200m", "mem": "1.5Gi"}, timeout="1h30m", max_body="1e6"),
        with_(env={"A": "x", "B": 1, "C": True, "D": None, "E": {"secret": "s"}}),
        with_(retry=False, batching="off", timeout=30),
        with_(batching="on"),
        with_(sample={"any": ["thing", None]}),
        with_(cpu=1, mem="1Gi", gpu=None, min_replicas=2, model_type="regression"),
        with_(tracker=None, compute=None, env=None, sample=None, request_handler=None),
        with_(request_handler="./src/handler.py"),
        *(with_(model=model) for model in ["/srv/m", "../m", "file:///m", "s3://b/m", "gs://b/m/", "https://h/m?x=1"]),
    ],
)
def test_what_may_be_written_is_valid(data, validator, accepted):
    validator.validate(data)
    accepted(json.dumps(data))


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        IRIS,
        None,
        "text",
        [None],
        [{"name": "iris", "model": "m"}],
        [{"kind": "apis", "name": "iris", "model": "m"}],
        [{"kind": "api", "model": "m"}],
        [{"kind": "api", "name": "iris"}],
        [{"kind": "deployment"}],
        [{"kind": "deployment", "name": "a", "model": "m"}],
        [{"kind": "deployment", "name": "a"}, {"kind": "deployment", "name": "b"}],
        with_(name="Iris"),
        with_(name=123),
        with_(name="a" * 43),
        with_(model=""),
        with_(model="http://host/m"),
        with_(model="s3://bucket"),
        with_(model="~/m"),
        with_(model_format="pytorch"),
        with_(request_handler="handler"),
        with_(request_handler="../handler.py"),
        with_(request_handler="/handler.py"),
        with_(concurrency=1),
        with_(min_replicas="2"),
        with_(compute={"max_replica": 1}),
        with_(compute={"max_replicas": 0}),
        with_(compute={"min_replicas": "2"}),
        with_(compute={"min_replicas": 2.5}),
        with_(compute={"min_replicas": True}),
        with_(compute={"cpu": 0}),
        with_(compute={"cpu": "0m"}),
        with_(compute={"cpu": "fast"}),
        with_(compute={"cpu": True}),
        with_(compute={"mem": "512MB"}),
        with_(compute={"mem": "1 Gi"}),
        with_(compute={"mem": "-1Gi"}),
        with_(compute={"mem": 512}),
        with_(compute={"gpu": -1}),
        with_(compute=[]),
        with_(tracker={}),
        with_(tracker={"model_type": "classify"}),
        with_(tracker={"model_type": "regression", "field": "x"}),
        with_(retry="sometimes"),
        with_(batching="always"),
        with_(env={"1A": "x"}),
        with_(env={"A-B": "x"}),
        with_(env={"CORTEX_API": "x"}),
        with_(env={"A": []}),
        with_(env={"A": {"secrets": "x"}}),
        with_(env={"A": {}}),
        with_(timeout="soon"),
        with_(timeout="0s"),
        with_(timeout="5 min"),
        with_(max_body="100MB"),
    ],
)
def test_obvious_mistakes_are_refused(data, validator):
    assert not validator.is_valid(data)


def test_every_field_is_described_and_optional_ones_say_their_default():
    definitions = json_schema()["$defs"]
    for name, model in {**RESOURCES, **{block.__name__: block for block in BLOCKS.values()}}.items():
        properties = definitions[name]["properties"]
        here = {field for field, schema in properties.items() if not schema.get("deprecated")}
        assert here - {"kind"} == set(model.model_fields)
        assert all(field["description"] for field in properties.values())
    assert definitions["ComputeSpec"]["properties"]["cpu"]["default"] == "200m"
    assert definitions["api"]["properties"]["timeout"]["default"] == "10m"


def test_the_schema_is_json_and_each_call_makes_a_new_one():
    schema = json_schema()
    schema["$defs"].clear()
    assert json.loads(json.dumps(json_schema())) == json_schema() != schema


def test_unknown_keys_are_refused_everywhere():
    for definition in json_schema()["$defs"].values():
        assert definition["additionalProperties"] is False


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[3] / "examples").glob("*/*.yaml")), ids=str)
def test_the_examples_are_valid(file, validator, accepted):
    """As an editor sees them."""
    validator.validate(YAML(typ="safe").load(file))
    accepted(file.read_text())
