"""`cortex up`, `down`, `info`, `version`, `history`, `schema`, `completion`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cortex.cli import down, foreground, up
from cortex.client.local import LocalEnvironment, Stopped
from cortex.wire.operator import HistoryLine, NodeInfo, NodeShare, NodeState, Receipt, SecretStatus, Verdict


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stops nothing, remembers with which patience."""
    asked: list[float] = []

    def stop(_self: object, *, drain_timeout_s: float) -> Stopped:
        asked.append(drain_timeout_s)
        return Stopped(was_running=True)

    monkeypatch.setattr(LocalEnvironment, "stop", stop)
    return asked


# ---- up -------------------------------------------------------------------------------------------------------------


def test_up_where_it_runs_already(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api()]
    ran = cortex("up")
    assert (ran.code, ran.out) == (0, "cortex was already up: predictions at http://127.0.0.1:8880\n")
    assert ran.talk == "1 api deployed; `cortex get -a` shows how they are doing\n"
    assert json.loads(cortex("up", "-o", "json").out)["environment"] == "local"


def test_up_is_done_once_predictions_are_listened_for(cortex: Any, running: Any) -> None:
    running.info_fields = {"ingress_up": False}
    cortex.clock.on_sleep = [lambda: None, lambda: running.info_fields.clear()]
    ran = cortex("up")
    assert (ran.code, cortex.clock.on_sleep) == (0, [])
    assert "listened for" not in ran.talk


def test_up_does_not_wait_for_ever_for_an_ingress(cortex: Any, running: Any) -> None:
    running.info_fields = {"ingress_up": False}
    began_s = cortex.clock.monotonic_s()
    ran = cortex("up")
    assert ran.code == 0
    assert "predictions are not listened for yet: `cortex info` shows when they are\n" in ran.talk
    assert cortex.clock.monotonic_s() - began_s <= 11
    running.info_fields |= {"notes": ("the disk is full",)}
    began_s = cortex.clock.monotonic_s()
    assert cortex("up").talk.endswith("note: the disk is full\n")
    assert cortex.clock.monotonic_s() == began_s, "known why"


def test_up_takes_the_mark_of_down_away(cortex: Any, running: Any) -> None:
    (cortex.home / "down").touch()
    ran = cortex("up")
    assert ran.code == 0
    assert ran.talk.startswith("nothing is deployed")
    assert not (cortex.home / "down").exists()


def test_up_tells_what_a_restart_would_change(cortex: Any, running: Any) -> None:
    running.info_fields = {"version": "0.0.9", "notes": ("the ingress was restarted twice",)}
    cortex.environ = {"CORTEX_PORT": "9000", "CORTEX_OPERATOR_PORT": "9001"}
    talk = cortex("up").talk
    assert "note: the ingress was restarted twice\n" in talk
    assert "note: the control plane that runs is version 0.0.9, this is 0.1.0" in talk
    assert "note: predictions are at http://127.0.0.1:8880, not at port 9000" in talk
    assert "not at port 9001: `cortex down`, then `cortex up` moves it" in talk


def test_another_address_than_the_one_that_is_listened_at_is_not_ignored(cortex: Any, running: Any) -> None:
    talk = cortex("up", "--host", "0.0.0.0").talk
    assert "note: predictions listen at 127.0.0.1, not at 0.0.0.0: `cortex down`, then `cortex up` moves them\n" in talk
    assert "predictions listen" not in cortex("up", "--host", "127.0.0.1").talk
    assert "predictions listen" not in cortex("up").talk


# ---- up --foreground ------------------------------------------------------------------------------------------------


def test_in_the_foreground_logs_are_printed_until_down(
    cortex: Any, running: Any, fakes: Any, stopping: list[float]
) -> None:
    running.apis = [fakes.api()]
    running.push(fakes.api())
    running.log_batches = [(fakes.log_line("hello"),)]

    def go_down(request: Any) -> None:
        if request.call.endswith("/logs") and request.query.get("cursor"):
            (cortex.home / "controlplane.json").unlink(missing_ok=True)
            (cortex.home / "down").touch()
            running.hang_up_on.add("GET /v1/watch")
            running.push(fakes.api(), fakes.api("b"))

    running.on_request.append(go_down)
    ran = cortex("up", "--foreground")
    assert ran.code == 0
    assert " iris.sklearn.aaaabbbb.0  hello\n" in ran.out
    first = next(request for request in running.requests if request.path.endswith("/logs"))
    assert first.query["since_wall_s"] == "1800000000.000000", "what was written before is not told again"
    assert ran.talk.endswith("`cortex down` was run: ending\n")
    assert stopping == [down.DRAIN_S]


def test_sigterm_drains_and_exits_0(
    cortex: Any, running: Any, stopping: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    monkeypatch.setattr(foreground, "follow_all", lambda *_rest, **_named: os.kill(os.getpid(), signal.SIGTERM))
    ran = cortex("up", "--foreground")
    assert (ran.code, stopping) == (0, [down.DRAIN_S])
    assert ran.talk.endswith("SIGTERM: stopping\n")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(("code", "left"), [(1, 1), (130, 1)])
def test_a_path_that_cannot_go_live_exits_1(
    cortex: Any, running: Any, stopping: list[float], monkeypatch: pytest.MonkeyPatch, code: int, left: int
) -> None:
    monkeypatch.setattr(foreground, "run", lambda *_rest, **_flags: code)
    assert cortex("up", "--foreground", "/app").code == left
    assert stopping == [down.DRAIN_S]


def test_ctrl_c_in_the_foreground_stops_everything_too(
    cortex: Any, running: Any, stopping: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_rest: object, **_named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(foreground, "follow_all", interrupt)
    ran = cortex("up", "--foreground")
    assert (ran.code, stopping) == (130, [down.DRAIN_S])
    assert ran.talk.endswith("interrupted: everything here was stopped\n")


# ---- down -----------------------------------------------------------------------------------------------------------


def test_down(cortex: Any, running: Any, stopping: list[float]) -> None:
    ran = cortex("down", "--drain", "5s")
    assert (ran.code, ran.out) == (0, "cortex is down\n")
    assert ran.talk == "`cortex up` starts it again with everything that was deployed\n"
    assert stopping == [5.0]


def test_down_where_nothing_runs(cortex: Any) -> None:
    assert (cortex("down").code, cortex("down").out) == (0, "cortex was not running\n")


def test_down_tells_what_it_had_to_end(cortex: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = Stopped(was_running=True, killed=(12, 13))
    monkeypatch.setattr(LocalEnvironment, "stop", lambda _self, **_flags: stopped)
    assert "did not end by itself and was ended: pid 12 and 13" in cortex("down").talk


def test_purging_removes_our_files_and_names_the_others(cortex: Any, running: Any, stopping: list[float]) -> None:
    (cortex.home / "notes.txt").touch()
    ran = cortex("down", "--purge", "-y")
    assert ran.out == f"cortex is down, and its files in {cortex.home} are removed\n"
    assert ran.talk == "left alone, because they are not of Cortex: notes.txt\n"
    assert [file.name for file in cortex.home.iterdir()] == ["notes.txt"]


def test_purging_without_a_terminal_needs_yes(cortex: Any, running: Any, stopping: list[float]) -> None:
    ran = cortex("down", "--purge")
    assert (ran.code, ran.out, stopping) == (2, "", [])
    assert ran.talk == (
        "error: wrong-usage\n"
        f"  this would remove state, models, logs, secrets and tokens of {cortex.home}, "
        "and without a terminal nobody can be asked\n"
        "  hint: -y says yes beforehand\n"
    )
    assert (cortex.home / "token").exists()


def test_purging_asks_on_a_terminal(cortex: Any, running: Any, stopping: list[float]) -> None:
    ran = cortex("down", "--purge", tty=True, stdin=b"n\n")
    assert (ran.code, stopping) == (1, [])
    assert ran.talk.endswith("nothing was changed\n")
    assert cortex("down", "--purge", "-y", tty=True).code == 0


# ---- info, version, history -----------------------------------------------------------------------------------------


def test_info(cortex: Any, running: Any, fakes: Any, golden: Any) -> None:
    running.apis = [fakes.api()]
    running.info_fields = {"gpus": 1, "pid": 4241}
    golden("info", cortex("info").out, {f":{running.port} ": ":8881 "})
    assert json.loads(cortex("info", "-o", "json").out)["mem_bytes"] == 8 * 2**30


def test_info_tells_of_what_is_not_up(cortex: Any, running: Any) -> None:
    running.info_fields = {"ingress_up": False, "agent_pid": None, "ingress_pid": None}
    out = cortex("info").out
    assert "predictions     http://127.0.0.1:8880 (does not answer)\n" in out
    assert "agent           not running\n" in out


def a_told_node(name: str, **fields: Any) -> NodeInfo:
    node: dict[str, Any] = {
        "state": NodeState.READY,
        "door": "http://127.0.0.1:8880",
        "cpu": 2.0,
        "mem": 8 * 2**30,
        "requested": NodeShare(cpu=0.4, mem=512 * 2**20, gpu=0),
        "used": NodeShare(cpu=0.013, mem=70 * 2**20),
        "replicas": 2,
    }
    return NodeInfo(name=name, **(node | fields))


def test_info_tells_of_several_nodes_one_line_each(cortex: Any, running: Any) -> None:
    another = a_told_node(
        "b", state=NodeState.STARTING, door="", replicas=0, requested=NodeShare(cpu=0.0, mem=0, gpu=0)
    )
    running.info_fields = {"nodes": (a_told_node("a"), another)}
    assert cortex("info").out.split("\n\n")[1] == (
        "node   state      cpu        memory               replicas   predictions\n"
        "a      ready      0.4 of 2   512 MiB of 8.0 GiB          2   http://127.0.0.1:8880\n"
        "b      starting   0 of 2     0 B of 8.0 GiB              0   -\n"
    )


def test_info_shows_gpus_of_nodes_and_why_they_are_there_if_anything_is_to_be_said(cortex: Any, running: Any) -> None:
    running.info_fields = {"nodes": (a_told_node("a", gpu=1), a_told_node("b", why="soak/waits waits for cpu"))}
    header, first, second = cortex("info").out.split("\n\n")[1].splitlines()
    assert header.split() == ["node", "state", "cpu", "memory", "gpu", "replicas", "predictions", "why"]
    assert ("0 of 1" in first, second.endswith("soak/waits waits for cpu")) == (True, True)


def test_one_node_is_in_the_json_only(cortex: Any, running: Any) -> None:
    running.info_fields = {"nodes": (a_told_node("local", home="/home/me/.cortex"),)}
    assert "\n\n" not in cortex("info").out
    assert json.loads(cortex("info", "-o", "json").out)["nodes"] == [
        {
            "name": "local",
            "state": "ready",
            "door": "http://127.0.0.1:8880",
            "home": "/home/me/.cortex",
            "cpu": 2.0,
            "mem": 8 * 2**30,
            "gpu": 0,
            "requested": {"cpu": 0.4, "mem": 512 * 2**20, "gpu": 0},
            "used": {"cpu": 0.013, "mem": 70 * 2**20, "gpu": None},
            "replicas": 2,
            "why": "",
        }
    ]


def test_versions(cortex: Any, running: Any) -> None:
    shown = json.loads(cortex("version", "-o", "json").out)
    assert list(shown) == ["cortex", "control_plane", "python"]
    assert (shown["cortex"], shown["control_plane"]) == ("0.1.0", "0.1.0")


def test_versions_where_nothing_runs_start_nothing(cortex: Any) -> None:
    assert "control plane   not running\n" in cortex("version").out
    assert not cortex.home.exists()


def test_history(cortex: Any, running: Any, fakes: Any, golden: Any) -> None:
    running.apis = [fakes.api()]
    running.history = [
        HistoryLine(
            version="3fa1c09d",
            deployed="2027-01-15T07:52:00Z",
            cause="model changed (a.onnx changed), handlers/sklearn.py changed, env changed (TOKEN)",
            outcome="",
        ),
        HistoryLine(version="9b1c44e0", deployed="2027-01-14T07:52:00Z", cause="first deploy", outcome="failed:\nno"),
        HistoryLine(
            version="7770f00d",
            deployed="2027-01-13T07:52:00Z",
            cause="first deploy",
            outcome="live",
            serving=True,
            receipt=Receipt(
                verdict=Verdict.FAILED,
                reason="1 of 12,345 requests failed during the change-over, before it 0 of 135",
                requests=12480,
                failed=1,
                wrong_version=0,
                p99_before_ms=9.1,
                p99_ms=9.8,
                overlap_s=1.4,
                examples=("502 replica-lost of version 7770f00d (request probe-1-7)",),
            ),
        ),
        HistoryLine(
            version="0badf00d",
            deployed="2027-01-12T07:52:00Z",
            cause="first deploy",
            outcome="rolled back",
            rolled_back=True,
            obstacle="the value of the secret TOKEN that it had was deleted",
        ),
    ]
    golden("history", cortex("history", "sklearn").out)
    golden("history-verbose", cortex("history", "sklearn", "-v").out)
    assert max(map(len, cortex("history", "sklearn", tty=True).out.splitlines())) <= 88
    assert json.loads(cortex("history", "sklearn", "-o", "json").out)[1] == {
        "version": "9b1c44e0",
        "deployed": "2027-01-14T07:52:00Z",
        "cause": "first deploy",
        "outcome": "failed:\nno",
        "serving": False,
        "wanted": False,
        "rolled_back": False,
        "obstacle": "",
        "receipt": None,
    }
    told = json.loads(cortex("history", "sklearn", "-o", "json").out)[2]["receipt"]
    assert (told["verdict"], told["requests"], told["overlap_s"]) == ("failed", 12480, 1.4)
    assert told["text"].startswith("failed: 1 of 12,345 requests failed during the change-over")


def test_the_history_of_a_deleted_api_is_shown_by_its_full_name(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api()]
    running.history = [
        HistoryLine(version="3fa1c09d", deployed="2027-01-15T07:52:00Z", cause="first deploy", outcome="deleted")
    ]
    assert "deleted" in cortex("history", "iris/gone").out
    assert cortex("history", "gone").code == 1


# ---- schema, completion ---------------------------------------------------------------------------------------------


def test_the_schema_is_json_schema(cortex: Any) -> None:
    import jsonschema

    schema = json.loads(cortex("schema").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate([{"kind": "api", "name": "a", "model": "m.onnx"}], schema)


@pytest.mark.parametrize(
    ("shell", "alias"),
    [
        ("bash", "complete -o nosort -F _cortex_completion cx"),
        ("zsh", "compdef _cortex_completion cx"),
        ("fish", "complete --command cx --wraps cortex"),
    ],
)
def test_completion_scripts_are_for_both_names(cortex: Any, shell: str, alias: str) -> None:
    out = cortex("completion", shell).out
    assert f"_CORTEX_COMPLETE={shell}_complete" in out
    assert out.rstrip().splitlines()[-1] == alias


def test_completion_without_a_shell_takes_the_users(cortex: Any) -> None:
    cortex.environ = {"SHELL": "/usr/bin/zsh"}
    assert cortex("completion").out == cortex("completion", "zsh").out
    cortex.environ = {"SHELL": "/bin/tcsh"}
    assert cortex("completion").code == 2


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("cortex de", ["plain,deploy", "plain,delete"]),
        ("cortex get --wa", ["plain,--watch"]),
        ("cortex get s", ["plain,sklearn"]),
        ("cortex logs iris/", ["plain,iris/raw", "plain,iris/sklearn"]),
        ("cortex delete ir", ["plain,iris", "plain,iris/raw", "plain,iris/sklearn"]),
        ("cortex get -d i", ["plain,iris"]),
        ("cortex logs --deployment i", ["plain,iris"]),
        ("cortex secret delete t", ["plain,token"]),
    ],
)
def test_commands_options_and_apis_are_completed(
    cortex: Any,
    running: Any,
    fakes: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    words: str,
    completed: list[str],
) -> None:
    (cortex.cwd / "cortex.yaml").write_text("- kind: deployment\n  name: iris\n")
    running.apis = [fakes.api("raw"), fakes.api("sklearn")]
    running.secrets = [SecretStatus(name=name, updated="2027-01-15T08:00:00Z") for name in ("token", "key")]
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    cortex.environ = {"_CORTEX_COMPLETE": "bash_complete"}
    assert cortex().code == 0
    assert capfd.readouterr().out.splitlines() == completed


def test_completing_where_nothing_runs_is_silent(
    cortex: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_WORDS", "cortex get a")
    monkeypatch.setenv("COMP_CWORD", "2")
    cortex.environ = {"_CORTEX_COMPLETE": "bash_complete"}
    assert cortex().code == 0
    assert capfd.readouterr() == ("\n", "")
    assert not cortex.home.exists()


def test_differences_are_told_only_when_there_are_any(cortex: Any, running: Any) -> None:
    from cortex.settings import load_settings

    assert up.remarks(load_settings({}), running.info()) == []
