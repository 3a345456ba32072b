"""`cortex init`: what is written, what is refused, and how the process that looks at the model is treated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex.artifacts.project import collect_project
from cortex.cli import init as command
from cortex.cli.starter import Starter, sample_text, type_text, yaml_scalar
from cortex.errors import Problem
from cortex.spec.loading import load
from cortex.wire.launch import Inspect, InspectReport, MadeUpSample
from cortex.wire.signature import Signature, TensorSpec

IRIS = Path(__file__).parents[3] / "examples" / "iris" / "models" / "sklearn.onnx"

FEATURES = TensorSpec("features", "float32", (None, 4))
LABEL = TensorSpec("label", "string", (None,))
SCORES = TensorSpec("scores", "float32", ("rows", 3))
ACCEPTED = MadeUpSample(body=b"[[0.85,0.63,0.51,0.26]]", accepted=True)


def report(
    *, inputs: tuple[TensorSpec, ...] = (FEATURES,), outputs: tuple[TensorSpec, ...] = (LABEL,), **fields: Any
) -> InspectReport:
    given: dict[str, Any] = {"signature": Signature(inputs, outputs), "made_up": ACCEPTED}
    return InspectReport(**(given | fields))


class FakeInspector:
    """Stands for the inspection child: notes what it was asked, and answers what it was told to."""

    def __init__(self) -> None:
        self.report = report()
        self.asked: list[Inspect] = []
        self.seen: list[list[str]] = []
        """Files in the model's folder while it was looked at."""

    def __call__(
        self,
        _terminal: object,
        _settings: object,
        model_format: str,
        path: Path,
        *,
        api: str,
        signature_key: str | None,
    ) -> InspectReport:
        self.signature_key = signature_key
        self.asked.append((model_format, path, api))
        self.seen.append(
            sorted(str(file.relative_to(path.parent)) for file in path.parent.rglob("*") if file.is_file())
        )
        return self.report


@pytest.fixture
def inspector(monkeypatch: pytest.MonkeyPatch) -> FakeInspector:
    fake = FakeInspector()
    monkeypatch.setattr(command, "inspect_model", fake)
    return fake


@pytest.fixture
def model(cortex: Any) -> Path:
    path: Path = cortex.cwd / "model.onnx"
    path.write_bytes(IRIS.read_bytes())
    return path


def written(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".yaml", ".py", ".json")}


# ---- what is written --------------------------------------------------------------------------------------------


def test_three_files_are_written_and_told(cortex: Any, inspector: FakeInspector, model: Path, golden: Any) -> None:
    inspector.report = report(inputs=(FEATURES,), outputs=(LABEL, SCORES))
    ran = cortex("init", "model.onnx")
    assert ran.code == 0
    files = written(cortex.cwd)
    assert sorted(files) == ["cortex.yaml", "handler.py", "sample.json"]
    golden("init-out", ran.out)
    golden("init-talk", ran.talk)
    golden("init-yaml", files["cortex.yaml"])
    golden("init-handler", files["handler.py"])
    assert files["sample.json"] == "[[0.85, 0.63, 0.51, 0.26]]\n"


def test_the_yaml_says_what_it_seems_to(cortex: Any, inspector: FakeInspector, model: Path) -> None:
    cortex("init", "model.onnx", "Iris Flowers")
    folder = cortex.cwd / "Iris Flowers"
    spec = load((folder / "cortex.yaml").read_bytes(), file="cortex.yaml").spec
    (api,) = spec.apis
    assert (spec.deployment, api.name, api.model) == ("iris-flowers", "model", "../model.onnx")
    assert (api.request_handler, api.sample, api.model_format) == ("handler.py", "sample.json", None)


def test_the_handler_passes_everything_through(cortex: Any, inspector: FakeInspector, model: Path) -> None:
    def namespace() -> dict[str, Any]:
        found: dict[str, Any] = {}
        exec((cortex.cwd / "handler.py").read_text(), found)
        return found

    cortex("init", "model.onnx")
    handler = namespace()
    assert handler["pre_inference"]([1, 2], None) == [1, 2]
    assert handler["post_inference"]({"label": ["a"]}, None) == ["a"]

    inspector.report = report(outputs=(LABEL, SCORES))
    cortex("init", "model.onnx", "--force")
    assert namespace()["post_inference"]({"label": ["a"], "scores": [0.5]}, None) == {"label": ["a"], "scores": [0.5]}


def test_names_of_inputs_and_outputs_may_be_anything(cortex: Any, inspector: FakeInspector, model: Path) -> None:
    strange = ('say "hi"', "two\nlines", 'a"""b', "\\", "naïve", "\u2028", "#", "{x}")
    outputs = tuple(TensorSpec(name, "float32", (None,)) for name in strange)
    inspector.report = report(inputs=outputs, outputs=outputs)
    assert cortex("init", "model.onnx").code == 0
    namespace: dict[str, Any] = {}
    exec((cortex.cwd / "handler.py").read_text(), namespace)
    prediction = {name: number for number, name in enumerate(strange)}
    assert namespace["post_inference"](prediction, None) == prediction
    load((cortex.cwd / "cortex.yaml").read_bytes(), file="cortex.yaml")


def test_a_sample_that_was_not_taken_gates_nothing(cortex: Any, inspector: FakeInspector, model: Path) -> None:
    inspector.report = report(made_up=MadeUpSample(body=b"[[1]]", accepted=False, reason="W: {1575,256}"))
    ran = cortex("init", "model.onnx")
    assert load((cortex.cwd / "cortex.yaml").read_bytes(), file="cortex.yaml").spec.apis[0].sample is None
    assert (cortex.cwd / "sample.json").read_text() == "[[1]]\n"
    assert "wrote sample.json  types and shapes as the model declares them" in ran.out
    assert "note: the model took none of the inputs that were made up for it" in ran.talk
    assert "the model said: W: {1575,256}" in ran.talk
    assert "cortex predict" not in ran.talk, "nothing unproven is offered"


def test_no_sample_is_written_where_it_would_be_very_large(cortex: Any, inspector: FakeInspector, model: Path) -> None:
    inspector.report = report(made_up=None)
    ran = cortex("init", "model.onnx")
    assert sorted(written(cortex.cwd)) == ["cortex.yaml", "handler.py"]
    assert load((cortex.cwd / "cortex.yaml").read_bytes(), file="cortex.yaml").spec.apis[0].sample is None
    assert "note: no sample.json was written" in ran.talk
    assert "cortex predict" not in ran.talk


def test_several_signatures_are_told_apart_in_the_yaml(cortex: Any, inspector: FakeInspector) -> None:
    (cortex.cwd / "bert" / "7").mkdir(parents=True)
    (cortex.cwd / "bert" / "7" / "saved_model.pb").write_bytes(b"x")
    inspector.report = report(
        signature=Signature((FEATURES,), (LABEL,), key="serving_default"), signature_keys=("serving_default", "train")
    )
    ran = cortex("init", "bert/7", "out")
    (api,) = load((cortex.cwd / "out" / "cortex.yaml").read_bytes(), file="cortex.yaml").spec.apis
    assert (ran.code, api.name, api.model, api.tf_signature_key) == (0, "bert", "../bert/7", "serving_default")
    assert inspector.asked == [("tensorflow", cortex.cwd / "bert" / "7", "out/bert")]


def test_a_signature_may_be_chosen(cortex: Any, inspector: FakeInspector) -> None:
    (cortex.cwd / "bert").mkdir()
    (cortex.cwd / "bert" / "saved_model.pb").write_bytes(b"x")
    inspector.report = report(
        signature=Signature((FEATURES,), (LABEL,), key="classify"), signature_keys=("classify", "predict")
    )
    assert cortex("init", "bert", "--signature", "classify").code == 0
    assert inspector.signature_key == "classify"
    assert "  tf_signature_key: classify\n" in (cortex.cwd / "cortex.yaml").read_text()


def test_the_only_model_of_the_folder_needs_no_name(cortex: Any, inspector: FakeInspector, model: Path) -> None:
    assert cortex("init").code == 0
    assert (cortex.cwd / "cortex.yaml").read_text().count("  model: model.onnx\n") == 1


@pytest.mark.parametrize(
    ("files", "message", "hint"),
    [
        ((), "no model lies in this folder: no .onnx file and no SavedModel", "name it: cortex init MODEL"),
        (("a.onnx", "b.onnx"), "a.onnx and b.onnx lie in this folder", "say which: cortex init a.onnx"),
        (
            ("a.onnx", "bert/saved_model.pb"),
            "a.onnx and bert lie in this folder",
            "say which: cortex init a.onnx",
        ),
    ],
)
def test_without_exactly_one_model_it_has_to_be_named(
    cortex: Any, inspector: FakeInspector, files: tuple[str, ...], message: str, hint: str
) -> None:
    for name in files:
        (cortex.cwd / name).parent.mkdir(exist_ok=True)
        (cortex.cwd / name).touch()
    ran = cortex("init")
    assert (ran.code, ran.out) == (1, "")
    assert ran.talk == f"error: no-model-named\n  {message}\n  hint: {hint}\n"


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        (
            "add one to the api in cortex.yaml, e.g.\ntf_signature_key: predict",
            "  hint: name one, e.g.\n        --signature predict\n",
        ),
        ("if it is an ONNX model, say `model_format: onnx`", "if it is an ONNX model, say --model-format onnx"),
        ("say `model: bert/1`", "say `cortex init bert/1`"),
        ("name the one to serve, e.g. `model: two/a.onnx`", "name the one to serve, e.g. `cortex init two/a.onnx`"),
        ("unpack it yourself and name the folder in `model:`", "unpack it yourself and name the folder"),
        ("leave model_format out", "leave --model-format out"),
    ],
)
def test_hints_on_a_model_name_flags_and_not_fields_of_a_file_that_is_not_there(
    cortex: Any, inspector: FakeInspector, model: Path, hint: str, shown: str
) -> None:
    inspector.report = InspectReport(problems=(Problem(reference="x", message="no", hint=hint),))
    talk = cortex("init", "model.onnx").talk
    assert shown in talk
    assert "tf_signature_key" not in talk
    assert "model_format" not in talk


def test_what_a_deploy_would_refuse_to_ship_is_left_out(cortex: Any, inspector: FakeInspector, model: Path) -> None:
    with open(cortex.cwd / "other.onnx", "wb") as large:
        large.truncate(200 * 2**20)
    (cortex.cwd / "config.json").symlink_to(Path(__file__))
    ran = cortex("init", "model.onnx")
    assert (ran.code, "wrote .cortexignore  what handlers do not need" in ran.out) == (0, True)
    first_line = (cortex.cwd / ".cortexignore").read_text().splitlines()[0]
    assert first_line.startswith("# Everything here but the handler is left out, because ")
    collected = collect_project(cortex.cwd, leave_out=["cortex.yaml", "model.onnx"])
    assert [file.path for file in collected.files] == ["handler.py"]


def test_a_cortexignore_that_does_not_suffice_is_left_alone(cortex: Any, inspector: FakeInspector, model: Path) -> None:
    (cortex.cwd / ".cortexignore").write_text("# mine\n")
    with open(cortex.cwd / "other.onnx", "wb") as large:
        large.truncate(200 * 2**20)
    ran = cortex("init", "model.onnx", "--force")
    assert (ran.code, (cortex.cwd / ".cortexignore").read_text()) == (0, "# mine\n")
    assert "warning: project-too-large\n" in ran.talk
    assert "200 MiB  other.onnx" in ran.talk


def test_the_model_itself_is_not_in_the_way(cortex: Any, inspector: FakeInspector) -> None:
    (cortex.cwd / "bert" / "variables").mkdir(parents=True)
    (cortex.cwd / "bert" / "saved_model.pb").write_bytes(b"x")
    with open(cortex.cwd / "bert" / "variables" / "variables.data-00000-of-00001", "wb") as large:
        large.truncate(200 * 2**20)
    ran = cortex("init", "bert")
    assert (ran.code, (cortex.cwd / ".cortexignore").exists()) == (0, False)
    assert "project-too-large" not in ran.talk


# ---- names and places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model.onnx", "model"),
        ("ResNet_50 v2.1.onnx", "resnet-50-v2-1"),
        ("2024.onnx", "here"),
        ("3d-boxes.onnx", "api-3d-boxes"),
        ("模型.onnx", "model"),
        ("-.onnx", "model"),
        ("null.onnx", "null"),
        ("x" * 60 + ".onnx", "x" * 42),
    ],
)
def test_the_api_is_named_after_the_file(cortex: Any, inspector: FakeInspector, file: str, name: str) -> None:
    (cortex.cwd / file).write_bytes(IRIS.read_bytes())
    assert cortex("init", "--", file, "p").code == 0
    (api,) = load((cortex.cwd / "p" / "cortex.yaml").read_bytes(), file="cortex.yaml").spec.apis
    assert (api.name, api.model) == (name, f"../{file}")


@pytest.mark.parametrize(("folder", "name"), [("My Project", "my-project"), ("default", "model"), ("数", "model")])
def test_the_deployment_is_named_after_the_folder(
    cortex: Any, inspector: FakeInspector, model: Path, folder: str, name: str
) -> None:
    cortex("init", "model.onnx", folder)
    assert load((cortex.cwd / folder / "cortex.yaml").read_bytes(), file="cortex.yaml").spec.deployment == name


@pytest.mark.parametrize("file", ["~model.onnx", "s3:model.onnx", "a b: c #d.onnx", "'q'.onnx", "-x.onnx", "1.0.onnx"])
def test_names_that_mean_something_to_yaml_or_to_us_are_written_so_that_they_are_found(
    cortex: Any, inspector: FakeInspector, file: str
) -> None:
    (cortex.cwd / file).write_bytes(IRIS.read_bytes())
    assert cortex("init", "--", f"./{file}").code == 0
    (api,) = load((cortex.cwd / "cortex.yaml").read_bytes(), file="cortex.yaml").spec.apis
    assert (cortex.cwd / api.model).read_bytes() == IRIS.read_bytes()


def test_a_model_that_has_only_the_root_in_common_is_named_by_its_whole_path(
    cortex: Any, inspector: FakeInspector, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if os.path.commonpath(["/dev/shm", cortex.cwd]) != "/" or not os.access("/dev/shm", os.W_OK):
        pytest.skip("needs two folders that have only the root in common")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        model = Path(elsewhere) / "m.onnx"
        model.write_bytes(IRIS.read_bytes())
        assert cortex("init", str(model)).code == 0
        (api,) = load((cortex.cwd / "cortex.yaml").read_bytes(), file="cortex.yaml").spec.apis
        assert api.model == str(model)


def test_a_linked_folder_does_not_lead_astray(cortex: Any, inspector: FakeInspector, model: Path) -> None:
    (cortex.cwd / "deep" / "real").mkdir(parents=True)
    (cortex.cwd / "link").symlink_to("deep/real")
    cortex("init", "model.onnx", "link")
    (api,) = load((cortex.cwd / "link" / "cortex.yaml").read_bytes(), file="cortex.yaml").spec.apis
    assert api.model == "../../model.onnx"
    assert (cortex.cwd / "deep" / "real" / api.model).is_file()


def test_links_are_looked_at_as_the_store_would_lay_them_out(cortex: Any, inspector: FakeInspector) -> None:
    (cortex.cwd / "blob").write_bytes(IRIS.read_bytes())
    (cortex.cwd / "model.onnx").symlink_to("blob")
    assert cortex("init", "model.onnx").code == 0
    ((_, path, _),) = inspector.asked
    assert (path.name, inspector.seen) == ("model.onnx", [["model.onnx"]])
    assert not path.exists()  # the copy is gone
    (api,) = load((cortex.cwd / "cortex.yaml").read_bytes(), file="cortex.yaml").spec.apis
    assert api.model == "model.onnx"


def test_a_file_url_stays_one(cortex: Any, inspector: FakeInspector, model: Path) -> None:
    cortex("init", f"file://{model}", "p")
    (api,) = load((cortex.cwd / "p" / "cortex.yaml").read_bytes(), file="cortex.yaml").spec.apis
    assert (api.name, api.model) == ("model", f"file://{model}")


# ---- what is refused --------------------------------------------------------------------------------------------


def test_files_that_are_there_are_named_and_left_alone(cortex: Any, inspector: FakeInspector, model: Path) -> None:
    (cortex.cwd / "handler.py").write_text("mine")
    (cortex.cwd / "cortex.yaml").symlink_to("nowhere")
    ran = cortex("init", "model.onnx")
    assert (ran.code, ran.out, inspector.asked) == (1, "", [])
    assert ran.talk == (
        "error: file-exists\n"
        "  cortex.yaml and handler.py are there already\n"
        "  hint: name another folder: cortex init MODEL DIR; or replace them: --force\n"
    )
    assert (cortex.cwd / "handler.py").read_text() == "mine"
    assert not (cortex.cwd / "sample.json").exists()


def test_force_replaces_files_and_writes_through_no_link(cortex: Any, inspector: FakeInspector, model: Path) -> None:
    (cortex.cwd / "precious.py").write_text("mine")
    (cortex.cwd / "handler.py").symlink_to("precious.py")
    assert cortex("init", "model.onnx", "--force").code == 0
    assert "def pre_inference" in (cortex.cwd / "handler.py").read_text()
    assert (cortex.cwd / "precious.py").read_text() == "mine"


def test_a_file_that_appears_meanwhile_is_not_replaced(
    cortex: Any, inspector: FakeInspector, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*args: Any, **options: Any) -> InspectReport:
        (cortex.cwd / "handler.py").write_text("mine")
        return report()

    monkeypatch.setattr(command, "inspect_model", look)
    ran = cortex("init", "model.onnx")
    assert (ran.code, (cortex.cwd / "handler.py").read_text()) == (1, "mine")
    assert "handler.py cannot be written: it is there already" in ran.talk


def test_what_is_wrong_with_a_model_is_told_as_at_a_deploy(cortex: Any, inspector: FakeInspector, model: Path) -> None:
    problem = Problem(reference="unsupported-opset", message="the model uses opset 99", hint="export with opset 21")
    inspector.report = InspectReport(problems=(problem,))
    ran = cortex("init", "model.onnx", "new")
    assert (ran.code, ran.out) == (1, "")
    assert ran.talk == "error: unsupported-opset\n  the model uses opset 99\n  hint: export with opset 21\n"
    assert not (cortex.cwd / "new").exists()


@pytest.mark.parametrize(
    ("argument", "reference", "words"),
    [
        ("nothing.onnx", "model-not-found", "MODEL is a path on this machine, relative to where you are"),
        ("modle.onnx", "model-not-found", 'did you mean "model.onnx"?'),
        ("weights.pt", "no-model", "export it with torch.onnx.export"),
        ("empty.onnx", "unusable-model", "is empty (0 bytes)"),
        ("ftp://host/model.onnx", "unknown-scheme", "begins with one of file://, s3://, gs://, az://, https://"),
        (".", "ambiguous-model", "holds 2 .onnx files"),
    ],
)
def test_what_is_no_model_is_not_looked_at(
    cortex: Any, inspector: FakeInspector, model: Path, argument: str, reference: str, words: str
) -> None:
    (cortex.cwd / "weights.pt").write_bytes(b"x")
    (cortex.cwd / "empty.onnx").write_bytes(b"")
    ran = cortex("init", argument)
    assert (ran.code, inspector.asked) == (1, [])
    assert ran.talk.startswith(f"error: {reference}\n")
    assert words in ran.talk
    assert written(cortex.cwd) == {}


def test_a_folder_that_cannot_be_made_is_named(cortex: Any, inspector: FakeInspector, model: Path) -> None:
    (cortex.cwd / "file").write_text("x")
    ran = cortex("init", "model.onnx", "file")
    assert ran.code == 1
    assert "file cannot be written: it is no folder" in ran.talk


def test_a_name_that_no_yaml_can_hold_is_refused_before_anything_is_written(
    cortex: Any, inspector: FakeInspector
) -> None:
    (cortex.cwd / "a\x07b.onnx").write_bytes(IRIS.read_bytes())
    ran = cortex("init", "a\x07b.onnx", "p")
    assert (ran.code, (cortex.cwd / "p").exists()) == (1, False)
    assert "control character" in ran.talk


# ---- the process that looks at the model ------------------------------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Runs a program of the test's in place of the inspector; `request` is what it was asked."""

    def replace(program: str) -> None:
        file = tmp_path / "stand_in.py"
        file.write_text(
            "import json, os, sys, time\nrequest = json.loads(sys.stdin.readline())\n" + textwrap.dedent(program)
        )
        monkeypatch.setattr(command, "INSPECTOR_COMMAND", (sys.executable, "-I", "-S", str(file)))

    return replace


def test_a_report_is_read_whole(cortex: Any, model: Path, stand_in: Any) -> None:
    body = msgspec.json.encode(report()).decode()
    stand_in(f"print({body!r}); print('x' * 1_000_000, file=sys.stderr)")
    assert cortex("init", "model.onnx").code == 0


def test_the_model_is_named_and_the_time_is_limited(cortex: Any, model: Path, stand_in: Any) -> None:
    cortex.environ = {"CORTEX_START_TIMEOUT": "7"}
    stand_in(
        "problem = {'reference': 'asked', 'message': json.dumps(request)}; print(json.dumps({'problems': [problem]}))"
    )
    talk = cortex("init", "model.onnx").talk
    asked = msgspec.json.decode(talk[talk.index("{") : talk.rindex("}") + 1], type=Inspect)
    assert (asked.model, asked.handler, asked.make_up_sample) == (True, False, True)
    assert (asked.spec.model_path, asked.spec.start_timeout_s) == (str(model), 7.0)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("print('no luck', file=sys.stderr); sys.exit(1)", "its process ended with exit code 1"),
        ("print('no luck', file=sys.stderr); os.kill(os.getpid(), 9)", "its process was ended by signal 9"),
        ("print('no luck', file=sys.stderr); print('{}}')", "its report cannot be read"),
    ],
)
def test_a_process_that_fails_is_told_with_its_last_words(
    cortex: Any, model: Path, stand_in: Any, program: str, words: str
) -> None:
    stand_in(program)
    ran = cortex("init", "model.onnx")
    assert ran.code == 1
    assert f"error: inspection-died\n    no luck\n  the model could not be looked at: {words}\n" in ran.talk


def test_a_process_that_hangs_is_ended(
    cortex: Any, model: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "INSPECTOR_GRACE_S", 0.3)
    monkeypatch.setattr(command, "END_GRACE_S", 0.1)
    cortex.environ = {"CORTEX_START_TIMEOUT": "0.1"}
    stand_in("time.sleep(1000)")
    started = []

    class Noted(subprocess.Popen):  # it may be ended before it could write down its own pid
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self.pid)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    ran = cortex("init", "model.onnx")
    assert "its process did not end within 0.4 s" in ran.talk
    (pid,) = started
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
class TestTheRealInspector:
    def test_a_model_is_described(self, cortex: Any, model: Path) -> None:
        ran = cortex("init", "model.onnx")
        assert (ran.code, '  takes  "input": float32 [?, 4]\n' in ran.out) == (0, True)
        assert json.loads((cortex.cwd / "sample.json").read_text()) == [[0.85, 0.63, 0.51, 0.26]]
        assert "  sample: sample.json #" in (cortex.cwd / "cortex.yaml").read_text()

    def test_what_the_runtime_does_not_know_is_refused_as_at_a_deploy(self, cortex: Any) -> None:
        renamed = IRIS.read_bytes().replace(b"LinearClassifier", b"LunaticClassifie")
        (cortex.cwd / "model.onnx").write_bytes(renamed)
        ran = cortex("init", "model.onnx")
        assert ran.code == 1
        assert "error: unsupported-operator\n" in ran.talk
        assert "LunaticClassifie" in ran.talk
        assert written(cortex.cwd) == {}

    def test_time_runs_out(self, cortex: Any, model: Path) -> None:
        cortex.environ = {"CORTEX_START_TIMEOUT": "0.001"}
        ran = cortex("init", "model.onnx")
        assert ran.code == 1
        assert "error: inspection-timeout\n" in ran.talk


def test_ctrl_c_ends_the_process_and_says_that_nothing_was_written(
    cortex: Any, model: Path, stand_in: Any, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    stand_in(f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); sys.stdin.read()")

    def interrupt() -> None:
        while not (pid_file.exists() and pid_file.read_text()):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    ran = cortex("init", "model.onnx")
    assert (ran.code, ran.talk.splitlines()[-1]) == (130, "interrupted: nothing was written")
    assert written(cortex.cwd) == {}
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


# ---- texts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (TensorSpec("x", "float32", (None, 4)), "float32 [?, 4]"),
        (TensorSpec("x", "int64", ()), "int64, one value"),
        (TensorSpec("x", "string", None), "string […]"),
        (TensorSpec("x", "float32", ("past + 1",)), "float32 [past + 1]"),
        (TensorSpec("x", "float32", (2,), kind="sequence"), "sequence of float32 [2]"),
        (
            TensorSpec("x", "float32", (), kind="sequence_of_maps", key_dtype="int64"),
            "sequence of map from int64 to float32",
        ),
        (TensorSpec("x", "float32", ("a\nb",)), "float32 [a?b]"),
    ],
)
def test_types_are_written(spec: TensorSpec, text: str) -> None:
    assert type_text(spec) == text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"[[1.5,2]]", "[[1.5, 2]]\n"),
        (b'{"a":[1],"b":{"c":2}}', '{\n  "a": [1],\n  "b": {"c": 2}\n}\n'),
        ('{"ä":"ö"}'.encode(), '{\n  "ä": "ö"\n}\n'),
        (b"{}", "{}\n"),
        (b"null", "null\n"),
    ],
)
def test_samples_are_nice_to_edit(body: bytes, text: str) -> None:
    assert sample_text(body) == text


@pytest.mark.parametrize(
    "text", ["a", "no", "on", "null", "1e3", "0x1f", "1.5", "a: b", "a #b", "- x", "ü", "", "\x85", "a/b.onnx"]
)
def test_scalars_are_read_as_they_were_meant(text: str) -> None:
    from ruamel.yaml import YAML

    assert YAML(typ="safe").load(f"key: {yaml_scalar(text)} # comment") == {"key": text}


def test_a_project_without_a_signature_worth_the_name_is_written_too() -> None:
    starter = Starter(deployment="d", api="a", model="m.onnx", shown_model="m.onnx", signature=Signature((), ()))
    files = starter.files()
    compile(files["handler.py"], "handler.py", "exec")
    load(files["cortex.yaml"].encode(), file="cortex.yaml")
