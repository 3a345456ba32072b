"""One sample to one endpoint."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from cortex.client.prediction import (
    Answer,
    EndpointUnreachable,
    PredictionRefused,
    answered_sample,
    content_type_of,
    post,
    read_sample,
    sniffed_content_type,
)


@pytest.fixture
def endpoint(fake: Any) -> str:
    return f"http://127.0.0.1:{fake.port}/iris/sklearn"


@pytest.mark.parametrize(
    ("name", "content_type"),
    [
        ("a.json", "application/json"),
        ("a.JPG", "image/jpeg"),
        ("a.jpeg", "image/jpeg"),
        ("a.png", "image/png"),
        ("a.webp", "image/webp"),
        ("a.gif", "image/gif"),
        ("a.wav", "audio/wav"),
        ("a.mp3", "audio/mpeg"),
        ("a.flac", "audio/flac"),
        ("a.npy", "application/x-npy"),
        ("a.txt", "text/plain"),
        ("a.bin", "application/octet-stream"),
        ("json", "application/octet-stream"),
    ],
)
def test_the_content_type_follows_from_the_ending(name: str, content_type: str) -> None:
    assert content_type_of(name) == content_type


@pytest.mark.parametrize(
    ("name", "body", "content_type"),
    [
        ("sample", b'{"a": 1}', "application/json"),
        ("sample.txt", b" [1, 2]\n", "application/json"),
        ("sample.data", b"5.2", "application/json"),
        ("sample.txt", b"5.2", "text/plain"),
        ("sample.txt", b"[draft] hello", "text/plain"),
        ("sample.json", b"{", "application/json"),
        ("photo", b"\xff\xd8\xff\xe0", "image/jpeg"),
        ("photo.png", b"whatever", "image/png"),
        ("blob", b"{ not json", "application/octet-stream"),
        ("blob.bin", b"1234", "application/octet-stream"),
        ("blob.bin", b"[1]", "application/json"),
        ("blob.bin", b"\x00\x01", "application/octet-stream"),
        ("empty", b"", "application/octet-stream"),
    ],
)
def test_a_file_is_what_it_holds(tmp_path: Path, name: str, body: bytes, content_type: str) -> None:
    (tmp_path / name).write_bytes(body)
    assert read_sample(tmp_path / name) == (body, content_type)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"[1, 2]", "application/json"),
        (b"", "application/json"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"RIFF\0\0\0\0WAVEfmt ", "audio/wav"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"\x93NUMPY\x01\x00", "application/x-npy"),
    ],
)
def test_bytes_without_a_name_are_looked_at(body: bytes, content_type: str) -> None:
    assert sniffed_content_type(body) == content_type


def test_a_sample_is_posted_and_the_answer_handed_back(endpoint: str, fake: Any) -> None:
    fake.answers["/iris/sklearn"] = (200, {}, b'{"label": "setosa"}')
    answer = post(endpoint, b"[1]", "application/json", debug=True)
    assert answer == Answer(
        status=200, body=b'{"label": "setosa"}', content_type="application/json", request_id="req-1"
    )
    (request,) = fake.requests
    assert (request.call, request.query, request.body) == ("POST /iris/sklearn", {"debug": "true"}, b"[1]")
    assert request.headers["content-type"] == "application/json"
    assert "authorization" not in request.headers


def test_a_refusal_carries_code_message_request_id_and_facts(endpoint: str, fake: Any) -> None:
    body = {"error": "wrong-shape", "message": "no", "request_id": "req-1", "input": "x", "hint": "channels first?"}
    fake.answers["/iris/sklearn"] = (422, {}, json.dumps(body).encode())
    with pytest.raises(PredictionRefused) as caught:
        post(endpoint, b"[1]", "application/json")
    problem = caught.value.problem()
    assert (problem.reference, problem.message, problem.hint) == (
        "wrong-shape",
        "no\ninput: x\nstatus 422, request id req-1",
        "channels first?",
    )


def test_a_refusal_that_is_not_json_is_told_as_it_is(endpoint: str, fake: Any) -> None:
    fake.answers["/iris/sklearn"] = (503, {}, b"busy\n")
    with pytest.raises(PredictionRefused) as caught:
        post(endpoint, b"[1]", "application/json")
    assert caught.value.problem().message == "busy\nstatus 503, request id req-1"
    assert caught.value.problem().reference == "http-503"


@pytest.mark.parametrize(
    ("status", "page", "sample"),
    [
        (200, b'{"api": "iris/sklearn", "sample": [[1]], "call": "curl \xe2\x80\xa6"}', [[1]]),
        (200, b'{"api": "iris/sklearn", "sample": [[1]], "note": "it was not answered"}', None),
        (200, b"[1]", None),
        (200, b"<html>", None),
        (503, b'{"error": "no-ready-replica", "sample": 1, "call": "x"}', None),
    ],
)
def test_the_page_of_an_api_offers_what_it_has_answered(
    endpoint: str, fake: Any, status: int, page: bytes, sample: object
) -> None:
    fake.answers["/iris/sklearn"] = (status, {}, page)
    assert answered_sample(endpoint) == sample
    assert [request.call for request in fake.requests] == ["GET /iris/sklearn"]


def test_an_api_that_is_away_offers_nothing() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        assert answered_sample(f"http://127.0.0.1:{taken.getsockname()[1]}/x") is None


def test_no_answer_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(EndpointUnreachable, match="nothing listens there"):
            post(f"http://127.0.0.1:{taken.getsockname()[1]}/x", b"", "text/plain")
