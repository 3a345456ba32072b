"""Windows over images: rows must be dimension 0, kernels constants, and sizes those that come out."""

from __future__ import annotations

import numpy as np
import pytest
from graph_builder import constant, microsoft, node, proof, proved, refusal, result, rows, weights

from cortex.rows.sizes import NUMBER_OF_ROWS as N
from cortex.rows.sizes import Dim
from cortex.wire.graphs import Attribute, GraphInput, GraphNode

TURN = node("Transpose", "x", to="t", perm=(1, 0, 2, 3))
"""Rows in dimension 1."""
ONE = {"s": constant(0.5), "z": constant(np.uint8(3))}
BYTES = rows(3, 8, 8, dtype="uint8")


def sizes(operator: GraphNode, *trailing: int | None, w: tuple[int, ...] = (5, 3, 3, 3)) -> tuple[Dim, ...]:
    return result(operator, x=rows(*trailing), w=weights(*w)).known_shape[1:]


def windows(**attributes: Attribute) -> GraphNode:
    return node("Conv", "x", "w", **attributes)


# ---- convolutions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "height"),
    [
        ({}, 6),
        ({"kernel_shape": (3, 3)}, 6),
        ({"pads": (1, 1, 1, 1)}, 8),
        ({"pads": (2, 1, 1, 1)}, 9),
        ({"strides": (2, 2)}, 3),
        ({"dilations": (2, 2)}, 4),
        ({"auto_pad": "SAME_UPPER"}, 8),
        ({"auto_pad": "SAME_LOWER", "strides": (3, 3)}, 3),
        ({"auto_pad": "VALID", "strides": (2, 2)}, 3),
    ],
)
def test_windows_have_as_many_places_as_fit(attributes: dict[str, Attribute], height: int) -> None:
    assert sizes(windows(**attributes), 3, 8, 8)[:2] == (5, height)


def test_windows_that_fit_exactly_leave_a_free_size_as_it_is() -> None:
    convolved = result(windows(pads=(1, 1, 1, 1)), node("Concat", "y", "x", to="z", axis=1), x=rows(3, None, None),
                       w=weights(5, 3, 3, 3), outputs="z")  # fmt: skip
    assert convolved.known_shape[1] == 8


def test_the_same_windows_of_the_same_size_have_as_many_places() -> None:
    twice = (windows(to="a", strides=(2, 2)), windows(to="b", strides=(2, 2)), node("MatMul", "a", "b"))
    first = result(*twice[:2], outputs="a", x=rows(3, None, None), w=weights(5, 3, 3, 3))
    second = result(*twice[:2], outputs="b", x=rows(3, None, None), w=weights(5, 3, 3, 3))
    assert first == second


def test_a_dilated_window_with_automatic_padding_is_of_a_size_that_is_not_known() -> None:
    assert not isinstance(sizes(windows(auto_pad="SAME_UPPER", dilations=(2, 2)), 3, 8, 8)[1], int)


def test_sizes_that_onnxruntime_divides_inexactly_are_not_known() -> None:
    assert not isinstance(sizes(windows(strides=(3,)), 3, 2**24, w=(5, 3, 3))[1], int)


def test_channels_or_signals_are_no_rows() -> None:
    assert refusal(TURN, node("Conv", "t", "w"), x=rows(4, 8, 8), w=weights(5, 4, 3, 3)) == (
        "rows are dimension 1, not 0"
    )


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_kernels_and_biases_are_constants(operator: str) -> None:
    given = {"x": rows(3, 8, 8), "w": weights(3, 3, 3, 3), "b": weights(3)}
    assert proved(node(operator, "x", "w", "b"), **given)
    assert not proved(node(operator, "x", "w", "b"), **{**given, "w": rows(3, 3, 3)})
    assert not proved(node(operator, "x", "w", "b"), **{**given, "b": rows()})
    turned = node("Transpose", "k", to="w", perm=(1, 0, 2, 3))
    assert not proved(turned, node(operator, "x", "w"), x=rows(3, 8, 8), k=rows(3, 3, 3))


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_kernels_of_another_rank_are_refused(operator: str) -> None:
    assert refusal(node(operator, "x", "w"), x=rows(3, 8, 8), w=weights(3, 3, 3)) == "kernels of another rank"


def test_a_matrix_is_no_image() -> None:
    assert refusal(node("Conv", "x", "w"), x=rows(3), w=weights(3, 3)) == (
        "it has no dimensions besides rows and channels"
    )


def test_an_added_value_has_to_be_of_the_same_rows_and_shape() -> None:
    given = {"x": rows(3, 8, 8), "w": weights(5, 3, 3, 3), "b": weights(5)}
    added = microsoft("FusedConv", "x", "w", "b", "z", activation="Relu")
    assert proved(microsoft("FusedConv", "x", "w", "b", activation="Relu"), **given)
    assert proved(added, **given, z=rows(5, 6, 6))
    assert not proved(added, **given, z=rows(5, 6, None))
    assert not proved(added, **given, z=weights(1, 5, 6, 6))
    assert not proved(added, **{**given, "b": rows()}, z=rows(5, 6, 6))


MOVED = node("DeformConv", "x", "w", "o", "b", "m")
MOVES = {"x": rows(4, 8, 8), "w": weights(5, 4, 3, 3), "o": rows(18, 6, 6), "b": weights(5), "m": rows(9, 6, 6)}


def test_each_row_moves_its_own_windows() -> None:
    assert result(MOVED, **MOVES).shape == (N, 5, 6, 6)
    grouped = node("DeformConv", "x", "w", "o", offset_group=2)
    assert proved(grouped, x=MOVES["x"], w=MOVES["w"], o=rows(36, 6, 6))


@pytest.mark.parametrize(
    "changed",
    [
        {"o": rows(16, 6, 6)},
        {"o": rows(18, 6, 5)},
        {"o": rows(18, 36)},
        {"o": weights(1, 18, 6, 6)},
        {"m": rows(8, 6, 6)},
        {"m": weights(1, 9, 6, 6)},
        {"x": weights(1, 4, 8, 8)},
        {"b": rows()},
    ],
)
def test_windows_that_are_moved_elsewhere_are_refused(changed: dict[str, GraphInput]) -> None:
    assert not proved(MOVED, **{**MOVES, **changed})


def test_moves_in_another_order_are_refused() -> None:
    nodes = (
        node("Transpose", "o", to="t", perm=(1, 0, 2, 3, 4)),
        node("Reshape", "t", "moves", to="flat"),
        node("Reshape", "x", "images", to="all"),
        node("DeformConv", "all", "w", "flat"),
    )
    shapes = {"moves": [-1, 18, 6, 6], "images": [-1, 4, 8, 8]}
    assert refusal(*nodes, x=rows(7, 4, 8, 8), o=rows(7, 18, 6, 6), w=MOVES["w"], **shapes) == (
        "images and what moves windows are not of the same rows"
    )


def test_integer_windows_are_exact_and_quantised_ones_round_to_a_grid() -> None:
    kernels = {"w": weights(5, 3, 3, 3, dtype="uint8")}
    verdict = proof(node("ConvInteger", "x", "w", "z", "z"), x=BYTES, z=ONE["z"], **kernels)
    assert (verdict.proved, verdict.rounding) == (True, "exact")
    quantised = node("QLinearConv", "x", "s", "z", "w", "s", "z", "s", "z")
    assert proof(quantised, x=BYTES, **ONE, **kernels).rounding == "exact"
    rounded = (node("Exp", "f", to="e"), node("QuantizeLinear", "e", "s", "z", to="x"), quantised)
    assert proof(*rounded, f=rows(3, 8, 8), **ONE, **kernels).rounding == "steps"


@pytest.mark.parametrize(
    "operator",
    [
        node("ConvInteger", "x", "w", "r"),
        node("QLinearConv", "x", "r", "z", "w", "s", "z", "s", "z"),
        microsoft("QLinearAveragePool", "x", "r", "z", "s", "z", kernel_shape=(2, 2)),
    ],
)
def test_scales_are_constants(operator: GraphNode) -> None:
    taken = {"w": weights(5, 3, 3, 3, dtype="uint8"), **ONE}
    settings = {name: taken[name] for name in operator.inputs if name in taken}
    scale = rows(dtype="uint8" if operator.operator == "ConvInteger" else "float32")
    assert not proved(operator, x=BYTES, r=scale, **settings)


@pytest.mark.parametrize(
    ("attributes", "height"),
    [
        ({}, 10),
        ({"strides": (2, 2)}, 17),
        ({"strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)}, 16),
        ({"dilations": (2, 2)}, 12),
        ({"auto_pad": "VALID"}, 10),
    ],
)
def test_spread_elements_take_as_much_room(attributes: dict[str, Attribute], height: int) -> None:
    transposed = node("ConvTranspose", "x", "w", **attributes)
    assert sizes(transposed, 3, 8, 8, w=(3, 5, 3, 3))[:2] == (5, height)


@pytest.mark.parametrize("attributes", [{"output_shape": (9, 9)}, {"auto_pad": "SAME_UPPER", "strides": (2, 2)}])
def test_spread_elements_whose_room_versions_see_in_other_ways_are_of_a_size_that_is_not_known(
    attributes: dict[str, Attribute],
) -> None:
    transposed = node("ConvTranspose", "x", "w", **attributes)
    assert not isinstance(sizes(transposed, 3, 8, 8, w=(3, 5, 3, 3))[1], int)


def test_groups_of_spread_channels_multiply() -> None:
    assert sizes(node("ConvTranspose", "x", "w", group=2), 4, 8, 8, w=(4, 5, 3, 3))[0] == 10


# ---- pools ------------------------------------------------------------------------------------------------------

POOLS = ["MaxPool", "AveragePool", "LpPool"]
WHOLE = ["GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"]


@pytest.mark.parametrize("operator", POOLS)
@pytest.mark.parametrize(
    ("attributes", "height"),
    [
        ({}, 7),
        ({"strides": (2, 2)}, 4),
        ({"strides": (2, 2), "pads": (1, 1, 1, 1)}, 5),
        ({"strides": (3, 3), "ceil_mode": 1}, 3),
        ({"strides": (2, 2), "ceil_mode": 1}, 4),
        ({"auto_pad": "SAME_UPPER", "strides": (3, 3)}, 3),
    ],
)
def test_pools_have_as_many_places_as_fit(operator: str, attributes: dict[str, Attribute], height: int) -> None:
    pooled = result(node(operator, "x", kernel_shape=(2, 2), **attributes), x=rows(3, 8, 8))
    assert (pooled.known_shape[:3], pooled.axis) == ((N, 3, height), 0)


def test_a_window_that_would_begin_in_the_padding_makes_a_size_that_is_not_known() -> None:
    pooled = result(node("MaxPool", "x", kernel_shape=(2,), strides=(3,), pads=(0, 1), ceil_mode=1), x=rows(3, 6))
    assert not isinstance(pooled.known_shape[2], int)


@pytest.mark.parametrize("operator", POOLS)
def test_rows_may_be_the_channels_of_a_pool(operator: str) -> None:
    pooled = result(TURN, node(operator, "t", kernel_shape=(2, 2)), x=rows(3, 8, 8))
    assert (pooled.shape, pooled.axis) == ((3, N, 7, 7), 1)


@pytest.mark.parametrize("operator", WHOLE)
def test_a_pool_over_all_leaves_1(operator: str) -> None:
    pooled = result(TURN, node(operator, "t"), x=rows(3, None, 8))
    assert (pooled.shape, pooled.axis) == ((3, N, 1, 1), 1)


@pytest.mark.parametrize(
    "pool", [*(node(name, "t", kernel_shape=(2, 2)) for name in POOLS), *(node(name, "t") for name in WHOLE)]
)
def test_rows_are_not_pooled(pool: GraphNode) -> None:
    turn = node("Transpose", "x", to="t", perm=(1, 2, 0, 3))
    assert refusal(turn, pool, x=rows(3, 8, 8)) == "pools over the rows"


@pytest.mark.parametrize(
    "pool", [*(node(name, "x", kernel_shape=(2, 2)) for name in POOLS), *(node(name, "x") for name in WHOLE)]
)
def test_pools_of_floats_round_and_those_of_integers_do_not(pool: GraphNode) -> None:
    assert proof(pool, x=rows(3, 8, 8)).rounding == "rounding"
    assert proof(pool, x=rows(3, 8, 8, dtype="int8")).rounding == "exact"


def test_a_pool_s_indices_count_over_the_whole_tensor() -> None:
    pool = node("MaxPool", "x", to="y i", kernel_shape=(2, 2))
    assert proved(pool, x=rows(3, 8, 8))
    assert refusal(pool, outputs="i", x=rows(3, 8, 8)) == "its indices count over the whole tensor"


@pytest.mark.parametrize("operator", ["MaxPool", "GlobalMaxPool"])
def test_a_matrix_is_not_pooled(operator: str) -> None:
    assert refusal(node(operator, "x", kernel_shape=()), x=rows(3)) == "it has no dimensions besides rows and channels"


def test_a_window_of_another_rank_is_refused() -> None:
    assert refusal(node("MaxPool", "x", kernel_shape=(2,)), x=rows(3, 8, 8)) == "a window of another rank"


def test_pools_of_bytes_know_their_channels_in_dimension_1_only() -> None:
    inputs = ("x", "s", "z", "s", "z")
    assert proved(microsoft("QLinearGlobalAveragePool", *inputs), x=BYTES, **ONE)
    assert proved(microsoft("QLinearAveragePool", *inputs, kernel_shape=(2, 2)), x=BYTES, **ONE)
    assert not proved(microsoft("QLinearGlobalAveragePool", *inputs, channels_last=1), x=BYTES, **ONE)


# ---- normalisation ----------------------------------------------------------------------------------------------

STATISTICS = {"c": weights(3)}
NORMALISED = node("BatchNormalization", "x", "c", "c", "c", "c")


def test_constants_of_each_channel_normalise_a_row_alone() -> None:
    assert proof(NORMALISED, x=rows(3, 8, 8), **STATISTICS).rounding == "rounding"
    assert proved(NORMALISED, x=rows(3), **STATISTICS)


def test_statistics_of_the_batch_are_refused() -> None:
    training = node("BatchNormalization", *NORMALISED.inputs, training_mode=1)
    older = node("BatchNormalization", *NORMALISED.inputs, to="y m v sm sv")
    for each, opset in ((training, 15), (older, 9)):
        assert refusal(each, x=rows(3, 8, 8), **STATISTICS, opsets={"": opset}) == (
            "normalises over the batch, as in training"
        )
    assert not proved(NORMALISED, x=rows(3, 8, 8), **STATISTICS, opsets={"": 6})


def test_rows_are_no_channels_to_normalise() -> None:
    turned = node("BatchNormalization", "t", "c", "c", "c", "c")
    assert refusal(TURN, turned, x=rows(3, 8, 8), **STATISTICS) == "rows are the channels"
    assert refusal(NORMALISED, x=rows(), **STATISTICS) == "rows are the channels"
    last = node("Transpose", "x", to="t", perm=(1, 2, 0))
    assert result(last, turned, x=rows(2, 3), c=weights(3)).axis == 2


def test_constants_of_each_element_are_refused() -> None:
    each = node("BatchNormalization", *NORMALISED.inputs, spatial=0)
    assert refusal(each, x=rows(3, 8), c=weights(3, 8), opsets={"": 7}) == "constants of each element"


@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_constants_of_each_channel_are_not_made_of_rows(index: int) -> None:
    inputs = [*NORMALISED.inputs[:index], "r", *NORMALISED.inputs[index + 1 :]]
    assert not proved(node("BatchNormalization", *inputs), x=rows(3, 8), r=rows(), **STATISTICS)


@pytest.mark.parametrize(
    "operator",
    [
        node("InstanceNormalization", "x", "c", "c"),
        node("GroupNormalization", "x", "c", "c", num_groups=3),
        node("LRN", "x", size=3),
    ],
)
def test_each_image_is_normalised_by_itself(operator: GraphNode) -> None:
    settings = STATISTICS if "c" in operator.inputs else {}
    assert proof(operator, x=rows(3, 8, 8), **settings).rounding == "rounding"
    turned = GraphNode(operator.operator, ("t", *operator.inputs[1:]), ("y",), operator.attributes)
    assert refusal(TURN, turned, x=rows(3, 8, 8), **settings) == "rows are dimension 1, not 0"
    if settings:
        made = GraphNode(operator.operator, ("x", "r", "c"), ("y",), operator.attributes)
        assert not proved(made, x=rows(3, 8, 8), r=rows(), **settings)


# ---- other grids of pixels --------------------------------------------------------------------------------------


def test_depth_goes_into_space_and_back() -> None:
    assert sizes(node("DepthToSpace", "x", blocksize=2), 8, 3, None)[:2] == (2, 6)
    assert sizes(node("SpaceToDepth", "x", blocksize=2), 2, 6, 4) == (8, 3, 2)
    assert not isinstance(sizes(node("SpaceToDepth", "x", blocksize=2), 2, None, 4)[1], int)


@pytest.mark.parametrize("operator", ["DepthToSpace", "SpaceToDepth"])
def test_depth_of_rows_is_refused(operator: str) -> None:
    assert refusal(TURN, node(operator, "t", blocksize=2), x=rows(4, 4, 4)) == "rows are dimension 1, not 0"
    assert refusal(node(operator, "x", blocksize=2), x=rows(4, 4)) == "no images"


def test_each_row_s_grid_samples_its_own_image() -> None:
    sampled = result(node("GridSample", "x", "g"), x=rows(3, 8, 8), g=rows(5, 6, 2))
    assert sampled.shape == (N, 3, 5, 6)


@pytest.mark.parametrize(
    ("x", "grid"),
    [
        (rows(3, 8, 8), weights(1, 5, 6, 2)),
        (weights(1, 3, 8, 8), rows(5, 6, 2)),
        (rows(3, 8, 8), rows(5, 6, 3)),
        (rows(3, 8, 8), rows(5, 2)),
    ],
)
def test_a_grid_of_another_image_or_rank_is_refused(x: GraphInput, grid: GraphInput) -> None:
    assert not proved(node("GridSample", "x", "g"), x=x, g=grid)


def test_a_grid_whose_coordinates_requests_choose_is_supposed_to_fit() -> None:
    (condition,) = proof(node("GridSample", "x", "g"), x=rows(3, 8, 8), g=rows(5, 6, None)).sizes
    assert (condition.input, condition.axis, condition.size) == ("g", 3, 2)


def test_images_and_grids_of_another_order_are_refused() -> None:
    nodes = (
        node("Transpose", "g", to="t", perm=(1, 0, 2, 3, 4)),
        node("Reshape", "t", "flat", to="grids"),
        node("Reshape", "x", "images_of", to="images"),
        node("GridSample", "images", "grids"),
    )
    shapes = {"flat": [-1, 5, 6, 2], "images_of": [-1, 3, 8, 8]}
    assert refusal(*nodes, x=rows(4, 3, 8, 8), g=rows(4, 5, 6, 2), **shapes) == (
        "images and grids are not of the same rows"
    )


def test_reflections_may_reach_another_row() -> None:
    for mode, reaches in (("border", False), ("reflection", True)):
        sampling = node("GridSample", "x", "g", padding_mode=mode)
        assert proved(sampling, x=rows(3, 8, 8), g=rows(5, 6, 2)) is not reaches


def test_the_nearest_pixel_may_be_another_after_rounding() -> None:
    def rounding(mode: str) -> str:
        nodes = (node("Tanh", "g", to="grid"), node("GridSample", "x", "grid", mode=mode))
        return proof(*nodes, x=rows(3, 8, 8), g=rows(5, 6, 2)).rounding

    assert (rounding("linear"), rounding("nearest")) == ("rounding", "steps")


SIZE_OF_X = (
    node("Shape", "x", to="shape"),
    node("Gather", "shape", "zero", to="count"),
    node("Concat", "count", "rest", to="size", axis=0),
)
WHERE = {"zero": [0], "rest": [3, 5, 6]}


def test_a_grid_is_made_of_each_row_s_matrix() -> None:
    grid = result(*SIZE_OF_X, node("AffineGrid", "x", "size"), x=rows(2, 3), **WHERE)
    assert grid.shape == (N, 5, 6, 2)
    solid = {**WHERE, "rest": [3, 5, 6, 7]}
    assert result(*SIZE_OF_X, node("AffineGrid", "x", "size"), x=rows(3, 4), **solid).shape == (N, 5, 6, 7, 3)


@pytest.mark.parametrize(
    ("trailing", "size", "reason"),
    [
        ((3, 4), "size", "matrices of another size"),
        ((2, 4), "size", "matrices of another size"),
        ((2,), "size", "matrices of another size"),
        ((2, 3), "fixed", "not as many grids as rows"),
    ],
)
def test_grids_of_another_number_or_of_other_matrices_are_refused(
    trailing: tuple[int, ...], size: str, reason: str
) -> None:
    nodes = (*SIZE_OF_X, node("AffineGrid", "x", size))
    assert refusal(*nodes, x=rows(*trailing), fixed=[1, 3, 5, 6], **WHERE) == reason


def test_a_matrix_that_requests_choose_is_supposed_to_fit() -> None:
    verdict = proof(*SIZE_OF_X, node("AffineGrid", "x", "size"), x=rows(2, None), **WHERE)
    assert [(condition.axis, condition.size) for condition in verdict.sizes] == [(2, 3)]


# ---- resizing ---------------------------------------------------------------------------------------------------


def resized(*inputs: str, **attributes: Attribute) -> GraphNode:
    return node("Resize", "x", *inputs, **attributes)


SCALES = {"scales": constant([1.0, 1.0, 2.0, 0.5])}


def test_scales_leave_rows_and_stretch_the_rest() -> None:
    assert result(resized("", "scales"), x=rows(3, 8, 8), **SCALES).shape == (N, 3, 16, 4)
    shape = result(resized("", "scales"), x=rows(3, None, 7), **SCALES).known_shape
    assert str(shape[2]).startswith("2*")
    assert not isinstance(shape[3], int)


def test_older_resizing_has_its_scales_second_or_as_an_attribute() -> None:
    settings = {"x": rows(3, 8, 8)}
    assert result(node("Resize", "x", "scales"), **settings, **SCALES, opsets={"": 10}).shape == (N, 3, 16, 4)
    larger = {"scales": constant([1.0, 1.0, 2.0, 3.0])}
    assert result(node("Upsample", "x", "scales"), **settings, **larger, opsets={"": 9}).shape == (N, 3, 16, 24)
    attribute = node("Upsample", "x", scales=(1.0, 1.0, 2.0, 2.0))
    assert result(attribute, **settings, opsets={"": 7}).shape == (N, 3, 16, 16)
    assert not proved(attribute, **settings, opsets={"": 10})


def test_scales_must_leave_the_rows() -> None:
    assert refusal(resized("", "scales"), x=rows(3, 8, 8), scales=constant([2.0, 1.0, 1.0, 1.0])) == (
        "resizes along the rows"
    )


@pytest.mark.parametrize(
    ("scales", "reason"),
    [
        (constant([1.0, 1.0]), "another number of scales than dimensions"),
        (weights(4), "its scales is not known"),
        (constant(["1", "1", "1", "1"]), "its scales are no numbers"),
    ],
)
def test_scales_that_are_not_known_are_refused(scales: object, reason: str) -> None:
    assert refusal(resized("", "scales"), x=rows(3, 8, 8), scales=scales) == reason


def test_sizes_may_count_the_rows_where_they_are() -> None:
    nodes = (*SIZE_OF_X, resized("", "", "size"))
    assert result(*nodes, x=rows(3, 8, 8), **WHERE).shape == (N, 3, 5, 6)
    assert refusal(resized("", "", "fixed"), x=rows(3, 8, 8), fixed=[4, 3, 5, 6]) == "resizes along the rows"
    assert refusal(resized("", "", "fixed"), x=rows(3, 8, 8), fixed=[4, 3]) == "another number of sizes than dimensions"


def test_sizes_do_not_count_the_rows_elsewhere() -> None:
    twice = node("Concat", "count", "c3", "count", "c3", to="size", axis=0)
    verdict = refusal(*SIZE_OF_X[:2], twice, resized("", "", "size"), x=rows(3, 8, 8), zero=[0], c3=[3])
    assert verdict == "the number of rows used as data"


def test_a_constant_is_not_resized_to_the_number_of_rows() -> None:
    twice = node("Concat", "count", "c3", to="size", axis=0)
    filled = (*SIZE_OF_X[:2], twice, node("Resize", "c", "", "", "size", to="r"), node("Add", "x", "r"))
    assert not proved(*filled, x=rows(3), c=weights(1, 3), zero=[0], c3=[3])


def test_chosen_dimensions_are_resized_alone() -> None:
    chosen = {"axes": (-1, -2)}
    assert result(resized("", "", "s", **chosen), x=rows(3, 8, 8), s=[5, 6]).shape == (N, 3, 6, 5)
    kept = resized("", "", "s", **chosen, keep_aspect_ratio_policy="not_larger")
    assert not isinstance(result(kept, x=rows(3, 8, 8), s=[5, 6]).known_shape[2], int)


def test_one_scale_for_all_sizes_is_one_for_the_rows() -> None:
    nodes = (*SIZE_OF_X, resized("", "", "size", keep_aspect_ratio_policy="not_larger"))
    assert refusal(*nodes, x=rows(3, 8, 8), **WHERE) == "resizes along the rows"


def test_crops_are_refused() -> None:
    crop = resized("roi", "scales", coordinate_transformation_mode="tf_crop_and_resize")
    assert refusal(crop, x=rows(3, 8, 8), roi=weights(8), **SCALES) == "crops"


def test_only_the_nearest_pixel_is_exact() -> None:
    assert proof(resized("", "scales"), x=rows(3, 8, 8), **SCALES).rounding == "exact"
    assert proof(resized("", "scales", mode="linear"), x=rows(3, 8, 8), **SCALES).rounding == "rounding"


def test_rows_that_may_be_taken_for_an_image_s_height_are_refused() -> None:
    scales = {"scales": constant([1.0, 2.0, 2.0])}
    assert proved(resized("", "scales"), x=rows(8, 8), **scales)
    assert refusal(resized("", "scales", mode="linear"), x=rows(8, 8), **scales) == (
        "may take rows for the height of an image"
    )
    turned = node("Resize", "t", "", "scales", mode="cubic")
    assert not proved(
        TURN, turned, node("Transpose", "y", to="z", perm=(1, 0, 2, 3)), outputs="z", x=rows(3, 8, 8), **SCALES
    )


def test_a_number_of_rows_is_not_resized() -> None:
    verdict = refusal(node("Shape", "x", to="shape"), node("Resize", "shape", "", "", "size"), x=rows(3), size=[2])
    assert verdict == "the number of rows used as data"


def test_a_size_is_scaled_as_floats_of_32_bits_do_it() -> None:
    """They hold what is at most 2^24, and each power of two times that."""

    def longest(*scales: float) -> list[int | None]:
        resized = node("Resize", "x", "", "scales", mode="nearest")
        found = proof(resized, x=rows(1, 1, None), scales=list(scales))
        assert found.proved
        return [one.at_most for one in found.sizes]

    assert longest(1.0, 1.0, 1.0, 2.0) == []
    assert longest(1.0, 1.0, 1.0, 3.0) == [2**24 // 3]
