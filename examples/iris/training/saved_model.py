"""What the scripts for TensorFlow share: names, in the order of the data, and where the SavedModel is."""

from pathlib import Path

FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
LABELS = ("iris-setosa", "iris-versicolor", "iris-virginica")
"""In the order of scikit-learn's class numbers 0, 1, 2."""
MODEL = Path(__file__).resolve().parent.parent / "models" / "tensorflow"
