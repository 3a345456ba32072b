"""The prediction API as a client meets it: over real HTTP, through the ingress, whatever a client sends."""

from __future__ import annotations

import gzip
import io
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract_harness import (
    Answer,
    Connection,
    Home,
    chunked,
    eventually,
    identity_model,
    model_of,
    request,
    resident_bytes,
    rows_model,
    running_home,
    write_project,
)
from onnx import TensorProto, helper
from refused_bodies import ROWS, Row

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parent / "golden" / "refused_bodies.txt"
MIB = 2**20

CORTEX_YAML = """
    - kind: deployment
      name: t
    - {kind: api, name: rows, model: rows.onnx, sample: [1, 2, 3, 4]}
    - {kind: api, name: a, model: a.onnx}
    - {kind: api, name: ab, model: ab.onnx}
    - {kind: api, name: fields, model: fields.onnx}
    - {kind: api, name: scalar, model: scalar.onnx}
    - {kind: api, name: picture, model: picture.onnx}
    - {kind: api, name: echo, model: rows.onnx, request_handler: echo.py}
    - {kind: api, name: small, model: rows.onnx, request_handler: echo.py, max_body: 1Ki}
    - {kind: api, name: large, model: rows.onnx, request_handler: size.py, max_body: 256Mi}
    - {kind: api, name: slow, model: rows.onnx, request_handler: slow.py, timeout: 500ms}
"""

ECHO = """
    import cortex

    def pre_inference(sample, metadata, request):
        request.state["sample"] = sample
        if isinstance(sample, dict):
            if "refuse" in sample:
                raise cortex.RequestError(sample["refuse"], "not like this", wanted="another one")
            if "fail" in sample:
                raise ValueError("on purpose")
            if "feed" in sample:
                return sample["feed"]
        return [1, 2, 3, 4]

    def post_inference(prediction, metadata, request):
        sample = request.state["sample"]
        return {"kind": type(sample).__name__, "sample": sample, "id": request.id}
"""

SIZE = """
    def pre_inference(sample, metadata, request):
        request.state["bytes"] = len(sample)
        return [1, 2, 3, 4]

    def post_inference(prediction, metadata, request):
        return request.state["bytes"]
"""

SLOW = """
    import asyncio

    async def pre_inference(sample, metadata):
        await asyncio.sleep(sample["s"])
        return [1, 2, 3, 4]
"""


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with running_home() as home:
        project = write_project(
            home.path.parent / "p",
            {
                "cortex.yaml": CORTEX_YAML,
                "echo.py": ECHO,
                "size.py": SIZE,
                "slow.py": SLOW,
                "rows.onnx": rows_model(),
                "a.onnx": rows_model(output="a"),
                "ab.onnx": rows_model(output="ab"),
                "fields.onnx": identity_model(
                    age=(TensorProto.INT64, ["n", 1]),
                    height=(TensorProto.FLOAT, ["n", 1]),
                    member=(TensorProto.BOOL, ["n", 1]),
                    city=(TensorProto.STRING, ["n", 1]),
                ),
                "scalar.onnx": identity_model(x=(TensorProto.INT64, [])),
                "picture.onnx": identity_model(x=(TensorProto.FLOAT, [1, 3, 4, 4])),
            },
        )
        home.deploy(project)
        yield home
