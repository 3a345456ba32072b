"""
Keras models twice: converted by tf2onnx, and as the SavedModels that `model.export` writes.

    pip install tensorflow-cpu==2.21.0 tf2onnx==1.17.0 onnx==1.23.2
    python bench/batching/makers/keras_models.py FOLDER
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from keras import layers, ops

WORDS = 60


exactly = True
"""Whether GELU is computed by `Erfc`, which is Keras's default; tf2onnx cannot convert that, only the approximation."""


def gelu(x: Any) -> Any:
    return keras.activations.gelu(x, approximate=not exactly)


class Apply(layers.Layer):
    """A function as a layer: what `Lambda` is, but that it need not be told shapes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def call(self, *values: Any) -> Any:
        return self.function(*values)


def mlp() -> keras.Model:
    x = layers.Input((12,), name="x")
    y = layers.Dropout(0.2)(layers.Dense(24, activation="relu")(layers.BatchNormalization()(x)))
    return keras.Model(x, layers.Dense(3, activation="softmax")(y))


def two_inputs() -> keras.Model:
    a, b = layers.Input((4,), name="a"), layers.Input((1,), dtype="int32", name="b")
    y = layers.Concatenate()([layers.Dense(6)(a), layers.Flatten()(layers.Embedding(10, 4)(b))])
    return keras.Model(
        [a, b], [layers.Dense(2, name="first")(y), layers.Dense(1, activation="sigmoid", name="second")(y)]
    )


def cnn() -> keras.Model:
    x = layers.Input((12, 12, 3), name="x")
    y = layers.MaxPooling2D(2)(layers.BatchNormalization()(layers.Conv2D(6, 3, activation="relu", padding="same")(x)))
    y = layers.SeparableConv2D(8, 3, activation="swish", strides=2, padding="same")(y)
    return keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling2D()(y)))


def cnn_free() -> keras.Model:
    """Height and width are free."""
    x = layers.Input((None, None, 3), name="x")
    y = layers.Conv2D(6, 3, activation="relu", padding="same")(layers.Rescaling(1 / 255)(x))
    return keras.Model(x, layers.Dense(4)(layers.GlobalMaxPooling2D()(layers.AveragePooling2D(2)(y))))


def unet() -> keras.Model:
    x = layers.Input((16, 16, 2), name="x")
    a = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    b = layers.Conv2D(6, 3, padding="same", activation="relu")(layers.MaxPooling2D(2)(a))
    up = layers.Conv2DTranspose(4, 2, strides=2)(b)
    wide = layers.UpSampling2D(interpolation="bilinear")(b)
    return keras.Model(x, layers.Conv2D(1, 1, activation="sigmoid")(layers.Concatenate()([a, up, wide])))


def conv1d() -> keras.Model:
    x = layers.Input((None, 5), name="x")
    y = layers.Conv1D(8, 3, padding="causal", activation=gelu)(x)
    y = layers.LayerNormalization()(layers.Conv1D(8, 3, padding="same", dilation_rate=2)(y))
    return keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling1D()(y)))


def words(*, masked: bool) -> tuple[Any, Any]:
    ids = layers.Input((None,), dtype="int32", name="ids")
    return ids, layers.Embedding(WORDS, 8, mask_zero=masked)(ids)


def lstm() -> keras.Model:
    ids, y = words(masked=False)
    return keras.Model(ids, layers.Dense(3)(layers.LSTM(8)(y)))


def lstm_mask() -> keras.Model:
    ids, y = words(masked=True)
    return keras.Model(ids, layers.Dense(3)(layers.LSTM(8)(y)))


def gru() -> keras.Model:
    ids, y = words(masked=False)
    return keras.Model(ids, layers.Dense(3)(layers.GRU(8, return_sequences=True)(y)))


def gru_mask() -> keras.Model:
    ids, y = words(masked=True)
    return keras.Model(ids, layers.Dense(3)(layers.GRU(8, return_sequences=True)(y)))


def bidirectional() -> keras.Model:
    ids, y = words(masked=False)
    y = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(y)
    return keras.Model(ids, layers.Dense(3, activation="softmax")(layers.GlobalMaxPooling1D()(y)))


def lstm_lengths() -> keras.Model:
    """Lengths beside the ids make the mask."""
    ids, lengths = layers.Input((None,), dtype="int32", name="ids"), layers.Input((), dtype="int32", name="lengths")
    y = layers.Embedding(WORDS, 8)(ids)
    mask = Apply(lambda ids, lengths: ops.arange(ops.shape(ids)[1])[None] < lengths[:, None])(ids, lengths)
    return keras.Model([ids, lengths], layers.Dense(3)(layers.LSTM(8)(y, mask=mask)))


def block(y: Any, *, mask: Any = None, causal: bool = False) -> Any:
    a = layers.MultiHeadAttention(2, 4)(y, y, attention_mask=mask, use_causal_mask=causal)
    y = layers.LayerNormalization()(y + a)
    return layers.LayerNormalization()(y + layers.Dense(8)(layers.Dense(12, activation=gelu)(y)))


def places(y: Any) -> Any:
    """A position's own vector is added: positions counted from the length."""
    return y + layers.Embedding(64, 8)(Apply(lambda y: ops.arange(ops.shape(y)[1]))(y))


def transformer() -> keras.Model:
    ids, y = words(masked=False)
    return keras.Model(ids, layers.Dense(3)(layers.GlobalAveragePooling1D()(block(places(y)))))


def transformer_mask() -> keras.Model:
    ids = layers.Input((None,), dtype="int32", name="ids")
    kept = layers.Input((None,), dtype="int32", name="mask")
    y = block(layers.Embedding(WORDS, 8)(ids), mask=Apply(lambda m: m[:, None, :] > 0)(kept))
    pooled = Apply(mean_of_kept)(y, kept)
    return keras.Model([ids, kept], layers.Dense(3)(pooled))


def mean_of_kept(y: Any, kept: Any) -> Any:
    weights = ops.cast(kept, "float32")
    return ops.sum(y * weights[..., None], 1) / ops.maximum(ops.sum(weights, 1, keepdims=True), 1)


def transformer_embedding_mask() -> keras.Model:
    """The mask is made by the embedding: what is 0 is padding."""
    ids, y = words(masked=True)
    return keras.Model(ids, layers.Dense(3)(layers.GlobalAveragePooling1D()(block(y))))


def gpt() -> keras.Model:
    ids, y = words(masked=False)
    return keras.Model(ids, layers.Dense(WORDS)(block(places(y), causal=True)))


def vit() -> keras.Model:
    x = layers.Input((16, 16, 3), name="x")
    y = layers.Reshape((16, 8))(layers.Conv2D(8, 4, strides=4)(x))
    return keras.Model(x, layers.Dense(4)(layers.GlobalAveragePooling1D()(block(y))))


def time_distributed() -> keras.Model:
    """Of frames that are always five."""
    x = layers.Input((5, 6), name="frames")
    return keras.Model(x, layers.Dense(2)(layers.LSTM(4)(layers.TimeDistributed(layers.Dense(4))(x))))


def time_distributed_free() -> keras.Model:
    """
    Of any number of frames: Keras 3.15 takes as many as there are rows.

    Source: `keras/src/layers/rnn/time_distributed.py` turns rows and time around, and counts along the shape of before.
    """
    x = layers.Input((None, 6), name="frames")
    return keras.Model(x, layers.Dense(2)(layers.LSTM(4)(layers.TimeDistributed(layers.Dense(4))(x))))


def time_distributed_cnn() -> keras.Model:
    x = layers.Input((4, 8, 8, 1), name="frames")
    y = layers.TimeDistributed(layers.Conv2D(3, 3, activation="relu"))(x)
    y = layers.TimeDistributed(layers.Flatten())(y)
    return keras.Model(x, layers.Dense(2)(layers.LSTM(4)(y)))


def autoencoder() -> keras.Model:
    x = layers.Input((20,), name="x")
    code = layers.Dense(4, activation="tanh")(x)
    return keras.Model(x, [layers.Dense(20)(code), code])


def mixer() -> keras.Model:
    x = layers.Input((6, 8), name="x")
    y = layers.Permute((2, 1))(layers.Dense(6, activation=gelu)(layers.Permute((2, 1))(x)))
    y = layers.GroupNormalization(2)(x + y)
    return keras.Model(x, layers.Dense(2)(layers.Flatten()(y)))


def batch_max() -> keras.Model:
    """Scaled by the largest value of all rows."""
    x = layers.Input((5,), name="x")
    y = Apply(lambda x: x / ops.max(ops.abs(x)))(x)
    return keras.Model(x, layers.Dense(2)(y))


def batch_standardised() -> keras.Model:
    """Batch normalisation left in training."""
    x = layers.Input((5,), name="x")
    y = Apply(lambda x: (x - ops.mean(x, 0)) / (ops.std(x, 0) + 1e-3))(x)
    return keras.Model(x, layers.Dense(2)(y))


MODELS: tuple[Callable[[], keras.Model], ...] = (
    mlp,
    two_inputs,
    cnn,
    cnn_free,
    unet,
    conv1d,
    lstm,
    lstm_mask,
    lstm_lengths,
    gru,
    gru_mask,
    bidirectional,
    transformer,
    transformer_mask,
    transformer_embedding_mask,
    gpt,
    vit,
    time_distributed,
    time_distributed_free,
    time_distributed_cnn,
    autoencoder,
    mixer,
    batch_max,
    batch_standardised,
)


def convert(model: keras.Model) -> onnx.ModelProto:
    """tf2onnx's own way in for Keras does not know Keras 3; the function below it does."""
    signature = [tf.TensorSpec(x.shape, x.dtype, name=x.name) for x in model.inputs]
    function = tf.function(lambda *values: model(list(values) if len(values) > 1 else values[0], training=False))
    global exactly
    exactly = False
    try:
        made, _ = tf2onnx.convert.from_function(function, signature, opset=18)
    finally:
        exactly = True
    return made


# ---- models of plain TensorFlow, which only exist as SavedModels ----------------------------------------------------


class Ragged(tf.Module):
    """Text, split and padded to the longest of the batch; the mean is taken over the padding as well."""

    def __init__(self) -> None:
        super().__init__()
        keys = tf.constant(["the", "cat", "sat", "on", "mat", "a", "b", "hello", "world"])
        pairs = tf.lookup.KeyValueTensorInitializer(keys, tf.range(1, 10, dtype=tf.int64))
        self.table = tf.lookup.StaticVocabularyTable(pairs, 1)
        self.words = tf.Variable(np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(self, text: Any) -> Any:
        ids = self.table.lookup(tf.strings.split(text)).to_tensor()
        return {"score": tf.reduce_mean(tf.nn.embedding_lookup(self.words, ids), axis=1)}


class Dense(tf.Module):
    """The same without text: ragged rows, by lengths, made dense."""

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None], tf.float32, name="x"),
            tf.TensorSpec([None], tf.int64, name="lengths"),
        ]
    )
    def serve(self, x: Any, lengths: Any) -> Any:
        ragged = tf.RaggedTensor.from_tensor(x, lengths=lengths)
        return {"mean": tf.reduce_mean(ragged.to_tensor(), axis=1)}


class Counter(tf.Module):
    """State: a count of calls is in the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.count = tf.Variable(0.0)

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def serve(self, x: Any) -> Any:
        return {"y": x + self.count.assign_add(1.0)}


class Recorder(tf.Module):
    """State that no answer shows: it hangs on a control edge."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = tf.Variable(tf.zeros([3]))

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def serve(self, x: Any) -> Any:
        self.seen.assign(tf.reduce_max(x, 0))
        return {"y": x * 2}


class Random(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def serve(self, x: Any) -> Any:
        return {"y": x + tf.random.stateless_uniform(tf.shape(x), [1, 2])}


class EarlyStop(tf.Module):
    """Halves until the largest of all is small."""

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def serve(self, x: Any) -> Any:
        return {"y": tf.while_loop(lambda x: tf.reduce_max(tf.abs(x)) > 0.01, lambda x: (x * 0.5,), (x,))[0]}


class Scale(tf.Module):
    """Divided by the number of rows."""

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def serve(self, x: Any) -> Any:
        return {"y": x / tf.cast(tf.shape(x)[0], tf.float32)}


class Labels(tf.Module):
    """Words one a row, looked up; several outputs, one of them text."""

    def __init__(self) -> None:
        super().__init__()
        keys = tf.constant(["low", "middle", "high"])
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(keys, tf.constant([0.1, 0.5, 0.9])), -1.0
        )
        self.names = tf.constant(["no", "yes"])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="word")])
    def serve(self, word: Any) -> Any:
        score = self.table.lookup(word)
        return {"score": score, "answer": tf.gather(self.names, tf.cast(score > 0.4, tf.int32))}


class Images(tf.Module):
    """Resized and standardised each by itself."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="image")])
    def serve(self, image: Any) -> Any:
        x = tf.image.resize(tf.cast(image, tf.float32), [8, 8])
        mean, variance = tf.nn.moments(x, [1, 2, 3], keepdims=True)
        return {"pixels": (x - mean) / tf.sqrt(variance + 1e-3)}


TENSORFLOW: dict[str, type[tf.Module]] = {
    "ragged-text": Ragged,
    "ragged-dense": Dense,
    "counter": Counter,
    "recorder": Recorder,
    "random": Random,
    "early-stop": EarlyStop,
    "scale": Scale,
    "labels": Labels,
    "images": Images,
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for make in MODELS:
        name = "keras-" + make.__name__.replace("_", "-")
        keras.utils.set_random_seed(7)
        keras.backend.clear_session()
        model = make()
        try:
            onnx.save(convert(model), folder / f"{name}.onnx")
        except Exception as error:
            print(f"{name}.onnx: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
        try:
            model.export(str(folder / f"{name}.tf"), verbose=False)
        except Exception as error:
            print(f"{name}.tf: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
    for name, module in TENSORFLOW.items():
        made = module()
        tf.saved_model.save(made, str(folder / f"tensorflow-{name}.tf"), signatures={"serving_default": made.serve})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
