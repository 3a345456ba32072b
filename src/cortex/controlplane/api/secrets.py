"""Secrets: their values only come in."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from cortex.controlplane.api.bodies import as_json, read_body
from cortex.controlplane.api.document import Documented
from cortex.controlplane.api.operator import Operator
from cortex.wire.operator import SecretStatus, SecretValue


def secret_routes(operator: Operator, documented: Documented) -> APIRouter:
    router = APIRouter(prefix="/v1/secrets")

    @router.get("", **documented(tuple[SecretStatus, ...]))
    def secret_list() -> Response:
        return as_json(operator.secrets.all())

    @router.put("/{name}", **documented(SecretStatus, body=SecretValue))
    async def set_secret(name: str, request: Request) -> Response:
        given = await read_body(request, SecretValue)
        return as_json(await run_in_threadpool(operator.secrets.set, name, given.value))

    @router.delete("/{name}", status_code=204, **documented(None))
    def delete_secret(name: str, force: bool = False) -> Response:
        operator.secrets.delete(name, force=force)
        return Response(status_code=204)

    return router
