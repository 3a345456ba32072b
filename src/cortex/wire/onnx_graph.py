"""An ONNX model's computation: nodes, what they are told, what is declared; weights are passed over."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from cortex.wire.graphs import Attribute, Function, Graph, GraphInput, GraphNode, LongList, Model, Reference, Tensor
from cortex.wire.onnx_schema import (
    ATTRIBUTE_LISTS,
    AttributeTag,
    AttributeType,
    DimTag,
    ElementTypeTag,
    FunctionTag,
    GraphTag,
    ModelTag,
    NodeTag,
    OpsetTag,
    ShapeTag,
    TensorTypeTag,
    TypeTag,
    ValueTag,
)
from cortex.wire.onnx_tensor import dtype_of, read_sparse_tensor, read_tensor
from cortex.wire.protobuf import MAX_TEXT_BYTES, Source, Span, signed
from cortex.wire.signature import Dim

MAX_FIELDS: Final = 5_000_000
"""Of a graph that is kept in memory."""
MAX_NODES: Final = 200_000
MAX_NESTED_GRAPHS: Final = 100
MAX_NESTED_TYPES: Final = 8

LONG_BYTES: Final = 1 << 12
"""An attribute of more is a list of weights, but for graphs and tensors: sizes, axes and names are never that many."""
_KEPT_STRINGS_BYTES = 4 << 20
"""Of all long lists of strings together: some 400,000 words, in which rules look for one."""

_LIST_NAMES: Final = {
    AttributeType.FLOATS: "floats",
    AttributeType.INTS: "ints",
    AttributeType.STRINGS: "strings",
}
_LIST_BY_END: Final = {
    bytes((0xA0, 0x01, attribute_type)): attribute_type for attribute_type in _LIST_NAMES
}  # the field `type`, which has the highest number that a list's attribute has
_UNREAD: Final = {
    AttributeTag.TENSORS: AttributeType.TENSORS,
    AttributeTag.GRAPHS: AttributeType.GRAPHS,
    AttributeTag.SPARSE_TENSORS: AttributeType.SPARSE_TENSORS,
    AttributeTag.TP: AttributeType.TYPE_PROTO,
    AttributeTag.TYPE_PROTOS: AttributeType.TYPE_PROTOS,
}
_EMPTY: Final[Mapping[int, Attribute]] = {
    AttributeType.FLOAT: 0.0,
    AttributeType.INT: 0,
    AttributeType.STRING: "",
    AttributeType.FLOATS: (),
    AttributeType.INTS: (),
    AttributeType.STRINGS: (),
}
"""What a field that is not written stands for: some writers leave out zeros."""


class ListAttribute(NamedTuple):
    """A long attribute that is nothing but a list of numbers or strings."""

    name: str
    attribute_type: int


def as_long_list(source: Source, start: int, end: int) -> ListAttribute | None:
    """
    Recognise a long list by its two ends, without a look at its elements; None for whatever is to be walked.

    Writers write fields in the order of their numbers: the name, the list, the type at the very end. The type alone
    says which field counts, so that nothing in between could matter.

    Raises:
        ValueError: it does not begin as an attribute does.
    """
    if end - start <= LONG_BYTES:
        return None
    attribute_type = _LIST_BY_END.get(source.read(end - 3, 3))
    if attribute_type is None:
        return None
    fields = source.tagged(start, end)
    tag, first, last = next(fields)
    if tag != AttributeTag.NAME or last is None:
        return None
    name = source.name(first, last)
    tag, _, _ = next(fields, (0, 0, None))
    return ListAttribute(name, attribute_type) if ATTRIBUTE_LISTS.get(tag) == attribute_type else None


class GraphReader:
    """Reads one model."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._nodes_left = MAX_NODES
        self._strings_left = _KEPT_STRINGS_BYTES

    def model(self) -> Model:
        """
        Raises:
            ValueError: it is none, or larger than anything that is looked at.
        """
        source = self._source
        graphs: list[Span] = []
        functions: dict[tuple[str, str], Function] = {}
        opsets: dict[str, int] = {}
        for tag, first, last in source.tagged(0, source.size):
            if last is None:
                continue
            if tag == ModelTag.GRAPH:
                graphs.append((first, last))
            elif tag == ModelTag.OPSET_IMPORT:
                opsets.update([read_opset(source, first, last)])
            elif tag == ModelTag.FUNCTIONS:
                function = self._function(first, last)
                functions[function.domain, function.name] = function
        if not graphs:
            raise ValueError("it holds no graph, so it is not an ONNX model")
        return Model(self._graph(*graphs), functions, opsets)

    def _graph(self, *parts: Span, depth: int = 0) -> Graph:
        """A graph; of one that is written in several parts each part counts, as protobuf has it."""
        if depth > MAX_NESTED_GRAPHS:
            raise ValueError(f"its graphs are nested more than {MAX_NESTED_GRAPHS} deep")
        source = self._source
        nodes: list[GraphNode] = []
        inputs: list[GraphInput] = []
        outputs: list[GraphInput] = []
        constants: dict[str, Tensor] = {}
        for part in parts:
            for tag, first, last in source.tagged(*part):
                if last is None:
                    continue
                if tag == GraphTag.NODE:
                    nodes.append(self._node(first, last, depth))
                elif tag == GraphTag.INITIALIZER:
                    constants.update([read_tensor(source, first, last)])
                elif tag == GraphTag.SPARSE_INITIALIZER:
                    constants.update([read_sparse_tensor(source, first, last)])
                elif tag == GraphTag.INPUT:
                    inputs.append(read_value(source, first, last))
                elif tag == GraphTag.OUTPUT:
                    outputs.append(read_value(source, first, last))
        return Graph(
            nodes=tuple(nodes),
            inputs=tuple(inputs),
            outputs=tuple(output.name for output in outputs),
            constants=constants,
            output_dtypes=tuple(output.dtype if output.is_tensor else "" for output in outputs),
        )

    def _function(self, start: int, end: int) -> Function:
        source = self._source
        name = domain = overload = ""
        inputs: list[str] = []
        outputs: list[str] = []
        attributes: list[str] = []
        nodes: list[GraphNode] = []
        defaults: dict[str, Attribute] = {}
        opsets: dict[str, int] = {}
        for tag, first, last in source.tagged(start, end):
            if last is None:
                continue
            match tag:
                case FunctionTag.NAME:
                    name = source.name(first, last)
                case FunctionTag.DOMAIN:
                    domain = read_domain(source, first, last)
                case FunctionTag.OVERLOAD:
                    overload = source.name(first, last)
                case FunctionTag.INPUT:
                    inputs.append(source.name(first, last))
                case FunctionTag.OUTPUT:
                    outputs.append(source.name(first, last))
                case FunctionTag.ATTRIBUTE:
                    attributes.append(source.name(first, last))
                case FunctionTag.ATTRIBUTE_PROTO:
                    defaults.update([self._attribute(first, last, 0)])
                case FunctionTag.NODE:
                    nodes.append(self._node(first, last, 0))
                case FunctionTag.OPSET_IMPORT:
                    opsets.update([read_opset(source, first, last)])
        return Function(
            name=_overloaded(name, overload),
            domain=domain,
            nodes=tuple(nodes),
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            attributes=tuple(attributes),
            defaults=defaults,
            opsets=opsets,
        )

    def _node(self, start: int, end: int, depth: int) -> GraphNode:
        self._nodes_left -= 1
        if self._nodes_left < 0:
            raise ValueError(f"it has more than {MAX_NODES} nodes")
        source = self._source
        operator = name = domain = overload = ""
        inputs: list[str] = []
        outputs: list[str] = []
        attributes: dict[str, Attribute] = {}
        for tag, first, last in source.tagged(start, end):
            if last is None:
                continue
            match tag:
                case NodeTag.INPUT:
                    inputs.append(source.name(first, last))
                case NodeTag.OUTPUT:
                    outputs.append(source.name(first, last))
                case NodeTag.ATTRIBUTE:
                    key, value = self._attribute(first, last, depth)
                    if key in attributes:
                        raise ValueError(f'it has a node with two attributes "{key}"')
                    attributes[key] = value
                case NodeTag.OP_TYPE:
                    operator = source.name(first, last)
                case NodeTag.NAME:
                    name = source.name(first, last)
                case NodeTag.DOMAIN:
                    domain = read_domain(source, first, last)
                case NodeTag.OVERLOAD:
                    overload = source.name(first, last)
        return GraphNode(_overloaded(operator, overload), tuple(inputs), tuple(outputs), attributes, name, domain)

    def _attribute(self, start: int, end: int, depth: int) -> tuple[str, Attribute]:
        source = self._source
        long = as_long_list(source, start, end)
        if long is not None:
            return long.name, self._passed_over(long.attribute_type, start, end)
        name = reference = ""
        attribute_type = 0
        values: dict[int, Attribute] = {}
        lists: dict[int, list[Span]] = {}
        for tag, first, last in source.tagged(start, end, ATTRIBUTE_LISTS):
            if last is None:
                if tag == AttributeTag.I:
                    values[AttributeType.INT] = signed(first)
                elif tag == AttributeTag.TYPE:
                    attribute_type = first
                continue
            match tag:
                case AttributeTag.NAME:
                    name = source.name(first, last)
                case AttributeTag.REF_ATTR_NAME:
                    reference = source.name(first, last)
                case AttributeTag.F:
                    (values[AttributeType.FLOAT],) = struct.unpack("<f", source.read(first, 4))
                case AttributeTag.S:
                    values[AttributeType.STRING] = _string(source, first, last)
                case AttributeTag.T:
                    refuse_twice(values.get(AttributeType.TENSOR), "tensor")
                    _, values[AttributeType.TENSOR] = read_tensor(source, first, last)
                case AttributeTag.SPARSE_TENSOR:
                    refuse_twice(values.get(AttributeType.SPARSE_TENSOR), "tensor")
                    _, values[AttributeType.SPARSE_TENSOR] = read_sparse_tensor(source, first, last)
                case AttributeTag.G:
                    refuse_twice(values.get(AttributeType.GRAPH), "graph")
                    values[AttributeType.GRAPH] = self._graph((first, last), depth=depth + 1)
                case _ if tag in ATTRIBUTE_LISTS:
                    lists.setdefault(ATTRIBUTE_LISTS[tag], []).append((first, last))
                case _ if tag in _UNREAD:
                    values[_UNREAD[tag]] = None
        if reference:
            return name, Reference(reference)
        if not attribute_type and len(written := values.keys() | lists.keys()) == 1:  # before version 2 of the format
            (attribute_type,) = written
        if attribute_type in lists:
            return name, self._list(attribute_type, lists[attribute_type], start, end)
        return name, values.get(attribute_type, _EMPTY.get(attribute_type))

    def _list(self, attribute_type: int, spans: list[Span], start: int, end: int) -> Attribute:
        """A list's elements, or what stands for it if it is long, or of strings that are no text."""
        if sum(last - first for first, last in spans) > LONG_BYTES:
            return self._passed_over(attribute_type, start, end)
        if attribute_type == AttributeType.INTS:
            return tuple(map(signed, self._source.integers(spans)))
        contents = self._source.contents(spans)
        if attribute_type == AttributeType.STRINGS:
            try:
                return tuple(content.decode("utf-8") for content in contents)
            except UnicodeDecodeError:
                return self._passed_over(attribute_type, start, end)
        floats = b"".join(contents)
        if len(floats) % 4:
            raise ValueError(f"it has a list of floats that ends in the middle of one at byte {spans[-1][1]}")
        return struct.unpack(f"<{len(floats) // 4}f", floats)

    def _passed_over(self, attribute_type: int, start: int, end: int) -> LongList:
        if attribute_type != AttributeType.STRINGS or end - start > self._strings_left:
            return LongList(_LIST_NAMES[attribute_type])
        self._strings_left -= end - start
        return LongList("strings", self._source.read(start, end - start))


def _string(source: Source, start: int, end: int) -> str | None:
    """An attribute's text; None if it is none, or far longer than names are."""
    if end - start > MAX_TEXT_BYTES:
        return None
    try:
        return source.read(start, end - start).decode("utf-8")
    except UnicodeDecodeError:
        return None


def _overloaded(name: str, overload: str) -> str:
    """Functions of one name differ by overload, and nodes say which of them they call."""
    return f"{name}:{overload}" if overload else name


# ---- what is declared -----------------------------------------------------------------------------------------------


def read_opset(source: Source, start: int, end: int) -> tuple[str, int]:
    """Domain and version of an operator set."""
    domain, version = "", 0
    for tag, first, last in source.tagged(start, end):
        if tag == OpsetTag.DOMAIN and last is not None:
            domain = read_domain(source, first, last)
        elif tag == OpsetTag.VERSION:
            version = signed(first)
    return domain, version


def read_domain(source: Source, start: int, end: int) -> str:
    """A domain of operators; the standard one is empty, which may be written out."""
    domain = source.name(start, end)
    return "" if domain == "ai.onnx" else domain


def read_value(source: Source, start: int, end: int) -> GraphInput:
    """An input or output as it is declared."""
    name = ""
    declared: _Type | None = None
    for tag, first, last in source.tagged(start, end):
        if last is None:
            continue
        if tag == ValueTag.NAME:
            name = source.name(first, last)
        elif tag == ValueTag.TYPE:
            refuse_twice(declared, "type")
            declared = _type(source, first, last)
    declared = declared or _Type()
    return GraphInput(name, declared.dtype, declared.shape, declared.is_tensor)


def refuse_twice(before: object, what: str) -> None:
    """
    Protobuf would make one of the two, which no writer counts on.

    Raises:
        ValueError: there was one before.
    """
    if before is not None:
        raise ValueError(f"it has a {what} that is written twice")


class _Type(NamedTuple):
    """Type and shape of the innermost tensor, and whether that is all."""

    dtype: str = ""
    shape: tuple[Dim, ...] | None = None
    is_tensor: bool = True


def _type(source: Source, start: int, end: int, depth: int = 0) -> _Type:
    if depth > MAX_NESTED_TYPES:
        return _Type(is_tensor=False)
    found: _Type | None = None
    for tag, first, last in source.tagged(start, end):
        if last is None or tag not in _TYPES:
            continue
        refuse_twice(found, "type")
        if tag in (TypeTag.TENSOR, TypeTag.SPARSE_TENSOR):
            found = _tensor_type(source, first, last)._replace(is_tensor=tag == TypeTag.TENSOR)
        elif tag in (TypeTag.SEQUENCE, TypeTag.OPTIONAL):
            found = _element_type(source, first, last, depth)._replace(is_tensor=False)
        else:
            found = _Type(is_tensor=False)
    return found or _Type()


_TYPES: Final = frozenset(
    {TypeTag.TENSOR, TypeTag.SPARSE_TENSOR, TypeTag.SEQUENCE, TypeTag.OPTIONAL, TypeTag.MAP, TypeTag.OPAQUE}
)


def _tensor_type(source: Source, start: int, end: int) -> _Type:
    dtype = ""
    shape: tuple[Dim, ...] | None = None
    for tag, first, last in source.tagged(start, end):
        if tag == TensorTypeTag.ELEM_TYPE:
            dtype = dtype_of(first)
        elif tag == TensorTypeTag.SHAPE and last is not None:
            refuse_twice(shape, "shape")
            shape = tuple(
                _dim(source, at, until)
                for inner, at, until in source.tagged(first, last)
                if inner == ShapeTag.DIM and until is not None
            )
    return _Type(dtype, shape)


def _element_type(source: Source, start: int, end: int, depth: int) -> _Type:
    found: _Type | None = None
    for tag, first, last in source.tagged(start, end):
        if tag == ElementTypeTag.ELEM_TYPE and last is not None:
            refuse_twice(found, "type")
            found = _type(source, first, last, depth + 1)
    return found or _Type()


def _dim(source: Source, start: int, end: int) -> Dim:
    dim: Dim = None
    for tag, first, last in source.tagged(start, end):
        if tag == DimTag.VALUE:
            size = signed(first)
            dim = size if size >= 0 else None  # exporters write -1 for "free"
        elif tag == DimTag.PARAM and last is not None:
            dim = source.name(first, last) or None
    return dim
