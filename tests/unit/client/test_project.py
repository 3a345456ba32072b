"""From a folder to a deploy request and its files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex.client.errors import OperatorFailed
from cortex.client.operator import OperatorClient
from cortex.client.project import FileUnreadable, NoCortexYaml, NoSuchPath, Package, locate, prepare, upload
from cortex.errors import Problem, Problems
from cortex.wire.operator import Failure, SampleUpload

IRIS = Path(__file__).parents[3] / "examples" / "iris"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small project: a model with a handler, and one without."""
    made = tmp_path / "project"
    (made / "handlers").mkdir(parents=True)
    (made / "model.onnx").write_bytes((IRIS / "models" / "sklearn.onnx").read_bytes())
    (made / "handlers" / "a.py").write_text("def pre_inference(sample, metadata):\n    return sample\n")
    write(
        made,
        "- kind: deployment\n  name: iris\n"
        "- kind: api\n  name: a\n  model: model.onnx\n  request_handler: handlers/a.py\n"
        "- kind: api\n  name: b\n  model: model.onnx\n  sample: b.json\n",
    )
    (made / "b.json").write_text("[1.0, 2, 3, 4]")
    return made


def write(folder: Path, text: str) -> None:
    (folder / "cortex.yaml").write_text(text)


def one_api(folder: Path, *lines: str) -> None:
    write(folder, "\n".join(["- kind: api", "  name: a", *(f"  {line}" for line in lines)]) + "\n")


def prepared(folder: Path, **flags: Any) -> Package:
    with prepare(
        folder / "cortex.yaml", shown_file="cortex.yaml", home=folder / "no-home", now_wall_s=0.0, **flags
    ) as package:
        return package


def refused(folder: Path) -> list[tuple[str, str, str]]:
    with pytest.raises(Problems) as caught:
        prepared(folder)
    return [(problem.reference, problem.where, problem.subject) for problem in caught.value.problems]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# ---- finding the file -----------------------------------------------------------------------------------------------


def test_without_a_path_the_nearest_file_above_is_meant(folder: Path) -> None:
    assert locate(None, folder / "handlers") == folder / "cortex.yaml"


def test_a_path_is_a_folder_or_a_yaml_file(folder: Path) -> None:
    (folder / "other.yml").touch()
    assert locate("project", folder.parent) == folder / "cortex.yaml"
    assert locate(str(folder), Path("/")) == folder / "cortex.yaml"
    assert locate("other.yml", folder) == folder / "other.yml"
    (folder / "~odd.yaml").touch()
    assert locate("./~odd.yaml", folder).samefile(folder / "~odd.yaml")


def test_no_file_is_an_error_that_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NoCortexYaml, match="or above it") as caught:
        locate(None, tmp_path)
    assert "cortex deploy PATH" in caught.value.hint
    (tmp_path / "cortex.yml").touch()
    with pytest.raises(NoCortexYaml) as caught:
        locate(".", tmp_path)
    assert caught.value.hint == "rename cortex.yml to cortex.yaml"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere", "does not exist"),
        ("handlers/a.py", "is not a yaml file"),
        ("~nobody-of-this-name/x", "does not exist"),
    ],
)
def test_other_paths_are_refused(folder: Path, path: str, reason: str) -> None:
    with pytest.raises(NoSuchPath, match=reason):
        locate(path, folder)


# ---- the request ----------------------------------------------------------------------------------------------------


def test_a_request_names_everything_by_digest(folder: Path) -> None:
    request = prepared(folder, force=True, refresh=True).request
    assert (request.deployment, request.source, request.force, request.refresh, request.prune) == (
        "iris",
        str(folder.resolve()),
        True,
        True,
        False,
    )
    assert [(api.spec["name"], api.model.entry if api.model else None) for api in request.apis] == [
        ("a", "model.onnx"),
        ("b", "model.onnx"),
    ]
    assert [(file.path, file.sha256) for file in request.project] == [
        ("handlers/a.py", digest(folder / "handlers" / "a.py"))
    ]


def test_the_project_is_shipped_only_for_handlers(folder: Path) -> None:
    one_api(folder, "model: model.onnx")
    assert prepared(folder).request.project == ()


def test_sources_lead_from_each_digest_to_a_file(folder: Path) -> None:
    package = prepared(folder)
    assert package.sources == {
        digest(folder / "model.onnx"): folder / "model.onnx",
        digest(folder / "handlers" / "a.py"): folder / "handlers" / "a.py",
        digest(folder / "b.json"): folder / "b.json",
    }


def test_a_remote_model_is_left_to_the_control_plane(folder: Path) -> None:
    one_api(folder, "model: s3://bucket/model.onnx")
    package = prepared(folder)
    assert package.request.apis[0].model is None
    assert package.sources == {}


def test_a_yaml_of_another_name_is_not_shipped(folder: Path) -> None:
    (folder / "cortex.yaml").rename(folder / "staging.yaml")
    with prepare(folder / "staging.yaml", shown_file="s", home=folder / "no-home", now_wall_s=0.0) as package:
        assert [file.path for file in package.request.project] == ["handlers/a.py"]


def test_digests_are_kept_in_a_home_that_exists(folder: Path, tmp_path: Path) -> None:
    with prepare(folder / "cortex.yaml", shown_file="c", home=tmp_path, now_wall_s=9e9) as first:
        pass
    assert (tmp_path / "hashes.json").exists()
    with prepare(folder / "cortex.yaml", shown_file="c", home=tmp_path, now_wall_s=9e9) as second:
        assert second.request == first.request


# ---- samples --------------------------------------------------------------------------------------------------------


def uploaded(body: bytes, content_type: str = "application/json", *, gate: bool) -> SampleUpload:
    return SampleUpload(sha256=hashlib.sha256(body).hexdigest(), content_type=content_type, gate=gate)


def sample_of(folder: Path, *lines: str) -> SampleUpload | None:
    one_api(folder, "model: model.onnx", *lines)
    return prepared(folder).request.apis[0].sample


def test_a_sample_in_the_file_gates(folder: Path) -> None:
    assert sample_of(folder, "sample: {x: [1, 2.5]}") == uploaded(b'{"x":[1,2.5]}', gate=True)
    assert sample_of(folder, "sample: some text") == uploaded(b'"some text"', gate=True)


def test_a_sample_file_gates_with_the_content_type_of_its_ending(folder: Path) -> None:
    (folder / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    assert sample_of(folder, "sample: photo.jpg") == uploaded(b"\xff\xd8\xff", "image/jpeg", gate=True)


def test_a_sample_json_that_is_found_gates_nothing(folder: Path) -> None:
    assert sample_of(folder) is None
    (folder / "sample.json").write_text("[1]")
    assert sample_of(folder) == uploaded(b"[1]", gate=False)


@pytest.mark.parametrize("lines", [("sample: {x: 1}",), ("sample: there.json",), ()])
def test_the_body_of_a_sample_is_there_to_be_uploaded(folder: Path, lines: tuple[str, ...]) -> None:
    (folder / "there.json").write_text('{"x":1}')
    (folder / "sample.json").write_text('{"x":1}')
    one_api(folder, "model: model.onnx", *lines)
    with prepare(folder / "cortex.yaml", shown_file="c", home=folder / "no-home", now_wall_s=0.0) as package:
        sample = package.request.apis[0].sample
        assert sample is not None
        assert package.sources[sample.sha256].read_bytes() == b'{"x":1}'


# ---- problems -------------------------------------------------------------------------------------------------------


def test_all_problems_of_all_apis_are_told_in_the_order_of_the_file(folder: Path) -> None:
    write(
        folder,
        "- kind: api\n  name: a\n  model: nope.onnx\n  request_handler: handlers/b.py\n"
        "- kind: api\n  name: b\n  model: model.onnx\n  sample: nope.json\n",
    )
    assert refused(folder) == [
        ("model-not-found", "cortex.yaml:3:3", 'api "a": model'),
        ("handler-not-found", "cortex.yaml:4:3", 'api "a": request_handler'),
        ("sample-not-found", "cortex.yaml:8:3", 'api "b": sample'),
    ]


def test_mistakes_in_the_file_come_before_anything_is_looked_for(folder: Path) -> None:
    one_api(folder, "model: nope.onnx", "compute: {max_replica: 3}")
    assert [reference for reference, _, _ in refused(folder)] == ["unknown-field"]


def test_a_sample_file_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "x.json").write_text("{")
    one_api(folder, "model: model.onnx", "sample: x.json")
    assert refused(folder) == [("bad-sample", "cortex.yaml:4:3", 'api "a": sample')]


def test_a_handler_that_is_left_out_is_told_with_the_reason(folder: Path) -> None:
    (folder / ".cortexignore").write_text("handlers/\n")
    one_api(folder, "model: model.onnx", "request_handler: handlers/a.py")
    with pytest.raises(Problems) as caught:
        prepared(folder)
    (problem,) = caught.value.problems
    assert problem.reference == "handler-left-out"
    assert "line 1 of .cortexignore" in problem.message


def test_a_misspelt_handler_offers_the_nearest(folder: Path) -> None:
    (folder / "handlers" / "sklearn.py").touch()
    one_api(folder, "model: model.onnx", "request_handler: handlers/sklern.py")
    with pytest.raises(Problems) as caught:
        prepared(folder)
    assert caught.value.problems[0].hint == 'did you mean "handlers/sklearn.py"?'


def test_what_is_wrong_in_requirements_is_told_with_the_rest(folder: Path) -> None:
    (folder / "requirements.txt").write_text("pillow=1\n-e .\n")
    (folder / "handlers" / "a.py").unlink()
    assert refused(folder) == [
        ("requirements-syntax", "requirements.txt:1", ""),
        ("requirements-local", "requirements.txt:2", ""),
        ("handler-not-found", "cortex.yaml:6:3", 'api "a": request_handler'),
    ]


def test_requirements_that_are_not_shipped_are_not_looked_at(folder: Path) -> None:
    (folder / "requirements.txt").write_text("pillow=1\n")
    (folder / ".cortexignore").write_text("requirements.txt\n")
    assert "requirements.txt" not in [file.path for file in prepared(folder).request.project]


@pytest.mark.parametrize(
    ("lies_at", "requirement", "told"),
    [
        ("mypkg/__init__.py", "mypkg", "mypkg/"),
        ("my_pkg/__init__.py", "My.Pkg>=1", "my_pkg/"),
        ("mypkg.py", "mypkg==1.0", "mypkg.py"),
        ("src/mypkg/__init__.py", "mypkg", "src/mypkg/"),
        ("lib/mypkg.py", "mypkg", "lib/mypkg.py"),
        ("mypkg/notes.txt", "mypkg", None),
        ("handlers/mypkg.py", "mypkg", None),
        ("handlers/a.py", "a", None),
        ("a.py", "other", None),
        ("mypkg/__init__.py", "mypkg @ https://example.com/mypkg-1.0.zip", None),
        ("mypkg/__init__.py", f"mypkg==1.0 --hash=sha256:{'0' * 64}", None),
        ("mypkg/__init__.py", "--no-index\n--find-links wheels\nmypkg==1.0", None),
    ],
)
def test_a_requirement_with_the_name_of_an_own_module_is_a_warning(
    folder: Path, lies_at: str, requirement: str, told: str | None
) -> None:
    (folder / lies_at).parent.mkdir(parents=True, exist_ok=True)
    (folder / lies_at).touch()
    (folder / "requirements.txt").write_text(f"# ours\n{requirement}\n")
    warnings = prepared(folder).warnings
    if told is None:
        assert warnings == ()
        return
    name = "my-pkg" if "my_pkg" in lies_at else "mypkg"
    assert warnings == (
        Problem(
            reference="requirements-own-module",
            message=f"{name} is installed from the package index, where anybody may own that name, and {told} is yours",
            where="requirements.txt:2",
            hint="delete the line: modules of the project are imported as they are; if that of the index is meant, "
            f"rename {told}",
        ),
    )


def test_an_own_module_that_no_index_has_is_not_looked_for_elsewhere(folder: Path) -> None:
    (folder / "my_pkg.py").touch()
    (folder / "requirements.txt").write_text("my-pkg\n")
    message = "resolving packages failed:\nBecause {} was not found in the package registry"
    found = Problem(reference="packages-unknown", message=message.format("my-pkg"), hint="check the spelling")
    package = prepared(folder)
    assert package.told(found).hint.startswith("delete the line: modules of the project are imported as they are")
    other = msgspec.structs.replace(found, message=message.format("my-pkg-extras"))
    assert package.told(other) == other


def test_unpacked_models_are_gone_afterwards(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    prepared(folder)
    one_api(folder, "model: nope.onnx")
    refused(folder)
    assert list(scratch.iterdir()) == []


# ---- uploading ------------------------------------------------------------------------------------------------------


@pytest.fixture
def operator(fake: Any, fakes: Any) -> OperatorClient:
    return OperatorClient(port=fake.port, token=fakes.TOKEN)


def test_only_what_is_missing_is_uploaded(folder: Path, operator: OperatorClient, fake: Any) -> None:
    model, handler = folder / "model.onnx", folder / "handlers" / "a.py"
    fake.blobs |= {digest(file): file.read_bytes() for file in (handler, folder / "b.json")}
    told: list[tuple[int, int]] = []
    upload(operator, prepared(folder), lambda done, total: told.append((done, total)))
    size = model.stat().st_size
    assert [call for call in fake.calls if call.startswith("PUT")] == [f"PUT /v1/blobs/{digest(model)}"]
    assert told == [(0, size), (size, size)]


def test_nothing_missing_tells_no_progress(folder: Path, operator: OperatorClient, fake: Any) -> None:
    package = prepared(folder)
    fake.blobs = dict.fromkeys(package.sources, b"")
    told: list[tuple[int, int]] = []
    upload(operator, package, lambda done, total: told.append((done, total)))
    assert told == []


@pytest.fixture(params=["changed", "gone"])
def spoil(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    return (lambda file: file.write_text("changed")) if request.param == "changed" else Path.unlink  # type: ignore[return-value]


def test_a_file_that_is_not_the_same_any_more_is_named(
    folder: Path, operator: OperatorClient, spoil: Callable[[Path], None]
) -> None:
    package = prepared(folder)
    spoil(folder / "handlers" / "a.py")
    with pytest.raises(FileUnreadable, match=r"a\.py"):
        upload(operator, package)


def test_no_room_is_told_as_the_control_plane_says_it(folder: Path, operator: OperatorClient, fake: Any) -> None:
    package = prepared(folder)
    failure = Failure(error="store-unavailable", message="the disk is full")
    for name in package.sources:
        fake.failures[f"PUT /v1/blobs/{name}"] = (507, failure)
    with pytest.raises(OperatorFailed, match="the disk is full"):
        upload(operator, package)


@pytest.mark.parametrize("yaml", ["cortex.yaml", "tensorflow.yaml"])
def test_the_two_files_of_the_iris_example_ship_the_handlers_and_neither_models_nor_each_other(
    yaml: str, tmp_path: Path
) -> None:
    with prepare(IRIS / yaml, shown_file=yaml, home=tmp_path, now_wall_s=0.0) as package:
        assert [file.path for file in package.request.project] == [
            "handlers/pytorch_iris.py",
            "handlers/sklearn_iris.py",
            "handlers/tensorflow_iris.py",
            "handlers/xgboost_iris.py",
            "iris.py",
        ]
        assert all(api.model.files for api in package.request.apis)


@pytest.mark.parametrize(
    ("lies_at", "module", "hint"),
    [
        ("project/tests/mypkg.py", "tests.mypkg", "tests/mypkg.py is here, and not shipped: "),
        ("project/tests/mypkg.py", "tests", "tests is here, and not shipped: "),
        ("project/mypkg/util.py", "mypkg.utils", "mypkg is yours, and mypkg has no utils: did you mean mypkg.util?"),
        ("project/mypkg/util.py", "Mypkg.util", "mypkg is yours: import it as it is written, mypkg.util"),
        ("project/mypkg.py", "mypkg.part", "mypkg.py is yours, and no package with modules in it"),
        ("project/handlers/mypkg/util.py", "mypkg.utils", "mypkg is yours, and mypkg has no utils: did you mean"),
        ("project/src/mypkg/__init__.py", "mypkg.part", "src/mypkg is yours, and only the folder of cortex.yaml is"),
        ("project/handlers/mypkg.py", "mypkg", "handlers/mypkg.py is yours, and only the folder of cortex.yaml is"),
        ("mypkg/__init__.py", "mypkg", "ABOVE/mypkg is outside the project: move it into the folder of cortex.yaml"),
    ],
)
def test_a_module_of_ones_own_is_no_package_to_ask_for(
    folder: Path, tmp_path: Path, lies_at: str, module: str, hint: str
) -> None:
    (tmp_path / lies_at).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / lies_at).touch()
    found = Problem(
        reference="handler-missing-module",
        message=f"importing handlers/a.py failed: No module named '{module}'",
        path=("apis", 0, "request_handler"),
        hint="add mypkg to requirements.txt beside cortex.yaml",
    )
    told = prepared(folder).told(found)
    assert told.hint.replace(str(tmp_path), "ABOVE").startswith(hint)
    assert told.where == "cortex.yaml:6:3"
    elsewhere = msgspec.structs.replace(found, message="importing handlers/a.py failed: No module named 'torch'")
    assert prepared(folder).told(elsewhere).hint == found.hint


def test_a_file_that_is_left_out_by_default_is_told_how_to_take_it_in(folder: Path) -> None:
    (folder / "prompt.md").touch()
    message = "importing handlers/a.py failed: FileNotFoundError: [Errno 2] No such file or directory: 'prompt.md'"
    found = Problem(reference="handler-import-failed", message=message, path=("apis", 0, "request_handler"), hint="x")
    hint = prepared(folder).told(found).hint
    assert hint.startswith("prompt.md is here, and not shipped: ")
    assert hint.endswith("; `!/prompt.md` in .cortexignore ships it")
    assert hint.count("cortexignore") == 1
    (folder / "prompt.md").unlink()
    assert prepared(folder).told(found).hint == "x"


@pytest.mark.parametrize(
    ("given", "files", "hint"),
    [
        (None, ("m.onnx",), "`cortex init m.onnx` writes one for the model that lies there"),
        ("sub", ("m.onnx",), "`cortex init sub/m.onnx sub` writes one for the model that lies there"),
        ("sub", ("my m.onnx",), "`cortex init 'sub/my m.onnx' sub` writes one for the model that lies there"),
        (None, ("bert/12/saved_model.pb",), "`cortex init bert` writes one for the model that lies there"),
        (None, ("9/saved_model.pb", "10/saved_model.pb"), "`cortex init .` writes one for the model that lies there"),
        (None, ("a.onnx", "b.onnx"), "`cortex init MODEL` writes one for the model that lies there"),
        (None, (), "go to its folder, or name it: cortex deploy PATH; `cortex init MODEL` writes one for a model"),
    ],
)
def test_a_folder_with_a_model_and_without_cortex_yaml_points_to_init(
    tmp_path: Path, given: str | None, files: tuple[str, ...], hint: str
) -> None:
    folder = tmp_path / (given or "")
    folder.mkdir(exist_ok=True)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    with pytest.raises(NoCortexYaml) as caught:
        locate(given, tmp_path)
    assert caught.value.hint == hint
