"""JSON Schema of cortex.yaml, for editors. What a schema cannot say, such as min ≤ max, `loading` checks."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from cortex.spec.models import BLOCKS, FLAT_FORM, RESOURCES
from cortex.spec.quantities import Cpu, Duration, Size


def json_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) of a whole file. Everything that `loading.load` accepts is valid by it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "cortex.yaml",
        "description": "A list of resources: the apis of a deployment, and optionally the deployment's name.",
        "type": "array",
        "minItems": 1,
        "items": {"oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in RESOURCES]},
        "contains": {"properties": {"kind": {"const": "deployment"}}, "required": ["kind"]},
        "minContains": 0,
        "maxContains": 1,
        "$defs": {
            **{kind: _resource(kind, model) for kind, model in RESOURCES.items()},
            **{model.__name__: _block(model) for model in BLOCKS.values()},
        },
    }


def _resource(kind: str, model: type[BaseModel]) -> dict[str, Any]:
    block = _block(model)
    stated = {"kind": {"const": kind, "description": "What this resource is."}}
    properties = stated | block["properties"] | (_flat_form() if kind == "api" else {})
    return {**block, "properties": properties, "required": ["kind", *block["required"]]}


def _flat_form() -> dict[str, Any]:
    """Return fields that may stand beside their block; editors offer them in the block."""
    flat = {}
    for name, block in FLAT_FORM.items():
        field = _block(BLOCKS[block])["properties"][name]
        rule = {key: value for key, value in field.items() if key not in ("description", "default")}
        choices = rule.pop("anyOf", [rule])
        nullable = [*(choice for choice in choices if choice != {"type": "null"}), {"type": "null"}]
        flat[name] = {"description": f"Belongs under `{block}:`.", "deprecated": True, "anyOf": nullable}
    return flat


def _block(model: type[BaseModel]) -> dict[str, Any]:
    """Return pydantic's schema of a block without titles, and with null wherever a default stands in for it."""
    schema = model.model_json_schema(ref_template="#/$defs/{model}")
    required = schema.get("required", [])
    properties = {
        name: _field(field, model.model_fields[name].default, is_required=name in required)
        for name, field in schema["properties"].items()
    }
    return {
        "type": "object",
        "description": schema["description"],
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _field(schema: dict[str, Any], default: object, *, is_required: bool) -> dict[str, Any]:
    about = {"description": schema["description"]}
    rule = {key: value for key, value in schema.items() if key not in ("title", "description", "default")}
    if is_required:
        return {**about, **rule}
    if isinstance(default, Cpu | Size | Duration):
        default = default.text
    if isinstance(default, str | int):
        about["default"] = default
    choices = rule.pop("anyOf", [rule] if rule else [])
    if not choices:
        return about
    return {**about, "anyOf": [*(choice for choice in choices if choice != {"type": "null"}), {"type": "null"}]}
