"""The model takes the four measurements by name, and answers with the label and one probability for each."""

from cortex import RequestError
from cortex.lib.log import get_logger

logger = get_logger()


def pre_inference(sample, metadata):
    wanted = metadata["predict"].inputs  # by name; each has a dtype and a shape
    missing = [name for name in wanted if not isinstance(sample, dict) or name not in sample]
    if missing:
        raise RequestError(400, f"missing {', '.join(missing)}", missing=missing)
    return {name: sample[name] for name in wanted}


def post_inference(prediction, metadata):
    probabilities = prediction["probabilities"]  # of the one row: three numbers
    logger.info("probabilities: %s", probabilities)  # shown by `cortex logs classifier`
    return {"label": prediction["label"][0], "probability": probabilities.max()}
