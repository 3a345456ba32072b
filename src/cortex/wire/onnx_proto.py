"""
What an `.onnx` file says about itself, read without onnx, onnxruntime or protobuf.

Files come from users and may be anything: every read is bounded by the file's size, nothing is executed, weights are
skipped rather than read, and whatever is not an ONNX model ends in a `ValueError` whose text is fit for a user.

Source:
    Protocol Buffers, "Encoding" (protobuf.dev/programming-guides/encoding): tags, varints, wire types.
    onnx/onnx.proto3 (github.com/onnx/onnx): the field numbers below.
"""

from __future__ import annotations

import codecs
import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from cortex.wire.signature import Dim

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_WINDOW_BYTES = 1 << 16  # skipping over a large weight wastes at most one window
_MAX_TAG_AND_VALUE_BYTES = 20  # two varints of at most 10 bytes each
_MAX_FIELDS = 50_000_000
_MAX_NESTED_GRAPHS = 100
_MAX_TEXT_BYTES = 1 << 16

_IN_MEMORY_MARKER = "_ORT_MEM_ADDR_"
"""onnxruntime takes an external file of this name for a pointer into its own memory."""


class ValueInfo(NamedTuple):
    """An input or output as the file declares it."""

    name: str
    shape: tuple[Dim, ...] | None
    """Of the innermost tensor; None when none is declared, which onnxruntime reports just like a scalar's."""


class ModelHeader(NamedTuple):
    """What a model says about itself, apart from its computation."""

    ir_version: int
    opsets: dict[str, int]
    """Operator set version by domain; the standard domain is `""`."""
    producer: str
    """Name and version of the exporter, or an empty string."""
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
    with _Source(path) as source:
        _refuse_other_formats(source)
        ir_version, producer, producer_version = 0, "", ""
        opsets: dict[str, int] = {}
        inputs: list[ValueInfo] = []
        outputs: list[ValueInfo] = []
        graphs = 0
        for number, value, end in source.fields(0, source.size):
            if number == 1 and end is None:
                ir_version = value
            elif number == 2 and end is not None:
                producer = source.text(value, end)
            elif number == 3 and end is not None:
                producer_version = source.text(value, end)
            elif number == 8 and end is not None:
                domain, version = _opset(source, value, end)
                opsets["" if domain == "ai.onnx" else domain] = version
            elif number == 7 and end is not None:
                graphs += 1
                for inner, start, stop in source.fields(value, end):
                    if stop is None:
                        continue
                    if inner == 11:
                        inputs.append(_value_info(source, start, stop))
                    elif inner == 12:
                        outputs.append(_value_info(source, start, stop))
        if not graphs:
            raise ValueError("it holds no graph, so it is not an ONNX model")
        return ModelHeader(
            ir_version=ir_version,
            opsets=opsets,
            producer=f"{producer} {producer_version}".strip(),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
        )


def external_files(path: str | os.PathLike[str]) -> list[str]:
    """
    Return the names of the files that hold a model's weights beside the `.onnx`, relative to its folder.

    Looks wherever a tensor can stand: initialisers, sparse initialisers, attributes of nodes, nested graphs, functions,
    training graphs. Sorted, without repeats; `./weights.bin` is `weights.bin`.

    Raises:
        ValueError: the file is not a complete ONNX model, or it names a file outside its own folder.
        OSError: the file cannot be opened or read.
    """
    with _Source(path) as source:
        _refuse_other_formats(source)
        finder = _ExternalFinder(source)
        finder.model()
        return sorted(finder.names)


class _Source:
    """
    Reads protobuf fields out of a file through a window, so that a model of many gigabytes costs 64 KiB.

    A window rather than mmap: an exporter that rewrites the file meanwhile must not end this process with SIGBUS.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = Path(path).open("rb", buffering=0)  # noqa: SIM115 (closed by __exit__)
        self.size = os.fstat(self._file.fileno()).st_size
        self._base = 0
        self._window = b""
        self._fields_left = _MAX_FIELDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes at `start`; fewer only at the end of the file."""
        parts = []
        while length > 0:
            part = os.pread(self._file.fileno(), length, start)
            if not part:
                break
            parts.append(part)
            start += len(part)
            length -= len(part)
        return b"".join(parts)

    def text(self, start: int, end: int) -> str:
        if end - start > _MAX_TEXT_BYTES:
            raise ValueError(f"it has a name of {end - start} bytes at byte {start}, so it is not an ONNX model")
        offset = start - self._base
        if offset >= 0 and end - self._base <= len(self._window):
            return self._window[offset : end - self._base].decode("utf-8", "replace")
        return self.read(start, end - start).decode("utf-8", "replace")

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """
        Yield (field number, value, None) for numbers and (field number, first byte, end) for everything with a length.

        Raises:
            ValueError: the bytes from `start` to `end` are not a protobuf message.
        """
        position = start
        while position < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise ValueError(f"it has more than {_MAX_FIELDS} protobuf fields")
            offset = position - self._base
            window_end = self._base + len(self._window)
            if offset < 0 or position + _MAX_TAG_AND_VALUE_BYTES > window_end < self.size:
                self._base = position
                self._window = self.read(position, _WINDOW_BYTES)
                offset = 0
            window = self._window
            tag, next_offset = _varint(window, offset, position)
            number, wire_type = tag >> 3, tag & 7
            if number == 0:
                raise _garbage(position)
            if wire_type == _BYTES:
                length, next_offset = _varint(window, next_offset, position)
                first = self._base + next_offset
                if length > end - first:
                    raise _truncated(self, first, length, end)
                yield number, first, first + length
                position = first + length
            elif wire_type == _VARINT:
                value, next_offset = _varint(window, next_offset, position)
                position = self._base + next_offset
                if position > end:
                    raise _garbage(position)
                yield number, value, None
            elif wire_type in (_FIXED64, _FIXED32):
                length = 8 if wire_type == _FIXED64 else 4
                first = self._base + next_offset
                if length > end - first:
                    raise _truncated(self, first, length, end)
                yield number, first, first + length
                position = first + length
            else:
                raise _garbage(position)


def _varint(window: bytes, offset: int, position: int) -> tuple[int, int]:
    """Return the value at `offset` and the offset after it. `position` is the field's place in the file."""
    result = shift = 0
    try:
        while True:
            byte = window[offset]
            offset += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result, offset
            shift += 7
            if shift > 63:
                raise _garbage(position)
    except IndexError:
        raise ValueError(f"it ends in the middle of a number at byte {position}: was it copied whole?") from None


def _garbage(position: int) -> ValueError:
    return ValueError(f"its bytes are no ONNX model (no protobuf field at byte {position})")


def _truncated(source: _Source, first: int, length: int, end: int) -> ValueError:
    if first + length > source.size and end == source.size:
        missing = first + length - source.size
        return ValueError(f"it ends at least {missing} bytes too early ({source.size} bytes): was it copied whole?")
    return _garbage(first)


def _opset(source: _Source, start: int, end: int) -> tuple[str, int]:
    domain, version = "", 0
    for number, value, stop in source.fields(start, end):
        if number == 1 and stop is not None:
            domain = source.text(value, stop)
        elif number == 2 and stop is None:
            version = value
    return domain, version


def _value_info(source: _Source, start: int, end: int) -> ValueInfo:
    name, shape = "", None
    for number, value, stop in source.fields(start, end):
        if stop is None:
            continue
        if number == 1:
            name = source.text(value, stop)
        elif number == 2:
            shape = _type_shape(source, value, stop)
    return ValueInfo(name, shape)


def _type_shape(source: _Source, start: int, end: int, depth: int = 0) -> tuple[Dim, ...] | None:
    """Shape of the tensor inside optional and sequence types; None if none is declared."""
    if depth > 8:
        return None
    for number, value, stop in source.fields(start, end):
        if stop is None:
            continue
        if number in (1, 8):  # tensor_type, sparse_tensor_type: elem_type = 1, shape = 2
            for inner, at, until in source.fields(value, stop):
                if inner == 2 and until is not None:
                    return tuple(_dims(source, at, until))
            return None
        if number in (4, 9):  # sequence_type, optional_type: elem_type = 1
            for inner, at, until in source.fields(value, stop):
                if inner == 1 and until is not None:
                    return _type_shape(source, at, until, depth + 1)
            return None
    return None


def _dims(source: _Source, start: int, end: int) -> Iterator[Dim]:
    for number, value, stop in source.fields(start, end):
        if number != 1 or stop is None:
            continue
        dim: Dim = None
        for inner, at, until in source.fields(value, stop):
            if inner == 1 and until is None:
                dim = at if at < 1 << 63 else None  # exporters write -1 for "free"
            elif inner == 2 and until is not None:
                dim = source.text(at, until) or None
        yield dim


class _ExternalFinder:
    """Collects `external_data` locations from every place of a model where a tensor can stand."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self.names: set[str] = set()

    def model(self) -> None:
        graphs = 0
        for number, start, end in self._source.fields(0, self._source.size):
            if end is None:
                continue
            if number == 7:  # graph
                graphs += 1
                self._graph(start, end, 0)
            elif number == 20:  # training_info: initialization = 1, algorithm = 2
                for inner, at, until in self._source.fields(start, end):
                    if inner in (1, 2) and until is not None:
                        self._graph(at, until, 0)
            elif number == 25:  # functions: node = 7
                for inner, at, until in self._source.fields(start, end):
                    if inner == 7 and until is not None:
                        self._node(at, until, 0)
        if not graphs:
            raise ValueError("it holds no graph, so it is not an ONNX model")

    def _graph(self, start: int, end: int, depth: int) -> None:
        if depth > _MAX_NESTED_GRAPHS:
            raise ValueError(f"its graphs are nested more than {_MAX_NESTED_GRAPHS} deep")
        for number, at, until in self._source.fields(start, end):
            if until is None:
                continue
            if number == 1:
                self._node(at, until, depth)
            elif number == 5:
                self._tensor(at, until)
            elif number == 15:
                self._sparse_tensor(at, until)

    def _node(self, start: int, end: int, depth: int) -> None:
        for number, at, until in self._source.fields(start, end):
            if number != 5 or until is None:
                continue
            for inner, first, last in self._source.fields(at, until):
                if last is None:
                    continue
                if inner in (5, 10):  # t, tensors
                    self._tensor(first, last)
                elif inner in (6, 11):  # g, graphs
                    self._graph(first, last, depth + 1)
                elif inner in (22, 23):  # sparse_tensor, sparse_tensors
                    self._sparse_tensor(first, last)

    def _sparse_tensor(self, start: int, end: int) -> None:
        for number, at, until in self._source.fields(start, end):
            if number in (1, 2) and until is not None:  # values, indices
                self._tensor(at, until)

    def _tensor(self, start: int, end: int) -> None:
        for number, at, until in self._source.fields(start, end):
            if number != 13 or until is None:  # external_data
                continue
            key, value = "", ""
            for inner, first, last in self._source.fields(at, until):
                if last is not None and inner == 1:
                    key = self._source.text(first, last)
                elif last is not None and inner == 2:
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


def _refuse_other_formats(source: _Source) -> None:
    """
    Raise for what is commonly found under the name of a model.

    Raises:
        ValueError: the file is empty, or its first bytes are those of another format or of text.
    """
    head = source.read(0, 512)
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
