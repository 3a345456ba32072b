"""`cortex init`, then `cortex deploy`, without an edit in between: models of many kinds, in one environment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from contract_harness import Answer, Connection, Home, model_of, running_home
from onnx import TensorProto, helper

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


def tensor(name: str, kind: int, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def ml_model(*parts: Any, **options: Any) -> onnx.ModelProto:
    """A model with operators of classical machine learning."""
    model = model_of(*parts, domain="ai.onnx.ml", **options)
    model.opset_import[1].version = 3
    return model


# ---- the models -------------------------------------------------------------------------------------------------


def classifier() -> onnx.ModelProto:
    """As skl2onnx makes them unless told otherwise: probabilities come as one map a row."""
    zipped = helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, None))
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["features"],
            ["label", "scores"],
            domain="ai.onnx.ml",
            classlabels_ints=[0, 1, 2],
            coefficients=[0.1 * number for number in range(12)],
            intercepts=[0.1, 0.2, 0.3],
            post_transform="SOFTMAX",
        ),
        helper.make_node("ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]
    maps = helper.make_value_info("probabilities", helper.make_sequence_type_proto(zipped))
    return ml_model(nodes, [tensor("features", FLOAT, ["N", 4])], [tensor("label", INT64, ["N"]), maps])


def words() -> onnx.ModelProto:
    node = helper.make_node(
        "LabelEncoder",
        ["text"],
        ["number"],
        domain="ai.onnx.ml",
        keys_strings=["a", "b"],
        values_int64s=[1, 2],
        default_int64=-1,
    )
    return ml_model([node], [tensor("text", STRING, ["N", 1])], [tensor("number", INT64, ["N", 1])])


def pair() -> onnx.ModelProto:
    return model_of(
        [helper.make_node("Add", ["left", "right"], ["sum"])],
        [tensor("left", FLOAT, ["N", 3]), tensor("right", FLOAT, ["N", 3])],
        [tensor("sum", FLOAT, ["N", 3])],
    )


def columns() -> onnx.ModelProto:
    """A pipeline over a table: one input a column, of different types."""
    nodes = [
        helper.make_node("Scaler", ["age"], ["scaled"], domain="ai.onnx.ml", offset=[40.0], scale=[0.1]),
        helper.make_node(
            "LabelEncoder",
            ["city"],
            ["code"],
            domain="ai.onnx.ml",
            keys_strings=["a"],
            values_floats=[1.0],
            default_float=0.0,
        ),
        helper.make_node("Concat", ["scaled", "code"], ["features"], axis=1),
    ]
    return ml_model(
        nodes, [tensor("age", FLOAT, ["N", 1]), tensor("city", STRING, ["N", 1])], [tensor("features", FLOAT, ["N", 2])]
    )


def scalar() -> onnx.ModelProto:
    return model_of(
        [helper.make_node("Range", ["zero", "count", "one"], ["numbers"])],
        [tensor("count", INT64, [])],
        [tensor("numbers", INT64, ["count"])],
        constants={"zero": np.array(0, np.int64), "one": np.array(1, np.int64)},
    )


def optional() -> onnx.ModelProto:
    """`x`, plus `offset` if there is one."""
    row = helper.make_tensor_type_proto(FLOAT, [2])
    offset = helper.make_value_info("offset", helper.make_optional_type_proto(row))
    then = helper.make_graph(
        [helper.make_node("OptionalGetElement", ["offset"], ["given"]), helper.make_node("Add", ["x", "given"], ["a"])],
        "then",
        [],
        [tensor("a", FLOAT, ["N", 2])],
    )
    otherwise = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"])], "else", [], [tensor("b", FLOAT, ["N", 2])]
    )
    return model_of(
        [
            helper.make_node("OptionalHasElement", ["offset"], ["is_given"]),
            helper.make_node("If", ["is_given"], ["y"], then_branch=then, else_branch=otherwise),
        ],
        [tensor("x", FLOAT, ["N", 2]), offset],
        [tensor("y", FLOAT, ["N", 2])],
        opset=18,
    )


def parts() -> onnx.ModelProto:
    row = helper.make_tensor_type_proto(FLOAT, None)
    output = helper.make_value_info("rows", helper.make_sequence_type_proto(row))
    node = helper.make_node("SplitToSequence", ["x"], ["rows"], axis=0)
    return model_of([node], [tensor("x", FLOAT, ["N", 2])], [output])


def half() -> onnx.ModelProto:
    node = helper.make_node("Add", ["x", "x"], ["twice"])
    ends = [tensor(name, TensorProto.FLOAT16, ["N", 3]) for name in ("x", "twice")]
    return model_of([node], ends[:1], ends[1:])


def picture() -> onnx.ModelProto:
    """A detector's habit: what was made smaller has to fit what was not, so sides are multiples of 32."""
    sides: list[int | str] = ["N", 3, "height", "width"]
    nodes = [
        helper.make_node("MaxPool", ["image"], ["small"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("Resize", ["small", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Concat", ["image", "large"], ["both"], axis=1),
        helper.make_node("Conv", ["both", "weights"], ["map"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["map"], ["score"]),
    ]
    return model_of(
        nodes,
        [tensor("image", FLOAT, sides)],
        [tensor("score", FLOAT, ["N", 1, 1, 1])],
        constants={"scales": np.array([1, 1, 32, 32], np.float32), "weights": np.ones((1, 6, 3, 3), np.float32)},
    )


def tokens() -> onnx.ModelProto:
    """A vocabulary of two words: any other number is out of bounds."""
    node = helper.make_node("Gather", ["vectors", "ids"], ["embedding"])
    return model_of(
        [node],
        [tensor("ids", INT64, ["N", "length"])],
        [tensor("embedding", FLOAT, ["N", "length", 2])],
        constants={"vectors": np.ones((2, 2), np.float32)},
    )


def past() -> onnx.ModelProto:
    """As exporters of language models name sizes: one follows from another by a formula."""
    nodes = [
        helper.make_node("Concat", ["past", "now"], ["all"], axis=1),
        helper.make_node("Mul", ["all", "mask"], ["present"]),
    ]
    return model_of(
        nodes,
        [
            tensor("past", FLOAT, ["N", "past_length"]),
            tensor("now", FLOAT, ["N", "length"]),
            tensor("mask", FLOAT, ["N", "past_length + length"]),
        ],
        [tensor("present", FLOAT, ["N", "past_length + length"])],
    )


def table() -> onnx.ModelProto:
    """A map goes in, as in pipelines that begin with a DictVectorizer."""
    kind = helper.make_map_type_proto(STRING, helper.make_tensor_type_proto(FLOAT, None))
    node = helper.make_node(
        "DictVectorizer", ["features"], ["vector"], domain="ai.onnx.ml", string_vocabulary=["a", "b"]
    )
    return ml_model([node], [helper.make_value_info("features", kind)], [tensor("vector", FLOAT, [1, 2])])


def flags() -> onnx.ModelProto:
    return model_of(
        [helper.make_node("Not", ["flags"], ["others"])],
        [tensor("flags", TensorProto.BOOL, [2, 2])],
        [tensor("others", TensorProto.BOOL, [2, 2])],
    )


KINDS: dict[str, tuple[Callable[[], onnx.ModelProto], Any]] = {
    "classifier with maps": (classifier, {"label": [2], "probabilities": [{"0": ..., "1": ..., "2": ...}]}),
    "text": (words, [[1]]),
    "several inputs": (pair, [[..., ..., ...]]),
    "named columns": (columns, [[..., 1.0]]),
    "a single number": (scalar, [0]),
    "an input that may be left out": (optional, [[..., ...]]),
    "a list of arrays": (parts, [[[..., ...]]]),
    "half precision": (half, [[..., ..., ...]]),
    "pictures of certain sizes": (picture, [[[[...]]]]),
    "tokens": (tokens, [[[1.0, 1.0]]]),
    "sizes by formula": (past, [[..., ...]]),
    "a map": (table, [[..., 0.0]]),
    "truth values": (flags, [[False, False], [False, False]]),
}
"""A model, and the shape of what it answers to the sample; `...` is any number."""


@pytest.mark.parametrize("kind", KINDS)
def test_init_and_deploy_answer_without_an_edit(home: Home, tmp_path: Path, kind: str) -> None:
    build, expected = KINDS[kind]
    project = tmp_path / "project"
    project.mkdir()
    (project / "My_Model.onnx").write_bytes(build().SerializeToString())

    made = home.cortex("init", "My_Model.onnx", cwd=project)
    assert sorted(path.name for path in project.iterdir()) == [
        "My_Model.onnx",
        "cortex.yaml",
        "handler.py",
        "sample.json",
    ]
    assert "sample: sample.json #" in (project / "cortex.yaml").read_text()
    assert "  cortex predict my-model sample.json\n" in made.err
    home.cortex("deploy", cwd=project)

    answer = ask(home, "/project/my-model", project / "sample.json")
    assert (answer.status, matches(answer.json, expected)) == (200, True), answer.body
    home.operator().remove("project")


@pytest.mark.parametrize(
    "model",
    [
        "iris/models/sklearn.onnx",
        "iris/models/xgboost.onnx",
        "iris/models/pytorch.onnx",
        "speech/models/silero_vad_16k_sequence.onnx",
        "image/models/shapes.onnx",
        pytest.param(
            "iris/models/tensorflow",
            marks=pytest.mark.skipif(find_spec("tensorflow") is None, reason="needs the extra `tensorflow`"),
        ),
    ],
)
def test_the_examples_models_answer_without_an_edit(home: Home, tmp_path: Path, model: str) -> None:
    source = EXAMPLES / model
    project = tmp_path / "example"
    home.cortex("init", source, "example", cwd=tmp_path)
    home.cortex("deploy", "example", cwd=tmp_path)
    name = source.stem.replace("_", "-")
    assert ask(home, f"/example/{name}", project / "sample.json").status == 200
    home.operator().remove("example")


def test_a_model_in_a_folder_elsewhere_keeps_its_weights_beside_it(home: Home, tmp_path: Path) -> None:
    exported = tmp_path / "exports" / "large"
    exported.mkdir(parents=True)
    weights = np.arange(1000, dtype=np.float32).reshape(4, 250)
    model = model_of(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        [tensor("x", FLOAT, ["N", 4])],
        [tensor("y", FLOAT, ["N", 250])],
        constants={"weights": weights},
    )
    onnx.save_model(
        model, exported / "net.onnx", save_as_external_data=True, location="net.onnx.data", size_threshold=100
    )
    assert (exported / "net.onnx.data").stat().st_size == weights.nbytes

    made = home.cortex("init", "exports/large", "served", cwd=tmp_path)
    assert "  model: ../exports/large/net.onnx\n" in (tmp_path / "served" / "cortex.yaml").read_text()
    home.cortex("deploy", "served", cwd=tmp_path)
    assert made.err.endswith("\nnext:\n  cortex deploy served\n  cortex predict served/net served/sample.json\n")
    printed = home.cortex("predict", "served/net", "served/sample.json", cwd=tmp_path).out
    answer = ask(home, "/served/net", tmp_path / "served" / "sample.json")
    assert json.loads(printed) == answer.json
    assert (answer.status, np.shape(answer.json)) == (200, (1, 250))
    home.operator().remove("served")


def test_links_into_a_cache_of_downloads_are_followed(home: Home, tmp_path: Path) -> None:
    """As huggingface_hub lays models out: names are links to files that are named by their digests."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    model = pair()
    big = helper.make_tensor("unused", FLOAT, [100], np.ones(100, np.float32).tobytes(), raw=True)
    onnx.external_data_helper.set_external_data(big, "model.onnx_data", offset=0, length=400)
    (tmp_path / "blobs" / "22").write_bytes(big.raw_data)
    big.ClearField("raw_data")
    big.data_location = TensorProto.EXTERNAL
    model.graph.initializer.append(big)
    (tmp_path / "blobs" / "11").write_bytes(model.SerializeToString())
    (tmp_path / "snapshot" / "model.onnx").symlink_to("../blobs/11")
    (tmp_path / "snapshot" / "model.onnx_data").symlink_to("../blobs/22")
    home.cortex("init", "snapshot/model.onnx", "linked", cwd=tmp_path)
    home.cortex("deploy", "linked", cwd=tmp_path)
    assert ask(home, "/linked/model", tmp_path / "linked" / "sample.json").status == 200
    home.operator().remove("linked")


def test_a_folder_full_of_other_models_is_no_obstacle(home: Home, tmp_path: Path) -> None:
    project = tmp_path / "downloads"
    project.mkdir()
    (project / "model.onnx").write_bytes(words().SerializeToString())
    with (project / "other.onnx").open("wb") as large:
        large.truncate(300 * 2**20)
    assert "wrote .cortexignore" in home.cortex("init", "model.onnx", cwd=project).out
    home.cortex("deploy", cwd=project)
    assert ask(home, "/downloads/model", project / "sample.json").json == [[1]]
    home.operator().remove("downloads")


def test_a_zip_is_unpacked_to_be_looked_at(home: Home, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "inner.onnx").write_bytes(words().SerializeToString())
    shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "packed")
    home.cortex("init", "export.zip", "zipped", cwd=tmp_path)
    assert "  model: ../export.zip\n" in (tmp_path / "zipped" / "cortex.yaml").read_text()
    home.cortex("deploy", "zipped", cwd=tmp_path)
    assert ask(home, "/zipped/export", tmp_path / "zipped" / "sample.json").json == [[1]]
    home.operator().remove("zipped")


def test_a_sample_that_no_model_was_seen_to_take_gates_nothing(home: Home, tmp_path: Path) -> None:
    choosy = model_of(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [tensor("x", FLOAT, ["N", "M"])],
        [tensor("y", FLOAT, [5, 7])],
        constants={"shape": np.array([5, 7], np.int64)},
    )
    project = tmp_path / "choosy"
    project.mkdir()
    (project / "model.onnx").write_bytes(choosy.SerializeToString())
    made = home.cortex("init", "model.onnx", cwd=project)
    assert "note: the model took none of the inputs that were made up for it" in made.err
    assert "{1,1}, requested shape:{5,7}" in made.err, "onnxruntime says which shape it wants"
    assert "cortex predict" not in made.err
    assert "  # sample: sample.json\n" in (project / "cortex.yaml").read_text()
    assert np.shape(json.loads((project / "sample.json").read_text())) == (1, 1)

    deployed = home.cortex("deploy", cwd=project)
    assert deployed.out.endswith("/choosy/model\n"), "the sample is not offered"
    assert "requested shape:{5,7}" in deployed.err
    shown = home.cortex("get", "choosy/model", "-v")
    assert "sample.json" not in shown.out
    assert "requested shape:{5,7}" in shown.out
    with Connection(home.port) as connection:
        described = connection.ask("GET", "/choosy/model").json
    assert "call" not in described
    assert "requested shape:{5,7}" in described["note"]
    assert ask(home, "/choosy/model", project / "sample.json").status == 422
    (project / "sample.json").write_text(json.dumps(np.ones((5, 7)).tolist()))
    assert ask(home, "/choosy/model", project / "sample.json").status == 200
    home.operator().remove("choosy")


def ask(home: Home, path: str, sample: Path) -> Answer:
    with Connection(home.port) as connection:
        return connection.ask("POST", path, sample.read_bytes(), {"content-type": "application/json"})


def matches(found: Any, expected: Any) -> bool:
    """Whether a JSON value is as expected; `...` stands for any number."""
    if expected is ...:
        return isinstance(found, int | float)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(matches(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(matches, found, expected))
    return bool(found == expected)
