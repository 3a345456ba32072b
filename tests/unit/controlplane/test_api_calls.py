"""The calls of `cortex.controlplane.api` over HTTP, with a small operator behind it: what goes in, what comes back."""

import asyncio
import hashlib
import json
import threading

import httpx
import msgspec
import pytest

from cortex.artifacts.store import ArtifactStore
from cortex.controlplane.api import bodies, deployments
from cortex.controlplane.api.application import build_app
from cortex.controlplane.audit import Audit
from cortex.controlplane.lines import AgentUnreachable
from cortex.controlplane.tokens import Tokens
from cortex.errors import CortexError, Problem, Problems
from cortex.ids import ApiKey, ReplicaId
from cortex.state.base import StateFull
from cortex.testing.clock import FakeClock
from cortex.wire.agent import LogLine, LogLines, ReadLogs
from cortex.wire.operator import (
    ApiChange,
    ApiStatus,
    ChangeKind,
    DeploymentStatus,
    DeployProgress,
    DeployRequest,
    DeployResult,
    Digests,
    EventLine,
    EventPage,
    Failure,
    HistoryLine,
    Info,
    Removed,
    RollbackRequest,
    RollbackResult,
    Status,
    StopRequest,
    Watched,
)

TOKEN = "a-token"
INFO = Info(version="1", environment="local", home="/h", operator="http://o", ingress="http://i", pid=1, started="now")
STATUS = ApiStatus(
    deployment="iris", name="a", status=Status.LIVE, endpoint="http://i/iris/a", version="12345678", last_updated=None
)
RESULT = DeployResult(changes=(ApiChange(api="a", kind=ChangeKind.ADDED),), committed=True)
ROLLED_BACK = RollbackResult(change=ApiChange(api="a", kind=ChangeKind.ROLLED_BACK, version="12345678"))
EVENTS = EventPage(
    events=(EventLine(serial=1, time="now", kind="live", text="serves", severity="info", first="now"),), cursor="e-1"
)
LINES = LogLines(lines=(LogLine(wall_s=1.0, replica=ReplicaId("iris.a.1.0"), text="hello"),), cursor="c2")


class FakeOperator:
    """Knows one api, `iris/a`, and notes what it is asked."""

    stopping = False
    secrets = None

    def __init__(self, folder) -> None:
        self.store = ArtifactStore(folder)
        self.tokens = Tokens(file=folder / "tokens.json", home=TOKEN, clock=FakeClock())
        self.audit = Audit(folder / "audit", FakeClock())
        self.asked = []
        self.error: Exception | None = None
        self.go_on: threading.Event | None = None

    def _note(self, asked, answer):
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        return answer

    def info(self):
        return self._note("info", INFO)

    def deploy(self, name, request, emit, left):
        self.left = left
        emit(DeployProgress(message="checking", api="a", done=1, total=2))
        if self.go_on is not None:
            assert self.go_on.wait(60)
        return self._note((name, request), RESULT)

    def delete(self, deployment, api):
        known = deployment == "iris" and api in (None, "iris/a")
        return self._note((deployment, api), Removed(apis=("iris/a",)) if known else None)

    def roll_back(self, api, request):
        return self._note((api, request), ROLLED_BACK if api == "iris/a" else None)

    def deployments(self):
        return self._note("deployments", (DeploymentStatus(name="iris", status="live", apis=1, last_updated=None),))

    def apis(self, deployment):
        return self._note(deployment, (STATUS,) if deployment in (None, "iris") else ())

    def api(self, deployment, name):
        return self._note((deployment, name), STATUS if (deployment, name) == ("iris", "a") else None)

    async def watch(self, token, timeout_s, deployment):
        return self._note((token, timeout_s, deployment), Watched(token="t2", apis=(STATUS,)))

    def revisions(self, api, version):
        return ("aaaabbbb",) if version == "12345678" else ()

    def logs(self, request):
        return self._note(request, LINES)

    def history(self, api):
        line = HistoryLine(version="12345678", deployed="now", cause="first deploy", outcome="live")
        return self._note(api, (line,) if api == "iris/a" else ())

    async def events(self, *, deployment, api, limit, after, wait_s):
        return self._note((deployment, api, limit, after, wait_s), EVENTS if api in (None, "iris/a") else None)

    def stop(self, request):
        return self._note(request, INFO)

    def metrics(self):
        return self._note("metrics", "cortex_build_info 1\n")


@pytest.fixture
def operator(tmp_path):
    return FakeOperator(tmp_path)


@pytest.fixture
def call(operator):
    """Make a call; returns the response."""

    def call(method, path, *, token=TOKEN, **fields):
        app = build_app(operator)

        async def ask():
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, headers={"authorization": f"Bearer {token}"}, **fields)

        return asyncio.run(ask())

    return call


def encoded(message) -> bytes:
    return msgspec.json.encode(message)


def decoded(response, kind):
    assert response.headers["content-type"] == "application/json"
    return msgspec.json.decode(response.content, type=kind)


def failure(response) -> tuple[int, str]:
    """Status and code of an error, which has to be of our own form."""
    return response.status_code, decoded(response, Failure).error


# ---- what is passed on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "asked", "answer"),
    [
        ("GET", "/v1/info", "info", INFO),
        ("GET", "/v1/apis", None, (STATUS,)),
        ("GET", "/v1/apis?deployment=iris", "iris", (STATUS,)),
        ("GET", "/v1/apis?deployment=none", "none", ()),
        ("GET", "/v1/apis/iris/a", ("iris", "a"), STATUS),
        ("DELETE", "/v1/deployments/iris", ("iris", None), Removed(apis=("iris/a",))),
        ("DELETE", "/v1/deployments/iris/apis/a", ("iris", "iris/a"), Removed(apis=("iris/a",))),
        ("GET", "/v1/watch?token=t1&timeout_s=5", ("t1", 5.0, None), Watched(token="t2", apis=(STATUS,))),
        ("GET", "/v1/watch", ("", 30.0, None), Watched(token="t2", apis=(STATUS,))),
    ],
)
def test_each_call_is_passed_on_and_its_answer_given_back(call, operator, method, path, asked, answer):
    response = call(method, path)
    assert response.status_code == 200
    assert response.content == encoded(answer)
    assert operator.asked == [asked]


def test_an_api_that_is_gone_has_no_logs_to_follow(call):
    assert call("GET", "/v1/apis/iris/unknown/logs?cursor=c&wait_s=2").status_code == 404


def test_every_parameter_of_reading_logs_is_passed_on(call, operator):
    query = "since_wall_s=1.5&replica=1.0&version=12345678&request=r&tail=7&cursor=c&wait_s=2"
    assert decoded(call("GET", f"/v1/apis/iris/a/logs?{query}"), LogLines) == LINES
    assert operator.asked == [
        ("iris", "a"),
        ReadLogs(
            api=ApiKey("iris/a"),
            since_wall_s=1.5,
            replica=ReplicaId("1.0"),
            revisions=("aaaabbbb",),
            request="r",
            tail=7,
            cursor="c",
            wait_s=2.0,
        ),
    ]


def test_stopping_says_how_long_to_drain(call, operator):
    assert call("POST", "/v1/stop", content=encoded(StopRequest(drain_timeout_s=3.0))).status_code == 200
    assert operator.asked == [StopRequest(drain_timeout_s=3.0)]


def test_an_api_is_taken_back(operator, call):
    response = call("POST", "/v1/deployments/iris/apis/a/rollback", content=b'{"version": "1234", "force": true}')
    assert msgspec.json.decode(response.content, type=RollbackResult) == ROLLED_BACK
    assert operator.asked == [("iris/a", RollbackRequest(version="1234", force=True))]
    assert failure(call("POST", "/v1/deployments/iris/apis/b/rollback", content=b"{}")) == (404, "unknown-api")
    assert failure(call("POST", "/v1/deployments/iris/apis/a/rollback", content=b"[]"))[0] == 422


def test_the_page_for_prometheus_is_text(call):
    response = call("GET", "/metrics")
    assert response.text == "cortex_build_info 1\n"
    assert response.headers["content-type"].startswith("text/plain")


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/apis/iris/b", (404, "unknown-api")),
        ("GET", "/v1/apis/iris/b/history", (404, "unknown-api")),
        ("DELETE", "/v1/deployments/other", (404, "unknown-deployment")),
        ("DELETE", "/v1/deployments/iris/apis/b", (404, "unknown-api")),
        ("POST", "/v1/deployments/iris/apis/UPPER/rollback", (404, "not-found")),
        ("GET", "/v1/apis/iris/UPPER", (404, "not-found")),
        ("GET", f"/v1/apis/iris/{'a' * 43}", (404, "not-found")),
        ("GET", "/v1/apis/iris/a%2Fb", (404, "not-found")),
        ("GET", "/v1/apis/iris/a/logs?version=87654321", (404, "unknown-version")),
        ("GET", "/v1/apis/iris/a/logs?tail=-1", (422, "bad-parameters")),
        ("GET", "/v1/apis/iris/a/logs?wait_s=3600", (422, "bad-parameters")),
        ("GET", "/v1/watch?timeout_s=soon", (422, "bad-parameters")),
        ("GET", "/v1/events?deployment=iris&api=b", (404, "unknown-api")),
        ("GET", "/v1/events?deployment=Iris", (404, "not-found")),
        ("GET", "/v1/events?deployment=iris&api=..", (404, "not-found")),
        ("GET", "/v1/events?api=a", (422, "bad-request")),
        ("GET", "/v1/events?limit=0", (422, "bad-parameters")),
        ("GET", "/v1/events?limit=1001", (422, "bad-parameters")),
        ("GET", "/v1/events?limit=many", (422, "bad-parameters")),
        ("GET", "/v1/events?wait_s=3600", (422, "bad-parameters")),
        ("PUT", "/v1/blobs/not-a-digest", (422, "bad-digest")),
        ("PUT", f"/v1/blobs/{'A' * 64}", (422, "bad-digest")),
    ],
)
def test_what_does_not_exist_or_cannot_be_meant_is_refused(call, method, path, expected):
    assert failure(call(method, path)) == expected


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut short"),
        pytest.param(b"[]", id="another type"),
        pytest.param(b'{"digests": [1]}', id="another type inside"),
        pytest.param(b'{"digests": ["\xff"]}', id="no text"),
        pytest.param(b"[" * 100_000, id="deeply nested"),
    ],
)
def test_a_body_that_cannot_be_read_is_422_in_our_form(call, body):
    assert failure(call("POST", "/v1/blobs/missing", content=body)) == (422, "bad-request")


def test_a_body_over_the_limit_is_413(call, monkeypatch):
    monkeypatch.setattr(bodies, "MAX_JSON_BYTES", 100)
    assert failure(call("POST", "/v1/stop", content=b" " * 101)) == (413, "body-too-large")

    async def in_chunks():
        for _ in range(11):
            yield b" " * 10

    assert failure(call("POST", "/v1/stop", content=in_chunks())) == (413, "body-too-large")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (AgentUnreachable("refused"), (503, "agent-unreachable")),
        (StateFull("state.db", "the disk is full"), (507, "disk-full")),
        (CortexError("something else"), (422, "error")),
        (Problems([Problem(reference="x", message="m")]), (422, "problems")),
        (ZeroDivisionError("division by zero"), (500, "internal-error")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error_has_its_status_and_our_form(call, operator, error, expected):
    operator.error = error
    response = call("GET", "/v1/info")
    assert failure(response) == expected
    assert "division" not in response.text


def test_events_are_asked_for_as_said(call, operator):
    assert msgspec.json.decode(call("GET", "/v1/events").content, type=EventPage) == EVENTS
    call("GET", "/v1/events?deployment=iris")
    call("GET", "/v1/events?deployment=iris&api=a&limit=7&after=e-1&wait_s=2.5")
    assert operator.asked == [
        (None, None, 100, "", 0.0),
        ("iris", None, 100, "", 0.0),
        ("iris", "iris/a", 7, "e-1", 2.5),
    ]


# ---- deploys ---------------------------------------------------------------------------------------------------------


def events(response) -> list[dict]:
    assert response.headers["content-type"].startswith("application/x-ndjson")
    assert response.content.endswith(b"\n")
    return [json.loads(line) for line in response.content.splitlines()]


def deploy(call, name="iris", **fields):
    request = DeployRequest(deployment="iris", source="/home/ann/iris", **fields)
    return call("POST", f"/v1/deployments/{name}", content=encoded(request))


def test_a_deploy_is_told_line_by_line_and_its_result_comes_last(call, operator):
    progress, result = events(deploy(call, dry_run=True))
    assert progress == {
        "type": "progress",
        "message": "checking",
        "api": "a",
        "done": 1,
        "total": 2,
        "in_bytes": False,
    }
    assert msgspec.convert({key: value for key, value in result.items() if key != "type"}, DeployResult) == RESULT
    (asked,) = operator.asked
    assert (asked[0], asked[1].dry_run) == ("iris", True)


@pytest.mark.parametrize(
    ("error", "references"),
    [
        (
            Problems([Problem(reference="one", message="m"), Problem(reference="two", message="m")]),
            ["one", "two"],
        ),
        (AgentUnreachable("refused"), ["agent-unreachable"]),
        (ZeroDivisionError("secret"), ["internal-error"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_deploy_that_fails_ends_with_its_problems(call, operator, error, references):
    operator.error = error
    response = deploy(call)
    assert response.status_code == 200
    result = events(response)[-1]
    assert [problem["reference"] for problem in result["problems"]] == references
    assert not result["committed"]
    assert "secret" not in response.text


def test_a_deploy_of_another_name_than_its_path_is_refused(call, operator):
    assert failure(deploy(call, "other")) == (422, "bad-request")
    assert operator.asked == []


def test_a_deploy_goes_on_when_its_caller_leaves_and_is_told_of_it(operator):
    app = build_app(operator)
    operator.go_on = threading.Event()
    body = encoded(DeployRequest(deployment="iris", source="/x"))

    async def story():
        began = asyncio.Event()
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        left = asyncio.Event()

        async def receive():
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            if b"checking" in message.get("body", b""):
                began.set()

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/deployments/iris",
            "raw_path": b"/v1/deployments/iris",
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {TOKEN}".encode())],
            "server": ("test", 80),
            "client": ("test", 1),
            "scheme": "http",
            "root_path": "",
        }
        calling = asyncio.create_task(app(scope, receive, send))
        async with asyncio.timeout(60):
            await began.wait()
            left.set()
            await calling
            assert operator.asked == []
            assert operator.left.is_set()
            operator.go_on.set()
            while not operator.asked:
                await asyncio.sleep(0.001)

    asyncio.run(story())


# ---- uploads ---------------------------------------------------------------------------------------------------------


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def chunked(content: bytes, size: int = 1000):
    async def chunks():
        for start in range(0, len(content), size):
            yield content[start : start + size]

    return chunks()


def test_only_what_is_missing_has_to_be_uploaded(call, operator):
    content = b"x" * 100_000
    asked = Digests(digests=(sha256(b"other"), sha256(content)))
    assert call("PUT", f"/v1/blobs/{sha256(content)}", content=chunked(content)).status_code == 204
    assert decoded(call("POST", "/v1/blobs/missing", content=encoded(asked)), Digests).digests == (sha256(b"other"),)


@pytest.mark.parametrize("content", [b"", b"x", b"y" * 3_000_000], ids=len)
def test_files_of_any_size_are_stored_as_they_are(call, operator, content):
    assert call("PUT", f"/v1/blobs/{sha256(content)}", content=chunked(content, 70_000)).status_code == 204
    (stored,) = operator.store.root.glob(f"blobs/*/{sha256(content)}")
    assert stored.read_bytes() == content


def test_what_is_there_already_is_taken_again_without_complaint(call, operator):
    content = b"z" * 50_000
    for _ in range(2):
        assert call("PUT", f"/v1/blobs/{sha256(content)}", content=chunked(content)).status_code == 204


def test_bytes_of_another_digest_are_refused_and_not_kept(call, operator):
    assert failure(call("PUT", f"/v1/blobs/{sha256(b'announced')}", content=b"something else")) == (
        422,
        "digest-mismatch",
    )
    assert list(operator.store.root.glob("blobs/*/*")) == []
    assert list(operator.store.root.glob("tmp/*")) == []


def test_an_upload_over_the_limit_is_413_and_read_to_its_end(call, operator, monkeypatch):
    monkeypatch.setattr(deployments, "MAX_BLOB_BYTES", 5000)
    monkeypatch.setattr(bodies, "PIECE_BYTES", 1000)
    sent = 0

    async def chunks():
        nonlocal sent
        for _ in range(50):
            sent += 1000
            yield b"x" * 1000

    assert failure(call("PUT", f"/v1/blobs/{'0' * 64}", content=chunks())) == (413, "upload-too-large")
    assert sent == 50_000
    assert list(operator.store.root.glob("tmp/*")) == []


def test_a_store_that_cannot_write_is_507(call, operator, tmp_path):
    operator.store = ArtifactStore(tmp_path / "file" / "artifacts")
    (tmp_path / "file").write_bytes(b"")  # in the way of the folder
    assert failure(call("PUT", f"/v1/blobs/{sha256(b'x')}", content=b"x")) == (507, "store-unavailable")


def test_an_upload_that_breaks_off_leaves_nothing(operator):
    app = build_app(operator)

    async def story():
        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"half", "more_body": True}]
        sent = []

        async def receive():
            return messages.pop()

        async def send(message):
            sent.append(message)

        path = f"/v1/blobs/{sha256(b'half of it')}"
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "PUT",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {TOKEN}".encode())],
            "server": ("test", 80),
            "client": ("test", 1),
            "scheme": "http",
            "root_path": "",
        }
        await app(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(story()) == 400
    assert list(operator.store.root.glob("tmp/*")) == []
