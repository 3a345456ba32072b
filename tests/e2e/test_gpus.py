"""
GPUs, as far as a machine without one can show: `nvidia-smi` is a script, and onnxruntime says that it runs on CUDA.

The rest is real: who gets which GPU, what a replica sees of them, and what a deploy is refused for.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_harness import Connection, Home, eventually, rows_model, running_home, write_project

pytestmark = pytest.mark.slow

DEVICES = ("GPU-11111111-aaaa-bbbb-cccc-000000000001", "GPU-22222222-aaaa-bbbb-cccc-000000000002")
PRETENDS_CUDA = """\
import os
import sys

own = os.path.dirname(__file__)
sys.path.remove(own)
del sys.modules["onnxruntime"]
import onnxruntime

sys.path.insert(0, own)
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class Session(onnxruntime.InferenceSession):
    def __init__(self, path, options, *, providers, **more):
        self.asked = providers
        super().__init__(path, options, providers=[CPU], **more)

    def get_providers(self):
        return self.asked


onnxruntime.get_available_providers = lambda: [CUDA, CPU]
onnxruntime.InferenceSession = Session
"""
HANDLER = """\
import os

def post_inference(prediction, metadata):
    return os.environ["CUDA_VISIBLE_DEVICES"]
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with an `nvidia-smi` that lists two GPUs."""
    folder = tmp_path_factory.mktemp("driver")
    program = folder / "nvidia-smi"
    lines = "".join(f"GPU {number}: Tesla T4 (UUID: {device})\n" for number, device in enumerate(DEVICES))
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}END\n")
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.fixture
def home(driver: str, tmp_path: Path) -> Iterator[Home]:
    shim = tmp_path / "shim"
    shim.mkdir()
    (shim / "onnxruntime.py").write_text(PRETENDS_CUDA)
    with running_home(PATH=driver, PYTHONPATH=str(shim)) as home:
        yield home


def project(folder: Path, *apis: str, handler: str = HANDLER) -> Path:
    """`apis`: `name: a, compute: {gpu: 1}` and so on."""
    lines = ["- {kind: deployment, name: g}"]
    lines += [f"- {{kind: api, model: m.onnx, request_handler: handler.py, {api}}}" for api in apis]
    return write_project(folder, {"cortex.yaml": "\n".join(lines), "m.onnx": rows_model(), "handler.py": handler})


def ask(home: Home, api: str) -> str:
    """What a replica of an api sees of the GPUs."""
    with Connection(home.port) as connection:
        answer = connection.ask("POST", f"/g/{api}", b"[[1, 2, 3, 4]]", {"content-type": "application/json"})
    assert answer.status == 200, answer.body
    return str(answer.json)


def waiting_api(home: Home, api: str, reason: str) -> dict[str, Any]:
    """What is shown of an api, once it says what it waits for."""
    return eventually(
        lambda: reason in ((found := home.cortex("get", f"g/{api}", "-o", "json").json)["reason"] or "") and found,
        f"{api} waits: {reason}",
    )


def test_without_a_gpu_a_deploy_that_asks_for_one_is_refused_at_once_with_the_numbers(tmp_path: Path) -> None:
    with running_home(PATH=f"{tmp_path}:{os.defpath}") as home:
        ran = home.deploy(project(tmp_path / "p", "name: a, compute: {gpu: 2}"), "-o", "json", code=1)
        (problem,) = json.loads(ran.out)["problems"]
        assert problem["reference"] == "compute-unavailable"
        assert problem["message"] == "a replica asks for 2 gpu, but no node has any"
        assert "nvidia-smi -L" in problem["hint"]
        assert home.cortex("get", "-o", "json").json == []


def test_what_cannot_use_a_gpu_fails_the_deploy_and_is_not_run_on_the_cpu_instead(driver: str, tmp_path: Path) -> None:
    with running_home(PATH=driver) as home:
        ran = home.deploy(project(tmp_path / "p", "name: a, compute: {gpu: 1}"), "-o", "json", code=1)
        (problem,) = json.loads(ran.out)["problems"]
        assert problem["reference"] == "backend-missing"
        assert problem["message"] == "onnxruntime-gpu is not available"
        assert 'pip install "cortex-serving[gpu]"' in problem["hint"]
        assert home.cortex("get", "-o", "json").json == []


def test_each_replica_gets_a_gpu_of_its_own_and_keeps_it_when_it_is_started_again(home: Home, tmp_path: Path) -> None:
    home.deploy(project(tmp_path / "p", "name: a, compute: {gpu: 1}", "name: b, compute: {gpu: 1}", "name: none"))
    assert sorted((ask(home, "a"), ask(home, "b"))) == sorted(DEVICES)
    assert ask(home, "none") == ""
    info = home.operator().info()
    assert (info.requested_gpus, info.gpus) == (2, 2)
    before = ask(home, "a")
    (pid,) = home.settled_replicas("g/a")
    os.kill(pid, signal.SIGKILL)
    assert home.once_ready("/g/a", b"[[1, 2, 3, 4]]").json == before
    assert home.replica_pids("g/a") != [pid]


def test_a_model_is_checked_on_a_gpu_that_nobody_holds_as_long_as_there_is_one(home: Home, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    handler = HANDLER + (
        f"with open({str(seen)!r}, 'a') as file:\n    print(os.environ['CUDA_VISIBLE_DEVICES'], file=file)\n"
    )

    def checked_on() -> str:
        """Who imports it first only looks at it."""
        return seen.read_text().splitlines()[0]

    first, second = "name: a, compute: {gpu: 1}", "name: b, compute: {gpu: 1}, env: {OTHER: version}"
    home.deploy(project(tmp_path / "p", first, handler=handler))
    held = ask(home, "a")
    seen.unlink()
    home.deploy(project(tmp_path / "p", first, second, handler=handler))
    assert {held, checked_on()} == set(DEVICES)
    seen.unlink()
    home.deploy(project(tmp_path / "p", first, second, handler=handler + "# changed"), "--no-wait")
    assert checked_on() in DEVICES


def test_a_restarted_control_plane_knows_who_holds_which(home: Home, tmp_path: Path) -> None:
    home.deploy(project(tmp_path / "p", "name: a, compute: {gpu: 1}"))
    held = ask(home, "a")
    record = home.control_plane()
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    eventually(lambda: (now := home.control_plane()) is not None and now.pid != record.pid, "it is back")
    home.deploy(project(tmp_path / "p", "name: a, compute: {gpu: 1}", "name: b, compute: {gpu: 1}"))
    assert ask(home, "a") == held
    assert {held, ask(home, "b")} == set(DEVICES)


def test_a_replica_that_asks_for_several_sees_all_of_them_and_who_comes_later_waits(home: Home, tmp_path: Path) -> None:
    home.deploy(project(tmp_path / "p", "name: a, compute: {gpu: 2}"))
    assert ask(home, "a").split(",") == list(DEVICES)
    apis = ("name: a, compute: {gpu: 2}", "name: b, compute: {gpu: 1}")
    home.deploy(project(tmp_path / "p", *apis), "--no-wait")
    assert waiting_api(home, "b", "gpu 2 of 2 requested (g/a 2), 1 asked")["status"] == "compute unavailable"
    home.deploy(project(tmp_path / "p", "name: b, compute: {gpu: 1}"))
    assert ask(home, "b") == DEVICES[0]


def test_with_every_gpu_in_use_an_update_waits_and_is_forced(home: Home, tmp_path: Path) -> None:
    api = "name: a, compute: {gpu: 2}"
    home.deploy(project(tmp_path / "p", api))
    changed = project(tmp_path / "p", api, handler=HANDLER + "# changed\n")
    home.deploy(changed, "--no-wait")
    waiting_api(home, "a", "gpu 2 of 2 requested (g/a 2), 2 asked")
    assert ask(home, "a").split(",") == list(DEVICES)
    home.deploy(changed, "--force")
    assert ask(home, "a").split(",") == list(DEVICES)
