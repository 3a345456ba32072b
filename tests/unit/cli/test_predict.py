"""`cortex predict`: what is sent, what is printed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cortex.wire.operator import Status


@pytest.fixture
def served(running: Any, fakes: Any, cortex: Any) -> Any:
    running.apis = [fakes.api(endpoint=f"http://127.0.0.1:{running.port}/iris/sklearn")]
    running.answers["/iris/sklearn"] = (200, {}, '{"label":"grün","p":[0.5,1e-7]}'.encode())
    (cortex.cwd / "sample.json").write_text("[1]")
    return running


def posted(served: Any) -> Any:
    return next(r for r in served.requests if r.call == "POST /iris/sklearn")


def test_the_answer_as_it_is_in_a_pipe(cortex: Any, served: Any) -> None:
    ran = cortex("predict", "sklearn", "sample.json")
    assert (ran.code, ran.out, ran.talk) == (0, '{"label":"grün","p":[0.5,1e-7]}\n', "")
    assert (posted(served).body, posted(served).headers["content-type"]) == (b"[1]", "application/json")


def test_the_answer_is_indented_on_a_terminal(cortex: Any, served: Any) -> None:
    assert cortex("predict", "sklearn", "sample.json", tty=True).out == (
        '{\n  "label": "grün",\n  "p": [\n    0.5,\n    1e-7\n  ]\n}\n'
    )


def test_bytes_are_not_for_a_terminal(cortex: Any, served: Any) -> None:
    served.answers["/iris/sklearn"] = (200, {"content-type": "image/png"}, b"\x89PNG\n\x1b[2J")
    ran = cortex("predict", "sklearn", "sample.json", tty=True)
    assert (ran.code, ran.out) == (0, "")
    assert ran.talk == "9 bytes of image/png: not for a terminal, send them to a file with >\n"


def test_text_is_printed(cortex: Any, served: Any) -> None:
    served.answers["/iris/sklearn"] = (200, {"content-type": "text/plain; charset=utf-8"}, b"hello\x1b[2J")
    assert cortex("predict", "sklearn", "sample.json", tty=True).out == "hello\n"


def test_a_sample_from_standard_input(cortex: Any, served: Any) -> None:
    assert cortex("predict", "sklearn", "-", stdin=b"\xff\xd8\xff\xe0").code == 0
    assert (posted(served).body, posted(served).headers["content-type"]) == (b"\xff\xd8\xff\xe0", "image/jpeg")


@pytest.mark.parametrize("sample", ['{"a": 1}', "[1, 2]", "5.2", '"text"', " null "])
def test_json_itself(cortex: Any, served: Any, sample: str) -> None:
    assert cortex("predict", "sklearn", sample).code == 0
    assert (posted(served).body, posted(served).headers["content-type"]) == (sample.encode(), "application/json")


def test_a_file_comes_before_json_of_its_name(cortex: Any, served: Any) -> None:
    (cortex.cwd / "5").write_text("[7]")
    cortex("predict", "sklearn", "5")
    assert posted(served).body == b"[7]"


def test_what_is_piped_in_needs_no_dash(cortex: Any, served: Any) -> None:
    cortex("predict", "sklearn", stdin=b"[3]")
    assert (posted(served).body, posted(served).headers["content-type"]) == (b"[3]", "application/json")


def test_without_a_sample_the_apis_own_is_sent(cortex: Any, served: Any, fakes: Any) -> None:
    served.apis = [fakes.api(endpoint=served.apis[0].endpoint, spec={"sample": {"a": [1]}})]
    assert cortex("predict", "sklearn", tty=True).code == 0
    assert posted(served).body == b'{"a":[1]}'


@pytest.mark.parametrize("spec", [{"sample": "sample.json"}, {}])
def test_the_apis_own_sample_is_found_beside_its_cortex_yaml(
    cortex: Any, served: Any, fakes: Any, spec: dict[str, Any]
) -> None:
    (cortex.cwd / "cortex.yaml").write_text("- kind: deployment\n  name: iris\n")
    served.apis = [fakes.api(endpoint=served.apis[0].endpoint, spec=spec)]
    assert cortex("predict", "sklearn").code == 0
    assert posted(served).body == b"[1]"


def test_an_api_without_a_sample_says_how_to_give_one(cortex: Any, served: Any) -> None:
    ran = cortex("predict", "sklearn")
    assert (ran.code, ran.out) == (1, "")
    assert ran.talk == (
        "error: no-sample\n"
        "  no sample is given, and iris/sklearn has none of its own\n"
        "  hint: name a file, or JSON itself: cortex predict iris/sklearn sample.json\n"
        "        or take one into cortex.yaml: sample: sample.json\n"
    )


def test_an_image_is_sent_as_one(cortex: Any, served: Any) -> None:
    (cortex.cwd / "x.png").write_bytes(b"png")
    cortex("predict", "sklearn", "x.png")
    assert posted(served).headers["content-type"] == "image/png"


def test_a_refusal_names_error_status_and_request(cortex: Any, served: Any) -> None:
    body = {"error": "wrong-shape", "message": "expected float32[N,4]", "request_id": "req-1", "input": "x"}
    served.answers["/iris/sklearn"] = (422, {}, json.dumps(body).encode())
    ran = cortex("predict", "sklearn", "sample.json")
    assert (ran.code, ran.out) == (1, "")
    assert ran.talk == ("error: wrong-shape\n  expected float32[N,4]\n  input: x\n  status 422, request id req-1\n")


def test_a_failure_inside_points_to_the_log(cortex: Any, served: Any) -> None:
    body = {"error": "handler-failed", "message": "KeyError: 'a'"}
    served.answers["/iris/sklearn"] = (500, {}, json.dumps(body).encode())
    talk = cortex("predict", "sklearn", "sample.json").talk
    assert "hint: `cortex logs iris/sklearn --no-follow --request req-1` shows what happened" in talk


def test_an_api_that_is_not_live_points_to_its_status(cortex: Any, served: Any, fakes: Any) -> None:
    served.apis = [fakes.api(status=Status.CREATING, endpoint=served.apis[0].endpoint)]
    served.answers["/iris/sklearn"] = (503, {}, b'{"error": "no-replica", "message": "none is ready"}')
    talk = cortex("predict", "sklearn", "sample.json").talk
    assert "hint: the api is in status creating: `cortex get iris/sklearn`" in talk


def test_debugging_shows_the_steps(cortex: Any, served: Any, fakes: Any) -> None:
    served.log_batches = [(), (fakes.log_line("debug: sample: [1]"), fakes.log_line("debug: inference: [2]"))]
    ran = cortex("predict", "sklearn", "sample.json", "--debug")
    assert posted(served).query == {"debug": "true"}
    assert ran.talk == "request req-1, replica aaaabbbb.0\n  debug: sample: [1]\n  debug: inference: [2]\n"
    assert ran.out.startswith('{"label"')


def test_debugging_a_refusal_shows_the_steps_too(cortex: Any, served: Any, fakes: Any) -> None:
    served.log_batches = [(fakes.log_line("debug: sample: [1]"),)]
    served.answers["/iris/sklearn"] = (400, {}, b'{"error": "bad", "message": "no"}')
    assert "debug: sample: [1]" in cortex("predict", "sklearn", "sample.json", "--debug").talk


def test_steps_that_are_late_say_where_they_will_be(cortex: Any, served: Any) -> None:
    served.log_batches = [(), ()]
    talk = cortex("predict", "sklearn", "sample.json", "--debug").talk
    assert talk.endswith("nothing logged yet: `cortex logs iris/sklearn --request req-1`\n")


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ("nope.json", "nope.json: no such file or directory"),
        ("~nobody-of-this-name/x.json", "no such file or directory"),
        (".", "is a directory"),
        ('{"a": 1', '"{\\"a\\": 1": is neither a file nor JSON: '),
        ("{a: 1}", "hint: put it in single quotes, for the shell: '{\"key\": 1}'"),
    ],
)
def test_a_sample_that_cannot_be_read(cortex: Any, served: Any, sample: str, words: str) -> None:
    ran = cortex("predict", "sklearn", sample)
    assert (ran.code, ran.out) == (1, "")
    assert words in ran.talk
    assert served.requests == []


def test_an_ingress_that_does_not_answer(cortex: Any, served: Any, fakes: Any) -> None:
    served.apis = [fakes.api(endpoint="http://127.0.0.1:1/iris/sklearn")]
    ran = cortex("predict", "sklearn", "sample.json")
    assert ran.code == 1
    assert ran.talk.startswith("error: endpoint-unreachable\n  http://127.0.0.1:1/iris/sklearn does not answer")
