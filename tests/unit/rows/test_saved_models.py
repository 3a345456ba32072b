"""Rows on their way through a SavedModel's graph, functions, branches and loops; and what it may not do besides."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from graph_builder import rows, weights
from saved_model_builder import DOMAIN, function, model, op, proof, proved, refusal, result

from cortex.rows import prove_saved_model
from cortex.rows.rules.registry import RULES as RULES_OF_OPERATORS
from cortex.rows.rules.registry import Op
from cortex.rows.sizes import NUMBER_OF_ROWS as N
from cortex.rows.values import Value
from cortex.wire.batching import RULES, Proof, SizeCondition
from cortex.wire.graphs import (
    Function,
    FunctionName,
    FunctionNames,
    Graph,
    GraphInput,
    GraphNode,
    Model,
    Reference,
    Tensor,
)

X = rows(4)


def call(name: str, *inputs: str, out: int = 1, to: str = "y", **more: Any) -> GraphNode:
    return op("StatefulPartitionedCall", *inputs, name=to, f=FunctionName(name), Tout=("float32",) * out, **more)


def loop(*state: str, cond: str = "cond", body: str = "body", to: str = "y") -> GraphNode:
    return op("While", *state, name=to, cond=FunctionName(cond), body=FunctionName(body), T=("float32",) * len(state))


def branch(condition: str, *inputs: str, to: str = "y", out: int = 1) -> GraphNode:
    return op(
        "If", condition, *inputs, name=to, then_branch=FunctionName("then"), else_branch=FunctionName("otherwise"),
        Tout=("float32",) * out,
    )  # fmt: skip


SAME = function("same", inputs="a", outputs="a")
NEGATED = function("negated", op("Neg", "a", name="n"), inputs="a", outputs="n:y:0")


# ---- inputs and outputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        (GraphInput("x:0", "float32", (1, 4), label="x"), 'the first dimension of the input "x" is fixed to 1'),
        (GraphInput("x:0", "float32", (), label="x"), 'the input "x" is a scalar'),
        (GraphInput("x:0", "float32", None, label="x"), 'the input "x" has no declared rank'),
    ],
)
def test_an_input_without_rows_is_named_as_callers_do(declared: GraphInput, reason: str) -> None:
    graph = Graph((op("Relu", "x"),), (declared,), ("y:0",), output_labels=("y",))
    assert prove_saved_model(Model(graph)) == Proof(rules=RULES, proved=False, reason=reason)


def test_an_output_is_named_as_callers_do() -> None:
    found = proof(op("Const", name="c", value=weights(4)), outputs="c", x=X)
    assert found.reason == 'the output "c" is the same for all rows'


def test_an_input_with_a_default_is_its_default() -> None:
    made = model(op("AddV2", "x", "k"), x=X, k=rows(4))
    with_default = dataclasses.replace(made.graph, constants={"k:0": weights(1, 4)})
    assert prove_saved_model(Model(with_default)).proved
    for_each_row = dataclasses.replace(made.graph, constants={"k:0": weights(3, 4)})
    assert "size 3 along the rows" in prove_saved_model(Model(for_each_row)).reason


def test_an_input_may_be_handed_through() -> None:
    assert proved(outputs="x", x=X)


def test_an_input_stands_for_the_value_of_any_node() -> None:
    graph = model(op("Neg", "s:1"), op("RandomUniform", name="s"), x=X).graph
    given = dataclasses.replace(graph, inputs=(GraphInput("s:1", "float32", (None, 4), label="x"),))
    assert prove_saved_model(Model(given)).proved


def test_values_are_followed_whatever_order_nodes_are_in() -> None:
    assert proved(op("Neg", "b"), op("Neg", "c", name="b"), op("Neg", "x", name="c"), x=X)


def test_graphs_may_be_deep() -> None:
    depth = 5_000
    nodes = [op("Neg", "x", name="n0"), *(op("Neg", f"n{index}", name=f"n{index + 1}") for index in range(depth))]
    found = proof(*nodes, outputs=f"n{depth}", x=X)
    assert (found.proved, found.operators) == (True, depth + 1)


def test_sizes_that_a_proof_supposes_are_told_by_the_names_of_callers() -> None:
    shape = op("Shape", "z", name="s")
    found = proof(shape, op("Reshape", "x", "s"), x=rows(None), z=rows(None))
    assert (found.proved, found.sizes) == (True, (SizeCondition("z", 1, other_input="x", other_axis=1),))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((op("Neg", "gone"),), 'there is no operator "gone"'),
        ((op("Neg", "x:1"),), 'there is no operator "x"'),
        ((op("Neg", "x"), op("Neg", "x")), "two operators have one name"),
        ((op("Neg", "b"), op("Neg", "y", name="b")), "its operators need each other"),
        ((op("Neg", "t:2"), op("TopKV2", "x", "k", name="t")), "an output that no rule knows"),
        ((op("Neg", "t:output"), op("TopKV2", "x", "k", name="t")), "an output that no rule knows"),
        ((op("Split", "axis", "x"),), "num_split is not known"),
        ((op("Split", "axis", "x", num_split=True),), "num_split is not known"),
        ((op("Sum", "x", "axis", keep_dims=Reference("keep")),), "an attribute that is not known"),
    ],
)
def test_a_graph_that_does_not_fit_together_is_refused(parts: tuple[GraphNode, ...], reason: str) -> None:
    assert reason in refusal(*parts, x=X, k=2, axis=1)


def test_a_model_of_too_many_operators_is_not_looked_at_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.rows.flow.MAX_STEPS", 2)
    assert "more than" in refusal(op("Neg", "b"), op("Neg", "c", name="b"), op("Neg", "x", name="c"), x=X)


def test_a_fault_in_a_rule_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(call: Op) -> Value:
        raise KeyError("axis")

    monkeypatch.setitem(
        RULES_OF_OPERATORS, (DOMAIN, "Neg"), dataclasses.replace(RULES_OF_OPERATORS[DOMAIN, "Neg"], function=broken)
    )
    assert refusal(op("Neg", "x"), x=X) == "the rule failed (KeyError: 'axis')"


# ---- what a model does besides --------------------------------------------------------------------------------------

WRITE = op("AssignAddVariableOp", "v", "one", name="w")
VARIABLE = op("VarHandleOp", name="v", shape=(), dtype="float32")


def test_a_write_is_found_on_control_edges() -> None:
    found = proof(op("Neg", "x", after=["w"]), WRITE, VARIABLE, x=X, one=1.0)
    assert (found.proved, found.operator) == (False, "AssignAddVariableOp w")
    assert "writes to what the model keeps" in found.reason


def test_a_write_is_found_behind_other_operators_and_where_no_value_is_needed() -> None:
    assert proved(op("Neg", "x", after=["a"]), op("Assert", "b", "x", name="a"), x=X, b=True)
    assert not proved(
        op("Neg", "x", after=["a"]), op("Assert", "b", "x", name="a", after=["n"]), op("NoOp", name="n", after=["w"]),
        WRITE, VARIABLE, x=X, one=1.0, b=True,
    )  # fmt: skip


def test_a_write_that_nothing_reaches_does_not_count() -> None:
    assert proved(op("Neg", "x"), WRITE, VARIABLE, x=X, one=1.0)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_write_is_found_in_functions_even_if_no_output_needs_it(depth: int) -> None:
    inner = function("inner", op("AssignVariableOp", "h", "a", name="w"), inputs="a h", outputs="a")
    outer = function("outer", call("inner", "a", "h", to="c"), inputs="a h", outputs="c:output:0")
    called = call("inner" if depth == 1 else "outer", "x", "v")
    found = proof(called, VARIABLE, inner, outer, x=X)
    assert (found.proved, found.operator) == (False, "AssignVariableOp w")


def test_a_write_is_found_in_a_branch_that_is_not_taken() -> None:
    then = function("then", inputs="a h", outputs="a")
    otherwise = function("otherwise", op("AssignVariableOp", "h", "a", name="w"), inputs="a h", outputs="a")
    assert refusal(branch("yes", "x", "v"), VARIABLE, then, otherwise, x=X, yes=True).startswith("it writes")


@pytest.mark.parametrize(
    ("operator", "reason"),
    [
        ("LookupTableInsertV2", "writes to what"),
        ("ResourceScatterAdd", "writes to what"),
        ("QueueDequeueV2", "writes to what"),
        ("IteratorGetNext", "the next of a series"),
        ("RandomUniform", "random numbers"),
        ("StatelessRandomUniformV2", "random numbers"),
        ("EagerPyFunc", "calls Python"),
        ("WriteFile", "outside of the model"),
        ("Enter", "a loop of TensorFlow 1"),
        ("Merge", "a branch of TensorFlow 1"),
        ("Placeholder", "gives it no value"),
        ("SomebodysOwn", "no rule knows this operator"),
    ],
)
def test_an_operator_that_may_do_more_than_compute_is_refused_wherever_it_stands(operator: str, reason: str) -> None:
    assert reason in refusal(op("Neg", "x", after=["o"]), op(operator, name="o"), x=X)
    assert reason in refusal(op("Neg", "x", after=["c"]), call("f", to="c", out=0), function("f", op(operator)), x=X)


def test_what_is_refused_and_not_needed_does_not_count() -> None:
    assert proved(op("Neg", "x", after=["n"]), op("NoOp", name="n", after=["u"]), op("Unique", "x", name="u"), x=X)


# ---- functions ------------------------------------------------------------------------------------------------------


def test_rows_are_followed_through_functions() -> None:
    inner = function("inner", op("MatMul", "a", "w", name="m"), inputs="a w", outputs="m:product:0")
    outer = function(
        "outer", call("inner", "a", "w", to="c"), op("Relu", "c:output:0", name="r"), inputs="a w",
        outputs="r:activations:0 a",
    )  # fmt: skip
    found = result(call("outer", "x", "w", out=2), inner, outer, x=X, w=weights(4, 3))
    assert found.known_shape == (N, 3)
    assert proved(call("outer", "x", "w", out=2), inner, outer, outputs="y y:1", x=X, w=weights(4, 3))


def test_a_function_is_called_by_an_operator_of_its_name() -> None:
    assert proved(op("negated", "x"), NEGATED, x=X)
    assert not proved(op("sums", "x"), function("sums", op("Sum", "a", "z", name="n"), inputs="a", outputs="n:o:0",
                                                z=[0]), x=X)  # fmt: skip


def test_outputs_of_several_are_told_apart_by_name_and_number() -> None:
    split = function(
        "split", op("SplitV", "a", "s", "axis", name="p", num_split=2), op("TopKV2", "a", "k", name="t"),
        inputs="a", outputs="p:output:1 t:indices:0 t:values:0", s=[1, 3], axis=1, k=2,
    )  # fmt: skip
    made = (call("split", "x", out=3), split)
    assert result(*made, x=X).known_shape == (N, 3)
    assert result(*made, outputs="y:1", x=X).dtype == "int32"
    assert result(*made, outputs="y:2", x=X).dtype == "float32"


@pytest.mark.parametrize("reference", ["t:other:0", "t:values:1", "t:0", "t", "t:indices:x", "n:y:1", "gone:y:0"])
def test_an_output_that_is_not_known_by_its_name_is_refused(reference: str) -> None:
    nodes = (op("TopKV2", "a", "k", name="t"), op("Neg", "a", name="n"))
    assert not proved(call("f", "x"), function("f", *nodes, inputs="a", outputs=reference, k=2), x=X)


def test_a_function_that_is_called_often_is_gone_through_once() -> None:
    twice = [
        function(f"f{depth}", call(f"f{depth - 1}", "a", to="b"), call(f"f{depth - 1}", "b:output:0", to="c"),
                 inputs="a", outputs="c:output:0")
        for depth in range(1, 30)
    ]  # fmt: skip
    base = function("f0", op("Neg", "a", name="n"), inputs="a", outputs="n:y:0")
    found = proof(call("f29", "x"), base, *twice, x=X)
    assert found.proved
    assert found.operators < 100


def test_sizes_that_come_up_in_two_calls_are_not_taken_for_equal() -> None:
    """The same is known of two calls' arguments, which need not be the same."""
    cut = function(
        "cut", op("Pack", "zero", "n", name="e"), op("StridedSlice", "a", "b", "e:output:0", "s", name="c", end_mask=1),
        inputs="a n", outputs="c:output:0", zero=0, b=[0, 0], s=[1, 1],
    )  # fmt: skip
    calls = (call("cut", "x", "n", to="p"), call("cut", "x", "m", to="q"), cut)
    unknown = {"n": Tensor("int32", ()), "m": Tensor("int32", ())}
    assert proved(*calls, op("Shape", "q", name="s"), op("Reshape", "q", "s"), x=rows(9), **unknown)
    assert not proved(*calls, op("Shape", "q", name="s"), op("Reshape", "p", "s"), x=rows(9), **unknown)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((call("gone", "x"),), "there is no function gone"),
        ((call("negated", "x", "x"), NEGATED), "a function of 1 inputs gets 2"),
        ((op("PartitionedCall", "x"),), "f is not known"),
        ((op("Neg", "x"), function("Neg", inputs="a", outputs="a")), "has the name of an operator"),
        ((call("f", "x"), function("f", call("f", "a", to="c"), inputs="a", outputs="c:output:0")), "nested more than"),
    ],
)
def test_a_call_that_does_not_fit_is_refused(parts: tuple[Any, ...], reason: str) -> None:
    assert reason in refusal(*parts, x=X)


def test_functions_for_the_same_task_have_all_to_keep_rows_apart() -> None:
    one = dataclasses.replace(SAME, task="t")
    other = dataclasses.replace(NEGATED, task="t")
    mixing = function("sums", op("Sum", "a", "z", name="s", keep_dims=True), inputs="a", outputs="s:output:0",
                      task="t", z=[0])  # fmt: skip
    assert proved(call("same", "x"), one, other, x=X)
    assert refusal(call("same", "x"), one, mixing, x=X) == "reduces over the rows"
    assert proved(call("same", "x"), SAME, mixing, x=X)


def test_functions_for_the_same_task_return_as_many_values() -> None:
    more = function("more", inputs="a", outputs="a a", task="t")
    assert "differ in what they return" in refusal(call("same", "x"), dataclasses.replace(SAME, task="t"), more, x=X)


def test_a_write_is_found_in_a_function_for_the_same_task() -> None:
    other = function("other", op("AssignVariableOp", "a", "a", name="w"), inputs="a", outputs="a", task="t")
    assert refusal(call("same", "x"), dataclasses.replace(SAME, task="t"), other, x=X).startswith("it writes")


# ---- branches -------------------------------------------------------------------------------------------------------

THEN = function("then", op("Neg", "a", name="n"), inputs="a", outputs="n:y:0")
OTHERWISE = function("otherwise", inputs="a", outputs="a")
SUMS = function("otherwise", op("Sum", "a", "z", name="s", keep_dims=True), inputs="a", outputs="s:output:0", z=[0])


def test_either_branch_may_be_taken_where_the_condition_is_the_same_for_all_rows() -> None:
    unknown = Tensor("bool", ())
    assert proved(branch("c", "x"), THEN, OTHERWISE, x=X, c=unknown)
    assert refusal(branch("c", "x"), THEN, SUMS, x=X, c=unknown) == "reduces over the rows"
    assert refusal(branch("c", "x"), THEN, SUMS, x=X, c=Tensor("bool", (2,), (True, True))) == "reduces over the rows"


def test_of_a_known_condition_only_one_branch_counts() -> None:
    assert proved(branch("c", "x"), THEN, SUMS, x=X, c=True)
    assert not proved(branch("c", "x"), THEN, SUMS, x=X, c=False)


def test_a_condition_that_rows_decide_is_refused() -> None:
    most = op("Max", "x", "all", name="m")
    found = refusal(most, op("Greater", "m", "f", name="c"), branch("c", "x"), THEN, OTHERWISE, x=X, all=[0, 1], f=0.0)
    assert found == "the condition: Max m: reduces over the rows"
    assert refusal(branch("x", "x"), THEN, OTHERWISE, x=X) == "the condition depends on rows"


def test_a_condition_that_counts_rows_is_refused() -> None:
    count = (op("Size", "x", name="n"), op("Greater", "n", "many", name="c"))
    found = refusal(*count, branch("c", "x"), THEN, OTHERWISE, x=X, many=30)
    assert found == "the condition depends on the number of rows"


def test_branches_by_number_are_all_looked_at() -> None:
    cases = op("Case", "i", "x", branches=FunctionNames(("then", "otherwise")), Tout=("float32",))
    assert proved(cases, THEN, OTHERWISE, x=X, i=Tensor("int32", ()))
    assert refusal(cases, THEN, SUMS, x=X, i=0) == "reduces over the rows"
    assert "condition" in refusal(cases, THEN, OTHERWISE, op("ArgMax", "x", "zero", name="i"), x=X, zero=0)
    assert "branches of different outputs" in refusal(dataclasses.replace(cases, attributes={"Tout": ("float32",)}),
                                                      x=X, i=0)  # fmt: skip


def test_branches_return_as_many_values() -> None:
    more = function("otherwise", inputs="a", outputs="a a")
    assert "branches of different outputs" in refusal(branch("c", "x"), THEN, more, x=X, c=Tensor("bool", ()))


# ---- loops ----------------------------------------------------------------------------------------------------------

COUNTING = function("cond", op("Less", "i", "n", name="c"), inputs="i n a", outputs="c:z:0")


def body(*nodes: GraphNode, outputs: str = "t:z:0", **named: Any) -> Function:
    step = op("AddV2", "i", "one", name="j")
    return function("body", step, *nodes, inputs="i n a", outputs=f"j:z:0 n {outputs}", one=1, **named)


def turned(*parts: GraphNode | Function, **named: Any) -> Any:
    return proof(loop("zero", "n", "x"), *parts, outputs="y:2", zero=0, **named)


def test_a_loop_that_counts_to_what_is_the_same_for_all_is_proved() -> None:
    assert turned(COUNTING, body(op("Tanh", "a", name="t")), x=X, n=5).proved


def test_rows_that_are_mixed_in_a_loop_are_refused() -> None:
    mixing = body(op("Cumsum", "a", "z", name="t"), z=0)
    assert turned(COUNTING, mixing, x=X, n=5).reason == "works along the rows"


def test_a_loop_that_counts_to_the_number_of_rows_is_refused() -> None:
    found = turned(COUNTING, body(op("Tanh", "a", name="t")), op("Size", "x", name="n"), x=X)
    assert "the number of rows" in found.reason


def test_a_loop_that_ends_when_all_rows_have_is_refused() -> None:
    ends = function(
        "cond", op("Less", "a", "f", name="l"), op("Any", "l:z:0", "all", name="c"), inputs="i n a",
        outputs="c:output:0", f=9.0, all=[0, 1],
    )  # fmt: skip
    found = turned(ends, body(op("Tanh", "a", name="t")), x=X, n=5)
    assert found.reason == "the condition: Any c: reduces over the rows"


def test_a_state_that_begins_otherwise_than_it_goes_on_is_refused() -> None:
    moved = body(op("Transpose", "a", "order", name="t"), outputs="t:y:0", order=[1, 0])
    assert "differ in where the rows are" in turned(COUNTING, moved, x=X, n=5).reason


def test_a_size_that_grows_in_a_loop_is_equal_to_no_other_afterwards() -> None:
    grown = body(op("ConcatV2", "a", "a", "axis", name="t"), outputs="t:output:0", axis=1)
    twice = (COUNTING, grown, loop("zero", "n", "x", to="p"), loop("zero", "m", "x", to="q"))
    shape = op("Shape", "q:2", name="s")
    assert proof(*twice, outputs="p:2", zero=0, n=5, m=3, x=X).proved
    assert not proof(*twice, shape, op("Reshape", "p:2", "s"), zero=0, n=5, m=3, x=X).proved


def test_a_body_returns_as_many_states_as_it_gets() -> None:
    assert (
        "fewer outputs than states" in turned(COUNTING, function("body", inputs="i n a", outputs="i"), x=X, n=5).reason
    )


def test_a_list_that_is_filled_in_a_loop_is_read_afterwards() -> None:
    taken = op("TensorListGetItem", "a", "i", "shape", name="g")
    put = op("TensorListSetItem", "n", "i", "t:y:0", name="l")
    filled = function(
        "body", op("AddV2", "i", "one", name="j"), taken, op("Tanh", "g:item:0", name="t"), put, inputs="i n a",
        outputs="j:z:0 l:output_handle:0 a", one=1, shape=[-1],
    )  # fmt: skip
    turns = function("cond", op("Less", "i", "k", name="c"), inputs="i n a", outputs="c:z:0", k=6)
    found = result(
        op("Transpose", "x", "order", name="t"), op("TensorListFromTensor", "t", "shape", name="f"),
        op("TensorListReserve", "shape", "six", name="r"), loop("zero", "r", "f", to="w"),
        op("TensorListStack", "w:1", "shape", name="s"), op("Transpose", "s", "order"), turns, filled,
        x=rows(6, 4), order=[1, 0, 2], shape=[-1], six=6, zero=0,
    )  # fmt: skip
    assert found.known_shape == (N, 6, 4)
