"""An api of a folder as a function in this process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cortex import PredictionRefused
from cortex.client.project import ApiNotInFile
from cortex.errors import CortexError
from cortex.testing import local_api
from cortex.testing.local import NotLocal

SUM = helper.make_model(
    helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1, axes=[1])],
        "sum",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
    ),
    opset_imports=[helper.make_opsetid("", 11)],
    ir_version=8,
)
ONE = """
- {kind: deployment, name: d}
- {kind: api, name: a, model: m.onnx, request_handler: src/h.py, env: {WORD: hello}}
"""
PASS = "def pre_inference(sample, metadata):\n    return sample\n"
REFUSE = "import cortex\ndef pre_inference(sample, metadata):\n    raise cortex.RequestError(409, 'no', x=1)\n"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(handler: str = "", *, yaml: str = ONE, **files: str) -> Path:
        onnx.save(SUM, tmp_path / "m.onnx")
        (tmp_path / "cortex.yaml").write_text(yaml)
        for name, text in {"src/h.py": handler, **{f"{n}.py": t for n, t in files.items()}}.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


def test_a_sample_goes_through_what_it_goes_through_in_a_replica(write: Write) -> None:
    folder = write(
        "import os\nimport shared\n"
        "def pre_inference(sample, metadata):\n    return shared.row(sample)\n"
        "def post_inference(prediction, metadata, request):\n"
        "    said = request.headers.get('x-say'), request.query.get('q')\n"
        "    here = os.path.exists('m.onnx')\n"
        "    return {'sum': prediction[0], 'word': os.environ['WORD'], 'here': here, 'said': said}\n",
        shared="def row(sample):\n    return [sample['a'], sample['b'], sample['c']]\n",
    )
    before = dict(os.environ), [*sys.path], os.getcwd()
    with local_api(folder) as api:
        found = api({"a": 1, "b": 2, "c": 3.5}, headers={"X-Say": "this"}, query="q=1")
        assert found == {"sum": [[6.5]], "word": "hello", "here": True, "said": ["this", "1"]}
        assert [one.name for one in api.signature.inputs] == ["x"]
    assert (dict(os.environ), [*sys.path], os.getcwd()) == before
    assert "shared" not in sys.modules


def test_without_a_handler_the_model_answers_and_arrays_are_taken(write: Write) -> None:
    folder = write(yaml="- {kind: api, name: a, model: m.onnx}\n")
    with local_api(folder / "cortex.yaml") as api:
        assert api([1, 2, 3]) == [[[6.0]]]
        assert api(np.ones((2, 3), np.float32)) == [[[3.0], [3.0]]]


def test_a_handler_that_changed_is_imported_anew(write: Write) -> None:
    for number in (1, 2):
        folder = write(f"def post_inference(prediction, metadata):\n    return {number}\n")
        with local_api(folder) as api:
            assert api([1, 2, 3]) == number


def test_what_a_handler_raises_is_raised_with_its_traceback(write: Write) -> None:
    folder = write("def post_inference(prediction, metadata):\n    return {}['no']\n")
    with local_api(folder) as api, pytest.raises(KeyError) as caught:
        api([1, 2, 3])
    assert caught.traceback[-1].path == folder / "src" / "h.py"


@pytest.mark.parametrize(
    ("handler", "sample", "status", "error"),
    [
        (PASS, [1, 2], 422, "input-mismatch"),
        ("def post_inference(prediction, metadata):\n    pass\n", b"{", 415, "unsupported-content-type"),
        (REFUSE, [1], 409, ""),
        ("def post_inference(prediction, metadata):\n    return object()\n", [1, 2, 3], 500, "result-not-serialisable"),
        ("def pre_inference(sample, metadata):\n    pass\n", [1, 2, 3], 500, "handler-failed"),
    ],
)
def test_what_the_door_would_refuse_is_refused_alike(
    write: Write, handler: str, sample: Any, status: int, error: str
) -> None:
    with local_api(write(handler)) as api, pytest.raises(PredictionRefused) as caught:
        api(sample)
    assert caught.value.status == status
    assert error in ("", caught.value.error)
    assert caught.value.facts.get("x") == (1 if status == 409 else None)


def test_async_hooks_and_those_of_its_life_run(write: Write) -> None:
    folder = write(
        "import asyncio\nlife = []\n"
        "async def on_start():\n    life.append('on')\n"
        "def on_stop():\n    open('stopped', 'w').close()\n"
        "async def pre_inference(sample, metadata):\n    await asyncio.sleep(0)\n    return sample\n"
        "async def post_inference(prediction, metadata):\n    return life\n"
    )
    with local_api(folder) as api:
        assert api([1, 2, 3]) == ["on"]
    assert (folder / "stopped").exists()


def test_a_response_is_answered_by_its_body(write: Write) -> None:
    folder = write(
        "import cortex\ndef post_inference(prediction, metadata):\n"
        "    return cortex.Response(b'png', media_type='image/png')\n"
    )
    with local_api(folder) as api:
        assert api([1, 2, 3]) == b"png"


TWO = "- {kind: api, name: a, model: m.onnx}\n- {kind: api, name: b, model: m.onnx}\n"


def test_of_several_apis_one_is_named(write: Write) -> None:
    folder = write(yaml=TWO)
    with pytest.raises(NotLocal, match="several apis"), local_api(folder):
        pass
    with local_api(folder, "b") as api:
        assert api.name == "b"
    with pytest.raises(ApiNotInFile), local_api(folder, "c"):
        pass


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("- {kind: api, name: a, model: 's3://bucket/m.onnx'}\n", "is not fetched here"),
        ("- {kind: api, name: a, model: m.onnx, env: {LOCAL_T: {secret: t}}}\n", "secrets are not read here"),
        ("- {kind: api, name: a, model: n.onnx}\n", "n.onnx"),
    ],
)
def test_what_cannot_be_had_here_is_said(write: Write, yaml: str, says: str) -> None:
    with pytest.raises(CortexError) as caught, local_api(write(yaml=yaml)):
        pass
    assert says in str(caught.value)


def test_a_secret_may_stand_in_the_environment(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_T", "value")
    folder = write(
        "import os\ndef post_inference(prediction, metadata):\n    return os.environ['LOCAL_T']\n",
        yaml=ONE.replace("WORD: hello", "LOCAL_T: {secret: t}"),
    )
    with local_api(folder) as api:
        assert api([1, 2, 3]) == "value"
