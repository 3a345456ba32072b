"""`cortex delete`: what goes, and who is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.fixture
def deployed(running: Any, fakes: Any) -> Any:
    running.apis = [fakes.api("a"), fakes.api("b"), fakes.api("c", deployment="text")]
    return running


def deletions(fake: Any) -> list[str]:
    return [call for call in fake.calls if call.startswith("DELETE")]


def test_a_whole_deployment(cortex: Any, deployed: Any) -> None:
    ran = cortex("delete", "iris", "-y")
    assert (ran.code, ran.out, ran.talk) == (0, "deleted iris/a\ndeleted iris/b\n", "")
    assert deletions(deployed) == ["DELETE /v1/deployments/iris"]


@pytest.mark.parametrize("named", [("iris/a",), ("iris", "--api", "a"), ("--api", "iris/a"), ("iris/a", "--api", "a")])
def test_one_api(cortex: Any, deployed: Any, named: tuple[str, ...]) -> None:
    assert cortex("delete", *named, "-y").out == "deleted iris/a\n"
    assert deletions(deployed) == ["DELETE /v1/deployments/iris/apis/a"]


def test_the_deployment_here(cortex: Any, deployed: Any) -> None:
    (cortex.cwd / "cortex.yaml").write_text("- kind: deployment\n  name: iris\n")
    ran = cortex("delete", "--api", "a", "-y")
    assert ran.out == "deleted iris/a\n"
    assert ran.talk == "the next `cortex deploy` brings it back unless you take it out of cortex.yaml\n"


@pytest.mark.parametrize(("typed", "code", "gone"), [(b"y\n", 0, 1), (b"n\n", 1, 0), (b"", 1, 0)])
def test_a_terminal_is_asked(cortex: Any, deployed: Any, typed: bytes, code: int, gone: int) -> None:
    ran = cortex("delete", "iris", tty=True, stdin=typed)
    assert (ran.code, len(deletions(deployed))) == (code, gone)
    assert ran.talk.startswith("Delete deployment iris (2 apis: a and b)? [y/N] ")
    assert ("nothing was deleted" in ran.talk) == (gone == 0)


def test_yes_is_not_asked(cortex: Any, deployed: Any) -> None:
    assert cortex("delete", "iris", "-y", tty=True).code == 0


def test_without_a_terminal_nothing_is_deleted_unasked(cortex: Any, deployed: Any) -> None:
    ran = cortex("delete", "iris", stdin=b"y\n")
    assert (ran.code, ran.out, deletions(deployed)) == (2, "", [])
    assert ran.talk == (
        "error: wrong-usage\n"
        "  this would delete deployment iris (2 apis: a and b), and without a terminal nobody can be asked\n"
        "  hint: -y says yes beforehand\n"
    )


def test_for_programs(cortex: Any, deployed: Any) -> None:
    assert json.loads(cortex("delete", "iris", "-y", "-o", "json").out) == {"apis": ["iris/a", "iris/b"]}


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("irs",), 'there is no deployment "irs"', "deployed: iris, text"),
        (("iris-2",), 'there is no deployment "iris-2"', "deployed: iris, text"),
        (("a",), 'there is no deployment "a"', "an api is deleted by its full name: cortex delete iris/a"),
        (("iris", "--api", "bb"), 'there is no api "iris/bb"', "there are: iris/a, iris/b"),
        (("iris/c",), 'there is no api "iris/c"', "there are: iris/a, iris/b"),
    ],
)
def test_what_is_not_there_is_not_deleted_and_nothing_larger_is_offered(
    cortex: Any, deployed: Any, arguments: tuple[str, ...], message: str, hint: str
) -> None:
    ran = cortex("delete", *arguments, "-y")
    assert (ran.code, deletions(deployed)) == (1, [])
    assert ran.talk.splitlines()[1:] == [f"  {message}", f"  hint: {hint}"]


def test_without_a_deployment_here_it_has_to_be_named(cortex: Any, deployed: Any) -> None:
    ran = cortex("delete")
    assert ran.code == 2
    assert "(deployed: iris, text)" in ran.talk
