"""`cortex secret`: a value goes to the control plane and appears nowhere."""

from __future__ import annotations

import json
import os
import pty
import threading
from typing import Any

import msgspec
import pytest

from cortex.cli.main import main
from cortex.wire.operator import Failure, SecretStatus

VALUE = "hunter2-in-full-length"


def values_sent(fake: Any) -> list[str]:
    return [json.loads(request.body)["value"] for request in fake.requests if request.method == "PUT"]


@pytest.mark.parametrize(
    ("piped", "value"),
    [
        (VALUE, VALUE),
        (VALUE + "\n", VALUE),
        (VALUE + "\r\n", VALUE),
        ("two\nlines\n\n", "two\nlines\n"),
        ("  blanks count ", "  blanks count "),
        ("ä€", "ä€"),
    ],
)
def test_a_value_is_piped_in_without_the_line_end_of_echo(cortex: Any, running: Any, piped: str, value: str) -> None:
    ran = cortex("secret", "set", "api-token", stdin=piped.encode())
    assert (ran.code, ran.out) == (0, "set api-token\n")
    assert values_sent(running) == [value]
    assert VALUE not in ran.out + ran.talk
    assert "NAME: {secret: api-token}" in ran.talk


def test_a_value_is_typed_where_somebody_can(cortex: Any, running: Any) -> None:
    ran = cortex("secret", "set", "api-token", stdin=VALUE.encode() + b"\n", tty=True)
    assert (ran.code, values_sent(running)) == (0, [VALUE])
    assert "value of api-token (it does not show): " in ran.talk


def test_what_is_typed_does_not_show(cortex: Any, running: Any) -> None:
    """On a real terminal: it echoes what is typed, unless it is told not to."""
    ours, theirs = pty.openpty()
    terminal = cortex.terminal()
    codes = []
    with (
        os.fdopen(theirs, "r", encoding="utf-8", closefd=False) as stdin,
        os.fdopen(os.dup(theirs), "w", encoding="utf-8") as stderr,
    ):
        terminal.stdin, terminal.stderr = stdin, stderr
        running_command = threading.Thread(target=lambda: codes.append(main(["secret", "set", "api-token"], terminal)))
        running_command.start()
        shown = b""
        while b"does not show" not in shown:
            shown += os.read(ours, 1024)
        while b"): " not in shown:
            shown += os.read(ours, 1024)
        os.write(ours, VALUE.encode() + b"\n")
        running_command.join(30)
        os.write(theirs, b"<end>")
        while b"<end>" not in shown:
            shown += os.read(ours, 1024)
    os.close(theirs)
    os.close(ours)
    assert (codes, values_sent(running)) == ([0], [VALUE])
    assert VALUE.encode() not in shown


def test_a_value_on_the_command_line_is_refused_and_not_repeated(cortex: Any, running: Any) -> None:
    ran = cortex("secret", "set", "api-token", VALUE)
    assert ran.code == 2
    assert VALUE not in ran.out + ran.talk
    assert "cortex secret set NAME < FILE" in ran.talk
    assert values_sent(running) == []


@pytest.mark.parametrize("piped", [b"", b"\n"])
def test_an_empty_value_is_not_set(cortex: Any, running: Any, piped: bytes) -> None:
    ran = cortex("secret", "set", "api-token", stdin=piped)
    assert (ran.code, ran.talk) == (1, "nothing was set: the value is empty\n")
    assert values_sent(running) == []


def test_apis_that_keep_the_older_value_are_named(cortex: Any, running: Any) -> None:
    running.secrets = [
        SecretStatus(name="token", updated="2027-01-15T08:00:00Z", used_by=("a/b", "a/c"), outdated_in=("a/b", "a/c"))
    ]
    ran = cortex("secret", "set", "token", stdin=b"x")
    assert ran.talk == "a/b and a/c keep the value they had until `cortex refresh`\n"


def test_secrets_are_listed_with_who_uses_them(cortex: Any, running: Any) -> None:
    running.secrets = [
        SecretStatus(name="a", updated="2027-01-15T07:52:00Z", used_by=("x/y", "x/z"), outdated_in=("x/z",)),
        SecretStatus(name="b", updated="2027-01-15T08:00:00Z"),
    ]
    ran = cortex("secret", "list")
    assert ran.out.splitlines() == [
        "secret   set      used by",
        "a        8m ago   x/y, x/z*",
        "b        0s ago   -",
    ]
    assert ran.talk == "* with an older value, until `cortex refresh`\n"


def test_a_list_for_programs_has_stable_keys(cortex: Any, running: Any) -> None:
    running.secrets = [SecretStatus(name="a", updated="2027-01-15T07:52:00Z", used_by=("x/y",))]
    assert json.loads(cortex("secret", "list", "-o", "json").out) == [
        {"name": "a", "updated": "2027-01-15T07:52:00Z", "used_by": ["x/y"], "outdated_in": []}
    ]


def test_without_secrets_the_list_says_how_to_make_one(cortex: Any, running: Any) -> None:
    ran = cortex("secret", "list")
    assert (ran.code, ran.out) == (0, "")
    assert "cortex secret set NAME" in ran.talk


def test_a_secret_is_deleted(cortex: Any, running: Any) -> None:
    assert cortex("secret", "delete", "a b").out == "deleted a b\n"
    assert cortex("secret", "delete", "x", "--force").code == 0
    assert [(r.path, r.query) for r in running.requests if r.method == "DELETE"] == [
        ("/v1/secrets/a%20b", {}),
        ("/v1/secrets/x", {"force": "true"}),
    ]


def test_a_refusal_is_told_with_its_next_step(cortex: Any, running: Any, fakes: Any) -> None:
    from cortex.errors import Problem

    problem = Problem(reference="secret-in-use", message='the secret "x" is in use: a/b', hint="take it out")
    running.failures["DELETE /v1/secrets/x"] = (
        409,
        Failure(error=problem.reference, message=problem.message, problems=(problem,)),
    )
    ran = cortex("secret", "delete", "x")
    assert ran.code == 1
    assert "a/b" in ran.talk
    assert "hint: take it out" in ran.talk


@pytest.mark.parametrize("argv", [["set"], ["delete"], ["list", "x"], ["delete", "x", "y"], ["get", "x"], []])
def test_wrong_usage_is_told(cortex: Any, running: Any, argv: list[str]) -> None:
    assert cortex("secret", *argv).code == 2
    assert [call for call in running.calls if "secrets" in call] == []


def test_a_value_that_is_no_text_is_refused(cortex: Any, running: Any) -> None:
    terminal = cortex.terminal(stdin=b"\xff\xfe")
    terminal.stdin.reconfigure(errors="strict")
    assert main(["secret", "set", "x"], terminal) == 2
    assert values_sent(running) == []


def test_no_message_shows_a_value_when_it_is_printed() -> None:
    from cortex.wire.operator import SecretValue

    assert VALUE not in repr(SecretValue(value=VALUE))
    assert msgspec.json.decode(msgspec.json.encode(SecretValue(value=VALUE)))["value"] == VALUE
