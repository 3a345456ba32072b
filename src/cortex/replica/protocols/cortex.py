"""
The protocol of an endpoint itself: a bare sample in, a bare result out, the signature for whoever asks, errors as JSON.

Bodies are read by `codec`, results written by `results`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from cortex.errors import Response
from cortex.replica.bodies.codec import Decoder, reread, unpack
from cortex.replica.bodies.results import Unserialisable, encode
from cortex.replica.handler.hooks import HookFailed
from cortex.replica.observation.tracebacks import one_line
from cortex.replica.protocols.request_view import RequestView
from cortex.replica.transport.faults import Fault
from cortex.replica.transport.http import JSON, Exchange, Message, MethodNotAllowed, render_headers

METHODS = b"GET, HEAD, POST, OPTIONS"


class Introduction(NamedTuple):
    """What is told of an api to whoever asks how to call it."""

    description: Mapping[str, Any] = {}
    """Its name, version, inputs and outputs, and a sample that was answered, if it is not too large."""
    sample_type: str = "application/json"
    """Content type of the api's own sample."""
    unproven: str = ""
    """Why no request is shown as one that works; empty if there is one that was answered."""


class CortexProtocol:
    """
    Reads samples and writes results.

    Args:
        has_pre_inference: as for `Decoder`, as is the next.
        may_be_empty: whether the model runs on nothing.
    """

    takes_tensors = False

    def __init__(self, *, has_pre_inference: bool, may_be_empty: bool = False) -> None:
        self._decode = Decoder(has_pre_inference=has_pre_inference, may_be_empty=may_be_empty).decode
        self.introduction = Introduction()
        """What GET answers."""

    # ---- for the pipeline ---------------------------------------------------------------------------------------

    def read(self, exchange: Exchange) -> Any:
        """Body to sample. Raises BadBody."""
        encoding = exchange.headers.get(b"content-encoding")
        if encoding is not None:
            exchange.take_body(unpack(exchange.body, encoding.decode("latin-1"), limit=exchange.max_body_bytes))
        return self._decode(exchange.body, exchange.content_type)

    def read_again(self, exchange: Exchange) -> Any:
        return self._decode(exchange.body, exchange.content_type)

    def exact(self, exchange: Exchange) -> Any:
        return reread(exchange.body)

    def write(self, exchange: Exchange, result: Any) -> bytes | Message:
        """
        A result as JSON, or as a handler's `Response` says.

        Raises:
            Unserialisable: it has no JSON form; also when code of the result's own classes fails on the way.
            HookFailed: HTTP cannot carry the `Response`; says what is wrong.
        """
        return _custom(result) if isinstance(result, Response) else _encoded(result)

    def view(self, exchange: Exchange) -> RequestView:
        return RequestView(exchange)

    # ---- for the service ----------------------------------------------------------------------------------------

    def answer(self, exchange: Exchange) -> Message | None:
        """The answer to what is no prediction; None: it is one. Raises MethodNotAllowed."""
        method = exchange.method
        if method == b"POST":
            return None
        if method in (b"GET", b"HEAD"):
            return Message(200, JSON, self._introduced(exchange))
        if method == b"OPTIONS":
            return Message(204, b"", b"", b"allow: " + METHODS + b"\r\n")
        shown = method.decode("latin-1")
        raise MethodNotAllowed(f"{shown} is not allowed here: POST a sample, or GET the signature", METHODS)

    def refuse(self, exchange: Exchange, fault: Fault) -> Message:
        """The JSON of an error. A handler's facts may name another `error`, but never replace message and id."""
        body = {"error": fault.code, "message": fault.message, "request_id": exchange.id}
        own = {key: value for key, value in fault.facts.items() if key not in ("message", "request_id")}
        try:
            content = encode({**body, **own})
        except Exception:  # facts that have no JSON form: the answer is worth more than they are
            content = encode(body)
        return Message(fault.status, JSON, content, fault.headers)

    def _introduced(self, exchange: Exchange) -> bytes:
        told = self.introduction
        how = {"note": told.unproven} if told.unproven else {"call": self.call_line(exchange)}
        return orjson.dumps({**told.description, **how})

    def call_line(self, exchange: Exchange) -> str:
        """A line for a shell that calls this api as the asker reached it, with the sample that was answered."""
        told = self.introduction
        host = exchange.headers.get(b"host", b"").decode("latin-1")
        path = exchange.path.decode("latin-1")
        where = f"http://{host}{path}" if host and _PLAIN_URL.fullmatch(host + path) else "<endpoint>"
        content_type = shlex.quote(f"content-type: {told.sample_type}")
        if "json" not in told.sample_type:
            return f"curl {where} -H {content_type} --data-binary @FILE"
        sample = told.description.get("sample")
        text = "" if sample is None else orjson.dumps(sample).decode()
        body = f"'{text}'" if text and len(text) <= 500 and "'" not in text else "@sample.json"
        return f"curl {where} -H {content_type} -d {body}"


_PLAIN_URL = re.compile(r"[A-Za-z0-9.:\[\]_/-]+")


def _encoded(result: Any) -> bytes:
    try:
        return encode(result)
    except Unserialisable:
        raise
    except BaseException as error:
        found = f"{type(result).__name__}, whose conversion raised {one_line(error)},"
        raise Unserialisable("result", found) from error


def _custom(response: Response) -> Message:
    """What a handler answers by itself."""
    status, body = response.status, response.body
    if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
        raise _unusable(f"status must be 200 to 599, not {status!r}")
    if isinstance(body, str):
        media_type, content = "text/plain; charset=utf-8", body.encode("utf-8", "replace")
    elif isinstance(body, bytes | bytearray | memoryview):
        media_type, content = "application/octet-stream", bytes(body)
    else:
        media_type, content = "application/json", _encoded(body)
    if response.media_type is not None:
        media_type = str(response.media_type)
        if not media_type.isascii() or not media_type.isprintable() or not media_type:
            raise _unusable(f"media_type {media_type!r} is not a content type")
    try:
        headers = render_headers(response.headers or {})
    except (ValueError, AttributeError) as error:
        raise _unusable(str(error)) from error
    return Message(int(status), media_type.encode("ascii"), content, headers)


def _unusable(reason: str) -> HookFailed:
    return HookFailed("post_inference", None, f"post_inference returned a Response that cannot be sent: {reason}")
