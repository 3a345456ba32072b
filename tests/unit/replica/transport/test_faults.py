"""The table of statuses."""

from __future__ import annotations

import asyncio

import pytest

from cortex.errors import RequestError
from cortex.replica.bodies.codec import BadJson, BodyTooLarge, UnsupportedContentType, UnsupportedEncoding
from cortex.replica.bodies.results import Unserialisable
from cortex.replica.calls import OutOfTime, Overloaded, ReplicaEnding
from cortex.replica.handler.hooks import HookFailed
from cortex.replica.prediction.pipeline import ModelFailed
from cortex.replica.tensors.mismatch import InputMismatch
from cortex.replica.transport.faults import STATUS, describe
from cortex.replica.transport.http import HeadTooLarge, MalformedRequest, MethodNotAllowed, RequestStalled
from cortex.wire.signature import TensorSpec


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BadJson("x"), 400, "malformed-json"),
        (BodyTooLarge(5), 413, "body-too-large"),
        (UnsupportedContentType("a/b"), 415, "unsupported-content-type"),
        (UnsupportedEncoding("br"), 415, "unsupported-content-encoding"),
        (InputMismatch(TensorSpec("x", "float32", (1,)), ("int64", ()), "x"), 422, "input-mismatch"),
        (RequestError(418, "teapot"), 418, "request-error"),
        (MalformedRequest("x"), 400, "malformed-request"),
        (HeadTooLarge("x"), 431, "head-too-large"),
        (RequestStalled("x"), 408, "request-timeout"),
        (MethodNotAllowed("x", b"GET"), 405, "method-not-allowed"),
        (OutOfTime("x"), 504, "timeout"),
        (Overloaded("x"), 503, "overloaded"),
        (ReplicaEnding(), 503, "stopping"),
        (asyncio.CancelledError(), 503, "stopping"),
        (HookFailed("pre_inference", ValueError("x")), 500, "handler-failed"),
        (ModelFailed(ValueError("x")), 500, "model-failed"),
        (Unserialisable("result", "x"), 500, "result-not-serialisable"),
        (ValueError("our own mistake"), 500, "internal-error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_every_error_has_its_status_and_code(error: BaseException, status: int, code: str) -> None:
    found = describe(error)
    assert (found.status, found.code) == (status, code)
    assert found.message, "and says something"


def test_what_belongs_to_a_status_stands_in_the_headers() -> None:
    assert describe(MethodNotAllowed("x", b"GET, HEAD")).headers == b"allow: GET, HEAD\r\n"
    assert describe(Overloaded("x")).headers == describe(ReplicaEnding()).headers == b"retry-after: 1\r\n"
    assert describe(ValueError()).headers == b""


def test_our_own_mistakes_tell_the_caller_nothing() -> None:
    assert "our own mistake" not in describe(ValueError("our own mistake")).message


def test_facts_are_those_of_the_error() -> None:
    assert describe(BodyTooLarge(5)).facts["limit"] == 5
    assert describe(RequestError(404, "x", known=[1])).facts == {"known": [1]}


def test_the_table_ends_with_what_catches_everything() -> None:
    assert STATUS[-1][0] is BaseException
    for index, (kind, _, _) in enumerate(STATUS):
        for earlier, _, _ in STATUS[:index]:
            assert not issubclass(kind, earlier), f"{kind.__name__} is never reached"
