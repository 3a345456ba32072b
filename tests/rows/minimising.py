"""A graph that is wrongly proved, with everything taken out that it is wrongly proved without."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import onnx
from cases import Case, as_text
from judging import judge
from random_graphs import prune


def minimised(case: Case, *, seed: int = 0) -> str:
    """Return what is left of a wrongly proved case, as text; of another case the whole."""

    def is_wrong(model: onnx.ModelProto) -> bool:
        try:
            return judge("", dataclasses.replace(case, model=model), seed=seed, batches=10).is_wrongly_proved
        except Exception:  # what was taken out may leave anything
            return False

    return as_text(smallest(case.model, is_wrong) if is_wrong(case.model) else case.model)


def smallest(model: onnx.ModelProto, holds: Callable[[onnx.ModelProto], bool]) -> onnx.ModelProto:
    """Take out one thing after the other for as long as what is asked for holds."""
    while True:
        for smaller in _smaller(model):
            if _weight(smaller) < _weight(model) and holds(smaller):
                model = smaller
                break
        else:
            return model


def _weight(model: onnx.ModelProto) -> int:
    return len(model.graph.node) + len(model.graph.output) + len(model.functions)


def _smaller(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """The model with one of its outputs, with an earlier value as its output, or with a node bypassed."""
    for index in range(len(model.graph.output)):
        if len(model.graph.output) > 1:
            yield _changed(model, lambda graph, index=index: graph.output.pop(index))  # type: ignore[misc]
    for node in model.graph.node:
        for name in node.output:
            if len(model.graph.output) == 1 and name != model.graph.output[0].name:
                yield _changed(model, lambda graph, name=name: _ends_at(graph, name))  # type: ignore[misc]
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            if name:
                yield _changed(model, lambda graph, index=index, name=name: _bypass(graph, index, name))  # type: ignore[misc]
    if any(True for _ in model.functions):
        used = {node.op_type for node in model.graph.node}
        if any(function.name not in used for function in model.functions):
            smaller = _copy(model)
            kept = [function for function in model.functions if function.name in used]
            del smaller.functions[:]
            smaller.functions.extend(kept)
            yield smaller


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _changed(model: onnx.ModelProto, change: Callable[[onnx.GraphProto], object]) -> onnx.ModelProto:
    smaller = _copy(model)
    change(smaller.graph)
    prune(smaller.graph)
    return smaller


def _ends_at(graph: onnx.GraphProto, name: str) -> None:
    del graph.output[:]
    graph.output.append(onnx.ValueInfoProto(name=name))


def _bypass(graph: onnx.GraphProto, index: int, name: str) -> None:
    """Put one of a node's inputs in place of its first output."""
    gone = graph.node.pop(index)
    for node in graph.node:
        _rename(node, gone.output[0], name)
    for output in graph.output:
        if output.name == gone.output[0]:
            output.name = name


def _rename(node: onnx.NodeProto, old: str, new: str) -> None:
    for place, given in enumerate(node.input):
        if given == old:
            node.input[place] = new
    for attribute in node.attribute:
        for inner in attribute.g.node:
            _rename(inner, old, new)
