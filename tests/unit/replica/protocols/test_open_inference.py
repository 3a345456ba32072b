"""The Open Inference Protocol without sockets: as tritonclient writes requests and reads answers, and as others do."""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from replica_doubles import Answer, Log, Streams
from tritonclient.utils import np_to_triton_dtype

from cortex.ids import ApiKey, ReplicaId, Revision, Version
from cortex.replica.backends.base import InferenceFailed, InputRefused
from cortex.replica.handler.hooks import Handler, Hook
from cortex.replica.observation.stats import Counters
from cortex.replica.observation.tracker import Tracker
from cortex.replica.prediction.inference import Inference
from cortex.replica.prediction.pipeline import Pipeline
from cortex.replica.prediction.predictors import Around, InlinePredictor
from cortex.replica.process.condition import Condition
from cortex.replica.protocols.cortex import CortexProtocol
from cortex.replica.protocols.open_inference import PATH, OpenInference
from cortex.replica.transport.http import Exchange
from cortex.replica.transport.service import Service
from cortex.version import __version__
from cortex.wire.build import TrackerConfig
from cortex.wire.launch import ReplicaSpec
from cortex.wire.signature import Signature, TensorSpec

SPEC = ReplicaSpec(
    replica=ReplicaId("t.a.0.0"),
    attempt=1,
    api=ApiKey("t/a"),
    version=Version("1" * 64),
    revision=Revision("2" * 64),
    home="/h",
    runtime="onnx",
    model_path="/m",
)
NUMBERS = TensorSpec("x", "float32", ("N", 2))
DOUBLED = TensorSpec("y", "float32", ("N", 2))
Run = Callable[[Mapping[str, Any]], Sequence[Any]]


class Backend:
    """Gives what it is told to."""

    metadata_inputs = metadata_outputs = None
    runtime = "fake 1.0, cpu, 1 thread"

    def __init__(self, signature: Signature, run: Run, takes_bytes: bool) -> None:
        self.signature = signature
        self.run = run
        self.takes_bytes = takes_bytes  # type: ignore[misc]

    def present(self, outputs: Sequence[Any], feeds: Mapping[str, Any]) -> Any:
        return {spec.name: output for spec, output in zip(self.signature.outputs, outputs, strict=True)}

    def plain(self, prediction: Any) -> Any:
        return prediction

    def close(self) -> None:
        pass


class TensorAnswer(Answer):
    """As a client of the protocol reads it."""

    @property
    def error(self) -> str:
        """An error has one form, whatever it is."""
        assert list(self.json) == ["error"]
        return str(self.json["error"])

    @property
    def result(self) -> triton.InferResult:
        assert self.status == 200, self.body
        length = self.headers.get("inference-header-content-length")
        return triton.InferResult.from_response_body(self.body, header_length=None if length is None else int(length))


class Replica:
    """One that answers at once, of a model that is a function."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec] = (NUMBERS,),
        outputs: Sequence[TensorSpec] = (DOUBLED,),
        run: Run = lambda feeds: [feeds["x"] * 2],
        *,
        handler: Handler | None = None,
        takes_bytes: bool = False,
        tracker: TrackerConfig | None = None,
    ) -> None:
        backend = Backend(Signature(tuple(inputs), tuple(outputs)), run, takes_bytes)
        condition = Condition(SPEC)
        pipeline = Pipeline(backend, handler, tracks=True)
        self.counters = Counters()
        self.tracker = None
        if tracker is not None:
            names = [spec.name for spec in outputs]
            self.tracker = Tracker(tracker, output_names=names, warn=lambda text: None, monotonic_s=time.monotonic)
        inference = Inference(
            backend.run,
            explain=pipeline.failed,
            signature=backend.signature,
            batching=condition.batching,
            loop=None,  # type: ignore[arg-type]  # all of it is done at once
            say=lambda *_: None,
            announce=lambda: None,
        )
        protocol = OpenInference(
            endpoint="/t/a",
            name="a",
            version="11111111",
            platform="onnx_onnxv1",
            signature=backend.signature,
            takes_bytes=takes_bytes,
            has_hooks=pipeline.has_hooks,
        )
        self.service = Service(
            protocol=CortexProtocol(has_pre_inference=pipeline.pre is not None),
            below={PATH: protocol},
            condition=condition,
            counters=self.counters,
            tracker=self.tracker,
            log=Log(),  # type: ignore[arg-type]
            loop=None,  # type: ignore[arg-type]
            project_dir=None,
        )
        self.service.predictor = InlinePredictor(
            Around(pipeline, inference, self.service, None, Streams())  # type: ignore[arg-type]
        )

    def ask(
        self,
        path: str,
        body: bytes = b"",
        *,
        method: str = "GET",
        headers: dict[str, Any] | None = None,
        max_body_bytes: int = 10**6,
    ) -> TensorAnswer:
        answer = TensorAnswer()
        exchange = Exchange(answer)
        exchange.method, exchange.target = method.encode(), path.encode()
        exchange.take_headers({k.lower().encode(): str(v).encode() for k, v in (headers or {}).items()})
        exchange.take_body(body)
        exchange.id, exchange.id_bytes = "r", b"r"
        exchange.timeout_s, exchange.max_body_bytes = 60.0, max_body_bytes
        self.service.handle(exchange)
        assert answer.status, "it is answered"
        return answer

    def post(self, body: Any, path: str = "/t/a/v2/models/a/infer", **options: Any) -> TensorAnswer:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask(path, content, method="POST", **options)

    def infer(
        self,
        arrays: Mapping[str, Any],
        *,
        binary: bool = True,
        outputs: Sequence[triton.InferRequestedOutput] | None = None,
        **options: Any,
    ) -> TensorAnswer:
        """As tritonclient asks."""
        inputs = []
        for name, array in arrays.items():
            tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            inputs.append(tensor.set_data_from_numpy(array, binary_data=binary))
        body, length = triton.InferenceServerClient.generate_request_body(inputs, outputs=outputs, **options)
        return self.post(body, headers={} if length is None else {"Inference-Header-Content-Length": length})


def one(name: str = "x", data: Any = ((1.0, 2.0),), shape: Any = (1, 2), datatype: str = "FP32", **more: Any) -> Any:
    fields = {"name": name, "shape": shape, "datatype": datatype, "data": data, **more}
    return {key: value for key, value in fields.items() if value is not None}


def request(*inputs: Any, **fields: Any) -> dict[str, Any]:
    return {"inputs": list(inputs) or [one()], **fields}


# ---- what there is --------------------------------------------------------------------------------------------------


def test_the_server_and_the_model_say_what_they_are() -> None:
    inputs = (NUMBERS, TensorSpec("text", "string", None), TensorSpec("odd", "float32", (), kind="sequence"))
    outputs = (TensorSpec("y", "bfloat16", (None, 3)), TensorSpec("map", "float32", (), kind="map", key_dtype="int64"))
    replica = Replica(inputs, outputs)
    server = replica.ask("/t/a/v2").json
    assert (server["name"], server["extensions"]) == ("cortex", ["binary_tensor_data"])
    expected = {
        "name": "a",
        "versions": ["11111111"],
        "platform": "onnx_onnxv1",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "text", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [{"name": "y", "datatype": "BF16", "shape": [-1, 3]}],
    }
    for path in ("", "/", "/versions/11111111"):
        assert replica.ask(f"/t/a/v2/models/a{path}").json == expected


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/health/live", {"live": True}),
        ("/health/ready", {"ready": True}),
        ("/models/a/ready", {"name": "a", "ready": True}),
        ("/models/a/versions/11111111/ready", {"name": "a", "ready": True}),
        ("/?x=1", {"name": "cortex", "version": __version__, "extensions": ["binary_tensor_data"]}),
    ],
)
def test_who_asks_for_health_gets_200(path: str, told: object) -> None:
    replica = Replica()
    answer = replica.ask(f"/t/a/v2{path}")
    assert (answer.status, answer.json) == (200, told)
    assert replica.ask(f"/t/a/v2{path}", method="HEAD").status == 200
    assert sum(replica.counters.by_class) == 0, "none of it is a prediction"


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/health/lively",
        "/models",
        "/models/b",
        "/models/b/ready",
        "/models/a/versions",
        "/models/a/versions/2",
        "/models/a/versions/2/infer",
        "/models/a/config",
        "/repository/index",
        "/../a",
    ],
)
def test_what_is_not_there_is_404(path: str) -> None:
    for method in ("GET", "POST"):
        answer = Replica().ask(f"/t/a/v2{path}", method=method)
        assert (answer.status, bool(answer.error)) == (404, True)


def test_methods_that_mean_nothing_are_told_which_do() -> None:
    replica = Replica()
    wrong = replica.ask("/t/a/v2/models/a/infer")
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST, OPTIONS")
    wrong = replica.ask("/t/a/v2/models/a", method="POST")
    assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert wrong.error.startswith("POST is not allowed here")
    assert replica.ask("/t/a/v2/models/a/infer", method="OPTIONS").status == 204


def test_a_path_that_only_begins_alike_is_the_endpoints() -> None:
    assert Replica().ask("/t/a/v2x").json.keys() >= {"call"}


# ---- tensors --------------------------------------------------------------------------------------------------------


ELEMENTS = {
    "bool": st.booleans(),
    "string": st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5),
    **dict.fromkeys(("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")),
    **{name: st.floats(width=width, allow_nan=False, allow_infinity=False) for name, width in
       (("float16", 16), ("float32", 32), ("float64", 64))},
}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(sorted(ELEMENTS)), st.booleans(), st.booleans())
def test_every_tensor_comes_back_as_it_was_sent(
    data: st.DataObject, dtype: str, sent_binary: bool, got_binary: bool
) -> None:
    shape = data.draw(nps.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    kind = object if dtype == "string" else dtype
    array = data.draw(nps.arrays(kind, shape, elements=ELEMENTS[dtype]))
    free = tuple(None for _ in shape)
    replica = Replica((TensorSpec("x", dtype, free),), (TensorSpec("y", dtype, free),), lambda feeds: [feeds["x"]])
    outputs = [triton.InferRequestedOutput("y", binary_data=got_binary)]
    result = replica.infer({"x": array}, binary=sent_binary, outputs=outputs).result.as_numpy("y")
    expected = (
        np.array([str(one).encode() for one in array.ravel()], object).reshape(shape) if kind is object else array
    )
    if kind is object and not got_binary:
        expected = array
    assert result.shape == array.shape
    assert result.tolist() == expected.tolist()


def test_bytes_that_are_no_text_pass_where_the_model_takes_them() -> None:
    spec = (TensorSpec("x", "string", (None,)),)
    array = np.array([b"\xff\x00", "ä".encode(), b""], object)
    takes = Replica(spec, (TensorSpec("y", "string", (None,)),), lambda feeds: [feeds["x"]], takes_bytes=True)
    assert takes.infer({"x": array}).result.as_numpy("y").tolist() == array.tolist()
    as_json = takes.infer({"x": array}, outputs=[triton.InferRequestedOutput("y", binary_data=False)])
    assert (as_json.status, as_json.error) == (
        400,
        'output "y" has bytes that are no text: ask for it with "binary_data": true',
    )
    only_text = Replica(spec, run=lambda feeds: [feeds["x"]])
    assert "not UTF-8" in only_text.infer({"x": array}).error


def test_bfloat16_has_two_bytes() -> None:
    spec = TensorSpec("x", "bfloat16", (None,))
    seen: list[Any] = []

    def run(feeds: Mapping[str, Any]) -> list[Any]:
        seen.append(feeds["x"])
        return [feeds["x"]]

    replica = Replica((spec,), (TensorSpec("y", "bfloat16", (None,)),), run)
    header = json.dumps(
        request(
            one(data=None, shape=[2], datatype="BF16", parameters={"binary_data_size": 4}),
            parameters={"binary_data_output": True},
        )
    ).encode()
    answer = replica.post(header + b"\x80\x3f\x40\xc0", headers={"inference-header-content-length": len(header)})
    assert seen[0].dtype == np.float32
    assert seen[0].tolist() == [1.0, -3.0]
    assert answer.body.endswith(b"\x80\x3f\x40\xc0")
    assert replica.post(request(one(data=[1.0, -3.0], shape=[2], datatype="BF16"))).json["outputs"][0]["data"] == [
        1,
        -3,
    ]


def test_data_may_be_nested_or_flat() -> None:
    for data in ([[1, 2], [3, 4]], [1, 2, 3, 4], [1.0, 2, 3.0, 4]):
        (output,) = Replica().post(request(one(data=data, shape=[2, 2]))).json["outputs"]
        assert output == {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [2, 4, 6, 8]}


def test_an_id_comes_back_and_the_model_is_named() -> None:
    answered = Replica().post(request(id="42", parameters={"anything": 1})).json
    assert list(answered) == ["model_name", "model_version", "id", "outputs"]
    assert (answered["model_name"], answered["model_version"], answered["id"]) == ("a", "11111111", "42")
    assert "id" not in Replica().post(request()).json


def test_outputs_come_as_they_are_asked_for() -> None:
    outputs = (DOUBLED, TensorSpec("n", "int64", ()), TensorSpec("map", "float32", (), kind="map", key_dtype="int64"))
    replica = Replica(outputs=outputs, run=lambda feeds: [feeds["x"], np.array(7), {1: 2.0}])
    assert [one["name"] for one in replica.post(request()).json["outputs"]] == ["y", "n"], "all that are tensors"
    asked = request(outputs=[{"name": "n"}, {"name": "y", "parameters": {"binary_data": True}}])
    result = replica.post(asked).result
    assert [one["name"] for one in result.get_response()["outputs"]] == ["n", "y"]
    assert (result.as_numpy("n").tolist(), result.as_numpy("y").tolist()) == (7, [[1, 2]])
    asked = request(
        parameters={"binary_data_output": True}, outputs=[{"name": "n", "parameters": {"binary_data": False}}]
    )
    assert replica.post(asked).json["outputs"][0]["data"] == [7]
    assert "the protocol has no tensor for" in replica.post(request(outputs=[{"name": "map"}])).error


def test_optional_inputs_may_be_left_out() -> None:
    seen: list[Any] = []

    def run(feeds: Mapping[str, Any]) -> list[Any]:
        seen.append(sorted(feeds))
        return [feeds["x"]]

    replica = Replica((NUMBERS, TensorSpec("z", "float32", (1,), optional=True)), run=run)
    assert replica.post(request()).status == 200
    assert replica.post(request(one(), one("z", [1.0], [1]))).status == 200
    assert seen == [["x"], ["x", "z"]]


def test_predictions_are_counted_as_any_are() -> None:
    replica = Replica(
        outputs=(TensorSpec("n", "int64", (None,)),),
        run=lambda feeds: [np.array([3, 4])],
        tracker=TrackerConfig(model_type="regression", key="n"),
    )
    assert replica.post(request(one(shape=[2, 2], data=[1, 2, 3, 4]))).status == 200
    assert replica.tracker is not None
    assert (replica.tracker.snapshot().count, replica.tracker.snapshot().total) == (2, 7.0)
    assert replica.counters.by_class[2] == 1


def test_compressed_requests_are_unpacked_within_the_limit() -> None:
    body = json.dumps(request()).encode()
    answer = Replica().post(gzip.compress(body), headers={"Content-Encoding": "gzip"})
    assert answer.json["outputs"][0]["data"] == [2, 4]
    huge = gzip.compress(body + b" " * 2000)
    assert Replica().post(huge, headers={"Content-Encoding": "gzip"}, max_body_bytes=1000).status == 413


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [NaN, 1]}]}', "send null"),
        ([1], "an inference request is a JSON object"),
        ({}, '"inputs"'),
        ({"inputs": {}}, '"inputs"'),
        ({"inputs": [5]}, "each input is a JSON object with a name"),
        ({"inputs": [{}]}, "each input is a JSON object with a name"),
        ({"inputs": [{"name": 1}]}, "each input is a JSON object with a name"),
        ({"inputs": []}, 'input "x" is missing'),
        (request(one("z")), 'the model has no input "z"; it has "x"'),
        (request(one(), one()), 'input "x" is there twice'),
        (request(one(datatype="FP64")), 'input "x" is FP32, and the request says FP64'),
        (request(one(datatype=None)), 'input "x" is FP32, and the request says None'),
        (request(one(shape=[1, 3], data=[1, 2, 3])), 'input "x" has the shape [N, 2], and the request says [1, 3]'),
        (request(one(shape=[2], data=[1, 2])), "has the shape [N, 2]"),
        (request(one(shape=None)), "needs a shape"),
        (request(one(shape="1,2")), "needs a shape"),
        (request(one(shape=[-1, 2])), "has -1 in its shape"),
        (request(one(shape=[1.0, 2])), "has 1.0 in its shape"),
        (request(one(shape=[True, 2])), "has True in its shape"),
        (request(one(shape=[2**63, 2])), "in its shape"),
        (request(one(shape=[2**62, 2])), "has fewer elements than its shape"),
        (request(one(shape=[1] * 40)), "has 40 dimensions"),
        (request(one(data=None)), 'has neither "data" nor "binary_data_size"'),
        (request(one(data=[1])), "expected float32[1, 2]"),
        (request(one(data=[1, 2, 3])), "expected float32[1, 2]"),
        (request(one(data=[[1], [2, 3]])), 'input "x"'),
        (request(one(data={"a": 1})), "has dict for data"),
        (request(one(data=["a", "b"])), 'input "x"'),
        (request(one(data=[1e60, 1])), 'input "x"'),
        (request(one(parameters=[])), 'the parameters of input "x" are no JSON object'),
        (request(parameters="x"), "the parameters of the request are no JSON object"),
        (request(id=5), '"id" of a request is a string'),
        (request(parameters={"binary_data_output": 1}), "binary_data_output is true or false"),
        (request(outputs={}), '"outputs" is a list'),
        (request(outputs=[1]), "each output is a JSON object with a name"),
        (request(outputs=[{}]), "each output is a JSON object with a name"),
        (request(outputs=[{"name": 1}]), "each output is a JSON object with a name"),
        (request(outputs=[{"name": "z" * 61}]), f'the model has no output "{"z" * 60}"; it has "y"'),
        (request(outputs=[{"name": "z"}]), 'the model has no output "z"; it has "y"'),
        (request(outputs=[{"name": "y"}, {"name": "y"}]), "asked for twice"),
        (request(outputs=[{"name": "y", "parameters": {"binary_data": "yes"}}]), "binary_data is true or false"),
        (request(outputs=[{"name": "y", "parameters": {"classification": 3}}]), "classification is not supported"),
        (request(parameters={"sequence_id": 5}), "sequences are not supported"),
        (request(one(parameters={"shared_memory_region": "r"})), "shared memory is not supported"),
        (request(one(data=None, parameters={"binary_data_size": 8})), "says that it has 8 bytes, and 0 are left"),
        (request(one(data=None, parameters={"binary_data_size": -1})), "has -1 for binary_data_size"),
        (request(one(data=None, parameters={"binary_data_size": True})), "has True for binary_data_size"),
        (request(one(data=None, parameters={"binary_data_size": 2**70})), "bytes, and 0 are left behind the JSON"),
        (request(one(parameters={"binary_data_size": 0})), 'has both "data" and "binary_data_size"'),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_request_is_said(asked: Any, said: str) -> None:
    replica = Replica()
    answer = replica.post(asked)
    assert answer.status == 400
    assert said in answer.error
    assert replica.counters.by_class[4] == 1


INT = TensorSpec("x", "int64", (None,))
TEXT = TensorSpec("x", "string", (None,))
FLAG = TensorSpec("x", "bool", (None,))


@pytest.mark.parametrize(
    ("spec", "shape", "datatype", "binary", "said"),
    [
        (INT, [2], "INT64", b"1234567", "has too few bytes: 7, and INT64[2] takes 16"),
        (INT, [0], "INT64", b"12345678", "has too many bytes: 8, and INT64[0] takes 0"),
        (INT, [2**60], "INT64", b"12345678", "has too few bytes"),
        (FLAG, [2], "BOOL", b"\x01\x02", "has bytes other than 0 and 1"),
        (TEXT, [1], "BYTES", b"", "has too few bytes for 1 elements"),
        (TEXT, [2**62], "BYTES", b"\0\0\0\0", "has too few bytes"),
        (TEXT, [1], "BYTES", b"\xff\xff\xff\xffab", "for element 0, which says that it has 4294967295"),
        (TEXT, [2], "BYTES", b"\x04\0\0\0abcd", "has too few bytes for element 1"),
        (TEXT, [1], "BYTES", b"\0\0\0\0abc", "has 3 bytes behind its last element"),
        (TEXT, [1], "BYTES", b"\x01\0\0\0\xff", "not UTF-8"),
        (
            TensorSpec("x", "float32", (None, None, None)),
            [0, 2**62, 2**62],
            "FP32",
            b"",
            "which no array can have",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_binary_data_is_said(
    spec: TensorSpec, shape: list[int], datatype: str, binary: bytes, said: str
) -> None:
    replica = Replica((spec,), run=lambda feeds: [feeds["x"]])
    asked = request(one(data=None, shape=shape, datatype=datatype, parameters={"binary_data_size": len(binary)}))
    header = json.dumps(asked).encode()
    answer = replica.post(header + binary, headers={"inference-header-content-length": len(header)})
    assert answer.status == 400
    assert said in answer.error


def test_an_input_has_what_those_before_it_have_left() -> None:
    inputs = tuple(TensorSpec(name, "float32", (None,)) for name in "ab")
    replica = Replica(inputs, run=lambda feeds: [feeds["b"]])
    size = {"binary_data_size": 8}
    asked = request(*(one(name, data=None, shape=[2], parameters=size) for name in "ab"))
    header = json.dumps(asked).encode()
    for binary, status in ((bytes(16), 200), (bytes(15), 400)):
        answer = replica.post(header + binary, headers={"inference-header-content-length": len(header)})
        assert answer.status == status
    assert answer.error == 'input "b" says that it has 8 bytes, and 7 are left behind the JSON'


@pytest.mark.parametrize(
    ("length", "said"),
    [
        ("999999", "inference-header-content-length is 999999, and the body has"),
        ("-5", "is no number of bytes"),
        ("1e3", "is no number of bytes"),
        ("9" * 30, "is no number of bytes"),
        ("0", "not valid JSON"),
        ("10", "not valid JSON"),
    ],
)
def test_a_length_of_the_json_that_cannot_be_is_said(length: str, said: str) -> None:
    answer = Replica().post(request(), headers={"inference-header-content-length": length})
    assert answer.status == 400
    assert said in answer.error


def test_bytes_that_belong_to_no_input_are_refused() -> None:
    header = json.dumps(request()).encode()
    answer = Replica().post(header + b"abc", headers={"inference-header-content-length": len(header)})
    assert (answer.status, answer.error) == (400, "behind the JSON are 3 bytes, and the inputs say that they have 0")


@pytest.mark.parametrize(
    ("body", "encoding", "said"),
    [
        (b"no gzip", "gzip", "not gzip"),
        (gzip.compress(b"{}", mtime=0)[:-4], "gzip", "in the middle of its gzip data"),
        (b"x", "deflate", '"deflate" is not accepted (send gzip'),
        (gzip.compress(b"{", mtime=0), "gzip", "not valid JSON"),
    ],
)
def test_what_is_wrong_with_a_compressed_body_is_said(body: bytes, encoding: str, said: str) -> None:
    answer = Replica().post(body, headers={"content-encoding": encoding})
    assert answer.status == 400
    assert said in answer.error


@pytest.mark.parametrize("value", [-(2**63) - 1, 2**63, 1.5, True, None, "1"])
def test_an_integer_is_exact_or_refused(value: Any) -> None:
    replica = Replica((INT,), (TensorSpec("y", "int64", (None,)),), lambda feeds: [feeds["x"]])
    answer = replica.post(request(one(data=[value], shape=[1], datatype="INT64")))
    if value is True:
        assert answer.json["outputs"][0]["data"] == [1]
    else:
        assert answer.status == 400
        assert 'input "x"' in answer.error
    for edge in (-(2**63), 2**63 - 1):
        exact = replica.post(request(one(data=[edge], shape=[1], datatype="INT64")))
        assert exact.json["outputs"][0]["data"] == [edge]


def test_sizes_that_have_to_agree_are_compared() -> None:
    replica = Replica((NUMBERS, TensorSpec("z", "float32", ("N",))), run=lambda feeds: [feeds["x"]])
    answer = replica.post(request(one(), one("z", [1, 2], [2])))
    assert (answer.status, "N" in answer.error) == (400, True)


def test_what_the_model_calls_an_invalid_argument_is_a_bad_request_and_a_failure_is_none() -> None:
    def raising(error: Exception) -> Run:
        def run(feeds: Mapping[str, Any]) -> Sequence[Any]:
            raise error

        return run

    refused = Replica(run=raising(InputRefused("index 9 is out of range"))).post(request())
    assert (refused.status, "index 9 is out of range" in refused.error) == (400, True)
    failed = Replica(run=raising(InferenceFailed("no memory"))).post(request())
    assert (failed.status, failed.error) == (500, "the model failed: no memory")


def test_numbers_that_json_does_not_have_are_null_there_and_whole_in_binary() -> None:
    replica = Replica(run=lambda feeds: [np.array([[math.nan, math.inf]], np.float32)])
    assert replica.post(request()).json["outputs"][0]["data"] == [None, None]
    result = replica.post(request(parameters={"binary_data_output": True})).result.as_numpy("y")
    assert math.isnan(result[0, 0])
    assert result[0, 1] == math.inf


@pytest.mark.parametrize("name", ["pre_inference", "post_inference"])
def test_a_model_with_a_handler_is_described_and_infers_nothing(name: Any) -> None:
    hook = Hook(name, lambda value, metadata: value)
    replica = Replica(handler=Handler(pre=hook) if name == "pre_inference" else Handler(post=hook))
    assert replica.ask("/t/a/v2/models/a").json["inputs"][0]["name"] == "x"
    assert replica.ask("/t/a/v2/models/a/ready").status == 200
    answer = replica.post(request())
    assert (answer.status, answer.error) == (
        400,
        "this api has a handler, which takes samples, not tensors: POST a sample to /t/a",
    )


def test_a_model_of_other_things_than_tensors_infers_nothing_and_says_which() -> None:
    odd = TensorSpec("odd", "float32", (), kind="sequence")
    assert 'input "odd" is sequence of float32' in Replica((NUMBERS, odd)).post(request()).error
    assert "gives nothing that the protocol" in Replica(outputs=(odd,)).post(request()).error


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["inputs", "outputs", "name", "x", "shape", "datatype", "data", "parameters"]), inner
            )
        ),
        max_leaves=12,
    ),
    st.binary(max_size=8),
)
def test_nothing_that_is_sent_makes_a_fault_of_ours(value: Any, binary: bytes) -> None:
    wrapped = value if isinstance(value, dict) and "inputs" in value else {"inputs": [one(**_fields(value))]}
    header = json.dumps(wrapped).encode()
    answer = Replica().post(header + binary, headers={"inference-header-content-length": len(header)})
    assert answer.status in (200, 400)
    assert answer.status == 200 or answer.error


def _fields(value: Any) -> dict[str, Any]:
    known = ("shape", "datatype", "data", "parameters", "name")
    return {key: item for key, item in value.items() if key in known} if isinstance(value, dict) else {"data": value}
