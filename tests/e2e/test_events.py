"""`cortex events`: one time line of what was decided and what happened, as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_harness import DEADLINE_S, Connection, Home, eventually, rows_model, running_home, write_project

HANDLER = "def pre_inference(sample, metadata):\n    return [[1, 2, 3, 4]]\n\nNUMBER = %d\n"


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


def a_project(home: Home, *, number: int = 1, compute: str = "min_replicas: 1") -> Path:
    api = f"{{kind: api, name: x, model: m.onnx, request_handler: h.py, sample: [1], compute: {{{compute}}}}}"
    return write_project(
        home.path.parent / "p",
        {
            "cortex.yaml": f"- {{kind: deployment, name: d}}\n- {api}\n",
            "m.onnx": rows_model(),
            "h.py": HANDLER % number,
        },
    )


def told(home: Home, *argv: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = home.cortex("events", *argv, "-o", "json").json
    return found


def agents_told(home: Home) -> int:
    return sum(event["details"].get("process") == "agent" for event in told(home))


def last(home: Home, kind: str, api: str = "d/x") -> dict[str, Any] | None:
    return next((event for event in reversed(told(home, api)) if event["kind"] == kind), None)


def lines(home: Home) -> dict[str, str]:
    """The last text of each kind, as a pipe gets it."""
    rows = [line.split("  ", 2) for line in home.cortex("events", "d/x").out.splitlines()]
    return {kind: text.strip() for _when, kind, text in rows}


@pytest.mark.slow
def test_the_story_of_an_api_is_told_line_by_line(home: Home) -> None:
    home.deploy(a_project(home, compute="min_replicas: 0, idle_timeout: 1s"))
    eventually(lambda: last(home, "slept"), "it falls asleep")
    with Connection(home.port) as connection:
        assert connection.ask("POST", "/d/x", b"[1]").status == 200
    woke = eventually(lambda: last(home, "woke"), "it wakes")
    assert 0 < woke["details"]["start_seconds"] <= woke["details"]["seconds"]

    home.deploy(a_project(home, number=2))
    (pid,) = home.settled_replicas("d/x")
    os.kill(pid, signal.SIGKILL)
    crashed = eventually(lambda: last(home, "crashed"), "its end is told")
    assert (crashed["severity"], crashed["details"]["signal"]) == ("warning", signal.SIGKILL)
    home.settled_replicas("d/x")
    assert home.cortex("rollback", "d/x").code == 0

    versions = {event["version"] for event in told(home, "d/x") if event["kind"] == "deployed"}
    assert len(versions) == 2
    found = lines(home)
    assert found["slept"] == "nobody asked for 1 s"
    assert "somebody asked while it slept; ready after" in found["woke"]
    assert "new version after" in found["deployed"]
    assert "h.py changed" in found["deployed"]
    assert "killed by signal 9 (SIGKILL)" in found["crashed"]
    assert found["rolled back"].split()[1] == "from"
    assert "serves" in found["live"]

    def are_shown() -> bool:
        shown = home.cortex("get", "d/x", "-o", "json").json
        return bool(shown["events"] == told(home, "d/x", "-n", "3"))

    eventually(are_shown, "the last three are shown with the api")
    assert "events" in home.cortex("get", "d/x").out

    home.cortex("delete", "d/x", "-y")
    assert list(lines(home))[-1] == "deleted", "a deleted api can be asked for"
    ran = home.cortex("events", "d/nobody", code=1)
    assert ran.err.startswith("error: api-not-found")


@pytest.mark.slow
def test_restarts_of_our_own_processes_say_nothing_twice(home: Home) -> None:
    home.deploy(a_project(home))
    eventually(lambda: agents_told(home) == len(home.nodes), "every agent has come up")
    before = told(home)
    record = home.control_plane()
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)

    def restarted() -> list[dict[str, Any]] | None:
        found = [event for event in told(home) if event["serial"] > before[-1]["serial"]]
        return found or None

    (event,) = eventually(restarted, "the new control plane has said so")
    assert (event["kind"], event["severity"]) == ("started", "warning")
    assert "was started again: the one before had ended" in event["text"]
    assert told(home)[: len(before)] == before


@pytest.mark.slow
def test_a_follower_goes_on_across_restarts_and_ends_with_ctrl_c(home: Home) -> None:
    home.deploy(a_project(home))
    seen: list[dict[str, Any]] = []

    def has_seen(text: str) -> bool:
        return any(text in event["text"] for event in seen)

    with home.start("events", "-f", "-o", "json") as follower:
        assert follower.stdout is not None
        stdout = follower.stdout
        reader = threading.Thread(target=lambda: seen.extend(json.loads(line) for line in stdout), daemon=True)
        reader.start()
        eventually(lambda: has_seen("serves"), "what there was is shown")
        record = home.control_plane()
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        eventually(lambda: has_seen("was started again"), "the restart is shown")
        home.deploy(a_project(home, number=2))
        eventually(lambda: has_seen("h.py changed"), "the deploy is shown")
        follower.send_signal(signal.SIGINT)
        assert follower.wait(DEADLINE_S) == 130
        reader.join(DEADLINE_S)
    serials = [event["serial"] for event in seen]
    assert serials == sorted(set(serials)), "nothing twice, nothing out of order"


@pytest.mark.slow
def test_after_down_following_says_so_and_starts_nothing_and_up_shows_what_was(home: Home) -> None:
    home.deploy(a_project(home))
    follower = home.start("events", "-f")
    eventually(lambda: told(home, "d/x"), "there is something to show")
    home.cortex("down")
    _out, err = follower.communicate(timeout=DEADLINE_S)
    assert (follower.returncode, b"error: down" in err) == (1, True)
    ran = home.cortex("events", "-f", code=1)
    assert ran.err.startswith("error: down")
    assert home.processes() == []
    home.cortex("up")
    assert [event["kind"] for event in told(home, "d/x")][:2] == ["deployed", "live"]


@pytest.mark.slow
def test_a_file_that_is_damaged_or_held_stops_nothing(home: Home) -> None:
    home.deploy(a_project(home))
    home.cortex("down")
    file = home.path / "events.db"
    file.write_bytes(b"no database " * 1000)
    home.cortex("up")
    assert home.once_ready("/d/x", b"[1]").status == 200
    assert file.with_name("events.db.damaged").exists()
    holder = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    home.deploy(a_project(home, number=2))
    holder.execute("ROLLBACK")
    holder.close()
    eventually(lambda: last(home, "deployed"), "it is written once the file is free")
