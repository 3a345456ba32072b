"""
What batching gains on models whose rows are proved to be apart: `batching: auto` beside `off`, in one run.

    .venv/bin/python bench/batches.py [--seconds 5] [--rounds 3] [--connections 32]

Needs `wrk` on PATH (Debian: `apt-get install wrk`). The same model serves twice, by one replica with one cpu each;
rounds take turns, so that what else the machine does hits both alike. The figures are medians. A model that takes less
than a millisecond runs on the event loop and is not batched: there is nothing to gain.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from throughput import ask, load
from world import a_world

RANDOM = np.random.default_rng(0)


def weights(name: str, *shape: int) -> onnx.TensorProto:
    """Small enough that values neither vanish nor grow."""
    fan_in = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
    values = RANDOM.standard_normal(shape) / np.sqrt(fan_in)
    return numpy_helper.from_array(values.astype(np.float32), name)


def model(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], *trailing: int) -> onnx.ModelProto:
    """From an input `x` of these trailing sizes to an output `y`."""
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *trailing])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", None])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def perceptron() -> tuple[onnx.ModelProto, object]:
    widths = [16, 1024, 1024, 1024, 1024, 4]
    nodes, constants, last = [], [], "x"
    for layer, (before, after) in enumerate(pairwise(widths)):
        constants.append(weights(f"w{layer}", before, after))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]))
        last = "y" if layer == len(widths) - 2 else f"r{layer}"
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [last]))
    return model(nodes, constants, 16), [[0.5] * 16]


def convolutions() -> tuple[onnx.ModelProto, object]:
    channels = [1, 32, 64, 64]
    nodes, constants, last = [], [], "x"
    for layer, (before, after) in enumerate(pairwise(channels)):
        constants.append(weights(f"w{layer}", after, before, 3, 3))
        nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        last = f"r{layer}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["y"]))
    return model(nodes, constants, 1, 16, 16), [[[[0.5] * 16] * 16]]


def recurrence() -> tuple[onnx.ModelProto, object]:
    hidden = 256
    constants = [weights("w", 1, 4 * hidden, 8), weights("r", 1, 4 * hidden, hidden)]
    constants.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["steps", "w", "r"], ["", "last"], hidden_size=hidden),
        helper.make_node("Squeeze", ["last", "first"], ["y"]),
    ]
    return model(nodes, constants, 20, 8), [[[0.5] * 8] * 20]


MODELS: dict[str, Callable[[], tuple[onnx.ModelProto, object]]] = {
    "perceptron of four 1024×1024 layers": perceptron,
    "three convolutions of 16×16 images": convolutions,
    "LSTM of 256 over 20 steps": recurrence,
}


def main() -> int:
    options = _options()
    wrk = shutil.which("wrk")
    if wrk is None:
        print("wrk is not on PATH; on Debian: apt-get install wrk", file=sys.stderr)
        return 2
    print(f"{options.connections} connections, {options.rounds} rounds of {options.seconds:g} s")
    print(f"  {'':<36} {'off':>9} {'auto':>9}   ratio      p50 off      auto")
    for name, make in MODELS.items():
        made, sample = make()
        with a_world("bench") as world:
            onnx.save(made, world.project / "model.onnx")
            (world.project / "cortex.yaml").write_text(
                "- {kind: deployment, name: bench}\n"
                "- {kind: api, name: 'off', model: model.onnx, batching: 'off', compute: {cpu: 1}}\n"
                "- {kind: api, name: auto, model: model.onnx, compute: {cpu: 1}}\n"
            )
            world.must("deploy")
            body = json.dumps(sample)
            urls = {mode: f"http://127.0.0.1:{world.port}/bench/{mode}" for mode in ("off", "auto")}
            if not np.allclose(*(json.loads(ask(url, body)) for url in urls.values()), rtol=1e-4, atol=1e-6):
                print(f"{name}: answers differ", file=sys.stderr)
                return 1
            rates: dict[str, list[float]] = {mode: [] for mode in urls}
            p50s: dict[str, list[float]] = {mode: [] for mode in urls}
            for _ in range(options.rounds):
                for mode, url in urls.items():
                    rate, p50_ms, _ = load(wrk, url, body, options.connections, options.seconds)
                    rates[mode].append(rate)
                    p50s[mode].append(p50_ms)
        off, auto = (statistics.median(rates[mode]) for mode in urls)
        slow_ms, quick_ms = (statistics.median(p50s[mode]) for mode in urls)
        line = f"  {name:<36} {off:>7,.0f}/s {auto:>7,.0f}/s   {auto / off:4.2f}x"
        print(f"{line}   {slow_ms:7.2f} ms {quick_ms:7.2f} ms")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of load in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=32)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
