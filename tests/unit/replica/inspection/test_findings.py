"""What an inspection concludes; that it survives anything is tested in tests/integration/replica."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnx.helper
import onnx.numpy_helper
import pytest

from cortex.ids import ApiKey, ReplicaId, Revision, Version
from cortex.replica.handler.hooks import Handler, Hook
from cortex.replica.inspection.findings import inspect, prove_rows, shadowed_packages, tracker_problems
from cortex.testing.builders import a_sample_at_hand
from cortex.wire.batching import RULES, BatchingVerdict, Mode, Proof, Rounding
from cortex.wire.build import Resources, TrackerConfig
from cortex.wire.launch import Inspect, InspectReport, ReplicaSpec
from cortex.wire.signature import Dim, Kind, Signature, TensorSpec


def output(dtype: str, shape: tuple[Dim, ...] | None, name: str = "y", kind: Kind = "tensor") -> TensorSpec:
    return TensorSpec(name, dtype, shape, kind=kind)


def problems(model_type: Literal["classification", "regression"], *outputs: TensorSpec, key: str | None = None) -> str:
    found = tracker_problems(TrackerConfig(model_type=model_type, key=key), Signature(inputs=(), outputs=outputs))
    assert all(problem.reference == "tracker-never-matches" and problem.hint for problem in found)
    return " ".join(problem.message for problem in found)


@pytest.mark.parametrize(
    "spec",
    [
        output("int64", (None,)),
        output("int64", ("N", 1)),
        output("string", ()),
        output("int64", None),
        output("bool", ("N", "M")),
        output("int32", (1,)),
        output("int32", (3,)),
    ],
)
def test_a_class_may_come_out(spec: TensorSpec) -> None:
    assert problems("classification", spec) == ""


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (output("float32", (None,)), "a class is text or an integer"),
        (output("int64", (None, 3)), "several values"),
        (output("float32", (), kind="sequence_of_maps"), "no single value"),
    ],
)
def test_a_class_can_never_come_out(spec: TensorSpec, reason: str) -> None:
    assert reason in problems("classification", spec)


def test_a_number_or_none() -> None:
    assert problems("regression", output("float32", ("N", 1))) == ""
    assert problems("regression", output("int64", ("N",))) == ""
    assert "a number" in problems("regression", output("string", ("N",)))


def test_several_outputs_need_a_key_that_exists() -> None:
    outputs = (output("int64", ("N",), "label"), output("float32", ("N", 3), "scores"))
    assert '"label", "scores"' in problems("classification", *outputs)
    assert problems("classification", *outputs, key="label") == ""
    assert 'no output "lable"' in problems("classification", *outputs, key="lable")
    assert "several values" in problems("classification", *outputs, key="scores")


def test_shadowing_is_found_in_the_project_and_beside_the_handler(tmp_path: Path) -> None:
    inside = ("handlers/orjson.py", "handlers/email/__init__.py", "handlers/msgspec.py")
    for name in ("numpy.py", "mine.py", "not a module.py", *inside):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "msgspec").mkdir()  # a folder without code shadows nothing
    before = sorted(tmp_path.rglob("*"))
    found = {warning.where: warning.message for warning in shadowed_packages(str(tmp_path), "handlers/msgspec.py")}
    assert set(found) == {"numpy.py", "handlers/orjson.py", "handlers/email"}
    assert found["numpy.py"] == "`import numpy` in this project finds numpy.py, not an installed package"
    assert found["handlers/email"].endswith("finds a module of Python's standard library, not handlers/email")
    assert sorted(tmp_path.rglob("*")) == before, "it only looks"


# ---- rows -----------------------------------------------------------------------------------------------------------

PROVED = Proof(rules=RULES, proved=True, rounding="rounding", operators=1)
NOT_PROVED = Proof(rules=RULES, proved=False, reason="rows are added up", operator="ReduceSum")


def save(folder: Path, *, mixes: bool) -> Path:
    """x: float [N, length] → twice x, or x and what all rows add up to."""
    nodes = [onnx.helper.make_node("Add", ["x", "x"], ["y"])]
    if mixes:
        nodes = [
            onnx.helper.make_node("ReduceSum", ["x", "axes"], ["total"]),
            onnx.helper.make_node("Add", ["x", "total"], ["y"]),
        ]
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", "length"]) for name in "xy"]
    axes = onnx.numpy_helper.from_array(np.array([0]), "axes")
    graph = onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:], [axes])
    path = folder / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
    return path


class Look:
    """One inspection, with a proof that is told what to say."""

    def __init__(self, model: Path, rows: Mode, proof: Proof, **fields: Any) -> None:
        self.steps: list[str] = []
        self.proof = proof
        self.report: InspectReport = inspect(
            Inspect(request="1", spec=spec_of(model, **fields), rows=rows),
            announce=self.steps.append,
            prove=self._prove,
        ).report

    def _prove(self, spec: ReplicaSpec) -> Proof:
        self.steps.append(f"proving {Path(spec.model_path).name}")
        return self.proof

    @property
    def verdict(self) -> BatchingVerdict:
        assert self.report.batching is not None
        return self.report.batching


def spec_of(model: Path, **fields: Any) -> ReplicaSpec:
    return ReplicaSpec(
        replica=ReplicaId("t.a.0.0"),
        attempt=1,
        api=ApiKey("t/a"),
        version=Version("1" * 64),
        revision=Revision("2" * 64),
        home="/h",
        runtime="onnx",
        model_path=str(model),
        **fields,
    )


def test_the_graph_is_read_before_the_model_is_loaded_and_rows_are_run_last(tmp_path: Path) -> None:
    look = Look(save(tmp_path, mixes=False), "auto", PROVED)
    assert look.steps == [
        "reading the graph",
        "proving model.onnx",
        "loading the model",
        "trying the model",
        "running rows alone and together",
    ]
    assert look.report.problems == ()
    assert look.verdict.proof == PROVED
    trial = look.verdict.trial
    assert trial is not None
    assert trial.runtime.startswith("onnxruntime ")
    assert trial.rows > 0
    assert trial.disagreement is None


def test_nobody_is_asked_about_rows_where_there_are_to_be_no_batches(tmp_path: Path) -> None:
    look = Look(save(tmp_path, mixes=False), "off", PROVED)
    assert look.steps == ["loading the model", "trying the model"]
    assert look.report.batching is None


@pytest.mark.parametrize(
    ("rows", "proved", "rounding", "tried"),
    [
        ("auto", True, "exact", True),
        ("auto", True, "rounding", True),
        ("auto", True, "labels", True),
        ("auto", True, "steps", False),
        ("auto", False, "exact", False),
        ("on", True, "steps", True),
        ("on", False, "exact", True),
    ],
)
def test_rows_are_run_where_that_can_show_something(
    tmp_path: Path, rows: Mode, proved: bool, rounding: Rounding, tried: bool
) -> None:
    proof = Proof(rules=RULES, proved=proved, rounding=rounding)
    verdict = Look(save(tmp_path, mixes=False), rows, proof).verdict
    assert verdict.proof == proof
    assert (verdict.trial is not None) is tried


@pytest.mark.parametrize(("rows", "proof"), [("auto", PROVED), ("on", NOT_PROVED)])
def test_a_trial_contradicts_a_wrong_proof_and_a_users_word(tmp_path: Path, rows: Mode, proof: Proof) -> None:
    trial = Look(save(tmp_path, mixes=True), rows, proof).verdict.trial
    assert trial is not None
    assert trial.disagreement is not None
    assert trial.disagreement.output == "y"


def test_the_apis_own_sample_is_tried_where_no_handler_makes_something_else_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = a_sample_at_hand(tmp_path, b"[[1, 1], [1, 1]]", gate=True)
    model = save(tmp_path, mixes=True)
    trial = Look(model, "on", NOT_PROVED, **sample).verdict.trial
    assert trial is not None
    assert trial.disagreement is not None
    assert (trial.disagreement.alone, trial.disagreement.together) == ("2.0", "3.0")
    handler = Handler(pre=Hook("pre_inference", lambda sample, metadata: sample), post=None)
    monkeypatch.setattr("cortex.replica.process.isolation.enter_project", lambda spec: None)  # this process is no child
    monkeypatch.setattr("cortex.replica.inspection.findings.load_handler", lambda *_: handler)
    handled = {"project_dir": str(tmp_path), "handler": "handler.py"}
    other = Look(model, "on", NOT_PROVED, **sample, **handled).verdict.trial
    assert other is not None
    assert other.disagreement is not None
    assert (other.disagreement.alone, other.disagreement.together) != ("2.0", "3.0")


def test_a_sample_that_the_model_does_not_take_leaves_what_is_made_up(tmp_path: Path) -> None:
    trial = Look(save(tmp_path, mixes=False), "on", PROVED, **a_sample_at_hand(tmp_path, b'{"no": 1}')).verdict.trial
    assert trial is not None
    assert trial.rows > 0


def test_of_a_model_that_cannot_be_loaded_there_is_the_proof(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nonsense")
    look = Look(tmp_path / "model.onnx", "auto", NOT_PROVED)
    assert [problem.reference for problem in look.report.problems] == ["model-unreadable"]
    assert look.verdict == BatchingVerdict(proof=NOT_PROVED)


@pytest.mark.parametrize("content", [b"nonsense", None])
@pytest.mark.parametrize("model_format", ["onnx", "tensorflow"])
def test_a_graph_that_cannot_be_read_proves_nothing(tmp_path: Path, model_format: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model").write_bytes(content)
    proof = prove_rows(msgspec.structs.replace(spec_of(tmp_path / "model"), runtime=model_format))
    assert (proof.rules, proof.proved) == (RULES, False)
    assert proof.reason.startswith("the graph cannot be read: ")


def test_on_a_gpu_a_saved_model_is_proved_by_the_graph_that_it_brings_for_one(tensorflow: Any, tmp_path: Path) -> None:
    v1 = tensorflow.compat.v1
    builder = v1.saved_model.Builder(str(tmp_path / "model"))
    for tags, mixes in (["serve"], False), (["serve", "gpu"], True):
        with v1.Session(graph=tensorflow.Graph()) as session:
            x = v1.placeholder(tensorflow.float32, [None, 2], name="x")
            y = x - tensorflow.reduce_max(x, axis=0) if mixes else x * 2.0
            signature = v1.saved_model.signature_def_utils.predict_signature_def({"x": x}, {"y": y})
            add = builder.add_meta_graph if mixes else partial(builder.add_meta_graph_and_variables, session)
            add(tags, {"serving_default": signature})
    builder.save()
    spec = msgspec.structs.replace(spec_of(tmp_path / "model"), runtime="tensorflow")
    on_gpu = msgspec.structs.replace(spec, resources=Resources(gpus=1))
    assert [prove_rows(one).proved for one in (spec, on_gpu)] == [True, False]
