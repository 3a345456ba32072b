"""
What an `.onnx` file says about itself, read without onnx, onnxruntime or protobuf.

Files come from users and may be anything: every read is bounded by the file's size, nothing is executed, weights are
skipped rather than read, and whatever is not an ONNX model ends in a `ValueError` whose text is fit for a user.

This is the way in: `onnx_graph` and `onnx_tensor` read the parts, `onnx_schema` says which field is which, `protobuf`
takes the bytes apart.
"""

from __future__ import annotations

import codecs
import os
import posixpath
from typing import NamedTuple

from cortex.wire.graphs import Model
from cortex.wire.onnx_graph import (
    MAX_FIELDS,
    MAX_NESTED_GRAPHS,
    GraphReader,
    as_long_list,
    read_opset,
    read_value,
)
from cortex.wire.onnx_schema import (
    ATTRIBUTE_LISTS,
    TENSOR_LISTS,
    AttributeTag,
    EntryTag,
    FunctionTag,
    GraphTag,
    ModelTag,
    NodeTag,
    SparseTensorTag,
    TensorTag,
    TrainingTag,
)
from cortex.wire.protobuf import Source
from cortex.wire.signature import Dim

_IN_MEMORY_MARKER = "_ORT_MEM_ADDR_"
"""onnxruntime takes an external file of this name for a pointer into its own memory."""


class ValueInfo(NamedTuple):
    """An input or output as the file declares it."""

    name: str
    shape: tuple[Dim, ...] | None
    """Of the innermost tensor; None when none is declared, which onnxruntime reports just like a scalar's."""


class ModelHeader(NamedTuple):
    """What a model says about itself, apart from its computation."""

    opsets: dict[str, int]
    """Operator set version by domain; the standard domain is `""`."""
    inputs: tuple[ValueInfo, ...]
    """With the initialisers that old exporters list among them."""
    outputs: tuple[ValueInfo, ...]


def read_header(path: str | os.PathLike[str]) -> ModelHeader:
    """
    Read what a model declares; skips nodes and weights.

    Raises:
        ValueError: the file is not a complete ONNX model; the text says what it looks like instead.
        OSError: the file cannot be opened or read.
    """
    with Source(path) as source:
        _refuse_other_formats(source)
        opsets: dict[str, int] = {}
        inputs: list[ValueInfo] = []
        outputs: list[ValueInfo] = []
        graphs = 0
        for tag, value, end in source.tagged(0, source.size):
            if end is None:
                continue
            if tag == ModelTag.OPSET_IMPORT:
                opsets.update([read_opset(source, value, end)])
            elif tag == ModelTag.GRAPH:
                graphs += 1
                for inner, first, last in source.tagged(value, end):
                    if last is not None and inner in (GraphTag.INPUT, GraphTag.OUTPUT):
                        declared = read_value(source, first, last)
                        (inputs if inner == GraphTag.INPUT else outputs).append(
                            ValueInfo(declared.name, declared.shape)
                        )
        if not graphs:
            raise ValueError("it holds no graph, so it is not an ONNX model")
        return ModelHeader(opsets=opsets, inputs=tuple(inputs), outputs=tuple(outputs))


def read_graph(path: str | os.PathLike[str]) -> Model:
    """
    Read what a model computes, for a proof about it: nodes, attributes, constants of few elements.

    Raises:
        ValueError: the file is not a complete ONNX model, or it is one of more nodes than anybody looks at.
        OSError: the file cannot be opened or read.
    """
    with Source(path, max_fields=MAX_FIELDS) as source:
        _refuse_other_formats(source)
        return GraphReader(source).model()


def external_files(path: str | os.PathLike[str]) -> list[str]:
    """
    Return the names of the files that hold a model's weights beside the `.onnx`, relative to its folder.

    Looks wherever a tensor can stand: initialisers, sparse initialisers, attributes of nodes, nested graphs, functions,
    training graphs. Sorted, without repeats; `./weights.bin` is `weights.bin`.

    Raises:
        ValueError: the file is not a complete ONNX model, or it names a file outside its own folder.
        OSError: the file cannot be opened or read.
    """
    with Source(path) as source:
        _refuse_other_formats(source)
        finder = _ExternalFinder(source)
        finder.model()
        return sorted(finder.names)


class _ExternalFinder:
    """Collects `external_data` locations from every place of a model where a tensor can stand."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.names: set[str] = set()

    def model(self) -> None:
        graphs = 0
        for tag, start, end in self._source.tagged(0, self._source.size):
            if end is None:
                continue
            if tag == ModelTag.GRAPH:
                graphs += 1
                self._graph(start, end, 0)
            elif tag == ModelTag.TRAINING_INFO:
                for inner, at, until in self._source.tagged(start, end):
                    if inner in (TrainingTag.INITIALIZATION, TrainingTag.ALGORITHM) and until is not None:
                        self._graph(at, until, 0)
            elif tag == ModelTag.FUNCTIONS:
                for inner, at, until in self._source.tagged(start, end):
                    if until is None:
                        continue
                    if inner == FunctionTag.NODE:
                        self._node(at, until, 0)
                    elif inner == FunctionTag.ATTRIBUTE_PROTO:
                        self._attribute(at, until, 0)
        if not graphs:
            raise ValueError("it holds no graph, so it is not an ONNX model")

    def _graph(self, start: int, end: int, depth: int) -> None:
        if depth > MAX_NESTED_GRAPHS:
            raise ValueError(f"its graphs are nested more than {MAX_NESTED_GRAPHS} deep")
        for tag, at, until in self._source.tagged(start, end):
            if until is None:
                continue
            if tag == GraphTag.NODE:
                self._node(at, until, depth)
            elif tag == GraphTag.INITIALIZER:
                self._tensor(at, until)
            elif tag == GraphTag.SPARSE_INITIALIZER:
                self._sparse_tensor(at, until)

    def _node(self, start: int, end: int, depth: int) -> None:
        for tag, at, until in self._source.tagged(start, end):
            if tag == NodeTag.ATTRIBUTE and until is not None:
                self._attribute(at, until, depth)

    def _attribute(self, start: int, end: int, depth: int) -> None:
        if as_long_list(self._source, start, end):
            return
        for tag, first, last in self._source.tagged(start, end, ATTRIBUTE_LISTS):
            if last is None:
                continue
            if tag in (AttributeTag.T, AttributeTag.TENSORS):
                self._tensor(first, last)
            elif tag in (AttributeTag.G, AttributeTag.GRAPHS):
                self._graph(first, last, depth + 1)
            elif tag in (AttributeTag.SPARSE_TENSOR, AttributeTag.SPARSE_TENSORS):
                self._sparse_tensor(first, last)

    def _sparse_tensor(self, start: int, end: int) -> None:
        for tag, at, until in self._source.tagged(start, end):
            if tag in (SparseTensorTag.VALUES, SparseTensorTag.INDICES) and until is not None:
                self._tensor(at, until)

    def _tensor(self, start: int, end: int) -> None:
        for tag, at, until in self._source.tagged(start, end, TENSOR_LISTS):
            if tag != TensorTag.EXTERNAL_DATA or until is None:
                continue
            key, value = "", ""
            for inner, first, last in self._source.tagged(at, until):
                if last is not None and inner == EntryTag.KEY:
                    key = self._source.text(first, last)
                elif last is not None and inner == EntryTag.VALUE:
                    value = self._source.text(first, last)
            if key == "location":
                self.names.add(_safe_name(value))


def _safe_name(location: str) -> str:
    """
    Return an external file's name, normalised.

    Raises:
        ValueError: it is not a plain relative path below the model's folder.
    """
    parts = location.split("/")
    if (
        not location
        or location.startswith("/")
        or "\\" in location
        or "\0" in location
        or ".." in parts
        or _IN_MEMORY_MARKER in parts
        or (len(location) > 1 and location[1] == ":")
        or posixpath.normpath(location) == "."
    ):
        raise ValueError(f'it names "{location}" as a file of weights, which is not a file in its own folder')
    return posixpath.normpath(location)


_OTHER_FORMATS = (
    (b"PK\x03\x04", "it is a zip archive (PyTorch's .pt files are too): export the model with torch.onnx.export"),
    (b"\x89HDF\r\n", "it is an HDF5 file (Keras): convert the model with tf2onnx"),
    (b"\x1f\x8b", "it is compressed with gzip: unpack it first"),
    (b"\x80\x02", "it is a Python pickle: export the model to ONNX (skl2onnx, torch.onnx.export)"),
    (b"\x80\x03", "it is a Python pickle: export the model to ONNX (skl2onnx, torch.onnx.export)"),
    (b"\x80\x04", "it is a Python pickle: export the model to ONNX (skl2onnx, torch.onnx.export)"),
    (b"\x80\x05", "it is a Python pickle: export the model to ONNX (skl2onnx, torch.onnx.export)"),
    (b"GGUF", "it is a GGUF file, not an ONNX model"),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the model itself: run `git lfs pull`"),
)


def _refuse_other_formats(source: Source) -> None:
    """
    Raise for what is commonly found under the name of a model.

    Raises:
        ValueError: the file is empty, or its first bytes are those of another format or of text.
    """
    head = source.read(0, min(source.size, 512))
    if not head:
        raise ValueError("it is empty (0 bytes)")
    for magic, reason in _OTHER_FORMATS:
        if head.startswith(magic):
            raise ValueError(reason)
    if head[4:8] == b"TFL3":
        raise ValueError("it is a TensorFlow Lite file: convert the model with tf2onnx")
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < 512)
    except UnicodeDecodeError:
        return
    if all(char.isprintable() or char in "\r\n\t" for char in text):
        if text.lstrip()[:1] == "<":
            raise ValueError("it is a web page or XML, not an ONNX model: was an error page downloaded?")
        first_line = text.strip().split("\n", 1)[0][:40]
        raise ValueError(f'it is text, not an ONNX model; it begins with "{first_line}"')
