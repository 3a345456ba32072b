"""What the handlers share. This folder is on `sys.path`, so each of them can import it."""

from cortex import RequestError

FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
LABELS = ("iris-setosa", "iris-versicolor", "iris-virginica")


def measurements(sample):
    """Return the four numbers in the order the models were trained on, or tell the caller what is missing."""
    if not isinstance(sample, dict):
        raise RequestError(400, f"expected a JSON object with {', '.join(FEATURES)}")
    missing = [name for name in FEATURES if name not in sample]
    if missing:
        raise RequestError(400, f"missing {', '.join(missing)}", missing=missing)
    return [sample[name] for name in FEATURES]
