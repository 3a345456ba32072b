"""Train models/tensorflow: a small neural network as a SavedModel. Measurements go in by name."""

import shutil

import numpy as np
import tensorflow as tf
from common import SEED, load
from saved_model import FEATURES, LABELS, MODEL


class Iris(tf.Module):
    """Four measurements in, three scores out. Knows the mean and spread of its training data."""

    def __init__(self, mean: np.ndarray, spread: np.ndarray) -> None:
        super().__init__()
        random = np.random.default_rng(SEED)
        self.mean, self.spread = tf.Variable(mean, trainable=False), tf.Variable(spread, trainable=False)
        self.weights_1 = tf.Variable(random.normal(0, 0.5, (4, 16)).astype(np.float32))
        self.bias_1 = tf.Variable(np.zeros(16, np.float32))
        self.weights_2 = tf.Variable(random.normal(0, 0.25, (16, 3)).astype(np.float32))
        self.bias_2 = tf.Variable(np.zeros(3, np.float32))

    def scores(self, features: tf.Tensor) -> tf.Tensor:
        hidden = tf.nn.relu((features - self.mean) / self.spread @ self.weights_1 + self.bias_1)  # (rows, 16)
        return hidden @ self.weights_2 + self.bias_2  # (rows, 3)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name=name) for name in FEATURES])
    def predict(self, sepal_length, sepal_width, petal_length, petal_width):
        scores = self.scores(tf.stack([sepal_length, sepal_width, petal_length, petal_width], axis=1))
        return {
            "label": tf.gather(tf.constant(LABELS), tf.argmax(scores, axis=1)),  # text, (rows,)
            "probabilities": tf.nn.softmax(scores),  # (rows, 3)
        }


def train(features: np.ndarray, classes: np.ndarray) -> Iris:
    """Gradient descent over all rows at once, with a little weight decay."""
    model = Iris(features.mean(axis=0), features.std(axis=0))
    velocity = [tf.Variable(tf.zeros_like(weight)) for weight in model.trainable_variables]
    for _ in range(400):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, model.scores(features))
            decay = tf.nn.l2_loss(model.weights_1) + tf.nn.l2_loss(model.weights_2)
            loss = tf.reduce_mean(losses) + 1e-3 * decay
        gradients = tape.gradient(loss, model.trainable_variables)
        for weight, speed, gradient in zip(model.trainable_variables, velocity, gradients, strict=True):
            speed.assign(0.9 * speed - 0.1 * gradient)
            weight.assign_add(speed)
    return model


def main() -> None:
    train_features, test_features, train_classes, test_classes = load()
    model = train(train_features, train_classes)
    shutil.rmtree(MODEL, ignore_errors=True)
    tf.saved_model.save(model, MODEL, signatures={"predict": model.predict})
    (MODEL / "fingerprint.pb").unlink()  # a random number is in it, and nothing needs it

    exported = tf.saved_model.load(MODEL).signatures["predict"]
    print(f"{sum(file.stat().st_size for file in MODEL.rglob('*') if file.is_file())} bytes in {MODEL}")
    for kind, specs in (("input", exported.structured_input_signature[1]), ("output", exported.structured_outputs)):
        for name, spec in sorted(specs.items()):
            print(f"  {kind} {name}: {spec.dtype.name} {spec.shape}")
    for part, rows, truth in (
        ("training", train_features, train_classes),
        ("held-out", test_features, test_classes),
    ):
        answers = exported(**dict(zip(FEATURES, tf.unstack(tf.constant(rows), axis=1), strict=True)))
        right = int(np.sum(answers["label"].numpy() == np.array(LABELS, dtype=bytes)[truth]))
        print(f"  right on {right} of the {len(truth)} {part} rows")


if __name__ == "__main__":
    main()
