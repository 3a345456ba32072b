"""The scikit-learn model was trained on the label texts and answers with them."""

from iris import measurements


def pre_inference(sample, metadata):
    return measurements(sample)  # the model has one input, so its value is all that is needed


def post_inference(prediction, metadata):
    return prediction["label"][0]  # one label for each row; there is one row
