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
    ran = cortex("delete", "iris")
    assert (ran.code, ran.out, ran.talk) == (0, "deleted iris/a\ndeleted iris/b\n", "")
    assert deletions(deployed) == ["DELETE /v1/deployments/iris"]


def test_one_api(cortex: Any, deployed: Any) -> None:
    assert cortex("delete", "iris", "--api", "a").out == "deleted iris/a\n"
    assert cortex("delete", "--api", "text/c").out == "deleted text/c\n"
    assert deletions(deployed) == ["DELETE /v1/deployments/iris/apis/a", "DELETE /v1/deployments/text/apis/c"]


def test_the_deployment_here(cortex: Any, deployed: Any) -> None:
    (cortex.cwd / "cortex.yaml").write_text("- kind: deployment\n  name: iris\n")
    ran = cortex("delete", "--api", "a")
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


def test_for_programs(cortex: Any, deployed: Any) -> None:
    assert json.loads(cortex("delete", "iris", "-o", "json").out) == {"apis": ["iris/a", "iris/b"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("irs",), 'did you mean "iris"?'),
        (("iris", "--api", "bb"), 'there is no api "bb"'),
    ],
)
def test_what_is_not_there_is_not_deleted(cortex: Any, deployed: Any, arguments: tuple[str, ...], words: str) -> None:
    ran = cortex("delete", *arguments)
    assert (ran.code, deletions(deployed)) == (1, [])
    assert words in ran.talk


def test_without_a_deployment_here_it_has_to_be_named(cortex: Any, deployed: Any) -> None:
    ran = cortex("delete")
    assert ran.code == 2
    assert "(deployed: iris, text)" in ran.talk
