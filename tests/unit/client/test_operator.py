"""Calls to the control plane over a real socket: what is sent, what comes back, what goes wrong."""

from __future__ import annotations

import hashlib
import io
import socket
from typing import Any

import pytest

from cortex.client.errors import OperatorFailed, OperatorUnreachable, UnknownAnswer, WrongToken
from cortex.client.operator import ALL_LINES, OperatorClient
from cortex.errors import Problem
from cortex.wire.operator import DeployProgress, DeployRequest, DeployResult, Failure, HistoryLine

BLOB = b"weights" * 1000
DIGEST = hashlib.sha256(BLOB).hexdigest()


@pytest.fixture
def operator(fake: Any, fakes: Any) -> OperatorClient:
    return OperatorClient(port=fake.port, token=fakes.TOKEN)


def test_every_call_carries_the_token(operator: OperatorClient, fake: Any, fakes: Any) -> None:
    operator.info()
    assert fake.requests[0].headers["authorization"] == f"Bearer {fakes.TOKEN}"


def test_apis_are_decoded(operator: OperatorClient, fake: Any, fakes: Any) -> None:
    fake.apis = [fakes.api("a"), fakes.api("b", deployment="other")]
    assert operator.apis() == tuple(fake.apis)
    assert operator.apis("iris") == (fake.apis[0],)
    assert operator.api("iris", "a") == fake.apis[0]


def test_deployments_history_and_removal_are_decoded(operator: OperatorClient, fake: Any, fakes: Any) -> None:
    fake.apis = [fakes.api("a")]
    fake.history = [HistoryLine(version="1", deployed="2027-01-01T00:00:00Z", cause="added", outcome="live")]
    assert [d.name for d in operator.deployments()] == ["iris"]
    assert operator.history("iris", "a") == tuple(fake.history)
    assert operator.remove("iris").apis == ("iris/a",)
    assert operator.remove("iris", "a").apis == ("iris/a",)
    assert fake.calls[-2:] == ["DELETE /v1/deployments/iris", "DELETE /v1/deployments/iris/apis/a"]


def test_events_are_asked_for_by_api_and_read_on(operator: OperatorClient, fake: Any, fakes: Any) -> None:
    fake.happened = [fakes.happened(1, "serves"), fakes.happened(2, "of another", api="other")]
    page = operator.events(deployment="iris", api="sklearn", limit=7)
    assert page.events == (fake.happened[0],)
    assert operator.events(after=page.cursor, wait_s=0.5).events == ()
    assert [request.query for request in fake.requests] == [
        {"deployment": "iris", "api": "sklearn", "limit": "7"},
        {"limit": "100", "after": "2", "wait_s": "0.500"},
    ]


def test_a_blob_is_streamed_and_its_progress_told(operator: OperatorClient, fake: Any) -> None:
    told: list[int] = []
    operator.upload_blob(DIGEST, io.BytesIO(BLOB), len(BLOB), told.append)
    assert fake.blobs[DIGEST] == BLOB
    assert sum(told) == len(BLOB)
    assert operator.missing_blobs([DIGEST, "0" * 64]) == ("0" * 64,)


def test_a_blob_is_read_only_as_far_as_it_was_announced(operator: OperatorClient, fake: Any) -> None:
    operator.upload_blob(DIGEST, io.BytesIO(BLOB + b"more"), len(BLOB))
    assert fake.blobs[DIGEST] == BLOB


def test_an_empty_blob_is_uploaded(operator: OperatorClient, fake: Any) -> None:
    digest = hashlib.sha256(b"").hexdigest()
    operator.upload_blob(digest, io.BytesIO(b""), 0)
    assert fake.blobs[digest] == b""


def test_a_blob_with_other_bytes_is_refused(operator: OperatorClient) -> None:
    with pytest.raises(OperatorFailed) as caught:
        operator.upload_blob(DIGEST, io.BytesIO(b"other"), 5)
    assert caught.value.failure.error == "digest-mismatch"


def test_the_events_of_a_deploy_come_one_by_one(operator: OperatorClient, fake: Any) -> None:
    fake.events = [DeployProgress(message="checking", done=1, total=2), DeployResult(committed=True)]
    request = DeployRequest(deployment="iris", source="/here")
    assert list(operator.deploy(request)) == fake.events
    assert fake.deployed == request


def test_a_deploy_that_breaks_off_is_an_error(operator: OperatorClient, fake: Any) -> None:
    fake.events = [DeployProgress(message="checking"), DeployResult()]
    fake.cut_deploy_short = True
    with pytest.raises(OperatorUnreachable) as caught:
        list(operator.deploy(DeployRequest(deployment="iris", source="/here")))
    assert "`cortex get`" in caught.value.hint


def test_watch_passes_token_and_patience_on(operator: OperatorClient, fake: Any, fakes: Any) -> None:
    fake.push(fakes.api())
    watched = operator.watch(timeout_s=3.0, deployment="iris")
    assert watched.apis == (fakes.api(),)
    assert fake.requests[-1].query == {"token": "", "timeout_s": "3.000", "deployment": "iris"}
    assert operator.watch(watched.token, timeout_s=0.0).token == watched.token


def test_only_given_parameters_of_logs_are_sent(operator: OperatorClient, fake: Any, fakes: Any) -> None:
    fake.log_batches = [(fakes.log_line("hello"),), ()]
    first = operator.logs("iris", "a", tail=100)
    assert first.lines == (fakes.log_line("hello"),)
    operator.logs("iris", "a", request="r 1", cursor=first.cursor, wait_s=2.0)
    assert [r.query for r in fake.requests] == [
        {"tail": "100"},
        {"request": "r 1", "tail": str(ALL_LINES), "cursor": "1", "wait_s": "2.000"},
    ]


def test_a_failure_carries_code_and_problems(operator: OperatorClient, fake: Any) -> None:
    problem = Problem(reference="compute-unavailable", message="too large")
    failure = Failure(error="compute-unavailable", message="too large", problems=(problem,))
    fake.failures["GET /v1/info"] = (422, failure)
    with pytest.raises(OperatorFailed) as caught:
        operator.info()
    assert (caught.value.status, caught.value.failure, caught.value.problems) == (422, failure, (problem,))


def test_an_error_that_is_no_failure_of_ours_is_told_as_it_is(operator: OperatorClient, fake: Any) -> None:
    fake.failures["GET /v1/info"] = (502, b"<html>\n  Bad gateway</html>")
    with pytest.raises(OperatorFailed) as caught:
        operator.info()
    assert str(caught.value) == f"{operator.url} answered 502: <html> Bad gateway</html>"


def test_a_wrong_token_is_told_as_such(fake: Any) -> None:
    with pytest.raises(WrongToken):
        OperatorClient(port=fake.port, token="another").info()


def test_an_answer_of_something_else_is_told_as_such(operator: OperatorClient, fake: Any) -> None:
    fake.failures["GET /v1/info"] = (200, b'{"hello": "world"}')
    with pytest.raises(UnknownAnswer):
        operator.info()


def test_a_closed_port_is_unreachable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(OperatorUnreachable) as caught:
            OperatorClient(port=taken.getsockname()[1], token="t").info()
    assert caught.value.reason == "nothing listens there"


def test_no_answer_in_time_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(OperatorUnreachable) as caught:
        OperatorClient(port=silent.getsockname()[1], token="t").info(timeout_s=0.05)
    assert "no answer within" in caught.value.reason


def test_a_connection_closed_without_an_answer_is_unreachable(operator: OperatorClient, fake: Any) -> None:
    fake.hang_up_on.add("GET /v1/info")
    with pytest.raises(OperatorUnreachable) as caught:
        operator.info()
    assert caught.value.reason == "it closed the connection"
    assert operator.info().environment == "local"


def test_names_are_quoted_in_paths(operator: OperatorClient, fake: Any) -> None:
    with pytest.raises(OperatorFailed):
        operator.api("iris", "../stop?x=1")
    assert fake.requests[-1].path == "/v1/apis/iris/..%2Fstop%3Fx%3D1"
