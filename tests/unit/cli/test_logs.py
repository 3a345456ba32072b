"""`cortex logs`: which lines, how they look, when it ends."""

from __future__ import annotations

import json
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Any:
    import time

    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def written(running: Any, fakes: Any) -> Any:
    """An api whose two replicas wrote something, then something more; then it is deleted."""
    running.apis = [fakes.api()]
    running.log_batches = [
        (
            fakes.log_line("one"),
            fakes.log_line("two", replica="iris.sklearn.aaaabbbb.1", level="WARNING"),
            fakes.log_line("Traceback:\n  line\nKeyError: 'a'", level="ERROR", stream="log", request="r-1"),
        ),
        (fakes.log_line("later\x1b[2J"),),
    ]
    return running


def test_what_there_is(cortex: Any, written: Any, golden: Any) -> None:
    ran = cortex("logs", "sklearn", "--no-follow")
    assert (ran.code, ran.talk) == (0, "")
    golden("logs", ran.out)
    assert written.requests[-1].query == {"tail": "100"}


def test_replicas_have_colours_on_a_terminal(cortex: Any, written: Any, golden: Any) -> None:
    golden("logs-colour", cortex("logs", "sklearn", "--no-follow", tty=True).out)


def test_following_goes_on_with_the_cursor_until_the_api_is_deleted(cortex: Any, written: Any) -> None:
    ran = cortex("logs", "sklearn")
    assert ran.code == 0
    assert ran.talk == "iris/sklearn is gone: it was deleted\n"
    assert ran.out.splitlines()[-1] == "08:00:00 aaaabbbb.0  later\x1b[2J"
    queries = [r.query for r in written.requests if r.path.endswith("/logs")]
    assert queries[1] == {"tail": "1000000", "cursor": "1", "wait_s": "5.000"}
    assert queries[2]["cursor"] == "2"


def test_a_terminal_is_not_moved_by_what_was_written(cortex: Any, written: Any) -> None:
    assert cortex("logs", "sklearn", tty=True).out.endswith("later\n")


def test_a_restart_of_the_control_plane_is_not_noticed(cortex: Any, written: Any) -> None:
    def restart(request: Any) -> None:
        if request.query.get("cursor") == "1" and cortex.clock.monotonic == 50.0:
            written.hang_up_on.add(request.call)

    written.on_request.append(restart)
    ran = cortex("logs", "sklearn")
    assert [line.split("  ")[1] for line in ran.out.splitlines()][-1].startswith("later")
    assert ran.talk == "iris/sklearn is gone: it was deleted\n"
    assert cortex.clock.monotonic == pytest.approx(50.1)


def test_filters_are_passed_on(cortex: Any, written: Any) -> None:
    cortex("logs", "sklearn", "--no-follow", "--since", "10m", "--replica", "aaaabbbb.1", "--request", "r-1")
    assert written.requests[-1].query == {
        "since_wall_s": "1799999400.000000",
        "replica": "iris.sklearn.aaaabbbb.1",
        "request": "r-1",
        "tail": "1000000",
    }


def test_a_full_replica_id_is_passed_on_as_it_is(cortex: Any, written: Any) -> None:
    cortex("logs", "sklearn", "--no-follow", "--replica", "iris.sklearn.aaaabbbb.1")
    assert written.requests[-1].query["replica"] == "iris.sklearn.aaaabbbb.1"


def test_for_programs_a_line_each(cortex: Any, written: Any) -> None:
    lines = [json.loads(line) for line in cortex("logs", "sklearn", "--no-follow", "-o", "json").out.splitlines()]
    assert lines[2] == {
        "time": "2027-01-15T08:00:00.000Z",
        "replica": "iris.sklearn.aaaabbbb.0",
        "text": "Traceback:\n  line\nKeyError: 'a'",
        "stream": "log",
        "level": "ERROR",
        "request": "r-1",
    }


def test_nothing_written_is_said(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api()]
    ran = cortex("logs", "sklearn", "--no-follow")
    assert (ran.code, ran.out, ran.talk) == (0, "", "nothing was written by iris/sklearn\n")
    assert cortex("logs", "sklearn", "--no-follow", "--since", "1m", "--request", "x").talk == (
        "nothing was written by iris/sklearn in that time for request x\n"
    )


def test_ctrl_c_while_following(cortex: Any, written: Any) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    written.on_request.append(lambda r: written.hang_up_on.add(r.call) if r.query.get("cursor") else None)
    cortex.clock.on_sleep = [interrupt]
    ran = cortex("logs", "sklearn")
    assert (ran.code, ran.talk) == (130, "\ninterrupted: no longer reading; the api is not affected\n")


def test_after_down_it_says_down(cortex: Any) -> None:
    cortex.home.mkdir()
    (cortex.home / "down").touch()
    assert cortex("logs", "sklearn").talk.startswith("error: down\n")
