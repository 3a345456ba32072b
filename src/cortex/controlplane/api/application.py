"""The application: who is let in, and which groups of routes there are."""

from __future__ import annotations

import secrets

from fastapi import Depends, FastAPI, Request, Response
from starlette.exceptions import HTTPException

from cortex.controlplane.api.apis import api_routes
from cortex.controlplane.api.bodies import as_json
from cortex.controlplane.api.deployments import blob_routes, deployment_routes
from cortex.controlplane.api.document import Documented, openapi
from cortex.controlplane.api.events import event_routes
from cortex.controlplane.api.operator import Operator
from cortex.controlplane.api.process import METRICS_PATH, process_routes
from cortex.controlplane.api.refusals import add_error_handlers
from cortex.controlplane.api.secrets import secret_routes
from cortex.version import __version__

GROUPS = (process_routes, blob_routes, deployment_routes, api_routes, event_routes, secret_routes)


def build_app(operator: Operator, token: str, metrics_token: str | None = None) -> FastAPI:
    """
    The application; every route needs the bearer token.

    Args:
        metrics_token: opens `/metrics` too, and nothing else.
    """

    def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        accepted = [token]
        if metrics_token is not None and request.url.path == METRICS_PATH:
            accepted.append(metrics_token)
        if not any(secrets.compare_digest(given, f"Bearer {one}".encode()) for one in accepted):
            raise HTTPException(401, "the token is missing or wrong: it is in the file `token` of CORTEX_HOME")
        if operator.stopping:
            raise HTTPException(503, "the control plane is stopping")

    app = FastAPI(
        title="Cortex control plane",
        version=__version__,
        description="Deploys, describes and removes APIs. Bound to loopback; every call carries the home's token.",
        dependencies=[Depends(authorised)],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # FastAPI's own route would need no token
    )
    add_error_handlers(app)
    documented = Documented()
    for routes in GROUPS:
        app.include_router(routes(operator, documented))
    app.openapi = lambda: openapi(app, documented.types)  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    def document() -> Response:
        return as_json(app.openapi())

    return app
