"""What is refused, how it is told, and the one table of HTTP statuses."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cortex.errors import CortexError, Problem
from cortex.wire.operator import Failure

log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")

STATUS_OF: Mapping[str, int] = {
    "not-found": 404,
    "unknown-api": 404,
    "unknown-deployment": 404,
    "unknown-version": 404,
    "unknown-secret": 404,
    "unknown-token": 404,
    "token-there": 409,
    "tokens-unusable": 500,
    "role-too-low": 403,
    "secret-in-use": 409,
    "ambiguous-version": 409,
    "version-gone": 409,
    "nothing-older": 409,
    "secrets-unusable": 500,
    "digest-mismatch": 422,
    "upload-too-large": 413,
    "store-unavailable": 507,
    "disk-full": 507,
    "state-busy": 503,
    "state-unusable": 500,
    "events-unusable": 500,
    "state-corrupt": 500,
    "state-in-doubt": 500,
    "not-the-leader": 503,
    "storage-unreachable": 503,
    "storage-unusable": 500,
    "storage-access-denied": 500,
    "storage-not-found": 500,
    "retry-later": 503,
    "agent-unreachable": 503,
}
"""Reference of an error → HTTP status; anything else of ours is 422."""

_HTTP_CODES = {
    400: "bad-request",
    401: "wrong-token",
    404: "not-found",
    405: "method-not-allowed",
    413: "body-too-large",
    503: "stopping",
}

OUR_FAULT = Problem(
    reference="internal-error",
    message="the control plane failed; this is a fault of Cortex, not of your files",
    hint="the traceback is in logs/controlplane.log of CORTEX_HOME; please report it",
)


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


def checked_digest(digest: str) -> str:
    if not _SHA256.fullmatch(digest):
        raise BadRequest("a digest is 64 lower-case hex digits", reference="bad-digest")
    return digest


def checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > 42:
        raise NotFound("not-found", "there is nothing of that name")
    return name


def add_error_handlers(app: FastAPI) -> None:
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
        status = STATUS_OF.get(problem.reference, 422)
        return _failure(status, problem.reference, problem.message, error.all_problems())

    @app.exception_handler(Exception)
    async def our_fault(_request: Request, error: Exception) -> Response:
        log.error("a call failed through a fault of ours", exc_info=error)
        return _failure(500, OUR_FAULT.reference, OUR_FAULT.message, (OUR_FAULT,))


def _failure(status: int, code: str, message: str, problems: tuple[Problem, ...] = ()) -> Response:
    body = msgspec.json.encode(Failure(error=code, message=message, problems=problems))
    return Response(body, status_code=status, media_type="application/json")
