"""Traces: what a collector on a real socket receives of predictions, and that nothing depends on it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from replica_harness import LauncherProcess, Replica, eventually, spec_for

IRIS = Path(__file__).parents[3] / "examples" / "iris" / "models" / "sklearn.onnx"
pytestmark = pytest.mark.slow

Start = Callable[..., Replica]
SAMPLE = [5.1, 3.5, 1.4, 0.2]
TRACE_ID, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-{CALLER}-01", "x-request-id": "r-1"}
STEPS = {"pre_inference", "inference", "post_inference"}
CALLING_ON = """
from opentelemetry import propagate

def pre_inference(sample, metadata, request):
    sent = {}
    propagate.inject(sent)
    request.state["sent"] = sent
    if sample == "fail":
        raise ValueError("as asked for")
    return sample

def post_inference(prediction, metadata, request):
    return request.state["sent"]
"""
WHAT_IS_IMPORTED = """
import sys

def post_inference(prediction, metadata):
    return [name for name in sys.modules if name.startswith("opentelemetry")]
"""


class Collector(ThreadingHTTPServer):
    """Takes what OTLP over HTTP sends."""

    daemon_threads = False  # so that none of them outlives the test

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Exported)
        self.received: list[Any] = []
        """Spans, in the order in which they came."""
        self.resources: list[dict[str, str]] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def take(self, body: bytes) -> None:
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({found.key: found.value.string_value for found in part.resource.attributes})
            for scope in part.scope_spans:
                self.received += scope.spans

    def names(self) -> list[str]:
        return [span.name for span in tuple(self.received)]

    def env(self, **more: str) -> dict[str, str]:
        endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "20", **more}

    def wait_for(self, *names: str) -> list[Any]:
        """One span of each of these names."""
        eventually(lambda: set(names) <= set(self.names()), f"spans {names}")
        return [next(span for span in self.received if span.name == name) for name in names]


class _Exported(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces"
        if self.headers.get("content-encoding") != "gzip":
            self.server.take(body)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


def attributes(span: Any) -> dict[str, Any]:
    return {found.key: found.value.string_value or found.value.int_value for found in span.attributes}


@pytest.mark.parametrize(
    ("source", "concurrency"),
    [(CALLING_ON, None), (CALLING_ON, 4), (CALLING_ON.replace("def p", "async def p"), None)],
    ids=["sync", "pooled", "async"],
)
def test_each_step_is_a_span_below_the_callers_and_outgoing_calls_carry_it_on(
    start: Start, collector: Collector, source: str, concurrency: int | None
) -> None:
    replica = start(source, env=collector.env(), concurrency=concurrency)
    answer = replica.post(SAMPLE, TRACEPARENT)
    assert answer.status == 200, answer
    request, pre, model, post = collector.wait_for("POST /t/a", "pre_inference", "inference", "post_inference")
    assert {span.trace_id.hex() for span in (request, pre, model, post)} == {TRACE_ID}
    assert request.parent_span_id.hex() == CALLER
    assert {span.parent_span_id for span in (pre, model, post)} == {request.span_id}
    assert answer.json == {"traceparent": f"00-{TRACE_ID}-{pre.span_id.hex()}-01"}
    edges = [request.start_time_unix_nano]
    for span in (pre, model, post):
        edges += [span.start_time_unix_nano, span.end_time_unix_nano]
    assert edges == sorted(edges)
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/t/a",
        "url.path": "/t/a",
        "url.scheme": "http",
        "cortex.request_id": "r-1",
        "http.response.status_code": 200,
    }
    spec = replica.spec
    assert (
        collector.resources[0].items()
        >= {
            "service.name": "t/a",
            "service.version": spec.version[:8],
            "service.instance.id": spec.replica,
        }.items()
    )
    assert sorted(collector.names()) == sorted(("POST /t/a", *STEPS)), "the warm-up is not traced"


def test_without_a_caller_that_traces_a_trace_begins_here(start: Start, collector: Collector) -> None:
    replica = start(None, env=collector.env(OTEL_SERVICE_NAME="iris"))
    assert replica.post(SAMPLE).status == 200
    request, model = collector.wait_for("POST /t/a", "inference")
    assert request.parent_span_id == b""
    assert model.trace_id == request.trace_id
    assert collector.resources[0]["service.name"] == "iris"


def test_tensors_are_traced_by_the_route_of_their_protocol(start: Start, collector: Collector) -> None:
    replica = start(None, env=collector.env())
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": SAMPLE}
    path = "/t/a/v2/models/a/infer"
    assert replica.post({"inputs": [tensor]}, TRACEPARENT, path).status == 200
    request, _ = collector.wait_for("POST /t/a/v2/models/{model}/infer", "inference")
    told = attributes(request)
    assert (told["http.route"], told["url.path"]) == ("/t/a/v2/models/{model}/infer", path)
    assert request.parent_span_id.hex() == CALLER


def test_a_failing_handler_is_an_error_in_its_span_and_the_requests(start: Start, collector: Collector) -> None:
    replica = start(CALLING_ON, env=collector.env())
    assert replica.post("fail").status == 500
    request, pre = collector.wait_for("POST /t/a", "pre_inference")
    assert attributes(request)["http.response.status_code"] == 500
    assert (request.status.code, pre.status.code) == (2, 2)
    assert pre.status.message == "ValueError: as asked for"
    assert [attributes(event)["exception.type"] for event in pre.events] == ["ValueError"]
    assert set(collector.names()) == {"POST /t/a", "pre_inference"}


def test_what_the_caller_did_wrong_is_no_error_of_ours(start: Start, collector: Collector) -> None:
    replica = start(None, env=collector.env())
    assert replica.post([1]).status == 422
    (request,) = collector.wait_for("POST /t/a")
    assert (attributes(request)["http.response.status_code"], request.status.code) == (422, 0)


def test_the_last_spans_are_sent_when_the_replica_ends(start: Start, collector: Collector) -> None:
    replica = start(None, env=collector.env(OTEL_BSP_SCHEDULE_DELAY="600000"))
    assert replica.post(SAMPLE).status == 200
    assert not collector.names()
    replica.drain()
    collector.wait_for("POST /t/a")


def test_a_collector_that_is_not_there_delays_neither_answers_nor_the_end(start: Start) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        replica = start(None, env={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "20"})
        for _ in range(20):
            assert replica.post(SAMPLE).status == 200
        replica.drain(timeout_s=1.0)
        eventually(lambda: not replica.alive(), "it has ended", 20.0)  # tries go on for a minute unless ended


def test_a_caller_that_does_not_sample_is_obeyed(start: Start, collector: Collector) -> None:
    replica = start(None, env=collector.env())
    assert replica.post(SAMPLE, {"traceparent": f"00-{TRACE_ID}-{CALLER}-00"}).status == 200
    assert replica.post(SAMPLE, TRACEPARENT).status == 200
    (request,) = collector.wait_for("POST /t/a")
    assert attributes(request)["cortex.request_id"] == "r-1"


@pytest.mark.parametrize("garbage", ["", "00-xyz", "ff" * 40, "é"])
def test_a_traceparent_that_is_none_is_ignored(start: Start, collector: Collector, garbage: str) -> None:
    replica = start(None, env=collector.env())
    assert replica.post(SAMPLE, {"traceparent": garbage}).status == 200
    (request,) = collector.wait_for("POST /t/a")
    assert request.parent_span_id == b""


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_TRACES_EXPORTER", "jaeger"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]
)
def test_a_way_of_sending_that_is_not_built_in_is_named_and_predictions_are_served(
    start: Start, collector: Collector, name: str, value: str
) -> None:
    replica = start(None, env=collector.env(**{name: value}))
    assert replica.post(SAMPLE).status == 200
    (warning,) = [line.text for line in replica.lines() if "traces" in line.text]
    assert f"{name} is {value}, and only" in warning


def test_without_its_variables_nothing_of_opentelemetry_is_imported(start: Start) -> None:
    replica = start(WHAT_IS_IMPORTED)
    assert replica.post(SAMPLE).json == []


def test_without_the_packages_a_warning_says_what_to_install_and_predictions_are_served(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").touch()
    launcher = LauncherProcess(folder, environment={"PYTHONPATH": str(tmp_path)})
    try:
        replica = launcher.fork(spec_for(folder, IRIS, env={"OTEL_TRACES_EXPORTER": "otlp"})).ready()
        assert replica.post(SAMPLE).status == 200
        (warning,) = [line.text for line in replica.lines() if "traces" in line.text]
        assert "cortex-serving[otel]" in warning
        replica.kill()
    finally:
        launcher.stop()
