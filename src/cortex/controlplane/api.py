"""
The control plane's HTTP API: parse, call one function, render. See `wire.operator` for the contract.

Bodies are msgspec types rather than pydantic models, because the CLI shares them and has to start in an instant; the
OpenAPI document is built from the same types.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cortex.artifacts.store import ArtifactStore
from cortex.controlplane.endpoint import describe_endpoint
from cortex.controlplane.secrets import Secrets
from cortex.errors import CortexError, Problem, Problems
from cortex.ids import ApiKey, DeploymentName, ReplicaId, api_key
from cortex.metrics.exposition import CONTENT_TYPE
from cortex.version import __version__
from cortex.wire.agent import LogLines, ReadLogs
from cortex.wire.framing import UNREADABLE
from cortex.wire.operator import (
    ApiStatus,
    DeployEvent,
    DeploymentStatus,
    DeployProgress,
    DeployRequest,
    DeployResult,
    Digests,
    Failure,
    HistoryLine,
    Info,
    Removed,
    SecretStatus,
    SecretValue,
    StopRequest,
    Watched,
)

log = logging.getLogger(__name__)

MAX_JSON_BYTES = 256 * 2**20
"""A deploy's body: samples travel in it."""
MAX_BLOB_BYTES = 64 * 2**30
PIECE_BYTES = 2**20
"""What is handed to a thread at once: a hash and a write of this take longer than getting there."""
MAX_DROPPED_BYTES = 2**30
"""How much of a refused body is read for nothing, so that the caller gets to read why."""
MAX_WAIT_S = 60.0
METRICS_PATH = "/metrics"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

T = TypeVar("T")


class Operator(Protocol):
    """What the API calls; `facade.ControlPlane` is it."""

    store: ArtifactStore
    secrets: Secrets

    @property
    def stopping(self) -> bool:
        """Whether it is on its way down: nothing is taken in any more."""
        ...

    def info(self) -> Info: ...
    def deploy(
        self, name: str, request: DeployRequest, emit: Callable[[DeployProgress], None], left: threading.Event
    ) -> DeployResult: ...
    def delete(self, deployment: DeploymentName, api: ApiKey | None) -> Removed | None: ...
    def deployments(self) -> tuple[DeploymentStatus, ...]: ...
    def apis(self, deployment: str | None) -> tuple[ApiStatus, ...]: ...
    def api(self, deployment: str, name: str) -> ApiStatus | None: ...
    async def watch(self, token: str, timeout_s: float, deployment: str | None) -> Watched: ...
    def revisions(self, api: ApiKey, version: str) -> tuple[str, ...]: ...
    def logs(self, request: ReadLogs) -> LogLines: ...
    def history(self, api: ApiKey) -> tuple[HistoryLine, ...]: ...
    def stop(self, request: StopRequest) -> Info: ...
    def metrics(self) -> str: ...


STATUS_OF: tuple[tuple[str, int], ...] = (
    ("not-found", 404),
    ("unknown-api", 404),
    ("unknown-deployment", 404),
    ("unknown-version", 404),
    ("unknown-secret", 404),
    ("secret-in-use", 409),
    ("secrets-unusable", 500),
    ("digest-mismatch", 422),
    ("upload-too-large", 413),
    ("store-unavailable", 507),
    ("disk-full", 507),
    ("state-busy", 503),
    ("state-unusable", 500),
    ("state-corrupt", 500),
    ("retry-later", 503),
    ("agent-unreachable", 503),
)
"""Reference of an error → HTTP status; anything else of ours is 422."""


class NotFound(CortexError):
    """There is no such thing here."""

    def __init__(self, reference: str, message: str) -> None:
        self.reference = reference  # type: ignore[misc]
        super().__init__(message)


class BadRequest(CortexError):
    """A call that cannot be meant, whatever is deployed."""

    def __init__(self, message: str, *, reference: str = "bad-request") -> None:
        self.reference = reference  # type: ignore[misc]
        super().__init__(message)


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
    _add_error_handlers(app)
    documented = _Documented()
    _add_routes(app, operator, documented)
    app.openapi = lambda: _openapi(app, documented.types)  # type: ignore[method-assign]
    return app


def _add_routes(app: FastAPI, operator: Operator, documented: _Documented) -> None:
    @app.get("/v1/info", **documented(Info))
    def info() -> Response:
        return _json(operator.info())

    @app.post("/v1/blobs/missing", **documented(Digests, body=Digests))
    async def missing_blobs(request: Request) -> Response:
        wanted = await _body(request, Digests)
        for digest in wanted.digests:
            _checked_digest(digest)
        missing = await run_in_threadpool(operator.store.missing, wanted.digests)
        return _json(Digests(digests=tuple(missing)))

    @app.put("/v1/blobs/{sha256}", status_code=204, **documented(None, body=bytes))
    async def put_blob(sha256: str, request: Request) -> Response:
        _checked_digest(sha256)
        await _store_blob(operator.store, sha256, request)
        return Response(status_code=204)

    @app.post(
        "/v1/deployments/{name}",
        **documented(DeployEvent, body=DeployRequest, media_type="application/x-ndjson"),
    )
    async def deploy(name: str, request: Request) -> Response:
        _checked_name(name)
        wanted = await _body(request, DeployRequest)
        if wanted.deployment != name:
            message = f'the body is about deployment "{wanted.deployment}", the path about "{name}"'
            raise BadRequest(message)
        return StreamingResponse(_deploy_events(operator, name, wanted), media_type="application/x-ndjson")

    @app.get("/v1/deployments", **documented(tuple[DeploymentStatus, ...]))
    def deployments() -> Response:
        return _json(operator.deployments())

    @app.delete("/v1/deployments/{name}", **documented(Removed))
    def delete_deployment(name: str) -> Response:
        removed = operator.delete(DeploymentName(_checked_name(name)), None)
        if removed is None:
            raise NotFound("unknown-deployment", f'deployment "{name}" is not deployed')
        return _json(removed)

    @app.delete("/v1/deployments/{name}/apis/{api}", **documented(Removed))
    def delete_api(name: str, api: str) -> Response:
        key = api_key(_checked_name(name), _checked_name(api))
        removed = operator.delete(DeploymentName(name), key)
        if removed is None:
            raise NotFound("unknown-api", f'there is no api "{api}" in deployment "{name}"')
        return _json(removed)

    @app.get("/v1/apis", **documented(tuple[ApiStatus, ...]))
    def apis(deployment: str | None = None) -> Response:
        return _json(operator.apis(deployment))

    @app.get("/v1/watch", **documented(Watched))
    async def watch(
        token: str = "",
        timeout_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 30.0,
        deployment: str | None = None,
    ) -> Response:
        return _json(await operator.watch(token, timeout_s, deployment))

    @app.get("/v1/apis/{deployment}/{name}", **documented(ApiStatus))
    def api(deployment: str, name: str) -> Response:
        return _json(_known(operator, deployment, name))

    @app.get("/v1/apis/{deployment}/{name}/openapi.json", **documented(dict[str, Any]))
    def endpoint(deployment: str, name: str) -> Response:
        return _json(describe_endpoint(_known(operator, deployment, name)))

    @app.get("/v1/apis/{deployment}/{name}/logs", **documented(LogLines))
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
        key = api_key(_checked_name(deployment), _checked_name(name))
        if operator.api(deployment, name) is None:
            raise NotFound("unknown-api", f'there is no api "{name}" in deployment "{deployment}"')
        revisions = operator.revisions(key, version) if version else None
        if version and not revisions:
            message = f'api "{deployment}/{name}" has no version "{version}"'
            raise NotFound("unknown-version", f"{message}: `cortex history {deployment}/{name}` lists them")
        return _json(
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

    @app.get("/v1/apis/{deployment}/{name}/history", **documented(tuple[HistoryLine, ...]))
    def history(deployment: str, name: str) -> Response:
        lines = operator.history(api_key(_checked_name(deployment), _checked_name(name)))
        if not lines:
            raise NotFound("unknown-api", f'there is no api "{name}" in deployment "{deployment}"')
        return _json(lines)

    @app.get("/v1/secrets", **documented(tuple[SecretStatus, ...]))
    def secret_list() -> Response:
        return _json(operator.secrets.all())

    @app.put("/v1/secrets/{name}", **documented(SecretStatus, body=SecretValue))
    async def set_secret(name: str, request: Request) -> Response:
        given = await _body(request, SecretValue)
        return _json(await run_in_threadpool(operator.secrets.set, name, given.value))

    @app.delete("/v1/secrets/{name}", status_code=204, **documented(None))
    def delete_secret(name: str, force: bool = False) -> Response:
        operator.secrets.delete(name, force=force)
        return Response(status_code=204)

    @app.get(METRICS_PATH, **documented(str, media_type="text/plain"))
    def metrics() -> Response:
        return Response(operator.metrics(), headers={"content-type": CONTENT_TYPE})

    @app.get("/openapi.json", include_in_schema=False)
    def openapi() -> Response:
        return _json(app.openapi())

    @app.post("/v1/stop", **documented(Info, body=StopRequest))
    async def stop(request: Request) -> Response:
        wanted = await _body(request, StopRequest)
        return _json(await run_in_threadpool(operator.stop, wanted))


async def _deploy_events(operator: Operator, name: str, request: DeployRequest) -> AsyncIterator[bytes]:
    """Lines of JSON while the deploy runs in a thread, which is told when the caller leaves."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[DeployEvent] = asyncio.Queue()
    left = threading.Event()

    def emit(event: DeployEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and so is whoever wanted to know
            loop.call_soon_threadsafe(events.put_nowait, event)

    def run() -> None:
        try:
            emit(operator.deploy(name, request, emit, left))
        except Problems as error:
            emit(DeployResult(problems=error.problems))
        except CortexError as error:
            emit(DeployResult(problems=(error.problem(),)))
        except Exception:
            log.exception("a deploy failed through a fault of ours")
            emit(DeployResult(problems=(OUR_FAULT,)))

    # A thread of its own: a deploy may take minutes, and neither uploads nor our own end shall wait for it.
    threading.Thread(target=run, name=f"deploy-{name}", daemon=True).start()
    try:
        while True:
            event = await events.get()
            yield _encode(event) + b"\n"
            if isinstance(event, DeployResult):
                return
    finally:
        left.set()


OUR_FAULT = Problem(
    reference="internal-error",
    message="the control plane failed; this is a fault of Cortex, not of your files",
    hint="the traceback is in logs/controlplane.log of CORTEX_HOME; please report it",
)


async def _store_blob(store: ArtifactStore, sha256: str, request: Request) -> None:
    """Stream a body into the store without holding it."""
    body = _Body(request)
    try:
        if await run_in_threadpool(store.missing, [sha256]):
            with await run_in_threadpool(store.writer, sha256, size_limit=MAX_BLOB_BYTES) as writer:
                async for piece in body.pieces():
                    await run_in_threadpool(writer.write, piece)
                await run_in_threadpool(writer.commit)
    finally:
        # Who is still sending when the connection closes may never read the answer.
        await body.drop_rest()


class _Body:
    """A request's body as it arrives."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._over = False

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it, in pieces of about `PIECE_BYTES`. Raises ClientDisconnect."""
        parts: list[bytes] = []
        size = 0
        while not self._over:
            chunk = await self._chunk()
            parts.append(chunk)
            size += len(chunk)
            if size >= PIECE_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
        if size:
            yield b"".join(parts)

    async def drop_rest(self) -> None:
        """Read on, up to `MAX_DROPPED_BYTES`, for nothing."""
        dropped = 0
        with contextlib.suppress(ClientDisconnect):
            while not self._over and dropped < MAX_DROPPED_BYTES:
                dropped += len(await self._chunk())

    async def _chunk(self) -> bytes:
        message = await self._request.receive()
        if message["type"] != "http.request":
            self._over = True
            raise ClientDisconnect
        self._over = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> Response:
        return _failure(error.status_code, _HTTP_CODES.get(error.status_code, "refused"), str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def bad_parameters(_request: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in error.errors())
        return _failure(422, "bad-parameters", wrong)

    @app.exception_handler(ClientDisconnect)
    async def caller_left(_request: Request, _error: ClientDisconnect) -> Response:
        return _failure(400, "broken-off", "the request ended before it was complete")

    @app.exception_handler(CortexError)
    async def our_error(_request: Request, error: CortexError) -> Response:
        problem = error.problem()
        status = dict(STATUS_OF).get(problem.reference, 422)
        problems = error.problems if isinstance(error, Problems) else (problem,)
        return _failure(status, problem.reference, problem.message, problems)

    @app.exception_handler(Exception)
    async def our_fault(_request: Request, error: Exception) -> Response:
        log.error("a call failed through a fault of ours", exc_info=error)
        return _failure(500, OUR_FAULT.reference, OUR_FAULT.message, (OUR_FAULT,))


_HTTP_CODES = {
    400: "bad-request",
    401: "wrong-token",
    404: "not-found",
    405: "method-not-allowed",
    413: "body-too-large",
    503: "stopping",
}


def _failure(status: int, code: str, message: str, problems: tuple[Problem, ...] = ()) -> Response:
    body = _encode(Failure(error=code, message=message, problems=problems))
    return Response(body, status_code=status, media_type="application/json")


def _json(content: object) -> Response:
    return Response(_encode(content), media_type="application/json")


def _encode(content: object) -> bytes:
    return msgspec.json.encode(content)


async def _body(request: Request, kind: type[T]) -> T:
    parts: list[bytes] = []
    size = 0
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > MAX_JSON_BYTES:
        raise HTTPException(413, f"the body is over {MAX_JSON_BYTES} bytes")
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_JSON_BYTES:
            raise HTTPException(413, f"the body is over {MAX_JSON_BYTES} bytes")
        parts.append(chunk)
    try:
        return msgspec.json.decode(b"".join(parts), type=kind)
    except UNREADABLE as error:
        raise BadRequest(f"the body does not fit: {error}") from error


def _known(operator: Operator, deployment: str, name: str) -> ApiStatus:
    status = operator.api(_checked_name(deployment), _checked_name(name))
    if status is None:
        raise NotFound("unknown-api", f'there is no api "{name}" in deployment "{deployment}"')
    return status


def _checked_digest(digest: str) -> str:
    if not _SHA256.fullmatch(digest):
        raise BadRequest("a digest is 64 lower-case hex digits", reference="bad-digest")
    return digest


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > 42:
        raise NotFound("not-found", "there is nothing of that name")
    return name


# ---- the OpenAPI document ---------------------------------------------------------------------------------------


class _Documented:
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


def _openapi(app: FastAPI, types: Sequence[tuple[Any, Any, str]]) -> dict[str, Any]:
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
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "The home's file `token`."}},
    }
    document["security"] = [{"token": []}]
