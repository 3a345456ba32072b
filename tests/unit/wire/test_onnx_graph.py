"""Tests of what `cortex.wire.onnx_proto.read_graph` reads, against what the onnx package says of the same files."""

import dataclasses
import math
import os
import random
import struct
import warnings

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, TypeProto, helper, numpy_helper
from onnx.backend.test import loader
from onnx.backend.test.case import node as node_cases

from cortex.wire import onnx_proto
from cortex.wire.graphs import MAX_ELEMENTS, Function, Graph, GraphInput, GraphNode, LongList, Model, Reference, Tensor
from cortex.wire.onnx_proto import external_files, read_graph, read_header

FLOAT = TensorProto.FLOAT

# ---- what the onnx package says -------------------------------------------------------------------------------------

DTYPES = {
    number: name.lower().replace("float", "float32" if name == "FLOAT" else "float").replace("double", "float64")
    for name, number in TensorProto.DataType.items()
    if not name.startswith(("UNDEFINED", "FLOAT8", "FLOAT6", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2"))
}


def tensor_of(proto):
    dtype = DTYPES.get(proto.data_type, "")
    few = math.prod(proto.dims) <= MAX_ELEMENTS and dtype and not dtype.startswith("complex")
    elements = None
    if few and proto.data_location != TensorProto.EXTERNAL:
        if dtype == "string":
            elements = tuple(text.decode() for text in proto.string_data)
        elif dtype == "bfloat16":
            elements = tuple(float(value) for value in numpy_helper.to_array(proto).flat)
        else:
            elements = tuple(numpy_helper.to_array(proto).reshape(-1).tolist())
    return Tensor(dtype, tuple(proto.dims), elements)


def sparse_of(proto):
    return Tensor(DTYPES.get(proto.values.data_type, ""), tuple(proto.dims))


def attribute_of(proto):
    if proto.ref_attr_name:
        return Reference(proto.ref_attr_name)
    value = helper.get_attribute_value(proto)
    match proto.type:
        case AttributeProto.TENSOR:
            return tensor_of(value)
        case AttributeProto.SPARSE_TENSOR:
            return sparse_of(value)
        case AttributeProto.GRAPH:
            return graph_of(value)
        case AttributeProto.STRING:
            return value.decode()
        case AttributeProto.STRINGS:
            return tuple(text.decode() for text in value)
        case AttributeProto.FLOATS | AttributeProto.INTS:
            return tuple(value)
        case AttributeProto.FLOAT | AttributeProto.INT:
            return value
    return None


def value_of(proto):
    kind = proto.type.WhichOneof("value")
    is_tensor = kind in ("tensor_type", None)
    inner = proto.type
    while inner.WhichOneof("value") in ("sequence_type", "optional_type"):
        inner = getattr(inner, inner.WhichOneof("value")).elem_type
    if inner.WhichOneof("value") not in ("tensor_type", "sparse_tensor_type"):
        return GraphInput(proto.name, is_tensor=is_tensor)
    tensor = getattr(inner, inner.WhichOneof("value"))
    shape = None
    if tensor.HasField("shape"):
        shape = tuple(
            (dim.dim_value if dim.dim_value >= 0 else None) if dim.HasField("dim_value") else dim.dim_param or None
            for dim in tensor.shape.dim
        )
    return GraphInput(proto.name, DTYPES.get(tensor.elem_type, ""), shape, is_tensor)


def node_of(proto):
    return GraphNode(
        operator=proto.op_type + (f":{proto.overload}" if proto.overload else ""),
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes={attribute.name: attribute_of(attribute) for attribute in proto.attribute},
        name=proto.name,
        domain="" if proto.domain == "ai.onnx" else proto.domain,
    )


def graph_of(proto):
    outputs = [value_of(value) for value in proto.output]
    return Graph(
        nodes=tuple(node_of(node) for node in proto.node),
        inputs=tuple(value_of(value) for value in proto.input),
        outputs=tuple(value.name for value in outputs),
        constants={tensor.name: tensor_of(tensor) for tensor in proto.initializer}
        | {tensor.values.name: sparse_of(tensor) for tensor in proto.sparse_initializer},
        output_dtypes=tuple(value.dtype if value.is_tensor else "" for value in outputs),
    )


def opsets_of(protos):
    return {"" if opset.domain == "ai.onnx" else opset.domain: opset.version for opset in protos}


def function_of(proto):
    return Function(
        name=proto.name + (f":{proto.overload}" if proto.overload else ""),
        domain=proto.domain,
        nodes=tuple(node_of(node) for node in proto.node),
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes=tuple(proto.attribute),
        defaults={attribute.name: attribute_of(attribute) for attribute in proto.attribute_proto},
        opsets=opsets_of(proto.opset_import),
    )


def model_of(proto):
    functions = [function_of(function) for function in proto.functions]
    return Model(
        graph=graph_of(proto.graph),
        functions={(function.domain, function.name): function for function in functions},
        opsets=opsets_of(proto.opset_import),
    )


def assert_same(found, expected):
    """Equal, but for lists that were passed over, which have to be long, and for NaN, which is itself here."""
    if isinstance(found, LongList):
        assert isinstance(expected, tuple)
        assert sum(len(one) + 2 if isinstance(one, str) else 11 for one in expected) > 4000
        assert {type(one) for one in expected} == {{"floats": float, "ints": int, "strings": str}[found.kind]}
        assert all(found.may_hold(one) for one in expected if isinstance(one, str))
        return
    assert type(found) is type(expected)
    if dataclasses.is_dataclass(found):
        for field in dataclasses.fields(found):
            assert_same(getattr(found, field.name), getattr(expected, field.name))
    elif isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert_same(value, expected[key])
    elif isinstance(found, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected or (found != found and expected != expected)


# ---- models ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"

    def save(content):
        path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
        return path

    return save


def tensor_info(name, shape, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(*nodes, inputs=(), outputs=(), **graph):
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, **graph), ir_version=10)


def read_attribute(saved, content):
    """What is read of an attribute that is written by hand."""
    (node,) = read_graph(saved(field(7, field(1, field(5, content))))).graph.nodes
    return node.attributes


def varint(value):
    value &= (1 << 64) - 1
    data = b""
    while value > 127:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def field(number, value):
    """A protobuf field: a number as a varint, a float in four bytes, bytes and text with their length."""
    match value:
        case bool() | int():
            return varint(number << 3) + varint(value)
        case float():
            return varint(number << 3 | 5) + struct.pack("<f", value)
        case str():
            return field(number, value.encode())
    return varint(number << 3 | 2) + varint(len(value)) + value


def rewritten(message, chance, *, shuffled=True):
    """The message as another writer might have written it: lists packed or not, fields in any order."""
    fields = []
    for descriptor, value in message.ListFields():
        values = list(value) if descriptor.is_repeated else [value]
        if descriptor.message_type:
            parts = [field(descriptor.number, rewritten(one, chance, shuffled=shuffled)) for one in values]
        elif descriptor.type in (descriptor.TYPE_STRING, descriptor.TYPE_BYTES):
            parts = [field(descriptor.number, one) for one in values]
        else:
            code = {descriptor.TYPE_FLOAT: "<f", descriptor.TYPE_DOUBLE: "<d"}.get(descriptor.type)
            parts = [struct.pack(code, one) if code else varint(one) for one in values]
            if descriptor.is_repeated and chance.random() < 0.5:
                parts = [field(descriptor.number, b"".join(parts))]
            else:
                wire_type = {"<f": 5, "<d": 1, None: 0}[code]
                parts = [varint(descriptor.number << 3 | wire_type) + part for part in parts]
        fields.append(parts)
    if not shuffled:
        return b"".join(part for parts in fields for part in parts)
    written = []
    while fields:
        parts = chance.choice(fields)
        few = chance.randint(1, len(parts))
        written += parts[:few]
        del parts[:few]
        fields = [parts for parts in fields if parts]
    return b"".join(written)


class Maker:
    """Makes models with everything that a model may have, out of a seed."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self._noise = np.random.default_rng(seed)

    def some(self, make, at_most):
        return [make() for _ in range(self.chance.randint(0, at_most))]

    def name(self):
        return "".join(self.chance.choices("xyz/.:_0é√\0 ", k=self.chance.choice([0, 1, 2, 5, 12])))

    def integer(self):
        return self.chance.choice([0, 1, -1, 255, -(1 << 31), (1 << 63) - 1, -(1 << 63), self.chance.randint(-99, 99)])

    def float(self):
        value = self.chance.choice([0.0, -0.0, math.inf, math.nan, 1e-40, self.chance.gauss(0, 1)])
        return float(np.float32(value))

    def dims(self):
        return self.some(lambda: self.chance.choice([0, 1, 1, 2, 3, 7, 40]), 4)

    def tensor(self, name):
        dims = self.dims()
        count = math.prod(dims)
        kind = self.chance.choice(["raw", "raw", "list", "list", "string", "outside", "float8", "bfloat16"])
        if kind == "string":
            texts = [*self.some(self.name, 3), "ab"]
            data = [texts[index % len(texts)].encode() for index in range(count)]
            return TensorProto(name=name, data_type=TensorProto.STRING, dims=dims, string_data=data)
        if kind == "outside":
            proto = TensorProto(name=name, data_type=FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
            proto.external_data.add(key="location", value="w")
            return proto
        if kind in ("float8", "bfloat16"):
            data_type = TensorProto.BFLOAT16 if kind == "bfloat16" else TensorProto.FLOAT8E4M3FN
            return helper.make_tensor(name, data_type, dims, self._noise.standard_normal(count))
        codes = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
        dtype = np.dtype(self.chance.choice(codes))
        array = np.frombuffer(self._noise.bytes(count * dtype.itemsize), dtype).reshape(dims)
        if dtype.kind == "b":
            array = array.view(np.uint8) > 127
        if kind == "raw":
            return numpy_helper.from_array(array, name)
        return helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(dtype), dims, array.reshape(-1))

    def sparse_tensor(self, name):
        return onnx.SparseTensorProto(values=self.tensor(name), dims=self.dims())

    def attribute(self, name, depth):
        proto = AttributeProto(name=name)
        times = self.chance.choice([1, 1, 1, 3000])
        kinds = ["INT", "FLOAT", "STRING", "INTS", "FLOATS", "STRINGS", "TENSOR", "SPARSE_TENSOR", "TENSORS"]
        kinds += ["SPARSE_TENSORS", "TYPE_PROTO", "TYPE_PROTOS", "REFERENCE"] + ["GRAPH", "GRAPH", "GRAPHS"] * (
            depth > 0
        )
        kind = self.chance.choice(kinds)
        proto.type = AttributeProto.AttributeType.Value("INTS" if kind == "REFERENCE" else kind)
        match kind:
            case "INT":
                proto.i = self.integer()
            case "FLOAT":
                proto.f = self.float()
            case "STRING":
                proto.s = self.name().encode() * min(times, 1000)
            case "INTS":
                proto.ints.extend(self.some(self.integer, 9) * times)
            case "FLOATS":
                proto.floats.extend(self.some(self.float, 9) * times)
            case "STRINGS":
                proto.strings.extend([text.encode() for text in self.some(self.name, 9)] * times)
            case "TENSOR":
                proto.t.CopyFrom(self.tensor("value"))
            case "SPARSE_TENSOR":
                proto.sparse_tensor.CopyFrom(self.sparse_tensor("value"))
            case "TENSORS":
                proto.tensors.extend(self.some(lambda: self.tensor("value"), 2))
            case "SPARSE_TENSORS":
                proto.sparse_tensors.extend(self.some(lambda: self.sparse_tensor("value"), 2))
            case "TYPE_PROTO":
                proto.tp.CopyFrom(self.type())
            case "TYPE_PROTOS":
                proto.type_protos.extend(self.some(self.type, 2))
            case "REFERENCE":
                proto.ref_attr_name = "outer"
            case "GRAPH":
                proto.g.CopyFrom(self.graph(depth - 1))
            case "GRAPHS":
                proto.graphs.extend(self.some(lambda: self.graph(depth - 1), 2))
        if kind == "TENSOR":
            proto.doc_string = "said at length " * self.chance.choice([0, 1, 400])
        return proto

    def attributes(self, depth):
        return [self.attribute(name, depth) for name in dict.fromkeys(self.some(self.name, 4))]

    def node(self, depth):
        return onnx.NodeProto(
            op_type=self.name(),
            input=self.some(self.name, 3),
            output=self.some(self.name, 3),
            name=self.name(),
            domain=self.chance.choice(["", "ai.onnx", "ai.onnx.ml", "own"]),
            overload=self.chance.choice(["", "", "second"]),
            attribute=self.attributes(depth),
            doc_string="File model.py, line 1 " * self.chance.choice([0, 0, 1000]),
        )

    def type(self, depth=2):
        kind = self.chance.choice(["none", *["tensor", "sparse"] * 3, *["sequence", "optional", "map"] * (depth > 0)])
        if kind == "none":
            return TypeProto()
        if kind in ("tensor", "sparse"):
            make = helper.make_tensor_type_proto if kind == "tensor" else helper.make_sparse_tensor_type_proto
            dims = self.some(lambda: self.chance.choice([-1, 0, 1, 224, "N", "time", None]), 4)
            return make(self.chance.choice(sorted(DTYPES)), self.chance.choice([dims, dims, None]))
        if kind == "map":
            return helper.make_map_type_proto(TensorProto.INT64, self.type(depth - 1))
        make = helper.make_sequence_type_proto if kind == "sequence" else helper.make_optional_type_proto
        return make(self.type(depth - 1))

    def value(self):
        return helper.make_value_info(self.name(), self.type())

    def graph(self, depth=2):
        return onnx.GraphProto(
            name="g",
            node=self.some(lambda: self.node(depth), 3),
            input=self.some(self.value, 3),
            output=self.some(self.value, 3),
            initializer=self.some(lambda: self.tensor(self.name()), 3),
            sparse_initializer=self.some(lambda: self.sparse_tensor("sparse"), 1),
            value_info=self.some(self.value, 1),
        )

    def opsets(self):
        return self.some(lambda: helper.make_opsetid(self.chance.choice(["", "ai.onnx", "own"]), 21), 3)

    def function(self):
        return onnx.FunctionProto(
            name=self.name(),
            domain=self.chance.choice(["", "own"]),
            overload=self.chance.choice(["", "", "second"]),
            input=self.some(self.name, 3),
            output=self.some(self.name, 3),
            attribute=self.some(self.name, 2),
            attribute_proto=self.attributes(0),
            node=self.some(lambda: self.node(1), 2),
            opset_import=self.opsets(),
            value_info=self.some(self.value, 1),
        )

    def model(self):
        return onnx.ModelProto(
            ir_version=10,
            producer_name="here",
            graph=self.graph(),
            functions=self.some(self.function, 2),
            opset_import=self.opsets(),
        )


SEEDS = st.integers(0, 1 << 40)


# ---- as the onnx package has it -------------------------------------------------------------------------------------


@given(seed=SEEDS)
@settings(deadline=None)
def test_any_model_reads_as_the_onnx_package_reads_it(saved, seed):
    proto = Maker(seed).model()
    assert_same(read_graph(saved(proto)), model_of(proto))


@given(seed=SEEDS, shuffled=st.booleans())
@settings(deadline=None)
def test_however_a_writer_orders_and_packs_fields_the_same_is_read(saved, seed, shuffled):
    maker = Maker(seed)
    proto = maker.model()
    content = rewritten(proto, maker.chance, shuffled=shuffled)
    assert onnx.ModelProto.FromString(content).SerializeToString() == proto.SerializeToString()
    assert_same(read_graph(saved(content)), model_of(proto))


@given(seed=SEEDS, shuffled=st.booleans())
@settings(deadline=None)
def test_a_damaged_model_never_does_worse_than_a_value_error(saved, seed, shuffled):
    maker = Maker(seed)
    chance = maker.chance
    whole = rewritten(maker.model(), chance, shuffled=shuffled)
    for _ in range(10):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randint(0, len(content))
            match chance.choice(["change", "insert", "remove", "cut"]):
                case "change":
                    content[at : at + 1] = chance.randbytes(1)
                case "insert":
                    content[at:at] = chance.randbytes(chance.randint(1, 9))
                case "remove":
                    del content[at : at + chance.randint(1, 20)]
                case "cut":
                    del content[at:]
        path = saved(bytes(content))
        for read in (read_graph, read_header, external_files):
            try:
                read(path)
            except ValueError as error:
                reason = str(error)
            else:
                continue
            assert reason


def test_the_models_that_the_onnx_package_ships_read_as_it_reads_them():
    folder = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data")
    paths = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names if name.endswith(".onnx")]
    assert len(paths) > 100
    for path in paths:
        assert_same(read_graph(path), model_of(onnx.load(path, load_external_data=False)))


@pytest.mark.slow
def test_the_operator_cases_of_the_onnx_package_read_as_it_reads_them(saved):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it computes what it expects as it is imported
        node_cases._existing_names.clear()  # of cases that another test has made in this process
        cases = loader.load_model_tests(kind="node")
    assert len(cases) > 1000
    for case in cases:
        assert_same(read_graph(saved(case.model)), model_of(case.model))


# ---- what it amounts to ---------------------------------------------------------------------------------------------


def test_a_model_is_read_into_the_neutral_graph(saved):
    body = helper.make_graph([helper.make_node("Neg", ["i"], ["o"])], "body", [tensor_info("i", None)], [])
    proto = model(
        helper.make_node("Conv", ["x", "w"], ["c"], name="first", kernel_shape=[3, 3], group=1),
        helper.make_node("Scan", ["c"], ["y"], body=body, num_scan_inputs=1),
        inputs=[tensor_info("x", ["N", 3, None, -1])],
        outputs=[tensor_info("y", None, TensorProto.INT64)],
        initializer=[
            numpy_helper.from_array(np.zeros((8, 3, 3, 64), np.float32), "w"),
            numpy_helper.from_array(np.array([1, -2], np.int64), "axes"),
        ],
    )
    proto.opset_import[0].domain = "ai.onnx"
    version = proto.opset_import[0].version
    assert read_graph(saved(proto)) == Model(
        graph=Graph(
            nodes=(
                GraphNode("Conv", ("x", "w"), ("c",), {"kernel_shape": (3, 3), "group": 1}, "first"),
                GraphNode(
                    "Scan",
                    ("c",),
                    ("y",),
                    {
                        "num_scan_inputs": 1,
                        "body": Graph((GraphNode("Neg", ("i",), ("o",)),), (GraphInput("i", "float32"),), ()),
                    },
                ),
            ),
            inputs=(GraphInput("x", "float32", ("N", 3, None, None)),),
            outputs=("y",),
            constants={"w": Tensor("float32", (8, 3, 3, 64)), "axes": Tensor("int64", (2,), (1, -2))},
            output_dtypes=("int64",),
        ),
        opsets={"": version},
    )


def test_a_function_brings_its_own_operator_sets_and_defaults(saved):
    inner = helper.make_node("Softmax", ["a"], ["b"])
    inner.attribute.append(AttributeProto(name="axis", ref_attr_name="dim", type=AttributeProto.INT))
    function = helper.make_function(
        "own",
        "Soft",
        ["a"],
        ["b"],
        [inner],
        [helper.make_opsetid("", 13)],
        ["needed"],
        [helper.make_attribute("dim", -1)],
    )
    function.overload = "narrow"
    call = helper.make_node("Soft", ["x"], ["y"], domain="own", overload="narrow")
    proto = model(call)
    proto.functions.append(function)
    found = read_graph(saved(proto))
    assert found.functions == {
        ("own", "Soft:narrow"): Function(
            name="Soft:narrow",
            domain="own",
            nodes=(GraphNode("Softmax", ("a",), ("b",), {"axis": Reference("dim")}),),
            inputs=("a",),
            outputs=("b",),
            attributes=("needed",),
            defaults={"dim": -1},
            opsets={"": 13},
        )
    }
    (node,) = found.graph.nodes
    assert (node.domain, node.operator) in found.functions


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_half_precision_is_read_as_numbers_from_bits_and_from_raw_data(saved, dtype):
    listed = helper.make_tensor("listed", dtype, [3], [0.5, -2.0, math.inf])
    raw = TensorProto(name="raw", data_type=dtype, dims=[3], raw_data=struct.pack("<3H", *listed.int32_data))
    assert not listed.raw_data
    found = read_graph(saved(model(initializer=[listed, raw]))).graph.constants
    assert found["listed"].elements == found["raw"].elements == (0.5, -2.0, math.inf)


UNKNOWN_VALUES = {
    "too few": TensorProto(data_type=FLOAT, dims=[2], float_data=[1]),
    "in another type's list": TensorProto(data_type=FLOAT, dims=[1], int32_data=[1]),
    "in two lists": TensorProto(data_type=FLOAT, dims=[1], float_data=[1], int32_data=[1]),
    "in a list and raw": TensorProto(data_type=FLOAT, dims=[1], float_data=[1], raw_data=bytes(4)),
    "raw, too long": TensorProto(data_type=FLOAT, dims=[1], raw_data=bytes(5)),
    "a segment": TensorProto(data_type=FLOAT, dims=[1], float_data=[1], segment={"begin": 0, "end": 1}),
    "outside": TensorProto(data_type=FLOAT, dims=[1], float_data=[1], data_location=TensorProto.EXTERNAL),
    "an int8 of 200": TensorProto(data_type=TensorProto.INT8, dims=[1], int32_data=[200]),
    "a float16 of 17 bits": TensorProto(data_type=TensorProto.FLOAT16, dims=[1], int32_data=[1 << 16]),
    "no text": TensorProto(data_type=TensorProto.STRING, dims=[1], string_data=[b"\xff"]),
    "a very long text": TensorProto(data_type=TensorProto.STRING, dims=[1], string_data=[b"x" * 100_000]),
    "complex": TensorProto(data_type=TensorProto.COMPLEX64, dims=[1], float_data=[1, 2]),
    "an unknown type": TensorProto(data_type=99, dims=[1], int32_data=[1]),
}


@pytest.mark.parametrize("case", UNKNOWN_VALUES)
def test_values_that_are_not_plainly_there_are_not_known(saved, case):
    proto = UNKNOWN_VALUES[case]
    found = read_graph(saved(model(initializer=[proto]))).graph.constants[""]
    assert found == Tensor(DTYPES.get(proto.data_type, ""), tuple(proto.dims), None)


def test_a_constant_is_read_up_to_its_size_limit(saved):
    tensors = [
        numpy_helper.from_array(np.zeros(size, np.uint8), f"{size}") for size in (MAX_ELEMENTS, MAX_ELEMENTS + 1)
    ]
    found = read_graph(saved(model(initializer=tensors))).graph.constants
    assert found["256"].elements == (0,) * MAX_ELEMENTS
    assert found["257"].elements is None


TYPED = {
    "a float left out": (field(20, 1), 0.0),
    "an int left out": (field(20, 2), 0),
    "a string left out": (field(20, 3), ""),
    "an empty list": (field(20, 7), ()),
    "the type decides between two": (field(20, 2) + field(3, 5) + field(8, 6), 5),
    "the type decides against the only one": (field(8, 5) + field(20, 6), ()),
    "the last one counts": (field(3, 5) + field(3, 6) + field(20, 2), 6),
    "no type": (field(3, 5), 5),
    "no type, a list": (field(8, 5) + field(8, -1), (5, -1)),
    "no type, two values": (field(3, 5) + field(4, "both"), None),
    "no text": (field(4, b"\xff") + field(20, 3), None),
    "a very long text": (field(4, b"x" * 100_000) + field(20, 3), None),
    "an unknown type": (field(20, 99), None),
}


@pytest.mark.parametrize("case", TYPED)
def test_an_attribute_is_what_its_type_says(saved, case):
    content, expected = TYPED[case]
    assert read_attribute(saved, field(1, "a") + content) == {"a": expected}


def test_strings_that_are_no_text_can_still_be_searched(saved):
    found = read_attribute(saved, field(1, "a") + field(9, b"caf\xe9") + field(9, "tea") + field(20, 8))["a"]
    assert found.kind == "strings"
    assert found.may_hold("tea")
    assert not found.may_hold("te")


LONG_LISTS = {
    "ints": (b"".join(field(8, index % 300) for index in range(3000)), 7),
    "packed ints": (field(8, b"".join(varint(index % 300) for index in range(3000))), 7),
    "floats": (b"".join(field(7, float(index)) for index in range(3000)), 6),
    "packed floats": (field(7, struct.pack("<3000f", *range(3000))), 6),
    "strings": (b"".join(field(9, f"word {index}") for index in range(3000)), 8),
}


@pytest.mark.parametrize("kind", LONG_LISTS)
@pytest.mark.parametrize("order", ["name list type", "type list name", "name type list", "name list", "list name type"])
def test_a_long_list_is_passed_over_wherever_a_writer_puts_its_name_and_type(saved, kind, order):
    elements, attribute_type = LONG_LISTS[kind]
    parts = {"name": field(1, "a"), "list": elements, "type": field(20, attribute_type)}
    found = read_attribute(saved, b"".join(parts[part] for part in order.split()))["a"]
    assert isinstance(found, LongList)
    assert found.kind == kind.split()[-1]
    if kind == "strings":
        assert found.may_hold("word 2999")
        assert not found.may_hold("word 3000")


def test_an_attribute_that_only_ends_like_a_list_is_read_to_its_end(saved):
    looks_so = field(1, "a") + field(13, "x" * 5000) + field(2, 1.5) + field(20, 1) + field(13, b"\xa0\x01\x07")
    assert read_attribute(saved, looks_so) == {"a": 1.5}
    numbers = b"".join(field(8, 7) for _ in range(3000))
    found = read_attribute(saved, field(1, "a") + numbers + field(20, 6) + field(7, 1.5) + field(20, 6))
    assert found == {"a": (1.5,)}


def test_strings_are_kept_to_be_searched_only_up_to_a_size(saved):
    words = [f"{index:07}" for index in range(300_000)]
    node = helper.make_node("TfIdfVectorizer", [], [], pool_strings=words)
    first, second = (node.attributes["pool_strings"] for node in read_graph(saved(model(node, node))).graph.nodes)
    assert not first.may_hold("not there")
    assert second == LongList("strings", None)
    assert second.may_hold("not there")


def test_types_that_are_no_plain_tensors_say_so(saved):
    tensor = helper.make_tensor_type_proto(FLOAT, ["N", 3])
    kinds = {
        "tensor": tensor,
        "sparse": helper.make_sparse_tensor_type_proto(FLOAT, ["N", 3]),
        "sequence": helper.make_sequence_type_proto(tensor),
        "optional": helper.make_optional_type_proto(tensor),
        "map": helper.make_map_type_proto(TensorProto.INT64, tensor),
        "opaque": TypeProto(opaque_type={"name": "own"}),
    }
    values = [helper.make_value_info(name, kind) for name, kind in kinds.items()]
    graph = read_graph(saved(model(inputs=values, outputs=values))).graph
    assert [value.name for value in graph.inputs if value.is_tensor] == ["tensor"]
    assert graph.output_dtypes == ("float32", "", "", "", "", "")


def test_a_graph_in_two_parts_is_one_graph(saved):
    parts = [field(7, field(1, field(4, operator))) for operator in ("Abs", "Neg")]
    assert [node.operator for node in read_graph(saved(b"".join(parts))).graph.nodes] == ["Abs", "Neg"]


# ---- refused --------------------------------------------------------------------------------------------------------


def in_attribute(content):
    return field(7, field(1, field(5, content)))


REFUSED = {
    "no graph": (b"\x08\x0a", "no graph"),
    "a name that is no text": (field(7, field(1, field(1, b"\xff"))), "no UTF-8"),
    "an attribute twice": (field(7, field(1, field(5, field(1, "a")) * 2)), 'two attributes "a"'),
    "a tensor twice": (in_attribute(field(5, b"") * 2), "tensor that is written twice"),
    "a graph twice": (in_attribute(field(6, b"") * 2), "graph that is written twice"),
    "a sparse tensor twice": (in_attribute(field(22, b"") * 2), "tensor that is written twice"),
    "a type twice": (field(7, field(11, field(2, b"") * 2)), "type that is written twice"),
    "two types": (field(7, field(11, field(2, field(1, b"") + field(4, b"")))), "type that is written twice"),
    "a shape twice": (field(7, field(11, field(2, field(1, field(2, b"") * 2)))), "shape that is written twice"),
    "a negative dimension": (field(7, field(5, field(1, -1))), "dimension of -1"),
    "5,000 dimensions": (field(7, field(5, field(1, 1) * 5000)), "more dimensions"),
    "5,000 packed dimensions": (field(7, field(15, field(3, bytes(5000)))), "more dimensions"),
    "a broken list": (in_attribute(field(7, b"abc") + field(20, 6)), "list of floats that ends in the middle"),
    "too many nodes": (field(7, field(1, b"") * 200_001), "more than 200000 nodes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_writer_writes_is_refused(saved, case):
    content, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        read_graph(saved(content))


def test_a_graph_of_more_fields_than_anybody_looks_at_is_refused(saved, monkeypatch):
    monkeypatch.setattr(onnx_proto, "MAX_FIELDS", 50_000)
    assert read_graph(saved(field(7, field(2, b"") * 40_000)))
    with pytest.raises(ValueError, match="more than 50000 protobuf fields"):
        read_graph(saved(field(7, field(2, b"") * 50_001)))


def test_graphs_nested_without_end_are_refused(saved):
    graph = b""
    for _ in range(150):
        graph = field(1, field(5, field(6, graph)))
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        read_graph(saved(field(7, graph)))


def test_types_nested_without_end_are_no_tensors(saved):
    kind = field(1, field(1, 1))
    for _ in range(5000):
        kind = field(4, field(1, kind))
    (declared,) = read_graph(saved(field(7, field(11, field(1, "x") + field(2, kind))))).graph.inputs
    assert declared == GraphInput("x", is_tensor=False)
