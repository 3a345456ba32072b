"""The inspector as a process: what it answers, and that it leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from replica_harness import DEADLINE_S, LAUNCHER_DEADLINE_S, eventually

from cortex.ids import ApiKey, ReplicaId, Revision, Version
from cortex.wire.build import ModelFormat
from cortex.wire.launch import Inspect, InspectReport, MadeUpSample, ReplicaSpec

pytestmark = pytest.mark.slow

IRIS = Path(__file__).parents[3] / "examples" / "iris" / "models" / "sklearn.onnx"


def start(
    model: Path, *, home: str = "/nowhere", model_format: ModelFormat = "onnx", **fields: Any
) -> subprocess.Popen[bytes]:
    request = Inspect(
        request="1",
        spec=ReplicaSpec(
            replica=ReplicaId("init"),
            attempt=0,
            api=ApiKey("d/a"),
            version=Version(""),
            revision=Revision(""),
            home=home,
            runtime=model_format,
            model_path=str(model),
            **fields,
        ),
        handler=False,
        make_up_sample=True,
    )
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "cortex.replica.inspector"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(request) + b"\n")
    process.stdin.flush()
    return process


def answered(process: subprocess.Popen[bytes]) -> InspectReport:
    with process:
        assert process.stdout is not None
        return msgspec.json.decode(process.stdout.read(), type=InspectReport)


def processes(home: str) -> list[int]:
    """Pids of everything whose title names a home."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if title.startswith(b"cortex-inspect") and home.encode() in title:
            found.append(int(entry.name))
    return found


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A model that never comes to an end."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["goes_on"]), helper.make_node("Identity", ["before"], ["after"])],
        "body",
        [
            helper.make_tensor_value_info("turn", kinds.INT64, []),
            helper.make_tensor_value_info("go_on", kinds.BOOL, []),
            helper.make_tensor_value_info("before", kinds.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("goes_on", kinds.BOOL, []),
            helper.make_tensor_value_info("after", kinds.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body)],
        "g",
        [helper.make_tensor_value_info("x", kinds.FLOAT, [1])],
        [helper.make_tensor_value_info("y", kinds.FLOAT, [1])],
        [onnx.numpy_helper.from_array(np.array(True), "yes")],
    )
    path = tmp_path / "endless.onnx"
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_a_model_is_described_with_a_sample() -> None:
    process = start(IRIS)
    report = answered(process)
    assert (process.returncode, report.problems) == (0, ())
    assert report.signature is not None
    assert [spec.name for spec in report.signature.outputs] == ["label", "probabilities"]
    assert report.made_up == MadeUpSample(body=b"[[0.85,0.63,0.51,0.26]]", accepted=True)


def test_what_is_wrong_is_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("nonsense")
    (problem,) = answered(start(tmp_path / "model.onnx")).problems
    assert problem.reference == "model-unreadable"


def test_a_model_that_never_ends_is_ended(endless: Path) -> None:
    home = str(endless.parent)
    (problem,) = answered(start(endless, home=home, start_timeout_s=5.0)).problems
    assert problem.reference == "inspection-timeout"
    assert problem.message == "trying the model took more than 5 s"
    assert processes(home) == []


def test_nothing_is_left_when_nobody_waits_any_more(endless: Path) -> None:
    home = str(endless.parent)
    with start(endless, home=home) as process:
        eventually(lambda: len(processes(home)) == 2, "the inspector and its child run", LAUNCHER_DEADLINE_S)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 1
    assert processes(home) == []
