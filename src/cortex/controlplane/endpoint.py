"""
The OpenAPI document of a deployed api, for people who generate clients from it or test it. Pure.

It says what `docs` of the prediction API say, filled in with the model's signature: which JSON fits each input, what
comes back, which errors there are. What a handler takes and gives is its own business: then any body is described.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np

from cortex.ids import api_key, route_path
from cortex.wire.operator import ApiStatus
from cortex.wire.signature import Dim, TensorSpec

Schema: TypeAlias = dict[str, Any]

_ERRORS: Mapping[int, str] = {
    400: "The body cannot be read.",
    408: "The request did not arrive in time.",
    413: "The body is larger than `max_body` of the api.",
    415: "The content type or the encoding of the body is not taken.",
    422: "The sample does not fit the model.",
    500: "The handler or the model failed; the traceback is in the log of the api.",
    502: "The replica died with the request, which could not be delivered again.",
    503: "No replica is ready, or all are busy; `retry-after` says when to try again.",
    504: "No answer within `timeout` of the api.",
}
_BINARY = {"type": "string", "format": "binary"}
_BYTES_IN_JSON: Schema = {
    "type": "object",
    "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
    "required": ["b64"],
    "additionalProperties": False,
}


def describe_endpoint(api: ApiStatus) -> dict[str, Any]:
    """
    An OpenAPI 3.1 document with one path.

    Args:
        api: with `spec` and `signature`, as an api is shown by itself.
    """
    path = route_path(api_key(api.deployment, api.name))
    has_handler = bool(api.spec.get("request_handler"))
    sample = api.spec.get("sample")
    signature = api.signature
    body: Schema = {}
    answer: Schema = {}
    if signature is not None and not has_handler:
        body = sample_schema(signature.inputs)
        answer = prediction_schema(signature.outputs, by_name=signature.key is not None)
    example = {} if sample is None or isinstance(sample, str) else {"example": sample}
    content: Schema = {"application/json": {"schema": body, **example}}
    for media_type in _OTHER_BODIES if has_handler else ("application/x-npy",):
        content[media_type] = {"schema": _BINARY if media_type != "text/plain" else {"type": "string"}}
    name = f"{api.deployment}/{api.name}"
    return {
        "openapi": "3.1.0",
        "info": {"title": name, "version": api.version, "description": f"Predictions of {name}, served by Cortex."},
        "servers": [{"url": api.endpoint.removesuffix(path)}],
        "paths": {
            path: {
                "get": {
                    "operationId": "describe",
                    "summary": "What the model takes and gives, and how to call it.",
                    "responses": {"200": _answered("The signature.", {"type": "object"}), **_errors((400, 408, 503))},
                },
                "post": {
                    "operationId": "predict",
                    "summary": "Predict for one sample.",
                    "parameters": [
                        {
                            "name": "x-request-id",
                            "in": "header",
                            "description": "Comes back with the answer and stands in the log.",
                            "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
                        },
                        {
                            "name": "debug",
                            "in": "query",
                            "description": "Log the sample and each step's value under the request's id.",
                            "schema": {"type": "boolean"},
                        },
                    ],
                    "requestBody": {"required": True, "content": content},
                    "responses": _predicted(answer, has_handler),
                },
            }
        },
        "components": {"schemas": {"Error": _ERROR}},
    }


_OTHER_BODIES = ("application/x-npy", "image/*", "audio/*", "application/octet-stream", "text/plain")

_ERROR: Schema = {
    "type": "object",
    "description": "What went wrong; facts that depend on the error stand beside these.",
    "properties": {
        "error": {"type": "string", "description": "A stable code.", "pattern": "^[a-z0-9-]+$"},
        "message": {"type": "string"},
        "request_id": {"type": "string"},
    },
    "required": ["error", "message", "request_id"],
}


def _predicted(answer: Schema, has_handler: bool) -> Schema:
    responses = {"200": _answered("The prediction.", answer), **_errors(_ERRORS)}
    if has_handler:  # which answers with any status and content it likes
        responses["default"] = {"description": "What the handler answers itself.", "headers": _HEADERS}
    return responses


_HEADERS: Schema = {
    "x-request-id": {"required": True, "schema": {"type": "string"}},
    "x-cortex-version": {"description": "Version that answered.", "schema": {"type": "string"}},
}


def _answered(what: str, schema: Schema) -> Schema:
    return {"description": what, "headers": _HEADERS, "content": {"application/json": {"schema": schema}}}


def _errors(statuses: Sequence[int] | Mapping[int, str]) -> Schema:
    error = {"$ref": "#/components/schemas/Error"}
    return {str(status): _answered(_ERRORS[status], error) for status in statuses}


# ---- samples ----------------------------------------------------------------------------------------------------


def sample_schema(inputs: Sequence[TensorSpec]) -> Schema:
    """
    Which JSON samples fit a model without a handler, in the model's own form.

    Tables of records, and the envelopes of other systems, are taken besides.
    """
    needed = [spec for spec in inputs if not spec.optional]
    named: Schema = {
        "type": "object",
        "properties": {spec.name: _fed(spec) for spec in inputs},
        "required": [spec.name for spec in needed],
        "additionalProperties": False,
    }
    nameless = needed if len(needed) == 1 else inputs if len(inputs) == 1 else []
    if nameless:  # what names no input is for the only one that it can be for
        return {"anyOf": [_fed(nameless[0]), named]}
    return named


def _fed(spec: TensorSpec) -> Schema:
    """One input: the shapes that the API takes for it, from the plainest to the most forgiving."""
    if spec.kind != "tensor":
        return {}
    shape, element = spec.shape, _element(spec.dtype)
    if shape is None:
        return {"description": f"{spec.dtype} values, nested as deep as you like"}
    left_out = [index for index, dim in enumerate(shape) if dim == 1 or (index == 0 and not isinstance(dim, int))]
    forms = [
        _nested([dim for index, dim in enumerate(shape) if index not in absent], element)
        for number in range(min(len(left_out), _MOST_LEFT_OUT) + 1)
        for absent in combinations(left_out, number)
    ]
    count = math.prod(dim if isinstance(dim, int) else 1 for dim in shape)
    forms.append(_nested((count,), element))
    if count == 1:
        forms.append(element)
    forms += _empty_forms(shape)
    if spec.optional:
        forms.append({"type": "null"})
    return _any_of(forms)


_MOST_LEFT_OUT = 4
"""Dimensions of 1 that a sample may lack, as far as the document goes: nobody reads all ways to leave out more."""


def _empty_forms(shape: Sequence[Dim]) -> list[Schema]:
    """Lists of nothing, which do not say what would be in their items."""
    nothing: Schema = {"type": "array", "maxItems": 0}
    forms = []
    for outer in range(len(shape) - 1):
        if shape[outer] == 0 or not isinstance(shape[outer], int):
            forms.append(_nested(shape[:outer], nothing))
            if outer and (shape[0] == 1 or not isinstance(shape[0], int)):
                forms.append(_nested(shape[1:outer], nothing))
    return forms


def _any_of(forms: Sequence[Schema]) -> Schema:
    different = [form for number, form in enumerate(forms) if form not in forms[:number]]
    return different[0] if len(different) == 1 else {"anyOf": different}


def _nested(shape: Sequence[Dim], element: Schema, *, may_be_empty: bool = False) -> Schema:
    """
    Lists of a shape.

    Args:
        may_be_empty: whether a list may be empty in which further lists are: an answer says nothing of their sizes.
    """
    for depth, dim in reversed(list(enumerate(shape, start=1))):
        element = {"type": "array", "items": element}
        if isinstance(dim, int):
            element.update(minItems=dim, maxItems=dim)
        elif depth < len(shape) and not may_be_empty:
            element["minItems"] = 1  # without a single item the inner sizes are unknown
    return element


def _element(dtype: str) -> Schema:
    if dtype == "string":
        return {"anyOf": [{"type": "string"}, _BYTES_IN_JSON]}
    if dtype == "bool":
        return {"enum": [True, False, 0, 1]}
    if dtype == "bfloat16" or dtype.startswith("float"):
        largest = 3.3895313892515355e38 if dtype == "bfloat16" else float(np.finfo(dtype).max)
        return {"type": ["number", "boolean", "null"], "minimum": -largest, "maximum": largest}
    limits = np.iinfo(dtype)
    return {"type": ["integer", "boolean"], "minimum": int(limits.min), "maximum": int(limits.max)}


# ---- predictions ------------------------------------------------------------------------------------------------


def prediction_schema(outputs: Sequence[TensorSpec], *, by_name: bool) -> Schema:
    """
    What comes back without a handler.

    Args:
        by_name: an object of the outputs (TensorFlow), else a list in model order (ONNX).
    """
    given = [_given(spec, presented=by_name) for spec in outputs]
    if by_name:
        names = [spec.name for spec in outputs]
        return {"type": "object", "properties": dict(zip(names, given, strict=True)), "required": names}
    # `prefixItems` would be exact; few tools that read such documents know it.
    return {"type": "array", "items": _any_of(given), "minItems": len(given), "maxItems": len(given)}


def _given(spec: TensorSpec, *, presented: bool) -> Schema:
    """One output. `presented`: of one row without the batch dimension, and with one item if it has no dimension."""
    # Models are loose about the sizes that they declare for outputs, so only the nesting is promised.
    if spec.kind != "tensor" or spec.shape is None:
        return {}
    rank = max(1, len(spec.shape)) if presented else len(spec.shape)
    ranks = {rank, rank - 1} if presented and rank >= 2 else {rank}
    scalar = _scalar(spec.dtype)
    return _any_of([_nested([None] * rank, scalar, may_be_empty=True) for rank in sorted(ranks, reverse=True)])


def _scalar(dtype: str) -> Schema:
    if dtype == "string":
        return {"anyOf": [{"type": "string"}, _BYTES_IN_JSON]}
    if dtype == "bool":
        return {"type": "boolean"}
    if dtype in {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}:
        return {"type": "integer"}
    return {"type": ["number", "null"]}
