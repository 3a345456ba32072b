"""SavedModels from the folder they were exported to, to the answer."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from contract_harness import Answer, Connection, Home, eventually, running_home, write_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "iris"
FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
FLOWERS = {
    "iris-setosa": (5.2, 3.6, 1.4, 0.3),
    "iris-versicolor": (5.9, 2.8, 4.2, 1.3),
    "iris-virginica": (6.9, 3.1, 5.6, 2.3),
}
TWINS = {"onnx": "iris.onnx", "tensorflow": "saved_model"}
"""Apis of the same weights, and their models."""
Export = Callable[..., Path]


@pytest.fixture(scope="module")
def home(tensorflow: Any) -> Iterator[Home]:
    with running_home() as home:
        yield home


@pytest.fixture
def export(tensorflow: Any, tmp_path: Path) -> Export:
    """Export x: float32[?, 2] → y = x · weight, under any number of keys."""

    def export(path: Path, *keys: str, weight: float = 1.0) -> Path:
        module = tensorflow.Module()
        module.weight = tensorflow.Variable(weight)
        spec = tensorflow.TensorSpec([None, 2], "float32", "x")
        module.scale = tensorflow.function(lambda x: {"y": x * module.weight}, input_signature=[spec])
        tensorflow.saved_model.save(module, str(path), signatures=dict.fromkeys(keys, module.scale))
        return path

    return export


def ask(home: Home, path: str, sample: Any) -> Answer:
    with Connection(home.port) as connection:
        return connection.ask("POST", path, json.dumps(sample).encode(), {"content-type": "application/json"})


def answered(home: Home, path: str, sample: Any) -> Any:
    answer = ask(home, path, sample)
    assert answer.status == 200, answer.body
    return answer.json


def flower(label: str) -> dict[str, float]:
    return dict(zip(FEATURES, FLOWERS[label], strict=True))


def cortex_yaml(deployment: str, *apis: str) -> str:
    """`apis`: `name: a, model: m` and so on. They ask for so little that those of all tests have room side by side."""
    lines = [f"- {{kind: api, {api}, compute: {{cpu: 10m}}}}" for api in apis]
    return "\n".join([f"- {{kind: deployment, name: {deployment}}}", *lines])


def problems(home: Home, project: Path) -> dict[str, dict[str, str]]:
    """What a deploy that must fail is refused for, by api."""
    found = json.loads(home.deploy(project, "-o", "json", code=1).out)["problems"]
    return {re.findall(r'api "([^"]+)"', problem["subject"])[0]: problem for problem in found}


# ---- the example ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(home: Home) -> Home:
    home.deploy(EXAMPLE / "tensorflow.yaml")
    return home


@pytest.mark.parametrize("label", FLOWERS)
def test_the_example_knows_its_flowers(example: Home, label: str) -> None:
    answer = answered(example, "/iris-tensorflow/classifier", flower(label))
    assert answer["label"] == label
    assert 0.5 < answer["probability"] <= 1


def test_one_row_comes_without_its_batch_and_two_rows_with_it(example: Home) -> None:
    one = answered(example, "/iris-tensorflow/raw", flower("iris-setosa"))
    assert one["label"] == ["iris-setosa"]
    assert [type(value) for value in one["probabilities"]] == [float] * 3
    columns = zip(*FLOWERS.values(), strict=True)
    several = answered(example, "/iris-tensorflow/raw", dict(zip(FEATURES, columns, strict=True)))
    assert several["label"] == list(FLOWERS)
    assert [len(row) for row in several["probabilities"]] == [3, 3, 3]
    assert several["probabilities"][0] == pytest.approx(one["probabilities"], abs=1e-6)


def test_the_handler_of_the_example_names_what_is_missing(example: Home) -> None:
    answer = ask(example, "/iris-tensorflow/classifier", {"sepal_length": 1})
    assert (answer.status, answer.json["missing"]) == (400, ["petal_length", "petal_width", "sepal_width"])


def test_a_wrong_value_is_told_from_the_signature(example: Home) -> None:
    answer = ask(example, "/iris-tensorflow/raw", {**flower("iris-setosa"), "petal_width": "wide"})
    assert (answer.status, answer.json["input"], answer.json["expected"]) == (
        422,
        "petal_width",
        {"dtype": "float32", "shape": [None]},
    )


def test_get_shows_signature_and_sample(example: Home) -> None:
    with Connection(example.port) as connection:
        shown = connection.ask("GET", "/iris-tensorflow/raw").json
    assert {spec["name"]: spec["shape"] for spec in shown["outputs"]} == {"label": [None], "probabilities": [None, 3]}
    assert shown["sample"] == flower("iris-setosa")


def test_predictions_are_counted(example: Home) -> None:
    before = counted(example)
    answered(example, "/iris-tensorflow/raw", flower("iris-virginica"))
    eventually(lambda: counted(example) > before, "the tracker shows more")


def counted(home: Home) -> int:
    shown = home.cortex("get", "iris-tensorflow/raw", "-o", "json").json
    return int((shown["tracker"] or {"classes": {}})["classes"].get("iris-virginica", 0))


def test_a_killed_replica_is_replaced_by_one_that_answers_the_same(example: Home) -> None:
    before = answered(example, "/iris-tensorflow/raw", flower("iris-setosa"))
    (pid,) = example.settled_replicas("iris-tensorflow/raw")
    os.kill(pid, signal.SIGKILL)
    sample = json.dumps(flower("iris-setosa")).encode()
    assert example.once_ready("/iris-tensorflow/raw", sample, deadline_s=200.0).json == before
    assert example.settled_replicas("iris-tensorflow/raw") != [pid]


def test_the_same_weights_answer_alike_as_onnx_and_as_saved_model(home: Home, tmp_path: Path) -> None:
    converted = tmp_path / "iris.onnx"
    script = EXAMPLE / "training" / "tensorflow_to_onnx.py"
    subprocess.run([sys.executable, script, converted], check=True, capture_output=True, timeout=250)
    handler = """
        import numpy

        def post_inference(prediction, metadata):
            probabilities = numpy.ravel(prediction["probabilities"])
            return {"label": prediction["label"][0], "probabilities": probabilities}
    """
    apis = (f"name: {name}, model: {model}, request_handler: handler.py" for name, model in TWINS.items())
    project = write_project(tmp_path, {"cortex.yaml": cortex_yaml("twins", *apis), "handler.py": handler})
    shutil.copytree(EXAMPLE / "models" / "tensorflow", project / "saved_model")
    home.deploy(project)
    for label in FLOWERS:
        onnx, saved = (answered(home, f"/twins/{name}", flower(label)) for name in TWINS)
        assert onnx["label"] == saved["label"] == label
        assert onnx["probabilities"] == pytest.approx(saved["probabilities"], rel=1e-4, abs=1e-7)


# ---- where models lie -----------------------------------------------------------------------------------------------


def test_folders_of_versions_and_zips_are_taken_and_said(home: Home, export: Export, tmp_path: Path) -> None:
    for version, weight in ((9, 9.0), (10, 10.0)):
        export(tmp_path / "models" / str(version), "f", weight=weight)
    packed = export(tmp_path / "packed", "f", weight=3.0)
    for name, folder in (("model.zip", packed), ("versions.zip", tmp_path / "models")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file in folder.rglob("*"):
                archive.write(file, file.relative_to(folder))
    apis = ("name: folder, model: models", "name: zip, model: model.zip", "name: versions, model: versions.zip")
    yaml = cortex_yaml("places", *apis)
    ran = home.deploy(write_project(tmp_path, {"cortex.yaml": yaml}))
    assert "10, the highest version of 2 in the folder models (folder)" in ran.out + ran.err
    assert answered(home, "/places/folder", [1, 2]) == answered(home, "/places/versions", [1, 2]) == {"y": [10.0, 20.0]}
    assert answered(home, "/places/zip", [[1, 2], [3, 4]]) == {"y": [[3.0, 6.0], [9.0, 12.0]]}


# ---- signatures -----------------------------------------------------------------------------------------------------


def test_of_several_signatures_one_is_chosen_and_said_and_another_can_be(
    home: Home, export: Export, tmp_path: Path
) -> None:
    export(tmp_path / "model", "serving_default", "other", weight=2.0)
    yaml = cortex_yaml("keys", "name: a, model: model", "name: b, model: model, tf_signature_key: other")
    ran = home.deploy(write_project(tmp_path, {"cortex.yaml": yaml}))
    said = 'serves its signature serving_default; for another (other) add e.g. "tf_signature_key: other" (a)'
    assert said in ran.out + ran.err
    assert answered(home, "/keys/a", [1, 2]) == answered(home, "/keys/b", [1, 2]) == {"y": [2.0, 4.0]}
    versions = {home.cortex("get", f"keys/{name}", "-o", "json").json["version"] for name in "ab"}
    assert len(versions) == 2
    assert "nothing changed" in home.deploy(tmp_path).out


def test_a_handler_sees_every_signature(home: Home, export: Export, tmp_path: Path) -> None:
    export(tmp_path / "model", "serving_default", "other")
    handler = """
        def post_inference(prediction, metadata):
            return {key: [str(spec) for spec in each.inputs.values()] for key, each in metadata.items()}
    """
    yaml = cortex_yaml("seen", "name: a, model: model, request_handler: handler.py")
    home.deploy(write_project(tmp_path, {"cortex.yaml": yaml, "handler.py": handler}))
    assert answered(home, "/seen/a", [1, 2]) == {"other": ["float32[?, 2]"], "serving_default": ["float32[?, 2]"]}


def export_estimator(tf: Any, path: Path, vocabulary: Path) -> None:
    """
    Export as estimators of TensorFlow 1 did: three signatures, two of them over serialised examples, a table filled
    from a file, and a variable of the old kind. score = 3 · age, and the class is looked up in the vocabulary.
    """
    tf1 = tf.compat.v1
    builder = tf1.saved_model.Builder(str(path))
    with tf1.Graph().as_default(), tf1.Session() as session:
        serialised = tf1.placeholder(tf.string, [None], name="input_example_tensor")
        age = tf1.parse_example(serialised, {"age": tf1.FixedLenFeature([1], tf.float32)})["age"]  # (rows, 1)
        weight = tf1.get_variable("w", [1, 1], initializer=tf1.constant_initializer(3.0), use_resource=False)
        score = age @ weight
        words = tf1.lookup.TextFileInitializer(str(vocabulary), tf.int64, -1, tf.string, -2)
        table = tf1.lookup.StaticHashTable(words, default_value="unknown")
        label = table.lookup(tf.cast(score > 10, tf.int64))
        info, define = tf1.saved_model.build_tensor_info, tf1.saved_model.build_signature_def
        examples, scores, labels = info(serialised), info(score), info(label)
        session.run(tf1.global_variables_initializer())
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {
                "classify": define({"inputs": examples}, {"classes": labels, "scores": scores}, "classify"),
                "regress": define({"inputs": examples}, {"outputs": scores}, "regress"),
                "predict": define({"age": info(age)}, {"score": scores, "label": labels}, "predict"),
            },
            main_op=tf1.tables_initializer(),
            assets_collection=tf1.get_collection(tf1.GraphKeys.ASSET_FILEPATHS),
        )
    builder.save()


def test_an_estimator_of_tensorflow_1_answers_by_each_of_its_signatures(
    home: Home, tensorflow: Any, tmp_path: Path
) -> None:
    vocabulary = tmp_path / "labels.txt"
    vocabulary.write_text("young\nold\n")
    export_estimator(tensorflow, tmp_path / "export" / "1568244606", vocabulary)
    vocabulary.unlink()
    keys = ("predict", "classify", "regress")
    apis = (f"name: {key}, model: export, tf_signature_key: {key}" for key in keys)
    home.deploy(write_project(tmp_path, {"cortex.yaml": cortex_yaml("estimator", *apis)}))

    def example(age: float) -> dict[str, str]:
        feature = tensorflow.train.Feature(float_list=tensorflow.train.FloatList(value=[age]))
        features = tensorflow.train.Features(feature={"age": feature})
        made = tensorflow.train.Example(features=features).SerializeToString()
        return {"b64": base64.b64encode(made).decode()}

    assert answered(home, "/estimator/predict", {"age": 5}) == {"label": ["old"], "score": [15.0]}
    assert answered(home, "/estimator/classify", example(2)) == {"classes": ["young"], "scores": [6.0]}
    assert answered(home, "/estimator/regress", {"inputs": [example(2), example(5)]}) == {"outputs": [[6.0], [15.0]]}
    assert answered(home, "/estimator/regress", [{"age": 2}, {"age": 5}]) == {"outputs": [[6.0], [15.0]]}
    answer = ask(home, "/estimator/regress", {"b64": "AAEC"})
    assert (answer.status, "Could not parse example" in answer.json["message"]) == (422, True), answer.body
    answer = ask(home, "/estimator/regress", {"b64": "not base64"})
    assert (answer.status, answer.json["input"]) == (422, "inputs")


def test_what_cannot_be_served_is_refused_at_deploy_and_changes_nothing(
    home: Home, export: Export, tmp_path: Path
) -> None:
    export(tmp_path / "none")
    export(tmp_path / "several", "a", "b")
    export(tmp_path / "incomplete", "f")
    (tmp_path / "incomplete" / "variables" / "variables.index").unlink()
    cut = export(tmp_path / "cut", "f") / "saved_model.pb"
    cut.write_bytes(cut.read_bytes()[:-10])
    custom = export(tmp_path / "custom", "f") / "saved_model.pb"
    custom.write_bytes(custom.read_bytes().replace(b"\x03Mul", b"\x03Zzz"))
    apis = [f"name: {name}, model: {name}" for name in ("none", "several", "incomplete", "cut", "custom")]
    apis.append("name: unknown, model: several, tf_signature_key: aa")
    project = write_project(tmp_path, {"cortex.yaml": cortex_yaml("refused", *apis)})
    found = problems(home, project)
    assert {name: (problem["reference"], problem["message"].splitlines()[0]) for name, problem in found.items()} == {
        "none": ("no-signature", "the SavedModel has no signature to serve"),
        "several": ("ambiguous-signature", "the model has 2 signatures, and nothing says which one to serve"),
        "unknown": ("unknown-signature", "the model has no signature aa; it has"),
        "incomplete": (
            "saved-model-incomplete",
            "the SavedModel needs variables/variables.index, which is not there",
        ),
        "cut": ("model-unreadable", "saved_model.pb cannot be read: it is cut off, or no SavedModel"),
        "custom": ("unsupported-operator", found["custom"]["message"]),
    }
    assert "the model uses the operation Zzz" in found["custom"]["message"]
    assert all(problem["hint"] for problem in found.values())
    assert "tf_signature_key: a" in found["several"]["hint"]
    assert [api["name"] for api in home.cortex("get", "-o", "json").json if api["deployment"] == "refused"] == []


def test_without_tensorflow_a_deploy_says_what_to_install(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "tensorflow.py").write_text("raise ModuleNotFoundError('hidden', name='tensorflow')")
    with running_home(PYTHONPATH=str(hidden)) as home:
        ran = home.deploy(EXAMPLE / "tensorflow.yaml", code=1)
    assert "tensorflow is not available" in ran.err
    assert 'hint: pip install "cortex-serving[tensorflow]"' in ran.err
