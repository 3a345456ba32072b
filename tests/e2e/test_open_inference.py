"""tritonclient, as it comes from PyPI, through the ingress: the same numbers as the endpoint's own JSON."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import pytest
import tritonclient.http as triton
from contract_harness import Connection, Home, running_home, write_project
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS = {
    "sklearn": EXAMPLES / "iris" / "models" / "sklearn.onnx",
    "xgboost": EXAMPLES / "iris" / "models" / "xgboost.onnx",
    "pytorch": EXAMPLES / "iris" / "models" / "pytorch.onnx",
    "shapes": EXAMPLES / "image" / "models" / "shapes.onnx",
    "speech": EXAMPLES / "speech" / "models" / "silero_vad_16k_sequence.onnx",
}
"""Those of the examples, each without a handler."""
TYPES = {"text": "STRING", "flag": "BOOL", "whole": "INT64", "half": "FLOAT16"}
"""Apis that give back what they get, by the type of their model."""
ROWS = {
    "text": np.array([["a", ""], ["ä€", "two words"]], object),
    "flag": np.array([[True, False], [False, True]]),
    "whole": np.array([[-(2**63), 2**63 - 1], [2**53 + 1, 0]], np.int64),
    "half": np.array([[0.1, -65504], [6e-8, 1]], np.float16),
}
BINARY = pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])


def identity(kind: str) -> bytes:
    element = getattr(onnx.TensorProto, kind)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", element, ["N", 2])],
        [onnx.helper.make_tensor_value_info("y", element, ["N", 2])],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    return bytes(made.SerializeToString())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("plain")
    (folder / "models").mkdir()
    for name, model in MODELS.items():
        shutil.copyfile(model, folder / "models" / f"{name}.onnx")
    for name, kind in TYPES.items():
        (folder / "models" / f"{name}.onnx").write_bytes(identity(kind))
    apis = "".join(f"- {{kind: api, name: {name}, model: models/{name}.onnx}}\n" for name in (*MODELS, *TYPES))
    write_project(folder, {"cortex.yaml": f"- {{kind: deployment, name: plain}}\n{apis}"})
    solo = tmp_path_factory.mktemp("solo")
    (solo / "whole.onnx").write_bytes(identity("INT64"))
    write_project(solo, {"cortex.yaml": "- {kind: api, name: solo, model: whole.onnx}\n"})
    with running_home() as home:
        home.deploy(folder)
        home.deploy(solo)
        yield home


@pytest.fixture
def client(home: Home) -> Iterator[Callable[[str], Any]]:
    made: list[Any] = []

    def connect(path: str) -> Any:
        made.append(triton.InferenceServerClient(f"127.0.0.1:{home.port}{path}"))
        return made[-1]

    yield connect
    for one in made:
        one.close()


def inputs_of(arrays: dict[str, np.ndarray[Any, Any]], binary: bool) -> list[Any]:
    made = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        made.append(tensor.set_data_from_numpy(array, binary_data=binary))
    return made


def of_metadata(metadata: dict[str, Any], rows: int) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs for a model, made up from what it says of them: the same for each run."""
    rng = np.random.default_rng(0)
    made = {}
    for place, tensor in enumerate(metadata["inputs"]):
        shape = [rows if size == -1 and axis == 0 else max(size, 1) for axis, size in enumerate(tensor["shape"])]
        kind = triton_to_np_dtype(tensor["datatype"])
        made[tensor["name"]] = (rng.random(shape) * (place + 1)).astype(kind)
    return made


def asked(home: Home, path: str, sample: Any) -> Any:
    """The endpoint's own answer."""
    with Connection(home.port) as connection:
        answer = connection.ask("POST", path, json.dumps(sample).encode(), {"content-type": "application/json"})
    assert answer.status == 200, answer.body
    return answer.json


def alike(found: np.ndarray[Any, Any], expected: Any) -> bool:
    """Whether the values are those of the JSON, which has NaN and infinity as null."""
    if found.dtype == object:
        texts = [one.decode() if isinstance(one, bytes) else one for one in found.ravel().tolist()]
        return texts == np.array(expected, object).ravel().tolist()
    pairs = zip(found.ravel().tolist(), np.array(expected, object).ravel().tolist(), strict=True)
    return all(found.dtype.type(b) == a if b is not None else not math.isfinite(a) for a, b in pairs)


@BINARY
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_every_example_gives_the_numbers_of_its_endpoint(
    home: Home, client: Callable[[str], Any], name: str, rows: int, binary: bool
) -> None:
    path = f"/plain/{name}"
    asks = client(path)
    metadata = asks.get_model_metadata(name)
    arrays = of_metadata(metadata, rows)
    outputs = [triton.InferRequestedOutput(one["name"], binary_data=binary) for one in metadata["outputs"]]
    result = asks.infer(name, inputs_of(arrays, binary), outputs=outputs)
    expected = asked(home, path, {key: array.tolist() for key, array in arrays.items()})
    signature = asked_signature(home, path)
    by_name = dict(zip((one["name"] for one in signature["outputs"]), expected, strict=True))
    assert metadata["outputs"], "there is something to compare"
    for one in metadata["outputs"]:
        assert alike(result.as_numpy(one["name"]), by_name[one["name"]]), one


def asked_signature(home: Home, path: str) -> Any:
    with Connection(home.port) as connection:
        return connection.ask("GET", path).json


@BINARY
@pytest.mark.parametrize("name", TYPES)
def test_every_type_comes_back_as_it_was_sent(
    home: Home, client: Callable[[str], Any], name: str, binary: bool
) -> None:
    array = ROWS[name]
    outputs = [triton.InferRequestedOutput("y", binary_data=binary)]
    for compression in (None, "gzip"):
        result = client(f"/plain/{name}").infer(
            name, inputs_of({"x": array}, binary), outputs=outputs, request_compression_algorithm=compression
        )
        found = result.as_numpy("y")
        plain = [value.decode() if isinstance(value, bytes) else value for value in found.ravel().tolist()]
        assert (found.shape, plain) == (array.shape, array.ravel().tolist())
    (same,) = asked(home, f"/plain/{name}", array.tolist())
    assert np.array(same, array.dtype).tolist() == array.tolist()


def test_large_tensors_come_through_in_binary(client: Callable[[str], Any]) -> None:
    array = np.arange(400_000, dtype=np.int64).reshape(-1, 2)
    result = client("/plain/whole").infer("whole", inputs_of({"x": array}, True)).as_numpy("y")
    assert np.array_equal(result, array)


def test_server_and_model_say_that_they_are_ready(client: Callable[[str], Any]) -> None:
    for path, name in (("/plain/sklearn", "sklearn"), ("/solo", "solo")):
        asks = client(path)
        assert asks.is_server_live()
        assert asks.is_server_ready()
        assert asks.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        metadata = asks.get_model_metadata(name)
        assert asks.is_model_ready(name)
        assert asks.is_model_ready(name, metadata["versions"][0])
        assert not asks.is_model_ready(name, "12345678")
        assert not asks.is_model_ready("other")


def test_an_api_of_the_default_deployment_has_the_protocol_below_its_one_name(client: Callable[[str], Any]) -> None:
    array = np.array([[1, 2]], np.int64)
    result = client("/solo").infer("solo", inputs_of({"x": array}, True), request_id="7")
    assert result.as_numpy("y").tolist() == [[1, 2]]
    assert result.get_response()["id"] == "7"


def test_what_is_wrong_is_an_exception_with_the_reason(home: Home, client: Callable[[str], Any]) -> None:
    asks = client("/plain/whole")
    with pytest.raises(InferenceServerException) as caught:
        asks.infer("whole", inputs_of({"x": np.zeros((1, 2), np.float32)}, True))
    assert (caught.value.status(), caught.value.message()) == ("400", 'input "x" is INT64, and the request says FP32')
    with pytest.raises(InferenceServerException) as caught:
        client("/plain/none").get_server_metadata()
    assert caught.value.status() == "404"


def test_an_api_with_a_handler_is_described_and_infers_nothing(
    home: Home, client: Callable[[str], Any], tmp_path: Path
) -> None:
    project = tmp_path / "iris"
    shutil.copytree(EXAMPLES / "iris", project)
    home.deploy(project)
    asks = client("/iris/sklearn")
    metadata = asks.get_model_metadata("sklearn")
    with pytest.raises(InferenceServerException) as caught:
        asks.infer("sklearn", inputs_of(of_metadata(metadata, 1), True))
    assert caught.value.status() == "400"
    assert caught.value.message() == (
        "this api has a handler, which takes samples, not tensors: POST a sample to /iris/sklearn"
    )


@pytest.fixture(scope="module")
def saved(home: Home, tensorflow: Any, tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("saved")
    shutil.copytree(EXAMPLES / "iris" / "models" / "tensorflow", folder / "iris")
    module = tensorflow.Module()
    spec = tensorflow.TensorSpec([None, 2], tensorflow.string, "x")
    module.same = tensorflow.function(lambda x: {"y": tensorflow.identity(x)}, input_signature=[spec])
    tensorflow.saved_model.save(module, str(folder / "text"), signatures={"serving_default": module.same})
    apis = "".join(f"- {{kind: api, name: {name}, model: {name}}}\n" for name in ("iris", "text"))
    write_project(folder, {"cortex.yaml": f"- {{kind: deployment, name: saved}}\n{apis}"})
    home.deploy(folder)
    return home


@BINARY
@pytest.mark.parametrize("rows", [1, 3])
def test_a_saved_model_gives_the_numbers_of_its_endpoint(
    saved: Home, client: Callable[[str], Any], rows: int, binary: bool
) -> None:
    asks = client("/saved/iris")
    metadata = asks.get_model_metadata("iris")
    arrays = of_metadata(metadata, rows)
    outputs = [triton.InferRequestedOutput(one["name"], binary_data=binary) for one in metadata["outputs"]]
    result = asks.infer("iris", inputs_of(arrays, binary), outputs=outputs)
    expected = asked(saved, "/saved/iris", {key: array.tolist() for key, array in arrays.items()})
    for one in metadata["outputs"]:
        assert alike(result.as_numpy(one["name"]), expected[one["name"]])


def test_bytes_that_are_no_text_come_back(saved: Home, client: Callable[[str], Any]) -> None:
    array = np.array([[b"\xff\x00", b"a"]], object)
    found = client("/saved/text").infer("text", inputs_of({"x": array}, True)).as_numpy("y")
    assert found.tolist() == array.tolist()
