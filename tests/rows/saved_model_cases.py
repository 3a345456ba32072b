"""
SavedModels for single rules: each is a computation with TensorFlow, written down as the operators that it names.

`mixes` is refused and wrong when TensorFlow runs it, `proved` is proved and right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from cases import Expected

from cortex.wire.batching import Rounding

F, W, L, S, B = "float32", "int32", "int64", "string", "bool"
Input: TypeAlias = tuple[Any, ...]
"""A type, and the sizes after the rows; None for a free one."""


class SavedCase(NamedTuple):
    """A model in a line."""

    name: str
    expected: Expected
    build: Callable[..., Any]
    """Gets TensorFlow, its operators, and the inputs."""
    inputs: tuple[Input, ...]
    rounding: Rounding | None = None
    """What the proof has to say that rounding may do."""
    needs_gpu: bool = False
    """TensorFlow runs it nowhere else."""


def mixes(name: str, build: Callable[..., Any], *inputs: Input) -> SavedCase:
    return SavedCase(name, "mixes", build, inputs)


def proved(name: str, build: Callable[..., Any], *inputs: Input, rounding: Rounding | None = None) -> SavedCase:
    return SavedCase(name, "proved", build, inputs, rounding)


def write(tf: Any, case: SavedCase, folder: Path) -> None:
    """Write a case as a SavedModel of TensorFlow 1, in which each operator is as it was named."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        inputs = [
            v1.placeholder(dtype, [None, *sizes], f"x{index}") for index, (dtype, *sizes) in enumerate(case.inputs)
        ]
        y = tf.identity(case.build(tf, tf.raw_ops, *inputs), "y")
        signature = v1.saved_model.predict_signature_def({f"x{index}": x for index, x in enumerate(inputs)}, {"y": y})
        if graph.get_collection("variables") or graph.get_collection("table_initializer"):
            with v1.Session() as session:
                session.run([v1.global_variables_initializer(), v1.tables_initializer()])
                builder = v1.saved_model.Builder(str(folder / "model"))
                builder.add_meta_graph_and_variables(
                    session, ["serve"], {"serving_default": signature}, main_op=v1.tables_initializer()
                )
                builder.save()
            for path in (folder / "model").iterdir():
                path.rename(folder / path.name)
            return
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel(saved_model_schema_version=1)
    meta = model.meta_graphs.add()
    meta.meta_info_def.tags.append("serve")
    meta.graph_def.CopyFrom(graph.as_graph_def(add_shapes=True))
    meta.signature_def["serving_default"].CopyFrom(signature)
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())


# ---- what cases are written with --------------------------------------------------------------------------------


def count(tf: Any, x: Any) -> Any:
    """How many rows there are."""
    return tf.shape(x)[0]


def product(tf: Any, x: Any) -> Any:
    """Sums, which round; four columns as before."""
    return tf.matmul(x, tf.constant([[0.5, 0.1, 0.7, -0.3]] * 4))


def of(tf: Any, *values: Any) -> Any:
    """Numbers, as many as somebody who fed them once would have rows."""
    return tf.constant(values)


def tall(tf: Any, x: Any) -> Any:
    """Rows of pictures of height 1 as the height of one picture, and with `flat` back."""
    return tf.transpose(x, [1, 0, 2, 3])


flat = tall

PIXELS = (F, 1, 2, 3)


def table(tf: Any, kind: Any, **given: Any) -> Any:
    return kind(key_dtype=tf.string, value_dtype=tf.int64, **given)


def records(tf: Any, x: Any) -> Any:
    """Records that TensorFlow reads: with two numbers where it says `a`, else with one."""

    def record(*numbers: int) -> bytes:
        feature = tf.train.Feature(int64_list=tf.train.Int64List(value=numbers))
        one = tf.train.Feature(int64_list=tf.train.Int64List(value=numbers[:1]))
        found: bytes = tf.train.Example(
            features=tf.train.Features(feature={"some": feature, "one": one})
        ).SerializeToString()
        return found

    return tf.where(tf.equal(x, "a"), tf.constant(record(1, 2)), tf.constant(record(3)))


def variable(tf: Any, *shape: int) -> Any:
    return tf.compat.v1.Variable(_numbers(shape), use_resource=True)


def _numbers(shape: Sequence[int]) -> Any:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def steps(tf: Any, r: Any, x: Any) -> Any:
    """A list of a row's steps."""
    return r.TensorListFromTensor(tensor=tf.transpose(x, [1, 0, 2]), element_shape=tf.constant([-1, 2]))


def pushed(r: Any, *values: Any) -> Any:
    """A list of these."""
    found = r.EmptyTensorList(element_shape=-1, max_num_elements=-1, element_dtype=values[0].dtype)
    for value in values:
        found = r.TensorListPushBack(input_handle=found, tensor=value)
    return found


def item(r: Any, whole: Any, index: Any, dtype: Any) -> Any:
    return r.TensorListGetItem(input_handle=whole, index=index, element_shape=-1, element_dtype=dtype)


# ---- shapes, layout, indices ------------------------------------------------------------------------------------

_ARRAYS: Final = [
    proved("a constant of one row", lambda tf, r, x: x + tf.constant([[1.0, 2.0, 3.0, 4.0]]), (F, 4)),
    mixes("x plus its shape", lambda tf, r, x: x + tf.shape(x), (W, 2)),
    mixes("x plus one of its shapes", lambda tf, r, x: x + r.ShapeN(input=[x, x])[1], (W, 2)),
    mixes("x times its number of elements", lambda tf, r, x: x * tf.size(x), (W, 2)),
    proved("as many columns as it has dimensions", lambda tf, r, x: tf.reshape(x, tf.stack([-1, tf.rank(x)])), (F, 2)),
    mixes("filled with the number of rows", lambda tf, r, x: x + tf.fill([count(tf, x), 3], count(tf, x)), (W, 3)),
    mixes("filled with the number of rows, as often", lambda tf, r, x:
        x + tf.reduce_sum(tf.fill([count(tf, x)], 1)), (W, 3)),
    mixes("a square of rows", lambda tf, r, x:
        x + tf.reduce_sum(tf.fill([count(tf, x), count(tf, x)], 1.0), 1)[:, None], (F, 3)),
    proved("a series", lambda tf, r, x: tf.matmul(
        x, r.LinSpace(start=0.0, stop=1.0, num=4)[:, None]), (F, 4)),
    mixes("summed over a shape that two shapes come to", lambda tf, r, x:
        x + tf.reduce_sum(tf.broadcast_to(1.0, r.BroadcastArgs(s0=tf.constant([1, 4]), s1=tf.shape(x)))), (F, 4)),
    mixes("turned by the inverse of an order", lambda tf, r, x:
        tf.transpose(tf.transpose(x, [1, 2, 0]), r.InvertPermutation(x=tf.constant([2, 0, 1]))), (F, 3, 2)),
    mixes("two rows for one", lambda tf, r, x: tf.reshape(x, [-1, 2]), (F, 4)),
    mixes("all rows as one", lambda tf, r, x: tf.expand_dims(x, 0), (F, 4)),
    mixes("dimensions of size 1 dropped", lambda tf, r, x: tf.squeeze(x), (F, 1, 1)),
    mixes("all rows but the first", lambda tf, r, x: x[1:], (F, 4)),
    mixes("rows as columns", lambda tf, r, x: tf.transpose(x, [1, 0]), (F, 4)),
    mixes("eight rows of one", lambda tf, r, x: tf.broadcast_to(x, [8, 4]), (F, 4)),
    mixes("each row twice", lambda tf, r, x: tf.tile(x, [2, 1]), (F, 4)),
    mixes("rows beside themselves", lambda tf, r, x: tf.stack([x, x]), (F, 4)),
    mixes("one of two rows", lambda tf, r, x: tf.unstack(x, 2)[0], (F, 4)),
    mixes("all rows twice", lambda tf, r, x: tf.concat([x, x], 0), (F, 4)),
    mixes("all rows twice, of old", lambda tf, r, x: r.Concat(concat_dim=0, values=[x, x]), (F, 4)),
    mixes("half of the rows", lambda tf, r, x: tf.split(x, 2)[0], (F, 4)),
    mixes("all rows but one", lambda tf, r, x: tf.split(x, [1, -1])[1], (F, 4)),
    mixes("split by the number of rows", lambda tf, r, x:
        tf.reduce_sum(tf.split(x, tf.stack([count(tf, x), -1]), 1)[0], 1), (F, 40)),
    mixes("rows from the second on", lambda tf, r, x: tf.slice(x, [1, 0], [-1, -1]), (F, 4)),
    mixes("rows turned round", lambda tf, r, x: tf.reverse(x, [0]), (F, 4)),
    mixes("two rows turned round", lambda tf, r, x:
        r.ReverseSequence(input=x, seq_lengths=tf.constant([2, 2]), seq_dim=0, batch_dim=1), (F, 2)),
    mixes("turned round as far as constants say for each row", lambda tf, r, x:
        r.ReverseSequence(input=x, seq_lengths=of(tf, 1, 2), seq_dim=1, batch_dim=0), (F, 2)),
    mixes("the first row, twice", lambda tf, r, x: r.Gather(params=x, indices=tf.constant([0, 0])), (F, 4)),
    mixes("the first row, along a dimension", lambda tf, r, x: tf.gather(x, [0], axis=0), (F, 4)),
    mixes("a row chosen by each row", lambda tf, r, x, i: tf.gather(x, i % count(tf, x)), (F, 4), (W,)),
    mixes("labels along the rows", lambda tf, r, x: tf.one_hot(x, 5, axis=0), (W,)),
    mixes("as long a vector as there are rows", lambda tf, r, x: tf.reduce_sum(tf.one_hot(x, count(tf, x)), 1), (W,)),
    mixes("a row of zeros first", lambda tf, r, x: tf.pad(x, [[1, 0], [0, 0]]), (F, 4)),
    mixes("a triangle over rows", lambda tf, r, x: tf.linalg.band_part(x, -1, 0), (F, 4)),
    mixes("pieces of pictures as rows", lambda tf, r, x: tf.space_to_batch(x, [2], [[0, 0]]), (F, 4, 1)),
    mixes("rows as pixels of a block", lambda tf, r, x:
        flat(tf, r.SpaceToDepth(input=tall(tf, x), block_size=2)), (F, 1, 2, 1)),
]  # fmt: skip

# ---- element by element -----------------------------------------------------------------------------------------

_ELEMENTS: Final = [
    mixes("two rows added", lambda tf, r, x: x + of(tf, [0.0] * 4, [1.0] * 4), (F, 4)),
    mixes("equal to two rows", lambda tf, r, x: tf.equal(x, of(tf, [0] * 4, [1] * 4)), (W, 4)),
    mixes("chosen in two rows", lambda tf, r, x: tf.where(of(tf, [True], [False]), x, -x), (F, 4)),
    mixes("chosen in two rows, of old", lambda tf, r, x: r.Select(condition=of(tf, True, False), x=x, y=-x), (F, 4)),
    mixes("a bias for two rows", lambda tf, r, x:
        tf.transpose(tf.nn.bias_add(tf.transpose(x), of(tf, 0.5, 1.0))), (F, 4)),
    proved("the same", lambda tf, r, x: tf.identity(tf.stop_gradient(x)), (F, 4)),
    proved("the same, each", lambda tf, r, x, z: sum(r.IdentityN(input=[x, z])), (F, 4), (F, 4)),
    proved("what nobody gives", lambda tf, r, x: x + tf.compat.v1.placeholder_with_default([1.0], [1]), (F, 4)),
    proved("numbers, if they are some", lambda tf, r, x: r.EnsureShape(input=x, shape=[None, 4]), (F, 4)),
    proved("sums as whole numbers", lambda tf, r, x: tf.cast(product(tf, x), tf.int32), (F, 4), rounding="steps"),
    mixes("bits of two rows as one number", lambda tf, r, x:
        tf.reduce_sum(tf.bitcast(tf.transpose(x), tf.int64), 0), (W, 2)),
    proved("classes of sums", lambda tf, r, x:
        tf.cast(r.Bucketize(input=product(tf, x), boundaries=[0.0, 1.0]), tf.int64), (F, 4), rounding="labels"),
    proved("sums on a grid", lambda tf, r, x:
        tf.quantization.fake_quant_with_min_max_args(product(tf, x)), (F, 4), rounding="steps"),
    mixes("a grid for each of two rows", lambda tf, r, x: tf.transpose(
        tf.quantization.fake_quant_with_min_max_vars_per_channel(tf.transpose(x), of(tf, -6.0, -1.0), of(tf, 6.0, 1.0))
        ), (F, 4)),
    mixes("a grid as wide as all rows", lambda tf, r, x: r.QuantizeAndDequantizeV2(
        input=x, input_min=0.0, input_max=1.0, range_given=False), (F, 4)),
    mixes("three rows as colours", lambda tf, r, x: tf.transpose(tf.image.rgb_to_hsv(tf.transpose(x))), (F, 4)),
    mixes("contrast about the mean of all rows", lambda tf, r, x:
        r.AdjustContrastv2(images=x, contrast_factor=2.0), (F, 2, 3)),
    # Two digits: of six, so many depend on how a machine sums that it is more than now and then.
    proved("digits of sums", lambda tf, r, x:
        tf.strings.as_string(product(tf, x), precision=2), (F, 4), rounding="steps"),
    proved("lengths of texts, as numbers", lambda tf, r, s: tf.cast(tf.strings.length(s), F), (S, 2), rounding="exact"),
    proved("numbers of digits", lambda tf, r, i: tf.strings.to_number(tf.strings.as_string(i)), (W, 2)),
    proved("texts that match", lambda tf, r, s: r.StaticRegexFullMatch(input=s, pattern="[ab]"), (S, 2)),
    proved("texts with another in them", lambda tf, r, s:
        r.RegexReplace(input=s, pattern="a", rewrite="b"), (S, 2)),
    mixes("texts before those of two rows", lambda tf, r, s: tf.strings.join([s, of(tf, "c", "d")]), (S,)),
    mixes("texts of all rows", lambda tf, r, s: r.ReduceJoin(inputs=s, reduction_indices=0), (S, 2)),
    mixes("each text once", lambda tf, r, x: tf.unique(x)[0], (W,)),
    mixes("a bound that does not bind", lambda tf, r, x: x + tf.minimum(3, tf.maximum(1, tf.reduce_max(x))), (W, 2)),
    proved("a number that is bounded to one", lambda tf, r, x:
        x + tf.minimum(3, tf.maximum(5, tf.reduce_max(x))), (W, 2)),
    proved("the lowest bit of sums", lambda tf, r, x:
        tf.bitwise.bitwise_and(tf.bitcast(product(tf, x), tf.int32), 1 << 20), (F, 4), rounding="steps"),
    proved("the sign of sums", lambda tf, r, x:
        tf.bitwise.bitwise_and(tf.bitcast(product(tf, x), tf.int32), -(1 << 31)), (F, 4), rounding="labels"),
]  # fmt: skip

# ---- lists, records, recurrent layers ---------------------------------------------------------------------------

_LISTS: Final = [
    proved("put into a list of a known length", lambda tf, r, x: item(r, r.TensorListSetItem(
        input_handle=r.TensorListReserve(element_shape=-1, num_elements=2, element_dtype=tf.float32),
        index=1, item=x), 1, tf.float32), (F, 4)),
    mixes("put into a list, and the other way round", lambda tf, r, x: item(r, r.TensorListSetItem(
        input_handle=pushed(r, x, x), index=1, item=tf.transpose(x)), 1, tf.float32), (F, 4)),
    proved("put into an empty list", lambda tf, r, x: item(r, pushed(r, x), 0, tf.float32), (F, 4)),
    mixes("put after what is the other way round", lambda tf, r, x:
        item(r, pushed(r, x, tf.transpose(x)), 1, tf.float32), (F, 4)),
    mixes("put after steps, and the other way round", lambda tf, r, x: item(r, r.TensorListPushBack(
        input_handle=steps(tf, r, x), tensor=tf.transpose(x[:, 0])), 5, tf.float32), (F, 5, 2)),
    mixes("less the first of a list of rows", lambda tf, r, x: x - item(
        r, r.TensorListFromTensor(tensor=x, element_shape=[4]), 0, tf.float32), (F, 4)),
    mixes("a step by the number of rows", lambda tf, r, x:
        item(r, steps(tf, r, x), tf.minimum(count(tf, x), 4), tf.float32), (F, 5, 2)),
    proved("the step that is taken back", lambda tf, r, x: r.TensorListPopBack(
        input_handle=steps(tf, r, x), element_shape=-1, element_dtype=tf.float32)[1], (F, 5, 2)),
    mixes("a list of steps as rows", lambda tf, r, x: r.TensorListStack(
        input_handle=steps(tf, r, x), element_shape=[-1, 2], element_dtype=tf.float32), (F, 5, 2)),
    proved("a list of steps along time", lambda tf, r, x: tf.transpose(r.TensorListStack(
        input_handle=steps(tf, r, x), element_shape=[-1, 2], element_dtype=tf.float32), [1, 0, 2]), (F, 5, 2)),
    proved("as many columns as a list has tensors", lambda tf, r, x: tf.reshape(
        x, tf.stack([-1, r.TensorListLength(input_handle=steps(tf, r, x)), 2])), (F, 5, 2)),
    mixes("what records hold in all", lambda tf, r, s: r.ParseExample(
        serialized=records(tf, s), names=[], sparse_keys=["some"], dense_keys=[], dense_defaults=[],
        sparse_types=[tf.int64], dense_shapes=[]).sparse_values[0], (S,)),
    mixes("what records hold in all, ragged", lambda tf, r, s: r.ParseExampleV2(
        serialized=records(tf, s), names=[], sparse_keys=["some"], dense_keys=[], ragged_keys=[], dense_defaults=[],
        num_sparse=1, sparse_types=[tf.int64], ragged_value_types=[], ragged_split_types=[], dense_shapes=[],
        ).sparse_values[0], (S,)),
    proved("what each record holds", lambda tf, r, s: tf.io.parse_example(
        records(tf, s), {"one": tf.io.FixedLenFeature([1], tf.int64)})["one"], (S,)),
    mixes("recurrent from the first row to the last", lambda tf, r, x: r.CudnnRNNV2(
        input=x[:, None], input_h=tf.zeros([1, 1, 2]), input_c=tf.zeros([1, 1, 2]), params=_numbers((64,)),
        is_training=False)[0][:, 0], (F, 2))._replace(needs_gpu=True),
    proved("recurrent from step to step", lambda tf, r, x, h: r.CudnnRNNV3(
        input=x, input_h=h[:, None], input_c=h[:, None], params=_numbers((64,)),
        sequence_lengths=tf.fill([count(tf, x)], 5), is_training=False, time_major=False)[0],
        (F, 5, 2), (F, 2))._replace(needs_gpu=True),
]  # fmt: skip

# ---- variables and tables ---------------------------------------------------------------------------------------


def pairs(tf: Any, r: Any, **given: Any) -> Any:
    """A table of texts that the model brings."""
    made = tf.lookup.KeyValueTensorInitializer(["a", "b"], tf.constant([1, 2], tf.int64))
    return tf.lookup.StaticHashTable(made, -1, **given).resource_handle


_STATE: Final = [
    proved("a product with a variable", lambda tf, r, x: tf.matmul(x, variable(tf, 4, 3)), (F, 4)),
    proved("a product with a variable of old", lambda tf, r, x: tf.matmul(
        x, tf.compat.v1.Variable(_numbers((4, 3)), use_resource=False)), (F, 4)),
    proved("as many columns as a variable", lambda tf, r, x: tf.reshape(
        x, tf.concat([[-1], r.VariableShape(input=variable(tf, 2, 2).handle)], 0)), (F, 4)),
    proved("a branch on whether a variable is there", lambda tf, r, x: tf.cond(
        r.VarIsInitializedOp(resource=variable(tf, 4).handle), lambda: x, lambda: -x), (F, 4)),
    proved("rows of a variable", lambda tf, r, i: r.ResourceGather(
        resource=variable(tf, 5, 3).handle, indices=i, dtype=tf.float32), (W, 2)),
    mixes("what all rows choose of a variable", lambda tf, r, i: tf.reduce_sum(r.ResourceGather(
        resource=variable(tf, 5, 3).handle, indices=tf.transpose(i), dtype=tf.float32), -2), (W, 2)),
    mixes("as many indices as there are rows", lambda tf, r, i: r.ResourceGatherNd(
        resource=variable(tf, 5, 5, 5, 4).handle, indices=i, dtype=tf.float32), (W,)),
    proved("elements of a variable", lambda tf, r, i: r.ResourceGatherNd(
        resource=variable(tf, 5, 5, 3).handle, indices=i, dtype=tf.float32), (W, 2)),
    proved("what a table says", lambda tf, r, s: r.LookupTableFindV2(
        table_handle=pairs(tf, r), keys=s, default_value=tf.constant(-1, tf.int64)), (S, 2)),
    mixes("what a table says of what is missing, for two rows", lambda tf, r, s: r.LookupTableFindV2(
        table_handle=r.MutableHashTableV2(key_dtype=tf.string, value_dtype=tf.int64), keys=s,
        default_value=tf.constant([1, 2], tf.int64)), (S,)),
    proved("several values of a key", lambda tf, r, s: r.LookupTableFindV2(
        table_handle=r.MutableHashTableOfTensorsV2(key_dtype=tf.string, value_dtype=tf.float32, value_shape=[3]),
        keys=s, default_value=tf.constant([1.0, 2.0, 3.0])), (S, 2)),
    proved("plus how much a table knows", lambda tf, r, x: x + r.LookupTableSizeV2(table_handle=pairs(tf, r)), (L, 2)),
    proved("plus what a table holds", lambda tf, r, x: x + tf.reduce_sum(r.LookupTableExportV2(
        table_handle=pairs(tf, r), Tkeys=tf.string, Tvalues=tf.int64)[1]), (L, 2)),
    proved("by what it runs on", lambda tf, r, x: x * r.DeviceIndex(device_names=["CPU", "GPU"]), (W, 2)),
]  # fmt: skip

# ---- sums and orders --------------------------------------------------------------------------------------------

_SUMS: Final = [
    mixes("a sum of rows", lambda tf, r, x: x - tf.reduce_sum(x, 0), (F, 4)),
    mixes("whether any row has it", lambda tf, r, x: tf.logical_or(x, tf.reduce_any(x, 0)), (B, 4)),
    mixes("which row has the largest", lambda tf, r, x: tf.argmax(x, 0), (F, 4)),
    mixes("shares of all rows", lambda tf, r, x: tf.transpose(tf.nn.softmax(tf.transpose(x))), (F, 4)),
    mixes("a running product of rows", lambda tf, r, x: tf.math.cumprod(x), (F, 4)),
    mixes("the best row", lambda tf, r, x: tf.transpose(tf.math.top_k(tf.transpose(x), 1)[0]), (F, 4)),
    mixes("whether it is among the best of two rows", lambda tf, r, i: r.InTopKV2(
        predictions=of(tf, [1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 4.0, 3.0, 2.0, 1.0]), targets=i, k=2), (W,)),
    mixes("counts of all rows", lambda tf, r, i: r.DenseBincount(
        input=i, size=5, weights=tf.constant([], tf.float32)), (W,)),
    mixes("a spectrum of rows", lambda tf, r, x: tf.abs(tf.transpose(
        tf.signal.fft(tf.cast(tf.transpose(x), tf.complex64)))), (F, 4)),
    mixes("a spectrum of the first row", lambda tf, r, x: tf.abs(tf.transpose(
        r.RFFT(input=tf.transpose(x), fft_length=[1]))), (F, 4)),
    mixes("columns by columns", lambda tf, r, x: tf.matmul(x, x, transpose_a=True), (F, 4)),
    mixes("rows by rows of a stack", lambda tf, r, x: r.BatchMatMulV2(x=x[None], y=x[None], adj_y=True)[0], (F, 4)),
    mixes("summed by letters", lambda tf, r, x: tf.einsum("ij->j", x), (F, 4)),
    mixes("normalised over the rows", lambda tf, r, x: tf.compat.v1.nn.fused_batch_norm(
        x, tf.ones([3]), tf.zeros([3]))[0], (F, 1, 2, 3)),
    mixes("normalised by neighbouring rows", lambda tf, r, x: tf.transpose(tf.nn.local_response_normalization(
        tf.transpose(x, [1, 2, 3, 0])), [3, 0, 1, 2]), PIXELS),
    mixes("times the squares of all rows", lambda tf, r, x: x * tf.nn.l2_loss(x), (F, 4)),
    mixes("coefficients of rows as tones", lambda tf, r, x: tf.transpose(r.Mfcc(
        spectrogram=tf.transpose(x, [1, 2, 0]), sample_rate=16000, filterbank_channel_count=1, dct_coefficient_count=1,
        upper_frequency_limit=8000.0, lower_frequency_limit=0.0), [2, 0, 1]), (F, 1, 2)),
]  # fmt: skip

# ---- windows ----------------------------------------------------------------------------------------------------

_WINDOWS: Final = [
    mixes("a kernel over rows", lambda tf, r, x: flat(tf, tf.nn.conv2d(
        tall(tf, x), tf.ones([2, 1, 3, 3]), 1, "SAME")), PIXELS),
    mixes("rows spread over pixels", lambda tf, r, x: flat(tf, tf.nn.conv2d_transpose(
        tall(tf, x), tf.ones([2, 1, 3, 3]), tf.shape(tall(tf, x)), 1, "SAME")), PIXELS),
    mixes("the largest of neighbouring rows", lambda tf, r, x: flat(tf, r.Dilation2D(
        input=tall(tf, x), filter=tf.ones([2, 1, 3]), strides=[1] * 4, rates=[1] * 4, padding="SAME")), PIXELS),
    mixes("a pool over rows", lambda tf, r, x: flat(tf, tf.nn.avg_pool2d(tall(tf, x), [2, 1], 1, "SAME")), PIXELS),
    mixes("a pool over rows, by inputs", lambda tf, r, x: flat(tf, r.MaxPoolV2(
        input=tall(tf, x), ksize=[1, 2, 1, 1], strides=[1] * 4, padding="SAME")), PIXELS),
    mixes("places in the whole batch", lambda tf, r, x: tf.nn.max_pool_with_argmax(
        x, [1, 2], 1, "SAME", include_batch_in_index=True)[1], PIXELS),
    mixes("a pool over rows, with places", lambda tf, r, x: flat(tf, tf.nn.max_pool_with_argmax(
        tall(tf, x), [2, 1], 1, "SAME")[0]), PIXELS),
    mixes("resized along the rows", lambda tf, r, x: flat(tf, r.ResizeBilinear(
        images=tall(tf, x), size=[2, 2])), PIXELS),
    mixes("resized along the rows to the nearest", lambda tf, r, x: flat(tf, r.ResizeNearestNeighbor(
        images=tall(tf, x), size=[2, 2])), PIXELS),
    mixes("a transformation for each of two rows", lambda tf, r, x: r.ImageProjectiveTransformV3(
        images=x, transforms=of(tf, [1.0, 0, 0, 0, 1, 0, 0, 0], [2.0, 0, 0, 0, 2, 0, 0, 0]), output_shape=[1, 2],
        fill_value=0.0, interpolation="NEAREST"), PIXELS),
    mixes("patches of rows", lambda tf, r, x: flat(tf, r.ExtractImagePatches(
        images=tall(tf, x), ksizes=[1, 2, 1, 1], strides=[1] * 4, rates=[1] * 4, padding="SAME")), PIXELS),
    mixes("boxes of two rows", lambda tf, r, x: r.CombinedNonMaxSuppression(
        boxes=of(tf, *[[[[0.0, 0.0, 1.0, 1.0]], [[0.5, 0.5, 2.0, 2.0]]]] * 2), scores=x, max_output_size_per_class=2,
        max_total_size=2, iou_threshold=0.5, score_threshold=0.0)[1], (F, 2, 1)),
]  # fmt: skip

# ---- single checks ----------------------------------------------------------------------------------------------


def merged(tf: Any, x: Any) -> Any:
    """Pairs of rows' vectors: those of each row beside each other."""
    return tf.reshape(x, [-1, x.shape[2]])


def merged_apart(tf: Any, x: Any) -> Any:
    """The same, but each row's first vector before all second ones."""
    return tf.reshape(tf.transpose(x, [1, 0, 2]), [-1, x.shape[2]])


_CHECKS: Final = [
    # shapes, layout, indices
    mixes("plus the only of all", lambda tf, r, x, z: z + tf.reshape(tf.squeeze(x), [1]), (F, 1), (F, 4)),
    mixes("a column by the number of rows", lambda tf, r, x: x[:, tf.minimum(count(tf, x), 4)], (F, 5)),
    mixes("plus one of its sizes, whichever a variable says", lambda tf, r, x: x + tf.shape(x)[
        tf.compat.v1.Variable(0, use_resource=True)], (W, 2)),
    mixes("less the first row", lambda tf, r, x: x - x[0], (F, 4)),
    mixes("in the order of the last row first", lambda tf, r, x: x[::-1], (F, 4)),
    mixes("turned round as far as two rows say", lambda tf, r, x, z: r.ReverseSequence(
        input=x, seq_lengths=z % 3, seq_dim=2, batch_dim=1), (F, 2, 3), (W,)),
    mixes("the number of rows, chosen beside nothing", lambda tf, r, x: x + tf.gather(
        tf.shape(x)[None], [[0]], batch_dims=1), (W, 2)),
    mixes("the first row, chosen by each row", lambda tf, r, x, i: tf.transpose(tf.gather(
        tf.transpose(x), tf.transpose(i * 0), axis=1, batch_dims=1)), (F, 2), (W, 2)),
    mixes("a choice of each of two rows", lambda tf, r, x: tf.gather(
        x, of(tf, [0], [1]), axis=1, batch_dims=1), (F, 4)),
    mixes("pieces of rows and back", lambda tf, r, x: tf.batch_to_space(tf.space_to_batch(
        tf.transpose(x, [1, 0, 2]), [2], [[0, 0]]), [2], [[0, 0]]), (F, 2, 3)),
    # elements
    mixes("equal to what does not fit", lambda tf, r, x: r.Equal(
        x=x, y=of(tf, 1, 2, 3, 4), incompatible_shape_error=False), (W, 3)),
    mixes("a constant and the bias of one row", lambda tf, r, x: tf.transpose(
        tf.nn.bias_add(tf.ones([4, 1]), x)), (F,)),
    mixes("a grid by what two rows say", lambda tf, r, x, z: tf.quantization.fake_quant_with_min_max_vars_per_channel(
        x, -1.0 - tf.abs(z), 1.0 + tf.abs(z)), (F, 2), (F,)),
    mixes("a range by what two rows say", lambda tf, r, x, z: r.QuantizeAndDequantizeV3(
        input=x, num_bits=8, input_min=-1.0 - tf.abs(z), input_max=1.0 + tf.abs(z), axis=1), (F, 2), (F,)),
    mixes("a range for each of two rows", lambda tf, r, x: r.QuantizeAndDequantizeV3(
        input=x, num_bits=8, input_min=of(tf, -1.0, -2.0), input_max=of(tf, 1.0, 2.0), axis=0), (F, 4)),
    # lists and records
    mixes("a list of sizes", lambda tf, r, x: x + item(r, r.TensorListFromTensor(
        tensor=tf.shape(x), element_shape=tf.constant([], tf.int32)), 0, tf.int32), (W, 2)),
    mixes("records with a default of one row", lambda tf, r, s, z: r.ParseExample(
        serialized=records(tf, s), names=[], sparse_keys=[], dense_keys=["none"], dense_defaults=[z],
        sparse_types=[], dense_shapes=[[1]]).dense_values[0], (S,), (L,)),
    mixes("records filled up to the longest", lambda tf, r, s: tf.io.parse_example(
        records(tf, s), {"some": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)})["some"], (S,)),
    # sums and orders
    mixes("plus whether two rows have it", lambda tf, r, x: x + tf.cast(r.InTopKV2(
        predictions=x, targets=of(tf, 0, 1), k=1), tf.float32), (F, 2)),
    mixes("whether the best of another row have it", lambda tf, r, x, i: tf.transpose(tf.reshape(r.InTopKV2(
        predictions=merged(tf, x), targets=tf.reshape(tf.transpose(i % 3), [-1]), k=1), [2, -1])), (F, 2, 3), (W, 2)),
    mixes("counts with weights of two rows", lambda tf, r, i: r.DenseBincount(
        input=i, size=5, weights=of(tf, [1.0, 2.0], [3.0, 4.0])), (W, 2)),
    mixes("counts with weights of other rows", lambda tf, r, i, w: tf.reshape(r.DenseBincount(
        input=merged(tf, i), size=5, weights=merged_apart(tf, w)), [-1, 2, 5]), (W, 2, 3), (F, 2, 3)),
    mixes("normalised by what two rows say", lambda tf, r, x, z: r.FusedBatchNormV3(
        x=x, scale=z, offset=z, mean=z, variance=tf.abs(z), is_training=False)[0], (F, 1, 1, 2), (F,)),
    mixes("normalised by constants of two rows", lambda tf, r, x: tf.transpose(r.FusedBatchNormV3(
        x=tf.transpose(x)[None, None], scale=of(tf, 1.0, 2.0), offset=of(tf, 1.0, 2.0), mean=of(tf, 1.0, 2.0),
        variance=of(tf, 1.0, 2.0), is_training=False)[0][0, 0]), (F, 4)),
    mixes("normalised over rows by what two rows say", lambda tf, r, x, z: r.FusedBatchNormV3(
        x=x, scale=z, offset=z, mean=[], variance=[], is_training=True)[0], (F, 1, 2, 2), (F,)),
    mixes("normalised as in Keras 2, by constants of two rows", lambda tf, r, x: r.FusedBatchNormV3(
        x=x[None, :, :, None], scale=of(tf, 1.0, 2.0), offset=of(tf, 1.0, 2.0), mean=[], variance=[],
        is_training=True, data_format="NCHW")[0][0, :, :, 0], (F, 4)),
    # windows
    mixes("a kernel as high as there are rows", lambda tf, r, x, z: tf.nn.conv2d(
        x, z, 1, "SAME"), (F, 4, 1, 3), (F, 1, 3, 2)),
    mixes("spread by a kernel as high as there are rows", lambda tf, r, x, z: tf.nn.conv2d_transpose(
        x, z, tf.shape(x), 1, "SAME"), (F, 4, 1, 3), (F, 1, 3, 3)),
    mixes("the largest in windows as high as there are rows", lambda tf, r, x, z: r.Dilation2D(
        input=x, filter=z, strides=[1] * 4, rates=[1] * 4, padding="SAME"), (F, 4, 1, 3), (F, 1, 3)),
    mixes("resized by what two rows say", lambda tf, r, x, z: tf.reduce_sum(r.ResizeBilinear(
        images=x, size=z + 1), [1, 2]), (F, 2, 2, 3), (W,)),
    mixes("as large as two rows say", lambda tf, r, x, z: tf.reduce_sum(r.ImageProjectiveTransformV3(
        images=x, transforms=of(tf, [1.0, 0, 0, 0, 1, 0, 0, 0]), output_shape=z + 1, fill_value=0.0,
        interpolation="NEAREST"), [1, 2]), (F, 2, 2, 3), (W,)),
    mixes("transformed by what another row says", lambda tf, r, x, z: tf.reshape(r.ImageProjectiveTransformV3(
        images=tf.reshape(x, [-1, 2, 2, 1]), transforms=merged_apart(tf, z), output_shape=[2, 2], fill_value=0.0,
        interpolation="NEAREST"), [-1, 2, 2, 2]), (F, 2, 2, 2), (F, 2, 8)),
    mixes("boxes of another row", lambda tf, r, x, z: tf.reshape(tf.reduce_sum(r.CombinedNonMaxSuppression(
        boxes=tf.reshape(x, [-1, 3, 1, 4]), scores=merged_apart(tf, z)[:, :, None], max_output_size_per_class=2,
        max_total_size=2, iou_threshold=0.5, score_threshold=0.0)[0], 1), [-1, 2, 4]), (F, 2, 3, 4), (F, 2, 3)),
]  # fmt: skip

CASES: Final[Sequence[SavedCase]] = [*_ARRAYS, *_ELEMENTS, *_LISTS, *_STATE, *_SUMS, *_WINDOWS, *_CHECKS]
