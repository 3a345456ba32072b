"""A picture in, the shape that it shows out."""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cortex import RequestError

LABELS = ("circle", "cross", "square", "star", "triangle")
"""In the order of the model's output."""
SIDE = 64
"""The model sees pictures of 64 x 64 pixels."""
MOST_PIXELS = 50_000_000
"""A small file may unpack to a picture that fills the memory: what is larger than this is not unpacked."""


def pre_inference(sample, metadata):
    if not isinstance(sample, bytes):
        raise RequestError(415, "send a picture, with the header content-type: image/jpeg")
    try:
        image = Image.open(io.BytesIO(sample), formats=("JPEG", "PNG", "WEBP"))  # reads its header only
        if image.width * image.height > MOST_PIXELS:
            raise RequestError(413, f"the picture has more than {MOST_PIXELS} pixels", limit_pixels=MOST_PIXELS)
        image.draft("RGB", (SIDE, SIDE))  # a large JPEG is read at a fraction of its size, which is much quicker
        image = ImageOps.exif_transpose(image).convert("RGB")  # the right way up, as the camera noted it
    except UnidentifiedImageError as error:
        raise RequestError(415, "this is no JPEG, PNG or WebP") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(400, f"this picture cannot be read: {error}") from error
    square = ImageOps.fit(image, (SIDE, SIDE))  # the middle, made smaller
    pixels = np.asarray(square, np.float32) / 255  # (height, width, channel), from 0 to 1
    return pixels.transpose(2, 0, 1)[None]  # (1, channel, height, width): a batch of one


def post_inference(prediction, metadata):
    probabilities = prediction["probabilities"][0]  # first row: one number for each label
    best = probabilities.argmax()
    return {
        "label": LABELS[best],
        "probability": round(float(probabilities[best]), 4),
        "probabilities": {label: round(float(p), 4) for label, p in zip(LABELS, probabilities, strict=True)},
    }
