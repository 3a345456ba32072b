"""Random requests, for a few seconds; `bench/fuzz.py` is the long form. Nothing is answered with 5xx."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from contract_harness import Home, rows_model, running_home, write_project
from fuzzing import ANY_JSON, fuzz_endpoint
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

SECONDS = 4.0
HANDLER = """
    def pre_inference(sample, metadata, request):
        request.query, request.headers, request.content_type, request.body
        return [1, 2, 3, 4]
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with running_home() as home:
        project = write_project(
            home.path.parent / "p",
            {
                "cortex.yaml": """
                    - {kind: deployment, name: z}
                    - {kind: api, name: raw, model: m.onnx, compute: {cpu: 20m}}
                    - {kind: api, name: handled, model: m.onnx, request_handler: h.py, compute: {cpu: 20m}}
                """,
                "h.py": HANDLER,
                "m.onnx": rows_model(),
            },
        )
        home.deploy(project)
        yield home


@pytest.mark.parametrize("path", ["/z/raw", "/z/handled"])
def test_no_request_to_an_api_is_answered_with_5xx_or_left_waiting(home, path):
    pids = home.replica_pids(path[1:])
    fuzzed = fuzz_endpoint(home, path, seconds=SECONDS)
    assert fuzzed.bad == []
    assert sum(fuzzed.statuses.values()) > 50
    assert fuzzed.statuses[200] + fuzzed.statuses[204] > 0
    assert home.replica_pids(path[1:]) == pids, "no replica died of it"
    assert "Traceback" not in "\n".join(home.logs(path[1:]))


WORDS = st.sampled_from(["z", "raw", "-", "..", "%2e%2e", "a" * 43, "0" * 64, "f" * 64]) | st.text(max_size=12)


def test_no_call_of_the_control_plane_is_answered_with_5xx(home):
    token = (home.path / "token").read_text().strip()
    document = json.loads(call(home, "GET", "/openapi.json", None, token)[1])
    routes = [
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
        if path != "/v1/stop" and not (method == "delete" and "deployments" in path)
    ]

    @settings(
        max_examples=150, phases=[Phase.generate], deadline=None, database=None, suppress_health_check=[*HealthCheck]
    )
    @given(
        route=st.sampled_from(routes),
        words=st.lists(WORDS, min_size=3, max_size=3),
        query=st.dictionaries(st.sampled_from(["tail", "wait_s", "cursor", "since_wall_s", "replica", "token"]), WORDS),
        body=ANY_JSON.map(json.dumps) | st.builds(json.dumps, LIKE_A_DEPLOY) | st.text(),
    )
    def send(route: tuple[str, str], words: list[str], query: dict[str, str], body: str) -> None:
        method, path = route
        for name, word in zip(("name", "api", "sha256", "deployment"), [*words, words[0]], strict=True):
            path = path.replace(f"{{{name}}}", quote(word, safe="") or "x")
        path += "?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in {**query, "timeout_s": "0"}.items())
        status, answer = call(home, method, path, body if method in ("POST", "PUT") else None, token)
        assert status < 500, (method, path, body, answer)
        assert b"internal-error" not in answer, (method, path, body, answer)

    send()
    log = (Path(home.path) / "logs" / "controlplane.log").read_text()
    assert "fault of ours" not in log


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
LIKE_A_DEPLOY: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {"deployment": st.just("fuzz"), "source": st.just("/tmp/x"), "dry_run": st.just(True)},
    optional={
        "apis": st.lists(
            st.fixed_dictionaries(
                {
                    "spec": st.dictionaries(
                        st.sampled_from(["name", "model", "env", "compute", "sample", "timeout"]), ANY_JSON
                    )
                },
                optional={
                    "model": st.none()
                    | st.fixed_dictionaries({"files": st.just([]), "entry": st.text(), "format": SCALARS}),
                    "sample": SCALARS,
                },
            ),
            max_size=3,
        ),
        "project": st.lists(
            st.fixed_dictionaries({"path": st.text(max_size=9), "sha256": st.sampled_from(["0" * 64, "", "x"])}),
            max_size=3,
        ),
    },
)


def call(home: Home, method: str, path: str, body: str | None, token: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", home.operator_port, timeout=30)
    try:
        data = None if body is None else body.encode("utf-8", "surrogatepass")
        connection.request(method, path, data, {"authorization": f"Bearer {token}", "content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()
