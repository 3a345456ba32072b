"""What the tests of `cortex.spec` share."""

import jsonschema
import pytest

from cortex.spec.document import parse
from cortex.spec.loading import Loaded, load
from cortex.spec.schema import json_schema


@pytest.fixture(scope="session")
def validator():
    """The JSON Schema of cortex.yaml, ready to check plain data."""
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def accepted(validator):
    """Loads a text that has to be accepted; what is accepted has to be valid by the JSON Schema as well."""

    def check(text: str | bytes) -> Loaded:
        loaded = load(text, file="cortex.yaml")
        validator.validate(parse(text).value())
        return loaded

    return check


@pytest.fixture
def api(accepted):
    """Loads one api from the lines after its name and model."""

    def check(*lines: str):
        text = "\n  ".join(["- kind: api", "name: iris", "model: models/iris", *lines])
        return accepted(text).spec.apis[0]

    return check
