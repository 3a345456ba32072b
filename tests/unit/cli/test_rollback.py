"""`cortex rollback`: what is said, what is waited for, and how it ends."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cortex.errors import Problem
from cortex.wire.operator import ChangeKind, Failure, HistoryLine, RollbackRequest, RollbackResult, Status

CALL = "POST /v1/deployments/iris/apis/sklearn/rollback"


@pytest.fixture
def deployed(running: Any, fakes: Any) -> Any:
    """An api that can be taken back."""
    running.apis = [fakes.api(version="9b1c44e0")]
    change = fakes.change(
        kind=ChangeKind.ROLLED_BACK,
        previous="9b1c44e0",
        causes=("handlers/sklearn.py changed",),
        notes=("TOKEN has the value of 2027-01-03 10:00 UTC again",),
    )
    running.rollback = RollbackResult(change=change)
    return running


def asked(deployed: Any) -> RollbackRequest:
    (body,) = (request.body for request in deployed.requests if request.call == CALL)
    return msgspec.json.decode(body, type=RollbackRequest)


def test_it_returns_once_every_request_gets_the_version(cortex: Any, deployed: Any, fakes: Any) -> None:
    deployed.push(fakes.api(status=Status.UPDATING))
    deployed.push(fakes.api())
    ran = cortex("rollback", "sklearn")
    assert (ran.code, ran.out) == (
        0,
        "deployment iris\n"
        "  < sklearn  rolled back  9b1c44e0 -> 3fa1c09d\n"
        "      handlers/sklearn.py changed\n"
        "  note: TOKEN has the value of 2027-01-03 10:00 UTC again (sklearn)\n",
    )
    assert ran.talk.splitlines()[-1] == "iris/sklearn: every request gets 3fa1c09d"
    assert asked(deployed) == RollbackRequest()


def test_a_version_may_be_named_and_a_gap_accepted(cortex: Any, deployed: Any, fakes: Any) -> None:
    deployed.push(fakes.api())
    assert cortex("rollback", "sklearn", "3fa1", "-d", "iris", "--force").code == 0
    assert asked(deployed) == RollbackRequest(version="3fa1", force=True)


def test_it_need_not_be_waited_for(cortex: Any, deployed: Any) -> None:
    ran = cortex("rollback", "sklearn", "--no-wait")
    assert (ran.code, ran.talk) == (0, "not waiting: `cortex get` shows how it goes\n")


def test_what_is_wanted_already_is_said_to_be(cortex: Any, deployed: Any, fakes: Any) -> None:
    deployed.rollback = msgspec.structs.replace(deployed.rollback, already=True)
    deployed.push(fakes.api())
    ran = cortex("rollback", "sklearn", "3fa1c09d")
    assert (ran.code, ran.out) == (0, "iris/sklearn: 3fa1c09d is the version that is wanted already\n")


def test_one_that_fails_says_why_and_what_goes_on(cortex: Any, deployed: Any, fakes: Any) -> None:
    problem = Problem(reference="replica-failed", message="it did not start")
    deployed.push(fakes.api(status=Status.UPDATE_FAILED, problem=problem, serving="9b1c44e0"))
    ran = cortex("rollback", "sklearn")
    assert ran.code == 1
    assert "error: replica-failed" in ran.talk
    assert ran.talk.endswith("\napi sklearn: version 9b1c44e0 goes on serving\n")


def test_one_that_makes_no_progress_is_not_waited_for_longer(cortex: Any, deployed: Any, fakes: Any) -> None:
    deployed.push(fakes.api(status=Status.UPDATING))
    ran = cortex("rollback", "sklearn", "--timeout", "0s")
    assert ran.code == 1
    assert "The rollback goes on; `cortex get` shows it" in ran.talk


def test_programs_get_it_as_json(cortex: Any, deployed: Any, fakes: Any) -> None:
    deployed.push(fakes.api())
    told = json.loads(cortex("rollback", "sklearn", "-o", "json").out)
    assert (told["deployment"], told["outcome"], told["already"]) == ("iris", "live", False)
    assert (told["change"]["kind"], told["change"]["version"]) == ("rolled back", "3fa1c09d")
    assert [api["version"] for api in told["apis"]] == ["3fa1c09d"]


def test_a_refusal_is_told_with_what_can_come_back(cortex: Any, deployed: Any) -> None:
    refused = Problem(reference="unknown-version", message="there is none", hint="these can come back: 9b1c44e0")
    deployed.failures[CALL] = (404, Failure(error="unknown-version", message="there is none", problems=(refused,)))
    ran = cortex("rollback", "sklearn", "ffff")
    assert (ran.code, ran.out) == (1, "")
    assert ran.talk == "error: unknown-version\n  there is none\n  hint: these can come back: 9b1c44e0\n"


@pytest.mark.parametrize("name", ["iris/sklearn", "sklearn"])
def test_a_deleted_api_is_refused_with_what_there_is_to_do(cortex: Any, running: Any, name: str) -> None:
    (cortex.cwd / "cortex.yaml").write_text("- kind: deployment\n  name: iris\n")
    running.history = [HistoryLine(version="9b1c44e0", deployed="2027-01-14T07:52:00Z", cause="", outcome="deleted")]
    ran = cortex("rollback", name)
    assert ran.code == 1
    assert 'error: api-deleted\n  api "iris/sklearn" was deleted, and its versions with it\n' in ran.talk


def test_an_api_that_never_was_is_not_found(cortex: Any, running: Any) -> None:
    assert "error: api-not-found" in cortex("rollback", "iris/sklearn").talk
