"""SavedModels that TensorFlow makes and runs: what is proved is right, and what mixes rows is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cases import drawn, row_counts
from saved_model_cases import CASES, SavedCase, write
from truth import Batch, Truth, compare

from cortex.rows import prove_saved_model
from cortex.wire.batching import Proof
from cortex.wire.saved_model_proto import read_graph


class Written(NamedTuple):
    """A computation, and the trailing sizes and types of its inputs."""

    name: str
    build: Callable[..., Any]
    """Gets TensorFlow, a module for variables, and the inputs."""
    inputs: tuple[tuple[Any, ...], ...]
    """Each a type, and its trailing sizes; None for a free one."""


F, W, S = "float32", "int32", "string"  # fractions, whole numbers, text


def counted(tf: Any, module: Any, x: Any) -> Any:
    if not hasattr(module, "count"):
        module.count = tf.Variable(0.0)
    with tf.control_dependencies([module.count.assign_add(1.0)]):
        return x + module.count


def noted(tf: Any, module: Any, x: Any) -> Any:
    """Writes, and what it writes is in no answer of the same request."""
    if not hasattr(module, "last"):
        module.last = tf.Variable(0.0)
    with tf.control_dependencies([module.last.assign(tf.reduce_sum(x))]):
        return x * 2.0


def early_stop(tf: Any, module: Any, x: Any) -> Any:
    return tf.while_loop(lambda a: tf.reduce_any(a < 9.0), lambda a: (tf.abs(a) * 2.0 + 1.0,), [x])[0]


def five_turns(tf: Any, module: Any, x: Any) -> Any:
    return tf.while_loop(lambda i, a: i < 5, lambda i, a: (i + 1, tf.tanh(a) + tf.cast(i, F)), [0, x])[1]


def one_by_one(tf: Any, module: Any, x: Any) -> Any:
    return tf.map_fn(lambda row: row * 2.0, x)


def along_time(tf: Any, module: Any, x: Any) -> Any:
    state = tf.zeros([tf.shape(x)[0], 3])
    return tf.scan(lambda a, row: a * 0.5 + row, tf.transpose(x, [1, 0, 2]), state)[-1]


def attention(tf: Any, module: Any, x: Any) -> Any:
    count = tf.shape(x)[0]
    heads = tf.reshape(tf.transpose(tf.reshape(x, [count, -1, 2, 4]), [0, 2, 1, 3]), [count * 2, -1, 4])
    mixed = tf.matmul(tf.nn.softmax(tf.matmul(heads, heads, transpose_b=True)), heads)
    return tf.reshape(tf.transpose(tf.reshape(mixed, [count, 2, -1, 4]), [0, 2, 1, 3]), [count, -1, 8])


def layer_norm_of_keras_2(tf: Any, module: Any, x: Any) -> Any:
    shape = tf.shape(x)
    places = shape[0] * shape[1]
    channels = tf.reshape(x, [1, places, 8, 1])
    y, _, _ = tf.compat.v1.nn.fused_batch_norm(
        channels, tf.ones([places]), tf.zeros([places]), data_format="NCHW", is_training=True
    )
    return tf.reshape(y, shape)


def looked_up(tf: Any, module: Any, words: Any) -> Any:
    if not hasattr(module, "table"):
        pairs = tf.lookup.KeyValueTensorInitializer(["a", "b"], [1, 2])
        module.table = tf.lookup.StaticHashTable(pairs, -1)
    return module.table.lookup(tf.strings.lower(words))


PROVED = [
    Written("five turns of a loop", five_turns, ((F, 3),)),
    Written("a scan along time", along_time, ((F, 5, 3),)),
    Written("attention with merged heads", attention, ((F, None, 8),)),
    Written("a layer normalisation of Keras 2", layer_norm_of_keras_2, ((F, 5, 8),)),
    Written("words in a table", looked_up, ((S, 2),)),
    Written("a dilated convolution by pieces", lambda tf, m, x: tf.batch_to_space(
        tf.nn.conv1d(tf.space_to_batch(x, [2], [[0, 0]]), tf.ones([3, 2, 4]), 1, "SAME"), [2], [[0, 0]]), ((F, 6, 2),)),
    Written("each row's last step", lambda tf, m, x, n: tf.gather_nd(
        x, tf.stack([tf.range(tf.shape(x)[0]), tf.clip_by_value(n, 0, 3)], 1)), ((F, 4, 3), (W,))),
    Written("each row's own choice", lambda tf, m, x, i: tf.gather(x, tf.clip_by_value(i, 0, 3), batch_dims=1),
            ((F, 4), (W, 2))),
    Written("a mask by lengths", lambda tf, m, x, n: tf.reduce_sum(
        x * tf.sequence_mask(n, tf.shape(x)[1], F)[:, :, None], 1), ((F, None, 3), (W,))),
    Written("a branch on a size", lambda tf, m, x: tf.cond(tf.shape(x)[1] > 2, lambda: x * 2.0, lambda: x),
            ((F, None),)),
    Written("a spectrogram", lambda tf, m, x: tf.abs(tf.signal.stft(x, 8, 4)), ((F, 32),)),
    Written("a convolution and a pool", lambda tf, m, x: tf.nn.max_pool2d(
        tf.nn.conv2d(x, tf.ones([3, 3, 2, 4]), [1, 2, 2, 1], "SAME"), 2, 2, "VALID"), ((F, 9, 8, 2),)),
    Written("a transposed convolution", lambda tf, m, x: tf.nn.conv2d_transpose(
        x, tf.ones([3, 3, 2, 4]), tf.stack([tf.shape(x)[0], 8, 8, 2]), 2), ((F, 4, 4, 4),)),
]  # fmt: skip

MIXING = [
    Written("a count of calls", counted, ((F, 3),)),
    Written("a loop that stops when all rows have", early_stop, ((F, 3),)),
    Written("random numbers", lambda tf, m, x: x + tf.random.normal(tf.shape(x)), ((F, 3),)),
    Written("random numbers of a seed", lambda tf, m, x: x + tf.random.stateless_normal(tf.shape(x), [1, 2]),
            ((F, 3),)),
    Written("the largest of all", lambda tf, m, x: x - tf.reduce_max(x), ((F, 3),)),
    Written("x by the number of rows", lambda tf, m, x: x / tf.cast(tf.shape(x)[0], F), ((F, 3),)),
    Written("without the first row", lambda tf, m, x: x - x[:1], ((F, 3),)),
    Written("the other way round", lambda tf, m, x: x[::-1], ((F, 3),)),
    Written("a running sum", lambda tf, m, x: tf.cumsum(x), ((F, 3),)),
    Written("a branch on any row", lambda tf, m, x: tf.cond(tf.reduce_any(x > 1.0), lambda: x * 2.0, lambda: x),
            ((F, 3),)),
    Written("words padded to the longest", lambda tf, m, s: tf.strings.split(s).to_tensor(""), ((S,),)),
    Written("dimensions of size 1 dropped", lambda tf, m, x: tf.squeeze(x), ((F, 1, 1),)),
    Written("rows by rows", lambda tf, m, x: tf.matmul(x, x, transpose_b=True), ((F, 3),)),
    Written("normalised over the batch", lambda tf, m, x: tf.compat.v1.nn.fused_batch_norm(
        x, tf.ones([2]), tf.zeros([2]))[0], ((F, 3, 3, 2),)),
    Written("only some rows", lambda tf, m, x: tf.boolean_mask(x, x[:, 0] > 0.0), ((F, 3),)),
    Written("numbers of the rows", lambda tf, m, x: x + tf.cast(tf.range(tf.shape(x)[0]), F)[:, None], ((F, 3),)),
]  # fmt: skip

REFUSED = [
    Written("a note of the last request", noted, ((F, 3),)),
    Written("row by row in a loop", one_by_one, ((F, 3),)),
]


def saved(tf: Any, written: Written, folder: Path) -> None:
    module = tf.Module()
    specs = [tf.TensorSpec([None, *sizes], dtype, f"x{at}") for at, (dtype, *sizes) in enumerate(written.inputs)]
    function = tf.function(lambda *values: {"y": written.build(tf, module, *values)}, input_signature=specs)
    function.get_concrete_function()  # what makes variables makes them here
    tf.saved_model.save(module, str(folder), signatures={"serving_default": function})


def judged(folder: Path, batches: int = 8) -> tuple[Proof, Truth]:
    """What is proved of a model, and what was seen when it ran."""
    from cortex.replica.backends.tensorflow import load

    proof = prove_saved_model(read_graph(folder, None))
    rng = np.random.default_rng(7)
    backend = load(str(folder))

    def draw() -> Batch:
        free = {
            (spec.name, axis): int(rng.integers(2, 6))
            for spec in backend.signature.inputs
            for axis in range(1, len(spec.shape or ()))
        }
        for one in proof.sizes:
            size = one.size if one.size is not None else free.get((one.other_input, one.other_axis), one.at_most)
            assert size is not None
            free[one.input, one.axis] = size

        def feed(spec: Any, count: int) -> Any:
            sizes = [dim if isinstance(dim, int) else free[spec.name, at] for at, dim in enumerate(spec.shape[1:], 1)]
            dtype = np.dtype(object if spec.dtype == "string" else spec.dtype)
            made = drawn(rng, (count, *sizes), dtype)
            return abs(made) if dtype.kind == "i" else made

        return [{spec.name: feed(spec, count) for spec in backend.signature.inputs} for count in row_counts(rng)]

    try:
        return proof, compare(backend, draw, proof.rounding if proof.proved else "rounding", batches=batches)
    finally:
        backend.close()


@pytest.mark.parametrize("written", PROVED, ids=[one.name for one in PROVED])
def test_what_is_proved_is_right_when_it_is_run(tensorflow: Any, tmp_path: Path, written: Written) -> None:
    saved(tensorflow, written, tmp_path)
    proof, truth = judged(tmp_path)
    assert proof.proved, proof
    assert truth.is_right, truth


@pytest.mark.parametrize("written", MIXING, ids=[one.name for one in MIXING])
def test_what_mixes_rows_is_refused(tensorflow: Any, tmp_path: Path, written: Written) -> None:
    saved(tensorflow, written, tmp_path)
    proof, truth = judged(tmp_path)
    assert not proof.proved
    assert truth.wrong is not None


@pytest.mark.parametrize("written", REFUSED, ids=[one.name for one in REFUSED])
def test_what_may_mix_rows_is_refused_whatever_is_seen(tensorflow: Any, tmp_path: Path, written: Written) -> None:
    saved(tensorflow, written, tmp_path)
    proof, _ = judged(tmp_path)
    assert not proof.proved


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_what_is_written_for_a_rule_is_as_it_says(tensorflow: Any, tmp_path: Path, case: SavedCase) -> None:
    if case.needs_gpu and not tensorflow.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow runs it on a GPU only")
    write(tensorflow, case, tmp_path)
    proof, truth = judged(tmp_path, batches=32 if case.expected == "mixes" else 4)
    assert proof.proved == (case.expected == "proved"), proof
    assert case.rounding in (None, proof.rounding)
    assert truth.is_right == proof.proved, truth
    assert (truth.wrong is not None) == (case.expected == "mixes")


# ---- Keras ----------------------------------------------------------------------------------------------------------


def perceptron(keras: Any) -> Any:
    layers = keras.layers
    return [
        layers.Dense(8, "relu"),
        layers.BatchNormalization(),
        layers.LayerNormalization(),
        layers.Dense(3, "softmax"),
    ]


def convolutional(keras: Any) -> Any:
    layers = keras.layers
    return [
        layers.Conv2D(4, 3, padding="same", activation="relu"), layers.MaxPooling2D(), layers.SeparableConv2D(4, 3),
        layers.Conv2DTranspose(3, 2, strides=2), layers.GlobalAveragePooling2D(),
    ]  # fmt: skip


def recurrent(keras: Any) -> Any:
    layers = keras.layers
    return [
        layers.Embedding(20, 4, mask_zero=True), layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
        layers.GRU(3), layers.Dense(2),
    ]  # fmt: skip


def transformer(keras: Any, ids: Any) -> Any:
    layers = keras.layers
    x = layers.Embedding(20, 8, mask_zero=True)(ids)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True))
    x = layers.LayerNormalization()(x + layers.Dense(8)(layers.Dense(16, "gelu")(x)))
    return layers.Dense(3)(layers.GlobalAveragePooling1D()(x))


def categories(keras: Any, words: Any) -> Any:
    layers = keras.layers
    one = layers.StringLookup(vocabulary=["a", "b"], output_mode="multi_hot")(words)
    two = layers.Flatten()(layers.Embedding(5, 2)(layers.StringLookup(vocabulary=["a", "b"])(words)))
    return {"p": layers.Dense(2)(layers.Concatenate()([one, two])), "label": keras.ops.argmax(one, -1)}


def normalised_over_the_batch(keras: Any, x: Any) -> Any:
    return keras.layers.Lambda(lambda y: y - keras.ops.mean(y, axis=0, keepdims=True))(keras.layers.Dense(3)(x))


def words_of_any_number(keras: Any, words: Any) -> Any:
    layers = keras.layers
    ids = layers.TextVectorization(vocabulary=["a", "cat"])(words)
    return layers.GlobalAveragePooling1D()(layers.Embedding(5, 3)(ids))


@pytest.mark.parametrize(
    ("build", "sizes", "dtype", "proved"),
    [
        (perceptron, (6,), F, True),
        (convolutional, (8, 8, 2), F, True),
        (recurrent, (None,), W, True),
        (transformer, (None,), W, True),
        (categories, (3,), S, True),
        (normalised_over_the_batch, (6,), F, False),
        (words_of_any_number, (1,), S, False),
    ],
)
def test_models_of_keras_are_proved_where_their_rows_keep_apart(
    tensorflow: Any, tmp_path: Path, build: Any, sizes: tuple[int | None, ...], dtype: str, proved: bool
) -> None:
    keras = pytest.importorskip("keras")
    keras.utils.set_random_seed(3)
    given = keras.Input(sizes, dtype=dtype, name="x")
    if build in (perceptron, convolutional, recurrent):
        made = keras.Sequential([given, *build(keras)])
    else:
        made = keras.Model(given, build(keras, given))
    made.export(str(tmp_path), format="tf_saved_model", verbose=False)
    proof, truth = judged(tmp_path)
    assert proof.proved == proved, proof
    assert truth.is_right == proved, truth
