"""The application: who is let in, and which groups of routes there are."""

from __future__ import annotations

from fastapi import Depends, FastAPI, Response
from starlette.exceptions import HTTPException

from cortex.controlplane.api.access import AccessControl
from cortex.controlplane.api.apis import api_routes
from cortex.controlplane.api.bodies import as_json
from cortex.controlplane.api.deployments import blob_routes, deployment_routes
from cortex.controlplane.api.document import Documented, openapi
from cortex.controlplane.api.events import event_routes
from cortex.controlplane.api.operator import Operator
from cortex.controlplane.api.process import process_routes
from cortex.controlplane.api.refusals import add_error_handlers
from cortex.controlplane.api.secrets import secret_routes
from cortex.controlplane.api.tokens import token_routes
from cortex.version import __version__

GROUPS = (process_routes, blob_routes, deployment_routes, api_routes, event_routes, secret_routes, token_routes)


def build_app(operator: Operator, metrics_token: str | None = None) -> FastAPI:
    """
    The application; every route needs a bearer token of the role that `access.RULES` says.

    Args:
        metrics_token: opens `/metrics` too, and nothing else.
    """
    access = AccessControl(operator.tokens, operator.audit, metrics_token)

    def goes_on() -> None:
        if operator.stopping:
            raise HTTPException(503, "the control plane is stopping")

    app = FastAPI(
        title="Cortex control plane",
        version=__version__,
        description="Deploys, describes and removes APIs. Bound to loopback; every call carries a token.",
        dependencies=[Depends(access.check), Depends(goes_on)],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,  # FastAPI's own route would need no token
    )
    add_error_handlers(app)
    app.add_middleware(access.audited)
    documented = Documented()
    for routes in GROUPS:
        app.include_router(routes(operator, documented))
    app.openapi = lambda: openapi(app, documented.types)  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    def document() -> Response:
        return as_json(app.openapi())

    return app
