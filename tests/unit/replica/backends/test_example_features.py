"""Tests of `cortex.replica.backends.example_features` on made graphs; `test_composite_inputs.py` has TensorFlow's."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace as Proto
from typing import Any

import pytest

from cortex.replica.backends.example_features import features_of
from cortex.wire.signature import TensorSpec

FLOAT, STRING, INT = 1, 7, 9


def a_shape(*sizes: int, unknown_rank: bool = False) -> Proto:
    return Proto(unknown_rank=unknown_rank, dim=[Proto(size=size) for size in sizes])


def node(op: str, name: str, *inputs: str, **attributes: Any) -> Proto:
    attr: defaultdict[str, Proto] = defaultdict(
        lambda: Proto(i=0, func=Proto(name=""), list=Proto(type=[], shape=[], s=[]))
    )
    attr.update(attributes)
    return Proto(op=op, name=name, input=inputs, attr=attr)


def constant(name: str, *keys: str, sizes: tuple[int, ...] = ()) -> Proto:
    """Text of these keys, or a default of this shape."""
    tensor = Proto(string_val=[key.encode() for key in keys], tensor_shape=a_shape(*sizes))
    return node("Const", name, value=Proto(tensor=tensor))


def types(*kinds: int) -> Proto:
    return Proto(list=Proto(type=kinds))


def graph(*nodes: Proto, functions: tuple[Proto, ...] = ()) -> Proto:
    return Proto(node=nodes, library=Proto(function=functions))


def function(name: str, *nodes: Proto, arguments: tuple[str, ...]) -> Proto:
    taken = [Proto(name=argument) for argument in arguments]
    return Proto(signature=Proto(name=name, input_arg=taken), node_def=nodes)


def parser(examples: str, op: str = "ParseExampleV2", *, suffix: str = "") -> tuple[Proto, ...]:
    """A parser of a number `n` that is needed, a text `t` that has a default, a sparse `s` and a ragged `r`."""
    v2 = node(
        "ParseExampleV2", "parse", examples, "names", f"sparse{suffix}", f"dense{suffix}", f"ragged{suffix}",
        f"none{suffix}", f"some{suffix}",
        Tdense=types(FLOAT, STRING),
        dense_shapes=Proto(list=Proto(shape=[a_shape(2, -1), a_shape()])),
        sparse_types=types(INT),
        ragged_value_types=types(STRING),
    )  # fmt: skip
    return (
        v2,
        constant("sparse", "s"),
        constant("dense", "n", "t"),
        constant("ragged", "r"),
        constant("none", sizes=(0,)),
        constant("some", sizes=(1,)),
    )


FEATURES = (
    TensorSpec("n", "float32", (2, None)),
    TensorSpec("r", "string", (None,), optional=True),
    TensorSpec("s", "int64", (None,), optional=True),
    TensorSpec("t", "string", (), optional=True),
)


@pytest.mark.parametrize("examples", ["in", "in:0"])
def test_a_parsers_features_are_found_by_the_tensor_that_goes_into_it(examples: str) -> None:
    assert features_of(graph(*parser(examples)), "in:0") == FEATURES
    assert features_of(graph(*parser(examples)), "other:0") == ()


def test_a_tensor_is_followed_through_what_passes_it_on() -> None:
    for first, second in (("in", "a"), ("in:0", "a:0")):
        found = graph(node("Identity", "a", first), node("Identity", "b", second), *parser("b"))
        assert features_of(found, "in:0") == FEATURES
    assert features_of(graph(node("Cast", "a", "in"), *parser("a")), "in:0") == ()


@pytest.mark.parametrize("called", ["PartitionedCall", "StatefulPartitionedCall", "by its name"])
def test_a_tensor_is_followed_into_the_function_that_it_is_passed_to(called: str) -> None:
    inner = function(
        "inner",
        node("Identity", "passed", "second"),
        *parser("passed:output:0", suffix=":output:0"),
        arguments=("first", "second"),
    )
    op = "inner" if called == "by its name" else called
    call = node(op, "call", "else", "in", f=Proto(func=Proto(name="inner")))
    assert features_of(graph(call, functions=(inner,)), "in:0") == FEATURES
    assert features_of(graph(call, functions=(inner,)), "else") == ()


def test_a_function_that_is_not_there_or_takes_less_is_passed_over() -> None:
    call = node("PartitionedCall", "call", "else", "in", f=Proto(func=Proto(name="inner")))
    assert features_of(graph(call), "in:0") == ()
    short = function("inner", *parser("first", suffix=":output:0"), arguments=("first",))
    assert features_of(graph(call, functions=(short,)), "in:0") == ()


def test_functions_that_call_themselves_are_followed_once() -> None:
    passed = node("Identity", "passed", "a")
    again = node("PartitionedCall", "again", "a", f=Proto(func=Proto(name="inner")))
    parse = parser("passed:output:0", suffix=":output:0")
    inner = function("inner", passed, again, *parse, arguments=("a",))
    call = node("PartitionedCall", "call", "in", f=Proto(func=Proto(name="inner")))
    assert features_of(graph(call, functions=(inner,)), "in:0") == FEATURES


def test_only_what_goes_in_as_examples_is_parsed() -> None:
    parse, *constants = parser("else")
    parse.input = ("else", "in", *parse.input[2:])
    assert features_of(graph(parse, *constants), "in:0") == ()


def test_keys_that_are_no_constants_are_not_known() -> None:
    parse, *constants = parser("in")
    assert features_of(graph(parse, *constants[2:]), "in:0") == (TensorSpec("r", "string", (None,), optional=True),)


def test_a_default_that_is_computed_is_one() -> None:
    parse, *constants = parser("in")
    found = features_of(graph(parse, *constants[:3], constants[4], node("Reshape", "none")), "in:0")
    assert [feature.optional for feature in found] == [True] * 4


def test_features_of_other_types_are_left_out() -> None:
    parse, *constants = parser("in")
    parse.attr.update(Tdense=types(3, STRING), sparse_types=types(3), ragged_value_types=types(INT))
    found = features_of(graph(parse, *constants), "in:0")
    assert [(feature.name, feature.dtype) for feature in found] == [("r", "int64"), ("t", "string")]


def test_a_feature_of_any_shape_has_none() -> None:
    parse, *constants = parser("in")
    parse.attr["dense_shapes"] = Proto(list=Proto(shape=[a_shape(unknown_rank=True), a_shape(0, 3)]))
    found = {feature.name: feature.shape for feature in features_of(graph(parse, *constants), "in:0")}
    assert (found["n"], found["t"]) == (None, (0, 3))


def test_the_parser_of_tensorflow_1_has_a_tensor_for_each_key() -> None:
    parse = node(
        "ParseExample", "parse", "in", "names", "s", "n", "t", "none", "some",
        Nsparse=Proto(i=1),
        Ndense=Proto(i=2),
        Tdense=types(FLOAT, STRING),
        dense_shapes=Proto(list=Proto(shape=[a_shape(2, -1), a_shape()])),
        sparse_types=types(INT),
    )  # fmt: skip
    keys = (constant(key, key) for key in "snt")
    defaults = (constant("none", sizes=(2, 0)), constant("some", sizes=(1,)))
    n, _, s, t = FEATURES
    assert features_of(graph(parse, *keys, *defaults), "in:0") == (n, s, t)


def test_the_parser_of_one_example_has_its_keys_with_it() -> None:
    parse = node(
        "ParseSingleExample", "parse", "in", "none", "some",
        dense_keys=Proto(list=Proto(s=[b"n", b"t"])),
        sparse_keys=Proto(list=Proto(s=[b"s"])),
        Tdense=types(FLOAT, STRING),
        dense_shapes=Proto(list=Proto(shape=[a_shape(2, -1), a_shape()])),
        sparse_types=types(INT),
    )  # fmt: skip
    n, _, s, t = FEATURES
    found = features_of(graph(parse, constant("none", sizes=(0,)), constant("some", sizes=(1,))), "in:0")
    assert found == (n, s, t)


def test_two_parsers_of_one_tensor_are_taken_together() -> None:
    parse, *constants = parser("in")
    other = node("ParseSingleExample", "other", "in", sparse_keys=Proto(list=Proto(s=[b"z"])), sparse_types=types(INT))
    found = features_of(graph(parse, other, *constants), "in:0")
    assert found == (*FEATURES, TensorSpec("z", "int64", (None,), optional=True))
