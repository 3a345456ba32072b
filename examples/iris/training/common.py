"""What the training scripts share: the data, the split, and the check of the file that was exported."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import ArrayLike
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split

SEED = 7
LABELS = ("iris-setosa", "iris-versicolor", "iris-virginica")
"""In the order of scikit-learn's class numbers 0, 1, 2."""
MODELS = Path(__file__).resolve().parent.parent / "models"


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Return training features, test features, training classes and test classes.

    Features are float32 of shape (rows, 4): sepal length, sepal width, petal length, petal width, all in cm.
    Classes are int64 of shape (rows,). A fifth of the 150 rows is held out, the same rows every time.
    """
    features, classes = load_iris(return_X_y=True)
    return tuple(
        train_test_split(
            features.astype(np.float32),
            classes.astype(np.int64),
            test_size=0.2,
            random_state=SEED,
            stratify=classes,
        )
    )


def save(model: onnx.ModelProto, name: str) -> Path:
    """Check the model, write it as one file, and return where."""
    onnx.checker.check_model(model, full_check=True)
    path = MODELS / f"{name}.onnx"
    onnx.save(model, path)
    return path


def report(path: Path, to_classes: Callable[[dict[str, np.ndarray]], ArrayLike]) -> None:
    """
    Print the signature of the exported file and how often it is right, as onnxruntime sees them.

    Args:
        path: the file to check.
        to_classes: turns the model's outputs, a dict by name, into class numbers of shape (rows,).
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    print(f"{path.name}: {path.stat().st_size} bytes")
    for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for value in values:
            print(f"  {kind} {value.name}: {value.type} {value.shape}")

    names = [output.name for output in session.get_outputs()]
    train_features, test_features, train_classes, test_classes = load()
    for part, features, classes in (
        ("training", train_features, train_classes),
        ("held-out", test_features, test_classes),
    ):
        outputs = dict(zip(names, session.run(names, {session.get_inputs()[0].name: features}), strict=True))
        right = int(np.sum(np.asarray(to_classes(outputs)) == classes))
        print(f"  right on {right} of the {len(classes)} {part} rows")
