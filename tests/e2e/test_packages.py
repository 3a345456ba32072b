"""
requirements.txt, as users meet it. No network: everything is installed from wheels that are made here, those of what
replicas need by packing up what is installed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_harness import Connection, Home, Ran, eventually, rows_model, running_home, write_project

from cortex.packages.runtime import runtime_requirements
from cortex.testing.wheels import a_source_archive, a_wheel, repacked_with_needs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HANDLER = """\
import tinya
def post_inference(prediction, metadata):
    return tinya.VERSION
"""
ROW = b"[[1, 2, 3, 4]]"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All packages that there are."""
    folder = tmp_path_factory.mktemp("wheels")
    repacked_with_needs(folder, [line.partition(">")[0] for line in runtime_requirements("onnx")])
    for version in ("1.0", "2.0", "3.0"):
        a_wheel(folder, "tinya", version)
    a_wheel(folder, "needs_tinya", "1.0", requires=["tinya<2"])
    a_wheel(folder, "wants_old_numpy", "1.0", requires=["numpy<1.20"])
    a_wheel(
        folder, "breaks_replicas", "1.0", files={"orjson_breaker.pth": "import sys; sys.modules['orjson'] = None\n"}
    )
    return folder


@pytest.fixture(scope="module")
def home(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    cache = tmp_path_factory.mktemp("cache")
    with running_home(UV_FIND_LINKS=str(wheels), UV_CACHE_DIR=str(cache)) as home:
        yield home


@pytest.fixture
def folder(home: Home, tmp_path: Path) -> Path:
    return tmp_path / "project"


def project(folder: Path, requirements: str, *, name: str = "pk", handler: str = HANDLER, **fields: str) -> Path:
    lines = "".join(f"  {field}: {value}\n" for field, value in fields.items())
    return write_project(
        folder,
        {
            "cortex.yaml": f"- kind: deployment\n  name: {name}\n"
            f"- kind: api\n  name: x\n  model: m.onnx\n  request_handler: handler.py\n{lines}",
            "m.onnx": rows_model(),
            "handler.py": handler,
            "requirements.txt": f"--no-index\n{requirements}\n",
        },
    )


def predict(home: Home, path: str = "/pk/x") -> Any:
    with Connection(home.port) as connection:
        answer = connection.ask("POST", path, ROW)
    assert answer.status == 200, answer.body
    return answer.json


def refused(home: Home, folder: Path) -> str:
    ran = home.deploy(folder, code=1)
    return ran.err


def installed_something(ran: Ran) -> bool:
    return "resolving packages" in ran.err or "installing" in ran.err


def environments(home: Home) -> set[str]:
    return {path.name for node in home.nodes for path in node.installations.iterdir() if path.name != "platform"}


def test_a_handler_gets_the_packages_it_asks_for_and_nothing_of_ours(home, folder):
    handler = HANDLER + (
        "import importlib.util\n"
        "def post_inference(prediction, metadata):\n"
        "    there = [n for n in ('click', 'fastapi', 'pytest') if importlib.util.find_spec(n)]\n"
        "    return [tinya.VERSION, there]\n"
    )
    home.deploy(project(folder, "tinya==1.0", handler=handler))
    assert predict(home) == ["1.0", []]


def test_a_second_deploy_runs_no_installer_nor_does_another_handler(home, folder, wheels):
    a_wheel(wheels, "never_seen", "1.0")
    assert installed_something(home.deploy(project(folder, "tinya==1.0\nnever_seen")))
    built = environments(home)
    assert not installed_something(home.deploy(folder))
    ran = home.deploy(project(folder, "tinya==1.0\nnever_seen  # the same", handler=HANDLER + "# changed\n"))
    assert "handler.py changed" in ran.out
    assert "requirements.txt changed" in ran.out
    assert not installed_something(ran)
    assert environments(home) == built


def test_a_changed_pin_is_told_and_an_unchanged_one_stays_until_a_refresh(home, folder):
    home.deploy(project(folder, "tinya==1.0"))
    ran = home.deploy(project(folder, "tinya>=2,<3"))
    assert "requirements.txt: tinya 1.0 -> 2.0" in ran.out
    ran = home.deploy(project(folder, "tinya>=2"))
    assert "requirements.txt: " not in ran.out  # 2.0 still fits
    ran = home.cortex("refresh", "--path", folder)
    assert "requirements.txt: tinya 2.0 -> 3.0" in ran.out
    assert predict(home) == "3.0"


def test_two_apis_on_one_node_use_versions_that_contradict_one_another(home, folder, tmp_path):
    home.deploy(project(folder, "tinya==1.0"))
    home.deploy(project(tmp_path / "other", "tinya==2.0", name="other"))
    assert (predict(home), predict(home, "/other/x")) == ("1.0", "2.0")
    home.cortex("delete", "other", "-y")


def test_wheels_of_the_project_are_installed(home, folder):
    project(
        folder, "--find-links vendored\nmine==1.0", handler="import mine\ndef post_inference(p, m): return mine.VERSION"
    )
    a_wheel(folder / "vendored", "mine", "1.0")
    home.deploy(folder)
    assert predict(home) == "1.0"


@pytest.mark.parametrize(
    ("requirements", "words"),
    [
        ("tinya\nnosuchpackage", ["error: packages-unknown", "requirements.txt:3", "nosuchpackage was not found"]),
        ("tinya==9", ["error: packages-unknown", "requirements.txt:2", "there is no version of tinya==9"]),
        ("needs_tinya\ntinya==2.0", ["error: packages-conflict", "requirements.txt:2", "tinya==2.0"]),
        ("numpy==1.20.0", ["error: packages-conflict", "requirements.txt:2", "replicas of this Cortex need numpy>="]),
        ("wants_old_numpy", ["error: packages-conflict", "requirements.txt:2", "replicas need numpy>=", "numpy<1.20"]),
        ("breaks_replicas", ["error: packages-unusable", "requirements.txt", "replicas cannot start", "orjson"]),
        ("tinya=1", ["error: requirements-syntax", "requirements.txt:2", "did you mean tinya==1?"]),
        ("-e .", ["error: requirements-local", "requirements.txt:2", "on sys.path"]),
        ("needs_cc", ["error: packages-build-failed", "requirements.txt:2", "no-such-cc: not found", "is missing"]),
    ],
)
def test_what_cannot_be_installed_is_told_and_the_old_version_serves(home, folder, wheels, requirements, words):
    a_source_archive(wheels, "needs_cc", "1.0", backend="raise SystemExit('gcc-no-such-cc: not found')")
    home.deploy(project(folder, "tinya==1.0"))
    before = home.cortex("get", "pk/x", "-o", "json").json["version"]
    said = refused(home, project(folder, requirements))
    for word in words:
        assert word in said, said
    assert home.cortex("get", "pk/x", "-o", "json").json["version"] == before
    assert predict(home) == "1.0"


def test_a_missing_module_names_the_requirement_to_add(home, folder):
    said = refused(home, project(folder, "tinya==1.0", handler="import PIL\n"))
    assert "No module named 'PIL'" in said
    assert "add pillow to requirements.txt" in said


def test_an_environment_that_was_lost_is_built_again(home, folder):
    home.deploy(project(folder, "tinya==1.0"))
    home.cortex("down")
    for node in home.nodes:
        for parent, _, _ in os.walk(node.installations):
            os.chmod(parent, 0o700)
        shutil.rmtree(node.installations)
    home.cortex("up")
    eventually(lambda: home.cortex("get", "pk/x", "-o", "json").json["status"] == "live", "it is live again")
    assert predict(home) == "1.0"


def test_a_deploy_survives_the_death_of_the_agent_while_it_installs(home, folder, wheels):
    a_wheel(wheels, "slow_to_copy", "1.0", files={f"slow/{n}.py": f"N = {n}\n" for n in range(3000)})
    project(folder, "tinya==1.0\nslow_to_copy")
    home.cortex("up")
    process = home.start("deploy", folder)
    half = eventually(
        lambda: [path for node in home.nodes for path in node.installations.glob(".new-*/bin/python")], "it installs"
    )
    info = home.operator().info()
    assert info.agent_pid is not None
    os.kill(info.agent_pid, signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    assert predict(home) == "1.0"
    eventually(lambda: not half[0].exists(), "what was half done is gone")
    assert {name[:1] for name in environments(home)} & {"."} == set()


def test_variables_that_libraries_read_at_import_are_set_before_they_are(home, folder, tmp_path):
    handler = (
        "import os, sys\n"
        "def post_inference(prediction, metadata):\n"
        "    return [os.environ.get('PYTHONHASHSEED'), hash('a'), sys.flags.utf8_mode, os.environ['PLAIN']]\n"
    )
    env = "{PYTHONHASHSEED: '0', PYTHONUTF8: '1', PLAIN: yes}"
    home.deploy(project(folder, "", handler=handler, env=env))
    one = predict(home)
    other = project(tmp_path / "other", "", name="other", handler=handler, env="{PYTHONHASHSEED: '1', PLAIN: 2}")
    home.deploy(other)
    two = predict(home, "/other/x")
    assert (one[0], one[2:]) == ("0", [1, "yes"])
    assert (two[0], two[3]) == ("1", "2")
    assert one[1] != two[1]
    seeded = subprocess.run(
        [sys.executable, "-c", "print(hash('a'))"],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        check=True,
    )
    assert one[1] == int(seeded.stdout)
    home.cortex("delete", "other", "-y")
