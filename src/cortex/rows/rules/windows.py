"""Convolutions, pools, resizing, normalisation of images: rows are dimension 0, and each is worked on by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cortex.rows.refusal import refuse
from cortex.rows.rules.elementwise import EXACT_TO
from cortex.rows.rules.registry import (
    COUNTED,
    Op,
    Rounds,
    axis_of,
    dims_of,
    elements_of,
    like,
    must_be_constant,
    must_have_rows_first,
    rule,
)
from cortex.rows.sizes import LONGEST, Dim, Term, counts_rows, divided, equal, magnitude, product, suppose_within, times
from cortex.rows.values import Element, Grade, Value, mixed

_MICROSOFT: Final = "com.microsoft"

_LARGEST: Final = 2**23
"""onnxruntime divides sizes as floats; up to here that is exact."""


def _images(value: Value) -> Value:
    """
    The value, if it is images or signals, one or more of each row, or constants.

    Raises:
        NotProved: it has no dimensions besides rows and channels, or its rows are not dimension 0.
    """
    if value.rank < 3:
        refuse("it has no dimensions besides rows and channels")
    if not value.is_uniform:
        must_have_rows_first(value)
    return value


# ---- sizes of what windows make ----------------------------------------------------------------------------------


class _Window:
    """What a window's attributes say about one dimension."""

    def __init__(self, call: Op, kernel: Sequence[Dim], index: int) -> None:
        count = len(kernel)
        self.kernel = kernel[index]
        self.stride = call.integers("strides", [1] * count)[index]
        self.dilation = call.integers("dilations", [1] * count)[index]
        self.padding = call.text("auto_pad", "NOTSET")
        pads = call.integers("pads", [0] * 2 * count) if self.padding == "NOTSET" else [0] * 2 * count
        self.pads = pads[index] + pads[index + count]
        self.ceil = bool(call.integer("ceil_mode", 0))

    @property
    def key(self) -> tuple[object, ...]:
        return (self.kernel, self.stride, self.dilation, self.padding, self.pads, self.ceil)

    def places(self, call: Op, size: Dim) -> Dim:
        """How many places the window has in a dimension of this size; nobody serves a model for images of none."""
        found: Dim | None = None
        if self.padding.startswith("SAME"):
            found = self._same(size) if self.dilation == 1 else None
        elif isinstance(self.kernel, int):
            found = self._fitting(size, self.pads - self.dilation * (self.kernel - 1))
        if found is not None:
            return found
        most = _sum_of_magnitudes(size, self.pads)
        return call.formula("places of a window", size, *self.key, least=1, most=most)

    def _same(self, size: Dim) -> Dim | None:
        if self.stride == 1:
            return size if _is_exact(size) else None
        return -(-size // self.stride) if isinstance(size, int) and size < _LARGEST else None

    def _fitting(self, size: Dim, room: int) -> Dim | None:
        """None also where versions of onnxruntime differ: in whether a window may begin in the padding at the end."""
        if self.stride == 1 and room == 0:
            return size if _is_exact(size) else None
        if not isinstance(size, int) or not 0 < size + room < _LARGEST:
            return None
        steps = size + room - 1
        if not self.ceil or steps % self.stride == 0:
            return steps // self.stride + 1
        last = -(-steps // self.stride) * self.stride
        return last // self.stride + 1 if last < size else None

    def spread(self, call: Op, size: Dim, padding: int) -> Dim:
        """How long a dimension of this size becomes when each element is spread over a window."""
        if isinstance(size, int) and isinstance(self.kernel, int) and self.padding in ("NOTSET", "VALID"):
            return (size - 1) * self.stride + padding + (self.kernel - 1) * self.dilation + 1 - self.pads
        spread = times(size, self.stride)
        most = None
        if isinstance(self.kernel, int):
            most = _sum_of_magnitudes(spread, padding, self.kernel * self.dilation, self.pads)
        return call.formula("spread over windows", size, padding, *self.key, least=1, most=most)


def _is_exact(size: Dim) -> bool:
    """Whether a float of 32 bits holds a size as it is."""
    most = magnitude(size)
    return most is not None and most <= EXACT_TO["float32"]


def _sum_of_magnitudes(*sizes: Dim) -> int | None:
    """What the sum of sizes is at most; None where it may be as long as any dimension."""
    found = [magnitude(size) for size in sizes]
    total = sum(LONGEST if one is None else one for one in found)
    return total if total < LONGEST else None


# ---- convolutions ------------------------------------------------------------------------------------------------


def _kernel(call: Op, kernels: Value) -> list[Dim]:
    shape = call.optional_integers("kernel_shape")
    return list(shape) if shape is not None else list(kernels.known_shape[2:])


def _convolved(call: Op, images: Value, kernels: Value) -> Value:
    """Images through kernels that do not depend on rows; all other inputs are checked by the caller."""
    _images(images)
    must_be_constant(kernels)
    kernel = _kernel(call, kernels)
    if not images.rank == kernels.rank == len(kernel) + 2:
        refuse("kernels of another rank")
    places = [_Window(call, kernel, index).places(call, size) for index, size in enumerate(images.known_shape[2:])]
    return like(images, [images.known_shape[0], kernels.known_shape[0], *places], 0)


@rule("Conv", rounds=Rounds.SUMS)
def conv(call: Op) -> Value:
    must_be_constant(call.optional(2))
    return _convolved(call, call.x, call.value(1))


@rule("FusedConv", domain=_MICROSOFT, rounds=Rounds.SUMS)
def fused_conv(call: Op) -> Value:
    """A convolution, a sum with what has the same shape, and an activation."""
    must_be_constant(call.optional(2))
    result, added = _convolved(call, call.x, call.value(1)), call.optional(3)
    if added is not None and (added.shape, added.axis, added.layout) != (result.shape, result.axis, result.layout):
        refuse("adds a value that is not provably of the same shape")
    return result


@rule("ConvInteger", since=10)
def conv_integer(call: Op) -> Value:
    must_be_constant(*call.inputs[2:])
    return _convolved(call, call.x, call.value(1)).typed("int32")


@rule("QLinearConv", rounds=Rounds.STEPS, since=10)
def q_linear_conv(call: Op) -> Value:
    must_be_constant(*call.inputs[1:])
    return _convolved(call, call.x, call.value(3)).typed(call.value(7).dtype)


@rule("DeformConv", rounds=Rounds.SUMS, since=19)
def deform_conv(call: Op) -> Value:
    """A convolution whose windows each row moves and masks by itself."""
    images, kernels, moves, mask = call.value(0), call.value(1), call.value(2), call.optional(4)
    must_be_constant(call.optional(3))
    result = _convolved(call, images, kernels)
    points = times(product(kernels.known_shape[2:]), call.integer("offset_group", 1))
    for value, channels in ((moves, times(points, 2)), (mask, points)):
        if value is None:
            continue
        if not images.is_rows or not value.is_rows or value.axis != 0 or value.layout != images.layout:
            refuse("images and what moves windows are not of the same rows")
        wanted = (channels, *result.known_shape[2:])
        if value.rank != result.rank or not all(map(equal, value.known_shape[1:], wanted)):
            refuse("windows are moved at other places than they have")
    return result


@rule("ConvTranspose", rounds=Rounds.SUMS)
def conv_transpose(call: Op) -> Value:
    images, kernels = _images(call.x), call.value(1)
    must_be_constant(*call.inputs[1:])
    kernel = _kernel(call, kernels)
    if not images.rank == kernels.rank == len(kernel) + 2:
        refuse("kernels of another rank")
    padding = call.integers("output_padding", [0] * len(kernel))
    sizes = [
        call.fresh()  # as the attribute says, which versions read in other ways
        if call.has("output_shape")
        else _Window(call, kernel, index).spread(call, size, padding[index])
        for index, size in enumerate(images.known_shape[2:])
    ]
    channels = times(kernels.known_shape[1], call.integer("group", 1))
    return like(images, [images.known_shape[0], channels, *sizes], 0)


# ---- pools -------------------------------------------------------------------------------------------------------


def _channels(value: Value) -> Value:
    """
    The value, if pooling it keeps to each row: rows may be its channels, too.

    Raises:
        NotProved: they are not.
    """
    if value.rank < 3:
        refuse("it has no dimensions besides rows and channels")
    if value.is_rows and value.axis > 1:
        refuse("pools over the rows")
    return value


def _pooled(call: Op) -> Value:
    x = _channels(call.x)
    kernel = call.integers("kernel_shape")
    if len(kernel) != x.rank - 2:
        refuse("a window of another rank")
    places = [_Window(call, kernel, index).places(call, size) for index, size in enumerate(x.known_shape[2:])]
    return like(x, [*x.known_shape[:2], *places], x.axis)


def _pooled_whole(call: Op) -> Value:
    x = _channels(call.x)
    return like(x, [*x.known_shape[:2], *[1] * (x.rank - 2)], x.axis)


@rule("MaxPool", rounds=Rounds.SUMS)  # picks one, of 0 and -0 any
def max_pool(call: Op) -> list[Value]:
    return [_pooled(call), mixed("its indices count over the whole tensor", call.operator)]


rule("AveragePool", "LpPool", rounds=Rounds.SUMS)(_pooled)
rule("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", rounds=Rounds.SUMS)(_pooled_whole)


@rule("QLinearAveragePool", domain=_MICROSOFT, rounds=Rounds.STEPS)
def quantized_pool(call: Op) -> Value:
    _must_have_constant_scales(call)
    return _pooled(call)


@rule("QLinearGlobalAveragePool", domain=_MICROSOFT, rounds=Rounds.STEPS)
def quantized_global_pool(call: Op) -> Value:
    _must_have_constant_scales(call)
    return _pooled_whole(call)


def _must_have_constant_scales(call: Op) -> None:
    """
    Raises:
        NotProved: a scale or zero point is not constant, or channels are not dimension 1.
    """
    must_be_constant(*call.inputs[1:])
    if call.integer("channels_last", 0):
        refuse("channels are the last dimension")


# ---- normalisation -----------------------------------------------------------------------------------------------


@rule("BatchNormalization", rounds=Rounds.SUMS, since=7)
def batch_normalization(call: Op) -> Value:
    """By constants of each channel, as in inference."""
    x = call.x
    if call.outputs > 1 or call.integer("training_mode", 0):
        refuse("normalises over the batch, as in training")
    must_be_constant(*call.inputs[1:])
    if not call.integer("spatial", 1):
        refuse("constants of each element")
    if x.rank < 2 or (x.is_rows and x.axis == 1):
        refuse("rows are the channels")
    return like(x, x.known_shape, x.axis)


def _normalised_images(call: Op) -> Value:
    x = _images(call.x)
    must_be_constant(*call.inputs[1:])
    return like(x, x.known_shape, x.axis)


rule("InstanceNormalization", rounds=Rounds.SUMS, since=6)(_normalised_images)
rule("GroupNormalization", rounds=Rounds.SUMS, since=18)(_normalised_images)
rule("LRN", rounds=Rounds.SUMS)(_normalised_images)


# ---- other grids of pixels ---------------------------------------------------------------------------------------


def _blocks(call: Op) -> tuple[Value, Dim, Dim, Dim, int]:
    x = _images(call.x)
    if x.rank != 4:
        refuse("no images")
    _, channels, height, width = x.known_shape
    return x, channels, height, width, call.integer("blocksize")


@rule("DepthToSpace")
def depth_to_space(call: Op) -> Value:
    x, channels, height, width, block = _blocks(call)
    depth = divided(channels, block * block)
    return like(x, [x.known_shape[0], depth or call.fresh(), times(height, block), times(width, block)], 0)


@rule("SpaceToDepth")
def space_to_depth(call: Op) -> Value:
    x, channels, height, width, block = _blocks(call)
    sizes = [divided(size, block) or call.fresh() for size in (height, width)]
    return like(x, [x.known_shape[0], times(channels, block * block), *sizes], 0)


@rule("GridSample", rounds=Rounds.SUMS, since=16)
def grid_sample(call: Op) -> Value:
    x, grid = _images(call.x), _images(call.value(1))
    if not x.is_rows or not grid.is_rows or x.layout != grid.layout:
        refuse("images and grids are not of the same rows")
    if grid.rank != x.rank or not equal(grid.known_shape[-1], x.rank - 2):
        refuse("a grid of another rank")
    if call.text("padding_mode", "zeros") not in ("zeros", "border"):
        refuse("may read beyond an image where coordinates are large")
    if call.text("mode", "linear") == "nearest" and grid.noise.grade is not Grade.EXACT:
        call.rounds = Rounds.STEPS
    return x.moved([*x.known_shape[:2], *grid.known_shape[1:-1]], 0)


@rule("AffineGrid", rounds=Rounds.SUMS, since=20, takes_counts=True)
def affine_grid(call: Op) -> Value:
    theta = call.x
    sizes = dims_of(call.value(1), "the size")
    count = len(sizes) - 2
    if sizes[0] != theta.known_shape[0]:
        refuse("not as many grids as rows")
    if theta.rank != 3 or not equal(theta.known_shape[1], count) or not equal(theta.known_shape[2], count + 1):
        refuse("matrices of another size")
    return like(theta, [*sizes[:1], *sizes[2:], count], 0)


# ---- resizing ----------------------------------------------------------------------------------------------------


@rule("Upsample", rounds=Rounds.SUMS, since=7, until=9)
def upsample(call: Op) -> Value:
    if call.opset >= 9:
        scales: Sequence[Element] = elements_of(call.value(1), "its scales")
    else:
        found = call.attributes.get("scales")
        scales = [one for one in found if isinstance(one, float)] if isinstance(found, tuple) else []
    return _resized(call, range(call.x.rank), _scaled(call, range(call.x.rank), scales))


@rule("Resize", rounds=Rounds.SUMS, since=10, takes_counts=True)
def resize(call: Op) -> Value:
    x = call.x
    if x.counts_rows:
        refuse(COUNTED)
    if call.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        refuse("crops")
    chosen = call.optional_integers("axes")
    axes = range(x.rank) if chosen is None else [axis_of(axis, x.rank) for axis in chosen]
    sizes = call.optional(3) if call.opset >= 11 else None
    if sizes is None or sizes.shape == (0,):
        scales = elements_of(call.value(2 if call.opset >= 11 else 1), "its scales")
        return _resized(call, axes, _scaled(call, axes, scales))
    wanted = dims_of(sizes, "its sizes")
    if call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        wanted = [call.symbols.fresh(least=1) for _ in wanted]  # one scale for all
    return _resized(call, axes, wanted)


def _scaled(call: Op, axes: Sequence[int], scales: Sequence[Element]) -> list[Dim]:
    """The sizes that scales come to, as far as rounding leaves no doubt."""
    if len(scales) != len(axes):
        refuse("another number of scales than dimensions")
    return [_times(call, call.x.known_shape[axis], scale) for axis, scale in zip(axes, scales, strict=True)]


def _times(call: Op, size: Dim, scale: Element) -> Dim:
    if not isinstance(scale, int | float):
        return refuse("its scales are no numbers")
    if scale == int(scale):
        found = times(size, int(scale))
        is_shift = int(scale) & (int(scale) - 1) == 0
        return found if suppose_within(size if is_shift else found, EXACT_TO["float32"]) else _any_size(call, size)
    product = size * scale if isinstance(size, int) else 0.5
    return int(product) if product == int(product) and product <= _LARGEST else _any_size(call, size)


def _any_size(call: Op, size: Dim) -> Term:
    return refuse(COUNTED) if counts_rows(size) else call.symbols.fresh(least=1)


def _resized(call: Op, axes: Sequence[int], sizes: Sequence[Dim]) -> Value:
    """
    Images in other sizes, of which the rows' stays as it is.

    Raises:
        NotProved: it does not; or the pixels of neighbours are multiplied with 0, which would not hide an infinite one.
    """
    x = call.x
    shape = list(x.known_shape)
    if len(sizes) != len(axes):
        refuse("another number of sizes than dimensions")
    for axis, size in zip(axes, sizes, strict=True):
        if x.is_rows and axis == x.axis:
            if size != shape[axis]:
                refuse("resizes along the rows")
        elif counts_rows(size):
            refuse(COUNTED)
        else:
            shape[axis] = size
    if call.text("mode", "nearest") == "nearest":
        call.rounds = Rounds.NOTHING
    elif x.is_rows and (x.axis != 0 or x.rank < 4):  # else onnxruntime takes dimension 0 for many images
        refuse("may take rows for the height of an image")
    return like(x, shape, x.axis)
