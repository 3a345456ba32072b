"""Traces from the shell's variables to a collector: through control plane, agent, launcher, ingress and replica."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from contract_harness import Connection, eventually, rows_model, running_home, write_project
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CORTEX_YAML = """
- {kind: deployment, name: traced}
- {kind: api, name: x, model: m.onnx, request_handler: h.py, sample: [1, 2, 3, 4], compute: {cpu: 50m}}
- kind: api
  name: untraced
  model: m.onnx
  env: {OTEL_SDK_DISABLED: "true"}
  compute: {cpu: 50m}
"""
HANDLER = """
from opentelemetry import propagate

def post_inference(prediction, metadata):
    sent = {}
    propagate.inject(sent)
    return sent
"""


class Collector(ThreadingHTTPServer):
    """Keeps what is sent to it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Take)
        self.bodies: list[bytes] = []

    @property
    def spans(self) -> list[Span]:
        requests = map(ExportTraceServiceRequest.FromString, tuple(self.bodies))
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Take(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.timeout(200)
def test_the_shells_variables_reach_replicas_and_callers_traces_go_through(
    collector: Collector, tmp_path: Path
) -> None:
    project = write_project(tmp_path / "p", {"cortex.yaml": CORTEX_YAML, "m.onnx": rows_model(), "h.py": HANDLER})
    endpoint = f"http://127.0.0.1:{collector.server_address[1]}"
    with running_home(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_BSP_SCHEDULE_DELAY="50") as home:
        home.deploy(project)
        with Connection(home.port) as connection:
            traced = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
            assert connection.ask("POST", "/traced/untraced", b"[1, 2, 3, 4]", traced).status == 200
            answer = connection.ask("POST", "/traced/x", b"[1, 2, 3, 4]", traced)
            assert answer.json["traceparent"].startswith(f"00-{TRACE_ID}-")
        eventually(lambda: "POST /traced/x" in [span.name for span in collector.spans], "the request's span")
    # Everything has ended, and nobody has anything left to tell.
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE_ID}, "warm-ups are not traced"
    assert b"/traced/untraced" not in b"".join(collector.bodies)
