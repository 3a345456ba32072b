"""What TensorFlow's operators do to rows: where they are afterwards, what is refused, and what rounding may do."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from graph_builder import rows, weights
from saved_model_builder import model, op, proof, result

from cortex.rows import prove_saved_model
from cortex.rows.rules.registry import RULES
from cortex.rows.rules.tensorflow import effects
from cortex.rows.rules.tensorflow.registry import DOMAIN, OUTPUTS
from cortex.rows.saved_models import CONTROL
from cortex.rows.sizes import NUMBER_OF_ROWS as N
from cortex.rows.sizes import times
from cortex.rows.values import Kind, Value
from cortex.wire.batching import Proof
from cortex.wire.graphs import FunctionName, GraphNode, Shapes, Tensor


class Case(NamedTuple):
    name: str
    parts: tuple[Any, ...]
    reason: str
    named: dict[str, Any]


def case(name: str, *parts: GraphNode, reason: str = "", **named: Any) -> Case:
    return Case(name, parts, reason, named)


X = rows(4)
SHAPE = op("Shape", "x", name="shape")
COUNT = op("StridedSlice", "shape", "v0", "v1", "v1", name="count", shrink_axis_mask=1)
COUNTED = (SHAPE, COUNT)
"""The number of rows, as `count`."""
V01 = {"v0": [0], "v1": [1]}
LAST = op("Transpose", "x", "order", name="t")
"""Rows in dimension 1 of `t`, or where an order has them."""
MERGED = op("Reshape", "x", "any_four", name="m")
"""Several places a row in dimension 0 of `m`."""

REFUSED = [
    # elements
    case("a constant as long as the rows", op("AddV2", "x", "w"), x=X, w=weights(8, 4), reason="size 8 along the rows"),
    case("x by the number of rows", *COUNTED, op("Cast", "count", name="n", DstT="float32"), op("RealDiv", "x", "n"),
         x=X, **V01, reason="the number of rows used as data"),
    case("equality of shapes that may not fit", op("Equal", "x", "z", incompatible_shape_error=False), x=rows(None),
         z=rows(3, None), reason="not provably equal"),
    case("equality that may be one answer", op("Equal", "x", "w", incompatible_shape_error=False), x=rows(3),
         w=weights(1, 4), reason="not provably equal"),
    case("rows chosen by a constant", op("Select", "w", "x", "x"), x=X, w=weights(8), reason="size 8 along the rows"),
    case("a bias that depends on rows", op("BiasAdd", "z", "x"), x=rows(), z=rows(4), reason="must be constant"),
    case("a bias for each row", LAST, op("BiasAdd", "t", "w"), x=X,
         w=weights(4), order=[1, 0], reason="size 4 along the rows"),
    case("bits of another width", op("Bitcast", "x", T="float32", type="uint8"), x=X, reason="different width"),
    case("bits of unknown width", op("Bitcast", "x"), x=X, reason="different width"),
    case("a scale that depends on rows", op("FakeQuantWithMinMaxVars", "x", "z", "z"), x=X, z=rows(),
         reason="must be constant"),
    case("a scale by channel that depends on rows", op("FakeQuantWithMinMaxVarsPerChannel", "x", "z", "z"), x=X,
         z=rows(), reason="must be constant"),
    case("a scale for each row", LAST, op("FakeQuantWithMinMaxVarsPerChannel", "t", "w", "w"), x=X, w=weights(8),
         order=[1, 0], reason="a scale for each row"),
    case("one scale for the whole tensor", op("QuantizeAndDequantizeV2", "x", "w", "w"), x=X, w=weights(),
         reason="one scale for the whole tensor"),
    case("a range that depends on rows", op("QuantizeAndDequantizeV3", "x", "z", "z", "z"), x=X, z=rows(),
         reason="must be constant"),
    case("a range for each row", op("QuantizeAndDequantizeV4", "x", "w", "w", range_given=True, axis=0), x=X,
         w=weights(8), reason="a scale for each row"),
    case("colours that are rows", LAST, op("RGBToHSV", "t"), x=rows(3), order=[1, 0], reason="rows are colours"),
    case("a hue by row", op("AdjustHue", "x", "z"), x=rows(2, 2, 3), z=rows(), reason="must be constant"),
    case("contrast over rows", op("AdjustContrastv2", "x", "w"), x=rows(4, 3), w=weights(), reason="within a picture"),
    case("contrast by row", op("AdjustContrastv2", "x", "z"), x=rows(2, 2, 3), z=rows(), reason="must be constant"),
    case("a pattern by row", op("RegexReplace", "x", "z", "z"), x=rows(dtype="string"), z=rows(dtype="string"),
         reason="must be constant"),
    case("texts joined over rows", op("ReduceJoin", "x", "axis"), x=rows(2, dtype="string"), axis=[0],
         reason="reduces over the rows"),
    case("texts joined over no axes", op("ReduceJoin", "x", "axis"), x=rows(2, dtype="string"),
         axis=Tensor("int32", (0,), ()), reason="versions differ"),
    case("texts beside a constant as long as rows", op("StringJoin", "x", "w"), x=rows(dtype="string"),
         w=weights(8, dtype="string"), reason="size 8 along the rows"),
    case("chosen by a constant as long as the rows", op("SelectV2", "w", "x", "x"), x=X, w=weights(8, 1),
         reason="size 8 along the rows"),
    case("which of all elements are true", op("Where", "x"), x=rows(dtype="bool"), reason="depends on all rows"),
    case("each value once", op("Unique", "x"), x=rows(dtype="int32"), reason="looks at all values"),
    # shapes and layout
    case("x by the number of elements", op("Size", "x", name="n"), op("Cast", "n", name="f", DstT="float32"),
         op("Mul", "x", "f"), x=X, reason="the number of rows used as data"),
    case("x plus its shape", op("Shape", "x", name="s"), op("AddV2", "x", "s"), x=rows(2, dtype="int32"),
         reason="the number of rows used as data"),
    case("x plus one of its shapes", op("ShapeN", "x", "x", name="s", N=2), op("AddV2", "x", "s:1"),
         x=rows(2, dtype="int32"), reason="the number of rows used as data"),
    case("rows twice in a shape", *COUNTED, op("Pack", "count", "count", name="s"), op("Fill", "s", "w"), x=X,
         w=weights(), **V01, reason="in a second dimension"),
    case("filled with what is made of rows", op("Fill", "w", "x"), x=rows(), w=[3], reason="must be constant"),
    case("a series as long as there are rows", *COUNTED, op("LinSpace", "a", "b", "count"), x=X, a=0.0, b=1.0, **V01,
         reason="the number of rows used as data"),
    case("row numbers as data", *COUNTED, op("Range", "zero", "count", "one", name="r"),
         op("Cast", "r", DstT="float32"), x=X, zero=0, one=1, **V01, reason="has no rows"),
    case("a shape that differs", SHAPE, op("BroadcastArgs", "shape", "w", name="s"), op("Reshape", "x", "s"), x=X,
         w=[7, 4], reason="sizes that differ"),
    case("an order that is not known", op("InvertPermutation", "w", name="o"), op("Transpose", "x", "o"), x=X,
         w=weights(2, dtype="int32"), reason="the order is not known"),
    case("rows spread over dimensions", op("Reshape", "x", "w"), x=X, w=[-1, 8], reason="not provably whole rows"),
    case("dimensions of size 1 dropped", op("Squeeze", "x"), x=rows(1), reason="the rows too when there is one"),
    case("rows dropped", op("Squeeze", "x", squeeze_dims=(0,)), x=X, reason="drops the rows"),
    case("rows repeated", op("Tile", "x", "w"), x=X, w=[2, 1], reason="repeats rows"),
    case("rows stretched", op("BroadcastTo", "x", "w"), x=X, w=[8, 4], reason="repeats rows to 8"),
    case("rows elsewhere", op("Transpose", "x", "w"), x=X, w=[1, 0], reason="rows in dimension 1"),
    case("a dimension before the rows", op("ExpandDims", "x", "w"), x=X, w=0, reason="rows in dimension 1"),
    case("rows beside rows", op("Pack", "x", "x", axis=0), x=X, reason="rows in dimension 1"),
    case("a constant beside rows", op("Pack", "x", "w", axis=1), x=rows(), w=weights(8), reason="beside rows"),
    case("rows taken apart", op("Unpack", "x", num=2), x=X, reason="drops the rows"),
    case("rows after rows", op("ConcatV2", "x", "x", "w"), x=X, w=0, reason="joins along the rows"),
    case("rows after rows, of old", op("Concat", "w", "x", "x"), x=X, w=0, reason="joins along the rows"),
    case("rows split", op("Split", "w", "x", num_split=2), x=X, w=0, reason="splits the rows"),
    case("rows split by sizes", op("SplitV", "x", "s", "w", num_split=2), x=X, s=[1, -1], w=0, reason="splits"),
    case("split by the number of rows", *COUNTED, op("Pack", "count", "rest", name="s"),
         op("SplitV", "x", "s", "w", num_split=2), x=X, w=1, rest=-1, **V01, reason="the number of rows used as data"),
    # cut
    case("some rows sliced", op("Slice", "x", "b", "s"), x=X, b=[1, 0], s=[-1, -1], reason="takes some of the rows"),
    case("a slice of fewer dimensions", op("Slice", "x", "b", "s"), x=X, b=[0], s=[-1], reason="another number"),
    case("a slice with sizes of fewer dimensions", op("Slice", "x", "b", "s"), x=X, b=[0, 0], s=[-1],
         reason="another number"),
    case("a slice that begins where rows say", op("Slice", "x", "z", "s"), x=X, z=rows(dtype="int32"), s=[-1, -1],
         reason="bounds depend on rows"),
    case("a slice of unknown bounds", op("Slice", "x", "b", "b"), x=X, b=weights(2, dtype="int32"),
         reason="takes some of the rows"),
    case("a slice by a matrix", op("Slice", "x", "b", "b"), x=X, b=weights(2, 1, dtype="int32"), reason="not known"),
    case("the first row", op("StridedSlice", "x", "v0", "v1", "v1"), x=X, **V01, reason="takes some of the rows"),
    case("one row", op("StridedSlice", "x", "v0", "v1", "v1", shrink_axis_mask=1), x=X, **V01,
         reason="drops the rows"),
    case("rows turned round", op("StridedSlice", "x", "v0", "v0", "back", begin_mask=1, end_mask=1), x=X, back=[-1],
         **V01, reason="turns the order of the rows round"),
    case("each second row", op("StridedSlice", "x", "v0", "v0", "two", begin_mask=1, end_mask=1), x=X, two=[2], **V01,
         reason="takes some of the rows"),
    case("rows from the end", op("StridedSlice", "x", "v0", "v0", "back", end_mask=1), x=X, back=[-1], **V01,
         reason="takes some of the rows"),
    case("the element with the number of rows", *COUNTED, op("Pack", "zero", "count", name="b"),
         op("StridedSlice", "x", "b", "b", "ones", begin_mask=1, end_mask=1, shrink_axis_mask=2), x=X, zero=0,
         ones=[1, 1], **V01, reason="the number of rows used as an index"),
    case("up to the number of rows", *COUNTED, op("Pack", "zero", "count", name="b"),
         op("StridedSlice", "x", "zeros", "b", "ones", begin_mask=3, end_mask=1), x=X, zero=0, ones=[1, 1],
         zeros=[0, 0], **V01, reason="the number of rows used as a bound"),
    case("a stride that is not known", op("StridedSlice", "x", "v0", "v0", "w", begin_mask=1, end_mask=1), x=X,
         w=weights(1, dtype="int32"), **V01, reason="a stride that is not known"),
    case("bounds of different number", op("StridedSlice", "x", "v0", "two", "v1", begin_mask=1, end_mask=3), x=X,
         two=[0, 0], **V01, reason="bounds of different number"),
    case("more bounds than dimensions", op("StridedSlice", "x", "w", "w", "ones", begin_mask=7, end_mask=7), x=X,
         w=[0, 0, 0], ones=[1, 1, 1], reason="more bounds than dimensions"),
    case("two ellipses", op("StridedSlice", "x", "w", "w", "ones", ellipsis_mask=3), x=X, w=[0, 0], ones=[1, 1],
         reason="more bounds than dimensions"),
    case("the order of the rows reversed", op("ReverseV2", "x", "w"), x=X, w=[-2], reason="turns the order"),
    case("sequences that are rows", op("ReverseSequence", "x", "z", batch_dim=1, seq_dim=0), x=X, z=rows(dtype="int32"),
         reason="turns the order of the rows round"),
    case("lengths of rows for constants", op("ReverseSequence", "w", "z", batch_dim=0, seq_dim=1), x=X,
         z=rows(dtype="int32"), w=weights(3, 4), reason="lengths of no rows"),
    case("lengths by row along another dimension", op("ReverseSequence", "x", "z", batch_dim=1, seq_dim=2),
         x=rows(3, 4), z=rows(dtype="int32"), reason="must be constant"),
    case("one length for all rows", op("ReverseSequence", "x", "w", batch_dim=0, seq_dim=1), x=X,
         w=weights(8, dtype="int32"), reason="one length for all rows"),
    case("lengths of other rows", MERGED, op("ReverseSequence", "m", "z", batch_dim=0, seq_dim=1),
         x=rows(3, 4), any_four=[-1, 4], z=rows(dtype="int32"), reason="one length for all rows"),
    # chosen
    case("rows chosen by number", op("GatherV2", "x", "w", "zero"), x=X, w=[0, 1], zero=0, reason="chooses rows"),
    case("rows chosen by number, of old", op("Gather", "x", "w"), x=X, w=[0, 1], reason="chooses rows"),
    case("rows that choose among rows", op("GatherV2", "x", "z", "zero"), x=X, z=rows(dtype="int32"), zero=0,
         reason="rows choose among rows"),
    case("side by side with a constant", op("GatherV2", "x", "w", "one", batch_dims=1), x=X, w=weights(8, 2), one=1,
         reason="only one of data and index has rows"),
    case("a constant side by side with rows", op("GatherV2", "w", "z", "one", batch_dims=1), z=rows(2, dtype="int32"),
         w=weights(8, 4), one=1, reason="only one of data and index has rows"),
    case("side by side in other places", LAST, op("GatherV2", "t", "z", "two", batch_dims=2), x=rows(3, 4), two=2,
         z=rows(3, 2, dtype="int32"), order=[1, 0, 2], reason="chooses rows"),
    case("rows behind what goes side by side", LAST, op("Transpose", "z", "order", name="i"),
         op("GatherV2", "t", "i", "one", batch_dims=1), x=rows(3, 4), z=rows(3, 4, dtype="int32"), one=1,
         order=[1, 0, 2], reason="chooses rows"),
    case("side by side with other rows", MERGED, op("GatherV2", "m", "i", "one", batch_dims=1),
         op("Reshape", "z", "any_four", name="z2"), op("Transpose", "z2", "back", name="z3"),
         op("Reshape", "z", "any_four", name="i0"), op("GatherV2", "i0", "zero", "one", name="i"),
         x=rows(3, 4), z=rows(4, dtype="int32"), any_four=[-1, 4], one=1, zero=[0], back=[0, 1],
         reason="chooses rows"),
    case("the dimension that goes side by side", op("GatherV2", "x", "z", "zero", batch_dims=1), x=X,
         z=rows(2, dtype="int32"), zero=0, reason="chooses rows"),
    case("rows by index in two dimensions", op("GatherNd", "x", "w"), x=X, w=[[0, 1]], reason="chooses rows"),
    case("a depth by row", op("OneHot", "x", "z", "one", "zero"), x=rows(dtype="int32"), z=rows(dtype="int32"),
         one=1.0, zero=0.0, reason="must be constant"),
    # filled up
    case("rows filled up", op("Pad", "x", "w"), x=X, w=[[0, 1], [0, 0]], reason="pads the rows"),
    case("filled up as rows say", op("Pad", "x", "z"), x=X, z=rows(2, dtype="int32"), reason="must be constant"),
    case("filled up by what is not known", op("Pad", "x", "w"), x=X, w=weights(2, 2, dtype="int32"),
         reason="how much is filled up is not known"),
    case("filled up in other dimensions", op("Pad", "x", "w"), x=X, w=[[0, 0]], reason="another number of pads"),
    case("a band over rows", op("MatrixBandPart", "x", "one", "one"), x=X, one=1, reason="a triangle over rows"),
    case("a band by row", op("MatrixBandPart", "x", "z", "z"), x=rows(4, 4), z=rows(dtype="int32"),
         reason="must be constant"),
    case("pieces of what has its rows elsewhere", LAST, op("SpaceToBatchND", "t", "two", "none", name="s"),
         op("Transpose", "s", "order"), x=rows(4, 3), two=[2], none=[[0, 0]], order=[1, 0, 2],
         reason="rows are not dimension 0"),
    case("pieces of a constant", op("SpaceToBatchND", "w", "two", "none", name="s"), op("AddV2", "x", "s"), x=X,
         w=weights(4, 2), two=[2], none=[[0, 0]], reason="unknown rank"),
    case("pieces that were none", op("BatchToSpaceND", "x", "two", "none"), x=rows(4, 3), two=[2], none=[[0, 0]],
         reason="blocks are not before the rows"),
    case("pictures with channels first", op("DepthToSpace", "x", block_size=2, data_format="NCHW"), x=rows(2, 2, 8),
         reason="channels first"),
    case("depth of what has its rows elsewhere", LAST, op("DepthToSpace", "t", block_size=2, name="d"),
         op("Transpose", "d", "order"), x=rows(2, 2, 8), order=[1, 0, 2, 3], reason="rows are not dimension 0"),
    case("depth of what is no picture", op("SpaceToDepth", "x", block_size=2), x=rows(2, 2), reason="not dimension 0"),
    # reductions
    case("a sum over rows", op("Sum", "x", "w", keep_dims=True), x=X, w=[0], reason="reduces over the rows"),
    case("a mean over rows, counted from the end", op("Mean", "x", "w"), x=X, w=-2, reason="reduces over the rows"),
    case("any of the rows", op("Any", "x", "w"), x=rows(4, dtype="bool"), w=[0, 1], reason="reduces over the rows"),
    case("the row with the largest", op("ArgMax", "x", "w"), x=X, w=0, reason="reduces over the rows"),
    case("all of it", op("L2Loss", "x"), x=X, reason="reduces over the rows"),
    case("the largest of the shape", *COUNTED, op("Max", "shape", "v0", name="n"), op("Cast", "n", name="f",
         DstT="float32"), op("Mul", "x", "f"), x=X, **V01, reason="the number of rows used as data"),
    case("the product of the shape", SHAPE, op("Prod", "shape", "v0", name="n"), op("Cast", "n", name="f",
         DstT="float32"), op("Mul", "x", "f"), x=X, **V01, reason="the number of rows used as data"),
    case("a softmax over rows", LAST, op("Softmax", "t", name="s"), op("Transpose", "s", "order"), x=X, order=[1, 0],
         reason="works along the rows"),
    case("a running sum over rows", op("Cumsum", "x", "w"), x=X, w=0, reason="works along the rows"),
    case("the best rows", LAST, op("TopKV2", "t", "k", name="s"), op("Transpose", "s", "order"), x=X, k=1,
         order=[1, 0], reason="works along the rows"),
    case("as many as there are rows", *COUNTED, op("TopKV2", "x", "count"), x=X, **V01, reason="used as data"),
    case("as many as a row says", op("TopKV2", "x", "z"), x=X, z=rows(dtype="int32"), reason="must be constant"),
    case("whether rows are among the best of constants", op("InTopKV2", "w", "z", "k"), w=weights(8, 4), k=1,
         z=rows(dtype="int32"), reason="not made of rows"),
    case("whether constants are among the best of rows", op("InTopKV2", "x", "w", "k"), x=X, k=1,
         w=weights(8, dtype="int32"), reason="not made of rows"),
    case("among as many as a row says", op("InTopKV2", "x", "z", "z"), x=X, z=rows(dtype="int32"),
         reason="must be constant"),
    case("among the best of other rows", MERGED, op("InTopKV2", "m", "z", "k"), x=rows(3, 4), any_four=[-1, 4], k=1,
         z=rows(dtype="int32"), reason="different layouts"),
    case("counts over all rows", op("DenseBincount", "x", "k", "none"), x=rows(dtype="int32"), k=3,
         none=Tensor("float32", (0,), ()), reason="counts over all rows"),
    case("counts of as many as a row says", op("DenseBincount", "x", "z", "none"), x=rows(4, dtype="int32"),
         z=rows(dtype="int32"), none=Tensor("float32", (0,), ()), reason="must be constant"),
    case("counts in columns", LAST, op("DenseBincount", "t", "k", "none"), x=rows(4, dtype="int32"), k=3,
         none=Tensor("float32", (0,), ()), order=[1, 0], reason="rows are dimension 1"),
    case("counts by constant weights", op("DenseBincount", "x", "k", "w"), x=rows(4, dtype="int32"), k=3,
         w=weights(8, 4), reason="weights of no rows"),
    case("counts by weights of another shape", op("DenseBincount", "x", "k", "z"), x=rows(4, dtype="int32"), k=3,
         z=rows(3), reason="weights of other rows"),
    case("counts up to the number of rows", *COUNTED, op("DenseBincount", "x", "count", "none"), x=rows(4), **V01,
         none=Tensor("float32", (0,), ()), reason="used as data"),
    case("a spectrum over rows", LAST, op("RFFT", "t", "k", name="s"), op("Transpose", "s", "order"), x=X, k=[4],
         order=[1, 0], reason="works along the rows"),
    case("a spectrum over two dimensions", op("FFT2D", "x"), x=X, reason="works along the rows"),
    case("a spectrum as long as there are rows", *COUNTED, op("Pack", "count", name="k"), op("RFFT", "x", "k"), x=X,
         **V01, reason="the number of rows used as data"),
    case("a spectrum of lengths for other dimensions", op("IRFFT", "x", "k"), x=X, k=[4, 4], reason="not known"),
    case("channels that are rows", LAST, op("LRN", "t", name="s"), op("Transpose", "s", "order"), x=X, order=[1, 0],
         reason="works along the rows"),
    case("sounds by row", op("Mfcc", "x", "z"), x=rows(4, 8), z=rows(dtype="int32"), reason="must be constant"),
    # products
    case("a product over rows", op("MatMul", "x", "x", transpose_a=True), x=X, reason="sums over the rows"),
    case("rows by rows", op("MatMul", "x", "x", transpose_b=True), x=X, reason="rows meet in different dimensions"),
    case("a product of a stack", op("MatMul", "x", "w"), x=rows(3, 4), w=weights(4, 2), reason="no matrices"),
    case("a product by a stack", op("MatMul", "x", "w"), x=X, w=weights(2, 4, 2), reason="no matrices"),
    case("a product of a vector", op("BatchMatMulV2", "x", "w"), x=rows(), w=weights(4, 2), reason="no matrices"),
    case("a product by a vector", op("BatchMatMulV2", "x", "w"), x=X, w=weights(4), reason="no matrices"),
    case("stacks of rows by rows", op("BatchMatMulV2", "x", "x", adj_x=True), x=X, reason="sums over the rows"),
    case("an equation over rows", op("Einsum", "x", "x", equation="ab,ac->bc"), x=X, reason="sums over the rows"),
    case("an equation of rows by rows", op("Einsum", "x", "x", equation="ab,cb->ac"), x=X, reason="rows meet"),
    case("an ellipsis that hides the rows", op("Einsum", "x", "x", equation="a...,b...->ab..."), x=X,
         reason="rows meet in different dimensions"),
    case("an equation without a result", op("Einsum", "x", equation="ab"), x=X, reason="does not fit"),
    case("an equation of one operand too many", op("Einsum", "x", "x", equation="ab->a"), x=X, reason="does not fit"),
    case("an equation with a new name", op("Einsum", "x", equation="ab->ac"), x=X, reason="does not fit"),
    case("an equation with a name twice", op("Einsum", "x", equation="ab->aab"), x=X, reason="does not fit"),
    case("an equation with a sign", op("Einsum", "x", equation="a+->a+"), x=X, reason="does not fit"),
    case("normalised over the rows", op("FusedBatchNormV3", "x", "w", "w", "e", "e", is_training=True),
         x=rows(2, 2, 3), w=weights(3), e=weights(0), reason="as in training"),
    case("normalised as nothing else is said", op("FusedBatchNormV3", "x", "w", "w", "e", "e"), x=rows(2, 2, 3),
         w=weights(3), e=weights(0), reason="as in training"),
    case("constants for each row", LAST, op("FusedBatchNormV3", "t", "w", "w", "w", "w", is_training=False),
         x=rows(2, 2, 3), w=weights(3), order=[1, 2, 3, 0], reason="constants for each row"),
    case("inference with scales by row", op("FusedBatchNormV3", "x", "z", "w", "w", "w", is_training=False),
         x=rows(2, 2, 3), w=weights(3), z=rows(), reason="must be constant"),
    case("rows as channels with constants", LAST,
         op("FusedBatchNormV3", "t", "w", "w", "e", "e", is_training=True, data_format="NCHW", name="b"),
         op("Transpose", "b", "order"), x=rows(2, 2, 3), w=weights(8), e=weights(0), order=[1, 0, 2, 3],
         reason="constants for each row"),
    case("rows as channels with scales of others", LAST, op("Reshape", "z", "flat", name="f"),
         op("FusedBatchNormV3", "t", "f", "f", "e", "e", is_training=True, data_format="NCHW", name="b"),
         op("Transpose", "b", "order"), x=rows(2, 2, 3), z=rows(2), e=weights(0), flat=[-1], order=[1, 0, 2, 3],
         reason="constants for each row"),
    case("rows as channels with means by row", LAST,
         op("FusedBatchNormV3", "t", "z", "z", "z", "z", is_training=True, data_format="NCHW", name="b"),
         op("Transpose", "b", "order"), x=rows(2, 2, 3), z=rows(), order=[1, 0, 2, 3], reason="must be constant"),
    # windows
    case("windows along the rows", LAST, op("Conv2D", "t", "w", strides=(1, 1, 1, 1), padding="SAME"),
         x=rows(8, 8, 3), w=weights(3, 3, 3, 5), order=[1, 0, 2, 3], reason="rows are dimension 1, not 0"),
    case("a kernel by row", op("Conv2D", "x", "z", strides=(1, 1, 1, 1), padding="SAME"), x=rows(8, 8, 3),
         z=rows(3, 3, 5), reason="must be constant"),
    case("windows that step over rows", op("Conv2D", "x", "w", strides=(2, 1, 1, 1), padding="SAME"),
         x=rows(8, 8, 3), w=weights(3, 3, 3, 5), reason="strides of the batch"),
    case("dilated over rows", op("Conv2D", "x", "w", strides=(1, 1, 1, 1), dilations=(2, 1, 1, 1), padding="SAME"),
         x=rows(8, 8, 3), w=weights(3, 3, 3, 5), reason="dilations of the batch"),
    case("strides for other dimensions", op("Conv2D", "x", "w", strides=(1, 1), padding="SAME"), x=rows(8, 8, 3),
         w=weights(3, 3, 3, 5), reason="strides of the batch"),
    case("margins around the rows",
         op("Conv2D", "x", "w", strides=(1, 1, 1, 1), padding="EXPLICIT", explicit_paddings=(1, 0, 0, 0, 0, 0, 0, 0)),
         x=rows(8, 8, 3), w=weights(3, 3, 3, 5), reason="margins that are not known"),
    case("margins for other dimensions",
         op("Conv2D", "x", "w", strides=(1, 1, 1, 1), padding="EXPLICIT", explicit_paddings=(0, 0, 1, 1)),
         x=rows(8, 8, 3), w=weights(3, 3, 3, 5), reason="margins that are not known"),
    case("a kernel of other dimensions", op("Conv2D", "x", "w", strides=(1, 1, 1, 1), padding="SAME"),
         x=rows(8, 8, 3), w=weights(3, 3, 5), reason="a kernel of other dimensions"),
    case("a window that fits nowhere", op("Conv2D", "x", "w", strides=(1, 1, 1, 1), padding="VALID"),
         x=rows(2, 8, 3), w=weights(3, 3, 3, 5), reason="a window that fits nowhere"),
    case("padding of another kind", op("Conv2D", "x", "w", strides=(1, 1, 1, 1), padding="OTHER"),
         x=rows(8, 8, 3), w=weights(3, 3, 3, 5), reason="padding of a kind that no rule knows"),
    case("another layout", op("Conv2D", "x", "w", strides=(1, 1, 1, 1), padding="SAME", data_format="NCHW_VECT_C"),
         x=rows(8, 8, 3), w=weights(3, 3, 3, 5), reason="a layout of dimensions"),
    case("a transposed kernel by row", op("Conv2DBackpropInput", "s", "z", "x", strides=(1, 2, 2, 1)),
         SHAPE, op("ConcatV2", "shape", "none", "zero", name="s"), x=rows(4, 4, 5), z=rows(3, 3, 5),
         none=Tensor("int32", (0,), ()), zero=0, reason="must be constant"),
    case("transposed for a number of rows", op("Conv2DBackpropInput", "s", "w", "x", strides=(1, 2, 2, 1)),
         x=rows(4, 4, 5), w=weights(3, 3, 3, 5), s=[8, 8, 8, 3], reason="not provably those of the rows"),
    case("transposed to fewer dimensions", SHAPE, op("StridedSlice", "shape", "v0", "v1", "v1", name="s"),
         op("Conv2DBackpropInput", "s", "w", "x", strides=(1, 2, 2, 1)), x=rows(4, 4, 5), w=weights(3, 3, 3, 5), **V01,
         reason="not provably those of the rows"),
    case("transposed along the rows", LAST, op("Shape", "t", name="s"),
         op("Conv2DBackpropInput", "s", "w", "t", strides=(1, 1, 1, 1)), x=rows(4, 4, 5), w=weights(3, 3, 5, 5),
         order=[1, 0, 2, 3], reason="rows are dimension 1"),
    case("transposed with steps over rows", SHAPE, op("Conv2DBackpropInput", "shape", "w", "x", strides=(2, 1, 1, 1)),
         x=rows(4, 4, 5), w=weights(3, 3, 5, 5), reason="strides of the batch"),
    case("transposed and dilated over rows", SHAPE,
         op("Conv2DBackpropInput", "shape", "w", "x", strides=(1, 1, 1, 1), dilations=(2, 1, 1, 1)), x=rows(4, 4, 5),
         w=weights(3, 3, 5, 5), reason="dilations of the batch"),
    case("a kernel of a dilation by row", op("Dilation2D", "x", "z", strides=(1,) * 4, rates=(1,) * 4, padding="SAME"),
         x=rows(4, 4, 3), z=rows(2, 3), reason="must be constant"),
    case("a pool over rows", LAST, op("MaxPool", "t", ksize=(1, 2, 2, 1), strides=(1, 2, 2, 1), padding="SAME"),
         x=rows(4, 4, 3), order=[1, 0, 2, 3], reason="rows are dimension 1"),
    case("a pool over the batch", op("AvgPool", "x", ksize=(2, 1, 1, 1), strides=(1, 1, 1, 1), padding="SAME"),
         x=rows(4, 4, 3), reason="ksize of the batch"),
    case("a pool of windows over the batch", op("MaxPoolV2", "x", "w", "w", padding="SAME"), x=rows(4, 4, 3),
         w=[2, 1, 1, 1], reason="windows over the batch"),
    case("a pool of windows for other dimensions", op("MaxPoolV2", "x", "w", "w", padding="SAME"), x=rows(4, 4, 3),
         w=[1, 1], reason="windows over the batch"),
    case("a pool of unknown windows", op("MaxPoolV2", "x", "w", "w", padding="SAME"), x=rows(4, 4, 3),
         w=weights(4, dtype="int32"), reason="not known"),
    case("places that count over the batch",
         op("MaxPoolWithArgmax", "x", ksize=(1, 2, 2, 1), strides=(1, 2, 2, 1), padding="SAME",
            include_batch_in_index=True, name="p"),
         op("Identity", "p:1"), x=rows(4, 4, 3), reason="count over the whole batch"),
    case("resized along the rows", LAST, op("ResizeBilinear", "t", "s"), x=rows(4, 4, 3), s=[8, 8],
         order=[1, 0, 2, 3], reason="rows are dimension 1"),
    case("resized as a row says", op("ResizeBilinear", "x", "z"), x=rows(4, 4, 3), z=rows(dtype="int32"),
         reason="must be constant"),
    case("resized to the number of rows", *COUNTED, op("Pack", "count", "count", name="s"),
         op("ResizeBilinear", "x", "s"), x=rows(4, 4, 3), **V01, reason="used as data"),
    case("resized to what is nearest, along the rows", LAST, op("ResizeNearestNeighbor", "t", "s", name="r"),
         op("Transpose", "r", "order"), x=rows(4, 4, 3), s=[8, 8], order=[1, 0, 2, 3], reason="rows are dimension 1"),
    case("a transformation for each row",
         op("ImageProjectiveTransformV3", "x", "w", "s", "f"), x=rows(4, 4, 3), w=weights(8, 8), s=[4, 4], f=0.0,
         reason="a transformation for each row"),
    case("transformed along the rows", LAST, op("ImageProjectiveTransformV3", "t", "w", "s", "f"), x=rows(4, 4, 3),
         w=weights(1, 8), s=[4, 4], f=0.0, order=[1, 0, 2, 3], reason="rows are dimension 1"),
    case("transformed by other rows", op("Reshape", "z", "w", name="o"),
         op("ImageProjectiveTransformV3", "x", "o", "s", "f"), x=rows(4, 4, 3), z=rows(2, 8), w=[-1, 8], s=[4, 4],
         f=0.0, reason="different layouts"),
    case("transformed by columns", op("Transpose", "z", "back", name="o"),
         op("ImageProjectiveTransformV3", "x", "o", "s", "f"), x=rows(4, 4, 3), z=rows(8), back=[1, 0], s=[4, 4],
         f=0.0, reason="rows are dimension 1"),
    case("transformed to a size by row", op("ImageProjectiveTransformV3", "x", "w", "z", "f"), x=rows(4, 4, 3),
         w=weights(1, 8), z=rows(dtype="int32"), f=0.0, reason="must be constant"),
    case("patches along the rows", LAST,
         op("ExtractImagePatches", "t", ksizes=(1, 2, 2, 1), strides=(1,) * 4, rates=(1,) * 4, padding="SAME",
            name="p"),
         op("Transpose", "p", "order"), x=rows(4, 4, 3), order=[1, 0, 2, 3], reason="rows are dimension 1"),
    case("boxes of one picture for all", op("CombinedNonMaxSuppression", "w", "x", "k", "k", "f", "f"),
         x=rows(5, 2), w=weights(8, 5, 1, 4), k=3, f=0.5, reason="not made of rows"),
    case("as many boxes as a row says", op("CombinedNonMaxSuppression", "x", "z", "i", "i", "f", "f"),
         x=rows(5, 1, 4), z=rows(5, 2), i=rows(dtype="int32"), f=0.5, reason="must be constant"),
    case("boxes of other rows", op("Reshape", "z", "w", name="o"),
         op("CombinedNonMaxSuppression", "x", "o", "k", "k", "f", "f"), x=rows(5, 1, 4), z=rows(3, 5, 2), w=[-1, 5, 2],
         k=3, f=0.5, reason="different layouts"),
    # lists
    case("a list of rows", op("TensorListFromTensor", "x", "w", name="l"), op("TensorListStack", "l", "w"), x=X,
         w=[4], reason="walks along the rows"),
    case("a list as long as there are rows", *COUNTED, op("TensorListReserve", "w", "count", name="r"),
         op("TensorListSetItem", "r", "zero", "x", name="l"), op("TensorListStack", "l", "w"), x=X, w=[-1], zero=0,
         **V01, reason="must be constant"),
    case("a list of the shape", SHAPE, op("TensorListFromTensor", "shape", "w", name="l"),
         op("TensorListGetItem", "l", "zero", "w", name="n"), op("Cast", "n", name="f", DstT="float32"),
         op("Mul", "x", "f"), x=X, w=Tensor("int32", (0,), ()), zero=0, reason="the number of rows used as data"),
    case("a list of a scalar", op("TensorListFromTensor", "f", "w", name="l"), op("TensorListStack", "l", "w"), x=X,
         f=1.0, w=[-1], reason="a list out of a scalar"),
    case("read at a place that a row says", op("Transpose", "x", "order", name="t"),
         op("TensorListFromTensor", "t", "w", name="l"), op("TensorListGetItem", "l", "z", "w"), x=X,
         z=rows(dtype="int32"), order=[1, 0], w=[-1], reason="must be constant"),
    case("written at a place that a row says", LAST, op("TensorListFromTensor", "t", "w", name="l"),
         op("TensorListSetItem", "l", "z", "x", name="s"), op("TensorListStack", "s", "w"), x=X,
         z=rows(dtype="int32"), order=[1, 0], w=[-1], reason="must be constant"),
    case("a list that nothing was put into", op("TensorListReserve", "w", "k", name="l"),
         op("TensorListStack", "l", "w"), x=X, w=[-1], k=3, reason="reads from an empty list"),
    case("a list in a list", LAST, op("TensorListFromTensor", "t", "w", name="l"),
         op("TensorListPushBack", "l", "l", name="s"), op("TensorListStack", "s", "w"), x=X, order=[1, 0], w=[-1],
         reason="lists in lists"),
    case("rows and constants in a list", LAST, op("TensorListFromTensor", "t", "w", name="l"),
         op("TensorListSetItem", "l", "zero", "f", name="s"), op("TensorListStack", "s", "w"), x=X, f=weights(8),
         order=[1, 0], w=[-1], zero=0, reason="differ in where the rows are"),
    case("read from what is no list", op("TensorListGetItem", "x", "zero", "w"), x=X, w=[-1], zero=0,
         reason="is no list of tensors"),
    case("a list used as a tensor", LAST, op("TensorListFromTensor", "t", "w", name="l"), op("Neg", "l"), x=X,
         order=[1, 0], w=[-1], reason="a list used as a tensor"),
    # state
    case("rows that choose columns of what is kept", op("VarHandleOp", name="v", shape=(10, 4), dtype="float32"),
         LAST, op("ResourceGatherNd", "v", "t", dtype="float32"), x=rows(1, dtype="int32"), order=[1, 0],
         reason="an index of unknown depth"),
    case("an index of a free depth", op("VarHandleOp", name="v", shape=(10, 4), dtype="float32"),
         op("ResourceGatherNd", "v", "x", dtype="float32"), x=rows(None, dtype="int32"), reason="unknown depth"),
    case("what is kept as data", op("VarHandleOp", name="v", shape=(4,), dtype="float32"), op("AddV2", "x", "v"), x=X,
         reason="a list used as a tensor"),
    case("what is kept for each row", op("VarHandleOp", name="v", shape=(8, 4), dtype="float32"),
         op("ReadVariableOp", "v", name="r", dtype="float32"), op("AddV2", "x", "r"), x=X, reason="size 8 along"),
    case("of old kept for each row", op("VariableV2", name="v", shape=(8, 4), dtype="float32"),
         op("AddV2", "x", "v"), x=X, reason="size 8 along the rows"),
    case("a default for each of two keys", op("HashTableV2", name="h"),
         op("LookupTableFindV2", "h", "x", "d", Tout="int64"), x=rows(dtype="string"), d=[1, 2],
         reason="not one for all keys"),
    case("a default by row", op("HashTableV2", name="h"), op("LookupTableFindV2", "h", "x", "z", Tout="int64"),
         x=rows(dtype="string"), z=rows(dtype="int64"), reason="not one for all keys"),
    case("rows of a kept table by number", op("VarHandleOp", name="v", shape=(8, 4), dtype="float32"),
         op("ResourceGather", "v", "w", name="g", dtype="float32"), op("AddV2", "x", "g"), x=X, w=[0, 1],
         reason="size 2 along the rows"),
    # records
    case("a list of what is in all records",
         op("ParseExampleV2", "x", "none", "k", "none", "none", num_sparse=1, Tdense=(), sparse_types=("int64",),
            dense_shapes=Shapes(()), ragged_value_types=(), ragged_split_types=(), name="p"),
         op("Identity", "p:1"), x=rows(dtype="string"), none=Tensor("string", (0,), ()), k=["a"],
         reason="a list of what is in all rows"),
    case("padded to the longest record",
         op("ParseExampleV2", "x", "none", "none", "k", "none", "d", num_sparse=0, sparse_types=(),
            Tdense=("float32",), dense_shapes=Shapes(((-1, 2),)), ragged_value_types=(), ragged_split_types=()),
         x=rows(dtype="string"), none=Tensor("string", (0,), ()), k=["a"], d=weights(0),
         reason="padded to the longest row"),
    case("records of unknown shape",
         op("ParseExample", "x", "none", "k", "d", Nsparse=0, sparse_types=(), Tdense=("float32",),
            dense_shapes=Shapes((None,))),
         x=rows(dtype="string"), none=Tensor("string", (0,), ()), k=["a"], d=weights(0), reason="unknown shape"),
    case("records of shapes that are not said",
         op("ParseExample", "x", "none", "k", "d", Nsparse=0, sparse_types=(), Tdense=("float32",),
            dense_shapes=Shapes(())),
         x=rows(dtype="string"), none=Tensor("string", (0,), ()), k=["a"], d=weights(0), reason="not known"),
    case("a default of a record by row",
         op("ParseExample", "x", "none", "k", "z", Nsparse=0, sparse_types=(), Tdense=("float32",),
            dense_shapes=Shapes(((2,),))),
         x=rows(dtype="string"), z=rows(2), none=Tensor("string", (0,), ()), k=["a"], reason="must be constant"),
    case("a table of records",
         op("ParseExample", "x", "none", "k", "d", Nsparse=0, sparse_types=(), Tdense=("float32",),
            dense_shapes=Shapes(((2,),))),
         x=rows(3, dtype="string"), none=Tensor("string", (0,), ()), k=["a"], d=weights(2),
         reason="is not made of a record a row"),
    # recurrent
    case("random numbers in a recurrent layer",
         op("CudnnRNNV3", "x", "h", "h", "w", "l", is_training=True, dropout=0.5), x=rows(4),
         h=rows(4), w=weights(99), l=rows(dtype="int32"), reason="random numbers"),
    case("rows that are time steps", op("CudnnRNNV3", "x", "h", "h", "w", is_training=False), x=rows(3, 4),
         h=rows(3, 4), w=weights(99), reason="rows are the time steps"),
    case("a recurrent layer of a matrix", op("CudnnRNNV3", "x", "x", "x", "w", is_training=False, time_major=False),
         x=X, w=weights(99), reason="rows are the time steps"),
    case("weights by row", op("CudnnRNNV3", "x", "x", "x", "x", is_training=False, time_major=False), x=rows(3, 4),
         reason="must be constant"),
    case("one first state for all", op("CudnnRNNV3", "x", "w", "w", "w", is_training=False, time_major=False),
         x=rows(3, 4), w=weights(8, 1, 4), reason="the first state is not made of rows"),
    case("one first cell for all", op("CudnnRNNV3", "x", "h", "w", "w", is_training=False, time_major=False),
         x=rows(3, 4), h=rows(1, 4), w=weights(8, 1, 4), reason="the first state is not made of rows"),
    case("one length for all in a recurrent layer",
         op("CudnnRNNV3", "x", "h", "h", "w", "w", is_training=False, time_major=False), x=rows(3, 4), h=rows(1, 4),
         w=weights(8, dtype="int32"), reason="lengths of no rows"),
    # patterns
    case("a number that is bounded from one side", op("Max", "x", "axes", name="m"),
         op("Maximum", "m", "two", name="a"),
         op("Minimum", "a", "three", name="k"), op("OneHot", "x", "k", "f", "g"), x=rows(dtype="int32"), axes=[0],
         two=2, three=3, f=1.0, g=0.0, reason="reduces over the rows"),
    case("a number with one bound", op("Max", "x", "axes", name="m"), op("Minimum", "m", "three", name="k"),
         op("OneHot", "x", "k", "f", "g"), x=rows(dtype="int32"), axes=[0], three=3, f=1.0, g=0.0,
         reason="reduces over the rows"),
]  # fmt: skip


@pytest.mark.parametrize("refused", REFUSED, ids=[one.name for one in REFUSED])
def test_an_operator_that_mixes_rows_or_may_is_refused(refused: Case) -> None:
    found = prove_saved_model(model(*refused.parts, **refused.named))
    assert not found.proved
    assert refused.reason in found.reason


# ---- where rows are afterwards --------------------------------------------------------------------------------------

H = times(N, 3)
KEPT = [
    (case("the first column", op("StridedSlice", "x", "b", "e", "s", begin_mask=1, end_mask=1, shrink_axis_mask=2),
          x=X, b=[0, 0], e=[0, 1], s=[1, 1]), (N,)),
    (case("the last column, still a column", op("StridedSlice", "x", "b", "e", "s", begin_mask=1, end_mask=3),
          x=X, b=[0, -1], e=[0, 0], s=[1, 1]), (N, 1)),
    (case("each second column from the end", op("StridedSlice", "x", "b", "e", "s", begin_mask=3, end_mask=3),
          x=rows(5), b=[0, 0], e=[0, 0], s=[1, -2]), (N, 3)),
    (case("columns turned round", op("StridedSlice", "x", "b", "e", "s", ellipsis_mask=1, begin_mask=2, end_mask=2),
          x=rows(2, 3), b=[0, 0], e=[0, 0], s=[1, -1]), (N, 2, 3)),
    (case("an index behind an ellipsis, and a new dimension",
          op("StridedSlice", "x", "b", "e", "s", ellipsis_mask=1, shrink_axis_mask=2, new_axis_mask=4),
          x=rows(2, 3), b=[0, 1, 0], e=[0, 2, 0], s=[1, 1, 1]), (N, 2, 1)),
    (case("up to its own size", SHAPE, op("StridedSlice", "x", "b", "shape", "s"), x=X, b=[0, 0], s=[1, 1]), (N, 4)),
    (case("a slice", op("Slice", "x", "b", "s"), x=rows(5), b=[0, 1], s=[-1, 3]), (N, 3)),
    (case("a slice to the end", op("Slice", "x", "b", "s"), x=rows(5), b=[0, 1], s=[-1, -1]), (N, 4)),
    (case("in halves", op("Split", "w", "x", name="s", num_split=2), op("Identity", "s:1"), x=X, w=-1), (N, 2)),
    (case("in parts", op("SplitV", "x", "s", "w", name="p", num_split=3), op("Identity", "p:1"), x=rows(9),
          s=[2, -1, 3], w=1), (N, 4)),
    (case("in columns", op("Unpack", "x", name="u", num=4, axis=-1), op("Pack", "u:3", "u", axis=1), x=X), (N, 2)),
    (case("side by side", op("ConcatV2", "x", "x", "w"), x=X, w=-1), (N, 8)),
    (case("side by side, of old", op("Concat", "w", "x", "x"), x=X, w=1), (N, 8)),
    (case("flattened", op("Reshape", "x", "w"), x=rows(3, 4), w=[-1, 12]), (N, 12)),
    (case("merged and taken apart", op("Reshape", "x", "a", name="m"), op("Reshape", "m", "b"), x=rows(3, 4),
          a=[-1, 4], b=[-1, 3, 4]), (N, 3, 4)),
    (case("in the shape of another", op("Shape", "z", name="s"), op("Reshape", "x", "s"), x=rows(12), z=rows(3, 4)),
     (N, 3, 4)),
    (case("as many as a product says", *COUNTED, op("Prod", "rest", "zero", name="p"),
          op("Pack", "count", "p", name="s"), op("Reshape", "x", "s"), x=rows(3, 4), rest=[3, 4], zero=[0], **V01),
     (N, 12)),
    (case("half of a size, rounded down", SHAPE, op("StridedSlice", "shape", "v1", "v2", "v1", name="d"),
          op("FloorDiv", "d", "two", name="h"), op("ConcatV2", "zeros", "h", "zero", name="e"),
          op("StridedSlice", "x", "start", "e", "ones", begin_mask=1, end_mask=1), x=rows(5), v1=[1], v2=[2], two=2,
          zeros=[0], zero=0, start=[0, 0], ones=[1, 1]), (N, 2)),
    (case("filled for each row", *COUNTED, op("Pack", "count", "three", name="s"), op("Fill", "s", "f"), x=X, f=0.0,
          three=3, **V01), (N, 3)),
    (case("a constant for each row", SHAPE, op("BroadcastTo", "w", "shape"), x=X, w=weights(4)), (N, 4)),
    (case("a constant repeated for each row", *COUNTED, op("Pack", "count", "one", name="s"), op("Tile", "w", "s"),
          x=X, w=weights(1, 4), one=1, **V01), (N, 4)),
    (case("broadcast to what two shapes come to", SHAPE, op("BroadcastArgs", "shape", "w", name="s"),
          op("BroadcastTo", "x", "s"), x=rows(4), w=[1, 4]), (N, 4)),
    (case("a dimension inserted and dropped", op("ExpandDims", "x", "w", name="e"),
          op("Squeeze", "e", squeeze_dims=(-1,)), x=X, w=-1), (N, 4)),
    (case("an order there and back", LAST, op("InvertPermutation", "order", name="o"), op("Transpose", "t", "o"),
          x=rows(3, 4), order=[1, 2, 0]), (N, 3, 4)),
    (case("pieces of pictures there and back", op("SpaceToBatchND", "x", "two", "none", name="s"),
          op("BatchToSpaceND", "s", "two", "none", name="b"), op("Sum", "b", "one"), x=rows(4, 5), two=[2],
          none=[[0, 0]], one=[1]), (N, 5)),
    (case("depth to space", op("DepthToSpace", "x", block_size=2), x=rows(2, 2, 8)), (N, 4, 4, 2)),
    (case("space to depth", op("SpaceToDepth", "x", block_size=2), x=rows(4, 4, 2)), (N, 2, 2, 8)),
    (case("entries of a table", op("GatherV2", "w", "x", "zero"), x=rows(3, dtype="int32"), w=weights(10, 5), zero=0),
     (N, 3, 5)),
    (case("entries by index of a table", op("GatherNd", "w", "x"), x=rows(3, 1, dtype="int32"), w=weights(10, 5)),
     (N, 3, 5)),
    (case("each row's own choice", op("GatherV2", "x", "z", "one", batch_dims=1), x=rows(6, 4), one=1,
          z=rows(2, dtype="int32")), (N, 2, 4)),
    (case("each row's own choice, by its number", *COUNTED, op("Range", "zero", "count", "one", name="n"),
          op("Pack", "n", "z", name="i", axis=1), op("GatherNd", "x", "i"), x=rows(6, 4), z=rows(dtype="int32"),
          zero=0, one=1, **V01), (N, 4)),
    (case("an entry of a variable", op("VarHandleOp", name="v", shape=(10, 4), dtype="float32"),
          op("ResourceGather", "v", "x", dtype="float32"), x=rows(3, dtype="int32")), (N, 3, 4)),
    (case("an entry of a variable by index", op("VarHandleOp", name="v", shape=(10, 6, 4), dtype="float32"),
          op("ResourceGatherNd", "v", "x", dtype="float32"), x=rows(3, 2, dtype="int32")), (N, 3, 4)),
    (case("in a variable's shape", op("VarHandleOp", name="v", shape=(3, 4), dtype="float32"),
          op("VariableShape", "v", name="s"), op("ConcatV2", "rest", "s", "zero", name="t"), op("Reshape", "x", "t"),
          x=rows(12), rest=[-1], zero=0), (N, 3, 4)),
    (case("a product with a variable", op("VarHandleOp", name="v", shape=(4, 3), dtype="float32"),
          op("ReadVariableOp", "v", name="w", dtype="float32"), op("MatMul", "x", "w"), x=X), (N, 3)),
    (case("what a table says", op("HashTableV2", name="h"), op("LookupTableFindV2", "h", "x", "d", Tout="int64"),
          x=rows(3, dtype="string"), d=0), (N, 3)),
    (case("several values a key", op("MutableHashTableOfTensorsV2", name="h", value_shape=(5,)),
          op("LookupTableFindV2", "h", "x", "d", Tout="float32"), x=rows(dtype="string"), d=weights(5)), (N, 5)),
    (case("labels as vectors", op("OneHot", "x", "k", "one", "zero", axis=0, name="o"),
          op("Transpose", "o", "order"), x=rows(3, dtype="int32"), k=5, one=1.0, zero=0.0, order=[1, 2, 0]), (N, 3, 5)),
    (case("filled up", op("PadV2", "x", "w", "f"), x=X, w=[[0, 0], [1, 2]], f=0.0), (N, 7)),
    (case("a triangle", op("MatrixBandPart", "x", "a", "b"), x=rows(4, 4), a=-1, b=0), (N, 4, 4)),
    (case("reversed", op("ReverseV2", "x", "w"), x=X, w=[1]), (N, 4)),
    (case("reversed as far as each is long", op("ReverseSequence", "x", "z", batch_dim=0, seq_dim=1), x=rows(5, 2),
          z=rows(dtype="int32")), (N, 5, 2)),
    (case("reversed as far as constants say", op("ReverseSequence", "x", "w", batch_dim=1, seq_dim=2), x=rows(3, 5),
          w=[1, 2, 3]), (N, 3, 5)),
    (case("sums", op("Sum", "x", "w"), x=rows(3, 4), w=[-1]), (N, 3)),
    (case("sums that stay", op("Mean", "x", "w", keep_dims=True), x=rows(3, 4), w=[1, 2]), (N, 1, 1)),
    (case("no sum at all", op("Sum", "x", "w"), x=X, w=Tensor("int32", (0,), ())), (N, 4)),
    (case("labels", op("ArgMax", "x", "w"), x=X, w=-1), (N,)),
    (case("the best", op("TopKV2", "x", "k", name="t"), op("Identity", "t:1"), x=X, k=2), (N, 2)),
    (case("the best, of old", op("TopK", "x", k=2), x=X), (N, 2)),
    (case("whether it is among the best", op("InTopKV2", "x", "z", "k"), x=X, z=rows(dtype="int32"), k=2), (N,)),
    (case("counts", op("DenseBincount", "x", "k", "none"), x=rows(6, dtype="int32"), k=3,
          none=Tensor("float32", (0,), ())), (N, 3)),
    (case("a spectrum", op("RFFT", "x", "k"), x=rows(10), k=[16]), (N, 9)),
    (case("a spectrum and back", op("RFFT", "x", "k", name="s"), op("IRFFT", "s", "k"), x=rows(16), k=[16]), (N, 16)),
    (case("a product of matrices", op("BatchMatMulV2", "x", "x", adj_y=True), x=rows(3, 4)), (N, 3, 3)),
    (case("an equation", op("Einsum", "x", "w", equation="...a,ab->...b"), x=rows(3, 4), w=weights(4, 5)), (N, 3, 5)),
    (case("an equation of rows", op("Einsum", "x", "z", equation="nij,njk->nik"), x=rows(3, 4), z=rows(4, 5)),
     (N, 3, 5)),
    (case("a layer normalisation of Keras 2", op("Reshape", "x", "to_channels", name="m"), SHAPE,
          op("StridedSlice", "shape", "v0", "v2", "v1", name="d"), op("Prod", "d", "zero", name="n"),
          op("Pack", "n", name="s"), op("Fill", "s", "f", name="one"),
          op("FusedBatchNormV3", "m", "one", "one", "e", "e", is_training=True, data_format="NCHW", name="b"),
          op("Reshape", "b", "shape"), x=rows(3, 4), to_channels=[1, -1, 4, 1], v0=[0], v1=[1], v2=[2], zero=[0],
          f=1.0, e=weights(0)), (N, 3, 4)),
    (case("inference", op("FusedBatchNormV3", "x", "w", "w", "w", "w", is_training=False), x=rows(2, 2, 3),
          w=weights(3)), (N, 2, 2, 3)),
    (case("a convolution", op("Conv2D", "x", "w", strides=(1, 2, 2, 1), padding="SAME"), x=rows(9, 8, 3),
          w=weights(3, 3, 3, 5)), (N, 5, 4, 5)),
    (case("a convolution without margins", op("Conv2D", "x", "w", strides=(1, 2, 1, 1), padding="VALID"),
          x=rows(9, 8, 3), w=weights(3, 3, 3, 5)), (N, 4, 6, 5)),
    (case("a dilated one", op("Conv2D", "x", "w", strides=(1, 1, 1, 1), dilations=(1, 2, 2, 1), padding="VALID"),
          x=rows(9, 8, 3), w=weights(3, 3, 3, 5)), (N, 5, 4, 5)),
    (case("one with margins", op("Conv2D", "x", "w", strides=(1, 1, 1, 1), padding="EXPLICIT",
          explicit_paddings=(0, 0, 1, 1, 2, 0, 0, 0)), x=rows(9, 8, 3), w=weights(3, 3, 3, 5)), (N, 9, 8, 5)),
    (case("one with channels first", op("Conv2D", "x", "w", strides=(1, 1, 2, 2), padding="SAME", data_format="NCHW"),
          x=rows(3, 8, 8), w=weights(3, 3, 3, 5)), (N, 5, 4, 4)),
    (case("one by channel", op("DepthwiseConv2dNative", "x", "w", strides=(1, 1, 1, 1), padding="SAME"),
          x=rows(8, 8, 3), w=weights(3, 3, 3, 2)), (N, 8, 8, 6)),
    (case("one in space", op("Conv3D", "x", "w", strides=(1, 1, 1, 1, 1), padding="VALID"), x=rows(4, 5, 6, 3),
          w=weights(2, 2, 2, 3, 7)), (N, 3, 4, 5, 7)),
    (case("a transposed one", *COUNTED, op("Pack", "count", "eight", "eight", "three", name="s"),
          op("Conv2DBackpropInput", "s", "w", "x", strides=(1, 2, 2, 1), padding="SAME"), x=rows(4, 4, 5),
          w=weights(3, 3, 3, 5), eight=8, three=3, **V01), (N, 8, 8, 3)),
    (case("a dilation", op("Dilation2D", "x", "w", strides=(1,) * 4, rates=(1,) * 4, padding="VALID"), x=rows(4, 4, 3),
          w=weights(2, 2, 3)), (N, 3, 3, 3)),
    (case("a pool", op("MaxPool", "x", ksize=(1, 2, 2, 1), strides=(1, 2, 2, 1), padding="VALID"), x=rows(5, 4, 3)),
     (N, 2, 2, 3)),
    (case("a pool by windows", op("MaxPoolV2", "x", "w", "w", padding="SAME"), x=rows(5, 4, 3), w=[1, 2, 2, 1]),
     (N, 3, 2, 3)),
    (case("a pool's places", op("MaxPoolWithArgmax", "x", ksize=(1, 2, 2, 1), strides=(1, 2, 2, 1), padding="SAME",
          name="p"), op("Identity", "p:1"), x=rows(4, 4, 3)), (N, 2, 2, 3)),
    (case("resized", op("ResizeBilinear", "x", "s"), x=rows(4, 4, 3), s=[8, 9]), (N, 8, 9, 3)),
    (case("resized to the nearest", op("ResizeNearestNeighbor", "x", "s"), x=rows(4, 4, 3), s=[8, 9]), (N, 8, 9, 3)),
    (case("transformed", op("ImageProjectiveTransformV3", "x", "z", "s", "f"), x=rows(4, 4, 3), z=rows(8), s=[5, 6],
          f=0.0), (N, 5, 6, 3)),
    (case("patches", op("ExtractImagePatches", "x", ksizes=(1, 2, 2, 1), strides=(1, 2, 2, 1), rates=(1,) * 4,
          padding="SAME"), x=rows(4, 4, 3)), (N, 2, 2, 12)),
    (case("how many are found", op("CombinedNonMaxSuppression", "x", "z", "k", "k", "f", "f", name="b"),
          op("Identity", "b:3"), x=rows(5, 1, 4), z=rows(5, 2), k=3, f=0.5), (N,)),
    (case("a list along time", LAST, op("TensorListFromTensor", "t", "w", name="l"),
          op("TensorListStack", "l", "w", name="s"), op("Transpose", "s", "order"), x=rows(6, 4), order=[1, 0, 2],
          w=[-1, 4]), (N, 6, 4)),
    (case("one of a list", LAST, op("TensorListFromTensor", "t", "w", name="l"),
          op("TensorListGetItem", "l", "zero", "w"), x=rows(6, 4), order=[1, 0, 2], w=[-1, 4], zero=0), (N, 4)),
    (case("put into a list that is as long as known", op("TensorListReserve", "w", "k", name="r"),
          op("TensorListSetItem", "r", "zero", "x", name="l"), op("TensorListStack", "l", "w", name="s"),
          op("Transpose", "s", "order"), x=X, w=[-1], k=3, zero=0, order=[1, 0, 2]), (N, 3, 4)),
    (case("taken back from a list", op("EmptyTensorList", "w", "k", name="r"),
          op("TensorListPushBack", "r", "x", name="l"), op("TensorListPopBack", "l", "w", name="p"),
          op("Identity", "p:1"), x=X, w=[-1], k=3), (N, 4)),
    (case("as long as a list", LAST, op("TensorListFromTensor", "t", "w", name="l"),
          op("TensorListLength", "l", name="n"), op("Pack", "rest", "n", name="s"), op("Reshape", "x", "s"),
          x=rows(6), order=[1, 0], w=[-1], rest=-1), (N, 6)),
    (case("features of records",
          op("ParseExampleV2", "x", "none", "none", "k", "none", "d", num_sparse=0, sparse_types=(),
             Tdense=("float32",), dense_shapes=Shapes(((3,),)), ragged_value_types=(), ragged_split_types=()),
          x=rows(dtype="string"), none=Tensor("string", (0,), ()), k=["a"], d=weights(3)), (N, 3)),
    (case("features of records behind lists",
          op("ParseExample", "x", "none", "k", "k", "d", Nsparse=1, sparse_types=("int64",), Tdense=("float32",),
             dense_shapes=Shapes(((3,),)), name="p"), op("Identity", "p:3"),
          x=rows(dtype="string"), none=Tensor("string", (0,), ()), k=["a"], d=weights(3)), (N, 3)),
    (case("a recurrent layer", op("CudnnRNNV3", "x", "h", "h", "w", "l", is_training=False, time_major=False),
          x=rows(5, 3), h=rows(1, 4), w=weights(99), l=rows(dtype="int32")), (N, 5, 4)),
    (case("its last state", op("CudnnRNNV2", "x", "h", "h", "w", is_training=False, time_major=False, name="r"),
          op("Identity", "r:2"), x=rows(5, 3), h=rows(1, 4), w=weights(99)), (N, 1, 4)),
    (case("a number bounded from both sides", op("Max", "x", "axes", name="m"), op("Maximum", "m", "k", name="a"),
          op("Minimum", "k", "a", name="n"), op("OneHot", "x", "n", "f", "g"), x=rows(dtype="int32"), axes=[0], k=3,
          f=1.0, g=0.0), (N, 3)),
    (case("texts joined", op("ReduceJoin", "x", "axis"), x=rows(2, 3, dtype="string"), axis=[-1]), (N, 2)),
    (case("equality of what fits", op("Equal", "x", "w", incompatible_shape_error=False), x=rows(3), w=weights(3)),
     (N, 3)),
    (case("a bias with channels first", op("BiasAdd", "x", "w", data_format="NCHW"), x=rows(3, 8), w=weights(3)),
     (N, 3, 8)),
    (case("chosen by row, of old", op("Select", "z", "x", "x"), x=X, z=rows(dtype="bool")), (N, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("kept", "shape"), KEPT, ids=[one.name for one, _ in KEPT])
def test_rows_are_where_the_rules_say(kept: Case, shape: tuple[Any, ...]) -> None:
    found = result(*kept.parts, **kept.named)
    assert (found.kind, found.axis, found.layout, found.known_shape) == (Kind.ROWS, 0, (1, 1), shape), found.reason


def test_pieces_of_pictures_come_before_the_rows() -> None:
    found = result(op("SpaceToBatchND", "x", "three", "none"), x=rows(6, 5), three=[3], none=[[0, 0]])
    assert (found.axis, found.before, found.after, found.known_shape[0]) == (0, 3, 1, H)


def test_a_free_size_stays_as_it_is_where_windows_fit_exactly() -> None:
    pool = op("MaxPool", "x", ksize=(1, 2, 2, 1), strides=(1, 1, 1, 1), padding="SAME")
    x = rows(None, None, 3)
    assert result(pool, op("AddV2", "x", "y", name="z"), outputs="z", x=x).known_shape == result(pool, x=x).known_shape


# ---- what rounding may do -------------------------------------------------------------------------------------------

NOISY = op("MatMul", "x", "w", name="m")
GRADES = [
    (case("sums of integers", op("AddV2", "x", "x")), "exact"),
    (case("a comparison of what is given", op("Greater", "x", "f")), "exact"),
    (case("a label of what is given", op("ArgMax", "x", "axis")), "exact"),
    (case("a curve", op("Tanh", "x")), "rounding"),
    (case("a product", op("MatMul", "x", "w")), "rounding"),
    (case("a comparison of a product", NOISY, op("Greater", "m", "f")), "labels"),
    (case("a label of a product", NOISY, op("ArgMax", "m", "axis")), "labels"),
    (case("a product rounded", NOISY, op("Round", "m")), "steps"),
    (case("a product as whole numbers", NOISY, op("Cast", "m", DstT="int32")), "steps"),
    (case("a product on a grid", NOISY, op("FakeQuantWithMinMaxArgs", "m")), "steps"),
    (case("digits of a product", NOISY, op("AsString", "m")), "steps"),
    (case("bits of a product", NOISY, op("Bitcast", "m", T="float32", type="int32")), "steps"),
    (case("the sign bit of a product", NOISY, op("Bitcast", "m", T="float32", type="int32", name="b"),
          op("BitwiseAnd", "b", "sign"), sign=Tensor("int32", (), (-(1 << 31),))), "labels"),
    (case("the lowest bit of a product", NOISY, op("Bitcast", "m", T="float32", type="int32", name="b"),
          op("BitwiseAnd", "b", "one"), one=Tensor("int32", (), (1,))), "steps"),
    (case("the highest bit of another type", NOISY, op("Bitcast", "m", T="float32", type="int32", name="b"),
          op("BitwiseAnd", "b", "sign"), sign=Tensor("int64", (), (-(1 << 31),))), "steps"),
    (case("a spectrum's real part", op("RFFT", "x", "length", name="s"), op("Real", "s", Tout="float32"),
          length=[4]), "rounding"),
    (case("whole numbers counted", op("Cast", "x", DstT="int32", name="i"), op("DenseBincount", "i", "k", "none"), k=3,
          none=Tensor("float32", (0,), ())), "exact"),
]  # fmt: skip


@pytest.mark.parametrize(("graded", "grade"), GRADES, ids=[one.name for one, _ in GRADES])
def test_what_rounding_may_do_is_told(graded: Case, grade: str) -> None:
    found = proof(*graded.parts, x=X, w=weights(4, 4), f=0.0, axis=-1, **graded.named)
    assert (found.proved, found.rounding) == (True, grade), found.reason


# ---- against TensorFlow's own word ----------------------------------------------------------------------------------

OURS = sorted(operator for domain, operator in RULES if domain == DOMAIN)
READS = {
    "CheckNumerics", "CheckNumericsV2", "CudnnRNN", "CudnnRNNV2", "CudnnRNNV3", "DeviceIndex", "HashTable",
    "HashTableV2", "LookupTableExportV2", "LookupTableFind", "LookupTableFindV2", "LookupTableSize",
    "LookupTableSizeV2", "MutableHashTable", "MutableHashTableOfTensorsV2",
    "MutableHashTableV2", "ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VarHandleOp", "VarIsInitializedOp",
    "Variable", "VariableShape", "VariableV2",
}  # fmt: skip
"""Of the operators that TensorFlow calls stateful: they read, or are there once for all requests."""


@pytest.fixture(scope="module")
def definitions(tensorflow: Any) -> Any:
    from tensorflow.python.framework import op_def_registry

    return op_def_registry


@pytest.mark.parametrize("operator", [*OURS, *sorted(CONTROL)])
def test_an_operator_has_the_outputs_that_it_is_said_to_have(definitions: Any, operator: str) -> None:
    definition = definitions.get(operator)
    assert definition is not None
    theirs = tuple((one.name, one.number_attr or one.type_list_attr) for one in definition.output_arg)
    if operator in OUTPUTS:
        assert OUTPUTS[operator] == theirs
    elif operator not in effects.MIXING:  # of which all outputs are alike
        assert len(theirs) == 1
        assert not theirs[0][1]


@pytest.mark.parametrize("operator", OURS)
def test_an_operator_with_a_rule_keeps_nothing_from_one_request_to_the_next(definitions: Any, operator: str) -> None:
    definition = definitions.get(operator)
    assert not definition.is_stateful or operator in READS


def test_each_name_of_outputs_is_of_an_operator_that_a_rule_knows() -> None:
    assert set(OUTPUTS) <= {*OURS, *CONTROL}


def test_whatever_else_tensorflow_has_is_refused(tensorflow: Any) -> None:
    known = {*OURS, *CONTROL, *effects.CHECKS}
    others = [name for name in dir(tensorflow.raw_ops) if name[0].isupper() and name not in known]
    assert len(others) > 500
    assert all(effects.more_than_computes(name) for name in others)


def test_a_function_is_not_called_by_an_attribute_that_no_operator_has() -> None:
    assert not proof(op("Neg", "x", f=FunctionName("gone")), x=X).proved


def test_a_number_of_elements_is_one_where_its_type_holds_it() -> None:
    """In 32 bits the number goes round; where no shorter input would do nothing is known of it."""

    def found(out_type: str, times: int) -> Proof:
        longer, shape = op("Tile", "x", "repeats", name="t"), op("Shape", "t", name="shape", out_type=out_type)
        whole = op("Prod", "shape", "zero", name="n", keep_dims=True)
        there, back = op("Reshape", "t", "n", name="f"), op("Reshape", "f", "shape")
        return proof(longer, shape, whole, there, back, x=rows(None, None), zero=[0], repeats=[1, 1, times])

    assert found("int32", 3).proved
    assert found("int32", 3).sizes == ()
    assert [one.at_most for one in found("int32", 512).sizes] == [362, 362]
    assert not found("int32", 2**15).proved
    assert found("int64", 2**15).proved

    def counted(out_type: str) -> Value:
        longer = op("Tile", "x", "repeats", name="t")
        return result(longer, op("Size", "t", out_type=out_type), x=rows(None, None), repeats=[1, 1, 2**15])

    assert counted("int64").elements != counted("int32").elements
