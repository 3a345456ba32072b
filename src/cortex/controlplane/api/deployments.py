"""Deploys, rollbacks and removals, and the blobs that deploys upload before."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State

from cortex.artifacts.store import ArtifactStore
from cortex.controlplane.api.bodies import LargeBody, as_json, encode, read_body
from cortex.controlplane.api.document import Documented
from cortex.controlplane.api.operator import Operator
from cortex.controlplane.api.refusals import OUR_FAULT, BadRequest, NotFound, checked_digest, checked_name
from cortex.errors import CortexError
from cortex.ids import DeploymentName, api_key
from cortex.wire.operator import (
    ChangeKind,
    DeployEvent,
    DeploymentStatus,
    DeployRequest,
    DeployResult,
    Digests,
    Removed,
    RollbackRequest,
    RollbackResult,
)

log = logging.getLogger(__name__)

MAX_BLOB_BYTES = 64 * 2**30


def blob_routes(operator: Operator, documented: Documented) -> APIRouter:
    router = APIRouter(prefix="/v1/blobs")

    @router.post("/missing", **documented(Digests, body=Digests))
    async def missing_blobs(request: Request) -> Response:
        wanted = await read_body(request, Digests)
        for digest in wanted.digests:
            checked_digest(digest)
        missing = await run_in_threadpool(operator.store.missing, wanted.digests)
        return as_json(Digests(digests=tuple(missing)))

    @router.put("/{sha256}", status_code=204, **documented(None, body=bytes))
    async def put_blob(sha256: str, request: Request) -> Response:
        checked_digest(sha256)
        await _store_blob(operator.store, sha256, request)
        return Response(status_code=204)

    return router


def deployment_routes(operator: Operator, documented: Documented) -> APIRouter:
    router = APIRouter(prefix="/v1/deployments")

    @router.post("/{name}", **documented(DeployEvent, body=DeployRequest, media_type="application/x-ndjson"))
    async def deploy(name: str, request: Request) -> Response:
        checked_name(name)
        wanted = await read_body(request, DeployRequest)
        if wanted.deployment != name:
            message = f'the body is about deployment "{wanted.deployment}", the path about "{name}"'
            raise BadRequest(message)
        events = _deploy_events(operator, name, wanted, request.state)
        return StreamingResponse(events, media_type="application/x-ndjson")

    @router.get("", **documented(tuple[DeploymentStatus, ...]))
    def deployments() -> Response:
        return as_json(operator.deployments())

    @router.delete("/{name}", **documented(Removed))
    def delete_deployment(name: str) -> Response:
        removed = operator.delete(DeploymentName(checked_name(name)), None)
        if removed is None:
            raise NotFound("unknown-deployment", f'deployment "{name}" is not deployed')
        return as_json(removed)

    @router.delete("/{name}/apis/{api}", **documented(Removed))
    def delete_api(name: str, api: str) -> Response:
        key = api_key(checked_name(name), checked_name(api))
        removed = operator.delete(DeploymentName(name), key)
        if removed is None:
            raise NotFound("unknown-api", f'there is no api "{api}" in deployment "{name}"')
        return as_json(removed)

    @router.post("/{name}/apis/{api}/rollback", **documented(RollbackResult, body=RollbackRequest))
    async def roll_back(name: str, api: str, request: Request) -> Response:
        key = api_key(checked_name(name), checked_name(api))
        wanted = await read_body(request, RollbackRequest)
        result = await run_in_threadpool(operator.roll_back, key, wanted)
        if result is None:
            raise NotFound("unknown-api", f'there is no api "{api}" in deployment "{name}"')
        return as_json(result)

    return router


async def _deploy_events(operator: Operator, name: str, request: DeployRequest, state: State) -> AsyncIterator[bytes]:
    """Lines of JSON while the deploy runs in a thread, which is told when the caller leaves."""
    state.outcome = "broken off by the caller"
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[DeployEvent] = asyncio.Queue()
    left = threading.Event()

    def emit(event: DeployEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is gone, and so is whoever wanted to know
            loop.call_soon_threadsafe(events.put_nowait, event)

    def run() -> None:
        try:
            emit(operator.deploy(name, request, emit, left))
        except CortexError as error:
            emit(DeployResult(problems=error.all_problems()))
        except Exception:
            log.exception("a deploy failed through a fault of ours")
            emit(DeployResult(problems=(OUR_FAULT,)))

    # A thread of its own: a deploy may take minutes, and neither uploads nor our own end shall wait for it.
    threading.Thread(target=run, name=f"deploy-{name}", daemon=True).start()
    try:
        while True:
            event = await events.get()
            if isinstance(event, DeployResult):
                state.outcome = _outcome(request, event)
            yield encode(event) + b"\n"
            if isinstance(event, DeployResult):
                return
    finally:
        left.set()


def _outcome(request: DeployRequest, result: DeployResult) -> str:
    """What a deploy has changed, for the audit log."""
    if request.dry_run:
        return "dry run"
    if not result.committed:
        return "refused: " + "; ".join(problem.reference for problem in result.problems)
    kinds = [f"{change.api} {change.kind}" for change in result.changes if change.kind is not ChangeKind.UNCHANGED]
    return ", ".join(kinds) or "nothing changed"


async def _store_blob(store: ArtifactStore, sha256: str, request: Request) -> None:
    """Stream a body into the store without holding it."""
    body = LargeBody(request)
    try:
        if await run_in_threadpool(store.missing, [sha256]):
            with await run_in_threadpool(store.writer, sha256, size_limit=MAX_BLOB_BYTES) as writer:
                async for piece in body.pieces():
                    await run_in_threadpool(writer.write, piece)
                await run_in_threadpool(writer.commit)
    finally:
        # Who is still sending when the connection closes may never read the answer.
        await body.drop_rest()
