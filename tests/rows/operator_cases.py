"""
Single operators with every choice of their inputs as rows: all node cases of the `onnx` package, and those of domains
that it has no cases of.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import pkgutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
from cases import Array, Case, row_counts
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.backend.test.case import node as node_cases
from truth import Batch, stored

from cortex.replica.backends.base import InferenceFailed, ModelError
from cortex.replica.backends.onnx import load

MOST_CHOICES: Final = 24
"""Of inputs whose first dimension is the rows, for one operator."""
MOST_CHOICES_INSIDE: Final = 8
"""Of inputs whose second, or third, dimension is the rows."""


class Named(NamedTuple):
    """One operator, or a few, with an example."""

    name: str
    model: onnx.ModelProto
    inputs: Sequence[Array]
    ranks: Sequence[int | None]
    """Of the outputs; None where there is none, or it is not known."""


class Choice(NamedTuple):
    """Which inputs are rows."""

    inputs: tuple[int, ...]
    axis: int
    """In which dimension the operator sees them; its outputs are expected to have them there, too."""
    is_free: bool
    """Whether the other sizes are not declared."""


LIBRARIES: Final = "libraries"
"""Stands for our own nodes among the modules of the `onnx` package."""


def modules() -> list[str]:
    """Where nodes come from: modules of the `onnx` package, about one for each operator, and our own list."""
    found = pkgutil.walk_packages(node_cases.__path__, node_cases.__name__ + ".")
    return [LIBRARIES, *sorted(module.name.removeprefix(node_cases.__name__ + ".") for module in found)]


@functools.cache
def nodes_of(module: str) -> Sequence[Named]:
    """
    The nodes of a module whose inputs are all tensors.

    The package makes all cases of a module when it is imported, which for all of them takes seconds.
    """
    if module == LIBRARIES:
        return list(library_nodes())
    name = f"{node_cases.__name__}.{module}"
    sys.modules.pop(name, None)  # it tells its cases when it is imported, and only then
    node_cases._existing_names.clear()  # of cases that another test has made in this process
    before = len(node_cases._NodeTestCases)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, where a case is about overflow
        importlib.import_module(name)
    return [
        Named(case.name, case.model, case.data_sets[0][0], [getattr(one, "ndim", None) for one in case.data_sets[0][1]])
        for case in node_cases._NodeTestCases[before:]
        if case.model is not None
        and case.data_sets
        and all(isinstance(value, np.ndarray) for value in case.data_sets[0][0])
    ]


def variants(named: Named) -> Iterator[Case]:
    """
    The model with each choice of its inputs as rows and the others as constants: first dimensions with the other sizes
    fixed and with all of them free, and second and third dimensions.
    """
    for choice in _choices(named):
        yield _variant(named, choice)


def variant(named: Named, number: int) -> Case:
    """One of the variants, counted from 0."""
    return _variant(named, _choices(named)[number])


def _choices(named: Named) -> list[Choice]:
    if len(named.model.graph.input) != len(named.inputs):
        return []
    found = [Choice(inputs, 0, is_free) for inputs in _subsets(named, 0, MOST_CHOICES) for is_free in (False, True)]
    return found + [
        Choice(inputs, axis, False) for axis in (1, 2) for inputs in _subsets(named, axis, MOST_CHOICES_INSIDE)
    ]


def _subsets(named: Named, axis: int, most: int) -> list[tuple[int, ...]]:
    """Sets of inputs that have such a dimension, small ones first."""
    possible = [index for index, value in enumerate(named.inputs) if value.ndim > axis and value.shape[axis] > 0]
    subsets = itertools.chain.from_iterable(
        itertools.combinations(possible, count) for count in range(1, len(possible) + 1)
    )
    return list(itertools.islice(subsets, most))


def _variant(named: Named, choice: Choice) -> Case:
    made = onnx.ModelProto()
    made.CopyFrom(named.model)
    names = [value.name for value in named.model.graph.input]
    del made.graph.input[:]
    examples: dict[str, Array] = {}
    before = []
    for index, (value, example) in enumerate(zip(named.model.graph.input, named.inputs, strict=True)):
        if index not in choice.inputs:
            made.graph.initializer.append(_tensor(example, value))
            continue
        name = f"rows_of_{value.name}" if choice.axis else value.name
        examples[name] = rows = np.moveaxis(example, choice.axis, 0)
        trailing = [None if choice.is_free else size for size in rows.shape[1:]]
        element_type = value.type.tensor_type.elem_type
        made.graph.input.append(helper.make_tensor_value_info(name, element_type, ["N", *trailing]))
        if choice.axis:
            order = [*range(1, choice.axis + 1), 0, *range(choice.axis + 1, example.ndim)]
            before.append(helper.make_node("Transpose", [name], [value.name], perm=order))
    _bring_rows_first(made.graph, choice.axis, named.ranks)
    nodes = [*before, *made.graph.node]
    del made.graph.node[:]
    made.graph.node.extend(nodes)

    def draw(rng: np.random.Generator) -> Batch:
        return [
            {name: _varied(rng, example[rng.integers(0, len(example), rows)]) for name, example in examples.items()}
            for rows in row_counts(rng)
        ]

    chosen = ", ".join(names[index] for index in choice.inputs)
    where = f" as dimension {choice.axis}" if choice.axis else ""
    return Case(f"{named.name}: rows in {chosen}{where}{', sizes free' if choice.is_free else ''}", made, draw)


def _bring_rows_first(graph: onnx.GraphProto, axis: int, ranks: Sequence[int | None]) -> None:
    """Let each output have dimension `axis` as its first one, and no declared shape."""
    for index, output in enumerate(graph.output):
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
        rank = ranks[index] if index < len(ranks) else None
        if axis and rank is not None and rank > axis:
            order = [axis, *(one for one in range(rank) if one != axis)]
            graph.node.append(helper.make_node("Transpose", [output.name], [f"rows_of_{output.name}"], perm=order))
            output.name = f"rows_of_{output.name}"


def _tensor(example: Array, value: onnx.ValueInfoProto) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(example, value.name)
    if tensor.data_type != value.type.tensor_type.elem_type:  # a type that numpy has under another name
        raise ValueError(f"{value.name}: {tensor.data_type}, not {value.type.tensor_type.elem_type}")
    return tensor


def _varied(rng: np.random.Generator, example: Array) -> Array:
    """The same kind of values, but others."""
    if example.dtype.kind == "f":
        way = rng.integers(7)
        if way == 0:
            return np.asarray(-example)
        if way == 1:
            return np.asarray(example * example.dtype.type(100))
        if way == 2:
            return np.asarray(rng.standard_normal(example.shape).astype(example.dtype))
        if way == 3:
            return np.zeros_like(example)
    if example.size and rng.random() < 0.5:
        return np.asarray(rng.permutation(example.reshape(-1)).reshape(example.shape))
    return np.array(example)


# ---- domains without cases in the `onnx` package ----------------------------------------------------------------

_RNG: Final = np.random.default_rng(9)


def _noise(*shape: int) -> NDArray[np.float32]:
    return _RNG.standard_normal(shape).astype(np.float32)


def _ints(low: int, high: int, *shape: int, dtype: Any = np.int64) -> Array:
    return _RNG.integers(low, high, shape).astype(dtype)


def _texts(*shape: int) -> Array:
    return _RNG.choice(np.array(["a", "b", "c", "a b", "the cat", "Dog"], object), shape)


def library_nodes() -> Iterator[Named]:
    """Operators of `ai.onnx.ml` and `com.microsoft`, each as its libraries write it."""
    for operator, outputs, inputs, attributes in _ML:
        yield _node_of("ai.onnx.ml", operator, outputs, inputs, attributes)
    for operator, outputs, inputs, attributes in _MICROSOFT:
        yield _node_of("com.microsoft", operator, outputs, inputs, attributes)
    for operator, outputs, inputs, attributes in _STANDARD:
        yield _node_of("", operator, outputs, inputs, attributes)


def _node_of(
    domain: str, operator: str, outputs: int, inputs: Sequence[Array | None], attributes: Mapping[str, Any]
) -> Named:
    names = ["" if value is None else f"x{index}" for index, value in enumerate(inputs)]
    given = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    node = helper.make_node(operator, names, [f"y{index}" for index in range(outputs)], domain=domain, **attributes)
    declared = [
        helper.make_tensor_value_info(name, numpy_helper.from_array(value, name).data_type, value.shape)
        for name, value in given.items()
    ]
    graph = helper.make_graph([node], "g", declared, [onnx.ValueInfoProto(name=name) for name in node.output])
    opsets = [
        helper.make_opsetid("", 18),
        helper.make_opsetid("ai.onnx.ml", 3),
        helper.make_opsetid("com.microsoft", 1),
    ]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    written = ", ".join(f"{key}={value!r}" for key, value in attributes.items() if not isinstance(value, list))
    name = f"{domain}.{operator}" if domain else operator
    return Named(f"{name}({written})" if written else name, model, list(given.values()), _ranks(model, given))


def _ranks(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[int | None]:
    """Of the outputs, as they come out."""
    with stored(model) as path:
        try:
            outputs = load(str(path)).run(feeds)
        except (ModelError, InferenceFailed):
            return []
    return [getattr(output, "ndim", None) for output in outputs]


_STUMPS: Final[Mapping[str, Any]] = {
    "nodes_treeids": [0, 0, 0, 1, 1, 1],
    "nodes_nodeids": [0, 1, 2, 0, 1, 2],
    "nodes_featureids": [0, 0, 0, 1, 0, 0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"] * 2,
    "nodes_values": [0.1, 0.0, 0.0, -0.2, 0.0, 0.0],
    "nodes_truenodeids": [1, 0, 0, 1, 0, 0],
    "nodes_falsenodeids": [2, 0, 0, 2, 0, 0],
}


def _classifier(**more: Any) -> dict[str, Any]:
    return {
        **_STUMPS,
        "class_treeids": [0, 0, 1, 1],
        "class_nodeids": [1, 2, 1, 2],
        "class_ids": [0, 1, 0, 1],
        "class_weights": [0.6, 0.7, 0.3, 0.8],
        **more,
    }


def _regressor(**more: Any) -> dict[str, Any]:
    return {
        **_STUMPS,
        "target_treeids": [0, 0, 1, 1],
        "target_nodeids": [1, 2, 1, 2],
        "target_ids": [0, 0, 0, 0],
        "target_weights": [0.6, -0.7, 0.3, 0.8],
        "n_targets": 1,
        **more,
    }


_SVM: Final[Mapping[str, Any]] = {
    "kernel_type": "RBF",
    "kernel_params": [0.5, 0.0, 3.0],
    "coefficients": [0.5, -0.7, 0.2],
    "support_vectors": [float(value) for value in _noise(9)],
    "rho": [0.1],
}

_Node = tuple[str, int, Sequence[Any], Mapping[str, Any]]

_ML: Final[Sequence[_Node]] = [
    ("TreeEnsembleClassifier", 2, [_noise(4, 3)], _classifier(classlabels_int64s=[5, 7], post_transform="SOFTMAX")),
    ("TreeEnsembleClassifier", 2, [_noise(4, 3)], _classifier(classlabels_strings=["no", "yes"])),
    ("TreeEnsembleClassifier", 2, [_ints(-2, 3, 4, 3)], _classifier(classlabels_int64s=[5, 7])),
    *(
        ("TreeEnsembleRegressor", 1, [_noise(4, 3)], _regressor(aggregate_function=aggregate))
        for aggregate in ("SUM", "AVERAGE", "MIN", "MAX")
    ),
    ("TreeEnsembleRegressor", 1, [_noise(4, 3).astype(np.float64)], _regressor()),
    ("LinearClassifier", 2, [_noise(4, 3)], {
        "coefficients": [float(value) for value in _noise(9)], "intercepts": [0.1, 0.2, -0.3],
        "classlabels_ints": [1, 2, 3], "multi_class": 1, "post_transform": "SOFTMAX"}),
    ("LinearClassifier", 2, [_noise(4, 3)], {
        "coefficients": [float(value) for value in _noise(6)], "intercepts": [0.1, -0.3],
        "classlabels_strings": ["no", "yes"], "post_transform": "LOGISTIC"}),
    ("LinearClassifier", 2, [_noise(3)], {
        "coefficients": [float(value) for value in _noise(6)], "intercepts": [0.1, -0.3], "classlabels_ints": [1, 2]}),
    ("LinearRegressor", 1, [_noise(4, 3)], {
        "coefficients": [float(value) for value in _noise(6)], "intercepts": [0.1, -0.3], "targets": 2}),
    ("SVMClassifier", 2, [_noise(4, 3)], {
        **_SVM, "classlabels_ints": [0, 1], "vectors_per_class": [2, 1], "post_transform": "NONE"}),
    ("SVMClassifier", 2, [_noise(4, 3)], {
        **_SVM, "classlabels_strings": ["no", "yes"], "vectors_per_class": [2, 1],
        "prob_a": [0.3], "prob_b": [0.1]}),
    ("SVMRegressor", 1, [_noise(4, 3)], {**_SVM, "n_supports": 3}),
    *(("Normalizer", 1, [_noise(4, 3)], {"norm": norm}) for norm in ("MAX", "L1", "L2")),
    ("Normalizer", 1, [_noise(4)], {"norm": "L2"}),
    ("Scaler", 1, [_noise(4, 3)], {"offset": [0.1, 0.2, 0.3], "scale": [1.0, 2.0, 3.0]}),
    ("Scaler", 1, [_noise(4, 3)], {"offset": [0.1], "scale": [2.0]}),
    ("Scaler", 1, [_noise(4)], {"offset": [0.1, 0.2, 0.3, 0.4], "scale": [1.0, 2.0, 3.0, 4.0]}),
    ("Imputer", 1, [_noise(4, 3)], {"imputed_value_floats": [0.1, 0.2, 0.3], "replaced_value_float": 0.0}),
    ("Imputer", 1, [_noise(4)], {"imputed_value_floats": [0.1], "replaced_value_float": 0.0}),
    ("Binarizer", 1, [_noise(4, 3)], {"threshold": 0.2}),
    ("LabelEncoder", 1, [_texts(4, 2)], {
        "keys_strings": ["a", "b"], "values_int64s": [3, 4], "default_int64": -1}),
    ("LabelEncoder", 1, [_ints(0, 4, 4)], {
        "keys_int64s": [0, 1, 2], "values_strings": ["x", "y", "z"], "default_string": "?"}),
    ("LabelEncoder", 1, [_noise(4)], {"keys_floats": [0.0, 1.0], "values_floats": [5.0, 6.0], "default_float": -1.0}),
    ("CategoryMapper", 1, [_texts(4, 2)], {
        "cats_strings": ["a", "b"], "cats_int64s": [3, 4], "default_int64": -1}),
    ("OneHotEncoder", 1, [_ints(0, 3, 4, 2)], {"cats_int64s": [0, 1, 2], "zeros": 1}),
    ("OneHotEncoder", 1, [_texts(4)], {"cats_strings": ["a", "b"], "zeros": 1}),
    ("ArrayFeatureExtractor", 1, [_noise(4, 3), _ints(0, 3, 2)], {}),
    ("ArrayFeatureExtractor", 1, [_noise(4), _ints(0, 4, 3)], {}),
    ("ArrayFeatureExtractor", 1, [_noise(1, 5), _ints(0, 5, 4)], {}),
    ("ArrayFeatureExtractor", 1, [_noise(1, 5), _ints(0, 5, 4, 1)], {}),
    ("FeatureVectorizer", 1, [_noise(4, 3), _noise(4, 2)], {"inputdimensions": [3, 2]}),
    ("ZipMap", 1, [_noise(4, 3)], {"classlabels_int64s": [1, 2, 3]}),
    ("ZipMap", 1, [_noise(4, 2)], {"classlabels_strings": ["no", "yes"]}),
    ("ZipMap", 1, [_noise(3)], {"classlabels_int64s": [1, 2, 3]}),
]  # fmt: skip

_BYTE: Final = np.uint8
_SCALE: Final = np.float32(0.05)
_ZERO: Final = np.uint8(128)


def _bytes(*shape: int) -> Array:
    return _ints(0, 255, *shape, dtype=_BYTE)


_MICROSOFT: Final[Sequence[_Node]] = [
    ("FusedMatMul", 1, [_noise(4, 3), _noise(3, 2)], {"alpha": 0.5}),
    ("FusedMatMul", 1, [_noise(4, 3), _noise(2, 3)], {"transB": 1}),
    ("FusedMatMul", 1, [_noise(4, 3), _noise(4, 2)], {"transA": 1}),
    ("FusedMatMul", 1, [_noise(2, 4, 3), _noise(2, 3, 2)], {}),
    ("FusedMatMul", 1, [_noise(2, 4, 3), _noise(2, 4, 3)], {"transA": 1}),
    ("FusedMatMul", 1, [_noise(2, 4, 3), _noise(4, 3, 2)], {"transBatchA": 1}),
    ("FusedMatMul", 1, [_noise(2, 4, 3), _noise(3, 2, 2)], {"transBatchB": 1}),
    ("FusedGemm", 1, [_noise(4, 3), _noise(3, 2), _noise(2)], {"activation": "Relu"}),
    ("FusedGemm", 1, [_noise(3, 4), _noise(3, 2)], {"transA": 1, "activation": "Relu"}),
    ("FusedConv", 1, [_noise(2, 3, 5, 5), _noise(4, 3, 3, 3), _noise(4)], {"activation": "Relu"}),
    ("FusedConv", 1, [_noise(2, 3, 5, 5), _noise(4, 3, 3, 3), _noise(4), _noise(2, 4, 3, 3)], {"activation": "Relu"}),
    ("Gelu", 1, [_noise(4, 3)], {}),
    ("FastGelu", 1, [_noise(4, 3)], {}),
    ("FastGelu", 1, [_noise(4, 3), _noise(3)], {}),
    ("FastGelu", 1, [_noise(4), _noise(4)], {}),
    ("QuickGelu", 1, [_noise(4, 3)], {"alpha": 1.7}),
    ("BiasGelu", 1, [_noise(4, 3), _noise(3)], {}),
    ("BiasGelu", 1, [_noise(4), _noise(4)], {}),
    ("SkipLayerNormalization", 1, [_noise(2, 4, 3), _noise(2, 4, 3), _noise(3), _noise(3), _noise(3)], {}),
    ("SkipLayerNormalization", 1, [_noise(4, 3), _noise(4, 3), _noise(3)], {}),
    ("SkipLayerNormalization", 1, [_noise(2, 4, 3), _noise(1, 4, 3), _noise(3)], {}),
    ("SkipLayerNormalization", 1, [_noise(2, 4, 3), _noise(4, 3), _noise(3)], {}),
    ("SkipSimplifiedLayerNormalization", 1, [_noise(2, 4, 3), _noise(2, 4, 3), _noise(3)], {}),
    ("EmbedLayerNormalization", 2, [
        _ints(0, 5, 2, 4, dtype=np.int32), _ints(0, 2, 2, 4, dtype=np.int32), _noise(5, 3), _noise(4, 3), _noise(2, 3),
        _noise(3), _noise(3)], {}),
    ("EmbedLayerNormalization", 2, [
        _ints(0, 5, 2, 4, dtype=np.int32), None, _noise(5, 3), _noise(4, 3), None, _noise(3), _noise(3), None,
        _ints(0, 4, 1, 4, dtype=np.int32)], {}),
    ("Attention", 1, [_noise(2, 3, 4), _noise(4, 12), _noise(12)], {"num_heads": 2}),
    ("Attention", 1, [_noise(2, 3, 4), _noise(4, 12), _noise(12)], {"num_heads": 2, "unidirectional": 1}),
    ("Attention", 1, [_noise(2, 3, 4), _noise(4, 12), _noise(12), _ints(0, 2, 2, 3, dtype=np.int32)], {"num_heads": 2}),
    ("Attention", 1, [_noise(2, 3, 4), _noise(4, 12), _noise(12), _ints(1, 4, 2, dtype=np.int32)], {"num_heads": 2}),
    ("Attention", 1, [_noise(2, 3, 4), _noise(4, 12), _noise(12), _ints(1, 4, 4, dtype=np.int32)], {"num_heads": 2}),
    ("Attention", 1, [
        _noise(2, 3, 4), _noise(4, 12), _noise(12), _ints(0, 2, 2, 3, 3, dtype=np.int32)], {"num_heads": 2}),
    ("Attention", 1, [
        _noise(2, 3, 4), _noise(4, 12), _noise(12), None, None, _noise(2, 2, 3, 3)], {"num_heads": 2}),
    ("Attention", 1, [
        _noise(2, 3, 4), _noise(4, 12), _noise(12), None, None, _noise(1, 2, 3, 3)], {"num_heads": 2}),
    ("Attention", 2, [
        _noise(2, 3, 4), _noise(4, 12), _noise(12), None, _noise(2, 2, 2, 1, 2)], {"num_heads": 2}),
    ("MultiHeadAttention", 1, [_noise(2, 3, 4), _noise(2, 3, 4), _noise(2, 3, 4)], {"num_heads": 2}),
    ("MultiHeadAttention", 1, [_noise(2, 3, 4), _noise(2, 5, 4), _noise(2, 5, 4), _noise(12)], {"num_heads": 2}),
    ("MultiHeadAttention", 1, [
        _noise(2, 3, 4), _noise(2, 3, 4), _noise(2, 3, 4), None, _ints(0, 2, 2, 3, dtype=np.int32)], {"num_heads": 2}),
    ("MultiHeadAttention", 1, [
        _noise(2, 3, 4), _noise(2, 3, 4), _noise(2, 3, 4), None, _ints(1, 4, 2, dtype=np.int32)], {"num_heads": 2}),
    ("MultiHeadAttention", 1, [
        _noise(2, 3, 4), _noise(2, 3, 4), _noise(2, 3, 4), None, None, _noise(1, 2, 3, 3)], {"num_heads": 2}),
    ("QAttention", 1, [
        _bytes(2, 3, 4), _ints(-50, 50, 4, 12, dtype=np.int8), _noise(12), _SCALE, _SCALE, None, _ZERO, np.int8(0)],
        {"num_heads": 2}),
    ("GroupQueryAttention", 3, [
        _noise(2, 3, 16), _noise(2, 3, 16), _noise(2, 3, 16), _noise(2, 2, 3, 8), _noise(2, 2, 3, 8),
        np.array([2, 2], np.int32), np.int32(3)], {"num_heads": 2, "kv_num_heads": 2}),
    ("RotaryEmbedding", 1, [_noise(2, 3, 8), np.array([0], np.int64), _noise(5, 4), _noise(5, 4)], {}),
    ("RotaryEmbedding", 1, [_noise(2, 3, 8), _ints(0, 5, 2, 3), _noise(5, 4), _noise(5, 4)], {}),
    ("QLinearAdd", 1, [_bytes(4, 3), _SCALE, _ZERO, _bytes(4, 3), _SCALE, _ZERO, _SCALE, _ZERO], {}),
    ("QLinearAdd", 1, [_bytes(4, 3), _SCALE, _ZERO, _bytes(3), _SCALE, _ZERO, _SCALE, _ZERO], {}),
    ("QLinearMul", 1, [_bytes(4, 3), _SCALE, _ZERO, _bytes(1, 3), _SCALE, _ZERO, _SCALE, _ZERO], {}),
    ("QLinearSigmoid", 1, [_bytes(4, 3), _SCALE, _ZERO, _SCALE, _ZERO], {}),
    ("QLinearLeakyRelu", 1, [_bytes(4, 3), _SCALE, _ZERO, _SCALE, _ZERO], {"alpha": 0.1}),
    ("QLinearConcat", 1, [_SCALE, _ZERO, _bytes(4, 3), _SCALE, _ZERO, _bytes(4, 2), _SCALE, _ZERO], {"axis": 1}),
    ("QLinearConcat", 1, [_SCALE, _ZERO, _bytes(4, 3), _SCALE, _ZERO, _bytes(2, 3), _SCALE, _ZERO], {"axis": 0}),
    ("QLinearAveragePool", 1, [_bytes(2, 3, 4, 4), _SCALE, _ZERO, _SCALE, _ZERO], {"kernel_shape": [2, 2]}),
    ("QLinearGlobalAveragePool", 1, [_bytes(2, 3, 4, 4), _SCALE, _ZERO, _SCALE, _ZERO], {}),
    ("QLinearGlobalAveragePool", 1, [_bytes(2, 4, 4, 3), _SCALE, _ZERO, _SCALE, _ZERO], {"channels_last": 1}),
    ("QLinearSoftmax", 1, [_bytes(4, 3), _SCALE, _ZERO, np.float32(1 / 256), np.uint8(0)], {"axis": 1, "opset": 13}),
    ("QLinearSoftmax", 1, [_bytes(4, 3), _SCALE, _ZERO, np.float32(1 / 256), np.uint8(0)], {"axis": 0, "opset": 13}),
    ("QLinearSoftmax", 1, [_bytes(4, 3), _SCALE, _ZERO, np.float32(1 / 256), np.uint8(0)], {"axis": 0, "opset": 12}),
    ("QLinearReduceMean", 1, [_bytes(4, 3), _SCALE, _ZERO, _SCALE, _ZERO], {"axes": [1], "keepdims": 1}),
    ("QLinearReduceMean", 1, [_bytes(4, 3), _SCALE, _ZERO, _SCALE, _ZERO], {"axes": [0], "keepdims": 1}),
    ("QLinearConv", 1, [
        _bytes(2, 3, 5, 5), _SCALE, _ZERO, _bytes(4, 3, 3, 3), _SCALE, _ZERO, _SCALE, _ZERO], {}),
    ("QLinearConv", 1, [
        _bytes(2, 5, 5, 3), _SCALE, _ZERO, _bytes(4, 3, 3, 3), _SCALE, _ZERO, _SCALE, _ZERO], {"channels_last": 1}),
    ("QLinearWhere", 1, [
        _noise(4, 3) > 0, _bytes(4, 3), _SCALE, _ZERO, _bytes(4, 3), _SCALE, _ZERO, _SCALE, _ZERO], {}),
    ("QGemm", 1, [
        _bytes(4, 3), _SCALE, _ZERO, _bytes(3, 2), _SCALE, _ZERO, _ints(-9, 9, 2, dtype=np.int32), _SCALE, _ZERO], {}),
    ("QGemm", 1, [_bytes(4, 3), _SCALE, _ZERO, _bytes(3, 2), _SCALE, _ZERO], {}),
    ("QGemm", 1, [_bytes(3, 4), _SCALE, _ZERO, _bytes(3, 2), _SCALE, _ZERO], {"transA": 1}),
    ("MatMulIntegerToFloat", 1, [_bytes(4, 3), _bytes(3, 2), _SCALE, _SCALE, _ZERO, _ZERO], {}),
    ("DynamicQuantizeMatMul", 1, [_noise(4, 3), _bytes(3, 2), _SCALE, _ZERO], {}),
    ("MatMulNBits", 1, [_noise(4, 32), _bytes(2, 1, 16), _noise(2)], {"K": 32, "N": 2, "bits": 4, "block_size": 32}),
    ("MatMulNBits", 1, [
        _noise(2, 4, 32), _bytes(2, 1, 16), _noise(2)], {"K": 32, "N": 2, "bits": 4, "block_size": 32}),
    ("QuantizeLinear", 1, [_noise(4, 3), _SCALE, _ZERO], {}),
    ("QuantizeLinear", 1, [_noise(4, 3), np.full(3, _SCALE), np.full(3, _ZERO)], {"axis": 1}),
    ("DequantizeLinear", 1, [_bytes(4, 3), np.full(4, _SCALE), np.full(4, _ZERO)], {"axis": 0}),
    ("Tokenizer", 1, [_texts(4, 1)], {"mark": 0, "mincharnum": 1, "pad_value": "#", "separators": [" "]}),
    ("Tokenizer", 1, [_texts(4)], {"mark": 1, "mincharnum": 1, "pad_value": "#", "tokenexp": "[a-z]"}),
    ("Unique", 3, [_noise(4)], {}),
    ("GatherND", 1, [_noise(4, 3), _ints(0, 3, 4, 1)], {}),
    ("Pad", 1, [_noise(4, 3), np.array([0, 1, 0, 1], np.int64)], {"mode": "constant"}),
    ("Pad", 1, [_noise(4, 3), np.array([1, 0, 1, 0], np.int64)], {"mode": "constant"}),
    ("ExpandDims", 1, [_noise(4, 3), np.int32(0)], {}),
    ("ExpandDims", 1, [_noise(4, 3), np.int32(1)], {}),
    ("CDist", 1, [_noise(4, 3), _noise(5, 3)], {"metric": "euclidean"}),
    ("MurmurHash3", 1, [_texts(4, 2)], {"positive": 1}),
    ("Inverse", 1, [_noise(4, 3, 3)], {}),
    ("Trilu", 1, [_noise(2, 3, 3)], {"upper": 1}),
    ("BifurcationDetector", 2, [_ints(0, 4, 6), _ints(0, 4, 7), np.array(0, np.int64)], {}),
    ("CropAndResize", 1, [
        _noise(2, 3, 4, 4), np.array([[0, 0, 0.5, 0.5], [0.1, 0.1, 0.9, 0.9]], np.float32),
        np.array([0, 1], np.int32), np.array([2, 2], np.int32)], {}),
    ("WordConvEmbedding", 1, [_ints(0, 5, 4, 6, dtype=np.int32), _noise(3, 1, 2, 2), _noise(3), _noise(5, 2)], {}),
    ("MaxpoolWithMask", 1, [
        _noise(2, 3, 4, 4), _ints(0, 2, 2, 3, 4, 4, dtype=np.int32)], {"kernel_shape": [2, 2]}),
    ("NhwcMaxPool", 1, [_bytes(2, 4, 4, 3)], {"kernel_shape": [2, 2]}),
    ("SampleOp", 1, [_noise(4, 3)], {}),
    ("NGramRepeatBlock", 1, [_ints(0, 3, 2, 5), _noise(2, 4)], {"ngram_size": 2}),
    ("GatherBlockQuantized", 1, [
        _ints(0, 15, 5, 16, dtype=_BYTE), _ints(0, 5, 4), _noise(5, 1)],
        {"gather_axis": 0, "quantize_axis": 1, "block_size": 16, "bits": 8}),
]  # fmt: skip

_TFIDF: Final[Mapping[str, Any]] = {
    "mode": "TF",
    "min_gram_length": 1,
    "max_gram_length": 1,
    "max_skip_count": 0,
    "ngram_counts": [0],
    "ngram_indexes": [0, 1, 2],
}

_STANDARD: Final[Sequence[_Node]] = [
    ("TfIdfVectorizer", 1, [_texts(4, 3)], {**_TFIDF, "pool_strings": ["a", "b", "c"]}),
    ("TfIdfVectorizer", 1, [_ints(0, 5, 4, 3)], {**_TFIDF, "pool_int64s": [1, 2, 3]}),
    ("TfIdfVectorizer", 1, [_texts(4)], {**_TFIDF, "pool_strings": ["a", "b", "c"]}),
    ("StringNormalizer", 1, [_texts(4)], {"case_change_action": "LOWER", "is_case_sensitive": 0, "locale": "C"}),
    ("StringNormalizer", 1, [_texts(4)], {"stopwords": ["a"], "is_case_sensitive": 1, "locale": "C"}),
    ("StringNormalizer", 1, [_texts(4)], {"stopwords": ["a"], "is_case_sensitive": 0, "locale": "C"}),
    ("LayerNormalization", 3, [_noise(2, 4, 3), _noise(3), _noise(3)], {"axis": -1}),
    ("LayerNormalization", 1, [_noise(2, 4, 3), _noise(4, 3), _noise(4, 3)], {"axis": 1}),
    ("LayerNormalization", 1, [_noise(2, 4, 3), _noise(2, 4, 3)], {"axis": 0}),
    ("SimplifiedLayerNormalization", 1, [_noise(2, 4, 3), _noise(3)], {"axis": -1}),
    ("Gemm", 1, [_noise(4, 3), _noise(3, 2), _noise(4, 2)], {}),
    ("Gemm", 1, [_noise(4, 3), _noise(3, 2), _noise(4, 1)], {}),
    ("Conv", 1, [_noise(2, 3, 5), _noise(4, 3, 3), _noise(4)], {}),
    ("Conv", 1, [_noise(2, 4, 5), _noise(4, 2, 3)], {"group": 2}),
    ("BatchNormalization", 1, [_noise(2, 3, 5), _noise(3), _noise(3), _noise(3), abs(_noise(3))], {}),
    ("BatchNormalization", 1, [_noise(4), _noise(1), _noise(1), _noise(1), abs(_noise(1))], {}),
    ("LSTM", 3, [_noise(5, 2, 3), _noise(1, 8, 3), _noise(1, 8, 2), _noise(1, 16), np.array([5, 2], np.int32)],
        {"hidden_size": 2}),
    ("LSTM", 3, [_noise(5, 2, 3), _noise(2, 8, 3), _noise(2, 8, 2), None, None, _noise(2, 2, 2), _noise(2, 2, 2)],
        {"hidden_size": 2, "direction": "bidirectional"}),
    ("GRU", 2, [_noise(5, 2, 3), _noise(1, 6, 3), _noise(1, 6, 2), None, np.array([5, 2], np.int32)],
        {"hidden_size": 2}),
    ("RNN", 2, [_noise(5, 2, 3), _noise(1, 2, 3), _noise(1, 2, 2), None, None, _noise(1, 2, 2)], {"hidden_size": 2}),
]  # fmt: skip
