"""What an inspection concludes; that it survives anything is tested in tests/integration/replica."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from cortex.replica.inspection import shadowed_packages, tracker_problems
from cortex.wire.build import TrackerConfig
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
    for name in ("numpy.py", "mine.py", "not a module.py", "handlers/orjson.py", "handlers/email/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "msgspec").mkdir()  # a folder without code shadows nothing
    before = sorted(tmp_path.rglob("*"))
    found = {warning.where: warning.message for warning in shadowed_packages(str(tmp_path), "handlers/a.py")}
    assert set(found) == {"numpy.py", "handlers/orjson.py", "handlers/email"}
    assert "an installed package" in found["numpy.py"]
    assert "standard library" in found["handlers/email"]
    assert sorted(tmp_path.rglob("*")) == before, "it only looks"
