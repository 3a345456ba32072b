"""One typed call for each line of the table in `wire/operator.py`."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from cortex.client.errors import OperatorFailed, OperatorUnreachable, UnknownAnswer, WrongToken
from cortex.wire.agent import LogLines
from cortex.wire.operator import (
    ApiChange,
    ApiStatus,
    AuditLine,
    CreatedToken,
    DeployEvent,
    DeploymentStatus,
    DeployRequest,
    DeployResult,
    Digests,
    EventPage,
    Failure,
    HistoryLine,
    Info,
    Removed,
    Role,
    RollbackRequest,
    RollbackResult,
    SecretStatus,
    SecretValue,
    StopRequest,
    TokenRequest,
    TokenStatus,
    Watched,
)

CALL_TIMEOUT_S = 20.0
"""For calls that answer at once; a busy machine gets time, a hung control plane is noticed."""
DEPLOY_SILENCE_TIMEOUT_S = 900.0
"""Between two events of a deploy: fetching a large model or building an environment may be silent for minutes."""
STOP_TIMEOUT_S = 45.0
"""On top of the drain timeout: ends of processes that did not want to end."""
WATCH_S = 25.0
"""How long one watch or log call stays open when nothing happens."""
CHUNK_BYTES = 2**20
ALL_LINES = 1_000_000
"""As `tail`: every line that is kept."""

T = TypeVar("T")
Endpoint = TypeVar("Endpoint", ApiStatus, ApiChange)
Body = bytes | Iterable[bytes] | None


class OperatorClient:
    """
    Calls to one control plane.

    Args:
        prefix: of every path, for a control plane behind a proxy.
        encrypted: whether it is https.
        environment: its name, when it is not the one on this machine: then advice differs.
        predictions: URL at which its prediction APIs are reached from here; empty: as the control plane says.

    Each call is a connection of its own: on loopback that costs a tenth of a millisecond, a restarted control plane
    never meets a stale connection, and threads may share the client.
    """

    def __init__(
        self,
        *,
        port: int,
        token: str,
        host: str = "127.0.0.1",
        prefix: str = "",
        encrypted: bool = False,
        environment: str = "",
        predictions: str = "",
    ) -> None:
        shown_host = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if encrypted else 'http'}://{shown_host}:{port}{prefix}"
        self._host = host
        self._port = port
        self._token = token
        self._prefix = prefix
        self._encrypted = encrypted
        self._environment = environment
        self._predictions = predictions

    def info(self, *, timeout_s: float = CALL_TIMEOUT_S) -> Info:
        info = self._get("/v1/info", Info, timeout_s=timeout_s)
        if not self._environment:
            return info
        ingress = self.from_here(info.ingress)
        return msgspec.structs.replace(info, environment=self._environment, operator=self.url, ingress=ingress)

    def missing_blobs(self, digests: Iterable[str]) -> tuple[str, ...]:
        """Which of these SHA-256 digests have to be uploaded."""
        asked = Digests(digests=tuple(digests))
        return self._call("POST", "/v1/blobs/missing", Digests, message=asked).digests

    def upload_blob(
        self, sha256: str, source: BinaryIO, size_bytes: int, on_bytes: Callable[[int], None] | None = None
    ) -> None:
        """
        Upload one file.

        Args:
            source: read from where it stands, at most `size_bytes`.
            on_bytes: told the size of each piece when it has been handed over.

        Raises:
            OperatorFailed: the content has another digest, e.g. because the file is being written, or the disk is full.
        """

        def pieces() -> Iterator[bytes]:
            left = size_bytes
            while left > 0 and (piece := source.read(min(CHUNK_BYTES, left))):
                left -= len(piece)
                yield piece
                if on_bytes is not None:
                    on_bytes(len(piece))

        headers = {"content-type": "application/octet-stream", "content-length": str(size_bytes)}
        with self._exchange("PUT", f"/v1/blobs/{sha256}", body=pieces(), headers=headers) as response:
            response.read()

    def deploy(self, request: DeployRequest) -> Iterator[DeployEvent]:
        """
        Deploy; the last event is a `DeployResult`.

        Raises:
            OperatorUnreachable: also when the stream ends before the result.
        """
        path = f"/v1/deployments/{_segment(request.deployment)}"
        decoder = msgspec.json.Decoder[DeployEvent](DeployEvent)
        with self._exchange(
            "POST", path, body=msgspec.json.encode(request), timeout_s=DEPLOY_SILENCE_TIMEOUT_S
        ) as response:
            while line := response.readline():
                if not line.strip():
                    continue
                event = self._decode(decoder, line)
                if isinstance(event, DeployResult):
                    changes = tuple(self._with_endpoint(change) for change in event.changes)
                    event = msgspec.structs.replace(event, changes=changes)
                yield event
                if isinstance(event, DeployResult):
                    return
        raise OperatorUnreachable(
            self.url,
            "it ended before it said how the deploy went",
            hint="`cortex get` shows whether the deploy took place",
        )

    def deployments(self) -> tuple[DeploymentStatus, ...]:
        return self._get("/v1/deployments", tuple[DeploymentStatus, ...])

    def remove(self, deployment: str, api: str | None = None) -> Removed:
        """Remove a deployment, or one api of it."""
        path = f"/v1/deployments/{_segment(deployment)}"
        return self._call("DELETE", path if api is None else f"{path}/apis/{_segment(api)}", Removed)

    def roll_back(self, deployment: str, api: str, request: RollbackRequest) -> RollbackResult:
        """Have an older version of an api serve; returns before it does."""
        path = f"/v1/deployments/{_segment(deployment)}/apis/{_segment(api)}/rollback"
        result = self._call("POST", path, RollbackResult, message=request)
        return msgspec.structs.replace(result, change=self._with_endpoint(result.change))

    def apis(self, deployment: str | None = None, *, timeout_s: float = CALL_TIMEOUT_S) -> tuple[ApiStatus, ...]:
        """All apis, or those of one deployment."""
        found = self._get("/v1/apis" + _query(deployment=deployment), tuple[ApiStatus, ...], timeout_s=timeout_s)
        return tuple(self._with_endpoint(api) for api in found)

    def api(self, deployment: str, name: str) -> ApiStatus:
        """One api with everything that is known of it."""
        return self._with_endpoint(self._get(f"/v1/apis/{_segment(deployment)}/{_segment(name)}", ApiStatus))

    def watch(self, token: str = "", *, timeout_s: float = WATCH_S, deployment: str | None = None) -> Watched:
        """The state of all apis, as soon as it differs from what `token` stands for, or when the time is up."""
        query = _query(token=token, timeout_s=f"{timeout_s:.3f}", deployment=deployment)
        watched = self._get("/v1/watch" + query, Watched, timeout_s=timeout_s + CALL_TIMEOUT_S)
        return msgspec.structs.replace(watched, apis=tuple(self._with_endpoint(api) for api in watched.apis))

    def logs(
        self,
        deployment: str,
        api: str,
        *,
        since_wall_s: float | None = None,
        replica: str | None = None,
        version: str | None = None,
        request: str | None = None,
        tail: int = ALL_LINES,
        cursor: str = "",
        wait_s: float = 0.0,
    ) -> LogLines:
        """
        Log lines in time order; parameters as in `wire.agent.ReadLogs`.

        Args:
            version: first digits of one, or `wire.operator.CURRENT`; then what others wrote counts as read.
            cursor: from an earlier answer: only what came after it, and `wait_s` may be given.
        """
        query = _query(
            since_wall_s=None if since_wall_s is None else f"{since_wall_s:.6f}",
            replica=replica,
            version=version,
            request=request,
            tail=str(tail),
            cursor=cursor or None,
            wait_s=f"{wait_s:.3f}" if wait_s else None,
        )
        path = f"/v1/apis/{_segment(deployment)}/{_segment(api)}/logs{query}"
        return self._get(path, LogLines, timeout_s=wait_s + CALL_TIMEOUT_S)

    def history(self, deployment: str, api: str) -> tuple[HistoryLine, ...]:
        """Versions of an api, newest first."""
        path = f"/v1/apis/{_segment(deployment)}/{_segment(api)}/history"
        return self._get(path, tuple[HistoryLine, ...])

    def events(
        self,
        *,
        deployment: str | None = None,
        api: str | None = None,
        limit: int = 100,
        after: str = "",
        wait_s: float = 0.0,
    ) -> EventPage:
        """
        What was decided and what happened, oldest first; of one api, of a deployment, or of everything.

        Args:
            limit: at most so many, up to `wire.operator.MOST_EVENTS`: the last ones, or the first ones after `after`.
            after: cursor of an earlier page; then `wait_s` may be given, to wait for the first one.

        Raises:
            OperatorFailed: there is no such api, nor was there in the last 14 days.
        """
        query = _query(
            deployment=deployment,
            api=api,
            limit=str(limit),
            after=after or None,
            wait_s=f"{wait_s:.3f}" if wait_s else None,
        )
        return self._get(f"/v1/events{query}", EventPage, timeout_s=wait_s + CALL_TIMEOUT_S)

    def tokens(self) -> tuple[TokenStatus, ...]:
        """All tokens but the home's own, by name; never themselves."""
        return self._get("/v1/tokens", tuple[TokenStatus, ...])

    def create_token(self, name: str, role: Role) -> CreatedToken:
        """
        Make a token.

        Raises:
            OperatorFailed: there is one of that name, or nobody can have that name.
        """
        return self._call("POST", f"/v1/tokens/{_segment(name)}", CreatedToken, message=TokenRequest(role=role))

    def delete_token(self, name: str) -> None:
        """Turn away whoever uses it. Raises OperatorFailed: there is none of that name."""
        with self._exchange("DELETE", f"/v1/tokens/{_segment(name)}") as response:
            response.read()

    def audit(self, *, limit: int) -> tuple[AuditLine, ...]:
        """Who changed what, the last lines, oldest first."""
        return self._get("/v1/audit" + _query(limit=str(limit)), tuple[AuditLine, ...])

    def secrets(self, *, timeout_s: float = CALL_TIMEOUT_S) -> tuple[SecretStatus, ...]:
        """All secrets, by name; never their values."""
        return self._get("/v1/secrets", tuple[SecretStatus, ...], timeout_s=timeout_s)

    def set_secret(self, name: str, value: str) -> SecretStatus:
        """Keep a value, which new versions get from now on."""
        message = SecretValue(value=value)
        return self._call("PUT", f"/v1/secrets/{_segment(name)}", SecretStatus, message=message)

    def delete_secret(self, name: str, *, force: bool = False) -> None:
        """
        Forget a secret.

        Raises:
            OperatorFailed: there is none of that name, or a deployed api gets it and `force` is not set.
        """
        query = _query(force="true" if force else None)
        with self._exchange("DELETE", f"/v1/secrets/{_segment(name)}{query}") as response:
            response.read()

    def stop(self, *, drain_timeout_s: float) -> Info:
        """Ask the control plane to end everything on this machine, itself included."""
        message = StopRequest(drain_timeout_s=drain_timeout_s)
        return self._call("POST", "/v1/stop", Info, message=message, timeout_s=drain_timeout_s + STOP_TIMEOUT_S)

    def _with_endpoint(self, told: Endpoint) -> Endpoint:
        """An api or a change of one, with its endpoint as it is reached from here."""
        return msgspec.structs.replace(told, endpoint=self.from_here(told.endpoint)) if self._environment else told

    def from_here(self, url: str) -> str:
        """
        A URL of the ingress as it is reached from this machine.

        One that says "this machine" was said elsewhere: there it means the control plane's machine, and here it would
        mean whatever listens on this one.
        """
        if not self._environment or not url:
            return url
        parts = urlsplit(url)
        if self._predictions:
            return self._predictions + parts.path
        there = parts.hostname or ""
        if not (there in ("localhost", "::1", "::", "0.0.0.0") or there.startswith("127.")):
            return url
        host = f"[{self._host}]" if ":" in self._host else self._host
        return parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host).geturl()

    def _get(self, path: str, kind: type[T], *, timeout_s: float = CALL_TIMEOUT_S) -> T:
        return self._call("GET", path, kind, timeout_s=timeout_s)

    def _call(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        message: msgspec.Struct | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> T:
        body = None if message is None else msgspec.json.encode(message)
        with self._exchange(method, path, body=body, timeout_s=timeout_s) as response:
            content = response.read()
        return self._decode(msgspec.json.Decoder(kind), content)

    def _decode(self, decoder: msgspec.json.Decoder[T], content: bytes) -> T:
        try:
            return decoder.decode(content)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UnknownAnswer(self.url, str(error)) from error

    @contextmanager
    def _exchange(
        self,
        method: str,
        path: str,
        *,
        body: Body = None,
        headers: dict[str, str] | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and hand out its response; every failure is one of ours."""
        connection = connection_to(self._host, self._port, encrypted=self._encrypted, timeout_s=timeout_s)
        everywhere = {"authorization": f"Bearer {self._token}", "accept": "application/json"}
        if isinstance(body, bytes):
            everywhere["content-type"] = "application/json"
        try:
            try:
                connection.request(method, self._prefix + path, body=body, headers=everywhere | (headers or {}))
            except (BrokenPipeError, ConnectionResetError):
                if connection.sock is None:
                    raise
                # It answered before it had read everything: a refusal, and the answer is worth reading.
            response = connection.getresponse()
            if response.status >= 400:
                raise self._failure(response)
            yield response
        except TimeoutError as error:
            raise self._unreachable(f"no answer within {timeout_s:.0f} s") from error
        except (http.client.HTTPException, OSError) as error:
            raise self._unreachable(failure_words(error)) from error
        finally:
            connection.close()

    def _unreachable(self, reason: str) -> OperatorUnreachable:
        return OperatorUnreachable(self.url, reason, environment=self._environment)

    def _failure(self, response: http.client.HTTPResponse) -> Exception:
        content = response.read(CHUNK_BYTES)
        if response.status == 401:
            return WrongToken(self.url, environment=self._environment)
        try:
            failure = msgspec.json.decode(content, type=Failure)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            if response.status == 403:  # of a proxy on the way
                return WrongToken(self.url, environment=self._environment)
            text = re.sub(r"\s+", " ", content.decode("utf-8", "replace")).strip()[:300]
            failure = Failure(
                error="operator-failed", message=f"{self.url} answered {response.status}: {text or response.reason}"
            )
        return OperatorFailed(response.status, failure)


def _segment(name: str) -> str:
    return quote(name, safe="")


def _query(**parameters: Any) -> str:
    given = {name: value for name, value in parameters.items() if value is not None}
    return "?" + urlencode(given) if given else ""


def connection_to(host: str, port: int | None, *, encrypted: bool, timeout_s: float) -> http.client.HTTPConnection:
    """A connection, not yet made. With TLS the other side has to show a certificate that this machine trusts."""
    if encrypted:
        return http.client.HTTPSConnection(host, port, timeout=timeout_s)
    return http.client.HTTPConnection(host, port, timeout=timeout_s)


def failure_words(error: Exception) -> str:
    """Why a call had no answer, in words."""
    if why := getattr(error, "verify_message", ""):  # of an SSLCertVerificationError: importing ssl takes 15 ms
        return f"its certificate is not trusted here: {why} (SSL_CERT_FILE names further ones to trust)"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, ConnectionResetError | BrokenPipeError):  # RemoteDisconnected is a ConnectionResetError
        return "it closed the connection"
    if isinstance(error, http.client.IncompleteRead):
        return "it closed the connection in the middle of an answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"{type(error).__name__}: {error}"
