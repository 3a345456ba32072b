"""The XGBoost model answers with the number of the class."""

from iris import LABELS, measurements


def pre_inference(sample, metadata):
    return {metadata[0].name: measurements(sample)}  # by name, as a model with several inputs needs it


def post_inference(prediction, metadata):
    return LABELS[prediction[0][0]]  # the first output is the class number, one for each row
