"""The table of statuses for everything that can go wrong with a request; it is here and nowhere else."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from cortex.errors import RequestError
from cortex.replica.bodies.codec import BadBody, BodyTooLarge, UnsupportedContentType, UnsupportedEncoding
from cortex.replica.bodies.results import Unserialisable
from cortex.replica.calls import OutOfTime, Overloaded, ReplicaEnding
from cortex.replica.handler.hooks import HookFailed
from cortex.replica.observation.places import as_called
from cortex.replica.prediction.pipeline import ModelFailed
from cortex.replica.tensors.mismatch import InputMismatch
from cortex.replica.transport.http import HeadTooLarge, MalformedRequest, MethodNotAllowed, PathNotFound, RequestStalled

RETRY_AFTER_S = 1

STATUS: tuple[tuple[type[BaseException], int, str], ...] = (
    (BodyTooLarge, 413, "body-too-large"),
    (UnsupportedContentType, 415, "unsupported-content-type"),
    (UnsupportedEncoding, 415, "unsupported-content-encoding"),
    (BadBody, 400, ""),
    (InputMismatch, 422, "input-mismatch"),
    (RequestError, 0, "request-error"),
    (MalformedRequest, 400, "malformed-request"),
    (HeadTooLarge, 431, "head-too-large"),
    (RequestStalled, 408, "request-timeout"),
    (PathNotFound, 404, "not-found"),
    (MethodNotAllowed, 405, "method-not-allowed"),
    (OutOfTime, 504, "timeout"),
    (Overloaded, 503, "overloaded"),
    (ReplicaEnding, 503, "stopping"),
    (asyncio.CancelledError, 503, "stopping"),
    (HookFailed, 500, "handler-failed"),
    (ModelFailed, 500, "model-failed"),
    (Unserialisable, 500, "result-not-serialisable"),
    (BaseException, 500, "internal-error"),
)
"""
Exception, status, code; the first that fits. Status 0: the exception's own. Code empty: its own `reference`.
"""


class Fault(NamedTuple):
    """What a caller is told of an error, before a protocol gives it a form."""

    status: int
    code: str
    message: str
    facts: dict[str, Any]
    headers: bytes = b""
    """Rendered header lines that belong to the status."""


def describe(error: BaseException) -> Fault:
    """Status, code, message and further facts of an error's answer."""
    status, code = next((s, c) for kind, s, c in STATUS if isinstance(error, kind))
    facts: dict[str, Any] = dict(getattr(error, "facts", {}))
    message = str(error)
    headers = b""
    if isinstance(error, RequestError):
        status, message = error.status, as_called(error.message)  # often the text of another exception
    elif isinstance(error, BadBody):
        code = code or error.reference
    elif isinstance(error, HookFailed | ModelFailed):
        message = as_called(message)
    elif isinstance(error, MethodNotAllowed):
        headers = b"allow: %b\r\n" % error.allowed
    elif code == "internal-error":
        message = "an error inside Cortex; its log has the details"
    elif code == "stopping":
        message = "the replica is stopping; try again"
    if status == 503:
        headers = b"retry-after: %d\r\n" % RETRY_AFTER_S
    return Fault(status, code, message, facts, headers)
