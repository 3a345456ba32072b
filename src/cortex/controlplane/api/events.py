"""What was decided and what happened, in one time line."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from cortex.controlplane.api.apis import MAX_WAIT_S
from cortex.controlplane.api.bodies import as_json
from cortex.controlplane.api.document import Documented
from cortex.controlplane.api.operator import Operator
from cortex.controlplane.api.refusals import BadRequest, NotFound, checked_name
from cortex.ids import api_key
from cortex.wire.operator import MOST_EVENTS, EventPage


def event_routes(operator: Operator, documented: Documented) -> APIRouter:
    router = APIRouter(prefix="/v1/events")

    @router.get("", **documented(EventPage))
    async def events(
        deployment: str | None = None,
        api: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = 100,
        after: Annotated[str, Query(max_length=100)] = "",
        wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0.0,
    ) -> Response:
        if deployment is not None:
            checked_name(deployment)
        if api is not None and deployment is None:
            raise BadRequest("say which deployment the api is in")
        key = None if api is None or deployment is None else api_key(deployment, checked_name(api))
        page = await operator.events(deployment=deployment, api=key, limit=limit, after=after, wait_s=wait_s)
        if page is None:
            raise NotFound("unknown-api", f'there is no api "{api}" in deployment "{deployment}", nor was there lately')
        return as_json(page)

    return router
