"""`cortex logs`: which lines, how they look, when it ends."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from cortex.wire.operator import Status


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
    assert written.requests[-1].query == {"tail": "100", "version": "current"}


def test_a_line_of_today_on_a_terminal_has_no_date_and_one_of_another_day_has(cortex: Any, written: Any) -> None:
    assert cortex("logs", "sklearn", "--no-follow", tty=True).out.startswith("\x1b[2m08:00:00\x1b[0m ")
    cortex.clock.wall += 86400.0
    written.log_batches[1:1] = [written.log_batches[0]]
    assert cortex("logs", "sklearn", "--no-follow", tty=True).out.startswith("\x1b[2m2027-01-15 08:00:00\x1b[0m ")


def test_ids_are_whole_in_a_pipe_and_short_on_a_terminal(cortex: Any, running: Any, fakes: Any) -> None:
    request = "58a3c1d20f9e4b7c8d6e5f4a3b2c1d0e"
    running.apis = [fakes.api()]
    running.log_batches = [(fakes.log_line("hello", request=request),)] * 2
    cortex.environ = {"NO_COLOR": "1"}
    piped = cortex("logs", "sklearn", "--no-follow").out
    assert piped == f"2027-01-15 08:00:00 iris.sklearn.aaaabbbb.0 {request}  hello\n"
    assert cortex("logs", "sklearn", "--no-follow", tty=True).out == "08:00:00 aaaabbbb.0 58a3c1…  hello\n"


@pytest.mark.parametrize("wish", ["-n", "--tail"])
def test_the_last_lines_may_be_counted(cortex: Any, written: Any, wish: str) -> None:
    assert cortex("logs", "sklearn", "--no-follow", wish, "2").out.splitlines()[0].endswith("two")
    assert written.requests[-1].query == {"tail": "2", "version": "current"}


def test_one_version_may_be_asked_for_and_is_followed_alone(cortex: Any, written: Any) -> None:
    cortex("logs", "sklearn", "--version", "3fa1", "-f")
    queries = [r.query for r in written.requests if r.path.endswith("/logs")]
    assert {query["version"] for query in queries} == {"3fa1"}


def test_a_deployment_stands_for_all_its_apis_together(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api("a"), fakes.api("b"), fakes.api("c", deployment="other")]
    late = msgspec.structs.replace(fakes.log_line("later", replica="iris.a.aaaabbbb.0"), wall_s=fakes.NOW + 1)
    of = {"a": late, "b": fakes.log_line("sooner", replica="iris.b.ccccdddd.0")}

    def answer(request: Any) -> None:
        if request.path.endswith("/logs"):
            running.log_batches = [(of[request.path.split("/")[-2]],)]

    running.on_request.append(answer)
    cortex.environ = {"NO_COLOR": "1"}
    ran = cortex("logs", "iris", "--no-follow", tty=True)
    assert ran.out == "08:00:00 b ccccdddd.0  sooner\n08:00:01 a aaaabbbb.0  later\n"
    assert {r.path for r in running.requests if r.path.endswith("/logs")} == {
        "/v1/apis/iris/a/logs",
        "/v1/apis/iris/b/logs",
    }


def test_following_a_deployment_ends_when_it_is_deleted(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api("a")]
    running.push(fakes.api("a"))

    def delete(request: Any) -> None:
        if request.query.get("cursor"):
            running.push()

    running.on_request.append(delete)
    ran = cortex("logs", "iris")
    assert ran.code == 0
    assert "deployment iris is gone: it was deleted\n" in ran.talk


def test_replicas_have_colours_on_a_terminal(cortex: Any, written: Any, golden: Any) -> None:
    golden("logs-colour", cortex("logs", "sklearn", "--no-follow", tty=True).out)


def test_following_goes_on_with_the_cursor_until_the_api_is_deleted(cortex: Any, written: Any) -> None:
    ran = cortex("logs", "sklearn")
    assert ran.code == 0
    assert ran.talk == "iris/sklearn is gone: it was deleted\n"
    assert ran.out.splitlines()[-1] == "2027-01-15 08:00:00 iris.sklearn.aaaabbbb.0  later\x1b[2J"
    queries = [r.query for r in written.requests if r.path.endswith("/logs")]
    assert queries[1] == {"tail": "1000000", "cursor": "1", "wait_s": "5.000"}
    assert queries[2]["cursor"] == "2"


def test_a_node_that_does_not_answer_is_told_once_until_it_does(cortex: Any, written: Any, fakes: Any) -> None:
    written.log_batches += [(fakes.log_line("more"),)] * 4
    written.silent_nodes = {0: ("b",), 1: ("a", "b"), 2: ("a",), 4: ("a", "b")}
    ran = cortex("logs", "sklearn")
    told = [line.split()[2] for line in ran.talk.splitlines()[:-1]]
    assert told == ["b", "a", "a", "b"]
    assert ran.talk.startswith("note: node b does not answer: what was written there comes once it does\n")
    assert "more" in ran.out


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
    assert (ran.code, ran.out, ran.talk) == (0, "", "nothing was written by iris/sklearn yet\n")
    assert cortex("logs", "sklearn", "--no-follow", "--since", "1m", "--request", "x").talk == (
        "nothing was written by iris/sklearn in that time for request x\n"
    )
    assert cortex("logs", "sklearn", "--no-follow", "-n", "0").talk == "", "nothing was asked for"


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


# ---- while a version is starting ------------------------------------------------------------------------------------


def test_lines_of_the_version_that_serves_are_said_to_be_its_own_until_the_new_one_writes(
    cortex: Any, running: Any, fakes: Any
) -> None:
    running.apis = [fakes.api(status=Status.UPDATING, version="22223333", serving="11112222")]
    running.logs_of = {"current": (fakes.log_line("of the old"),), "22223333": ()}
    ran = cortex("logs", "sklearn", "--no-follow")
    assert (ran.code, ran.out.split("  ")[-1]) == (0, "of the old\n")
    assert ran.talk == (
        "note: version 22223333 of iris/sklearn has written nothing yet, only 11112222, which serves until then\n"
    )
    running.logs_of["22223333"] = (fakes.log_line("of the new"),)
    assert cortex("logs", "sklearn", "--no-follow").talk == ""


def test_of_an_update_that_failed_the_old_version_goes_on_serving(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api(status=Status.UPDATE_FAILED, version="22223333", serving="11112222")]
    running.logs_of = {"current": (fakes.log_line("of the old"),), "22223333": ()}
    assert cortex("logs", "sklearn", "--no-follow").talk.endswith("only 11112222, which goes on serving\n")


@pytest.mark.parametrize(("age_s", "hours"), [(60, 1), (7200, 24), (3 * 86400, 168)])
def test_where_only_older_versions_wrote_it_is_said_how_to_see_that(
    cortex: Any, running: Any, fakes: Any, age_s: int, hours: int
) -> None:
    running.apis = [fakes.api(version="22223333")]
    running.logs_of = {"current": (), "": (fakes.log_line("of an older one"),)}
    cortex.clock.wall += age_s
    ran = cortex("logs", "sklearn", "--no-follow", "-o", "json")
    assert (ran.code, ran.out) == (0, "")
    assert ran.talk == (
        f"nothing was written by iris/sklearn in version 22223333 yet; --since {hours}h shows what was before\n"
    )


def test_who_asks_for_one_version_is_told_of_that_one_alone(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api(status=Status.UPDATING, version="22223333", serving="11112222")]
    running.logs_of = {"22223333": (), "": (fakes.log_line("of an older one"),)}
    ran = cortex("logs", "sklearn", "--no-follow", "--version", "22223333")
    assert ran.talk == "nothing was written by iris/sklearn by version 22223333\n"
