"""`cortex deploy --prove`, as users meet it: real requests through a change-over, and a receipt."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_harness import Connection, Home, calling, eventually, rows_model, running_home, write_project

pytestmark = pytest.mark.slow

CONFIGURATION = """\
    - kind: deployment
      name: d

    - kind: api
      name: a
      model: m.onnx
      request_handler: a.py
      sample: {row: [1, 2, 3, 4]}
      tracker: {model_type: classification}
      compute: {cpu: 10m}
    """
HANDLER = """\
    def pre_inference(sample, metadata):
        return [sample["row"]]

    def post_inference(prediction, metadata):
        return "NUMBER"
    """
FAILS_LATER = """\
    asked = 0

    def pre_inference(sample, metadata, request):
        global asked
        asked += not request.warmup
        if asked % 5 == 4:
            raise RuntimeError("now and then")
        return [sample["row"]]

    def post_inference(prediction, metadata):
        return "broken"
    """
HELD = """\
    import os, time

    def pre_inference(sample, metadata, request):
        if not request.warmup:
            open("SEEN", "w").close()
            while not os.path.exists("GO"):
                time.sleep(0.01)
        return [sample["row"]]

    def post_inference(prediction, metadata):
        return "held"
    """
SAMPLE = b'{"row": [1, 2, 3, 4]}'


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(
        tmp_path / "project", {"cortex.yaml": CONFIGURATION, "m.onnx": rows_model(), "a.py": handler(1)}
    )


def handler(number: int) -> str:
    return HANDLER.replace("NUMBER", str(number))


def ask(home: Home, headers: dict[str, str] | None = None) -> Any:
    with Connection(home.port) as connection:
        answer = connection.ask("POST", "/d/a", SAMPLE, headers)
    return answer.json if answer.status == 200 else answer.status


def history(home: Home) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = home.cortex("history", "d/a", "-o", "json").json
    return lines


def status(home: Home) -> dict[str, Any]:
    found: dict[str, Any] = home.cortex("get", "d/a", "-o", "json").json
    return found


def receipt(home: Home) -> dict[str, Any]:
    """Of the newest version, once it is written."""
    found: dict[str, Any] = eventually(lambda: history(home)[0]["receipt"], "the receipt is written")
    return found


@contextlib.contextmanager
def asking(home: Home) -> Iterator[list[Any]]:
    """Somebody asks without end, and is counted."""
    seen: list[Any] = []

    def call(_: int, enough: threading.Event) -> None:
        while not enough.is_set():
            seen.append(ask(home))

    with calling(call, 1):
        yield seen


def test_a_good_change_is_proved_and_nothing_counts_what_was_asked_for_it(home: Home, project: Path) -> None:
    home.deploy(project)
    ask(home)
    write_project(project, {"a.py": handler(2)})
    with asking(home) as seen:
        ran = home.deploy(project, "--prove")
    assert set(seen) == {"1", "2"}
    (line,) = [line for line in ran.out.splitlines() if line.startswith("proved")]
    assert " 0 failed · 0 wrong version after live · p99 " in line
    assert "overlap" in line
    newest, first = history(home)
    assert (newest["receipt"]["verdict"], newest["receipt"]["failed"]) == ("passed", 0)
    assert newest["receipt"]["requests"] >= 40
    assert newest["receipt"]["text"] in line
    assert first["receipt"] is None
    assert newest["receipt"]["text"] in home.cortex("history", "d/a", "-v").out
    assert "proved" not in home.cortex("history", "d/a").out

    # The new version is as old as the proof: whatever it has counted it has counted for others.
    asked = seen.count("2")
    found = status(home)
    assert (found["requests"]["2xx"], found["tracker"]["count"]) == (asked, asked)
    assert found["all_versions"]["requests"]["2xx"] == len(seen) + 1
    assert not found["all_versions"]["requests"]["5xx"]


def test_a_change_that_makes_requests_fail_is_taken_back_and_says_which(home: Home, project: Path) -> None:
    home.deploy(project)
    first = status(home)["version"]
    write_project(project, {"a.py": FAILS_LATER})
    ran = home.deploy(project, "--prove", code=1)
    assert "error: rolled-back-meanwhile" in ran.err
    assert "proved  a  failed: " in ran.out
    assert "handler-failed" in ran.out
    asked: list[Any] = []
    eventually(lambda: asked.append(ask(home)) or asked[-1] == "1", "the old version serves again")
    back, broken, _ = history(home)
    assert (back["version"], back["wanted"], broken["rolled_back"]) == (first, True, True)
    found = broken["receipt"]
    assert found["verdict"] == "failed"
    assert found["failed"] >= 1
    assert found["failed_before"] == 0
    assert found["reason"] in broken["outcome"]
    request = found["examples"][0].rpartition("(request ")[2].rstrip(")")
    assert any("now and then" in line for line in home.logs("d/a", "--request", request))
    counted = status(home)["all_versions"]["requests"]
    assert counted["2xx"] + counted["5xx"] == len(asked), "of the failures that were proved none is counted"
    assert "left" in home.deploy(project, "--prove").out
    ran = home.deploy(project, "--prove")
    assert "nothing to prove: it stays as it is" in ran.out


def test_what_cannot_be_proved_is_refused_and_says_what_to_do(home: Home, project: Path) -> None:
    write_project(project, {"cortex.yaml": CONFIGURATION.replace("sample: {row: [1, 2, 3, 4]}", "retry: off")})
    home.deploy(project)
    write_project(project, {"a.py": handler(2)})
    ran = home.deploy(project, "--prove", code=1)
    assert "error: no-sample-to-prove-with" in ran.err
    assert "hint: add `sample:`, a request that works, or deploy without --prove" in ran.err
    assert ask(home) == "1"

    write_project(project, {"cortex.yaml": CONFIGURATION.replace("tracker:", "retry: off\n      tracker:")})
    ran = home.deploy(project, "--prove", code=1)
    assert "error: proof-repeats-requests" in ran.err
    assert 'api "a": retry' in ran.err
    assert "hint: pass --yes if the sample may be sent many times" in ran.err
    assert ask(home) == "1"

    assert "proof-repeats-requests" in home.deploy(project, "--prove", "--dry-run", code=1).err
    ran = home.deploy(project, "--prove", "--yes")
    assert " 0 failed" in ran.out
    assert ask(home) == "2"
    assert "--yes goes with --prove" in home.deploy(project, "--yes", code=2).err


def test_first_versions_rolls_and_what_does_not_change(home: Home, project: Path) -> None:
    found = home.deploy(project, "--prove", "-o", "json").json["receipts"]["a"]
    assert (found["verdict"], found["previous"], found["p99_before_ms"]) == ("passed", "", None)
    assert found["requests"] >= 20

    assert "nothing to prove: nothing changed" in home.deploy(project, "--prove").out
    write_project(project, {"cortex.yaml": CONFIGURATION.replace("tracker:", "timeout: 20s\n      tracker:")})
    assert "nothing to prove: its replicas stay" in home.deploy(project, "--prove").out
    write_project(project, {"cortex.yaml": CONFIGURATION.replace("10m", "20m")})
    assert "proved  a  " in home.deploy(project, "--prove").out
    (line,) = history(home)
    assert (line["receipt"]["verdict"], line["receipt"]["overlap_s"]) == ("passed", None)
    assert line["receipt"]["previous"] == line["version"]


def test_probes_are_no_load_that_replicas_are_started_for(home: Home, project: Path) -> None:
    """A thousandth of a request in flight asks for a replica; whether it gets one depends on the machine."""
    eager = CONFIGURATION.replace("cpu: 10m", "cpu: 10m, max_replicas: 3, target_in_flight: 0.001")
    write_project(project, {"cortex.yaml": eager})
    home.deploy(project, "-o", "json")  # for people it would ask the api for its sample, which is load
    write_project(project, {"a.py": handler(2)})
    found = home.deploy(project, "--prove", "-o", "json").json["receipts"]["a"]
    assert found["requests"] >= 40
    scaled = status(home)
    assert (scaled["replicas"]["requested"], scaled["scaling"]["change"]) == (1, "")
    assert scaled["scaling"]["wanted"] <= 1
    with asking(home):
        eventually(lambda: status(home)["scaling"]["wanted"] > 1, "others are load")


def test_nobody_else_can_mark_a_request(home: Home, project: Path) -> None:
    home.deploy(project)
    token = (home.path / "probe-token").read_text()
    for forged in ("1", token[:-1], token.upper()):
        assert ask(home, {"x-cortex-probe": forged}) == "1"
    assert status(home)["requests"]["2xx"] == 3
    assert ask(home, {"x-cortex-probe": token}) == "1"
    assert status(home)["requests"]["2xx"] == 3
    assert (home.path / "probe-token").stat().st_mode & 0o777 == 0o600


def test_a_change_over_whose_control_plane_was_killed_is_said_to_be_cut_short(
    home: Home, project: Path, tmp_path: Path
) -> None:
    home.deploy(project)
    seen, go = tmp_path / "seen", tmp_path / "go"
    write_project(project, {"a.py": HELD.replace("SEEN", str(seen)).replace("GO", str(go))})
    deploying = home.start("deploy", project, "--prove")
    eventually(seen.exists, "the new version is asked")
    plane = home.control_plane()
    assert plane is not None
    os.kill(plane.pid, signal.SIGKILL)
    go.touch()
    out, err = deploying.communicate(timeout=100)
    assert deploying.returncode == 1, err.decode()
    found = receipt(home)
    assert found["verdict"] == "cut short"
    assert found["requests"] == 0
    assert "cut short: the control plane ended meanwhile; what it saw is not known" in out.decode()
    assert ask(home) == "held"
    eventually(lambda: not [title for _, title in home.processes() if "prober" in title], "nobody asks any more")


def test_the_proof_goes_on_without_whoever_asked_for_it(home: Home, project: Path, tmp_path: Path) -> None:
    home.deploy(project)
    seen, go = tmp_path / "seen", tmp_path / "go"
    write_project(project, {"a.py": HELD.replace("SEEN", str(seen)).replace("GO", str(go))})
    deploying = home.start("deploy", project, "--prove")
    eventually(seen.exists, "the new version is asked")
    deploying.send_signal(signal.SIGINT)
    _out, err = deploying.communicate(timeout=100)
    assert deploying.returncode == 130
    assert "`cortex history -v` what was proved" in err.decode()
    go.touch()
    found = receipt(home)
    assert (found["verdict"], found["failed"]) == ("passed", 0)


def test_another_deploy_cuts_a_proof_short(home: Home, project: Path, tmp_path: Path) -> None:
    home.deploy(project)
    seen, go = tmp_path / "seen", tmp_path / "go"
    write_project(project, {"a.py": HELD.replace("SEEN", str(seen)).replace("GO", str(go))})
    deploying = home.start("deploy", project, "--prove")
    eventually(seen.exists, "the new version is asked")
    write_project(project, {"a.py": handler(3)})
    home.deploy(project, "--no-wait")
    go.touch()
    out, err = deploying.communicate(timeout=100)
    assert deploying.returncode == 1, err.decode()
    assert "cut short: another deploy replaced it" in out.decode()
    newest, middle, _first = history(home)
    assert (newest["receipt"], middle["receipt"]["verdict"]) == (None, "cut short")
    eventually(lambda: ask(home) == "3", "the last one serves")


def test_an_api_that_sleeps_is_left_asleep_and_none_is_kept_awake(home: Home, project: Path) -> None:
    sleepy = CONFIGURATION.replace("cpu: 10m", "cpu: 10m, min_replicas: 0, idle_timeout: 2s")
    write_project(project, {"cortex.yaml": sleepy})
    found = home.deploy(project, "--prove", "-o", "json", code=None).json["receipts"]["a"]
    assert found["verdict"] == "passed" or found["reason"] == "it fell asleep"
    eventually(lambda: status(home)["status"] == "asleep", "it sleeps, whoever probes it")
    write_project(project, {"a.py": handler(2)})
    ran = home.deploy(project, "--prove")
    assert "nothing to prove: it sleeps, and whoever asks wakes it" in ran.out
    assert receipt(home)["text"] == "not proved: it sleeps, and whoever asks wakes it"
    eventually(lambda: not home.replica_pids("d/a"), "nobody woke it")
    assert ask(home) == "2"
