"""Models in object storage, as users meet them: a real S3 protocol server, real commands, real replicas."""

from __future__ import annotations

import os
import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_harness import Connection, Home, eventually, running_home, write_project
from origin_harness import S3, Door, Endless, onnx_bytes, running_moto, weights_bytes

pytestmark = pytest.mark.slow

SECRET = "secret-of-the-access-key"
GIB = 2**30


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with running_moto() as url:
        yield url


@pytest.fixture
def s3(moto: str) -> S3:
    return S3(moto)


@pytest.fixture
def door(moto: str) -> Iterator[Door]:
    with Door(moto) as door:
        yield door


@pytest.fixture
def home(door: Door) -> Iterator[Home]:
    with running_home(**reaching(door.url)) as home:
        yield home


def reaching(endpoint: str) -> dict[str, str]:
    """A shell's variables that lead to a store."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }


def project(folder: Path, model: str, *, deployment: str = "s", more: str = "") -> Path:
    return write_project(
        folder,
        {
            "cortex.yaml": f"""\
                - kind: deployment
                  name: {deployment}
                - kind: api
                  name: x
                  model: {model}
                  {more}
                """
        },
    )


def ask(home: Home, path: str = "/s/x") -> Any:
    with Connection(home.port) as connection:
        return connection.ask("POST", path, b"[[1, 1, 1, 1]]").json[0]


def counter(home: Home, name: str) -> float:
    import urllib.request

    request = urllib.request.Request(
        f"http://127.0.0.1:{home.operator_port}/metrics",
        headers={"authorization": f"Bearer {(home.path / 'token').read_text()}"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    assert found, f"no metric {name}"
    return float(found[1])


def test_replicas_serve_the_bytes_of_the_deploy_until_the_next_one(
    home: Home, s3: S3, door: Door, tmp_path: Path
) -> None:
    s3.put("m.onnx", onnx_bytes(1.0))
    folder = project(tmp_path / "p", s3.url("m.onnx"))
    home.deploy(folder)
    assert ask(home) == [[4.0]]
    reads, read_bytes = len(door.reads), counter(home, "cortex_model_fetched_bytes_total")
    assert (reads, read_bytes) == (1, len(onnx_bytes()))

    s3.put("m.onnx", onnx_bytes(2.0))
    (before,) = home.settled_replicas("s/x")
    os.kill(before, signal.SIGKILL)
    eventually(lambda: [pid for pid in home.replica_pids("s/x") if pid != before], "a replacement runs")
    assert home.once_ready("/s/x", b"[[1, 1, 1, 1]]").json == [[[4.0]]]
    assert (len(door.reads), counter(home, "cortex_model_fetched_bytes_total")) == (reads, read_bytes)

    ran = home.deploy(folder)
    line = next(line for line in ran.out.splitlines() if "model changed" in line)
    old, new = re.findall(r"ETag ([0-9a-f]{32}) of \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", line)
    assert old != new
    assert ask(home) == [[8.0]]


def damage_model(home: Home) -> None:
    """As a disk, or somebody who is root, may do it: the blob too, which is the same file."""
    for file in home.stored("**/*.onnx"):
        file.chmod(0o644)
        file.write_bytes(b"x" * file.stat().st_size)


def test_a_damaged_model_is_had_again_from_where_it_came(home: Home, s3: S3, tmp_path: Path) -> None:
    s3.put("m.onnx", onnx_bytes(1.0))
    home.deploy(project(tmp_path / "p", s3.url("m.onnx")))
    (before,) = home.settled_replicas("s/x")
    damage_model(home)
    os.kill(before, signal.SIGKILL)
    assert home.once_ready("/s/x", b"[[1, 1, 1, 1]]").json == [[[4.0]]]
    assert "put right from s3://" in (home.path / "logs" / "controlplane.log").read_text()


def test_a_damaged_model_that_is_another_one_by_now_takes_a_deploy(home: Home, s3: S3, tmp_path: Path) -> None:
    s3.put("m.onnx", onnx_bytes(1.0))
    folder = project(tmp_path / "p", s3.url("m.onnx"))
    home.deploy(folder)
    (before,) = home.settled_replicas("s/x")
    s3.put("m.onnx", onnx_bytes(2.0))
    damage_model(home)
    os.kill(before, signal.SIGKILL)
    log = home.path / "logs" / "controlplane.log"
    eventually(lambda: "is another one by now: deploy it" in log.read_text(), "it was looked at")
    shown = home.cortex("get", "x", "-v").out
    assert "artifact-corrupt" in shown or "no longer has the bytes" in shown, shown
    assert "deploy again" in shown
    home.deploy(folder)
    assert ask(home) == [[8.0]]


def test_a_second_deploy_and_more_replicas_read_nothing(home: Home, s3: S3, door: Door, tmp_path: Path) -> None:
    s3.put_all({"m/m.onnx": onnx_bytes(external="w"), "m/w": weights_bytes()})
    home.deploy(project(tmp_path / "p", s3.url("m")))
    reads = len(door.reads)
    ran = home.deploy(project(tmp_path / "p", s3.url("m"), more="compute: {min_replicas: 2, cpu: 10m}"))
    assert "min_replicas 1 -> 2" in ran.out
    assert "model changed" not in ran.out
    eventually(lambda: len(home.replica_pids("s/x")) == 2, "two replicas run")
    assert len(door.reads) == reads


def test_a_dry_run_fetches_and_changes_nothing_and_the_deploy_after_it_reads_nothing(
    home: Home, s3: S3, door: Door, tmp_path: Path
) -> None:
    s3.put("m.onnx", onnx_bytes())
    folder = project(tmp_path / "p", s3.url("m.onnx"))
    ran = home.deploy(folder, "--dry-run")
    assert "would change" in ran.out
    assert home.cortex("get", "-o", "json").json == []
    assert not (home.path / "cloud.json").exists()
    reads = len(door.reads)
    home.deploy(folder)
    assert len(door.reads) == reads == 1


def test_ctrl_c_in_the_middle_of_a_download_leaves_nothing_half_done(
    home: Home, s3: S3, door: Door, tmp_path: Path
) -> None:
    rows = 3 * 2**20
    s3.put_all({"m/m.onnx": onnx_bytes(external="w", rows=rows), "m/w": weights_bytes(rows=rows)})
    folder = project(tmp_path / "p", s3.url("m"))
    home.cortex("up")
    door.hold.clear()
    deploying = home.start("deploy", folder)
    eventually(lambda: any(asked.path.endswith("/m/w") for asked in door.reads), "the weights are on their way")
    deploying.send_signal(signal.SIGINT)
    _, talk = deploying.communicate(timeout=60)
    assert deploying.returncode == 130
    assert "the download was broken off; nothing was changed" in talk.decode()
    eventually(lambda: not any("cortex-fetcher" in title for _, title in home.processes()), "the download has ended")
    eventually(lambda: not [*(home.path / "artifacts" / "tmp").iterdir()], "what was half fetched is removed")
    assert home.cortex("get", "-o", "json").json == []
    door.hold.set()
    home.deploy(folder)
    assert home.cortex("get", "x", "-o", "json").json["status"] == "live"


def test_a_slow_download_holds_up_nobody_else_and_is_shared_by_whoever_needs_it(
    home: Home, s3: S3, door: Door, tmp_path: Path
) -> None:
    rows = 2**17
    s3.put_all(
        {"quick.onnx": onnx_bytes(), "m/m.onnx": onnx_bytes(external="w", rows=rows), "m/w": weights_bytes(rows=rows)}
    )
    home.deploy(project(tmp_path / "q", s3.url("quick.onnx"), deployment="q"))
    door.hold.clear()
    slow = [home.start("deploy", project(tmp_path / name, s3.url("m"), deployment=name)) for name in ("a", "b")]
    for deploying in slow:
        assert deploying.stderr is not None
        while b"fetching" not in (line := deploying.stderr.readline()):
            assert line, "it ended before it fetched anything"
    assert ask(home, "/q/x") == [[4.0]]
    ran = home.deploy(project(tmp_path / "q", s3.url("quick.onnx"), deployment="q", more="timeout: 30s"))
    assert "timeout" in ran.out
    assert [api["deployment"] for api in home.cortex("get", "-o", "json").json] == ["q"]
    assert [deploying.poll() for deploying in slow] == [None, None]
    door.hold.set()
    for deploying in slow:
        out, talk = deploying.communicate(timeout=60)
        assert deploying.returncode == 0, (out, talk)
    assert [asked.path for asked in door.reads if asked.path.endswith("/m/w")] == [f"/{s3.bucket}/m/w"]


def test_no_permission_is_told_with_its_place_and_the_credentials_used(
    home: Home, s3: S3, door: Door, tmp_path: Path
) -> None:
    door.refuse = lambda asked: (403, b"")
    ran = home.deploy(project(tmp_path / "p", s3.url("m.onnx")), code=1)
    assert "error: model-access-denied" in ran.err
    assert "cortex.yaml:5:3" in ran.err
    assert "credentials: environment (AWS_ACCESS_KEY_ID)" in ran.err
    assert home.cortex("get", "-o", "json").json == []


def test_credentials_are_handed_over_by_each_deploy_and_are_in_one_private_file_only(
    home: Home, s3: S3, door: Door, tmp_path: Path
) -> None:
    s3.put("m.onnx", onnx_bytes())
    folder = project(tmp_path / "p", s3.url("m.onnx"))
    home.cortex("up", AWS_ACCESS_KEY_ID="another", AWS_SECRET_ACCESS_KEY="")
    home.deploy(folder)
    file = home.path / "cloud.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    shown = home.cortex("get", "x", "-v", "-o", "json").out + home.cortex("info", "-o", "json").out
    assert (home.files_with(SECRET.encode()), SECRET in shown) == ([file], False)
    home.variables["AWS_SECRET_ACCESS_KEY"] = "a-new-secret"
    home.deploy(folder)
    assert SECRET.encode() not in file.read_bytes()
    home.cortex("delete", "s", "--yes")
    assert home.files_with(b"a-new-secret") == []


def test_init_looks_at_a_remote_model(home: Home, s3: S3, tmp_path: Path) -> None:
    s3.put("teams/iris.onnx", onnx_bytes())
    home.cortex("init", s3.url("teams/iris.onnx"), tmp_path / "new")
    assert s3.url("teams/iris.onnx") in (tmp_path / "new" / "cortex.yaml").read_text()
    home.deploy(tmp_path / "new")


@pytest.mark.timeout(600)
def test_two_gibibytes_pass_through_with_little_memory(tmp_path: Path) -> None:
    files = {"/bucket/m/model.onnx": onnx_bytes(external="w.bin")}
    with Endless(2 * GIB, files) as store, running_home(**reaching(store.url)) as home:
        home.cortex("up")
        control_plane = home.control_plane()
        assert control_plane is not None
        deploying = home.start("deploy", project(tmp_path / "p", "s3://bucket/m/model.onnx"))
        peak = 0
        while deploying.poll() is None:
            for pid, title in home.processes():
                if title.startswith("cortex-fetcher"):
                    peak = max(peak, memory(pid, "VmHWM"))
            assert home.operator().apis() is not None
        _, talk = deploying.communicate()
        assert deploying.returncode == 0, talk.decode()
        assert store.read_bytes == 2 * GIB
        own = memory(control_plane.pid, "VmHWM")
        print(f"control plane: peak {own / 1e6:.0f} MB; fetching process: peak {peak / 1e6:.0f} MB")
        assert own < 250e6
        assert 0 < peak < 250e6
        assert ask(home) == [[4.0]]


def memory(pid: int, field: str) -> int:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
