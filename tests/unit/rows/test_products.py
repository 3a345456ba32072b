"""Sums of products: what rows may meet, where they are afterwards, and what rounding does to them."""

from __future__ import annotations

import dataclasses

import pytest
from graph_builder import constant, microsoft, node, proof, proved, refusal, result, rows, weights

from cortex.rows.sizes import NUMBER_OF_ROWS as N
from cortex.wire.graphs import GraphNode

TURN = node("Transpose", "x", to="t", perm=(1, 0))
"""Rows in dimension 1."""


def test_rows_times_a_matrix_are_rows() -> None:
    product = result(node("MatMul", "x", "w"), x=rows(4), w=weights(4, 3))
    assert (product.shape, product.axis, product.dtype) == ((N, 3), 0, "float32")


def test_a_product_rounds() -> None:
    assert proof(node("MatMul", "x", "w"), x=rows(4), w=weights(4, 3)).rounding == "rounding"


def test_a_product_of_integers_is_exact() -> None:
    assert proof(node("MatMul", "x", "w"), x=rows(4, dtype="int64"), w=weights(4, 3, dtype="int64")).rounding == "exact"


def test_a_matrix_times_rows_sums_over_them() -> None:
    assert refusal(node("MatMul", "w", "x"), x=rows(4), w=weights(3, 4)) == "sums over the rows"


def test_a_matrix_times_turned_rows_has_them_in_dimension_1() -> None:
    product = result(TURN, node("MatMul", "w", "t"), x=rows(4), w=weights(3, 4))
    assert (product.shape, product.axis) == ((3, N), 1)


def test_turned_rows_times_a_matrix_are_summed() -> None:
    assert refusal(TURN, node("MatMul", "t", "w"), x=rows(4), w=weights(3, 5)) == "sums over the rows"


def test_rows_times_themselves_meet_in_different_dimensions() -> None:
    assert refusal(TURN, node("MatMul", "x", "t"), x=rows(4)) == "rows meet in different dimensions"


def test_each_row_s_queries_meet_its_own_keys() -> None:
    product = result(node("MatMul", "q", "k"), q=rows(2, None, 4), k=rows(2, 4, None))
    assert (product.shape, product.axis) == ((N, 2, *product.known_shape[2:]), 0)


def test_rows_do_not_meet_rows_that_are_another_dimension_of_the_stack() -> None:
    nodes = (node("Transpose", "k", to="t", perm=(1, 0, 2, 3)), node("MatMul", "q", "t"))
    assert refusal(*nodes, q=rows(2, 3, 4), k=rows(2, 4, 5)) == "rows meet in different dimensions"


def test_rows_do_not_meet_rows_of_another_order() -> None:
    nodes = (
        node("Reshape", "q", "queries", to="heads_within_rows"),
        node("Transpose", "k", to="t", perm=(1, 0, 2, 3)),
        node("Reshape", "t", "keys", to="rows_within_heads"),
        node("MatMul", "heads_within_rows", "rows_within_heads"),
    )
    settings = {"q": rows(2, 3, 4), "k": rows(2, 4, 5), "queries": [-1, 3, 4], "keys": [-1, 4, 5]}
    assert refusal(*nodes, **settings) == "rows meet in different layouts"


def test_a_stack_of_constants_may_only_be_one_matrix_along_the_rows() -> None:
    assert proved(node("MatMul", "x", "w"), x=rows(3, 4), w=weights(1, 4, 5))
    assert refusal(node("MatMul", "x", "w"), x=rows(3, 4), w=weights(2, 4, 5)) == (
        "a constant of size 2 along the rows"
    )


def test_stacks_that_differ_are_of_a_size_that_is_not_known() -> None:
    product = result(node("MatMul", "x", "w"), x=rows(None, 3, 4), w=weights(6, 4, 5))
    assert product.known_shape[1] not in (6, 1)


@pytest.mark.parametrize(("vector", "shape"), [((4,), (N, 3)), ((4, 1), (N, 3, 1))])
def test_a_vector_on_the_right_leaves_no_dimension(vector: tuple[int, ...], shape: tuple[object, ...]) -> None:
    assert result(node("MatMul", "x", "w"), x=rows(3, 4), w=weights(*vector)).shape == shape


def test_a_vector_on_the_left_leaves_no_dimension() -> None:
    product = result(node("MatMul", "w", "x"), x=rows(4, 3), w=weights(4))
    assert (product.shape, product.axis) == ((N, 3), 0)


def test_a_vector_of_rows_is_summed() -> None:
    assert refusal(node("MatMul", "x", "w"), x=rows(), w=weights(3, 2)) == "sums over the rows"


def test_an_operand_of_unknown_rank_is_refused() -> None:
    nodes = (node("NonZero", "c", to="unknown"), node("MatMul", "x", "unknown"))
    assert refusal(*nodes, x=rows(4), c=weights(3, 4)) == "a value of unknown rank"


# ---- Gemm -------------------------------------------------------------------------------------------------------


def test_gemm_turns_its_operands_before() -> None:
    assert result(node("Gemm", "x", "w", transB=1), x=rows(4), w=weights(3, 4)).shape == (N, 3)
    assert refusal(node("Gemm", "x", "w", transA=1), x=rows(4), w=weights(4, 3)) == "sums over the rows"


@pytest.mark.parametrize("bias", [(3,), (1, 3), (1,), (1, 1), ()])
def test_gemm_adds_one_bias_to_each_row(bias: tuple[int, ...]) -> None:
    assert proved(node("Gemm", "x", "w", "b"), x=rows(4), w=weights(4, 3), b=weights(*bias))


def test_gemm_adds_each_row_its_own_bias() -> None:
    assert proved(node("Gemm", "x", "w", "b"), x=rows(4), b=rows(3), w=weights(4, 3))


def test_a_bias_of_several_rows_is_refused() -> None:
    verdict = refusal(node("Gemm", "x", "w", "b"), x=rows(4), w=weights(4, 3), b=weights(2, 3))
    assert verdict == "a constant of size 2 along the rows"


def test_a_vector_of_rows_is_no_bias_of_columns() -> None:
    verdict = refusal(node("Gemm", "x", "w", "b"), x=rows(4), b=rows(), w=weights(4, 3))
    assert verdict == "rows meet in different dimensions"


def test_a_bias_of_rows_does_not_stretch_a_constant_product() -> None:
    verdict = refusal(node("Gemm", "v", "w", "b"), b=rows(3), v=weights(1, 4), w=weights(4, 3))
    assert verdict == "the bias has rows that the product lacks"


def test_gemm_takes_matrices_only() -> None:
    assert refusal(node("Gemm", "x", "w"), x=rows(4, 5), w=weights(5, 3)) == "operands are no matrices"


def test_gemm_of_old_broadcasting_is_refused() -> None:
    assert not proved(node("Gemm", "x", "w", "b"), x=rows(4), w=weights(4, 3), b=weights(3), opsets={"": 6})


def test_a_fused_product_turns_its_operands_but_no_vector() -> None:
    assert result(microsoft("FusedMatMul", "x", "w", transB=1), x=rows(2, 4), w=weights(3, 4)).shape == (N, 2, 3)
    assert result(microsoft("FusedMatMul", "x", "w", transB=1), x=rows(2, 4), w=weights(4)).shape == (N, 2)
    assert not proved(microsoft("FusedMatMul", "x", "w", transA=1), x=rows(4), w=weights(4, 3))


def test_a_fused_product_that_moves_its_first_dimension_is_refused() -> None:
    settings = {"x": rows(2, 4), "k": rows(4, 3)}
    assert proved(microsoft("FusedMatMul", "x", "k"), **settings)
    assert not proved(microsoft("FusedMatMul", "x", "k", transBatchA=1), **settings)
    assert not proved(microsoft("FusedMatMul", "x", "k", transBatchB=1), **settings)


# ---- Einsum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("equation", "shape", "axis"),
    [
        ("nqd,nkd->nqk", (N, 2, 3), 0),
        ("nqd,nkd->qnk", (2, N, 3), 1),
        ("n q d, n k d -> n q k", (N, 2, 3), 0),
        ("nqd,nkd->nd", (N, 4), 0),
    ],
)
def test_letters_say_where_rows_are(equation: str, shape: tuple[object, ...], axis: int) -> None:
    product = result(node("Einsum", "q", "k", equation=equation), q=rows(2, 4), k=rows(3, 4))
    assert (product.shape, product.axis) == (shape, axis)


@pytest.mark.parametrize(
    ("equation", "reason"),
    [
        ("nqd,nkd->qk", "sums over the rows"),
        ("nqd,mkd->nqk", "rows meet in different dimensions"),
        ("nqd,nkd->nnk", "an equation that does not fit"),
        ("nqd,nkd->nqz", "an equation that does not fit"),
        ("nqd->nqd", "an equation that does not fit"),
        ("nq,nk->nqk", "3 dimensions for 2 labels"),
        ("nqd,nkd", "sums over the rows"),
        ("Nqd,Nkd", "an equation without a result, where onnxruntime does not order capital letters"),
        ("...d,...d->...", "an equation with an ellipsis"),
    ],
)
def test_letters_that_mix_rows_or_do_not_fit_are_refused(equation: str, reason: str) -> None:
    assert refusal(node("Einsum", "q", "k", equation=equation), q=rows(2, 4), k=rows(3, 4)) == reason


def test_a_diagonal_within_a_row_is_its_own() -> None:
    assert result(node("Einsum", "x", equation="nii->ni"), x=rows(3, 3)).shape == (N, 3)


def test_a_diagonal_over_rows_is_refused() -> None:
    assert refusal(node("Einsum", "x", equation="nn->n"), x=rows(3)) == "rows meet in different dimensions"


def test_without_a_result_letters_that_stand_once_are_in_alphabetical_order() -> None:
    product = result(node("Einsum", "x", "w", equation="bc,ca"), x=rows(4), w=weights(4, 3))
    assert (product.shape, product.axis) == ((3, N), 1)


def test_a_constant_along_the_rows_must_be_one() -> None:
    assert proved(node("Einsum", "x", "w", equation="nd,nd->n"), x=rows(4), w=weights(1, 4))
    assert not proved(node("Einsum", "x", "w", equation="nd,nd->n"), x=rows(4), w=weights(2, 4))


# ---- integers ---------------------------------------------------------------------------------------------------

BYTES = {"x": rows(4, dtype="uint8"), "w": weights(4, 3, dtype="uint8")}
ONE = {"s": constant([0.5]), "z": weights(1, dtype="uint8")}
COLUMNS = {"ws": weights(3), "wz": weights(3, dtype="uint8")}
MANY = {"many": weights(2), "manyz": weights(2, dtype="uint8")}


def test_an_integer_product_is_exact() -> None:
    verdict = proof(node("MatMulInteger", "x", "w", "z", "wz"), **BYTES, **ONE, wz=COLUMNS["wz"])
    assert (verdict.proved, verdict.rounding) == (True, "exact")
    assert result(node("MatMulInteger", "x", "w"), **BYTES).dtype == "int32"


@pytest.mark.parametrize(
    "inputs", ["x s z w ws wz s z", "x many z w ws wz s z", "x s manyz w ws wz s z", "x s z w ws wz many z"]
)
def test_only_weights_may_have_many_scales(inputs: str) -> None:
    taken = {name: {**BYTES, **ONE, **COLUMNS, **MANY}[name] for name in set(inputs.split())}
    assert proved(node("QLinearMatMul", *inputs.split()), **taken) == ("many" not in inputs)


def test_many_zero_points_of_rows_are_refused() -> None:
    assert not proved(node("MatMulInteger", "x", "w", "manyz"), **BYTES, manyz=MANY["manyz"])


def test_many_scales_of_rows_on_the_right_are_refused() -> None:
    both = {"x": rows(2, 4, dtype="uint8"), "k": rows(4, 3, dtype="uint8")}
    assert proved(node("MatMulInteger", "x", "k", "z", "z"), **both, z=ONE["z"])
    assert refusal(node("MatMulInteger", "x", "k", "z", "wz"), **both, z=ONE["z"], wz=COLUMNS["wz"]) == (
        "scales that may differ from row to row"
    )


@pytest.mark.parametrize(
    ("operator", "inputs"),
    [
        (microsoft("MatMulIntegerToFloat", "x", "w", "s", "s", "z", "z"), "s s z z"),
        (node("QLinearMatMul", "x", "s", "z", "w", "s", "z", "s", "z"), "s z s z s z"),
        (microsoft("QGemm", "x", "s", "z", "w", "s", "z", "", "s", "z"), "s z s z s z"),
        (node("MatMulInteger", "x", "w", "z", "z"), "z z"),
    ],
)
def test_no_scale_may_be_made_of_rows(operator: GraphNode, inputs: str) -> None:
    given = {name: {**BYTES, **ONE}[name] for name in operator.inputs if name}
    assert proved(operator, **given)
    for index, name in enumerate(operator.inputs):
        if name in inputs.split():
            changed = (*operator.inputs[:index], "r", *operator.inputs[index + 1 :])
            scales = rows(3, dtype="float32" if name == "s" else "uint8")
            assert not proved(dataclasses.replace(operator, inputs=changed), **given, r=scales)


def test_noise_before_a_quantised_product_moves_it_by_steps() -> None:
    nodes = (
        node("MatMul", "x", "v", to="sums"),
        node("QuantizeLinear", "sums", "s", "z", to="bytes"),
        node("QLinearMatMul", "bytes", "s", "z", "w", "s", "z", "s", "z"),
    )
    settings = {"x": rows(4), "v": weights(4, 4), "w": BYTES["w"], **ONE}
    assert proof(*nodes, **settings).rounding == "steps"


def test_a_quantised_gemm_is_of_integers_until_it_is_scaled() -> None:
    inputs = ("x", "s", "z", "w", "s", "z", "b")
    settings = {**BYTES, **ONE, "b": weights(3, dtype="int32")}
    assert result(microsoft("QGemm", *inputs), **settings).dtype == "float32"
    assert proof(microsoft("QGemm", *inputs), **settings).rounding == "rounding"
    assert result(microsoft("QGemm", *inputs, "s", "z"), **settings).dtype == "uint8"
    assert proof(microsoft("QGemm", *inputs, "s", "z"), **settings).rounding == "exact"
    assert not proved(microsoft("QGemm", *inputs), **{**settings, "b": weights(2, 3, dtype="int32")})
    assert not proved(microsoft("QGemm", "x", "many", *inputs[2:]), **{**settings, "many": weights(2)})


def test_packed_weights_multiply_rows_of_their_length() -> None:
    packed = {"w": weights(3, 1, 16, dtype="uint8"), "s": weights(3)}
    settings = {"K": 32, "N": 3, "bits": 4, "block_size": 32}
    assert result(microsoft("MatMulNBits", "x", "w", "s", **settings), x=rows(2, 32), **packed).shape == (N, 2, 3)
    assert not proved(microsoft("MatMulNBits", "x", "w", "s", **settings), x=rows(None), **packed)
    assert not proved(microsoft("MatMulNBits", "x", "w", "s", **settings), x=rows(32), w=packed["w"], s=rows())


def test_weights_that_round_rows_to_bytes_move_noise_by_steps() -> None:
    def rounding(level: int) -> str:
        settings = {"K": 32, "N": 3, "bits": 4, "block_size": 32, "accuracy_level": level}
        nodes = (node("MatMul", "x", "v", to="sums"), microsoft("MatMulNBits", "sums", "w", "s", **settings))
        return proof(*nodes, x=rows(4), v=weights(4, 32), w=weights(3, 1, 16, dtype="uint8"), s=weights(3)).rounding

    assert (rounding(0), rounding(4)) == ("rounding", "steps")


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_weights_of_few_bits_round_what_they_are_multiplied_by(operator: str) -> None:
    weight = node("DequantizeLinear", "w", "scale", to="d")
    settings = {"x": rows(4), "w": weights(4, 4, dtype="int8"), "scale": constant(0.1), "v": weights(4, 4)}
    assert proof(weight, node(operator, "x", "d"), **settings).rounding == "rounding"
    assert proof(weight, node("MatMul", "x", "v", to="z"), node(operator, "z", "d"), **settings).rounding == "steps"
    turned = node("Transpose", "d", to="t", perm=(1, 0))
    nodes = (weight, turned, node("MatMul", "x", "v", to="z"), node(operator, "z", "t"))
    assert proof(*nodes, **settings).rounding == "steps"
