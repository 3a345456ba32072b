"""TensorFlow's convolutions and pools: rows come first, and the batch is not a dimension that windows move along."""

from __future__ import annotations

from collections.abc import Sequence

from cortex.rows.refusal import refuse
from cortex.rows.rules.registry import Op, Rounds, dims_of, must_be_constant, must_have_rows_first
from cortex.rows.rules.tensorflow.registry import rule
from cortex.rows.sizes import Dim, times
from cortex.rows.values import Value, mixed


def _spatial(call: Op, x: Value) -> tuple[list[int], int]:
    """
    The dimensions that windows move along, and that of the channels.

    Raises:
        NotProved: the rows are not dimension 0, or the layout of dimensions is another.
    """
    must_have_rows_first(x)
    layout = call.text("data_format", "NHWC" if x.rank == 4 else "NDHWC")
    if layout in ("NHWC", "NDHWC"):
        return list(range(1, x.rank - 1)), x.rank - 1
    if layout in ("NCHW", "NCDHW"):
        return list(range(2, x.rank)), 1
    return refuse("a layout of dimensions that no rule knows")


def _moved_by(call: Op, name: str, x: Value) -> list[int]:
    """An attribute with a number for each dimension, which is 1 for the batch."""
    found = call.integers(name, [1] * x.rank)
    if len(found) != x.rank or found[0] != 1:
        refuse(f"{name} of the batch")
    return found


def _size(call: Op, size: Dim, window: Dim, stride: int, dilation: int, margins: Sequence[int]) -> Dim:
    """
    How many windows there are.

    Source: TensorFlow, "tf.nn.convolution", on padding.
    """
    padding = call.text("padding")
    if padding == "SAME":
        if stride == 1:
            return size
        if isinstance(size, int):
            return -(-size // stride)
    elif padding in ("VALID", "EXPLICIT"):
        margin = sum(margins)
        if isinstance(size, int) and isinstance(window, int):
            places = size + margin - (window - 1) * dilation
            # oneDNN answers that with what lay in memory
            return -(-places // stride) if places > 0 else refuse("a window that fits nowhere")
        if isinstance(window, int) and stride == 1 and margin == (window - 1) * dilation:
            return size
    else:
        refuse("padding of a kind that no rule knows")
    return call.formula("windows", padding, window, stride, dilation, *margins, size, least=0)


def _margins(call: Op, x: Value, axis: int) -> list[int]:
    if call.text("padding") != "EXPLICIT":
        return []
    found = call.integers("explicit_paddings", [])
    if len(found) != 2 * x.rank or any(found[:2]):
        refuse("margins that are not known")
    return found[2 * axis : 2 * axis + 2]


@rule("Conv2D", "Conv3D", "DepthwiseConv2dNative", rounds=Rounds.SUMS)
def convolution(call: Op) -> Value:
    x, kernel = call.value(0), call.value(1)
    must_be_constant(kernel)
    axes, channels = _spatial(call, x)
    strides, dilations = _moved_by(call, "strides", x), _moved_by(call, "dilations", x)
    *windows, inner, outer = kernel.known_shape
    if len(windows) != len(axes):
        refuse("a kernel of other dimensions")
    shape = list(x.known_shape)
    for axis, window in zip(axes, windows, strict=True):
        shape[axis] = _size(call, shape[axis], window, strides[axis], dilations[axis], _margins(call, x, axis))
    shape[channels] = times(inner, outer) if call.operator == "DepthwiseConv2dNative" else outer
    return x.moved(shape, 0)


@rule("Conv2DBackpropInput", "Conv3DBackpropInputV2", rounds=Rounds.SUMS, takes_counts=True)
def transposed_convolution(call: Op) -> Value:
    """The sizes are given; the batch among them has to be that of the rows."""
    shape, kernel, x = dims_of(call.value(0), "the sizes"), call.value(1), call.value(2)
    must_be_constant(kernel)
    _spatial(call, x)
    _moved_by(call, "strides", x)
    _moved_by(call, "dilations", x)
    if len(shape) != x.rank or shape[0] != x.known_shape[0]:
        refuse("sizes that are not provably those of the rows")
    return x.moved(shape, 0)


@rule("Dilation2D", rounds=Rounds.SUMS)
def dilation(call: Op) -> Value:
    x, kernel = call.value(0), call.value(1)
    must_be_constant(kernel)
    axes, _ = _spatial(call, x)
    strides, rates = _moved_by(call, "strides", x), _moved_by(call, "rates", x)
    shape = list(x.known_shape)
    for axis, window in zip(axes, kernel.known_shape[:-1], strict=True):
        shape[axis] = _size(call, shape[axis], window, strides[axis], rates[axis], [])
    return x.moved(shape, 0)


@rule("AvgPool", "AvgPool3D", "MaxPool", "MaxPool3D", rounds=Rounds.SUMS)
def pool(call: Op) -> Value:
    return _pooled(call, call.x, _moved_by(call, "ksize", call.x), _moved_by(call, "strides", call.x))


@rule("MaxPoolV2", rounds=Rounds.SUMS)
def pool_by_inputs(call: Op) -> Value:
    windows, strides = dims_of(call.value(1), "the windows"), dims_of(call.value(2), "the strides")
    sizes = [
        [size if isinstance(size, int) else refuse("windows are not known") for size in one]
        for one in (windows, strides)
    ]
    if any(len(one) != call.x.rank or one[0] != 1 for one in sizes):
        refuse("windows over the batch")
    return _pooled(call, call.x, *sizes)


@rule("MaxPoolWithArgmax", rounds=Rounds.SUMS)
def pool_with_places(call: Op) -> list[Value]:
    found = _pooled(call, call.x, _moved_by(call, "ksize", call.x), _moved_by(call, "strides", call.x))
    if call.attributes.get("include_batch_in_index") is True:
        return [found, mixed("places that count over the whole batch")]
    return [found, found.typed(call.text("Targmax", "int64"))]


def _pooled(call: Op, x: Value, windows: Sequence[int], strides: Sequence[int]) -> Value:
    _spatial(call, x)
    shape = list(x.known_shape)
    for axis in range(1, x.rank):
        if windows[axis] != 1 or strides[axis] != 1:
            shape[axis] = _size(call, shape[axis], windows[axis], strides[axis], 1, _margins(call, x, axis))
    return x.moved(shape, 0)


@rule("ResizeArea", "ResizeBicubic", "ResizeBilinear", rounds=Rounds.SUMS)
def resize(call: Op) -> Value:
    return _resized(call)


@rule("ResizeNearestNeighbor")
def resize_to_nearest(call: Op) -> Value:
    return _resized(call)


def _resized(call: Op) -> Value:
    x, size = call.value(0), call.value(1)
    must_have_rows_first(x)
    must_be_constant(size)
    height, width = dims_of(size, "the size") if size.elements else (call.fresh(), call.fresh())
    batch, _, _, channels = x.known_shape
    found = x.moved([batch, height, width, channels], 0)
    return found if call.operator == "ResizeNearestNeighbor" else found.typed("float32")


@rule("ImageProjectiveTransformV2", "ImageProjectiveTransformV3", rounds=Rounds.SUMS)
def project(call: Op) -> Value:
    """Each picture by its own transformation, or all by one."""
    x, transforms = call.value(0), call.value(1)
    must_have_rows_first(x)
    must_be_constant(*call.inputs[2:])
    if transforms.is_uniform:
        if transforms.known_shape[0] != 1:
            refuse("a transformation for each row")
    else:
        must_have_rows_first(transforms)
        if transforms.layout != x.layout:
            refuse("rows meet in different layouts")
    size = call.value(2)
    height, width = dims_of(size, "the size") if size.elements else (call.fresh(), call.fresh())
    batch, _, _, channels = x.known_shape
    return x.moved([batch, height, width, channels], 0)


@rule("ExtractImagePatches")
def patches(call: Op) -> Value:
    x = call.x
    must_have_rows_first(x)
    windows, strides, rates = (_moved_by(call, name, x) for name in ("ksizes", "strides", "rates"))
    batch, height, width, depth = x.known_shape
    spatial = [
        _size(call, size, windows[axis], strides[axis], rates[axis], []) for axis, size in ((1, height), (2, width))
    ]
    return x.moved([batch, *spatial, times(depth, windows[1] * windows[2])], 0)


@rule("CombinedNonMaxSuppression", rounds=Rounds.CHOOSES)
def detections(call: Op) -> list[Value]:
    """Picture by picture; filled up to a number of its own."""
    boxes, scores = call.value(0), call.value(1)
    must_be_constant(*call.inputs[2:])
    for value in (boxes, scores):
        must_have_rows_first(value)
    if boxes.layout != scores.layout:
        refuse("rows meet in different layouts")
    batch, count = boxes.known_shape[0], call.fresh()
    return [
        boxes.moved([batch, count, 4], 0),
        boxes.moved([batch, count], 0),
        boxes.moved([batch, count], 0),
        boxes.moved([batch], 0).typed("int32"),
    ]
