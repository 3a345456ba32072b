"""
What may happen while packages are resolved and installed: an index that wants a password or does not answer, Ctrl-C,
killed processes, a full disk. Everything comes from an index on loopback.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract_harness import Connection, Home, eventually, rows_model, running_home, write_project
from package_index import Index, package_index

from cortex.packages.runtime import runtime_requirements
from cortex.testing.wheels import a_wheel, repacked_with_needs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROW = b"[[1, 2, 3, 4]]"
PASSWORD = "sesame-open-99"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    repacked_with_needs(folder, [line.partition(">")[0] for line in runtime_requirements("onnx")])
    for version in ("1.0", "2.0"):
        a_wheel(folder, "tinya", version)
    return folder


@pytest.fixture
def index(wheels: Path) -> Iterator[Index]:
    with package_index(wheels) as index:
        yield index


@pytest.fixture
def home(index: Index, tmp_path: Path) -> Iterator[Home]:
    nothing = dict.fromkeys(("UV_FIND_LINKS", "PIP_FIND_LINKS", "PIP_INDEX_URL", "UV_INDEX_URL"), "")
    variables = {
        **nothing,
        "UV_CACHE_DIR": str(tmp_path / "cache"),
        "UV_INDEX_URL": index.url(),
        "UV_HTTP_RETRIES": "0",
    }
    with running_home(**variables) as home:
        yield home


def project(folder: Path, requirements: str | None, *, name: str = "pk") -> Path:
    handler = (
        "def post_inference(p, m): return 'none'\n"
        if requirements is None
        else "import tinya\ndef post_inference(p, m): return tinya.VERSION\n"
    )
    files: dict[str, object] = {
        "cortex.yaml": f"- kind: deployment\n  name: {name}\n"
        "- kind: api\n  name: x\n  model: m.onnx\n  request_handler: handler.py\n",
        "m.onnx": rows_model(),
        "handler.py": handler,
    }
    if requirements is not None:
        files["requirements.txt"] = requirements
    (folder / "requirements.txt").unlink(missing_ok=True)
    return write_project(folder, files)  # type: ignore[arg-type]


def predict(home: Home, path: str = "/pk/x") -> str:
    with Connection(home.port) as connection:
        answer = connection.ask("POST", path, ROW)
    assert answer.status == 200, answer.body
    return str(answer.json)


def half_built(home: Home) -> list[Path]:
    return [path for node in home.nodes for path in node.installations.glob(".new-*")]


def installers(home: Home) -> list[str]:
    return [title for _pid, title in home.processes() if "/uv " in title]


def test_the_deploying_shell_says_where_packages_come_from_and_its_password_is_seen_nowhere(home, index, tmp_path):
    home.cortex("up", UV_INDEX_URL="http://127.0.0.1:9/simple")
    index.wanted = f"me:{PASSWORD}"
    folder = project(tmp_path / "p", "tinya==1.0\n")
    said = []
    refused = home.deploy(folder, code=1, UV_INDEX_URL=index.url("me:wrong-password"))
    assert "error: packages-unreachable" in refused.err
    assert "401 Unauthorized" in refused.err
    assert "UV_INDEX_URL" in refused.err
    index.is_open.clear()
    index.asked.clear()
    process = home.start("deploy", folder, UV_INDEX_URL="", PIP_INDEX_URL=index.url(f"me:{PASSWORD}"))
    assert index.asked.wait(60)
    said += [title for _pid, title in home.processes()]
    index.is_open.set()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err.decode()
    assert predict(home) == "1.0"
    said += [out.decode(), err.decode(), refused.err, home.cortex("info").out]
    said += [str(home.operator().api("pk", "x"))]
    assert not [text for text in said if PASSWORD in text or "wrong-password" in text]
    home.cortex("down")
    holding = home.files_with(PASSWORD.encode())
    assert holding == [home.path / "indexes.json"]
    assert holding[0].stat().st_mode & 0o777 == 0o600


def test_an_index_that_does_not_answer_is_named_with_the_variables_to_set(home, index, tmp_path):
    home.deploy(project(tmp_path / "p", None))
    refused = home.deploy(project(tmp_path / "p", "tinya\n"), code=1, UV_INDEX_URL="http://127.0.0.1:9/simple")
    assert "error: packages-unreachable" in refused.err
    assert "http://127.0.0.1:9/simple/" in refused.err
    assert "HTTPS_PROXY" in refused.err
    assert "UV_INDEX_URL or PIP_INDEX_URL" in refused.err
    assert predict(home) == "none"


def test_ctrl_c_calls_a_deploy_off_and_its_installer_ends(home, index, tmp_path):
    home.deploy(project(tmp_path / "p", None))
    before = home.cortex("get", "pk/x", "-o", "json").json["version"]
    index.is_open.clear()
    index.asked.clear()
    process = home.start("deploy", project(tmp_path / "p", "tinya==1.0\n"))
    assert index.asked.wait(60)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: the deploy is called off" in err.decode()
    eventually(lambda: not installers(home), "its installer has ended")
    eventually(lambda: not half_built(home), "what it had begun is removed")
    index.is_open.set()
    home.deploy(project(tmp_path / "q", "tinya==2.0\n", name="other"))  # nothing is in its way
    assert (predict(home), predict(home, "/other/x")) == ("none", "2.0")
    assert home.cortex("get", "pk/x", "-o", "json").json["version"] == before


def test_a_control_plane_that_is_killed_while_packages_are_resolved_is_got_over(home, index, tmp_path):
    home.cortex("up")
    index.is_open.clear()
    process = home.start("deploy", project(tmp_path / "p", "tinya==1.0\n"))
    assert index.asked.wait(60)
    record = home.control_plane()
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    eventually(lambda: (now := home.control_plane()) and now.pid != record.pid, "another control plane runs")
    index.is_open.set()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, (out + err).decode()
    assert predict(home) == "1.0"
    eventually(lambda: not half_built(home) and not installers(home), "nothing of the first try is left")


def test_two_deploys_at_once_that_need_the_same_packages_install_them_once(home, index, tmp_path):
    home.cortex("up")
    processes = [home.start("deploy", project(tmp_path / name, "tinya==1.0\n", name=name)) for name in ("pk", "other")]
    said = [process.communicate(timeout=250)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert (predict(home), predict(home, "/other/x")) == ("1.0", "1.0")
    assert any("installing" in text for text in said), said
    built = {path.name for node in home.nodes for path in node.installations.iterdir()} - {"platform"}
    assert len(built) == 1


@pytest.fixture
def small_disk(home: Home) -> Iterator[Home]:
    """A home on a file system of 24 MiB: less than what replicas need themselves."""
    home.path.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", str(home.path)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield home
    finally:
        home.cortex("down", "--drain", "1s", code=None)
        home.kill_all()
        subprocess.run(["umount", str(home.path)], check=True)


def test_a_disk_that_is_full_before_all_is_installed_is_named_and_nothing_half_stays(small_disk, tmp_path):
    home = small_disk
    home.deploy(project(tmp_path / "p", None))
    refused = home.deploy(project(tmp_path / "p", "tinya==1.0\n"), code=1)
    assert "No space left on device" in refused.err
    assert "free space on the disks of CORTEX_HOME" in refused.err
    assert predict(home) == "none"
    eventually(lambda: not half_built(home), "what was half done is gone")
    home.deploy(project(tmp_path / "p", None))  # and there is room for what follows
