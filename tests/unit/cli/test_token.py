"""`cortex token`, and who changed what."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cortex.wire.operator import AuditLine, Failure, Role, TokenStatus

MADE = "cortex_made-for-tests"


def test_a_token_is_printed_alone_and_once(cortex: Any, running: Any) -> None:
    ran = cortex("token", "create", "ci", "--role", "deploy")
    assert (ran.code, ran.out) == (0, f"{MADE}\n")
    assert MADE not in ran.talk
    assert "only time" in ran.talk
    assert [json.loads(r.body) for r in running.requests if r.method == "POST"] == [{"role": "deploy"}]


def test_tokens_are_listed_and_deleted(cortex: Any, running: Any) -> None:
    assert "no tokens but the home's own" in cortex("token", "list").talk
    running.tokens = [TokenStatus(name="ci", role=Role.DEPLOY, created="2027-01-15T07:00:00Z")]
    ran = cortex("token", "list")
    assert ran.out.split()[:3] == ["token", "role", "created"]
    assert ran.out.split()[3:5] == ["ci", "deploy"]
    assert json.loads(cortex("token", "list", "-o", "json").out)[0]["name"] == "ci"
    asked = cortex("token", "delete", "ci")
    assert asked.code == 2
    assert "would turn away whoever uses token ci" in asked.talk
    ran = cortex("token", "delete", "ci", "-y")
    assert (ran.code, ran.out) == (0, "deleted ci\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create", "ci"), "say what it may do"),
        (("create", "--role", "read"), "say which"),
        (("create", "ci", "--role", "root"), "root"),
        (("list", "ci"), "takes no NAME"),
        (("list", "--role", "read"), "--role goes with create"),
        (("delete",), "say which"),
    ],
)
def test_what_cannot_be_meant_is_refused(cortex: Any, running: Any, arguments: tuple[str, ...], words: str) -> None:
    ran = cortex("token", *arguments)
    assert ran.code == 2
    assert words in ran.talk


def test_a_role_that_is_too_low_is_told_in_the_words_of_the_control_plane(cortex: Any, running: Any) -> None:
    failure = Failure(error="role-too-low", message='token "ci" has the role read; this needs admin')
    running.failures["GET /v1/tokens"] = 403, failure
    ran = cortex("token", "list")
    assert ran.code == 1
    assert 'token "ci" has the role read; this needs admin' in ran.talk


def test_the_audit_log_says_who_changed_what_from_where(cortex: Any, running: Any) -> None:
    assert "nobody has changed anything" in cortex("events", "--audit").talk
    line = AuditLine(
        time="2027-01-15T07:00:00.000Z",
        who="ci",
        role="deploy",
        origin="192.0.2.7",
        what="deploy iris",
        status=200,
        detail="a added",
    )
    running.audit = [line, msgspec.structs.replace(line, who="", what="call without a token\x1b[31m", status=401)]
    first, second = cortex("events", "--audit").out.splitlines()
    assert first.endswith("ci  192.0.2.7  deploy iris: a added")
    assert second.endswith("(401)")
    assert "\x1b[31m" not in second
    assert len(json.loads(cortex("events", "--audit", "-n", "1", "-o", "json").out)) == 1


@pytest.mark.parametrize("arguments", [("sklearn",), ("-f",), ("-d", "iris")])
def test_the_audit_log_is_about_everything(cortex: Any, running: Any, arguments: tuple[str, ...]) -> None:
    assert cortex("events", "--audit", *arguments).code == 2
