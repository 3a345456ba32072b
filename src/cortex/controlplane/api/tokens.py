"""Tokens of operators, and who changed what with them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from cortex.controlplane.api.bodies import as_json, read_body
from cortex.controlplane.api.document import Documented
from cortex.controlplane.api.operator import Operator
from cortex.wire.operator import MOST_EVENTS, AuditLine, CreatedToken, TokenRequest, TokenStatus


def token_routes(operator: Operator, documented: Documented) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/tokens", **documented(tuple[TokenStatus, ...]))
    def token_list() -> Response:
        return as_json(operator.tokens.all())

    @router.post("/tokens/{name}", **documented(CreatedToken, body=TokenRequest))
    async def create_token(name: str, request: Request) -> Response:
        wanted = await read_body(request, TokenRequest)
        return as_json(await run_in_threadpool(operator.tokens.create, name, wanted.role))

    @router.delete("/tokens/{name}", status_code=204, **documented(None))
    def delete_token(name: str) -> Response:
        operator.tokens.delete(name)
        return Response(status_code=204)

    @router.get("/audit", **documented(tuple[AuditLine, ...]))
    def audit(limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = 100) -> Response:
        return as_json(operator.audit.lines(limit))

    return router
