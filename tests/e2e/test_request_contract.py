"""The prediction API as a client meets it: over real HTTP, through the ingress, whatever a client sends."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import select
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract_harness import (
    Answer,
    Connection,
    Home,
    chunked,
    constant_model,
    eventually,
    identity_model,
    request,
    resident_bytes,
    rows_model,
    running_home,
    scaled_model,
    words_model,
    write_project,
)
from onnx import TensorProto
from refused_bodies import ROWS, TABLE, Row

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden" / "refused_bodies.txt"
MIB = 2**20

CORTEX_YAML = """
    - kind: deployment
      name: t
    - {kind: api, name: rows, model: rows.onnx, sample: [1, 2, 3, 4], compute: {cpu: 50m}}
    - {kind: api, name: a, model: a.onnx, compute: {cpu: 50m}}
    - {kind: api, name: ab, model: ab.onnx, compute: {cpu: 50m}}
    - {kind: api, name: fields, model: fields.onnx, compute: {cpu: 50m}}
    - {kind: api, name: text, model: text.onnx, compute: {cpu: 50m}}
    - {kind: api, name: scalar, model: scalar.onnx, compute: {cpu: 50m}}
    - {kind: api, name: picture, model: picture.onnx, compute: {cpu: 50m}}
    - {kind: api, name: scaled, model: scaled.onnx, compute: {cpu: 50m}}
    - {kind: api, name: words, model: words.onnx, compute: {cpu: 50m}}
    - {kind: api, name: constant, model: constant.onnx, compute: {cpu: 50m}}
    - {kind: api, name: echo, model: rows.onnx, request_handler: echo.py, compute: {cpu: 50m}}
    - {kind: api, name: digits, model: rows.onnx, request_handler: digits.py, compute: {cpu: 50m}}
    - {kind: api, name: small, model: rows.onnx, request_handler: echo.py, max_body: 1Ki, compute: {cpu: 50m}}
    - {kind: api, name: large, model: rows.onnx, request_handler: size.py, max_body: 256Mi, compute: {cpu: 50m}}
    - kind: api
      name: pooled
      model: rows.onnx
      request_handler: size.py
      max_body: 256Mi
      compute: {cpu: 50m, concurrency: 4}
    - {kind: api, name: slow, model: rows.onnx, request_handler: slow.py, timeout: 500ms, compute: {cpu: 50m}}
"""

ECHO = """
    import cortex

    def pre_inference(sample, metadata, request):
        request.state["sample"] = sample
        if isinstance(sample, dict):
            if "refuse" in sample:
                raise cortex.RequestError(sample["refuse"], "not like this", wanted="another one")
            if "fail" in sample:
                raise ValueError("on purpose")
            if "feed" in sample:
                return sample["feed"]
        return [1, 2, 3, 4]

    def post_inference(prediction, metadata, request):
        sample = request.state["sample"]
        return {"kind": type(sample).__name__, "sample": sample, "id": request.id}
"""

DIGITS = """
    def pre_inference(sample, metadata, request):
        request.state["a"] = repr(sample["a"])
        return [1, 2, 3, 4]

    def post_inference(prediction, metadata, request):
        return request.state["a"]
"""

SIZE = """
    def pre_inference(sample, metadata, request):
        request.state["bytes"] = len(sample)
        if "fail" in request.query:
            raise ValueError(request)
        return [1, 2, 3, 4]

    def post_inference(prediction, metadata, request):
        return request.state["bytes"]
"""

SLOW = """
    import asyncio

    async def pre_inference(sample, metadata):
        await asyncio.sleep(sample["s"])
        return [1, 2, 3, 4]
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with running_home() as home:
        project = write_project(
            home.path.parent / "p",
            {
                "cortex.yaml": CORTEX_YAML,
                "echo.py": ECHO,
                "digits.py": DIGITS,
                "size.py": SIZE,
                "slow.py": SLOW,
                "rows.onnx": rows_model(),
                "a.onnx": rows_model(output="a"),
                "ab.onnx": rows_model(output="ab"),
                "fields.onnx": identity_model(
                    age=(TensorProto.INT64, ["n", 1]),
                    height=(TensorProto.FLOAT, ["n", 1]),
                    member=(TensorProto.BOOL, ["n", 1]),
                    city=(TensorProto.STRING, ["n", 1]),
                ),
                "text.onnx": identity_model(x=(TensorProto.STRING, ["n"])),
                "scalar.onnx": identity_model(x=(TensorProto.INT64, [])),
                "scaled.onnx": scaled_model(),
                "words.onnx": words_model(),
                "constant.onnx": constant_model(),
                "picture.onnx": identity_model(x=(TensorProto.FLOAT, [1, 3, 4, 4])),
            },
        )
        home.deploy(project)
        yield home


@pytest.fixture
def ask(home: Home) -> Callable[..., Answer]:
    """One request on a connection of its own."""

    def ask(method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        with Connection(home.port) as connection:
            return connection.ask(method, target, body, headers)

    return ask


Ask = Callable[..., Answer]
ROW = b"[1, 2, 3, 4]"
JSON = {"content-type": "application/json"}


def version_of(home: Home, api: str) -> str:
    return str(home.cortex("get", api, "-o", "json").json["version"])


# ---- what a body may be -----------------------------------------------------------------------------------------


def npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


FORM = (
    b"--b\r\ncontent-disposition: form-data; name=age\r\n\r\n40\r\n"
    b'--b\r\ncontent-disposition: form-data; name="photo"; filename="a.png"\r\ncontent-type: image/png\r\n\r\n'
    b"\x89PNG\r\n--b--\r\n"
)


@pytest.mark.parametrize(
    ("content_type", "body", "kind", "sample"),
    [
        ("application/json", b'{"a": [1, null]}', "dict", {"a": [1, None]}),
        ("application/json; charset=utf-8", '"Zürich"'.encode(), "str", "Zürich"),
        ("application/json; charset=latin-1", '"Zürich"'.encode("latin-1"), "str", "Zürich"),
        ("application/vnd.api+json", b"[1]", "list", [1]),
        (None, b"3.5", "float", 3.5),
        ("application/x-www-form-urlencoded", b"[true]", "list", [True]),
        ("application/json", b"\xef\xbb\xbf[1]", "list", [1]),
        ("application/x-npy", npy(np.array([[1.5, 2]], np.float32)), "ndarray", [[1.5, 2.0]]),
        ("image/png", b"\x89PNG", "bytes", {"b64": "iVBORw=="}),
        ("audio/wav", b"RIFF", "bytes", {"b64": "UklGRg=="}),
        ("application/octet-stream", b"\0\xff", "bytes", {"b64": "AP8="}),
        ("application/octet-stream", b"", "bytes", {"b64": ""}),
        ("text/plain", "Zürich".encode(), "str", "Zürich"),
        ("text/plain; charset=latin-1", "Zürich".encode("latin-1"), "str", "Zürich"),
        ("multipart/form-data; boundary=b", FORM, "dict", {"age": "40", "photo": {"b64": "iVBORw=="}}),
    ],
)
def test_each_content_type_reaches_the_handler_as_the_sample_it_stands_for(ask, content_type, body, kind, sample):
    headers = {} if content_type is None else {"content-type": content_type}
    answer = ask("POST", "/t/echo", body, {**headers, "x-request-id": "me"})
    assert (answer.status, answer.json) == (200, {"kind": kind, "sample": sample, "id": "me"})
    packed = ask("POST", "/t/echo", gzip.compress(body), {**headers, "content-encoding": "gzip", "x-request-id": "me"})
    assert (packed.status, packed.json) == (200, answer.json)


def test_without_a_handler_arrays_and_texts_are_the_models_input(ask):
    array = npy(np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32))
    assert ask("POST", "/t/rows", array, {"content-type": "application/x-npy"}).json == [[[10.0], [26.0]]]
    assert ask("POST", "/t/text", "Zürich".encode(), {"content-type": "text/plain"}).json == [["Zürich"]]


TABLE_OUT = [[[40], [41]], [[1.7], [1.8]], [[True], [False]], [["Bern"], ["Rom"]]]
RECORDS = [{name: values[row] for name, values in TABLE.items()} for row in range(2)]


@pytest.mark.parametrize(
    ("path", "sample", "answer"),
    [
        ("/t/fields", TABLE, TABLE_OUT),
        ("/t/fields", RECORDS, TABLE_OUT),
        ("/t/fields", {"instances": RECORDS}, TABLE_OUT),
        ("/t/fields", {"inputs": TABLE}, TABLE_OUT),
        (
            "/t/fields",
            {"dataframe_split": {"columns": list(TABLE), "data": [list(record.values()) for record in RECORDS]}},
            TABLE_OUT,
        ),
        ("/t/rows", {"instances": [[1, 2, 3, 4]]}, [[[10.0]]]),
        ("/t/rows", [], [[]]),
        ("/t/scaled", [1, 2], [[[2.0, 4.0]]]),
        ("/t/scaled", {"x": [1, 2], "factor": [10]}, [[[10.0, 20.0]]]),
        ("/t/scaled", {"x": [1, 2], "factor": None}, [[[2.0, 4.0]]]),
        ("/t/text", [{"b64": "data:text/plain;base64,\nWsO8cmljaA"}], [["Zürich"]]),
        ("/t/constant", {}, [[1.0]]),
        ("/t/constant", None, [[1.0]]),
    ],
    ids=repr,
)
def test_what_fits_the_model_in_one_way_only_is_taken(ask, path, sample, answer):
    assert ask("POST", path, b"" if sample is None else json.dumps(sample).encode(), JSON).json == answer


def test_what_has_a_default_in_the_model_is_told(ask, home):
    assert ask("GET", "/t/scaled").json["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": ["n", 2]},
        {"name": "factor", "dtype": "float32", "shape": [1], "optional": True},
    ]
    assert re.search(r"^factor +float32, optional +\[1\]$", home.cortex("get", "t/scaled", "-v").out, re.MULTILINE)


def test_a_handler_gets_every_digit_of_an_integer(ask):
    body = b'{"a": [{"b": 123456789012345678901234567890}, -18446744073709551616]}'
    assert ask("POST", "/t/digits", body, JSON).json == "[{'b': 123456789012345678901234567890}, -18446744073709551616]"


@pytest.mark.parametrize("feed", [{"featuers": [1, 2, 3, 4]}, {"features": [1, 2, 3, 4], "more": 1}, {}])
def test_names_that_the_model_lacks_are_the_handlers_mistake_and_logged(ask, home, feed):
    answer = ask("POST", "/t/echo", json.dumps({"feed": feed}).encode(), JSON)
    assert (answer.status, answer.json["error"]) == (500, "handler-failed")
    assert "pre_inference returned what the model has no use for" in answer.json["message"]
    (line,) = home.logs("t/echo", "--request", answer.headers["x-request-id"])
    assert line.startswith("handler-failed: pre_inference returned what the model has no use for")


@pytest.mark.parametrize("how", ["length", "chunks", "gzip"])
def test_a_body_as_large_as_the_limit_is_taken_and_one_byte_more_is_refused(home, how):
    def post(size: int) -> Answer:
        body = b'"' + b"a" * (size - 2) + b'"'
        with Connection(home.port) as connection:
            if how == "chunks":
                head = request("POST", "/t/small", None, {**JSON, "transfer-encoding": "chunked"})
                connection.send(head + chunked(*(body[at : at + 100] for at in range(0, size, 100))))
                return connection.receive()
            if how == "gzip":
                return connection.ask("POST", "/t/small", gzip.compress(body), {**JSON, "content-encoding": "gzip"})
            return connection.ask("POST", "/t/small", body, JSON)

    assert post(1024).status == 200
    refused = post(1025)
    assert refused.status == 413
    assert refused.json == {
        "error": "body-too-large",
        "message": "the body is larger than 1024 bytes",
        "request_id": refused.headers["x-request-id"],
        "limit": 1024,
        "hint": "raise max_body in cortex.yaml",
    }


def test_the_log_says_why_a_large_body_was_refused(home):
    """A client that goes on sending may only see its connection close."""
    with Connection(home.port) as connection:
        connection.send(request("POST", "/t/small", None, {**JSON, "content-length": str(MIB)}))
        assert connection.receive().status == 413
    with Connection(home.port) as connection:
        sent = {**JSON, "transfer-encoding": "chunked", "x-request-id": "large"}
        connection.send(request("POST", "/t/small", None, sent) + chunked(b" " * 2048))
        assert connection.receive().status == 413
    assert home.logs("t/small", "--request", "large") == ["body-too-large: the body is larger than 1024 bytes"]
    eventually(
        lambda: [line for line in home.logs("t/small") if "413 body-too-large: over max_body" in line],
        "the ingress's refusals are in the log",
    )


def test_bodies_that_cannot_be_used_are_refused_as_the_table_says(home):
    """After a wanted change: run with CORTEX_GOLDEN=write, and read the difference."""
    shown = []
    for row in ROWS:
        answer = send(home, row)
        assert 400 <= answer.status < 500, (row.name, answer)
        told = {**answer.json, "request_id": "-"}
        assert answer.json["request_id"] == answer.headers["x-request-id"]
        shown.append(block(row, answer.status, told))
    text = "\n".join(shown)
    if os.environ.get("CORTEX_GOLDEN") == "write":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()
    assert len(ROWS) >= 60
    for api in ("rows", "fields", "scalar", "picture", "small"):
        assert not [line for line in home.logs(f"t/{api}") if "Traceback" in line]


def send(home: Home, row: Row) -> Answer:
    with Connection(home.port) as connection:
        if not row.chunked:
            return connection.ask("POST", row.path, row.body, row.headers)
        connection.send(request("POST", row.path, None, {**row.headers, "transfer-encoding": "chunked"}))
        connection.send(chunked(row.body))
        return connection.receive()


def block(row: Row, status: int, told: dict[str, Any]) -> str:
    """One row of the golden table, to be read by people."""
    body = repr(row.body)[2:-1]
    body = body if len(body) <= 80 else f"{body[:80]}… ({len(row.body)} bytes)"
    head = ", ".join(f"{name}: {value}" for name, value in row.headers.items()) + ", chunked" * row.chunked
    lines = [f"== {row.name}", f"POST {row.path}  {head}".rstrip(), f"  {body}", str(status)]
    return "\n".join([*lines, *(f"  {key}: {json.dumps(value)}" for key, value in told.items()), ""])


# ---- GET, HEAD, OPTIONS, and what is wrong ----------------------------------------------------------------------


def test_get_tells_the_signature_a_proven_sample_and_how_to_call_it(home, ask):
    answer = ask("GET", "/t/rows", headers={"host": f"127.0.0.1:{home.port}"})
    call = f"curl http://127.0.0.1:{home.port}/t/rows -H 'content-type: application/json' -d '[1,2,3,4]'"
    assert (answer.status, answer.json) == (
        200,
        {
            "api": "t/rows",
            "version": version_of(home, "t/rows"),
            "inputs": [{"name": "features", "dtype": "float32", "shape": ["n", 4]}],
            "outputs": [{"name": "score", "dtype": "float32", "shape": ["n", 1]}],
            "sample": [1, 2, 3, 4],
            "call": call,
        },
    )
    if shutil.which("curl"):
        said = subprocess.run(shlex.split(call), capture_output=True, check=True, timeout=60)
        assert json.loads(said.stdout) == [[[10.0]]]


def test_without_a_sample_get_shows_one_that_works_or_none(ask):
    made_up = ask("GET", "/t/fields").json["sample"]
    assert sorted(made_up) == ["age", "city", "height", "member"]
    assert ask("POST", "/t/fields", json.dumps(made_up).encode(), JSON).status == 200
    described = ask("GET", "/t/echo", headers={"host": ""}).json
    assert "sample" not in described
    assert "call" not in described
    assert described["note"] == "no request is known that this api answers: `sample:` in cortex.yaml names one"


def test_head_is_get_without_the_body(ask):
    get, head = ask("GET", "/t/rows"), ask("HEAD", "/t/rows")
    varying = ("date", "x-request-id")
    assert {k: v for k, v in head.headers.items() if k not in varying} == {
        k: v for k, v in get.headers.items() if k not in varying
    }
    assert (head.status, head.body) == (200, b"")


def test_options_names_the_methods(ask):
    answer = ask("OPTIONS", "/t/rows")
    assert (answer.status, answer.headers["allow"], answer.body) == (204, "GET, HEAD, POST, OPTIONS", b"")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "BREW"])
def test_another_method_is_405_and_told_which_are_allowed(ask, method):
    answer = ask(method, "/t/rows", headers={"x-request-id": "me"})
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, POST, OPTIONS")
    assert answer.json == {
        "error": "method-not-allowed",
        "message": "this endpoint takes GET, HEAD, POST and OPTIONS",
        "request_id": "me",
    }


@pytest.mark.parametrize("target", ["/", "/t", "/t/", "/t/abc", "/t/a/b", "/t/rows//", "/T/rows", "/rows", "/nope"])
def test_a_path_where_nothing_is_deployed_is_404_and_lists_nothing(ask, target):
    for method in ("GET", "POST", "PUT"):
        answer = ask(method, target, b"[]", {"x-request-id": "me"})
        assert (answer.status, answer.json) == (
            404,
            {"error": "not-found", "message": "nothing is deployed at this path", "request_id": "me"},
        )


def test_a_name_that_begins_alike_is_another_api_and_a_trailing_slash_is_none(ask):
    for target, output in (("/t/a", "a"), ("/t/ab", "ab"), ("/t/a/", "a"), ("/t/ab/", "ab"), ("/t/a?x=/t/ab", "a")):
        assert ask("GET", target).json["outputs"][0]["name"] == output
        assert ask("POST", target, ROW, JSON).json == [[[10.0]]]


def test_a_failing_handler_is_500_with_a_short_reason_and_the_traceback_only_in_the_log(home, ask):
    answer = ask("POST", "/t/echo", b'{"fail": 1}', {**JSON, "x-request-id": "fails-1"})
    assert (answer.status, answer.json) == (
        500,
        {
            "error": "handler-failed",
            "message": "pre_inference raised ValueError: on purpose",
            "request_id": "fails-1",
        },
    )
    assert home.logs("t/echo", "--request", "fails-1") == [
        "handler-failed: pre_inference raised ValueError: on purpose\n"
        "Traceback (most recent call last):\n"
        '  File "echo.py", line 10, in pre_inference\n'
        '    raise ValueError("on purpose")\n'
        "ValueError: on purpose"
    ]


def test_an_answer_that_takes_too_long_is_504_and_names_the_setting(ask):
    def told_by_the_replica() -> Answer | None:
        """The ingress gives it half a second more, and then answers for it: a machine may be as busy as that."""
        answer = ask("POST", "/t/slow", b'{"s": 600}', {**JSON, "x-request-id": "me"})
        assert (answer.status, answer.json["error"]) == (504, "timeout")
        return None if answer.json["message"] == "no answer within the timeout of this api" else answer

    answer = eventually(told_by_the_replica, "the replica itself answers")
    assert (answer.status, answer.json) == (
        504,
        {
            "error": "timeout",
            "message": "no answer within 0.5 s, which is the api's `timeout` in cortex.yaml",
            "request_id": "me",
        },
    )


def test_an_api_that_is_not_ready_yet_is_503_with_retry_after_then_serves(home, ask, tmp_path):
    go = tmp_path / "go"
    late = f"""
        import pathlib, time


        def on_start():
            while not pathlib.Path({str(go)!r}).exists():
                time.sleep(0.05)


        def post_inference(prediction, metadata):
            return prediction
    """
    project = write_project(
        tmp_path / "p",
        {
            "cortex.yaml": """
                - {kind: deployment, name: late}
                - {kind: api, name: x, model: m.onnx, request_handler: late.py, compute: {cpu: 50m}}
            """,
            "late.py": late,
            "m.onnx": rows_model(),
        },
    )
    try:
        home.deploy(project, "--no-wait")
        answer = eventually(lambda: (a := ask("POST", "/late/x", ROW, JSON)).status != 404 and a, "it has a route")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.json == {
            "error": "no-ready-replica",
            "message": "no replica is ready",
            "request_id": answer.headers["x-request-id"],
        }
        assert answer.headers["x-cortex-version"] == version_of(home, "late/x")
        go.touch()
        eventually(lambda: ask("POST", "/late/x", ROW, JSON).status == 200, "it serves")
    finally:
        go.touch()
        home.cortex("delete", "late", "--yes")


# ---- what every response carries --------------------------------------------------------------------------------

EVERY_KIND: tuple[tuple[str, str, bytes, dict[str, str], int], ...] = (
    ("POST", "/t/echo", b"1", {}, 200),
    ("GET", "/t/echo", b"", {}, 200),
    ("HEAD", "/t/echo", b"", {}, 200),
    ("OPTIONS", "/t/echo", b"", {}, 204),
    ("POST", "/t/echo", b"{", {}, 400),
    ("PUT", "/t/echo", b"", {}, 405),
    ("POST", "/t/small", b"x" * 2000, {}, 413),
    ("POST", "/t/small", gzip.compress(b"x" * 2000, mtime=0), {"content-encoding": "gzip"}, 413),
    ("POST", "/t/echo", b"x", {"content-type": "video/mp4"}, 415),
    ("POST", "/t/rows", b"[1]", {}, 422),
    ("POST", "/t/echo", b'{"refuse": 418}', {}, 418),
    ("POST", "/t/echo", b'{"fail": 1}', {}, 500),
    ("POST", "/t/slow", b'{"s": 600}', {}, 504),
    ("POST", "/t/nope", b"", {}, 404),
)


@pytest.mark.parametrize(("method", "target", "body", "headers", "status"), EVERY_KIND)
def test_every_response_carries_request_id_and_version(home, ask, method, target, body, headers, status):
    sane = ask(method, target, body, {**headers, "x-request-id": "A.b_c-9"})
    assert (sane.status, sane.headers["x-request-id"]) == (status, "A.b_c-9")
    for insane in ("", "x" * 129, "a b", "a;b", "ä", "a, b"):
        answer = ask(method, target, body, {**headers, "x-request-id": insane})
        assert (answer.status, bool(UUID.fullmatch(answer.headers["x-request-id"]))) == (status, True)
    absent = ask(method, target, body, headers)
    assert UUID.fullmatch(absent.headers["x-request-id"])
    if status == 404:
        assert "x-cortex-version" not in absent.headers  # there is nothing that could have one
    else:
        assert absent.headers["x-cortex-version"] == version_of(home, target.lstrip("/"))


UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


# ---- connections ------------------------------------------------------------------------------------------------


def test_a_connection_goes_on_after_answers_of_every_kind(home):
    with Connection(home.port) as connection:
        for _ in range(20):
            assert connection.ask("POST", "/t/rows", ROW, JSON).status == 200
            assert connection.ask("POST", "/t/rows", b"[1]", JSON).status == 422
            assert connection.ask("GET", "/t/a").status == 200
            assert connection.ask("POST", "/t/nope", ROW, JSON).status == 404
            assert connection.ask("HEAD", "/t/rows").status == 200


def test_a_body_may_come_in_chunks_of_any_size(home):
    with Connection(home.port) as connection:
        for size in (1, 3, len(ROW)):
            parts = [ROW[at : at + size] for at in range(0, len(ROW), size)]
            connection.send(request("POST", "/t/rows", None, {**JSON, "transfer-encoding": "chunked"}))
            connection.send(chunked(*parts))
            assert connection.receive().json == [[[10.0]]]


@pytest.mark.parametrize("size", [12, 20_000, 300_000, 2_000_000, None], ids=str)
@pytest.mark.parametrize("api", ["echo", "large"])
def test_a_client_that_asks_first_is_told_to_continue(home, api, size):
    """Whoever it is that waits for the body: ingress, bulk worker or replica. No size: in chunks."""
    body = b'"' + b"a" * ((size or 1000) - 2) + b'"'
    how = {"transfer-encoding": "chunked"} if size is None else {"content-length": str(size)}
    with Connection(home.port) as connection:
        for _ in range(2):
            connection.send(request("POST", f"/t/{api}", None, {**JSON, **how, "expect": "100-continue"}))
            assert connection.receive(final=False).status == 100
            connection.send(chunked(body) if size is None else body)
            assert connection.receive().status == 200


def test_a_client_that_asks_first_is_told_why_not(home):
    with Connection(home.port) as connection:
        connection.send(request("POST", "/t/small", None, {**JSON, "content-length": "9999", "expect": "100-continue"}))
        assert connection.receive(final=False).status == 413


def test_pipelined_requests_are_answered_in_order(home):
    asked = [b"[%d, 0, 0, 0]" % number for number in range(50)]
    with Connection(home.port) as connection:
        connection.send(b"".join(request("POST", "/t/rows", body, JSON) for body in asked))
        assert [connection.receive().json[0][0][0] for _ in asked] == [float(number) for number in range(50)]


def test_http_1_0_is_answered_and_the_connection_closed_unless_it_asks_otherwise(home):
    head = b"POST /t/rows HTTP/1.0\r\ncontent-length: 12\r\n"
    with Connection(home.port) as connection:
        connection.send(head + b"\r\n" + ROW)
        assert connection.receive().json == [[[10.0]]]
        assert connection.at_end()
    with Connection(home.port) as connection:
        for _ in range(2):
            connection.send(head + b"connection: keep-alive\r\n\r\n" + ROW)
            assert connection.receive().json == [[[10.0]]]


def test_a_client_that_closes_its_half_before_the_answer_is_told_so(home):
    """As docs/limits.md says: nothing tells it from one that left."""
    with Connection(home.port) as connection:
        connection.send(request("POST", "/t/echo", b'{"slowly": 1}', JSON))
        connection.sock.shutdown(socket.SHUT_WR)
        answer = connection.receive()
        assert (answer.status, answer.json["error"]) == (400, "bad-request")
        assert connection.at_end()


def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(home, ask):
    for _ in range(20):
        with Connection(home.port) as connection:
            connection.send(request("POST", "/t/rows", None, {**JSON, "content-length": "900"}) + b"[1, 2")
            connection.sock.shutdown(socket.SHUT_WR)
    assert ask("POST", "/t/rows", ROW, JSON).status == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
        b"POST /t/rows HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /t/rows HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n[]",
        b"POST /t/rows HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"POST /t/rows HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(10_000)) + b"\r\n",
        b"POST /t/rows HTTP/1.1\r\nhost: x\r\nx-long: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"r" * 200_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["garbage", "tls", "negative", "two lengths", "bad chunk", "10,000 headers", "a long header", "a long path"],
)
def test_what_is_no_usable_http_is_400_and_the_end_of_its_connection_only(home, ask, raw):
    """HAProxy answers these before there is a request; its page is its own: docs/limits.md."""
    with Connection(home.port) as bystander, Connection(home.port) as connection:
        assert bystander.ask("POST", "/t/rows", ROW, JSON).status == 200
        with contextlib.suppress(ConnectionError):
            connection.send(raw)
        assert connection.rest()[:13] in (b"HTTP/1.1 400 ", b"")
        assert bystander.ask("POST", "/t/rows", ROW, JSON).status == 200
    assert ask("POST", "/t/rows", ROW, JSON).status == 200


def test_clients_that_trickle_are_cut_off_and_keep_nobody_waiting(home):
    """The ingress gives a request's headers 15 s to arrive."""
    slow = [Connection(home.port) for _ in range(60)]
    bodies = [Connection(home.port) for _ in range(20)]
    try:
        for connection in slow:
            connection.send(b"POST /t/rows HTTP/1.1\r\nhost: x\r\n")
        for connection in bodies:
            connection.send(request("POST", "/t/rows", None, {**JSON, "content-length": "100000"}) + b"[")
        deadline_s = time.monotonic() + 90
        waiting, answered = list(slow), 0
        with Connection(home.port) as quick:
            while waiting:
                assert time.monotonic() < deadline_s, "those that trickle are cut off"
                assert quick.ask("POST", "/t/rows", ROW, JSON).status == 200
                readable, _, _ = select.select([c.sock for c in waiting], [], [], 0.2)
                answered += not readable and len(waiting) == len(slow)
                for connection in [c for c in waiting if c.sock in readable]:
                    waiting.remove(connection)
                    assert connection.receive().status == 408
                    assert connection.at_end()
                for connection in waiting:
                    with contextlib.suppress(ConnectionError):
                        connection.send(b"x-a: b\r\n")
        assert answered > 5, "while all of them were still connected"
    finally:
        for connection in [*slow, *bodies]:
            connection.sock.close()


# ---- large bodies -----------------------------------------------------------------------------------------------


def resident(home: Home, api: str) -> tuple[int, int]:
    """Memory of an api's replica, and of the ingress."""
    ingress = [pid for pid, title in home.processes() if "haproxy" in title.split(" ", 1)[0]]
    assert ingress
    return sum(map(resident_bytes, home.replica_pids(api))), sum(map(resident_bytes, ingress))


def test_200_mib_over_the_limit_cost_neither_replica_nor_ingress_any_memory(home):
    block = b"a" * MIB
    before = resident(home, "t/small")
    peaks = list(before)
    with Connection(home.port) as connection:
        connection.send(request("POST", "/t/small", None, {**JSON, "transfer-encoding": "chunked"}))
        with contextlib.suppress(ConnectionError):  # refused long before the end
            for _ in range(200):
                connection.send(b"%x\r\n%s\r\n" % (len(block), block))
                peaks = [max(pair) for pair in zip(peaks, resident(home, "t/small"), strict=True)]
            connection.send(b"0\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert connection.receive().status == 413
    with Connection(home.port) as connection:
        connection.send(request("POST", "/t/small", None, {**JSON, "content-length": str(200 * MIB)}))
        assert connection.receive().status == 413
    assert [(peak - at_first) // MIB < 8 for peak, at_first in zip(peaks, before, strict=True)] == [True, True]


@pytest.mark.parametrize("target", ["/t/large", "/t/large?fail", "/t/pooled", "/t/pooled?fail"])
def test_a_body_of_200_mib_passes_through_the_ingress_and_leaves_nothing_behind(home, target):
    block = b"a" * MIB
    octets = {"content-type": "application/octet-stream", "content-length": str(200 * MIB)}
    api = target.strip("/").partition("?")[0]
    before = resident(home, api)
    peak = before[1]
    for _ in range(2):
        with Connection(home.port) as connection:
            connection.send(request("POST", target, None, octets))
            for number in range(200):
                connection.send(block)
                if number % 20 == 0:
                    peak = max(peak, resident(home, api)[1])
            answer = connection.receive()
            assert answer.json == 200 * MIB or answer.json["error"] == "handler-failed"
    assert (peak - before[1]) // MIB < 8

    def given_back() -> bool:
        """Less than one body is left, whatever malloc keeps for itself until it is called again."""
        with Connection(home.port) as connection:
            connection.ask("POST", target, b'"small"', JSON)
        return (resident(home, api)[0] - before[0]) // MIB < 120

    eventually(given_back, "the replica gives back what the bodies took")
