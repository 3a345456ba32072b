"""Random requests, for a few seconds; `bench/fuzz.py` is the long form. Nothing is answered with 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from contract_harness import Home, rows_model, running_home, write_project
from fuzzing import ANY_JSON, fuzz_endpoint
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schema_fuzzing import call, examples, fuzz_api, fuzz_control_plane

pytestmark = pytest.mark.slow

SECONDS = 4.0
REQUESTS = 300
"""Even if that takes longer."""
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


@pytest.fixture(autouse=True)
def deployed(home: Home) -> None:
    """Whatever another test asked to be deleted."""
    home.deploy(home.path.parent / "p")


@pytest.mark.parametrize("path", ["/z/raw", "/z/handled"])
def test_no_request_to_an_api_is_answered_with_5xx_or_left_waiting(home, path):
    pids = home.settled_replicas(path[1:])
    fuzzed = fuzz_endpoint(home, path, seconds=SECONDS, at_least=REQUESTS)
    assert fuzzed.bad == []
    assert fuzzed.count >= REQUESTS
    assert fuzzed.statuses[200] + fuzzed.statuses[204] > 0
    assert home.replica_pids(path[1:]) == pids, "no replica died of it"
    assert "Traceback" not in "\n".join(home.logs(path[1:]))


def test_an_api_answers_as_its_openapi_document_says(home):
    fuzzed = fuzz_api(home, "z/raw", examples(40))
    assert fuzzed.bad == []
    assert fuzzed.passed, fuzzed.talk
    assert fuzzed.statuses[200] > 5
    assert fuzzed.statuses[422] + fuzzed.statuses[400] > 5


def test_no_call_of_the_control_plane_is_answered_with_5xx(home):
    fuzzed = fuzz_control_plane(home, examples(5))
    assert fuzzed.bad == []
    assert fuzzed.passed, fuzzed.talk
    assert sum(fuzzed.statuses.values()) > 50
    assert "fault of ours" not in controlplane_log(home)


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


def test_a_deploy_that_is_almost_right_is_refused_and_no_fault_of_ours(home):
    """Deeper into a deploy than its document leads: names that the schema of cortex.yaml knows."""

    @settings(
        max_examples=100, phases=[Phase.generate], deadline=None, database=None, suppress_health_check=[*HealthCheck]
    )
    @given(body=st.builds(json.dumps, LIKE_A_DEPLOY))
    def send(body: str) -> None:
        status, answer = call(home, "POST", "/v1/deployments/fuzz", body)
        assert status < 500, (body, answer)
        assert b"internal-error" not in answer, (body, answer)

    send()
    assert "fault of ours" not in controlplane_log(home)


def controlplane_log(home: Home) -> str:
    return (home.path / "logs" / "controlplane.log").read_text()
