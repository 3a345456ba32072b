"""One sample to one endpoint: what `cortex predict` sends, and how a refusal is told."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

import msgspec

from cortex.client.operator import connection_to, failure_words
from cortex.errors import CortexError, Problem

PREDICT_TIMEOUT_S = 24 * 3600.0
"""The api's own `timeout` answers first; this only ends what nobody answers."""
CONNECT_TIMEOUT_S = 10.0
DESCRIPTION_TIMEOUT_S = 1.0
"""A page of an api is a millisecond away, or its api has other worries than an example."""

CONTENT_TYPES: Mapping[str, str] = {
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".m4a": "audio/mp4",
    ".npy": "application/x-npy",
    ".txt": "text/plain",
    ".bin": "application/octet-stream",
}
OTHER_CONTENT_TYPE = "application/octet-stream"

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"\x93NUMPY", "application/x-npy"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint answered with 2xx."""

    status: int
    body: bytes
    content_type: str
    request_id: str


class PredictionRefused(CortexError):
    """The endpoint answered, but not with 2xx. `facts` are the rest of its JSON body."""

    reference = "prediction-refused"

    def __init__(
        self, endpoint: str, status: int, *, error: str, message: str, request_id: str, facts: dict[str, Any]
    ) -> None:
        self.endpoint = endpoint
        self.status = status
        self.error = error
        self.request_id = request_id
        self.facts = facts
        super().__init__(message)

    def problem(self) -> Problem:
        lines = [str(self)] if str(self) else []
        lines += [f"{name}: {_shown(value)}" for name, value in self.facts.items() if name != "hint"]
        lines.append(f"status {self.status}, request id {self.request_id or 'unknown'}")
        return Problem(
            reference=self.error, message="\n".join(lines), hint=self.hint or str(self.facts.get("hint") or "")
        )


class EndpointUnreachable(CortexError):
    """No answer from the ingress."""

    reference = "endpoint-unreachable"
    hint = "`cortex info` shows whether the ingress is up"

    def __init__(self, endpoint: str, reason: str) -> None:
        self.endpoint = endpoint
        super().__init__(f"{endpoint} does not answer: {reason}")


def content_type_of(name: str) -> str:
    """The content type that a file's ending stands for."""
    return CONTENT_TYPES.get(PurePath(name).suffix.lower(), OTHER_CONTENT_TYPE)


def sniffed_content_type(body: bytes) -> str:
    """The content type of bytes without a name: a known kind of file, else JSON."""
    for magic, content_type in _MAGIC:
        if body.startswith(magic):
            return content_type
    if body[:4] == b"RIFF" and body[8:12] in (b"WAVE", b"WEBP"):
        return "audio/wav" if body[8:12] == b"WAVE" else "image/webp"
    return "application/json"


def why_no_json(body: bytes) -> str:
    """Why bytes are no JSON; empty if they are."""
    try:
        msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return str(error)
    return ""


def read_sample(path: Path) -> tuple[bytes, str]:
    """
    A file's bytes and content type: JSON if they are an object or array of JSON whatever the name; what the ending
    stands for; what the bytes look like. Raises OSError.
    """
    body = path.read_bytes()
    named = content_type_of(path.name)
    if body.lstrip()[:1] in (b"{", b"[") and not why_no_json(body):
        return body, "application/json"
    if path.suffix.lower() in CONTENT_TYPES:
        return body, named
    sniffed = sniffed_content_type(body)
    return body, named if sniffed == "application/json" and why_no_json(body) else sniffed


def post(
    endpoint: str,
    body: bytes,
    content_type: str,
    *,
    debug: bool = False,
    timeout_s: float = PREDICT_TIMEOUT_S,
) -> Answer:
    """
    Send one sample.

    Raises:
        PredictionRefused: the answer is not 2xx; carries the error's code, message, request id and facts.
        EndpointUnreachable: there was no answer.
    """
    url = urlsplit(endpoint)
    connection = connection_to(
        url.hostname or "", url.port, encrypted=url.scheme == "https", timeout_s=CONNECT_TIMEOUT_S
    )
    try:
        connection.connect()
        connection.sock.settimeout(timeout_s)
        path = (url.path or "/") + ("?debug=true" if debug else "")
        try:
            connection.request("POST", path, body=body, headers={"content-type": content_type})
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before it was read whole, e.g. 413: the answer says why
        response = connection.getresponse()
        content = response.read()
    except TimeoutError as error:
        raise EndpointUnreachable(endpoint, "the time is up") from error
    except (http.client.HTTPException, OSError) as error:
        raise EndpointUnreachable(endpoint, failure_words(error)) from error
    finally:
        connection.close()
    return answered(endpoint, response, content)


def answered(endpoint: str, response: http.client.HTTPResponse, content: bytes) -> Answer:
    """
    What an endpoint has answered.

    Raises:
        PredictionRefused: it is not 2xx.
    """
    request_id = response.headers.get("x-request-id", "")
    if 200 <= response.status < 300:
        return Answer(
            status=response.status,
            body=content,
            content_type=response.headers.get("content-type", ""),
            request_id=request_id,
        )
    raise _refusal(endpoint, response.status, response.reason, content, request_id)


def answered_sample(endpoint: str, *, timeout_s: float = DESCRIPTION_TIMEOUT_S) -> Any:
    """The sample that an endpoint's own page offers, as a replica has answered it. None if there is none."""
    url = urlsplit(endpoint)
    connection = connection_to(url.hostname or "", url.port, encrypted=url.scheme == "https", timeout_s=timeout_s)
    try:
        connection.request("GET", url.path or "/")
        response = connection.getresponse()
        page = msgspec.json.decode(response.read(), type=dict[str, Any])
    except (http.client.HTTPException, OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    finally:
        connection.close()
    return page.get("sample") if response.status == 200 and "call" in page else None


def _refusal(endpoint: str, status: int, reason: str, content: bytes, request_id: str) -> PredictionRefused:
    try:
        facts = msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        facts = {"message": content.decode("utf-8", "backslashreplace").strip()[:2000]}
    error, message = facts.pop("error", None), facts.pop("message", None)
    told_id = facts.pop("request_id", None)
    return PredictionRefused(
        endpoint,
        status,
        error=error if isinstance(error, str) and error else f"http-{status}",
        message=message if isinstance(message, str) and message else reason,
        request_id=request_id or (told_id if isinstance(told_id, str) else ""),
        facts=facts,
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
