"""Tests of `cortex.replica.backends.ragged_inputs` on made protobufs; `test_composite_inputs.py` has TensorFlow's."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace as Proto
from typing import Any

import pytest

from cortex.replica.backends.ragged_inputs import RaggedParts, ragged_inputs


class Value(Proto):
    """A `StructuredValue`."""

    def WhichOneof(self, _group: str) -> str:
        (kind,) = vars(self)
        return kind


TENSOR = Value(tensor_spec_value=Proto())
BOUNDED = Value(bounded_tensor_spec_value=Proto())


def several(*values: Value, kind: str = "tuple_value") -> Value:
    return Value(**{kind: Proto(values=values)})


def ragged(*sizes: int, rank: int = 1, parts: int | None = None, name: str = "RaggedTensorSpec", **shape: Any) -> Value:
    dims = Proto(**{"unknown_rank": False, "dim": [Proto(size=size) for size in sizes], **shape})
    state = (Proto(tensor_shape_value=dims), Proto(), Proto(int64_value=rank))
    return Value(
        type_spec_value=Proto(
            num_flat_components=rank + 1 if parts is None else parts,
            type_spec_class_name=name,
            type_state=Proto(tuple_value=Proto(values=state)),
        )
    )


def call(name: str, *inputs: str, op: str = "StatefulPartitionedCall") -> Proto:
    attr: defaultdict[str, Proto] = defaultdict(lambda: Proto(func=Proto(name="")))
    attr["f"] = Proto(func=Proto(name=name))
    return Proto(op=op, input=inputs, attr=attr)


def found(signature: Value, *keys: str, op: str = "StatefulPartitionedCall", inner: tuple[str, ...] = ()) -> Any:
    """
    Of a signature whose inputs have these keys, and which calls a function with this signature.

    Args:
        inner: what the function is called with; by default all inputs in order.
    """
    arguments = [Proto(name=f"arg{place}") for place in range(len(keys))]
    body = [call("nobody"), call("exported", *(inner or [one.name for one in arguments]), op=op)]
    wrapper = Proto(signature=Proto(name="wrapper", input_arg=arguments), node_def=body)
    graph = Proto(
        node=[call("other", "somewhere"), call("wrapper", *(f"in_{key}" for key in keys), "^after_another", op=op)],
        library=Proto(function=[wrapper]),
    )
    exported = {"exported": Proto(canonicalized_input_signature=signature)}
    meta = Proto(graph_def=graph, object_graph_def=Proto(concrete_functions=exported))
    return ragged_inputs(meta, Proto(inputs={key: Proto(name=f"in_{key}:0") for key in keys}))


@pytest.mark.parametrize("op", ["PartitionedCall", "StatefulPartitionedCall"])
def test_the_parts_of_a_ragged_tensor_belong_together(op: str) -> None:
    assert found(several(ragged(-1, -1)), "r", "r_1", op=op) == [RaggedParts(("r", "r_1"), (None, None), 1)]


def test_a_ragged_tensor_may_be_ragged_at_several_levels_and_have_fixed_sizes() -> None:
    signature = several(ragged(-1, -1, -1, 0, 3, rank=2))
    assert found(signature, "r", "r_1", "r_2") == [RaggedParts(("r", "r_1", "r_2"), (None, None, None, 0, 3), 2)]


@pytest.mark.parametrize(
    "before",
    [
        TENSOR,
        BOUNDED,
        several(TENSOR),
        several(several(TENSOR), kind="list_value"),
        Value(named_tuple_value=Proto(values=[Proto(key="k", value=TENSOR)])),
        Value(dict_value=Proto(fields={"k": TENSOR})),
        ragged(-1, parts=1, name="SparseTensorSpec"),
    ],
)
def test_what_comes_before_it_is_counted(before: Value) -> None:
    signature = several(before, Value(none_value=Proto()), ragged(-1))
    assert found(signature, "x", "r", "r_1") == [RaggedParts(("r", "r_1"), (None,), 1)]


def test_arguments_in_a_dict_come_in_the_order_of_their_names() -> None:
    signature = Value(dict_value=Proto(fields={"b": ragged(-1), "a": TENSOR}))
    assert found(signature, "a", "b", "b_1") == [RaggedParts(("b", "b_1"), (None,), 1)]


def test_several_are_found() -> None:
    assert [one.keys for one in found(several(ragged(-1), ragged(-1)), "a", "a_1", "b", "b_1")] == [
        ("a", "a_1"),
        ("b", "b_1"),
    ]


@pytest.mark.parametrize(
    "odd",
    [
        ragged(-1, name="SparseTensorSpec"),
        ragged(-1, unknown_rank=True),
        ragged(-1, rank=2, parts=2),
    ],
    ids=["of another kind", "of any rank", "in fewer parts"],
)
def test_what_is_not_plainly_ragged_is_left_as_it_is(odd: Value) -> None:
    assert found(several(odd, ragged(-1)), "a", "a_1", "b", "b_1") == [RaggedParts(("b", "b_1"), (None,), 1)]


def test_parts_that_are_no_inputs_of_the_signature_make_none() -> None:
    assert found(several(ragged(-1)), "r", "r_1", inner=("arg0", "computed")) == []


def test_a_signature_that_calls_nothing_exported_has_none() -> None:
    assert found(several(ragged(-1)), "r", "r_1", op="Identity") == []
