"""Going back to an older version, as users meet it: on the command line, while requests go on."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_harness import Connection, Home, Ran, eventually, rows_model, running_home, write_project

from cortex.errors import CortexError
from cortex.wire.operator import RollbackRequest

pytestmark = pytest.mark.slow

CONFIGURATION = """\
    - kind: deployment
      name: d

    - kind: api
      name: a
      model: m.onnx
      request_handler: a.py
      timeout: 30s
      compute: {cpu: 10m}
    """
HANDLER = """\
    import os

    def pre_inference(sample, metadata):
        return [[1, 2, 3, 4]]

    def post_inference(prediction, metadata):
        return [NUMBER, prediction["score"][0][0], os.environ.get("TOKEN", "")]
    """


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(
        tmp_path / "project", {"cortex.yaml": CONFIGURATION, "m.onnx": rows_model(1.0), "a.py": handler(1)}
    )


def handler(number: int) -> str:
    return HANDLER.replace("NUMBER", str(number))


def deploy(home: Home, project: Path, number: int, *argv: str, code: int = 0) -> Ran:
    write_project(project, {"a.py": handler(number)})
    return home.deploy(project, *argv, code=code)


def answer(home: Home, api: str = "d/a") -> Any:
    with Connection(home.port) as connection:
        return connection.ask("POST", f"/{api}", b"1").json


def history(home: Home, api: str = "d/a") -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = home.cortex("history", api, "-o", "json").json
    return lines


def version(home: Home) -> str:
    return str(home.cortex("get", "d/a", "-o", "json").json["version"])


@contextlib.contextmanager
def asking(home: Home, path: str = "/d/a", callers: int = 3) -> Iterator[Counter[tuple[int, Any]]]:
    """Requests by several callers, keep-alive and not, while the block runs; counts (status, first of the answer)."""
    seen: Counter[tuple[int, Any]] = Counter()
    stop = threading.Event()
    began = threading.Barrier(callers + 1)

    def call(keeps_alive: bool) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", home.port, timeout=30)
        began.wait()
        with contextlib.closing(connection):
            while not stop.is_set():
                connection.request("POST", path, b"1")
                response = connection.getresponse()
                body = response.read()
                seen[response.status, body.partition(b",")[0].strip(b"[]").decode()] += 1
                if not keeps_alive:
                    connection.close()

    threads = [threading.Thread(target=call, args=(number % 2 == 0,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    began.wait()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_the_version_before_comes_back_under_traffic_and_loses_nothing(home: Home, project: Path) -> None:
    deploy(home, project, 1)
    first = version(home)
    deploy(home, project, 2)
    second = version(home)
    with asking(home) as seen:
        eventually(lambda: sum(seen.values()) > 20, "requests are answered")
        ran = home.cortex("rollback", "d/a")
        afterwards = answer(home)
    assert f"{second} -> {first}" in ran.out
    assert "a.py changed" in ran.out
    assert afterwards[0] == 1
    assert {status for status, _by in seen} == {200}
    assert {by for _status, by in seen} == {"1", "2"}
    newest, *_ = history(home)
    assert (newest["version"], newest["cause"], newest["serving"], newest["wanted"]) == (
        first,
        f"rolled back from {second}",
        True,
        True,
    )
    assert [(line["version"], line["outcome"]) for line in history(home)] == [
        (first, "live"),
        (second, "rolled back"),
        (first, "replaced"),
    ]


def test_it_stays_so_until_other_files_are_deployed(home: Home, project: Path) -> None:
    deploy(home, project, 1)
    first = version(home)
    deploy(home, project, 2)
    second = version(home)
    home.cortex("rollback", "d/a")
    pids = home.settled_replicas("d/a")

    ran = deploy(home, project, 2)
    assert f"= a  left  {first}" in ran.out
    assert f"rolled back from {second} on 20" in ran.out
    assert "--force" in ran.out
    assert (answer(home)[0], home.settled_replicas("d/a")) == (1, pids)
    assert "rolled back on" in str(home.cortex("get", "d/a", "-o", "json").json["notes"])

    write_project(project, {"cortex.yaml": CONFIGURATION.replace("timeout: 30s", "timeout: 20s")})
    ran = home.deploy(project)
    assert "timeout 30s -> 20s" in ran.out
    assert home.settled_replicas("d/a") == pids
    assert home.cortex("get", "d/a", "-o", "json").json["spec"]["timeout"] == "20s"

    write_project(project, {"b.py": "# of another api\n"})
    ran = home.deploy(project)
    assert f"goes forward again: since {second}, which it was rolled back from, only b.py added" in ran.out
    assert answer(home)[0] == 2

    home.cortex("rollback", "d/a")
    assert answer(home)[0] == 1
    ran = home.deploy(project, "--force")
    assert "which it was rolled back from: --force" in ran.out
    assert answer(home)[0] == 2
    assert "nothing changed" in home.deploy(project).out


def test_again_is_further_back_and_settings_stay_as_they_are(home: Home, project: Path) -> None:
    versions = []
    for number in (1, 2, 3):
        deploy(home, project, number)
        versions.append(version(home))
    with_more = CONFIGURATION.replace("cpu: 10m", "cpu: 20m, min_replicas: 2")
    write_project(project, {"cortex.yaml": with_more})
    home.deploy(project)
    home.cortex("rollback", "d/a")
    assert answer(home)[0] == 2
    home.cortex("rollback", "a", "-d", "d")
    assert answer(home)[0] == 1
    status = home.cortex("get", "d/a", "-o", "json").json
    assert status["replicas"]["requested"] == 2
    assert (status["spec"]["compute"]["cpu"], status["spec"]["compute"]["min_replicas"]) == ("10m", 2)
    home.settled_replicas("d/a", 2)

    ran = home.cortex("rollback", "d/a", code=1)
    assert "error: nothing-older" in ran.err
    assert f"these can come back: {versions[1]}, {versions[2]}" in ran.err
    ran = home.cortex("rollback", "d/a", versions[0])
    assert "is the version that is wanted already" in ran.out
    ran = home.cortex("rollback", "d/a", "ffffffff", code=1)
    assert "error: unknown-version" in ran.err
    assert f"these can come back: {versions[1]}, {versions[2]}" in ran.err
    home.cortex("rollback", "d/a", versions[2][:5])
    assert answer(home)[0] == 3
    assert "nothing changed" in home.deploy(project).out or "cpu 10m -> 20m" in home.deploy(project).out


def test_values_of_secrets_come_back_and_a_deleted_one_does_not(home: Home, project: Path) -> None:
    write_project(
        project,
        {"cortex.yaml": CONFIGURATION.replace("timeout: 30s", "env: {TOKEN: {secret: api-token}}")},
    )
    home.cortex("secret", "set", "api-token", stdin=b"old")
    deploy(home, project, 1)
    first = version(home)
    home.cortex("secret", "set", "api-token", stdin=b"new")
    deploy(home, project, 2)
    assert answer(home) == [2, 10.0, "new"]
    ran = home.cortex("rollback", "d/a")
    assert answer(home) == [1, 10.0, "old"]
    assert "TOKEN has the value of 20" in ran.out
    assert "`cortex refresh d/a` takes today's" in ran.out

    ran = home.cortex("refresh", "a", cwd=project)
    assert "what it was rolled back to is refreshed" in ran.out
    assert answer(home) == [1, 10.0, "new"]
    assert version(home) != first
    assert "left" in home.deploy(project).out

    write_project(project, {"cortex.yaml": CONFIGURATION})
    deploy(home, project, 3)
    home.cortex("secret", "delete", "api-token")
    ran = home.cortex("rollback", "d/a", code=1)
    assert "error: nothing-older" in ran.err
    ran = home.cortex("rollback", "d/a", first, code=1)
    assert "error: version-gone" in ran.err
    assert "the value of the secret api-token that it had was deleted" in ran.err
    assert "cannot come back: the value of the secret api-token" in home.cortex("history", "d/a").out
    assert answer(home)[0] == 3


def test_a_deleted_api_is_refused_and_its_history_stays_text(home: Home, project: Path) -> None:
    deploy(home, project, 1)
    deploy(home, project, 2)
    home.cortex("delete", "d/a", "--yes")
    ran = home.cortex("rollback", "d/a", code=1)
    assert "error: api-deleted" in ran.err
    assert {line["obstacle"] for line in history(home)} == {"its api was deleted"}
    assert home.cortex("rollback", "d/b", code=1).err.startswith("error: api-not-found")


def test_a_deploy_that_is_under_way_leaves_what_went_back_meanwhile(home: Home, project: Path) -> None:
    deploy(home, project, 1)
    deploy(home, project, 2)
    waiting, go = project / "waiting", project / "go"
    slow = (
        handler(3)
        + f"""
    import pathlib, time
    pathlib.Path({str(waiting)!r}).touch()
    while not pathlib.Path({str(go)!r}).exists():
        time.sleep(0.02)
    """
    )
    write_project(project, {"a.py": slow, ".cortexignore": "waiting\ngo\n"})
    deploying = home.start("deploy", project)
    eventually(waiting.exists, "the new version is being looked at")
    home.cortex("rollback", "d/a")
    assert answer(home)[0] == 1
    go.touch()
    out, err = deploying.communicate(timeout=100)
    assert deploying.returncode == 0, err
    assert b"it was rolled back to" in out
    assert answer(home)[0] == 1


def test_while_a_new_version_is_on_its_way_the_one_that_serves_stays(home: Home, project: Path) -> None:
    deploy(home, project, 1)
    first = version(home)
    pids = home.settled_replicas("d/a")
    write_project(project, {"cortex.yaml": CONFIGURATION.replace("timeout: 30s", "sample: [1]")})
    broken = HANDLER.replace("NUMBER", "2").replace("return [[1, 2, 3, 4]]", "import time; time.sleep(20)")
    write_project(project, {"a.py": broken})
    home.deploy(project, "--no-wait")
    ran = home.cortex("rollback", "d/a")
    assert f"-> {first}" in ran.out
    assert (answer(home)[0], home.settled_replicas("d/a")) == (1, pids)
    assert [line["outcome"] for line in history(home)] == ["live", "rolled back", "replaced"]
    assert "left" in home.deploy(project).out


def test_it_takes_less_than_a_second(home: Home, project: Path) -> None:
    deploy(home, project, 1)
    first = version(home)
    deploy(home, project, 2)
    second = version(home)
    took_s = []
    client = home.operator()
    for number in range(6):
        begin_s = time.monotonic()
        target = (first, second)[number % 2]
        client.roll_back("d", "a", RollbackRequest(version=target))
        eventually(lambda number=number: answer(home)[0] == number % 2 + 1, "the other one answers")
        took_s.append(time.monotonic() - begin_s)
        eventually(lambda: len(home.replica_pids("d/a")) == 1, "the former one has left")
    assert statistics.median(took_s) < 1.0, took_s


# ---- unasked ---------------------------------------------------------------------------------------------------------

FAILING = """\
    import itertools, pathlib

    count = itertools.count()

    def pre_inference(sample, metadata):
        if pathlib.Path("{broken}").exists() or ({fails} and next(count) % 2):
            raise ValueError("of no use")
        return [[1, 2, 3, 4]]

    def post_inference(prediction, metadata):
        return [{number}]
    """


def test_a_new_version_of_which_half_fails_goes_back_by_itself(home: Home, project: Path) -> None:
    never = project.parent / "never"
    write_project(project, {"a.py": FAILING.format(broken=never, fails=False, number=1)})
    home.deploy(project)
    first = version(home)
    with asking(home, callers=2) as seen:
        eventually(lambda: seen[200, "1"] > 100, "the first version answers")
        write_project(project, {"a.py": FAILING.format(broken=never, fails=True, number=2)})
        home.deploy(project)
        second = version(home)
        eventually(lambda: version(home) == first, "it has gone back")
        eventually(lambda: history(home)[0]["outcome"] == "live", "the first version serves")
    assert answer(home)[0] == 1
    newest, failed, *_ = history(home)
    assert newest["cause"].startswith(f"back from {second}: ")
    assert failed["outcome"].startswith("rolled back: ")
    assert "requests failed in its first" in failed["outcome"]
    assert "requests failed in its first" in str(home.cortex("get", "d/a", "-o", "json").json["notes"])
    assert "left" in home.deploy(project).out


def test_an_outage_that_hits_the_version_before_as_well_is_no_fault_of_the_new_one(home: Home, project: Path) -> None:
    broken = project.parent / "broken"
    write_project(project, {"a.py": FAILING.format(broken=broken, fails=False, number=1)})
    home.deploy(project)
    first = version(home)
    with asking(home, callers=2) as seen:
        eventually(lambda: seen[200, "1"] > 100, "the first version answers")
        write_project(project, {"a.py": FAILING.format(broken=broken, fails=False, number=2)})
        home.deploy(project)
        broken.touch()
        eventually(lambda: version(home) == first, "it has gone back")
        eventually(lambda: "no fault of that version" in history(home)[1]["outcome"], "it is found to be no fault")
    broken.unlink()
    assert "no fault of that version" in str(home.cortex("get", "d/a", "-o", "json").json["notes"])
    assert "new version" in home.deploy(project).out
    assert answer(home)[0] == 2


def test_where_nobody_wants_it_nothing_is_watched(home: Home, project: Path) -> None:
    unwatched = CONFIGURATION.replace("timeout: 30s", "rollout: {watch: 0}")
    write_project(project, {"cortex.yaml": unwatched})
    deploy(home, project, 1)
    deploy(home, project, 2)
    assert home.cortex("get", "d/a", "-o", "json").json["spec"]["rollout"] == {"watch": "0"}
    assert home.operator().api("d", "a").status == "live"


# ---- one that is parked ----------------------------------------------------------------------------------------------


def test_while_a_version_is_watched_the_process_of_the_one_before_comes_back(home: Home, project: Path) -> None:
    deploy(home, project, 1)
    first = version(home)
    (pid,) = home.settled_replicas("d/a")
    deploy(home, project, 2)
    assert f"1 of {first} parked until " in home.cortex("get", "d/a").out
    status = home.cortex("get", "d/a", "-o", "json").json
    assert (status["status"], status["parked"]["version"], status["replicas"]["stale"]) == ("live", first, 0)
    with asking(home) as seen:
        eventually(lambda: seen[200, "2"] > 20, "the new version answers")
        home.cortex("rollback", "d/a")
        eventually(lambda: home.replica_pids("d/a") == [pid], "the new version has left, the old process is there")
        assert answer(home)[0] == 1
    assert {status for status, _by in seen} == {200}
    assert "parked" not in home.cortex("get", "d/a").out


def test_who_is_parked_is_known_after_agent_and_control_plane_were_killed(home: Home, project: Path) -> None:
    deploy(home, project, 1)
    (pid,) = home.settled_replicas("d/a")
    deploy(home, project, 2)
    for title in ("cortex-agent", "cortex-controlplane"):
        victim = home.pid_of(title, "d/a")
        os.kill(victim, signal.SIGKILL)
        eventually(lambda title=title, gone=victim: home.pid_of(title, "d/a") not in (None, gone), f"{title} is back")
    eventually(lambda: _parked(home), "it is parked")
    home.cortex("rollback", "d/a")
    eventually(lambda: home.replica_pids("d/a") == [pid], "the same process serves")
    assert answer(home)[0] == 1


def test_the_end_of_one_that_is_parked_is_no_crash_and_a_rollback_starts_another(home: Home, project: Path) -> None:
    deploy(home, project, 1)
    (pid,) = home.settled_replicas("d/a")
    deploy(home, project, 2)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not _parked(home), "its end was seen")
    status = home.cortex("get", "d/a", "-o", "json").json
    assert (status["status"], status["crashes"], status["replicas"]["failed"]) == ("live", 0, 0)
    eventually(lambda: len(home.replica_pids("d/a")) == 1, "nothing is started in its place")
    home.cortex("rollback", "d/a")
    assert answer(home)[0] == 1


def test_once_the_watch_is_over_it_goes(home: Home, project: Path) -> None:
    write_project(project, {"cortex.yaml": CONFIGURATION.replace("timeout: 30s", "rollout: {watch: 8s}")})
    deploy(home, project, 1)
    deploy(home, project, 2)
    eventually(lambda: len(home.replica_pids("d/a")) == 1, "the old one has left")
    assert answer(home)[0] == 2


def _parked(home: Home) -> bool:
    with contextlib.suppress(CortexError):
        return home.operator().api("d", "a").parked is not None
    return False
