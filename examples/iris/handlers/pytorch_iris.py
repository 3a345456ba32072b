"""The PyTorch model answers with one score for each class; the highest wins."""

from iris import LABELS, measurements

from cortex.lib.log import get_logger

logger = get_logger()


def pre_inference(sample, metadata):
    return [measurements(sample)]  # a batch of one row: shape (1, 4)


def post_inference(prediction, metadata):
    scores = prediction["scores"][0]  # first row: three numbers, one for each label
    logger.info("scores: %s", scores)  # shown by `cortex logs iris/pytorch`
    return LABELS[scores.argmax()]
