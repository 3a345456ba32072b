"""A small real HTTP server that answers as the control plane and the ingress do, with what a test put into it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from cortex.ids import NodeId
from cortex.processes import ControlPlaneRecord, own_identity, write_identity
from cortex.settings import ControlLayout
from cortex.wire.agent import LogLine, LogLines
from cortex.wire.operator import (
    ApiChange,
    ApiStatus,
    AuditLine,
    ChangeKind,
    CreatedToken,
    DeployEvent,
    DeploymentStatus,
    DeployRequest,
    DeployResult,
    Digests,
    EventLine,
    EventPage,
    Failure,
    HistoryLine,
    Info,
    Removed,
    ReplicaCounts,
    RollbackResult,
    SecretStatus,
    Status,
    TokenStatus,
    Watched,
    rfc3339_ms,
)

TOKEN = "a-token-for-tests"
NOW = 1_800_000_000.0
"""What the tests' clocks show as wall time: 2027-01-15T08:00:00Z."""
NOW_TEXT = "2027-01-15T08:00:00Z"


def api(name: str = "sklearn", *, deployment: str = "iris", status: Status = Status.LIVE, **fields: Any) -> ApiStatus:
    """An api that is live, unless told otherwise."""
    ready = 1 if status is Status.LIVE else 0
    given: dict[str, Any] = {
        "endpoint": f"http://127.0.0.1:8880/{deployment}/{name}",
        "version": "3fa1c09d",
        "last_updated": "2027-01-15T07:52:00Z",
        "replicas": ReplicaCounts(requested=1, ready=ready, up_to_date=ready),
    }
    return ApiStatus(deployment=deployment, name=name, status=status, **(given | fields))


def change(name: str = "sklearn", kind: ChangeKind = ChangeKind.ADDED, **fields: Any) -> ApiChange:
    given: dict[str, Any] = {"version": "3fa1c09d", "endpoint": f"http://127.0.0.1:8880/iris/{name}"}
    return ApiChange(api=name, kind=kind, **(given | fields))


def log_line(text: str, *, replica: str = "iris.sklearn.aaaabbbb.0", **fields: Any) -> LogLine:
    return LogLine(wall_s=NOW, replica=replica, text=text, **fields)  # type: ignore[arg-type]


def happened(serial: int, text: str, *, kind: str = "live", api: str | None = "sklearn", **fields: Any) -> EventLine:
    """An event of today, a second after the one before."""
    when = rfc3339_ms(NOW - 600 + serial)
    given: dict[str, Any] = {"severity": "info", "deployment": "iris" if api else None, "time": when, "first": when}
    return EventLine(serial=serial, kind=kind, text=text, api=api, **(given | fields))


class Recorded(msgspec.Struct, frozen=True):
    """A request that came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def call(self) -> str:
        return f"{self.method} {self.path}"


class FakeOperator:
    """
    Both doors of an environment on one port.

    Tests fill in `apis`, `events`, `frames` and so on; `requests` tells what was asked. `write_home` makes a home that
    leads here.
    """

    def __init__(self) -> None:
        self.requests: list[Recorded] = []
        self.apis: list[ApiStatus] = []
        self.events: list[DeployEvent] = [DeployResult(committed=True)]
        self.frames: list[tuple[ApiStatus, ...]] = []
        """What `watch` answers, one after the other; the last one stays until the time is up."""
        self.log_batches: list[tuple[LogLine, ...]] = [()]
        """What `logs` answers, one after the other; then 404, as if the api had been deleted."""
        self.silent_nodes: dict[int, tuple[NodeId, ...]] = {}
        """By the place of such an answer: whose lines are missing in it."""
        self.logs_of: dict[str, tuple[LogLine, ...]] = {}
        """What `logs` answers for one version instead; of all of them by an empty one, and `current` for the usual."""
        self.history: list[HistoryLine] = []
        self.happened: list[EventLine] = []
        """What `events` answers: the last ones, or those after a serial."""
        self.rollback: RollbackResult | None = None
        """What a rollback answers; None: there is no such api."""
        self.blobs: dict[str, bytes] = {}
        self.failures: dict[str, tuple[int, Failure | bytes]] = {}
        """By `METHOD /path`: answer this error instead."""
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        """Of prediction endpoints, by path: status, headers, body."""
        self.hang_up_on: set[str] = set()
        """Close the connection without an answer, once for each call in here."""
        self.secrets: list[SecretStatus] = []
        self.tokens: list[TokenStatus] = []
        self.audit: list[AuditLine] = []
        self.echo = False
        """Whether predictions are the samples themselves."""
        self.cut_deploy_short = False
        self.info_fields: dict[str, Any] = {}
        self.on_request: list[Any] = []
        """Called with each request before it is answered."""
        self._changed = threading.Condition()
        fake = self

        class Handler(_Handler):
            operator = fake

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def write_home(self, home: Path, *, port: int | None = None) -> ControlLayout:
        """A home whose control plane is this process, listening here."""
        layout = ControlLayout(home)
        layout.prepare()
        identity = own_identity()
        record = ControlPlaneRecord(
            pid=identity.pid,
            start_ticks=identity.start_ticks,
            boot_id=identity.boot_id,
            operator_port=port or self.port,
            host="127.0.0.1",
            port=port or self.port,
        )
        write_identity(layout.controlplane_file, record)
        layout.token_file.write_text(TOKEN + "\n")
        layout.state_file.touch()
        return layout

    def push(self, *apis: ApiStatus) -> None:
        """One more frame for `watch`."""
        with self._changed:
            self.frames.append(apis)
            self._changed.notify_all()

    @property
    def calls(self) -> list[str]:
        return [request.call for request in self.requests]

    @property
    def deployed(self) -> DeployRequest:
        body = next(r.body for r in self.requests if r.call.startswith("POST /v1/deployments/"))
        return msgspec.json.decode(body, type=DeployRequest)

    def frame(self, token: str, timeout_s: float) -> Watched:
        index = int(token or 0)
        with self._changed:
            self._changed.wait_for(lambda: len(self.frames) > index, timeout_s)
            if len(self.frames) > index:
                return Watched(token=str(index + 1), apis=self.frames[index])
        return Watched(token=token, apis=self.frames[-1] if self.frames else tuple(self.apis))

    def info(self) -> Info:
        fields: dict[str, Any] = {
            "version": "0.1.0",
            "environment": "local",
            "home": "/home/me/.cortex",
            "operator": f"http://127.0.0.1:{self.port}",
            "ingress": "http://127.0.0.1:8880",
            "pid": own_identity().pid,
            "started": "2027-01-15T06:00:00Z",
            "agent_pid": 4242,
            "ingress_pid": 4243,
            "ingress_up": True,
            "cpu_millis": 2000,
            "mem_bytes": 8 * 2**30,
            "requested_cpu_millis": 400,
            "requested_mem_bytes": 512 * 2**20,
            "apis": len(self.apis),
            "replicas": len(self.apis),
        }
        return Info(**(fields | self.info_fields))

    def deployments(self) -> list[DeploymentStatus]:
        names = sorted({api.deployment for api in self.apis})
        return [
            DeploymentStatus(
                name=name,
                status="live",
                apis=sum(api.deployment == name for api in self.apis),
                last_updated="2027-01-15T07:52:00Z",
            )
            for name in names
        ]


class _Handler(BaseHTTPRequestHandler):
    operator: FakeOperator
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionResetError, BrokenPipeError):
            pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Recorded(self.command, url.path, dict(parse_qsl(url.query, keep_blank_values=True)), headers, body)
        fake = self.operator
        fake.requests.append(request)
        for listener in fake.on_request:
            listener(request)
        if request.call in fake.hang_up_on:
            fake.hang_up_on.discard(request.call)
            self.close_connection = True
            return
        if not request.path.startswith("/v1/"):
            self._predict(request)
        elif headers.get("authorization") != f"Bearer {TOKEN}":
            self._fail(401, Failure(error="wrong-token", message="the token is missing or wrong"))
        elif request.call in fake.failures:
            self._fail(*fake.failures[request.call])
        else:
            self._route(request)

    def _route(self, request: Recorded) -> None:
        fake = self.operator
        match request.method, request.path.removeprefix("/v1/").split("/"):
            case "GET", ["info"]:
                self._json(fake.info())
            case "POST", ["blobs", "missing"]:
                asked = msgspec.json.decode(request.body, type=Digests)
                self._json(Digests(digests=tuple(d for d in asked.digests if d not in fake.blobs)))
            case "PUT", ["blobs", digest]:
                if hashlib.sha256(request.body).hexdigest() != digest:
                    self._fail(422, Failure(error="digest-mismatch", message="other bytes than announced"))
                    return
                fake.blobs[digest] = request.body
                self._send(204, b"")
            case "POST", ["deployments", _]:
                self._stream(fake.events)
            case "GET", ["deployments"]:
                self._json(fake.deployments())
            case "DELETE", ["deployments", name, *rest]:
                gone = [a for a in fake.apis if a.deployment == name and rest in ([], ["apis", a.name])]
                self._json(Removed(apis=tuple(f"{a.deployment}/{a.name}" for a in gone)))
            case "POST", ["deployments", _, "apis", name, "rollback"]:
                self._json(fake.rollback) if fake.rollback is not None else self._not_found(name)
            case "GET", ["apis"]:
                wanted = request.query.get("deployment")
                self._json([a for a in fake.apis if wanted in (None, a.deployment)])
            case "GET", ["watch"]:
                self._json(fake.frame(request.query["token"], float(request.query["timeout_s"])))
            case "GET", ["apis", deployment, name]:
                found = [a for a in fake.apis if (a.deployment, a.name) == (deployment, name)]
                self._json(found[0]) if found else self._not_found(name)
            case "GET", ["apis", _, name, "logs"]:
                asked_for = int(request.query.get("cursor") or 0)
                version = request.query.get("version", "")
                if not asked_for and version in fake.logs_of:
                    self._json(LogLines(lines=fake.logs_of[version], cursor="1"))
                elif asked_for < len(fake.log_batches):
                    missing = fake.silent_nodes.get(asked_for, ())
                    lines = fake.log_batches[asked_for]
                    self._json(LogLines(lines=lines, cursor=str(asked_for + 1), missing=missing))
                else:
                    self._not_found(name)
            case "GET", ["apis", _, _, "history"]:
                self._json(fake.history)
            case "GET", ["events"]:
                self._events(request.query)
            case "GET", ["tokens"]:
                self._json(fake.tokens)
            case "POST", ["tokens", name]:
                status = TokenStatus(name=name, role=json.loads(request.body)["role"], created=NOW_TEXT)
                self._json(CreatedToken(status=status, token="cortex_made-for-tests"))
            case "DELETE", ["tokens", _]:
                self._send(204, b"")
            case "GET", ["audit"]:
                self._json(fake.audit[-int(request.query["limit"]) :])
            case "GET", ["secrets"]:
                self._json(fake.secrets)
            case "PUT", ["secrets", name]:
                known = [secret for secret in fake.secrets if secret.name == name]
                self._json(known[0] if known else SecretStatus(name=name, updated=NOW_TEXT))
            case "DELETE", ["secrets", _]:
                self._send(204, b"")
            case "POST", ["stop"]:
                self._json(fake.info())
            case _:
                self._fail(404, Failure(error="not-found", message="no such call"))

    def _predict(self, request: Recorded) -> None:
        status, headers, body = self.operator.answers.get(
            request.path, (404, {}, json.dumps({"error": "not-found", "message": "no such api"}).encode())
        )
        body = request.body if self.operator.echo and status == 200 else body
        self._send(status, body, {"content-type": "application/json", "x-request-id": "req-1"} | headers)

    def _stream(self, events: Iterable[DeployEvent]) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/x-ndjson")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in events:
            line = msgspec.json.encode(event) + b"\n"
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            if self.operator.cut_deploy_short:
                self.close_connection = True
                return
        self.wfile.write(b"0\r\n\r\n")

    def _events(self, query: dict[str, str]) -> None:
        """Those of the api or deployment that is asked for; an api that nothing is told of is unknown."""
        owner, name, after = query.get("deployment"), query.get("api"), query.get("after", "")
        of = [e for e in self.operator.happened if owner in (None, e.deployment) and name in (None, e.api)]
        known = any((a.deployment, a.name) == (owner, name) for a in self.operator.apis)
        if name is not None and not of and not known and not after:
            self._not_found(name)
            return
        last = max((e.serial for e in self.operator.happened), default=0)
        limit = int(query["limit"])
        told = [e for e in of if e.serial > int(after)][:limit] if after else of[-limit:]
        self._json(EventPage(events=tuple(told), cursor=str(last)))

    def _not_found(self, name: str) -> None:
        self._fail(404, Failure(error="unknown-api", message=f'there is no api "{name}"'))

    def _fail(self, status: int, failure: Failure | bytes) -> None:
        self._send(status, failure if isinstance(failure, bytes) else msgspec.json.encode(failure))

    def _json(self, content: object) -> None:
        self._send(200, msgspec.json.encode(content), {"content-type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
