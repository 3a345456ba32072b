"""
Other models again, with numbers of fewer bits or fused operators: what onnxruntime's own tools make of them.

    pip install onnx==1.23.2 onnxruntime==1.32.0 sympy==1.14.0
    python bench/batching/makers/quantised.py FOLDER   # with the models of the other makers in it
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.float16 import convert_float_to_float16

STATIC = ("keras-mlp", "keras-cnn", "keras-transformer", "torch-convolutions-dynamo", "wide-mlp")
DYNAMIC = ("keras-mlp", "keras-lstm", "torch-encoder-dynamo", "torch-attention-mask-script")
HALF = ("keras-mlp", "keras-cnn", "torch-convolutions-dynamo")
FUSED = ("torch-hf-bert-script", "torch-hf-gpt2-script")


class Samples(CalibrationDataReader):
    """A few made-up rows."""

    def __init__(self, path: Path) -> None:
        random = np.random.default_rng(0)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._feeds = iter([{x.name: _made_up(x, random) for x in session.get_inputs()} for _ in range(8)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def _made_up(spec: Any, random: np.random.Generator) -> Any:
    shape = [size if isinstance(size, int) else 6 for size in spec.shape]
    if "int" in spec.type:
        return random.integers(1, 50, shape).astype(np.int64 if "64" in spec.type else np.int32)
    return random.standard_normal(shape).astype(np.float32)


def wide_mlp() -> onnx.ModelProto:
    """Four layers of 512: sums long enough for their order to show."""
    random = np.random.default_rng(0)
    nodes, constants, last = [], [], "x"
    for layer in range(4):
        weight = (random.standard_normal((512, 512)) / 16).astype(np.float32)
        constants.append(numpy_helper.from_array(weight, f"w{layer}"))
        nodes += [
            helper.make_node("MatMul", [last, f"w{layer}"], [f"sum{layer}"], f"sum{layer}"),
            helper.make_node("Relu", [f"sum{layer}"], [f"y{layer}"], f"relu{layer}"),
        ]
        last = f"y{layer}"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "wide",
        [value("x", TensorProto.FLOAT, ["N", 512])],
        [value(last, TensorProto.FLOAT, ["N", 512])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def fixed(folder: Path, name: str, suffix: str) -> None:
    """Scales from a few samples: `qdq` is float operators between conversions, `qoperator` integer ones."""
    quantize_static(
        folder / f"{name}.onnx",
        folder / f"{name}-{suffix}.onnx",
        Samples(folder / f"{name}.onnx"),
        quant_format=QuantFormat.QDQ if suffix == "qdq" else QuantFormat.QOperator,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=suffix == "qdq",
    )


def dynamic(folder: Path, name: str, suffix: str) -> None:
    """A scale for the whole tensor at each run."""
    quantize_dynamic(folder / f"{name}.onnx", folder / f"{name}-{suffix}.onnx")


def half(folder: Path, name: str, suffix: str) -> None:
    made = convert_float_to_float16(onnx.load(folder / f"{name}.onnx"), keep_io_types=name.startswith("torch"))
    onnx.save(made, folder / f"{name}-{suffix}.onnx")


def fused(folder: Path, name: str, suffix: str) -> None:
    """Operators of onnxruntime's own."""
    made = optimizer.optimize_model(
        str(folder / f"{name}.onnx"),
        model_type="gpt2" if "gpt2" in name else "bert",
        num_heads=2,
        hidden_size=16,
        opt_level=0,
    )
    made.save_model_to_file(str(folder / f"{name}-{suffix}.onnx"))


def main(folder: Path) -> None:
    logging.disable(logging.WARNING)
    onnx.save(wide_mlp(), folder / "wide-mlp.onnx")
    for names, suffix, make in (
        (STATIC, "qdq", fixed),
        (STATIC, "qoperator", fixed),
        (DYNAMIC, "dynamic", dynamic),
        (HALF, "half", half),
        (FUSED, "fused", fused),
    ):
        for name in names:
            try:
                make(folder, name, suffix)
            except Exception as error:
                print(f"{name}-{suffix}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
