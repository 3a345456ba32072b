"""
Handlers as they were written for Cortex 0.8, unchanged, with models of the same signatures: they answer right.

The examples are those that Cortex 0.8 came with, written anew in the same manner.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract_harness import Answer, Connection, Home, model_of, running_home, write_project
from onnx import ModelProto, TensorProto, helper
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

LABELS = ["iris-setosa", "iris-versicolor", "iris-virginica"]
FEATURES = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
FLOWERS = {
    "iris-setosa": (5.2, 3.6, 1.4, 0.3),
    "iris-versicolor": (5.9, 2.8, 4.2, 1.3),
    "iris-virginica": (6.9, 3.1, 5.6, 2.3),
}
WEIGHTS = np.array([[1, 0, -1.5], [1, 0, -1], [-2, 0, 1.5], [-2, 0, 1.5]], np.float32)
BIAS = np.array([0.5, 1.0, 4.0], np.float32)
"""Which flower it is, well enough for these three: the greatest of x · WEIGHTS + BIAS."""
WORDS = ["the", "movie", "was", "great", "bad", "!"]

PRE_IN_ORDER = """
import numpy as np

labels = ["iris-setosa", "iris-versicolor", "iris-virginica"]


def pre_inference(sample, metadata):
    return {
        metadata[0].name: [
            sample["sepal_length"],
            sample["sepal_width"],
            sample["petal_length"],
            sample["petal_width"],
        ]
    }
"""

HANDLERS = {
    "iris/handlers/tensorflow.py": """
labels = ["iris-setosa", "iris-versicolor", "iris-virginica"]


def post_inference(prediction, metadata):
    label_index = int(prediction["class_ids"][0])
    return labels[label_index]
""",
    "iris/handlers/pytorch.py": PRE_IN_ORDER
    + """

def post_inference(prediction, metadata):
    predicted_class_id = int(np.argmax(prediction[0].squeeze()))
    return labels[predicted_class_id]
""",
    "iris/handlers/keras.py": PRE_IN_ORDER
    + """

def post_inference(prediction, metadata):
    return labels[int(np.argmax(prediction[0][0]))]
""",
    "iris/handlers/xgboost.py": PRE_IN_ORDER
    + """

def post_inference(prediction, metadata):
    predicted_class_id = prediction[0][0]
    return labels[predicted_class_id]
""",
    "iris/handlers/sklearn.py": """
import json
import numpy as np

labels = ["iris-setosa", "iris-versicolor", "iris-virginica"]
scaling = json.load(open("scaling.json"))


def pre_inference(sample, metadata):
    x = np.array([sample[name] for name in ["sepal_length", "sepal_width", "petal_length", "petal_width"]])
    return (x - np.array(scaling["mean"])) / np.array(scaling["stddev"])


def post_inference(prediction, metadata):
    predicted_class_id = prediction[0][0]
    return labels[predicted_class_id]
""",
    "image/inception.py": """
import base64
import io
import numpy as np
from PIL import Image

labels = ["class %d" % number for number in range(1001)]


def pre_inference(sample, metadata):
    assert metadata["predict"]["inputs"]["images"]["tensorShape"]["dim"][3]["size"] == "3"
    image = Image.open(io.BytesIO(base64.b64decode(sample["base64"])))
    decoded = np.asarray(image, dtype=np.float32) / 255
    return {"images": np.expand_dims(decoded, axis=0)}


def post_inference(prediction, metadata):
    return labels[np.argmax(prediction["classes"])]
""",
    "image/alexnet.py": """
import base64
import io
import numpy as np
from PIL import Image

labels = ["class %d" % number for number in range(1000)]


def pre_inference(sample, metadata):
    image = Image.open(io.BytesIO(base64.b64decode(sample["base64"]))).resize((224, 224))
    array = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255
    return array[np.newaxis]


def post_inference(prediction, metadata):
    return labels[np.argmax(np.array(prediction).squeeze())]
""",
    "sentiment/sentiment.py": """
labels = ["negative", "positive"]
words = ["the", "movie", "was", "great", "bad", "!"]


def pre_inference(sample, metadata):
    ids = [1 + words.index(word) for word in sample["review"].lower().replace("!", " !").split()]
    return {"input_ids": [(ids + [0] * 128)[:128]]}


def post_inference(prediction, metadata):
    return labels[prediction["labels"][0]]
""",
    "text/generator.py": """
from encoder import encode, decode


def pre_inference(sample, metadata):
    context = encode(sample["text"])
    return {"context": [context]}


def post_inference(prediction, metadata):
    response = prediction["sample"]
    return {decode(response)}
""",
    "text/encoder.py": """
def encode(text):
    return [ord(character) for character in text]


def decode(tokens):
    return "".join(chr(token) for token in tokens)
""",
}

IRIS_YAML = """
- kind: deployment
  name: iris

- kind: api
  name: tensorflow
  model: tensorflow
  request_handler: handlers/tensorflow.py
  tracker:
    model_type: classification
""" + "".join(
    f"""
- kind: api
  name: {name}
  model: {name}.onnx
  request_handler: handlers/{name}.py
  tracker:
    model_type: classification
"""
    for name in ("pytorch", "keras", "xgboost", "sklearn")
)
OTHERS_YAML = """
- kind: deployment
  name: {0}

- kind: api
  name: {1}
  model: {2}
  request_handler: {3}
"""


# ---- models ---------------------------------------------------------------------------------------------------------


def tensor(name: str, kind: int, shape: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def species_model(rows: int | str, first: str = "input") -> ModelProto:
    """[rows, 4] → scores [rows, 3], as PyTorch (one row) and Keras (any) exported it."""
    return model_of(
        [helper.make_node("Gemm", [first, "w", "b"], ["species"])],
        [tensor(first, TensorProto.FLOAT, [rows, 4])],
        [tensor("species", TensorProto.FLOAT, [rows, 3])],
        constants={"w": WEIGHTS, "b": BIAS},
    )


def label_model(mean: Any = 0.0, stddev: Any = 1.0, *, as_maps: bool) -> ModelProto:
    """[1, 4], normalised → label int64 [1], and probabilities: a tensor of XGBoost's, maps of scikit-learn's."""
    nodes = [
        helper.make_node("Mul", ["input", "stddev"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mean"], ["x"]),
        helper.make_node("Gemm", ["x", "w", "b"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["raw"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    constants = {"w": WEIGHTS, "b": BIAS, "mean": np.array(mean, np.float32), "stddev": np.array(stddev, np.float32)}
    label = tensor("label", TensorProto.INT64, [1])
    features = [tensor("input", TensorProto.FLOAT, [1, 4])]
    if not as_maps:
        outputs = [label, tensor("raw", TensorProto.FLOAT, [1, 3])]
        return model_of(nodes, features, outputs, constants=constants)
    of_map = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    nodes.append(helper.make_node("ZipMap", ["raw"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]))
    outputs = [label, helper.make_value_info("maps", helper.make_sequence_type_proto(of_map))]
    return model_of(nodes, features, outputs, constants=constants, domain="ai.onnx.ml")


def alexnet_like() -> ModelProto:
    """[1, 3, 224, 224] → [1, 1000]: the class is the mean of the picture in hundredths."""
    return model_of(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Mul", ["mean", "hundred"], ["wanted"]),
            helper.make_node("Sub", ["numbers", "wanted"], ["off"]),
            helper.make_node("Abs", ["off"], ["distance"]),
            helper.make_node("Neg", ["distance"], ["flat"]),
            helper.make_node("Reshape", ["flat", "shape"], ["scores"]),
        ],
        [tensor("x", TensorProto.FLOAT, [1, 3, 224, 224])],
        [tensor("scores", TensorProto.FLOAT, [1, 1000])],
        constants={
            "hundred": np.array(100, np.float32),
            "numbers": np.arange(1000, dtype=np.float32),
            "shape": np.array([1, 1000]),
        },
    )


def export(tf: Any, path: Path, build: Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Write a SavedModel as TensorFlow 1 did, with the signature `predict`."""
    tf1 = tf.compat.v1
    with tf.Graph().as_default(), tf1.Session() as session:
        inputs, outputs = build(tf1)
        tf1.Variable(0.0)
        session.run(tf1.global_variables_initializer())
        definition = tf1.saved_model.predict_signature_def(inputs, outputs)
        builder = tf1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], {"predict": definition})
        builder.save()


def estimator(tf1: Any) -> Any:
    """Four float64 of [-1], as a DNNClassifier is exported."""
    columns = {name: tf1.placeholder("float64", [None], name) for name in FEATURES}
    x = tf1.cast(tf1.stack(list(columns.values()), axis=1), "float32")
    logits = tf1.matmul(x, WEIGHTS) + BIAS
    ids = tf1.expand_dims(tf1.argmax(logits, 1), 1)
    probabilities = tf1.nn.softmax(logits)
    return columns, {
        "class_ids": ids,
        "classes": tf1.as_string(ids),
        "logits": logits,
        "probabilities": probabilities,
    }


def inception_like(tf1: Any) -> Any:
    images = tf1.placeholder("float32", [None, 299, 299, 3])
    wanted = tf1.reduce_mean(images, [1, 2, 3], keepdims=True)[:, :, 0, 0] * 100
    return {"images": images}, {"classes": -tf1.abs(tf1.range(1001.0)[None] - wanted)}


def bert_like(tf1: Any) -> Any:
    """A fixed batch of one, and a label without any dimension."""
    ids = tf1.placeholder("int32", [1, 128])
    score = tf1.reduce_sum(tf1.cast(tf1.equal(ids, 4), "int32")) - tf1.reduce_sum(tf1.cast(tf1.equal(ids, 5), "int32"))
    return {"input_ids": ids}, {"labels": tf1.cast(score > 0, "int32")}


def gpt_like(tf1: Any) -> Any:
    """A fixed batch of one: what was said, and the same again."""
    context = tf1.placeholder("int32", [1, None])
    return {"context": context}, {"sample": tf1.concat([context, context], 1)}


# ---- the examples ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tensorflow: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("old")
    for name, source in HANDLERS.items():
        write_project(folder / Path(name).parent, {Path(name).name: source})
    mean, stddev = [5.8, 3.1, 3.8, 1.2], [0.8, 0.4, 1.8, 0.8]
    write_project(
        folder / "iris",
        {
            "cortex.yaml": IRIS_YAML,
            "scaling.json": json.dumps({"mean": mean, "stddev": stddev}),
            "pytorch.onnx": species_model(1),
            "keras.onnx": species_model("N", "dense_1_input"),
            "xgboost.onnx": label_model(as_maps=False),
            "sklearn.onnx": label_model(mean, stddev, as_maps=True),
        },
    )
    export(tensorflow, folder / "iris" / "tensorflow" / "1560263532", estimator)
    write_project(
        folder / "image",
        {
            "cortex.yaml": OTHERS_YAML.format("image", "inception", "inception", "inception.py")
            + "- {kind: api, name: alexnet, model: alexnet.onnx, request_handler: alexnet.py}\n",
            "alexnet.onnx": alexnet_like(),
        },
    )
    export(tensorflow, folder / "image" / "inception" / "1", inception_like)
    yaml = OTHERS_YAML.format("sentiment", "classifier", "bert", "sentiment.py")
    write_project(folder / "sentiment", {"cortex.yaml": yaml})
    export(tensorflow, folder / "sentiment" / "bert" / "1568244606", bert_like)
    write_project(folder / "text", {"cortex.yaml": OTHERS_YAML.format("text", "generator", "gpt-2", "generator.py")})
    export(tensorflow, folder / "text" / "gpt-2" / "124M" / "1569001258", gpt_like)
    with running_home() as home:
        for name in ("iris", "image", "sentiment", "text"):
            home.deploy(folder / name)
        yield home


def ask(home: Home, path: str, sample: Any) -> Answer:
    with Connection(home.port) as connection:
        return connection.ask("POST", path, json.dumps(sample).encode(), {"content-type": "application/json"})


def picture(value: int, size: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value,) * 3).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("api", ["tensorflow", "pytorch", "keras", "xgboost", "sklearn"])
def test_each_iris_handler_knows_its_flowers(home: Home, api: str) -> None:
    for label, values in FLOWERS.items():
        answer = ask(home, f"/iris/{api}", dict(zip(FEATURES, values, strict=True)))
        assert (answer.status, answer.json) == (200, label)


@pytest.mark.parametrize(
    ("path", "sample", "expected"),
    [
        ("/image/inception", {"base64": picture(128, 299)}, "class 50"),
        ("/image/alexnet", {"base64": picture(77, 60)}, "class 30"),
        ("/sentiment/classifier", {"review": "The movie was great!"}, "positive"),
        ("/sentiment/classifier", {"review": "The movie was bad!"}, "negative"),
        ("/text/generator", {"text": "ab"}, ["abab"]),
        ("/text/generator", {"text": "a"}, ["aa"]),
    ],
)
def test_images_sentiments_and_texts_are_answered(home: Home, path: str, sample: Any, expected: Any) -> None:
    answer = ask(home, path, sample)
    assert (answer.status, answer.json) == (200, expected)
