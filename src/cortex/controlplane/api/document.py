"""The OpenAPI document of the API, built from the message types themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI

from cortex.wire.operator import Failure


class Documented:
    """
    What each route takes and gives, for the OpenAPI document.

    The types are kept here, and the routes know their numbers: FastAPI writes what a route carries as JSON.
    """

    def __init__(self) -> None:
        self.types: list[tuple[Any, Any, str]] = []
        """Type of the answer and of the body, None where there is none; media type of the answer."""

    def __call__(self, answer: Any, *, body: Any = None, media_type: str = "application/json") -> dict[str, Any]:
        """Further arguments for the decorator of a route."""
        self.types.append((answer, body, media_type))
        return {"openapi_extra": {_TYPES: len(self.types) - 1}, "response_model": None}


_TYPES = "x-cortex-types"


def openapi(app: FastAPI, types: Sequence[tuple[Any, Any, str]]) -> dict[str, Any]:
    if app.openapi_schema is None:
        from fastapi.openapi.utils import get_openapi

        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _fill_in_types(document, types)
        app.openapi_schema = document
    return app.openapi_schema


def _fill_in_types(document: dict[str, Any], types: Sequence[tuple[Any, Any, str]]) -> None:
    named = [kind for answer, body, _ in types for kind in (answer, body) if kind not in (None, bytes, str)]
    found, components = msgspec.json.schema_components([*named, Failure], ref_template="#/components/schemas/{name}")
    schemas = iter(found)

    def content(kind: Any, media_type: str) -> dict[str, Any]:
        if kind is bytes:
            return {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        return {media_type: {"schema": {"type": "string"} if kind is str else next(schemas)}}

    contents = [
        (
            {} if answer is None else content(answer, media_type),
            None if body is None else content(body, "application/json"),
        )
        for answer, body, media_type in types
    ]
    for operation in (o for path in document["paths"].values() for o in path.values()):
        answer, body = contents[operation.pop(_TYPES)]
        ok = next(status for status in operation["responses"] if status.startswith("2"))
        operation["responses"] = {
            ok: {"description": "Done.", **({"content": answer} if answer else {})},
            "default": {
                "description": "What went wrong.",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}},
            },
        }
        if body is not None:
            operation["requestBody"] = {"required": True, "content": body}
    document["components"] = {
        "schemas": components,
        "securitySchemes": {
            "token": {
                "type": "http",
                "scheme": "bearer",
                "description": "The home's file `token`, or one of `cortex token create`.",
            }
        },
    }
    document["security"] = [{"token": []}]
