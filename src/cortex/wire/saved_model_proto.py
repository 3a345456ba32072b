"""
What a SavedModel's `saved_model.pb` says it computes, read without TensorFlow or protobuf.

Files come from users and may be anything: every read is bounded by the file's size, nothing is executed, long constants
are skipped rather than read, and whatever is not a SavedModel ends in a `ValueError` whose text is fit for a user. What
variables hold stands in other files, which are not opened.

Only what a signature can reach is read, over data and control edges and through functions that are called: what a
session runs of a graph. What fills variables and tables when a model is loaded is not among it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from cortex.wire.graphs import (
    Attribute,
    Function,
    FunctionName,
    FunctionNames,
    Graph,
    GraphInput,
    GraphNode,
    Model,
    Tensor,
)
from cortex.wire.protobuf import Source, Span
from cortex.wire.saved_model_schema import (
    FunctionSignatureTag,
    FunctionTag,
    GraphTag,
    LibraryTag,
    MetaGraphTag,
    MetaInfoTag,
    NodeTag,
    SavedModelTag,
    SignatureTag,
    TensorInfoTag,
    VersionsTag,
)
from cortex.wire.saved_model_values import attribute, dtype_of, entry, name_of, read_tensor, shape_of
from cortex.wire.signature import Dim

DOMAIN: Final = "tensorflow"
"""Of all operators and functions."""

MAX_FIELDS: Final = 5_000_000
"""Of a graph that is kept in memory."""
MAX_NODES: Final = 200_000
MAX_NAMED: Final = 100_000
"""Inputs and outputs of all signatures."""

_PREFERRED: Final = ("predict", "serving_default")
"""Of several signatures the first of these is served, as `replica.backends.signatures` has it."""
_RESERVED: Final = "__saved_model_"
"""Start of the keys of signatures that are not for serving."""

_TASK: Final = "api_implements"
_DEVICE: Final = "api_preferred_device"
_PARTS_OF_TASKS: Final = {"backward_function_name": "forward", "forward_function_name": "backward"}
"""
Functions with one value of the first attribute do the same in other ways, and TensorFlow takes the one for its device,
which the second one names. With one of the others they are for training: what a gradient wants to know, and gradients.

Source: tensorflow/core/grappler/optimizers/function_api_info.cc.
"""


def read_graph(path: str | os.PathLike[str], signature_key: str | None, *, gpu: bool = False) -> Model:
    """
    Read what one signature of a SavedModel computes.

    Args:
        path: of the SavedModel's folder.
        signature_key: which signature; None leaves the choice to the rules of `replica.backends.signatures`.
        gpu: whether it runs on a GPU, for which a model may bring a graph or functions of their own.

    Returns:
        Whatever the signature's outputs can reach. Inputs and outputs have the names that the graph knows them by, and
        those of callers as labels.

    Raises:
        ValueError: the file is not a complete SavedModel, has no such signature, or is one of more nodes than anybody
            looks at.
        OSError: the file cannot be opened or read.
    """
    with Source(Path(path) / "saved_model.pb", format_name="SavedModel", max_fields=MAX_FIELDS) as source:
        graphs, signatures = _meta_graph(source, gpu=gpu)
        return _Reader(source, graphs, gpu=gpu).model(_chosen(signatures, signature_key))


# ---- which graph, and which signature -------------------------------------------------------------------------------


class _TensorInfo(NamedTuple):
    """An input or output of a signature."""

    name: str
    """Of the tensor in the graph; empty for what is no dense tensor."""
    dtype: int
    """By its number; 0: of none."""
    shape: tuple[Dim, ...] | None
    default: Tensor | None = None


class _Signature(NamedTuple):
    inputs: Mapping[str, _TensorInfo]
    outputs: Mapping[str, _TensorInfo]


def _meta_graph(source: Source, *, gpu: bool) -> tuple[list[Span], dict[str, _Signature]]:
    """
    Return the graph to serve, and its signatures: the one tagged `serve` and nothing else, or the only one.

    Raises:
        ValueError: there is none, or there are several others.
    """
    by_tags: dict[frozenset[str], Span] = {}
    for tag, first, last in source.tagged(0, source.size):
        if tag == SavedModelTag.META_GRAPHS and last is not None:
            by_tags[_tags(source, first, last)] = first, last
    if not by_tags:
        raise ValueError("it holds no graph, so it is no SavedModel")
    wanted = [frozenset({"serve", "gpu"})] if gpu else []
    wanted.append(frozenset({"serve"}))
    tags = next((tags for tags in wanted if tags in by_tags), None)
    if tags is None:
        if len(by_tags) > 1:
            raise ValueError(f"it holds {len(by_tags)} graphs, and none is tagged serve alone")
        tags = next(iter(by_tags))
    graphs: list[Span] = []
    signatures: dict[str, _Signature] = {}
    named = 0
    for tag, first, last in source.tagged(*by_tags[tags]):
        if tag == MetaGraphTag.GRAPH and last is not None:
            graphs.append((first, last))  # of a message that is written twice both parts count
        elif tag == MetaGraphTag.SIGNATURES and last is not None:
            key, value = entry(source, first, last)
            signatures[key] = signature = _signature(source, *value)
            named += 1 + len(signature.inputs) + len(signature.outputs)
            if named > MAX_NAMED:
                raise ValueError(f"its signatures have more than {MAX_NAMED} inputs and outputs")
    return graphs, signatures


def _tags(source: Source, start: int, end: int) -> frozenset[str]:
    return frozenset(
        source.name(at, until)
        for tag, first, last in source.tagged(start, end)
        if tag == MetaGraphTag.META_INFO and last is not None
        for inner, at, until in source.tagged(first, last)
        if inner == MetaInfoTag.TAGS and until is not None
    )


def _chosen(signatures: Mapping[str, _Signature], wanted: str | None) -> _Signature:
    """
    Return the signature to serve, the same one as the backend does.

    Raises:
        ValueError: there is none, or there are several and nothing says which.
    """
    served = {
        key: signature
        for key, signature in signatures.items()
        if not key.startswith(_RESERVED) and any(tensor.dtype for tensor in signature.outputs.values())
    }
    if wanted is not None:
        if wanted not in served:
            raise ValueError(f"it has no signature {wanted}")
        return served[wanted]
    if len(served) == 1:
        return next(iter(served.values()))
    for key in _PREFERRED:
        if key in served:
            return served[key]
    raise ValueError("nothing says which of its signatures to serve" if served else "it has no signature to serve")


def _signature(source: Source, start: int, end: int) -> _Signature:
    inputs: dict[str, _TensorInfo] = {}
    outputs: dict[str, _TensorInfo] = {}
    defaults: dict[str, Tensor] = {}
    for tag, first, last in source.tagged(start, end):
        if last is None or tag not in (SignatureTag.INPUTS, SignatureTag.OUTPUTS, SignatureTag.DEFAULTS):
            continue
        key, value = entry(source, first, last)
        if tag == SignatureTag.DEFAULTS:
            defaults[key] = read_tensor(source, *value)
        elif tag == SignatureTag.INPUTS:
            inputs[key] = _tensor_info(source, *value)
        else:
            outputs[key] = _tensor_info(source, *value)
    return _Signature({key: info._replace(default=defaults.get(key)) for key, info in inputs.items()}, outputs)


def _tensor_info(source: Source, start: int, end: int) -> _TensorInfo:
    name, dtype = "", 0
    shape: tuple[Dim, ...] | None = ()
    for tag, first, last in source.tagged(start, end):
        if tag == TensorInfoTag.DTYPE:
            dtype = first
        elif tag == TensorInfoTag.NAME and last is not None:
            name = _with_index(source.name(first, last))
        elif tag == TensorInfoTag.SHAPE and last is not None:
            shape = shape_of(source, first, last)
        elif tag in (TensorInfoTag.SPARSE, TensorInfoTag.COMPOSITE):
            name = ""
    return _TensorInfo(name, dtype, shape)


# ---- the graph ------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads those nodes and functions of a graph that the outputs of a signature reach."""

    def __init__(self, source: Source, graphs: Iterable[Span], *, gpu: bool) -> None:
        self._source = source
        self._gpu = gpu
        self._nodes: dict[str, Span] = {}
        self._functions: dict[str, Span] = {}
        self._tasks: dict[str, list[str]] = {}
        self._nodes_left = MAX_NODES
        self._producer = 0
        for start, end in graphs:
            for tag, first, last in source.tagged(start, end):
                if last is None:
                    continue
                if tag == GraphTag.NODE:
                    _add(self._nodes, self._first_name(NodeTag.NAME, first, last), (first, last))
                elif tag == GraphTag.LIBRARY:
                    self._note_functions(first, last)
                elif tag == GraphTag.VERSIONS:
                    for inner, value, _ in source.tagged(first, last):
                        self._producer = value if inner == VersionsTag.PRODUCER else self._producer

    def model(self, signature: _Signature) -> Model:
        inputs: list[GraphInput] = []
        constants = {}
        for label, info in sorted(signature.inputs.items()):
            inputs.append(GraphInput(_dense(label, info), dtype_of(info.dtype), info.shape, label=label))
            if info.default is not None:
                constants[info.name] = info.default
        outputs = sorted(signature.outputs.items())
        names = tuple(_dense(label, info) for label, info in outputs)
        nodes = self._reached(names, given={declared.name for declared in inputs})
        graph = Graph(
            nodes=nodes,
            inputs=tuple(inputs),
            outputs=names,
            constants=constants,
            output_dtypes=tuple(dtype_of(info.dtype) for _, info in outputs),
            output_labels=tuple(label for label, _ in outputs),
        )
        return Model(graph, self._called(nodes), {DOMAIN: self._producer})

    def _note_functions(self, start: int, end: int) -> None:
        for tag, first, last in self._source.tagged(start, end):
            if tag != LibraryTag.FUNCTION or last is None:
                continue
            for inner, at, until in self._source.tagged(first, last):
                if inner == FunctionTag.SIGNATURE and until is not None:
                    _add(self._functions, self._first_name(FunctionSignatureTag.NAME, at, until), (first, last))
                    break

    def _first_name(self, wanted: int, start: int, end: int) -> str:
        """The name of what is not read yet. It is looked at again when it is."""
        for tag, first, last in self._source.tagged(start, end):
            if tag == wanted and last is not None:
                return self._source.name(first, last)
        return ""

    def _reached(self, outputs: Iterable[str], given: set[str]) -> tuple[GraphNode, ...]:
        """
        Return the nodes that the values of these names need, by data or control.

        What a given value would need is not among them: a session does not look behind it.
        """
        read: dict[str, GraphNode] = {}
        waiting = [_node_of(name) for name in outputs if name not in given]
        while waiting:
            name = waiting.pop()
            if name in read:
                continue
            span = self._nodes.get(name)
            if span is None:
                raise ValueError(f"it has no node {name}, which its signature needs")
            node = read[name] = self._node(*span)
            if node.name != name:
                raise ValueError(f"its node {name} has two names")
            waiting += [_node_of(value) for value in node.inputs if _with_index(value) not in given]
            waiting += node.after
        return tuple(read.values())

    def _called(self, nodes: Iterable[GraphNode]) -> dict[tuple[str, str], Function]:
        """Return the functions that these nodes call, those that they call in turn, and those in place of any."""
        called: dict[tuple[str, str], Function] = {}
        waiting = list(self._named(nodes))
        while waiting:
            name = waiting.pop()
            if (DOMAIN, name) in called:
                continue
            function = called[DOMAIN, name] = self._function(name, *self._functions[name])
            waiting += self._named(function.nodes)
            if function.task:
                waiting += self._by_task().get(function.task, ())
        return called

    def _named(self, nodes: Iterable[GraphNode]) -> Iterator[str]:
        for node in nodes:
            names = [node.operator]
            for value in node.attributes.values():
                if isinstance(value, FunctionName):
                    names.append(value.name)
                elif isinstance(value, FunctionNames):
                    names += value.names
            yield from (name for name in names if name in self._functions)

    def _node(self, start: int, end: int) -> GraphNode:
        self._nodes_left -= 1
        if self._nodes_left < 0:
            raise ValueError(f"it has more than {MAX_NODES} nodes")
        source = self._source
        name = operator = ""
        inputs: list[str] = []
        after: list[str] = []
        attributes: dict[str, Attribute] = {}
        for tag, first, last in source.tagged(start, end):
            if last is None:
                continue
            if tag == NodeTag.ATTRIBUTES:
                key, value = entry(source, first, last)
                if not key.startswith("_"):  # notes of TensorFlow's own parts for each other
                    attributes[key] = attribute(source, *value)
            elif tag == NodeTag.INPUT:
                reference = source.name(first, last)
                if reference.startswith("^"):
                    after.append(reference[1:])
                else:
                    inputs.append(reference)
            elif tag == NodeTag.NAME:
                name = source.name(first, last)
            elif tag == NodeTag.OPERATOR:
                operator = source.name(first, last)
        return GraphNode(operator, tuple(inputs), (), attributes, name, DOMAIN, tuple(after))

    def _function(self, wanted: str, start: int, end: int) -> Function:
        source = self._source
        name = ""
        nodes: list[GraphNode] = []
        inputs: list[str] = []
        outputs: list[str] = []
        returned: dict[str, str] = {}
        run: dict[str, str] = {}
        for tag, first, last in source.tagged(start, end):
            if last is None:
                continue
            if tag == FunctionTag.NODE:
                nodes.append(self._node(first, last))
            elif tag in (FunctionTag.RETURNED, FunctionTag.RUN):
                key, value = entry(source, first, last)
                (returned if tag == FunctionTag.RETURNED else run)[key] = source.name(*value)
            elif tag == FunctionTag.SIGNATURE:
                for inner, at, until in source.tagged(first, last):
                    if until is None:
                        continue
                    if inner == FunctionSignatureTag.NAME:
                        name = source.name(at, until)
                    elif inner == FunctionSignatureTag.INPUT:
                        inputs.append(name_of(source, at, until))
                    elif inner == FunctionSignatureTag.OUTPUT:
                        outputs.append(name_of(source, at, until))
        if name != wanted:
            raise ValueError(f"its function {wanted} has two names")
        missing = [output for output in outputs if output not in returned]
        if missing:
            raise ValueError(f"its function {name} does not say what it returns as {missing[0]}")
        task, _ = self._task(start, end)
        return Function(
            name=name,
            domain=DOMAIN,
            nodes=tuple(nodes),
            inputs=tuple(inputs),
            outputs=tuple(returned[output] for output in outputs),
            after=tuple(run.values()),
            task=task,
        )

    def _by_task(self) -> Mapping[str, Sequence[str]]:
        """Functions that may be taken, by their task; few models have any, so that few are looked through for them."""
        if not self._tasks:
            for name, (start, end) in self._functions.items():
                task, device = self._task(start, end)
                if task and (self._gpu or device != "GPU"):
                    self._tasks.setdefault(task, []).append(name)
        return self._tasks

    def _task(self, start: int, end: int) -> tuple[str, str]:
        """What a function is for, if it is one of several for it, and on which kind of device."""
        task = part = device = ""
        for tag, first, last in self._source.tagged(start, end):
            if tag != FunctionTag.ATTRIBUTES or last is None:
                continue
            key, value = entry(self._source, first, last)
            part = _PARTS_OF_TASKS.get(key, part)
            if key in (_TASK, _DEVICE):
                found = attribute(self._source, *value)
                text = found if isinstance(found, str) else ""
                task, device = (text, device) if key == _TASK else (task, text)
        return f"{task} {part}".rstrip() if task else "", device


def _node_of(value: str) -> str:
    """The name of the node that makes a value, e.g. `dense` of `dense:0`."""
    return value.partition(":")[0]


def _with_index(value: str) -> str:
    return value if ":" in value else f"{value}:0"


def _dense(label: str, info: _TensorInfo) -> str:
    """
    Return the name of a signature's tensor in the graph.

    Raises:
        ValueError: it is no dense tensor.
    """
    if not info.name:
        raise ValueError(f"{label} of its signature is no dense tensor")
    return info.name


def _add(spans: dict[str, Span], name: str, span: Span) -> None:
    if name in spans:
        raise ValueError(f"it has two nodes or functions of the name {name}")
    if len(spans) >= MAX_NODES:
        raise ValueError(f"it has more than {MAX_NODES} nodes")
    spans[name] = span
