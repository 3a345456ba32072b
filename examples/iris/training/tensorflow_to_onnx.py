"""Write the weights of models/tensorflow as ONNX, same inputs and outputs: `tensorflow_to_onnx.py FILE`."""

import sys
from pathlib import Path

import numpy as np
import onnx
import tensorflow as tf
from onnx import TensorProto, helper, numpy_helper
from saved_model import FEATURES, LABELS, MODEL


def convert(saved_model: Path) -> onnx.ModelProto:
    """
    Return the network of `train_tensorflow.Iris` as ONNX.

    Args:
        saved_model: folder that `train_tensorflow.py` wrote.
    """
    checkpoint = tf.train.load_checkpoint(str(saved_model / "variables" / "variables"))

    def variable(name: str) -> np.ndarray:
        return checkpoint.get_tensor(f"{name}/.ATTRIBUTES/VARIABLE_VALUE")

    names = ("mean", "spread", "weights_1", "bias_1", "weights_2", "bias_2")
    constants = {name: variable(name) for name in names}
    constants |= {"column": np.array([1]), "labels": np.array(LABELS, dtype=object)}
    columns = [helper.make_node("Unsqueeze", [name, "column"], [f"{name}_column"]) for name in FEATURES]
    nodes = [
        *columns,  # (rows, 1) each
        helper.make_node("Concat", [node.output[0] for node in columns], ["features"], axis=1),  # (rows, 4)
        helper.make_node("Sub", ["features", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "spread"], ["scaled"]),
        helper.make_node("Gemm", ["scaled", "weights_1", "bias_1"], ["linear"]),
        helper.make_node("Relu", ["linear"], ["hidden"]),  # (rows, 16)
        helper.make_node("Gemm", ["hidden", "weights_2", "bias_2"], ["scores"]),  # (rows, 3)
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["number"], axis=1, keepdims=0),  # (rows,)
        helper.make_node("Gather", ["labels", "number"], ["label"]),
    ]
    graph = helper.make_graph(
        nodes,
        "iris",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"]) for name in FEATURES],
        [
            helper.make_tensor_value_info("label", TensorProto.STRING, ["rows"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    onnx.save(convert(MODEL), sys.argv[1])
