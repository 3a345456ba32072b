"""What is told of apis: how they are, what they write, what they were."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from cortex.controlplane.api.bodies import as_json
from cortex.controlplane.api.document import Documented
from cortex.controlplane.api.operator import Operator
from cortex.controlplane.api.refusals import NotFound, checked_name
from cortex.controlplane.endpoint import describe_endpoint
from cortex.ids import ReplicaId, api_key
from cortex.wire.agent import LogLines, ReadLogs
from cortex.wire.operator import ApiStatus, HistoryLine, Watched

MAX_WAIT_S = 60.0


def api_routes(operator: Operator, documented: Documented) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/apis", **documented(tuple[ApiStatus, ...]))
    def apis(deployment: str | None = None) -> Response:
        return as_json(operator.apis(deployment))

    @router.get("/watch", **documented(Watched))
    async def watch(
        token: str = "",
        timeout_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 30.0,
        deployment: str | None = None,
    ) -> Response:
        return as_json(await operator.watch(token, timeout_s, deployment))

    @router.get("/apis/{deployment}/{name}", **documented(ApiStatus))
    def api(deployment: str, name: str) -> Response:
        return as_json(_known(operator, deployment, name))

    @router.get("/apis/{deployment}/{name}/openapi.json", **documented(dict[str, Any]))
    def endpoint(deployment: str, name: str) -> Response:
        return as_json(describe_endpoint(_known(operator, deployment, name)))

    @router.get("/apis/{deployment}/{name}/logs", **documented(LogLines))
    def logs(
        deployment: str,
        name: str,
        since_wall_s: float | None = None,
        replica: str | None = None,
        version: str | None = None,
        request: str | None = None,
        tail: Annotated[int | None, Query(ge=0, le=1_000_000)] = None,
        cursor: str = "",
        wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0.0,
    ) -> Response:
        _known(operator, deployment, name)
        key = api_key(deployment, name)
        revisions = operator.revisions(key, version) if version else None
        if version and not revisions:
            message = f'api "{deployment}/{name}" has no version "{version}"'
            raise NotFound("unknown-version", f"{message}: `cortex history {deployment}/{name}` lists them")
        return as_json(
            operator.logs(
                ReadLogs(
                    api=key,
                    since_wall_s=since_wall_s,
                    replica=ReplicaId(replica) if replica else None,
                    revisions=revisions,
                    request=request,
                    tail=tail,
                    cursor=cursor,
                    wait_s=wait_s,
                )
            )
        )

    @router.get("/apis/{deployment}/{name}/history", **documented(tuple[HistoryLine, ...]))
    def history(deployment: str, name: str) -> Response:
        lines = operator.history(api_key(checked_name(deployment), checked_name(name)))
        if not lines:
            raise _unknown(deployment, name)
        return as_json(lines)

    return router


def _known(operator: Operator, deployment: str, name: str) -> ApiStatus:
    status = operator.api(checked_name(deployment), checked_name(name))
    if status is None:
        raise _unknown(deployment, name)
    return status


def _unknown(deployment: str, name: str) -> NotFound:
    return NotFound("unknown-api", f'there is no api "{name}" in deployment "{deployment}"')
