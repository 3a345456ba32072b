"""The shortest way through everything that is real: part of `make smoke`, and so without the mark of slow tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract_harness import Connection, Home, rows_model, running_home, write_project

YAML = """
    - {kind: deployment, name: d}
    - {kind: api, name: x, model: m.onnx, request_handler: h.py, compute: {cpu: 20m}}
"""


@pytest.fixture
def home() -> Iterator[Home]:
    with running_home() as home:
        yield home


def test_an_api_is_deployed_asked_updated_spoilt_and_taken_down(home: Home) -> None:
    handler = "def post_inference(prediction, metadata):\n    return {}\n"
    project = write_project(
        home.path.parent / "p", {"cortex.yaml": YAML, "m.onnx": rows_model(), "h.py": handler.format("prediction[0]")}
    )
    home.deploy(project)
    with Connection(home.port) as connection:
        assert connection.ask("POST", "/d/x", b"[1, 2, 3, 4]").json == [[10.0]]
        write_project(project, {"h.py": handler.format("prediction")})
        assert "h.py changed" in home.deploy(project).out
        assert connection.ask("POST", "/d/x", b"[1, 2, 3, 4]").json == [[[10.0]]]
        write_project(project, {"h.py": "import no_such_module\n"})
        assert "error: handler-missing-module" in home.deploy(project, code=1).err
        assert connection.ask("POST", "/d/x", b"[1, 2, 3, 4]").json == [[[10.0]]]
    (shown,) = home.cortex("get", "-o", "json").json
    assert (shown["name"], shown["status"], shown["replicas"]["ready"]) == ("x", "live", 1)
    home.cortex("down")
    assert home.processes() == []
