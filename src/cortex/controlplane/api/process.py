"""The control plane itself: what it is, what it measures, and its end."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from cortex.controlplane.api.access import METRICS_PATH
from cortex.controlplane.api.bodies import as_json, read_body
from cortex.controlplane.api.document import Documented
from cortex.controlplane.api.operator import Operator
from cortex.metrics.exposition import CONTENT_TYPE
from cortex.wire.operator import Info, StopRequest


def process_routes(operator: Operator, documented: Documented) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/info", **documented(Info))
    def info() -> Response:
        return as_json(operator.info())

    @router.get(METRICS_PATH, **documented(str, media_type="text/plain"))
    def metrics() -> Response:
        return Response(operator.metrics(), headers={"content-type": CONTENT_TYPE})

    @router.post("/v1/stop", **documented(Info, body=StopRequest))
    async def stop(request: Request) -> Response:
        wanted = await read_body(request, StopRequest)
        return as_json(await run_in_threadpool(operator.stop, wanted))

    return router
