"""`cortex events`: which events, how they look, when it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from cortex.cli.eventlines import KIND_WIDTH


@pytest.fixture(autouse=True)
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def told(running: Any, fakes: Any) -> Any:
    """An api with a story, another one, and the machine."""
    running.apis = [fakes.api(), fakes.api("other")]
    crash = (
        "killed by signal 9 (SIGKILL); it wrote last: \x1b[2Jon my way to a very long last line that tells the reason"
    )
    running.happened = [
        fakes.happened(1, "added", kind="deployed", version="3fa1c09d"),
        fakes.happened(2, "serves, 0.09 s after it was asked for", version="3fa1c09d"),
        fakes.happened(3, "the agent, pid 12", kind="started", api=None),
        fakes.happened(4, "1 -> 2 replicas: wanted 2: cpu 150 % of request, target 80 %", kind="scaled", api="other"),
        fakes.happened(
            5,
            crash,
            kind="crashed",
            severity="warning",
            replica="iris.sklearn.aaaabbbb.0",
            count=12,
            first="2027-01-15T07:40:00.000Z",
        ),
        fakes.happened(6, "3 crashes in a row", kind="crashing", severity="error"),
    ]
    return running


def test_the_time_line_of_everything(cortex: Any, told: Any, golden: Any) -> None:
    ran = cortex("events")
    assert (ran.code, ran.talk) == (0, "")
    golden("events", ran.out)
    golden("events-colour", cortex("events", tty=True).out)
    assert told.requests[-1].query == {"limit": "50"}


def test_of_one_api_its_name_is_not_said_again(cortex: Any, told: Any) -> None:
    ran = cortex("events", "sklearn", "-n", "2")
    assert ran.out.splitlines()[1] == "2027-01-15 07:50:06  " + "crashing".ljust(KIND_WIDTH) + "  3 crashes in a row"
    assert told.requests[-1].query == {"deployment": "iris", "api": "sklearn", "limit": "2"}


@pytest.mark.parametrize("words", [("iris",), ("-d", "iris")])
def test_of_a_deployment(cortex: Any, told: Any, words: tuple[str, ...]) -> None:
    assert len(cortex("events", *words).out.splitlines()) == 5
    assert told.requests[-1].query == {"deployment": "iris", "limit": "50"}


def test_on_a_narrow_terminal_lines_are_broken_between_words(cortex: Any, told: Any) -> None:
    cortex.environ = {"NO_COLOR": "1"}
    for width in (40, 60, 80, 120):
        cortex.width = width
        assert max(map(len, cortex("events", tty=True).out.splitlines())) <= width


def test_events_for_programs(cortex: Any, told: Any) -> None:
    found = json.loads(cortex("events", "sklearn", "-o", "json").out)
    assert [event["serial"] for event in found] == [1, 2, 5, 6]
    assert found[0] == {
        "serial": 1,
        "time": "2027-01-15T07:50:01.000Z",
        "kind": "deployed",
        "text": "added",
        "severity": "info",
        "deployment": "iris",
        "api": "sklearn",
        "version": "3fa1c09d",
        "replica": None,
        "count": 1,
        "first": "2027-01-15T07:50:01.000Z",
        "details": {},
    }
    told.happened = []
    assert json.loads(cortex("events", "-o", "json").out) == []


def test_where_nothing_has_happened_that_is_said(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api()]
    assert cortex("events").talk == "nothing has happened in the last 14 days\n"
    assert cortex("events", "sklearn").talk == "nothing has happened to iris/sklearn in the last 14 days\n"
    assert cortex("events", "iris").talk == "nothing has happened in deployment iris in the last 14 days\n"


def test_a_kind_of_a_newer_cortex_is_shown_as_it_is(cortex: Any, running: Any, fakes: Any) -> None:
    running.happened = [fakes.happened(1, "text", kind="something new altogether", severity="fatal")]
    assert "something new altogether  text" in cortex("events", tty=True).out.replace("\x1b[36m", "").replace(
        "\x1b[0m", ""
    )


# ---- which api -------------------------------------------------------------------------------------------------------


def test_an_unknown_api_is_an_error_that_names_what_there_is(cortex: Any, told: Any) -> None:
    ran = cortex("events", "zzz")
    assert (ran.code, ran.out) == (1, "")
    assert 'there is no api "zzz"' in ran.talk
    assert "iris/other, iris/sklearn" in ran.talk


@pytest.mark.parametrize("name", ["iris/gone", "gone"])
def test_a_deleted_api_can_be_asked_for(cortex: Any, told: Any, fakes: Any, name: str) -> None:
    told.happened.append(fakes.happened(7, "by hand", kind="deleted", api="gone"))
    (cortex.cwd / "cortex.yaml").write_text("- kind: deployment\n  name: iris\n")
    ran = cortex("events", name)
    assert (ran.code, ran.talk) == (0, "")
    assert ran.out.endswith("by hand\n")


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-n", "0"), "0 is not in the range 1<=x<=1000"),
        (("-n", "-1"), "-1 is not in the range 1<=x<=1000"),
        (("-n", "1001"), "1001 is not in the range"),
        (("-n", "x"), "'x' is not a valid integer"),
        (("-o", "yaml"), "'yaml' is not one of 'text', 'json'"),
        (("a/b/c",), "is neither NAME nor DEPLOYMENT/NAME"),
    ],
)
def test_what_cannot_be_meant_is_refused(cortex: Any, running: Any, words: tuple[str, ...], says: str) -> None:
    ran = cortex("events", *words)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.talk
    assert running.requests == []


@pytest.mark.parametrize("words", [(), ("-f",), ("sklearn", "-f")])
def test_while_cortex_is_down_it_says_so_and_starts_nothing(cortex: Any, fakes: Any, words: tuple[str, ...]) -> None:
    from cortex.settings import ControlLayout

    layout = ControlLayout(cortex.home)
    layout.prepare()
    layout.state_file.touch()
    layout.down_mark.touch()
    ran = cortex("events", *words)
    assert (ran.code, ran.out) == (1, "")
    assert "error: down" in ran.talk
    assert not layout.controlplane_file.exists()


# ---- following -------------------------------------------------------------------------------------------------------


def then(told: Any, *steps: Any) -> None:
    """One step each time that somebody reads on; after the last one Ctrl-C."""
    left = list(steps)

    def next_step(request: Any) -> None:
        if request.query.get("after"):
            step = left.pop(0) if left else None
            if step is not None:
                told.happened.append(step)

    told.on_request.append(next_step)


def test_it_goes_on_with_what_happens_until_the_api_is_deleted(cortex: Any, told: Any, fakes: Any) -> None:
    deleted = fakes.happened(8, "by hand", kind="deleted")
    then(told, fakes.happened(7, "a minute without a crash", kind="recovered"), deleted)
    ran = cortex("events", "sklearn", "-f", "-n", "1")
    assert ran.code == 0
    assert [line.split("  ")[-1].strip() for line in ran.out.splitlines()] == [
        "3 crashes in a row",
        "a minute without a crash",
        "by hand",
    ]
    assert ran.talk == "iris/sklearn is gone: it was deleted\n"


def test_what_happens_on_and_on_is_told_ever_more_rarely(cortex: Any, told: Any, fakes: Any) -> None:
    then(
        told,
        *(fakes.happened(6 + count, "boom", kind="crashed", count=count) for count in range(1, 10)),
        fakes.happened(20, "by hand", kind="deleted"),
    )
    ran = cortex("events", "sklearn", "-f", "-n", "1")
    counts = [line.partition("(")[2].partition(" times")[0] for line in ran.out.splitlines() if "boom" in line]
    assert counts == ["", "2", "4", "8"]


def test_a_follower_for_programs_gets_every_change_in_a_line_of_its_own(cortex: Any, told: Any, fakes: Any) -> None:
    then(told, fakes.happened(7, "boom", count=3), fakes.happened(8, "by hand", kind="deleted"))
    lines = [json.loads(line) for line in cortex("events", "sklearn", "-f", "-n", "1", "-o", "json").out.splitlines()]
    assert [line["serial"] for line in lines] == [6, 7, 8]


def test_a_restart_of_the_control_plane_is_bridged(cortex: Any, told: Any, fakes: Any) -> None:
    cut = iter((True,))
    told.on_request.append(
        lambda request: told.hang_up_on.add(request.call) if request.query.get("after") and next(cut, False) else None
    )
    then(told, fakes.happened(7, "meanwhile"), fakes.happened(8, "by hand", kind="deleted"))
    ran = cortex("events", "sklearn", "-f", "-n", "1")
    assert ran.code == 0
    assert [line.split("  ")[-1].strip() for line in ran.out.splitlines()][1:] == ["meanwhile", "by hand"]


def test_ctrl_c_ends_it(cortex: Any, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cortex.client.operator import OperatorClient

    asked = OperatorClient.events

    def interrupted(self: OperatorClient, **fields: Any) -> Any:
        if fields.get("after"):
            raise KeyboardInterrupt
        return asked(self, **fields)

    monkeypatch.setattr(OperatorClient, "events", interrupted)
    ran = cortex("events", "-f")
    assert ran.code == 130
    assert len(ran.out.splitlines()) == 6
    assert "no longer reading" in ran.talk
