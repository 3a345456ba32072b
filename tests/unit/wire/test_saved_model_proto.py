"""Tests of `cortex.wire.saved_model_proto`: against bytes made by hand, and against what TensorFlow itself writes."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.replica.backends.base import ModelError
from cortex.replica.backends.signatures import SignatureDef, choose
from cortex.wire import saved_model_proto
from cortex.wire.graphs import (
    Function,
    FunctionName,
    FunctionNames,
    GraphInput,
    GraphNode,
    LongList,
    Model,
    Reference,
    Shapes,
    Tensor,
)
from cortex.wire.saved_model_proto import DOMAIN, read_graph
from cortex.wire.signature import TensorSpec

# ---- protobuf by hand -----------------------------------------------------------------------------------------------

FLOAT, INT32, STRING, INT64, BOOL, HALF = 1, 3, 7, 9, 10, 19


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    out = b""
    while number > 0x7F:
        out += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return out + bytes((number,))


def field(number: int, value: int | float | str | bytes) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(int(value))
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(content)) + content


def entry(number: int, key: str, value: bytes) -> bytes:
    return field(number, field(1, key) + field(2, value))


def shape(*dims: int | str) -> bytes:
    return b"".join(field(2, field(1, -1) + field(2, dim) if isinstance(dim, str) else field(1, dim)) for dim in dims)


def tensor(dtype: int, dims: tuple[int, ...], *values: bytes) -> bytes:
    return field(1, dtype) + field(2, shape(*dims)) + b"".join(values)


def node(name: str, operator: str, *inputs: str, **attributes: bytes) -> bytes:
    parts = [field(1, name), field(2, operator), *(field(3, one) for one in inputs)]
    return b"".join([*parts, *(entry(5, key, value) for key, value in attributes.items())])


def info(name: str, dtype: int = FLOAT, dims: bytes | None = None) -> bytes:
    return field(1, name) + field(2, dtype) + (b"" if dims is None else field(3, dims))


def signature(inputs: dict[str, bytes], outputs: dict[str, bytes], defaults: dict[str, bytes] | None = None) -> bytes:
    parts = [entry(number, key, value) for number, made in ((1, inputs), (2, outputs)) for key, value in made.items()]
    return b"".join([*parts, *(entry(4, key, value) for key, value in (defaults or {}).items())])


X_TO_Y = signature({"x": info("x:0", FLOAT, shape(-1, 4))}, {"y": info("y:0")})


def function(
    name: str,
    nodes: list[bytes],
    inputs: tuple[str, ...] = (),
    returned: dict[str, str] | None = None,
    run: dict[str, str] | None = None,
    **attributes: str,
) -> bytes:
    returned = returned or {}
    arguments = [field(2, field(1, one)) for one in inputs] + [field(3, field(1, one)) for one in returned]
    parts = [field(1, field(1, name) + b"".join(arguments)), *(field(3, one) for one in nodes)]
    # maps of a file are in no order
    parts += [entry(4, key, value.encode()) for key, value in sorted(returned.items(), reverse=True)]
    parts += [entry(6, key, value.encode()) for key, value in (run or {}).items()]
    return b"".join([*parts, *(entry(5, key, field(2, value)) for key, value in attributes.items())])


def meta_graph(
    nodes: list[bytes],
    signatures: dict[str, bytes] | None = None,
    functions: list[bytes] | None = None,
    tags: tuple[str, ...] = ("serve",),
) -> bytes:
    graph = b"".join(field(1, one) for one in nodes)
    graph += field(2, b"".join(field(1, one) for one in functions or [])) + field(4, field(1, 1994))
    parts = [field(1, b"".join(field(4, tag) for tag in tags)), field(2, graph)]
    served = {"serving_default": X_TO_Y} if signatures is None else signatures
    return b"".join([*parts, *(entry(5, key, value) for key, value in served.items()), field(7, b"\x0a\x02ab")])


Read = Callable[..., Model]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads what a SavedModel of these graphs computes."""

    def reader(*graphs: bytes, key: str | None = None, gpu: bool = False, content: bytes | None = None) -> Model:
        whole = field(1, 1) + b"".join(field(2, graph) for graph in graphs)
        (tmp_path / "saved_model.pb").write_bytes(whole if content is None else content)
        return read_graph(tmp_path, key, gpu=gpu)

    return reader


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is written over again and again."""
    return tmp_path_factory.mktemp("model")


def attribute(read: Read, value: bytes) -> object:
    return read(meta_graph([node("y", "Op", "x", a=value)])).graph.nodes[0].attributes["a"]


# ---- nodes ----------------------------------------------------------------------------------------------------------


def test_the_signature_tells_inputs_and_outputs_with_the_names_of_the_graph_and_those_of_callers(read: Read) -> None:
    asked = signature(
        {
            "first": info("serving_default_first:0", FLOAT, shape(-1, "time", 4)),
            "second": info("serving_default_second", STRING, field(3, 1)),
            "third": info("serving_default_third:0", INT64, shape()),
        },
        {"b": info("y:1", INT32), "a": info("y", BOOL)},
    )
    graph = read(meta_graph([node("y", "Op", "serving_default_first")], {"serving_default": asked})).graph
    assert graph.inputs == (
        GraphInput("serving_default_first:0", "float32", (None, "time", 4), label="first"),
        GraphInput("serving_default_second:0", "string", None, label="second"),
        GraphInput("serving_default_third:0", "int64", (), label="third"),
    )
    assert (graph.outputs, graph.output_dtypes, graph.output_labels) == (
        ("y:0", "y:1"),
        ("bool", "int32"),
        ("a", "b"),
    )


def test_nodes_are_those_that_outputs_reach_by_data_or_by_control(read: Read) -> None:
    nodes = [
        node("x", "Placeholder", "^before_the_input"),
        node("y", "Add", "x", "w:1", "^logged"),
        node("w", "Read", "handle"),
        node("handle", "VarHandleOp"),
        node("logged", "NoOp", "^counted"),
        node("counted", "AssignAddVariableOp", "handle"),
        node("before_the_input", "AssignAddVariableOp", "handle"),
        node("restore", "RestoreV2"),
    ]
    found = {one.name: one for one in read(meta_graph(nodes)).graph.nodes}
    assert set(found) == {"y", "w", "handle", "logged", "counted"}
    assert found["y"] == GraphNode("Add", ("x", "w:1"), (), {}, "y", DOMAIN, ("logged",))


def test_a_given_value_hides_what_would_make_it_and_no_other_value_of_that_node(read: Read) -> None:
    nodes = [node("y", "Op", "x", "x:1"), node("x", "Split", "behind"), node("behind", "Const")]
    assert {one.name for one in read(meta_graph(nodes)).graph.nodes} == {"y", "x", "behind"}
    assert {one.name for one in read(meta_graph([node("y", "Op", "x:0"), *nodes[1:]])).graph.nodes} == {"y"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (field(3, -5), -5),
        (field(4, 0.5), 0.5),
        (field(5, 1), True),
        (field(2, "SAME"), "SAME"),
        (field(2, b"\xff"), "\N{REPLACEMENT CHARACTER}"),
        (field(2, b"a" * 70_000), None),
        (field(6, HALF), "float16"),
        (field(6, 101), "float32"),
        (field(6, 20), "resource"),
        (field(6, 999), ""),
        (field(7, shape(-1, 3)), (-1, 3)),
        (field(7, field(3, 1)), None),
        (field(8, tensor(INT32, (2,), field(7, varint(1) + varint(2)))), Tensor("int32", (2,), (1, 2))),
        (field(9, "T"), Reference("T")),
        (field(10, field(1, "f") + entry(2, "T", field(6, FLOAT))), FunctionName("f")),
        (field(1, b""), ()),
        (field(1, field(3, varint(1) + varint(-1))), (1, -1)),
        (field(1, field(3, 1) + field(3, 2)), (1, 2)),
        (field(1, field(4, struct.pack("<2f", 0.5, 2))), (0.5, 2.0)),
        (field(1, field(5, varint(1) + varint(0))), (True, False)),
        (field(1, field(6, varint(FLOAT) + varint(INT32))), ("float32", "int32")),
        (field(1, field(2, "a") + field(2, "b")), ("a", "b")),
        (field(1, field(7, shape(-1, 2)) + field(7, field(3, 1))), Shapes(((-1, 2), None))),
        (field(1, field(9, field(1, "f")) + field(9, field(1, "g"))), FunctionNames(("f", "g"))),
        (field(1, field(8, tensor(FLOAT, ()))), None),
        (field(1, field(3, 1) + field(4, 0.5)), None),
        (field(1, field(3, b"\x01" * 5000)), LongList("ints")),
        (field(1, field(2, "a") * 300), LongList("strings")),
        (b"", None),
        (field(3, 1) + field(3, 2), 2),
    ],
)  # fmt: skip
def test_attributes_are_read_by_their_kind(read: Read, value: bytes, expected: object) -> None:
    found = attribute(read, value)
    assert found == expected
    assert type(found) is type(expected)


def test_notes_of_tensorflow_to_itself_are_no_attributes(read: Read) -> None:
    (found,) = read(meta_graph([node("y", "Op", "x", T=field(6, FLOAT), _output_shapes=field(1, b""))])).graph.nodes
    assert found.attributes == {"T": "float32"}


# ---- constants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (tensor(FLOAT, (2,), field(4, struct.pack("<2f", 1, 2))), Tensor("float32", (2,), (1.0, 2.0))),
        (tensor(INT64, (2, 1), field(4, struct.pack("<2q", -1, 2))), Tensor("int64", (2, 1), (-1, 2))),
        (tensor(FLOAT, (3,), field(5, 0.5)), Tensor("float32", (3,), (0.5, 0.5, 0.5))),
        (tensor(FLOAT, (2,), field(5, struct.pack("<2f", 1, 2))), Tensor("float32", (2,), (1.0, 2.0))),
        (tensor(INT32, (3,), field(7, varint(1) + varint(-2))), Tensor("int32", (3,), (1, -2, -2))),
        (tensor(INT64, (2,), field(10, 7) + field(10, -1)), Tensor("int64", (2,), (7, -1))),
        (tensor(INT32, (2,)), Tensor("int32", (2,), (0, 0))),
        (tensor(STRING, (2,)), Tensor("string", (2,), ("", ""))),
        (tensor(STRING, (3,), field(8, "a") + field(8, "b")), Tensor("string", (3,), ("a", "b", "b"))),
        (tensor(BOOL, (2,), field(11, varint(1) + varint(0))), Tensor("bool", (2,), (True, False))),
        (tensor(HALF, (1,), field(13, varint(0x3C00))), Tensor("float16", (1,), (1.0,))),
        (tensor(FLOAT, ()), Tensor("float32", (), (0.0,))),
        (tensor(FLOAT, (0,)), Tensor("float32", (0,), ())),
        (tensor(8, (1,), field(9, struct.pack("<2f", 1, 2))), Tensor("complex64", (1,), None)),
        (tensor(20, ()), Tensor("resource", (), None)),
        (tensor(FLOAT, (16, 17), field(4, b"\0" * 4 * 272)), Tensor("float32", (16, 17), None)),
        (tensor(FLOAT, (257,), field(5, 0.5)), Tensor("float32", (257,), None)),
        (tensor(FLOAT, (2,), field(4, b"\0" * 7)), Tensor("float32", (2,), None)),
        (tensor(INT32, (1,), field(7, varint(1) + varint(2))), Tensor("int32", (1,), None)),
    ],
)  # fmt: skip
def test_a_constant_is_known_where_it_has_few_elements(read: Read, made: bytes, expected: Tensor) -> None:
    found = attribute(read, field(8, made))
    assert found == expected
    assert isinstance(found, Tensor)
    assert [type(one) for one in found.elements or ()] == [type(one) for one in expected.elements or ()]


def test_an_input_with_a_default_is_a_constant_beside(read: Read) -> None:
    asked = signature(
        {"x": info("x:0", FLOAT, shape(-1)), "k": info("k:0", INT32, shape())},
        {"y": info("y:0")},
        {"k": tensor(INT32, (), field(7, varint(3)))},
    )
    graph = read(meta_graph([node("y", "Op", "x", "k")], {"serving_default": asked})).graph
    assert [one.label for one in graph.inputs] == ["k", "x"]
    assert graph.constants == {"k:0": Tensor("int32", (), (3,))}


# ---- functions ------------------------------------------------------------------------------------------------------

CALL = node("y", "StatefulPartitionedCall", "x", f=field(10, field(1, "outer")))


def test_functions_are_those_that_are_called_with_results_in_the_order_of_their_signature(read: Read) -> None:
    inner = function("inner", [node("n", "NoOp")], ("a",), {"r": "a"})
    outer = function(
        "outer",
        [node("c", "If", "a", then_branch=field(10, field(1, "inner"))), node("w", "AssignVariableOp", "a", "^c")],
        ("a", "b"),
        {"first": "c:output:0", "second": "b"},
        {"effect": "w"},
    )
    functions = read(meta_graph([CALL], functions=[inner, outer, function("unused", [])])).functions
    assert set(functions) == {(DOMAIN, "outer"), (DOMAIN, "inner")}
    assert functions[DOMAIN, "outer"] == Function(
        name="outer",
        domain=DOMAIN,
        nodes=(
            GraphNode("If", ("a",), (), {"then_branch": FunctionName("inner")}, "c", DOMAIN),
            GraphNode("AssignVariableOp", ("a",), (), {}, "w", DOMAIN, ("c",)),
        ),
        inputs=("a", "b"),
        outputs=("c:output:0", "b"),
        after=("w",),
    )


def test_a_function_is_called_by_an_operator_of_its_name_and_by_lists_of_branches(read: Read) -> None:
    branches = field(1, field(9, field(1, "f")) + field(9, field(1, "g")))
    nodes = [node("y", "h", "x", "c"), node("c", "Case", "x", branches=branches)]
    functions = read(meta_graph(nodes, functions=[function(name, []) for name in "fghi"])).functions
    assert {name for _, name in functions} == {"f", "g", "h"}


@pytest.mark.parametrize(
    ("gpu", "expected"), [(False, {"outer", "by_cpu"}), (True, {"outer", "by_cpu", "by_gpu", "of_gpu"})]
)
def test_functions_for_the_same_task_come_along_if_they_may_be_taken(read: Read, gpu: bool, expected: set[str]) -> None:
    one_task = {"api_implements": "lstm_1"}
    call_more = node("z", "PartitionedCall", f=field(10, field(1, "of_gpu")))
    functions = [
        function("outer", [], **one_task, api_preferred_device="CPU"),
        function("by_cpu", [], **one_task, api_preferred_device="CPU"),
        function("by_gpu", [call_more], **one_task, api_preferred_device="GPU"),
        function("of_gpu", []),
        function("gradient", [], **one_task, api_preferred_device="CPU", forward_function_name="outer"),
        function("other", [], api_implements="lstm_2"),
    ]
    found = read(meta_graph([CALL], functions=functions), gpu=gpu).functions
    assert {name for _, name in found} == expected
    assert {one.task for one in found.values() if one.name != "of_gpu"} == {"lstm_1"}


# ---- which graph, which signature -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "gpu", "expected"),
    [
        ([("serve",)], False, 0),
        ([("serve",)], True, 0),
        ([("train",), ("serve",)], False, 1),
        ([("serve", "gpu"), ("serve",)], False, 1),
        ([("serve", "gpu"), ("serve",)], True, 0),
        ([("train",)], False, 0),
        ([("serve",), ("serve",)], False, 1),
        ([("train",), ("serve", "tpu")], False, None),
        ([], False, None),
    ],
)
def test_the_graph_is_that_tagged_serve_or_the_only_one(
    read: Read, tags: list[tuple[str, ...]], gpu: bool, expected: int | None
) -> None:
    graphs = [meta_graph([node("y", f"Op{index}")], tags=one) for index, one in enumerate(tags)]
    if expected is None:
        with pytest.raises(ValueError, match="graph"):
            read(*graphs, gpu=gpu)
    else:
        assert [one.operator for one in read(*graphs, gpu=gpu).graph.nodes] == [f"Op{expected}"]


KEYS = ("predict", "serving_default", "classify", "__saved_model_init_op", "train")


@given(
    keys=st.lists(st.sampled_from(KEYS), unique=True),
    silent=st.sets(st.sampled_from(KEYS)),
    wanted=st.none() | st.sampled_from(KEYS),
)
def test_the_signature_is_the_one_that_the_backend_serves(
    scratch: Path, keys: list[str], silent: set[str], wanted: str | None
) -> None:
    """Reserved signatures and those that give nothing do not count, as in `replica.backends.tensorflow`."""
    served = [key for key in keys if not key.startswith("__saved_model_") and key not in silent]
    spec = SignatureDef({}, {"y": TensorSpec("y", "float32", None)})
    try:
        expected = choose(dict.fromkeys(sorted(served), spec), wanted).key
    except ModelError:
        expected = None
    signatures = {
        key: signature({"x": info("x:0")}, {"y": info(f"of_{key}:0", 0 if key in silent else FLOAT)}) for key in keys
    }
    graph = meta_graph([node(f"of_{key}", "Op") for key in keys], signatures)
    (scratch / "saved_model.pb").write_bytes(field(2, graph))
    try:
        found = read_graph(scratch, wanted).graph.outputs[0]
    except ValueError:
        found = None
    assert found == (None if expected is None else f"of_{expected}:0")


# ---- what is no SavedModel ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (meta_graph([node("z", "Op")]), "no node y"),
        (meta_graph([node("y", "Op", "^gone")]), "no node gone"),
        (meta_graph([node("y", "Op"), node("y", "Op")]), "two nodes"),
        (meta_graph([field(1, "y") + field(1, "z")]), "two names"),
        (meta_graph([CALL], functions=[function("outer", []), function("outer", [])]), "two nodes or functions"),
        (meta_graph([CALL], functions=[field(1, field(1, "outer") + field(3, field(1, "r")))]), "as r"),
        (meta_graph([node("y", "Op", a=field(8, field(2, field(3, 1))))]), "unknown shape"),
        (meta_graph([node("y", "Op", a=field(7, shape(*[1] * 300)))]), "254 dimensions"),
        (meta_graph([node("y", "Op", b"\xff".decode("latin-1"), a=field(1, field(4, b"\0")))]), "middle of a number"),
        (meta_graph([], {"serving_default": signature({"x": field(4, b"")}, {"y": info("y:0")})}), "x .* dense"),
        (meta_graph([], {"serving_default": signature({}, {"y": field(2, 1) + field(5, b"")})}), "y .* dense"),
        (meta_graph([], {}), "no signature to serve"),
        (meta_graph([field(1, b"\xff\xfe")]), "no UTF-8"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_together_is_told_apart(read: Read, graph: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(graph)


@pytest.mark.parametrize("content", [b"", b"\x00", b"PK\x03\x04rest", b"<html>", b"node {\n", b"\xff" * 40])
def test_a_file_that_is_none_is_refused(read: Read, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"SavedModel|it ends"):
        read(content=content)


def test_a_model_is_read_up_to_a_size(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("y", "Op", "a"), node("a", "Op", "b"), node("b", "Op")]
    assert len(read(meta_graph(nodes)).graph.nodes) == 3
    monkeypatch.setattr(saved_model_proto, "MAX_NODES", 2)
    with pytest.raises(ValueError, match="more than 2 nodes"):
        read(meta_graph(nodes))
    with pytest.raises(ValueError, match="more than 2 nodes"):
        read(meta_graph([CALL], functions=[function("outer", nodes)]))
    monkeypatch.setattr(saved_model_proto, "MAX_NAMED", 2)
    with pytest.raises(ValueError, match="more than 2 inputs and outputs"):
        read(meta_graph([node("y", "Op")]))


def test_a_folder_without_one_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_graph(tmp_path, None)


WHOLE = field(1, 1) + field(
    2,
    meta_graph(
        [
            CALL,
            node("c", "Const", a=field(8, tensor(INT32, (2,), field(7, varint(1) + varint(2))))),
            node("y2", "Op", "c", "^y", a=field(1, field(3, 1) + field(3, 2)), b=field(7, shape(-1, 3))),
        ],
        {
            "serving_default": signature(
                {"x": info("x:0", FLOAT, shape(-1, "t"))},
                {"y": info("y:0"), "z": info("y2:0")},
                {"x": tensor(STRING, (1,), field(8, "text"))},
            )
        },
        [function("outer", [node("n", "NoOp", "a")], ("a",), {"r": "a"}, {"e": "n"}, api_implements="task")],
    ),
)


@given(
    cut=st.integers(0, len(WHOLE)),
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4),
)
def test_damaged_bytes_are_read_or_refused_and_nothing_else(
    scratch: Path, cut: int, changes: list[tuple[int, int]]
) -> None:
    damaged = bytearray(WHOLE)
    for place, byte in changes:
        damaged[place] = byte
    (scratch / "saved_model.pb").write_bytes(bytes(damaged[: cut if not changes else None]))
    with contextlib.suppress(ValueError):
        assert isinstance(read_graph(scratch, None), Model)


# ---- what TensorFlow writes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tensorflow: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module with state, tables, branches, constants of many kinds, and a signature that has a default."""
    tf = tensorflow

    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = tf.Variable(tf.ones([4, 3]))
            self.calls = tf.Variable(0)
            pairs = tf.lookup.KeyValueTensorInitializer(["a", "b"], [1, 2])
            self.table = tf.lookup.StaticHashTable(pairs, -1)

        @tf.function(
            input_signature=[tf.TensorSpec([None, 4], tf.float32, "x"), tf.TensorSpec([None], tf.string, "words")]
        )
        def __call__(self, x: Any, words: Any) -> Any:
            self.calls.assign_add(1)
            y = tf.matmul(x, self.weights) * tf.constant([1.5, 2.5, 3.5])
            y = tf.cond(tf.reduce_max(y) > 3, lambda: y * 2, lambda: y + tf.ones([300, 3])[:1])
            found = tf.cast(self.table.lookup(words), tf.float16) * tf.constant(0.5, tf.float16)
            first, second = tf.split(y, [1, 2], axis=1)
            return {"y": tf.concat([second, first], 1), "found": found, "z": tf.constant(["é", "b"])}

    folder = tmp_path_factory.mktemp("exported")
    module = Module()
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.__call__, "other": module.__call__})
    return folder


def test_of_a_real_model_the_same_is_read_as_tensorflow_reads(tensorflow: Any, exported: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    parsed = saved_model_pb2.SavedModel()
    parsed.ParseFromString((exported / "saved_model.pb").read_bytes())
    graph = parsed.meta_graphs[0].graph_def
    nodes = {one.name: one for one in graph.node}
    library = {one.signature.name: one for one in graph.library.function}

    model = read_graph(exported, None)

    assert model.opsets == {DOMAIN: graph.versions.producer}
    assert [(one.label, one.dtype, one.shape) for one in model.graph.inputs] == [
        ("words", "string", (None,)),
        ("x", "float32", (None, 4)),
    ]
    assert model.graph.output_labels == ("found", "y", "z")
    assert {"AssignAddVariableOp", "StatelessIf", "SplitV"} <= {
        node.operator for one in model.functions.values() for node in one.nodes
    }
    for read_node in model.graph.nodes:
        _assert_same(tensorflow, read_node, nodes[read_node.name])
    for (_, name), function_ in model.functions.items():
        theirs = library[name]
        assert function_.inputs == tuple(one.name for one in theirs.signature.input_arg)
        assert function_.outputs == tuple(theirs.ret[one.name] for one in theirs.signature.output_arg)
        assert set(function_.after) == set(theirs.control_ret.values())
        assert [one.name for one in function_.nodes] == [one.name for one in theirs.node_def]
        for read_node, one in zip(function_.nodes, theirs.node_def, strict=True):
            _assert_same(tensorflow, read_node, one)


def _assert_same(tf: Any, ours: GraphNode, theirs: Any) -> None:
    assert ours.operator == theirs.op
    assert ours.inputs == tuple(one for one in theirs.input if not one.startswith("^"))
    assert ours.after == tuple(one[1:] for one in theirs.input if one.startswith("^"))
    for name, value in ours.attributes.items():
        attr = theirs.attr[name]
        match attr.WhichOneof("value"):
            case "tensor":
                assert isinstance(value, Tensor)
                array = tf.make_ndarray(attr.tensor)
                assert (value.dtype, value.shape) == (tf.as_dtype(attr.tensor.dtype).name, array.shape)
                if array.size <= 256:
                    texts = [one.decode() if isinstance(one, bytes) else one for one in array.reshape(-1).tolist()]
                    assert list(value.elements or ()) == texts
                else:
                    assert value.elements is None
            case "type":
                assert value == tf.as_dtype(attr.type).name
            case "shape":
                dims = tuple(one.size for one in attr.shape.dim)
                assert value == (None if attr.shape.unknown_rank else dims)
            case "func":
                assert value == FunctionName(attr.func.name)
            case "s":
                assert value == attr.s.decode("utf-8", "replace")
            case "i" | "b" as kind:
                assert value == getattr(attr, kind)
            case "f":
                assert value == pytest.approx(attr.f)


def test_a_signature_is_read_by_its_key(exported: Path) -> None:
    assert read_graph(exported, "other").graph.output_labels == ("found", "y", "z")
    with pytest.raises(ValueError, match="no signature third"):
        read_graph(exported, "third")
