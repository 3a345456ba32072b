"""JSON Schema of cortex.yaml, for editors. What a schema cannot say, such as min ≤ max, `loading` checks."""

from __future__ import annotations

from typing import Any

from cortex.spec.models import RESOURCES


def json_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) of a whole file. Everything that `loading.load` accepts is valid by it."""
    definitions: dict[str, Any] = {}
    for kind, model in RESOURCES.items():
        schema = model.model_json_schema(ref_template="#/$defs/{model}")
        for name, block in schema.pop("$defs", {}).items():
            definitions[name] = _block(block)
        definitions[kind] = _resource(kind, _block(schema))
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
        "$defs": definitions,
    }


def _resource(kind: str, block: dict[str, Any]) -> dict[str, Any]:
    stated = {"kind": {"const": kind, "description": "What this resource is."}}
    return {
        **block,
        "properties": stated | block["properties"],
        "required": ["kind", *block["required"]],
    }


def _block(schema: dict[str, Any]) -> dict[str, Any]:
    """Return pydantic's schema of a block without its titles, and with null wherever a default stands in for it."""
    required = schema.get("required", [])
    properties = {
        name: field if name in required else _or_null(field)
        for name, field in ((name, _untitled(field)) for name, field in schema["properties"].items())
    }
    return {**_untitled(schema), "properties": properties}


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an optional field, which may be null."""
    about = {key: value for key, value in field.items() if key in ("description", "default")}
    rule = {key: value for key, value in field.items() if key not in about}
    choices = rule.pop("anyOf", [rule] if rule else [])
    if not choices:
        return about
    return {**about, "anyOf": [*(choice for choice in choices if choice != {"type": "null"}), {"type": "null"}]}


def _untitled(schema: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "title"}
