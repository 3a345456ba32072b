"""What can be told without forking; the rest is in tests/integration/replica."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cortex.ids import ApiKey, ReplicaId, Revision, Version
from cortex.processes import own_mark
from cortex.replica.process import isolation
from cortex.wire.launch import ReplicaSpec


def spec(**fields: Any) -> ReplicaSpec:
    return ReplicaSpec(
        **{
            "replica": ReplicaId("iris.a.00000000.0"),
            "attempt": 1,
            "api": ApiKey("iris/a"),
            "version": Version("0123456789" * 6),
            "revision": Revision("2" * 64),
            "home": "/h",
            "runtime": "onnx",
            "model_path": "/m",
            **fields,
        }
    )


def test_a_replica_sees_its_names_and_nothing_it_should_not() -> None:
    inherited = {
        "PATH": "/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "LC_ALL": "C",
        "TZ": "UTC",
        "https_proxy": "http://proxy",
        "AWS_ACCESS_KEY_ID": "k",
        "GOOGLE_APPLICATION_CREDENTIALS": "/g",
        "AZURE_CLIENT_ID": "z",
        "CORTEX_HOME": "/home/cortex",
        "SECRET_OF_THE_SHELL": "x",
        "PYTHONPATH": "/p",
    }
    found = isolation.replica_variables(spec(threads=3, env={"TOKEN": "t"}), inherited)
    assert found.pop("OMP_NUM_THREADS") == found.pop("OPENBLAS_NUM_THREADS") == found.pop("MKL_NUM_THREADS") == "3"
    for name in (*isolation.THREAD_VARIABLES, "ORT_DISABLE_TELEMETRY"):
        found.pop(name, None)
    assert found == {
        **{name: value for name, value in inherited.items() if name not in _UNWANTED},
        "TOKEN": "t",
        "CUDA_VISIBLE_DEVICES": "",
        "CORTEX_DEPLOYMENT": "iris",
        "CORTEX_API": "a",
        "CORTEX_VERSION": "01234567",
        "CORTEX_REPLICA": "iris.a.00000000.0",
        "CORTEX_PROCESS": own_mark(),
    }


_UNWANTED = {
    *("CORTEX_HOME", "SECRET_OF_THE_SHELL", "PYTHONPATH"),
    *("AWS_ACCESS_KEY_ID", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_CLIENT_ID"),
}


def test_of_the_gpus_a_replica_sees_those_that_its_lease_holds() -> None:
    inherited = {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    env = {"CUDA_VISIBLE_DEVICES": "GPU-c"}
    found = isolation.replica_variables(spec(devices=("GPU-b", "GPU-a"), env=env), inherited)
    assert (found["CUDA_VISIBLE_DEVICES"], found["CUDA_DEVICE_ORDER"]) == ("GPU-b,GPU-a", "PCI_BUS_ID")


def test_users_variables_win_over_ours_but_for_our_names() -> None:
    found = isolation.replica_variables(
        spec(env={"OMP_NUM_THREADS": "8", "PATH": "/mine", "CORTEX_API": "forged"}), {"PATH": "/bin"}
    )
    assert (found["OMP_NUM_THREADS"], found["PATH"], found["CORTEX_API"]) == ("8", "/mine", "a")


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "iris"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": " None "}, False),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "false"}, True),
    ],
)
def test_traces_are_made_where_a_variable_names_where_to(environment: dict[str, str], asked: bool) -> None:
    assert isolation.asks_for_traces(environment) is asked


def test_where_traces_go_is_inherited_and_an_apis_own_comes_first() -> None:
    inherited = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:4318", "OTEL_SERVICE_NAME": "all"}
    found = isolation.replica_variables(spec(env={"OTEL_SERVICE_NAME": "own"}), inherited)
    assert (found["OTEL_EXPORTER_OTLP_ENDPOINT"], found["OTEL_SERVICE_NAME"]) == ("http://a:4318", "own")


@pytest.mark.parametrize(
    ("handler", "last"),
    [("handler.py", ["scratch/import"]), ("handlers/a.py", ["project/handlers", "scratch/import"]), (None, [])],
)
def test_the_project_comes_first_on_the_path_and_the_handlers_own_folder_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: str | None, last: list[str]
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.setattr(sys, "path", ["", "/usr/lib/python"])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.chdir("/")
    isolation.enter_project(spec(project_dir=str(project), handler=handler, scratch=str(tmp_path / "scratch")))
    assert sys.path == [str(project), "/usr/lib/python", *(str(tmp_path / folder) for folder in last)]
    assert Path.cwd() == project
    assert sys.dont_write_bytecode, "the project lies in the artifact store"


def test_threads_besides_the_main_one_are_named() -> None:
    name = f"cx-{os.urandom(4).hex()}"  # that no thread of another test can have, nor one that has just ended
    assert name not in isolation.single_thread_offenders()
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        Path(f"/proc/self/task/{thread.native_id}/comm").write_text(name)
        assert isolation.single_thread_offenders().count(name) == 1
    finally:
        done.set()
        thread.join()


def test_random_state_is_drawn_anew() -> None:
    import random

    random.seed(1)
    expected = random.random()
    random.seed(1)
    isolation.reseed()
    assert random.random() != expected
