"""`cortex get`: tables, one api, what is said when there is nothing."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest

from cortex.errors import Problem
from cortex.wire.operator import (
    AllVersions,
    Batching,
    Latency,
    Parked,
    ReplicaCounts,
    RequestCounts,
    StartStatus,
    Status,
    Traffic,
    Waits,
)
from cortex.wire.reports import Phase, StartStep
from cortex.wire.signature import Signature, TensorSpec

TRACEBACK = """\
Traceback (most recent call last):
  File "handlers/pytorch.py", line 3, in <module>
    import torch
ModuleNotFoundError: No module named 'torch'"""


@pytest.fixture
def apis(fakes: Any) -> list[Any]:
    """One in each state that looks different."""
    return [
        fakes.api(
            "sklearn",
            requests=RequestCounts(ok=14, latency_ms=Latency(mean=1.234, p50=1.1, p90=1.9, p99=3.0)),
            notes=("capped at 3 replicas: node cpu 98 %",),
        ),
        fakes.api("xgboost", status=Status.CREATING, progress="importing handlers/xgboost.py", last_updated=None),
        fakes.api(
            "pytorch",
            status=Status.UPDATE_FAILED,
            reason="ModuleNotFoundError: No module named 'torch'",
            problem=Problem(
                reference="handler-import-failed",
                message="the handler cannot be imported: No module named 'torch'",
                hint="add torch to requirements.txt beside cortex.yaml",
                traceback=TRACEBACK,
            ),
            serving="11112222",
            crashes=3,
            replicas=ReplicaCounts(requested=1, ready=1, stale=1, failed=1),
        ),
        fakes.api(
            "a-name-as-long-as-a-name-may-ever-be-here-x",
            requests=RequestCounts(ok=1234567, client_error=3, server_error=12),
        ),
    ]


@pytest.fixture
def classified(fakes: Any) -> Any:
    return fakes.api(
        requests=RequestCounts(ok=14, latency_ms=Latency(mean=1.234, p50=1.1, p90=1.9, p99=3.0)),
        tracker={
            "model_type": "classification",
            "count": 16,
            "missed": 2,
            "classes": {"iris-setosa": 9, "iris-versicolor": 5, "日本語": 1},
            "other": 1,
            "approximate": False,
        },
        spec={
            "name": "sklearn",
            "model": "models/sklearn.onnx",
            "request_handler": None,
            "sample": [5.2, 3.6],
            "compute": {"cpu": "200m", "min_replicas": 1, "mem": None},
            "env": {},
        },
        signature=Signature(
            inputs=(TensorSpec("input", "float32", (None, 4)), TensorSpec("mask", "bool", None, optional=True)),
            outputs=(
                TensorSpec("label", "string", ("N",)),
                TensorSpec("scores", "float32", (), kind="sequence_of_maps", key_dtype="int64"),
            ),
        ),
    )


def test_the_list(cortex: Any, running: Any, apis: Any, golden: Any) -> None:
    running.apis = apis
    golden("get", cortex("get", "-d", "iris").out)


def test_the_list_on_a_terminal(cortex: Any, running: Any, apis: Any, golden: Any) -> None:
    running.apis = apis
    ran = cortex("get", "-d", "iris", tty=True)
    golden("get-colour", ran.out)
    cortex.environ = {"NO_COLOR": "1"}
    plain = cortex("get", "-d", "iris", tty=True).out
    assert max(len(line) for line in plain.splitlines()) <= 80


def test_the_list_of_everything_names_deployments(cortex: Any, running: Any, fakes: Any, golden: Any) -> None:
    running.apis = [fakes.api("a"), fakes.api("a", deployment="text", status=Status.ERROR, reason="no room")]
    golden("get-all", cortex("get", "-a").out)
    assert cortex("get").out == cortex("get", "-a").out


def test_the_summary(cortex: Any, running: Any, apis: Any, fakes: Any, golden: Any) -> None:
    running.apis = [*apis, fakes.api("a", deployment="text")]
    golden("get-summary", cortex("get", "-s").out)
    assert json.loads(cortex("get", "-s", "-d", "text", "-o", "json").out) == [
        {
            "name": "text",
            "status": "live",
            "apis": 1,
            "last_updated": "2027-01-15T07:52:00Z",
            "source": "",
            "statuses": {"live": 1},
        }
    ]


def test_the_deployment_here_is_listed(cortex: Any, running: Any, fakes: Any) -> None:
    (cortex.cwd / "cortex.yaml").write_text("- kind: deployment\n  name: text\n")
    running.apis = [fakes.api("a"), fakes.api("b", deployment="text")]
    ran = cortex("get")
    assert [line.split()[0] for line in ran.out.splitlines()] == ["api", "b"]
    assert running.requests[-1].query == {"deployment": "text"}


def test_for_programs_a_list_without_tracker_and_spec(cortex: Any, running: Any, classified: Any) -> None:
    running.apis = [classified]
    (shown,) = json.loads(cortex("get", "-o", "json").out)
    assert list(shown) == [
        "deployment",
        "name",
        "status",
        "endpoint",
        "version",
        "last_updated",
        "replicas",
        "parked",
        "requests",
        "reason",
        "problem",
        "ends",
        "waits",
        "crashes",
        "progress",
        "serving",
        "rolled_back",
        "in_proof",
        "notes",
        "batching",
        "sample_problem",
    ]
    assert shown["requests"] == {
        "2xx": 14,
        "4xx": 0,
        "5xx": 0,
        "latency_ms": {"mean": 1.234, "p50": 1.1, "p90": 1.9, "p99": 3.0},
    }


def test_for_programs_one_api_with_everything(cortex: Any, running: Any, classified: Any) -> None:
    running.apis = [classified]
    shown = json.loads(cortex("get", "sklearn", "-o", "json").out)
    assert shown == json.loads(msgspec.json.encode(classified))
    assert shown["tracker"]["classes"]["日本語"] == 1


def test_one_api(cortex: Any, running: Any, classified: Any, golden: Any) -> None:
    running.apis = [classified]
    golden("get-one", cortex("get", "sklearn").out)


def test_the_last_events_of_one_api_are_shown(cortex: Any, running: Any, fakes: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    told = (fakes.happened(1, "added", kind="deployed", version="3fa1c09d"), fakes.happened(2, "serves"))
    running.apis = [fakes.api(events=told)]
    ran = cortex("get", "sklearn")
    monkeypatch.undo()
    time.tzset()
    assert ran.out.splitlines()[-3:] == [
        "events",
        "  2027-01-15 07:50:01  deployed          3fa1c09d added",
        "  2027-01-15 07:50:02  live              serves",
    ]
    assert len(json.loads(cortex("get", "sklearn", "-o", "json").out)["events"]) == 2
    assert "events" not in json.loads(cortex("get", "-o", "json").out)[0]


def test_one_api_on_a_terminal(cortex: Any, running: Any, classified: Any, golden: Any) -> None:
    running.apis = [classified]
    golden("get-one-colour", cortex("get", "sklearn", tty=True).out)


def test_bars_without_block_characters(cortex: Any, running: Any, classified: Any) -> None:
    running.apis = [classified]
    out = cortex("get", "sklearn", encoding="ascii").out
    assert "iris-setosa           9   56.2 %   ########################" in out


def test_everything_about_one_api(cortex: Any, running: Any, classified: Any, golden: Any) -> None:
    running.apis = [classified]
    golden("get-verbose", cortex("get", "iris/sklearn", "-v").out)


def test_what_batching_rests_on_is_told_with_everything_and_to_programs(cortex: Any, running: Any, fakes: Any) -> None:
    obstacle = 'not batched: Conv conv_7: rows are dimension 2, not 0. "batching: on" if you know better'
    running.apis = [fakes.api(batching=Batching(batches=False, text=obstacle, mode="auto"))]
    assert f"\n\n{obstacle}\n\n" in cortex("get", "sklearn", "-v").out
    assert obstacle not in cortex("get", "sklearn").out
    assert json.loads(cortex("get", "sklearn", "-o", "json").out)["batching"]["text"] == obstacle


def test_rows_that_disagreed_are_told_once_wherever_an_api_is_shown(cortex: Any, running: Any, fakes: Any) -> None:
    said = 'batching off: rows disagreed (output "y" is 0.5 alone and 0.7 beside others)'
    running.apis = [fakes.api(notes=(said,), batching=Batching(batches=False, text=said, mode="auto"))]
    assert f"sklearn: {said}" in " ".join(cortex("get").out.split())
    for command in (("get", "sklearn"), ("get", "sklearn", "-v")):
        assert " ".join(cortex(*command).out.split()).count(said) == 1


def test_an_api_that_failed_shows_the_users_traceback(cortex: Any, running: Any, apis: Any, golden: Any) -> None:
    running.apis = apis
    golden("get-failed", cortex("get", "pytorch").out)


def test_an_api_without_a_signature_says_so(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api(status=Status.CREATING, progress="importing handler.py")]
    out = cortex("get", "sklearn", "-v").out
    assert "status     creating\n           importing handler.py\n" in out
    assert "the model's inputs are not known yet" in out


@pytest.mark.parametrize(
    ("tracker", "lines"),
    [
        (
            {"model_type": "regression", "count": 3, "missed": 0, "min": 0.5, "max": 12345.678901, "mean": None},
            ["count   min   mean       max", "    3   0.5      -   12345.7"],
        ),
        (
            {"model_type": "classification", "count": 0, "missed": 1, "classes": {}, "other": 0},
            ["class   count", "-           -", "1 response without a value to track: see `cortex logs`"],
        ),
    ],
)
def test_trackers(cortex: Any, running: Any, fakes: Any, tracker: dict[str, Any], lines: list[str]) -> None:
    running.apis = [fakes.api(tracker=tracker)]
    assert cortex("get", "sklearn").out.splitlines()[-len(lines) :] == lines


def test_many_classes_end_in_one_line(cortex: Any, running: Any, fakes: Any) -> None:
    classes = {f"class {number}\n\x1b[2J": 100 - number for number in range(30)}
    tracker = {"model_type": "classification", "classes": classes, "other": 5, "approximate": True, "bound": 3}
    running.apis = [fakes.api(tracker=tracker)]
    lines = cortex("get", "sklearn").out.splitlines()
    rest = sum(range(71, 81)) + 5
    assert sum(line.startswith("class ") for line in lines) == 1 + 20
    assert any(line.startswith(f"all others     {rest}") for line in lines)
    assert lines[-1] == "there are very many classes: each count may be by up to 3 too low"


NUMBERS: dict[str, Any] = {
    "model_type": "regression",
    "count": 1_234_567,
    "missed": 0,
    "min": -0.25,
    "max": 999.5,
    "mean": 301.2,
    "quantiles": {"p50": 250.1, "p90": 800.25, "p99": 990.0},
    "histogram": [{"low": 100.0 * n - 0.25, "high": 100.0 * n + 99.75, "count": 10 ** (n % 4)} for n in range(10)],
}


@pytest.fixture
def busy(fakes: Any) -> Any:
    """A regression with traffic and an older version."""
    requests = RequestCounts(ok=1_234_567, client_error=3, latency_ms=Latency(mean=1.0, p50=1.0, p90=2.0, p99=3.0))
    return fakes.api(
        requests=requests,
        tracker=NUMBERS,
        traffic=Traffic(per_second=12.345, minutes=(*range(59), 700)),
        all_versions=AllVersions(
            versions=2,
            requests=msgspec.structs.replace(requests, ok=2_000_000),
            tracker={**NUMBERS, "count": 2_000_000},
        ),
    )


def test_a_regression_with_traffic_and_an_older_version(cortex: Any, running: Any, busy: Any, golden: Any) -> None:
    running.apis = [busy]
    golden("get-regression", cortex("get", "sklearn").out)


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_one_api_fits_the_terminal(cortex: Any, running: Any, busy: Any, width: int) -> None:
    running.apis = [busy]
    cortex.width = width
    cortex.environ = {"NO_COLOR": "1"}
    lines = cortex("get", "sklearn", tty=True).out.splitlines()
    too_long = [line for line in lines if len(line) > width and not line.startswith("endpoint")]
    assert too_long == [] or width < 60
    (line,) = [line for line in lines if "█" in line and "▂" in line]
    assert len(line) == min(width, 11 + 60)


def test_traffic_without_block_characters(cortex: Any, running: Any, busy: Any) -> None:
    running.apis = [busy]
    assert "_" + "." * 58 + "#\n" in cortex("get", "sklearn", encoding="ascii").out


def test_an_hour_without_requests_says_so(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api(traffic=Traffic(minutes=(0,) * 60))]
    assert "traffic    none in the last hour\n" in cortex("get", "sklearn").out


def test_one_line_tells_of_all_versions_classes(cortex: Any, running: Any, fakes: Any) -> None:
    tracker = {"model_type": "classification", "count": 3, "classes": {"a": 2, "b\n": 1}, "missed": 0, "other": 0}
    together = AllVersions(versions=3, tracker={**tracker, "count": 8, "classes": {"b\n": 6, "a": 2}})
    running.apis = [fakes.api(tracker=tracker, all_versions=together)]
    last = cortex("get", "sklearn").out.splitlines()[-1]
    assert last == "all 3 versions in 14 days: 8 predictions: b  75.0 %, a 25.0 %"


def test_a_version_without_requests_tells_of_the_one_before_it(cortex: Any, running: Any, busy: Any) -> None:
    fresh = msgspec.structs.replace(
        busy, requests=RequestCounts(), all_versions=AllVersions(versions=1, requests=busy.requests)
    )
    running.apis = [fresh]
    out = cortex("get", "sklearn").out
    assert "5XX of an earlier version, in 14 days" in out
    assert "all 1 version" not in out


def test_a_single_version_is_not_told_twice(cortex: Any, running: Any, busy: Any) -> None:
    same = AllVersions(versions=1, requests=busy.requests, tracker=busy.tracker)
    running.apis = [msgspec.structs.replace(busy, all_versions=same)]
    assert "all 1 version" not in cortex("get", "sklearn").out


# ---- when there is nothing ------------------------------------------------------------------------------------------


def test_a_fresh_home_has_nothing_and_starts_nothing(cortex: Any) -> None:
    ran = cortex("get")
    assert (ran.code, ran.out) == (0, "")
    home = cortex.home
    assert ran.talk == f"nothing is deployed: nothing was ever started in {home}; `cortex deploy` changes that\n"
    assert cortex("get", "-o", "json").out == "[]\n"
    assert not cortex.home.exists()
    assert cortex("get", "-d", "iris").code == 1


def test_after_down_it_says_down(cortex: Any) -> None:
    cortex.home.mkdir()
    (cortex.home / "down").touch()
    ran = cortex("get")
    assert (ran.code, ran.out) == (1, "")
    assert ran.talk.startswith("error: down\n")


def test_nothing_deployed(cortex: Any, running: Any) -> None:
    ran = cortex("get", "-o", "json")
    assert (ran.code, ran.out, ran.talk) == (0, "[]\n", "")
    assert cortex("get", "-s").talk.startswith("nothing is deployed")


def test_a_deployment_that_is_not_deployed(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api()]
    (cortex.cwd / "cortex.yaml").write_text("- kind: deployment\n  name: irs\n")
    ran = cortex("get")
    assert (ran.code, ran.out) == (0, "")
    assert ran.talk == 'deployment "irs" is not deployed: `cortex deploy` does that; `cortex get -a` shows the others\n'
    ran = cortex("get", "-d", "irs")
    assert ran.code == 1
    assert ran.talk == 'error: deployment-not-found\n  there is no deployment "irs"\n  hint: did you mean "iris"?\n'


def test_an_unknown_api(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api()]
    ran = cortex("get", "sklern")
    assert (ran.code, ran.out) == (1, "")
    assert 'did you mean "sklearn"?' in ran.talk


# ---- watching -------------------------------------------------------------------------------------------------------


def stop() -> None:
    raise KeyboardInterrupt


def test_watching_redraws_in_place_and_leaves_the_last_look(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api(status=Status.CREATING)]

    def goes_live() -> None:
        running.apis = [fakes.api()]

    cortex.clock.on_sleep = [goes_live, stop]
    cortex.environ = {"NO_COLOR": "1"}
    ran = cortex("get", "-w", "-d", "iris", tty=True)
    assert ran.code == 130
    first, second, last = ran.out.split("\x1b[H")[1], *ran.out.split("\x1b[H")[2].split("\x1b[?25h\x1b[?1049l")
    assert ran.out.startswith("\x1b[?1049h\x1b[?25l\x1b[H")
    assert "creating" in first
    assert all(line.endswith("\x1b[K") for line in second.splitlines()[:-1])
    assert second.endswith("\x1b[J")
    assert last.splitlines()[1].startswith("sklearn   live")


def test_watching_more_than_fits_shows_the_top(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api(f"api-{number}") for number in range(40)]
    cortex.clock.on_sleep = [stop]
    out = cortex("get", "-w", "-d", "iris", tty=True).out
    assert out.split("\x1b[J")[0].count("\n") == 23


def test_watching_into_a_pipe_repeats_the_table(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api()]
    cortex.clock.on_sleep = [lambda: None, stop]
    assert cortex("get", "-w").out.count("sklearn") == 2
    cortex.clock.on_sleep = [lambda: None, stop]
    lines = cortex("get", "-w", "-o", "json").out.splitlines()
    assert [json.loads(line)[0]["name"] for line in lines] == ["sklearn", "sklearn"]


def test_watching_survives_a_restart_of_the_control_plane(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api()]
    cortex.clock.on_sleep = [lambda: running.hang_up_on.add("GET /v1/apis"), lambda: None, stop]
    ran = cortex("get", "-w", "-a")
    assert (ran.code, ran.out.count("sklearn")) == (130, 2)


def test_a_deployment_by_its_name(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api("a"), fakes.api("b", deployment="other")]
    ran = cortex("get", "iris")
    assert (ran.code, ran.out) == (0, cortex("get", "-d", "iris").out)
    assert [api["name"] for api in json.loads(cortex("get", "iris", "-o", "json").out)] == ["a"]


@pytest.mark.parametrize("apis", [(), ("a",)])
def test_a_deployment_that_is_asked_for_by_name_and_not_there_is_an_error(
    cortex: Any, running: Any, fakes: Any, apis: tuple[str, ...]
) -> None:
    running.apis = [fakes.api(name) for name in apis]
    for arguments in (("-d", "nope"), ("-d", "nope", "-s")):
        ran = cortex("get", *arguments)
        assert (ran.code, ran.out) == (1, "")
        assert ran.talk.startswith('error: deployment-not-found\n  there is no deployment "nope"\n')


def test_an_api_of_another_deployment_than_was_said_is_not_shown(cortex: Any, running: Any, fakes: Any) -> None:
    running.apis = [fakes.api("a"), fakes.api("b", deployment="other")]
    assert 'there is no api "other/a"' in cortex("get", "a", "-d", "other").talk


@pytest.mark.parametrize("command", ["get", "history", "logs"])
def test_for_programs_what_is_wrong_is_json_as_well(cortex: Any, running: Any, fakes: Any, command: str) -> None:
    running.apis = [fakes.api("a")]
    ran = cortex(command, "nope", "-o", "json")
    assert ran.code == 1
    (problem,) = json.loads(ran.out)["problems"]
    assert (problem["reference"], problem["message"]) == ("api-not-found", 'there is no api "nope"')
    assert ran.talk.startswith("error: api-not-found\n")


@pytest.mark.parametrize("line", ["get a", "logs a", "history a", "predict a [1]", "delete a -y", "info", "get -w"])
def test_whoever_only_looks_begins_nothing_in_a_home_that_may_be_mistyped(cortex: Any, line: str) -> None:
    ran = cortex(*line.split())
    assert (ran.code, ran.out) == (1, "")
    assert ran.talk == (
        f"error: never-up\n  nothing was ever started in {cortex.home}\n"
        "  hint: `cortex deploy` starts it here; --home or CORTEX_HOME names another home\n"
    )
    assert not cortex.home.exists()


def test_how_a_replica_starts_is_shown_while_one_watches_and_with_everything(
    cortex: Any, running: Any, fakes: Any
) -> None:
    steps = (StartStep(phase=Phase.STARTING, seconds=0.02), StartStep(phase=Phase.LOADING, seconds=1.2))
    start = StartStatus(replica="r", steps=steps, doing="warming", since="2027-01-15T07:59:59.600Z")
    running.apis = [fakes.api(status=Status.WAKING, start=start)]
    line = "start      starting 0.02 s, loading 1.20 s, warming for 0.40 s\n"
    assert line in cortex("get", "sklearn", "-v").out
    assert line not in cortex("get", "sklearn").out

    def live() -> None:
        running.apis = [fakes.api(start=StartStatus(replica="r", steps=steps))]

    def stop() -> None:
        raise KeyboardInterrupt

    cortex.clock.on_sleep = [live, stop]
    out = cortex("get", "sklearn", "-w").out
    assert line in out
    assert "start      starting 0.02 s, loading 1.20 s\n" in out


def test_what_an_api_waits_for_is_told_once_that_takes_longer_than_most(cortex: Any, running: Any, fakes: Any) -> None:
    waits = Waits(
        replica="iris.a.11111111.0",
        doing="running on_start of h.py",
        since="1970-01-01T00:01:40Z",
        until="1970-01-01T00:06:40Z",
    )
    api = fakes.api("a", status=Status.UPDATING, waits=waits)
    words = "iris.a.11111111.0: running on_start of h.py, for"

    def told(api: Any, now_wall_s: float) -> str:
        running.apis = [api]
        cortex.clock.wall = now_wall_s
        return " ".join(cortex("get", "-a").out.split())

    assert words not in told(api, 104.0)
    assert f"a: {words} 42s now; ended in 4m if it does not get on" in told(api, 142.0)
    assert f"a: {words} 5m now; to be ended" in told(api, 401.0)
    assert words not in told(fakes.api("a"), 142.0)


def test_one_that_is_parked_is_told_beside_those_that_serve(cortex: Any, running: Any, classified: Any) -> None:
    parked = Parked(replica="iris.sklearn.3fa1c09d.0", version="3fa1c09d", until="2026-11-20T12:34:00Z")
    running.apis = [msgspec.structs.replace(classified, parked=parked)]
    assert "1 of 3fa1c09d parked until 12:34 UTC" in cortex("get", classified.name).out
    assert json.loads(cortex("get", classified.name, "-o", "json").out)["parked"] == {
        "replica": "iris.sklearn.3fa1c09d.0",
        "version": "3fa1c09d",
        "until": "2026-11-20T12:34:00Z",
    }
