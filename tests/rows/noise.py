"""
A model whose sums round otherwise: what a row may come to, by its own class, where labels or steps hang on rounding.

Behind each operator that makes floats a little is added, other numbers in each run and for each element; behind sums of
64-bit integers too, which onnxruntime adds up as floats. What a row answers together that it never answers by itself,
however its sums are rounded, is not rounding. Nothing here looks at the prover.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cortex.wire.batching import TOLERANCES

RUNS: Final = 24
"""So often a row is run: one that stands at a border falls to the same side in all of them once in 2^24 times."""

_NOISE: Final = {
    TensorProto.FLOAT16: 2e-3,
    TensorProto.FLOAT: 2e-6,
    TensorProto.DOUBLE: 1e-14,
    TensorProto.INT64: 1e-14,
}
"""
As a share of the largest magnitude of a value: some ten times what sums of a few hundred numbers are seen to move by,
and a fiftieth of what the tolerance allows a float32 output.
"""
_OLDEST: Final = 11
"""Operator sets before have no CumSum and no Round."""
SEED: Final = "what noise is made of"
"""An input that the noisy model has besides: any number, another one in each run."""
_SUMS_OF_INTEGERS: Final = frozenset({"Einsum", "ReduceMean", "ReduceSum"})


def noisy(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with noise behind its operators, and one more input; None where no value is known to be rounded."""
    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset < _OLDEST:
        return None
    made = onnx.ModelProto()
    made.CopyFrom(model)
    types = _types(model)
    graph = made.graph
    nodes = list(graph.node)
    del graph.node[:]
    count = 0
    for node in nodes:
        added = []
        for place, name in enumerate(node.output):
            kind = types.get(name, 0)
            if kind in _NOISE and (kind != TensorProto.INT64 or node.op_type in _SUMS_OF_INTEGERS):
                count += 1
                node.output[place] = f"{name} as it is"
                added += _noise(graph, f"{name} as it is", name, kind, count)
        graph.node.extend([node, *added])
    graph.input.append(helper.make_tensor_value_info(SEED, TensorProto.DOUBLE, []))
    return made if count else None


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of values, as far as they can be inferred."""
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # of a model that is not as ONNX has it
        graph = model.graph
    values = [*graph.value_info, *graph.output]
    return {value.name: value.type.tensor_type.elem_type for value in values if value.type.HasField("tensor_type")}


def _noise(graph: onnx.GraphProto, source: str, target: str, kind: int, number: int) -> list[onnx.NodeProto]:
    """`target`: `source` with something added to each element, up to a share of the largest magnitude."""

    def name(part: str) -> str:
        return f"{target} {part}"

    for part, value in {
        "share": np.float64(_NOISE[kind]),
        "number": np.float64(number * 0.618),
        "all": np.array([-1], np.int64),
        "along": np.int64(0),
    }.items():
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name(part)))
    one = numpy_helper.from_array(np.ones(1, np.float64))
    nodes = [
        helper.make_node("Cast", [source], [name("wide")], to=TensorProto.DOUBLE),
        helper.make_node("Abs", [name("wide")], [name("size")]),
        helper.make_node("ReduceMax", [name("size")], [name("most")], keepdims=0),
        helper.make_node("Mul", [name("most"), name("share")], [name("step")]),
        # No operator of random numbers: onnxruntime has none for the newest operator sets.
        helper.make_node("Shape", [name("wide")], [name("shape")]),
        helper.make_node("Reshape", [name("wide"), name("all")], [name("flat")]),
        helper.make_node("Shape", [name("flat")], [name("count")]),
        helper.make_node("ConstantOfShape", [name("count")], [name("ones")], value=one),
        helper.make_node("CumSum", [name("ones"), name("along")], [name("places")]),
        helper.make_node("Mul", [name("number"), SEED], [name("turn")]),
        helper.make_node("Mul", [name("places"), name("turn")], [name("angles")]),
        helper.make_node("Sin", [name("angles")], [name("chances")]),
        helper.make_node("Reshape", [name("chances"), name("shape")], [name("chance")]),
        helper.make_node("Mul", [name("chance"), name("step")], [name("noise")]),
        helper.make_node("Add", [name("wide"), name("noise")], [name("moved")]),
    ]
    last = name("moved")
    if kind == TensorProto.INT64:
        nodes.append(helper.make_node("Round", [last], [name("whole")]))
        last = name("whole")
    return [*nodes, helper.make_node("Cast", [last], [target], to=kind)]


def explained(together: Any, runs: list[Any], dtype: str) -> NDArray[np.bool_]:
    """
    Which rows are as they may come out by themselves.

    Args:
        together: an output's rows, in a batch.
        runs: the same rows by themselves, sums rounded in a way of its own each time.

    Returns:
        Shape (rows,). A number has to lie between the least and the largest that was seen, within the tolerance; all
        else has to be one of those that were seen.
    """
    if isinstance(together, list):
        return np.array([_is_one_of(item, [run[row] for run in runs]) for row, item in enumerate(together)], bool)
    if any(run.shape != together.shape for run in runs):
        return np.zeros(len(together), bool)
    rows = len(together)
    if together.dtype.kind not in "fiu":
        same = np.any([run == together for run in runs], axis=0)
        return np.asarray(same.reshape(rows, -1).all(axis=1))
    wide = [run.astype(np.float64) for run in runs]
    least, most = np.min(wide, axis=0).reshape(rows, -1), np.max(wide, axis=0).reshape(rows, -1)
    absolute, relative = TOLERANCES.get(dtype, (0.0, 0.0))
    magnitude = np.maximum(np.abs(least), np.abs(most)).max(axis=1, initial=0.0)
    slack = (absolute + relative * magnitude)[:, None]
    found = together.astype(np.float64).reshape(rows, -1)
    return np.asarray(((found >= least - slack) & (found <= most + slack)).all(axis=1))


def _is_one_of(item: Any, seen: list[Any]) -> bool:
    """Whether a list's item, a map or a tensor, is as one that was seen by itself."""
    if isinstance(item, Mapping):
        keys = list(item)
        tables = [np.array([list(one.values())]) for one in seen if list(one) == keys]
        return bool(tables) and bool(explained(np.array([list(item.values())]), tables, "float32")[0])
    return bool(explained(np.asarray(item)[None], [np.asarray(one)[None] for one in seen], str(item.dtype))[0])
