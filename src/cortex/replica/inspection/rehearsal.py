"""A rehearsed request: it goes through everything that a real one goes through, but the socket and the counters."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import orjson

from cortex.errors import CortexError
from cortex.replica.bodies.results import encode
from cortex.replica.calls import Call
from cortex.replica.prediction.predictors import Predictor, hide_loop
from cortex.replica.transport.http import Exchange
from cortex.replica.transport.service import Service

_SHOWN_ANSWER_CHARS = 500


class Audience:
    """Plays the connection of a rehearsed request, and keeps the answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.status = 0
        self.body = b""

    def respond(self, exchange: Exchange, status: int, content_type: bytes, body: bytes, extra: bytes = b"") -> bool:
        self.status, self.body = status, body
        self._loop.stop()
        return True

    def peer_has_left(self) -> bool:
        return False

    def peer_is_gone(self) -> bool:
        return False


class Rehearsed(NamedTuple):
    """How a rehearsed call was answered."""

    ok: bool
    said: str
    """The answer in a line, if it is not ok."""
    hint: str
    call: Call


class Rehearsal:
    """Asks a service, on its own loop, which does not run yet."""

    def __init__(self, service: Service, predictor: Predictor, loop: asyncio.AbstractEventLoop) -> None:
        self._service = service
        self._predictor = predictor
        self._loop = loop

    def ask(self, body: bytes, content_type: str, timeout_s: float) -> Rehearsed:
        """A sample as somebody would send it."""
        audience = Audience(self._loop)
        exchange = Exchange(audience)
        exchange.method, exchange.target = b"POST", b"/"
        exchange.take_headers({b"content-type": content_type.encode("latin-1", "replace")})
        exchange.take_body(body)
        exchange.id, exchange.id_bytes = "warmup", b"warmup"
        exchange.timeout_s, exchange.max_body_bytes = timeout_s, 2**62
        exchange.warmup = exchange.uncounted = True
        if self._predictor.hides_loop:
            self._loop.call_soon(hide_loop)
        self._loop.call_soon(self._service.handle, exchange)
        self._loop.run_forever()
        said, hint = _said(audience.body)
        return Rehearsed(200 <= audience.status <= 299, f"{audience.status}{said}", hint, exchange)

    def ask_value(self, value: Any, most_bytes: int, timeout_s: float) -> tuple[bool, Any]:
        """Whether a value, written in at most so many bytes, is answered; and how it reads when it is written."""
        try:
            body = encode(value)
        except CortexError:
            return False, None
        if len(body) > most_bytes or not self.ask(body, "application/json", timeout_s).ok:
            return False, None
        return True, orjson.loads(body)


def _said(body: bytes) -> tuple[str, str]:
    """What an answer that is an error says, in words, to stand behind its status; and the advice that it has."""
    try:
        facts = orjson.loads(body)
    except orjson.JSONDecodeError:  # a handler's own text
        facts = {"message": body.decode("utf-8", "replace").strip()}
    if not isinstance(facts, dict):
        return "", ""
    code = str(facts["error"]) if "error" in facts and "message" in facts else ""
    text = str(facts.get("message") or facts.get("error") or "")
    text = text if len(text) <= _SHOWN_ANSWER_CHARS else text[:_SHOWN_ANSWER_CHARS] + "…"
    advice = facts.get("hint")
    said = f" ({code}): {text}" if code else f": {text}"
    return said if text else "", advice if isinstance(advice, str) else ""
