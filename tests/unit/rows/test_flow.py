"""Rows on their way through graphs, subgraphs and functions; what is supposed of sizes; what rounding comes to."""

from __future__ import annotations

import dataclasses

import pytest
from graph_builder import constant, ml, model, node, proof, proved, refusal, result, rows, weights

from cortex.rows import flow, prove
from cortex.rows.rules.registry import NEWEST
from cortex.rows.sizes import NUMBER_OF_ROWS as N
from cortex.rows.values import Kind
from cortex.wire.batching import RULES, Proof, SizeCondition
from cortex.wire.graphs import Function, Graph, GraphInput, GraphNode, LongList, Model, Reference, Tensor

I64 = "int64"


def ints(*values: int) -> Tensor:
    return Tensor(I64, (len(values),), values)


def number(value: int) -> Tensor:
    return Tensor(I64, (), (value,))


def size_of(name: str, axis: int, to: str) -> tuple[GraphNode, ...]:
    """A size of a value, as a vector of one."""
    return (node("Shape", name, to=f"shape_{to}"), node("Slice", f"shape_{to}", f"from_{axis}", f"to_{axis}", to=to))


BOUNDS = {"from_0": ints(0), "to_0": ints(1), "from_1": ints(1), "to_1": ints(2)}


# ---- inputs and outputs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        (GraphInput("x", "float32", (1, 4)), 'the first dimension of the input "x" is fixed to 1'),
        (GraphInput("x", "float32", ()), 'the input "x" is a scalar'),
        (GraphInput("x", "float32", None), 'the input "x" has no declared rank'),
        (GraphInput("x", "float32", (None, 4), is_tensor=False), 'the input "x" is no tensor'),
        (GraphInput("x", "float32", (None, 0)), 'the input "x" has a size of 0'),
    ],
)
def test_an_input_without_rows_is_named(declared: GraphInput, reason: str) -> None:
    found = prove(Model(Graph((node("Relu", "x"),), (declared,), ("y",)), opsets=NEWEST))
    assert found == Proof(rules=RULES, proved=False, reason=reason)


def test_an_input_with_a_default_is_its_default() -> None:
    nodes = (node("Add", "x", "bias"),)
    inputs = (GraphInput("x", "float32", (None, 4)), GraphInput("bias", "float32", (None, 4)))
    graph = Graph(nodes, inputs, ("y",), {"bias": weights(1, 4)})
    assert prove(Model(graph, opsets=NEWEST)).proved
    assert not prove(Model(dataclasses.replace(graph, constants={"bias": weights(3, 4)}), opsets=NEWEST)).proved


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ((node("Transpose", "x", perm=(1, 0)),), 'the output "y" has its rows in dimension 1'),
        ((node("Shape", "x"),), 'the output "y" is made of the number of rows'),
        ((node("Relu", "w"),), 'the output "y" is the same for all rows'),
        ((node("Reshape", "x", "flat"),), 'the output "y" has 4*N rows for N'),
        ((node("SequenceConstruct", "x"),), 'the output "y" has no rows'),
    ],
)
def test_an_output_that_is_no_row_for_each_row_is_named(nodes: tuple[GraphNode, ...], reason: str) -> None:
    assert refusal(*nodes, x=rows(4), w=weights(2, 4), flat=ints(-1)) == reason


def test_a_model_without_outputs_is_not_proved() -> None:
    assert prove(Model(Graph((), (rows(4),), ()), opsets=NEWEST)).reason == "it has no outputs"


def test_the_first_operator_in_the_way_is_named_however_far_from_the_output() -> None:
    found = proof(
        GraphNode("CumSum", ("x", "axis"), ("sums",), {}, "running"),
        node("Relu", "sums", to="z"),
        node("Exp", "z"),
        x=rows(4),
        axis=number(0),
    )
    assert (found.operator, found.reason) == ("CumSum running", "works along the rows")


# ---- what no rule knows -----------------------------------------------------------------------------------------


def test_an_operator_that_no_rule_knows_is_not_proved_even_of_constants() -> None:
    assert "no rule knows" in refusal(node("Mystery", "w", to="m"), node("Add", "x", "m"), x=rows(4), w=weights(4))


def test_an_operator_of_another_domain_is_not_the_one_of_that_name() -> None:
    assert "no rule knows" in refusal(node("Relu", "x", domain="my.own"), x=rows(4), opsets={"": 18, "my.own": 1})


@pytest.mark.parametrize("opset", [NEWEST[""] + 1, 0])
def test_an_operator_set_that_the_rules_were_not_read_for_is_not_proved(opset: int) -> None:
    assert f"operator set {opset}" in refusal(node("Relu", "x"), x=rows(4), opsets={"": opset})


def test_a_fault_in_a_rule_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(call: object) -> None:
        raise ZeroDivisionError("a bug")

    known = flow.RULES["", "Relu"]
    monkeypatch.setitem(flow.RULES, ("", "Relu"), dataclasses.replace(known, function=broken))
    assert refusal(node("Relu", "x"), x=rows(4)) == "the rule failed (ZeroDivisionError: a bug)"


def test_random_numbers_are_different_each_time() -> None:
    assert refusal(node("RandomNormal", to="r", shape=(1, 4)), node("Add", "x", "r"), x=rows(4)) == "random numbers"


def test_a_model_that_takes_too_many_steps_is_not_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "MAX_STEPS", 3)
    chain = [node("Relu", "x" if turn == 0 else f"v{turn}", to=f"v{turn + 1}") for turn in range(4)]
    assert "more than 3 operators" in refusal(*chain, outputs="v4", x=rows(4))


def test_sizes_that_grow_without_end_are_not_computed() -> None:
    chain = [
        *size_of("x", 1, "v0"),
        *(node("Mul", f"v{turn}", f"v{turn}", to=f"v{turn + 1}") for turn in range(40)),
        node("Expand", "x", "v40"),
    ]
    assert proved(*chain, x=rows(None), **BOUNDS)


def test_numbers_that_grow_without_end_are_not_computed() -> None:
    chain = [
        *(node("Mul", f"v{turn}", f"v{turn}", to=f"v{turn + 1}") for turn in range(60)),
        node("Pow", "v60", "v60", to="power"),
        node("Add", "x", "power"),
    ]
    assert proved(*chain, x=rows(1, dtype=I64), v0=number(7))


# ---- the number of rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["Div", "Mul", "Add", "Max", "Pow"])
def test_the_number_of_rows_is_no_operand(operator: str) -> None:
    nodes = (*size_of("x", 0, "n"), GraphNode("Cast", ("n",), ("float",), {"to": 1}), node(operator, "x", "float"))
    assert refusal(*nodes, x=rows(4), **BOUNDS) == "the number of rows used as data"


def test_the_number_of_rows_may_become_a_shape() -> None:
    nodes = (
        *size_of("x", 0, "n"),
        node("Concat", "n", "four", to="shape", axis=0),
        node("ConstantOfShape", "shape", to="zeros"),
        node("Add", "x", "zeros"),
    )
    assert proved(*nodes, x=rows(4), four=ints(4), **BOUNDS)


def test_many_sizes_at_once_do_not_lose_the_number_of_rows() -> None:
    nodes = (*size_of("x", 0, "n"), node("Mul", "n", "table", to="sizes"), node("ReduceMax", "sizes", to="most"))
    found = proof(*nodes, node("Add", "x", "most"), x=rows(1, dtype=I64), table=weights(300, dtype=I64), **BOUNDS)
    assert not found.proved


def test_a_branch_must_not_depend_on_rows_or_their_number() -> None:
    then = Graph((node("Neg", "x", to="a"),), (), ("a",))
    otherwise = Graph((node("Relu", "x", to="b"),), (), ("b",))
    choice = node("If", "condition", then_branch=then, else_branch=otherwise)
    any_row = (node("ReduceMax", "x", to="m", keepdims=0), node("Greater", "m", "zero", to="condition"))
    assert refusal(*any_row, choice, x=rows(4), zero=constant(0.0)) == "reduces over the rows"
    of_rows = (*size_of("x", 0, "n"), node("Greater", "n", "one", to="condition"))
    assert (
        refusal(*of_rows, choice, x=rows(4), one=number(1), **BOUNDS) == "the condition depends on the number of rows"
    )
    of_length = (*size_of("x", 1, "n"), node("Greater", "n", "one", to="condition"))
    assert proved(*of_length, choice, x=rows(None), one=number(1), **BOUNDS)


# ---- loops ------------------------------------------------------------------------------------------------------


def body(*nodes: GraphNode, outputs: str) -> Graph:
    return Graph(nodes, (GraphInput("i"), GraphInput("c"), GraphInput("s")), tuple(outputs.split()))


def test_a_loop_of_so_many_turns_for_all_is_proved() -> None:
    turn = body(node("Tanh", "s", to="s2"), node("Identity", "c", to="c2"), outputs="c2 s2 s2")
    nodes = (node("Loop", "turns", "", "x", to="last all", body=turn), node("Transpose", "all", perm=(1, 0, 2)))
    assert proved(*nodes, x=rows(4), turns=number(5))


def test_a_loop_that_ends_when_every_row_has_ended_is_not() -> None:
    turn = body(
        node("Mul", "s", "half", to="s2"),
        node("ReduceMax", "s2", to="most", keepdims=0),
        node("Greater", "most", "half", to="c2"),
        outputs="c2 s2",
    )
    found = proof(node("Loop", "turns", "", "x", body=turn), x=rows(4), turns=number(5), half=constant(0.5))
    assert not found.proved
    assert "reduces over the rows" in found.reason


def test_a_state_that_sums_over_the_rows_in_a_later_turn_is_found() -> None:
    turn = body(node("CumSum", "s", "axis", to="s2"), node("Identity", "c", to="c2"), outputs="c2 s2")
    assert refusal(node("Loop", "turns", "", "x", body=turn), x=rows(4), turns=number(5), axis=number(0))


def test_a_state_whose_length_changes_has_no_length_that_anything_is_equal_to() -> None:
    turn = body(node("Concat", "s", "s", to="s2", axis=1), node("Identity", "c", to="c2"), outputs="c2 s2")
    nodes = (node("Loop", "turns", "", "x", to="s", body=turn), node("Reshape", "s", "shape"))
    assert not proved(*nodes, x=rows(4), turns=number(2), shape=ints(-1, 4))


def test_a_scan_along_steps_is_proved_and_along_rows_is_not() -> None:
    step = Graph((node("Add", "s", "e", to="s2"),), (GraphInput("s"), GraphInput("e")), ("s2", "s2"))
    scan = node("Scan", "first", "x", to="y all", body=step, num_scan_inputs=1, scan_input_axes=(1,))
    settings = {"x": rows(None, 4), "first": rows(4)}
    assert proved(scan, **settings)
    along_rows = dataclasses.replace(scan, attributes={**scan.attributes, "scan_input_axes": (0,)})
    assert refusal(along_rows, **settings) == "walks along the rows"


# ---- functions --------------------------------------------------------------------------------------------------


def with_function(function: Function, *nodes: GraphNode, **named: GraphInput | Tensor) -> Proof:
    made = model(*nodes, **named, opsets={"": 18, "local": 1})
    return prove(dataclasses.replace(made, functions={(function.domain, function.name): function}))


def test_a_function_is_followed_with_the_attributes_of_the_call() -> None:
    function = Function(
        "Soft", "local", (GraphNode("Softmax", ("a",), ("b",), {"axis": Reference("along")}),), ("a",), ("b",),
        defaults={"along": 1}, opsets={"": 18},
    )  # fmt: skip
    assert with_function(function, node("Soft", "x", domain="local"), x=rows(4)).proved
    refused = with_function(function, node("Soft", "x", domain="local", along=0), x=rows(4))
    assert refused.reason == "works along the rows"
    without = dataclasses.replace(function, opsets={})
    assert with_function(without, node("Soft", "x", domain="local"), x=rows(4)).proved


def test_a_function_of_another_operator_set_than_the_model_s_is_refused() -> None:
    """onnxruntime puts its nodes among the model's, and means by them what the model's operator set does."""
    function = Function("Cut", "local", (node("Relu", "a", to="b"),), ("a",), ("b",), opsets={"": 17})
    assert "another operator set" in with_function(function, node("Cut", "x", domain="local"), x=rows(4)).reason


def test_an_input_that_a_call_leaves_out_is_left_out_inside() -> None:
    function = Function("Cut", "local", (node("Clip", "a", "least", to="b"),), ("a", "least"), ("b",), opsets={"": 18})
    assert with_function(function, node("Cut", "x", domain="local"), x=rows(4)).proved


def test_a_function_of_an_operator_s_name_is_refused() -> None:
    function = Function("Relu", "", (node("CumSum", "a", "axis", to="b"),), ("a",), ("b",), opsets={"": 18})
    assert "name of an operator" in with_function(function, node("Relu", "x"), x=rows(4)).reason


def test_a_function_that_calls_itself_is_refused() -> None:
    function = Function("Again", "local", (node("Again", "a", to="b", domain="local"),), ("a",), ("b",))
    assert "nested" in with_function(function, node("Again", "x", domain="local"), x=rows(4)).reason


# ---- what is supposed of sizes ----------------------------------------------------------------------------------


def test_a_length_that_another_input_gives_is_supposed_to_be_equal() -> None:
    nodes = (node("Shape", "mask", to="shape"), node("Reshape", "x", "shape"))
    found = proof(*nodes, x=rows(None), mask=rows(None))
    assert found.proved
    assert found.sizes == (SizeCondition("mask", 1, other_input="x", other_axis=1),)


def test_a_length_that_is_written_into_the_model_is_supposed() -> None:
    nodes = (*size_of("x", 0, "n"), node("Concat", "n", "rest", to="shape", axis=0), node("Reshape", "x", "shape"))
    found = proof(*nodes, x=rows(None, 4), rest=ints(7, 2, 2), **BOUNDS)
    assert found.proved
    assert found.sizes == (SizeCondition("x", 1, size=7),)


def test_a_table_that_is_cut_to_the_length_is_supposed_to_be_long_enough() -> None:
    nodes = (
        *size_of("x", 1, "length"),
        node("Slice", "table", "from_0", "length", "axes", to="positions"),
        node("Add", "x", "positions", to="sum"),
        node("Reshape", "sum", "shape"),
    )
    found = proof(*nodes, x=rows(None, 4), table=weights(1, 64, 4), axes=ints(1), shape=ints(0, -1, 2, 2), **BOUNDS)
    assert found.proved
    assert found.sizes == (SizeCondition("x", 1, at_most=64),)


def test_nothing_is_supposed_that_the_proof_does_not_need() -> None:
    assert proof(node("Relu", "x"), x=rows(None, None), outputs="y").sizes == ()


def test_a_size_that_no_length_can_have_is_not_supposed() -> None:
    nodes = (*size_of("x", 0, "n"), node("Concat", "n", "rest", to="shape", axis=0), node("Reshape", "x", "shape"))
    assert not proved(*nodes, x=rows(None, 4), rest=ints(7, 3), **BOUNDS)


# ---- rows' own places -------------------------------------------------------------------------------------------


def numbers_of_rows(to: str) -> tuple[GraphNode, ...]:
    return (
        *size_of("x", 0, "count"),
        node("Squeeze", "count", "first", to="n"),
        node("Range", "zero", "n", "one", to=to),
    )


NUMBERS = {"zero": number(0), "one": number(1), "first": ints(0), **BOUNDS}


def test_row_numbers_are_no_data() -> None:
    nodes = (*numbers_of_rows("i"), node("Unsqueeze", "i", "last", to="column"), node("Add", "x", "column"))
    settings = {"x": rows(4, dtype=I64), "last": ints(1), **NUMBERS}
    assert not proved(*nodes, **settings)
    assert result(*nodes, **settings).kind is Kind.NUMBERED


def test_a_row_s_own_entry_by_its_number_is_its_own() -> None:
    """As exporters write the state at each row's last token."""
    nodes = (
        *numbers_of_rows("i"),
        node("ArgMax", "ids", to="at", axis=1, keepdims=0),
        node("Unsqueeze", "i", "last", to="iu"),
        node("Unsqueeze", "at", "last", to="au"),
        node("Concat", "iu", "au", to="index", axis=1),
        node("GatherND", "x", "index"),
    )
    settings = {"x": rows(None, 4), "ids": rows(None, dtype=I64), "last": ints(1), **NUMBERS}
    assert proved(*nodes, **settings)
    swapped = (*nodes[:-2], node("Concat", "au", "iu", to="index", axis=1), nodes[-1])
    assert not proved(*swapped, **settings)


def test_places_in_merged_rows_are_the_row_s_own_only_with_the_right_stride_and_less_than_it() -> None:
    """As exporters write a mask that is looked up by i × length + j."""

    def nodes(stride: str, offset: str) -> tuple[GraphNode, ...]:
        return (
            *numbers_of_rows("i"),
            *size_of("x", 1, "lengths"),
            node("Squeeze", "lengths", "first", to="length"),
            node("Unsqueeze", "i", "last", to="column"),
            node("Mul", "column", stride, to="starts"),
            node("Range", "zero", "length", "one", to="within"),
            node("Range", "one", "length", "one", to="shifted"),
            node("Add", "starts", offset, to="places"),
            node("Reshape", "x", "flat", to="merged"),
            node("Gather", "merged", "places"),
        )

    settings = {"x": rows(None), "last": ints(1), "flat": ints(-1), "two": number(2), **NUMBERS}
    assert proved(*nodes("length", "within"), **settings)
    assert refusal(*nodes("length", "shifted"), **settings) == "row numbers used as data"
    assert not proved(*nodes("two", "within"), **settings)


def test_what_is_below_a_length_is_not_after_arithmetic() -> None:
    nodes = (
        *numbers_of_rows("i"),
        *size_of("x", 1, "lengths"),
        node("Squeeze", "lengths", "first", to="length"),
        node("Unsqueeze", "i", "last", to="column"),
        node("Mul", "column", "length", to="starts"),
        node("Range", "zero", "length", "one", to="within"),
        node("Add", "within", "one", to="beyond"),
        node("Add", "starts", "beyond", to="places"),
        node("Reshape", "x", "flat", to="merged"),
        node("Gather", "merged", "places"),
    )
    assert not proved(*nodes, x=rows(None), last=ints(1), flat=ints(-1), **NUMBERS)


# ---- rounding ---------------------------------------------------------------------------------------------------

SUM = node("MatMul", "x", "w", to="z")
W = weights(4, 4)


@pytest.mark.parametrize(
    ("nodes", "rounding", "operator"),
    [
        ((node("Neg", "x", to="z"), node("Add", "z", "x")), "exact", ""),
        ((node("Relu", "x"),), "rounding", ""),
        ((node("Exp", "x"),), "rounding", ""),
        ((SUM, node("Relu", "z")), "rounding", ""),
        ((node("ArgMax", "x", axis=1),), "exact", ""),
        ((SUM, node("ArgMax", "z", axis=1)), "labels", "ArgMax"),
        ((SUM, node("Greater", "z", "half")), "labels", "Greater"),
        ((SUM, node("Round", "z")), "steps", "Round"),
        ((node("Round", "x"),), "exact", ""),
        ((SUM, GraphNode("Cast", ("z",), ("y",), {"to": 7})), "steps", "Cast"),
        ((SUM, node("QuantizeLinear", "z", "half", "point")), "steps", "QuantizeLinear"),
        ((node("QuantizeLinear", "x", "half", "point"),), "exact", ""),
        (
            (SUM, GraphNode("Cast", ("z",), ("h",), {"to": 10}), GraphNode("Cast", ("h",), ("y",), {"to": 1})),
            "steps",
            "",
        ),
        ((SUM, GraphNode("Cast", ("z",), ("h",), {"to": 10})), "rounding", ""),
    ],
)
def test_what_rounding_may_do(nodes: tuple[GraphNode, ...], rounding: str, operator: str) -> None:
    outputs = nodes[-1].outputs[0]
    found = proof(*nodes, outputs=outputs, x=rows(4), w=W, half=constant(0.5), point=Tensor("uint8", (), (0,)))
    assert found.proved
    assert found.rounding == rounding
    assert found.rounding_operator.startswith(operator)


def test_a_forest_votes_and_one_behind_a_sum_may_choose_another_leaf() -> None:
    forest = ml("TreeEnsembleRegressor", "x", n_targets=1, nodes_values=LongList("floats"))
    opsets = {"ai.onnx.ml": 3}
    assert proof(forest, x=rows(4), opsets=opsets).rounding == "rounding"
    behind = dataclasses.replace(forest, inputs=("z",))
    assert proof(SUM, behind, x=rows(4), w=W, opsets=opsets).rounding == "labels"


def test_shapes_carry_no_noise() -> None:
    nodes = (SUM, node("Shape", "z", to="shape"), node("Reshape", "x", "shape"))
    assert proof(*nodes, x=rows(4), w=W).rounding == "exact"


def test_rows_keep_their_number_in_the_verdict() -> None:
    assert result(node("Relu", "x"), x=rows(4)).shape == (N, 4)
    assert proof(node("Relu", "x"), x=rows(4)).operators == 1
