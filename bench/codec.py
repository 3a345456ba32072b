"""
What a replica adds to onnxruntime, per request, without any HTTP: body → sample → tensors → run → JSON.

    python bench/codec.py [--seconds 5]

Prints microseconds a request for an iris-like model (float32 [N, 4] to a label and three probabilities), each step by
itself, and the ratio of all steps to onnxruntime alone. Steps are measured in turns, and the fastest of many short
rounds counts: a shared machine only ever makes them slower.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from cortex.replica.backends import base
from cortex.replica.bodies.codec import Decoder
from cortex.replica.bodies.results import encode
from cortex.replica.tensors.conversion import Converter

BODY = b"[5.1, 3.5, 1.4, 0.2]"
CALLS_A_ROUND = 500


def save_model(path: Path) -> None:
    """A logistic regression over four features and three classes, as skl2onnx exports it (without ZipMap)."""
    classifier = helper.make_node(
        "LinearClassifier",
        ["input"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        classlabels_ints=[0, 1, 2],
        coefficients=np.linspace(-1, 1, 12).tolist(),
        intercepts=[0.1, 0.2, -0.3],
        post_transform="SOFTMAX",
    )
    graph = helper.make_graph(
        [classifier],
        "iris",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 4])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3]),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


def fastest_us(steps: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Microseconds a call of each step: the best round of `CALLS_A_ROUND` calls within `seconds`."""
    best = dict.fromkeys(steps, float("inf"))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(CALLS_A_ROUND):
                step()
            best[name] = min(best[name], (time.perf_counter() - start) / CALLS_A_ROUND * 1e6)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to measure (default 5)")
    seconds = parser.parse_args().seconds

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "iris.onnx"
        save_model(path)
        backend = base.load("onnx", str(path), threads=1)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    decode = Decoder(has_pre_inference=False).decode
    convert = Converter(backend.signature).convert
    sample = decode(BODY, "application/json")
    feeds = convert(sample)
    outputs = backend.run(feeds)
    prediction = backend.present(outputs, feeds)

    def request() -> bytes:
        given = convert(decode(BODY, "application/json"))
        return encode(backend.present(backend.run(given), given))

    steps: dict[str, Callable[[], object]] = {
        "decode": lambda: decode(BODY, "application/json"),
        "convert": lambda: convert(sample),
        "run": lambda: backend.run(feeds),
        "present": lambda: backend.present(outputs, feeds),
        "encode": lambda: encode(prediction),
        "request": request,
        "onnxruntime": lambda: session.run(None, feeds),
    }
    print(request().decode())
    best = fastest_us(steps, seconds)
    for name, microseconds in best.items():
        print(f"{name:12} {microseconds:7.2f} µs")
    print(f"{'ratio':12} {best['request'] / best['onnxruntime']:7.2f}   request / onnxruntime's own run()")


if __name__ == "__main__":
    main()
