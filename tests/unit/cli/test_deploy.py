"""`cortex deploy`: what is said before, during and after, and with which exit code it ends."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex.cli.deploy import changes_text
from cortex.cli.terminal import Paint
from cortex.errors import Problem
from cortex.wire.operator import (
    ChangeKind,
    DeployProgress,
    DeployResult,
    Failure,
    HistoryLine,
    Receipt,
    Status,
    Verdict,
)

MODEL = (Path(__file__).parents[3] / "examples" / "iris" / "models" / "sklearn.onnx").read_bytes()

YAML = """\
- kind: deployment
  name: iris
- kind: api
  name: sklearn
  model: model.onnx
  request_handler: handler.py
- kind: api
  name: raw
  model: model.onnx
  sample: [5.2, 3.6, 1.4, 0.3]
"""


@pytest.fixture
def project(cortex: Any) -> Path:
    """Two apis, in a folder below the one that commands run in."""
    folder: Path = cortex.cwd / "iris"
    folder.mkdir()
    (folder / "cortex.yaml").write_text(YAML)
    (folder / "model.onnx").write_bytes(MODEL)
    (folder / "handler.py").write_text("def pre_inference(sample, metadata):\n    return sample\n")
    (folder / "sample.json").write_text("[1]")
    return folder


@pytest.fixture
def accepted(running: Any, fakes: Any) -> Any:
    """A control plane that takes the deploy and brings both apis up."""
    running.events = [
        DeployProgress(message="checked model and handler", api="sklearn", done=1, total=2),
        DeployProgress(message="checked model and handler", api="raw", done=2, total=2),
        DeployResult(changes=(fakes.change("sklearn"), fakes.change("raw")), committed=True),
    ]
    running.push(fakes.api("sklearn", status=Status.CREATING), fakes.api("raw", status=Status.CREATING))
    running.push(fakes.api("sklearn", status=Status.CREATING, progress="loading the model"), fakes.api("raw"))
    running.push(fakes.api("sklearn"), fakes.api("raw"))
    return running


@pytest.fixture
def failing(running: Any, fakes: Any) -> Any:
    """A control plane that takes the deploy, and one api of it cannot start."""
    problem = Problem(
        reference="handler-import-failed",
        message="the handler cannot be imported: No module named 'torch'",
        path=("apis", 0, "request_handler"),
        traceback='Traceback (most recent call last):\n  File "handler.py", line 1, in <module>\n    import torch\n'
        "ModuleNotFoundError: No module named 'torch'",
    )
    changes = (fakes.change("sklearn", ChangeKind.NEW_VERSION, previous="11112222"), fakes.change("raw"))
    running.events = [DeployResult(changes=changes, committed=True)]
    running.push(
        fakes.api("sklearn", status=Status.UPDATE_FAILED, problem=problem, serving="11112222"), fakes.api("raw")
    )
    return running


def test_a_deploy_in_a_pipe(cortex: Any, project: Path, accepted: Any, golden: Any) -> None:
    ran = cortex("deploy", "iris")
    assert ran.code == 0
    golden("deploy-out", ran.out)
    golden("deploy-talk", ran.talk)


def test_a_deploy_sends_what_the_folder_holds(cortex: Any, project: Path, accepted: Any) -> None:
    cortex("deploy", "iris", "--force", "--prune")
    sent = accepted.deployed
    assert (sent.deployment, sent.source, sent.force, sent.prune, sent.dry_run, sent.refresh) == (
        "iris",
        str(project),
        True,
        True,
        False,
        False,
    )
    assert [file.path for file in sent.project] == ["handler.py"]
    assert len(accepted.blobs) == 4, "a model, a handler, a sample.json and a sample that is in the file"


def test_refresh_asks_for_new_versions(cortex: Any, project: Path, accepted: Any) -> None:
    assert cortex("refresh", "--path", "iris").code == 0
    assert (accepted.deployed.refresh, accepted.deployed.refresh_only) == (True, "")


@pytest.mark.parametrize("name", ["sklearn", "iris/sklearn"])
def test_refresh_may_be_about_one_api(cortex: Any, project: Path, accepted: Any, name: str) -> None:
    cortex.cwd = project
    assert cortex("refresh", name).code == 0
    assert (accepted.deployed.refresh, accepted.deployed.refresh_only) == (True, "sklearn")


@pytest.mark.parametrize("name", ["sklern", "other/sklearn"])
def test_refreshing_what_the_file_does_not_have_sends_nothing(
    cortex: Any, project: Path, accepted: Any, name: str
) -> None:
    cortex.cwd = project
    ran = cortex("refresh", name)
    assert (ran.code, ran.out) == (1, "")
    assert f'error: api-not-in-file\n  there is no api "{name}" in cortex.yaml\n' in ran.talk
    assert "cortex.yaml has iris/sklearn, iris/raw" in ran.talk
    assert accepted.calls == []


def test_a_deploy_on_a_terminal_leaves_the_finished_lines(cortex: Any, project: Path, accepted: Any) -> None:
    cortex.environ = {"NO_COLOR": "1"}
    ran = cortex("deploy", "iris", tty=True)
    assert ran.code == 0
    assert "✓ raw      live  0.0 s" in ran.talk
    assert "✓ sklearn  live  0.0 s" in ran.talk
    assert "\x1b[3" not in ran.talk
    assert ran.out.startswith("deployment iris\n  + sklearn  added  3fa1c09d\n")


def test_curl_finds_the_sample_from_where_the_user_is(cortex: Any, project: Path, accepted: Any) -> None:
    out = cortex("deploy", "iris").out
    url = "http://127.0.0.1:8880/iris"
    assert f"  curl {url}/sklearn -H 'content-type: application/json' -d @iris/sample.json\n" in out
    assert f"  curl {url}/raw -H 'content-type: application/json' -d '[5.2,3.6,1.4,0.3]'\n" in out


def test_one_api_that_fails_is_told_with_its_traceback_and_undoes_no_other(
    cortex: Any, project: Path, failing: Any, golden: Any
) -> None:
    ran = cortex("deploy", "iris")
    assert ran.code == 1
    golden("deploy-failed-talk", ran.talk)
    assert "\nraw  http://127.0.0.1:8880/iris/raw\n" in ran.out
    assert "\nsklearn  http" not in ran.out


def test_for_programs_one_document(cortex: Any, project: Path, failing: Any) -> None:
    ran = cortex("deploy", "iris", "-o", "json")
    assert ran.code == 1
    shown = json.loads(ran.out)
    assert list(shown) == ["deployment", "outcome", "committed", "changes", "warnings", "problems", "apis", "receipts"]
    assert shown["receipts"] == {}
    assert (shown["deployment"], shown["outcome"], shown["committed"]) == ("iris", "failed", True)
    assert [(api["name"], api["status"]) for api in shown["apis"]] == [("sklearn", "update failed"), ("raw", "live")]
    assert [change["kind"] for change in shown["changes"]] == ["new version", "added"]


def proved(running: Any, fakes: Any, receipt: Receipt | None) -> None:
    """A deploy whose change-over was proved, with this receipt."""
    change = msgspec.structs.replace(fakes.change("sklearn", kind=ChangeKind.NEW_VERSION), proved=True)
    left = msgspec.structs.replace(fakes.change("raw", kind=ChangeKind.UNCHANGED), unproved="nothing changed")
    running.events = [DeployResult(changes=(change, left), committed=True)]
    running.push(fakes.api("sklearn", in_proof=True), fakes.api("raw"))
    running.push(fakes.api("sklearn"), fakes.api("raw"))
    line = HistoryLine(version=change.version, deployed="2027-01-15T07:52:00Z", cause="x", outcome="live")
    running.history = [msgspec.structs.replace(line, receipt=receipt)]


def test_what_was_proved_is_printed(cortex: Any, project: Path, running: Any, fakes: Any) -> None:
    proved(running, fakes, Receipt(verdict=Verdict.PASSED, requests=12480, wrong_version=0, p99_ms=9.8))
    ran = cortex("deploy", "iris", "--prove", "--yes")
    assert ran.code == 0
    assert (running.deployed.prove, running.deployed.prove_unrepeatable) == (True, True)
    assert [line for line in ran.out.splitlines() if line.startswith("proved")] == [
        "proved  sklearn  12,480 requests · 0 failed · 0 wrong version after live · p99 9.8 ms",
        "proved  raw      nothing to prove: nothing changed",
    ]
    found = json.loads(cortex("deploy", "iris", "--prove", "-o", "json").out)
    assert (found["outcome"], found["receipts"]["sklearn"]["requests"]) == ("live", 12480)


@pytest.mark.parametrize("verdict", [Verdict.FAILED, Verdict.CUT_SHORT])
def test_what_was_not_proved_ends_with_1(
    cortex: Any, project: Path, running: Any, fakes: Any, verdict: Verdict
) -> None:
    proved(running, fakes, Receipt(verdict=verdict, reason="so", examples=("502 (request 1)", "503 (request 2)")))
    ran = cortex("deploy", "iris", "--prove")
    assert ran.code == 1
    assert f"proved  sklearn  {verdict}: so\n                 502 (request 1)\n" in ran.out
    found = cortex("deploy", "iris", "--prove", "-o", "json")
    assert (found.code, json.loads(found.out)["outcome"]) == (1, "not proved")


def test_to_agree_to_what_is_not_asked_is_wrong_usage(cortex: Any, project: Path, running: Any) -> None:
    ran = cortex("deploy", "iris", "--yes")
    assert ran.code == 2
    assert "--yes goes with --prove" in ran.talk


def test_a_dry_run_changes_nothing_and_follows_nothing(cortex: Any, project: Path, accepted: Any) -> None:
    ran = cortex("deploy", "iris", "--dry-run")
    assert ran.code == 0
    assert ran.out.startswith("deployment iris: would change\n")
    assert ran.talk.endswith("dry run: nothing was changed\n")
    assert accepted.deployed.dry_run
    assert "GET /v1/watch" not in accepted.calls
    assert json.loads(cortex("deploy", "iris", "--dry-run", "-o", "json").out)["outcome"] == "dry run"


def test_not_waiting_returns_after_the_commit(cortex: Any, project: Path, accepted: Any) -> None:
    ran = cortex("deploy", "iris", "--no-wait")
    assert ran.code == 0
    assert ran.talk.endswith("not waiting: `cortex get` shows how it goes\n")
    assert "GET /v1/watch" not in accepted.calls


def test_no_progress_ends_the_waiting_not_the_deploy(
    cortex: Any, project: Path, accepted: Any, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted.frames = [(fakes.api("sklearn", status=Status.CREATING), fakes.api("raw"))]
    real_frame = accepted.frame

    def frame(token: str, timeout_s: float) -> Any:
        cortex.clock.monotonic += timeout_s if token else 0.0
        return real_frame(token, 0.0)

    monkeypatch.setattr(accepted, "frame", frame)
    ran = cortex("deploy", "iris", "--timeout", "1m")
    assert ran.code == 1
    assert "sklearn: creating, no progress any more after 1m 00s\n" in ran.talk
    assert "no progress for 1m: sklearn. The deploy goes on; `cortex get` shows it\n" in ran.talk
    assert ran.talk.endswith("1 of 2 apis is live as deployed\n")


def test_problems_of_the_file_are_told_before_anything_is_started(cortex: Any, project: Path) -> None:
    (project / "cortex.yaml").write_text("- kind: api\n  name: A\n  model: m.onnx\n  compute: {max_replica: 3}\n")
    ran = cortex("deploy", "iris")
    assert (ran.code, ran.out) == (1, "")
    assert ran.talk.startswith('error: bad-name\n  iris/cortex.yaml:2:3   api "A": name\n')
    assert 'did you mean "max_replicas"?' in ran.talk
    assert not cortex.home.exists()
    shown = json.loads(cortex("deploy", "iris", "-o", "json").out)
    assert (shown["outcome"], shown["committed"], len(shown["problems"])) == ("refused", False, 2)


@pytest.mark.parametrize("by", ["result", "failure"])
def test_problems_of_the_control_plane_get_their_place_in_the_file(
    cortex: Any, project: Path, running: Any, by: str
) -> None:
    problem = Problem(
        reference="compute-unavailable", subject='api "raw": compute', message="too large", path=("apis", 1, "compute")
    )
    if by == "result":
        running.events = [DeployResult(problems=(problem,))]
    else:
        failure = Failure(error="compute-unavailable", message="too large", problems=(problem,))
        running.failures["POST /v1/deployments/iris"] = (422, failure)
    ran = cortex("deploy", "iris")
    assert ran.code == 1
    assert ran.talk.endswith('error: compute-unavailable\n  iris/cortex.yaml:7:3   api "raw": compute\n  too large\n')


def test_what_was_odd_before_the_control_plane_refused_is_told_as_well(
    cortex: Any, project: Path, running: Any
) -> None:
    (project / "requirements.txt").write_text("pricing\n")
    (project / "pricing.py").touch()
    running.events = [DeployResult(problems=(Problem(reference="packages-unreachable", message="no answer"),))]
    ran = cortex("deploy", "iris")
    assert ran.code == 1
    assert ran.talk.endswith(
        "warning: requirements-own-module\n"
        "  iris/requirements.txt:1\n"
        "  pricing is installed from the package index, where anybody may own that name, and pricing.py is yours\n"
        "  hint: delete the line: modules of the project are imported as they are; if that of the index is meant, "
        "rename pricing.py\n\n"
        "error: packages-unreachable\n  no answer\n"
    )
    shown = json.loads(cortex("deploy", "iris", "-o", "json").out)
    assert [warning["reference"] for warning in shown["warnings"]] == ["requirements-own-module"]


def test_warnings_are_told_once_each(cortex: Any, project: Path, accepted: Any, fakes: Any) -> None:
    def warning(number: int, reference: str) -> Problem:
        return Problem(reference=reference, message="as said", subject="x", path=("apis", number, "model"))

    accepted.events = [
        DeployResult(
            changes=(fakes.change("sklearn"), fakes.change("raw")),
            warnings=tuple(warning(n, reference) for reference in ("odd",) for n in (0, 1)),
            committed=True,
        )
    ]
    talk = cortex("deploy", "iris").talk
    assert "\nwarning: odd\n  iris/cortex.yaml:5:3   x and 1 more place\n  as said\n" in talk


def test_the_flat_form_is_deployed_with_one_note_that_shows_the_block(
    cortex: Any, project: Path, accepted: Any
) -> None:
    (project / "cortex.yaml").write_text(YAML + "  min_replicas: 2\n  cpu: 100m\n")
    ran = cortex("deploy", "iris")
    assert ran.code == 0
    note = (
        "note: flat-form\n"
        '  iris/cortex.yaml:11:3   api "raw"\n'
        "  fields of `compute:` stand beside `name:`, and are taken as if they stood in their block\n"
        "  hint: usually written as\n"
        "          compute:\n"
        "            min_replicas: 2\n"
        "            cpu: 100m\n"
    )
    assert ran.talk.count("note: flat-form") == ran.talk.count(note) == 1
    assert accepted.deployed.apis[1].spec["compute"]["cpu"] == "100m"
    (told,) = json.loads(cortex("deploy", "iris", "-o", "json").out)["warnings"]
    assert (told["reference"], told["where"]) == ("flat-form", "iris/cortex.yaml:11:3")


def test_no_file_is_an_error(cortex: Any) -> None:
    ran = cortex("deploy")
    assert ran.code == 1
    assert ran.talk.startswith("error: no-cortex-yaml\n")


def test_a_deploy_that_breaks_off_is_sent_again(cortex: Any, project: Path, accepted: Any) -> None:
    accepted.hang_up_on.add("POST /v1/deployments/iris")
    ran = cortex("deploy", "iris")
    assert ran.code == 0
    assert "the control plane has gone: going on when it is back" in ran.talk


def test_a_deploy_that_breaks_off_again_and_again_says_how_to_find_out(
    cortex: Any, project: Path, accepted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortex.client.reconnection.GIVE_UP_AFTER_S", -1.0)
    accepted.cut_deploy_short = True
    ran = cortex("deploy", "iris")
    assert ran.code == 1
    assert "it ended before it said how the deploy went" in ran.talk
    assert "`cortex get` shows whether the deploy took place" in ran.talk


def test_a_dry_run_after_down_starts_nothing(cortex: Any, project: Path) -> None:
    cortex.home.mkdir()
    (cortex.home / "down").touch()
    assert cortex("deploy", "iris", "--dry-run").talk.startswith("error: down\n")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("POST /v1/blobs/missing", "nothing was changed"),
        (
            "POST /v1/deployments/iris",
            "the deploy is called off; had it been accepted already, `cortex get` shows it",
        ),
        ("GET /v1/watch", "the deploy goes on; `cortex get` shows it"),
    ],
)
def test_ctrl_c_says_what_state_things_are_in(
    cortex: Any, project: Path, accepted: Any, monkeypatch: pytest.MonkeyPatch, call: str, sentence: str
) -> None:
    real_request = HTTPConnection.request

    def request(self: HTTPConnection, method: str, path: str, *rest: Any, **more: Any) -> None:
        if f"{method} {path.partition('?')[0]}" == call:
            raise KeyboardInterrupt
        real_request(self, method, path, *rest, **more)

    monkeypatch.setattr(HTTPConnection, "request", request)
    ran = cortex("deploy", "iris")
    assert ran.code == 130
    assert ran.talk.endswith(f"\ninterrupted: {sentence}\n")


def test_following_survives_a_restart_of_the_control_plane(cortex: Any, project: Path, accepted: Any) -> None:
    accepted.hang_up_on.add("GET /v1/watch")
    assert cortex("deploy", "iris").code == 0


# ---- what changes ---------------------------------------------------------------------------------------------------


def test_every_kind_of_change(fakes: Any, golden: Any) -> None:
    changes = [
        fakes.change("added"),
        fakes.change(
            "new",
            ChangeKind.NEW_VERSION,
            previous="9b1c44e0",
            causes=("model changed (sklearn.onnx changed)", "handlers/sklearn.py changed"),
            breaking=('input "x" was float32[N,4], is float32[N,5]',),
        ),
        fakes.change("rolled", ChangeKind.ROLLED, causes=("cpu 200m -> 500m",), notes=("a note",)),
        fakes.change("settings", ChangeKind.SETTINGS, causes=("timeout 10m -> 1m",), notes=("a note", "another")),
        fakes.change("removed", ChangeKind.REMOVED, version="", previous="9b1c44e0"),
        fakes.change("again", ChangeKind.UNCHANGED, causes=("it failed before and is tried again",)),
        fakes.change("same", ChangeKind.UNCHANGED),
        fakes.change("same-too", ChangeKind.UNCHANGED, notes=("a note",)),
    ]
    golden("changes", "\n".join(changes_text("iris", changes, Paint(False))) + "\n")
    golden("changes-colour", "\n".join(changes_text("iris", changes, Paint(True))) + "\n")


def test_no_change_at_all(fakes: Any) -> None:
    same = [fakes.change("a", ChangeKind.UNCHANGED), fakes.change("b", ChangeKind.UNCHANGED)]
    assert changes_text("iris", same, Paint(False)) == ["deployment iris: nothing changed (2 apis)"]
    assert changes_text("iris", [], Paint(False)) == ["deployment iris: no apis"]
