"""
The control plane's HTTP API: parse, call one function, render. See `wire.operator` for the contract.

Bodies are msgspec types rather than pydantic models, because the CLI shares them and has to start in an instant; the
OpenAPI document is built from the same types.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from cortex.artifacts.store import ArtifactStore
from cortex.errors import CortexError, Problem, Problems
from cortex.ids import ApiKey, DeploymentName, ReplicaId, api_key
from cortex.metrics.exposition import CONTENT_TYPE
from cortex.version import __version__
from cortex.wire.agent import LogLines, ReadLogs
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
    StopRequest,
    Watched,
)

log = logging.getLogger(__name__)

MAX_JSON_BYTES = 256 * 2**20
"""A deploy's body: samples travel in it."""
MAX_BLOB_BYTES = 64 * 2**30
MAX_WAIT_S = 60.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

T = TypeVar("T")


class Operator(Protocol):
    """What the API calls; `app.ControlPlane` is it."""

    store: ArtifactStore

    @property
    def stopping(self) -> bool:
        """Whether it is on its way down: nothing is taken in any more."""
        ...

    def info(self) -> Info: ...
    def deploy(self, name: str, request: DeployRequest, emit: Callable[[DeployProgress], None]) -> DeployResult: ...
    def delete(self, deployment: DeploymentName, api: ApiKey | None) -> Removed | None: ...
    def deployments(self) -> tuple[DeploymentStatus, ...]: ...
    def apis(self, deployment: str | None) -> tuple[ApiStatus, ...]: ...
    def api(self, deployment: str, name: str) -> ApiStatus | None: ...
    async def watch(self, token: str, timeout_s: float, deployment: str | None) -> Watched: ...
    def logs(self, request: ReadLogs) -> LogLines: ...
    def history(self, api: ApiKey) -> tuple[HistoryLine, ...]: ...
    def stop(self, request: StopRequest) -> Info: ...
    def metrics(self) -> str: ...


STATUS_OF: tuple[tuple[str, int], ...] = (
    ("unknown-api", 404),
    ("unknown-deployment", 404),
    ("digest-mismatch", 422),
    ("store-unavailable", 507),
    ("disk-full", 507),
    ("state-busy", 503),
    ("retry-later", 503),
    ("agent-unreachable", 503),
)
"""Reference of an error → HTTP status; anything else of ours is 422."""


class NotFound(CortexError):
    """There is no such thing here."""

    def __init__(self, reference: str, message: str) -> None:
        self.reference = reference  # type: ignore[misc]
        super().__init__(message)


def build_app(operator: Operator, token: str) -> FastAPI:
    """The application; every route needs the bearer token."""

    def authorised(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
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
    )
    _add_error_handlers(app)
    _add_routes(app, operator)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_routes(app: FastAPI, operator: Operator) -> None:
    @app.get("/v1/info", **_documented(Info))
    def info() -> Response:
        return _json(operator.info())

    @app.post("/v1/blobs/missing", **_documented(Digests, body=Digests))
    async def missing_blobs(request: Request) -> Response:
        wanted = await _body(request, Digests)
        for digest in wanted.digests:
            _checked_digest(digest)
        missing = await run_in_threadpool(operator.store.missing, wanted.digests)
        return _json(Digests(digests=tuple(missing)))

    @app.put("/v1/blobs/{sha256}", status_code=204, **_documented(None))
    async def put_blob(sha256: str, request: Request) -> Response:
        _checked_digest(sha256)
        await _store_blob(operator.store, sha256, request)
        return Response(status_code=204)

    @app.post("/v1/deployments/{name}", **_documented(DeployEvent, body=DeployRequest))
    async def deploy(name: str, request: Request) -> Response:
        _checked_name(name)
        wanted = await _body(request, DeployRequest)
        return StreamingResponse(_deploy_events(operator, name, wanted), media_type="application/x-ndjson")

    @app.get("/v1/deployments", **_documented(tuple[DeploymentStatus, ...]))
    def deployments() -> Response:
        return _json(operator.deployments())

    @app.delete("/v1/deployments/{name}", **_documented(Removed))
    def delete_deployment(name: str) -> Response:
        removed = operator.delete(DeploymentName(_checked_name(name)), None)
        if removed is None:
            raise NotFound("unknown-deployment", f'deployment "{name}" is not deployed')
        return _json(removed)

    @app.delete("/v1/deployments/{name}/apis/{api}", **_documented(Removed))
    def delete_api(name: str, api: str) -> Response:
        key = api_key(_checked_name(name), _checked_name(api))
        removed = operator.delete(DeploymentName(name), key)
        if removed is None:
            raise NotFound("unknown-api", f'there is no api "{api}" in deployment "{name}"')
        return _json(removed)

    @app.get("/v1/apis", **_documented(tuple[ApiStatus, ...]))
    def apis(deployment: str | None = None) -> Response:
        return _json(operator.apis(deployment))

    @app.get("/v1/watch", **_documented(Watched))
    async def watch(
        token: str = "",
        timeout_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 30.0,
        deployment: str | None = None,
    ) -> Response:
        return _json(await operator.watch(token, timeout_s, deployment))

    @app.get("/v1/apis/{deployment}/{name}", **_documented(ApiStatus))
    def api(deployment: str, name: str) -> Response:
        status = operator.api(_checked_name(deployment), _checked_name(name))
        if status is None:
            raise NotFound("unknown-api", f'there is no api "{name}" in deployment "{deployment}"')
        return _json(status)

    @app.get("/v1/apis/{deployment}/{name}/logs", **_documented(LogLines))
    def logs(
        deployment: str,
        name: str,
        since_wall_s: float | None = None,
        replica: str | None = None,
        request: str | None = None,
        tail: Annotated[int | None, Query(ge=0, le=1_000_000)] = None,
        cursor: str = "",
        wait_s: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0.0,
    ) -> Response:
        key = api_key(_checked_name(deployment), _checked_name(name))
        return _json(
            operator.logs(
                ReadLogs(
                    api=key,
                    since_wall_s=since_wall_s,
                    replica=ReplicaId(replica) if replica else None,
                    request=request,
                    tail=tail,
                    cursor=cursor,
                    wait_s=wait_s,
                )
            )
        )

    @app.get("/v1/apis/{deployment}/{name}/history", **_documented(tuple[HistoryLine, ...]))
    def history(deployment: str, name: str) -> Response:
        lines = operator.history(api_key(_checked_name(deployment), _checked_name(name)))
        if not lines:
            raise NotFound("unknown-api", f'there is no api "{name}" in deployment "{deployment}"')
        return _json(lines)

    @app.get("/metrics", **_documented(None))
    def metrics() -> Response:
        return Response(operator.metrics(), headers={"content-type": CONTENT_TYPE})

    @app.post("/v1/stop", **_documented(Info, body=StopRequest))
    async def stop(request: Request) -> Response:
        wanted = await _body(request, StopRequest)
        return _json(await run_in_threadpool(operator.stop, wanted))


async def _deploy_events(operator: Operator, name: str, request: DeployRequest) -> AsyncIterator[bytes]:
    """Lines of JSON while the deploy runs in a thread; it goes on when the caller leaves."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[DeployEvent | None] = asyncio.Queue()

    def emit(event: DeployEvent) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    def run() -> None:
        try:
            emit(operator.deploy(name, request, emit))
        except Problems as error:
            emit(DeployResult(problems=error.problems))
        except CortexError as error:
            emit(DeployResult(problems=(error.problem(),)))
        except Exception:
            log.exception("a deploy failed through a fault of ours")
            emit(DeployResult(problems=(OUR_FAULT,)))

    running = loop.run_in_executor(None, run)
    while True:
        event = await events.get()
        yield _encode(event) + b"\n"
        if isinstance(event, DeployResult):
            break
    await running


OUR_FAULT = Problem(
    reference="internal-error",
    message="the control plane failed; this is a fault of Cortex, not of your files",
    hint="the traceback is in logs/controlplane.log of CORTEX_HOME; please report it",
)


async def _store_blob(store: ArtifactStore, sha256: str, request: Request) -> None:
    """Stream a body into the store without holding it: a thread writes what the loop receives."""
    chunks: queue.Queue[bytes | Exception | None] = queue.Queue(maxsize=16)

    def received() -> Iterator[bytes]:
        while True:
            chunk = chunks.get()
            if chunk is None:
                return
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    writing = asyncio.get_running_loop().run_in_executor(
        None, lambda: store.put(sha256, received(), size_limit=MAX_BLOB_BYTES)
    )

    async def pass_on(item: bytes | Exception | None) -> bool:
        while not writing.done():
            try:
                chunks.put_nowait(item)
                return True
            except queue.Full:
                await asyncio.sleep(0.001)
        return False

    try:
        async for chunk in request.stream():
            if chunk and not await pass_on(chunk):
                break
    except BaseException as error:
        await pass_on(ConnectionResetError("the upload broke off"))
        if isinstance(error, Exception):
            await asyncio.gather(writing, return_exceptions=True)
        raise
    await pass_on(None)
    await writing


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> Response:
        return _failure(error.status_code, _HTTP_CODES.get(error.status_code, "refused"), str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def bad_parameters(_request: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in error.errors())
        return _failure(422, "bad-parameters", wrong)

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


_HTTP_CODES = {401: "wrong-token", 404: "not-found", 405: "method-not-allowed", 413: "body-too-large", 503: "stopping"}


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
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_JSON_BYTES:
            raise HTTPException(413, f"the body is over {MAX_JSON_BYTES} bytes")
        parts.append(chunk)
    try:
        return msgspec.json.decode(b"".join(parts), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Problems([Problem(reference="bad-request", message=f"the body does not fit: {error}")]) from error


def _checked_digest(digest: str) -> str:
    if not _SHA256.fullmatch(digest):
        raise Problems([Problem(reference="bad-digest", message="a digest is 64 lower-case hex digits")])
    return digest


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > 42:
        raise NotFound("not-found", "there is nothing of that name")
    return name


# ---- the OpenAPI document ---------------------------------------------------------------------------------------


def _documented(answer: Any, *, body: Any = None) -> dict[str, Any]:
    """What a route takes and gives, for the OpenAPI document."""
    extra: dict[str, Any] = {"x-cortex-answer": answer}
    if body is not None:
        extra["x-cortex-body"] = body
    return {"openapi_extra": extra, "response_model": None}


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        from fastapi.openapi.utils import get_openapi

        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _fill_in_types(document)
        app.openapi_schema = document
    return app.openapi_schema


def _fill_in_types(document: dict[str, Any]) -> None:
    operations = [o for path in document["paths"].values() for o in path.values()]
    types = [o[key] for o in operations for key in ("x-cortex-answer", "x-cortex-body") if o.get(key) is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    found = iter(schemas)
    for operation in operations:
        answer, body = operation.pop("x-cortex-answer", None), operation.pop("x-cortex-body", None)
        ok = next(status for status in operation["responses"] if status.startswith("2"))
        if answer is not None:
            operation["responses"][ok]["content"] = {"application/json": {"schema": next(found)}}
        if body is not None:
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": next(found)}}}
        operation["responses"]["default"] = {
            "description": "What went wrong.",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Failure"}}},
        }
    _, failure = msgspec.json.schema_components([Failure], ref_template="#/components/schemas/{name}")
    document.setdefault("components", {}).setdefault("schemas", {}).update({**components, **failure})
